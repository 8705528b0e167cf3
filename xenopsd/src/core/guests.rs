//! Follows what guests write: one thread looks when a watch says that something changed, and tells clients when what
//! they would see is different.
//!
//! ```text
//!   quiet ──a watch fires──► due, after a moment ──► look ──different──► kept for `VM.stat`, announced in `UPDATES`
//!     ▲                                               │
//!     └───────────────────────────────────────────────┤ there are looks left: the watch stays
//!     watch set again ◄── as long as one look costs ◄─┘ there are none: the watch is taken away
//! ```
//!
//! Each domain has some looks that it may cause at once, and gets them back slowly. A guest that writes all the time
//! costs a look now and then, and no events in between. Agents write at most every few seconds. All of the domain's home is
//! watched until one of its devices is seen connected, which is how it is known that the guest has drivers; then only what
//! is read of it. A plug writes some fifteen nodes in the home, and each would be an event.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::Core;
use crate::api::{DynamicId, Error};
use crate::domain::guest_data;
use crate::edge::{DomId, Events, Following};
use crate::ops::timer::Timer;

/// From the first change to the look: agents write several nodes in a row.
const SETTLE: Duration = Duration::from_millis(100);

/// Least time between two looks.
const APART: Duration = Duration::from_secs(1);

/// Looks that a domain may cause at once. A guest that boots causes some five.
const BURST: u32 = 10;

/// After how long a look is given back.
const REFILL: Duration = Duration::from_secs(10);

/// What the thread is told.
enum News {
    /// All domains that run, with their VMs.
    Domains(Vec<(DomId, String)>),
    /// Something of a domain changed.
    Changed(DomId),
    /// A look is due.
    Due(DomId),
    /// The daemon ends.
    End,
}

/// Handle to the thread, which ends with it.
pub(super) struct Guests {
    news: Sender<News>,
}

impl Drop for Guests {
    fn drop(&mut self) {
        // One that has ended need not be told.
        let _ = self.news.send(News::End);
    }
}

impl Guests {
    /// A handle, and what the thread is to be [started](start) with.
    pub(super) fn new() -> (Self, Incoming) {
        let (news, incoming) = unbounded();
        (Self { news }, Incoming(incoming))
    }

    /// Follows these domains, those of them that are a stored VM's, and no others any more.
    pub(super) fn follow(&self, domains: Vec<(DomId, String)>) {
        let _ = self.news.send(News::Domains(domains));
    }
}

/// What the thread hears.
pub(super) struct Incoming(Receiver<News>);

/// Starts the thread.
///
/// # Errors
/// When the kernel refuses it.
pub(super) fn start(core: &Arc<Core>, Incoming(incoming): Incoming) -> Result<(), Error> {
    let follower = Follower {
        core: Arc::downgrade(core),
        events: core.events.clone(),
        timer: core.timer.clone(),
        news: core.guests.news.clone(),
        guests: HashMap::new(),
    };
    std::thread::Builder::new()
        .name("guest-data".into())
        .stack_size(crate::ops::WORKER_STACK)
        .spawn(move || follower.run(&incoming))
        .map(drop)
        .map_err(|e| Error::internal(format!("no thread for what guests tell: {e}")))
}

struct Follower {
    core: Weak<Core>,
    events: Events,
    timer: Timer,
    news: Sender<News>,
    guests: HashMap<DomId, Guest>,
}

impl Follower {
    fn run(mut self, incoming: &Receiver<News>) {
        for news in incoming {
            match news {
                News::Domains(domains) => self.follow(domains),
                News::Changed(domid) => self.changed(domid),
                News::Due(domid) => self.look(domid),
                News::End => return,
            }
        }
    }

    fn follow(&mut self, domains: Vec<(DomId, String)>) {
        let Some(core) = self.core.upgrade() else { return };
        let now: HashMap<DomId, String> = domains.into_iter().collect();
        // A number may be another VM's by now.
        self.guests.retain(|domid, guest| now.get(domid) == Some(&guest.vm));
        for (domid, vm) in now {
            if !self.guests.contains_key(&domid) && core.records.has_vm(&vm) {
                self.guests.insert(domid, Guest::new(vm, Instant::now()));
                self.watch(domid);
            }
        }
    }

    /// The watches fire once because they are set. Those before them are taken away after that, so that nothing is missed.
    fn watch(&mut self, domid: DomId) {
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        guest.heard.store(false, Ordering::Release);
        let (heard, news) = (Arc::clone(&guest.heard), self.news.clone());
        // Once for each look, so that there are never more messages than domains.
        let tell = move || {
            if !heard.swap(true, Ordering::AcqRel) {
                let _ = news.send(News::Changed(domid));
            }
        };
        let followed =
            guest_data::places(domid, guest.drivers).and_then(|places| self.events.follow(&places, tell));
        match followed {
            Ok(watches) => guest.watches = Some(watches),
            Err(error) => tracing::error!(vm = guest.vm, %error, "what the guest tells is not followed"),
        }
    }

