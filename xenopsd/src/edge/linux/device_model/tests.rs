use super::*;
use std::sync::Mutex;

fn settings(directory: &Path) -> Settings {
    Settings { run: directory.join("run"), logs: directory.join("log"), ..Settings::default() }
}

#[test]
fn a_program_that_cannot_be_run_is_named_with_the_package() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("qemu");
    let check = || check(&Settings { program: program.clone(), ..settings(directory.path()) });
    let missing = check().unwrap_err().to_string();
    assert!(missing.contains("qemu-system-xen") && missing.contains(program.to_str().unwrap()), "{missing}");
    fs::write(&program, "").unwrap();
    assert!(check().unwrap_err().to_string().contains("is not a program"));
    let options = File::options().write(true).clone();
    let file = options.open(&program).unwrap();
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    check().unwrap();
    let low = Settings { uid_base: 5, program, ..settings(directory.path()) };
    assert!(super::check(&low).is_err());
}

#[test]
fn a_directory_that_others_can_enter_holds_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run/xenopsd");
    private_directory(&run).unwrap();
    private_directory(&run).unwrap();
    fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    assert!(private_directory(&run).unwrap_err().to_string().contains("nobody else can enter"));
}

#[test]
fn the_log_before_is_kept_and_the_end_of_this_one_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let log = log_path(&settings(directory.path()), "vm");
    for text in ["first", "second"] {
        io::Write::write_all(&mut open_log(&log).unwrap(), text.as_bytes()).unwrap();
    }
    assert_eq!(fs::read_to_string(log.with_extension("log.1")).unwrap(), "first");
    assert_eq!(tail(&log).unwrap(), "second");
    let mut long = "x".repeat(5000);
    long.push_str("\nthe \x1b[2Jend\n");
    fs::write(&log, &long).unwrap();
    let end = tail(&log).unwrap();
    assert!(end.ends_with("x | the \u{fffd}[2Jend"), "{end}");
    assert!(end.len() <= 1040, "{}", end.len());
}

#[test]
fn a_socket_that_was_left_is_listened_on_again_and_a_file_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let path = monitor_path(&settings, DomId::new(3).unwrap());
    let mut noted = Vec::new();
    for _ in 0..2 {
        let mut note = |resource| {
            noted.push(resource);
            Ok(())
        };
        // The one before is left, as by a daemon that was killed.
        std::mem::forget(listen(&settings, &path, &mut note).unwrap());
    }
    let socket = Resource::Socket(path.display().to_string());
    assert_eq!(noted, [socket.clone(), socket]);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(listen(&settings, &path, &mut |_| Ok(())).is_err());
    assert!(path.exists());
    let mut full = |_| Err(refused("the journal is full"));
    let other = monitor_path(&settings, DomId::new(4).unwrap());
    assert!(listen(&settings, &other, &mut full).unwrap_err().to_string().contains("full"));
    assert!(!other.exists());
}

/// What is logged while `act` runs.
fn logged(act: impl FnOnce()) -> String {
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Arc::<Mutex<Vec<u8>>>::default();
    let writer = Arc::clone(&log);
    let make = move || Log(Arc::clone(&writer));
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(make).finish();
    tracing::subscriber::with_default(subscriber, act);
    String::from_utf8(log.lock().unwrap().clone()).unwrap()
}

#[test]
fn the_log_names_the_vm_and_each_protection_that_it_does_without() {
    let jail = || Jail::new(70_000, 70_000).unwrap();
    let domid = DomId::new(3).unwrap();
    let log = logged(|| drop(without(jail(), Feature::ALL.to_vec(), "a-vm", domid, "the device model")));
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), Feature::ALL.len(), "{log}");
    for (line, feature) in lines.into_iter().zip(Feature::ALL) {
        let text = format!("the device model runs without {feature} isolation vm=\"a-vm\" domid=3");
        assert!(line.contains("WARN") && line.ends_with(&text), "{line}");
    }
    assert_eq!(logged(|| drop(without(jail(), Vec::new(), "a-vm", domid, "the device model"))), "");
}

#[test]
fn a_protection_that_is_lacking_is_refused_unless_it_is_named() {
    let others = |feature| Feature::ALL.into_iter().filter(|other| *other != feature).collect::<Vec<_>>();
    for feature in Feature::ALL {
        assert!(accept(&[feature], &[feature]).is_ok(), "{feature}");
        let refused = [&[][..], &others(feature)].map(|unjailed| accept(&[feature], unjailed));
        // A host without control groups has none to put anything into.
        let expected = (feature != Feature::Cgroup).then(|| format!("`allow-unjailed = {feature}`"));
        for refused in refused {
            match (&expected, refused) {
                (None, Ok(())) => {}
                (Some(hint), Err(error)) => assert!(error.to_string().contains(hint), "{error}"),
                (_, other) => panic!("{feature}: {other:?}"),
            }
        }
        // As the settings file has it.
        assert_eq!(feature.to_string().parse(), Ok(feature));
    }
    accept(&Feature::ALL, &Feature::ALL).unwrap();
    accept(&[], &[]).unwrap();
    let two = accept(&[Feature::Mount, Feature::Seccomp], &[Feature::Mount]).unwrap_err().to_string();
    assert!(two.contains("no seccomp isolation"), "{two}");
}
