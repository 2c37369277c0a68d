//! The nodes, who may do what with them, and how much a domain may have.

use std::collections::HashMap;
use std::format;
use std::string::{String, ToString};
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use xen_hypercall::DomId;

use super::Limits;
use super::hash::PathHash;
use crate::wire::Refusal;

const ROOT: &str = "/";

/// Who may do what with a node: the owner with what all others may do, then exceptions. Clones share the list: a node has
/// that of the one above it almost always, and each change has those of two.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Permissions(Arc<Vec<(char, u16)>>);

#[derive(Clone, Debug)]
pub(super) struct Node {
    /// What it is found by, which changes to it share.
    path: Arc<str>,
    pub(super) value: Vec<u8>,
    pub(super) permissions: Permissions,
    /// Of the last change to the value, the permissions, or the list of children.
    pub(super) generation: u64,
}

/// One node that has changed, for those who watch. When one is removed, each that was below it has a change of its
/// own.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) path: Arc<str>,
    pub(super) reach: Reach,
    /// Who can see it: those of the node, those it had before, and those of the one above it.
    permissions: [Option<Permissions>; 3],
}

/// Whose watches a change fires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Reach {
    /// It came because one below it was made, which is told.
    Nobody,
    /// It went because one above it was removed: those who watch more than just this have been told of that.
    Exact,
    /// Those at the node and above it.
    All,
}

/// Clones share the nodes until one of them changes: a transaction that only reads costs nothing, and one that writes has a
/// list of its own, of the nodes that are there.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// By their paths. These are long and begin alike, so that an ordered map would do little but compare them.
    nodes: Arc<HashMap<Arc<str>, Arc<Node>, PathHash>>,
    generation: u64,
    pub(super) limits: Limits,
}

pub(super) fn parent(path: &str) -> Option<&str> {
    let (above, _) = path.rsplit_once('/').filter(|_| path != ROOT)?;
    Some(if above.is_empty() { ROOT } else { above })
}

/// What of a path follows `below`, which ends in a slash. Whether there is one tells most paths apart before anything is compared.
fn below_of<'p>(path: &'p str, below: &str) -> Option<&'p str> {
    let slash = path.as_bytes().get(below.len() - 1) == Some(&b'/');
    if slash { path.strip_prefix(below) } else { None }
}

/// Puts paths in order that begin alike for so many bytes. Byte by byte: most differ soon.
fn sort(paths: &mut [Arc<str>], alike: usize) {
    paths.sort_unstable_by(|a, b| a.bytes().skip(alike).cmp(b.bytes().skip(alike)));
}

/// Nobody's but the daemon's.
impl Default for Permissions {
    fn default() -> Self {
        Self(Arc::new(vec![('n', 0)]))
    }
}

impl Permissions {
    pub(super) fn parse(list: &str) -> Option<Self> {
        let entries = list.split('\0').filter(|entry| !entry.is_empty());
        let parsed: Option<Vec<(char, u16)>> = entries
            .map(|entry| {
                let letter = entry.chars().next().filter(|letter| "nrwb".contains(*letter))?;
                Some((letter, entry.get(1..)?.parse().ok()?))
            })
            .collect();
        parsed.filter(|list| !list.is_empty()).map(|list| Self(Arc::new(list)))
    }

    fn owner(&self) -> u16 {
        self.0.first().map_or(0, |(_, owner)| *owner)
    }

    pub(super) fn allow(&self, domain: DomId, what: char) -> bool {
        let Some((others, owner)) = self.0.first() else { return domain == DomId(0) };
        let exception = self.0.iter().skip(1).find(|(_, id)| *id == domain.0);
        let letter = exception.map_or(*others, |(letter, _)| *letter);
        domain == DomId(0) || *owner == domain.0 || letter == 'b' || letter == what
    }
}

impl std::fmt::Display for Permissions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(letter, id)| write!(f, "{letter}{id}\0"))
    }
}

impl Change {
    /// The node has other permissions from now on; who could see it before sees this, too.
    fn becomes(&mut self, permissions: Permissions) {
        let [own, before, _] = &mut self.permissions;
        *before = own.replace(permissions);
    }

