//! The boot loader of the real host: this crate's daemon as its own worker, on a real disk image.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crossbeam::channel::{Receiver, bounded};
use guest_installer::boot::Request;
use guest_installer::eliloader::Install;
use guest_installer::worker::{self, Worker};
use xenopsd::edge::{
    BootLoader, DomId, FoundKernel, Installing, KernelLimits, KernelSearch, KernelSearchError, Pages,
};

/// An ELF file, as far as anybody here looks.
fn kernel() -> Vec<u8> {
    [b"\x7fELF".as_slice(), &[7; 10_000]].concat()
}

fn disk(directory: &Path, grub: &str) -> PathBuf {
    disk_with(directory, grub, &[])
}

/// The same with further files in `/boot`.
fn disk_with(directory: &Path, grub: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let (tree, image) = (directory.join("tree"), directory.join("disk"));
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    for (name, content) in files {
        fs::write(tree.join("boot").join(name), content).unwrap();
    }
    fs::write(tree.join("boot/vmlinux"), kernel()).unwrap();
    fs::write(tree.join("boot/grub/grub.cfg"), grub).unwrap();
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    // Packed as distributions have it.
    assert!(Command::new("gzip").arg(tree.join("boot/vmlinux")).status().unwrap().success());
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&image).status();
    assert!(made.unwrap().success());
    image
}

fn search(
    image: &Path,
    limits: KernelLimits,
    cancelled: &Receiver<Infallible>,
) -> Result<FoundKernel, KernelSearchError> {
    search_or_install(image, [HOST; 3], limits, cancelled, None)
}

/// The host's limits for a kernel, as a file and unpacked, and for ramdisks, unless a test has others.
const HOST: u64 = 1 << 20;

fn search_or_install(
    image: &Path,
    host: [u64; 3],
    limits: KernelLimits,
    cancelled: &Receiver<Infallible>,
    install: Option<Installing<'_>>,
) -> Result<FoundKernel, KernelSearchError> {
    let program = env!("CARGO_BIN_EXE_xenopsd");
    let started = |worker: Worker| Worker { program: program.into(), ..worker };
    let loader = BootLoader {
        worker: started(Worker::default()),
        uid_base: 0x2000_0000,
        kernel_limit: host[0],
        unpacked_limit: host[1],
        ramdisk_limit: host[2],
        wall: worker::WALL,
        getter: started(Worker::fetching()),
        get_wall: worker::WALL,
    };
    let request = Request::default();
    let domid = DomId::new(7).unwrap();
    loader.search(
        &File::open(image).unwrap(),
        &KernelSearch { disk: image, request: &request, limits, domid, cancelled, install },
    )
}

const GRUB: &str = "menuentry 'Linux' {\n linux /boot/vmlinux.gz root=/dev/xvda ro\n}\n";

#[test]
fn the_daemon_is_its_own_worker() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a jail takes root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = disk(directory.path(), GRUB);
    let (_keep, cancelled) = bounded(0);
    let found = search(&image, KernelLimits::default(), &cancelled).unwrap();
    assert_eq!((&*found.title, &*found.args), ("Linux", "root=/dev/xvda ro"));
    assert!(
        found.ramdisk.is_none() && found.kernel.read(Pages::Now).unwrap().bytes() == kernel(),
        "it is unpacked"
    );
    let small = KernelLimits { kernel: Some(10), ..KernelLimits::default() };
    let refused = search(&image, small, &cancelled).unwrap_err();
    assert!(
        matches!(&refused, KernelSearchError::None(why) if why.contains("exceeds the limit of 10")),
        "{refused}"
    );
}

/// A VM's own limits are instead of the host's, each by itself, whether they are larger or smaller; for what lies on a disk
/// and for what a server sends.
#[test]
fn the_host_s_limits_hold_for_vms_without_their_own() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a jail takes root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let grub = "menuentry 'Linux' {\n linux /boot/vmlinux.gz\n initrd /boot/initrd\n}\n";
    let image = disk_with(directory.path(), grub, &[("initrd", &[7; 5000])]);
    let packed = fs::metadata(directory.path().join("tree/boot/vmlinux.gz")).unwrap().len();
    let repository_at = tempfile::tempdir().unwrap();
    let install = install(&repository(repository_at.path(), true));
    let (_keep, cancelled) = bounded(0);
    let unpacked = u64::try_from(kernel().len()).unwrap();
    assert!(unpacked > packed, "it is smaller packed");
    let outcome = |from_server: bool, host: [u64; 3], own: [Option<u64>; 3]| {
        let installing = from_server.then_some(Installing { install: &install, progress: &|_| () });
        let [kernel, unpacked, ramdisk] = own;
        let limits = KernelLimits { kernel, unpacked, ramdisk };
        match search_or_install(&image, host, limits, &cancelled, installing) {
            Ok(_) => None,
            Err(KernelSearchError::None(why)) => Some(why),
            Err(other) => panic!("{other}"),
        }
    };
    let refused = |limit: u64, outcome: Option<String>| {
        let said = outcome.unwrap_or_else(|| panic!("more than {limit} bytes were taken"));
        assert!(said.contains(&format!("limit of {limit}")), "{limit}: {said}");
    };
    for (from_server, ramdisk) in [(false, 5000), (true, u64::try_from(INSTALLERS.len()).unwrap())] {
        let exactly = [packed, unpacked, ramdisk];
        assert_eq!(outcome(from_server, exactly, [None; 3]), None, "exactly the limits");
        let less = exactly.map(|limit| limit - 1);
        assert_eq!(outcome(from_server, less, exactly.map(Some)), None, "the VM's are larger");
        for at in 0..exactly.len() {
            let mut host = exactly;
            host[at] = less[at];
            refused(less[at], outcome(from_server, host, [None; 3]));
            let mut own = [None; 3];
            own[at] = Some(less[at]);
            refused(less[at], outcome(from_server, exactly, own));
            let mut own = exactly.map(Some);
            own[at] = None;
            refused(less[at], outcome(from_server, less, own));
        }
    }
}

