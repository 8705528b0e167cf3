//! The machine's domains and memory, as records.

mod tuning;

use std::collections::{BTreeMap, HashMap};

use super::memory::Saved;
use crate::edge::{
    DomId, DomainInfo, GrantFrames, GuestKind, HypervisorError, NewDomain, Physinfo, ShutdownReason,
    XenVersion,
};
pub use tuning::Tuning;

/// Pages (4 KiB) of a MiB.
const PAGES_PER_MIB: u64 = 256;

/// Memory that dom0 and the hypervisor have, in MiB.
const DOM0_MIB: u64 = 1024;

/// Most vcpus of a PV domain, and of others (Xen's `MAX_VIRT_CPUS`, `HVM_MAX_VCPUS`).
const MAX_PV_VCPUS: u32 = 8192;
const MAX_HVM_VCPUS: u32 = 128;

/// Most grant table frames of a domain, unless Xen's command line says otherwise (`gnttab_max_frames`).
const MAX_GRANT_FRAMES: u32 = 64;

/// Most pauses of a domain at a time: the hypervisor counts them in a signed byte's range.
const MAX_PAUSES: u8 = 127;

/// One domain.
#[derive(Debug, Clone)]
struct Domain {
    kind: GuestKind,
    uuid: [u8; 16],
    max_vcpus: u32,
    /// Vcpus that are up: the first when it is built, the others when the guest starts them.
    online: u32,
    ssidref: u32,
    pages: u64,
    max_pages: u64,
    /// Of `pages`, those of the PV shim, which no balloon moves.
    shim_pages: u64,
    pauses: u8,
    built: bool,
    shutdown: Option<ShutdownReason>,
    dying: bool,
    /// Backends that have its memory mapped: it stays listed, dying, until they let go.
    held: u32,
    /// Its VM's how-manieth domain it is, from 1.
    start: u32,
    tuning: Tuning,
}

/// Processors, memory and domains. Changed through the hypervisor edge and by the simulated world only.
#[derive(Debug)]
pub struct Hardware {
    total_pages: u64,
    cpus: u32,
    /// Guests in hardware containers can run.
    hvm: bool,
    domains: BTreeMap<DomId, Domain>,
    last: DomId,
    /// How often each VM has been started here.
    boots: HashMap<[u8; 16], u32>,
    /// How often each VM has had a domain made.
    made: HashMap<[u8; 16], u32>,
    frames: u64,
}

impl Hardware {
    pub(super) fn new(memory_mib: u64, cpus: u32, hvm: bool) -> Self {
        Self {
            total_pages: memory_mib * PAGES_PER_MIB,
            cpus,
            hvm,
            domains: BTreeMap::new(),
            last: DomId::DOM0,
            boots: HashMap::new(),
            made: HashMap::new(),
            frames: 0x10_0000,
        }
    }

    /// Pages that no domain has.
    pub fn free_pages(&self) -> u64 {
        let used: u64 = self.domains.values().map(|d| d.pages + d.tuning.paging_pages()).sum();
        self.total_pages.saturating_sub(used + DOM0_MIB * PAGES_PER_MIB)
    }

    /// Domains beside dom0, the dying included.
    pub fn domids(&self) -> Vec<DomId> {
        self.domains.keys().copied().collect()
    }

    /// Those of guests that are built and not dying.
    pub(super) fn living(&self) -> Vec<DomId> {
        let living = self.domains.iter().filter(|(domid, d)| **domid != DomId::DOM0 && d.built && !d.dying);
        living.map(|(domid, _)| *domid).collect()
    }

    pub(super) fn version() -> XenVersion {
        XenVersion {
            major: 4,
            minor: 17,
            extra: "-simulated".to_owned(),
            capabilities: "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64".to_owned(),
            changeset: String::new(),
            command_line: String::new(),
            compiler: String::new(),
            compile_by: String::new(),
            compile_domain: String::new(),
            compile_date: String::new(),
        }
    }

    pub(super) fn physinfo(&self) -> Physinfo {
        Physinfo {
            nr_cpus: self.cpus,
            max_cpu_id: self.cpus.saturating_sub(1),
            threads_per_core: 1,
            cores_per_socket: self.cpus,
            nr_nodes: 1,
            cpu_khz: 2_000_000,
            total_pages: self.total_pages,
            free_pages: self.free_pages(),
            hvm: self.hvm,
            pv: true,
            hap: self.hvm,
            gnttab_v1: true,
            gnttab_v2: true,
            ..Physinfo::default()
        }
    }

    pub(super) fn infos(&self) -> Vec<DomainInfo> {
        std::iter::once(self.dom0()).chain(self.domains.iter().map(|(id, d)| info(*id, d))).collect()
    }

    pub(super) fn info(&self, domid: DomId) -> Option<DomainInfo> {
        if domid == DomId::DOM0 {
            return Some(self.dom0());
        }
        self.domains.get(&domid).map(|d| info(domid, d))
    }

