//! The unikernel's image: built by cargo, without symbols, under `target/xen`.

pub mod format;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::elf;
use crate::platform::{Arch, Format, Platform};
use crate::toolchain::{self, Toolchain};

/// Build the unikernel to target/xen/unikernel, or target/xen/arm64/unikernel
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// Leave parts out: a list of `net` and `disk`, or `none` for the console alone [default: all]
    #[arg(long, value_delimiter = ',')]
    features: Option<Vec<String>>,
    /// Fix the configuration in the image, which then takes no command line
    #[arg(long, value_name = "WORDS")]
    cmdline: Option<String>,
}

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The architecture.
    pub arch: Arch,
    /// The package; none: the unikernel.
    pub package: Option<&'static str>,
    /// The features of the unikernel; none: the default ones.
    pub features: Option<Vec<String>>,
    /// The configuration to fix in the image.
    pub cmdline: Option<String>,
    /// Whether cargo keeps quiet unless it fails.
    pub quiet: bool,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    /// What Xen loads, without symbols.
    pub path: PathBuf,
    /// The same with symbols.
    pub debug: PathBuf,
}

/// `cargo xtask build`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let features = args.features.clone().map(|list| list.into_iter().filter(|name| name != "none").collect());
    let (arch, cmdline) = (args.arch, args.cmdline.clone());
    let image = build(&Options { arch, features, cmdline, ..Options::default() })?;
    println!("{} ({})", image.path.display(), kib(size(&image.path)?));
    println!("{} (with symbols)", image.debug.display());
    Ok(ExitCode::SUCCESS)
}

/// The workspace's folder.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}

/// Where images and disks go.
pub fn out_dir() -> Result<PathBuf> {
    let dir = workspace().join("target/xen");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// The cargo that runs this.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// How images are built.
const PROFILE: &str = "unikernel";

/// What cargo's profiles have no words for. An image stands where it was linked to, so addresses need not be relative; less is
/// put into its callers than the compiler would, and what is there twice stands once: 12 KB less.
const SMALLER: [&str; 6] = [
    "-C",
    "relocation-model=static",
    "-C",
    "llvm-args=-inline-threshold=40",
    "-C",
    "llvm-args=-enable-machine-outliner=always",
];

/// The compiler's flags with which the image's messages and symbols name of what a registry gave the package, not where this
/// machine keeps it, beside those that the user has in `RUSTFLAGS`.
fn without_paths() -> Result<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let registries = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok());
    let own = match std::env::var("RUSTFLAGS") {
        Err(std::env::VarError::NotPresent) => String::new(),
        own => own.context("RUSTFLAGS")?,
    };
    let remap = |registry: fs::DirEntry| format!("--remap-path-prefix={}/=", registry.path().display());
    let remaps = registries.into_iter().flatten().flatten().map(remap);
    Ok(own.split_whitespace().map(str::to_owned).chain(remaps).collect::<Vec<_>>().join("\x1f"))
}

/// Builds an image; cargo sees to it that nothing old is served.
pub fn build(options: &Options) -> Result<Image> {
    let platform = options.arch.platform();
    let package = options.package.unwrap_or("unikernel");
    let (mut cargo, target) = compiler(platform)?;
    cargo.args(["--package", package, "--bin", package, "--profile", PROFILE]);
    if options.quiet {
        cargo.arg("--quiet");
    }
    if let Some(features) = &options.features {
        cargo.args(["--no-default-features", "--features", &features.join(",")]);
    }
    cargo.arg("--").args(SMALLER).env("CARGO_ENCODED_RUSTFLAGS", without_paths()?);
    match &options.cmdline {
        Some(words) => cargo.env("UNIKERNEL_CMDLINE", words),
        None => cargo.env_remove("UNIKERNEL_CMDLINE"),
    };
    let status = cargo.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("{package} does not build; cargo says why above");
    }
    let dir = out_dir()?.join(platform.folder);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let name = match &options.features {
        None => package.to_owned(),
        Some(features) if features.is_empty() => format!("{package}-console"),
        Some(features) => format!("{package}-{}", features.join("-")),
    };
    let image = Image { path: dir.join(&name), debug: dir.join(format!("{name}.debug")) };
    let file = read(&target.join(PROFILE).join(package))?;
    write(&image.debug, &file)?;
    let bytes = match platform.format {
        Format::Elf => elf::cut_sections(file),
        Format::Raw => format::loadable(file).map(|(_, bytes)| bytes),
    };
    write(&image.path, &bytes.with_context(|| format!("{}", image.debug.display()))?)?;
    Ok(image)
}

/// The command that builds for a platform, and the folder of what it builds.
fn compiler(platform: &Platform) -> Result<(Command, PathBuf)> {
    if let Some(triple) = platform.target {
        return Ok((Toolchain::bare(triple)?.cargo("rustc", triple), toolchain::dir().join(triple)));
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let mut cargo = cargo();
    cargo.args(["rustc", "--target-dir"]).arg(&target);
    Ok((cargo, target))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A file's size in bytes.
pub fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.len())
}

/// Bytes for people.
pub fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}
/// The load generator, linked with all it needs, for it runs where there may be an older C library or none.
pub fn load() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let target = workspace().join("target/load");
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--release", "--package", "load", "--target", TARGET, "--target-dir"]);
    let status = cargo
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the load generator does not build");
    Ok(target.join(TARGET).join("release/load"))
}
