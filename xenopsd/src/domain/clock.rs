//! An HVM guest's clock: how far it is off UTC.
//!
//! ```text
//!   record ──► domain (Xen emulates the clock) ──► the guest sets it ──► IOREQ_TYPE_TIMEOFFSET ──► device model
//!     ▲                                                                                               │ RTC_CHANGE,
//!     └──────────── /vm/U/rtc/timeoffset ──► VM.stat: rtc_timeoffset ◄── change (by how much) ◄───────┘ if it tells
//! ```
//!
//! XenServer's QEMU passes on what Xen tells it, which is by how much the clock was set. QEMU as it is released (to 9.0 at
//! least) drops it, and its own clock, which would send that event too, is never asked: Xen answers its ports. With such a
//! QEMU nobody but the guest and Xen knows that the clock was set, and the next domain of the VM starts with what is in the
//! record, as under `xl`.

use uuid::Uuid;
use xenstore::Operations;
use xenstore::layout::time_offset_path;

use crate::api::{BuilderInfo, Error, Vm};
use crate::core::Core;

/// Seconds by which the clock of a running HVM guest is off UTC; none for another guest, or one whose node is gone.
///
/// # Errors
/// When xenstored does not answer.
pub fn offset(store: &mut impl Operations, vm: &Vm) -> Result<Option<i32>, Error> {
    let (BuilderInfo::Hvm(_), Ok(uuid)) = (&vm.ty, Uuid::try_parse(&vm.id)) else { return Ok(None) };
    let value = store.read(&time_offset_path(uuid))?;
    Ok(value.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok()))
}

/// Keeps what a guest has set its clock by, for clients and for the VM's next domain, and says what it is off UTC now.
///
/// # Errors
/// When xenstored does not answer, or the record cannot be read or written.
pub fn change(core: &Core, id: &str, seconds: i64) -> Result<i32, Error> {
    let vm = core.records.vm(id)?;
    let mut store = core.edges.store()?;
    let now = i64::from(offset(&mut *store, &vm)?.unwrap_or(0)).saturating_add(seconds);
    // What a domain's clock can be started with.
    let now = i32::try_from(now).unwrap_or(if now < 0 { i32::MIN } else { i32::MAX });
    // The record first: what clients are told, the next domain has.
    core.records.update_vm(id, |vm| {
        if let BuilderInfo::Hvm(hvm) = &mut vm.ty {
            hvm.timeoffset = now.to_string();
        }
    })?;
    if let Ok(uuid) = Uuid::try_parse(id) {
        store.write(&time_offset_path(uuid), now.to_string())?;
    }
    drop(store);
    core.announce(id);
    Ok(now)
}
