//! Guests that boot what is on their own disk, or are installed from a repository.

use super::VmExecutor;
use super::create::BootFiles;
use crate::api::{BootLoader, DeviceId, Disk, DynamicId, Error, IndirectBoot, Vbd, Vm};
use crate::device::{self, vbd};
use crate::edge::{Installing, KernelLimits, KernelSearch, KernelSearchError};
use crate::ops::plan::Device;
use guest_installer::boot::Request;
use guest_installer::eliloader::{Install, Record};
use guest_installer::pygrub;
use std::path::PathBuf;
use std::sync::PoisonError;

/// Keys of a VM's `platformdata` with its own limits, in bytes.
const KERNEL_LIMIT: &str = "pv-kernel-max-size";
const UNPACKED_LIMIT: &str = "pv-kernel-max-unpacked-size";
const RAMDISK_LIMIT: &str = "pv-ramdisk-max-size";

/// What is to be looked for, checked as far as the record goes.
#[derive(Debug)]
struct Wanted {
    disk: Disk,
    request: Request,
    limits: KernelLimits,
    install: Option<Install>,
}

/// Finds what is wrong with how a VM is to boot, as far as the record goes.
pub(super) fn check(vm: &Vm, boot: &IndirectBoot) -> Result<(), Error> {
    Wanted::of(vm, boot).map(drop)
}

impl Wanted {
    fn of(vm: &Vm, boot: &IndirectBoot) -> Result<Self, Error> {
        let wrong = |message: String| Error::BootloaderError { id: vm.id.clone(), message };
        let install = match boot.loader() {
            Some(BootLoader::Pygrub) => None,
            Some(BootLoader::Eliloader) => {
                let get = |key: &str| vm.platformdata.get(key).map(String::as_str);
                Some(Install::read(get).map_err(|why| wrong(format!("platformdata {why}")))?)
            }
            None => {
                let name = &boot.bootloader;
                return Err(wrong(format!(
                    "there is no boot loader {name:?}; there are pygrub and eliloader"
                )));
            }
        };
        let request = pygrub::request(&boot.bootloader_args).map_err(|why| {
            wrong(format!("arguments {:?} of the boot loader: {why}", boot.bootloader_args))
        })?;
        let disk = boot.devices.first().ok_or(Error::NoBootableDevice)?.clone();
        let limit = |key: &str| -> Result<Option<u64>, Error> {
            let text = vm.platformdata.get(key);
            let bytes =
                text.map(|text| text.parse().ok().filter(|&bytes: &u64| bytes > 0).ok_or(text)).transpose();
            bytes.map_err(|text| wrong(format!("platformdata {key}: {text:?} is no number of bytes")))
        };
        let limits = KernelLimits {
            kernel: limit(KERNEL_LIMIT)?,
            unpacked: limit(UNPACKED_LIMIT)?,
            ramdisk: limit(RAMDISK_LIMIT)?,
        };
        Ok(Self { disk, request, limits, install })
    }
}

