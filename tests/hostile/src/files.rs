//! Attempts on dom0: its files, network, processes and resources.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::RwLock;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::ptrace;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, Uid, chroot, execv, setuid};

use crate::log::{self, attempt, errno};

/// Files of dom0 that a process would look at, or for a way out.
const FILES: [&str; 14] = [
    "/etc/passwd",
    "/etc/shadow",
    "/../etc/passwd",
    "/proc/1/environ",
    "/proc/self/status",
    "/dev/mem",
    "/dev/null",
    "/dev/loop0",
    "/dev/xen/privcmd",
    "/dev/xen/evtchn",
    "/dev/xen/gntdev",
    "/dev/xen/xenbus",
    "/lib64/ld-linux-x86-64.so.2",
    "/usr/share/qemu/keymaps/de",
];

/// Sockets of dom0 whose other end has more rights.
const SOCKETS: [&str; 3] = ["/run/xenstored/socket", "/var/lib/xcp/xenopsd", "/run/dbus/system_bus_socket"];

/// More than the limit of a device model's memory, in bytes.
const TOO_MUCH_MEMORY: usize = 3 << 30;

/// More than its limit of threads and of descriptors.
const TOO_MANY: usize = 1000;

/// Bytes of memory taken at once.
const BITE: usize = 16 << 20;

/// Bytes of stack of each thread.
const STACK: usize = 64 * 1024;

fn io(outcome: io::Result<()>) -> Result<(), Errno> {
    outcome.map_err(|error| errno(&error))
}

/// What must be possible before it is sealed, so that its refusal afterwards is the seal's doing.
pub(crate) fn before() {
    for path in ["/dev/xen/privcmd", "/dev/xen/xenbus", "/lib64/ld-linux-x86-64.so.2"] {
        attempt("before", &format!("open {path}"), io(File::open(path).map(drop)));
    }
    attempt("before", "open /etc/passwd", io(File::open("/etc/passwd").map(drop)));
}

/// Tries everything. `disk` and `cdrom` are those of its own guest.
pub(crate) fn after(disk: Option<&File>, cdrom: Option<&File>) {
    open_files();
    connect();
    processes();
    privileges();
    drives(disk, cdrom);
    resources();
}

fn say(name: &str, outcome: Result<(), Errno>) {
    attempt("after", name, outcome);
}

fn open_files() {
    for path in FILES {
        say(&format!("open {path}"), io(File::open(path).map(drop)));
    }
    say("create /new", io(File::create("/new").map(drop)));
    say("mkdir /new", io(fs::create_dir("/new")));
    say("remove /empty", io(fs::remove_file("/empty")));
    let entries = fs::read_dir("/").map(Iterator::count);
    log::say(format!("after entries of the root: {entries:?}"));
}

fn connect() {
    say("connect to port 22", io(TcpStream::connect("127.0.0.1:22").map(drop)));
    say("connect to another machine", io(TcpStream::connect("192.0.2.1:80").map(drop)));
    say("datagram socket", io(UdpSocket::bind("0.0.0.0:0").map(drop)));
    say("socket pair", io(UnixStream::pair().map(drop)));
    for path in SOCKETS {
        say(&format!("connect to {path}"), io(UnixStream::connect(path).map(drop)));
    }
}

fn processes() {
    say("start a program", io(Command::new("/bin/true").spawn().map(drop)));
    say("become a program", execv(c"/bin/true", &[c"true"]).map(drop));
    let program = memfd_create(c"program", MFdFlags::empty());
    say("file in memory to execute", program.map(drop));
    let first = Pid::from_raw(1);
    say("trace", ptrace::attach(first));
    say("kill all", kill(Pid::from_raw(-1), Signal::SIGKILL));
    let mut byte = [0_u8; 1];
    let into = &mut [io::IoSliceMut::new(&mut byte)];
    say(
        "read a process's memory",
        process_vm_readv(first, into, &[RemoteIoVec { base: 4096, len: 1 }]).map(drop),
    );
}

fn privileges() {
    say("user root", setuid(Uid::from_raw(0)));
    say("user namespace", unshare(CloneFlags::CLONE_NEWUSER));
    say("mount namespace", unshare(CloneFlags::CLONE_NEWNS));
    say("descriptors of its own", unshare(CloneFlags::CLONE_FILES));
    say("mount", mount(Some("x"), "/", Some("tmpfs"), MsFlags::empty(), None::<&str>));
    say("chroot", chroot("/"));
    say("device node", mknod("/mem", SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(1, 1)));
    let above = openat(AT_FDCWD, "../../etc", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty());
    say("directory above", above.map(drop));
}

fn drives(disk: Option<&File>, cdrom: Option<&File>) {
    let write =
        |drive: Option<&File>| drive.map_or(Err(Errno::ENODEV), |mut file| io(file.write_all(&[0; 512])));
    say("write own disk", write(disk));
    say("write own read-only disk", write(cdrom));
}

fn resources() {
    say("larger files", setrlimit(Resource::RLIMIT_FSIZE, RLIM_INFINITY, RLIM_INFINITY));
    say("core dumps", setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY));
    let memory = Vec::<u8>::new().try_reserve_exact(TOO_MUCH_MEMORY);
    say("much memory", memory.map_err(|_| Errno::ENOMEM));
    say("many descriptors", io(many_descriptors()));
    say("many threads", io(many_threads()));
}

/// Takes memory and uses it, up to the limit of its address space.
///
/// # Errors
/// Always: it should not have lived to tell.
pub(crate) fn eat() -> Result<(), String> {
    let mut eaten = Vec::new();
    while eaten.try_reserve(BITE).is_ok() {
        eaten.resize(eaten.len() + BITE, 1_u8);
    }
    Err(format!("{} MiB were to be had", eaten.len() >> 20))
}

fn many_descriptors() -> io::Result<()> {
    let copies = (0..TOO_MANY).map(|_| io::stdout().as_fd().try_clone_to_owned());
    copies.collect::<io::Result<Vec<_>>>().map(drop)
}

fn many_threads() -> io::Result<()> {
    let stop = RwLock::new(());
    let held = stop.write();
    std::thread::scope(|scope| {
        let start =
            || std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || drop(stop.read()));
        let outcome = (0..TOO_MANY).try_for_each(|_| start().map(drop));
        // They end, and are waited for.
        drop(held);
        outcome
    })
}
