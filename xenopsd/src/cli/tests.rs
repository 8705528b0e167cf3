//! The commands against a daemon that remembers what it was asked, over a real socket.

mod daemon;
mod devices;

use std::path::Path;

use clap::Parser as _;

use super::args::Cli;
use super::{CliError, Streams, run};
use crate::api::value::ToValue as _;
use crate::rpc::json;

pub(super) use daemon::{Host, ID, halted, sample};
use daemon::{config, xenops};

#[test]
fn create_adds_the_vm_and_its_devices() {
    let host = Host::new();
    let file = host.file(&config("web", "pci = ['0:1']\nmemmory = 1"));
    let (code, out, err) = host.xenops(&format!("create {}", file.display()));
    assert_eq!((code, out), (0, format!("{ID}\n")));
    assert!(err.contains("`pci` is not supported") && err.contains("did you mean `memory`?"), "{err}");
    assert_eq!(host.asked(), ["VM.add", "VBD.add", "VIF.add"]);
    let (code, _, err) = host.xenops(&format!("create {}", file.display()));
    assert!(code == 1 && err.contains("exists already"), "{err}");
}

#[test]
fn create_takes_everything_back_when_a_device_fails() {
    let host = Host::new();
    host.fail("VIF.add");
    let file = host.file(&config("web", ""));
    let (code, out, err) = host.xenops(&format!("create {}", file.display()));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("the disk is full"), "{err}");
    assert_eq!(host.asked(), ["VM.add", "VBD.add", "VIF.add", "VM.remove"]);
    assert!(host.vms().is_empty());
}

#[test]
fn create_refuses_a_wrong_file_before_asking_anything() {
    let host = Host::new();
    let file = host.file("name = 'web'\nmemory = 0\n");
    let (code, _, err) = host.xenops(&format!("create {}", file.display()));
    assert!(code == 2 && err.contains("line 2: `memory`") && err.contains("`kernel` is missing"), "{err}");
    // The file is what is wrong, daemon or not.
    assert_eq!(xenops(Path::new("/nonexistent"), &format!("create {}", file.display())).0, 2);
    let (code, _, err) = host.xenops("create /nonexistent.cfg");
    assert!(code == 2 && err.contains("/nonexistent.cfg"), "{err}");
    assert!(host.asked().is_empty());
}

#[test]
fn create_can_start_as_well() {
    let host = Host::new();
    let file = host.file(&config("web", ""));
    assert_eq!(host.xenops(&format!("create {} --start", file.display())).0, 0);
    assert_eq!(host.asked()[3..], ["VM.start", "VM.unpause"]);
}

#[test]
fn start_unpauses_unless_told_not_to() {
    let host = Host::with_vm();
    assert_eq!(host.xenops("start web --paused").0, 0);
    assert_eq!(host.asked(), ["VM.start"]);
    assert_eq!(host.xenops("unpause 0000").0, 0);
    assert_eq!(host.xenops(&format!("pause {ID}")).0, 0);
    assert_eq!(host.xenops("start web").0, 0);
    assert_eq!(host.asked()[1..], ["VM.unpause", "VM.pause", "VM.start", "VM.unpause"]);
}

#[test]
fn a_failed_start_is_not_unpaused() {
    let host = Host::with_vm();
    host.fail("VM.start");
    let (code, _, err) = host.xenops("start web");
    assert!(code == 1 && err.contains("not been built"), "{err}");
    assert_eq!(host.asked(), ["VM.start"]);
}

#[test]
fn stopping_passes_on_how_long_to_wait() {
    let host = Host::with_vm();
    for words in ["shutdown web", "shutdown web --timeout 2.5", "reboot web --hard", "shutdown web --hard"] {
        assert_eq!(host.xenops(words).0, 0, "{words}");
    }
    assert_eq!(host.asked(), ["VM.shutdown 120", "VM.shutdown 2.5", "VM.reboot hard", "VM.shutdown hard"]);
}

#[test]
fn images_go_where_they_are_told_seen_from_the_root() {
    let host = Host::with_vm();
    for words in [
        "suspend web /srv/web.image",
        "resume web /srv/web.image",
        "checkpoint web /srv/web.image",
        "suspend web web.image",
        "resume web web.image --paused",
        "fast-resume web",
    ] {
        let (code, out, err) = host.xenops(words);
        assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""), "{words}");
    }
    let here = std::env::current_dir().unwrap();
    assert_eq!(
        host.asked(),
        [
            "VM.suspend /srv/web.image".to_owned(),
            "VM.resume /srv/web.image".to_owned(),
            "VM.unpause".to_owned(),
            "VM.checkpoint /srv/web.image".to_owned(),
            format!("VM.suspend {}", here.join("web.image").display()),
            format!("VM.resume {}", here.join("web.image").display()),
            "VM.fast_resume".to_owned(),
        ]
    );
}

