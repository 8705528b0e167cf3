//! An NFS server of version 3, of one export with one directory and files in it: port mapper, mountd and nfsd in one.

use super::serve;
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

/// The export, its files by path below it, and what a test changes of an answer.
pub(crate) struct Export {
    pub(crate) at: &'static str,
    pub(crate) files: BTreeMap<&'static str, Vec<u8>>,
    /// Changes the results of a call of that program and procedure.
    pub(crate) twist: fn(u32, u32, &mut Vec<u8>),
}

/// The port that mountd is said to have.
pub(crate) const MOUNT_PORT: u16 = 20048;

/// Serves it at one address, for all three.
pub(crate) fn export(export: Export) -> SocketAddr {
    let export = std::sync::Arc::new(export);
    serve(move |_, stream| {
        let export = export.clone();
        // The client has several connections at once.
        std::thread::spawn(move || while answer_one(&stream, &export).is_some() {});
    })
}

fn answer_one(mut stream: &TcpStream, export: &Export) -> Option<()> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).ok()?;
    let mut record = vec![0; usize::try_from(u32::from_be_bytes(head) & !(1 << 31)).unwrap()];
    stream.read_exact(&mut record).ok()?;
    let word = |at: usize| u32::from_be_bytes(record[at..at + 4].try_into().unwrap());
    let (program, procedure) = (word(12), word(20));
    assert_eq!((word(4), word(8), word(24)), (0, 2, 1), "a call, version 2, AUTH_SYS");
    let credentials = usize::try_from(word(28)).unwrap();
    let arguments = &record[32 + credentials + 8..];
    let mut results = Vec::new();
    answer(export, (program, procedure), arguments, &mut results);
    let mut reply: Vec<u8> = [word(0), 1, 0, 0, 0, 0].iter().flat_map(|n| n.to_be_bytes()).collect();
    reply.append(&mut results);
    (export.twist)(program, procedure, &mut reply);
    // In two fragments, as servers may.
    let (first, second) = reply.split_at(reply.len() / 2);
    let fragment = |part: &[u8], last: u32| {
        let head = u32::try_from(part.len()).unwrap() | last;
        [&head.to_be_bytes(), part].concat()
    };
    stream.write_all(&[fragment(first, 0), fragment(second, 1 << 31)].concat()).ok()
}

fn numbers(out: &mut Vec<u8>, numbers: &[u32]) {
    out.extend(numbers.iter().flat_map(|n| n.to_be_bytes()));
}

fn opaque(out: &mut Vec<u8>, bytes: &[u8]) {
    numbers(out, &[u32::try_from(bytes.len()).unwrap()]);
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A byte string of arguments, and what follows it.
fn string(bytes: &[u8]) -> (String, &[u8]) {
    let length = usize::try_from(u32::from_be_bytes(bytes[..4].try_into().unwrap())).unwrap();
    let text = String::from_utf8(bytes[4..4 + length].to_vec()).unwrap();
    (text, &bytes[4 + length.next_multiple_of(4)..])
}

/// A handle is the path below the export.
fn answer(export: &Export, call: (u32, u32), arguments: &[u8], out: &mut Vec<u8>) {
    let size = |path: &str| export.files.get(path).map_or(4096, |file| u64::try_from(file.len()).unwrap());
    match call {
        (100_000, 3) => numbers(out, &[u32::from(MOUNT_PORT)]),
        (100_005, 1) if string(arguments).0 == export.at => {
            numbers(out, &[0]);
            opaque(out, b"");
            // Flavours: AUTH_SYS.
            numbers(out, &[1, 1]);
        }
        (100_005, 1) => numbers(out, &[2]),
        (100_005, 3) => {}
        (100_003, 1) => {
            let path = string(arguments).0;
            let kind = if export.files.contains_key(&*path) { 1 } else { 2 };
            numbers(out, &[0, kind, 0o644, 1, 0, 0]);
            out.extend(size(&path).to_be_bytes());
            out.resize(out.len() + 56, 0);
        }
        (100_003, 3) => {
            let (directory, rest) = string(arguments);
            let path = format!("{directory}/{}", string(rest).0);
            let path = path.trim_start_matches('/');
            if export.files.keys().any(|file| *file == path || file.starts_with(&format!("{path}/"))) {
                numbers(out, &[0]);
                opaque(out, path.as_bytes());
                numbers(out, &[0, 0]);
            } else {
                numbers(out, &[2, 0]);
            }
        }
        (100_003, 6) => {
            let (path, rest) = string(arguments);
            let file = &export.files[&*path];
            let from = usize::try_from(u64::from_be_bytes(rest[..8].try_into().unwrap())).unwrap();
            // Less than was asked for, as servers may.
            let part = &file[from..file.len().min(from + 1000)];
            let end = from + part.len() == file.len();
            numbers(out, &[0, 0, u32::try_from(part.len()).unwrap(), u32::from(end)]);
            opaque(out, part);
        }
        other => panic!("call {other:?}"),
    }
}
