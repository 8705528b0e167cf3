//! Calls about one domain: life cycle, memory limits, HVM parameters, CPU policy, event channels.

use super::{ShutdownReason, Xenctrl};
use crate::compat;
use crate::domid::DomId;
use crate::error::{Error, Result, set_errno};
use crate::evtchn::Port;
use crate::handle::scalar_call;
use crate::sys;

/// Bytes of a page, the granularity of [`Xenctrl::set_paging_mempool_bytes`].
const PAGE: u64 = sys::XC_PAGE_SIZE as u64;

/// How the guest's time stamp counter behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TscMode {
    /// Native while the host's is good enough, else emulated.
    #[default]
    Default,
    /// Always emulated.
    AlwaysEmulate,
    /// Always native.
    Native,
}

/// An HVM parameter: a number per domain that the hypervisor, the guest and the toolstack exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HvmParam(u32);

impl HvmParam {
    /// How the guest's event channel interrupt arrives; 0 while no PV driver has set it.
    pub const CALLBACK_IRQ: Self = Self(sys::HVM_PARAM_CALLBACK_IRQ);
    /// Guest frame of the xenstore ring.
    pub const STORE_PFN: Self = Self(sys::HVM_PARAM_STORE_PFN);
    /// Event channel of the xenstore ring.
    pub const STORE_EVTCHN: Self = Self(sys::HVM_PARAM_STORE_EVTCHN);
    /// Enlightenments for Windows (`HVMPV_*` bits).
    pub const VIRIDIAN: Self = Self(sys::HVM_PARAM_VIRIDIAN);
    /// What happens to missed timer ticks; xl's default is 1.
    pub const TIMER_MODE: Self = Self(sys::HVM_PARAM_TIMER_MODE);
    /// Emulated HPET on or off.
    pub const HPET_ENABLED: Self = Self(sys::HVM_PARAM_HPET_ENABLED);
    /// ACPI sleep state the guest is in; 0 is awake.
    pub const ACPI_S_STATE: Self = Self(sys::HVM_PARAM_ACPI_S_STATE);
    /// Align virtual timers.
    pub const VPT_ALIGN: Self = Self(sys::HVM_PARAM_VPT_ALIGN);
    /// Guest frame of the console ring.
    pub const CONSOLE_PFN: Self = Self(sys::HVM_PARAM_CONSOLE_PFN);
    /// Event channel of the console ring.
    pub const CONSOLE_EVTCHN: Self = Self(sys::HVM_PARAM_CONSOLE_EVTCHN);
    /// What a triple fault means: a shutdown reason.
    pub const TRIPLE_FAULT_REASON: Self = Self(sys::HVM_PARAM_TRIPLE_FAULT_REASON);
    /// First guest frame for device models' request pages.
    pub const IOREQ_SERVER_PFN: Self = Self(sys::HVM_PARAM_IOREQ_SERVER_PFN);
    /// Number of those frames.
    pub const NR_IOREQ_SERVER_PAGES: Self = Self(sys::HVM_PARAM_NR_IOREQ_SERVER_PAGES);
    /// Guest address of the VM generation id.
    pub const VM_GENERATION_ID_ADDR: Self = Self(sys::HVM_PARAM_VM_GENERATION_ID_ADDR);
    /// Alternate p2m mode; up to Xen 4.18, later it is fixed at creation.
    pub const ALTP2M: Self = Self(sys::HVM_PARAM_ALTP2M);
    /// Machine-check capabilities.
    pub const MCA_CAP: Self = Self(sys::HVM_PARAM_MCA_CAP);

    /// By the number in `xen/hvm/params.h`.
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The number in `xen/hvm/params.h`.
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What [`Xenctrl::send_trigger`] does to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// A non-maskable interrupt.
    Nmi,
    /// A reset.
    Reset,
    /// An INIT.
    Init,
    /// The power button.
    Power,
    /// The sleep button.
    Sleep,
}

/// Populate-on-demand: pages promised to a guest that are only given when touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// Pages the domain has.
    pub tot_pages: u64,
    /// Pages in reserve for promises.
    pub cache_pages: u64,
    /// Promises open.
    pub entries: u64,
}

/// What the guest sees of the CPU. The defaults are those of libxl for a new domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuidPolicy<'a> {
    /// The domain comes from a saved image without a policy of its own: be as generous as the release that saved it.
    pub restore: bool,
    /// Features to level to (words as [`Xenctrl::get_cpu_featureset`] gives), or `None` for the hypervisor's default.
    pub featureset: Option<&'a [u32]>,
    /// Physical address extension (HVM; ignored for PV).
    pub pae: bool,
    /// Invariant time stamp counter: only for a guest that never migrates.
    pub itsc: bool,
    /// Nested virtualisation.
    pub nested_virt: bool,
}

impl Default for CpuidPolicy<'_> {
    fn default() -> Self {
        Self { restore: false, featureset: None, pae: true, itsc: false, nested_virt: false }
    }
}