impl VmExecutor<'_> {
    /// Finds the kernel of a VM that boots from its own disk, or of the next round of its installation, and keeps it for
    /// the build.
    pub(super) fn find_kernel(&self) -> Result<(), Error> {
        let vm = &self.records.vm;
        let Some(boot) = vm.indirect_boot() else { return Ok(()) };
        let Wanted { disk, request, limits, install } = Wanted::of(vm, boot)?;
        let disk = self.boot_path(&disk)?;
        let progress = |done| self.task.set_step_progress(done);
        let search = KernelSearch {
            disk: &disk,
            request: &request,
            limits,
            domid: self.domid()?,
            cancelled: self.task.cancel_event(),
            install: install.as_ref().map(|install| Installing { install, progress: &progress }),
        };
        let found = self.core.edges.host().find_kernel(&search).map_err(|error| match error {
            KernelSearchError::Disk(error) => error.into(),
            KernelSearchError::None(message) => Error::BootloaderError { id: vm.id.clone(), message },
            KernelSearchError::Unable(text) => Error::internal(text),
            KernelSearchError::Cancelled => self.task.cancelled_error(),
        })?;
        // An installer's arguments may hold its user's password.
        let args = install.is_none().then_some(&*found.args);
        tracing::info!(vm = self.vm(), entry = %found.title, args, "kernel found");
        let parts = [&*found.args, &*boot.legacy_args, &*boot.extra_args];
        let cmdline = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        self.keep_files(BootFiles::found(found.kernel, found.ramdisk, cmdline));
        *self.changes.lock().unwrap_or_else(PoisonError::into_inner) = found.changes;
        Ok(())
    }

    /// One of a storage layer is attached, and one that is served is shown, as what the VM has it as.
    fn boot_path(&self, disk: &Disk) -> Result<PathBuf, Error> {
        let vbd = self.records.vbds.iter().find(|vbd| vbd.backend.as_ref() == Some(disk));
        match (disk, vbd) {
            (_, Some(vbd)) => vbd::path(self.core, vbd)?.ok_or(Error::NoBootableDevice),
            (Disk::Local(path), None) => Ok(path.into()),
            (Disk::Vdi(vdi), None) => Err(Error::BootloaderError {
                id: self.vm().to_owned(),
                message: format!("disk {vdi} is to be booted from and is none of the VM's disks"),
            }),
        }
    }

    /// Stores what the round of an installation changes: one record, written in one step. A daemon that is killed before the
    /// domain is complete is followed by one that takes it back.
    pub(super) fn keep_round(&self) -> Result<(), Error> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(changes) = changes else { return Ok(()) };
        let before = self.core.records.vm(self.vm())?;
        let mut vm = before.clone();
        changes.apply(&mut Installed { vm: &mut vm, vbds: &self.records.vbds });
        let leaving = self.leaving()?;
        let begun = self.core.records.begin_round(before, vm, leaving.as_ref());
        if begun.is_err() {
            // Nothing undoes a step that has failed.
            self.forget_round()?;
        } else if let Some(disk) = leaving {
            tracing::info!(vm = self.vm(), %disk, "removed: it was for the installer");
            self.core.updates.add(DynamicId::Vbd(disk));
        }
        begun
    }

    /// The disk whose record goes now. A client can have removed it by itself, or have plugged it into a domain that it
    /// has built step by step.
    fn leaving(&self) -> Result<Option<DeviceId>, Error> {
        let Some(disk) = &self.records.leaving else { return Ok(None) };
        let names = self.core.records.device_names::<Vbd>(self.vm())?;
        if !names.contains(&disk.id.device) {
            return Ok(None);
        }
        if device::is_plugged(self.core, self.vm(), &Device::Vbd(disk.id.device.clone()))? {
            tracing::warn!(vm = self.vm(), disk = %disk.id, "it was for the installer, and is plugged: it stays");
            return Ok(None);
        }
        Ok(Some(disk.id.clone()))
    }

    /// Takes that back.
    pub(super) fn forget_round(&self) -> Result<(), Error> {
        self.core.forget_round(self.vm()).map(drop)
    }
}

/// Takes the disk that was for a VM's installer out of `vbds`, if the next start is the one that it goes with. The one that is
/// booted from stays, whatever the record says.
pub fn take_leaving(vm: &Vm, vbds: &mut Vec<Vbd>) -> Option<Vbd> {
    let boot = vm.indirect_boot().filter(|boot| boot.loader() == Some(BootLoader::Eliloader))?;
    let get = |key: &str| vm.platformdata.get(key).map(String::as_str);
    // What is wrong with the keys is found by the check.
    let install = Install::read(get).ok()?;
    let name = install.leaving_disk()?;
    let is_named = |vbd: &Vbd| {
        let position = vbd.position.filter(|position| position.partition == 0);
        vbd.id.device == name
            || position
                .is_some_and(|position| name.parse() == Ok(position) || name.parse() == Ok(position.disk))
    };
    let at = vbds.iter().position(is_named)?;
    let booted = vbds[at].backend.is_some() && vbds[at].backend.as_ref() == boot.devices.first();
    (!booted).then(|| vbds.remove(at))
}

/// Key of a VM's `platformdata` that names a disk whose time is over, for owners who keep records of their own: the daemon's
/// record of it is gone, and the disk itself is theirs.
const REMOVE_DISK: &str = "install-remove-disk";

/// A VM's record as an installation sees it.
struct Installed<'a> {
    vm: &'a mut Vm,
    vbds: &'a [Vbd],
}

