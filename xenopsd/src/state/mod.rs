//! What must survive the daemon: the records clients gave us, one JSON file per object, where and how the model
//! backend keeps them (`VM/<uuid>/config`, `VM/<uuid>/vbd.<device>`, `VM/<uuid>/vif.<index>`).

mod files;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::value::{FromValue, ToValue};
use crate::api::{DeviceId, Error, Int, Vbd, Vif, Vm};
use crate::rpc::json;

pub use files::{Files, StateError};

/// Most VMs kept. Xen itself has 32752 usable domain ids; far fewer fit any host.
pub const MAX_VMS: usize = 32_752;

/// Most devices of one class per VM: beyond what any guest can use, below what would slow a start noticeably.
pub const MAX_DEVICES: usize = 512;

const CONFIG: &str = "config";

/// The device classes that have records, and the prefix of their files.
trait DeviceRecord: ToValue + FromValue {
    const CLASS: &'static str;
    const PREFIX: &'static str;
    fn id(&self) -> &DeviceId;
    fn position(&self) -> Int;
}

impl DeviceRecord for Vbd {
    const CLASS: &'static str = "VBD";
    const PREFIX: &'static str = "vbd.";
    fn id(&self) -> &DeviceId {
        &self.id
    }
    fn position(&self) -> Int {
        let number = self.position.as_ref().and_then(|p| p.to_xenstore().ok());
        number.and_then(|n| Int::try_from(n).ok()).unwrap_or(Int::MAX)
    }
}

impl DeviceRecord for Vif {
    const CLASS: &'static str = "VIF";
    const PREFIX: &'static str = "vif.";
    fn id(&self) -> &DeviceId {
        &self.id
    }
    fn position(&self) -> Int {
        self.position
    }
}

/// The VM and device records. One lock orders all changes, as a record's existence checks span files.
pub struct Records {
    files: Mutex<Files>,
}

