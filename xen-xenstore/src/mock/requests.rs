//! What each operation does.

use std::borrow::{Cow, ToOwned};
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use xen_hypercall::DomId;

use super::State;
use super::changes::Changes;
use super::connection::Watch;
use super::tree::{Change, Permissions, Tree, parent};
use crate::path;
use crate::wire::{Header, Operation, PAYLOAD_MAX, REL_PATH_MAX, Refusal, strings};

const DONE: &[u8] = b"OK\0";

impl State {
    pub(super) fn handle(&mut self, index: usize, header: Header, payload: &[u8]) {
        let operation = Operation(header.kind);
        self.connections[index].release();
        let answer = self
            .faulty_answer(index, header, payload)
            .and_then(|answer| if answer.len() <= PAYLOAD_MAX { Ok(answer) } else { Err(Refusal::TooBig) });
        let id = self.connections[index].id();
        self.connections[index].trace(|| {
            let transaction = match header.transaction_id {
                0 => String::new(),
                number => format!(" in transaction {number}"),
            };
            let outcome = match &answer {
                Ok(answer) => format!("\"{}\"", shown(answer)),
                Err(refusal) => refusal.name().to_string(),
            };
            format!("xenstored: {id} {}({}){transaction} = {outcome}", operation.name(), shown(payload))
        });
        let watched = answer.is_ok() && operation == Operation::WATCH;
        let (kind, answer) = match answer {
            Ok(answer) => (header.kind, answer),
            Err(error) => (Operation::ERROR.0, format!("{}\0", error.name()).into_bytes()),
        };
        let Self { connections, trouble, unanswered, .. } = self;
        let connection = &mut connections[index];
        let header = Header { kind, ..header };
        if *unanswered > 0 {
            *unanswered -= 1;
        } else if trouble.hits(|f| f.late) {
            connection.hold(header, answer);
        } else {
            if trouble.hits(|f| f.doubled) {
                connection.answer(header, answer.clone());
            }
            connection.answer(header, answer);
        }
        // Every watch fires once when it is set, after the answer.
        if let Some(watch) = connection.watches.last().filter(|_| watched).cloned() {
            connection.watch_event(&watch);
        }
        let spurious =
            if trouble.hits(|f| f.spurious_event) { trouble.pick(&connection.watches) } else { None };
        if let Some(watch) = spurious.cloned() {
            connection.watch_event(&watch);
        }
        if trouble.hits(|f| f.unknown_event) {
            let (slot, generation) = (trouble.dice.below(40), trouble.dice.next_u64());
            connection.watch_event(&Watch { path: "nobody".into(), token: format!("{slot}-{generation}") });
        }
        if trouble.hits(|f| f.gives_up) {
            connection.lose();
        }
    }

    fn faulty_answer(&mut self, index: usize, header: Header, payload: &[u8]) -> Result<Vec<u8>, Refusal> {
        match Operation(header.kind) {
            // Both have no error that a guest expects.
            Operation::TRANSACTION_END | Operation::RESET_WATCHES => {}
            _ if self.trouble.hits(|f| f.refused) => return Err(Refusal::Busy),
            Operation::READ if self.trouble.hits(|f| f.missing) => return Err(Refusal::NotFound),
            _ => {}
        }
        let answer = self.answer(index, header, payload)?;
        Ok(if header.kind == Operation::READ.0 { self.trouble.spoil(answer) } else { answer })
    }

