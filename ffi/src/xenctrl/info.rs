//! What the hypervisor knows of domains and their vCPUs.

use std::ffi::c_uint;

use super::Xenctrl;
use crate::domid::DomId;
use crate::error::Result;
use crate::sys;

/// Domains fetched per hypercall. One call for a host of usual size; a bigger one takes a few.
const BATCH: u32 = 1024;

/// Why a domain stopped running, as the guest (or the hypervisor, for a crash) said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShutdownReason {
    /// Powered off.
    PowerOff,
    /// Wants to be started again.
    Reboot,
    /// Suspended: its memory can be saved.
    Suspend,
    /// Crashed.
    Crash,
    /// Its watchdog expired.
    Watchdog,
    /// Wants its devices and event channels reset, memory kept.
    SoftReset,
    /// A code this program does not know; guests can pass any.
    Other(u8),
}

impl ShutdownReason {
    /// By the number in `xen/sched.h`.
    pub const fn from_code(code: u8) -> Self {
        match code as u32 {
            sys::SHUTDOWN_poweroff => Self::PowerOff,
            sys::SHUTDOWN_reboot => Self::Reboot,
            sys::SHUTDOWN_suspend => Self::Suspend,
            sys::SHUTDOWN_crash => Self::Crash,
            sys::SHUTDOWN_watchdog => Self::Watchdog,
            sys::SHUTDOWN_soft_reset => Self::SoftReset,
            _ => Self::Other(code),
        }
    }

    /// The number in `xen/sched.h`.
    #[expect(clippy::cast_possible_truncation, reason = "the constants are below 6")]
    pub const fn code(self) -> u8 {
        match self {
            Self::PowerOff => sys::SHUTDOWN_poweroff as u8,
            Self::Reboot => sys::SHUTDOWN_reboot as u8,
            Self::Suspend => sys::SHUTDOWN_suspend as u8,
            Self::Crash => sys::SHUTDOWN_crash as u8,
            Self::Watchdog => sys::SHUTDOWN_watchdog as u8,
            Self::SoftReset => sys::SHUTDOWN_soft_reset as u8,
            Self::Other(code) => code,
        }
    }
}

/// One domain, as the hypervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its id. Ids are used again: the UUID tells whether it is still the same domain.
    pub domid: DomId,
    /// The UUID it was created with, in text order.
    pub uuid: [u8; 16],
    /// Being destroyed; it stays listed until nobody holds its memory any more.
    pub dying: bool,
    /// It has shut down, and why.
    pub shutdown: Option<ShutdownReason>,
    /// Paused by the toolstack.
    pub paused: bool,
    /// No vCPU can run: all wait for an event.
    pub blocked: bool,
    /// A vCPU is on a CPU at this moment.
    pub running: bool,
    /// A debugger holds it.
    pub debugged: bool,
    /// An HVM container: an HVM or a PVH guest.
    pub hvm: bool,
    /// Hardware-assisted paging is in use.
    pub hap: bool,
    /// It serves xenstore.
    pub xs_domain: bool,
    /// Pages (4 KiB) it has.
    pub tot_pages: u64,
    /// Pages it may have at most.
    pub max_pages: u64,
    /// Pages claimed for it and not yet taken.
    pub outstanding_pages: u64,
    /// Pages shared with other domains.
    pub shared_pages: u64,
    /// Pages paged out.
    pub paged_pages: u64,
    /// Frame of the shared info page.
    pub shared_info_frame: u64,
    /// CPU time used by all vCPUs together, nanoseconds.
    pub cpu_time_ns: u64,
    /// vCPUs online.
    pub nr_online_vcpus: u32,
    /// Largest vCPU number, `None` when it has no vCPUs yet.
    pub max_vcpu_id: Option<u32>,
    /// XSM security label.
    pub ssidref: u32,
    /// CPU pool it runs in.
    pub cpupool: u32,
    /// Emulated devices it was created with (`XEN_X86_EMU_*`); tells PVH from HVM.
    pub emulation_flags: u32,
}

impl DomainInfo {
    /// `None` for an id that is not a domain's: the list never holds one, but the field could.
    fn from_raw(raw: &sys::xc_domaininfo_t) -> Option<Self> {
        let flag = |bit: u32| raw.flags & bit != 0;
        let reason = (raw.flags >> sys::XEN_DOMINF_shutdownshift) & sys::XEN_DOMINF_shutdownmask;
        Some(Self {
            domid: DomId::new(raw.domain)?,
            uuid: raw.handle,
            dying: flag(sys::XEN_DOMINF_dying),
            shutdown: flag(sys::XEN_DOMINF_shutdown)
                .then(|| ShutdownReason::from_code(u8::try_from(reason).unwrap_or(u8::MAX))),
            paused: flag(sys::XEN_DOMINF_paused),
            blocked: flag(sys::XEN_DOMINF_blocked),
            running: flag(sys::XEN_DOMINF_running),
            debugged: flag(sys::XEN_DOMINF_debugged),
            hvm: flag(sys::XEN_DOMINF_hvm_guest),
            hap: flag(sys::XEN_DOMINF_hap),
            xs_domain: flag(sys::XEN_DOMINF_xs_domain),
            tot_pages: raw.tot_pages,
            max_pages: raw.max_pages,
            outstanding_pages: raw.outstanding_pages,
            shared_pages: raw.shr_pages,
            paged_pages: raw.paged_pages,
            shared_info_frame: raw.shared_info_frame,
            cpu_time_ns: raw.cpu_time,
            nr_online_vcpus: raw.nr_online_vcpus,
            max_vcpu_id: (raw.max_vcpu_id != sys::FFI_INVALID_MAX_VCPU_ID).then_some(raw.max_vcpu_id),
            ssidref: raw.ssidref,
            cpupool: raw.cpupool,
            emulation_flags: raw.arch_config.emulation_flags,
        })
    }
}

