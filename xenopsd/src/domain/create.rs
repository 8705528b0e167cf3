//! A domain's beginning: checks, the empty domain, and its build.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;

use uuid::Uuid;
use xenstore::Operations;
use xenstore::layout::{self, Console, ConsoleServer, DomainKind, Memory};
use xenstore::vmdata::VmData;

use super::VmExecutor;
use crate::api::{Boot, BuilderInfo, Dict, DirectBoot, Error, Int, Vm};
use crate::device::{store_domid, vbd, vif};
use crate::edge::{
    HypervisorError, Image, ImageError, ImageFile, MAX_KERNEL, MAX_RAMDISK, NewDomain, Physinfo, PvBuild,
};

/// Most vcpus of a VM: what an HVM domain's table can hold (`HVM_MAX_VCPUS`). PV could have more, but above 32 it has
/// no security support (Xen's SUPPORT.md).
const MAX_VCPUS: Int = 128;

/// Least memory a domain is built with, in KiB. Nothing boots in less.
const MIN_MEMORY_KIB: u64 = 4 * 1024;

/// Most memory of a VM, in KiB: 16 TiB, what grant table version 1 can address.
const MAX_MEMORY_KIB: u64 = 16 << 30;

/// What a PV domain costs the host beside its own memory, in KiB: libxl's figure for the hypervisor's structures.
const PV_OVERHEAD_KIB: u64 = 1024;

/// What its page tables may cost in addition, in KiB for each vcpu (libxl's paging pool formula, PV part).
const PER_VCPU_KIB: u64 = 4 * 256;

/// Free memory is wanted in units of this, in KiB: the size of a superpage.
const MEMORY_UNIT_KIB: u64 = 2048;

/// Kernel and ramdisk, open.
#[derive(Debug)]
pub(super) struct BootFiles {
    kernel: ImageFile,
    ramdisk: Option<ImageFile>,
}

/// A VM's memory, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    static_max_kib: u64,
    dynamic_max_kib: u64,
    dynamic_min_kib: u64,
    vcpu_max: u32,
    vcpus: u32,
}

impl VmExecutor<'_> {
    /// Finds all that can be found wrong before anything is taken.
    pub(super) fn check_start(&self) -> Result<(), Error> {
        let vm = &self.records.vm;
        let wanted = Wanted::of(vm)?;
        let files = BootFiles::open(vm)?;
        target_kib(&wanted, &self.core.edges.hypervisor()?.host()?)?;
        let mut numbers = HashSet::new();
        for disk in &self.records.vbds {
            vbd::check(self.core, disk)?;
            if !numbers.insert(vbd::number(disk)?) {
                return Err(Error::AlreadyExists { kind: "VBD".to_owned(), id: disk.id.to_string() });
            }
        }
        let mut positions = HashSet::new();
        for interface in &self.records.vifs {
            vif::check(self.core, interface)?;
            if !positions.insert(interface.position) {
                return Err(Error::AlreadyExists { kind: "VIF".to_owned(), id: interface.id.to_string() });
            }
        }
        self.keep_files(files);
        Ok(())
    }

    /// An empty domain and its skeleton in the store.
    pub(super) fn create_domain(&self) -> Result<(), Error> {
        let vm = &self.records.vm;
        let wanted = Wanted::of(vm)?;
        let uuid = self.uuid()?;
        let devices =
            u32::try_from(self.records.vifs.len() * 8 + self.records.vbds.len() + 9).unwrap_or(u32::MAX);
        let new = NewDomain {
            uuid: *uuid.as_bytes(),
            max_vcpus: wanted.vcpu_max,
            // Each interface needs frames for its queues; the hypervisor's own default is the least.
            max_grant_frames: devices.max(64),
            ssidref: u32::try_from(vm.ssidref).unwrap_or(0),
        };
        let domid = self.core.edges.hypervisor()?.create_pv(&new)?;
        self.core.runtimes.with(self.vm(), |r| r.domid = Some(domid));
        let vm_data = VmData::new(vm.xsdata.iter().map(|(k, v)| (k, v.as_bytes())));
        for (key, why) in vm_data.ignored() {
            tracing::info!(vm = self.vm(), key, %why, "xsdata key not written");
        }
        let pairs = |dict: &Dict<String>, what: &str| {
            layout::pairs(dict.iter().map(|(k, v)| (k, v.as_bytes())))
                .map_err(|e| Error::internal(format!("VM {}: {what}: {e}", vm.id)))
        };
        let skeleton = layout::Domain {
            domid: store_domid(domid),
            uuid,
            name: vm.name.clone(),
            kind: DomainKind::Pv,
            unique_id: Uuid::new_v4(),
            platform: pairs(&vm.platformdata, "platformdata")?,
            bios_strings: pairs(&vm.bios_strings, "bios_strings")?,
            vendor_device: vm.has_vendor_device,
            vm_data,
            keep_vm: false,
        };
        let mut batch = skeleton.create();
        batch.write(Self::pending_marker(domid)?, "creating");
        Ok(self.core.edges.store()?.commit(&batch)?)
    }

    /// Memory, kernel, rings; then the store is told.
    pub(super) fn build_domain(&self) -> Result<(), Error> {
        let vm = &self.records.vm;
        let wanted = Wanted::of(vm)?;
        let boot = direct_boot(vm)?;
        let files = match self.files() {
            Some(files) => files,
            None => BootFiles::open(vm)?,
        };
        let kernel = files.kernel.read().map_err(|e| image_error(vm, &e))?;
        let ramdisk = files.ramdisk.map(ImageFile::read).transpose().map_err(|e| image_error(vm, &e))?;
        let domid = self.domid()?;
        let hypervisor = self.core.edges.hypervisor()?;
        let target_kib = target_kib(&wanted, &hypervisor.host()?)?;
        let build = PvBuild {
            max_vcpus: wanted.vcpu_max,
            target_kib,
            static_max_kib: wanted.static_max_kib,
            kernel: &kernel,
            ramdisk: ramdisk.as_ref(),
            cmdline: &boot.cmdline,
        };
        let built = hypervisor.build_pv(domid, &build).map_err(|error| match error {
            HypervisorError::Image(message) => Error::BootloaderError { id: vm.id.clone(), message },
            HypervisorError::Memory(text) => {
                tracing::warn!(vm = %vm.id, "{text}");
                Error::NotEnoughMemory(bytes(needed_kib(&wanted, target_kib)))
            }
            HypervisorError::Call(text) => Error::internal(text),
        })?;
        drop((kernel, ramdisk));
        if let Some((weight, cap)) = vm.scheduler_params.priority {
            let (weight, cap) = scheduler(weight, cap)?;
            hypervisor.set_scheduler(domid, weight, cap)?;
        }
        let nodes = layout::Built {
            domid: store_domid(domid),
            uuid: self.uuid()?,
            kind: DomainKind::Pv,
            memory: Memory {
                static_max: wanted.static_max_kib,
                dynamic_max: wanted.dynamic_max_kib,
                dynamic_min: wanted.dynamic_min_kib,
                target: target_kib,
                video: 0,
            },
            max_vcpus: wanted.vcpu_max,
            online_vcpus: wanted.vcpus,
            store_port: built.store.port,
            store_gfn: built.store.gfn,
            start_time: SystemTime::now(),
        };
        let console = Console {
            domid: store_domid(domid),
            backend_domid: xenstore::DomId::DOM0,
            server: ConsoleServer::Xenconsoled,
            port: built.console.port,
            gfn: built.console.gfn,
        };
        let mut store = self.core.edges.store()?;
        let mut batch = nodes.create();
        batch.append(console.create());
        store.commit(&batch)?;
        Ok(store.introduce(store_domid(domid), built.store.gfn, built.store.port)?)
    }
}

