//! Which steps an operation takes, in which order, what may run in parallel and what undoes what: a pure function of
//! the stored records, tested without a machine.
//!
//! ```text
//!   start     check ─► create ─► ∥ { build · ∥ writable disks ─► ∥ read-only disks · each interface } ─► settle
//!   shutdown  [ask the guest] ─► pause ─► close devices ─► destroy domain ─► release devices
//!   reboot    [ask the guest] ─► shutdown ─► start ─► unpause
//! ```
//!
//! The build and the devices run side by side: backends only need the device's own nodes, and their probing is the
//! longer half of a start.

use std::time::Duration;

use crate::api::{Vbd, VbdMode, Vif, Vm};

/// How a guest is asked to go down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// `control/shutdown` = `poweroff`.
    Poweroff,
    /// `control/shutdown` = `reboot`.
    Reboot,
}

/// One effect. Devices are named by the second part of their id.
#[derive(Debug, Clone, PartialEq)]
pub enum Atom {
    /// Everything that can be found wrong without taking anything.
    CheckStart,
    /// An empty domain and its xenstore skeleton.
    CreateDomain,
    /// Memory, kernel, rings; the store told of them.
    BuildDomain,
    /// A disk attached to dom0, offered to the guest and taken up by its backend.
    PlugVbd(String),
    /// A network interface likewise.
    PlugVif(String),
    /// Marks the domain as complete: until then a restarted daemon takes it for half built and removes it.
    Settle,
    /// Lets the vcpus run.
    Unpause,
    /// Stops them.
    Pause,
    /// As [`Atom::Pause`], ignoring failure: the domain is about to go.
    PauseBestEffort,
    /// Asks the guest, and waits for it to have stopped.
    RequestShutdown(ShutdownRequest, Duration),
    /// Tells every backend to let go.
    CloseDevices,
    /// The domain itself.
    DestroyDomain,
    /// Waits for the backends, gives the host's resources back, removes the xenstore trees.
    ReleaseDevices,
}

/// A plan: atoms in order and in parallel.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// One effect.
    Do(Atom),
    /// One after the other.
    Serial(Vec<Step>),
    /// At the same time; all are awaited, then the first failure counts.
    Parallel(Vec<Step>),
}

/// A VM as the plan sees it.
#[derive(Debug, Clone)]
pub struct Records {
    /// The VM.
    pub vm: Vm,
    /// Its disks.
    pub vbds: Vec<Vbd>,
    /// Its network interfaces.
    pub vifs: Vec<Vif>,
}

/// Start, leaving the domain paused, as the contract has it.
pub fn start(records: &Records) -> Vec<Step> {
    let plug = |mode: VbdMode| {
        let these = records.vbds.iter().filter(|vbd| vbd.mode == mode);
        Step::Parallel(these.map(|vbd| Step::Do(Atom::PlugVbd(vbd.id.device.clone()))).collect())
    };
    let mut together = vec![
        Step::Do(Atom::BuildDomain),
        // Storage cannot turn a read-only attachment into a writable one, so writable disks go first.
        Step::Serial(vec![plug(VbdMode::ReadWrite), plug(VbdMode::ReadOnly)]),
    ];
    together.extend(records.vifs.iter().map(|vif| Step::Do(Atom::PlugVif(vif.id.device.clone()))));
    let [check, create, settle] = [Atom::CheckStart, Atom::CreateDomain, Atom::Settle].map(Step::Do);
    tidy(vec![check, create, Step::Parallel(together), settle])
}

/// An empty domain, kept.
pub fn create() -> Vec<Step> {
    [Atom::CheckStart, Atom::CreateDomain, Atom::Settle].map(Step::Do).to_vec()
}

/// Down, and nothing left. Asks the guest first when `timeout` is given.
pub fn shutdown(timeout: Option<Duration>) -> Vec<Step> {
    let mut steps = request(ShutdownRequest::Poweroff, timeout);
    steps.extend(destroy());
    steps
}

/// Down and up again, running.
pub fn reboot(records: &Records, timeout: Option<Duration>) -> Vec<Step> {
    let mut steps = request(ShutdownRequest::Reboot, timeout);
    steps.extend(destroy());
    steps.extend(start(records));
    steps.push(Step::Do(Atom::Unpause));
    steps
}

/// The end of a domain in whatever state; also what undoes its creation.
pub fn destroy() -> Vec<Step> {
    [Atom::PauseBestEffort, Atom::CloseDevices, Atom::DestroyDomain, Atom::ReleaseDevices]
        .map(Step::Do)
        .to_vec()
}

fn request(what: ShutdownRequest, timeout: Option<Duration>) -> Vec<Step> {
    timeout.map(|t| Step::Do(Atom::RequestShutdown(what, t))).into_iter().collect()
}

impl Atom {
    /// What takes this atom back once it is done, or when it failed half way. Devices need nothing of their own in a
    /// start: undoing the creation releases whatever the domain has.
    pub fn undo(&self) -> Vec<Step> {
        match self {
            Self::CreateDomain => destroy(),
            Self::CheckStart
            | Self::BuildDomain
            | Self::PlugVbd(_)
            | Self::PlugVif(_)
            | Self::Settle
            | Self::Unpause
            | Self::Pause
            | Self::PauseBestEffort
            | Self::RequestShutdown(..)
            | Self::CloseDevices
            | Self::DestroyDomain
            | Self::ReleaseDevices => Vec::new(),
        }
    }

