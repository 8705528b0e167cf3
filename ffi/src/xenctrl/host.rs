//! Calls about the host: version, physical resources, CPU features, the hypervisor's console.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr;

use super::{Scheduler, Xenctrl};
use crate::error::{Error, Result};
use crate::handle::scalar_call;
use crate::log::printable;
use crate::sys;

/// Most of the hypervisor's console ring that is read: its size is a boot option of 16 KiB by default.
const MAX_CONSOLE: usize = 4 << 20;
/// Bytes of the console ring asked for at a time.
const CONSOLE_CHUNK: u32 = 16 << 10;
/// More CPU-feature words than any release has (Xen 4.20: 19); bounds the allocation.
const MAX_FEATURE_WORDS: u32 = 256;

/// What the hypervisor says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XenVersion {
    /// 4 in 4.17.2.
    pub major: u32,
    /// 17 in 4.17.2.
    pub minor: u32,
    /// ".2" in 4.17.2, with whatever the packager added.
    pub extra: String,
    /// Guest types it runs, separated by blanks: "xen-3.0-x86_64 hvm-3.0-x86_32 ...".
    pub capabilities: String,
    /// Source revision it was built from.
    pub changeset: String,
    /// The hypervisor's own command line.
    pub command_line: String,
    /// Compiler that built it.
    pub compiler: String,
    /// Who built it.
    pub compile_by: String,
    /// On which domain.
    pub compile_domain: String,
    /// When, as text.
    pub compile_date: String,
}

/// Release (major, minor) of the libraries this program was built with. They carry it in their symbol versions, so
/// no other release's libraries can be loaded in their place.
pub const fn linked_version() -> (u32, u32) {
    (number(env!("XEN_LINKED_MAJOR")), number(env!("XEN_LINKED_MINOR")))
}

/// A decimal number set by the build script.
const fn number(text: &str) -> u32 {
    match u32::from_str_radix(text, 10) {
        Ok(value) => value,
        Err(_) => panic!("the build script sets numbers"),
    }
}

/// The host's processors, memory and what it can virtualise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Physinfo {
    /// CPUs online.
    pub nr_cpus: u32,
    /// Largest possible CPU number.
    pub max_cpu_id: u32,
    /// Hardware threads of each core.
    pub threads_per_core: u32,
    /// Cores of each socket.
    pub cores_per_socket: u32,
    /// NUMA nodes online.
    pub nr_nodes: u32,
    /// Largest possible NUMA node number.
    pub max_node_id: u32,
    /// Clock, kHz.
    pub cpu_khz: u32,
    /// Pages (4 KiB) of memory in total.
    pub total_pages: u64,
    /// Pages free, including those claimed by domains that have not taken them yet.
    pub free_pages: u64,
    /// Pages waiting to be scrubbed, not part of `free_pages`.
    pub scrub_pages: u64,
    /// Pages claimed but not yet taken.
    pub outstanding_pages: u64,
    /// Feature words of CPU 0 (leaf 1 EDX, extended EDX, ..., as `xl info` prints).
    pub hw_caps: [u32; 8],
    /// HVM and PVH guests can run.
    pub hvm: bool,
    /// PV guests can run.
    pub pv: bool,
    /// An IOMMU is in use: devices can be passed through.
    pub iommu: bool,
    /// Hardware-assisted paging.
    pub hap: bool,
    /// Shadow paging was built in.
    pub shadow: bool,
    /// The IOMMU can share the HAP page tables.
    pub iommu_hap_pt_share: bool,
    /// Processor trace of guests.
    pub vmtrace: bool,
    /// Virtual performance counters.
    pub vpmu: bool,
    /// Grant tables version 1.
    pub gnttab_v1: bool,
    /// Grant tables version 2.
    pub gnttab_v2: bool,
}

