//! The worker's half: lock in, take the job, get the file.

use super::{
    Address, Connect, Error, NAME, Network, Result, Sink, Target,
    http::Proxy,
    message::{BYTES, FromWorker, ToWorker},
};
use ffi::{
    jail::{self, Denied, SyscallFilter},
    passing,
};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use std::{
    fs::File,
    io::{self, Read},
    net::TcpStream,
    os::fd::OwnedFd,
    process::ExitCode,
};

/// Number of the first of the worker's descriptors; those below are `/dev/null`.
const FIRST: i32 = 3;
/// How many there are: the socket to the caller, the output, and the authorities' certificates.
const COUNT: i32 = 3;

/// Most bytes of certificates: Debian's have 220 KiB.
const ROOTS_BYTES: u64 = 8 << 20;

/// What a worker does with its job: the protocols, and in a test one that was taken over.
pub type Downloader = fn(&Address, &Network, &dyn Connect, &mut Sink<'_>) -> Result<()>;

/// The system calls that the worker may make. They open, name, connect and start nothing; what they read and write is
/// what it was given.
pub const CALLS: [i64; 24] = [
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Those that map memory, whose third argument says what for: never to execute it.
pub const NOT_EXECUTABLE: [i64; 2] = [libc::SYS_mmap, libc::SYS_mprotect];

/// The whole life of a worker.
pub fn main(downloader: Downloader) -> ExitCode {
    match serve(downloader) {
        Ok(()) => ExitCode::SUCCESS,
        // The caller sees that there is no answer; nobody reads this but a developer who gives it a terminal.
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(downloader: Downloader) -> io::Result<()> {
    let mut given = jail::given(FIRST, COUNT)?.into_iter();
    let mut next = || given.next().ok_or(io::ErrorKind::NotFound);
    let (socket, mut output, mut certificates) = (next()?, File::from(next()?), File::from(next()?));
    // A panic's own message asks the kernel for more than there is to be had.
    std::panic::set_hook(Box::new(|_| ()));
    filter().map_err(io::Error::other)?.enter()?;
    let caller = Caller(socket);
    caller.say(&FromWorker::Ready)?;
    let outcome = job(&caller, &mut certificates).and_then(|(address, limit, network)| {
        let mut progress = |done, total| {
            // A caller that is gone is noticed by the next connection, or kills us.
            let _ = caller.say(&FromWorker::Progress(done, total));
        };
        let mut sink = Sink::new(&mut output, limit, &mut progress);
        let work = std::panic::AssertUnwindSafe(|| downloader(&address, &network, &caller, &mut sink));
        std::panic::catch_unwind(work)
            .unwrap_or_else(|_| Err(Error::refused("the download program made a mistake")))
    });
    caller.say(&FromWorker::Done(outcome))
}

fn job(caller: &Caller, certificates: &mut File) -> Result<(Address, u64, Network)> {
    let (message, _) = caller.hear()?;
    let ToWorker::Job { address, limit, proxy } = message else {
        return Err(Error::refused("it was given no job"));
    };
    let proxy = proxy.as_deref().map(Proxy::parse).transpose().map_err(Error::Refused)?;
    let mut roots = Vec::new();
    // Bounded also because the whole of a file is read by asking how long it is, which is not allowed here.
    let read = certificates.take(ROOTS_BYTES).read_to_end(&mut roots);
    read.map_err(|e| Error::refused(format_args!("certificates: {e}")))?;
    Ok((Address::parse(&address).map_err(Error::Refused)?, limit, Network { proxy, roots }))
}

/// What the worker may ask of the kernel; any other call ends it.
fn filter() -> std::result::Result<SyscallFilter, String> {
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    let rule = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(executable), 0)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|e| e.to_string())?;
    // Debug builds ask whether a descriptor is open before they close it.
    let open = u64::from(libc::F_GETFD.unsigned_abs());
    let asked = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, open)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|e| e.to_string())?;
    let mut rules: Vec<(i64, Vec<SeccompRule>)> = CALLS.map(|call| (call, Vec::new())).to_vec();
    rules.extend(NOT_EXECUTABLE.map(|call| (call, vec![rule.clone()])));
    rules.push((libc::SYS_fcntl, vec![asked]));
    SyscallFilter::exactly(rules, Denied::Kills).map_err(|e| e.to_string())
}

/// Who started it.
struct Caller(OwnedFd);

impl Caller {
    fn say(&self, message: &FromWorker) -> io::Result<()> {
        passing::send(&self.0, &message.encode(), None)
    }

    fn hear(&self) -> Result<(ToWorker, Option<OwnedFd>)> {
        let mut buffer = vec![0; BYTES];
        let (length, descriptor) = passing::receive(&self.0, &mut buffer).map_err(Error::refused)?;
        let message = ToWorker::decode(&buffer[..length]);
        message.map(|m| (m, descriptor)).ok_or_else(|| Error::refused("it was told nothing it knows"))
    }
}

impl Connect for Caller {
    fn connect(&self, target: &Target) -> Result<TcpStream> {
        self.say(&FromWorker::Connect(target.clone())).map_err(Error::refused)?;
        match self.hear()? {
            (ToWorker::Connected, Some(socket)) => Ok(TcpStream::from(socket)),
            (ToWorker::Failed(error), _) => Err(error),
            _ => Err(Error::refused("it was given no connection")),
        }
    }
}
