//! A real QEMU serves real images from its jail. The kernel's half is in the nested host's tests.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::edge::{BlockSize, DomId, IoPriority};

const DOMAIN: u16 = 7;

/// Bytes of the disks.
const SIZE: u64 = 8 << 20;

struct Rig {
    directory: tempfile::TempDir,
    settings: Settings,
}

/// A server that is asked for blocks as the kernel would ask. It ends with this.
struct Running {
    connection: UnixStream,
    export: Export,
    server: DiskServerId,
}

fn wanted(path: &Path, access: Access, format: ImageFormat) -> ServerWanted<'_> {
    let domid = DomId::new(DOMAIN).unwrap();
    ServerWanted { domid, vm: "vm", vdev: 51712, path, access, format, block_size: BlockSize::B512 }
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            run: directory.path().join("run"),
            unjailed: Feature::ALL.into_iter().filter(|feature| !feature.supported()).collect(),
            ..Settings::default()
        };
        Self { directory, settings }
    }

    fn image(&self, format: ImageFormat) -> PathBuf {
        let path = self.directory.path().join(format!("disk.{format}"));
        let mut make = Command::new("qemu-img");
        make.args(["create", "-q", "-f", format.driver()]);
        if format == ImageFormat::Vhd {
            // As xapi's storage has it, and not rounded to cylinders.
            make.args(["-o", "force_size=on"]);
        }
        make.arg(&path).arg(SIZE.to_string());
        assert!(make.status().expect("qemu-img (package qemu-utils)").success());
        path
    }

    fn serve(&self, path: &Path, access: Access, format: ImageFormat) -> Result<Running, HostError> {
        self.serve_open(&Image::open(path, access, format)?, &wanted(path, access, format), &mut |_| Ok(()))
    }

    fn serve_open(
        &self,
        image: &Image,
        wanted: &ServerWanted<'_>,
        note: &mut NoteServer<'_>,
    ) -> Result<Running, HostError> {
        let name = self.directory.path().file_name().unwrap().to_str().unwrap();
        let mut server = DiskServerId {
            disk: image.id.to_string(),
            socket: self.settings.run.join("disk").display().to_string(),
            group: format!("test{name}"),
            ..DiskServerId::default()
        };
        let served = serve(&self.settings, wanted, image, &mut server, note);
        if served.is_err() {
            release(&server).unwrap();
            let left = server.process.as_ref().and_then(|process| process::hold(process).unwrap());
            assert!(left.is_none(), "it is still there");
        }
        served.map(|(connection, export)| Running { connection, export, server })
    }
}

