//! Reads commands and does them.

use std::error::Error;
use std::io::{BufRead, Write};

use xen_hypercall::mock::MockDomain;
use xen_xenstore::{Watch, Xenstore};

use crate::machine::{HOME, Machine};
use crate::nodes::{Command, Nodes};

const HELP: &str = "\
ls [path]            the names below a node
tree [path]          all that is below a node, with values
cd [path], pwd       go to a node; without a path, home
cat path             a node's value
write path value     set a node's value; the rest of the line is the value
mkdir path           make an empty node
rm path              remove a node and all below it
perms path [list]    who may do what; with a list such as `n1 r0` set it
watch [path]         be told when a node or something below it changes; without a path, list the watches
unwatch path         be told no more
begin                begin a transaction, which ends with `commit` or `abort`
dom0 command ...     write, rm, or perms as domain 0, which may do everything
status               the connection and its counters
quit                 end, as does the end of the input";

const IN_TRANSACTION: &str =
    "in a transaction there are ls, tree, cd, pwd, cat, write, mkdir, rm, perms, dom0, commit and abort";

/// What a line asks for.
enum Line {
    Nothing,
    On(Command, String),
    Go(String),
    Where,
    Watch(Option<String>),
    Unwatch(String),
    Begin,
    Commit,
    Abort,
    Dom0(Command, String),
    Status,
    Help,
    Quit,
    Wrong(String),
}

/// Runs the shell on a machine of its own.
pub(crate) fn run(input: impl BufRead, output: &mut impl Write, prompts: bool) -> Result<(), Box<dyn Error>> {
    let machine = Machine::new()?;
    let xs = &mut Xenstore::new(&machine.events)?;
    writeln!(output, "A guest's view of a mock xenstore. `help` lists the commands.")?;
    Shell { machine: &machine, input, output, prompts, at: HOME.into(), watches: Vec::new(), ended: false }
        .run(xs)
}

struct Shell<'m, 'o, I, O> {
    machine: &'m Machine,
    input: I,
    output: &'o mut O,
    prompts: bool,
    at: String,
    watches: Vec<(String, Watch)>,
    ended: bool,
}

