//! The nodes, and what may be done to them: reads and changes with permissions and quotas, without watches,
//! transactions or connections.
//!
//! A [`Tree`] is persistent: a clone is a snapshot, and shares with the original whatever neither has changed.

use super::limits::{MAX_NODE_SIZE, MAX_NODES, MAX_PERMISSIONS, NODE_OVERHEAD, PERMISSION_SIZE};
use super::map::Map;
use crate::path::Path;
use crate::perms::{Access, DomId, Perms};
use crate::wire::{Errno, MAX_PAYLOAD};
use std::sync::Arc;

/// One node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    value: Arc<[u8]>,
    guard: Guard,
    /// Changes with the value, the permissions and the list of children.
    generation: u64,
    children: Map<Arc<str>, Arc<Node>>,
    /// Bytes of the children's names, each with its NUL: the length of a directory reply.
    names: usize,
}

/// Permissions, and when they were set: an entry that names a domain means the one that was alive then.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    perms: Arc<Perms>,
    set: u64,
}

impl Drop for Node {
    /// Without recursion along paths, which may be 1500 levels deep.
    fn drop(&mut self) {
        if self.children.is_empty() {
            return;
        }
        let mut pending = vec![std::mem::take(&mut self.children)];
        while let Some(children) = pending.pop() {
            children.dismantle(&mut |node| {
                if let Some(mut node) = Arc::into_inner(node) {
                    pending.push(std::mem::take(&mut node.children));
                }
            });
        }
    }
}

impl Node {
    fn new(guard: Guard, generation: u64) -> Self {
        Self { value: Arc::default(), guard, generation, children: Map::default(), names: 0 }
    }

    /// What it weighs against [`MAX_NODE_SIZE`].
    fn size(&self) -> usize {
        let entries = 1 + self.guard.perms.acl.len();
        NODE_OVERHEAD + entries * PERMISSION_SIZE + self.value.len() + self.names
    }

    /// The node at `segments` below this one.
    pub(super) fn at<'a>(&self, mut segments: impl Iterator<Item = &'a str>) -> Option<&Self> {
        segments.try_fold(self, |node, name| node.children.get(name).map(|n| &**n))
    }

    pub(super) fn guard(&self) -> &Guard {
        &self.guard
    }

    fn child_names(&self) -> Vec<u8> {
        let mut list = Vec::with_capacity(self.names);
        for (name, _) in self.children.iter() {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        list
    }
}

/// With whose rights something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) domid: DomId,
    /// The domain that this one serves, and acts for.
    pub(super) target: Option<DomId>,
}

impl Who {
    pub(super) const fn of(domid: DomId) -> Self {
        Self { domid, target: None }
    }

    pub(super) fn is_privileged(self) -> bool {
        self.domid == DomId::DOM0
    }

    fn is(self, domid: DomId) -> bool {
        self.domid == domid || self.target == Some(domid)
    }
}

/// What was changed at one path, for the watches.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) path: Path,
    /// Who could read it before; none for a new node.
    pub(super) before: Option<Guard>,
    /// What was removed, with all below it.
    pub(super) removed: Option<Arc<Node>>,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    root: Arc<Node>,
    /// Counts changes.
    clock: u64,
    /// Nodes of each domain.
    owned: Map<DomId, u32>,
    /// When the last domain of this number died.
    died: Map<DomId, u64>,
}

impl Tree {
    pub(super) fn new() -> Self {
        let guard = Guard { perms: Arc::new(Perms::no()), set: 0 };
        let root = Arc::new(Node::new(guard, 0));
        Self { root, clock: 0, owned: Map::default(), died: Map::default() }
    }

    pub(super) fn node(&self, path: &Path) -> Option<&Node> {
        self.root.at(path.segments())
    }

    pub(super) fn owned_by(&self, domid: DomId) -> u32 {
        self.owned.get(&domid).copied().unwrap_or(0)
    }

    /// Whether `who` may read what is guarded.
    pub(super) fn may_read(&self, who: Who, guard: &Guard) -> bool {
        self.access(who, guard).may_read()
    }

    fn access(&self, who: Who, guard: &Guard) -> Access {
        if who.is_privileged() || who.is(guard.perms.owner) {
            return Access::Both;
        }
        let entry = guard.perms.acl.iter().find(|(d, _)| who.is(*d) && self.is_same_domain(*d, guard.set));
        entry.map_or(guard.perms.others, |(_, access)| *access)
    }

    /// Whether the domain that now has this number is the one that had it at `set` (XSA-322).
    fn is_same_domain(&self, domid: DomId, set: u64) -> bool {
        self.died.get(&domid).is_none_or(|died| *died < set)
    }

