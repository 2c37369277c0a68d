//! How far one side of a device is.

use core::fmt;
use core::str::FromStr;

/// The value of a `state` node (`enum xenbus_state`). Unknown numbers are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct XenbusState(pub u32);

impl XenbusState {
    /// There is none, or it cannot be read: the side is not there.
    pub const UNKNOWN: Self = Self(0);
    /// It begins.
    pub const INITIALISING: Self = Self(1);
    /// It has told what it can do, and waits for the other's choice.
    pub const INIT_WAIT: Self = Self(2);
    /// It has told what the other needs to connect.
    pub const INITIALISED: Self = Self(3);
    /// It is at work.
    pub const CONNECTED: Self = Self(4);
    /// It wants the device to end.
    pub const CLOSING: Self = Self(5);
    /// It has ended.
    pub const CLOSED: Self = Self(6);
    /// It changes something about the device.
    pub const RECONFIGURING: Self = Self(7);
    /// It has changed it.
    pub const RECONFIGURED: Self = Self(8);

    /// Whether the side is ending, has ended, or is not there.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::UNKNOWN | Self::CLOSING | Self::CLOSED)
    }
}

impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::UNKNOWN => "Unknown",
            Self::INITIALISING => "Initialising",
            Self::INIT_WAIT => "InitWait",
            Self::INITIALISED => "Initialised",
            Self::CONNECTED => "Connected",
            Self::CLOSING => "Closing",
            Self::CLOSED => "Closed",
            Self::RECONFIGURING => "Reconfiguring",
            Self::RECONFIGURED => "Reconfigured",
            Self(number) => return write!(f, "state {number}"),
        })
    }
}

impl fmt::Debug for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for XenbusState {
    type Err = core::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
