//! The comparison: what the SDK says against what the headers say, both ways.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::{Entry, Headers, Is, Missing, Type, Value};

/// How much was compared with one architecture's headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Types, each for size and alignment.
    pub types: usize,
    /// Fields, each for offset and, where the SDK knows it, size.
    pub fields: usize,
    /// Constants, each for its value.
    pub constants: usize,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How much was compared, by architecture.
    pub counts: Vec<(&'static str, Counts)>,
    /// What only newer headers have, and these do not.
    pub unchecked: Vec<String>,
    /// How many items the headers define, covered or not.
    pub items: usize,
    /// How many of them are in the list of what is missing, and not covered.
    pub listed: usize,
    /// What is wrong. Empty: all agrees.
    pub problems: Vec<Problem>,
}

/// A disagreement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// Both have it, and it is not the same.
    Differs {
        /// Whose headers.
        arch: &'static str,
        /// The SDK's name.
        ours: String,
        /// The headers' name.
        theirs: String,
        /// Size, alignment, offset or value.
        what: &'static str,
        /// What the SDK says.
        we: String,
        /// What the headers say.
        they: String,
    },
    /// The SDK's table names what the headers do not have.
    Absent {
        /// The SDK's name.
        ours: String,
        /// The name that is not there.
        theirs: String,
    },
    /// The headers have what the SDK neither has nor lists as missing.
    Uncovered {
        /// The header.
        header: &'static str,
        /// Its name there.
        item: String,
    },
    /// The list of what is missing names what the SDK has, or what no header has.
    Stale {
        /// The name in the list.
        name: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs { arch, ours, theirs, what, we, they } => {
                write!(f, "{arch}: {what} of {ours}: {we}, but {theirs} of the headers has {they}")
            }
            Self::Absent { ours, theirs } => write!(f, "{ours}: the headers have no {theirs}"),
            Self::Uncovered { header, item } => {
                write!(f, "{header}: {item} is neither in the tables of src/tables nor in missing.txt")
            }
            Self::Stale { name } => {
                write!(f, "missing.txt: {name} is no longer missing, or no longer in the headers")
            }
        }
    }
}

/// Compares.
pub fn check(entries: &[Entry], headers: &[Headers], missing: &[Missing]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut found = vec![false; entries.len()];
    let mut covered = Covered::default();
    for one in headers {
        let mut counts = Counts::default();
        for (entry, found) in entries.iter().zip(&mut found) {
            if entry.arch.is_none_or(|arch| arch == one.arch) {
                *found |= compare(entry, one, &mut counts, &mut covered, &mut outcome.problems);
            }
        }
        outcome.counts.push((one.arch, counts));
    }
    for (entry, found) in entries.iter().zip(found) {
        let theirs = match &entry.is {
            Is::Field { path, .. } => format!("{}.{path}", entry.theirs),
            _ => entry.theirs.clone(),
        };
        if !found && entry.newer {
            outcome.unchecked.push(theirs);
        } else if !found {
            outcome.problems.push(Problem::Absent { ours: entry.ours.clone(), theirs });
        }
    }
    cover(headers, &covered, missing, &mut outcome);
    outcome
}

/// The headers' names that entries stand for.
#[derive(Debug, Default)]
struct Covered {
    /// Types and constants.
    names: BTreeSet<String>,
    /// Fields, as `type.path`.
    places: BTreeSet<String>,
}

/// Compares one entry with one architecture's headers; false when they do not have it.
fn compare(
    entry: &Entry,
    headers: &Headers,
    counts: &mut Counts,
    covered: &mut Covered,
    problems: &mut Vec<Problem>,
) -> bool {
    let mut expect = |what, theirs: &str, we: String, they: String| {
        if we != they {
            let (arch, ours, theirs) = (headers.arch, entry.ours.clone(), theirs.to_owned());
            problems.push(Problem::Differs { arch, ours, theirs, what, we, they });
        }
    };
    match &entry.is {
        Is::Const(value) => {
            let Some(constant) = headers.constant(&entry.theirs) else { return false };
            counts.constants += 1;
            covered.names.insert(constant.name.to_owned());
            expect("value", constant.name, value.to_string(), constant.value.to_string());
        }
        Is::Type { size, align } => {
            let Some(ty) = headers.find(&entry.theirs) else { return false };
            counts.types += 1;
            covered.names.extend([entry.theirs.clone(), ty.name.to_owned()]);
            expect("size", ty.name, size.to_string(), ty.size.to_string());
            expect("alignment", ty.name, align.to_string(), ty.align.to_string());
        }
        Is::Field { path, offset, size } => {
            let Some(ty) = headers.find(&entry.theirs) else { return false };
            let places = headers.places(ty);
            let Some(place) = places.iter().find(|place| place.path == *path) else { return false };
            counts.fields += 1;
            let name = format!("{}.{path}", ty.name);
            covered.names.extend([entry.theirs.clone(), ty.name.to_owned()]);
            expect("offset", &name, offset.to_string(), place.offset.to_string());
            if let Some(size) = size {
                expect("size", &name, size.to_string(), place.size.to_string());
            }
            covered.places.insert(name);
        }
    }
    true
}