impl Records {
    /// Opens (creating it if needed) the database below `root`.
    ///
    /// # Errors
    /// [`StateError`] when the directory cannot be created.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        Ok(Self { files: Mutex::new(Files::open(root)?) })
    }

    /// Stores a VM, replacing one of the same id, as the contract has it.
    ///
    /// # Errors
    /// `Internal_error` when `id` is not a UUID, the table is full, or the disk refuses.
    pub fn put_vm(&self, vm: &Vm) -> Result<(), Error> {
        let dir = vm_dir(&vm.id)?;
        let files = self.lock();
        if !files.exists(&dir, CONFIG) && files.list("VM")?.len() >= MAX_VMS {
            return Err(Error::internal(format!("{MAX_VMS} VMs are stored already; remove some")));
        }
        Ok(files.write(&dir, CONFIG, &json::print(&vm.to_value()))?)
    }

    /// The VM `id`.
    ///
    /// # Errors
    /// `Does_not_exist("VM", "<id>/config")`, or `Internal_error` when its record cannot be read.
    pub fn vm(&self, id: &str) -> Result<Vm, Error> {
        let missing = || Error::does_not_exist("VM", format!("{id}/{CONFIG}"));
        let dir = vm_dir(id).map_err(|_| missing())?;
        read(&self.lock(), &dir, CONFIG)?.ok_or_else(missing)
    }

    /// Whether the VM `id` is stored.
    pub fn has_vm(&self, id: &str) -> bool {
        vm_dir(id).is_ok_and(|dir| self.lock().exists(&dir, CONFIG))
    }

    /// Every VM, by id. One whose record cannot be read is logged and left out, so that it harms no other.
    ///
    /// # Errors
    /// `Internal_error` when the directory cannot be listed.
    pub fn vms(&self) -> Result<Vec<Vm>, Error> {
        let files = self.lock();
        let mut all = Vec::new();
        for id in files.list("VM")? {
            match read::<Vm>(&files, &format!("VM/{id}"), CONFIG) {
                Ok(Some(vm)) => all.push(vm),
                Ok(None) => {}
                Err(error) => tracing::error!(vm = %id, %error, "unreadable VM record left out"),
            }
        }
        Ok(all)
    }

    /// Removes a VM with all its devices.
    ///
    /// # Errors
    /// `Does_not_exist("VM", "VM/<id>/config")`.
    pub fn remove_vm(&self, id: &str) -> Result<(), Error> {
        let missing = || Error::does_not_exist("VM", format!("VM/{id}/{CONFIG}"));
        let dir = vm_dir(id).map_err(|_| missing())?;
        let files = self.lock();
        if !files.exists(&dir, CONFIG) {
            return Err(missing());
        }
        // The VM's own record goes first: devices without a VM are never looked at, a VM without devices would be.
        files.remove(&dir, CONFIG)?;
        for name in files.list(&dir)? {
            files.remove(&dir, &name)?;
        }
        Ok(())
    }

    /// Stores a disk of an existing VM.
    ///
    /// # Errors
    /// `Does_not_exist("VM", …)` when its VM is not stored; `Internal_error` for an unusable device name.
    pub fn put_vbd(&self, vbd: &Vbd) -> Result<(), Error> {
        self.put_device(vbd)
    }

    /// One disk.
    ///
    /// # Errors
    /// `Does_not_exist("VBD", …)`.
    pub fn vbd(&self, id: &DeviceId) -> Result<Vbd, Error> {
        self.device(id)
    }

    /// A VM's disks by device number.
    ///
    /// # Errors
    /// `Internal_error` when the directory cannot be listed.
    pub fn vbds(&self, vm: &str) -> Result<Vec<Vbd>, Error> {
        self.devices(vm)
    }

    /// Removes a disk's record.
    ///
    /// # Errors
    /// `Does_not_exist("VBD", …)`.
    pub fn remove_vbd(&self, id: &DeviceId) -> Result<(), Error> {
        self.remove_device::<Vbd>(id)
    }

    /// Stores a network interface of an existing VM.
    ///
    /// # Errors
    /// As [`Records::put_vbd`].
    pub fn put_vif(&self, vif: &Vif) -> Result<(), Error> {
        self.put_device(vif)
    }

    /// One network interface.
    ///
    /// # Errors
    /// `Does_not_exist("VIF", …)`.
    pub fn vif(&self, id: &DeviceId) -> Result<Vif, Error> {
        self.device(id)
    }

    /// A VM's network interfaces by position.
    ///
    /// # Errors
    /// `Internal_error` when the directory cannot be listed.
    pub fn vifs(&self, vm: &str) -> Result<Vec<Vif>, Error> {
        self.devices(vm)
    }

    /// Removes a network interface's record.
    ///
    /// # Errors
    /// `Does_not_exist("VIF", …)`.
    pub fn remove_vif(&self, id: &DeviceId) -> Result<(), Error> {
        self.remove_device::<Vif>(id)
    }

    fn put_device<D: DeviceRecord>(&self, device: &D) -> Result<(), Error> {
        let DeviceId { vm, device: name } = device.id();
        let dir = vm_dir(vm)?;
        let file = device_file::<D>(name)?;
        let files = self.lock();
        if !files.exists(&dir, CONFIG) {
            return Err(Error::does_not_exist("VM", vm));
        }
        if !files.exists(&dir, &file) && files.list(&dir)?.len() > MAX_DEVICES {
            return Err(Error::internal(format!("VM {vm} has {MAX_DEVICES} devices already; remove some")));
        }
        Ok(files.write(&dir, &file, &json::print(&device.to_value()))?)
    }

    fn device<D: DeviceRecord>(&self, id: &DeviceId) -> Result<D, Error> {
        let missing = || Error::does_not_exist(D::CLASS, format!("{}/{}{}", id.vm, D::PREFIX, id.device));
        let dir = vm_dir(&id.vm).map_err(|_| missing())?;
        let file = device_file::<D>(&id.device).map_err(|_| missing())?;
        read(&self.lock(), &dir, &file)?.ok_or_else(missing)
    }

    fn devices<D: DeviceRecord>(&self, vm: &str) -> Result<Vec<D>, Error> {
        let Ok(dir) = vm_dir(vm) else { return Ok(Vec::new()) };
        let files = self.lock();
        let mut all: Vec<D> = Vec::new();
        for name in files.list(&dir)?.iter().filter(|name| name.starts_with(D::PREFIX)) {
            match read(&files, &dir, name) {
                Ok(device) => all.extend(device),
                Err(error) => tracing::error!(%vm, file = %name, %error, "unreadable device record left out"),
            }
        }
        all.sort_by(|a, b| (a.position(), &a.id().device).cmp(&(b.position(), &b.id().device)));
        Ok(all)
    }

    fn remove_device<D: DeviceRecord>(&self, id: &DeviceId) -> Result<(), Error> {
        let path = format!("VM/{}/{}{}", id.vm, D::PREFIX, id.device);
        let missing = || Error::does_not_exist(D::CLASS, &path);
        let dir = vm_dir(&id.vm).map_err(|_| missing())?;
        let file = device_file::<D>(&id.device).map_err(|_| missing())?;
        let files = self.lock();
        if !files.exists(&dir, &file) {
            return Err(missing());
        }
        Ok(files.remove(&dir, &file)?)
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        Self::InternalError(error.to_string())
    }
}

fn read<T: FromValue>(files: &Files, dir: &str, file: &str) -> Result<Option<T>, Error> {
    let Some(bytes) = files.read(dir, file)? else { return Ok(None) };
    let broken = |why: String| Error::internal(format!("record {dir}/{file} cannot be read: {why}"));
    let value = json::parse(&bytes).map_err(|e| broken(e.to_string()))?;
    T::from_value(&value).map(Some).map_err(|e| broken(e.to_string()))
}

/// Ids become directory names: only the canonical form of a UUID is one.
fn vm_dir(id: &str) -> Result<String, Error> {
    match uuid::Uuid::try_parse(id) {
        Ok(uuid) if uuid.hyphenated().to_string() == id => Ok(format!("VM/{id}")),
        _ => Err(Error::internal(format!("VM id {id:?} is not a UUID in lower-case hyphenated form"))),
    }
}

fn device_file<D: DeviceRecord>(name: &str) -> Result<String, Error> {
    const LONGEST: usize = 64;
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':');
    if name.is_empty() || name.len() > LONGEST || !name.chars().all(fine) {
        return Err(Error::internal(format!(
            "{} name {name:?} must be 1 to {LONGEST} letters, digits, '.', '_', '-' or ':'",
            D::CLASS
        )));
    }
    Ok(format!("{}{name}", D::PREFIX))
}

#[cfg(test)]
mod tests;