impl<'m, I: BufRead, O: Write> Shell<'m, '_, I, O> {
    fn run(&mut self, xs: &mut Xenstore<'m, MockDomain>) -> Result<(), Box<dyn Error>> {
        while !self.ended {
            self.tell_changes(xs)?;
            match self.line("")? {
                Line::Nothing => {}
                Line::On(command, path) => command.run(xs, &path, self.output)?,
                Line::Go(path) => self.go(xs, path)?,
                Line::Where => writeln!(self.output, "{}", self.at)?,
                Line::Watch(None) => {
                    for (path, _) in &self.watches {
                        writeln!(self.output, "{path}")?;
                    }
                }
                Line::Watch(Some(path)) => match xs.watch(&path) {
                    Ok(watch) => self.watches.push((path, watch)),
                    Err(error) => writeln!(self.output, "{path}: {error}")?,
                },
                Line::Unwatch(path) => match self.watches.iter().position(|(watched, _)| *watched == path) {
                    Some(at) => {
                        if let Err(error) = xs.unwatch(self.watches.remove(at).1) {
                            writeln!(self.output, "{path}: {error}")?;
                        }
                    }
                    None => writeln!(self.output, "{path}: not watched")?,
                },
                Line::Begin => self.transaction(xs)?,
                Line::Commit | Line::Abort => {
                    writeln!(self.output, "there is no transaction; `begin` begins one")?
                }
                Line::Dom0(command, path) => self.as_dom0(&command, &path)?,
                Line::Status => writeln!(self.output, "{:?}\n{:?}", xs.server_features()?, xs.stats())?,
                Line::Help => writeln!(self.output, "{HELP}")?,
                Line::Wrong(what) => writeln!(self.output, "{what}")?,
                Line::Quit => self.ended = true,
            }
        }
        Ok(())
    }

    /// What is done in a transaction is remembered, so that it can be done again when it clashes.
    fn transaction(&mut self, xs: &mut Xenstore<'m, MockDomain>) -> Result<(), Box<dyn Error>> {
        let mut done: Vec<(Command, String)> = Vec::new();
        let (mut runs, mut aborted, mut failed) = (0, false, None);
        let result = xs.transaction(|transaction| {
            runs += 1;
            let step = if runs == 1 {
                self.fill(transaction, &mut done).map(|commits| aborted = !commits)
            } else {
                self.again(transaction, &done)
            };
            if let Err(error) = step {
                failed = Some(error);
            }
            // Whatever the error is, it ends the transaction, and only that.
            if aborted || failed.is_some() { Err(xen_xenstore::Error::BadValue) } else { Ok(()) }
        });
        match (failed, result) {
            (Some(error), _) => Err(error.into()),
            (None, Ok(())) => Ok(writeln!(self.output, "committed")?),
            (None, Err(_)) if aborted => Ok(writeln!(self.output, "aborted; nothing has changed")?),
            (None, Err(error)) => Ok(writeln!(self.output, "not committed: {error}")?),
        }
    }

    /// Takes commands until one ends the transaction; returns whether it is to be committed.
    fn fill(&mut self, nodes: &mut impl Nodes, done: &mut Vec<(Command, String)>) -> std::io::Result<bool> {
        loop {
            match self.line("transaction ")? {
                Line::Nothing => {}
                Line::On(command, path) => {
                    command.run(nodes, &path, self.output)?;
                    done.push((command, path));
                }
                Line::Go(path) => self.go(nodes, path)?,
                Line::Where => writeln!(self.output, "{}", self.at)?,
                Line::Commit => return Ok(true),
                end @ (Line::Abort | Line::Quit) => {
                    self.ended = matches!(end, Line::Quit);
                    return Ok(false);
                }
                Line::Dom0(command, path) => self.as_dom0(&command, &path)?,
                Line::Wrong(what) => writeln!(self.output, "{what}")?,
                _ => writeln!(self.output, "{IN_TRANSACTION}")?,
            }
        }
    }

    fn again(&mut self, nodes: &mut impl Nodes, done: &[(Command, String)]) -> std::io::Result<()> {
        writeln!(self.output, "it clashed with another change, and is done again:")?;
        done.iter().try_for_each(|(command, path)| command.run(nodes, path, self.output))
    }

    fn go(&mut self, nodes: &mut impl Nodes, path: String) -> std::io::Result<()> {
        match nodes.list(&path) {
            Ok(_) => {
                self.at = path;
                Ok(())
            }
            Err(error) => writeln!(self.output, "{path}: {error}"),
        }
    }

    fn as_dom0(&mut self, command: &Command, path: &str) -> std::io::Result<()> {
        let store = &self.machine.store;
        match command {
            Command::Write(value) => store.write(path, value),
            Command::Remove => store.remove(path),
            Command::SetPermissions(list) => store.set_permissions(path, &list.replace(' ', "\0")),
            _ => writeln!(self.output, "domain 0 does write, rm, and perms with a list")?,
        }
        Ok(())
    }

    /// Says which watches have fired.
    fn tell_changes(&mut self, xs: &mut Xenstore<'m, MockDomain>) -> Result<(), Box<dyn Error>> {
        self.machine.xen.run_until_idle(100);
        for (path, watch) in &self.watches {
            if xs.fired(watch)? {
                writeln!(self.output, "* {path} may have changed")?;
            }
        }
        Ok(())
    }

    fn line(&mut self, before: &str) -> std::io::Result<Line> {
        if self.prompts {
            write!(self.output, "{before}{}> ", self.at)?;
            self.output.flush()?;
        }
        let mut line = Vec::new();
        if self.input.read_until(b'\n', &mut line)? == 0 {
            if self.prompts {
                writeln!(self.output)?;
            }
            return Ok(Line::Quit);
        }
        Ok(self.parse(String::from_utf8_lossy(&line).trim()))
    }

    fn parse(&self, line: &str) -> Line {
        let (word, rest) = split(line);
        let (argument, value) = split(rest);
        let here = || self.resolve(argument);
        let on = |command: Command| match argument {
            "" => Line::Wrong(format!("{word}: which node?")),
            _ => Line::On(command, here()),
        };
        match word {
            "" => Line::Nothing,
            "ls" => Line::On(Command::List, here()),
            "tree" => Line::On(Command::Tree, here()),
            "cd" => Line::Go(if argument.is_empty() { HOME.into() } else { here() }),
            "pwd" => Line::Where,
            "cat" => on(Command::Read),
            "write" => on(Command::Write(value.into())),
            "mkdir" => on(Command::Make),
            "rm" => on(Command::Remove),
            "perms" if value.is_empty() => on(Command::Permissions),
            "perms" => on(Command::SetPermissions(value.into())),
            "watch" => Line::Watch(Some(here()).filter(|_| !argument.is_empty())),
            "unwatch" => Line::Unwatch(here()),
            "begin" => Line::Begin,
            "commit" => Line::Commit,
            "abort" => Line::Abort,
            "dom0" => match self.parse(rest) {
                Line::On(command, path) if xen_xenstore::Path::new(&path).is_ok() => {
                    Line::Dom0(command, path)
                }
                Line::On(_, path) => Line::Wrong(format!("{path}: not a path of xenstore")),
                _ => Line::Wrong("dom0: write, rm, or perms with a list".into()),
            },
            "status" => Line::Status,
            "help" => Line::Help,
            "quit" | "exit" => Line::Quit,
            _ => Line::Wrong(format!("{word}: no such command; `help` lists them")),
        }
    }

    /// A path as it is typed, seen from where we are.
    fn resolve(&self, typed: &str) -> String {
        if typed.starts_with('@') {
            return typed.into();
        }
        let mut parts: Vec<&str> =
            if typed.starts_with('/') { Vec::new() } else { self.at.split('/').collect() };
        for part in typed.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts.retain(|part| !part.is_empty());
        format!("/{}", parts.join("/"))
    }
}

fn split(text: &str) -> (&str, &str) {
    let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (first, rest.trim_start())
}
