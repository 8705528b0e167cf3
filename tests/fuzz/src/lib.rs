//! What must hold for any input of each parser: one function each, for the smoke run in the test suite and for libFuzzer.
//!
//! ```text
//!   libfuzzer/fuzz_targets/NAME.rs ──► TARGETS[NAME](bytes) ◄── tests/smoke.rs (seeds, mutated, always the same)
//! ```
//!
//! A function returns when what must hold does, and panics when it does not. To add a parser, add a function here, its
//! name to [`TARGETS`], seeds to the smoke run, and a file of two lines to `libfuzzer/`.

mod frame_buffer;
mod guest_tree;
pub mod mutate;
mod screen;

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use xenopsd::api::value::Value;
use xenopsd::api::{Call, FromValue, ToValue, Vbd, Vif, Vm};
use xenopsd::dm::qmp::{Qmp, QmpError, RunState};
use xenopsd::edge::disk_image::{self, FOOTER, HEAD, ImageFormat};
use xenopsd::edge::linux::nbd::negotiate;
use xenopsd::edge::linux::ovsdb;
use xenopsd::edge::storage::{self, StorageError, Verb};
use xenopsd::rfb;
use xenopsd::rpc::http::{self, Asked, Progress};
use xenopsd::rpc::switch::protocol::{
    Command, Transferred, decode_names, decode_sent, encode_names, encode_sent,
};
use xenopsd::rpc::{Codec, json, xml};
use xenopsd::state::{self, VmExtra};
use xenopsd::xlcfg;
use xenstore::Request;
use xenstore::wire::{Decoder, Kind};

pub use frame_buffer::frame_buffer;
pub use guest_tree::guest_tree;
pub use screen::{saved_screen, terminal, viewer};

/// What is tried on one input.
pub type Target = fn(&[u8]);

/// Every function by the name of its fuzz target.
pub const TARGETS: [(&str, Target); 33] = [
    ("http", http),
    ("json", json),
    ("xml", xml),
    ("json_rpc", json_rpc),
    ("xml_rpc", xml_rpc),
    ("switch", switch),
    ("state", state),
    ("xl_cfg", xl_cfg),
    ("xenstore_wire", xenstore_wire),
    ("kernel", kernel),
    ("boot_worker", boot_worker),
    ("grub", grub),
    ("boot_entries", boot_entries),
    ("boot_config", boot_config),
    ("guest_disk", guest_disk),
    ("address", address),
    ("fetch_worker", fetch_worker),
    ("fixups", fixups),
    ("install", install),
    ("rfb", rfb),
    ("terminal", terminal),
    ("saved_screen", saved_screen),
    ("viewer", viewer),
    ("frame_buffer", frame_buffer),
    ("http_answer", http_answer),
    ("ftp", ftp),
    ("nfs", nfs),
    ("qmp", qmp),
    ("storage_answer", storage_answer),
    ("ovsdb", ovsdb),
    ("disk_image", disk_image),
    ("nbd", nbd),
    ("guest_tree", guest_tree),
];

/// Most bytes of a target's input: more finds nothing that less does not, and takes longer.
pub const MAX_INPUT: usize = 64 * 1024;

/// A head is found at the same place however the bytes arrive, and never beyond them; no more is kept than the request is
/// long, and of a connection that stays what came behind it.
pub fn http(bytes: &[u8]) {
    match http::request_head(bytes) {
        Ok(Some(Asked::Call(head))) => {
            assert!(
                head.length <= bytes.len() && head.length <= http::HEAD_MAX && head.body <= http::BODY_MAX
            );
        }
        Ok(Some(Asked::Console(console))) => assert!(console.length <= bytes.len() && !console.vm.is_empty()),
        Ok(None) | Err(_) => {}
    }
    let mut at_once = http::Request::default();
    let whole = at_once.feed(bytes);
    let mut piecemeal = http::Request::default();
    let mut last = Ok(Progress::Head);
    for byte in bytes {
        last = piecemeal.feed(std::slice::from_ref(byte));
        if !matches!(last, Ok(Progress::Head | Progress::Body(_))) {
            break;
        }
    }
    // A refusal may come earlier when the bytes come one by one, not otherwise.
    if whole == Ok(Progress::Complete) {
        assert_eq!(last, whole);
        assert_eq!(at_once.body(), piecemeal.body());
        assert_eq!(at_once.keeps(), piecemeal.keeps());
        let rest = at_once.take_rest();
        assert!(if at_once.keeps() { bytes.ends_with(&rest) } else { rest.is_empty() });
        assert!(piecemeal.take_rest().is_empty());
    }
    let mut reply = http::Reply::default();
    if reply.feed(bytes) == Ok(true) {
        let parts = reply.into_parts();
        assert!(parts.is_ok_and(|(body, behind)| body.len() < bytes.len() && bytes.ends_with(&behind)));
    }
}

