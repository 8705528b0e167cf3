//! Every fuzz target on good inputs and on small changes to them, the same each time: what a fuzzer finds later starts
//! here as a case that passes.

use std::fs;
use std::path::PathBuf;

use fuzz::mutate::{Dice, mutate};
use fuzz::{MAX_INPUT, TARGETS, depth};

/// Changed inputs for each target. All targets together take a few seconds in a debug build.
const CASES: usize = 10_000;

/// Longest seed: longer ones only take longer.
const MAX_SEED: usize = 4096;

/// Most seeds of a target.
const MAX_SEEDS: usize = 400;

fn at(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Texts of a member of the contract's recorded vectors.
fn vectors(file: &str, member: &str) -> Vec<Vec<u8>> {
    let path = at(&format!("tests/suite/vectors/{file}.jsonl"));
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut texts = Vec::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let record = xenopsd::rpc::json::parse(line).expect("a vector is JSON");
        if let Some(xenopsd::api::value::Value::String(text)) = record.get(member) {
            texts.push(text.as_bytes().to_vec());
        }
    }
    texts
}

fn framed(bodies: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    use xenopsd::rpc::{Codec, http};
    let frame = |body: Vec<u8>| {
        [
            http::frame_request(Codec::Xml, "/var/lib/xcp/xenopsd", "fuzz", &body),
            http::frame_reply(Codec::Json, "fuzz", false, &body),
            http::frame_reply(Codec::Xml, "fuzz", true, &body),
            [http::frame_kept_request(Codec::Xml, "/", "fuzz", &body), body.clone()].concat(),
        ]
    };
    bodies.into_iter().flat_map(frame).collect()
}

