//! Transactions: a snapshot to work on, and a log of what was asked and answered.
//!
//! ```text
//!   start ──► snapshot ──► requests on it, logged ──► end
//!                                                     │ nothing happened meanwhile: the snapshot is the store
//!                                                     │ it changed nothing: nothing to do
//!                                                     │ else the log is done again on the store:
//!                                                     │   all answers as before: that is the result
//!                                                     └   any other answer: EAGAIN, nothing done
//! ```
//!
//! A commit therefore has the effect of the whole transaction at one instant, and fails only when it read something
//! that has changed: parallel transactions that make different nodes in the same directories do not disturb each
//! other. (oxenstored does the same; the C daemon refuses on any common node.)

use super::limits::{MAX_PRIVILEGED_REQUESTS, MAX_TRANSACTION_BYTES, MAX_TRANSACTION_REQUESTS};
use super::tree::{Change, Tree, Who};
use crate::path::Path;
use crate::perms::Perms;
use crate::transport::Answer;
use crate::wire::{Errno, Reply};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// What is done to nodes; paths are absolute.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Read(Path),
    Directory(Path),
    DirectoryPart(Path, u32),
    GetPerms(Path),
    Write(Path, Arc<[u8]>),
    Mkdir(Path),
    Rm(Path),
    SetPerms(Path, Perms),
}

impl Op {
    /// Does it, and appends what changed to `changes`.
    pub(super) fn apply(&self, tree: &mut Tree, who: Who, changes: &mut Vec<Change>) -> Answer {
        let mut done = |change: Option<Change>| {
            changes.extend(change);
            Reply(b"OK\0".to_vec())
        };
        match self {
            Self::Read(path) => tree.read(who, path).map(Reply),
            Self::Directory(path) => tree.directory(who, path).map(Reply),
            Self::DirectoryPart(path, offset) => {
                let (generation, names) = tree.directory_part(who, path, *offset)?;
                Ok(Reply([format!("{generation}\0").as_bytes(), &names].concat()))
            }
            Self::GetPerms(path) => tree.get_perms(who, path).map(|perms| Reply(perms.to_wire())),
            Self::Write(path, value) => tree.write(who, path, value).map(|change| done(Some(change))),
            Self::Mkdir(path) => tree.mkdir(who, path).map(done),
            Self::Rm(path) => tree.rm(who, path).map(done),
            Self::SetPerms(path, perms) => tree.set_perms(who, path, perms).map(|change| done(Some(change))),
        }
    }

    fn weight(&self) -> usize {
        let (path, more) = match self {
            Self::Write(path, value) => (path, value.len()),
            Self::SetPerms(path, perms) => (path, perms.acl.len() * size_of::<(u16, u8)>()),
            Self::Read(path)
            | Self::Directory(path)
            | Self::DirectoryPart(path, _)
            | Self::GetPerms(path)
            | Self::Mkdir(path)
            | Self::Rm(path) => (path, 0),
        };
        path.as_str().len() + more + size_of::<Self>()
    }

    /// A number for the answer. Guests do not know the key, and so cannot make two answers look alike.
    fn digest(&self, key: &RandomState, answer: &Answer) -> u64 {
        match (self, answer) {
            // The generation in front is no property of the list.
            (Self::DirectoryPart(..), Ok(reply)) => {
                key.hash_one(reply.0.iter().position(|b| *b == 0).map(|cut| &reply.0[cut..]))
            }
            (_, Ok(reply)) => key.hash_one(&reply.0),
            (_, Err(errno)) => key.hash_one(errno),
        }
    }
}

/// One open transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    tree: Tree,
    /// The store's, when the snapshot was taken.
    generation: u64,
    log: Vec<(Op, u64)>,
    bytes: usize,
    changes: Vec<Change>,
}

impl Transaction {
    pub(super) fn start(tree: Tree, generation: u64) -> Self {
        Self { tree, generation, log: Vec::new(), bytes: 0, changes: Vec::new() }
    }

    pub(super) fn apply(&mut self, op: Op, who: Who, key: &RandomState) -> Answer {
        let most = if who.is_privileged() { MAX_PRIVILEGED_REQUESTS } else { MAX_TRANSACTION_REQUESTS };
        let bytes = self.bytes + op.weight();
        if self.log.len() >= most || !who.is_privileged() && bytes > MAX_TRANSACTION_BYTES {
            return Err(Errno::NoSpc);
        }
        let answer = op.apply(&mut self.tree, who, &mut self.changes);
        let digest = op.digest(key, &answer);
        self.bytes = bytes;
        self.log.push((op, digest));
        answer
    }

    /// The tree after the transaction, and what changed; EAGAIN when it would have been answered otherwise now.
    pub(super) fn commit(
        self,
        now: &Tree,
        generation: u64,
        who: Who,
        key: &RandomState,
    ) -> Result<(Tree, Vec<Change>), Errno> {
        if generation == self.generation {
            return Ok((self.tree, self.changes));
        }
        // Who only looked has seen one instant; nobody minds that it has passed.
        if self.changes.is_empty() {
            return Ok((now.clone(), self.changes));
        }
        let (mut tree, mut changes) = (now.clone(), Vec::new());
        for (op, digest) in self.log {
            let answer = op.apply(&mut tree, who, &mut changes);
            if op.digest(key, &answer) != digest {
                return Err(Errno::Again);
            }
        }
        Ok((tree, changes))
    }
}
