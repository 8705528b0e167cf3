use super::*;
use proptest::prelude::*;

const VM: &str = "11111111-2222-3333-4444-555555555555";

fn journal() -> (tempfile::TempDir, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    (dir, journal)
}

fn process(pid: isize) -> Resource {
    Resource::Process(ProcessId { pid, started: 12, uid: 65_000, role: "qemu".to_owned() })
}

fn every_kind() -> Vec<Resource> {
    vec![
        Resource::Domain,
        Resource::Loop(LoopId { number: 3, device: 2049, inode: 77, vdev: 51712 }),
        process(5),
        Resource::NetworkDevice("tap3.0".to_owned()),
        Resource::Rules("vif3.0".to_owned()),
        Resource::ControlGroup("domain-3".to_owned()),
        Resource::Socket("/run/xenopsd/vnc-3".to_owned()),
        Resource::Directory("/run/xenopsd/root-3".to_owned()),
    ]
}

fn resources(journal: &Journal) -> Vec<Resource> {
    journal.of(VM).into_iter().map(|(_, resource)| resource).collect()
}

#[test]
fn entries_are_read_by_the_next_daemon_in_their_order() {
    let (dir, journal) = journal();
    for resource in every_kind() {
        journal.take(VM, resource).unwrap();
    }
    journal.take("another", Resource::Domain).unwrap();
    let again = Journal::open(dir.path()).unwrap();
    assert_eq!(resources(&again), every_kind());
    assert_eq!(again.vms(), [VM, "another"]);
    assert_eq!(again.counts(), (9, 0));
}

#[test]
fn an_entry_is_on_disk_before_take_returns_and_not_after_strike() {
    let (dir, journal) = journal();
    let files = || std::fs::read_dir(dir.path().join(DIR)).map_or(0, Iterator::count);
    let id = journal.take(VM, process(1)).unwrap();
    assert_eq!(files(), 1);
    journal.amend(VM, id, process(2)).unwrap();
    assert_eq!(resources(&Journal::open(dir.path()).unwrap()), [process(2)]);
    journal.strike(VM, id).unwrap();
    assert_eq!(files(), 0);
    journal.strike(VM, id).unwrap();
    assert!(journal.vms().is_empty());
}

#[test]
fn a_number_is_not_used_again_while_its_entry_is_there() {
    let (dir, journal) = journal();
    let first = journal.take(VM, Resource::Domain).unwrap();
    let again = Journal::open(dir.path()).unwrap();
    assert!(again.take(VM, Resource::Domain).unwrap() > first);
    assert_eq!(again.counts().0, 2);
}

#[test]
fn what_ended_with_an_earlier_boot_is_struck_off() {
    let dir = tempfile::tempdir().unwrap();
    let before = Journal::open_in_boot(dir.path(), "before".to_owned()).unwrap();
    for resource in every_kind() {
        before.take(VM, resource).unwrap();
    }
    let now = Journal::open_in_boot(dir.path(), "now".to_owned()).unwrap();
    assert_eq!(resources(&now), every_kind()[6..]);
    // Whatever this boot writes is this boot's.
    now.take(VM, Resource::Domain).unwrap();
    assert_eq!(Journal::open_in_boot(dir.path(), "now".to_owned()).unwrap().counts(), (3, 0));
}

#[test]
fn damaged_entries_are_counted_and_left_and_harm_no_other() {
    let (dir, journal) = journal();
    journal.take(VM, Resource::Domain).unwrap();
    let at = |name: &str| dir.path().join(DIR).join(name);
    for (name, text) in [("7", ""), ("8", "{\"vm\":\"x\"}"), ("notes", "{}"), ("9.tmp", "{")] {
        std::fs::write(at(name), text).unwrap();
    }
    let again = Journal::open(dir.path()).unwrap();
    assert_eq!(again.counts(), (1, 3));
    assert!(at("7").exists() && at("8").exists() && at("notes").exists());
}

#[test]
fn nothing_is_taken_that_cannot_be_written_down() {
    let (dir, journal) = journal();
    // A file where the directory should be refuses writes even to root.
    std::fs::write(dir.path().join(DIR), "").unwrap();
    let error = journal.take(VM, Resource::Domain).unwrap_err().to_string();
    assert!(error.contains("cannot"), "{error}");
    assert_eq!(journal.counts(), (0, 0));
    assert!(journal.of(VM).is_empty());
}

proptest! {
    #[test]
    fn a_damaged_entry_never_panics(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(), kind in 0usize..8,
    ) {
        let line = Line { vm: VM.to_owned(), boot: "b".to_owned(), resource: every_kind().swap_remove(kind) };
        let mut bytes = encode(&line, None);
        prop_assert_eq!(decode::<Line>(Path::new("x"), &bytes).unwrap(), line);
        let length = bytes.len();
        bytes[at.index(length)] = byte;
        bytes.truncate(cut.index(length));
        let _ = decode::<Line>(Path::new("x"), &bytes);
    }
}