/// What is printed is read back as what was printed.
pub fn json(bytes: &[u8]) {
    if let Ok(value) = json::parse(bytes) {
        let text = json::print(&value);
        let again = json::parse(&text).expect("what is printed can be read");
        assert_eq!(json::print(&again), text);
    }
}

/// As [`json`]; XML cannot carry all that JSON can, so that one reading may change a value, and a second not.
pub fn xml(bytes: &[u8]) {
    if let Ok(value) = xml::parse_value(bytes) {
        let text = xml::print_value(&value);
        let again = xml::parse_value(&text).expect("what is printed can be read");
        assert_eq!(xml::print_value(&again), text);
    }
}

/// A call that is understood means the same when it is sent on.
fn call(codec: Codec, bytes: &[u8]) {
    if let Ok((method, params)) = codec.decode_request(bytes)
        && let Ok(call) = Call::decode(&method.to_string(), &params)
    {
        let text = codec.encode_request(call.name(), call.to_params(), 0);
        let again = codec.decode_call(&text).expect("what is sent is understood");
        assert_eq!(again.name(), call.name());
        assert_eq!(codec.encode_request(again.name(), again.to_params(), 0), text);
    }
    if let Ok(outcome) = codec.decode_reply(bytes) {
        let text = codec.encode_reply(outcome);
        assert!(codec.decode_reply(&text).is_ok());
    }
}

/// Requests and replies in JSON.
pub fn json_rpc(bytes: &[u8]) {
    call(Codec::Json, bytes);
}

/// Requests and replies in XML.
pub fn xml_rpc(bytes: &[u8]) {
    call(Codec::Xml, bytes);
}

/// Frames of the message switch: one that is understood is sent as one that means the same. A command is its method and
/// path on a line, then its body.
pub fn switch(bytes: &[u8]) {
    let line = bytes.iter().position(|byte| *byte == b'\n');
    if let Some((line, body)) = line.map(|end| (&bytes[..end], &bytes[end + 1..]))
        && let Some((method, path)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' '))
        && let Ok(command) = Command::decode(method, path, body)
    {
        let frame = command.encode();
        let again = Command::decode(frame.method, &frame.path, frame.body.as_deref().unwrap_or_default());
        let again = again.expect("what is sent is understood").encode();
        assert_eq!((again.method, again.path, again.body), (frame.method, frame.path, frame.body));
    }
    if let Ok(transferred) = Transferred::decode(bytes) {
        let text = transferred.encode();
        assert_eq!(Transferred::decode(&text).expect("what is sent is understood").encode(), text);
    }
    if let Ok(id) = decode_sent(bytes) {
        assert_eq!(decode_sent(&encode_sent(id.as_ref())), Ok(id));
    }
    if let Ok(names) = decode_names(bytes) {
        assert_eq!(decode_names(&encode_names(&names)), Ok(names));
    }
}

/// A record that can be read is written so that it is read as the same, with what is not known of it kept.
fn record<T: FromValue + ToValue>(bytes: &[u8]) {
    let name = Path::new("fuzzed");
    if let Ok(record) = state::decode::<T>(name, bytes) {
        let text = state::encode(&record, Some(bytes));
        let again = state::decode::<T>(name, &text).expect("what is written can be read");
        assert_eq!(json::print(&again.to_value()), json::print(&record.to_value()));
        assert_eq!(state::encode(&again, Some(&text)), text, "written again, nothing changes");
    }
}