/// Looks for what the headers have and nobody speaks of, and for what the list speaks of in vain.
fn cover(headers: &[Headers], covered: &Covered, missing: &[Missing], outcome: &mut Outcome) {
    let mut used = vec![false; missing.len()];
    let items = items(headers, covered);
    outcome.items = items.len();
    for (item, (header, is_covered)) in items {
        if is_covered {
            // A name of its own in the list is in vain; a family may have some members that are covered.
            continue;
        }
        let mut listed = false;
        for (one, used) in missing.iter().zip(&mut used) {
            if one.is(&item) {
                listed = true;
                *used = true;
            }
        }
        if listed {
            outcome.listed += 1;
        } else {
            outcome.problems.push(Problem::Uncovered { header, item });
        }
    }
    for (one, used) in missing.iter().zip(used) {
        if !used && !one.newer {
            let name = format!("{}{}", one.name, if one.family { "*" } else { "" });
            outcome.problems.push(Problem::Stale { name });
        }
    }
}

/// Everything that the headers define, with its header and whether it is covered.
fn items(headers: &[Headers], covered: &Covered) -> BTreeMap<String, (&'static str, bool)> {
    let mut items: BTreeMap<String, (&'static str, bool)> = BTreeMap::new();
    let mut add =
        |item: String, header, is_covered| items.entry(item).or_insert((header, false)).1 |= is_covered;
    for one in headers {
        for ty in one.types.iter().filter(|ty| is_item(ty, one)) {
            let is_covered = covered.names.contains(ty.name);
            add(ty.name.to_owned(), ty.header, is_covered);
        }
        // The fields of what is covered, parts of other types included.
        for ty in one.types.iter().filter(|ty| covered.names.contains(ty.name)) {
            for place in one.places(ty).iter().filter(|place| place.leaf && !is_padding(&place.path)) {
                let name = format!("{}.{}", ty.name, place.path);
                let mut parents = name.match_indices('.').map(|(at, _)| &name[..at]).chain([name.as_str()]);
                let is_covered = parents.any(|name| covered.places.contains(name));
                add(name.clone(), ty.header, is_covered);
            }
        }
        for constant in &one.values {
            let is_covered =
                covered.names.contains(constant.name) || is_number_of_covered(constant.name, one, covered);
            add(constant.name.to_owned(), constant.header, is_covered);
        }
        for other in &one.others {
            add(other.name.to_owned(), other.header, false);
        }
    }
    items
}

/// Another name for a structure is not an item of its own, nor is a pointer in a hypercall's arguments.
fn is_item(ty: &Type, headers: &Headers) -> bool {
    let to_record =
        headers.find(ty.name).is_some_and(|found| found.name != ty.name && !found.fields.is_empty());
    !ty.header.is_empty() && !to_record && !ty.name.starts_with("__guest_handle")
}

/// Padding that the headers give a name.
fn is_padding(path: &str) -> bool {
    path.rsplit('.').next().unwrap_or(path).trim_start_matches('_').starts_with("pad")
}

/// `_FLAG` is the number of the bit that the covered `FLAG` is.
fn is_number_of_covered(name: &str, headers: &Headers, covered: &Covered) -> bool {
    let value = |name: &str| match headers.values.iter().find(|one| one.name == name)?.value {
        Value::Int(number) => Some(number),
        Value::Text(_) => None,
    };
    let Some(flag) = name.strip_prefix('_').filter(|flag| covered.names.contains(*flag)) else {
        return false;
    };
    let bit = value(name).and_then(|number| 1_i64.checked_shl(u32::try_from(number).ok()?));
    bit.is_some() && bit == value(flag)
}
