//! Changes to the store, gathered first and made together.
//!
//! Everything a layout writes is one of these: an ordered list that a transaction sends in one go, so that its
//! length costs bytes and not round trips.

use crate::path::Path;
use crate::perms::Perms;
use std::fmt;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Removes a node and all below it; one that is not there is fine.
    Rm(Path),
    /// Removes a node if it has no children; one that is not there is fine.
    Prune(Path),
    /// Removes a node and all below it, with its parent if that has no other children; one that is not there is fine. In one
    /// removal where that is so: watches on the node's directory or above hear of the directory only.
    Uproot(Path),
    /// Creates a node with an empty value unless it is there.
    Mkdir(Path),
    /// Sets a value; creates the node, with its parent's permissions, unless it is there.
    Write {
        /// The node.
        path: Path,
        /// Its value.
        value: Vec<u8>,
    },
    /// Replaces permissions.
    SetPerms {
        /// The node.
        path: Path,
        /// Its permissions.
        perms: Perms,
    },
}

/// An ordered list of changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    steps: Vec<Step>,
}

impl Batch {
    /// No change.
    pub const fn new() -> Self {
        Self { steps: Vec::new() }
    }

    /// Removes `path` and all below it.
    pub fn rm(&mut self, path: Path) -> &mut Self {
        self.push(Step::Rm(path))
    }

    /// Removes `path` if nothing is below it.
    pub fn prune(&mut self, path: Path) -> &mut Self {
        self.push(Step::Prune(path))
    }

    /// Removes `path` and all below it, with its parent if nothing else is in that.
    pub fn uproot(&mut self, path: Path) -> &mut Self {
        self.push(Step::Uproot(path))
    }

    /// Creates `path` with its parent's permissions.
    pub fn mkdir(&mut self, path: Path) -> &mut Self {
        self.push(Step::Mkdir(path))
    }

    /// Creates `path` with `perms`.
    pub fn mkdir_with(&mut self, path: Path, perms: Perms) -> &mut Self {
        self.mkdir(path.clone()).set_perms(path, perms)
    }

    /// Sets the value of `path`; a new node gets its parent's permissions.
    pub fn write(&mut self, path: Path, value: impl Into<Vec<u8>>) -> &mut Self {
        self.push(Step::Write { path, value: value.into() })
    }

    /// Sets the value and the permissions of `path`.
    pub fn write_with(&mut self, path: Path, value: impl Into<Vec<u8>>, perms: Perms) -> &mut Self {
        self.write(path.clone(), value).set_perms(path, perms)
    }

    /// Replaces the permissions of `path`.
    pub fn set_perms(&mut self, path: Path, perms: Perms) -> &mut Self {
        self.push(Step::SetPerms { path, perms })
    }

    /// Appends one change.
    pub fn push(&mut self, step: Step) -> &mut Self {
        self.steps.push(step);
        self
    }

    /// Appends all changes of `other`.
    pub fn append(&mut self, other: Self) -> &mut Self {
        self.steps.extend(other.steps);
        self
    }

    /// The changes in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// One line per change, for logs, plans and golden files.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rm(path) => write!(f, "rm {path}"),
            Self::Prune(path) => write!(f, "prune {path}"),
            Self::Uproot(path) => write!(f, "uproot {path}"),
            Self::Mkdir(path) => write!(f, "mkdir {path}"),
            Self::Write { path, value } => write!(f, "write {path} = \"{}\"", value.escape_ascii()),
            Self::SetPerms { path, perms } => write!(f, "perms {path} ({perms})"),
        }
    }
}
