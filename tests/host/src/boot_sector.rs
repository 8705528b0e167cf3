//! The smallest HVM guest there is: a boot sector that talks on screen and serial port and does what is asked on the
//! serial port. Firmware loads it from an emulated disk within seconds, where a Linux takes a minute under nested emulation.
//!
//! ```text
//!   says "SECTOR: up", then waits for a letter
//!     d   reads the disk's second sector through the BIOS and says what is in it, up to a zero byte
//!     w   writes itself there and says "SECTOR: written"
//!     r   resets the machine through the keyboard controller
//!     o   switches it off through ACPI
//! ```

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::error::{Context as _, Result};
use crate::paths::Building;
use crate::{Host, process, quote};

/// What it says once it runs.
pub const UP: &str = "SECTOR: up";

/// What it says after `w`.
pub const WRITTEN: &str = "SECTOR: written";

/// Bytes of the disk that [`Host::put_boot_sector`] makes.
const DISK: u32 = 1 << 20;

/// Bytes of a floppy disk of 1.44 MB, which El Torito tells by its size.
const FLOPPY: usize = 80 * 2 * 18 * SECTOR;

/// Longest making of a CD image.
const CD_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Where its texts begin.
const TEXTS: usize = 0x87;

/// Real-mode code, loaded at 0x7c00. The port numbers are the PC's: 0x3f8 the first serial port, 0x64 the keyboard
/// controller; 0xb004 is where hvmloader puts ACPI's PM1a control register, whose 0x2000 is "sleep" of type 0, which
/// Xen's tables name S5.
#[rustfmt::skip]
const CODE: [u8; TEXTS] = [
    // start: cld; xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax; mov sp, 0x7c00
    0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c,
    // mov [0x7000], dl (the drive it came from); mov si, hello; call say
    0x88, 0x16, 0x00, 0x70, 0xbe, 0x99, 0x7c, 0xe8, 0x5b, 0x00,
    // idle: sti; hlt; mov dx, 0x3fd; in al, dx; test al, 1; jz idle; mov dx, 0x3f8; in al, dx
    0xfb, 0xf4, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf6, 0xba, 0xf8, 0x03, 0xec,
    // cmp al, 'r'; je reset; cmp al, 'o'; je off; cmp al, 'd'; je read; cmp al, 'w'; jne idle
    0x3c, 0x72, 0x74, 0x3a, 0x3c, 0x6f, 0x74, 0x3c, 0x3c, 0x64, 0x74, 0x0c, 0x3c, 0x77, 0x75, 0xe2,
    // write: mov ax, 0x0301; mov bx, 0x7c00; jmp disk
    0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7c, 0xeb, 0x06,
    // read: mov ax, 0x0201; mov bx, 0x8000
    0xb8, 0x01, 0x02, 0xbb, 0x00, 0x80,
    // disk: mov cx, 2; mov dh, 0; mov dl, [0x7000]; int 0x13; mov si, bad; jc 1f
    0xb9, 0x02, 0x00, 0xb6, 0x00, 0x8a, 0x16, 0x00, 0x70, 0xcd, 0x13, 0xbe, 0xa6, 0x7c, 0x72, 0x0b,
    // mov si, done; cmp bh, 0x80; jne 1f; mov si, 0x8000; 1: call say; jmp idle
    0xbe, 0x87, 0x7c, 0x80, 0xff, 0x80, 0x75, 0x03, 0xbe, 0x00, 0x80, 0xe8, 0x11, 0x00, 0xeb, 0xb4,
    // reset: mov al, 0xfe; out 0x64, al; jmp idle
    0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xae,
    // off: mov dx, 0xb004; mov ax, 0x2000; out dx, ax; jmp idle
    0xba, 0x04, 0xb0, 0xb8, 0x00, 0x20, 0xef, 0xeb, 0xa5,
    // say: lodsb; test al, al; jz 1f; mov ah, 0x0e; mov bx, 7; int 0x10
    0xac, 0x84, 0xc0, 0x74, 0x10, 0xb4, 0x0e, 0xbb, 0x07, 0x00, 0xcd, 0x10,
    // mov al, [si-1]; mov dx, 0x3f8; out dx, al; jmp say; 1: ret
    0x8a, 0x44, 0xff, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xeb, 0xc3,
];

