//! Requests through libxenstore, Xen's own client library in C.
//!
//! For those who want the reference implementation on the wire, and for comparing ours with it. It is the lesser
//! transport: one request at a time, no deadline (a daemon that hangs hangs the caller), no directory over 4096 bytes
//! from oxenstored (the library gives up its connection), no control requests.

use super::{Answer, Transport, TransportError};
use crate::perms::{Access, DomId, Perms};
use crate::wire::{EncodeError, Errno, MAX_PAYLOAD, Reply, Request, TxId};
use ffi::evtchn::Port;
use ffi::xs::{XsHandle, XsPermission, XsTransaction};
use nix::errno::Errno as OsErrno;
use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::time::Duration;

const ENDPOINT: &str = "libxenstore";

/// Longest path and value of a write that fit a message.
const MAX_WRITE: usize = MAX_PAYLOAD - 1;

/// A transport over libxenstore, which finds the daemon by itself (`$XENSTORED_PATH`, the socket, the device).
#[derive(Debug)]
pub struct LibTransport {
    handle: Option<XsHandle>,
    generation: u64,
    /// The library's transactions by the numbers we give them.
    transactions: HashMap<TxId, XsTransaction>,
    last_id: u32,
}

/// Why a request has no answer.
enum Failure {
    /// The daemon, or the library on its behalf, refused.
    Refused(Errno),
    /// The connection is of no more use.
    Broken(io::Error),
}

