//! Why Xen refused (`errno.h`).

use core::fmt;

/// An error number of a hypercall, as Xen's `errno.h` has them. Positive; unknown numbers are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Errno(pub i32);

impl Errno {
    /// The result of a hypercall: zero and up is a result, below is the negated number.
    ///
    /// # Errors
    /// The number, when `value` is negative.
    pub const fn check(value: isize) -> Result<usize, Self> {
        if value >= 0 {
            Ok(value.unsigned_abs())
        } else if value >= -(i32::MAX as isize) {
            Err(Self(value.unsigned_abs() as i32))
        } else {
            Err(Self(i32::MAX))
        }
    }

    /// What a hypercall returns to say this.
    pub const fn as_return(self) -> isize {
        -(self.0 as isize)
    }
}

macro_rules! errnos {
    ($($name:ident = $nr:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = concat!("Number ", stringify!($nr), ": ", $text, ".")] pub const $name: Self = Self($nr);)*

        }

        /// A line for each: number, name, text. One text takes a fifth of the room in an image that a name and a text for
        /// each number do.
        const LINES: &str = concat!($($nr, "/", stringify!($name), "/", $text, "\n",)*);
    };
}

impl Errno {
    fn describe(self) -> Option<(&'static str, &'static str)> {
        let mut lines = LINES;
        loop {
            let (line, rest) = cut(lines, b'\n')?;
            let (number, words) = cut(line, b'/')?;
            if number.bytes().fold(0, |number, digit| number * 10 + i32::from(digit - b'0')) == self.0 {
                return cut(words, b'/');
            }
            lines = rest;
        }
    }
}

/// What is before and behind a character of ASCII.
#[inline(never)]
fn cut(text: &'static str, at: u8) -> Option<(&'static str, &'static str)> {
    let place = text.bytes().position(|byte| byte == at)?;
    Some((text.get(..place)?, text.get(place + 1..)?))
}

errnos! {
    EPERM = 1, "not permitted to this domain";
    ENOENT = 2, "no such thing";
    ESRCH = 3, "no such domain";
    EINTR = 4, "interrupted";
    EIO = 5, "input or output failed";
    ENXIO = 6, "no such device or address";
    E2BIG = 7, "too big";
    ENOEXEC = 8, "not an executable format";
    EBADF = 9, "not open";
    ECHILD = 10, "no child";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "access denied";
    EFAULT = 14, "bad address";
    EBUSY = 16, "busy";
    EEXIST = 17, "exists already";
    EXDEV = 18, "cross-device link";
    ENODEV = 19, "no such device";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "a directory";
    EINVAL = 22, "invalid argument";
    ENFILE = 23, "table full";
    EMFILE = 24, "too many open";
    ENOSPC = 28, "no space left";
    EROFS = 30, "read-only";
    EMLINK = 31, "too many links";
    EDOM = 33, "argument out of domain";
    ERANGE = 34, "result out of range";
    EDEADLK = 35, "would deadlock";
    ENAMETOOLONG = 36, "name too long";
    ENOLCK = 37, "no locks available";
    ENOSYS = 38, "not implemented by this Xen";
    ENOTEMPTY = 39, "not empty";
    ENODATA = 61, "no data";
    ETIME = 62, "timer expired";
    EBADMSG = 74, "bad message";
    EOVERFLOW = 75, "value too large";
    EILSEQ = 84, "illegal byte sequence";
    ERESTART = 85, "interrupted, to be restarted";
    ENOTSOCK = 88, "not a socket";
    EMSGSIZE = 90, "message too long";
    EOPNOTSUPP = 95, "operation not supported";
    EADDRINUSE = 98, "address in use";
    EADDRNOTAVAIL = 99, "address not available";
    ENOBUFS = 105, "no buffer space";
    EISCONN = 106, "connected already";
    ENOTCONN = 107, "not connected";
    ETIMEDOUT = 110, "timed out";
    ECONNREFUSED = 111, "refused";
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, text)) => write!(f, "{name} ({}): {text}", self.0),
            None => write!(f, "error {} of Xen", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl core::error::Error for Errno {}