impl BootFiles {
    fn open(vm: &Vm) -> Result<Self, Error> {
        let boot = direct_boot(vm)?;
        let open = |what, path: &str, limit| {
            Image::open(what, Path::new(path), limit).map_err(|e| image_error(vm, &e))
        };
        Ok(Self {
            kernel: open("kernel", &boot.kernel, MAX_KERNEL)?,
            ramdisk: boot.ramdisk.as_deref().map(|path| open("ramdisk", path, MAX_RAMDISK)).transpose()?,
        })
    }
}

fn image_error(vm: &Vm, error: &ImageError) -> Error {
    match error {
        ImageError::Missing { what, path } => Error::does_not_exist(*what, path.display().to_string()),
        ImageError::Unusable { .. } => {
            Error::BootloaderError { id: vm.id.clone(), message: error.to_string() }
        }
    }
}

fn direct_boot(vm: &Vm) -> Result<&DirectBoot, Error> {
    match &vm.ty {
        BuilderInfo::Pv(pv) => match &pv.boot {
            Boot::Direct(direct) => Ok(direct),
            Boot::Indirect(_) => Err(Error::Unimplemented("PV boot through a boot loader".to_owned())),
        },
        BuilderInfo::Pvh(_) => Err(Error::Unimplemented("PVH guests".to_owned())),
        BuilderInfo::PvInPvh(_) => Err(Error::Unimplemented("PV-in-PVH guests".to_owned())),
        BuilderInfo::Hvm(_) => Err(Error::Unimplemented("HVM guests".to_owned())),
    }
}

fn scheduler(weight: Int, cap: Int) -> Result<(u16, u16), Error> {
    let weight = u16::try_from(weight).ok().filter(|w| *w > 0);
    let cap = u16::try_from(cap).ok();
    weight.zip(cap).ok_or_else(|| Error::internal("scheduler weight must be 1 to 65535 and cap 0 to 65535"))
}

