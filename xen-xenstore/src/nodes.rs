//! Values, directories and permissions.

use core::fmt;
use core::str::FromStr;

use xen_hypercall::{DomId, Platform, Wait};

use crate::error::Violation;
use crate::link::Sink;
use crate::text::Text;
use crate::wire::{Operation, Refusal, strings};
use crate::{Error, Path, Question, Until, Xenstore};

/// Messages that one very large directory may take; the daemon's own limits are far lower.
const MOST_PARTS: usize = 1024;

/// Questions that are asked at once, by [`Xenstore::together`].
pub struct Together<'s, 'x, P: Platform> {
    store: &'s mut Xenstore<'x, P>,
    sink: &'s mut Sink<'s>,
}

impl<'x, P: Platform + Wait> Xenstore<'x, P> {
    /// A node's value.
    ///
    /// # Errors
    /// [`Error::Refused`] when it does not exist ([`Error::is_not_found`]) or may not be read.
    pub fn read(&mut self, path: &str) -> Result<&[u8], Error> {
        self.read_in(0, path)
    }

    /// A node's value as text.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::NotText`].
    pub fn read_str(&mut self, path: &str) -> Result<&str, Error> {
        text(self.read(path)?)
    }

    /// A node's value as a number, or whatever else is written as text. Blanks around it do not matter.
    ///
    /// # Errors
    /// As [`read_str`](Self::read_str), and [`Error::BadValue`].
    pub fn read_parsed<T: FromStr>(&mut self, path: &str) -> Result<T, Error> {
        parse(self.read(path)?)
    }

    /// Like [`read_parsed`](Self::read_parsed), for a node that need not exist.
    ///
    /// # Errors
    /// As [`read_parsed`](Self::read_parsed), but not for a node that does not exist.
    pub fn read_optional<T: FromStr>(&mut self, path: &str) -> Result<Option<T>, Error> {
        optional(self.read_parsed(path))
    }

    /// The values of several nodes below a directory, as numbers or whatever else is written as text. They are asked for
    /// at once, which takes hardly longer than to ask for one. With an empty directory the names are paths themselves.
    ///
    /// # Errors
    /// Each node has its own, as [`read_parsed`](Self::read_parsed), and [`Error::BadPath`]. There is one for all when
    /// xenstore does not answer, or the connection is of no use any more.
    pub fn read_all<T: FromStr, const N: usize>(
        &mut self,
        directory: &str,
        names: [&str; N],
    ) -> Result<[Result<T, Error>; N], Error> {
        let mut values = core::array::from_fn(|_| Err(Error::TimedOut(Operation::READ)));
        self.read_each(directory, &names, |index, value| {
            if let Some(place) = values.get_mut(index) {
                *place = value.and_then(parse);
            }
        })?;
        Ok(values)
    }

    /// Like [`read_all`](Self::read_all), for any number of nodes and values of any kind: calls `each` with the place of a
    /// node in `names` and its value, once for each node, as the answers come.
    ///
    /// # Errors
    /// As [`read_all`](Self::read_all). After one for all, `each` has seen a part of the nodes.
    pub fn read_each(
        &mut self,
        directory: &str,
        names: &[&str],
        mut each: impl FnMut(usize, Result<&[u8], Error>),
    ) -> Result<(), Error> {
        self.read_into(directory, names, &mut each)
    }

    fn read_into(&mut self, directory: &str, names: &[&str], sink: &mut Sink<'_>) -> Result<(), Error> {
        self.ask_questions(&mut names.iter().map(|name| Question::read(directory, name)), sink)
    }

    /// Asks for values and directories of any places at once: `ask` asks, and `each` is called with a question's tag and its
    /// answer, once for each question, as the answers come. A directory's answer is a list of [`names`].
    ///
    /// # Errors
    /// Each question has its own, as [`read`](Self::read), and [`Error::BadPath`]; a directory whose list is too long for a
    /// message is [`Refusal::TooBig`]. What `ask` returns otherwise, and what is one for all as with
    /// [`read_all`](Self::read_all), ends all: `each` has seen a part of the questions then.
    pub fn together(
        &mut self,
        mut ask: impl FnMut(&mut Together<'_, 'x, P>) -> Result<(), Error>,
        mut each: impl FnMut(usize, Result<&[u8], Error>),
    ) -> Result<(), Error> {
        self.ask_together(&mut ask, &mut each)
    }

    fn ask_together(
        &mut self,
        ask: &mut dyn FnMut(&mut Together<'_, 'x, P>) -> Result<(), Error>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        self.link.give_up();
        ask(&mut Together { store: self, sink })?;
        self.settle(sink)
    }

