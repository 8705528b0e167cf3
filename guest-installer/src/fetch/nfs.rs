//! NFS version 3 over TCP (RFC 1813): one file, read-only, without a mount in dom0.
//!
//! ```text
//!   port mapper (111): where is mountd?  ─►  mountd: MNT /the/repository  ─►  nfsd: LOOKUP each name, GETATTR, READ …
//! ```
//! A server exports to ports below 1024 as it comes (`secure` in exports(5)), so the connections are asked for from
//! such. What a server says is bounded: a record by [`rpc`], a handle, a name and a read by the protocol.

mod rpc;
mod xdr;

use super::{Address, Connect, Error, Result, Sink, Target};
use rpc::{Call, Client};
use xdr::Reader;
pub use xdr::fuzz;

/// The port mapper's port.
const PORT_MAPPER: u16 = 111;

/// How much is asked for at once; every server gives that much, or says how much it gives.
const READ_BYTES: u32 = 64 << 10;

/// Longest file handle of version 3.
const HANDLE_BYTES: usize = 64;

/// Most names in a path.
const DEPTH: usize = 64;

const PMAP_GETPORT: Call = Call { program: 100_000, version: 2, procedure: 3 };
const MOUNT_MNT: Call = Call { program: 100_005, version: 3, procedure: 1 };
const MOUNT_UMNT: Call = Call { procedure: 3, ..MOUNT_MNT };
const NFS_GETATTR: Call = Call { program: 100_003, version: 3, procedure: 1 };
const NFS_LOOKUP: Call = Call { procedure: 3, ..NFS_GETATTR };
const NFS_READ: Call = Call { procedure: 6, ..NFS_GETATTR };

/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// `NFS3ERR_NOENT`, also mountd's.
const NO_ENTRY: u32 = 2;

/// `NF3REG`.
const REGULAR: u32 = 1;

/// Gets a file, from where the sink is.
///
/// # Errors
/// [`Error`].
pub fn get(address: &Address, connect: &dyn Connect, sink: &mut Sink<'_>) -> Result<()> {
    let path = address.path.trim_end_matches('/');
    let (directory, name) = path.rsplit_once('/').ok_or_else(|| Error::refused("no path"))?;
    let client = |port: u16| {
        let target = Target { host: address.host.clone(), port, privileged: true };
        Client::new(connect.connect(&target)?)
    };
    let mount_port = port_of(&mut client(PORT_MAPPER)?, MOUNT_MNT)?;
    let mut mount = client(mount_port)?;
    let (exported, root, below) = mounted(&mut mount, directory)?;
    let outcome = client(address.port).and_then(|mut nfs| {
        let file = below
            .iter()
            .map(String::as_str)
            .chain([name])
            .try_fold(root, |at, name| lookup(&mut nfs, &at, name))?;
        copy(&mut nfs, &file, sink)
    });
    // Courtesy: the server strikes us off its list.
    let _ = mount.call(MOUNT_UMNT, |args| args.bytes(exported.as_bytes()));
    outcome
}

fn port_of(mapper: &mut Client, of: Call) -> Result<u16> {
    let answer = mapper.call(PMAP_GETPORT, |args| args.numbers(&[of.program, of.version, TCP, 0]))?;
    let port = Reader::new(&answer).number()?;
    u16::try_from(port)
        .ok()
        .filter(|&port| port > 0)
        .ok_or_else(|| Error::refused("the server has no mountd for version 3 over TCP"))
}

/// A directory, or one above it that is exported: that, its handle, and the names below it.
fn mounted(mount: &mut Client, directory: &str) -> Result<(String, Vec<u8>, Vec<String>)> {
    let (mut at, mut below) = (directory, Vec::new());
    loop {
        let exported = if at.is_empty() { "/" } else { at };
        let answer = mount.call(MOUNT_MNT, |args| args.bytes(exported.as_bytes()))?;
        let mut reader = Reader::new(&answer);
        let status = reader.number()?;
        if status == 0 {
            below.reverse();
            return Ok((exported.to_owned(), reader.bytes(HANDLE_BYTES)?.to_vec(), below));
        }
        match at.rsplit_once('/') {
            Some((above, name)) if below.len() < DEPTH => {
                below.push(name.to_owned());
                at = above;
            }
            _ if status == NO_ENTRY => return Err(Error::NotFound),
            _ => {
                return Err(Error::refused(format_args!(
                    "mountd refuses {directory} and all above it ({status})"
                )));
            }
        }
    }
}

fn lookup(nfs: &mut Client, directory: &[u8], name: &str) -> Result<Vec<u8>> {
    if name.is_empty() {
        return Ok(directory.to_vec());
    }
    let answer = nfs.call(NFS_LOOKUP, |args| {
        args.bytes(directory);
        args.bytes(name.as_bytes());
    })?;
    let mut reader = Reader::new(&answer);
    status(&mut reader, "LOOKUP")?;
    Ok(reader.bytes(HANDLE_BYTES)?.to_vec())
}

fn copy(nfs: &mut Client, file: &[u8], sink: &mut Sink<'_>) -> Result<()> {
    let answer = nfs.call(NFS_GETATTR, |args| args.bytes(file))?;
    let mut reader = Reader::new(&answer);
    status(&mut reader, "GETATTR")?;
    let kind = reader.number()?;
    // Mode, links, owner, group.
    reader.skip(4 * 4)?;
    let size = reader.long()?;
    if kind != REGULAR {
        return Err(Error::refused("it is no regular file on the server"));
    }
    sink.begin(sink.at(), Some(size))?;
    while sink.at() < size {
        let answer = nfs.call(NFS_READ, |args| {
            args.bytes(file);
            args.long(sink.at());
            args.numbers(&[READ_BYTES]);
        })?;
        let mut reader = Reader::new(&answer);
        status(&mut reader, "READ")?;
        reader.attributes()?;
        let (count, end) = (reader.number()?, reader.number()? != 0);
        let limit = usize::try_from(READ_BYTES).unwrap_or(usize::MAX);
        let bytes = reader.bytes(limit)?;
        if u32::try_from(bytes.len()) != Ok(count) {
            return Err(Error::refused("a read whose length is not what it says"));
        }
        sink.write(bytes)?;
        if bytes.is_empty() || end {
            break;
        }
    }
    sink.end()
}

fn status(reader: &mut Reader<'_>, call: &str) -> Result<()> {
    match reader.number()? {
        0 => Ok(()),
        NO_ENTRY => Err(Error::NotFound),
        status => Err(Error::refused(format_args!("the server answers {status} to {call}"))),
    }
}
