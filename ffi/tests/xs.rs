//! The libxenstore binding against a scripted store on a socket: what each call sends, and that what comes back is
//! copied out whole.
//!
//! The only test of its file: the socket's path is given to the library in the environment.
#![cfg(feature = "libxenstore")]

use std::ffi::{CStr, CString};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use ffi::evtchn::Port;
use ffi::xs::{XsEvent, XsHandle, XsPermission, XsTransaction};
use ffi::{DomId, Error};

/// Message types of `xen/io/xs_wire.h`.
const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const GET_PERMS: u32 = 3;
const WATCH: u32 = 4;
const UNWATCH: u32 = 5;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const INTRODUCE: u32 = 8;
const RELEASE: u32 = 9;
const GET_DOMAIN_PATH: u32 = 10;
const WRITE: u32 = 11;
const MKDIR: u32 = 12;
const RM: u32 = 13;
const SET_PERMS: u32 = 14;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;
const IS_DOMAIN_INTRODUCED: u32 = 17;
const RESUME: u32 = 18;

const NONE: XsTransaction = XsTransaction::NONE;

struct Request {
    kind: u32,
    transaction: u32,
    payload: Vec<u8>,
}

fn receive(stream: &mut UnixStream) -> Option<Request> {
    let mut header = [0u8; 16];
    stream.read_exact(&mut header).ok()?;
    let [kind, _, transaction, length] =
        [0, 4, 8, 12].map(|at| u32::from_le_bytes(*header.get(at..).unwrap().first_chunk().unwrap()));
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).ok()?;
    Some(Request { kind, transaction, payload })
}

fn send(stream: &mut UnixStream, kind: u32, transaction: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap();
    for word in [kind, 0, transaction, length] {
        stream.write_all(&word.to_le_bytes()).unwrap();
    }
    stream.write_all(payload).unwrap();
}

/// The store: answers that depend on the request alone.
fn answer(request: &Request) -> (u32, Vec<u8>) {
    let ok = (request.kind, b"OK\0".to_vec());
    let error = |name: &str| (ERROR, format!("{name}\0").into_bytes());
    match (request.kind, request.payload.as_slice()) {
        (READ, b"/binary\0") => (READ, b"a\0b\xff".to_vec()),
        (READ, b"/empty\0") => (READ, Vec::new()),
        (READ, b"/in-transaction\0") if request.transaction == 42 => (READ, b"inside".to_vec()),
        (READ, _) => error("ENOENT"),
        (DIRECTORY, b"/dir\0") => (DIRECTORY, b"one\0two\0\xc3\xa9\0".to_vec()),
        (DIRECTORY, b"/leaf\0") => (DIRECTORY, Vec::new()),
        (GET_PERMS, b"/dir\0") => (GET_PERMS, b"n0\0r7\0b8\0".to_vec()),
        (SET_PERMS, b"/dir\0n7\0w0\0")
        | (WRITE, b"/a\0v\0w")
        | (MKDIR | RM, b"/a\0")
        | (WATCH | UNWATCH, b"/w\0token\0")
        | (INTRODUCE, b"7\x00987654321\x003\0")
        | (RELEASE | RESUME, b"7\0") => ok,
        (TRANSACTION_START, _) => (TRANSACTION_START, b"42\0".to_vec()),
        (TRANSACTION_END, b"T\0") if request.transaction == 42 => error("EAGAIN"),
        (TRANSACTION_END, b"F\0") if request.transaction == 42 => ok,
        (GET_DOMAIN_PATH, b"7\0") => (GET_DOMAIN_PATH, b"/local/domain/7\0".to_vec()),
        (IS_DOMAIN_INTRODUCED, b"7\0") => (IS_DOMAIN_INTRODUCED, b"T\0".to_vec()),
        (IS_DOMAIN_INTRODUCED, b"8\0") => (IS_DOMAIN_INTRODUCED, b"F\0".to_vec()),
        (IS_DOMAIN_INTRODUCED, _) => error("EACCES"),
        _ => error("EINVAL"),
    }
}

fn serve(mut stream: UnixStream) {
    while let Some(request) = receive(&mut stream) {
        let (kind, payload) = answer(&request);
        send(&mut stream, kind, request.transaction, &payload);
        if request.kind == WATCH && kind == WATCH {
            send(&mut stream, WATCH_EVENT, 0, b"/w\0token\0");
        }
    }
}

