//! The results of grant table operations.

use core::fmt;

/// The result of a single grant table operation (`GNTST_*` in `grant_table.h`). Zero and up is success.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GrantStatus(pub i16);

macro_rules! statuses {
    ($($name:ident = $nr:literal, $text:literal;)*) => {
        impl GrantStatus {
            $(#[doc = concat!("`GNTST_` ", stringify!($nr), ": ", $text, ".")] pub const $name: Self = Self($nr);)*

            const fn describe(self) -> Option<(&'static str, &'static str)> {
                match self.0 {
                    $($nr => Some((stringify!($name), $text)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    OKAY = 0, "done";
    GENERAL_ERROR = -1, "the entry does not grant this: another domain, not this access, or nothing at all";
    BAD_DOMAIN = -2, "no such domain";
    BAD_GNTREF = -3, "no such reference";
    BAD_HANDLE = -4, "no such mapping";
    BAD_VIRT_ADDR = -5, "the virtual address cannot be mapped";
    BAD_DEV_ADDR = -6, "the device address cannot be unmapped";
    NO_DEVICE_SPACE = -7, "no room in the I/O MMU";
    PERMISSION_DENIED = -8, "not enough privilege";
    BAD_PAGE = -9, "the page is not fit for this";
    BAD_COPY_ARG = -10, "a copy crosses a page's end";
    ADDRESS_TOO_BIG = -11, "the address is too large";
    EAGAIN = -12, "not done, try again";
    NO_SPACE = -13, "no room for another mapping";
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, text)) => write!(f, "{name} ({}): {text}", self.0),
            None => write!(f, "grant status {}", self.0),
        }
    }
}

impl fmt::Debug for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "GrantStatus({})", self.0),
        }
    }
}

impl core::error::Error for GrantStatus {}
