//! System use entries (IEEE P1281) and the Rock Ridge ones among them.

use super::{Extent, Iso};
use crate::{bytes::le32, error::Result};

/// Most continuation areas followed for one file; real discs need one.
const CONTINUATIONS: usize = 16;
/// Largest continuation area: one sector, as Linux has it.
const CONTINUATION_BYTES: u32 = 2048;

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Extension {
    /// A part of the name.
    Name(Vec<u8>),
    /// The file's mode.
    Mode(u32),
    /// A part of a link's target.
    Link(Vec<u8>),
    /// The directory is at this block.
    Child(u32),
    /// This is a relocated directory's other place, not to be shown.
    Relocated,
}

/// Whether the disc has Rock Ridge: its root's first record says so, and how many bytes to skip elsewhere.
pub(super) fn skip(root: &[u8]) -> Option<usize> {
    let record = super::record(root, 0)?;
    let area = record.get(34..)?;
    let sp = area.get(..7)?;
    let has_names = |entry: &[u8]| matches!(&entry[..2], b"PX" | b"RR" | b"ER" | b"CE");
    let is_sp = &sp[..2] == b"SP" && sp[4..6] == [0xbe, 0xef];
    (is_sp && entries(area).any(has_names)).then(|| sp[6].into())
}

/// The entries of an area: signature, length, version, data.
fn entries(area: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = area;
    std::iter::from_fn(move || {
        let len = usize::from(*rest.get(2)?);
        // Too short to be one, or longer than what is there: the area ends here.
        let entry = rest.get(..len).filter(|e| e.len() >= 4 && &e[..2] != b"ST")?;
        rest = &rest[len..];
        Some(entry)
    })
}

/// Reads a record's system use area and its continuations.
pub(super) fn read(iso: &Iso, area: &[u8]) -> Result<Vec<Extension>> {
    let mut found = Vec::new();
    let mut target = LinkTarget::default();
    let mut area = area.to_vec();
    for _ in 0..CONTINUATIONS {
        let mut next = None;
        for entry in entries(&area) {
            match &entry[..2] {
                b"NM" if entry.len() >= 5 && entry[4] & 0x06 == 0 => {
                    found.push(Extension::Name(entry[5..].to_vec()));
                }
                b"PX" => found.extend(le32(entry, 4).map(Extension::Mode)),
                b"SL" => found.extend(target.part(entry)),
                b"CL" => found.extend(le32(entry, 4).map(Extension::Child)),
                b"RE" => found.push(Extension::Relocated),
                b"CE" => next = continuation(entry),
                _ => {}
            }
        }
        let Some((block, offset, len)) = next else { break };
        let whole = Extent { block, len: offset.saturating_add(len) };
        let bytes = iso.bytes(whole, CONTINUATION_BYTES)?;
        area = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default().to_vec();
    }
    Ok(found)
}

/// Block, offset in it, length.
fn continuation(entry: &[u8]) -> Option<(u32, u32, u32)> {
    Some((le32(entry, 4)?, le32(entry, 12)?, le32(entry, 20)?))
}

/// Puts a link's components together.
#[derive(Default)]
struct LinkTarget {
    started: bool,
    /// The last component goes on in the next one.
    open: bool,
}

impl LinkTarget {
    fn part(&mut self, entry: &[u8]) -> Option<Extension> {
        let mut out = Vec::new();
        let mut rest = entry.get(5..)?;
        while let [flags, len, tail @ ..] = rest {
            let content = tail.get(..usize::from(*len))?;
            rest = &tail[usize::from(*len)..];
            let name: &[u8] = match flags & 0x0e {
                0 => content,
                0x02 => b".",
                0x04 => b"..",
                _ => b"",
            };
            // The root is an empty first component; the next one adds the slash.
            if self.started && !self.open {
                out.push(b'/');
            }
            out.extend_from_slice(name);
            self.started = true;
            self.open = flags & 1 != 0;
        }
        Some(Extension::Link(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_put_together_from_its_components() {
        let mut target = LinkTarget::default();
        let mut text = Vec::new();
        for entry in [
            [b"SL\x0b\x01\x01".as_slice(), b"\x08\x00", b"\x01\x03boo"].concat(),
            [b"SL\x10\x01\x00".as_slice(), b"\x00\x01t", b"\x04\x00", b"\x00\x02vm"].concat(),
        ] {
            let Some(Extension::Link(part)) = target.part(&entry) else { panic!("{entry:?}") };
            text.extend(part);
        }
        assert_eq!(String::from_utf8(text).unwrap(), "/boot/../vm");
        assert_eq!(target.part(b"SL\x08\x01\x00\x00\xffx"), None, "a component longer than its entry");
    }

    #[test]
    fn an_area_ends_where_its_entries_stop_making_sense() {
        assert_eq!(entries(b"NM\x05\x01\x00PX\x00\x01").count(), 1);
        assert_eq!(entries(b"NM\x03").count(), 0);
        assert_eq!(entries(b"NM\xff\x01").count(), 0);
        assert_eq!(entries(b"").count(), 0);
    }
}
