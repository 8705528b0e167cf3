//! Follows what somebody else does to dom0's networks, on a thread of its own.
//!
//! ```text
//!   rtnetlink: links ──► one that was not there: its settings, if it is a card that has some ─► a bridge: told
//!   nf_tables: rules ──► somebody else has changed our table: told, and again when a second has gone by
//!   whoever started it lets go of his end of a pair of sockets ──► the thread ends
//! ```
//!
//! Of interfaces the kernel tells each change. Which of them is new is known from the indexes that were there before.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::netlink::{Link, LinkEvent, LinkNews, Netlink, NetlinkError};
use super::nftables::RulesNews;
use super::nic::Cards;
use crate::edge::{NetworkNews, NetworkTell};

/// Least time between two words of changed rules: somebody who takes back what is made again, each time, does not keep the
/// daemon busy, and his other changes of the same moment are one.
const RULES_PAUSE: Duration = Duration::from_secs(1);

/// Why networks cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel's list of interfaces, or its changes.
    #[error("changes of network interfaces cannot be followed: {0}")]
    Links(#[from] NetlinkError),
    /// No thread, or no sockets to end it with.
    #[error("no thread to follow changes of network interfaces: {0}")]
    Thread(std::io::Error),
}

/// While this is there, networks are followed.
#[derive(Debug)]
pub struct Watching {
    /// Its closing ends the thread.
    _end: UnixStream,
}

/// Gives cards that are there their settings, and follows what comes.
///
/// # Errors
/// [`WatchError`].
pub fn start(cards: Cards, tell: NetworkTell) -> Result<Watching, WatchError> {
    let links = LinkNews::open()?;
    let rules = match RulesNews::open() {
        Ok(rules) => Some(rules),
        Err(error) => {
            // It has no rules then either, and a locked interface is refused.
            tracing::info!(%error, "this kernel cannot tell of changes of nf_tables");
            None
        }
    };
    let netlink = Netlink::open()?;
    let mut follower =
        Follower { links, rules, rules_told: Spaced::default(), netlink, cards, known: HashMap::new(), tell };
    // After the subscription: what comes while they are listed is news.
    follower.look(false)?;
    let (ours, end) = UnixStream::pair().map_err(WatchError::Thread)?;
    thread::Builder::new()
        .name("networks".into())
        .stack_size(crate::ops::WORKER_STACK)
        .spawn(move || follower.run(&ours))
        .map_err(WatchError::Thread)?;
    Ok(Watching { _end: end })
}

/// Something that is told at most every [`RULES_PAUSE`].
#[derive(Debug, Default)]
struct Spaced {
    /// There is something to tell.
    heard: bool,
    told: Option<Instant>,
}

impl Spaced {
    /// How long it is until there is something to tell, if there is.
    fn left(&self, now: Instant) -> Option<Duration> {
        let since = self.told.map_or(RULES_PAUSE, |told| now.saturating_duration_since(told));
        self.heard.then(|| RULES_PAUSE.saturating_sub(since))
    }

    /// Whether it is to be told now, after which it is.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.left(now).is_some_and(|left| left.is_zero());
        if due {
            (self.heard, self.told) = (false, Some(now));
        }
        due
    }
}

struct Follower {
    links: LinkNews,
    rules: Option<RulesNews>,
    rules_told: Spaced,
    netlink: Netlink,
    cards: Cards,
    /// Names by indexes.
    known: HashMap<u32, String>,
    tell: NetworkTell,
}

