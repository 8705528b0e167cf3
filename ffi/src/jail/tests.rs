//! A hostile program in the jail, each step failing in turn, and what is left after that.
//!
//! The hostile program is this test binary again: the ignored test [`program::hostile`], which does nothing unless it was
//! started with a descriptor to tell on.

mod failures;
mod program;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;

use super::*;

const UID: u32 = 0x2000_0000;

/// Where the hostile program tells what it found.
const TELL: i32 = 3;

/// What it is given beside that.
const GIVEN: i32 = 4;

/// Set for the hostile program only.
const ATTACK: &str = "JAIL_ATTACK";

fn root() -> bool {
    // SAFETY: no argument.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: making a jail takes root");
    }
    root
}

fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

fn jail() -> Jail {
    Jail::new(UID, UID).unwrap()
}

/// Starts the attack in a jail made from this one; the extra descriptors are its 4 and following.
fn start_attack(which: &str, jail: Jail, extra: Vec<OwnedFd>) -> (Child, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let errors = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
    let mut jail = jail.system_libraries().variable(ATTACK, which).unwrap();
    for descriptor in [null(), null(), errors, writer.into()].into_iter().chain(extra) {
        jail = jail.descriptor(descriptor);
    }
    let arguments = [
        "hostile",
        "jail::tests::program::hostile",
        "--exact",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ];
    (jail.spawn(&std::env::current_exe().unwrap(), &arguments).unwrap(), reader)
}

/// Runs the attack, and returns what it told, by line.
fn attack(which: &str, jail: Jail, extra: Vec<OwnedFd>) -> Vec<String> {
    let (child, mut reader) = start_attack(which, jail, extra);
    let mut told = String::new();
    reader.read_to_string(&mut told).unwrap();
    child.wait().unwrap();
    told.lines().map(str::to_owned).collect()
}

#[test]
fn it_opens_no_file_of_the_host_and_makes_none() {
    if !root() {
        return;
    }
    let told = attack("files", jail(), vec![]);
    for path in ["/etc/passwd", "/etc/shadow", "/dev/mem", "/proc/self/status", "/root", "/tmp", "/sys", "up"]
    {
        assert!(told.contains(&format!("{path}: Err(NotFound)")), "{path}: {told:#?}");
    }
    let read_only = libc::EROFS;
    for path in ["/new", "/empty/new", "/usr/lib/new"] {
        // The permissions are looked at first.
        let refused =
            [format!("{path}: Err(Some({read_only}))"), format!("{path}: Err(Some({}))", libc::EACCES)];
        assert!(refused.iter().any(|line| told.contains(line)), "{path}: {told:#?}");
    }
    let names = told.iter().find_map(|l| l.strip_prefix("root: ")).unwrap();
    for name in names.trim_matches(['[', ']']).split(", ") {
        assert!(["\"empty\"", "\"etc\"", "\"lib\"", "\"lib64\"", "\"usr\""].contains(&name), "{names}");
    }
}

#[test]
fn it_reaches_no_network() {
    if !root() {
        return;
    }
    let unreachable = format!("Err(Some({}))", libc::ENETUNREACH);
    assert_eq!(
        attack("network", jail(), vec![]),
        [format!("tcp: {unreachable}"), format!("udp: {unreachable}")]
    );
}

#[test]
fn it_forks_up_to_its_limit_and_sees_no_other_process() {
    if !root() {
        return;
    }
    let limits = Limits { processes: Some(20), ..Limits::default() };
    // A user of its own, because the limit counts a user's processes.
    let jail = Jail::new(UID + 1, UID + 1).unwrap().limits(limits);
    let told = attack("processes", jail.variable("PARENT", std::process::id().to_string()).unwrap(), vec![]);
    let expected = [
        format!("fork: -{}", libc::EAGAIN),
        "few: true".to_owned(),
        "pid: 1".to_owned(),
        format!("parent: -{}", libc::ESRCH),
    ];
    assert_eq!(told, expected);
}

#[test]
fn it_does_not_become_root_again() {
    if !root() {
        return;
    }
    let told = attack("root", jail(), vec![]);
    for call in ["setuid", "setgroups", "chroot", "mount"] {
        assert!(told.contains(&format!("{call}: -{}", libc::EPERM)), "{call}: {told:#?}");
    }
    assert!(told.contains(&format!("uid: ({UID}, {UID}, {UID}, {UID})")), "{told:#?}");
    assert!(told.contains(&format!("mknod: -{}", libc::EROFS)), "{told:#?}");
    for line in ["groups: 0", "no_new_privs: 1", "bounding: 0"] {
        assert!(told.contains(&line.to_owned()), "{told:#?}");
    }
}