impl Xenctrl {
    /// Allocates the domain's vCPUs; `max` must be what it was created with.
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` for another number, `ENOMEM`.
    pub fn set_max_vcpus(&self, domid: DomId, max: u32) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_max_vcpus(domid.raw(), max)).map(drop)
    }

    /// Sets the most memory (KiB) the domain can have. Less than it has is allowed: it then cannot grow.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn set_max_mem_kib(&self, domid: DomId, kib: u64) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_setmaxmem(domid.raw(), kib)).map(drop)
    }

    /// Sets the end of memory (KiB) in the memory map the hypervisor shows a PV guest.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn set_memmap_limit_kib(&self, domid: DomId, kib: u64) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_set_memmap_limit(domid.raw(), kib)).map(drop)
    }

    /// Sets how the guest's time stamp counter behaves, starting anew.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn set_tsc_info(&self, domid: DomId, mode: TscMode) -> Result<()> {
        let mode = match mode {
            TscMode::Default => 0,
            TscMode::AlwaysEmulate => 1,
            TscMode::Native => 2,
        };
        scalar_call!(self, Some(domid), xc_domain_set_tsc_info(domid.raw(), mode, 0u64, 0u32, 0u32)).map(drop)
    }

    /// Sets the guest's clock this many seconds off UTC.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn set_time_offset(&self, domid: DomId, seconds: i32) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_set_time_offset(domid.raw(), seconds)).map(drop)
    }

    /// Sets the memory (bytes, whole pages) for the page tables of an HVM or PVH domain.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for part of a page; [`Error::Call`]: `EOPNOTSUPP` for PV, `ENOMEM`.
    pub fn set_paging_mempool_bytes(&self, domid: DomId, bytes: u64) -> Result<()> {
        if !bytes.is_multiple_of(PAGE) {
            let what = format!("{bytes} bytes are not a whole number of {PAGE}-byte pages");
            return Err(Error::invalid("xc_set_paging_mempool_size", what));
        }
        scalar_call!(self, Some(domid), xc_set_paging_mempool_size(domid.raw(), bytes)).map(drop)
    }

    /// Bytes of the pool that the domain's page tables take from.
    ///
    /// # Errors
    /// [`Error::Call`]: `EOPNOTSUPP` for PV.
    pub fn paging_mempool_bytes(&self, domid: DomId) -> Result<u64> {
        let mut bytes = 0;
        self.run("xc_get_paging_mempool_size", Some(domid), |raw| {
            // SAFETY: `bytes` outlives the call, which writes one number to it.
            unsafe { sys::xc_get_paging_mempool_size(raw, domid.raw(), &raw mut bytes) }
        })?;
        Ok(bytes)
    }

    /// Allocates an event channel port in `domid` that only `remote` can bind to.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOSPC` when the domain's ports are used up.
    pub fn alloc_unbound_port(&self, domid: DomId, remote: DomId) -> Result<Port> {
        let port = scalar_call!(self, Some(domid), xc_evtchn_alloc_unbound(domid.raw(), remote.raw()))?;
        Ok(Port::new(port.unsigned_abs()))
    }

    /// Tells the hypervisor what the guest sees of the CPU. After [`Xenctrl::set_max_vcpus`], before the first run.
    ///
    /// # Errors
    /// [`Error::Call`]; the detail names the CPUID leaf that was refused.
    pub fn apply_cpuid_policy(&self, domid: DomId, policy: &CpuidPolicy<'_>) -> Result<()> {
        let switches = [policy.pae, policy.itsc, policy.nested_virt];
        self.run("xc_cpuid_apply_policy", Some(domid), |raw| {
            // SAFETY: `run` gives an open handle that reaches Xen.
            let result = unsafe {
                compat::cpuid_apply_policy(raw, domid.raw(), policy.restore, policy.featureset, switches)
            };
            // A plain -1 here is -EPERM, where `run` would look at errno.
            if result == -1 {
                set_errno(libc::EPERM);
            }
            result
        })
        .map(drop)
    }

