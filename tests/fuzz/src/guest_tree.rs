//! A guest's part of the store, as a xenstored would give it that the input has taken over: answers of any kind, and other
//! ones each time it is asked.

use std::time::Duration;

use xenopsd::domain::guest_data;
use xenopsd::edge::DomId;
use xenstore::subtree::{self, Area, Quota};
use xenstore::transport::Answer;
use xenstore::{Client, Errno, Path, Reply, Request, Transport, TransportError, TxId};

/// Read as clients' data is, so that each rule of it counts.
const AREAS: [Area; 2] = [
    Area { at: "attr", depth: 3, except: &["attr/os/hotfixes"] },
    Area { at: "data", depth: 0, except: &[] },
];

/// Small, so that an input can be larger.
const QUOTA: Quota = Quota { nodes: 12, bytes: 200 };

/// What the daemon keeps of all that: the quotas of the agent's data and of `vm-data`.
const MOST_NODES: usize = 2000;

/// Answers cut from the input: a byte that says of which kind, one with the length, and as many bytes.
struct Answers(Vec<u8>);

impl Answers {
    fn next(&mut self) -> Answer {
        let [kind, length, ..] = self.0[..] else { return Err(Errno::NoEnt) };
        let end = self.0.len().min(2 + usize::from(length));
        let body = self.0.drain(..end).skip(2).collect();
        match kind {
            0 => Err(Errno::NoEnt),
            1 => Err(Errno::TooBig),
            2 => Err(Errno::Acces),
            _ => Ok(Reply(body)),
        }
    }
}

impl Transport for Answers {
    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, TransportError> {
        Ok(requests.iter().map(|_| self.next()).collect())
    }

    fn set_timeout(&mut self, _timeout: Duration) {}

    fn generation(&self) -> u64 {
        1
    }
}

/// However large it is and whatever is in it: no more is kept than the quota allows, from where it is wanted, and as text.
pub fn guest_tree(bytes: &[u8]) {
    let client = || Client::new(Box::new(Answers(bytes.to_vec())));
    let home = Path::new("/local/domain/7").expect("a path");
    if let Ok(found) = subtree::read(&mut client(), &home, &AREAS, QUOTA) {
        assert!(found.nodes.len() <= QUOTA.nodes);
        let size: usize = found.nodes.iter().map(|(path, value)| path.as_str().len() + value.len()).sum();
        assert!(size <= QUOTA.bytes);
        for path in found.nodes.keys() {
            let path = path.as_str();
            let area = AREAS.iter().find(|area| path.starts_with(&format!("{}/", area.at)));
            let area = area.unwrap_or_else(|| panic!("{path} is in no area"));
            assert!(path.matches('/').count() <= 1 + area.depth as usize, "{path} is too deep");
            assert!(!path.starts_with("attr/os/hotfixes"), "{path} is left out");
        }
    }
    let domid = DomId::new(7).expect("a domid");
    if let Ok(data) = guest_data::read(&mut client(), domid, false) {
        assert!(data.agent.0.len() + data.xsdata.0.len() <= MOST_NODES);
        assert!(data.agent.iter().all(|(path, _)| !path.starts_with('/')));
        assert!(data.xsdata.iter().all(|(path, _)| path.starts_with("vm-data/")));
    }
}
