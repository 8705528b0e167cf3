//! `VM.*` calls that only touch records, or only look.

use crate::api::{DynamicId, Error, Vm, VmState};
use crate::core::Core;
use crate::domain::observe;

pub(super) fn add(core: &Core, vm: &Vm) -> Result<String, Error> {
    core.records.put_vm(vm)?;
    core.updates.add(DynamicId::Vm(vm.id.clone()));
    Ok(vm.id.clone())
}

pub(super) fn stat(core: &Core, id: &str) -> Result<(Vm, VmState), Error> {
    let vm = core.records.vm(id)?;
    let state = observe::state(core, &vm)?;
    Ok((vm, state))
}

/// One hypercall for all, however many there are.
pub(super) fn list(core: &Core) -> Result<Vec<(Vm, VmState)>, Error> {
    let domains = core.edges.hypervisor()?.domains()?;
    let state_of = |vm: Vm| {
        let uuid = uuid::Uuid::try_parse(&vm.id).unwrap_or_default();
        let domain = domains.iter().find(|d| d.uuid == *uuid.as_bytes() && !d.dying);
        observe::state_with(core, &vm, domain).map(|state| (vm, state))
    };
    core.records.vms()?.into_iter().map(state_of).collect()
}