    fn changed(&mut self, domid: DomId) {
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        if guest.due {
            return;
        }
        guest.due = true;
        let (at, left) = guest.looks.next(Instant::now());
        if !left {
            tracing::debug!(vm = guest.vm, "the guest writes all the time: looked at now and then");
            guest.watches = None;
        }
        let news = self.news.clone();
        self.timer.at(at, move || {
            let _ = news.send(News::Due(domid));
        });
    }

    fn look(&mut self, domid: DomId) {
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        guest.due = false;
        // What changes from here on is a reason for another look.
        guest.heard.store(false, Ordering::Release);
        if guest.watches.is_none() {
            self.watch(domid);
        }
        let (Some(core), Some(guest)) = (self.core.upgrade(), self.guests.get_mut(&domid)) else { return };
        let had_drivers = guest.drivers;
        if let Err(error) = guest.look(&core, domid) {
            tracing::warn!(vm = guest.vm, %error, "what the guest tells cannot be read; its next change is awaited");
        }
        if guest.drivers && !had_drivers && guest.watches.is_some() {
            self.watch(domid);
        }
    }
}

/// One domain.
struct Guest {
    vm: String,
    watches: Option<Following>,
    /// Something has changed since the last look.
    heard: Arc<AtomicBool>,
    /// It is known to have drivers.
    drivers: bool,
    /// A look is to come.
    due: bool,
    looks: Looks,
    /// It was said that there is too much.
    warned: bool,
}

impl Guest {
    fn new(vm: String, now: Instant) -> Self {
        let looks = Looks { left: BURST, filled: now, last: None };
        Self { vm, watches: None, heard: Arc::default(), drivers: false, due: false, looks, warned: false }
    }

    fn look(&mut self, core: &Core, domid: DomId) -> Result<(), Error> {
        // Looks are some time apart: a device may have come and gone between two of them.
        let seen = core.runtimes.with(&self.vm, |r| r.connected_in == Some(domid));
        let data = Arc::new(guest_data::read(&mut *core.edges.store()?, domid, self.drivers || seen)?);
        self.drivers = data.pv_drivers;
        if data.cut && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(vm = self.vm, %domid, "the guest has more nodes than its quota: the rest is not read");
        }
        let new = core.runtimes.with(&self.vm, |r| {
            let new = r.guest_data.as_ref() != Some(&(domid, Arc::clone(&data)));
            r.guest_data = Some((domid, data));
            new
        });
        if new {
            core.updates.add(DynamicId::Vm(self.vm.clone()));
        }
        Ok(())
    }
}

/// When a domain may be looked at.
struct Looks {
    left: u32,
    /// When it last had as many as this.
    filled: Instant,
    last: Option<Instant>,
}

impl Looks {
    /// When the next look is, and whether there are some left after it.
    fn next(&mut self, now: Instant) -> (Instant, bool) {
        while self.left < BURST && self.filled + REFILL <= now {
            (self.left, self.filled) = (self.left + 1, self.filled + REFILL);
        }
        if self.left == BURST {
            self.filled = now;
        }
        let apart = self.last.map_or(now, |last| last + APART);
        let mut at = apart.max(now + SETTLE);
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
        } else {
            at = at.max(self.filled + REFILL);
            self.filled = at;
        }
        self.last = Some(at);
        (at, self.left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(now: Instant) -> Looks {
        Looks { left: BURST, filled: now, last: None }
    }

    #[test]
    fn an_agent_is_looked_at_a_moment_after_it_wrote() {
        let begin = Instant::now();
        let mut looks = looks(begin);
        for n in 0..100 {
            let now = begin + n * REFILL;
            assert_eq!(looks.next(now), (now + SETTLE, true), "{n}");
        }
    }

    #[test]
    fn one_that_writes_all_the_time_is_looked_at_now_and_then() {
        let begin = Instant::now();
        let (mut looks, mut now) = (looks(begin), begin);
        let hour = Duration::from_secs(3600);
        let mut count = 0;
        while now < begin + hour {
            let (at, left) = looks.next(now);
            assert!(at >= now + SETTLE);
            assert!(left || at >= now + APART.saturating_sub(SETTLE), "{count}");
            (now, count) = (at, count + 1);
        }
        let most = hour.as_secs() / REFILL.as_secs() + u64::from(BURST) + 1;
        assert!((most - 2 * u64::from(BURST)..=most).contains(&count), "{count} looks");
        // A quiet while gives them back.
        now += REFILL * (BURST + 1);
        assert_eq!(looks.next(now), (now + SETTLE, true));
    }
}
