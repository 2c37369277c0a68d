//! The commands that work on nodes, in a transaction or not.

use std::io::Write;

use xen_hypercall::DomId;
use xen_hypercall::mock::MockDomain;
use xen_xenstore::{Error, Transaction, Xenstore};

/// How deep `tree` goes.
const DEEPEST: usize = 16;

/// What a connection and a transaction have in common.
pub(crate) trait Nodes {
    fn read(&mut self, path: &str) -> Result<Vec<u8>, Error>;
    fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error>;
    fn mkdir(&mut self, path: &str) -> Result<(), Error>;
    fn remove(&mut self, path: &str) -> Result<(), Error>;
    fn list(&mut self, path: &str) -> Result<Vec<String>, Error>;
    fn permissions(&mut self, path: &str) -> Result<Vec<(DomId, char)>, Error>;
    fn set_permissions(&mut self, path: &str, list: &str) -> Result<(), Error>;
}

macro_rules! nodes {
    ($type:ty) => {
        impl Nodes for $type {
            fn read(&mut self, path: &str) -> Result<Vec<u8>, Error> {
                self.read(path).map(<[u8]>::to_vec)
            }

            fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
                self.write(path, value)
            }

            fn mkdir(&mut self, path: &str) -> Result<(), Error> {
                self.mkdir(path)
            }

            fn remove(&mut self, path: &str) -> Result<(), Error> {
                self.remove(path)
            }

            fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
                let mut names = Vec::new();
                self.directory(path, |name| names.push(name.to_owned()))?;
                Ok(names)
            }

            fn permissions(&mut self, path: &str) -> Result<Vec<(DomId, char)>, Error> {
                let mut list = Vec::new();
                self.permissions(path, |domain, letter| list.push((domain, letter)))?;
                Ok(list)
            }

            fn set_permissions(&mut self, path: &str, list: &str) -> Result<(), Error> {
                self.set_permissions(path, list)
            }
        }
    };
}

nodes!(Xenstore<'_, MockDomain>);
nodes!(Transaction<'_, '_, MockDomain>);

/// A command that works on one node.
#[derive(Clone)]
pub(crate) enum Command {
    List,
    Tree,
    Read,
    Write(String),
    Make,
    Remove,
    Permissions,
    SetPermissions(String),
}

impl Command {
    /// Does it, and shows what comes of it.
    pub(crate) fn run(
        &self,
        nodes: &mut impl Nodes,
        path: &str,
        output: &mut impl Write,
    ) -> std::io::Result<()> {
        let done = match self {
            Self::List => nodes.list(path).map(|names| names.join("\n")),
            Self::Tree => {
                writeln!(output, "{path}{}", value(nodes, path))?;
                return tree(nodes, path, 1, output);
            }
            Self::Read => nodes.read(path).map(|value| value.escape_ascii().to_string()),
            Self::Write(value) => nodes.write(path, value.as_bytes()).map(|()| String::new()),
            Self::Make => nodes.mkdir(path).map(|()| String::new()),
            Self::Remove => nodes.remove(path).map(|()| String::new()),
            Self::Permissions => nodes.permissions(path).map(|list| told(&list)),
            Self::SetPermissions(list) => {
                nodes.set_permissions(path, &list.replace(' ', "\0")).map(|()| String::new())
            }
        };
        match done {
            Ok(text) if text.is_empty() && !matches!(self, Self::Read) => Ok(()),
            Ok(text) => writeln!(output, "{text}"),
            Err(error) => writeln!(output, "{path}: {error}"),
        }
    }
}

/// A node's value, as it stands behind its name.
fn value(nodes: &mut impl Nodes, path: &str) -> String {
    match nodes.read(path) {
        Ok(value) if value.is_empty() => String::new(),
        Ok(value) => format!(" = \"{}\"", value.escape_ascii()),
        Err(error) => format!(" ({error})"),
    }
}

fn tree(nodes: &mut impl Nodes, path: &str, depth: usize, output: &mut impl Write) -> std::io::Result<()> {
    // Who may not read a value may not list either, and has been told.
    let Ok(names) = nodes.list(path) else { return Ok(()) };
    for name in names {
        let path = format!("{}/{name}", path.trim_end_matches('/'));
        writeln!(output, "{:1$}{name}{2}", "", 2 * depth, value(nodes, &path))?;
        if depth < DEEPEST {
            tree(nodes, &path, depth + 1, output)?;
        }
    }
    Ok(())
}

fn told(list: &[(DomId, char)]) -> String {
    let may = |letter: &char| match letter {
        'n' => "nothing",
        'r' => "read",
        'w' => "write",
        'b' => "read and write",
        _ => "something unknown",
    };
    let lines = list.iter().enumerate().map(|(number, (DomId(id), letter))| match number {
        0 => format!(
            "domain {id} is the owner; all others may {}",
            may(letter).replace("nothing", "do nothing")
        ),
        _ => format!("domain {id} may {}", may(letter).replace("nothing", "do nothing")),
    });
    lines.collect::<Vec<_>>().join("\n")
}
