use super::*;

pub(super) fn load(file: &str, flags: &[&str]) -> Result<Loaded, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conf");
    std::fs::write(&path, file).unwrap();
    let mut args = vec!["xenopsd".to_owned(), format!("--config={}", path.display())];
    args.extend(flags.iter().map(|f| (*f).to_owned()));
    Config::load(&args)
}

#[test]
fn the_file_overrides_flags_and_later_lines_win() {
    let text =
        "worker-pool-size = 7 # comment\n\nworker-pool-size='9'\nlog-json = true\nxenstore = \"xenbus\"\n";
    let loaded = load(text, &["--worker-pool-size", "2"]).unwrap();
    assert_eq!(loaded.config.worker_pool_size, 9);
    assert!(loaded.config.log_json);
    assert_eq!(loaded.config.xenstore, StoreAddress::Xenbus);
}

#[test]
fn unknown_keys_are_named_with_their_line() {
    let loaded = load("\nsearch-path = /opt/xensource/libexec\n", &[]).unwrap();
    assert_eq!(loaded.unknown, [(2, "search-path".to_owned())]);
}

#[test]
fn the_switch_is_off_unless_asked_for() {
    let defaults = load("", &[]).unwrap().config;
    assert!(!defaults.use_switch);
    assert_eq!(defaults.queue, "org.xen.xapi.xenops.classic");
    assert!(load("queue = a/b", &[]).is_err());
    let config = load("use-switch = true\nswitch_path = /run/s\nqueue = q\n", &[]).unwrap().config;
    assert!(config.use_switch);
    assert_eq!((config.switch_path.to_str(), config.queue.as_str()), (Some("/run/s"), "q"));
}

#[test]
fn a_bad_value_is_an_error_with_its_line() {
    for (text, line) in
        [("worker-pool-size = 0", 1), ("# x\nlog-json = maybe", 2), ("nonsense", 1), ("config=/x", 1)]
    {
        match load(text, &[]) {
            Err(ConfigError::Line { line: at, what, .. }) => {
                assert_eq!(at, line, "{text}");
                assert!(!what.is_empty());
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn simulated_guests_have_the_habits_of_the_table() {
    let flags = ["--simulate-guest=shutdown=ignore", "--simulate-guest=then-ms=5"];
    let loaded = load("simulate-guest = devices=hostile", &flags).unwrap();
    let pairs = loaded.config.simulate_guest.iter().map(|(k, v)| format!("{k}={v}"));
    assert_eq!(pairs.collect::<Vec<_>>(), ["shutdown=ignore", "then-ms=5", "devices=hostile"]);
    for bad in ["--simulate-guest=manners=good", "--simulate-guest=shutdown"] {
        assert!(matches!(load("", &[bad]), Err(ConfigError::Usage(_))), "{bad}");
    }
}

#[test]
fn user_numbers_of_boot_loaders_leave_room_for_every_domain() {
    assert_eq!(load("boot-loader-uid-base = 200000", &[]).unwrap().config.boot_loader_uid_base, 200_000);
    for bad in ["0", "999", "4294967295", "x"] {
        assert!(load(&format!("boot-loader-uid-base = {bad}"), &[]).is_err(), "{bad}");
    }
}

#[test]
fn user_numbers_of_terminals_leave_room_for_every_domain() {
    assert_eq!(load("vncterm-uid-base = 200000", &[]).unwrap().config.vncterm_uid_base, 200_000);
    for bad in ["0", "4294967295", "x"] {
        assert!(load(&format!("vncterm-uid-base = {bad}"), &[]).is_err(), "{bad}");
    }
    let named = load("", &["--vncterm=/opt/vncterm"]).unwrap().config;
    assert_eq!(named.vncterm(), Path::new("/opt/vncterm"));
}

#[test]
fn a_console_s_log_is_bounded_and_in_memory_unless_asked() {
    let log = load("", &[]).unwrap().config.console_log();
    assert_eq!((log.size, log.directory), (ConsoleLog::DEFAULT_SIZE, None));
    let log = load("console-log-size = 1000\nconsole_log_directory = /var/log/consoles", &[]).unwrap();
    let log = log.config.console_log();
    assert_eq!((log.size, log.directory), (1000, Some("/var/log/consoles".into())));
    for bad in ["0", "16777217", "-1", "x"] {
        assert!(load(&format!("console-log-size = {bad}"), &[]).is_err(), "{bad}");
    }
}

#[test]
fn a_named_file_must_exist() {
    let args = ["xenopsd".to_owned(), "--config=/nonexistent".to_owned()];
    assert!(matches!(Config::load(&args), Err(ConfigError::Unreadable { .. })));
}

#[test]
fn cards_have_sections_of_their_own() {
    let text = "worker-pool-size = 7\n[nic eth0] # the uplink\nmtu = 9000\nethtool-tso = \"off\"\n\n[nic eth1]\nspeed=100\nduplex=full\n";
    let config = load(text, &[]).unwrap().config;
    assert_eq!(config.worker_pool_size, 7);
    let mut expected = Cards::default();
    for (card, key, value) in [
        ("eth0", "mtu", "9000"),
        ("eth0", "tso", "off"),
        ("eth1", "speed", "100"),
        ("eth1", "duplex", "full"),
    ] {
        expected.of(card).unwrap().set(key, value).unwrap();
    }
    assert_eq!(config.cards, expected);
    for (text, line, word) in [
        ("[nic eth0]\nspeed = 2500", 2, "1000"),
        ("[nic eth0]\nmtu", 2, "key = value"),
        ("[nic eth0]\nworker-pool-size = 7", 2, "no setting"),
        ("\n[nic a/b]", 2, "interface name"),
        ("[nic]", 1, "[nic CARD]"),
        ("[disk sda]", 1, "[nic CARD]"),
        ("[nic eth0", 1, "[nic CARD]"),
    ] {
        match load(text, &[]) {
            Err(ConfigError::Line { line: at, what, .. }) => {
                assert_eq!(at, line, "{text}");
                assert!(what.contains(word), "{text}: {what}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn the_limits_for_kernels_and_ramdisks_are_the_boot_loaders() {
    let limits = |text: &str, flags: &[&str]| {
        let loader = load(text, flags).unwrap().config.boot_loader();
        (loader.kernel_limit, loader.unpacked_limit, loader.ramdisk_limit)
    };
    assert_eq!(limits("", &[]), (32 << 20, 128 << 20, 128 << 20));
    let set = "pv-kernel-max-size = 1000\npv-kernel-max-unpacked-size = 1500\n";
    assert_eq!(limits(set, &["--pv-ramdisk-max-size", "2000"]), (1000, 1500, 2000));
}
