//! Where vCPUs may run and how much.

use std::ffi::c_int;
use std::ptr;

use super::Xenctrl;
use crate::domid::DomId;
use crate::error::{Error, Result};
use crate::handle::scalar_call;
use crate::sys;

/// A set of CPUs: bit N of byte N/8 is CPU N.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuMap(Vec<u8>);

impl CpuMap {
    /// The CPUs of this list.
    pub fn of(cpus: impl IntoIterator<Item = u16>) -> Self {
        let mut map = Self::default();
        for cpu in cpus {
            map.insert(cpu);
        }
        map
    }

    /// Adds a CPU.
    pub fn insert(&mut self, cpu: u16) {
        let byte = usize::from(cpu / 8);
        if self.0.len() <= byte {
            self.0.resize(byte + 1, 0);
        }
        if let Some(bits) = self.0.get_mut(byte) {
            *bits |= 1 << (cpu % 8);
        }
    }

    /// Whether a CPU is in the set.
    pub fn contains(&self, cpu: u16) -> bool {
        self.0.get(usize::from(cpu / 8)).is_some_and(|bits| bits & (1 << (cpu % 8)) != 0)
    }

    /// The CPUs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=u16::MAX).take(self.0.len() * 8).filter(|cpu| self.contains(*cpu))
    }

    /// Whether it holds no CPU.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// A copy of exactly `size` bytes: CPUs the host does not have are dropped.
    fn sized(&self, size: usize) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(size, 0);
        bytes
    }
}

/// Where a vCPU may run: only on `hard`, preferably on `soft`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VcpuAffinity {
    /// The only CPUs it may run on; `None` leaves the setting as it is.
    pub hard: Option<CpuMap>,
    /// CPUs it should run on; `None` leaves the setting as it is.
    pub soft: Option<CpuMap>,
}

/// A scheduler of the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    /// "credit".
    Credit,
    /// "credit2", the default.
    Credit2,
    /// "arinc653".
    Arinc653,
    /// "rtds".
    Rtds,
    /// "null".
    Null,
    /// One this program does not know.
    Other(u32),
}

impl Scheduler {
    pub(super) const fn from_id(id: u32) -> Self {
        match id {
            sys::XEN_SCHEDULER_CREDIT => Self::Credit,
            sys::XEN_SCHEDULER_CREDIT2 => Self::Credit2,
            sys::XEN_SCHEDULER_ARINC653 => Self::Arinc653,
            sys::XEN_SCHEDULER_RTDS => Self::Rtds,
            sys::XEN_SCHEDULER_NULL => Self::Null,
            id => Self::Other(id),
        }
    }
}

/// A domain's share under the credit schedulers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedParams {
    /// Share relative to others, 1 to 65535; 256 is usual.
    pub weight: u16,
    /// Most it may use, in percent of one CPU; 0 for no limit.
    pub cap: u16,
}

