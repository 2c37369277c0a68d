//! The command line.

use alloc::string::String;

/// Words, some of them of the form `key=value`.
#[derive(Debug)]
pub struct Words(String);

impl Words {
    /// Those of a line.
    pub fn new(line: &str) -> Self {
        Self(line.into())
    }

    /// What stands behind `key=`, where it comes first.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// Whether a word is there.
    pub fn has(&self, wanted: &str) -> bool {
        self.0.split_whitespace().any(|word| word == wanted)
    }
}
