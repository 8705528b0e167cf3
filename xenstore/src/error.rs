//! What can go wrong between a request and its answer.

use crate::path::{Path, PathError};
use crate::transport::TransportError;
use crate::wire::{Errno, Request};

/// A request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon refused it.
    #[error("xenstore {op} {target}: {errno}")]
    Refused {
        /// The request's name.
        op: &'static str,
        /// The path or domain it was about.
        target: String,
        /// The daemon's reason.
        errno: Errno,
    },
    /// The way to the daemon failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Others changed the same nodes each time the transaction was tried.
    #[error(
        "xenstore transaction met a conflict {attempts} times in a row; something writes to the same nodes all the time"
    )]
    Conflict {
        /// How often it was tried.
        attempts: usize,
    },
    /// The daemon's answer makes no sense.
    #[error("xenstore {op} {target}: unusable answer: {reason}")]
    BadReply {
        /// The request's name.
        op: &'static str,
        /// The path or domain it was about.
        target: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Text was asked for and the value is none.
    #[error("the value of {path} is not UTF-8")]
    NotText {
        /// The node.
        path: Path,
    },
    /// A path is malformed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl Error {
    pub(crate) fn refused(request: &Request, errno: Errno) -> Self {
        Self::Refused { op: request.name(), target: request.target(), errno }
    }

    pub(crate) fn bad_reply(request: &Request, reason: impl std::fmt::Display) -> Self {
        Self::BadReply { op: request.name(), target: request.target(), reason: reason.to_string() }
    }

    /// The daemon's reason, if it was the daemon that refused.
    pub const fn errno(&self) -> Option<&Errno> {
        match self {
            Self::Refused { errno, .. } => Some(errno),
            _ => None,
        }
    }
}