impl Xenctrl {
    /// Bytes of a CPU map for this host.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn cpumap_size(&self) -> Result<usize> {
        let size = scalar_call!(self, None, xc_get_cpumap_size())?;
        Ok(size.unsigned_abs() as usize)
    }

    /// Sets where a vCPU may run and returns the settings in effect.
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` when no CPU of the pool is left in a set.
    pub fn vcpu_set_affinity(&self, domid: DomId, vcpu: u32, wanted: &VcpuAffinity) -> Result<VcpuAffinity> {
        let size = self.cpumap_size()?;
        let vcpu = vcpu_number("xc_vcpu_setaffinity", vcpu)?;
        let mut hard = wanted.hard.as_ref().map(|map| map.sized(size));
        let mut soft = wanted.soft.as_ref().map(|map| map.sized(size));
        let flags = hard.as_ref().map_or(0, |_| sys::XEN_VCPUAFFINITY_HARD)
            | soft.as_ref().map_or(0, |_| sys::XEN_VCPUAFFINITY_SOFT);
        self.run("xc_vcpu_setaffinity", Some(domid), |raw| {
            let hard = hard.as_mut().map_or(ptr::null_mut(), Vec::as_mut_ptr);
            let soft = soft.as_mut().map_or(ptr::null_mut(), Vec::as_mut_ptr);
            // SAFETY: each map is null with its flag clear, or has the `cpumap_size` bytes the call reads and writes.
            unsafe { sys::xc_vcpu_setaffinity(raw, domid.raw(), vcpu, hard, soft, flags) }
        })?;
        Ok(VcpuAffinity { hard: hard.map(CpuMap), soft: soft.map(CpuMap) })
    }

    /// Where a vCPU may run.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn vcpu_get_affinity(&self, domid: DomId, vcpu: u32) -> Result<VcpuAffinity> {
        let size = self.cpumap_size()?;
        let vcpu = vcpu_number("xc_vcpu_getaffinity", vcpu)?;
        let (mut hard, mut soft) = (vec![0u8; size], vec![0u8; size]);
        let flags = sys::XEN_VCPUAFFINITY_HARD | sys::XEN_VCPUAFFINITY_SOFT;
        self.run("xc_vcpu_getaffinity", Some(domid), |raw| {
            // SAFETY: both maps have the `cpumap_size` bytes the call writes.
            unsafe {
                sys::xc_vcpu_getaffinity(raw, domid.raw(), vcpu, hard.as_mut_ptr(), soft.as_mut_ptr(), flags)
            }
        })?;
        Ok(VcpuAffinity { hard: Some(CpuMap(hard)), soft: Some(CpuMap(soft)) })
    }

    /// Sets the share of a domain whose pool runs "credit".
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` under another scheduler.
    pub fn sched_credit_set(&self, domid: DomId, params: SchedParams) -> Result<()> {
        let mut raw_params = sys::xen_domctl_sched_credit { weight: params.weight, cap: params.cap };
        self.run("xc_sched_credit_domain_set", Some(domid), |raw| {
            // SAFETY: the struct outlives the call.
            unsafe { sys::xc_sched_credit_domain_set(raw, domid.raw(), &raw mut raw_params) }
        })
        .map(drop)
    }

    /// Reads the share of a domain whose pool runs "credit".
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` under another scheduler.
    pub fn sched_credit_get(&self, domid: DomId) -> Result<SchedParams> {
        let mut params = sys::xen_domctl_sched_credit { weight: 0, cap: 0 };
        self.run("xc_sched_credit_domain_get", Some(domid), |raw| {
            // SAFETY: the struct outlives the call.
            unsafe { sys::xc_sched_credit_domain_get(raw, domid.raw(), &raw mut params) }
        })?;
        Ok(SchedParams { weight: params.weight, cap: params.cap })
    }

    /// Sets the share of a domain whose pool runs "credit2".
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` under another scheduler.
    pub fn sched_credit2_set(&self, domid: DomId, params: SchedParams) -> Result<()> {
        let mut raw_params = sys::xen_domctl_sched_credit2 { weight: params.weight, cap: params.cap };
        self.run("xc_sched_credit2_domain_set", Some(domid), |raw| {
            // SAFETY: the struct outlives the call.
            unsafe { sys::xc_sched_credit2_domain_set(raw, domid.raw(), &raw mut raw_params) }
        })
        .map(drop)
    }

    /// Reads the share of a domain whose pool runs "credit2".
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` under another scheduler.
    pub fn sched_credit2_get(&self, domid: DomId) -> Result<SchedParams> {
        let mut params = sys::xen_domctl_sched_credit2 { weight: 0, cap: 0 };
        self.run("xc_sched_credit2_domain_get", Some(domid), |raw| {
            // SAFETY: the struct outlives the call.
            unsafe { sys::xc_sched_credit2_domain_get(raw, domid.raw(), &raw mut params) }
        })?;
        Ok(SchedParams { weight: params.weight, cap: params.cap })
    }
}

fn vcpu_number(call: &'static str, vcpu: u32) -> Result<c_int> {
    c_int::try_from(vcpu).map_err(|_| Error::invalid(call, format!("{vcpu} is no vCPU number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_keep_their_cpus() {
        let map = CpuMap::of([0, 9, 17]);
        assert_eq!(map.iter().collect::<Vec<_>>(), [0, 9, 17]);
        assert!(map.contains(9) && !map.contains(8) && !map.contains(4000));
        assert_eq!(map.sized(2), [1, 2], "CPUs beyond the host's are dropped");
        assert_eq!(map.sized(4), [1, 2, 2, 0]);
        assert!(CpuMap::default().is_empty() && !map.is_empty());
    }

    #[test]
    fn the_largest_cpu_number_fits() {
        let map = CpuMap::of([u16::MAX]);
        assert_eq!(map.iter().collect::<Vec<_>>(), [u16::MAX]);
    }
}