    /// Whether a domain may know of it.
    pub(super) fn is_visible_to(&self, domain: DomId) -> bool {
        self.permissions.iter().flatten().any(|permissions| permissions.allow(domain, 'r'))
    }
}

impl Default for Tree {
    fn default() -> Self {
        let permissions = Permissions::default();
        let nodes = [ROOT, "@introduceDomain", "@releaseDomain"].map(|path| {
            let path: Arc<str> = Arc::from(path);
            let permissions = permissions.clone();
            let node = Node { path: Arc::clone(&path), value: Vec::new(), permissions, generation: 0 };
            (path, Arc::new(node))
        });
        Self { nodes: Arc::new(nodes.into_iter().collect()), generation: 0, limits: Limits::default() }
    }
}

impl Tree {
    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path).map(Arc::as_ref)
    }

    /// Checks that `domain` may do this (`'r'` or `'w'`) with the node, or with what is nearest above a missing one.
    pub(super) fn check(&self, path: &str, domain: DomId, what: char) -> Result<(), Refusal> {
        let mut at = Some(path);
        while let Some(path) = at {
            if let Some(node) = self.nodes.get(path) {
                return if node.permissions.allow(domain, what) {
                    Ok(())
                } else {
                    Err(Refusal::AccessDenied)
                };
            }
            at = parent(path);
        }
        // Special names have nothing above them.
        Err(Refusal::NotFound)
    }

    /// Sets a value, with all the nodes that this needs; returns what has changed.
    pub(super) fn write(&mut self, path: &str, value: &[u8], by: DomId) -> Result<Vec<Change>, Refusal> {
        self.check_size(path, value.len(), by)?;
        let mut changes = self.make(path, by)?;
        if let Some(node) = self.touch(path) {
            node.value.clear();
            node.value.extend_from_slice(value);
        }
        // The last change is its own if it was made just now.
        if changes.is_empty() {
            changes.push(self.change(path));
        }
        Ok(changes)
    }

    /// Makes a node unless it exists.
    pub(super) fn make(&mut self, path: &str, by: DomId) -> Result<Vec<Change>, Refusal> {
        if self.nodes.contains_key(path) {
            return Ok(Vec::new());
        }
        let above = parent(path).ok_or(Refusal::Invalid)?;
        let mut changes = self.make(above, by)?;
        for change in &mut changes {
            change.reach = Reach::Nobody;
        }
        // There is no need to count while all together are fewer.
        if by != DomId(0) && self.nodes.len() >= self.limits.nodes {
            let owned = self.nodes.values().filter(|node| node.permissions.owner() == by.0).count();
            if owned >= self.limits.nodes {
                return Err(Refusal::NoSpace);
            }
        }
        self.check_size(path, 0, by)?;
        let inherited = self.touch(above).map(|node| node.permissions.clone());
        let mut permissions = inherited.clone().unwrap_or_default();
        if by != DomId(0) && permissions.owner() != by.0 {
            if let Some(owner) = Arc::make_mut(&mut permissions.0).first_mut() {
                owner.1 = by.0;
            }
        }
        self.generation += 1;
        let path: Arc<str> = Arc::from(path);
        let permissions_now = [Some(permissions.clone()), None, inherited];
        let generation = self.generation;
        let node = Node { path: Arc::clone(&path), value: Vec::new(), permissions, generation };
        Arc::make_mut(&mut self.nodes).insert(Arc::clone(&path), Arc::new(node));
        changes.push(Change { path, reach: Reach::All, permissions: permissions_now });
        Ok(changes)
    }

    /// Removes a node with all below it. Nothing changes when it does not exist.
    pub(super) fn remove(&mut self, path: &str) -> Vec<Change> {
        if path == ROOT || !self.nodes.contains_key(path) {
            return Vec::new();
        }
        let above = parent(path).and_then(|above| self.touch(above)).map(|node| node.permissions.clone());
        let below = format!("{path}/");
        let mut gone: Vec<Arc<str>> =
            self.nodes.keys().filter(|name| below_of(name, &below).is_some()).cloned().collect();
        sort(&mut gone, below.len());
        let nodes = Arc::make_mut(&mut self.nodes);
        let mut changes = Vec::with_capacity(1 + gone.len());
        if let Some(node) = nodes.remove(path) {
            let permissions = [Some(node.permissions.clone()), None, above];
            changes.push(Change { path: Arc::clone(&node.path), reach: Reach::All, permissions });
        }
        for path in gone {
            // What is above it has gone before.
            let permissions = [nodes.remove(&path).map(|node| node.permissions.clone()), None, None];
            changes.push(Change { path, reach: Reach::Exact, permissions });
        }
        changes
    }

    pub(super) fn set_permissions(
        &mut self,
        path: &str,
        permissions: Permissions,
        by: DomId,
    ) -> Result<Vec<Change>, Refusal> {
        let mut change = self.change(path);
        let limit = self.limits.permissions;
        let node = self.nodes.get(path).ok_or(Refusal::NotFound)?;
        if by != DomId(0) {
            if node.permissions.owner() != by.0 {
                return Err(Refusal::AccessDenied);
            }
            // A guest cannot give its nodes away.
            if permissions.owner() != by.0 {
                return Err(Refusal::NotPermitted);
            }
            if permissions.0.len() > limit {
                return Err(Refusal::NoSpace);
            }
        }
        if let Some(node) = self.touch(path) {
            node.permissions = permissions.clone();
        }
        change.becomes(permissions);
        Ok(vec![change])
    }

    pub(super) fn children(&self, path: &str) -> Vec<String> {
        let below = if path == ROOT { ROOT.to_string() } else { format!("{path}/") };
        let names = self.nodes.keys().filter_map(|name| below_of(name, &below));
        let mut names: Vec<String> =
            names.filter(|name| !name.is_empty() && !name.contains('/')).map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }

    /// Every path, in order.
    pub(super) fn paths(&self) -> Vec<String> {
        let paths = self.nodes.keys().filter(|path| path.starts_with('/'));
        let mut paths: Vec<String> = paths.map(ToString::to_string).collect();
        paths.sort_unstable();
        paths
    }

    /// What happened, as those see it who watch a special name.
    pub(super) fn special(&self, name: &str) -> Option<Change> {
        self.nodes.contains_key(name).then(|| self.change(name))
    }

    /// Takes a node over from another tree, as it is there; returns what changed.
    pub(super) fn adopt(&mut self, path: &str, node: &Node) -> Vec<Change> {
        let mut changes = self.make(path, DomId(0)).unwrap_or_default();
        // The last change is its own if it was made just now.
        let mut change = changes.pop().unwrap_or_else(|| self.change(path));
        if let Some(own) = self.touch(path) {
            own.value.clone_from(&node.value);
            own.permissions.clone_from(&node.permissions);
            change.becomes(node.permissions.clone());
        }
        changes.push(change);
        changes
    }

    /// Notes that a node changes, and returns it.
    fn touch(&mut self, path: &str) -> Option<&mut Node> {
        self.generation += 1;
        let node = Arc::make_mut(Arc::make_mut(&mut self.nodes).get_mut(path)?);
        node.generation = self.generation;
        Some(node)
    }

    /// A change to a node, with who can see it now: whoever may read it, or the one above it.
    pub(super) fn change(&self, path: &str) -> Change {
        let node = self.get(path);
        let above = parent(path).and_then(|above| self.get(above));
        let permissions = [node, None, above].map(|node| node.map(|node| node.permissions.clone()));
        let path = node.map_or_else(|| Arc::from(path), |node| Arc::clone(&node.path));
        Change { path, reach: Reach::All, permissions }
    }

    /// The daemon limits what it stores for one node.
    fn check_size(&self, path: &str, value: usize, by: DomId) -> Result<(), Refusal> {
        let fits = by == DomId(0) || path.len() + value < self.limits.node_size;
        if fits { Ok(()) } else { Err(Refusal::NoSpace) }
    }
}
