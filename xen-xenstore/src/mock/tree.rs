//! The tree, its permissions, and transactions on it.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use xen_hypercall::DomId;

use crate::wire::Refusal;

#[derive(Clone, Default)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    /// Owner with what others may do, then exceptions.
    permissions: Vec<(char, u16)>,
    generation: u64,
}

#[derive(Clone, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    generation: u64,
}

/// What a transaction has seen and done.
pub(super) struct Changes {
    /// The tree as this transaction sees it.
    pub(super) tree: Tree,
    pub(super) base: Tree,
    pub(super) touched: BTreeSet<String>,
    pub(super) written: Vec<String>,
}

fn parent(path: &str) -> Option<&str> {
    let (above, _) = path.rsplit_once('/').filter(|_| path != "/")?;
    Some(if above.is_empty() { "/" } else { above })
}

impl Tree {
    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Whether `domain` may do this (`'r'` or `'w'`) with the node, or with what is nearest above a missing one.
    pub(super) fn allows(&self, path: &str, domain: DomId, what: char) -> bool {
        let mut at = Some(path);
        let node = loop {
            match at {
                None => return domain == DomId(0),
                Some(path) => match self.nodes.get(path) {
                    Some(node) => break node,
                    None => at = parent(path),
                },
            }
        };
        let Some((others, owner)) = node.permissions.first() else { return domain == DomId(0) };
        let exception = node.permissions.iter().skip(1).find(|(_, id)| *id == domain.0);
        let letter = exception.map_or(*others, |(letter, _)| *letter);
        domain == DomId(0) || *owner == domain.0 || letter == 'b' || letter == what
    }

    pub(super) fn write(&mut self, path: &str, value: &[u8], by: DomId) {
        if let Some(above) = parent(path)
            && !self.nodes.contains_key(above)
        {
            self.write(above, b"", by);
        }
        let inherited =
            parent(path).and_then(|above| self.nodes.get(above)).map(|node| node.permissions.clone());
        self.generation += 1;
        let generation = self.generation;
        let node = self.nodes.entry(path.to_string()).or_insert_with(|| {
            let mut permissions = inherited.unwrap_or_else(|| vec![('n', 0)]);
            if let Some(owner) = permissions.first_mut().filter(|_| by != DomId(0)) {
                owner.1 = by.0;
            }
            Node { permissions, ..Node::default() }
        });
        node.value = value.to_vec();
        node.generation = generation;
    }

    /// Answers whether it was there.
    pub(super) fn remove(&mut self, path: &str) -> bool {
        self.generation += 1;
        let below = format!("{path}/");
        let before = self.nodes.len();
        self.nodes.retain(|name, _| name != path && !name.starts_with(&below));
        self.nodes.len() != before
    }

    pub(super) fn children(&self, path: &str) -> Vec<String> {
        let below = if path == "/" { "/".into() } else { format!("{path}/") };
        let names = self.nodes.keys().filter_map(|name| name.strip_prefix(&below));
        names.filter(|name| !name.is_empty() && !name.contains('/')).map(ToString::to_string).collect()
    }

    pub(super) fn set_permissions(&mut self, path: &str, list: &str) -> bool {
        let entries = list.split('\0').filter(|entry| !entry.is_empty());
        let parsed: Option<Vec<(char, u16)>> =
            entries.map(|entry| Some((entry.chars().next()?, entry.get(1..)?.parse().ok()?))).collect();
        match (parsed, self.nodes.get_mut(path)) {
            (Some(permissions), Some(node)) if !permissions.is_empty() => {
                node.permissions = permissions;
                true
            }
            _ => false,
        }
    }

    pub(super) fn permissions(&self, path: &str) -> Option<String> {
        let node = self.nodes.get(path)?;
        Some(
            node.permissions.iter().fold(String::new(), |text, (letter, id)| format!("{text}{letter}{id}\0")),
        )
    }
}

impl Changes {
    pub(super) fn new(tree: &Tree) -> Self {
        Self { tree: tree.clone(), base: tree.clone(), touched: BTreeSet::new(), written: Vec::new() }
    }

    /// Puts the changes into `tree`, unless something that was looked at has changed there meanwhile.
    pub(super) fn commit(self, tree: &mut Tree) -> Result<Vec<String>, Refusal> {
        let generation = |tree: &Tree, path: &str| tree.get(path).map(|node| node.generation);
        if self.touched.iter().any(|path| generation(tree, path) != generation(&self.base, path)) {
            return Err(Refusal::Again);
        }
        for path in &self.written {
            match self.tree.get(path) {
                Some(node) => {
                    tree.write(path, &node.value, DomId(0));
                    if let Some(place) = tree.nodes.get_mut(path) {
                        place.permissions.clone_from(&node.permissions);
                    }
                }
                None => drop(tree.remove(path)),
            }
        }
        Ok(self.written)
    }
}
