//! The xenstore store itself: nodes, permissions, transactions, watches and quotas, for simulators and tests.
//!
//! ```text
//!   StoreTransport (in process) ──┐
//!   serve(stream) (wire protocol) ├──► SharedStore ──► Store ──► Transaction ──► Tree (persistent)
//!   domain life: introduce, die ──┘    (one lock)        └─────► Watches ──► events per connection
//! ```
//!
//! [`Store`] has no I/O, no clock and no threads: requests go in, answers and events come out. What guests may take is
//! bounded by [`limits`].
//!
//! Where Xen's two daemons differ (`tests/store_differential.rs` runs both beside this), this is like the C one (4.17)
//! in its errors, quotas, permissions and events, and like oxenstored in its snapshots and conflicts:
//!
//! - a transaction sees the store as it was at its start, not each node as it was when first touched;
//! - it is refused only when one of its answers would be another by now, and never when it changed nothing.
//!
//! What is like neither:
//!
//! - directories are listed in order of names;
//! - no event tells of nodes that are removed because their owner died; `@releaseDomain` does;
//! - a guest's quota of bytes within one transaction is [`limits::MAX_TRANSACTION_BYTES`], and there is none in time:
//!   nothing slows a guest down that writes without end;
//! - INTRODUCE takes any frame and port: there are no rings.

pub mod limits;
mod map;
mod server;
mod shared;
mod transaction;
mod tree;
mod watches;

pub use server::{Listening, MAX_CONNECTIONS, Serving, listen, serve};
pub use shared::{SharedStore, StoreTransport};
pub use watches::{ConnectionId, WatchEvent};

use crate::path::Path;
use crate::perms::{DomId, Perms};
use crate::transport::Answer;
use crate::wire::{Errno, Reply, Request, TxId};
use std::collections::{BTreeMap, HashMap};
use std::hash::RandomState;
use transaction::{Op, Transaction};
use tree::{Change, Tree, Who};
use watches::{Pending, Watches};

/// The special watches that the protocol knows.
const INTRODUCED: &str = "@introduceDomain";
const RELEASED: &str = "@releaseDomain";

/// A connection: somebody who speaks for a domain.
struct Connection {
    domid: DomId,
    next_transaction: u32,
    transactions: HashMap<TxId, Transaction>,
}

/// A domain that has been introduced.
#[derive(Debug, Clone, Copy)]
struct Domain {
    gfn: u64,
    port: u32,
    target: Option<DomId>,
    /// Its shutdown was reported, and is not again until it is resumed.
    shut_down: bool,
}

/// See the module.
pub struct Store {
    tree: Tree,
    /// Counts changes of the tree.
    generation: u64,
    key: RandomState,
    connections: HashMap<ConnectionId, Connection>,
    next_connection: u64,
    domains: BTreeMap<DomId, Domain>,
    watches: Watches,
    /// Who may watch [`INTRODUCED`] and [`RELEASED`].
    special: BTreeMap<&'static str, Perms>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// A store as it is when the daemon has started.
    pub fn new() -> Self {
        let mut store = Self {
            tree: Tree::new(),
            generation: 0,
            key: RandomState::new(),
            connections: HashMap::new(),
            next_connection: 1,
            domains: BTreeMap::new(),
            watches: Watches::default(),
            special: [INTRODUCED, RELEASED].map(|name| (name, Perms::no())).into(),
        };
        // What both daemons begin with; tools look for it to see that one runs.
        let made = store.tree.mkdir(Who::of(DomId::DOM0), &Path::known("/tool/xenstored"));
        debug_assert!(made.is_ok(), "an empty store takes a node");
        store
    }

    /// A new connection on behalf of `domid`, for as long as [`Store::disconnect`] or the domain's end.
    pub fn connect(&mut self, domid: DomId) -> ConnectionId {
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        self.connections.insert(id, Connection { domid, next_transaction: 1, transactions: HashMap::new() });
        self.watches.pending.insert(id, Pending::default());
        id
    }

    /// Ends a connection with its watches and transactions.
    pub fn disconnect(&mut self, connection: ConnectionId) {
        self.connections.remove(&connection);
        self.watches.reset(connection);
        if let Some(pending) = self.watches.pending.remove(&connection) {
            pending.wake();
        }
    }