/// done, hello, bad.
const MESSAGES: &[u8] = b"SECTOR: written\r\n\0SECTOR: up\r\n\0SECTOR: disk error\r\n\0";

/// The sector, with the mark by which firmware knows one.
fn boot_sector() -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..TEXTS].copy_from_slice(&CODE);
    sector[TEXTS..TEXTS + MESSAGES.len()].copy_from_slice(MESSAGES);
    sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

impl Host {
    /// Writes a disk in dom0 that an HVM guest starts the boot sector from, 1 MiB, with a line of text in its second sector.
    ///
    /// # Errors
    /// When it cannot be written there.
    pub fn put_boot_sector(&self, path: &str, text: &str) -> Result<()> {
        self.put_disk(path, boot_sector().into_iter().chain(text.bytes()).chain(*b"\r\n"))
    }

    /// Writes a disk in dom0 that an HVM guest starts the [probe](crate::probe) from, 1 MiB.
    ///
    /// # Errors
    /// When it cannot be written there.
    pub fn put_probe(&self, path: &str) -> Result<()> {
        self.put_disk(path, crate::probe::sector().into_iter())
    }

    fn put_disk(&self, path: &str, begins: impl Iterator<Item = u8>) -> Result<()> {
        // What printf(1) makes of it is the bytes again.
        let escaped = begins.fold(String::new(), |mut escaped, byte| {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "\\{byte:03o}");
            escaped
        });
        let path = quote(path);
        self.check_shell(&format!("printf '{escaped}' >{path}; truncate -s {DISK} {path}")).map(drop)
    }

    /// Writes a CD image in dom0 that an HVM guest starts the boot sector from, without an emulated floppy (El Torito).
    ///
    /// # Errors
    /// When xorriso fails, or it cannot be written there.
    pub fn put_boot_cd(&self, path: &str) -> Result<()> {
        self.put_cd(path, &boot_sector(), &["-no-emul-boot", "-boot-load-size", "1"])
    }

    /// The same with an emulated floppy, which has a line of text in its second sector. Firmware reads it from the drive each
    /// time it is asked: a guest sees whether there is another CD in it.
    ///
    /// # Errors
    /// As [`Host::put_boot_cd`].
    pub fn put_floppy_cd(&self, path: &str, text: &str) -> Result<()> {
        let mut floppy = boot_sector().to_vec();
        floppy.extend(text.bytes().chain(*b"\r\n"));
        floppy.resize(FLOPPY, 0);
        self.put_cd(path, &floppy, &[])
    }

    fn put_cd(&self, path: &str, boots: &[u8], how: &[&str]) -> Result<()> {
        let building = Building::new(&format!("cd-{}", self.name()))?;
        let (tree, image) = (building.path().join("tree"), building.path().join("cd.iso"));
        let sector = tree.join("sector");
        fs::create_dir_all(&tree).at("create", &tree)?;
        fs::write(&sector, boots).at("write", sector)?;
        let mut xorriso = Command::new("xorriso");
        xorriso.args(["-as", "mkisofs", "-quiet", "-b", "sector", "-c", "catalog"]);
        xorriso.args(how).arg("-o").arg(&image).arg(&tree);
        process::check(&mut xorriso, CD_LIMIT)?;
        self.put(&image, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_where_the_code_looks_for_them() {
        let sector = boot_sector();
        // Little-endian operands of the three `mov si`.
        for (operand, text) in [(0x11, UP), (0x53, WRITTEN), (0x4e, "SECTOR: disk error")] {
            let at = usize::from(u16::from_le_bytes([sector[operand], sector[operand + 1]])) - 0x7c00;
            assert!(sector[at..].starts_with(text.as_bytes()), "{text}");
        }
    }
}