    fn answer(&mut self, index: usize, header: Header, payload: &[u8]) -> Result<Vec<u8>, Refusal> {
        let id = self.connections[index].id();
        let operation = Operation(header.kind);
        let mut arguments = payload.splitn(2, |byte| *byte == 0);
        let first = text(arguments.next().unwrap_or_default())?;
        let rest = arguments.next();
        match operation {
            Operation::TRANSACTION_START => return self.begin(index, header),
            Operation::TRANSACTION_END => return self.end(index, header, first),
            Operation::GET_DOMAIN_PATH => {
                let domain: u16 = first.parse().map_err(|_| Refusal::Invalid)?;
                return Ok(format!("/local/domain/{domain}\0").into_bytes());
            }
            Operation::IS_DOMAIN_INTRODUCED => {
                let domain: u16 = first.parse().map_err(|_| Refusal::Invalid)?;
                let known = domain == 0 || self.connections.iter().any(|other| other.id() == DomId(domain));
                return Ok(if known { b"T\0".to_vec() } else { b"F\0".to_vec() });
            }
            Operation::RESET_WATCHES => {
                self.connections[index].watches.clear();
                self.connections[index].transactions.clear();
                return Ok(DONE.to_vec());
            }
            Operation::WATCH => return self.watch(index, first, rest),
            Operation::UNWATCH => {
                let token = text(strings(rest.unwrap_or_default()).next().unwrap_or_default())?;
                let watches = &mut self.connections[index].watches;
                let at = watches.iter().position(|watch| watch.path == first && watch.token == token);
                watches.remove(at.ok_or(Refusal::NotFound)?);
                return Ok(DONE.to_vec());
            }
            // For the toolstack alone.
            Operation::CONTROL
            | Operation::INTRODUCE
            | Operation::RELEASE
            | Operation::RESUME
            | Operation::SET_TARGET => return Err(Refusal::AccessDenied),
            Operation::READ
            | Operation::DIRECTORY
            | Operation::DIRECTORY_PART
            | Operation::GET_PERMS
            | Operation::WRITE
            | Operation::MKDIR
            | Operation::RM
            | Operation::SET_PERMS => {}
            _ => return Err(Refusal::NotImplemented),
        }
        // The zero byte after the path, which values of some operations follow.
        let rest = rest.ok_or(Refusal::Invalid)?;
        let special =
            first.starts_with('@') && matches!(operation, Operation::GET_PERMS | Operation::SET_PERMS);
        let relative = !first.starts_with('/');
        if !path::is_valid(first)
            || (first.starts_with('@') && !special)
            || (relative && first.len() > REL_PATH_MAX)
        {
            return Err(Refusal::Invalid);
        }
        let path = if relative && !special {
            Cow::Owned([&*self.connections[index].home(), "/", first].concat())
        } else {
            Cow::Borrowed(first)
        };
        if header.transaction_id == 0 {
            let (answer, changes) = on_tree(&mut self.tree, operation, &path, rest, id)?;
            self.tell(&changes);
            return Ok(answer);
        }
        let transactions = &mut self.connections[index].transactions;
        let transaction = transactions.get_mut(&header.transaction_id).ok_or(Refusal::NotFound)?;
        transaction.look_at(&path);
        let (answer, changes) = on_tree(&mut transaction.tree, operation, &path, rest, id)?;
        transaction.note(&changes);
        Ok(answer)
    }

    fn begin(&mut self, index: usize, header: Header) -> Result<Vec<u8>, Refusal> {
        let connection = &mut self.connections[index];
        if header.transaction_id != 0 {
            return Err(Refusal::Busy);
        }
        if connection.transactions.len() >= self.tree.limits.transactions {
            return Err(Refusal::NoSpace);
        }
        connection.last_transaction += 1;
        let number = connection.last_transaction;
        connection.transactions.insert(number, Changes::new(&self.tree));
        Ok(format!("{number}\0").into_bytes())
    }

    fn end(&mut self, index: usize, header: Header, how: &str) -> Result<Vec<u8>, Refusal> {
        if !matches!(how, "T" | "F") {
            return Err(Refusal::Invalid);
        }
        let changes = self.connections[index].transactions.remove(&header.transaction_id);
        let changes = changes.ok_or(Refusal::NotFound)?;
        if how == "T" {
            if self.clashes > 0 || self.trouble.hits(|f| f.again) {
                self.clashes = self.clashes.saturating_sub(1);
                return Err(Refusal::Again);
            }
            let changes = changes.commit(&mut self.tree)?;
            self.tell(&changes);
        }
        Ok(DONE.to_vec())
    }

