//! The caller's half: starts a worker, opens its connections, and ends it in time.

use super::http::Network;
use super::{
    Address, CONNECTIONS, Error, NAME, Result, STALL, Target,
    http::Proxy,
    message::{BYTES, FromWorker, ToWorker},
};
use crate::{
    error,
    process::{Jailing, Limit, Running, Worker, copy},
};
use ffi::{jail::Limits, passing};
use std::{
    fs::File,
    io::{self, Seek, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    os::fd::{AsFd, OwnedFd},
    sync::mpsc,
    time::Duration,
};

/// How long one address of a host may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// Most addresses of a host that are tried.
const ADDRESSES: usize = 4;

/// The worker's memory in bytes: itself, TLS, and buffers.
const ADDRESS_SPACE: u64 = 512 << 20;

/// Its descriptors: those it is given and the connections it may have open at once.
const DESCRIPTORS: u64 = 32;

/// What is to be got.
#[derive(Debug)]
pub struct Job<'a> {
    /// From where.
    pub address: &'a Address,
    /// How.
    pub network: &'a Network,
    /// At most so many bytes.
    pub limit: u64,
}

/// Who gets it.
#[derive(Debug)]
pub struct By<'a> {
    /// The program.
    pub worker: &'a Worker,
    /// Its jail.
    pub jailing: Jailing,
    /// When it is ended.
    pub limit: Limit<'a>,
}

impl Worker {
    /// This program as one that gets files; it must call [`crate::main_if_asked`].
    pub fn fetching() -> Self {
        Self::this(NAME)
    }
}

/// Gets a file into an empty one. The thread must live as long as this takes. `progress` is told how many bytes there are,
/// of how many. On failure the output may hold a part.
///
/// # Errors
/// [`Error`].
pub fn fetch(
    by: &By<'_>,
    job: &Job<'_>,
    output: &File,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    let failed = |error: error::Error| match error {
        error::Error::Stopped(_) => Error::Cancelled,
        other => Error::refused(other),
    };
    let (ours, theirs) = passing::pair().map_err(Error::refused)?;
    let certificates = certificates(&job.network.roots).map_err(Error::refused)?;
    let descriptors = [theirs, copy(output).map_err(failed)?, certificates];
    let limits = Limits {
        open_files: Some(DESCRIPTORS),
        file_size: Some(job.limit),
        address_space: Some(ADDRESS_SPACE),
        // Less than a second is needed for 128 MiB, some for TLS.
        cpu_seconds: Some(by.limit.wall.as_secs().saturating_add(1)),
        ..Limits::default()
    };
    let mut session = Session {
        running: Running::start(by.worker, "the download", (by.jailing, limits), by.limit, descriptors)
            .map_err(failed)?,
        socket: ours,
        connections: 0,
    };
    session.talk(job, progress).map_err(|end| match end {
        End::Said(error) => error,
        End::Broke(error) => failed(error),
    })?;
    // It may have been taken over: what it says is one thing, what there is another.
    let length = output.metadata().map_err(Error::refused)?.len();
    if length > job.limit { Err(Error::TooLarge(job.limit)) } else { Ok(()) }
}

/// Why a session ended without a file.
enum End {
    Said(Error),
    Broke(error::Error),
}

impl From<error::Error> for End {
    fn from(error: error::Error) -> Self {
        Self::Broke(error)
    }
}

struct Session<'a> {
    running: Running<'a>,
    socket: OwnedFd,
    connections: usize,
}