    /// Pauses the domain. Pauses are counted: each needs its [`Xenctrl::unpause`].
    ///
    /// # Errors
    /// [`Error::Call`]; `ESRCH` when there is no such domain.
    pub fn pause(&self, domid: DomId) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_pause(domid.raw())).map(drop)
    }

    /// Takes one pause back. A new domain starts with one.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn unpause(&self, domid: DomId) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_unpause(domid.raw())).map(drop)
    }

    /// Destroys the domain and gives its memory back.
    ///
    /// May take minutes for a big domain: never call it on a thread that others wait for. Afterwards the domain can
    /// stay listed as dying until nobody maps its memory any more.
    ///
    /// # Errors
    /// [`Error::Call`]; `ESRCH` when it is gone already.
    pub fn destroy(&self, domid: DomId) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_destroy(domid.raw())).map(drop)
    }

    /// Marks the domain as shut down for this reason, without asking the guest.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn shutdown(&self, domid: DomId, reason: ShutdownReason) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_shutdown(domid.raw(), i32::from(reason.code()))).map(drop)
    }

    /// Lets a suspended domain run on. `fast`: the guest was told and sees its suspend call return "cancelled";
    /// otherwise it believes it was restored.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn resume(&self, domid: DomId, fast: bool) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_resume(domid.raw(), i32::from(fast))).map(drop)
    }

    /// Changes the domain's UUID.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn set_handle(&self, domid: DomId, uuid: [u8; 16]) -> Result<()> {
        let mut uuid = uuid;
        self.run("xc_domain_sethandle", Some(domid), |raw| {
            // SAFETY: 16 bytes, copied by the call.
            unsafe { sys::xc_domain_sethandle(raw, domid.raw(), uuid.as_mut_ptr()) }
        })
        .map(drop)
    }

    /// Sets an HVM parameter.
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` for a PV domain.
    pub fn hvm_param_set(&self, domid: DomId, param: HvmParam, value: u64) -> Result<()> {
        scalar_call!(self, Some(domid), xc_hvm_param_set(domid.raw(), param.0, value)).map(drop)
    }

    /// Reads an HVM parameter.
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` for a PV domain.
    pub fn hvm_param_get(&self, domid: DomId, param: HvmParam) -> Result<u64> {
        let mut value = 0;
        self.run("xc_hvm_param_get", Some(domid), |raw| {
            // SAFETY: `value` is where the number goes.
            unsafe { sys::xc_hvm_param_get(raw, domid.raw(), param.0, &raw mut value) }
        })?;
        Ok(value)
    }

    /// Reserves free memory (4 KiB pages, counting those the domain has) for the domain; 0 gives the reservation back.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOMEM` when there is not as much.
    pub fn claim_pages(&self, domid: DomId, pages: u64) -> Result<()> {
        scalar_call!(self, Some(domid), xc_domain_claim_pages(domid.raw(), pages)).map(drop)
    }

    /// Sets the memory (pages) a populate-on-demand domain really gets.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn set_pod_target(&self, domid: DomId, pages: u64) -> Result<Pod> {
        let mut pod = Pod { tot_pages: 0, cache_pages: 0, entries: 0 };
        self.run("xc_domain_set_pod_target", Some(domid), |raw| {
            let (total, cache, entries) =
                (&raw mut pod.tot_pages, &raw mut pod.cache_pages, &raw mut pod.entries);
            // SAFETY: three live variables the call stores to.
            unsafe { sys::xc_domain_set_pod_target(raw, domid.raw(), pages, total, cache, entries) }
        })?;
        Ok(pod)
    }

    /// Presses a button of an HVM guest, or interrupts a vCPU.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOSYS` or `EOPNOTSUPP` for a PV guest.
    pub fn send_trigger(&self, domid: DomId, trigger: Trigger, vcpu: u32) -> Result<()> {
        let number = match trigger {
            Trigger::Nmi => sys::XEN_DOMCTL_SENDTRIGGER_NMI,
            Trigger::Reset => sys::XEN_DOMCTL_SENDTRIGGER_RESET,
            Trigger::Init => sys::XEN_DOMCTL_SENDTRIGGER_INIT,
            Trigger::Power => sys::XEN_DOMCTL_SENDTRIGGER_POWER,
            Trigger::Sleep => sys::XEN_DOMCTL_SENDTRIGGER_SLEEP,
        };
        scalar_call!(self, Some(domid), xc_domain_send_trigger(domid.raw(), number, vcpu)).map(drop)
    }

    /// Ends dirty-page logging, as after a save that was killed half way.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn logdirty_off(&self, domid: DomId) -> Result<()> {
        self.run("xc_shadow_control", Some(domid), |raw| {
            let off = sys::XEN_DOMCTL_SHADOW_OP_OFF;
            // SAFETY: this operation reads no allocation size, so it may be null.
            unsafe { sys::xc_shadow_control(raw, domid.raw(), off, std::ptr::null_mut(), 0) }
        })
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_pages_are_refused() {
        let xc = Xenctrl::open_dummy().unwrap();
        let result = xc.set_paging_mempool_bytes(DomId::DOM0, PAGE + 1);
        assert!(matches!(result, Err(Error::InvalidArgument { .. })), "{result:?}");
    }

    #[test]
    fn parameters_have_the_abi_numbers() {
        let numbers = [
            (HvmParam::STORE_PFN, 1),
            (HvmParam::STORE_EVTCHN, 2),
            (HvmParam::TIMER_MODE, 10),
            (HvmParam::CONSOLE_PFN, 17),
            (HvmParam::CONSOLE_EVTCHN, 18),
            (HvmParam::VM_GENERATION_ID_ADDR, 34),
        ];
        for (param, number) in numbers {
            assert_eq!(param.number(), number);
        }
    }
}
