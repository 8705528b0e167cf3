//! What a careless or hostile management client can send: each gets the contract's error or a closed connection, and the
//! daemon goes on serving others.

mod common;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use common::{Daemon, guest};
use xenopsd::api::*;
use xenopsd::rpc::{Client, ClientError, Codec, http};

const CODECS: [Codec; 2] = [Codec::Xml, Codec::Json];

const UNKNOWN: &str = "99999999-9999-4999-8999-999999999999";

fn dbg() -> String {
    "bad input".to_owned()
}

/// The daemon's answer; a test that gets none fails.
fn answer<M: Method>(client: &Client, call: &M) -> Result<M::Result, Error> {
    match client.call(call) {
        Ok(result) => Ok(result),
        Err(ClientError::Remote(error)) => Err(error),
        Err(other) => panic!("{}: {other}", M::NAME),
    }
}

/// The outcome of a method that answers with a task.
fn outcome<M: Method<Result = TaskId>>(client: &Client, call: &M) -> Result<(), Error> {
    let task = answer(client, call)?;
    match client.wait_task("bad input", &task, |_| ()) {
        Ok(_) => Ok(()),
        Err(ClientError::Remote(error)) => Err(error),
        Err(other) => panic!("{}: {other}", M::NAME),
    }
}

/// It answers, and what it says makes sense.
fn serves(daemon: &mut Daemon) {
    assert!(daemon.lives());
    for codec in CODECS {
        let query = QueryService { debug_info: dbg(), unit: () };
        assert_eq!(answer(&daemon.client(codec), &query).expect("serves").name, "xenops");
    }
}

/// A stored VM with its disk and interface.
fn stored(daemon: &Daemon, name: &str) -> (Vm, Vec<Vbd>, Vec<Vif>) {
    let (vm, vbds, vifs) = guest(daemon.directory.path(), name);
    let client = daemon.client(Codec::Xml);
    answer(&client, &VmAdd { debug_info: dbg(), vm: vm.clone() }).expect("is stored");
    for vbd in &vbds {
        answer(&client, &VbdAdd { debug_info: dbg(), vbd: vbd.clone() }).expect("is stored");
    }
    for vif in &vifs {
        answer(&client, &VifAdd { debug_info: dbg(), vif: vif.clone() }).expect("is stored");
    }
    (vm, vbds, vifs)
}

/// Every call that names a VM, a device or a task.
fn calls_naming(id: &str) -> Vec<Call> {
    let (vm, debug_info) = (|| id.to_owned(), dbg);
    let device = || DeviceId::new(id, "xvda");
    macro_rules! calls {
        ($($method:ident { $($field:ident : $value:expr),* }),+ $(,)?) => {
            vec![$(Call::from($method { debug_info: debug_info(), $($field: $value),* })),+]
        };
    }
    let disk = || Disk::Local("/srv/x".to_owned());
    calls![
        VmRemove { id: vm() },
        VmStat { id: vm() },
        VmCreate { id: vm() },
        VmBuild { id: vm(), force: false },
        VmDestroy { id: vm() },
        VmPause { id: vm() },
        VmUnpause { id: vm() },
        VmStart { id: vm(), paused: false },
        VmShutdown { id: vm(), delay: None },
        VmReboot { id: vm(), delay: None },
        VmDelay { id: vm(), delay: 0.0 },
        VmSuspend { id: vm(), suspend_vdi: disk() },
        VmResume { id: vm(), suspend_vdi: disk() },
        VmFastResume { id: vm() },
        VmExportMetadata { id: vm() },
        VmExplain { id: vm() },
        VmSetXsdata { id: vm(), xsdata: Dict::new() },
        VmSetVcpus { id: vm(), vcpus: 1 },
        VbdPlug { id: device() },
        VbdUnplug { id: device(), force: true },
        VbdStat { id: device() },
        VbdRemove { id: device() },
        VbdEject { id: device() },
        VbdInsert { id: device(), disk: disk() },
        VifPlug { id: device() },
        VifUnplug { id: device(), force: true },
        VifStat { id: device() },
        VifRemove { id: device() },
        VifMove { id: device(), network: Network::Local("br0".to_owned()) },
        PciStat { id: device() },
        PciRemove { id: device() },
        VusbStat { id: device() },
        VusbRemove { id: device() },
        VgpuStat { id: device() },
        VgpuRemove { id: device() },
        UpdatesRefreshVm { id: vm() },
        TaskStat { id: vm() },
        TaskCancel { id: vm() },
        TaskDestroy { id: vm() },
        TaskDestroyOnFinish { id: vm() },
    ]
}