    fn dom0(&self) -> DomainInfo {
        let pages = DOM0_MIB * PAGES_PER_MIB;
        DomainInfo {
            running: true,
            blocked: false,
            nr_online_vcpus: self.cpus,
            max_vcpu_id: self.cpus.checked_sub(1),
            ..info(
                DomId::DOM0,
                &Domain {
                    pages,
                    max_pages: pages,
                    built: true,
                    ..Domain::new(GuestKind::Pv, [0; 16], self.cpus)
                },
            )
        }
    }

    /// The next number that is free, as Xen gives them out: upwards, and from 1 again after the last.
    pub(super) fn create(&mut self, new: &NewDomain) -> Result<DomId, HypervisorError> {
        let most_vcpus = if new.kind == GuestKind::Pv { MAX_PV_VCPUS } else { MAX_HVM_VCPUS };
        if !(1..=most_vcpus).contains(&new.max_vcpus) {
            return Err(call(&format!("a domain cannot have {} vcpus", new.max_vcpus)));
        }
        let contained = new.kind != GuestKind::Pv;
        if contained && !self.hvm || !contained && new.hap || new.nested_virt && !new.hap {
            return Err(call(&format!("this machine makes no such {:?} domain", new.kind)));
        }
        if let GrantFrames::Wish(frames) = new.max_grant_frames
            && frames > MAX_GRANT_FRAMES
        {
            return Err(call(&format!(
                "{frames} grant table frames are more than the hypervisor's {MAX_GRANT_FRAMES}"
            )));
        }
        let after = self.last.get() + 1..=DomId::MAX.get();
        let free =
            after.chain(1..=self.last.get()).filter_map(DomId::new).find(|id| !self.domains.contains_key(id));
        let domid = free.ok_or_else(|| call("no domain id is free"))?;
        let made = self.made.entry(new.uuid).or_default();
        *made += 1;
        let domain = Domain {
            pauses: 1,
            ssidref: new.ssidref,
            start: *made,
            ..Domain::new(new.kind, new.uuid, new.max_vcpus)
        };
        self.domains.insert(domid, domain);
        self.last = domid;
        Ok(domid)
    }

    /// Checks that the domain was created as this kind.
    pub(super) fn must_be(&mut self, domid: DomId, kind: GuestKind) -> Result<(), HypervisorError> {
        match self.live(domid)?.kind {
            created if created == kind => Ok(()),
            created => Err(call(&format!("domain {domid} was created as {created:?}, not {kind:?}"))),
        }
    }

    /// Gives a new domain its memory. Returns the frames of its two rings.
    pub(super) fn build(
        &mut self,
        domid: DomId,
        pages: u64,
        slack: u64,
    ) -> Result<(u64, u64), HypervisorError> {
        let free = self.free_pages();
        let domain = self.live(domid)?;
        if domain.built {
            return Err(call(&format!("domain {domid} is built already")));
        }
        if pages > free {
            return Err(HypervisorError::Memory(format!(
                "domain {domid} needs {pages} pages and {free} are free"
            )));
        }
        (domain.pages, domain.max_pages, domain.built) = (pages, pages + slack, true);
        domain.online = 1;
        let uuid = domain.uuid;
        *self.boots.entry(uuid).or_default() += 1;
        self.frames += 2;
        Ok((self.frames - 2, self.frames - 1))
    }

    /// What a domain may have; it keeps what it has.
    pub(super) fn limit(&mut self, domid: DomId, pages: u64) -> Result<(), HypervisorError> {
        self.live(domid)?.max_pages = pages;
        Ok(())
    }

    pub(super) fn pause(&mut self, domid: DomId) -> Result<(), HypervisorError> {
        let domain = self.live(domid)?;
        if domain.pauses == MAX_PAUSES {
            return Err(call(&format!("domain {domid} is paused too often")));
        }
        domain.pauses += 1;
        Ok(())
    }

    /// Whether it runs now.
    pub(super) fn unpause(&mut self, domid: DomId) -> Result<bool, HypervisorError> {
        let domain = self.live(domid)?;
        domain.pauses =
            domain.pauses.checked_sub(1).ok_or_else(|| call(&format!("domain {domid} is not paused")))?;
        Ok(domain.pauses == 0)
    }

    /// Whether there was such a domain, alive. It stays listed, dying, until [`Hardware::bury`].
    pub(super) fn destroy(&mut self, domid: DomId) -> bool {
        let Some(domain) = self.domains.get_mut(&domid).filter(|d| !d.dying) else { return false };
        (domain.dying, domain.pages, domain.tuning) = (true, 0, Tuning::default());
        true
    }

    /// Forgets a dying domain unless somebody holds its memory. Nobody is told, as on real Xen: xenstored has reported
    /// its end before.
    pub(super) fn bury(&mut self, domid: DomId) {
        if self.domains.get(&domid).is_some_and(|d| d.dying && d.held == 0) {
            self.domains.remove(&domid);
        }
    }

    /// Whether it ran until now.
    pub(super) fn shut_down(&mut self, domid: DomId, reason: ShutdownReason) -> bool {
        let Some(domain) = self.domains.get_mut(&domid).filter(|d| !d.dying && d.shutdown.is_none()) else {
            return false;
        };
        domain.shutdown = Some(reason);
        true
    }