fn consoles() -> Vec<Vec<u8>> {
    let web = "GET /console?uuid=0f HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
               Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
               Sec-WebSocket-Protocol: binary\r\n\r\nrest";
    [web, "CONNECT /console?ref=0f-1 HTTP/1.0\r\n\r\nRFB 003.008\n"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

fn directory(path: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(at(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("is listed").path()).collect();
    files.sort();
    files.iter().filter(|file| file.is_file()).map(|file| fs::read(file).expect("is read")).collect()
}

/// Each kind of request, and a stream of all of them.
fn xenstore() -> Vec<Vec<u8>> {
    let payloads: [&[u8]; 5] = [b"/local/domain/1\0", b"/a\0token\0", b"/a\0value", b"1\0r0\0", b"T\0"];
    let mut seeds = Vec::new();
    let mut stream = Vec::new();
    for kind in 0_u8..32 {
        for payload in payloads {
            seeds.push([&[kind], payload].concat());
            let words = [u32::from(kind), 0, 0, u32::try_from(payload.len()).expect("short")];
            stream.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            stream.extend_from_slice(payload);
        }
    }
    seeds.push(stream);
    seeds
}

/// Requests as a line and a body, replies as they are.
fn switch() -> Vec<Vec<u8>> {
    let part = |value: &xenopsd::api::value::Value, key: &str| match value.get(key) {
        Some(xenopsd::api::value::Value::String(text)) => text.as_bytes().to_vec(),
        _ => Vec::new(),
    };
    let seed = |frame: Vec<u8>| match xenopsd::rpc::json::parse(&frame) {
        Ok(value) if value.get("method").is_some() => {
            [&part(&value, "method")[..], b" ", &part(&value, "path"), b"\n", &part(&value, "body")].concat()
        }
        _ => frame,
    };
    vectors("message_switch", "json").into_iter().map(seed).collect()
}

/// What a boot worker is asked and answers.
fn boot_worker() -> Vec<Vec<u8>> {
    use guest_installer::boot::{Booted, Request};
    use guest_installer::worker::{Answer, Job, Listed, Wanted, record};
    let request = Request { entry: Some("1".to_owned()), offset: Some(512), ..Request::new() };
    let job = Job { wanted: Wanted::Deliver, request };
    let ramdisks = vec!["/initrd".to_owned()];
    let booted = Booted { kernel: "/vmlinuz".to_owned(), ramdisks: ramdisks.clone(), ..Booted::default() };
    let entry = Listed { title: "Linux".to_owned(), ramdisks, ..Listed::default() };
    let answer = |answer| record::encode_answer(&Ok(answer));
    let error = record::encode_answer(&Err(guest_installer::Error::NoBootConfig(Vec::new())));
    let asked = record::encode_job(&job).expect("a short request");
    vec![asked, answer(Answer::Booted(booted)), answer(Answer::Entries(vec![entry.clone(), entry])), error]
}

/// What guests print: plain, coloured, in boxes, on another screen, wide and combining, in strings that end and do not.
fn terminal() -> Vec<Vec<u8>> {
    let printed: [&str; 8] = [
        "Linux version 6.1\r\nlogin: \x08\x08 \tx\r\n",
        "\x1b[2J\x1b[1;1H\x1b[1;31;48;5;200;38;2;1;2;3mred\x1b[0m\x1b[K\x1b[7mx\x1b[27m",
        "\x1b[2;4r\x1b[4H\n\n\x1bM\x1b[2L\x1b[3M\x1b[5@\x1b[2P\x1b[9X\x1b[r\x1b[3b",
        "\x1b[?1049h\x1b(0lqqk\x1b(B\x1b7\x1b[?6h\x1b[H\x1b8\x1b[?1049l\x1b[?25l\x1b[?7l",
        "\u{4e2d}\u{6587} e\u{301} \u{1f600}\u{200d} \u{e000}\r\n",
        "\x1b]0;title\x07\x1b]P0ffffff\x1b]R\x1bPq#0\x1b\\\x1b_x\x1b\\\x1b]2;never ends",
        "\x1b[6n\x1b[5n\x1b[c\x1b[x\x1b[?2004h\x1b[4h\x1b[20hx\x1b[4l\x1bc",
        "\x1b[999999999;99999999H\x1b[99999A\x1b[;;;;;;;;;;;;;;;;;;;;m\x0e\x0f\x1b#8\x1b%G",
    ];
    printed.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn saved_screen(printed: &[u8]) -> Vec<u8> {
    let mut terminal = vncterm::term::Terminal::new(vncterm::term::Size { cols: 20, rows: 5 }, 30);
    terminal.feed(printed);
    terminal.save()
}

/// The page of a frame buffer as Linux writes it, with an update and a change of size in its ring.
fn frame_buffer() -> Vec<Vec<u8>> {
    let mut page = vec![0; 4096];
    let words: [(usize, i32); 15] = [
        (12, 2),
        (16, 100),
        (20, 70),
        (24, 400),
        (28, 28_000),
        (32, 32),
        (40, 7),
        (2048, 2),
        (2052, 10),
        (2056, -5),
        (2060, 200),
        (2064, 30),
        (2088, 3),
        (2092, 50),
        (2096, 20),
    ];
    for (at, word) in words.into_iter().chain([(2100, 200), (2104, 32), (2108, 4)]) {
        page[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    vec![page]
}

/// What viewers send: each version's handshake and each message.
fn viewer() -> Vec<Vec<u8>> {
    let format = [&[0, 0, 0, 0][..], &[16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0]].concat();
    let encodings = [2, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0x11];
    let update = [3, 0, 0, 0, 0, 0, 0, 160, 0, 80, 3, 1, 0, 8, 0, 16, 0, 8, 0, 16];
    let keys = [4, 1, 0, 0, 0, 0, 0xff, 0x0d, 4, 1, 0, 0, 0, 0, 0xff, 0xe3, 4, 1, 0, 0, 0, 0, 0, b'c'];
    let pointer = [5, 2, 0, 1, 0, 1, 5, 0, 0, 1, 0, 1, 5, 8, 0, 0, 0, 0];
    let cut = b"\x06\0\0\0\0\0\0\x02hi";
    let resize = [251, 0, 0, 200, 0, 100, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 200, 0, 100, 0, 0, 0, 0];
    let hello: [&[u8]; 5] = [
        // Two that answer a challenge.
        b"RFB 003.003\n0123456789abcdef\x01",
        b"RFB 003.008\n\x020123456789abcdef\x01",
        b"RFB 003.003\n\x01",
        b"RFB 003.007\n\x01\0",
        b"RFB 003.008\n\x01\x01",
    ];
    let messages = [&format[..], &encodings, &update, &keys, &pointer, cut, &resize];
    let one_each = messages.iter().map(|message| [hello[4], message].concat());
    let all = hello.iter().map(|hello| [&[*hello][..], &messages].concat().concat());
    one_each.chain(all).collect()
}

/// What a server says of a screen of 4x2 pixels, in each version, with a change of its size and other messages.
fn rfb() -> Vec<Vec<u8>> {
    let init = [&[0, 4, 0, 2][..], &[0; 16], b"\0\0\0\x01x"].concat();
    let whole = [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 4, 0, 2, 0, 0, 0, 0][..], &[0x55; 32]].concat();
    let smaller = [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 1][..], &(-223_i32).to_be_bytes()].concat();
    let part = [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0][..], &[0x55; 8]].concat();
    let other = b"\x02\x03\0\0\0\0\0\0\x02hi\x01\0\0\0\0\x01abcdef";
    let hello: [&[u8]; 4] = [
        b"RFB 003.003\n\0\0\0\x01",
        b"RFB 003.007\n\x02\x02\x01",
        b"RFB 003.008\n\x01\x01\0\0\0\0",
        b"RFB 003.008\n\0\0\0\0\x02no",
    ];
    let mut seeds = Vec::new();
    for hello in hello {
        seeds.push([hello, &init, &whole].concat());
        seeds.push([hello, &init, other, &part, &smaller, &part].concat());
    }
    seeds
}

/// The constructs that generated configurations have.
const GRUB: &str = "set default=\"${saved_entry}\"\nif [ x$a = xy ]; then\n load_env\nelse\n set root='hd0,msdos1'\nfi\n\
    function f { echo $1 }\nf x\nsearch --no-floppy --fs-uuid --set=root 0123\nsubmenu 'S' --id s {\n\
    menuentry \"E\" {\n linux /vmlinuz root=/dev/xvda1\n initrd /a /b\n}\n}\nfor i in a b; do source $i; done\n";

const LEGACY: &str = "default saved\ntimeout 3\ntitle One\nroot (hd0,0)\nkernel (hd0,0)/boot/vmlinuz ro one\ninitrd /boot/initrd\n\
    title Xen\nkernel /xen.gz\nmodule /vmlinuz root=/dev/xvda\nmodule /initrd\n";

const SYSLINUX: &str = "DEFAULT menu.c32\nPROMPT 0\nLABEL a\n MENU DEFAULT\n LINUX vmlinuz\n INITRD a,b\n APPEND root=1 initrd=c\n\
    LABEL x\n KERNEL mboot.c32\n APPEND xen.gz --- vmlinuz ro --- initrd\nMENU INCLUDE more.cfg\n";

/// An environment and four entries.
const BLS: &str = "# GRUB Environment Block\nkernelopts=root=/dev/xvda1 ro\nroot=x\n####\0\
    fedora-6.5.6-300.fc39\ntitle Fedora (6.5.6)\nversion 6.5.6-300.fc39.x86_64\nlinux /vmlinuz-6.5.6\ninitrd /a $tuned\noptions $kernelopts quiet\n\0\
    fedora-6.5.6~rc1\nversion 6.5.6~rc1\nlinux ${root}/vmlinuz\nsort-key fedora\n\0\
    fedora-6.10\nversion 6.10^git1\nsort-key fedora\nlinux /v\n\0rescue-*?\ntitle R\n";

/// An address, and on the second line where its server leads.
const ADDRESSES: [&str; 6] = [
    "http://u:p%40w@deb.example:8080/debian/?x#frag\n../x?y=http://z",
    "https://[::1]:8443/os\nhttps://other/x",
    "ftp://h/a%20b\n//other",
    "nfs:server:/srv/x\n/x",
    "nfs://server/srv/x\nhttp://u@h/",
    "http://proxy:3128\n?z",
];

const FETCH_WORKER: [&str; 11] = [
    "ready",
    "connect ::1 80 1",
    "connect deb.example 443 0",
    "progress 5 10",
    "progress 5 -",
    "done",
    "missing",
    "large 7",
    "broken the server ended",
    "cancelled",
    "job 5 http://h/ http://p:1/",
];

const FIXUPS: [&str; 2] = [
    "# a comment\n\n900150983cd24fb0d6963f7d28e17f72 cpio overlay.cpio some Linux\n",
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\tcpio el5.0.cpio.gz CentOS # 5.0\nx ext2 y z",
];

const INSTALLS: [&str; 4] = [
    "install-repository=http://h/os\ninstall-distro=rhlike\ninstall-vnc=1\ninstall-vncpasswd=x\ninstall-args=ks=y",
    "install-repository=cdrom\ninstall-distro=sleslike\ninstall-arch=x86_64\ninstall-round=2",
    "install-repository=nfs:h:/x\ninstall-distro=pygrub\ninstall-kernel=a/b\ninstall-ramdisk=c\n\
     install-kernel-checksum=md5:900150983cd24fb0d6963f7d28e17f72\ninstall-methods=cdrom,nfs",
    "-q --entry=2 --args=quiet --offset=512 --kernel /vmlinuz --ramdisk /initrd",
];

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// What servers of HTTP answer.
const HTTP_ANSWERS: [&str; 3] = [
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\na\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n",
    "HTTP/1.1 206 Partial\nContent-Range: bytes 5-9/10\nLast-Modified: then\nLocation: //h/x\n\nworld",
];

/// What servers of FTP answer.
const FTP: [&str; 3] = [
    "220-hello\r\n220-there\r\n220 end\r\n331 password\r\n213 12345\r\n",
    "229 Entering Extended Passive Mode (|||6446|)\r\n",
    "227 Entering Passive Mode (10,0,0,1,25,46)\r\n550 none\r\n",
];

/// What a switch's database server says: an answer, a question whether one is there, and an update.
const OVSDB: [&str; 2] = [
    r#"{"id":1,"error":null,"result":[{"rows":[{"_uuid":["uuid","a-b"],"ports":["set",[]]}]}]}{"id":2}"#,
    r#"{"method":"echo","params":[],"id":"echo"} {"method":"update","params":[null,{"Open_vSwitch":{"u":{"new":{"cur_cfg":4}}}}],"id":null}"#,
];

/// Answers of a storage program.
const STORAGE: [&str; 4] = [
    r#"{"implementations": [["BlockDevice", {"path": "/dev/x"}], ["File", {"path": "/y"}]]}"#,
    r#"{"implementations": [["XenDisk", {"params": "/dev/z", "extra": {"k": "v"}, "backend_type": "vbd"}]]}"#,
    r#"{"code": "VDI_IN_USE", "params": ["a", "b"]}"#,
    "Traceback",
];

/// An answer of NFS: accepted, attributes absent, then present, and a handle.
/// What a device model says.
const QMP: [&str; 2] = [
    "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": [\"oob\"]}}\r\n\
     {\"return\": {}, \"id\": 1}\r\n{\"return\": {\"status\": \"prelaunch\", \"running\": false}, \"id\": 2}\r\n\
     {\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 3}}\r\n",
    "{\"QMP\": {}}\n{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}, \"id\": 1}\n",
];

fn nfs() -> Vec<u8> {
    let mut answer: Vec<u8> = [1_u32, 1, 0, 0, 0, 0].iter().flat_map(|n| n.to_be_bytes()).collect();
    answer.extend([0; 12]);
    answer.extend([0, 0, 0, 4, 1, 2, 3, 4, 0, 0, 0, 1]);
    answer.extend([7; 100]);
    answer
}

/// What xenstored answers of a guest's tree, in the order it is asked: lists of names, values, and errors.
fn guest_trees() -> Vec<Vec<u8>> {
    let answers = |all: &[(u8, &str)]| -> Vec<u8> {
        let one = |(kind, text): &(u8, &str)| {
            let length = u8::try_from(text.len()).expect("a short answer");
            [&[*kind, length], text.as_bytes()].concat()
        };
        all.iter().flat_map(one).collect()
    };
    vec![
        answers(&[
            (3, "os\0vif\0PVAddons\0"),
            (3, "os_name\0updated\0"),
            (3, "1"),
            (3, "hotfixes\0name\0"),
            (3, ""),
            (3, "0\0"),
            (3, ""),
            (3, "MajorVersion\0"),
            (3, "Debian"),
            (3, "1"),
            (3, "6"),
        ]),
        answers(&[(1, ""), (3, "a\0b\0"), (3, "5\0a\0b\0"), (3, "5\0\0"), (3, "x"), (0, ""), (2, "")]),
        answers(&[(3, &"n\0".repeat(100)), (0, ""), (3, "../x\0/y\0z z\0\0"), (3, "\u{1b}[2J"), (1, "")]),
    ]
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let all = match target {
        "http" => [framed(vectors("call", "xml")), consoles()].concat(),
        "json" => [vectors("type", "json"), vectors("odd", "json")].concat(),
        "xml" => [vectors("type", "xml"), vectors("odd", "xml")].concat(),
        "json_rpc" => {
            [vectors("call", "json"), vectors("call", "json_v2"), vectors("response_ok", "json")].concat()
        }
        "xml_rpc" => [vectors("call", "xml"), vectors("response_ok", "xml")].concat(),
        "switch" => switch(),
        "state" => [vectors("sample", "json"), vectors("type", "json")].concat(),
        "xl_cfg" => directory("xenopsd/src/xlcfg/tests"),
        "xenstore_wire" => xenstore(),
        "kernel" => directory("tests/fuzz/seeds/kernel"),
        "boot_worker" => boot_worker(),
        "rfb" => rfb(),
        "terminal" => terminal(),
        "saved_screen" => terminal().iter().map(|printed| saved_screen(printed)).collect(),
        "viewer" => viewer(),
        "frame_buffer" => frame_buffer(),
        "grub" => vec![GRUB.as_bytes().to_vec()],
        "boot_config" => {
            texts(&[GRUB, LEGACY, SYSLINUX, "# GRUB Environment Block\nsaved_entry=a>b\\\\c\n####"])
        }
        "boot_entries" => texts(&[BLS]),
        "guest_disk" => directory("tests/fuzz/seeds/guest_disk"),
        "address" => texts(&ADDRESSES),
        "fetch_worker" => texts(&FETCH_WORKER),
        "fixups" => texts(&FIXUPS),
        "install" => texts(&INSTALLS),
        "http_answer" => HTTP_ANSWERS.map(|text| text.as_bytes().to_vec()).to_vec(),
        "ftp" => FTP.map(|text| text.as_bytes().to_vec()).to_vec(),
        "nfs" => vec![nfs()],
        "ovsdb" => OVSDB.map(|text| text.as_bytes().to_vec()).to_vec(),
        "disk_image" => disk_images(),
        "nbd" => vec![nbd()],
        "guest_tree" => guest_trees(),
        "storage_answer" => STORAGE.map(|text| text.as_bytes().to_vec()).to_vec(),
        "qmp" => QMP.map(|text| text.as_bytes().to_vec()).to_vec(),
        other => panic!("{other} has no seeds"),
    };
    // The smallest disks of some file systems are longer.
    let longest = if target == "guest_disk" { MAX_INPUT } else { MAX_SEED };
    let mut fine: Vec<_> = all.into_iter().filter(|seed| seed.len() <= longest).collect();
    // Evenly from all of them.
    let step = fine.len().div_ceil(MAX_SEEDS).max(1);
    fine = fine.into_iter().step_by(step).collect();
    assert!(!fine.is_empty(), "{target} has no seeds");
    fine
}

#[test]
fn no_target_fails_on_its_seeds_or_on_changes_to_them() {
    std::thread::scope(|scope| {
        for (name, target) in TARGETS {
            scope.spawn(move || {
                let seeds = seeds(name);
                for seed in &seeds {
                    target(seed);
                }
                let mut dice = Dice::new(1);
                for case in 0..CASES {
                    let other = &seeds[dice.below(seeds.len())];
                    let input = mutate(&mut dice, &seeds[case % seeds.len()], other, MAX_INPUT);
                    let tried = std::panic::catch_unwind(|| target(&input));
                    assert!(tried.is_ok(), "{name}, case {case}: {:?}", String::from_utf8_lossy(&input));
                }
            });
        }
    });
}

/// Changes to a disk that is none would find nothing.
#[test]
fn the_disks_that_are_changed_boot() {
    let mut boot = 0;
    for entry in fs::read_dir(at("tests/fuzz/seeds/guest_disk")).expect("a directory") {
        let path = entry.expect("is listed").path();
        let boots = guest_installer::boot::fuzz_disk(&fs::read(&path).expect("is read"));
        // Of this there is only the beginning, with the volume group's description.
        assert_eq!(boots, !path.ends_with("lvm"), "{}", path.display());
        boot += usize::from(boots);
    }
    assert_eq!(boot, 7);
}

#[test]
fn every_target_has_its_fuzzer() {
    let mut files: Vec<_> = fs::read_dir(at("tests/fuzz/libfuzzer/fuzz_targets"))
        .expect("a directory")
        .map(|entry| {
            entry.expect("is listed").path().file_stem().expect("a name").to_string_lossy().into_owned()
        })
        .collect();
    files.sort();
    let mut names: Vec<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.sort();
    assert_eq!(files, names);
}

/// Nesting is refused at a bound, long before a stack would overflow.
#[test]
fn nesting_is_bounded() {
    const DEEP: usize = 10_000;
    let arrays = [vec![b'['; DEEP], vec![b']'; DEEP]].concat();
    assert!(xenopsd::rpc::json::parse(&arrays).is_err());
    let open = "<value><array><data>".repeat(DEEP);
    let xml = format!("{open}{}", "</data></array></value>".repeat(DEEP));
    assert!(xenopsd::rpc::xml::parse_value(xml.as_bytes()).is_err());
    let shallow = xenopsd::rpc::json::parse(b"[[[1]]]").expect("three levels");
    assert_eq!(depth(&shallow), 3);
}

#[test]
fn changes_are_the_same_each_time() {
    let once = || {
        let mut dice = Dice::new(7);
        (0..100).map(|_| mutate(&mut dice, b"<value>1</value>", b"{\"a\":1}", 64)).collect::<Vec<_>>()
    };
    assert_eq!(once(), once());
    assert!(once().iter().all(|input| input.len() <= 64));
}

/// Headers of a qcow2 image, of a dynamic VHD, and the footer of a fixed one.
fn disk_images() -> Vec<Vec<u8>> {
    let mut qcow2 = vec![0; 512];
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    qcow2[23] = 16;
    qcow2[29] = 0x80;
    let vhd = |kind| {
        let mut footer = vec![0; 512];
        footer[..8].copy_from_slice(b"conectix");
        footer[53] = 0x80;
        footer[63] = kind;
        footer
    };
    vec![qcow2, [vhd(3), vec![0; 512]].concat(), [vec![0; 512], vhd(2)].concat()]
}

/// What QEMU says.
fn nbd() -> Vec<u8> {
    let mut said = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    for (kind, data) in [(3u32, &b"\0\0\0\0\0\0\0\x80\0\0\x01\x6d"[..]), (1, b"")] {
        said.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        said.extend(7u32.to_be_bytes());
        said.extend(kind.to_be_bytes());
        said.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        said.extend(data);
    }
    said
}
