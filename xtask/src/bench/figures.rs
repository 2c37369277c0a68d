//! What was measured of two guests, and the table of it.

use std::collections::BTreeMap;

/// How a figure is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    Boot,
    Ping,
    Small(u32),
    Bulk { out: bool, streams: u32 },
    File,
    SmallDom0(u32),
    SmallGuest(u32),
    BulkDom0 { out: bool, streams: u32 },
    BulkGuest { out: bool, streams: u32 },
    Block(Job, u32),
    Took(Move),
    Gap(Move),
    Own(Move),
    Wait(Move),
}

/// How a guest becomes another domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Move {
    Migrate,
    Restore,
}

/// What is done with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Job {
    Random,
    Read64,
    Write64,
    Read1024,
    Write1024,
}

/// What a ratio of the unikernel's figure to Linux's is wanted to be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Figure {
    /// Of a kind of access to a disk, by the name that the guests give it.
    pub(super) fn block(name: &str, depth: u32) -> Option<Self> {
        let job = match name {
            "rand-read-4k" => Job::Random,
            "seq-read-64k" => Job::Read64,
            "seq-write-64k" => Job::Write64,
            "seq-read-1m" => Job::Read1024,
            "seq-write-1m" => Job::Write1024,
            _ => return None,
        };
        Some(Self::Block(job, depth))
    }

    /// Whether operations are counted, not bytes.
    pub(super) fn is_random(self) -> bool {
        matches!(self, Self::Block(Job::Random, _))
    }

    pub(super) fn name(self) -> String {
        let way = |out: bool, streams: u32| {
            let way = if out { "guest to dom0" } else { "dom0 to guest" };
            format!("TCP {way}, {streams} stream{}", if streams == 1 { "" } else { "s" })
        };
        let asked = |connections: u32| {
            format!("512-byte GET, {connections} connection{}", if connections == 1 { "" } else { "s" })
        };
        match self {
            Self::Boot => "unpause to first HTTP answer, ms".into(),
            Self::Ping => "ping, median of 200, ms".into(),
            Self::Small(connections) => asked(connections) + ", requests/s",
            Self::Bulk { out, streams } => way(out, streams) + ", MB/s",
            Self::File => "8 MiB file of the disk, 1 stream, MB/s".into(),
            Self::SmallDom0(connections) => asked(connections) + ", dom0 CPU ms per request",
            Self::SmallGuest(connections) => asked(connections) + ", guest CPU ms per request",
            Self::BulkDom0 { out, streams } => way(out, streams) + ", dom0 CPU ms per MB",
            Self::BulkGuest { out, streams } => way(out, streams) + ", guest CPU ms per MB",
            Self::Block(job, depth) => {
                let (what, unit) = match job {
                    Job::Random => ("reads of 4 KiB anywhere", "per second"),
                    Job::Read64 => ("reads of 64 KiB in a row", "MB/s"),
                    Job::Write64 => ("writes of 64 KiB in a row", "MB/s"),
                    Job::Read1024 => ("reads of 1 MiB in a row", "MB/s"),
                    Job::Write1024 => ("writes of 1 MiB in a row", "MB/s"),
                };
                format!("disk, {what}, {depth} at once, {unit}")
            }
            Self::Took(way) => format!("{}, the toolstack's time, ms", way.name()),
            Self::Gap(way) => format!("{}, longest time without an answer, ms", way.name()),
            Self::Own(way) => format!("{}, the part of that while the guest ran, ms", way.name()),
            Self::Wait(way) => format!("{}, the same of the connection that waited longest, ms", way.name()),
        }
    }

    fn goal(self) -> Option<Goal> {
        match self {
            Self::Boot => Some(Goal::AtMost(0.05)),
            Self::Ping => Some(Goal::AtMost(0.8)),
            Self::Small(_) => Some(Goal::AtLeast(1.5)),
            Self::Bulk { .. } | Self::Block(..) => Some(Goal::AtLeast(1.0)),
            Self::Own(_) => Some(Goal::AtMost(0.25)),
            _ => None,
        }
    }
}

impl Move {
    fn name(self) -> &'static str {
        match self {
            Self::Migrate => "live migration",
            Self::Restore => "save and restore",
        }
    }
}

/// Each figure's values, of the unikernel and of Linux.
#[derive(Debug, Default)]
pub(super) struct Figures(BTreeMap<Figure, [Vec<f64>; 2]>);

impl Figures {
    pub(super) fn add(&mut self, figure: Figure, which: usize, value: f64) {
        if let Some(values) = self.0.entry(figure).or_default().get_mut(which) {
            values.push(value);
        }
    }

    /// Prints all as a table.
    pub(super) fn print(self, names: [&str; 2]) {
        let [first, second] = names;
        println!(
            "\n| | {first}: median (least to most) | {second}: median (least to most) | ratio | wanted | |"
        );
        println!("|---|---|---|---|---|---|");
        for (figure, mut both) in self.0 {
            if both.iter().any(Vec::is_empty) {
                continue;
            }
            let [ours, theirs] =
                both.each_mut().map(|values| (median(values), values[0], values[values.len() - 1]));
            let shown = |(middle, least, most): (f64, f64, f64)| {
                format!("{} ({} to {})", short(middle), short(least), short(most))
            };
            let ratio = ours.0 / theirs.0;
            let (wanted, reached) = told(figure.goal(), ratio);
            let (name, ours, theirs) = (figure.name(), shown(ours), shown(theirs));
            let digits = if ratio < 0.1 { 3 } else { 2 };
            println!("| {name} | {ours} | {theirs} | {ratio:.digits$} | {wanted} | {reached} |");
        }
    }
}

fn told(goal: Option<Goal>, ratio: f64) -> (String, &'static str) {
    let said = |reached: bool| if reached { "reached" } else { "missed" };
    match goal {
        None => (String::new(), ""),
        Some(Goal::AtLeast(goal)) => (format!("at least {goal}"), said(ratio >= goal)),
        Some(Goal::AtMost(goal)) => (format!("at most {goal}"), said(ratio <= goal)),
    }
}

/// Three digits are more than such a bed knows.
fn short(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

/// Sorts; the middle value, or the mean of the two in the middle. At least one value.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_goal_has_its_direction() {
        assert_eq!(told(Figure::Ping.goal(), 0.8).1, "reached");
        assert_eq!(told(Figure::Ping.goal(), 0.81).1, "missed");
        assert_eq!(told(Figure::Small(1).goal(), 1.5).1, "reached");
        assert_eq!(told(Figure::Small(1).goal(), 1.4).1, "missed");
        assert_eq!(told(Figure::File.goal(), 1.4), (String::new(), ""));
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([short(1234.5), short(56.78), short(0.123)], ["1234", "56.8", "0.12"]);
    }
}
