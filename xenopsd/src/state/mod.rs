//! What must survive the daemon, one JSON file per object, where and how the model backend keeps them and other
//! programs (hotplug scripts, support tools) read them:
//!
//! | file | what |
//! |---|---|
//! | `VM/<uuid>/config` | a VM's configuration |
//! | `VM/<uuid>/vbd.<device>`, `vif.<index>`, `vgpu.<index>`, `vusb.<device>` | its devices |
//! | `PCI/<uuid>/pci.<address>` | its PCI devices |
//! | `extra/<uuid>` | what the daemon remembers of it ([`VmExtra`]) |
//! | `round/<uuid>` | its records before and after a round of its installation, while that is started |
//! | `interface/<vifD.N, tapD.N>` | which VIF a network device of dom0 belongs to |
//! | `journal/<n>` | a resource of the host that is about to be taken, or is taken ([`journal`]) |
//!
//! A file is replaced whole or not at all, so reading takes no lock; changes of one VM are ordered by a lock that few
//! other VMs share.

mod class;
mod extra;
mod files;
pub mod journal;
mod record;
mod round;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::value::{FromValue, ToValue, Value};
use crate::api::{DeviceId, DynamicId, Error, Vm};
use crate::rpc::json;

pub use class::{CLASSES, DeviceClass, DeviceRecord};
use extra::Stored;
pub use extra::{VERSION as EXTRA_VERSION, VmExtra};
pub use files::{Files, Lasting, StateError};
pub use record::{FORMAT, RecordError, decode, encode};

/// Most VMs kept. Xen itself has 32752 usable domain ids; far fewer fit any host.
pub const MAX_VMS: usize = 32_752;

/// Most devices of one VM in each directory: beyond what any guest can use, below what would slow a start noticeably.
pub const MAX_DEVICES: usize = 512;

/// How many locks the VMs share. Each is held while a record is flushed, which a slow disk makes long.
const LOCKS: usize = 64;

const VMS: &str = "VM";
const CONFIG: &str = "config";
const EXTRA: &str = "extra";
const SCREENS: &str = "screens";
const INTERFACES: &str = "interface";

record! {
    /// Which VIF a network device of dom0 belongs to.
    pub struct Interface as "Interface.t" derive(Eq) {
        /// The network device.
        name: String,
        /// The VIF.
        vif: DeviceId,
    }
}

/// All records.
pub struct Records {
    files: Files,
    locks: [Mutex<()>; LOCKS],
    vms: AtomicUsize,
}