/// Sends a call as it is; the decoded error, or none when it succeeded.
fn error_of(daemon: &Daemon, codec: Codec, call: &Call) -> Option<Error> {
    let body = codec.encode_request(call.name(), call.to_params(), 1);
    let reply = exchange(daemon, codec, &body).unwrap_or_else(|| panic!("{}: closed", call.name()));
    let outcome = codec.decode_reply(&reply).unwrap_or_else(|error| panic!("{}: {error}", call.name()));
    let error = |value: Value| Error::from_value(&value).unwrap_or_else(|e| panic!("{}: {e}", call.name()));
    outcome.err().map(error)
}

/// The body of the answer to a body; none when the connection is closed instead.
fn exchange(daemon: &Daemon, codec: Codec, body: &[u8]) -> Option<Vec<u8>> {
    let mut stream = connect(daemon, codec);
    // The daemon may refuse before it has read all of it.
    let _ = stream.write_all(&http::frame_request(codec, "/", "test", body));
    let mut reply = http::Reply::default();
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if reply.feed(&bytes[..count]).ok()? {
            break;
        }
    }
    reply.into_body().ok()
}

fn connect(daemon: &Daemon, codec: Codec) -> UnixStream {
    let stream = UnixStream::connect(daemon.socket(codec)).expect("connects");
    stream.set_read_timeout(Some(common::PATIENCE)).expect("is set");
    stream
}

#[test]
fn an_unknown_object_is_said_to_be_unknown() {
    let mut daemon = Daemon::new();
    for call in calls_naming(UNKNOWN) {
        for codec in CODECS {
            let error = error_of(&daemon, codec, &call);
            let fine = matches!(error, Some(Error::DoesNotExist { .. } | Error::Unimplemented(_)));
            assert!(fine, "{} in {codec:?}: {error:?}", call.name());
        }
    }
    let exists = VmExists { debug_info: dbg(), id: UNKNOWN.to_owned() };
    assert_eq!(answer(&daemon.client(Codec::Json), &exists), Ok(false));
    serves(&mut daemon);
}

#[test]
fn names_that_are_no_names_lead_nowhere() {
    let mut daemon = Daemon::new();
    let long = "a".repeat(1 << 20);
    let names = [
        "",
        ".",
        "..",
        "../../../etc/passwd",
        "/etc/passwd",
        "a/b",
        "a\nb",
        "a\u{0}b",
        "\u{202e}",
        "%s%n",
        &long,
    ];
    for name in names {
        for codec in CODECS {
            for call in calls_naming(name) {
                let error = error_of(&daemon, codec, &call);
                assert!(error.is_some(), "{} of {:?}", call.name(), &name[..name.len().min(20)]);
                let shown = error.map(|error| error.to_string()).unwrap_or_default();
                assert!(shown.len() < 4 * (1 << 20), "an error is not much longer than what it is about");
            }
            let (mut vm, mut vbds, mut vifs) = guest(daemon.directory.path(), "named");
            vm.id = name.to_owned();
            assert!(
                error_of(&daemon, codec, &VmAdd { debug_info: dbg(), vm }.into()).is_some(),
                "{name:.20}"
            );
            // A device with such a name, of a VM that is there.
            let (vm, ..) = stored(&daemon, "named");
            vbds[0].id = DeviceId::new(vm.id.clone(), name);
            vifs[0].id = vbds[0].id.clone();
            let adds: [Call; 2] = [
                VbdAdd { debug_info: dbg(), vbd: vbds.remove(0) }.into(),
                VifAdd { debug_info: dbg(), vif: vifs.remove(0) }.into(),
            ];
            for add in adds {
                let error = error_of(&daemon, codec, &add);
                // Control characters do not survive XML, nor are dots forbidden within a name.
                let harmless = name == "." || name == ".." || (codec == Codec::Xml && name.contains('\u{0}'));
                assert!(error.is_some() || harmless, "{} of {name:.20}", add.name());
            }
        }
    }
    // Nothing was written anywhere but where records are.
    let mut places: Vec<_> = std::fs::read_dir(daemon.directory.path())
        .expect("is listed")
        .map(|entry| entry.expect("is listed").file_name().to_string_lossy().into_owned())
        .collect();
    places.sort();
    assert_eq!(places, ["db", "kernel", "sockets"]);
    serves(&mut daemon);
}

