//! Quality of service of disks: the I/O priority of the threads that serve them, which are the backend's and those of the
//! disk server behind it, if there is one.
//!
//! ```text
//!   plug ──► the backend's state is followed ──► it changes ──► a look at the VM ──► connected? its threads' priority is set
//!   unplug, end of the domain ──► it is not followed any more
//! ```
//!
//! The kernel starts the threads when the guest connects, which is after the plug, and again after a suspend; so there is
//! nothing to set before. A scheduler that knows of priorities (bfq) has to serve the disk for them to mean something.

use std::sync::Weak;

use xenstore::layout::{DeviceAddress, XenbusState};

use super::{served, store_domid, vbd};
use crate::api::{Error, Qos, QosClass, QosScheduler, Vbd};
use crate::core::Core;
use crate::edge::{DomId, IoPriority};

/// The priority that a record asks for.
///
/// # Errors
/// When its level is none.
pub fn priority(vbd: &Vbd) -> Result<Option<IoPriority>, Error> {
    let Some(Qos::Ionice(wanted)) = vbd.qos else { return Ok(None) };
    let level = |level: QosClass| {
        // As xapi's xenopsd has them.
        let level = match level {
            QosClass::Highest => 0,
            QosClass::High => 2,
            QosClass::Normal => 4,
            QosClass::Low => 6,
            QosClass::Lowest => 7,
            QosClass::Other(level) => level,
        };
        let level = u16::try_from(level).ok().filter(|level| *level <= 7);
        level.ok_or_else(|| Error::internal(format!("VBD {}: an I/O priority is 0 to 7", vbd.id)))
    };
    Ok(Some(match wanted {
        QosScheduler::RealTime(class) => IoPriority { class: 1, level: level(class)? },
        QosScheduler::BestEffort(class) => IoPriority { class: 2, level: level(class)? },
        QosScheduler::Idle => IoPriority { class: 3, level: 0 },
    }))
}

/// Follows a disk that is plugged, if it is to have a priority. Again, it is followed anew.
///
/// # Errors
/// As [`priority`], and when there are no events any more.
pub fn follow(core: &Core, domid: DomId, vbd: &Vbd) -> Result<(), Error> {
    if priority(vbd)?.is_none() {
        return Ok(());
    }
    let address = vbd::address(domid, vbd)?;
    let (me, vm) = (Weak::clone(&core.me), vbd.id.vm.clone());
    let look = move || {
        if let Some(core) = me.upgrade() {
            core.check_soon(&vm, "disk priority");
        }
    };
    let following = core.events.follow(&[address.backend_state()], look)?;
    forget(core, &vbd.id.vm, address);
    core.runtimes.with(&vbd.id.vm, |r| r.followed_disks.push((address, following)));
    Ok(())
}

/// A disk is not there any more.
pub fn forget(core: &Core, vm: &str, address: DeviceAddress) {
    core.runtimes.with(vm, |r| r.followed_disks.retain(|(followed, _)| *followed != address));
}

/// Sets the priorities of a VM's disks that are followed and connected.
///
/// # Errors
/// The first refusal; when xenstored does not answer.
pub fn apply(core: &Core, vm: &str, domid: DomId) -> Result<(), Error> {
    let followed: Vec<DeviceAddress> =
        core.runtimes.with(vm, |r| r.followed_disks.iter().map(|(address, _)| *address).collect());
    if followed.is_empty() {
        return Ok(());
    }
    let vbds: Vec<Vbd> = core.records.devices(vm)?;
    for address in followed.into_iter().filter(|address| address.domid == store_domid(domid)) {
        let its = |vbd: &&Vbd| vbd::number(vbd).is_ok_and(|number| number == address.id);
        let Some(vbd) = vbds.iter().find(its) else { continue };
        let status = address.status(&mut *core.edges.store()?)?;
        if let (Some(XenbusState::Connected), Some(priority)) = (status.backend, priority(vbd)?) {
            let threads = core.edges.host().prioritise_disk(domid, &vbd.id.device, priority)?;
            let servers = match served::process(core, vm, address.id) {
                Some(process) => core.edges.host().prioritise_process(&process, priority)?,
                None => 0,
            };
            tracing::debug!(vbd = %vbd.id, ?priority, threads, servers, "I/O priority set");
        }
    }
    Ok(())
}
