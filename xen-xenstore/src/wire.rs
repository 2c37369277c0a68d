//! The messages of xenstore (`io/xs_wire.h`).

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use crate::session::Assembler;

/// The most bytes that follow a header.
pub const PAYLOAD_MAX: usize = 4096;
/// The longest absolute path, in bytes.
pub const ABS_PATH_MAX: usize = 3072;
/// The longest path relative to the domain's own directory, in bytes.
pub const REL_PATH_MAX: usize = 2048;
/// Bytes of a header.
pub const HEADER_SIZE: usize = size_of::<Header>();

/// `struct xsd_sockmsg`: what every message begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// What is asked, or answered: a number of [`Operation`].
    pub kind: u32,
    /// Chosen by who asks; the answer has the same.
    pub request_id: u32,
    /// The transaction that it is part of; zero: none.
    pub transaction_id: u32,
    /// Bytes that follow.
    pub len: u32,
}

/// The kind of a message (`enum xsd_sockmsg_type`). Unknown numbers are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Operation(pub u32);

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $nr:literal;)*) => {
        impl Operation {
            $($(#[$doc])* pub const $name: Self = Self($nr);)*

            /// Its name in the header, without prefix.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($nr => stringify!($name),)*
                    _ => "unknown",
                }
            }
        }
    };
}

operations! {
    /// Text for the daemon itself.
    CONTROL = 0;
    /// Names in a directory.
    DIRECTORY = 1;
    /// A node's value.
    READ = 2;
    /// Who may read and write a node.
    GET_PERMS = 3;
    /// Be told of changes.
    WATCH = 4;
    /// Be told no more.
    UNWATCH = 5;
    /// Begin a transaction.
    TRANSACTION_START = 6;
    /// End one.
    TRANSACTION_END = 7;
    /// For the toolstack.
    INTRODUCE = 8;
    /// For the toolstack.
    RELEASE = 9;
    /// The path of a domain's directory.
    GET_DOMAIN_PATH = 10;
    /// Set a node's value.
    WRITE = 11;
    /// Make an empty node.
    MKDIR = 12;
    /// Remove a node with all below it.
    RM = 13;
    /// Say who may read and write a node.
    SET_PERMS = 14;
    /// A watched node changed.
    WATCH_EVENT = 15;
    /// It was refused; the payload is the name of an error.
    ERROR = 16;
    /// Whether a domain is known.
    IS_DOMAIN_INTRODUCED = 17;
    /// For the toolstack.
    RESUME = 18;
    /// For the toolstack.
    SET_TARGET = 19;
    /// Forget all watches and transactions of this connection.
    RESET_WATCHES = 21;
    /// A part of the names in a directory.
    DIRECTORY_PART = 22;
    /// What the daemon, or a domain of it, can do; for the toolstack.
    GET_FEATURE = 23;
    /// For the toolstack.
    SET_FEATURE = 24;
    /// How much a domain may use; for the toolstack.
    GET_QUOTA = 25;
    /// For the toolstack.
    SET_QUOTA = 26;
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

/// Why the daemon refused: the errors that the protocol knows, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// An argument is not valid.
    Invalid,
    /// Not permitted.
    AccessDenied,
    /// It exists already.
    Exists,
    /// It is a directory.
    IsDirectory,
    /// No such node.
    NotFound,
    /// The daemon is out of memory.
    OutOfMemory,
    /// A quota is used up.
    NoSpace,
    /// Input or output failed.
    Io,
    /// The directory is not empty.
    NotEmpty,
    /// The daemon does not know the operation.
    NotImplemented,
    /// Read-only.
    ReadOnly,
    /// The daemon is busy.
    Busy,
    /// The transaction clashed with another change: try again.
    Again,
    /// Connected already.
    Connected,
    /// Too big.
    TooBig,
    /// Not permitted to this domain.
    NotPermitted,
    /// A quota is used up, as the daemon in OCaml says it.
    Quota,
    /// A name that this protocol's list does not have.
    Other,
}

const REFUSALS: [(&str, Refusal); 17] = [
    ("EINVAL", Refusal::Invalid),
    ("EACCES", Refusal::AccessDenied),
    ("EEXIST", Refusal::Exists),
    ("EISDIR", Refusal::IsDirectory),
    ("ENOENT", Refusal::NotFound),
    ("ENOMEM", Refusal::OutOfMemory),
    ("ENOSPC", Refusal::NoSpace),
    ("EIO", Refusal::Io),
    ("ENOTEMPTY", Refusal::NotEmpty),
    ("ENOSYS", Refusal::NotImplemented),
    ("EROFS", Refusal::ReadOnly),
    ("EBUSY", Refusal::Busy),
    ("EAGAIN", Refusal::Again),
    ("EISCONN", Refusal::Connected),
    ("E2BIG", Refusal::TooBig),
    ("EPERM", Refusal::NotPermitted),
    ("EQUOTA", Refusal::Quota),
];

impl Refusal {
    /// The error that a payload of [`Operation::ERROR`] names.
    pub fn from_payload(payload: &[u8]) -> Self {
        let name = payload.split(|byte| *byte == 0).next().unwrap_or_default();
        REFUSALS
            .iter()
            .find(|(known, _)| known.as_bytes() == name)
            .map_or(Self::Other, |(_, refusal)| *refusal)
    }

    /// The error's name in the protocol.
    pub fn name(self) -> &'static str {
        REFUSALS.iter().find(|(_, refusal)| *refusal == self).map_or("unknown error", |(name, _)| name)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self {
            Self::Invalid => "an argument is not valid",
            Self::AccessDenied | Self::NotPermitted => "not permitted",
            Self::Exists => "it exists already",
            Self::IsDirectory => "it is a directory",
            Self::NotFound => "no such node",
            Self::OutOfMemory => "the daemon is out of memory",
            Self::NoSpace | Self::Quota => "a quota is used up",
            Self::Io => "input or output failed",
            Self::NotEmpty => "the directory is not empty",
            Self::NotImplemented => "the daemon does not know it",
            Self::ReadOnly => "read-only",
            Self::Busy => "the daemon is busy",
            Self::Again => "it clashed with another change",
            Self::Connected => "connected already",
            Self::TooBig => "too big, or too many",
            Self::Other => "for a reason of its own",
        };
        write!(f, "{meaning} ({})", self.name())
    }
}

/// Splits a payload into its strings, each of which ends by a zero byte; a last one may lack it.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    payload
        .strip_suffix(&[0])
        .unwrap_or(payload)
        .split(|byte| *byte == 0)
        .filter(move |_| !payload.is_empty())
}