#[test]
fn a_vm_with_impossible_numbers_is_not_started() {
    type Change = fn(&mut Vm);
    let changes: [(&str, Change); 16] = [
        ("memory 0", |vm| vm.memory_static_max = 0),
        ("negative memory", |vm| vm.memory_static_max = -1),
        ("endless memory", |vm| vm.memory_static_max = i64::MAX),
        ("least memory", |vm| vm.memory_dynamic_min = i64::MIN),
        ("dynamic max above static", |vm| vm.memory_dynamic_max = vm.memory_static_max + (1 << 20)),
        ("dynamic min above max", |vm| vm.memory_dynamic_min = vm.memory_dynamic_max + (1 << 20)),
        ("more memory than the host has", |vm| {
            (vm.memory_static_max, vm.memory_dynamic_max, vm.memory_dynamic_min) =
                (1 << 40, 1 << 40, 1 << 40);
        }),
        ("no vcpus", |vm| vm.vcpus = 0),
        ("negative vcpus", |vm| vm.vcpus = -1),
        ("more vcpus than there can be", |vm| vm.vcpus = vm.vcpu_max + 1),
        ("no vcpu table", |vm| vm.vcpu_max = 0),
        ("a huge vcpu table", |vm| vm.vcpu_max = Int::MAX),
        ("weight 0", |vm| vm.scheduler_params.priority = Some((0, 0))),
        ("a huge weight", |vm| vm.scheduler_params.priority = Some((65_536, 0))),
        ("a negative cap", |vm| vm.scheduler_params.priority = Some((256, -1))),
        ("a huge cap", |vm| vm.scheduler_params.priority = Some((256, 65_536))),
    ];
    let mut daemon = Daemon::new();
    for codec in CODECS {
        let client = daemon.client(codec);
        let (good, ..) = stored(&daemon, "numbers");
        for (what, change) in changes {
            let mut vm = good.clone();
            change(&mut vm);
            let start = VmStart { debug_info: dbg(), id: vm.id.clone(), paused: false };
            let refused =
                answer(&client, &VmAdd { debug_info: dbg(), vm }).and_then(|_| outcome(&client, &start));
            let fine = matches!(
                refused,
                Err(Error::InternalError(_) | Error::InvalidVcpus(_) | Error::NotEnoughMemory(_))
            );
            assert!(fine, "{what}: {refused:?}");
        }
        answer(&client, &VmAdd { debug_info: dbg(), vm: good.clone() }).expect("is stored");
        outcome(&client, &VmStart { debug_info: dbg(), id: good.id.clone(), paused: false }).expect("starts");
        outcome(&client, &VmShutdown { debug_info: dbg(), id: good.id, delay: None }).expect("stops");
    }
    serves(&mut daemon);
}

