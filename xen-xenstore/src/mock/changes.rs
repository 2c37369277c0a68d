//! Transactions: a copy of the tree, and what it was used for.

use std::boxed::Box;
use std::collections::HashSet;
use std::sync::Arc;
use std::vec::Vec;

use super::hash::PathHash;
use super::tree::{Change, Reach, Tree, parent};
use crate::wire::Refusal;

/// What a transaction has seen and done.
pub(super) struct Changes {
    /// The tree as this transaction sees it.
    pub(super) tree: Tree,
    base: Tree,
    looked_at: HashSet<Box<str>, PathHash>,
    /// What changed, and who is to be told.
    changed: Vec<(Arc<str>, Reach)>,
}

impl Changes {
    pub(super) fn new(tree: &Tree) -> Self {
        Self { tree: tree.clone(), base: tree.clone(), looked_at: HashSet::default(), changed: Vec::new() }
    }

    /// Notes that an answer depended on a node, or on its not being there.
    pub(super) fn look_at(&mut self, path: &str) {
        if !self.looked_at.contains(path) {
            self.looked_at.insert(path.into());
        }
    }

    /// Notes a change. That to a list of children is one to the node above.
    pub(super) fn note(&mut self, changes: &[Change]) {
        for change in changes {
            self.look_at(&change.path);
            if let Some(above) = parent(&change.path) {
                if self.base.get(&change.path).is_some() != self.tree.get(&change.path).is_some() {
                    self.look_at(above);
                }
            }
            let known = self.changed.iter().position(|(path, _)| *path == change.path);
            let reach = known.map_or(Reach::Nobody, |at| self.changed.remove(at).1).max(change.reach);
            self.changed.push((Arc::clone(&change.path), reach));
        }
    }

    /// Puts the changes into `tree`, unless something that was looked at has changed there meanwhile.
    pub(super) fn commit(self, tree: &mut Tree) -> Result<Vec<Change>, Refusal> {
        let generation = |tree: &Tree, path: &str| tree.get(path).map(|node| node.generation);
        if self.looked_at.iter().any(|path| generation(tree, path) != generation(&self.base, path)) {
            return Err(Refusal::Again);
        }
        // The nodes are not shared any more, and change in place.
        drop(self.base);
        let mut changes = Vec::new();
        for (path, reach) in &self.changed {
            let mut done = match self.tree.get(path) {
                Some(node) => tree.adopt(path, node),
                None => tree.remove(path),
            };
            if done.is_empty() {
                // It came and went within the transaction, which is told as well.
                done.push(tree.change(path));
            }
            if let Some(change) = done.iter_mut().find(|change| change.path == *path) {
                change.reach = *reach;
            }
            changes.append(&mut done);
        }
        Ok(changes)
    }
}
