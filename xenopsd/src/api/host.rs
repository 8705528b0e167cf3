//! The host, and calls for debugging.

use super::errors::Error;
use super::value::{Dict, Int};

record! {
    /// The host's processors. Feature sets are opaque text, dash-separated hexadecimal words.
    pub struct CpuInfo as "Host.cpu_info" derive(Eq) {
        /// Logical processors.
        cpu_count: Int,
        /// Sockets.
        socket_count: Int,
        /// Hardware threads of a core.
        threads_per_core: Int,
        /// NUMA nodes.
        nr_nodes: Int,
        /// CPU vendor, e.g. `GenuineIntel`.
        vendor: String,
        /// Clock in MHz.
        speed: String,
        /// Model name for people.
        modelname: String,
        /// Family.
        family: String,
        /// Model.
        model: String,
        /// Stepping.
        stepping: String,
        /// Flags as Linux shows them.
        flags: String,
        /// Features of the hardware.
        features: CpuPolicy,
        /// Features a PV guest may be given when it must be able to move between versions.
        features_pv: CpuPolicy,
        /// Features an HVM guest may be given when it must be able to move between versions.
        features_hvm: CpuPolicy,
        /// All features a PV guest can be given on this host.
        features_pv_host: CpuPolicy,
        /// All features an HVM guest can be given on this host.
        features_hvm_host: CpuPolicy,
    }
}

/// A CPU feature set in its text form, passed through as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuPolicy(pub String);

impl super::value::WireType for CpuPolicy {
    fn type_expr() -> String {
        "abstract:CPU_policy.t".to_owned()
    }
}

impl super::value::ToValue for CpuPolicy {
    fn to_value(&self) -> super::value::Value {
        self.0.to_value()
    }
}

impl super::value::FromValue for CpuPolicy {
    fn from_value(value: &super::value::Value) -> Result<Self, super::decode::DecodeError> {
        String::from_value(value).map(Self)
    }
}

record! {
    /// What the chipset can do.
    pub struct ChipsetInfo as "Host.chipset_info" derive(Copy, Eq) {
        /// It isolates passed-through devices.
        iommu: bool,
        /// It can run HVM guests.
        hvm: bool,
    }
}

record! {
    /// The hypervisor.
    pub struct Hypervisor as "Host.hypervisor" derive(Eq) {
        /// Its version.
        version: String,
        /// Guest types it can run, e.g. `xen-3.0-x86_64 hvm-3.0-x86_64`.
        capabilities: String,
    }
}

record! {
    /// The host.
    pub struct Host as "Host.t" derive(Eq) {
        /// Its processors.
        cpu_info: CpuInfo,
        /// Its hypervisor.
        hypervisor: Hypervisor,
        /// What its chipset can do.
        chipset_info: ChipsetInfo,
    }
}

record! {
    /// Something guest agents are told they may do.
    pub struct GuestAgentFeature as "Host.guest_agent_feature" derive(Eq) {
        /// Its name.
        name: String,
        /// Whether the host is licensed for it.
        licensed: bool,
        /// Its parameters.
        parameters: Dict<String>,
    }
}

variant! {
    /// How a VM's memory is placed on NUMA nodes.
    pub enum NumaAffinityPolicy as "Host.numa_affinity_policy" derive(Copy, Eq) {
        /// Anywhere.
        Any as "Any",
        /// On few nodes if they have room, with its vCPUs preferring them.
        BestEffort as "Best_effort",
        /// As best effort, with its vCPUs bound to them.
        BestEffortHard as "Best_effort_hard",
        /// Memory on few nodes, vCPUs free.
        PrioMemOnly as "Prio_mem_only",
    }
}

methods! {
    debug_info as "debug_info", errors Error;

    /// Describes the host.
    "HOST.stat" HostStat -> Host {}

    /// The hypervisor's console ring; unprintable bytes are replaced.
    "HOST.get_console_data" HostGetConsoleData -> String {}

    /// The host's memory in MiB.
    "HOST.get_total_memory_mib" HostGetTotalMemoryMib -> i64 {}

    /// Sends debug keys to the hypervisor.
    "HOST.send_debug_keys" HostSendDebugKeys -> () {
        /// The keys.
        debug_keys: String,
    }

    /// Changes how many operations run at once.
    "HOST.set_worker_pool_size" HostSetWorkerPoolSize -> () {
        /// Workers.
        pool_size: Int,
    }

    /// Replaces the features guest agents are told of.
    "HOST.update_guest_agent_features" HostUpdateGuestAgentFeatures -> () {
        /// The features.
        features: Vec<GuestAgentFeature>,
    }

    /// The features two policies have in common, word by word. An empty policy is one without restriction.
    "HOST.combine_cpu_policies" HostCombineCpuPolicies -> CpuPolicy {
        /// One policy.
        policy1: CpuPolicy,
        /// The other.
        policy2: CpuPolicy,
    }

    /// Whether a VM with one policy can run on a host with the other: whether the host has every feature of the VM.
    "HOST.is_compatible" HostIsCompatible -> bool {
        /// The VM's.
        vm_policy: CpuPolicy,
        /// The host's.
        host_policy: CpuPolicy,
    }

    /// Says how memory of VMs started from now on is to be placed. The policy is kept while the daemon runs and shown by
    /// `get_diagnostics`; memory is placed by the hypervisor alone whatever it says.
    "HOST.set_numa_affinity_policy" HostSetNumaAffinityPolicy -> () {
        /// The policy; absent means the daemon's own default.
        numa_affinity_policy: Option<NumaAffinityPolicy>,
    }

    /// Makes the daemon do something for the sake of a test or of support: `reboot` and `halt` (with a VM) as if its guest
    /// had done so, `set-cancel-trigger` (with the words of a `debug_info` and n) cancels such tasks at their nth step.
    "DEBUG.trigger" DebugTrigger -> () {
        /// What.
        cmd: String,
        /// With what.
        args: Vec<String>,
    }

    /// Ends the daemon; guests go on.
    "DEBUG.shutdown" DebugShutdown -> () {
        /// Always null, and required.
        unit: (),
    }
}
