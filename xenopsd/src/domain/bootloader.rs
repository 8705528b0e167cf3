//! Guests that boot what is on their own disk.

use super::VmExecutor;
use super::create::BootFiles;
use crate::api::{Boot, BuilderInfo, Disk, Error, IndirectBoot, Vm};
use crate::edge::{KernelLimits, KernelSearch, KernelSearchError};
use guest_installer::boot::Request;
use guest_installer::pygrub;
use std::path::{Path, PathBuf};

/// Keys of a VM's `platformdata` with its own limits, in bytes.
const KERNEL_LIMIT: &str = "pv-kernel-max-size";
const RAMDISK_LIMIT: &str = "pv-ramdisk-max-size";

/// What is to be looked for, checked as far as the record goes.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    disk: PathBuf,
    request: Request,
    limits: KernelLimits,
}

/// How a VM boots from its own disk, if it does.
pub(super) fn indirect_boot(vm: &Vm) -> Option<&IndirectBoot> {
    match &vm.ty {
        BuilderInfo::Pv(pv) | BuilderInfo::PvInPvh(pv) | BuilderInfo::Pvh(pv) => match &pv.boot {
            Boot::Indirect(indirect) => Some(indirect),
            Boot::Direct(_) => None,
        },
        BuilderInfo::Hvm(_) => None,
    }
}

/// Finds what is wrong with how a VM is to boot, as far as the record goes.
pub(super) fn check(vm: &Vm, boot: &IndirectBoot) -> Result<(), Error> {
    Wanted::of(vm, boot).map(drop)
}

impl Wanted {
    fn of(vm: &Vm, boot: &IndirectBoot) -> Result<Self, Error> {
        let wrong = |message: String| Error::BootloaderError { id: vm.id.clone(), message };
        // Configurations give a name or a path; none means pygrub, as it always has.
        let name = Path::new(&boot.bootloader).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name {
            "" | "pygrub" => {}
            "eliloader" => return Err(Error::Unimplemented("boot through eliloader".to_owned())),
            _ => {
                return Err(wrong(format!("there is no boot loader {:?}; there is pygrub", boot.bootloader)));
            }
        }
        let request = pygrub::request(&boot.bootloader_args)
            .map_err(|why| wrong(format!("arguments {:?} of pygrub: {why}", boot.bootloader_args)))?;
        let disk = match boot.devices.first() {
            Some(Disk::Local(path)) => path.into(),
            Some(Disk::Vdi(vdi)) => {
                return Err(Error::Unimplemented(format!("boot from disk {vdi} of a storage service")));
            }
            None => return Err(Error::NoBootableDevice),
        };
        let limit = |key: &str| -> Result<Option<u64>, Error> {
            let text = vm.platformdata.iter().find(|(k, _)| *k == key).map(|(_, text)| text);
            let bytes =
                text.map(|text| text.parse().ok().filter(|&bytes: &u64| bytes > 0).ok_or(text)).transpose();
            bytes.map_err(|text| wrong(format!("platformdata {key}: {text:?} is no number of bytes")))
        };
        let limits = KernelLimits { kernel: limit(KERNEL_LIMIT)?, ramdisk: limit(RAMDISK_LIMIT)? };
        Ok(Self { disk, request, limits })
    }
}

impl VmExecutor<'_> {
    /// Finds the kernel of a VM that boots from its own disk, and keeps it for the build.
    pub(super) fn find_kernel(&self) -> Result<(), Error> {
        let vm = &self.records.vm;
        let Some(boot) = indirect_boot(vm) else { return Ok(()) };
        let Wanted { disk, request, limits } = Wanted::of(vm, boot)?;
        let search = KernelSearch {
            disk: &disk,
            request: &request,
            limits,
            domid: self.domid()?,
            cancelled: self.task.cancel_event(),
        };
        let found = self.core.edges.host().find_kernel(&search).map_err(|error| match error {
            KernelSearchError::Disk(error) => error.into(),
            KernelSearchError::None(message) => Error::BootloaderError { id: vm.id.clone(), message },
            KernelSearchError::Unable(text) => Error::internal(text),
            KernelSearchError::Cancelled => self.task.cancelled_error(),
        })?;
        tracing::info!(vm = self.vm(), entry = %found.title, args = %found.args, "kernel found");
        let parts = [&*found.args, &*boot.legacy_args, &*boot.extra_args];
        let cmdline = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        self.keep_files(BootFiles::found(found.kernel, found.ramdisk, cmdline));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let found =
            wanted(|vm, _| vm.platformdata.0.push((KERNEL_LIMIT.to_owned(), "1000".to_owned()))).unwrap();
        assert_eq!((found.disk.to_str(), found.request.entry.as_deref()), (Some("/disk"), Some("2")));
        assert_eq!(found.limits, KernelLimits { kernel: Some(1000), ramdisk: None });
        for name in ["", "/usr/lib/xen/bin/pygrub"] {
            assert_eq!(wanted(|_, boot| boot.bootloader = name.to_owned()).unwrap().disk, found.disk);
        }
    }

    #[test]
    fn what_is_wrong_with_the_record_is_the_contracts_error() {
        assert_eq!(wanted(|_, boot| boot.devices.clear()), Err(Error::NoBootableDevice));
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
        let changes: [fn(&mut IndirectBoot); 2] = [
            |boot| boot.bootloader = "eliloader".to_owned(),
            |boot| boot.devices = vec![Disk::Vdi("sr/vdi".to_owned())],
        ];
        for change in changes {
            assert!(matches!(wanted(|_, boot| change(boot)), Err(Error::Unimplemented(_))));
        }
    }
}