impl Records {
    /// Opens (creating it if needed) the database below `root`.
    ///
    /// # Errors
    /// [`StateError`] when the directory cannot be created or listed.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let files = Files::open(root)?;
        let vms = AtomicUsize::new(files.list(VMS)?.len());
        Ok(Self { files, locks: [const { Mutex::new(()) }; LOCKS], vms })
    }

    /// Where they are.
    pub fn root(&self) -> &Path {
        self.files.root()
    }

    /// The file in which the screen of a VM's text console is kept. What is in it was written by a process that is assumed
    /// hostile.
    pub fn screen(&self, vm: &str) -> PathBuf {
        self.root().join(SCREENS).join(vm)
    }

    /// Stores a VM, replacing one of the same id, as the contract has it.
    ///
    /// # Errors
    /// `Internal_error` when `id` is not a UUID, the table is full, or the disk refuses.
    pub fn put_vm(&self, vm: &Vm) -> Result<(), Error> {
        let dir = dir(VMS, &vm.id)?;
        let _lock = self.lock(&vm.id);
        let new = !self.files.exists(&dir, CONFIG);
        if new && self.vms.load(Ordering::Relaxed) >= MAX_VMS {
            return Err(Error::internal(format!("{MAX_VMS} VMs are stored already; remove some")));
        }
        self.write(&dir, CONFIG, vm)?;
        if new {
            self.vms.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Changes the VM `id`.
    ///
    /// # Errors
    /// As [`Self::vm`], and `Internal_error` when the disk refuses; nothing is changed then.
    pub fn update_vm(&self, id: &str, change: impl FnOnce(&mut Vm)) -> Result<(), Error> {
        let dir = dir(VMS, id)?;
        let _lock = self.lock(id);
        let mut vm = self.vm(id)?;
        change(&mut vm);
        self.write(&dir, CONFIG, &vm)
    }

    /// The VM `id`.
    ///
    /// # Errors
    /// `Does_not_exist("VM", "<id>/config")`, or `Internal_error` when its record cannot be read.
    pub fn vm(&self, id: &str) -> Result<Vm, Error> {
        let missing = || Error::does_not_exist("VM", format!("{id}/{CONFIG}"));
        let dir = dir(VMS, id).map_err(|_| missing())?;
        self.read(&dir, CONFIG)?.ok_or_else(missing)
    }

    /// Whether the VM `id` is stored.
    pub fn has_vm(&self, id: &str) -> bool {
        dir(VMS, id).is_ok_and(|dir| self.files.exists(&dir, CONFIG))
    }

    /// That the VM `id` is stored.
    ///
    /// # Errors
    /// `Does_not_exist("VM", "<id>/config")`, or `Internal_error` when the state directory is gone.
    pub fn need_vm(&self, id: &str) -> Result<(), Error> {
        if self.has_vm(id) { Ok(()) } else { self.vm(id).map(drop) }
    }

    /// The ids of all VMs, in order; also of those whose records cannot be read.
    ///
    /// # Errors
    /// `Internal_error` when the directory cannot be listed.
    pub fn vm_ids(&self) -> Result<Vec<String>, Error> {
        Ok(self.files.list(VMS)?)
    }

    /// Every VM, by id. One whose record cannot be read is logged and left out, so that it harms no other.
    ///
    /// # Errors
    /// `Internal_error` when the directory cannot be listed.
    pub fn vms(&self) -> Result<Vec<Vm>, Error> {
        let mut all = Vec::new();
        for id in self.vm_ids()? {
            match self.read::<Vm>(&format!("{VMS}/{id}"), CONFIG) {
                Ok(Some(vm)) => all.push(vm),
                Ok(None) => {}
                Err(error) => tracing::error!(vm = %id, %error, "unreadable VM record left out"),
            }
        }
        Ok(all)
    }

    /// Removes a VM with all its devices and what is remembered of it. Its records need not be readable.
    ///
    /// # Errors
    /// `Does_not_exist("VM", "VM/<id>/config")`.
    pub fn remove_vm(&self, id: &str) -> Result<(), Error> {
        let missing = || Error::does_not_exist("VM", format!("{VMS}/{id}/{CONFIG}"));
        let home = dir(VMS, id).map_err(|_| missing())?;
        let _lock = self.lock(id);
        if !self.files.exists(&home, CONFIG) {
            return Err(missing());
        }
        // The VM's own record goes first: devices without a VM are never looked at, a VM without devices would be.
        self.files.remove(&home, CONFIG, Lasting::Host)?;
        self.vms.fetch_sub(1, Ordering::Relaxed);
        self.files.remove(EXTRA, id, Lasting::Host)?;
        self.files.remove(SCREENS, id, Lasting::Host)?;
        self.files.remove(round::ROUNDS, id, Lasting::Host)?;
        let mut trees: Vec<_> = CLASSES.iter().map(|class| class.tree).collect();
        trees.sort_unstable();
        trees.dedup();
        for tree in trees {
            self.files.clear(&dir(tree, id)?)?;
        }
        Ok(())
    }

    /// Stores a device of an existing VM, replacing one of the same id.
    ///
    /// # Errors
    /// `Does_not_exist("VM", …)` when its VM is not stored; `Internal_error` for an unusable device name.
    pub fn put<D: DeviceRecord>(&self, device: &D) -> Result<(), Error> {
        let DeviceId { vm, device: name } = device.id();
        let home = dir(D::CLASS.tree, vm)?;
        let file = D::CLASS.file(name)?;
        let _lock = self.lock(vm);
        if !self.has_vm(vm) {
            return Err(Error::does_not_exist("VM", vm));
        }
        if !self.files.exists(&home, &file) && self.files.list(&home)?.len() > MAX_DEVICES {
            return Err(Error::internal(format!("VM {vm} has {MAX_DEVICES} devices already; remove some")));
        }
        self.write(&home, &file, device)
    }

    /// One device.
    ///
    /// # Errors
    /// `Does_not_exist`, or `Internal_error` when its record cannot be read.
    pub fn device<D: DeviceRecord>(&self, id: &DeviceId) -> Result<D, Error> {
        let class = D::CLASS;
        let missing =
            || Error::does_not_exist(class.name, format!("{}/{}{}", id.vm, class.prefix, id.device));
        let home = dir(class.tree, &id.vm).map_err(|_| missing())?;
        let file = class.file(&id.device).map_err(|_| missing())?;
        self.read(&home, &file)?.ok_or_else(missing)
    }

    /// The names of a VM's devices of one class, also of those whose records cannot be read. None for an unknown VM.
    ///
    /// # Errors
    /// `Internal_error` when the directory cannot be listed.
    pub fn device_names<D: DeviceRecord>(&self, vm: &str) -> Result<Vec<String>, Error> {
        let class = D::CLASS;
        let Ok(home) = dir(class.tree, vm) else { return Ok(Vec::new()) };
        let names = self.files.list(&home)?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(class.prefix)).map(str::to_owned).collect())
    }

    /// A VM's devices of one class, by position. None for an unknown VM.
    ///
    /// # Errors
    /// `Internal_error` when the directory cannot be listed or a record cannot be read: a VM must not be started
    /// without one of its devices.
    pub fn devices<D: DeviceRecord>(&self, vm: &str) -> Result<Vec<D>, Error> {
        let class = D::CLASS;
        let Ok(home) = dir(class.tree, vm) else { return Ok(Vec::new()) };
        let mut all: Vec<D> = Vec::new();
        for name in self.device_names::<D>(vm)? {
            all.extend(self.read::<D>(&home, &class.file(&name)?)?);
        }
        all.sort_by(|a, b| (a.position(), &a.id().device).cmp(&(b.position(), &b.id().device)));
        Ok(all)
    }

    /// Removes a device's record, which need not be readable.
    ///
    /// # Errors
    /// `Does_not_exist`.
    pub fn remove<D: DeviceRecord>(&self, id: &DeviceId) -> Result<(), Error> {
        let class = D::CLASS;
        let path = format!("{}/{}/{}{}", class.tree, id.vm, class.prefix, id.device);
        let missing = || Error::does_not_exist(class.name, &path);
        let home = dir(class.tree, &id.vm).map_err(|_| missing())?;
        let file = class.file(&id.device).map_err(|_| missing())?;
        let _lock = self.lock(&id.vm);
        if !self.files.exists(&home, &file) {
            return Err(missing());
        }
        Ok(self.files.remove(&home, &file, Lasting::Host)?)
    }

    /// A VM and its devices as clients are told of them, read from the names of files alone.
    pub fn objects(&self, vm: &str) -> Vec<DynamicId> {
        let mut all = Vec::new();
        let mut listed: Vec<(&str, Vec<String>)> = Vec::new();
        for class in CLASSES {
            if !listed.iter().any(|(tree, _)| *tree == class.tree) {
                let names = dir(class.tree, vm).map(|dir| self.files.list(&dir).unwrap_or_default());
                listed.push((class.tree, names.unwrap_or_default()));
            }
            let names = listed.iter().filter(|(tree, _)| *tree == class.tree).flat_map(|(_, names)| names);
            all.extend(
                names
                    .filter_map(|name| name.strip_prefix(class.prefix))
                    .map(|device| (class.event)(DeviceId::new(vm, device))),
            );
        }
        all.push(DynamicId::Vm(vm.to_owned()));
        all
    }

    /// What is remembered of a VM; the default when nothing is.
    ///
    /// # Errors
    /// `Internal_error` when the record cannot be read.
    pub fn extra(&self, vm: &str) -> Result<VmExtra, Error> {
        dir(EXTRA, vm)?;
        Ok(self.read::<Stored>(EXTRA, vm)?.unwrap_or_default().persistent)
    }

    /// Changes what is remembered of a VM, and writes it if that changed it.
    ///
    /// # Errors
    /// `Internal_error` when the record cannot be read or written; nothing is changed then.
    pub fn update_extra(&self, vm: &str, change: impl FnOnce(&mut VmExtra)) -> Result<(), Error> {
        dir(EXTRA, vm)?;
        let _lock = self.lock(vm);
        let mut stored = self.read::<Stored>(EXTRA, vm)?.unwrap_or_default();
        let before = stored.clone();
        change(&mut stored.persistent);
        if stored == before { Ok(()) } else { self.write(EXTRA, vm, &stored) }
    }

    /// What is remembered of a VM as text for a peer, with the members this daemon has no use for; none when nothing
    /// is.
    ///
    /// # Errors
    /// `Internal_error` when the record cannot be read.
    pub fn export_extra(&self, vm: &str) -> Result<Option<String>, Error> {
        self.extra(vm)?;
        let Some(bytes) = self.files.read(EXTRA, vm)? else { return Ok(None) };
        let whole = json::parse(&bytes).map_err(|e| Error::internal(e.to_string()))?;
        Ok(whole.get(Stored::MEMBER).map(json::print_lossy))
    }

    /// Takes over what a peer remembered of a VM.
    ///
    /// # Errors
    /// `Internal_error` when `text` is no such record, or the disk refuses.
    pub fn import_extra(&self, vm: &str, text: &str) -> Result<(), Error> {
        dir(EXTRA, vm)?;
        let bad = |why: String| Error::internal(format!("VM {vm}: private state in metadata: {why}"));
        let value = json::parse(text.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let extra = VmExtra::from_value(&value).map_err(|e| bad(e.to_string()))?;
        let peers = json::print(&Value::Dict(vec![(Stored::MEMBER.into(), value)]));
        let _lock = self.lock(vm);
        let bytes = encode(&Stored { persistent: extra }, Some(&peers));
        Ok(self.files.write(EXTRA, vm, &bytes, Lasting::Host)?)
    }

    /// Says which VIF a network device of dom0 belongs to, for scripts. Not flushed: the device ends with the host.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses.
    pub fn put_interface(&self, interface: &Interface) -> Result<(), Error> {
        let bytes = encode(interface, None);
        Ok(self.files.write(INTERFACES, &interface.name, &bytes, Lasting::Process)?)
    }

    /// The VIF a network device of dom0 belongs to.
    ///
    /// # Errors
    /// `Internal_error` when the record cannot be read.
    pub fn interface(&self, name: &str) -> Result<Option<Interface>, Error> {
        self.read(INTERFACES, name)
    }

    /// The network devices that have such a record.
    ///
    /// # Errors
    /// `Internal_error` when the directory cannot be listed.
    pub fn interfaces(&self) -> Result<Vec<String>, Error> {
        Ok(self.files.list(INTERFACES)?)
    }

    /// The network device is gone, or about to go.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses.
    pub fn remove_interface(&self, name: &str) -> Result<(), Error> {
        Ok(self.files.remove(INTERFACES, name, Lasting::Process)?)
    }

    fn read<T: FromValue>(&self, dir: &str, file: &str) -> Result<Option<T>, Error> {
        let Some(bytes) = self.files.read(dir, file)? else { return Ok(None) };
        Ok(Some(decode(&self.files.path(dir, file), &bytes)?))
    }

    fn write<T: ToValue + FromValue>(&self, dir: &str, file: &str, record: &T) -> Result<(), Error> {
        // One that cannot be read is replaced: the new one is whole.
        let old = self.files.read(dir, file).unwrap_or_default();
        Ok(self.files.write(dir, file, &encode(record, old.as_deref()), Lasting::Host)?)
    }

    fn lock(&self, vm: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        vm.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or_default();
        self.locks[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<RecordError> for Error {
    fn from(error: RecordError) -> Self {
        Self::internal(error.to_string())
    }
}

/// A VM's directory in `tree`. Ids become directory names: only the canonical form of a UUID is one.
fn dir(tree: &str, id: &str) -> Result<String, Error> {
    match uuid::Uuid::try_parse(id) {
        Ok(uuid) if uuid.hyphenated().to_string() == id => Ok(format!("{tree}/{id}")),
        _ => Err(Error::internal(format!("VM id {id:?} is not a UUID in lower-case hyphenated form"))),
    }
}

#[cfg(test)]
mod tests;