    fn watch(&mut self, index: usize, path: &str, rest: Option<&[u8]>) -> Result<Vec<u8>, Refusal> {
        let token = text(strings(rest.unwrap_or_default()).next().ok_or(Refusal::Invalid)?)?;
        let watch = Watch { path: path.to_owned(), token: token.to_owned() };
        let watches = &mut self.connections[index].watches;
        if !path::is_valid(path) {
            return Err(Refusal::Invalid);
        }
        if watches.contains(&watch) {
            return Err(Refusal::Exists);
        }
        if watches.len() >= self.tree.limits.watches {
            return Err(Refusal::TooBig);
        }
        watches.push(watch);
        Ok(DONE.to_vec())
    }
}

/// What works on one node, in a transaction or not: the answer, and what has changed.
fn on_tree(
    tree: &mut Tree,
    operation: Operation,
    path: &str,
    rest: &[u8],
    by: DomId,
) -> Result<(Vec<u8>, Vec<Change>), Refusal> {
    let writes =
        matches!(operation, Operation::WRITE | Operation::MKDIR | Operation::RM | Operation::SET_PERMS);
    tree.check(path, by, if writes { 'w' } else { 'r' })?;
    let exists = tree.get(path).is_some();
    let changes = match operation {
        Operation::WRITE => tree.write(path, rest, by)?,
        Operation::MKDIR => tree.make(path, by)?,
        Operation::RM if path == "/" => return Err(Refusal::Invalid),
        Operation::RM if !exists && parent(path).is_none_or(|above| tree.get(above).is_none()) => {
            return Err(Refusal::NotFound);
        }
        Operation::RM => tree.remove(path),
        _ if !exists => return Err(Refusal::NotFound),
        Operation::READ => {
            return Ok((tree.get(path).map(|node| node.value.clone()).unwrap_or_default(), Vec::new()));
        }
        Operation::DIRECTORY => return Ok((list(&tree.children(path)), Vec::new())),
        Operation::DIRECTORY_PART => return Ok((part(tree, path, rest)?, Vec::new())),
        Operation::GET_PERMS => {
            let permissions = tree.get(path).map(|node| node.permissions.to_string());
            return Ok((permissions.unwrap_or_default().into_bytes(), Vec::new()));
        }
        _ => {
            let permissions = Permissions::parse(text(rest)?).ok_or(Refusal::Invalid)?;
            tree.set_permissions(path, permissions, by)?
        }
    };
    Ok((DONE.to_vec(), changes))
}

/// The list from byte `rest` on, as much as fits a message.
fn part(tree: &Tree, path: &str, rest: &[u8]) -> Result<Vec<u8>, Refusal> {
    let offset = strings(rest).next().unwrap_or_default();
    let offset: usize = text(offset)?.parse().map_err(|_| Refusal::Invalid)?;
    let generation = tree.get(path).map_or(0, |node| node.generation);
    let tag = format!("{generation}\0");
    let list = list(&tree.children(path));
    // Behind the list there is nothing but its end.
    let from = list.get(offset..).unwrap_or_default();
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

fn text(bytes: &[u8]) -> Result<&str, Refusal> {
    core::str::from_utf8(bytes).map_err(|_| Refusal::Invalid)
}

/// A payload for people: blanks where its strings end, and not too long.
fn shown(payload: &[u8]) -> String {
    const MOST: usize = 80;
    let payload = payload.strip_suffix(b"\0").unwrap_or(payload);
    let cut = payload.get(..MOST).unwrap_or(payload);
    let text: Vec<u8> = cut.iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    let dots = if cut.len() < payload.len() { "..." } else { "" };
    format!("{}{dots}", text.escape_ascii())
}
