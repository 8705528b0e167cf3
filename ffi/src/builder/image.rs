//! An owned `xc_dom_image`: each step of the sequence as a method, released once on every path.

use std::ffi::{CStr, c_int};
use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};
use std::time::Instant;

use super::direct::{Segment, View};
use super::pvh::{RamLayout, Range, memory_map};
use super::{BuildError, Built, MAX_RAMDISK, MAX_UNPACKED_KERNEL};
use crate::domid::DomId;
use crate::error::{Error, clear_errno, last_errno};
use crate::evtchn::Port;
use crate::shared::PAGE_SIZE;
use crate::sys;
use crate::xenctrl::{GuestKind, Xenctrl};

/// A failed step, with libxc's own classification.
#[derive(Debug)]
pub(super) struct StepError {
    /// The call and what was logged.
    pub(super) error: Error,
    /// `XC_INVALID_KERNEL`, `XC_OUT_OF_MEMORY`, ...
    pub(super) code: sys::xc_error_code,
}

impl StepError {
    /// What libxenguest said, or the whole error when it said nothing.
    pub(super) fn text(&self) -> String {
        match &self.error {
            Error::Call { detail: Some(detail), .. } => detail.clone(),
            other => other.to_string(),
        }
    }
}

impl From<StepError> for BuildError {
    fn from(failure: StepError) -> Self {
        Self::Hypercall(failure.error)
    }
}

/// A domain image under construction.
///
/// The library keeps pointers to the files' bytes until it is released, so they are borrowed for as long.
pub(super) struct DomImage<'a> {
    raw: NonNull<sys::xc_dom_image>,
    xc: &'a Xenctrl,
    domid: Option<DomId>,
    /// The PVH memory map, which the library reads when it writes the start info.
    memory_map: Vec<sys::e820entry>,
    files: PhantomData<&'a [u8]>,
}

/// Bytes of ACPI tables and the guest-physical address they go to.
#[derive(Debug, Clone, Copy)]
pub(super) struct AcpiTable<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) address: u64,
}

impl<'a> DomImage<'a> {
    pub(super) fn allocate(
        xc: &'a Xenctrl,
        domid: Option<DomId>,
        kind: GuestKind,
        command_line: &CStr,
        features: Option<&CStr>,
    ) -> Result<Self, Error> {
        let handle = xc.raw()?;
        xc.log().clear();
        clear_errno();
        // SAFETY: an open handle; the strings are copied (the command line) or parsed (the features) by the call.
        let raw = unsafe {
            sys::xc_dom_allocate(handle, command_line.as_ptr(), features.map_or(ptr::null(), CStr::as_ptr))
        };
        let errno = last_errno();
        let Some(raw) = NonNull::new(raw) else {
            return Err(Error::plain("xc_dom_allocate", domid, errno));
        };
        let mut image = Self { raw, xc, domid, memory_map: Vec::new(), files: PhantomData };
        let fields = image.fields();
        // The library presets a flag for tools that libxl does not set either.
        fields.flags = 0;
        fields.container_type = match kind {
            GuestKind::Pv => sys::XC_DOM_PV_CONTAINER,
            GuestKind::Pvh | GuestKind::Hvm => sys::XC_DOM_HVM_CONTAINER,
        };
        fields.max_kernel_size = MAX_UNPACKED_KERNEL;
        fields.max_module_size = MAX_RAMDISK;
        Ok(image)
    }

    fn fields(&mut self) -> &mut sys::xc_dom_image {
        // SAFETY: allocated by the library, released only on drop, and nobody else holds a reference: the library
        // looks at it only during the calls made in this module.
        unsafe { self.raw.as_mut() }
    }

