//! A domain's beginning: checks, the empty domain, and its build.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;

use uuid::Uuid;
use xenstore::Operations;
use xenstore::layout::{self, Console, ConsoleServer, Memory};
use xenstore::vmdata::VmData;

use super::bootloader;
use super::memory::{Wanted, bytes};
use super::platform::{self, creation, platform};
use super::scheduling::Scheduling;
use super::{VmExecutor, domain_kind, guest_kind};
use crate::api::{Boot, BuilderInfo, Dict, DirectBoot, Error, FirmwareType, PvInfo, Vm};
use crate::device::{store_domid, vbd, vif};
use crate::edge::{
    Built, DomId, DomainImage, Firmware, GrantFrames, GuestKind, HvmImage, HypervisorError, Image,
    ImageError, ImageFile, KernelImage, MAX_KERNEL, MAX_RAMDISK, NewDomain, Pages, ShimImage,
};
use crate::state::journal::Resource;

/// What the PV shim is told: what it is, and that its guest's console is the domain's. (xapi's and libxl's words.)
const SHIM_CMDLINE: &str = "pv-shim console=xen,pv";

/// Kernel and ramdisk, open.
#[derive(Debug)]
pub(super) struct BootFiles {
    kernel: ImageFile,
    ramdisk: Option<ImageFile>,
    cmdline: String,
}

/// What the marker says of a domain that is not complete yet.
const CREATING: &str = "creating";