    /// Whether the connection still stands.
    pub fn is_connected(&self, connection: ConnectionId) -> bool {
        self.connections.contains_key(&connection)
    }

    /// Carries a request out. None when the connection has ended.
    pub fn request(&mut self, connection: ConnectionId, tx_id: TxId, request: &Request) -> Option<Answer> {
        let domid = self.connections.get(&connection)?.domid;
        let who = Who { domid, target: self.domains.get(&domid).and_then(|d| d.target) };
        Some(self.answer(connection, who, tx_id, request))
    }

    /// The connection's next event.
    pub fn take_event(&mut self, connection: ConnectionId) -> Option<WatchEvent> {
        self.watches.pending.get_mut(&connection)?.pop()
    }

    /// How many events wait for the connection.
    pub fn events_waiting(&self, connection: ConnectionId) -> usize {
        self.watches.pending.get(&connection).map_or(0, Pending::len)
    }

    /// Calls `wake` whenever the connection gets an event after having none, and when it ends. It must neither block nor call back.
    pub fn wake_with(&mut self, connection: ConnectionId, wake: impl Fn() + Send + 'static) {
        if let Some(pending) = self.watches.pending.get_mut(&connection) {
            pending.wake_with(Box::new(wake));
        }
    }

    /// Forgets the events that wait for the connection.
    pub fn drop_events(&mut self, connection: ConnectionId) {
        if let Some(pending) = self.watches.pending.get_mut(&connection) {
            pending.clear();
        }
    }

    /// A domain has shut down: reported once, until it is resumed. Of domains that were not introduced nobody hears.
    pub fn domain_shut_down(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get_mut(&domid).filter(|d| !d.shut_down) {
            domain.shut_down = true;
            self.fire_special(RELEASED);
        }
    }

    /// A domain is gone: its connections end, its nodes are removed, what was granted to it is granted to nobody.
    pub fn domain_died(&mut self, domid: DomId) {
        let ended: Vec<_> =
            self.connections.iter().filter(|(_, c)| c.domid == domid).map(|(id, _)| *id).collect();
        for id in ended {
            self.disconnect(id);
        }
        for domain in self.domains.values_mut().filter(|d| d.target == Some(domid)) {
            domain.target = None;
        }
        self.tree.bury(domid);
        self.generation += 1;
        if self.domains.remove(&domid).is_some() {
            self.fire_special(RELEASED);
        }
    }

    /// Every node with its value and permissions, in order of paths.
    pub fn dump(&self) -> Vec<(Path, Vec<u8>, Perms)> {
        self.tree.dump()
    }

    /// How many nodes the domain owns.
    pub fn nodes_of(&self, domid: DomId) -> u32 {
        self.tree.owned_by(domid)
    }

    fn answer(&mut self, connection: ConnectionId, who: Who, tx_id: TxId, request: &Request) -> Answer {
        let absolute = |path: &Path| absolute(who, path);
        let op = match request {
            Request::Read(path) => Op::Read(absolute(path)?),
            Request::Directory(path) => Op::Directory(absolute(path)?),
            Request::DirectoryPart { path, offset } => Op::DirectoryPart(absolute(path)?, *offset),
            Request::Write { path, value } => Op::Write(absolute(path)?, value.as_slice().into()),
            Request::Mkdir(path) => Op::Mkdir(absolute(path)?),
            Request::Rm(path) => Op::Rm(absolute(path)?),
            Request::GetPerms(path) => match self.special.get(path.as_str()) {
                Some(perms) => return special_perms(who, perms),
                None => Op::GetPerms(absolute(path)?),
            },
            Request::SetPerms { path, perms } => match self.special.get_mut(path.as_str()) {
                Some(special) => return set_special_perms(who, special, perms),
                None => Op::SetPerms(absolute(path)?, perms.clone()),
            },
            Request::TransactionStart => return self.start(connection, who, tx_id),
            Request::TransactionEnd { commit } => return self.end(connection, who, tx_id, *commit),
            Request::Watch { path, token } => return self.watch(connection, who, path, token),
            Request::Unwatch { path, token } => return self.unwatch(connection, who, path, token),
            Request::ResetWatches => {
                self.watches.reset(connection);
                if let Some(connection) = self.connections.get_mut(&connection) {
                    connection.transactions.clear();
                }
                return Ok(ok());
            }
            Request::GetDomainPath(domid) => {
                return Ok(Reply(format!("/local/domain/{domid}\0").into_bytes()));
            }
            _ if !who.is_privileged() => return Err(Errno::Acces),
            request => return self.manage(request),
        };
        self.apply(connection, who, tx_id, op)
    }

