//! The hypervisor as the rest of the daemon sees it.

use super::{
    Built, CpuMap, DomId, DomainImage, DomainInfo, FeatureSet, GuestKind, NewDomain, Physinfo, Resources,
    Stream, XenVersion,
};

/// Why the hypervisor refused.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// A call failed; the text names the call, the domain and the reason.
    #[error("{0}")]
    Call(String),
    /// The kernel or ramdisk is not something this kind of domain can boot; the guest's owner must change it.
    #[error("{0}")]
    Image(String),
    /// Not enough free memory to populate the domain.
    #[error("not enough memory: {0}")]
    Memory(String),
    /// The stream was stopped by another thread.
    #[error("the stream was stopped")]
    Stopped,
}

/// Domain-level calls. A handle belongs to one thread at a time.
pub trait Hypervisor: Send {
    /// Which hypervisor this is.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn version(&self) -> Result<XenVersion, HypervisorError>;

    /// Processors and memory of the host.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn host(&self) -> Result<Physinfo, HypervisorError>;

    /// Every domain, dom0 included, by domid.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError>;

    /// One domain; none when there is no such domid.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn domain(&self, domid: DomId) -> Result<Option<DomainInfo>, HypervisorError>;

    /// Makes an empty domain, paused. An estimate of grant frames that is too large for the hypervisor becomes its default.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn create(&self, new: &NewDomain) -> Result<DomId, HypervisorError>;

    /// Gives a new domain its vcpus, its clocks and its limits: all that a device model needs to begin. On failure the
    /// domain is still there, to be destroyed.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn equip(&self, domid: DomId, kind: GuestKind, resources: &Resources) -> Result<(), HypervisorError>;

    /// Gives an equipped domain its memory, rings and image. On failure the domain is still there, to be destroyed.
    ///
    /// # Errors
    /// Any [`HypervisorError`].
    fn build(
        &self,
        domid: DomId,
        resources: &Resources,
        image: &DomainImage<'_>,
    ) -> Result<Built, HypervisorError>;

    /// Whether an HVM guest has a PV driver that hears a request to suspend, and is awake.
    ///
    /// # Errors
    /// [`HypervisorError::Call`], also for PV.
    fn hears(&self, domid: DomId) -> Result<bool, HypervisorError>;

    /// Suspends an HVM guest without asking it: its processors stop where they are. It may take a moment.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn suspend(&self, domid: DomId) -> Result<(), HypervisorError>;

    /// Writes a suspended domain's memory and processors to `stream`. The domain is still suspended afterwards, whatever
    /// came of it.
    ///
    /// # Errors
    /// [`HypervisorError::Call`], also when the disk is full; [`HypervisorError::Stopped`].
    fn save(&self, domid: DomId, stream: &Stream) -> Result<(), HypervisorError>;

    /// Fills an equipped domain of `kind` from what [`Hypervisor::save`] wrote, instead of a build, and tells an HVM guest its
    /// generation id. On failure the domain is still there, to be destroyed.
    ///
    /// # Errors
    /// Any [`HypervisorError`].
    fn restore(
        &self,
        domid: DomId,
        kind: GuestKind,
        resources: &Resources,
        stream: &Stream,
    ) -> Result<Built, HypervisorError>;

    /// Lets a suspended domain run on where it is: its kernel is told that the suspension was cancelled.
    ///
    /// # Errors
    /// [`HypervisorError::Call`], also when it is not suspended.
    fn resume(&self, domid: DomId) -> Result<(), HypervisorError>;

    /// Sets the scheduler's weight (1 to 65535, relative to 256) and cap (percent of one processor, 0 none).
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn set_scheduler(&self, domid: DomId, weight: u16, cap: u16) -> Result<(), HypervisorError>;

    /// Sets the host's processors that a vcpu may run on.
    ///
    /// # Errors
    /// [`HypervisorError::Call`], also when the host has none of them.
    fn set_affinity(&self, domid: DomId, vcpu: u32, cpus: &CpuMap) -> Result<(), HypervisorError>;

    /// Memory for the page tables that the hypervisor keeps for a domain, in KiB.
    ///
    /// # Errors
    /// [`HypervisorError::Call`], also for PV.
    fn paging_kib(&self, domid: DomId) -> Result<u64, HypervisorError>;

    /// Sets [`Hypervisor::paging_kib`], in whole pages.
    ///
    /// # Errors
    /// [`HypervisorError::Memory`] when there is not as much, or as much is in use; [`HypervisorError::Call`].
    fn set_paging_kib(&self, domid: DomId, kib: u64) -> Result<(), HypervisorError>;

    /// Sets what a domain may have, in KiB; taking memory from it is its own balloon driver's part.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn set_memory_target(&self, domid: DomId, target_kib: u64) -> Result<(), HypervisorError>;

    /// Stops the domain's vcpus. Pauses are counted.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn pause(&self, domid: DomId) -> Result<(), HypervisorError>;

    /// Undoes one pause.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn unpause(&self, domid: DomId) -> Result<(), HypervisorError>;

    /// Destroys the domain; may run for minutes with hundreds of GiB. An absent domain is not an error.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn destroy(&self, domid: DomId) -> Result<(), HypervisorError>;

    /// The hypervisor's own console ring.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn console_ring(&self) -> Result<Vec<u8>, HypervisorError>;

    /// CPU features in words, as the hypervisor would give them to a guest of that kind; none when it does not say.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn features(&self, _of: FeatureSet) -> Result<Vec<u32>, HypervisorError> {
        Ok(Vec::new())
    }

    /// Injects the hypervisor's debug keys.
    ///
    /// # Errors
    /// [`HypervisorError::Call`].
    fn send_debug_keys(&self, keys: &str) -> Result<(), HypervisorError>;
}