impl VmExecutor<'_> {
    /// Finds all that can be found wrong before anything is taken.
    pub(super) fn check_start(&self) -> Result<(), Error> {
        let vm = &self.records.vm;
        let wanted = Wanted::of(vm)?;
        platform(vm)?;
        platform::nodes(vm)?;
        let host = self.core.edges.hypervisor()?.host()?;
        creation(vm, wanted.kind, &host)?;
        Scheduling::of(vm, &host)?;
        let files = match (&vm.ty, vm.indirect_boot()) {
            (BuilderInfo::Hvm(_), _) => None,
            (_, Some(boot)) => bootloader::check(vm, boot).map(|()| None)?,
            (_, None) => Some(BootFiles::open(vm)?),
        };
        for firmware in firmware(vm) {
            self.core.edges.host().open_firmware(*firmware)?;
        }
        wanted.target_kib(&host)?;
        self.check_devices()?;
        self.check_passed_through(&host)?;
        self.check_terminal()?;
        self.check_device_model()?;
        if let Some(files) = files {
            self.keep_files(files);
        }
        Ok(())
    }

    /// All devices of the records, and that no two are in the same place.
    pub(super) fn check_devices(&self) -> Result<(), Error> {
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
        Ok(())
    }

    /// An empty domain and its skeleton in the store.
    pub(super) fn create_domain(&self) -> Result<(), Error> {
        let vm = &self.records.vm;
        let wanted = Wanted::of(vm)?;
        let uuid = self.uuid()?;
        let devices =
            u32::try_from(self.records.vifs.len() * 8 + self.records.vbds.len() + 9).unwrap_or(u32::MAX);
        let platform = platform(vm)?;
        let time_offset = matches!(vm.ty, BuilderInfo::Hvm(_)).then_some(platform.time_offset);
        let hypervisor = self.core.edges.hypervisor()?;
        let creation = creation(vm, wanted.kind, &hypervisor.host()?)?;
        let plain = NewDomain::new(guest_kind(vm), *uuid.as_bytes(), wanted.vcpu_max);
        let new = NewDomain {
            hap: creation.hap,
            nested_virt: creation.nested_virt,
            vpmu: creation.vpmu,
            msr_relaxed: creation.msr_relaxed,
            // Each interface needs frames for its queues; the hypervisor's own default is the least.
            max_grant_frames: creation
                .max_grant_frames
                .map_or(GrantFrames::Estimate(devices.max(plain.max_grant_frames.get())), GrantFrames::Wish),
            ssidref: u32::try_from(vm.ssidref).unwrap_or(0),
            ..plain
        };
        self.core.journal.take(self.vm(), Resource::Domain)?;
        let domid = hypervisor.create(&new)?;
        self.core.runtimes.with(self.vm(), |r| r.domid = Some(domid));
        let target_kib = wanted.target_kib(&hypervisor.host()?)?;
        hypervisor
            .equip(domid, wanted.kind, &wanted.resources(target_kib, platform))
            .map_err(|error| self.fill_error(&wanted, target_kib, error))?;
        drop(hypervisor);
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
            kind: domain_kind(vm),
            unique_id: Uuid::new_v4(),
            platform: pairs(&platform::nodes(vm)?, "platformdata")?,
            bios_strings: pairs(&vm.bios_strings, "bios_strings")?,
            bios: bios(vm),
            time_offset,
            vendor_device: vm.has_vendor_device,
            vm_data,
            keep_vm: false,
        };
        let mut batch = skeleton.create();
        batch.write(Self::pending_marker(domid)?, CREATING);
        Ok(self.core.edges.store()?.commit(&batch)?)
    }

    /// A daemon killed while a domain gets its memory is followed by one that removes it.
    pub(super) fn begin_build(&self) -> Result<(), Error> {
        Ok(self.core.edges.store()?.write(&Self::pending_marker(self.domid()?)?, CREATING)?)
    }

    /// Memory, kernel, rings; then the store is told.
    pub(super) fn build_domain(&self) -> Result<(), Error> {
        let vm = &self.records.vm;
        let wanted = Wanted::of(vm)?;
        let files = match (self.files(), &vm.ty) {
            (_, BuilderInfo::Hvm(_)) => None,
            (Some(files), _) => Some(files),
            (None, _) => Some(BootFiles::open(vm)?),
        };
        let read = |file: ImageFile, pages| file.read(pages).map_err(|e| image_error(vm, &e));
        let open = |wanted: &Firmware| read(self.core.edges.host().open_firmware(*wanted)?, Pages::Now);
        let firmware = firmware(vm).iter().map(open);
        let firmware = firmware.collect::<Result<Vec<_>, _>>()?;
        let (kernel, ramdisk, cmdline) = match files {
            None => (None, None, String::new()),
            Some(BootFiles { kernel, ramdisk, cmdline }) => {
                let ramdisk = ramdisk.map(|file| read(file, Pages::Now)).transpose()?;
                // Read into the guest from its file, all but its headers.
                (Some(read(kernel, Pages::WhenTouched)?), ramdisk, cmdline)
            }
        };
        let domid = self.domid()?;
        let hypervisor = self.core.edges.hypervisor()?;
        let target_kib = wanted.target_kib(&hypervisor.host()?)?;
        let shim_cmdline = format!("{SHIM_CMDLINE} shim_mem={}K", wanted.shim_kib);
        let loaded = kernel.as_ref().map(|kernel| KernelImage {
            kernel,
            ramdisk: ramdisk.as_ref(),
            cmdline: &cmdline,
        });
        let image = match (loaded, &firmware[..], wanted.kind) {
            (Some(loaded), [], GuestKind::Pv) => DomainImage::Pv(loaded),
            (Some(loaded), [], GuestKind::Pvh) => DomainImage::Pvh(loaded),
            (Some(loaded), [shim], GuestKind::Pvh) => {
                DomainImage::PvInPvh(ShimImage { shim, cmdline: &shim_cmdline }, loaded)
            }
            (None, [loader, firmware], GuestKind::Hvm) => {
                DomainImage::Hvm(HvmImage { loader, firmware, hole_size: platform::hole_size(vm)? })
            }
            _ => return Err(Error::internal(format!("VM {}: its kind and its files do not fit", vm.id))),
        };
        let built = hypervisor
            .build(domid, &wanted.resources(target_kib, platform(vm)?), &image)
            .map_err(|error| self.fill_error(&wanted, target_kib, error))?;
        drop((kernel, ramdisk, firmware));
        drop(hypervisor);
        self.introduce(domid, &wanted, target_kib, built)
    }

    /// What a failed build or restore is to the client.
    pub(super) fn fill_error(&self, wanted: &Wanted, target_kib: u64, error: HypervisorError) -> Error {
        match error {
            HypervisorError::Image(message) => Error::BootloaderError { id: self.vm().to_owned(), message },
            HypervisorError::Memory(text) => {
                tracing::warn!(vm = self.vm(), "{text}");
                Error::NotEnoughMemory(bytes(wanted.needed_kib(target_kib)))
            }
            HypervisorError::Call(text) => Error::internal(text),
            HypervisorError::Stopped => self.task.cancelled_error(),
        }
    }

    /// Tells the scheduler, the store and xenstored of a domain that has its memory.
    pub(super) fn introduce(
        &self,
        domid: DomId,
        wanted: &Wanted,
        target_kib: u64,
        built: Built,
    ) -> Result<(), Error> {
        let vm = &self.records.vm;
        let hypervisor = self.core.edges.hypervisor()?;
        Scheduling::of(vm, &hypervisor.host()?)?.set(&**hypervisor, domid)?;
        let nodes = layout::Built {
            domid: store_domid(domid),
            uuid: self.uuid()?,
            kind: domain_kind(vm),
            memory: Memory {
                // A guest in a hardware container is told how much it was built with: Linux takes what is missing from
                // this for memory of its video card, and gives as much back.
                static_max: match wanted.kind {
                    GuestKind::Pv => wanted.static_max_kib.max(target_kib),
                    GuestKind::Pvh | GuestKind::Hvm => target_kib,
                },
                dynamic_max: wanted.dynamic_max_kib,
                dynamic_min: wanted.dynamic_min_kib,
                // That of its video card included, as in the size it was built with: Linux' balloon takes the one from the
                // other. With less, as `xl` has it, each guest would give that memory back as soon as it is up.
                target: target_kib,
                video: wanted.video_kib,
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
            cmdline: boot.cmdline.clone(),
        })
    }

    /// What a boot loader has found.
    pub(super) fn found(kernel: ImageFile, ramdisk: Option<ImageFile>, cmdline: String) -> Self {
        Self { kernel, ramdisk, cmdline }
    }
}

