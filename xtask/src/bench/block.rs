//! The disk alone: the kernel of `examples/drivers`, which drives it by blkfront, beside Linux with its own asynchronous
//! calls, past its page cache.

use anyhow::{Context, Result, ensure};

use super::figures::{Figure, Figures};
use super::linux::{PATIENCE, again};
use crate::dom0::Dom0;

/// Both end by themselves, and say so before.
const GUESTS: [(&str, &str, &str); 2] = [
    ("unikernel", "kernel='/drivers'\nextra='bench'\nmemory=64\n", " failed\r"),
    (
        "linux",
        "kernel='/vmlinux'\nramdisk='/peer.gz'\nmemory=192\n\
         extra='console=hvc0 quiet panic=-1 mitigations=off peer=block'\n",
        "block done",
    ),
];

/// Measures both in turns; what is on the disk is lost.
pub(super) fn compare(dom0: &Dom0, rounds: u32, figures: &mut Figures) -> Result<()> {
    // The first round does not count.
    for round in 0..=rounds {
        for turn in 0..2 {
            let which = ((round + turn) % 2) as usize;
            let (name, ..) = GUESTS[which];
            println!("disk, round {round} of {rounds}, {name}");
            let found = again(name, || measure(dom0, which))?;
            for (figure, value) in found {
                println!("  {:<58} {value:>10.3}", figure.name());
                if round > 0 {
                    figures.add(figure, which, value);
                }
            }
        }
    }
    Ok(())
}

fn measure(dom0: &Dom0, which: usize) -> Result<Vec<(Figure, f64)>> {
    let (name, words, end) = GUESTS[which];
    let name = format!("disk-{name}");
    let config = format!(
        "name='{name}'\ntype='pvh'\nvcpus=1\ntsc_mode='native'\ndisk=['phy:/dev/vda,xvda,w']\n{words}"
    );
    dom0.put(&format!("/{name}.cfg"), config.as_bytes())?;
    // What a try before this one left behind goes first.
    let create = format!(
        "xl destroy {name} 2>/dev/null && sleep 1; : >/var/log/xen/guest-{name}.log; xl create /{name}.cfg"
    );
    dom0.run(&create, PATIENCE)?;
    let text = dom0.console(&name)?.wait_for(end, PATIENCE);
    dom0.sh(&format!("xl destroy {name} 2>/dev/null; sleep 1"), PATIENCE)?;
    let text = text?;
    ensure!(!text.contains("FAILED "), "{name}:\n{text}");
    let found: Vec<_> = text.lines().filter_map(figure).collect();
    ensure!(!found.is_empty(), "{name} measured nothing:\n{text}");
    Ok(found)
}

/// Such as `block rand-read-4k depth=32 ops=4000 bytes=16384000 us=123456 requests=4000`.
fn figure(line: &str) -> Option<(Figure, f64)> {
    let mut words = line.trim().strip_prefix("block ")?.split(' ');
    let job = words.next()?;
    let numbers: Vec<(&str, f64)> = words
        .filter_map(|word| word.split_once('='))
        .filter_map(|(k, v)| Some((k, v.parse().ok()?)))
        .collect();
    let number = |name| numbers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let seconds = number("us").filter(|us| *us > 0.0)? / 1e6;
    let depth = number("depth")? as u32;
    let figure = Figure::block(job, depth)?;
    Some((
        figure,
        if figure.is_random() { number("ops")? / seconds } else { number("bytes")? / seconds / 1e6 },
    ))
}

/// The kernel that drives the disk.
pub(super) fn kernel() -> Result<Vec<u8>> {
    use crate::image::{self, Options};
    let image = image::build(&Options { package: Some("drivers"), quiet: true, ..Options::default() })?;
    std::fs::read(&image.path).with_context(|| format!("cannot read {}", image.path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_figure() {
        let random = "block rand-read-4k depth=32 ops=4000 bytes=16384000 us=500000 requests=4000\r";
        assert_eq!(figure(random).map(|(_, value)| value), Some(8000.0));
        let (told, value) =
            figure("block seq-write-1m depth=4 ops=2 bytes=2097152 us=1000000").expect("known");
        assert_eq!(
            (told.name().as_str(), value),
            ("disk, writes of 1 MiB in a row, 4 at once, MB/s", 2.097_152)
        );
        assert_eq!(figure("block unknown depth=4 ops=2 bytes=2 us=1"), None);
        assert_eq!(figure("block rand-read-4k depth=32 ops=4000 bytes=16384000 us=0"), None);
    }
}