/// One vCPU, as the hypervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuInfo {
    /// Its number.
    pub vcpu: u32,
    /// The guest has it online.
    pub online: bool,
    /// Waiting for an event.
    pub blocked: bool,
    /// On a CPU at this moment.
    pub running: bool,
    /// CPU time used, nanoseconds.
    pub cpu_time_ns: u64,
    /// The CPU it runs on or last ran on.
    pub cpu: u32,
}

impl Xenctrl {
    /// Up to `max` domains with ids from `first` on, in order of id.
    ///
    /// # Errors
    /// [`crate::Error::Call`].
    pub fn domain_info_list(&self, first: DomId, max: usize) -> Result<Vec<DomainInfo>> {
        let mut domains = Vec::new();
        let mut next = first.raw();
        while domains.len() < max && next <= DomId::MAX.raw() {
            let wanted = u32::try_from(max - domains.len()).unwrap_or(BATCH).min(BATCH);
            let batch = self.getinfolist(next, wanted)?;
            let Some(last) = batch.last() else { break };
            next = u32::from(last.domain) + 1;
            let complete = batch.len() < wanted as usize;
            domains.extend(batch.iter().filter_map(DomainInfo::from_raw));
            if complete {
                break;
            }
        }
        Ok(domains)
    }

    /// Every domain of the host, dom0 and dying ones included.
    ///
    /// # Errors
    /// [`crate::Error::Call`].
    pub fn domains(&self) -> Result<Vec<DomainInfo>> {
        self.domain_info_list(DomId::DOM0, usize::MAX)
    }

    /// One domain, or `None` when there is none of that id.
    ///
    /// # Errors
    /// [`crate::Error::Call`].
    pub fn domain_info(&self, domid: DomId) -> Result<Option<DomainInfo>> {
        // The call answers with the first domain from this id on.
        let found = self.getinfolist(domid.raw(), 1)?;
        Ok(found.first().and_then(DomainInfo::from_raw).filter(|d| d.domid == domid))
    }

    fn getinfolist(&self, first: u32, max: u32) -> Result<Vec<sys::xc_domaininfo_t>> {
        // SAFETY: a struct of integers and byte arrays, for which zero is a value.
        let empty: sys::xc_domaininfo_t = unsafe { std::mem::zeroed() };
        let mut batch = vec![empty; max as usize];
        let count = self.run("xc_domain_getinfolist", None, |raw| {
            // SAFETY: the array has `max` elements.
            unsafe { sys::xc_domain_getinfolist(raw, first, max as c_uint, batch.as_mut_ptr()) }
        })?;
        batch.truncate(count.unsigned_abs() as usize);
        Ok(batch)
    }

    /// One vCPU of a domain.
    ///
    /// # Errors
    /// [`crate::Error::Call`]; `ESRCH` when there is no such domain or vCPU.
    pub fn vcpu_info(&self, domid: DomId, vcpu: u32) -> Result<VcpuInfo> {
        // SAFETY: a struct of integers, for which zero is a value.
        let mut info: sys::xc_vcpuinfo_t = unsafe { std::mem::zeroed() };
        self.run("xc_vcpu_getinfo", Some(domid), |raw| {
            // SAFETY: `info` is the struct the call fills.
            unsafe { sys::xc_vcpu_getinfo(raw, domid.raw(), vcpu, &raw mut info) }
        })?;
        Ok(VcpuInfo {
            vcpu,
            online: info.online != 0,
            blocked: info.blocked != 0,
            running: info.running != 0,
            cpu_time_ns: info.cpu_time,
            cpu: info.cpu,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> sys::xc_domaininfo_t {
        // SAFETY: as in `getinfolist`.
        unsafe { std::mem::zeroed() }
    }

    #[test]
    fn a_crashed_domain_is_shut_down_with_a_reason() {
        let mut info = raw();
        info.domain = 3;
        info.flags = sys::XEN_DOMINF_shutdown | sys::XEN_DOMINF_hvm_guest | (3 << 16);
        info.max_vcpu_id = sys::FFI_INVALID_MAX_VCPU_ID;
        let info = DomainInfo::from_raw(&info).unwrap();
        assert_eq!(info.shutdown, Some(ShutdownReason::Crash));
        assert!(info.hvm && !info.dying && !info.paused);
        assert_eq!(info.max_vcpu_id, None);
    }

    #[test]
    fn a_reason_without_the_flag_means_nothing() {
        let mut info = raw();
        info.flags = 0xFF << 16;
        assert_eq!(DomainInfo::from_raw(&info).unwrap().shutdown, None);
        info.flags |= sys::XEN_DOMINF_shutdown;
        assert_eq!(DomainInfo::from_raw(&info).unwrap().shutdown, Some(ShutdownReason::Other(255)));
    }

    #[test]
    fn reserved_ids_are_not_domains() {
        let mut info = raw();
        info.domain = 0x7FF2;
        assert_eq!(DomainInfo::from_raw(&info), None);
    }

    #[test]
    fn reasons_keep_their_codes() {
        for code in 0..=u8::MAX {
            assert_eq!(ShutdownReason::from_code(code).code(), code);
        }
    }
}