    /// The node, if `who` has the access that `wanted` tests for. A node that is not there is EACCES to who has no such
    /// access to its nearest ancestor, lest its absence tell something.
    fn open(&self, who: Who, path: &Path, wanted: fn(Access) -> bool) -> Result<&Node, Errno> {
        let (mut nearest, mut found) = (&*self.root, true);
        for name in path.segments() {
            let Some(child) = nearest.children.get(name) else {
                found = false;
                break;
            };
            nearest = child;
        }
        match (wanted(self.access(who, &nearest.guard)), found) {
            (false, _) => Err(Errno::Acces),
            (true, false) => Err(Errno::NoEnt),
            (true, true) => Ok(nearest),
        }
    }

    pub(super) fn read(&self, who: Who, path: &Path) -> Result<Vec<u8>, Errno> {
        self.open(who, path, Access::may_read).map(|node| node.value.to_vec())
    }

    pub(super) fn directory(&self, who: Who, path: &Path) -> Result<Vec<u8>, Errno> {
        let node = self.open(who, path, Access::may_read)?;
        if node.names > MAX_PAYLOAD {
            return Err(Errno::TooBig);
        }
        Ok(node.child_names())
    }

    /// The node's generation, and as many names from `offset` on as fit; an empty name ends the list.
    pub(super) fn directory_part(&self, who: Who, path: &Path, offset: u32) -> Result<(u64, Vec<u8>), Errno> {
        let node = self.open(who, path, Access::may_read)?;
        let names = node.child_names();
        let rest = usize::try_from(offset).ok().and_then(|o| names.get(o..)).unwrap_or_default();
        let room = MAX_PAYLOAD - format!("{}", node.generation).len() - 2;
        let mut part = Vec::new();
        for name in rest.split_inclusive(|b| *b == 0) {
            if part.len() + name.len() > room {
                return Ok((node.generation, part));
            }
            part.extend_from_slice(name);
        }
        part.push(0);
        Ok((node.generation, part))
    }

    pub(super) fn get_perms(&self, who: Who, path: &Path) -> Result<Perms, Errno> {
        let guard = &self.open(who, path, Access::may_read)?.guard;
        let mut perms = Perms::clone(&guard.perms);
        perms.acl.retain(|(d, _)| self.is_same_domain(*d, guard.set));
        Ok(perms)
    }

    pub(super) fn write(&mut self, who: Who, path: &Path, value: &[u8]) -> Result<Change, Errno> {
        let before = self.prepare(who, path, value.len())?;
        let generation = self.tick();
        let node = self.make(who, path)?;
        node.value = value.into();
        node.generation = generation;
        Ok(Change { path: path.clone(), before, removed: None })
    }

    /// None when there was nothing to do.
    pub(super) fn mkdir(&mut self, who: Who, path: &Path) -> Result<Option<Change>, Errno> {
        if self.prepare(who, path, 0)?.is_some() {
            return Ok(None);
        }
        self.tick();
        self.make(who, path)?;
        Ok(Some(Change { path: path.clone(), before: None, removed: None }))
    }