    /// What is saved of a suspended domain.
    pub(super) fn suspended(&mut self, domid: DomId) -> Result<Saved, HypervisorError> {
        let domain = self.live(domid)?;
        if domain.shutdown != Some(ShutdownReason::Suspend) {
            return Err(call(&format!("domain {domid} is not suspended")));
        }
        Ok(Saved { kind: domain.kind, vcpus: domain.max_vcpus, pages: domain.pages })
    }

    /// Lets a suspended domain run on. Whether it runs now: it may be paused.
    pub(super) fn resume(&mut self, domid: DomId) -> Result<bool, HypervisorError> {
        self.suspended(domid)?;
        let domain = self.live(domid)?;
        domain.shutdown = None;
        Ok(domain.pauses == 0)
    }

    /// Whether its vcpus get processors.
    pub(super) fn runs(&self, domid: DomId) -> bool {
        let domain = self.domains.get(&domid);
        domain.is_some_and(|d| d.built && d.pauses == 0 && !d.dying && d.shutdown.is_none())
    }

    /// How often this domain's VM has been built, this time included.
    pub(super) fn boots(&self, domid: DomId) -> u32 {
        self.domains.get(&domid).and_then(|d| self.boots.get(&d.uuid)).copied().unwrap_or(0)
    }

    /// What this domain is of its VM: the same for every run of the same operations, whatever its number.
    pub(super) fn start_of(&self, domid: DomId) -> Option<String> {
        let domain = self.domains.get(&domid)?;
        Some(format!("{}, start {}", uuid::Uuid::from_bytes(domain.uuid), domain.start))
    }

    /// The guest brings vcpus up or takes them down: at least one stays, and it has no more than its table holds.
    pub(super) fn set_online(&mut self, domid: DomId, vcpus: u32) {
        if let Some(domain) = self.domains.get_mut(&domid).filter(|d| d.built && !d.dying) {
            domain.online = vcpus.clamp(1, domain.max_vcpus);
        }
    }

    /// How many pages of a domain are its PV shim's.
    pub(super) fn keep_for_shim(&mut self, domid: DomId, pages: u64) {
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.shim_pages = pages;
        }
    }

    /// The guest's balloon takes or gives back pages until it has `wanted`, its hard limit or all that is free. How many
    /// it has then; none when there is no such guest.
    pub(super) fn balloon(&mut self, domid: DomId, wanted: u64) -> Option<u64> {
        let free = self.free_pages();
        let domain = self.domains.get_mut(&domid).filter(|d| d.built && !d.dying)?;
        let most = (domain.pages + free).min(domain.max_pages).max(domain.pages);
        domain.pages = wanted.saturating_add(domain.shim_pages).clamp(domain.shim_pages + 1, most);
        Some(domain.pages - domain.shim_pages)
    }

    /// A backend maps memory of the domain; false when it is too late for that.
    pub(super) fn hold(&mut self, domid: DomId) -> bool {
        let Some(domain) = self.domains.get_mut(&domid).filter(|d| !d.dying) else { return false };
        domain.held += 1;
        true
    }

    /// And lets go of it.
    pub(super) fn let_go(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.held = domain.held.saturating_sub(1);
        }
    }

    fn live(&mut self, domid: DomId) -> Result<&mut Domain, HypervisorError> {
        let live = self.domains.get_mut(&domid).filter(|d| !d.dying);
        live.ok_or_else(|| call(&format!("there is no domain {domid}")))
    }
}

impl Domain {
    fn new(kind: GuestKind, uuid: [u8; 16], max_vcpus: u32) -> Self {
        Self {
            kind,
            uuid,
            max_vcpus,
            online: 0,
            start: 0,
            ssidref: 0,
            pages: 0,
            max_pages: 0,
            shim_pages: 0,
            pauses: 0,
            built: false,
            shutdown: None,
            dying: false,
            held: 0,
            tuning: Tuning::default(),
        }
    }
}

fn call(text: &str) -> HypervisorError {
    HypervisorError::Call(text.to_owned())
}

fn info(domid: DomId, domain: &Domain) -> DomainInfo {
    let waits = domain.built && domain.pauses == 0;
    DomainInfo {
        domid,
        uuid: domain.uuid,
        dying: domain.dying,
        shutdown: domain.shutdown,
        paused: domain.pauses > 0,
        blocked: waits,
        running: false,
        debugged: false,
        hvm: domain.kind != GuestKind::Pv,
        hap: domain.kind != GuestKind::Pv,
        xs_domain: false,
        tot_pages: domain.pages,
        max_pages: domain.max_pages,
        outstanding_pages: 0,
        shared_pages: 0,
        paged_pages: 0,
        shared_info_frame: 0,
        cpu_time_ns: 0,
        nr_online_vcpus: domain.online,
        max_vcpu_id: domain.max_vcpus.checked_sub(1).filter(|_| domain.built),
        ssidref: domain.ssidref,
        cpupool: 0,
        emulation_flags: 0,
    }
}

#[cfg(test)]
mod tests;