impl Running {
    /// One request: its kind, where, and bytes to write or how many to read; its errno, and what was read.
    fn ask(&mut self, kind: u16, at: u64, write: &[u8], length: u32) -> (u32, Vec<u8>) {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(kind.to_be_bytes());
        request.extend(1u64.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(write);
        self.connection.set_read_timeout(Some(START_LIMIT)).unwrap();
        self.connection.write_all(&request).unwrap();
        let mut head = [0; 16];
        self.connection.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        let errno = u32::from_be_bytes(head[4..8].try_into().unwrap());
        let mut data = vec![0; if kind == 0 && errno == 0 { usize::try_from(length).unwrap() } else { 0 }];
        self.connection.read_exact(&mut data).unwrap();
        (errno, data)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> u32 {
        self.ask(1, at, bytes, u32::try_from(bytes.len()).unwrap()).0
    }

    fn read(&mut self, at: u64, length: u32) -> Vec<u8> {
        let (errno, data) = self.ask(0, at, &[], length);
        assert_eq!(errno, 0);
        data
    }

    fn pid(&self) -> crate::api::Int {
        self.server.process.as_ref().unwrap().pid
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        release(&self.server).unwrap();
    }
}

#[test]
fn what_is_written_is_in_the_image_when_the_server_has_ended() {
    let rig = Rig::new();
    for format in ImageFormat::ALL {
        let path = rig.image(format);
        let mut running = rig.serve(&path, Access::ReadWrite, format).unwrap();
        assert_eq!((running.export.size, running.export.flags & READ_ONLY), (SIZE, 0), "{format}");
        assert!(!Path::new(&running.server.socket).exists(), "nobody else can connect");
        let text = vec![b'x'; 4096];
        assert_eq!(running.write(SIZE - 4096, &text), 0);
        assert_eq!(running.read(SIZE - 4096, 4096), text);
        // What it has not written back yet it writes back at its end.
        assert!(release(&running.server).unwrap());
        assert!(!release(&running.server).unwrap(), "nothing is left of it");
        let raw = rig.directory.path().join("raw");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", format.driver(), "-O", "raw"]).arg(&path).arg(&raw);
        assert!(convert.status().unwrap().success());
        let found = fs::read(&raw).unwrap();
        assert!(found[..4096].iter().all(|byte| *byte == 0) && found.ends_with(&text), "{format}");
    }
}

#[test]
fn one_that_is_read_only_cannot_be_written_and_is_open_for_nothing_else() {
    let rig = Rig::new();
    let path = rig.image(ImageFormat::Qcow2);
    let mut running = rig.serve(&path, Access::ReadOnly, ImageFormat::Qcow2).unwrap();
    assert_ne!(running.export.flags & READ_ONLY, 0);
    assert_ne!(running.write(0, &[1; 512]), 0);
    let mut open = 0;
    for entry in fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap() {
        let entry = entry.unwrap();
        if fs::read_link(entry.path()).unwrap() == path {
            // The owner's write bit of the link says whether it can be written through.
            assert_eq!(entry.path().symlink_metadata().unwrap().mode() & 0o200, 0);
            open += 1;
        }
    }
    assert!(open > 0, "it has the image");
}

/// Its own user, nothing of dom0's in its root, nothing it could gain.
#[test]
fn it_is_in_its_jail() {
    let rig = Rig::new();
    let path = rig.image(ImageFormat::Qcow2);
    let running = rig.serve(&path, Access::ReadWrite, ImageFormat::Qcow2).unwrap();
    let uid = jail::disk_uid_of(rig.settings.uid_base, DomId::new(DOMAIN).unwrap()).unwrap();
    seal::status(u32::try_from(running.pid()).unwrap(), uid, Feature::Seccomp.supported()).unwrap();
    if Feature::Mount.supported() {
        let root: Vec<_> = fs::read_dir(format!("/proc/{}/root", running.pid())).unwrap().collect();
        assert!(root.is_empty(), "{root:?}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.pid())).unwrap();
    let file_size = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
    assert!(file_size.contains(&(SIZE + SIZE / TABLES_SHARE + HEADER).to_string()), "{file_size}");
}

/// The threads that read and write for it are started as they are needed.
#[test]
fn a_priority_is_that_of_all_its_threads() {
    let rig = Rig::new();
    let path = rig.image(ImageFormat::Qcow2);
    let mut running = rig.serve(&path, Access::ReadWrite, ImageFormat::Qcow2).unwrap();
    let low = IoPriority { class: 2, level: 6 };
    let before = process::prioritise(running.server.process.as_ref().unwrap(), low).unwrap();
    assert!(before > 1, "{before}");
    assert_eq!(running.write(0, &vec![1; 65536]), 0);
    let said = |thread: fs::DirEntry| {
        let said = Command::new("ionice").arg("-p").arg(thread.file_name()).output().unwrap().stdout;
        String::from_utf8(said).unwrap().trim().to_owned()
    };
    let threads = fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap().map(Result::unwrap);
    for said in threads.map(said) {
        // One that has ended meanwhile has none.
        assert!(said == "best-effort: prio 6" || said.is_empty(), "{said}");
    }
}

#[test]
fn images_that_cannot_be_served_are_refused_by_name_and_leave_nothing() {
    let rig = Rig::new();
    let base = rig.image(ImageFormat::Raw);
    let based = rig.directory.path().join("based");
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).args([&base, &based]);
    assert!(make.status().unwrap().success());
    let refused = |path: &Path, format| {
        let error = rig.serve(path, Access::ReadWrite, format).map(drop).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        error
    };
    assert!(refused(&based, ImageFormat::Qcow2).contains("is based on another image"));
    assert!(refused(&base, ImageFormat::Qcow2).contains("it is no qcow2 image"));
    assert!(refused(&base, ImageFormat::Vhd).contains("it is no vhd image"));
    // A header that we take and QEMU does not: it says why.
    let broken = rig.image(ImageFormat::Qcow2);
    let file = File::options().write(true).open(&broken).unwrap();
    file.write_all_at(&[0xff; 8], 40).unwrap();
    let why = refused(&broken, ImageFormat::Qcow2);
    assert!(why.contains("L1 table"), "{why}");
    assert_eq!(fs::read_dir(&rig.settings.run).unwrap().count(), 0);
    // The name in a header is not followed even if it comes there after the look at it.
    let head = fs::read(&based).unwrap();
    let file = File::options().write(true).open(&based).unwrap();
    file.write_all_at(&[0; 8], 8).unwrap();
    let image = Image::open(&based, Access::ReadWrite, ImageFormat::Qcow2).unwrap();
    file.write_all_at(&head[8..16], 8).unwrap();
    let wanted = wanted(&based, Access::ReadWrite, ImageFormat::Qcow2);
    let mut running = rig.serve_open(&image, &wanted, &mut |_| Ok(())).unwrap();
    assert_eq!(running.read(0, 512), [0; 512]);
}

/// It is told of no backing file; of a file with its data it hears from the header, and has nothing to open it with.
#[test]
fn a_file_that_a_header_names_after_the_look_at_it_cannot_be_opened() {
    /// Where they are in a header (QEMU's `docs/interop/qcow2.txt`).
    const INCOMPATIBLE_FEATURES: u64 = 72;
    if !Feature::Mount.supported() {
        eprintln!("skipped: here its root is the host's");
        return;
    }
    let rig = Rig::new();
    let at = |name: &str| rig.directory.path().join(name);
    let (data, path) = (at("data"), at("named"));
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2", "-o"]).arg(format!("data_file={}", data.display()));
    assert!(make.arg(&path).arg(SIZE.to_string()).status().unwrap().success());
    // Anybody on the host may read it and write to it.
    for (path, mode) in [(rig.directory.path(), 0o755), (&*data, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut features = [0; 8];
    file.read_exact_at(&mut features, INCOMPATIBLE_FEATURES).unwrap();
    file.write_all_at(&[0; 8], INCOMPATIBLE_FEATURES).unwrap();
    let image = Image::open(&path, Access::ReadWrite, ImageFormat::Qcow2).unwrap();
    file.write_all_at(&features, INCOMPATIBLE_FEATURES).unwrap();
    let wanted = wanted(&path, Access::ReadWrite, ImageFormat::Qcow2);
    let refused = rig.serve_open(&image, &wanted, &mut |_| Ok(())).map(drop).unwrap_err().to_string();
    let tried = format!("'{}': No such file or directory", data.display());
    assert!(refused.contains(&tried), "{refused}");
}

#[test]
fn a_server_that_cannot_be_written_down_is_not_started() {
    let rig = Rig::new();
    let path = rig.image(ImageFormat::Qcow2);
    let image = Image::open(&path, Access::ReadOnly, ImageFormat::Qcow2).unwrap();
    let wanted = wanted(&path, Access::ReadOnly, ImageFormat::Qcow2);
    let full = rig.serve_open(&image, &wanted, &mut |_| Err(refused("the journal is full")));
    assert!(full.map(drop).unwrap_err().to_string().contains("the journal is full"));
}
