//! The journal: every resource of the host that a killed daemon could leave behind is written down before it is taken
//! and struck off after it is gone.
//!
//! ```text
//!   take(vm, resource) ──► the resource is made ──► … ──► it is given back ──► strike
//!          │ file journal/<n>                                                    │ file removed
//!          └── daemon killed anywhere here: the next one reads the file, ────────┘
//!              looks at the resource, keeps it if its domain lives, else gives it back
//! ```
//!
//! An entry is one small file, because entries come and go independently. It is flushed to the disk only when its
//! resource can outlive the host ([`Resource::lasting`]): a process or a loop device ends with the kernel, and until
//! then the kernel also has the file, whatever becomes of this process. So an entry costs some tens of microseconds,
//! on any file system. Entries of an earlier boot are struck off unless their resource may be there still.
//!
//! A process is known only once it exists. Whoever starts one lets it wait for a word (on a pipe, or before its jail is
//! complete) until its entry is written; a daemon killed before that closes the pipe and the process ends.

mod resource;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::files::{Files, Lasting, StateError};
use super::record::{decode, encode};
use crate::api::Error;

pub use resource::{DiskServerId, LoopId, ProcessId, Resource, StorageId};

/// Most entries. A VM has a handful; each is a file to read at the next start, which this many make some seconds.
pub const MAX_ENTRIES: usize = 200_000;

const DIR: &str = "journal";

/// Changes with every boot of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

record! {
    /// An entry as it is on disk.
    pub struct Line as "Journal.entry" derive(Eq) {
        /// The VM it was taken for.
        vm: String,
        /// The boot of the host in which it was taken.
        boot: String,
        /// What was taken.
        resource: Resource,
    }
}

/// An entry's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(u64);

/// The journal of one state directory.
pub struct Journal {
    files: Files,
    boot: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    /// By VM, so that a VM's few are found among all.
    entries: BTreeMap<String, BTreeMap<EntryId, Resource>>,
    count: usize,
    damaged: usize,
}

impl Journal {
    /// Reads the journal below `root`. Entries that cannot be read are logged, counted, and left for a person to see.
    ///
    /// # Errors
    /// [`StateError`] when the directory cannot be listed.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Self::open_in_boot(root, boot)
    }

    fn open_in_boot(root: &Path, boot: String) -> Result<Self, StateError> {
        let files = Files::open(root)?;
        let mut inner = Inner::default();
        for name in files.list(DIR)? {
            match read(&files, &name) {
                Ok((id, line)) if line.boot != boot && line.resource.lasting() == Lasting::Process => {
                    tracing::debug!(entry = id.0, vm = %line.vm, "{} ended with an earlier boot", line.resource);
                    files.remove(DIR, &name, Lasting::Process)?;
                }
                Ok((id, line)) => inner.insert(id, line.vm, line.resource),
                Err(error) => {
                    inner.damaged += 1;
                    tracing::error!(%error, "a journal entry is damaged: what it stands for may be left behind");
                }
            }
        }
        Ok(Self { files, boot, inner: Mutex::new(inner) })
    }

    /// Writes down that `resource` is about to be taken for `vm`.
    ///
    /// # Errors
    /// `Internal_error` when the journal is full or the disk refuses: the resource must not be taken then.
    pub fn take(&self, vm: &str, resource: Resource) -> Result<EntryId, Error> {
        let id = {
            let mut inner = self.lock();
            if inner.count >= MAX_ENTRIES {
                return Err(Error::internal(format!(
                    "the journal has {MAX_ENTRIES} entries: {resource} not taken"
                )));
            }
            let id = EntryId(inner.next);
            inner.insert(id, vm.to_owned(), resource.clone());
            id
        };
        self.write(id, vm, resource).inspect_err(|_| drop(self.lock().remove(vm, id)))?;
        Ok(id)
    }

    /// Replaces what an entry says, as more becomes known of its resource.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses; the old entry is then still there.
    pub fn amend(&self, vm: &str, id: EntryId, resource: Resource) -> Result<(), Error> {
        self.write(id, vm, resource.clone())?;
        if let Some(known) = self.lock().entries.get_mut(vm).and_then(|entries| entries.get_mut(&id)) {
            *known = resource;
        }
        Ok(())
    }

    /// The resource is gone. An entry that is not there is not an error.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses; the entry stays, and the resource is looked for again at the next start.
    pub fn strike(&self, vm: &str, id: EntryId) -> Result<(), Error> {
        let Some(resource) = self.of(vm).into_iter().find(|(known, _)| *known == id) else { return Ok(()) };
        self.files.remove(DIR, &id.0.to_string(), resource.1.lasting())?;
        self.lock().remove(vm, id);
        Ok(())
    }

    /// What a VM has, oldest first.
    pub fn of(&self, vm: &str) -> Vec<(EntryId, Resource)> {
        let inner = self.lock();
        let entries = inner.entries.get(vm).into_iter().flatten();
        entries.map(|(id, resource)| (*id, resource.clone())).collect()
    }

    /// The processes of a role that a VM has, oldest first.
    pub fn processes(&self, vm: &str, role: &str) -> Vec<(EntryId, ProcessId)> {
        let process = |(entry, resource)| match resource {
            Resource::Process(process) if process.role == role => Some((entry, process)),
            _ => None,
        };
        self.of(vm).into_iter().filter_map(process).collect()
    }

    /// The VMs that have something.
    pub fn vms(&self) -> Vec<String> {
        self.lock().entries.keys().cloned().collect()
    }

    /// How many entries there are, and how many of the files could not be read.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.count, inner.damaged)
    }

    fn write(&self, id: EntryId, vm: &str, resource: Resource) -> Result<(), Error> {
        let lasting = resource.lasting();
        let line = Line { vm: vm.to_owned(), boot: self.boot.clone(), resource };
        Ok(self.files.write(DIR, &id.0.to_string(), &encode(&line, None), lasting)?)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn insert(&mut self, id: EntryId, vm: String, resource: Resource) {
        self.next = self.next.max(id.0.saturating_add(1));
        self.entries.entry(vm).or_default().insert(id, resource);
        self.count += 1;
    }

    fn remove(&mut self, vm: &str, id: EntryId) -> Option<Resource> {
        let entries = self.entries.get_mut(vm)?;
        let removed = entries.remove(&id)?;
        if entries.is_empty() {
            self.entries.remove(vm);
        }
        self.count -= 1;
        Some(removed)
    }
}

fn read(files: &Files, name: &str) -> Result<(EntryId, Line), Error> {
    let strange = || Error::internal(format!("{} is no journal entry", files.path(DIR, name).display()));
    let id = name.parse().map(EntryId).map_err(|_| strange())?;
    let bytes = files.read(DIR, name)?.ok_or_else(strange)?;
    Ok((id, decode(&files.path(DIR, name), &bytes)?))
}

#[cfg(test)]
mod tests;