    fn apply(&mut self, connection: ConnectionId, who: Who, tx_id: TxId, op: Op) -> Answer {
        if tx_id != TxId::NONE {
            let open = self.connections.get_mut(&connection).and_then(|c| c.transactions.get_mut(&tx_id));
            return open.ok_or(Errno::NoEnt)?.apply(op, who, &self.key);
        }
        let mut changes = Vec::new();
        let answer = op.apply(&mut self.tree, who, &mut changes);
        self.publish(&changes);
        answer
    }

    fn publish(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        self.generation += 1;
        let (connections, domains) = (&self.connections, &self.domains);
        let who = |id: ConnectionId| {
            let domid = connections.get(&id)?.domid;
            Some(Who { domid, target: domains.get(&domid).and_then(|d| d.target) })
        };
        for change in changes {
            self.watches.fire(change, &self.tree, who);
        }
    }

    fn start(&mut self, connection: ConnectionId, who: Who, tx_id: TxId) -> Answer {
        if tx_id != TxId::NONE {
            return Err(Errno::Busy);
        }
        let connection = self.connections.get_mut(&connection).ok_or(Errno::Io)?;
        if !who.is_privileged() && connection.transactions.len() >= limits::MAX_TRANSACTIONS {
            return Err(Errno::NoSpc);
        }
        while connection.next_transaction == 0
            || connection.transactions.contains_key(&TxId(connection.next_transaction))
        {
            connection.next_transaction = connection.next_transaction.wrapping_add(1);
        }
        let id = connection.next_transaction;
        connection.next_transaction = id.wrapping_add(1);
        connection.transactions.insert(TxId(id), Transaction::start(self.tree.clone(), self.generation));
        Ok(Reply(format!("{id}\0").into_bytes()))
    }

    fn end(&mut self, connection: ConnectionId, who: Who, tx_id: TxId, commit: bool) -> Answer {
        let open = self.connections.get_mut(&connection).and_then(|c| c.transactions.remove(&tx_id));
        let transaction = open.ok_or(Errno::NoEnt)?;
        if commit {
            let (tree, changes) = transaction.commit(&self.tree, self.generation, who, &self.key)?;
            self.tree = tree;
            self.publish(&changes);
        }
        Ok(ok())
    }

    fn watch(&mut self, connection: ConnectionId, who: Who, path: &Path, token: &[u8]) -> Answer {
        if !who.is_privileged() && self.watches.count(connection) >= limits::MAX_WATCHES {
            return Err(Errno::NoSpc);
        }
        let (watched, home) = watched(who, path)?;
        // An event with this token must fit a message whatever its path (XSA-324).
        let longest = crate::path::MAX_ABSOLUTE + token.len() + 2;
        if longest > crate::wire::MAX_PAYLOAD {
            return Err(Errno::TooBig);
        }
        if self.watches.add(connection, &watched, home, token) { Ok(ok()) } else { Err(Errno::Exist) }
    }

    fn unwatch(&mut self, connection: ConnectionId, who: Who, path: &Path, token: &[u8]) -> Answer {
        let (watched, _) = watched(who, path)?;
        if self.watches.remove(connection, &watched, token) { Ok(ok()) } else { Err(Errno::NoEnt) }
    }

    /// What only dom0 may ask.
    fn manage(&mut self, request: &Request) -> Answer {
        match request {
            Request::Introduce { domid, gfn, port } => self.introduce(*domid, *gfn, *port),
            Request::Release(domid) => {
                self.domains.get(domid).ok_or(Errno::NoEnt)?;
                self.domain_died(*domid);
                Ok(ok())
            }
            Request::IsDomainIntroduced(domid) => {
                let known = *domid == DomId::DOM0 || self.domains.contains_key(domid);
                Ok(Reply(if known { b"T\0".to_vec() } else { b"F\0".to_vec() }))
            }
            Request::Resume(domid) => {
                self.domains.get_mut(domid).ok_or(Errno::NoEnt)?.shut_down = false;
                Ok(ok())
            }
            Request::SetTarget { domid, target } => {
                if !self.domains.contains_key(target) {
                    return Err(Errno::NoEnt);
                }
                self.domains.get_mut(domid).ok_or(Errno::NoEnt)?.target = Some(*target);
                Ok(ok())
            }
            Request::Control(args) => self.control(args),
            _ => Err(Errno::NoSys),
        }
    }

