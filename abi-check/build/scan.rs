//! The headers' text: which macros they define, and which header names what.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A `#define` with a body.
#[derive(Clone, Debug)]
pub(crate) struct Macro {
    pub(crate) header: String,
    pub(crate) name: String,
    /// It takes arguments.
    pub(crate) function: bool,
}

/// What was found by reading, under any condition of the preprocessor.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) macros: Vec<Macro>,
    /// Which header has a word first. A header that defines the word as a type comes before any other.
    words: BTreeMap<String, String>,
}

impl Text {
    pub(crate) fn read(include: &Path, headers: &[&str]) -> Result<Self, String> {
        let mut this = Self { macros: Vec::new(), words: BTreeMap::new() };
        let mut definitions = BTreeMap::new();
        for header in headers {
            let path = include.join("xen").join(header);
            println!("cargo:rerun-if-changed={}", path.display());
            let text = fs::read_to_string(&path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            let text = without_comments(&text).replace("\\\n", " ");
            text.lines().filter_map(|line| define(line, header)).for_each(|found| {
                if this.macros.iter().all(|known| known.name != found.name) {
                    this.macros.push(found);
                }
            });
            let words =
                text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            let mut before = "";
            for word in words {
                this.words.entry(word.to_owned()).or_insert_with(|| (*header).to_owned());
                // Not in front of a brace alone: what is only used here is defined in a header that comes earlier.
                if matches!(before, "struct" | "union" | "enum")
                    && text.contains(&format!("{before} {word} {{"))
                {
                    definitions.entry(word.to_owned()).or_insert_with(|| (*header).to_owned());
                }
                before = word;
            }
        }
        this.words.extend(definitions);
        Ok(this)
    }

    /// The header that names this first.
    pub(crate) fn header(&self, word: &str) -> Option<&str> {
        self.words.get(word).map(String::as_str)
    }
}

fn define(line: &str, header: &str) -> Option<Macro> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("define")?.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (name, body) = rest.split_at(end);
    // Guards and switches say nothing about the interface.
    let valued = !name.is_empty() && !body.trim().is_empty();
    valued.then(|| Macro {
        header: header.to_owned(),
        name: name.to_owned(),
        function: body.starts_with('('),
    })
}

fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut out = String::with_capacity(text.len());
    while let Some(start) = rest.find("/*") {
        let (code, comment) = rest.split_at(start);
        out.push_str(code);
        out.push(' ');
        rest = comment.find("*/").map_or("", |end| &comment[end + 2..]);
    }
    out + rest
}
