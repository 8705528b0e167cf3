//! `get_diagnostics`: what the daemon is doing, as JSON for a person or a bug report.

use std::collections::HashMap;

use crate::api::value::{ToValue, Value};
use crate::api::{Error, PowerState};
use crate::core::Core;
use crate::domain::observe;
use crate::edge::DomainInfo;
use crate::rpc::json;

/// The text.
///
/// # Errors
/// When the hypervisor does not answer or the state directory cannot be listed.
pub(super) fn text(core: &Core) -> Result<String, Error> {
    let queues = core.queues.summary().into_iter().map(|(vm, waiting)| (vm.into(), count(waiting)));
    let (threads, used, slots) = core.queues.workers();
    let (objects, barriers, waiters) = core.updates.counts();
    let (entries, damaged) = core.journal.counts();
    let all = dict([
        ("instance_id", core.instance_id.to_value()),
        ("version", env!("CARGO_PKG_VERSION").to_owned().to_value()),
        ("queues", Value::Dict(queues.collect())),
        ("workers", dict([("threads", count(threads)), ("busy", used.to_value()), ("slots", count(slots))])),
        ("scheduler", dict([("timers", count(core.updates.timers()))])),
        (
            "updates",
            dict([
                ("next", (core.updates.last_id() + 1).to_value()),
                ("objects", count(objects)),
                ("barriers", count(barriers)),
                ("waiters", count(waiters)),
            ]),
        ),
        ("tasks", core.tasks.list().to_value()),
        ("vm_actions", vm_actions(core)?),
        ("journal", dict([("entries", count(entries)), ("damaged", count(damaged))])),
        ("numa_affinity_policy", core.numa_policy().map(|policy| policy.tag().to_owned()).to_value()),
        ("tracing", core.observers.describe()),
    ]);
    Ok(json::print_lossy(&all))
}

/// Each VM's power state, and what its domain asks for by having stopped.
fn vm_actions(core: &Core) -> Result<Value, Error> {
    let domains = core.edges.hypervisor()?.domains()?;
    let domains: HashMap<String, &DomainInfo> = domains
        .iter()
        .filter(|domain| !domain.dying)
        .map(|domain| (uuid::Uuid::from_bytes(domain.uuid).hyphenated().to_string(), domain))
        .collect();
    let action = |vm: String| {
        let domain = domains.get(&vm).copied();
        let stopped = domain.and_then(|d| d.shutdown).map(|reason| format!("{reason:?}"));
        // A dump shows what it can.
        let extra = core.records.extra(&vm).unwrap_or_default();
        let state: PowerState = observe::power_state(domain, &extra);
        (vm.into(), Value::Array(vec![state.to_value(), stopped.to_value()]))
    };
    Ok(Value::Dict(core.records.vm_ids()?.into_iter().map(action).collect()))
}

fn dict<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Dict(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

fn count(n: usize) -> Value {
    i64::try_from(n).unwrap_or(i64::MAX).to_value()
}