    /// Waits until a node's value is one that `accept` likes, and returns it; `None` when `deadline` comes first. A
    /// node that does not exist, may not be read, or is no `T`, is waited for.
    ///
    /// # Errors
    /// As [`read_parsed`](Self::read_parsed) for other reasons than these, and [`watch`](Self::watch).
    pub fn wait_for<'d, T: FromStr>(
        &mut self,
        path: &str,
        deadline: impl Into<Until<'d>>,
        mut accept: impl FnMut(&T) -> bool,
    ) -> Result<Option<T>, Error> {
        let (mut until, mut found) = (deadline.into(), None);
        self.link.pauses.resume(until.deadline());
        let watch = self.watch(path)?;
        let waited = self.watch_until(watch, until.deadline(), &mut |xs| {
            match xs.read_parsed(path) {
                Ok(value) => found = Some(value).filter(&mut accept),
                Err(Error::BadValue | Error::NotText) => {}
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
            Ok(found.is_some())
        });
        // What was found counts, and what is left of the watch is ended later.
        let _ = self.unwatch(watch);
        waited.map(|_| found)
    }

    /// Sets a node's value; the node and those above it are made when they do not exist.
    ///
    /// # Errors
    /// [`Error::Refused`] when it may not be written or a quota is used up; [`Error::TooLong`].
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.ask_path(Operation::WRITE, 0, path, [value, b""]).map(drop)
    }

    /// Sets a node's value to formatted text, of at most 256 bytes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_display(&mut self, path: &str, value: impl fmt::Display) -> Result<(), Error> {
        let text = Text::new(value)?;
        self.write(path, text.as_bytes())
    }

    /// Makes an empty node unless it exists.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn mkdir(&mut self, path: &str) -> Result<(), Error> {
        self.ask_path(Operation::MKDIR, 0, path, [b"", b""]).map(drop)
    }

    /// Removes a node and everything below it.
    ///
    /// # Errors
    /// [`Error::Refused`]; a node that does not exist is no error while the one above it exists.
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.ask_path(Operation::RM, 0, path, [b"", b""]).map(drop)
    }

    /// Calls `each` with the name of every node right below a path, of each one once.
    ///
    /// A directory of more than 4096 bytes takes several messages. They are asked for in a transaction, which sees
    /// the directory as it was at the beginning, whatever others do meanwhile.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Error::Contended`] from a daemon whose transactions are no such thing. When such a
    /// directory ends in an error, `each` has seen a part of it.
    pub fn directory(&mut self, path: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        match self.ask_path(Operation::DIRECTORY, 0, path, [b"", b""]) {
            Err(Error::Refused(_, Refusal::TooBig)) => {}
            other => {
                let len = other?;
                return tell_names(self.answered(len), &mut each);
            }
        }
        let transaction = self.begin()?;
        let listed = self.directory_parts(transaction, path, &mut each);
        // The list is whole, whatever becomes of a transaction that changes nothing.
        let _ = self.end(transaction, false);
        listed
    }

    pub(crate) fn directory_in(
        &mut self,
        transaction: u32,
        path: &str,
        each: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        match self.ask_path(Operation::DIRECTORY, transaction, path, [b"", b""]) {
            Err(Error::Refused(_, Refusal::TooBig)) => self.directory_parts(transaction, path, each),
            other => {
                let len = other?;
                tell_names(self.answered(len), each)
            }
        }
    }

    fn directory_parts(
        &mut self,
        transaction: u32,
        path: &str,
        each: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        let mut parts = Parts::default();
        loop {
            let offset = parts.offset()?;
            let rest = [offset.as_bytes(), b"\0"];
            let len = self.ask_path(Operation::DIRECTORY_PART, transaction, path, rest)?;
            match parts.take(self.answered(len), each) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Error::Broken(_)) => return Err(self.malformed()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Calls `each` with a domain and the letter of what it may do: `n`othing, `r`ead, `w`rite, `b`oth. The first
    /// is the owner, who may do everything, with the letter of all others that are not in the list.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn permissions(&mut self, path: &str, mut each: impl FnMut(DomId, char)) -> Result<(), Error> {
        self.permissions_in(0, path, &mut each)
    }

    /// Says who may do what with a node, as [`permissions`](Self::permissions) tells it, such as `"b1\0r0"`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the node is not this domain's.
    pub fn set_permissions(&mut self, path: &str, list: &str) -> Result<(), Error> {
        self.ask_path(Operation::SET_PERMS, 0, path, [list.as_bytes(), b"\0"]).map(drop)
    }

    /// The path of a domain's directory, such as `/local/domain/3`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn domain_path(&mut self, domain: DomId) -> Result<Path, Error> {
        let id = Text::new(domain.0)?;
        let len = self.ask(Operation::GET_DOMAIN_PATH, 0, &[id.as_bytes(), b"\0"])?;
        Path::new(text(strings(self.answered(len)).next().unwrap_or_default())?)
    }

    /// Whether a domain is connected to xenstore.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn is_introduced(&mut self, domain: DomId) -> Result<bool, Error> {
        let id = Text::new(domain.0)?;
        let len = self.ask(Operation::IS_DOMAIN_INTRODUCED, 0, &[id.as_bytes(), b"\0"])?;
        match self.answered(len) {
            b"T\0" | b"T" => Ok(true),
            b"F\0" | b"F" => Ok(false),
            _ => Err(self.malformed()),
        }
    }

    pub(crate) fn read_in(&mut self, transaction: u32, path: &str) -> Result<&[u8], Error> {
        let len = self.ask_path(Operation::READ, transaction, path, [b"", b""])?;
        Ok(self.answered(len))
    }

    pub(crate) fn permissions_in(
        &mut self,
        transaction: u32,
        path: &str,
        each: &mut dyn FnMut(DomId, char),
    ) -> Result<(), Error> {
        let len = self.ask_path(Operation::GET_PERMS, transaction, path, [b"", b""])?;
        tell_permissions(self.answered(len), each)
    }
}

