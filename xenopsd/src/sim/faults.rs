//! Calls that are to fail, for tests of everything that comes after a failure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::chance::Chance;

/// Most calls that are remembered for [`Faults::recorded`]: a start has a few hundred.
const MAX_RECORDED: usize = 1 << 16;

/// Whether the call that fails has taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It has not.
    Before,
    /// It has, and nobody is told: only calls to the store, whose answers can get lost.
    After,
}

/// Which calls fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The `nth` call (counted from 0) from now on, of this name or of any.
    Nth {
        /// As [`Faults::recorded`] names them; any when none.
        site: Option<String>,
        /// Counted from 0.
        nth: u64,
        /// Before or after its effect.
        when: When,
    },
    /// The `nth` call (counted from 0) and all after it: the caller might as well be dead.
    From {
        /// Counted from 0.
        nth: u64,
    },
    /// Each call with a chance of one in `one_in`: whether the n-th call of a name fails depends on the seed, the name
    /// and n only.
    Random {
        /// What it is drawn from.
        seed: u64,
        /// At least 1.
        one_in: u64,
    },
}

/// The call was chosen to fail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{site}: failure injected by the simulator")]
pub(super) struct Injected {
    pub(super) site: String,
}

#[derive(Debug, Default)]
struct Plan {
    fault: Option<Fault>,
    /// Calls that the fault might have met.
    seen: u64,
    /// The same by name.
    seen_of: HashMap<String, u64>,
    fired: u64,
    recording: bool,
    recorded: Vec<String>,
}

/// The plan of failures of one machine. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    plan: Arc<Mutex<Plan>>,
}

impl Faults {
    /// Lets calls fail from now on.
    pub fn arm(&self, fault: Fault) {
        let mut plan = self.lock();
        (plan.fault, plan.seen, plan.fired) = (Some(fault), 0, 0);
        plan.seen_of.clear();
    }

    /// Lets all calls succeed again; how many have failed.
    pub fn disarm(&self) -> u64 {
        let mut plan = self.lock();
        plan.fault = None;
        plan.fired
    }

    /// Begins to remember the calls.
    pub fn record(&self) {
        let mut plan = self.lock();
        plan.recording = true;
        plan.recorded.clear();
    }

    /// The names of the calls since [`Faults::record`], in order, and no more from now on.
    pub fn recorded(&self) -> Vec<String> {
        let mut plan = self.lock();
        plan.recording = false;
        std::mem::take(&mut plan.recorded)
    }

    /// A call happens; whether it is to fail, and when.
    pub(super) fn meet(&self, site: &str) -> Option<When> {
        let mut plan = self.lock();
        if plan.recording && plan.recorded.len() < MAX_RECORDED {
            plan.recorded.push(site.to_owned());
        }
        let plan = &mut *plan;
        let fault = plan.fault.as_ref()?;
        let seen = plan.seen;
        let of_name = plan.seen_of.entry(site.to_owned()).or_default();
        let seen_of_name = std::mem::replace(of_name, *of_name + 1);
        let chosen = match fault {
            Fault::Nth { site: Some(wanted), .. } if wanted != site => return None,
            Fault::Nth { nth, when, .. } => (seen == *nth).then_some(*when),
            Fault::From { nth } => (seen >= *nth).then_some(When::Before),
            Fault::Random { seed, one_in } => {
                let drawn = Chance::new(*seed).of(site).draw(seen_of_name);
                drawn.is_multiple_of((*one_in).max(1)).then_some(When::Before)
            }
        };
        plan.seen += 1;
        plan.fired += u64::from(chosen.is_some());
        chosen
    }

    /// A call that cannot have had an effect when it fails.
    pub(super) fn check(&self, site: &str) -> Result<(), Injected> {
        match self.meet(site) {
            None => Ok(()),
            Some(_) => Err(Injected { site: site.to_owned() }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_of_a_name_fails_once() {
        let faults = Faults::default();
        faults.arm(Fault::Nth { site: Some("b".to_owned()), nth: 1, when: When::Before });
        faults.record();
        let outcome: Vec<_> =
            ["a", "b", "a", "b", "b"].into_iter().map(|s| faults.check(s).is_err()).collect();
        assert_eq!(outcome, [false, false, false, true, false]);
        assert_eq!(faults.recorded(), ["a", "b", "a", "b", "b"]);
        assert_eq!(faults.disarm(), 1);
        assert!(faults.check("b").is_ok());
    }

    #[test]
    fn chances_are_as_fair_as_asked_and_repeat() {
        let failing = |seed| {
            let faults = Faults::default();
            faults.arm(Fault::Random { seed, one_in: 10 });
            (0..1000).filter(|_| faults.check("x").is_err()).collect::<Vec<_>>()
        };
        assert_eq!(failing(1), failing(1));
        assert!((50..200).contains(&failing(1).len()), "{}", failing(1).len());
    }
}
