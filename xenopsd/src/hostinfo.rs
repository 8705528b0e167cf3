//! What the host is: `HOST.stat`, from the hypervisor (which sees all processors) and dom0's `/proc/cpuinfo` (which
//! has the names).

mod policy;

use xenstore::{Access, Batch, Path, Perms};

use crate::api::{ChipsetInfo, CpuInfo, Error, GuestAgentFeature, Host, Hypervisor, Int};
use crate::core::Core;
use crate::edge::FeatureSet;

pub use policy::{combine as combine_cpu_policies, is_compatible, words as policy_words};

/// Pages per MiB.
const PAGES_PER_MIB: u64 = 256;

/// The host as the contract describes it.
///
/// # Errors
/// When the hypervisor does not answer.
pub fn stat(core: &Core) -> Result<Host, Error> {
    let hypervisor = core.edges.hypervisor()?;
    let host = hypervisor.host()?;
    let version = hypervisor.version()?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| first_field(&cpuinfo, name);
    let features = |of| hypervisor.features(of).map(|words| policy::print(&words));
    let cores = host.threads_per_core.max(1) * host.cores_per_socket.max(1);
    Ok(Host {
        cpu_info: CpuInfo {
            cpu_count: int(host.nr_cpus),
            socket_count: int(host.nr_cpus.div_ceil(cores)),
            threads_per_core: int(host.threads_per_core),
            nr_nodes: int(host.nr_nodes),
            vendor: field("vendor_id"),
            speed: format!("{}.{:03}", host.cpu_khz / 1000, host.cpu_khz % 1000),
            modelname: field("model name"),
            family: field("cpu family"),
            model: field("model"),
            stepping: field("stepping"),
            flags: field("flags"),
            features: features(FeatureSet::Host)?,
            features_pv: features(FeatureSet::PvMax)?,
            features_hvm: features(FeatureSet::HvmMax)?,
            features_pv_host: features(FeatureSet::Pv)?,
            features_hvm_host: features(FeatureSet::Hvm)?,
        },
        hypervisor: Hypervisor {
            version: format!("{}.{}{}", version.major, version.minor, version.extra),
            capabilities: version.capabilities.trim().to_owned(),
        },
        chipset_info: ChipsetInfo { iommu: host.iommu, hvm: host.hvm },
    })
}

/// All memory of the machine, the hypervisor's own included.
///
/// # Errors
/// When the hypervisor does not answer.
pub fn total_memory_mib(core: &Core) -> Result<i64, Error> {
    let pages = core.edges.hypervisor()?.host()?.total_pages;
    Ok(i64::try_from(pages / PAGES_PER_MIB).unwrap_or(i64::MAX))
}

/// The hypervisor's console ring, anything but printable ASCII and line ends replaced.
///
/// # Errors
/// When the hypervisor does not answer.
pub fn console_data(core: &Core) -> Result<String, Error> {
    let ring = core.edges.hypervisor()?.console_ring()?;
    let shown = |byte: u8| match byte {
        b'\n' | b'\r' | b'\t' | b' '..=b'~' => char::from(byte),
        _ => '?',
    };
    Ok(ring.into_iter().map(shown).collect())
}

/// Where guests' agents find what they may do.
const AGENT_FEATURES: &str = "/guest_agent_features";

/// Most features, and most parameters of one: more would be a mistake, and each is a node that every guest can read.
const MAX_AGENT_FEATURES: usize = 256;

/// Replaces the features that guests' agents are told of, in one transaction.
///
/// # Errors
/// `Internal_error` when there are too many or a name cannot be a node's.
pub fn update_guest_agent_features(core: &Core, features: &[GuestAgentFeature]) -> Result<(), Error> {
    let parameters = features.iter().map(|feature| feature.parameters.iter().count()).max().unwrap_or(0);
    if features.len().max(parameters) > MAX_AGENT_FEATURES {
        return Err(Error::internal(format!(
            "more than {MAX_AGENT_FEATURES} guest agent features or parameters"
        )));
    }
    let everybody = Perms { others: Access::Read, ..Perms::no() };
    let below = |path: &Path, name: &str| {
        let plain = !name.is_empty() && !name.contains('/');
        let joined = plain.then(|| path.join(name));
        let bad =
            || Error::internal(format!("{name:?} cannot be the name of a guest agent feature or parameter"));
        joined.ok_or_else(bad)?.map_err(|_| bad())
    };
    let root = Path::new(AGENT_FEATURES).map_err(xenstore::Error::from)?;
    let mut batch = Batch::new();
    batch.rm(root.clone()).write_with(root.clone(), "", everybody.clone());
    for feature in features {
        let home = below(&root, &feature.name)?;
        let parameters = below(&home, "parameters")?;
        let licensed = if feature.licensed { "1" } else { "0" };
        batch.write_with(home.clone(), "", everybody.clone());
        batch.write_with(parameters.clone(), "", everybody.clone());
        batch.write_with(below(&home, "licensed")?, licensed, everybody.clone());
        for (key, value) in feature.parameters.iter() {
            batch.write_with(below(&parameters, key)?, value.as_str(), everybody.clone());
        }
    }
    Ok(core.edges.store()?.commit(&batch)?)
}

/// Sends debug keys to the hypervisor, whose answer is in its console ring.
///
/// # Errors
/// When the keys are refused.
pub fn send_debug_keys(core: &Core, keys: &str) -> Result<(), Error> {
    Ok(core.edges.hypervisor()?.send_debug_keys(keys)?)
}

fn int(n: u32) -> Int {
    Int::try_from(n).unwrap_or(Int::MAX)
}

fn first_field(cpuinfo: &str, name: &str) -> String {
    let line = cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name);
    line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_matched_whole() {
        let text = "model\t\t: 17\nmodel name\t: A CPU: fast\nflags\t: fpu vme\n";
        assert_eq!(first_field(text, "model"), "17");
        assert_eq!(first_field(text, "model name"), "A CPU: fast");
        assert_eq!(first_field(text, "absent"), "");
    }
}