impl Wanted {
    fn of(vm: &Vm) -> Result<Self, Error> {
        let kib = |bytes: i64| u64::try_from(bytes).unwrap_or(0) / 1024;
        let wanted = Self {
            static_max_kib: kib(vm.memory_static_max),
            dynamic_max_kib: kib(vm.memory_dynamic_max),
            dynamic_min_kib: kib(vm.memory_dynamic_min),
            vcpu_max: u32::try_from(vm.vcpu_max).unwrap_or(0),
            vcpus: u32::try_from(vm.vcpus).unwrap_or(0),
        };
        if !(1..=MAX_VCPUS).contains(&vm.vcpu_max) {
            return Err(Error::InvalidVcpus(MAX_VCPUS));
        }
        if !(1..=vm.vcpu_max).contains(&vm.vcpus) {
            return Err(Error::InvalidVcpus(vm.vcpu_max));
        }
        let ordered = MIN_MEMORY_KIB <= wanted.dynamic_min_kib
            && wanted.dynamic_min_kib <= wanted.dynamic_max_kib
            && wanted.dynamic_max_kib <= wanted.static_max_kib
            && wanted.static_max_kib <= MAX_MEMORY_KIB;
        if !ordered {
            return Err(Error::internal(format!(
                "VM {}: memory must satisfy {MIN_MEMORY_KIB} KiB <= dynamic_min ({}) <= dynamic_max ({}) <= static_max ({}) <= {MAX_MEMORY_KIB} KiB",
                vm.id, wanted.dynamic_min_kib, wanted.dynamic_max_kib, wanted.static_max_kib
            )));
        }
        Ok(wanted)
    }
}

/// What starting with `target` takes from the host's free memory.
fn needed_kib(wanted: &Wanted, target_kib: u64) -> u64 {
    (target_kib + overhead_kib(wanted)).next_multiple_of(MEMORY_UNIT_KIB)
}

fn overhead_kib(wanted: &Wanted) -> u64 {
    PV_OVERHEAD_KIB + PER_VCPU_KIB * u64::from(wanted.vcpu_max)
}

/// As much as the host has free, within the VM's dynamic range.
fn target_kib(wanted: &Wanted, host: &Physinfo) -> Result<u64, Error> {
    const KIB_PER_PAGE: u64 = 4;
    let free_pages = (host.free_pages + host.scrub_pages).saturating_sub(host.outstanding_pages);
    let room_kib = (free_pages * KIB_PER_PAGE).saturating_sub(overhead_kib(wanted) + MEMORY_UNIT_KIB);
    if room_kib < wanted.dynamic_min_kib {
        return Err(Error::NotEnoughMemory(bytes(needed_kib(wanted, wanted.dynamic_min_kib))));
    }
    // Whole MiB: what libxenguest builds with.
    Ok(wanted.dynamic_max_kib.min(room_kib).max(wanted.dynamic_min_kib) / 1024 * 1024)
}

fn bytes(kib: u64) -> i64 {
    i64::try_from(kib.saturating_mul(1024)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_vm;

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    fn refused(change: impl Fn(&mut Vm)) -> Error {
        let mut vm = test_vm(ID, "demo");
        change(&mut vm);
        Wanted::of(&vm).unwrap_err()
    }

    #[test]
    fn vcpus_are_bounded_by_the_table_and_the_table_by_the_host() {
        assert_eq!(refused(|vm| vm.vcpus = 0), Error::InvalidVcpus(1));
        assert_eq!(refused(|vm| vm.vcpus = 2), Error::InvalidVcpus(1));
        assert_eq!(refused(|vm| vm.vcpu_max = 0), Error::InvalidVcpus(MAX_VCPUS));
        assert_eq!(refused(|vm| vm.vcpu_max = MAX_VCPUS + 1), Error::InvalidVcpus(MAX_VCPUS));
    }

    #[test]
    fn memory_must_be_ordered_and_positive() {
        for change in [
            |vm: &mut Vm| vm.memory_dynamic_min = 0,
            |vm: &mut Vm| vm.memory_dynamic_min = -1,
            |vm: &mut Vm| vm.memory_dynamic_max = vm.memory_dynamic_min - 1,
            |vm: &mut Vm| vm.memory_static_max = vm.memory_dynamic_max - 1024,
            |vm: &mut Vm| vm.memory_static_max = i64::MAX,
        ] {
            assert!(matches!(refused(change), Error::InternalError(_)));
        }
    }

    #[test]
    fn the_target_is_what_fits_within_the_range() {
        let wanted = Wanted {
            static_max_kib: 1 << 20,
            dynamic_max_kib: 1 << 20,
            dynamic_min_kib: 128 << 10,
            vcpu_max: 1,
            vcpus: 1,
        };
        let host = |free_mib: u64| Physinfo { free_pages: free_mib * 256, ..Physinfo::default() };
        assert_eq!(target_kib(&wanted, &host(4096)).unwrap(), 1 << 20);
        assert_eq!(target_kib(&wanted, &host(516)).unwrap(), 512 << 10);
        assert!(matches!(target_kib(&wanted, &host(128)), Err(Error::NotEnoughMemory(_))));
    }
}
