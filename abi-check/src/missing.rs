//! The list of what the headers define and the SDK lacks, with the reason for each.

use std::fmt;

/// One name of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// A name, or the beginning of some when `family`.
    pub name: String,
    /// Every name that begins so (`NAME*` in the file).
    pub family: bool,
    /// Only newer headers than the oldest supported have it (`?NAME` in the file).
    pub newer: bool,
    /// Why.
    pub reason: String,
}

impl Missing {
    /// Whether the list's name stands for this item.
    pub fn is(&self, item: &str) -> bool {
        if self.family { item.starts_with(&self.name) } else { item == self.name }
    }
}

/// A line that is not of the list's form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of the list: {}", self.line, self.what)
    }
}

/// Reads a list: `= REASON` begins a group, the words of the lines below are its names; `#` begins a remark.
///
/// # Errors
/// The first line that is not of this form, or names what another line names.
pub fn parse(text: &str) -> Result<Vec<Missing>, Malformed> {
    let mut list: Vec<Missing> = Vec::new();
    let mut reason = String::new();
    for (line, content) in (1..).zip(text.lines()) {
        let malformed = |what| Malformed { line, what };
        let content = content.split('#').next().unwrap_or_default().trim();
        if let Some(new) = content.strip_prefix('=') {
            reason = new.trim().to_owned();
            if reason.is_empty() {
                return Err(malformed("a group needs a reason"));
            }
            continue;
        }
        for word in content.split_whitespace() {
            let (word, newer) = word.strip_prefix('?').map_or((word, false), |word| (word, true));
            let (name, family) = word.strip_suffix('*').map_or((word, false), |name| (name, true));
            if reason.is_empty() {
                return Err(malformed("a name before the first reason"));
            }
            if name.len() < 3 {
                return Err(malformed("a name of fewer than three letters stands for too much"));
            }
            if list.iter().any(|known| known.name == name && known.family == family) {
                return Err(malformed("a name that is in the list already"));
            }
            list.push(Missing { name: name.to_owned(), family, newer, reason: reason.clone() });
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_groups_of_names_below_their_reason() {
        let list = parse("# a remark\n= PV only\nmmu_update MMUEXT_*  # both\n\n= newer\n?later\n")
            .expect("well-formed");
        let names: Vec<_> = list.iter().map(|one| (one.name.as_str(), one.family, one.newer)).collect();
        assert_eq!(names, [("mmu_update", false, false), ("MMUEXT_", true, false), ("later", false, true)]);
        assert_eq!(list[1].reason, "PV only");
        assert!(list[1].is("MMUEXT_PIN") && !list[0].is("mmu_update_t"));
    }

    #[test]
    fn a_name_without_a_reason_or_twice_is_refused() {
        assert_eq!(parse("name\n").map_err(|error| error.line), Err(1));
        assert_eq!(parse("=\n").map_err(|error| error.line), Err(1));
        assert_eq!(parse("= why\nname\nname\n").map_err(|error| error.line), Err(3));
        assert_eq!(parse("= why\n*\n").map_err(|error| error.line), Err(2));
    }
}
