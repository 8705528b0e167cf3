//! `VM.*` calls that only touch records, or only look.

use std::collections::HashMap;
use std::sync::Arc;

use crate::api::{DynamicId, Error, Vm, VmState};
use crate::core::{Core, Operation, Wish};
use crate::domain::observe;
use crate::edge::DomainInfo;

pub(super) fn add(core: &Core, vm: &Vm) -> Result<String, Error> {
    core.records.put_vm(vm)?;
    core.updates.add(DynamicId::Vm(vm.id.clone()));
    Ok(vm.id.clone())
}

pub(super) fn change(core: &Arc<Core>, id: &str, dbg: &str, wish: Wish) -> Result<String, Error> {
    core.submit(id, dbg, Operation::Change(wish))
}

pub(super) fn stat(core: &Core, id: &str) -> Result<(Vm, VmState), Error> {
    let vm = core.records.vm(id)?;
    let state = observe::state(core, &vm)?;
    Ok((vm, state))
}

/// One hypercall for all, however many there are. One whose records cannot be read is logged and left out.
pub(super) fn list(core: &Core) -> Result<Vec<(Vm, VmState)>, Error> {
    let domains = core.edges.hypervisor()?.domains()?;
    let domains: HashMap<[u8; 16], &DomainInfo> =
        domains.iter().filter(|d| !d.dying).map(|d| (d.uuid, d)).collect();
    let mut all = Vec::new();
    for vm in core.records.vms()? {
        let extra = match core.records.extra(&vm.id) {
            Ok(extra) => extra,
            Err(error) => {
                tracing::error!(vm = %vm.id, %error, "unreadable private state: VM left out");
                continue;
            }
        };
        let uuid = uuid::Uuid::try_parse(&vm.id).unwrap_or_default();
        let state = observe::state_with(core, &vm, &extra, domains.get(uuid.as_bytes()).copied())?;
        all.push((vm, state));
    }
    Ok(all)
}
