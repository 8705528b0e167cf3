//! Installers that the boot loader `eliloader` gets from real servers in dom0: Debian's own, up to its first screen; and one
//! from the kernel's NFS server.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use suite::{Dom0, Guest, HTTP, LIMIT as WAIT};
use xen_host::Options;
use xenopsd::api::{
    BuilderInfo, Error, TaskCancel, TaskStat, TaskState, UpdatesGet, UpdatesLastId, VbdMode, Vm, VmStart,
};

/// Where the package `debian-installer-12-netboot-amd64` has the installer for text consoles.
const INSTALLER: &str = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";

/// Longest start of Debian's installer: on an emulated processor its ramdisk alone is unpacked in a minute.
const LIMIT: Duration = Duration::from_secs(400);

/// The title of the installer's first screen.
const SCREEN: &str = "Select a language";

/// Memory in MiB with which the installer does not first ask about low memory.
const MEMORY: i64 = 1200;

fn key(vm: &Vm, key: &str) -> Option<String> {
    vm.platformdata.get(key).cloned()
}

/// A daemon with patience, as processors are emulated, and a disk with nothing on it.
fn dom0() -> Dom0 {
    let dom0 = Dom0::without_daemon(Options::default());
    dom0.start_daemon("--boot-loader-timeout 300");
    dom0.sh("truncate -s 64M /root/blank.img");
    dom0
}

/// Debian's installer where a mirror has it.
fn mirror(dom0: &Dom0) {
    let directory =
        "/root/www/debian/dists/bookworm/main/installer-amd64/current/images/netboot/debian-installer/amd64";
    dom0.sh(&format!("mkdir -p {directory}"));
    for name in ["linux", "initrd.gz"] {
        let file: PathBuf = Path::new(INSTALLER).join(name);
        assert!(file.is_file(), "{}: install debian-installer-12-netboot-amd64", file.display());
        dom0.host.put(&file, &format!("{directory}/{name}")).expect("is copied");
    }
    dom0.serve_http("/root/www");
}

/// Asks for the mirror's installer, as a guest of one kind or another.
fn debian(name: &str) -> Guest {
    let keys = [("install-distro", "debianlike"), ("install-arch", "amd64"), ("debian-release", "bookworm")];
    let guest = Guest::new(name).memory(MEMORY).disk("xvda", "/root/blank.img", VbdMode::ReadWrite);
    guest.installed_from(&format!("{HTTP}/debian"), &keys)
}

/// PV, and PVH with the kernel as it comes.
#[test]
fn debians_installer_comes_from_a_mirror_and_shows_its_first_screen() {
    let dom0 = dom0();
    mirror(&dom0);
    let before = dom0.snapshot();
    for guest in [debian("debian"), debian("debian-pvh").kind(BuilderInfo::Pvh)] {
        dom0.add(&guest);
        dom0.run_guest(&guest);
        let seen = dom0.host.wait_for_guest(guest.name(), SCREEN, LIMIT);
        seen.unwrap_or_else(|error| panic!("{error}"));
        let record = dom0.record(&guest);
        let loader = &record.indirect_boot().expect("its disk").bootloader;
        assert_eq!((&**loader, key(&record, "install-distro")), ("pygrub", None), "it has one round");
        dom0.hard_shutdown(&guest).expect("goes down");
        dom0.remove(&guest).expect("is forgotten");
    }
    let netboot = "/debian/dists/bookworm/main/installer-amd64/current/images/netboot";
    let each = format!(
        "{netboot}/xen/vmlinuz 404\n{netboot}/debian-installer/amd64/linux 200\n\
         {netboot}/debian-installer/amd64/initrd.gz 200"
    );
    assert_eq!(dom0.asked_of_http(), format!("{each}\n{each}"));
    assert_eq!(dom0.run("pgrep -x 'fetch-worker|boot-worker'").text(), "");
    before.must_be_left(&dom0);
}

/// A server that says in `/root/asked` that it was asked for a kernel, gives a quarter of it for each byte that comes out of
/// `/root/more`, and has no other file.
const SERVE_SLOWLY: &str = r#"
import os, socket
server = socket.create_server(("127.0.0.1", 8001))
for name in "/root/more", "/root/asked": os.mkfifo(name)
if os.fork():
    os._exit(0)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for n in range(3): os.dup2(null, n)
