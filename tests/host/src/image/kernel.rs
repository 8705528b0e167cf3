//! Unpacking the Linux kernel: Xen and libxl otherwise unpack it themselves, for seconds each time under emulation.

use crate::{
    error::{Context as _, Error, Result},
    process,
};
use std::{fs, path::Path, process::Command, time::Duration};

/// Longest unpacking of one kernel.
const LIMIT: Duration = Duration::from_secs(60);

/// The compressed kernel inside a bzImage and the program that unpacks it. Offsets are those of the Linux/x86 boot
/// protocol: `setup_sects` at 0x1f1, `payload_offset` at 0x248 and `payload_length` at 0x24c.
fn payload(image: &[u8]) -> Result<(&[u8], &'static str), &'static str> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x1fe..0x200) != Some(&[0x55, 0xaa]) {
        return Err("no boot sector signature");
    }
    let sectors = match image.get(0x1f1).copied() {
        // The protocol says so: 0 means 4.
        Some(0) => 4,
        Some(count) => usize::from(count),
        None => return Err("too short"),
    };
    let (Some(offset), Some(length)) = (word(0x248), word(0x24c)) else { return Err("too short") };
    let start = (sectors + 1) * 512 + offset;
    let end = start.checked_add(length).ok_or("payload length out of range")?;
    let payload = image.get(start..end).ok_or("payload beyond the end")?;
    // The kernel's build appends the unpacked size to formats that do not end with it themselves.
    let packed = || payload.get(..payload.len().saturating_sub(4)).unwrap_or_default();
    match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Ok((packed(), "xz")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok((packed(), "zstd")),
        [0x1f, 0x8b, ..] => Ok((payload, "gzip")),
        _ => Err("unknown compression"),
    }
}

/// Unpacks `vmlinuz` into the stripped ELF file `vmlinux`.
pub(super) fn unpack(vmlinuz: &Path, vmlinux: &Path) -> Result<()> {
    let image = fs::read(vmlinuz).at("read", vmlinuz)?;
    let (payload, program) = payload(&image)
        .map_err(|reason| Error::Damaged { path: vmlinuz.to_owned(), reason: reason.to_owned() })?;
    let packed = vmlinux.with_extension("packed");
    fs::write(&packed, payload).at("write", &packed)?;
    unpack_file(program, &packed, vmlinux)?;
    fs::remove_file(&packed).at("remove", &packed)?;
    process::check(Command::new("strip").arg("-s").arg(vmlinux), LIMIT).map(drop)
}

/// Unpacks `from` into `to` with `gzip`, `xz` or `zstd`.
pub(super) fn unpack_file(program: &str, from: &Path, to: &Path) -> Result<()> {
    let script = "exec \"$1\" -dc <\"$2\" >\"$3\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", program]).arg(from).arg(to);
    process::check(&mut shell, LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(sectors: u8, payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; (usize::from(sectors) + 1) * 512];
        image[0x1f1] = sectors;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).expect("small").to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn finds_the_payload() {
        let xz = b"\xfd7zXZ\0restSIZE";
        assert_eq!(payload(&image(3, xz)), Ok((&b"\xfd7zXZ\0rest"[..], "xz")));
        assert_eq!(payload(&image(3, b"\x1f\x8brest")), Ok((&b"\x1f\x8brest"[..], "gzip")));
        assert_eq!(payload(&image(3, b"?")), Err("unknown compression"));
        let mut long = image(3, xz);
        long.truncate(long.len() - 1);
        assert_eq!(payload(&long), Err("payload beyond the end"));
        assert_eq!(payload(b"text"), Err("no boot sector signature"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let mut bytes = bytes;
            let _ = payload(&bytes);
            if bytes.len() > 0x200 {
                bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
                let _ = payload(&bytes);
            }
        }
    }
}