impl Follower {
    fn run(mut self, end: &UnixStream) {
        loop {
            let (links, rules) = match self.wait(end) {
                Ok(Some(ready)) => ready,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "networks are not followed any more: restart the daemon");
                    return;
                }
            };
            if links && let Err(error) = self.read_links() {
                tracing::error!(%error, "a change of a network interface is not known");
            }
            if rules {
                self.read_rules();
            }
            if self.rules_told.is_due(Instant::now()) {
                (self.tell)(NetworkNews::RulesChanged);
            }
        }
    }

    /// Which of both has something to tell, neither when it is time to tell of rules; none at the end.
    fn wait(&self, end: &UnixStream) -> Result<Option<(bool, bool)>, Errno> {
        fn fd(fd: BorrowedFd<'_>) -> PollFd<'_> {
            PollFd::new(fd, PollFlags::POLLIN)
        }
        let mut fds = vec![fd(end.as_fd()), fd(self.links.as_fd())];
        fds.extend(self.rules.as_ref().map(|rules| fd(rules.as_fd())));
        loop {
            let left = self.rules_told.left(Instant::now());
            // Milliseconds are counted down: the next one is after it.
            let left = left.map(|left| left + Duration::from_millis(1));
            let left = left.map_or(PollTimeout::NONE, |left| left.try_into().unwrap_or(PollTimeout::MAX));
            match poll(&mut fds, left) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => break,
            }
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(true));
        Ok((!ready(0)).then(|| (ready(1), ready(2))))
    }

    fn read_links(&mut self) -> Result<(), NetlinkError> {
        for event in self.links.read()? {
            match event {
                LinkEvent::There(link) => self.there(&link, true),
                LinkEvent::Gone(index) => drop(self.known.remove(&index)),
                LinkEvent::Lost => {
                    self.look(true)?;
                    (self.tell)(NetworkNews::Unknown);
                }
            }
        }
        Ok(())
    }

    fn read_rules(&mut self) {
        match self.rules.as_ref().map(RulesNews::read) {
            Some(Ok(true)) => self.rules_told.heard = true,
            Some(Err(error)) => {
                tracing::error!(%error, "changes of nf_tables are not followed any more");
                self.rules = None;
            }
            Some(Ok(false)) | None => {}
        }
    }

    fn look(&mut self, news: bool) -> Result<(), NetlinkError> {
        let links = self.netlink.links()?;
        self.known.retain(|index, _| links.iter().any(|link| link.index == *index));
        for link in &links {
            self.there(link, news);
        }
        Ok(())
    }

    /// A name that another interface had before is a new one.
    fn there(&mut self, link: &Link, news: bool) {
        if self.known.insert(link.index, link.name.clone()).as_ref() == Some(&link.name) {
            return;
        }
        if let Err(error) = self.cards.apply(&mut self.netlink, link) {
            tracing::error!(%error, "a network card does not have its settings");
        }
        if news && link.bridge_kind().is_some() {
            (self.tell)(NetworkNews::Bridge(link.name.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::netlink::tests::{create, in_namespace};
    use super::*;

    #[test]
    fn a_second_goes_by_between_two_words_of_rules() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut spaced = Spaced::default();
        assert!(spaced.left(start).is_none() && !spaced.is_due(start), "there is nothing to tell");
        spaced.heard = true;
        assert!(spaced.is_due(start) && !spaced.is_due(at(5000)));
        spaced.heard = true;
        assert!(spaced.is_due(at(5000)), "long after the last");
        spaced.heard = true;
        assert!(!spaced.is_due(at(5300)));
        assert_eq!(spaced.left(at(5300)), Some(Duration::from_millis(700)));
        assert!(spaced.is_due(at(6000)));
        assert_eq!(spaced.left(at(6000)), None);
    }

    /// The thread keeps the namespace that it was started in.
    #[test]
    fn a_bridge_that_comes_back_is_told_and_what_was_there_is_not() {
        in_namespace(|netlink| {
            let Some(_there) = create(netlink, "there", "bridge") else { return };
            let (tell, told) = crossbeam::channel::unbounded();
            let watching = start(Cards::default(), Box::new(move |news| drop(tell.send(news)))).unwrap();
            let next = || told.recv_timeout(Duration::from_secs(10)).expect("news");
            for _ in 0..2 {
                let bridge = create(netlink, "xenbr0", "bridge").expect("another bridge");
                assert_eq!(next(), NetworkNews::Bridge("xenbr0".to_owned()));
                netlink.remove(&bridge).unwrap();
            }
            drop(watching);
            // The thread lets go of the sender.
            assert!(told.recv_timeout(Duration::from_secs(10)).is_err_and(|e| e.is_disconnected()));
        });
    }
}
