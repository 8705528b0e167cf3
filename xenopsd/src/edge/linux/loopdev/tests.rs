//! The pure parts anywhere; the rest against the kernel's loop driver, as root, else skipped with a message.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::super::blockdev::{Disk, Links, open_disk};
use super::*;

/// Lets one of these tests run at a time, in whatever process: listing opens every device, and a device that is open
/// is freed late. `None`, with a message, where the tests cannot run.
fn loop_driver() -> Option<Flock<File>> {
    if !nix::unistd::geteuid().is_root() || !Path::new(LOOP_CONTROL).exists() {
        eprintln!("skipped: needs root and the loop driver");
        return None;
    }
    Some(Flock::lock(File::open(LOOP_CONTROL).unwrap(), FlockArg::LockExclusive).unwrap())
}

fn image(dir: &Path, access: Access) -> FileDisk {
    let path = dir.join("disk.img");
    std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    reopened(&path, access)
}

/// Waits for as long as somebody else has the device open: a child that another test starts has our descriptors for the
/// moment between its fork and its exec. When the last one closes it the kernel sends a uevent, which not every network
/// namespace gets.
fn until_freed(number: u32, file: FileId) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while status(number).unwrap().is_some_and(|status| status.backing == file) {
        assert!(Instant::now() < deadline, "it is not freed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn detach_for_good(number: u32, file: FileId) {
    match detach(number, file).unwrap() {
        Detached::Done => assert!(status(number).unwrap().is_none_or(|status| status.backing != file)),
        Detached::WhenClosed => until_freed(number, file),
        Detached::AlreadyFree => panic!("it was free"),
    }
}

fn reopened(path: &Path, access: Access) -> FileDisk {
    match open_disk(path, access, Links::Refuse).unwrap() {
        Disk::File(disk) => disk,
        Disk::Block(_) => panic!("a file"),
    }
}

#[test]
fn names_are_cut_between_characters() {
    assert_eq!(cut("abc", 63), "abc");
    assert_eq!(cut("abcdef", 3), "abc");
    assert_eq!(cut("aé", 2), "a");
    assert_eq!(cut("", 0), "");
}

#[test]
fn an_attached_file_is_read_and_written_and_detached() {
    let Some(_alone) = loop_driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = image(dir.path(), Access::ReadWrite);
    let mut recorded = Vec::new();
    let device = attach(&disk, &AttachOptions::default(), &mut |n| {
        recorded.push(n);
        Ok(())
    })
    .unwrap()
    .0;
    assert_eq!(recorded.last(), Some(&device.number), "the number was recorded before use");
    assert!(!device.read_only);
    let mut node = File::options().read(true).write(true).open(&device.path).unwrap();
    let mut sector = [0u8; 512];
    node.read_exact(&mut sector).unwrap();
    assert_eq!(sector, [7u8; 512]);
    node.seek(SeekFrom::Start(512)).unwrap();
    node.write_all(&[9u8; 512]).unwrap();
    node.sync_all().unwrap();
    assert_eq!(std::fs::read(&disk.path).unwrap()[512..1024], [9u8; 512]);
    let status = status(device.number).unwrap().expect("attached");
    assert_eq!(status.backing, disk.id);
    assert!(!status.autoclear);
    assert!(list().unwrap().iter().any(|s| s.backing == disk.id));
    drop(node);
    detach_for_good(device.number, disk.id);
    assert_eq!(detach(device.number, disk.id).unwrap(), Detached::AlreadyFree);
    assert!(!list().unwrap().iter().any(|s| s.backing == disk.id));
}

#[test]
fn a_file_opened_for_reading_gives_a_read_only_device() {
    let Some(_alone) = loop_driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = image(dir.path(), Access::ReadOnly);
    let options =
        AttachOptions { name: Some("iso"), block_size: BlockSize::B4096, ..AttachOptions::default() };
    let device = attach(&disk, &options, &mut |_| Ok(())).unwrap().0;
    assert!(device.read_only);
    assert_eq!(status(device.number).unwrap().unwrap().name, "iso");
    let size = std::fs::read_to_string(attribute(device.number, "queue/logical_block_size")).unwrap();
    assert_eq!(size.trim(), "4096");
    let refused = open_disk(&device.path, Access::ReadWrite, Links::Refuse).unwrap_err();
    assert!(matches!(refused, super::super::blockdev::OpenDiskError::ReadOnlyMedia { .. }), "{refused}");
    match open_disk(&device.path, Access::ReadOnly, Links::Refuse).unwrap() {
        Disk::Block(block) => assert_eq!((block.rdev, block.size), (device.dev, 1 << 20)),
        Disk::File(_) => panic!("a block device"),
    }
    detach(device.number, disk.id).unwrap();
}

#[test]
fn a_recycled_number_is_left_alone() {
    let Some(_alone) = loop_driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = image(dir.path(), Access::ReadWrite);
    let device = attach(&disk, &AttachOptions::default(), &mut |_| Ok(())).unwrap().0;
    let other = FileId { device: disk.id.device, inode: disk.id.inode + 1 };
    assert!(matches!(detach(device.number, other), Err(LoopError::Foreign { .. })));
    assert!(status(device.number).unwrap().is_some(), "still attached");
    detach_for_good(device.number, disk.id);
}

#[test]
fn a_device_in_use_is_freed_by_its_last_user() {
    let Some(_alone) = loop_driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = image(dir.path(), Access::ReadWrite);
    let device = attach(&disk, &AttachOptions::default(), &mut |_| Ok(())).unwrap().0;
    let user = File::open(&device.path).unwrap();
    assert_eq!(detach(device.number, disk.id).unwrap(), Detached::WhenClosed);
    drop(user);
    until_freed(device.number, disk.id);
}

#[test]
fn the_steps_for_old_kernels_reach_the_same_state() {
    let Some(_alone) = loop_driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = image(dir.path(), Access::ReadOnly);
    let options = AttachOptions { block_size: BlockSize::B4096, direct_io: true, ..AttachOptions::default() };
    let control = File::open(LOOP_CONTROL).unwrap();
    for _ in 0..ATTACH_ATTEMPTS {
        let number = sys::get_free(control.as_fd()).unwrap();
        let (node, dev) = open_node(number, Access::ReadOnly).unwrap();
        match bind_in_steps(&node, &disk, &options, &info_for(&disk, &options)) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => continue,
            result => result.unwrap(),
        }
        let device = finish(number, dev, &node, &disk, options.direct_io).unwrap();
        assert!(device.read_only);
        drop(node);
        detach_for_good(number, disk.id);
        return;
    }
    panic!("no loop device in {ATTACH_ATTEMPTS} attempts");
}