#[test]
fn devices_with_impossible_numbers_are_not_plugged() {
    type Change = fn(&mut Vif);
    let changes: [(&str, Change); 8] = [
        ("a negative position", |vif| vif.position = -1),
        ("a huge position", |vif| vif.position = 1 << 20),
        ("a small MTU", |vif| vif.mtu = 1),
        ("a negative MTU", |vif| vif.mtu = -1),
        ("a huge MTU", |vif| vif.mtu = Int::MAX),
        ("no rate", |vif| vif.rate = Some((0, 50_000))),
        ("a negative rate", |vif| vif.rate = Some((-1, -1))),
        ("a group's address", |vif| vif.mac = "01:00:5e:00:00:01".to_owned()),
    ];
    let mut daemon = Daemon::new();
    let client = daemon.client(Codec::Json);
    let (vm, vbds, vifs) = stored(&daemon, "devices");
    let start = VmStart { debug_info: dbg(), id: vm.id.clone(), paused: false };
    for (what, change) in changes {
        let mut vif = vifs[0].clone();
        change(&mut vif);
        let refused =
            answer(&client, &VifAdd { debug_info: dbg(), vif }).and_then(|_| outcome(&client, &start));
        assert!(matches!(refused, Err(Error::InternalError(_))), "{what}: {refused:?}");
    }
    answer(&client, &VifAdd { debug_info: dbg(), vif: vifs[0].clone() }).expect("is stored");

    // A position that the type cannot hold at all: the field has no default, and "none" is no number.
    let vbd = VbdAdd { debug_info: dbg(), vbd: vbds[0].clone() };
    let text = String::from_utf8(Codec::Json.encode_request("VBD.add", vbd.to_params(), 1)).expect("UTF-8");
    for position in
        ["[\"Xen\",1048576,0]", "[\"Xen\",-1,0]", "[\"Ide\",20,0]", "[\"Scsi\",0,16]", "[\"Tape\",0,0]"]
    {
        let changed = text.replace("[\"Xen\",0,0]", position);
        assert_ne!(changed, text);
        let reply = exchange(&daemon, Codec::Json, changed.as_bytes()).expect("is answered");
        let added = Codec::Json.decode_reply(&reply).expect("a reply");
        let refused = added.is_err() || outcome(&client, &start).is_err();
        assert!(refused, "{position}");
    }
    let (vm_id, disk) = (vm.id, vbds[0].id.clone());
    // A device of another VM, by a name that this VM has.
    let (other, ..) = stored(&daemon, "another");
    for id in [DeviceId::new(other.id.clone(), "xvdz"), DeviceId::new(UNKNOWN, disk.device.clone())] {
        let plug = answer(&client, &VbdPlug { debug_info: dbg(), id });
        assert!(matches!(plug, Err(Error::DoesNotExist { .. })), "{plug:?}");
    }
    assert_ne!(vm_id, other.id);
    serves(&mut daemon);
}

#[test]
fn the_wrong_power_state_is_named_with_the_right_one() {
    use PowerState::{Halted, Paused, Running};
    let mut daemon = Daemon::new();
    let (vm, vbds, _) = stored(&daemon, "states");
    let client = daemon.client(Codec::Xml);
    let wrong = |found, expected| Err(Error::BadPowerState { found, expected });
    let id = || vm.id.clone();
    let disk = || vbds[0].id.clone();
    let minute = Some(60.0);
    assert_eq!(outcome(&client, &VmPause { debug_info: dbg(), id: id() }), wrong(Halted, Running));
    assert_eq!(outcome(&client, &VmUnpause { debug_info: dbg(), id: id() }), wrong(Halted, Paused));
    assert_eq!(
        outcome(&client, &VmReboot { debug_info: dbg(), id: id(), delay: None }),
        wrong(Halted, Running)
    );
    assert_eq!(
        outcome(&client, &VmShutdown { debug_info: dbg(), id: id(), delay: minute }),
        wrong(Halted, Running)
    );
    assert_eq!(outcome(&client, &VbdPlug { debug_info: dbg(), id: disk() }), wrong(Halted, Running));
    outcome(&client, &VmStart { debug_info: dbg(), id: id(), paused: true }).expect("starts");
    let start = VmStart { debug_info: dbg(), id: id(), paused: true };
    assert_eq!(outcome(&client, &start), wrong(Paused, Halted));
    assert_eq!(answer(&client, &VmRemove { debug_info: dbg(), id: id() }), wrong(Paused, Halted));
    outcome(&client, &VmUnpause { debug_info: dbg(), id: id() }).expect("runs");
    assert_eq!(answer(&client, &VmRemove { debug_info: dbg(), id: id() }), wrong(Running, Halted));
    let removed = answer(&client, &VbdRemove { debug_info: dbg(), id: disk() });
    assert_eq!(removed, Err(Error::DeviceIsConnected));
    serves(&mut daemon);
}