/// Files of the state directory.
pub fn state(bytes: &[u8]) {
    record::<Vm>(bytes);
    record::<Vbd>(bytes);
    record::<Vif>(bytes);
    record::<VmExtra>(bytes);
}

/// Whatever is in a configuration file, the answer is a configuration or errors with lines that exist.
pub fn xl_cfg(bytes: &[u8]) {
    let _ = xlcfg::parse(bytes);
}

/// Frames are cut alike however the bytes arrive; a request that is understood is sent as it came.
pub fn xenstore_wire(bytes: &[u8]) {
    let frames = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for mut piece in pieces {
            loop {
                match decoder.next(&mut piece) {
                    Ok(Some(frame)) => frames.push(format!("{frame:?}")),
                    Ok(None) => break,
                    Err(error) => {
                        frames.push(error.to_string());
                        return frames;
                    }
                }
            }
        }
        frames
    };
    assert_eq!(frames(&mut std::iter::once(bytes)), frames(&mut bytes.chunks(1)));
    if let Some((kind, payload)) = bytes.split_first()
        && let Some(kind) = Kind::from_wire(u32::from(*kind))
        && let Ok(request) = Request::parse(kind, payload)
    {
        let again = Request::parse(kind, &request.payload()).expect("what is sent is understood");
        assert_eq!(again.payload(), request.payload());
    }
}

/// A kernel image is unpacked to at most the limit, whatever it is packed with.
pub fn kernel(bytes: &[u8]) {
    let _ = guest_installer::kernel::fuzz(bytes);
}

/// What a boot worker is asked, or answers, is understood as what was said.
pub fn boot_worker(bytes: &[u8]) {
    guest_installer::worker::record::fuzz(bytes);
}

/// A boot configuration ends, within its limits.
pub fn grub(bytes: &[u8]) {
    let _ = guest_installer::config::grub2::fuzz(&String::from_utf8_lossy(bytes));
}

/// Entries of the boot loader specification, as GRUB and systemd-boot read them.
pub fn boot_entries(bytes: &[u8]) {
    guest_installer::config::bls::fuzz(&String::from_utf8_lossy(bytes));
}

/// What a configuration of any boot loader, read without its disk, would start is within its limits.
pub fn boot_config(bytes: &[u8]) {
    guest_installer::boot::fuzz_config(&String::from_utf8_lossy(bytes));
}

/// Whatever is on a guest's disk, in partition tables, volumes, file systems and configurations, ends within its limits.
pub fn guest_disk(bytes: &[u8]) {
    let _ = guest_installer::boot::fuzz_disk(bytes);
}

/// Addresses of repositories and where servers lead from them.
pub fn address(bytes: &[u8]) {
    guest_installer::fetch::url::fuzz(&String::from_utf8_lossy(bytes));
}

/// What a download's worker that was taken over says to the daemon.
pub fn fetch_worker(bytes: &[u8]) {
    guest_installer::fetch::message::fuzz(bytes);
}

/// Tables of ramdisks that are added to.
pub fn fixups(bytes: &[u8]) {
    guest_installer::eliloader::fixup::fuzz(&String::from_utf8_lossy(bytes));
}

/// A record's keys of an installation, and a boot loader's arguments.
pub fn install(bytes: &[u8]) {
    guest_installer::eliloader::keys::fuzz(&String::from_utf8_lossy(bytes));
}

/// A VNC server's word ends in an error or in a picture of which every pixel was sent.
pub fn rfb(bytes: &[u8]) {
    struct Server<'a>(&'a [u8]);
    impl Read for Server<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Server<'_> {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    if let Ok(picture) = rfb::capture(&mut Server(bytes), rfb::LIMIT) {
        let pixels = usize::from(picture.width()) * usize::from(picture.height());
        assert!(pixels > 0 && pixels * 4 < bytes.len());
        assert_eq!(picture.rgb().len(), pixels * 3);
    }
}

/// An HTTP server's answer is the same however it arrives, and no longer than what came.
pub fn http_answer(bytes: &[u8]) {
    guest_installer::fetch::http::fuzz(bytes);
}

