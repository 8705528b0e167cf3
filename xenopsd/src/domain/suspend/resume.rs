//! A domain from an image.

use std::sync::atomic::Ordering;

use super::ModelState;
use crate::api::{Disk, Error};
use crate::domain::VmExecutor;
use crate::domain::memory::{Wanted, bytes};
use crate::domain::platform::{creation, platform};
use crate::domain::scheduling::Scheduling;
use crate::domain::suspend_image::{ImageReader, RecordKind, SuspendImageError, XenopsRecord};
use crate::edge::{GuestKind, HypervisorError, SuspendFile};

impl VmExecutor<'_> {
    /// Finds all that can be found wrong before anything is taken.
    pub(in crate::domain) fn check_resume(&self, disk: &Disk) -> Result<(), Error> {
        let wanted = Wanted::of(&self.records.vm)?;
        let image = self.core.edges.host().open_image(&self.image_path(disk)?)?;
        let (_, record) = ImageReader::open(image.file()).map_err(|e| unusable(&image, &e))?;
        if record.vm.as_deref().is_some_and(|vm| vm != self.vm()) {
            // As after a clone of a suspended VM.
            tracing::info!(vm = self.vm(), from = record.vm, "resuming from an image made of another VM");
        }
        self.absolute_pointer.store(record.absolute_pointer, Ordering::Relaxed);
        let target_kib = self.suspended_kib(&wanted, &record)?;
        let host = self.core.edges.hypervisor()?.host()?;
        wanted.check_room(target_kib, &host)?;
        platform(&self.records.vm)?;
        creation(&self.records.vm, wanted.kind, &host)?;
        Scheduling::of(&self.records.vm, &host)?;
        self.check_devices()?;
        self.check_passed_through(&host)?;
        self.check_terminal()?;
        self.check_device_model()?;
        self.hold_image(image);
        Ok(())
    }

    /// Memory, processors, rings; then the store is told.
    pub(in crate::domain) fn restore_domain(&self, disk: &Disk) -> Result<(), Error> {
        let wanted = Wanted::of(&self.records.vm)?;
        // The check left it open and read up to the memory; it is read again to be sure of the position.
        drop(self.take_image());
        let image = self.core.edges.host().open_image(&self.image_path(disk)?)?;
        let (mut reader, record) = ImageReader::open(image.file()).map_err(|e| unusable(&image, &e))?;
        let target_kib = self.suspended_kib(&wanted, &record)?;
        let domid = self.domid()?;
        let resources = wanted.resources(target_kib, platform(&self.records.vm)?);
        let hypervisor = self.core.edges.hypervisor()?;
        let restored =
            self.stream(&image, |stream| hypervisor.restore(domid, wanted.kind, &resources, stream));
        let built = restored.map_err(|error| match error {
            HypervisorError::Call(text) => Error::internal(format!(
                "suspend image {} cannot be restored; it may be damaged or cut short: {text}",
                image.path().display()
            )),
            other => self.fill_error(&wanted, target_kib, other),
        })?;
        drop(hypervisor);
        let rest = reader.rest().map_err(|e| unusable(&image, &e))?;
        self.keep_state(rest, &record, &wanted).ok_or_else(|| {
            Error::internal(format!("suspend image {}: {NO_MODEL}", image.path().display()))
        })?;
        self.introduce(domid, &wanted, target_kib, built)
    }

    /// Takes a device model's state out of what is in the image beside the memory; none when it should be there and is not.
    fn keep_state(
        &self,
        rest: Vec<(RecordKind, Vec<u8>)>,
        record: &XenopsRecord,
        wanted: &Wanted,
    ) -> Option<()> {
        let mut state = None;
        for (kind, bytes) in rest {
            match kind {
                RecordKind::QemuTrad | RecordKind::QemuXen if wanted.kind == GuestKind::Hvm => {
                    state = Some(bytes);
                }
                _ => tracing::warn!(
                    vm = self.vm(),
                    ?kind,
                    "state in the image that has no use here is left out"
                ),
            }
        }
        // An image of somebody else's does not say; its device model had as many as its guest.
        let said = record.emulated_vcpus.or_else(|| usize::try_from(wanted.vcpus).ok());
        let found = state.zip(said).map(|(bytes, vcpus)| ModelState { bytes, vcpus });
        let complete = found.is_some() || wanted.kind != GuestKind::Hvm;
        self.hold_state(found);
        complete.then_some(())
    }

    pub(in crate::domain) fn forget_image(&self) -> Result<(), Error> {
        self.core.records.update_extra(self.vm(), |extra| extra.suspend_memory_bytes = 0)
    }

    /// What it had when it was suspended: as remembered, else as the image says, else as it would be started with.
    fn suspended_kib(&self, wanted: &Wanted, record: &XenopsRecord) -> Result<u64, Error> {
        let remembered = u64::try_from(self.core.records.extra(self.vm())?.suspend_memory_bytes).unwrap_or(0);
        let had = if remembered > 0 { Some(remembered) } else { record.memory_bytes };
        let kib =
            had.map_or(wanted.dynamic_max_kib, |had| had.div_ceil(1024).saturating_sub(wanted.shim_kib));
        let kib = whole_mib(wanted, kib);
        if kib > wanted.static_max_kib.saturating_add(SLACK_KIB) {
            return Err(Error::internal(format!(
                "VM {}: the image has {} bytes of memory, more than memory_static_max",
                self.vm(),
                bytes(kib)
            )));
        }
        Ok(kib)
    }
}

/// Without what a guest in a container has beside the memory it was given, which its balloon is not to ask for: a few pages for
/// tables and rings, and with a device model the firmware of its cards; the window of its video card is missing instead.
fn whole_mib(wanted: &Wanted, kib: u64) -> u64 {
    match wanted.kind {
        GuestKind::Pv => kib,
        GuestKind::Pvh => kib / 1024 * 1024,
        GuestKind::Hvm => {
            let nearest = (kib + 512) / 1024 * 1024;
            let given = wanted.dynamic_max_kib / 1024 * 1024;
            if (given..=given + SLACK_KIB).contains(&nearest) { given } else { nearest }
        }
    }
}

/// Why an image is of no use to an HVM guest.
const NO_MODEL: &str = "it has no state of a device model: it is not of an HVM guest";

/// What a domain may have above its target: the hypervisor's limit leaves as much (`LIBXL_MAXMEM_CONSTANT`).
const SLACK_KIB: u64 = 1024;

fn unusable(image: &SuspendFile, error: &SuspendImageError) -> Error {
    Error::internal(format!("suspend image {}: {error}", image.path().display()))
}
