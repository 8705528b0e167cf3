//! The image that a disk server is given: opened here, looked at, and passed as a descriptor.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::blockdev::{self, Disk, Links, OpenDiskError};
use super::super::loopdev::direct_io_works;
use crate::edge::disk_image::{self, FOOTER, HEAD};
use crate::edge::{Access, DiskId, HostError, ImageFormat};

/// An open image that can be served.
pub(super) struct Image {
    pub(super) file: File,
    pub(super) id: DiskId,
    /// QEMU's driver for what it is in dom0.
    pub(super) driver: &'static str,
    /// Bytes of the disk that it shows.
    pub(super) size: u64,
    /// Bytes that it has in dom0.
    pub(super) length: u64,
    /// Whether dom0's page cache can be left out.
    pub(super) direct: bool,
}

impl Image {
    /// Opens it for nothing more than `access`, and looks at its header.
    ///
    /// # Errors
    /// [`HostError`].
    pub(super) fn open(path: &Path, access: Access, format: ImageFormat) -> Result<Self, HostError> {
        let unusable =
            |why: &dyn std::fmt::Display| super::refused(format!("disk {}: {why}", path.display()));
        if !path.is_absolute() {
            return Err(unusable(&"it is not an absolute path: the daemon's directory is not its clients'"));
        }
        let disk = blockdev::open_disk(path, access, Links::Follow).map_err(|error| match &error {
            OpenDiskError::Missing { path, .. } => {
                HostError::Missing { class: "disk", id: path.display().to_string(), text: error.to_string() }
            }
            _ => super::refused(&error),
        })?;
        let id = disk.id();
        let (file, length, driver) = match disk {
            Disk::Block(disk) => (disk.file, disk.size, "host_device"),
            Disk::File(disk) => (disk.file, disk.size, "file"),
        };
        let footer_at = length.saturating_sub(u64::try_from(FOOTER).unwrap_or(0));
        let read = |at, most| read(&file, at, most).map_err(|e| unusable(&e));
        let (head, footer) = (read(0, HEAD)?, read(footer_at, FOOTER)?);
        let size = disk_image::check(format, &head, &footer, length).map_err(|e| unusable(&e))?;
        let direct = direct_io_works(&file);
        Ok(Self { file, id, driver, size, length, direct })
    }
}

/// As many bytes from there on as there are.
fn read(file: &File, at: u64, most: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; most];
    let mut length = 0;
    while length < most {
        let offset = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        match file.read_at(&mut bytes[length..], offset) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}
