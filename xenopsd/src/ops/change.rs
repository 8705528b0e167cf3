//! Changes of a VM or of one of its devices while it may be running: first the record, then what runs.
//!
//! ```text
//!   keep the record ──► apply it to what runs
//!        └── either fails: the record is as before, and what runs is brought in line with that
//! ```
//!
//! What runs is brought in line with its record and not moved from one state to another, so that the same step makes a
//! change, takes it back, and finishes one that an earlier daemon was killed in.

use std::fmt;

use super::plan::{Atom, Step};
use crate::api::{Disk, Error, Vbd, Vif, Vm};
use crate::state::Records;

/// A record that changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A VM's, and what of it.
    Vm(Box<Vm>, Aspect),
    /// A disk's.
    Vbd(Box<Vbd>),
    /// A network interface's.
    Vif(Box<Vif>),
}

impl Record {
    /// Stores it.
    ///
    /// # Errors
    /// As [`Records::put`].
    pub fn put(&self, records: &Records) -> Result<(), Error> {
        match self {
            Self::Vm(vm, _) => records.put_vm(vm),
            Self::Vbd(vbd) => records.put(&**vbd),
            Self::Vif(vif) => records.put(&**vif),
        }
    }
}

/// What of a running VM a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    /// How many processors the guest is to use.
    Vcpus,
    /// How much memory it is to have.
    Memory,
    /// How much memory the hypervisor keeps its page tables in.
    Paging,
    /// What its owner has for it.
    Xsdata,
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vcpus => "vcpus",
            Self::Memory => "memory",
            Self::Paging => "shadow multiplier",
            Self::Xsdata => "xsdata",
        })
    }
}

/// A record before and after.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// As it is to be.
    pub now: Record,
    /// As it was.
    pub before: Record,
}

impl Change {
    /// A medium put into a drive, or taken out of it.
    pub fn medium(drive: &Vbd, medium: Option<Disk>) -> Self {
        let now = Vbd { backend: medium, ..drive.clone() };
        Self { now: Record::Vbd(Box::new(now)), before: Record::Vbd(Box::new(drive.clone())) }
    }

    /// Something else about a VM.
    pub fn vm(before: Vm, now: Vm, aspect: Aspect) -> Self {
        Self { now: Record::Vm(Box::new(now), aspect), before: Record::Vm(Box::new(before), aspect) }
    }

    /// An interface with other settings.
    pub fn interface(before: Vif, now: Vif) -> Self {
        Self { now: Record::Vif(Box::new(now)), before: Record::Vif(Box::new(before)) }
    }

    /// The change that takes this one back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { now: self.before.clone(), before: self.now.clone() }
    }

    /// What takes it back, in order.
    pub fn undo(&self) -> Vec<Atom> {
        let reversed = self.reversed();
        match self.now {
            // A drive is plugged and unplugged by steps of its own.
            Record::Vbd(_) => vec![Atom::Keep(reversed)],
            Record::Vm(..) | Record::Vif(_) => vec![Atom::Keep(reversed.clone()), Atom::Apply(reversed)],
        }
    }

    /// The plan that makes it.
    pub fn plan(self) -> Vec<Step> {
        [Atom::Keep(self.clone()), Atom::Apply(self)].map(Step::Do).to_vec()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.now {
            Record::Vm(_, aspect) => write!(f, "{aspect}"),
            Record::Vbd(vbd) => write!(f, "medium of disk {}", vbd.id.device),
            Record::Vif(vif) => write!(f, "interface {}", vif.id.device),
        }
    }
}

/// A medium for a drive of a running guest: a PV drive comes with it, an `emulated` one is there.
pub fn insert(drive: &Vbd, medium: &Disk, emulated: bool) -> Vec<Step> {
    let mut steps = vec![Step::Do(Atom::Keep(Change::medium(drive, Some(medium.clone()))))];
    let filled = Vbd { backend: Some(medium.clone()), ..drive.clone() };
    steps.extend(super::plan::plug(&super::plan::Device::Vbd(drive.id.device.clone()), Some(&filled)));
    steps.extend(emulated.then(|| Step::Do(Atom::InsertMedium(drive.id.device.clone()))));
    steps
}

/// And out again: the PV drive goes with it, if it is plugged. Of an emulated one a guest can refuse to let it go.
pub fn eject(drive: &Vbd, plugged: bool, emulated: bool) -> Vec<Step> {
    use super::plan::{Device, Unplugging, unplug};
    let device = Device::Vbd(drive.id.device.clone());
    let first = emulated.then(|| Step::Do(Atom::EjectMedium(drive.id.device.clone(), Unplugging::Clean)));
    let mut steps: Vec<Step> = first.into_iter().collect();
    if plugged {
        steps.extend(unplug(&device, Unplugging::Clean));
    }
    steps.push(Step::Do(Atom::Keep(Change::medium(drive, None))));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::plan::{Device, Unplugging};
    use crate::test_vbd;

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    #[test]
    fn an_insert_that_fails_leaves_the_drive_empty() {
        let drive = test_vbd(ID, "xvdd");
        let medium = Disk::Local("/srv/cd.iso".to_owned());
        let plan = insert(&drive, &medium, false);
        let device = Device::Vbd("xvdd".to_owned());
        let Step::Do(Atom::Keep(change)) = &plan[0] else { panic!("{plan:?}") };
        assert_eq!(
            plan[1..],
            [Atom::BeginPlug, Atom::Plug, Atom::EndPlug].map(|a| Step::Do(a(device.clone())))
        );
        let [Atom::Keep(undo)] = &change.undo()[..] else { panic!("{change:?}") };
        assert_eq!(undo.now, Record::Vbd(Box::new(drive)));
    }

    #[test]
    fn an_eject_forgets_the_medium_only_once_the_guest_has_let_go() {
        let drive = test_vbd(ID, "xvdd");
        let unplug = Step::Do(Atom::Unplug(Device::Vbd("xvdd".to_owned()), Unplugging::Clean));
        assert_eq!(eject(&drive, true, false)[0], unplug);
        assert_eq!(eject(&drive, true, false)[1..], eject(&drive, false, false));
    }

    #[test]
    fn a_guest_may_keep_the_medium_of_an_emulated_drive() {
        let drive = test_vbd(ID, "hdc");
        let (insert, eject) =
            (insert(&drive, &Disk::Local("/srv/cd.iso".to_owned()), true), eject(&drive, true, true));
        let atom = Atom::EjectMedium("hdc".to_owned(), Unplugging::Clean);
        assert_eq!(eject[0], Step::Do(atom.clone()));
        let last = Atom::InsertMedium("hdc".to_owned());
        assert_eq!(insert.last(), Some(&Step::Do(last.clone())));
        assert_eq!(
            (atom.undo(), last.undo()),
            (vec![last], vec![Atom::EjectMedium("hdc".to_owned(), Unplugging::Forced)])
        );
    }
}