impl Session<'_> {
    fn talk(
        &mut self,
        job: &Job<'_>,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> std::result::Result<(), End> {
        let mut buffer = vec![0; BYTES];
        let mut ready = false;
        loop {
            self.running.wait(self.socket.as_fd())?;
            // A descriptor it may have sent is closed here.
            let Ok((length @ 1.., _)) = passing::receive(&self.socket, &mut buffer) else {
                return Err(self.running.failed().into());
            };
            let said = FromWorker::decode(&buffer[..length]);
            match (ready, said) {
                (false, Some(FromWorker::Ready)) => {
                    self.running.lock_in()?;
                    ready = true;
                    self.tell(&ToWorker::Job {
                        address: job.address.whole(),
                        limit: job.limit,
                        proxy: job.network.proxy.as_ref().map(|proxy| proxy.address().whole()),
                    })?;
                }
                (true, Some(FromWorker::Connect(target))) => self.connect(&target, job)?,
                (true, Some(FromWorker::Progress(done, total))) => {
                    progress(done.min(job.limit), total.filter(|&total| total <= job.limit));
                }
                (true, Some(FromWorker::Done(outcome))) => {
                    self.running.end()?;
                    return outcome.map_err(End::Said);
                }
                _ => {
                    return Err(
                        error::Error::Worker("it said something that is no message".to_owned()).into()
                    );
                }
            }
        }
    }

    fn tell(&mut self, message: &ToWorker) -> std::result::Result<(), End> {
        passing::send(&self.socket, &message.encode(), None).map_err(|_| self.running.failed().into())
    }

    /// Answers a wish for a connection.
    fn connect(&mut self, target: &Target, job: &Job<'_>) -> std::result::Result<(), End> {
        self.connections += 1;
        if self.connections > CONNECTIONS {
            return self.tell(&ToWorker::Failed(Error::refused(format_args!(
                "more than {CONNECTIONS} connections for one file"
            ))));
        }
        let own = names(job);
        let ours = own.iter().any(|host| host.eq_ignore_ascii_case(&target.host));
        match self.connected(target.clone(), ours)? {
            Ok(stream) => passing::send(&self.socket, &ToWorker::Connected.encode(), Some(stream.as_fd()))
                .map_err(|_| self.running.failed().into()),
            Err(error) => self.tell(&ToWorker::Failed(error)),
        }
    }

    /// In a thread, because looking a name up cannot be interrupted: one that is not wanted any more ends by itself, in
    /// the time that resolv.conf(5) gives it.
    fn connected(&self, target: Target, ours: bool) -> std::result::Result<Result<TcpStream>, End> {
        let (ended, ends) = io::pipe().map_err(error::Error::io("a pipe"))?;
        let (give, get) = mpsc::channel();
        let name = "connect".to_owned();
        std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                let _ = give.send(open(&target, ours));
                drop(ends);
            })
            .map_err(error::Error::io("a thread"))?;
        self.running.wait(OwnedFd::from(ended).as_fd())?;
        Ok(get.try_recv().unwrap_or_else(|_| Err(Error::refused("connecting panicked"))))
    }
}

/// The hosts that the administrator named.
fn names<'a>(job: &'a Job<'_>) -> Vec<&'a str> {
    let proxy = job.network.proxy.as_ref().map(Proxy::address);
    [job.address].into_iter().chain(proxy).map(|address| &*address.host).collect()
}

/// Connects, with limits on how long its peer may be silent.
///
/// # Errors
/// [`Error::Refused`].
pub fn open(target: &Target, ours: bool) -> Result<TcpStream> {
    let looked_up = (&*target.host, target.port).to_socket_addrs();
    let addresses = looked_up.map_err(|e| Error::refused(format_args!("{}: {e}", target.host)))?;
    let mut last = format!("{} has no address", target.host);
    for address in addresses.take(ADDRESSES) {
        if !ours && is_own(address.ip()) {
            last = format!("{} is an address of this host, to which a server may not lead", address.ip());
            continue;
        }
        match socket(address, target.privileged) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("{target}: {error}"),
        }
    }
    Err(Error::Refused(last))
}

fn socket(address: SocketAddr, privileged: bool) -> io::Result<TcpStream> {
    let stream = if privileged {
        reserved::connect(address, CONNECT)?
    } else {
        TcpStream::connect_timeout(&address, CONNECT)?
    };
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    Ok(stream)
}

/// Addresses at which this host's own services may listen for nobody else.
fn is_own(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_unspecified() || v4.is_link_local() || v4.is_multicast(),
        IpAddr::V6(v6) => {
            v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast()
        }
    }
}

/// The certificates as a file.
fn certificates(roots: &[u8]) -> io::Result<OwnedFd> {
    let memory = nix::sys::memfd::memfd_create("certificates", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut memory = File::from(memory);
    memory.write_all(roots)?;
    memory.rewind()?;
    Ok(memory.into())
}

mod reserved {
    //! Connections from ports below 1024, which only root can have.

    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect as connect_socket, setsockopt,
        socket, sockopt,
    };
    use std::{
        io,
        net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
        os::fd::AsRawFd,
        time::Duration,
    };

    /// As rresvport(3) has them, from above.
    const PORTS: std::ops::RangeInclusive<u16> = 600..=1023;

    pub(super) fn connect(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let (family, any) = match address {
            SocketAddr::V4(_) => (AddressFamily::Inet, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (AddressFamily::Inet6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        for port in PORTS.rev() {
            let made = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            match bind(made.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port))) {
                Ok(()) => {}
                Err(nix::Error::EADDRINUSE) => continue,
                // Not root: the server may take others, too.
                Err(nix::Error::EACCES) => return TcpStream::connect_timeout(&address, limit),
                Err(error) => return Err(error.into()),
            }
            let time = nix::sys::time::TimeVal::new(i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), 0);
            // Linux takes it as the limit of connect(2), too.
            setsockopt(&made, sockopt::SendTimeout, &time)?;
            match connect_socket(made.as_raw_fd(), &SockaddrStorage::from(address)) {
                Ok(()) => return Ok(TcpStream::from(made)),
                // Left over from the last connection between the two ports.
                Err(nix::Error::EADDRNOTAVAIL | nix::Error::EADDRINUSE) => {}
                Err(nix::Error::EINPROGRESS | nix::Error::EAGAIN) => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}
