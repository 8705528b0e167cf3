//! Installing Linux in a PV or PVH guest from a repository: the boot loader of a VM that is not installed yet.
//!
//! ```text
//!   keys ─► Install ─► Plan ─► [fetch | CD-ROM | dom0's files | the guest's disk] ─► kernel, ramdisk, arguments
//!   (record)            (pure)                                                       └─► Changes of the record
//! ```
//! A distribution has one round or two: the first boots the installer of the repository, the second what that has
//! installed. After its last round the VM's boot loader is `pygrub`.
//!
//! [`keys`] reads the record, [`plan`] says what a round does, [`changes`] what becomes of the record when it is done:
//! all of that is pure. [`load`] does a round with whatever [`Tools`] it is given; [`tools`] are the real ones, which do
//! everything that a guest or a server can influence in a jail. [`fixup`] replaces parts of vendors' ramdisks.
//! [`program`] is the command line.

pub mod changes;
pub mod fixup;
pub mod keys;
mod load;
mod plan;
pub mod program;
#[cfg(test)]
mod tests;
pub mod tools;

use crate::fetch;

pub use changes::{Changes, Record};
pub use keys::{Distro, Install, Repository};
pub use load::{Loaded, Tools, Which, load};

/// Why there is no kernel. The text begins with a word that programs know.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This distribution cannot be installed in this way.
    #[error("UNSUPPORTED_INSTALL_METHOD: {0}")]
    UnsupportedMethod(String),
    /// Something that belongs to the host's installation is not there.
    #[error("SUPPORT_PACKAGE_MISSING: {0}")]
    SupportMissing(String),
    /// The repository is not one, or does not give what it has.
    #[error("INVALID_SOURCE: {place}: {why}")]
    InvalidSource {
        /// What was asked for, without passwords.
        place: String,
        /// What came of it.
        why: String,
    },
    /// A file is larger than the VM's or the host's limit.
    #[error("LIMITS: {place} exceeds the limit of {limit} bytes")]
    Limits {
        /// Which file.
        place: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A key of the record cannot be.
    #[error("{key}: {why}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        why: String,
    },
    /// The guest's disk has not what the round needs.
    #[error("{0}")]
    Disk(crate::Error),
    /// It was not wanted any more.
    #[error("it was cancelled")]
    Cancelled,
    /// What nobody but a developer can do anything about.
    #[error("INTERNAL_ERROR: {0}")]
    Internal(String),
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Of a file that a repository does not give.
    fn source(place: impl std::fmt::Display, error: fetch::Error) -> Self {
        let place = place.to_string();
        match error {
            fetch::Error::Cancelled => Self::Cancelled,
            fetch::Error::TooLarge(limit) => Self::Limits { place, limit },
            other => Self::InvalidSource { place, why: other.to_string() },
        }
    }
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        match error {
            crate::Error::Stopped(_) => Self::Cancelled,
            other => Self::Disk(other),
        }
    }
}