impl From<ffi::Error> for Failure {
    fn from(error: ffi::Error) -> Self {
        match error.errno().map(OsErrno::from_raw) {
            // What the library says once it has closed its descriptor, and what the socket says before.
            None
            | Some(
                OsErrno::EBADF
                | OsErrno::EPIPE
                | OsErrno::ECONNRESET
                | OsErrno::ENOTCONN
                | OsErrno::UnknownErrno,
            ) => Self::Broken(io::Error::other(error)),
            Some(errno) => Self::Refused(named(errno)),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

/// The protocol's name of an error number.
fn named(errno: OsErrno) -> Errno {
    // Debug prints the name of the constant, which is what the protocol uses.
    Errno::from_wire(format!("{errno:?}").as_bytes())
}

impl LibTransport {
    /// Opens a handle.
    ///
    /// # Errors
    /// [`TransportError::Connect`].
    pub fn open() -> Result<Self, TransportError> {
        let mut transport = Self { handle: None, generation: 0, transactions: HashMap::new(), last_id: 0 };
        transport.reopen()?;
        Ok(transport)
    }

    fn reopen(&mut self) -> Result<(), TransportError> {
        let connect = |e| TransportError::Connect { endpoint: ENDPOINT.into(), source: io::Error::other(e) };
        self.transactions.clear();
        self.handle = Some(XsHandle::open().map_err(connect)?);
        self.generation += 1;
        Ok(())
    }

    fn perform(&mut self, tx_id: TxId, request: &Request) -> Result<Reply, Failure> {
        let closed = || Failure::Broken(io::ErrorKind::NotConnected.into());
        let handle = self.handle.as_ref().ok_or_else(closed)?;
        let tx = match self.transactions.get(&tx_id) {
            Some(tx) => *tx,
            None if tx_id == TxId::NONE => XsTransaction::NONE,
            None => return Err(Errno::NoEnt.into()),
        };
        match request {
            Request::TransactionStart => {
                let started = handle.transaction_start()?;
                self.last_id = self.last_id.checked_add(1).unwrap_or(1);
                self.transactions.insert(TxId(self.last_id), started);
                Ok(text(self.last_id))
            }
            Request::TransactionEnd { commit } => {
                self.transactions.remove(&tx_id);
                Ok(done(handle.transaction_end(tx, *commit)?))
            }
            other => one(handle, tx, other),
        }
    }
}

fn done((): ()) -> Reply {
    Reply(b"OK\0".to_vec())
}

fn text(value: impl std::fmt::Display) -> Reply {
    Reply(format!("{value}\0").into_bytes())
}

fn c_path(request: &Request) -> Result<CString, Failure> {
    let path = request.path().map(ToString::to_string).unwrap_or_default();
    CString::new(path).map_err(|_| Errno::Inval.into())
}

fn domain(domid: DomId) -> Result<ffi::domid::DomId, Failure> {
    ffi::domid::DomId::new(domid.0).ok_or_else(|| Errno::Inval.into())
}

/// Any request but those that open and close transactions.
fn one(handle: &XsHandle, tx: XsTransaction, request: &Request) -> Result<Reply, Failure> {
    Ok(match request {
        Request::Directory(_) => {
            let names = handle.directory(tx, &c_path(request)?)?;
            Reply(names.into_iter().flat_map(|name| [name, vec![0]]).flatten().collect())
        }
        Request::Read(_) => Reply(handle.read(tx, &c_path(request)?)?),
        Request::Write { value, .. } => done(handle.write(tx, &c_path(request)?, value)?),
        Request::Mkdir(_) => done(handle.mkdir(tx, &c_path(request)?)?),
        Request::Rm(_) => done(handle.rm(tx, &c_path(request)?)?),
        Request::GetPerms(_) => Reply(from_list(&handle.get_permissions(tx, &c_path(request)?)?)?.to_wire()),
        Request::SetPerms { perms, .. } => {
            done(handle.set_permissions(tx, &c_path(request)?, &to_list(perms))?)
        }
        Request::Introduce { domid, gfn, port } => {
            done(handle.introduce(domain(*domid)?, *gfn, Port::new(*port))?)
        }
        Request::Release(domid) => done(handle.release(domain(*domid)?)?),
        Request::GetDomainPath(domid) => Reply(handle.domain_path(domain(*domid)?)?),
        Request::IsDomainIntroduced(domid) => {
            text(if handle.is_domain_introduced(domain(*domid)?)? { "T" } else { "F" })
        }
        Request::Resume(domid) => done(handle.resume(domain(*domid)?)?),
        Request::SetTarget { domid, target } => done(handle.set_target(domain(*domid)?, domain(*target)?)?),
        // The library asks for parts by itself; watches have a stream of their own; the rest it does not offer.
        _ => return Err(Errno::NoSys.into()),
    })
}

fn to_list(perms: &Perms) -> Vec<XsPermission> {
    let entry = |(domid, access): (DomId, Access)| XsPermission {
        domid: domid.0.into(),
        read: access.may_read(),
        write: access.may_write(),
    };
    std::iter::once((perms.owner, perms.others)).chain(perms.acl.iter().copied()).map(entry).collect()
}

fn from_list(list: &[XsPermission]) -> Result<Perms, Failure> {
    let entry = |e: &XsPermission| {
        let access = match (e.read, e.write) {
            (false, false) => Access::None,
            (true, false) => Access::Read,
            (false, true) => Access::Write,
            (true, true) => Access::Both,
        };
        Ok((DomId::try_from(e.domid).map_err(|_| Errno::Io)?, access))
    };
    let mut entries = list.iter().map(entry);
    let (owner, others) = entries.next().unwrap_or(Err(Errno::Io))?;
    Ok(Perms { owner, others, acl: entries.collect::<Result<_, Errno>>()? })
}

/// What the library would have to refuse half way through an exchange is refused before.
fn check(request: &Request) -> Result<(), EncodeError> {
    let (Request::Write { path, value }, max) = (request, MAX_PAYLOAD) else { return Ok(()) };
    let len = path.as_str().len() + value.len();
    if len > MAX_WRITE {
        return Err(EncodeError::TooLong { op: request.name(), target: request.target(), len: len + 1, max });
    }
    Ok(())
}

impl Transport for LibTransport {
    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, TransportError> {
        requests.iter().try_for_each(|(_, request)| check(request))?;
        if self.handle.is_none() {
            if requests.iter().any(|(tx, _)| *tx != TxId::NONE) {
                return Err(TransportError::TransactionLost { endpoint: ENDPOINT.into() });
            }
            self.reopen()?;
        }
        let mut answers = Vec::with_capacity(requests.len());
        for (tx_id, request) in requests {
            answers.push(match self.perform(*tx_id, request) {
                Ok(reply) => Ok(reply),
                Err(Failure::Refused(errno)) => Err(errno),
                Err(Failure::Broken(source)) => {
                    self.handle = None;
                    return Err(TransportError::Io { endpoint: ENDPOINT.into(), source });
                }
            });
        }
        Ok(answers)
    }

    /// Has no effect: the library waits for as long as it takes.
    fn set_timeout(&mut self, _timeout: Duration) {}

    fn generation(&self) -> u64 {
        self.generation
    }
}