/// libxenguest would unpack a gzip file whose end says how long it is, in the daemon: it says 0.
#[test]
fn a_packed_ramdisk_is_the_guest_s_to_unpack() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a jail takes root");
        return;
    }
    let packed: &[u8] = b"\x1f\x8b\x08 and so on, of length \x00\x10\x00\x00";
    for (ramdisk, added) in
        [(packed, &[0; 4][..]), (b"070701 not packed", &[]), (b"\x1f\x8b", &[]), (b"\x1f", &[])]
    {
        let directory = tempfile::tempdir().unwrap();
        let grub = "menuentry 'Linux' {\n linux /boot/vmlinux.gz\n initrd /boot/initrd\n}\n";
        let image = disk_with(directory.path(), grub, &[("initrd", ramdisk)]);
        let (_keep, cancelled) = bounded(0);
        let found = search(&image, KernelLimits::default(), &cancelled).unwrap();
        assert_eq!(found.ramdisk.unwrap().read(Pages::Now).unwrap().bytes(), [ramdisk, added].concat());
    }
}

#[test]
fn a_cancelled_search_and_one_in_vain_say_so() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a jail takes root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = disk(directory.path(), "menuentry 'Other' {\n chainloader +1\n}\n");
    let (keep, cancelled) = bounded(0);
    let none = search(&image, KernelLimits::default(), &cancelled).unwrap_err();
    assert!(matches!(&none, KernelSearchError::None(why) if why.contains("Other")), "{none}");
    drop(keep);
    // It may be faster than the cancel.
    let outcome = search(&image, KernelLimits::default(), &cancelled).unwrap_err();
    assert!(matches!(outcome, KernelSearchError::Cancelled | KernelSearchError::None(_)), "{outcome}");
}

/// What is to be done with a repository as a VM's keys name it.
fn install(url: &str) -> Install {
    Install::read(|key| (key == "install-repository").then_some(url)).unwrap()
}

/// The repository's ramdisk.
const INSTALLERS: &[u8] = b"the installer's";

/// A server on loopback that gives a packed kernel and a ramdisk, or only listens.
fn repository(directory: &Path, answers: bool) -> String {
    fs::write(directory.join("vmlinux"), kernel()).unwrap();
    assert!(Command::new("gzip").arg(directory.join("vmlinux")).status().unwrap().success());
    let packed = fs::read(directory.join("vmlinux.gz")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if !answers {
                kept.push(stream);
                continue;
            }
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let body = if head.starts_with(b"GET /os/isolinux/vmlinuz ") {
                packed.clone()
            } else if head.starts_with(b"GET /os/isolinux/initrd.img ") {
                INSTALLERS.to_vec()
            } else {
                stream.write_all(b"HTTP/1.1 404 no\r\n\r\n").unwrap();
                continue;
            };
            stream
                .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())
                .unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    format!("http://{address}/os")
}

#[test]
fn an_installer_comes_from_a_repository_unpacked() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a jail takes root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let blank = directory.path().join("blank");
    File::create(&blank).unwrap().set_len(1 << 20).unwrap();
    let url = repository(directory.path(), true);
    let reported = Mutex::new(Vec::new());
    let progress = |done: f64| reported.lock().unwrap().push(done);
    let (_keep, cancelled) = bounded(0);
    let installing = Installing { install: &install(&url), progress: &progress };
    let found =
        search_or_install(&blank, [HOST; 3], KernelLimits::default(), &cancelled, Some(installing)).unwrap();
    assert_eq!(found.args, format!("method={url}/"));
    assert!(found.kernel.read(Pages::Now).unwrap().bytes() == kernel(), "it is unpacked");
    assert_eq!(found.ramdisk.unwrap().read(Pages::Now).unwrap().bytes(), INSTALLERS);
    assert!(found.changes.is_some());
    let reported = reported.into_inner().unwrap();
    assert!(reported.is_sorted() && reported.last() == Some(&1.0), "{reported:?}");

    // A cancel while the server says nothing.
    let silent = repository(tempfile::tempdir().unwrap().path(), false);
    let (keep, cancelled) = bounded(0);
    let installing = Installing { install: &install(&silent), progress: &|_| () };
    drop(keep);
    let outcome = search_or_install(&blank, [HOST; 3], KernelLimits::default(), &cancelled, Some(installing))
        .unwrap_err();
    assert!(matches!(outcome, KernelSearchError::Cancelled), "{outcome}");
}
