//! `cargo xtask bench migrate`: the unikernel and a Linux guest are migrated, saved and restored in turns while a client of dom0 asks both
//! for parts of a file of their disk on sixteen connections.

use std::time::Duration;

use anyhow::{Context, Result};

use super::figures::{Figure, Figures, Move};
use super::linux::{Given, SUBJECTS, Subject, again, with_guest};
use crate::dom0::Dom0;

/// All of a turn.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often a guest moves in a turn.
const TIMES: u32 = 3;
/// What xl takes for ssh: the name of the other machine, and a command for it.
const SSH: &str = "printf '#!/bin/bash\\nshift; exec \"$@\"\\n' >/usr/bin/here; chmod +x /usr/bin/here";

/// Measures so many rounds.
pub(super) fn measure(given: &Given, rounds: u32, figures: &mut Figures) -> Result<()> {
    let dom0 = given.boot()?;
    dom0.run(SSH, PATIENCE)?;
    // The first round warms up.
    for round in 0..=rounds {
        for turn in 0..2 {
            let which = ((round + turn) % 2) as usize;
            let subject = &SUBJECTS[which];
            println!("round {round} of {rounds}, {}", subject.name);
            for (figure, value) in again(subject.name, || {
                with_guest(&dom0, subject, subject.memory, || turn_of(&dom0, subject))
            })? {
                println!("  {:<58} {value:>10.3}", figure.name());
                if round > 0 {
                    figures.add(figure, which, value);
                }
            }
        }
    }
    Ok(())
}

fn turn_of(dom0: &Dom0, subject: &Subject) -> Result<Vec<(Figure, f64)>> {
    let Subject { name, address, .. } = subject;
    dom0.run(&format!("/load boot {name} {address} /LARGE.BIN"), PATIENCE)?;
    let mut all = Vec::new();
    for (way, command) in [
        (Move::Migrate, format!("xl migrate -s here {name} localhost")),
        (Move::Restore, format!("xl save {name} /tmp/s && xl restore /tmp/s && rm /tmp/s")),
    ] {
        let said =
            dom0.run(&format!("/load traffic {address} /LARGE.BIN 16 - {TIMES} '{command}' 2>&1"), PATIENCE)?;
        for line in said.lines().filter(|line| line.starts_with("time ")) {
            let of = |name: &str| -> Result<f64> {
                let word = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                word.and_then(|word| word.parse().ok()).with_context(|| format!("no {name} in {line:?}"))
            };
            let (took, gap, wait, stop) = (of("command_ms")?, of("gap_ms")?, of("wait_ms")?, of("stop_ms")?);
            all.extend([(Figure::Took(way), took), (Figure::Gap(way), gap), (Figure::Own(way), gap - stop)]);
            all.push((Figure::Wait(way), wait - stop));
        }
    }
    Ok(all)
}