#[test]
fn bodies_that_are_too_deep_are_refused() {
    const DEEP: usize = 10_000;
    let mut daemon = Daemon::new();
    let arrays = |open: &str, close: &str| format!("{}{}", open.repeat(DEEP), close.repeat(DEEP));
    let json = format!("{{\"method\":\"query\",\"id\":1,\"params\":{}}}", arrays("[", "]"));
    let dicts = format!(
        "{{\"method\":\"query\",\"id\":1,\"params\":[{}1{}]}}",
        "{\"a\":".repeat(DEEP),
        "}".repeat(DEEP)
    );
    let value = arrays("<value><array><data>", "</data></array></value>");
    let xml = format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>query</methodName><params><param>{value}</param></params></methodCall>"
    );
    for (codec, body) in [(Codec::Json, json), (Codec::Json, dicts), (Codec::Xml, xml)] {
        let reply = exchange(&daemon, codec, body.as_bytes()).expect("is answered");
        let error = codec.decode_reply(&reply).expect("a reply").expect_err("is refused");
        assert!(matches!(Error::from_value(&error), Ok(Error::InternalError(_))), "{error:?}");
    }
    serves(&mut daemon);
}

/// Clients take no descriptor that an operation needs.
#[test]
fn more_clients_than_open_files_keep_no_operation_from_its_own() {
    const FILES: u32 = 256;
    let mut daemon = Daemon::with_files(FILES);
    let (vm, ..) = stored(&daemon, "meanwhile");
    let idle: Vec<_> = (0..2 * FILES).map(|_| connect(&daemon, Codec::Xml)).collect();
    let client = daemon.client(Codec::Json);
    outcome(&client, &VmStart { debug_info: dbg(), id: vm.id, paused: false }).expect("starts");
    serves(&mut daemon);
    drop(idle);
}

/// Clients that send a byte and wait, and a thousand that send nothing, hold up nobody.
#[test]
fn slow_and_idle_clients_hold_up_nobody() {
    const IDLE: usize = 1000;
    const SLOW: usize = 50;
    let wanted = u64::try_from(2 * (IDLE + SLOW)).expect("few");
    let (soft, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("is known");
    if soft < wanted {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, wanted.min(hard), hard)
            .expect("is allowed");
    }
    let mut daemon = Daemon::new();
    let idle: Vec<_> = (0..IDLE).map(|_| connect(&daemon, Codec::Xml)).collect();
    let mut slow: Vec<_> = (0..SLOW).map(|_| connect(&daemon, Codec::Json)).collect();
    for stream in &mut slow {
        stream.write_all(b"POST / HTTP/1.1\r\ncontent-le").expect("is taken");
    }
    let (vm, ..) = stored(&daemon, "meanwhile");
    let client = daemon.client(Codec::Json);
    outcome(&client, &VmStart { debug_info: dbg(), id: vm.id, paused: false }).expect("starts");
    serves(&mut daemon);
    for stream in &mut slow {
        stream.write_all(b"ngth: 0\r\n\r\n").expect("is taken");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("is answered");
        assert!(rest.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&rest));
    }
    drop(idle);
    serves(&mut daemon);
}