/// An FTP server's replies are taken apart within their limits.
pub fn ftp(bytes: &[u8]) {
    guest_installer::fetch::ftp::fuzz(bytes);
}

/// An NFS server's answer is taken apart within it.
pub fn nfs(bytes: &[u8]) {
    guest_installer::fetch::nfs::fuzz(bytes);
}

/// Whatever a device model says, its monitor's client comes to an end with it, and shows nothing that a terminal obeys.
pub fn qmp(bytes: &[u8]) {
    /// Never waited for: the other end is closed for writing.
    const LIMIT: Duration = Duration::from_secs(60);
    let plain = |text: &str| assert!(!text.chars().any(char::is_control), "{text:?}");
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.write_all(bytes).expect("less than a socket holds");
    theirs.shutdown(Shutdown::Write).expect("is connected");
    let started = Qmp::start(ours, LIMIT).and_then(|mut qmp| {
        let status = qmp.execute("query-status", None, LIMIT)?;
        RunState::of(&status);
        loop {
            for event in qmp.events()? {
                plain(&event.name);
            }
        }
    });
    let end: Result<Infallible, QmpError> = started;
    plain(&end.expect_err("it ends").to_string());
}

/// What a storage program answers is a sound path or a refusal, with a text of bounded length.
pub fn storage_answer(bytes: &[u8]) {
    match storage::parse_attached(bytes) {
        Ok(found) => {
            let path = found.path.to_str().expect("it was text");
            assert!(path.starts_with('/') && !path.contains('\0'));
        }
        Err(refused) => assert!(refused.to_string().len() < MAX_INPUT),
    }
    let complaint = String::from_utf8_lossy(bytes);
    let StorageError::Refused { code, params } = storage::parse_refusal(Verb::Attach, 1, bytes, &complaint)
    else {
        panic!("nobody cancelled")
    };
    assert!(params.iter().all(|param| param.len() < 8192) && params.len() <= 8 && code.len() < 8192);
}

/// Messages of a switch's database server are the same however the stream is cut, up to what is refused.
pub fn ovsdb(bytes: &[u8]) {
    let cut = |size: usize| {
        let (mut framer, mut found) = (ovsdb::Framer::default(), Vec::new());
        for piece in bytes.chunks(size) {
            framer.feed(piece);
            loop {
                match framer.message() {
                    Ok(Some(message)) => found.push(message),
                    Ok(None) => break,
                    Err(_) => return (found, false),
                }
            }
        }
        (found, true)
    };
    assert_eq!(cut(1), cut(bytes.len().max(1)));
}

/// How deep a value is nested.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Dict(members) => 1 + members.iter().map(|(_, item)| depth(item)).max().unwrap_or(0),
        _ => 0,
    }
}

/// A header that is taken names no other file, and its disk has a size that Linux takes.
pub fn disk_image(bytes: &[u8]) {
    let length = u64::try_from(bytes.len()).expect("it is in memory");
    let head = &bytes[..bytes.len().min(HEAD)];
    let footer = &bytes[bytes.len().saturating_sub(FOOTER)..];
    for format in ImageFormat::ALL {
        let Ok(size) = disk_image::check(format, head, footer, length) else { continue };
        assert!(size > 0 && i64::try_from(size).is_ok());
        match format {
            ImageFormat::Raw => assert_eq!(size, length),
            ImageFormat::Qcow2 => assert!(head.starts_with(b"QFI\xfb") && head[8..16] == [0; 8]),
            ImageFormat::Vhd => assert!(head.starts_with(b"conectix") || footer.starts_with(b"conectix")),
        }
    }
}

/// What a disk server says is answered with one request of a known length, and ends in an export or a short refusal.
pub fn nbd(bytes: &[u8]) {
    let mut server = Said { says: bytes, heard: 0 };
    match negotiate::negotiate(&mut server) {
        Ok(_) => assert_eq!(server.heard, 26),
        Err(refused) => assert!(refused.to_string().len() < 1024 && server.heard <= 26),
    }
}

/// A peer that says what it says, whatever it hears.
struct Said<'a> {
    says: &'a [u8],
    heard: usize,
}

impl Read for Said<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.says.read(into)
    }
}

impl Write for Said<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.heard += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
