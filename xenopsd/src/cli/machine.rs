//! `xenops vcpus` and `xenops memory`: what a VM has of the host's processors and memory.

use crate::api::{Int, VmSetMemoryDynamicRange, VmSetVcpus};

use super::Session;
use super::error::CliError;
use super::show::MIB;
use super::vm::find;

pub(super) fn vcpus(session: &mut Session<'_, '_>, vm: &str, count: u16) -> Result<(), CliError> {
    let vm = find(session, vm)?;
    // 16 bits fit the contract's integers on every machine.
    let vcpus = Int::try_from(count).unwrap_or(Int::MAX);
    let task = session.client.call(&VmSetVcpus { debug_info: session.dbg(), id: vm.id, vcpus })?;
    session.wait(&format!("setting the vcpus of {}", vm.name), &task)
}

/// Without `max` the range is one size, which the guest is asked to take.
pub(super) fn memory(
    session: &mut Session<'_, '_>,
    vm: &str,
    mib: u32,
    max: Option<u32>,
) -> Result<(), CliError> {
    let vm = find(session, vm)?;
    let (minimum, maximum) = (i64::from(mib) * MIB, i64::from(max.unwrap_or(mib)) * MIB);
    let call = VmSetMemoryDynamicRange { debug_info: session.dbg(), id: vm.id, minimum, maximum };
    let task = session.client.call(&call)?;
    session.wait(&format!("setting the memory of {}", vm.name), &task)
}