    pub(super) const fn xenctrl(&self) -> &'a Xenctrl {
        self.xc
    }

    /// Runs one step. The functions return 0 or a negative number.
    fn step(
        &mut self,
        call: &'static str,
        function: impl FnOnce(*mut sys::xc_dom_image) -> c_int,
    ) -> Result<(), StepError> {
        let no_code = |error| StepError { error, code: sys::XC_ERROR_NONE };
        let handle = self.xc.raw().map_err(no_code)?;
        self.xc.log().clear();
        // SAFETY: an open handle; the function only resets its last error.
        unsafe { sys::xc_clear_last_error(handle) };
        clear_errno();
        let begin = Instant::now();
        let result = function(self.raw.as_ptr());
        let errno = last_errno();
        tracing::debug!(call, took_us = begin.elapsed().as_micros(), result, "a step of a build");
        if result == 0 {
            return Ok(());
        }
        // SAFETY: the library returns a pointer into the handle, read at once.
        let code = unsafe { (*sys::xc_get_last_error(handle)).code };
        // -EINVAL and the like come from the ELF loader; -1 is both "see errno" and -EPERM, which no step returns.
        let errno = if result < -1 { -result } else { errno };
        let domid = self.domid.map(u32::from);
        let error = Error::Call { call, domid, errno, detail: self.xc.log().take_errors() };
        Err(StepError { error, code })
    }

    pub(super) fn set_rings(&mut self, console: (Port, DomId), store: (Port, DomId)) {
        let fields = self.fields();
        (fields.console_evtchn, fields.console_domid) = (console.0.get(), console.1.raw());
        (fields.xenstore_evtchn, fields.xenstore_domid) = (store.0.get(), store.1.raw());
    }

    pub(super) fn set_vcpus(&mut self, vcpus: u32) {
        self.fields().max_vcpus = vcpus;
    }

    pub(super) fn set_claim(&mut self, claim: bool) {
        self.fields().claim_enabled = c_int::from(claim);
    }

    pub(super) fn set_kernel(&mut self, kernel: &'a [u8]) -> Result<(), StepError> {
        self.step("xc_dom_kernel_mem", |dom| {
            // SAFETY: the bytes outlive the image ('a) and the library only reads them.
            unsafe { sys::xc_dom_kernel_mem(dom, kernel.as_ptr().cast(), kernel.len()) }
        })
    }

    /// Adds a ramdisk or another file, with a command line of its own. At most `XG_MAX_MODULES` fit, which the library
    /// does not check.
    pub(super) fn add_module(&mut self, module: &'a [u8], cmdline: Option<&CStr>) -> Result<(), StepError> {
        if self.fields().num_modules >= sys::XG_MAX_MODULES {
            let error = Error::invalid("xc_dom_module_mem", "no more modules fit");
            return Err(StepError { error, code: sys::XC_INVALID_PARAM });
        }
        self.step("xc_dom_module_mem", |dom| {
            let line = cmdline.map_or(ptr::null(), CStr::as_ptr);
            // SAFETY: as in `set_kernel`; there is room in the array of modules; the command line is copied.
            unsafe { sys::xc_dom_module_mem(dom, module.as_ptr().cast(), module.len(), line) }
        })
    }

    /// Asks the hypervisor which guests it runs, and notes the domain.
    pub(super) fn ask_capabilities(&mut self, domid: DomId) -> Result<(), StepError> {
        let handle = self.xc.raw().map_err(|error| StepError { error, code: sys::XC_ERROR_NONE })?;
        self.step("xc_dom_boot_xen_init", |dom| {
            // SAFETY: the handle the image was allocated with, which reaches Xen.
            unsafe { sys::xc_dom_boot_xen_init(dom, handle, domid.raw()) }
        })
    }

    /// Pretends a hypervisor that runs 64-bit PV and PVH guests, to parse a kernel without one.
    pub(super) fn assume_capabilities(&mut self) {
        let caps = &mut self.fields().xen_caps;
        for (to, from) in caps.iter_mut().zip(b"xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_64 \0") {
            *to = from.cast_signed();
        }
    }

    pub(super) fn parse(&mut self) -> Result<(), StepError> {
        self.step("xc_dom_parse_image", |dom| {
            // SAFETY: a kernel was set. The function needs no hypervisor.
            unsafe { sys::xc_dom_parse_image(dom) }
        })
    }

    /// The kernel's bytes: the file's, or what the library unpacked from them.
    pub(super) fn kernel(&mut self) -> &[u8] {
        let fields = self.fields();
        if fields.kernel_blob.is_null() {
            return &[];
        }
        // SAFETY: the library keeps blob and size in step; the blob is the file or belongs to the image.
        unsafe { std::slice::from_raw_parts(fields.kernel_blob.cast::<u8>(), fields.kernel_size) }
    }

    /// Where the RAM of a guest in a hardware container goes. It gets all of it at once: no populate-on-demand.
    pub(super) fn set_layout(&mut self, layout: RamLayout, vga_hole_pages: u64, device_model: bool) {
        let fields = self.fields();
        fields.mmio_start = layout.hole_start;
        fields.mmio_size = (1 << 32) - layout.hole_start;
        fields.lowmem_end = layout.low_end;
        fields.highmem_end = layout.high_end;
        fields.vga_hole_size = vga_hole_pages;
        fields.device_model = device_model;
    }

    /// The firmware an HVM guest's loader starts.
    pub(super) fn set_firmware(&mut self, firmware: &'a [u8]) -> Result<(), Error> {
        let length = u32::try_from(firmware.len())
            .map_err(|_| Error::invalid("xc_dom_build_image", "the firmware is too large"))?;
        // The bytes outlive the image ('a), and the library only reads them.
        let module = &mut self.fields().system_firmware_module;
        (module.data, module.length) = (firmware.as_ptr().cast_mut(), length);
        Ok(())
    }

    /// Adds the ACPI tables and describes the guest's memory, after it was taken.
    pub(super) fn describe(&mut self, domid: DomId, acpi: &[AcpiTable<'a>]) -> Result<(), Error> {
        let invalid = || Error::invalid("xc_dom_build_image", "the ACPI tables do not fit");
        let fields = self.fields();
        let (low_end, high_end) = (fields.lowmem_end, fields.highmem_end);
        for (number, table) in acpi.iter().enumerate() {
            let slot = fields.acpi_modules.get_mut(number).ok_or_else(invalid)?;
            slot.data = table.bytes.as_ptr().cast_mut();
            slot.length = u32::try_from(table.bytes.len()).map_err(|_| invalid())?;
            slot.guest_addr_out = table.address;
        }
        let count = self.set_memory_map(domid, &memory_map(low_end, high_end, acpi))?;
        // The map lives in this struct, at this address, until the image is released.
        let entries = self.memory_map.as_mut_ptr();
        let fields = self.fields();
        (fields.e820, fields.e820_entries) = (entries, count);
        Ok(())
    }

    /// Tells the hypervisor where the guest's memory is. Returns the number of ranges.
    pub(super) fn set_memory_map(&mut self, domid: DomId, map: &[Range]) -> Result<u32, Error> {
        let entry = |range: &Range| sys::e820entry {
            addr: range.address,
            size: range.size,
            type_: range.kind as u32,
        };
        self.memory_map = map.iter().map(entry).collect();
        let entries = self.memory_map.as_mut_ptr();
        let count = u32::try_from(self.memory_map.len())
            .map_err(|_| Error::invalid("xc_domain_set_memory_map", "too many ranges"))?;
        self.xc.run("xc_domain_set_memory_map", Some(domid), |raw| {
            // SAFETY: `count` entries, copied by the call.
            unsafe { sys::xc_domain_set_memory_map(raw, domid.raw(), entries, count) }
        })?;
        Ok(count)
    }

    pub(super) fn set_memory(&mut self, mib: u32) -> Result<(), StepError> {
        self.step("xc_dom_mem_init", |dom| {
            // SAFETY: the image was parsed, so its guest type is known.
            unsafe { sys::xc_dom_mem_init(dom, mib) }
        })
    }

    /// The memory is what the domain gets now, all of it.
    pub(super) fn target_all(&mut self) {
        let fields = self.fields();
        fields.target_pages = fields.total_pages;
    }

    pub(super) fn populate(&mut self) -> Result<(), StepError> {
        self.step("xc_dom_boot_mem_init", |dom| {
            // SAFETY: the memory size is set, so the architecture hooks are.
            unsafe { sys::xc_dom_boot_mem_init(dom) }
        })
    }

    pub(super) fn load(&mut self) -> Result<(), StepError> {
        self.step("xc_dom_build_image", |dom| {
            // SAFETY: the image was parsed and has memory.
            unsafe { sys::xc_dom_build_image(dom) }
        })
    }

    /// Reads a kernel into the place that was laid out for it by its view.
    pub(super) fn read_kernel(&mut self, view: &View<'_>) -> Result<(), Error> {
        let begin = Instant::now();
        let place = self.kernel_place()?;
        for segment in view.segments() {
            place.fill(segment, view.file().as_ref(), self.domid)?;
        }
        tracing::debug!(took_us = begin.elapsed().as_micros(), "the kernel was read into the guest");
        Ok(())
    }

    /// Where the kernel's memory is mapped; it stays so until the image is released.
    fn kernel_place(&mut self) -> Result<Place, Error> {
        let (domid, dom) = (self.domid, self.raw.as_ptr());
        let fields = self.fields();
        let (first, pages) = (fields.kernel_seg.pfn, fields.kernel_seg.pages);
        // SAFETY: the image is loaded; the range is the one its loader has mapped, and that mapping is returned.
        let address = unsafe { sys::xc_dom_pfn_to_ptr(dom, first, pages) };
        let address = NonNull::new(address.cast()).filter(|_| pages > 0);
        let address = address.ok_or_else(|| Error::plain("xc_dom_pfn_to_ptr", domid, last_errno()))?;
        let size = usize::try_from(pages).ok().and_then(|pages| pages.checked_mul(PAGE_SIZE));
        let size = size.ok_or_else(|| Error::invalid("xc_dom_pfn_to_ptr", "the kernel is too large"))?;
        Ok(Place { address, size })
    }

    pub(super) fn boot(&mut self) -> Result<(), StepError> {
        self.step("xc_dom_boot_image", |dom| {
            // SAFETY: the image is loaded.
            unsafe { sys::xc_dom_boot_image(dom) }
        })
    }

    pub(super) fn seed_grants(&mut self) -> Result<(), StepError> {
        self.step("xc_dom_gnttab_init", |dom| {
            // SAFETY: the image is booted, so the rings' frames are known.
            unsafe { sys::xc_dom_gnttab_init(dom) }
        })
    }

    /// The rings' frames, after `boot`.
    pub(super) fn rings(&mut self) -> Result<Built, BuildError> {
        // SAFETY: the image was parsed.
        let translated = unsafe { sys::xc_dom_translated(self.raw.as_ptr()) };
        let fields = self.fields();
        let (store, console, pages) = (fields.xenstore_pfn, fields.console_pfn, fields.total_pages);
        if translated {
            return Ok(Built { store_mfn: store, console_mfn: console });
        }
        let p2m = fields.pv_p2m;
        let machine_frame = |pfn: u64| {
            let index = usize::try_from(pfn).ok().filter(|_| pfn < pages && !p2m.is_null());
            // SAFETY: the table has an entry for each of the domain's `total_pages` pages.
            index.map(|index| unsafe { *p2m.add(index) })
        };
        match (machine_frame(store), machine_frame(console)) {
            (Some(store_mfn), Some(console_mfn)) => Ok(Built { store_mfn, console_mfn }),
            _ => Err(Error::invalid("xc_dom_boot_image", "the rings are outside the domain's memory").into()),
        }
    }
}