#[test]
fn a_vm_runs_whose_image_cannot_be_removed_afterwards() {
    let host = Host::with_vm();
    let image = format!("/var/lib/xcp/suspend/{ID}.suspend");
    // The daemon of this test reads no image, so that there is none.
    let (code, _, err) = host.xenops("resume web");
    assert!(code != 0 && err.contains(&image), "{code} {err}");
    assert_eq!(host.asked(), [format!("VM.resume {image}"), "VM.unpause".to_owned()]);
}

#[test]
fn what_fails_is_told_and_nothing_follows() {
    for (failing, words) in [
        ("VM.suspend", "suspend web /srv/image"),
        ("VM.resume", "resume web /srv/image"),
        ("VM.checkpoint", "checkpoint web /srv/image"),
        ("VM.fast_resume", "fast-resume web"),
    ] {
        let host = Host::with_vm();
        host.fail(failing);
        let (code, _, err) = host.xenops(words);
        assert!(code == 1 && err.contains("not been built"), "{words}: {code} {err}");
        assert_eq!(host.asked().len(), 1, "{words}");
    }
}

#[test]
fn destroy_pulls_the_plug_also_of_what_a_halted_vm_may_have_left() {
    let host = Host::with_vm();
    host.xenops("start web");
    host.forget();
    assert_eq!(host.xenops("destroy web").0, 0);
    assert_eq!(host.asked(), ["VM.shutdown hard", "VM.remove"]);
    let halted = Host::with_vm();
    assert_eq!(halted.xenops("destroy web").0, 0);
    assert_eq!(halted.asked(), ["VM.shutdown hard", "VM.remove"]);
}

#[test]
fn listings_are_tables_or_json() {
    let host = Host::with_vm();
    let (_, out, _) = host.xenops("list");
    assert!(out.lines().count() == 2 && out.contains(&format!("web   {ID}  Halted")), "{out}");
    let (_, out, _) = host.xenops("list --json");
    let parsed = json::parse(out.trim_end().as_bytes()).unwrap();
    assert_eq!(parsed, host.vms().to_value());
    let (_, out, _) = host.xenops("show web");
    assert!(
        out.contains("kernel       /boot/vmlinuz") && out.contains("xvda") && out.contains("xenbr0"),
        "{out}"
    );
    let (_, out, _) = host.xenops("show web --json");
    let parsed = json::parse(out.trim_end().as_bytes()).unwrap();
    assert!(["vm", "state", "vbds", "vifs"].iter().all(|key| parsed.get(key).is_some()), "{out}");
    let (_, out, _) = host.xenops("tasks");
    assert!(out.contains("done in 0.5 s"), "{out}");
    let (_, out, _) = host.xenops("events");
    assert_eq!(out, format!("vm    {ID}  Halted  web\nvm    gone  gone\n"));
    let (_, out, _) = host.xenops("events --json");
    assert_eq!(out, format!("[\"Vm\",\"{ID}\"]\n[\"Vm\",\"gone\"]\n"));
}

#[test]
fn both_sockets_of_the_daemon_are_spoken_to() {
    let host = Host::with_vm();
    let (code, out, _) = xenops(&host.path().join("xenopsd.json"), "list");
    assert!(code == 0 && out.contains("web"), "{out}");
}

#[test]
fn exit_codes_tell_what_kind_of_failure() {
    let host = Host::with_vm();
    let (code, _, err) = host.xenops("start mail");
    assert!(code == 4 && err.contains("xenops list"), "{err}");
    let (code, _, err) = host.xenops("console web");
    assert!(code == 1 && err.contains("is halted"), "{err}");
    let (code, _, err) = xenops(&host.path().join("absent"), "list");
    assert!(code == 3 && err.contains("systemctl start xenopsd"), "{err}");
    assert_eq!(host.xenops("man nosuch").0, 2);
}

#[test]
fn check_without_a_daemon_fails_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = xenops(&dir.path().join("absent"), "check");
    assert_eq!(code, 1);
    assert!(out.contains("xenopsd ") && out.contains("What to do:"), "{out}");
    let (code, out, _) = xenops(&dir.path().join("absent"), "check --json");
    assert_eq!(code, 1);
    assert!(matches!(json::parse(out.trim_end().as_bytes()), Ok(crate::api::Value::Array(_))), "{out}");
}

#[test]
fn manual_and_completions_are_printed_without_a_daemon() {
    let absent = Path::new("/nonexistent");
    let (code, out, _) = xenops(absent, "man");
    assert!(code == 0 && out.contains(".TH xenops") && out.contains("EXIT STATUS"), "{out}");
    let (_, out, _) = xenops(absent, "man shutdown");
    assert!(out.contains("timeout"), "{out}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(xenops(absent, &format!("completions {shell}")).1.contains("shutdown"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let host = Host::with_vm();
    let socket = host.path().join("xenopsd").display().to_string();
    let cli = <Cli>::try_parse_from(["xenops", "--socket", &socket, "list"]).unwrap();
    let mut err = Vec::new();
    let result = run(&cli, &mut Streams { out: &mut Closed, err: &mut err, progress: false });
    let error: CliError = result.unwrap_err();
    assert!(error.is_quiet() && error.exit_code() == 0);
}