    /// Once begun these run to their end: stopping half way would leave more behind than finishing.
    pub fn cancellable(&self) -> bool {
        !matches!(
            self,
            Self::PauseBestEffort | Self::CloseDevices | Self::DestroyDomain | Self::ReleaseDevices
        )
    }
}

impl std::fmt::Display for Atom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CheckStart => write!(f, "check"),
            Self::CreateDomain => write!(f, "create domain"),
            Self::BuildDomain => write!(f, "build domain"),
            Self::PlugVbd(name) => write!(f, "plug disk {name}"),
            Self::PlugVif(name) => write!(f, "plug interface {name}"),
            Self::Settle => write!(f, "settle"),
            Self::Unpause => write!(f, "unpause"),
            Self::Pause | Self::PauseBestEffort => write!(f, "pause"),
            Self::RequestShutdown(ShutdownRequest::Poweroff, _) => write!(f, "ask for poweroff"),
            Self::RequestShutdown(ShutdownRequest::Reboot, _) => write!(f, "ask for reboot"),
            Self::CloseDevices => write!(f, "close devices"),
            Self::DestroyDomain => write!(f, "destroy domain"),
            Self::ReleaseDevices => write!(f, "release devices"),
        }
    }
}

impl Step {
    /// Whether it is one of the steps of [`destroy`], which are all taken once the first is.
    pub fn ends_domain(&self) -> bool {
        matches!(self, Self::Do(atom) if !atom.cancellable())
    }

    /// How many atoms it holds, for progress.
    pub fn atoms(&self) -> usize {
        match self {
            Self::Do(_) => 1,
            Self::Serial(steps) | Self::Parallel(steps) => steps.iter().map(Self::atoms).sum(),
        }
    }
}

/// Removes empty groups and unwraps groups of one.
fn tidy(steps: Vec<Step>) -> Vec<Step> {
    steps
        .into_iter()
        .filter_map(|step| match step {
            Step::Do(_) => Some(step),
            Step::Serial(inner) => group(tidy(inner), Step::Serial),
            Step::Parallel(inner) => group(tidy(inner), Step::Parallel),
        })
        .collect()
}

fn group(mut steps: Vec<Step>, wrap: fn(Vec<Step>) -> Step) -> Option<Step> {
    match steps.len() {
        0 => None,
        1 => steps.pop(),
        _ => Some(wrap(steps)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{test_vbd, test_vif, test_vm};

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    fn records(vbds: &[(&str, VbdMode)], vifs: &[&str]) -> Records {
        Records {
            vm: test_vm(ID, "demo"),
            vbds: vbds.iter().map(|(name, mode)| Vbd { mode: *mode, ..test_vbd(ID, name) }).collect(),
            vifs: vifs.iter().map(|name| test_vif(ID, name)).collect(),
        }
    }

    fn vbd(name: &str) -> Step {
        Step::Do(Atom::PlugVbd(name.to_owned()))
    }

    #[test]
    fn a_bare_start_has_no_groups() {
        let steps = [Atom::CheckStart, Atom::CreateDomain, Atom::BuildDomain, Atom::Settle].map(Step::Do);
        assert_eq!(start(&records(&[], &[])), steps);
    }

    #[test]
    fn writable_disks_go_before_read_only_ones() {
        use VbdMode::{ReadOnly, ReadWrite};
        let plan = start(&records(
            &[("xvda", ReadOnly), ("xvdb", ReadWrite), ("xvdc", ReadWrite), ("xvdd", ReadOnly)],
            &["0"],
        ));
        let Step::Parallel(together) = &plan[2] else { panic!("{plan:?}") };
        assert_eq!(
            together[1],
            Step::Serial(vec![
                Step::Parallel(vec![vbd("xvdb"), vbd("xvdc")]),
                Step::Parallel(vec![vbd("xvda"), vbd("xvdd")]),
            ])
        );
        assert_eq!(together[2], Step::Do(Atom::PlugVif("0".to_owned())));
    }

    #[test]
    fn groups_of_one_are_no_groups() {
        let plan = start(&records(&[("xvda", VbdMode::ReadWrite)], &[]));
        assert_eq!(plan[2], Step::Parallel(vec![Step::Do(Atom::BuildDomain), vbd("xvda")]));
    }

    #[test]
    fn a_hard_shutdown_does_not_ask() {
        assert_eq!(shutdown(None), destroy());
        let minute = Duration::from_secs(60);
        assert_eq!(
            shutdown(Some(minute))[0],
            Step::Do(Atom::RequestShutdown(ShutdownRequest::Poweroff, minute))
        );
    }

    #[test]
    fn everything_a_start_takes_is_undone_by_its_creation() {
        assert_eq!(Atom::CreateDomain.undo(), destroy());
        assert!(
            destroy().iter().all(|s| matches!(s, Step::Do(a) if !a.cancellable() && a.undo().is_empty()))
        );
    }
}