impl From<&sys::xc_physinfo_t> for Physinfo {
    fn from(info: &sys::xc_physinfo_t) -> Self {
        let can = |bit: u32| info.capabilities & bit != 0;
        Self {
            nr_cpus: info.nr_cpus,
            max_cpu_id: info.max_cpu_id,
            threads_per_core: info.threads_per_core,
            cores_per_socket: info.cores_per_socket,
            nr_nodes: info.nr_nodes,
            max_node_id: info.max_node_id,
            cpu_khz: info.cpu_khz,
            total_pages: info.total_pages,
            free_pages: info.free_pages,
            scrub_pages: info.scrub_pages,
            outstanding_pages: info.outstanding_pages,
            hw_caps: info.hw_cap,
            hvm: can(sys::XEN_SYSCTL_PHYSCAP_hvm),
            pv: can(sys::XEN_SYSCTL_PHYSCAP_pv),
            iommu: can(sys::XEN_SYSCTL_PHYSCAP_directio),
            hap: can(sys::XEN_SYSCTL_PHYSCAP_hap),
            shadow: can(sys::XEN_SYSCTL_PHYSCAP_shadow),
            iommu_hap_pt_share: can(sys::XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share),
            vmtrace: can(sys::XEN_SYSCTL_PHYSCAP_vmtrace),
            vpmu: can(sys::XEN_SYSCTL_PHYSCAP_vpmu),
            gnttab_v1: can(sys::XEN_SYSCTL_PHYSCAP_gnttab_v1),
            gnttab_v2: can(sys::XEN_SYSCTL_PHYSCAP_gnttab_v2),
        }
    }
}

/// Where a CPU sits. `None`: the CPU is offline or the host does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTopology {
    /// Core number, unique within the socket.
    pub core: u32,
    /// Socket number.
    pub socket: u32,
    /// NUMA node number.
    pub node: u32,
}

/// How many of each there are among the online CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopologyCounts {
    /// Sockets.
    pub sockets: usize,
    /// Cores in all sockets together.
    pub cores: usize,
    /// Hardware threads: CPUs.
    pub threads: usize,
    /// NUMA nodes with a CPU.
    pub nodes: usize,
}

impl TopologyCounts {
    /// Counts what [`Xenctrl::cpu_topology`] returned.
    pub fn of(cpus: &[Option<CpuTopology>]) -> Self {
        let online = || cpus.iter().flatten();
        Self {
            sockets: online().map(|c| c.socket).collect::<BTreeSet<_>>().len(),
            cores: online().map(|c| (c.socket, c.core)).collect::<BTreeSet<_>>().len(),
            threads: online().count(),
            nodes: online().map(|c| c.node).collect::<BTreeSet<_>>().len(),
        }
    }
}

/// Which set of CPU features to read. The words' layout is the hypervisor's (`xen/arch-x86/cpufeatureset.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureSet {
    /// As the hardware says.
    Raw,
    /// What the hypervisor uses.
    Host,
    /// Default of PV guests.
    Pv,
    /// Default of HVM and PVH guests.
    Hvm,
    /// Most that a PV guest may be given.
    PvMax,
    /// Most that an HVM or PVH guest may be given.
    HvmMax,
}

impl FeatureSet {
    const fn index(self) -> u32 {
        match self {
            Self::Raw => sys::XEN_SYSCTL_cpu_featureset_raw,
            Self::Host => sys::XEN_SYSCTL_cpu_featureset_host,
            Self::Pv => sys::XEN_SYSCTL_cpu_featureset_pv,
            Self::Hvm => sys::XEN_SYSCTL_cpu_featureset_hvm,
            Self::PvMax => sys::XEN_SYSCTL_cpu_featureset_pv_max,
            Self::HvmMax => sys::XEN_SYSCTL_cpu_featureset_hvm_max,
        }
    }
}

