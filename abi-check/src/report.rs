//! The whole check, and how it is told.

use std::fmt;

use crate::{List, Outcome, check, found, parse, tables};

/// What the check of this build says.
#[derive(Clone, Debug)]
pub struct Report {
    /// The folder that the headers came from.
    pub from: &'static str,
    /// What was found.
    pub outcome: Outcome,
}

/// Compares the SDK's tables with the headers that this was built from.
///
/// # Errors
/// What is not there: the headers, or libclang; or what is wrong with the list of what is missing.
pub fn run() -> Result<Report, String> {
    let headers = found::headers()?;
    let missing = parse(include_str!("../missing.txt")).map_err(|error| error.to_string())?;
    let mut list = List::default();
    tables::all(&mut list);
    Ok(Report { from: found::FROM, outcome: check(&list.entries, &headers, &missing) })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = &self.outcome;
        writeln!(f, "Xen's headers in {}:", self.from)?;
        for (arch, counts) in &outcome.counts {
            let (types, fields, constants) = (counts.types, counts.fields, counts.constants);
            writeln!(f, "  {arch:8} {types} types, {fields} fields, {constants} constants compared")?;
        }
        writeln!(f, "  {} items in all, {} of them listed as missing", outcome.items, outcome.listed)?;
        if !outcome.unchecked.is_empty() {
            writeln!(f, "  only newer headers have: {}", outcome.unchecked.join(", "))?;
        }
        for problem in &outcome.problems {
            writeln!(f, "MISMATCH {problem}")?;
        }
        match outcome.problems.len() {
            0 => writeln!(f, "all agrees"),
            count => writeln!(f, "{count} mismatches"),
        }
    }
}
