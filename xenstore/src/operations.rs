//! What can be asked of a store, in or outside a transaction.

use crate::batch::{Batch, Step};
use crate::error::Error;
use crate::path::Path;
use crate::perms::{DomId, Perms};
use crate::transport::Answer;
use crate::wire::{Errno, Reply, Request, TxId, strings};
use std::collections::BTreeMap;

/// Most bytes of children's names that [`Operations::directory`] gathers from parts. Past that, somebody fills a
/// directory on purpose; a guest's quota allows a twentieth of it.
pub const MAX_DIRECTORY: usize = 16 << 20;

/// How often [`Operations::directory`] starts anew because the node changed between two parts.
pub const MAX_DIRECTORY_RESTARTS: usize = 16;

/// Requests, by name. [`Client`](crate::Client) and [`Transaction`](crate::Transaction) both take them.
///
/// Values are bytes: whatever a guest can write may have any length up to the daemon's limit, hold NULs, be no
/// UTF-8, and differ the next time it is read.
pub trait Operations {
    /// The transaction that requests belong to.
    fn tx_id(&self) -> TxId;

    /// Sends requests as they are and returns one answer for each.
    ///
    /// # Errors
    /// [`Error::Transport`] when the answers are not known.
    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, Error>;

    /// Sends requests in one go. All are sent, whatever the answers are.
    ///
    /// # Errors
    /// [`Error::Transport`] when the answers are not known.
    fn pipeline(&mut self, requests: impl IntoIterator<Item = Request>) -> Result<Vec<Answer>, Error>
    where
        Self: Sized,
    {
        let tx_id = self.tx_id();
        let requests: Vec<_> = requests.into_iter().map(|r| (tx_id, r)).collect();
        self.exchange(&requests)
    }

    /// Sends one request.
    ///
    /// # Errors
    /// [`Error::Refused`] with the daemon's errno, or [`Error::Transport`].
    fn request(&mut self, request: Request) -> Result<Reply, Error> {
        let request = (self.tx_id(), request);
        match self.exchange(std::slice::from_ref(&request))?.pop() {
            Some(Ok(reply)) => Ok(reply),
            Some(Err(errno)) => Err(Error::refused(&request.1, errno)),
            None => Err(Error::bad_reply(&request.1, "no answer at all")),
        }
    }

    /// The value of a node; `None` when there is no such node.
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn read(&mut self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        absent(self.request(Request::Read(path.clone()))).map(|reply| reply.map(|r| r.0))
    }

    /// The value of a node as text.
    ///
    /// # Errors
    /// [`Error::NotText`] when it is not UTF-8, else as [`Operations::request`].
    fn read_str(&mut self, path: &Path) -> Result<Option<String>, Error> {
        let value = self.read(path)?;
        value.map(String::from_utf8).transpose().map_err(|_| Error::NotText { path: path.clone() })
    }

    /// Reads many nodes in one go, in order.
    ///
    /// # Errors
    /// As [`Operations::request`], for the first that was refused for another reason than not being there.
    fn read_all(&mut self, paths: &[Path]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let tx_id = self.tx_id();
        let requests: Vec<_> = paths.iter().map(|p| (tx_id, Request::Read(p.clone()))).collect();
        let answers = self.exchange(&requests)?;
        let one = |((_, request), answer): (&(TxId, Request), Answer)| match answer {
            Ok(reply) => Ok(Some(reply.0)),
            Err(Errno::NoEnt) => Ok(None),
            Err(errno) => Err(Error::refused(request, errno)),
        };
        requests.iter().zip(answers).map(one).collect()
    }

    /// Whether there is such a node.
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn exists(&mut self, path: &Path) -> Result<bool, Error> {
        absent(self.request(Request::GetPerms(path.clone()))).map(|reply| reply.is_some())
    }

    /// Sets a value; creates the node and its missing parents.
    ///
    /// # Errors
    /// As [`Operations::request`]; [`crate::wire::EncodeError::TooLong`] for a value that fits no message.
    fn write(&mut self, path: &Path, value: impl Into<Vec<u8>>) -> Result<(), Error>
    where
        Self: Sized,
    {
        self.request(Request::Write { path: path.clone(), value: value.into() }).map(drop)
    }

