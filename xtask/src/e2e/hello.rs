//! The smallest guests, of which newcomers make theirs.

use anyhow::{Result, ensure};

use super::lab::Lab;
use crate::guest::{PATIENCE, Spec};
use crate::hello;
use crate::image::Options;

pub(super) fn it_answers_and_ends(lab: &mut Lab) -> Result<()> {
    lab.put("/hello", Options { package: Some("hello"), features: Some(Vec::new()), ..Options::default() })?;
    let spec = Spec { kernel: "/hello".into(), cmdline: String::new(), disk: None, ..lab.spec() };
    let (guest, mut console) = lab.start(&spec)?;
    console.wait_for("listening at 10.0.0.2, port 80", PATIENCE)?;
    hello::is_answered(lab.dom0.http_port())?;
    let text = console.wait_for("answered; that is all", PATIENCE)?;
    for line in ["hello from 32 MiB of memory", &format!("I am {}", guest.name())] {
        ensure!(text.contains(line), "no {line:?} on the console:\n{text}");
    }
    guest.wait("end", |listed| listed.is_none()).map(drop)
}

pub(super) fn a_line_and_the_end(lab: &mut Lab) -> Result<()> {
    lab.put("/line", Options { package: Some("line"), ..Options::default() })?;
    let spec = Spec { kernel: "/line".into(), vif: None, disk: None, memory: 8, ..lab.spec() };
    let (guest, mut console) = lab.start(&spec)?;
    console.wait_for("a line from 8 MiB of memory", PATIENCE)?;
    guest.wait("end", |listed| listed.is_none()).map(drop)
}
