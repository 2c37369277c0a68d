//! `cargo xtask size`: what the parts of the unikernel cost.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use object::Endianness;
use object::elf::{FileHeader64, SHT_NOBITS, SHT_SYMTAB};
use object::read::elf::{FileHeader, SectionHeader, Sym};

use crate::image::{self, Image, Options, kib};
use crate::platform::Arch;
use crate::tally::Tally;

/// Show what each part and each crate costs in the image
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
}

/// What of the image is chosen: a name, and the parts.
type Choice = (&'static str, Option<&'static [&'static str]>);

const SMALLEST: Choice = ("console only", Some(&[]));
/// All but what lets it be suspended.
const DEVICES: Choice = ("+ net + disk", Some(&["net", "disk"]));
const WHOLE: Choice = ("all", None);
/// Other images, by their packages: what the runtime costs, and what event channels and a console do.
const LINES: [(&str, &str, u64); 2] =
    [("line", "a line to Xen", 14 << 10), ("line-console", "to a console", 29 << 10)];

/// Builds the image with each choice of parts, then counts the symbols of the whole one by crate.
pub fn run(args: &Args) -> Result<ExitCode> {
    let choices = [SMALLEST, ("+ net", Some(&["net"][..])), ("+ disk", Some(&["disk"][..])), DEVICES, WHOLE];
    println!("{:<16} {:>12}", "image", "stripped");
    for (package, name, _) in LINES {
        println!("{name:<16} {:>12}", kib(image::size(&line(args.arch, package)?.path)?));
    }
    let mut whole = None;
    for (name, features) in choices {
        let image = build(args.arch, features)?;
        println!("{name:<16} {:>12}", kib(image::size(&image.path)?));
        whole = Some(image);
    }
    if let Some(image) = whole {
        println!("\n{:<24} {:>12}", "crate (of \"all\")", "code, data");
        for (name, bytes) in by_crate(&image.debug)? {
            println!("{name:<24} {:>12}", kib(bytes));
        }
        println!("Code that was inlined counts for the crate it ended up in.");
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the image is as small as it is meant to be, with all parts and with the fewest.
pub(crate) fn check() -> Result<Tally> {
    let mut tally = Tally::default();
    let unikernel = |(name, features): Choice| -> Result<_> { Ok((name, build(Arch::X86_64, features)?)) };
    let mut images = vec![
        (unikernel(WHOLE)?, 319 << 10),
        (unikernel(DEVICES)?, 293 << 10),
        (unikernel(SMALLEST)?, 64 << 10),
    ];
    for (package, name, limit) in LINES {
        images.push(((name, line(Arch::X86_64, package)?), limit));
    }
    for ((name, image), limit) in images {
        let size = image::size(&image.path)?;
        let word = if size <= limit { "is" } else { "should be" };
        println!("   {name}: {} bytes, which {word} at most {}", size, kib(limit));
        tally.add(size <= limit);
    }
    Ok(tally)
}

fn build(arch: Arch, features: Option<&[&str]>) -> Result<Image> {
    let features = features.map(|list| list.iter().map(|name| (*name).to_owned()).collect());
    image::build(&Options { arch, features, quiet: true, ..Options::default() })
}

/// A kernel that prints a line and ends.
fn line(arch: Arch, package: &'static str) -> Result<Image> {
    image::build(&Options { arch, package: Some(package), quiet: true, ..Options::default() })
}

/// Sums the sizes of the symbols by the crate that their names begin with.
fn by_crate(image: &Path) -> Result<Vec<(String, u64)>> {
    let file = image::read(image)?;
    let mut sums = BTreeMap::<String, u64>::new();
    for (name, bytes) in symbols(&file).with_context(|| format!("cannot read {}", image.display()))? {
        *sums.entry(crate_of(&name)).or_default() += bytes;
    }
    let mut list: Vec<_> = sums.into_iter().collect();
    list.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    Ok(list)
}

/// The names and sizes of what is in an ELF file, without memory that has no contents.
fn symbols(file: &[u8]) -> Result<Vec<(String, u64)>> {
    let header = FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, file)?;
    let table = sections.symbols(endian, file, SHT_SYMTAB)?;
    let mut list = Vec::new();
    for (index, symbol) in table.enumerate() {
        // What has no size is a label.
        let size = symbol.st_size(endian);
        let Some(section) = table.symbol_section(endian, symbol, index)?.filter(|_| size > 0) else {
            continue;
        };
        if sections.section(section)?.sh_type(endian) != SHT_NOBITS {
            list.push((String::from_utf8_lossy(symbol.name(endian, table.strings())?).into_owned(), size));
        }
    }
    Ok(list)
}

/// The crate of a mangled name, in either of the compiler's manners: that of the first path in it. Primitive types,
/// whose names are none, are core's.
fn crate_of(name: &str) -> String {
    let plain = rustc_demangle::try_demangle(name).map_or_else(|_| String::new(), |name| format!("{name:#}"));
    let words = plain.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    let mut paths = words.filter_map(|word| word.split_once("::"));
    let first = paths.find_map(|(first, _)| (!first.is_empty()).then(|| first.to_owned()));
    first.unwrap_or_else(|| if plain.starts_with('<') { "core" } else { "(no crate)" }.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_crate() {
        for (name, wanted) in [
            ("_ZN9webserver4http5parse17h895f5db01467f91eE", "webserver"),
            ("_ZN52_$LT$xen_ring..Front$u20$as$u20$core..fmt..Debug$GT$3fmt17h895f5db01467f91eE", "xen_ring"),
            ("_ZN50_$LT$$RF$mut$u20$W$u20$as$u20$core..fmt..Write$GT$9write_str17h895f5db01467f91eE", "core"),
            ("_RNvNtCsfsfer91yzGr_9webserver4http6reason", "webserver"),
            ("_RINvMNtCsdKTTU4wEslO_4core3stre5parsemECsaPQIndJMkp9_9unikernel", "core"),
            (
                "_RNvXNtCsh9FIL6sYl50_12xen_netfront5frontNtB2_5StateNtNtCsdKTTU4wEslO_4core3fmt7Display3fmt",
                "xen_netfront",
            ),
        ] {
            assert_eq!(crate_of(name), wanted, "{name}");
        }
        assert_eq!(crate_of("memcpy"), "(no crate)");
    }
    #[test]
    fn contents_have_sizes_and_names() {
        static CONTENT: [u64; 123] = [7; 123];
        static NOTHING: [std::sync::atomic::AtomicU64; 77] =
            [const { std::sync::atomic::AtomicU64::new(0) }; 77];
        // Both are there only if they are used.
        std::hint::black_box((&CONTENT, &NOTHING));
        let list = symbols(&std::fs::read("/proc/self/exe").unwrap()).unwrap();
        let size = |word: &str| list.iter().find(|(name, _)| name.contains(word)).map(|(_, size)| *size);
        assert_eq!(
            (size("contents_have_sizes_and_names7CONTENT"), size("contents_have_sizes_and_names7NOTHING")),
            (Some(984), None)
        );
    }
}