    /// Whether `who` may write so many bytes to the node, or make it, and who could read it before if it is there.
    fn prepare(&self, who: Who, path: &Path, bytes: usize) -> Result<Option<Guard>, Errno> {
        match self.open(who, path, Access::may_write) {
            Ok(node) if !who.is_privileged() && node.size() - node.value.len() + bytes > MAX_NODE_SIZE => {
                Err(Errno::NoSpc)
            }
            Ok(node) => Ok(Some(node.guard.clone())),
            Err(Errno::NoEnt) => self.check_room(who, path, bytes).map(|()| None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether the quota of `who` has room for a new node and its missing parents, before any is made.
    fn check_room(&self, who: Who, path: &Path, bytes: usize) -> Result<(), Errno> {
        if who.is_privileged() {
            return Ok(());
        }
        let (mut nearest, mut segments) = (&*self.root, path.segments());
        let first = loop {
            let Some(name) = segments.next() else { return Ok(()) };
            match nearest.children.get(name) {
                Some(child) => nearest = child,
                None => break name,
            }
        };
        let missing = 1 + u32::try_from(segments.count()).unwrap_or(u32::MAX);
        let empty = NODE_OVERHEAD + (1 + nearest.guard.perms.acl.len()) * PERMISSION_SIZE;
        // A directory's list of names grows on its owner's account.
        let own = who.is(nearest.guard.perms.owner);
        if self.owned_by(who.domid).saturating_add(missing) > MAX_NODES
            || empty + bytes > MAX_NODE_SIZE
            || own && nearest.size() + first.len() + 1 > MAX_NODE_SIZE
        {
            return Err(Errno::NoSpc);
        }
        Ok(())
    }

    /// The node at `path`, made with its missing parents if need be. A new node has its parent's permissions; a guest
    /// owns what it makes.
    fn make(&mut self, who: Who, path: &Path) -> Result<&mut Node, Errno> {
        let clock = self.clock;
        let mut node = Arc::make_mut(&mut self.root);
        for name in path.segments() {
            if node.children.get(name).is_none() {
                let mut perms = Arc::clone(&node.guard.perms);
                if !who.is_privileged() && perms.owner != who.domid {
                    Arc::make_mut(&mut perms).owner = who.domid;
                }
                // What the parent grants to a domain that is gone is not granted to the next of its number.
                let died = &self.died;
                let gone = |d: &DomId| died.get(d).is_some_and(|died| *died >= node.guard.set);
                if perms.acl.iter().any(|(d, _)| gone(d)) {
                    Arc::make_mut(&mut perms).acl.retain(|(d, _)| !gone(d));
                }
                count(&mut self.owned, perms.owner, 1);
                let new = Node::new(Guard { perms, set: clock }, clock);
                node.children.insert(Arc::from(name), Arc::new(new));
                node.names += name.len() + 1;
                node.generation = clock;
            }
            node = Arc::make_mut(node.children.get_mut(name).ok_or(Errno::Io)?);
        }
        Ok(node)
    }

    fn node_mut(&mut self, path: &Path) -> Option<&mut Node> {
        let mut segments = path.segments();
        segments.try_fold(Arc::make_mut(&mut self.root), |node, name| {
            node.children.get_mut(name).map(Arc::make_mut)
        })
    }

    /// None when the node was not there and its parent is.
    pub(super) fn rm(&mut self, who: Who, path: &Path) -> Result<Option<Change>, Errno> {
        let Some(parent) = path.parent() else { return Err(Errno::Inval) };
        match self.open(who, path, Access::may_write) {
            Ok(_) => {}
            Err(Errno::NoEnt) if self.node(&parent).is_some() => return Ok(None),
            Err(errno) => return Err(errno),
        }
        Ok(self.detach(&parent, path))
    }

    fn detach(&mut self, parent: &Path, path: &Path) -> Option<Change> {
        let generation = self.tick();
        let (parent, name) = (self.node_mut(parent)?, path.name());
        let removed = parent.children.remove(name)?;
        parent.names -= name.len() + 1;
        parent.generation = generation;
        let mut pending = vec![&*removed];
        while let Some(node) = pending.pop() {
            count(&mut self.owned, node.guard.perms.owner, -1);
            pending.extend(node.children.iter().map(|(_, child)| &**child));
        }
        Some(Change { path: path.clone(), before: Some(removed.guard.clone()), removed: Some(removed) })
    }

    pub(super) fn set_perms(&mut self, who: Who, path: &Path, perms: &Perms) -> Result<Change, Errno> {
        let guard = self.open(who, path, Access::may_write)?.guard.clone();
        if !who.is_privileged() {
            if !who.is(guard.perms.owner) {
                return Err(Errno::Acces);
            }
            // A gift of a node would be charged to the one who gets it (XSA-352).
            if perms.owner != guard.perms.owner {
                return Err(Errno::Perm);
            }
            if perms.acl.len() >= MAX_PERMISSIONS {
                return Err(Errno::NoSpc);
            }
        }
        let set = self.tick();
        let node = self.node_mut(path).ok_or(Errno::NoEnt)?;
        node.guard = Guard { perms: Arc::new(perms.clone()), set };
        node.generation = set;
        count(&mut self.owned, guard.perms.owner, -1);
        count(&mut self.owned, perms.owner, 1);
        Ok(Change { path: path.clone(), before: Some(guard), removed: None })
    }

    /// A domain is gone: its nodes go with it, with all below them, and what was granted to it is granted to nobody.
    pub(super) fn bury(&mut self, domid: DomId) {
        let now = self.tick();
        self.died.insert(domid, now);
        // Nearly all of its nodes are in its home; when that is all, there is no need to look at the rest.
        self.bury_below(&Path::known(format!("/local/domain/{domid}")), domid);
        if self.owned_by(domid) > 0 {
            self.bury_below(&Path::root(), domid);
        }
    }

    fn bury_below(&mut self, top: &Path, domid: DomId) {
        let Some(node) = self.node(top) else { return };
        let mut owned = Vec::new();
        let mut pending = vec![(top.clone(), node)];
        while let Some((path, node)) = pending.pop() {
            if node.guard.perms.owner == domid && !path.is_root() {
                owned.push(path);
            } else {
                pending.extend(node.children.iter().map(|(name, child)| (path.at(name), &**child)));
            }
        }
        for path in owned {
            if let Some(parent) = path.parent() {
                self.detach(&parent, &path);
            }
        }
    }

    /// Every node with its value and permissions, in order of paths.
    pub(super) fn dump(&self) -> Vec<(Path, Vec<u8>, Perms)> {
        let mut all = Vec::new();
        let mut pending = vec![(Path::root(), &*self.root)];
        while let Some((path, node)) = pending.pop() {
            pending.extend(node.children.iter().map(|(name, child)| (path.at(name), &**child)));
            all.push((path, node.value.to_vec(), Perms::clone(&node.guard.perms)));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

fn count(owned: &mut Map<DomId, u32>, domid: DomId, by: i32) {
    let now = owned.get(&domid).copied().unwrap_or(0).saturating_add_signed(by);
    if now == 0 {
        owned.remove(&domid);
    } else {
        owned.insert(domid, now);
    }
}
