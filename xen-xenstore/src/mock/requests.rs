//! What each operation does.

use std::borrow::ToOwned;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use xen_hypercall::DomId;

use super::State;
use super::tree::{Changes, Tree};
use crate::path;
use crate::wire::{Header, Operation, PAYLOAD_MAX, Refusal, strings};

impl State {
    pub(super) fn handle(&mut self, index: usize, header: Header, payload: &[u8]) {
        let (kind, answer) = match self.answer(index, header, payload) {
            Ok(answer) if answer.len() <= PAYLOAD_MAX => (header.kind, answer),
            Ok(_) => (Operation::ERROR.0, refusal(Refusal::TooBig)),
            Err(error) => (Operation::ERROR.0, refusal(error)),
        };
        self.connections[index].answer(Header { kind, ..header }, answer);
        // Every watch fires once when it is set, after the answer.
        if kind == Operation::WATCH.0
            && let Some((path, token)) = self.connections[index].watches.last().cloned()
        {
            self.connections[index].watch_event(&path, &token);
        }
    }

    fn answer(&mut self, index: usize, header: Header, payload: &[u8]) -> Result<Vec<u8>, Refusal> {
        const DONE: &[u8] = b"OK\0";
        let id = self.connections[index].id();
        let home = self.connections[index].home();
        let operation = Operation(header.kind);
        let mut arguments = payload.splitn(2, |byte| *byte == 0);
        let first = text(arguments.next().unwrap_or_default())?;
        let rest = arguments.next().unwrap_or_default();
        match operation {
            Operation::TRANSACTION_START => {
                let changes = Changes::new(&self.tree);
                let connection = &mut self.connections[index];
                connection.last_transaction += 1;
                let number = connection.last_transaction;
                connection.transactions.insert(number, changes);
                return Ok(format!("{number}\0").into_bytes());
            }
            Operation::TRANSACTION_END => {
                let changes = self.connections[index].transactions.remove(&header.transaction_id);
                let changes = changes.ok_or(Refusal::NotFound)?;
                if first == "T" {
                    if self.clashes > 0 {
                        self.clashes -= 1;
                        return Err(Refusal::Again);
                    }
                    for path in changes.commit(&mut self.tree)? {
                        self.tell(&path);
                    }
                }
                return Ok(DONE.to_vec());
            }
            Operation::GET_DOMAIN_PATH => {
                let domain: u16 = first.parse().map_err(|_| Refusal::Invalid)?;
                return Ok(format!("/local/domain/{domain}\0").into_bytes());
            }
            Operation::IS_DOMAIN_INTRODUCED => {
                let known = self.connections.iter().any(|other| other.id().0.to_string() == first);
                return Ok(if known { b"T\0".to_vec() } else { b"F\0".to_vec() });
            }
            Operation::RESET_WATCHES => {
                self.connections[index].watches.clear();
                self.connections[index].transactions.clear();
                return Ok(DONE.to_vec());
            }
            Operation::WATCH => {
                let token = text(strings(rest).next().unwrap_or_default())?;
                let watch = (first.to_owned(), token.to_owned());
                let watches = &mut self.connections[index].watches;
                if !path::is_valid(first) || watches.contains(&watch) {
                    return Err(if path::is_valid(first) { Refusal::Exists } else { Refusal::Invalid });
                }
                watches.push(watch);
                return Ok(DONE.to_vec());
            }
            Operation::UNWATCH => {
                let token = text(strings(rest).next().unwrap_or_default())?;
                let watches = &mut self.connections[index].watches;
                let at = watches.iter().position(|(path, t)| path == first && t == token);
                watches.remove(at.ok_or(Refusal::NotFound)?);
                return Ok(DONE.to_vec());
            }
            _ => {}
        }
        if !path::is_valid(first) {
            return Err(Refusal::Invalid);
        }
        let path = if first.starts_with('/') { first.to_owned() } else { format!("{home}/{first}") };
        if header.transaction_id == 0 {
            let answer = on_tree(&mut self.tree, operation, &path, rest, id)?;
            if changes(operation) {
                self.tell(&path);
            }
            return Ok(answer);
        }
        let transactions = &mut self.connections[index].transactions;
        let transaction = transactions.get_mut(&header.transaction_id).ok_or(Refusal::NotFound)?;
        transaction.touched.insert(path.clone());
        let answer = on_tree(&mut transaction.tree, operation, &path, rest, id)?;
        if changes(operation) {
            transaction.written.push(path);
        }
        Ok(answer)
    }
}

fn changes(operation: Operation) -> bool {
    matches!(operation, Operation::WRITE | Operation::MKDIR | Operation::RM | Operation::SET_PERMS)
}

/// What works on one node, in a transaction or not.
fn on_tree(
    tree: &mut Tree,
    operation: Operation,
    path: &str,
    rest: &[u8],
    by: DomId,
) -> Result<Vec<u8>, Refusal> {
    let needs = if changes(operation) { 'w' } else { 'r' };
    if !tree.allows(path, by, needs) {
        return Err(Refusal::AccessDenied);
    }
    let exists = tree.get(path).is_some();
    match operation {
        Operation::WRITE => tree.write(path, rest, by),
        Operation::MKDIR if exists => {}
        Operation::MKDIR => tree.write(path, b"", by),
        Operation::RM => {
            let above = path.rsplit_once('/').map_or("/", |(above, _)| above);
            if !tree.remove(path) && tree.get(above).is_none() {
                return Err(Refusal::NotFound);
            }
        }
        _ if !exists => return Err(Refusal::NotFound),
        Operation::READ => return Ok(tree.get(path).map(|node| node.value.clone()).unwrap_or_default()),
        Operation::DIRECTORY => return Ok(list(&tree.children(path))),
        Operation::DIRECTORY_PART => return part(tree, path, rest),
        Operation::GET_PERMS => return Ok(tree.permissions(path).unwrap_or_default().into_bytes()),
        Operation::SET_PERMS => {
            if !tree.set_permissions(path, text(rest)?) {
                return Err(Refusal::Invalid);
            }
        }
        _ => return Err(Refusal::NotImplemented),
    }
    Ok(b"OK\0".to_vec())
}

/// The list from byte `rest` on, as much as fits a message.
fn part(tree: &Tree, path: &str, rest: &[u8]) -> Result<Vec<u8>, Refusal> {
    let offset = strings(rest).next().unwrap_or_default();
    let offset: usize = text(offset)?.parse().map_err(|_| Refusal::Invalid)?;
    let tag = format!("{}\0", tree.children(path).len());
    let list = list(&tree.children(path));
    let from = list.get(offset..).ok_or(Refusal::Invalid)?;
    let room = PAYLOAD_MAX - tag.len() - 1;
    let fits = if from.len() <= room {
        [from, b"\0"].concat()
    } else {
        let end = from[..room].iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1);
        from[..end].to_vec()
    };
    Ok([tag.into_bytes(), fits].concat())
}

fn list(names: &[String]) -> Vec<u8> {
    names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect()
}

fn refusal(error: Refusal) -> Vec<u8> {
    format!("{}\0", error.name()).into_bytes()
}

fn text(bytes: &[u8]) -> Result<&str, Refusal> {
    core::str::from_utf8(bytes).map_err(|_| Refusal::Invalid)
}