impl Record for Installed<'_> {
    fn get(&self, key: &str) -> Option<String> {
        self.vm.platformdata.get(key).cloned()
    }

    fn set(&mut self, key: &str, value: Option<&str>) {
        let keys = &mut self.vm.platformdata.0;
        keys.retain(|(k, _)| k != key);
        keys.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    }

    fn set_boot_loader(&mut self, name: &str) {
        if let Some(boot) = self.vm.indirect_boot_mut() {
            name.clone_into(&mut boot.bootloader);
        }
    }

    fn set_boot_loader_args(&mut self, args: &str) {
        if let Some(boot) = self.vm.indirect_boot_mut() {
            args.clone_into(&mut boot.bootloader_args);
        }
    }

    fn boot_from_first_disk(&mut self) {
        let first = |vbd: &&Vbd| vbd.position.is_some_and(|position| position.disk == 0);
        let disk = self.vbds.iter().find(first).and_then(|vbd| vbd.backend.clone());
        if let Some(boot) = self.vm.indirect_boot_mut() {
            boot.devices = disk.into_iter().collect();
        }
    }

    fn remove_disk(&mut self, disk: &str) {
        self.set(REMOVE_DISK, Some(disk));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Boot, BuilderInfo};
    use crate::test_vm;

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    fn boot() -> IndirectBoot {
        IndirectBoot {
            bootloader: "pygrub".to_owned(),
            bootloader_args: "--entry=2".to_owned(),
            devices: vec![Disk::Local("/disk".to_owned()), Disk::Local("/second".to_owned())],
            ..IndirectBoot::default()
        }
    }

    fn wanted(change: impl FnOnce(&mut Vm, &mut IndirectBoot)) -> Result<Wanted, Error> {
        let (mut vm, mut boot) = (test_vm(ID, "demo"), boot());
        change(&mut vm, &mut boot);
        Wanted::of(&vm, &boot)
    }

    #[test]
    fn the_first_disk_is_looked_at() {
        let found = wanted(|vm, _| {
            vm.platformdata.insert(KERNEL_LIMIT, "1000".to_owned());
            vm.platformdata.insert(UNPACKED_LIMIT, "2000".to_owned());
        })
        .unwrap();
        assert_eq!(
            (&found.disk, found.request.entry.as_deref()),
            (&Disk::Local("/disk".to_owned()), Some("2"))
        );
        assert_eq!(found.limits, KernelLimits { kernel: Some(1000), unpacked: Some(2000), ramdisk: None });
        for name in ["", "/usr/lib/xen/bin/pygrub"] {
            assert_eq!(wanted(|_, boot| boot.bootloader = name.to_owned()).unwrap().disk, found.disk);
        }
    }

    #[test]
    fn what_is_wrong_with_the_record_is_the_contracts_error() {
        assert_eq!(wanted(|_, boot| boot.devices.clear()).unwrap_err(), Error::NoBootableDevice);
        let message = |change: &dyn Fn(&mut Vm, &mut IndirectBoot)| match wanted(change) {
            Err(Error::BootloaderError { id, message }) if id == ID => message,
            other => panic!("{other:?}"),
        };
        assert!(message(&|_, boot| boot.bootloader = "grub".to_owned()).contains("\"grub\""));
        assert!(message(&|_, boot| boot.bootloader_args = "--x".to_owned()).contains("--x"));
        let limit =
            |vm: &mut Vm, text: &str| vm.platformdata.0.push((RAMDISK_LIMIT.to_owned(), text.to_owned()));
        for bad in ["", "0", "-1", "much"] {
            assert!(message(&|vm, _| limit(vm, bad)).contains(RAMDISK_LIMIT), "{bad}");
        }
        let installs = |vm: &mut Vm, boot: &mut IndirectBoot, repository: &str| {
            boot.bootloader = "eliloader".to_owned();
            vm.platformdata.insert("install-repository", repository.to_owned());
        };
        assert!(message(&|vm, boot| installs(vm, boot, "file:///x")).contains("install-repository"));
        assert!(wanted(|vm, boot| installs(vm, boot, "cdrom")).unwrap().install.is_some());
    }

    #[test]
    fn after_a_cd_the_first_disk_is_booted_from() {
        let mut vm = test_vm(ID, "demo");
        let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
        pv.boot = Boot::Indirect(boot());
        let disk = |name: &str, disk| Vbd {
            position: Some(crate::api::DeviceNumber::new(crate::api::BusType::Xen, disk, 0).unwrap()),
            backend: Some(Disk::Local(format!("/{name}"))),
            ..crate::test_vbd(ID, name)
        };
        let vbds = [disk("xvdd", 3), disk("xvda", 0)];
        let mut record = Installed { vm: &mut vm, vbds: &vbds };
        record.boot_from_first_disk();
        record.set_boot_loader_args("--entry 1");
        record.remove_disk("xvdc");
        let boot = vm.indirect_boot().unwrap();
        assert_eq!(
            (&*boot.devices, &*boot.bootloader_args),
            (&[Disk::Local("/xvda".to_owned())][..], "--entry 1")
        );
        assert_eq!(vm.platformdata.get(REMOVE_DISK).map(String::as_str), Some("xvdc"));
    }
}