/// A very large directory that is read by its parts.
#[derive(Default)]
pub(crate) struct Parts {
    seen: usize,
    generation: Option<Text>,
    count: usize,
}

impl Parts {
    /// Where the next part begins.
    pub(crate) fn offset(&self) -> Result<Text, Error> {
        Text::new(self.seen)
    }

    /// Tells the names of the next part. Returns whether it is the last one.
    pub(crate) fn take(&mut self, answer: &[u8], each: &mut dyn FnMut(&str)) -> Result<bool, Error> {
        self.count += 1;
        let mut parts = answer.splitn(2, |byte| *byte == 0);
        let (Some(tag), Some(list), true) = (parts.next(), parts.next(), self.count <= MOST_PARTS) else {
            return Err(Error::Broken(Violation::Malformed));
        };
        if self.generation.as_ref().is_some_and(|known| known.as_bytes() != tag) {
            return Err(Error::Contended);
        }
        // An empty name is the end of the list.
        let ends = list.is_empty() || list == b"\0" || list.ends_with(b"\0\0");
        let list = if ends { list.strip_suffix(b"\0").unwrap_or(list) } else { list };
        self.generation = Some(Text::from_bytes(tag)?);
        tell_names(list, each)?;
        self.seen += list.len();
        Ok(ends)
    }
}

impl<P: Platform + Wait> Together<'_, '_, P> {
    /// Asks for the value of a node below a directory, or of a path if that is empty. Its answer comes with `tag`, any number.
    ///
    /// # Errors
    /// What is one for all questions.
    pub fn read(&mut self, tag: usize, directory: &str, name: &str) -> Result<(), Error> {
        self.store.post_question(&Question::read(directory, name), tag, self.sink)
    }

    /// Asks for the [`names`] of what is right below a path. They come with `tag`, any number.
    ///
    /// # Errors
    /// What is one for all questions.
    pub fn directory(&mut self, tag: usize, path: &str) -> Result<(), Error> {
        self.store.post_question(&Question::directory(path), tag, self.sink)
    }
}

impl<P: Platform> fmt::Debug for Together<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Together")
    }
}

/// The names in a directory's answer, as [`Xenstore::together`] gives it. What is not text is left out.
pub fn names(list: &[u8]) -> impl Iterator<Item = &str> {
    strings(list).filter_map(|name| core::str::from_utf8(name).ok())
}

pub(crate) fn text(value: &[u8]) -> Result<&str, Error> {
    core::str::from_utf8(value).map_err(|_| Error::NotText)
}

/// A node's value as a number, or whatever else is written as text: what [`Xenstore::read_parsed`] makes of the bytes, for
/// those that [`Xenstore::read_each`] gives. Blanks around it do not matter.
///
/// # Errors
/// [`Error::NotText`], [`Error::BadValue`].
pub fn parse<T: FromStr>(value: &[u8]) -> Result<T, Error> {
    text(value)?.trim_ascii().parse().map_err(|_| Error::BadValue)
}

/// A node that does not exist is none.
pub(crate) fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn tell_names(list: &[u8], each: &mut dyn FnMut(&str)) -> Result<(), Error> {
    for name in strings(list) {
        each(text(name)?);
    }
    Ok(())
}

/// Tells who may do what, by the answer to that.
pub(crate) fn tell_permissions(list: &[u8], each: &mut dyn FnMut(DomId, char)) -> Result<(), Error> {
    for entry in strings(list) {
        let mut chars = text(entry)?.chars();
        let letter = chars.next().ok_or(Error::BadValue)?;
        each(DomId(chars.as_str().parse().map_err(|_| Error::BadValue)?), letter);
    }
    Ok(())
}