    fn introduce(&mut self, domid: DomId, gfn: u64, port: u32) -> Answer {
        if domid == DomId::DOM0 || port == 0 {
            return Err(Errno::Inval);
        }
        if let Some(domain) = self.domains.get_mut(&domid) {
            if domain.gfn != gfn {
                return Err(Errno::Inval);
            }
            domain.port = port;
            return Ok(ok());
        }
        self.domains.insert(domid, Domain { gfn, port, target: None, shut_down: false });
        self.fire_special(INTRODUCED);
        Ok(ok())
    }

    /// The two commands that make sense without rings and logs.
    fn control(&self, args: &[Vec<u8>]) -> Answer {
        match args.first().map(Vec::as_slice) {
            Some(b"help") => Ok(Reply(b"help\nquota\0".to_vec())),
            Some(b"quota") => {
                let domid = args.get(1).and_then(|a| std::str::from_utf8(a).ok()?.parse().ok()).map(DomId);
                let used = domid.map(|d| format!("used nodes: {}\n", self.nodes_of(d))).unwrap_or_default();
                let (nodes, watches) = (limits::MAX_NODES, limits::MAX_WATCHES);
                let (transactions, size) = (limits::MAX_TRANSACTIONS, limits::MAX_NODE_SIZE);
                let text = format!(
                    "nodes: {nodes}\nwatches: {watches}\ntransactions: {transactions}\nnode-size: {size}\n{used}\0"
                );
                Ok(Reply(text.into_bytes()))
            }
            _ => Err(Errno::Inval),
        }
    }

    fn fire_special(&mut self, name: &'static str) {
        let (connections, perms) = (&self.connections, self.special.get(name));
        let may_know = |id: ConnectionId| {
            let domid = connections.get(&id).map(|c| c.domid);
            domid.zip(perms).is_some_and(|(domid, perms)| perms.access_of(domid).may_read())
        };
        self.watches.fire_special(&Path::known(name), may_know);
    }
}

fn ok() -> Reply {
    Reply(b"OK\0".to_vec())
}

/// The path from the root on. Special ones name no node.
fn absolute(who: Who, path: &Path) -> Result<Path, Errno> {
    if path.as_str().starts_with('@') {
        return Err(Errno::Inval);
    }
    let whole = if path.is_absolute() {
        path.clone()
    } else {
        home(who.domid).join(path.as_str()).map_err(|_| Errno::Inval)?
    };
    if !who.is_privileged() && counted(&whole) > limits::MAX_PATH {
        return Err(Errno::Inval);
    }
    Ok(whole)
}

/// What counts against [`limits::MAX_PATH`]: a domain's own home is not part of it.
fn counted(path: &Path) -> usize {
    let mut segments = path.segments();
    if segments.next() == Some("local") && segments.next() == Some("domain") && segments.next().is_some() {
        return segments.map(|name| name.len() + 1).sum();
    }
    path.as_str().len()
}

/// The path a watch is for, and the home directory if it was named relative to that.
fn watched(who: Who, path: &Path) -> Result<(Path, Option<Path>), Errno> {
    if path.as_str().starts_with('@') {
        return Ok((path.clone(), None));
    }
    Ok((absolute(who, path)?, (!path.is_absolute()).then(|| home(who.domid))))
}

fn home(domid: DomId) -> Path {
    Path::known(format!("/local/domain/{domid}"))
}

fn special_perms(who: Who, perms: &Perms) -> Answer {
    if !perms.access_of(who.domid).may_read() {
        return Err(Errno::Acces);
    }
    Ok(Reply(perms.to_wire()))
}

fn set_special_perms(who: Who, special: &mut Perms, perms: &Perms) -> Answer {
    if !who.is_privileged() {
        return Err(Errno::Acces);
    }
    *special = perms.clone();
    Ok(ok())
}

#[cfg(test)]
mod tests;