/// What a file that a VM cannot be started with is to the client.
pub(super) fn image_error(vm: &Vm, error: &ImageError) -> Error {
    match error {
        ImageError::Missing { what, path } => Error::does_not_exist(*what, path.display().to_string()),
        ImageError::Unusable { .. } => {
            Error::BootloaderError { id: vm.id.clone(), message: error.to_string() }
        }
    }
}

fn direct_boot(vm: &Vm) -> Result<&DirectBoot, Error> {
    match &vm.ty {
        BuilderInfo::Pv(info) | BuilderInfo::Pvh(info) | BuilderInfo::PvInPvh(info) => match info {
            PvInfo { boot: Boot::Direct(direct), .. } => Ok(direct),
            PvInfo { boot: Boot::Indirect(_), .. } => Err(Error::internal("the kernel was not looked for")),
        },
        BuilderInfo::Hvm(_) => Err(Error::internal("an HVM guest has no kernel of its own")),
    }
}

/// The files of this host's that a VM starts with, in the order in which each starts the next.
fn firmware(vm: &Vm) -> &'static [Firmware] {
    match &vm.ty {
        BuilderInfo::Pv(_) | BuilderInfo::Pvh(_) => &[],
        BuilderInfo::PvInPvh(_) => &[Firmware::PvShim],
        BuilderInfo::Hvm(hvm) => match hvm.firmware {
            FirmwareType::Bios => &[Firmware::Hvmloader, Firmware::SeaBios],
            FirmwareType::Uefi(_) => &[Firmware::Hvmloader, Firmware::Ovmf],
        },
    }
}

/// What hvmloader calls the firmware.
fn bios(vm: &Vm) -> Option<&'static str> {
    match &vm.ty {
        BuilderInfo::Hvm(hvm) => Some(match hvm.firmware {
            FirmwareType::Bios => "seabios",
            FirmwareType::Uefi(_) => "ovmf",
        }),
        _ => None,
    }
}