    /// Creates a node, and its missing parents, unless it is there.
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn mkdir(&mut self, path: &Path) -> Result<(), Error> {
        match self.request(Request::Mkdir(path.clone())) {
            // The protocol says that an existing node is no error; some daemons disagree.
            Ok(_) | Err(Error::Refused { errno: Errno::Exist, .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes a node and all below it; one that is not there is fine.
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn rm(&mut self, path: &Path) -> Result<(), Error> {
        absent(self.request(Request::Rm(path.clone()))).map(drop)
    }

    /// Names of a node's children in no particular order; `None` when there is no such node.
    ///
    /// # Errors
    /// As [`Operations::request`]; [`Error::BadReply`] when the list does not end or changes all the time.
    fn directory(&mut self, path: &Path) -> Result<Option<Vec<String>>, Error> {
        let request = Request::Directory(path.clone());
        match self.request(request.clone()) {
            Ok(reply) => names(&request, &reply.0).map(Some),
            Err(Error::Refused { errno: Errno::NoEnt, .. }) => Ok(None),
            Err(Error::Refused { errno: Errno::TooBig, .. }) => directory_in_parts(self, path),
            Err(e) => Err(e),
        }
    }

    /// Permissions of a node; `None` when there is no such node.
    ///
    /// # Errors
    /// As [`Operations::request`]; [`Error::BadReply`] when they are malformed.
    fn get_perms(&mut self, path: &Path) -> Result<Option<Perms>, Error> {
        let request = Request::GetPerms(path.clone());
        let Some(reply) = absent(self.request(request.clone()))? else { return Ok(None) };
        Perms::from_wire(&reply.0).map(Some).map_err(|e| Error::bad_reply(&request, e))
    }

    /// Replaces the permissions of a node.
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn set_perms(&mut self, path: &Path, perms: &Perms) -> Result<(), Error> {
        self.request(Request::SetPerms { path: path.clone(), perms: perms.clone() }).map(drop)
    }

    /// Makes the changes of `batch` in order, with one round trip, or two where it prunes or uproots: those are made last. Outside a transaction
    /// others can see it half done, and a failure leaves it half done: see [`crate::Client::commit`].
    ///
    /// # Errors
    /// [`Error::Refused`] for the first change that was refused (later ones may have been made), or
    /// [`Error::Transport`].
    fn apply(&mut self, batch: &Batch) -> Result<(), Error> {
        let tx_id = self.tx_id();
        let requests: Vec<_> = batch.steps().iter().map(|step| (tx_id, first_request(step))).collect();
        let (mut removals, mut uprooting) = (Vec::new(), Uprooting::default());
        for (step, ((_, request), answer)) in
            batch.steps().iter().zip(requests.iter().zip(self.exchange(&requests)?))
        {
            match (step, answer) {
                (Step::Prune(path), Ok(children)) if children.0.is_empty() => {
                    removals.push((tx_id, Request::Rm(path.clone())));
                }
                (Step::Uproot(path), Ok(children)) => uprooting.add(path, Some(names(request, &children.0)?)),
                (Step::Uproot(path), Err(Errno::TooBig)) => uprooting.add(path, None),
                (_, Ok(_))
                | (Step::Rm(_) | Step::Prune(_) | Step::Uproot(_), Err(Errno::NoEnt))
                | (Step::Prune(_), Err(Errno::TooBig))
                | (Step::Mkdir(_), Err(Errno::Exist)) => {}
                (_, Err(errno)) => return Err(Error::refused(request, errno)),
            }
        }
        removals.extend(uprooting.removals().map(|path| (tx_id, Request::Rm(path))));
        for ((_, request), answer) in removals.iter().zip(self.exchange(&removals)?) {
            match answer {
                Ok(_) | Err(Errno::NoEnt) => {}
                Err(errno) => return Err(Error::refused(request, errno)),
            }
        }
        Ok(())
    }

    /// Tells the daemon of a domain's ring: guest frame `gfn`, unbound event channel `port`. For a domain that is
    /// known already it takes the new port.
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn introduce(&mut self, domid: DomId, gfn: u64, port: u32) -> Result<(), Error> {
        self.request(Request::Introduce { domid, gfn, port }).map(drop)
    }

    /// Tells the daemon that a domain is no more.
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn release(&mut self, domid: DomId) -> Result<(), Error> {
        self.request(Request::Release(domid)).map(drop)
    }

    /// Tells the daemon that a domain runs on after a suspend that was cancelled.
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn resume(&mut self, domid: DomId) -> Result<(), Error> {
        self.request(Request::Resume(domid)).map(drop)
    }

    /// Lets `domid`, a stub domain, act with the rights of `target` too.
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn set_target(&mut self, domid: DomId, target: DomId) -> Result<(), Error> {
        self.request(Request::SetTarget { domid, target }).map(drop)
    }

    /// The home directory of a domain, as the daemon says.
    ///
    /// # Errors
    /// As [`Operations::request`]; [`Error::BadReply`] when it is not a path.
    fn domain_path(&mut self, domid: DomId) -> Result<Path, Error> {
        let request = Request::GetDomainPath(domid);
        let reply = self.request(request.clone())?;
        let text = reply.strings().next().unwrap_or_default();
        Path::from_bytes(text).map_err(|e| Error::bad_reply(&request, e))
    }

    /// Whether the daemon serves a domain.
    ///
    /// # Errors
    /// As [`Operations::request`]; [`Error::BadReply`] when it is neither yes nor no.
    fn is_introduced(&mut self, domid: DomId) -> Result<bool, Error> {
        let request = Request::IsDomainIntroduced(domid);
        let reply = self.request(request.clone())?;
        match reply.strings().next() {
            Some(b"T") => Ok(true),
            Some(b"F") => Ok(false),
            _ => Err(Error::bad_reply(&request, "neither T nor F")),
        }
    }

    /// Talks to the daemon itself (`help`, `memreport`, ...).
    ///
    /// # Errors
    /// As [`Operations::request`].
    fn control(&mut self, args: &[&[u8]]) -> Result<Vec<u8>, Error> {
        let args = args.iter().map(|a| a.to_vec()).collect();
        self.request(Request::Control(args)).map(|r| r.0)
    }
}

/// The request that carries out a step, or that finds out whether it is to be.
fn first_request(step: &Step) -> Request {
    match step.clone() {
        Step::Rm(path) => Request::Rm(path),
        Step::Prune(path) => Request::Directory(path),
        // The root has no parent, and is not removed by anybody: the daemon says so.
        Step::Uproot(path) => Request::Directory(path.parent().unwrap_or(path)),
        Step::Mkdir(path) => Request::Mkdir(path),
        Step::Write { path, value } => Request::Write { path, value },
        Step::SetPerms { path, perms } => Request::SetPerms { path, perms },
    }
}

/// What is to be uprooted, by directory: several of one may leave it empty together.
#[derive(Debug, Default)]
struct Uprooting(BTreeMap<Path, Directory>);

/// One of those.
#[derive(Debug, Default)]
struct Directory {
    /// What is to be removed.
    leaving: Vec<Path>,
    /// Names of what is in it; none when they are too many to be told.
    children: Option<Vec<String>>,
}

impl Uprooting {
    fn add(&mut self, path: &Path, children: Option<Vec<String>>) {
        let parent = path.parent().unwrap_or_else(|| path.clone());
        let directory = self.0.entry(parent).or_default();
        directory.leaving.push(path.clone());
        directory.children = children;
    }

    /// The nodes to remove.
    fn removals(self) -> impl Iterator<Item = Path> {
        self.0.into_iter().flat_map(|(parent, Directory { mut leaving, children })| {
            let Some(children) = children else { return leaving };
            let is = |path: &Path, name: &str| path.segments().last() == Some(name);
            if children.iter().all(|name| leaving.iter().any(|path| is(path, name))) {
                return vec![parent];
            }
            leaving.retain(|path| children.iter().any(|name| is(path, name)));
            leaving
        })
    }
}

fn absent(result: Result<Reply, Error>) -> Result<Option<Reply>, Error> {
    match result {
        Ok(reply) => Ok(Some(reply)),
        Err(Error::Refused { errno: Errno::NoEnt, .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Children's names. They are part of a path, so anything but the path alphabet is the daemon's fault.
fn names(request: &Request, bytes: &[u8]) -> Result<Vec<String>, Error> {
    let name = |bytes: &[u8]| {
        let path = Path::from_bytes(bytes).map_err(|e| Error::bad_reply(request, e))?;
        Ok(path.as_str().to_owned())
    };
    strings(bytes).map(name).collect()
}

/// Gathers a directory from parts. Each part names the node's generation; another one than before means that the
/// node changed meanwhile and the offsets are void.
fn directory_in_parts<O: Operations + ?Sized>(
    store: &mut O,
    path: &Path,
) -> Result<Option<Vec<String>>, Error> {
    let mut request = Request::DirectoryPart { path: path.clone(), offset: 0 };
    for _ in 0..=MAX_DIRECTORY_RESTARTS {
        let mut list = Vec::new();
        let mut generation: Option<Vec<u8>> = None;
        loop {
            let offset = u32::try_from(list.len()).ok().filter(|_| list.len() <= MAX_DIRECTORY);
            let offset = offset.ok_or_else(|| Error::bad_reply(&request, "the list is endless"))?;
            request = Request::DirectoryPart { path: path.clone(), offset };
            let Some(Reply(part)) = absent(store.request(request.clone()))? else { return Ok(None) };
            let cut = part
                .iter()
                .position(|&b| b == 0)
                .ok_or_else(|| Error::bad_reply(&request, "no generation"))?;
            let (now, children) = (&part[..cut], &part[cut + 1..]);
            if generation.get_or_insert_with(|| now.to_vec()) != now {
                break;
            }
            // An empty name behind the last child ends the list.
            let last = children == b"\0" || children.ends_with(b"\0\0");
            let children = if last { &children[..children.len() - 1] } else { children };
            if children.is_empty() && !last {
                return Err(Error::bad_reply(&request, "an empty part in the middle of the list"));
            }
            list.extend_from_slice(children);
            if last {
                return names(&request, &list).map(Some);
            }
        }
    }
    Err(Error::bad_reply(&request, "the node changed too often while it was listed"))
}