impl Xenctrl {
    /// What the hypervisor says of itself.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn version(&self) -> Result<XenVersion> {
        let (major, minor) = self.running_version()?;
        let build: sys::xen_compile_info_t = self.version_item(sys::XENVER_compile_info)?;
        Ok(XenVersion {
            major,
            minor,
            extra: self.version_text::<16>(sys::XENVER_extraversion)?,
            capabilities: self.version_text::<1024>(sys::XENVER_capabilities)?,
            changeset: self.version_text::<64>(sys::XENVER_changeset)?,
            command_line: self.version_text::<1024>(sys::XENVER_commandline)?,
            compiler: c_text(&build.compiler),
            compile_by: c_text(&build.compile_by),
            compile_domain: c_text(&build.compile_domain),
            compile_date: c_text(&build.compile_date),
        })
    }

    /// Refuses a hypervisor of another release than the libraries. To be called before anything else: the layouts of
    /// most other hypercalls differ between releases.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`], or what asking gave.
    pub fn check_version(&self) -> Result<()> {
        let running = self.running_version()?;
        if running == linked_version() {
            Ok(())
        } else {
            Err(Error::VersionMismatch { linked: linked_version(), running })
        }
    }

    fn running_version(&self) -> Result<(u32, u32)> {
        let packed = self.run("xc_version", None, |raw| {
            // SAFETY: XENVER_version takes no buffer.
            unsafe { sys::xc_version(raw, version_command(sys::XENVER_version), ptr::null_mut()) }
        })?;
        let packed = packed.unsigned_abs();
        Ok((packed >> 16, packed & 0xFFFF))
    }

    fn version_text<const N: usize>(&self, command: u32) -> Result<String> {
        self.version_item::<[c_char; N]>(command).map(|text| c_text(&text))
    }

    /// One of `xc_version`'s fixed-size answers.
    fn version_item<T: VersionItem>(&self, command: u32) -> Result<T> {
        let mut item = T::ZERO;
        self.run("xc_version", None, |raw| {
            // SAFETY: the library writes at most the size of the command's answer, which is what `T` is
            // (`VersionItem`'s implementations and the two callers above pair them).
            unsafe {
                sys::xc_version(raw, version_command(command), ptr::from_mut(&mut item).cast::<c_void>())
            }
        })?;
        Ok(item)
    }

    /// The host's processors, memory and capabilities.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn physinfo(&self) -> Result<Physinfo> {
        // SAFETY: a struct of integers, for which zero is a value.
        let mut info: sys::xc_physinfo_t = unsafe { std::mem::zeroed() };
        self.run("xc_physinfo", None, |raw| {
            // SAFETY: `info` is the struct the call fills.
            unsafe { sys::xc_physinfo(raw, &raw mut info) }
        })?;
        Ok(Physinfo::from(&info))
    }

    /// Where each CPU sits, by CPU number.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn cpu_topology(&self) -> Result<Vec<Option<CpuTopology>>> {
        let mut count: c_uint = 0;
        self.run("xc_cputopoinfo", None, |raw| {
            // SAFETY: without an array the call only stores the number of CPUs.
            unsafe { sys::xc_cputopoinfo(raw, &raw mut count, ptr::null_mut()) }
        })?;
        let unknown = sys::xc_cputopo_t { core: u32::MAX, socket: u32::MAX, node: u32::MAX };
        let mut cpus = vec![unknown; count as usize];
        self.run("xc_cputopoinfo", None, |raw| {
            // SAFETY: the array has `count` elements.
            unsafe { sys::xc_cputopoinfo(raw, &raw mut count, cpus.as_mut_ptr()) }
        })?;
        cpus.truncate(count as usize);
        Ok(cpus
            .iter()
            // XEN_INVALID_CORE_ID, which offline and absent CPUs get.
            .map(|c| {
                (c.core != u32::MAX).then_some(CpuTopology { core: c.core, socket: c.socket, node: c.node })
            })
            .collect())
    }

    /// Nanoseconds each online CPU has been idle since boot, by position among the online CPUs.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn cpu_idle_ns(&self) -> Result<Vec<u64>> {
        let max = scalar_call!(self, None, xc_get_max_cpus())?;
        let mut count: c_int = 0;
        let mut cpus = vec![sys::xc_cpuinfo_t { idletime: 0 }; max.unsigned_abs() as usize];
        self.run("xc_getcpuinfo", None, |raw| {
            // SAFETY: the array has `max` elements and `count` is where their number goes.
            unsafe { sys::xc_getcpuinfo(raw, max, cpus.as_mut_ptr(), &raw mut count) }
        })?;
        cpus.truncate(usize::try_from(count).unwrap_or(0));
        Ok(cpus.iter().map(|c| c.idletime).collect())
    }

    /// A set of CPU features as 32-bit words.
    ///
    /// # Errors
    /// [`Error::Call`]; `EOPNOTSUPP` for a guest type the hypervisor was built without.
    pub fn get_cpu_featureset(&self, which: FeatureSet) -> Result<Vec<u32>> {
        let mut count: u32 = 0;
        self.run("xc_get_cpu_featureset", None, |raw| {
            // SAFETY: without an array the call only stores the number of words.
            unsafe { sys::xc_get_cpu_featureset(raw, which.index(), &raw mut count, ptr::null_mut()) }
        })?;
        count = count.min(MAX_FEATURE_WORDS);
        let mut words = vec![0u32; count as usize];
        self.run("xc_get_cpu_featureset", None, |raw| {
            // SAFETY: the array has `count` words.
            unsafe { sys::xc_get_cpu_featureset(raw, which.index(), &raw mut count, words.as_mut_ptr()) }
        })?;
        words.truncate(count as usize);
        Ok(words)
    }

    /// The scheduler of pool 0.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn scheduler(&self) -> Result<Scheduler> {
        let mut id: c_int = 0;
        self.run("xc_sched_id", None, |raw| {
            // SAFETY: `id` is where the number goes.
            unsafe { sys::xc_sched_id(raw, &raw mut id) }
        })?;
        Ok(Scheduler::from_id(id.unsigned_abs()))
    }

    /// The hypervisor's console ring (what `xl dmesg` prints), as bytes; `clear` empties it.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn console_ring(&self, clear: bool) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut index: u32 = 0;
        while text.len() < MAX_CONSOLE {
            let mut chunk = vec![0u8; CONSOLE_CHUNK as usize];
            let mut count: c_uint = CONSOLE_CHUNK;
            self.run("xc_readconsolering", None, |raw| {
                // SAFETY: the buffer has `count` bytes; `index` continues where the last chunk ended.
                unsafe {
                    sys::xc_readconsolering(
                        raw,
                        chunk.as_mut_ptr().cast(),
                        &raw mut count,
                        0,
                        1,
                        &raw mut index,
                    )
                }
            })?;
            if count == 0 {
                break;
            }
            chunk.truncate(count as usize);
            text.append(&mut chunk);
        }
        if clear {
            self.clear_console_ring()?;
        }
        Ok(text)
    }

    fn clear_console_ring(&self) -> Result<()> {
        let mut byte = 0u8;
        let mut count: c_uint = 1;
        self.run("xc_readconsolering", None, |raw| {
            // SAFETY: a buffer of one byte; a null index is allowed.
            unsafe {
                sys::xc_readconsolering(raw, (&raw mut byte).cast(), &raw mut count, 1, 0, ptr::null_mut())
            }
        })?;
        Ok(())
    }

    /// Presses the hypervisor's debug keys, whose output goes to its console ring.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a NUL, [`Error::Call`].
    pub fn send_debug_keys(&self, keys: &str) -> Result<()> {
        let keys =
            CString::new(keys).map_err(|_| Error::invalid("xc_send_debug_keys", "a key cannot be NUL"))?;
        self.run("xc_send_debug_keys", None, |raw| {
            // SAFETY: a C string that outlives the call.
            unsafe { sys::xc_send_debug_keys(raw, keys.as_ptr()) }
        })?;
        Ok(())
    }
}

