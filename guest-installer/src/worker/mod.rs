//! The process in which a guest's disk is read: the only one that sees what a guest wrote, and one that owns nothing.
//!
//! ```text
//!   caller (root)                                   worker (its own user, no files, no network)
//!   opens disk, outputs ──────── spawn ───────────► takes its descriptors, locks itself in
//!        │ ◄──────────────────── ready ────────────────┤
//!   empties its root ────────── request ──────────► reads the disk, writes kernel and ramdisk
//!        │ ◄──────────────────── answer ───────────────┤
//!   checks the answer, ends it, by the deadline at the latest
//! ```
//! The worker is the caller's own program, started again under the name [`NAME`]: a program that calls [`run()`] calls
//! [`crate::main_if_asked`] first thing. [`inside`] is the worker's half, [`outside`] the caller's, [`record`] what they say.

pub mod inside;
pub mod outside;
pub mod record;

use crate::boot::{Booted, Request};

pub use crate::process::{Jailing, Limit, Worker};
pub use outside::{Files, WALL, run};

/// The name a worker is started under, its `argv[0]`.
pub const NAME: &str = "boot-worker";

/// Number of the first of the worker's descriptors; those below are `/dev/null`.
const FIRST: i32 = 3;
/// The request comes from it.
const REQUEST: i32 = 3;
/// The answer goes to it.
const ANSWER: i32 = 4;
/// The guest's disk, read-only.
const DISK: i32 = 5;
/// The kernel goes to it.
const KERNEL: i32 = 6;
/// The ramdisk goes to it.
const RAMDISK: i32 = 7;
/// How many there are.
const COUNT: i32 = 5;

/// What the worker says once it has locked itself in.
const READY: u8 = b'R';

/// What is wanted of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The entries of its configuration.
    List,
    /// Which entry is taken, its files not read.
    Check,
    /// That entry's files.
    Deliver,
    /// The "disk" is a kernel's file: that kernel, checked, and unpacked if the request says so.
    Image,
}

/// What a worker is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// What for.
    pub wanted: Wanted,
    /// How.
    pub request: Request,
}

/// An entry in a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Its title, printable.
    pub title: String,
    /// The volume its kernel is on.
    pub volume: String,
    /// Its kernel; empty when it has none.
    pub kernel: String,
    /// The kernel's command line.
    pub args: String,
    /// Its ramdisks.
    pub ramdisks: Vec<String>,
}

/// What a worker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Wanted::List`].
    Entries(Vec<Listed>),
    /// To the others.
    Booted(Booted),
}