#[test]
fn it_has_the_descriptors_given_and_no_more_than_its_limit() {
    if !root() {
        return;
    }
    // Ones it must not get.
    let _open = [null(), null()];
    let limits = Limits { open_files: Some(32), ..Limits::default() };
    let told = attack("descriptors", jail().limits(limits), vec![]);
    assert_eq!(told, ["open: [0, 1, 2, 3]", "more: 28"]);
}

#[test]
fn it_does_not_fill_the_disk_through_a_file_given() {
    if !root() {
        return;
    }
    let path = std::env::temp_dir().join(format!("jail-disk-{}", std::process::id()));
    let file = File::create(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let limits = Limits { file_size: Some(64 << 10), ..Limits::default() };
    let told = attack("disk", jail().limits(limits), vec![file.into()]);
    assert_eq!(told, ["written: 65536".to_owned(), format!("then: Err(Some({}))", libc::EFBIG)]);
}

#[test]
fn its_memory_is_limited() {
    if !root() {
        return;
    }
    let limits = Limits { address_space: Some(512 << 20), ..Limits::default() };
    assert_eq!(attack("memory", jail().limits(limits), vec![]), ["MiB below 512: true"]);
}

/// What a small Rust program needs to start, run a test and end, without `getppid`.
fn ordinary_calls() -> impl Iterator<Item = i64> {
    (0..500).filter(|call| *call != libc::SYS_getppid)
}

#[test]
fn a_call_outside_the_list_is_refused() {
    if !root() {
        return;
    }
    let filter = SyscallFilter::allow(ordinary_calls(), Denied::Fails).unwrap();
    let told = attack("filtered", jail().filter(filter), vec![]);
    assert_eq!(told, [format!("getppid: -{}", libc::EPERM), "getpid: 0".to_owned()]);
    let filter = SyscallFilter::allow(ordinary_calls(), Denied::Kills).unwrap();
    assert!(attack("filtered", jail().filter(filter), vec![]).is_empty(), "killed before it could tell");
}

#[test]
fn threads_are_made_and_processes_are_not() {
    if !root() {
        return;
    }
    let calls = ordinary_calls().filter(|call| ![libc::SYS_fork, libc::SYS_vfork].contains(call));
    let calls = calls.filter(|call| ![libc::SYS_clone, libc::SYS_clone3].contains(call));
    let filter = SyscallFilter::allow_with_threads(calls, Denied::Fails).unwrap();
    let told = attack("threaded", jail().filter(filter), vec![]);
    let refused = |what: &str, errno: i32| format!("{what}: -{errno}");
    let expected = [
        "thread: 7".to_owned(),
        refused("fork", libc::EPERM),
        refused("apart", libc::EPERM),
        refused("clone3", libc::ENOSYS),
    ];
    assert_eq!(told, expected);
}

#[test]
fn the_root_is_taken_away_from_a_running_program() {
    if !root() {
        return;
    }
    let (wait, go) = std::io::pipe().unwrap();
    let (child, reader) = start_attack("emptied", jail(), vec![wait.into()]);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(reader));
    assert_eq!(lines.next().unwrap().unwrap(), "before: true");
    child.empty_root().unwrap();
    let inside = format!("/proc/{}/root", child.pid());
    assert_eq!(std::fs::read_dir(inside).unwrap().count(), 0);
    drop(go);
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    assert_eq!(rest, ["names: 0", "after: Err(NotFound)", "cwd: 0"]);
    assert!(child.wait().unwrap().success());
    assert!(Path::new("/usr/lib").exists(), "only the jail's view changed");
}

/// A file with some bytes in it that nobody but root may open.
fn private_file(bytes: &[u8]) -> File {
    static MADE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("jail-private-{}-{number}", std::process::id()));
    let options = File::options().read(true).write(true).create_new(true).mode(0o600).clone();
    let mut file = options.open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn it_reads_the_copies_made_for_it_until_its_root_is_taken_away() {
    if !root() {
        return;
    }
    let bytes = vec![7; 300_000];
    let (wait, go) = std::io::pipe().unwrap();
    // More than a file of its own could hold: the limit is the program's, not that of who copies.
    let jail = jail()
        .limits(Limits { file_size: Some(4096), ..Limits::default() })
        .content("/boot/kernel".into(), private_file(&bytes).into(), 300_000)
        .content("/boot/part".into(), private_file(b"1234").into(), 2);
    let (child, reader) = start_attack("contents", jail, vec![wait.into()]);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(reader)).map(Result::unwrap);
    let expected = [
        "kernel: Ok((300000, true))".to_owned(),
        "part: Ok((2, false))".to_owned(),
        format!("write: Err(Some({}))", libc::EROFS),
        "open: [0, 1, 2, 3, 4]".to_owned(),
    ];
    let told: Vec<_> = lines.by_ref().take(expected.len()).collect();
    assert_eq!(told, expected);
    child.empty_root().unwrap();
    drop(go);
    assert_eq!(lines.collect::<Vec<_>>(), ["after: Err(NotFound)"]);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_copy_that_cannot_be_made_is_named() {
    if !root() {
        return;
    }
    let start = |jail: Jail| jail.spawn(Path::new("/bin/true"), &["true"]).unwrap_err().to_string();
    let short = start(jail().content("/boot/kernel".into(), private_file(b"12").into(), 3));
    assert!(short.contains("copy to boot/kernel: No data available"), "{short}");
    let unreadable: OwnedFd = File::options().write(true).open("/dev/null").unwrap().into();
    let unreadable = start(jail().content("/kernel".into(), unreadable, 3));
    assert!(unreadable.contains("copy to kernel: Bad file descriptor"), "{unreadable}");
    for (path, length, text) in
        [("/a", 1 << 40, "more than 268435456 bytes"), ("a", 1, "no absolute path"), ("/usr/lib/a", 1, "")]
    {
        let bad = start(jail().system_libraries().content(path.into(), private_file(b"1").into(), length));
        assert!(bad.contains(text), "{path}: {bad}");
    }
    let shared = jail().without(Feature::Mount).content("/a".into(), private_file(b"1").into(), 1);
    assert!(start(shared).contains("no root of its own"));
}

