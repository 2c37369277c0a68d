//! The command line.

use alloc::string::String;

/// Words, some of them of the form `key=value`.
#[derive(Debug)]
pub(crate) struct Words(String);

impl Words {
    pub(crate) fn new(line: &str) -> Self {
        Self(line.into())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    pub(crate) fn has(&self, wanted: &str) -> bool {
        self.0.split_whitespace().any(|word| word == wanted)
    }
}
