//! Each step of a start failing in turn, by itself or for want of permission, and what is left after that.

use super::*;
use crate::jail::spawn::{Flags, Report};
use crate::jail::steps::{Prepared, Step, compile};

fn program_file() -> File {
    File::open("/bin/true").unwrap()
}

/// What there is of this process's children and descriptors.
fn traces() -> (usize, String, String) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let thread = "/proc/thread-self/children";
    (
        descriptors,
        std::fs::read_to_string(thread).unwrap(),
        std::fs::read_to_string("/proc/self/mounts").unwrap(),
    )
}

/// The only test of its kind in one function: others open descriptors meanwhile, so it runs as a program of its own.
#[test]
fn every_failing_step_is_named_and_leaves_nothing() {
    const ALONE: &str = "JAIL_ALONE";
    if !root() {
        return;
    }
    if std::env::var_os(ALONE).is_none() {
        let name = "jail::tests::failures::every_failing_step_is_named_and_leaves_nothing";
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let outcome = alone.args([name, "--exact", "--test-threads=1"]).env(ALONE, "1").output().unwrap();
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
        return;
    }
    let failing = |at: usize| {
        let filter = SyscallFilter::allow(ordinary_calls(), Denied::Fails).unwrap();
        let jail = jail()
            .system_libraries()
            .limits(Limits { open_files: Some(16), ..Limits::default() })
            .parent_death(ParentDeath::Die)
            .entry(Entry::Node { path: "/dev/null".into(), device: (1, 3) })
            .entry(Entry::Link { to: "dev".into(), path: "/also".into() })
            .content("/copy/of".into(), program_file().into(), 64)
            .filter(filter);
        let source = program_file();
        let (null, program) = (null(), File::open("/bin/true").unwrap());
        let (reader, writer) = std::io::pipe().unwrap();
        let (gate, go) = std::io::pipe().unwrap();
        let number = |fd: &dyn std::os::fd::AsRawFd| fd.as_raw_fd();
        let prepared = Prepared {
            descriptors: vec![number(&null)],
            contents: vec![number(&source)],
            program: number(&program),
            gate: number(&gate),
            go: number(&go),
            arguments: vec![c"true".to_owned()],
        };
        let mut steps = compile(&jail, prepared).unwrap();
        if at >= steps.len() {
            return None;
        }
        steps[at] = Step::Fail(libc::EXDEV);
        let flags = Flags { namespaces: libc::CLONE_NEWNS | libc::CLONE_NEWPID, group: None };
        let report = Report { writer: writer.into(), reader: OwnedFd::from(reader).into() };
        // A process that has failed before reads no permission.
        let permit = |_| File::from(OwnedFd::from(go)).write_all(&[1]);
        Some(crate::jail::spawn::start(&steps, &flags, report, permit).map(drop))
    };
    let before = traces();
    let mut tried = 0;
    while let Some(outcome) = failing(tried) {
        match outcome.unwrap_err() {
            Error::Step { step, source } => {
                assert_eq!((&*step, source.raw_os_error()), ("test", Some(libc::EXDEV)), "step {tried}");
            }
            other => panic!("step {tried}: {other}"),
        }
        assert_eq!(traces(), before, "step {tried}");
        tried += 1;
    }
    assert!(tried > 30, "{tried}");
}

#[test]
fn nothing_begins_without_permission() {
    if !root() {
        return;
    }
    let program = Path::new("/bin/true");
    let mut told = 0;
    let refused = jail().system_libraries().spawn_when(program, &["true"], |pid| {
        told = pid;
        Err(std::io::ErrorKind::StorageFull.into())
    });
    assert!(matches!(refused, Err(Error::NotPermitted { .. })), "{refused:?}");
    assert!(!Path::new(&format!("/proc/{told}")).exists());
    // A starter that ends says nothing.
    let (null, opened) = (null(), File::open(program).unwrap());
    let (reader, writer) = std::io::pipe().unwrap();
    let (gate, go) = std::io::pipe().unwrap();
    let number = |fd: &dyn std::os::fd::AsRawFd| fd.as_raw_fd();
    let prepared = Prepared {
        descriptors: vec![number(&null)],
        contents: Vec::new(),
        program: number(&opened),
        gate: number(&gate),
        go: number(&go),
        arguments: vec![c"true".to_owned()],
    };
    let steps = compile(&jail(), prepared).unwrap();
    let report = Report { writer: writer.into(), reader: OwnedFd::from(reader).into() };
    let permit = |_| {
        drop(go);
        Ok(())
    };
    let flags = Flags { namespaces: libc::CLONE_NEWNS | libc::CLONE_NEWPID, group: None };
    let silent = crate::jail::spawn::start(&steps, &flags, report, permit).unwrap_err().to_string();
    assert!(silent.contains("permission to go on: Operation canceled"), "{silent}");
}

#[test]
fn real_failures_are_named() {
    if !root() {
        return;
    }
    let none: [&str; 1] = ["none"];
    let missing = jail().spawn(Path::new("/nonexistent"), &none).unwrap_err();
    assert!(matches!(missing, Error::Program { .. }), "{missing}");
    // No interpreter: the root is empty.
    let empty = jail().spawn(Path::new("/bin/true"), &["true"]).unwrap_err();
    assert_eq!(empty.to_string(), "jail: execute true: No such file or directory (os error 2)");
    // Not a program.
    let text = jail().spawn(Path::new("/etc/hostname"), &none).unwrap_err();
    assert!(text.to_string().contains("execute none"), "{text}");
    let source = jail().entry(Entry::ReadOnly { source: "/nonexistent".into(), path: "/x".into() });
    let source = source.spawn(Path::new("/bin/true"), &none).unwrap_err();
    assert!(source.to_string().contains("entry /nonexistent"), "{source}");
    for path in ["relative", "/", "/a/../b", "/a/b/c/d/e/f"] {
        let bad = jail().entry(Entry::Node { path: path.into(), device: (1, 3) });
        let bad = bad.spawn(Path::new("/bin/true"), &none).unwrap_err();
        assert!(matches!(bad, Error::Invalid(_)), "{path}: {bad}");
    }
}