/// Between its change of user and its program the process is in its starter's memory.
#[test]
fn others_of_its_user_do_not_look_into_its_starter() {
    if !root() {
        return;
    }
    let child = jail().system_libraries().spawn(Path::new("/bin/true"), &["true"]).unwrap();
    assert!(child.wait().unwrap().success());
    // SAFETY: no argument.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
    assert_ne!(dumpable, 1, "the kernel has taken it back when the process changed its user");
}

#[test]
fn it_dies_with_the_thread_that_started_it_when_asked_to() {
    if !root() {
        return;
    }
    let (wait, _go) = std::io::pipe().unwrap();
    let dying = jail().parent_death(ParentDeath::Die);
    let child =
        std::thread::spawn(move || start_attack("emptied", dying, vec![wait.into()]).0).join().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn without_a_protection_there_is_less_of_it() {
    if !root() {
        return;
    }
    let told =
        attack("root", jail().without(Feature::Pid).without(Feature::Network).without(Feature::Ipc), vec![]);
    assert!(told.contains(&"bounding: 0".to_owned()), "the rest holds: {told:#?}");
}

/// Nothing hostile is tried here: it would be done with the rights of whoever runs the tests.
#[test]
fn a_caller_without_privileges_has_a_smaller_one() {
    let limits = Limits { open_files: Some(32), ..Limits::default() };
    let told = attack("descriptors", Jail::of_caller().limits(limits), vec![]);
    assert_eq!(told, ["open: [0, 1, 2, 3]", "more: 28"]);
}

#[test]
fn a_control_group_holds_the_process_and_kills_it() {
    if !root() || Cgroup::hierarchy().is_none() {
        return;
    }
    let name = format!("test-{}", std::process::id());
    let Ok((group, _lacking)) = Cgroup::create(&name, &CgroupLimits::default()) else {
        eprintln!("skipped: control groups cannot be made here");
        return;
    };
    let (wait, _go) = std::io::pipe().unwrap();
    let (child, _told) = start_attack("emptied", jail().cgroup(group.clone()), vec![wait.into()]);
    let inside = std::fs::read_to_string(group.path().join("cgroup.procs")).unwrap();
    assert_eq!(inside.trim(), child.pid().to_string());
    assert!(group.remove().is_err(), "a process is in it");
    group.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    group.remove().unwrap();
    assert!(Cgroup::find(&name).is_none());
    group.remove().unwrap();
}

#[test]
fn a_jail_is_for_an_unprivileged_user() {
    for (uid, gid) in [(0, 5), (5, 0), (u32::MAX, 5)] {
        assert!(matches!(Jail::new(uid, gid), Err(Error::Invalid(_))));
    }
    let domain = |n| DomId::new(n).unwrap();
    assert_eq!(uid_of(0x2000_0000, domain(7)).unwrap(), 0x2000_0007);
    // None of the one range is in the other.
    assert_eq!(disk_uid_of(0x2000_0000, domain(0)).unwrap(), 0x2000_7ff0);
    for base in [0, 999, u32::MAX, u32::MAX - 0x7000, u32::MAX - 0xf000] {
        assert!(uid_of(base, domain(1)).is_err(), "{base}");
    }
}

#[test]
fn protections_have_names() {
    for feature in Feature::ALL {
        assert_eq!(feature.name().parse::<Feature>(), Ok(feature));
    }
    assert!("everything".parse::<Feature>().unwrap_err().contains("mount, network"));
    assert!(jail().variable("A=B", "x").is_err());
    assert!(jail().variable("A", "x\0y").is_err());
}