/// A `XENVER_*` number as the C prototype's `int`.
fn version_command(command: u32) -> c_int {
    c_int::try_from(command).unwrap_or(c_int::MAX)
}

/// Answers of `xc_version` that are plain bytes.
trait VersionItem {
    const ZERO: Self;
}

impl<const N: usize> VersionItem for [c_char; N] {
    const ZERO: Self = [0; N];
}

impl VersionItem for sys::xen_compile_info_t {
    const ZERO: Self =
        Self { compiler: [0; 64], compile_by: [0; 16], compile_domain: [0; 32], compile_date: [0; 32] };
}

/// A fixed-size C text up to its NUL, or whole when it has none.
fn c_text(text: &[c_char]) -> String {
    let bytes: Vec<u8> = text.iter().map(|c| c.cast_unsigned()).collect();
    let end = CStr::from_bytes_until_nul(&bytes).map_or(bytes.len(), CStr::count_bytes);
    printable(bytes.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_against_a_supported_release() {
        assert!(linked_version() >= (4, 17), "{:?}", linked_version());
    }

    #[test]
    fn topology_is_counted_over_online_cpus() {
        let cpu = |core, socket, node| Some(CpuTopology { core, socket, node });
        let cpus = [cpu(0, 0, 0), cpu(0, 0, 0), cpu(1, 0, 0), None, cpu(0, 1, 1)];
        let counts = TopologyCounts::of(&cpus);
        assert_eq!(counts, TopologyCounts { sockets: 2, cores: 3, threads: 4, nodes: 2 });
    }

    #[test]
    fn c_text_ends_at_nul_or_at_the_end() {
        let text = b"ab\0c".map(u8::cast_signed);
        assert_eq!(c_text(&text), "ab");
        assert_eq!(c_text(text.get(..2).unwrap()), "ab");
    }

    #[test]
    fn version_answers_have_the_headers_sizes() {
        assert_eq!(size_of::<sys::xen_extraversion_t>(), 16);
        assert_eq!(size_of::<sys::xen_capabilities_info_t>(), 1024);
        assert_eq!(size_of::<sys::xen_changeset_info_t>(), 64);
        assert_eq!(size_of::<sys::xen_commandline_t>(), 1024);
    }
}