#[test]
fn a_number_that_cannot_be_recorded_is_not_used() {
    let Some(_alone) = loop_driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = image(dir.path(), Access::ReadWrite);
    let refused = attach(&disk, &AttachOptions::default(), &mut |_| Err(io::Error::other("journal is full")))
        .unwrap_err();
    assert!(matches!(refused, LoopError::NotRecorded { .. }), "{refused}");
    assert!(!list().unwrap().iter().any(|s| s.backing == disk.id));
}

#[test]
fn attaching_in_parallel_never_shares_a_device() {
    let Some(_alone) = loop_driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), Access::ReadOnly).path;
    let devices: Vec<LoopDevice> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let disk = reopened(&path, Access::ReadOnly);
                    attach(&disk, &AttachOptions::default(), &mut |_| Ok(())).unwrap().0
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut numbers: Vec<u32> = devices.iter().map(|device| device.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 8);
    for device in devices {
        detach_for_good(device.number, device.backing);
    }
}

#[test]
fn a_missing_node_is_made_again() {
    let Some(_alone) = loop_driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = image(dir.path(), Access::ReadWrite);
    let device = attach(&disk, &AttachOptions::default(), &mut |_| Ok(())).unwrap().0;
    std::fs::remove_file(&device.path).unwrap();
    detach_for_good(device.number, disk.id);
    assert!(device.path.exists());
}