/// Memory of a guest that does not run, mapped for writing.
struct Place {
    address: NonNull<u8>,
    size: usize,
}

impl Place {
    /// Reads a segment, and zeroes what the file has not of it.
    fn fill(&self, segment: &Segment, file: &File, domid: Option<DomId>) -> Result<(), Error> {
        let (place, mut from) = (&segment.place, segment.file.clone());
        if place.end > self.size || from.end - from.start > place.len() as u64 {
            return Err(Error::invalid("xc_dom_build_image", "the kernel does not fit into its place"));
        }
        let mut at = place.start;
        while !from.is_empty() {
            let offset = i64::try_from(from.start).map_err(|e| Error::invalid("pread", e.to_string()))?;
            let count = usize::try_from(from.end - from.start).unwrap_or(usize::MAX);
            // SAFETY: `count` is at most what the segment's place, which ends inside the mapping, has left from `at` on.
            let read = unsafe {
                let to = self.address.add(at);
                libc::pread(file.as_raw_fd(), to.as_ptr().cast(), count, offset)
            };
            match usize::try_from(read) {
                Ok(0) => return Err(Error::invalid("pread", "the kernel's file has become shorter")),
                Ok(read) => (at, from.start) = (at + read, from.start + read as u64),
                Err(_) if last_errno() == libc::EINTR => {}
                Err(_) => return Err(Error::plain("pread", domid, last_errno())),
            }
        }
        if !segment.zeroed() {
            // SAFETY: from `at` to the end of the segment's place, which is inside the mapping.
            unsafe { self.address.add(at).write_bytes(0, place.end - at) };
        }
        Ok(())
    }
}

impl Drop for DomImage<'_> {
    fn drop(&mut self) {
        // SAFETY: released once; the handle is borrowed and so still open.
        unsafe { sys::xc_dom_release(self.raw.as_ptr()) };
    }
}