fn wait_readable(fd: std::os::fd::BorrowedFd<'_>) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, living through the call.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1, "no event within ten seconds");
}

#[test]
fn every_call_reaches_the_store_and_back() {
    let folder = std::env::temp_dir().join(format!("ffi-xs-test-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let socket = folder.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    // SAFETY: the only test of this process, before any thread of its own.
    unsafe { std::env::set_var("XENSTORED_PATH", &socket) };
    let server = thread::spawn(move || serve(listener.accept().unwrap().0));

    let xs = XsHandle::open().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    nodes(&xs);
    permissions(&xs);
    transactions(&xs);
    domains(&xs);
    watches(&xs);
    drop(xs);
    server.join().unwrap();
}

fn nodes(xs: &XsHandle) {
    assert_eq!(xs.read(NONE, c"/binary").unwrap(), b"a\0b\xff");
    assert_eq!(xs.read(NONE, c"/empty").unwrap(), b"");
    let missing = xs.read(NONE, c"/missing").unwrap_err();
    assert_eq!(missing.to_string(), "xs_read failed: No such file or directory (2)");
    assert_eq!(xs.directory(NONE, c"/dir").unwrap(), [&b"one"[..], b"two", "é".as_bytes()]);
    assert!(xs.directory(NONE, c"/leaf").unwrap().is_empty());
    xs.write(NONE, c"/a", b"v\0w").unwrap();
    xs.mkdir(NONE, c"/a").unwrap();
    xs.rm(NONE, c"/a").unwrap();
    let big = xs.write(NONE, c"/a", &[0; 5000]).unwrap_err();
    assert!(big.is_errno(libc::E2BIG), "{big}");
    let long = CString::new(vec![b'x'; 5000]).unwrap();
    assert!(xs.rm(NONE, &long).unwrap_err().is_errno(libc::E2BIG));
}

fn permissions(xs: &XsHandle) {
    let entry = |domid, read, write| XsPermission { domid, read, write };
    let list = xs.get_permissions(NONE, c"/dir").unwrap();
    assert_eq!(list, [entry(0, false, false), entry(7, true, false), entry(8, true, true)]);
    xs.set_permissions(NONE, c"/dir", &[entry(7, false, false), entry(0, false, true)]).unwrap();
    assert!(matches!(xs.set_permissions(NONE, c"/dir", &[]), Err(Error::InvalidArgument { .. })));
    let endless = vec![entry(0, true, true); 1 << 20];
    assert!(matches!(xs.set_permissions(NONE, c"/dir", &endless), Err(Error::InvalidArgument { .. })));
}

fn transactions(xs: &XsHandle) {
    let transaction = xs.transaction_start().unwrap();
    assert_eq!(xs.read(transaction, c"/in-transaction").unwrap(), b"inside");
    assert!(xs.read(NONE, c"/in-transaction").is_err());
    assert!(xs.transaction_end(transaction, true).unwrap_err().is_errno(libc::EAGAIN));
    xs.transaction_end(transaction, false).unwrap();
}

fn domains(xs: &XsHandle) {
    let [seven, eight, nine] = [7, 8, 9].map(|id| DomId::new(id).unwrap());
    xs.introduce(seven, 987_654_321, Port::new(3)).unwrap();
    xs.release(seven).unwrap();
    xs.resume(seven).unwrap();
    assert_eq!(xs.domain_path(seven).unwrap(), b"/local/domain/7");
    assert!(xs.is_domain_introduced(seven).unwrap());
    assert!(!xs.is_domain_introduced(eight).unwrap());
    assert!(xs.is_domain_introduced(nine).unwrap_err().is_errno(libc::EACCES));
}

fn watches(xs: &XsHandle) {
    const TOKEN: &CStr = c"token";
    let event = || XsEvent { path: b"/w".to_vec(), token: b"token".to_vec() };
    xs.watch(c"/w", TOKEN).unwrap();
    assert_eq!(xs.read_watch().unwrap(), event());
    assert_eq!(xs.check_watch().unwrap(), None);
    let fd = xs.watch_fd().unwrap();
    xs.watch(c"/w", TOKEN).unwrap();
    wait_readable(fd);
    assert_eq!(xs.check_watch().unwrap(), Some(event()));
    assert_eq!(xs.check_watch().unwrap(), None);
    xs.unwatch(c"/w", TOKEN).unwrap();
}