more, asked = (os.open(name, os.O_RDWR) for name in ("/root/more", "/root/asked"))
QUARTER = 1 << 20
while True:
    client, _ = server.accept()
    head = client.makefile("rb")
    path = head.readline()
    while head.readline().strip(): pass
    if b"/isolinux/vmlinuz" not in path:
        client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    else:
        os.write(asked, b"1")
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * QUARTER))
        for n in range(4):
            os.read(more, 1)
            try: client.sendall(b"\x7fELF" * (QUARTER // 4))
            except OSError: break
    client.close()
"#;

/// Waits, by the daemon's notifications, until a task that runs has come further than this.
fn beyond(dom0: &Dom0, task: &str, progress: f64) -> f64 {
    let dbg = || "progress".to_owned();
    let deadline = Instant::now() + WAIT;
    let mut last = dom0.call(&UpdatesLastId { debug_info: dbg() }).expect("UPDATES.last_id");
    loop {
        let task = dom0.call(&TaskStat { debug_info: dbg(), id: task.to_owned() }).expect("TASK.stat");
        match task.state {
            TaskState::Pending(done) if done > progress => return done,
            TaskState::Pending(_) => {}
            ended => panic!("{ended:?}"),
        }
        assert!(Instant::now() < deadline, "no further than {progress}");
        let get = UpdatesGet { debug_info: dbg(), last_id: Some(last), timeout: Some(1) };
        last = dom0.call(&get).expect("UPDATES.get").2;
    }
}

/// What comes slowly is seen to come, and is not waited for when it is not wanted.
fn a_download_shows_its_progress_and_is_cancelled(dom0: &Dom0) {
    dom0.sh(&format!("python3 - <<'PYTHON'\n{SERVE_SLOWLY}PYTHON"));
    let before = dom0.snapshot();
    let guest = Guest::new("slow").disk("xvda", "/root/blank.img", VbdMode::ReadWrite);
    let guest = guest.installed_from("http://127.0.0.1:8001/os", &[]);
    dom0.add(&guest);
    let stored = dom0.record(&guest);
    let start = VmStart { debug_info: "slow".to_owned(), id: guest.vm.id.clone(), paused: true };
    let task = dom0.call(&start).expect("VM.start");
    dom0.sh("head -c 1 /root/asked");
    let begun = beyond(dom0, &task, -1.0);
    dom0.sh("printf 1 >/root/more");
    let first = beyond(dom0, &task, begun);
    dom0.sh("printf 1 >/root/more");
    let second = beyond(dom0, &task, first);
    assert!(second < 0.9, "half of the kernel is not all: {second}");
    dom0.call(&TaskCancel { debug_info: "slow".to_owned(), id: task.clone() }).expect("TASK.cancel");
    match dom0.wait_task(&task) {
        Err(Error::Cancelled(id)) => assert_eq!(id, task),
        other => panic!("{other:?}"),
    }
    assert_eq!(dom0.record(&guest), stored, "a start that was cancelled is no round");
    assert_eq!(dom0.run("pgrep -x 'fetch-worker|boot-worker'").text(), "");
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(dom0);
}

/// The kernel's NFS server with its port mapper and mountd, as exports(5) has it: for this machine, from ports of root's. The
/// packages' scripts, which make the port mapper's user, were not run. The repository is the test guest as an installer.
const SERVE_NFS: &str = r"
set -e
echo '_rpc:x:101:65534::/run/rpcbind:/usr/sbin/nologin' >>/etc/passwd
mkdir -p /srv/nfs /run/rpcbind /var/lib/nfs/v4recovery
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t tmpfs tmpfs /srv/nfs
mkdir -p /srv/nfs/os/isolinux
cp /guests/vmlinuz /srv/nfs/os/isolinux/vmlinuz
cp /guests/initramfs /srv/nfs/os/isolinux/initrd.img
modprobe nfsd
mount -t nfsd nfsd /proc/fs/nfsd
rpcbind -w
echo '/srv/nfs 127.0.0.1(ro,fsid=1,no_subtree_check)' >/etc/exports
exportfs -a
rpc.nfsd 2
rpc.mountd
rpcinfo -t 127.0.0.1 nfs 3
";

#[test]
fn an_installer_comes_from_the_kernels_nfs_server() {
    let dom0 = dom0();
    dom0.sh(SERVE_NFS);
    let before = dom0.snapshot();
    let refused = Guest::new("refused").disk("xvda", "/root/blank.img", VbdMode::ReadWrite);
    let refused = refused.installed_from("nfs:127.0.0.1:/root/os", &[]);
    dom0.add(&refused);
    match dom0.start_paused(&refused) {
        Err(Error::BootloaderError { message, .. }) => {
            assert!(message.starts_with("INVALID_SOURCE: nfs://127.0.0.1/root/os/"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    dom0.remove(&refused).expect("is forgotten");
    a_download_shows_its_progress_and_is_cancelled(&dom0);

    let guest = Guest::new("nfs").disk("xvda", "/root/blank.img", VbdMode::ReadWrite);
    let guest = guest.installed_from("nfs:127.0.0.1:/srv/nfs/os", &[]);
    dom0.boot(&guest);
    let said = dom0.type_into(&guest, "cat /proc/cmdline");
    assert_eq!(said, "method=nfs:127.0.0.1:/srv/nfs/os/ console=hvc0");
    assert_eq!(key(&dom0.record(&guest), "install-round").as_deref(), Some("2"));
    assert_eq!(dom0.run("grep -E ' (nfs|nfs4) ' /proc/mounts").text(), "", "nothing is mounted");
    dom0.hard_shutdown(&guest).expect("goes down");
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}
