//! The tools of a real host: everything that a server or a guest can influence is done by workers in their jails.

use super::{
    Error, Result,
    fixup::{Checksum, Checksums},
    load::{Tools, Which},
};
use crate::{
    boot::Request,
    fetch::{self, Address, By, Network},
    worker::{self, Answer, Files, Jailing, Job, Limit, Wanted, Worker},
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{
    fs::File,
    io::{self, Read},
    os::fd::BorrowedFd,
    path::Path,
    time::Duration,
};

/// Where distributions have the certificates of authorities, in one file.
const ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Largest such file; Debian's has 220 KiB.
const ROOTS_BYTES: u64 = 8 << 20;

/// This host's certificates of authorities, PEM; empty when there are none, which the first use of HTTPS tells.
#[must_use]
pub fn roots() -> Vec<u8> {
    let read = |path: &&str| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(ROOTS_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    ROOTS.iter().find_map(|path| read(path).ok()).unwrap_or_default()
}

/// Where a round's files go, and who gets them.
pub struct Jailed<'a> {
    /// The disk the VM boots from.
    pub disk: &'a File,
    /// The kernel's output, empty.
    pub kernel: &'a File,
    /// The ramdisk's, likewise.
    pub ramdisk: &'a File,
    /// Limits, and whether the kernel is to be unpacked.
    pub limits: Request,
    /// The program of workers that read disks and kernels.
    pub reader: &'a Worker,
    /// The program of workers that get files.
    pub getter: &'a Worker,
    /// The workers' jail.
    pub jailing: Jailing,
    /// How servers are reached.
    pub network: Network,
    /// How long reading a disk may take.
    pub read_wall: Duration,
    /// How long getting a file may take.
    pub get_wall: Duration,
    /// When this can be read or its other end is closed, it is not wanted any more.
    pub stop: Option<BorrowedFd<'a>>,
    /// Told how many bytes of a file there are, of how many.
    pub progress: &'a mut dyn FnMut(Which, u64, Option<u64>),
}

impl std::fmt::Debug for Jailed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jailed").field("jailing", &self.jailing).finish_non_exhaustive()
    }
}

impl Jailed<'_> {
    fn read(&self, disk: &File, wanted: Wanted, request: &Request) -> crate::Result<Answer> {
        let Request { kernel_limit, ramdisk_limit, unpack, .. } = self.limits;
        let job = Job { wanted, request: Request { kernel_limit, ramdisk_limit, unpack, ..request.clone() } };
        let limit = Limit { wall: self.read_wall, stop: self.stop };
        let files = Files { disk, kernel: self.kernel, ramdisk: self.ramdisk };
        worker::run(self.reader, self.jailing, limit, &job, &files)
    }

    /// A file that is a kernel, into the kernel's output.
    fn image(&self, file: &File) -> crate::Result<()> {
        self.read(file, Wanted::Image, &self.limits).map(drop)
    }
}

impl Tools for Jailed<'_> {
    fn server(&mut self, which: Which, from: &Address, checksum: Option<&Checksum>) -> fetch::Result<()> {
        let limit = Limit { wall: self.get_wall, stop: self.stop };
        let by = By { worker: self.getter, jailing: self.jailing, limit };
        let bytes = match which {
            Which::Kernel => self.limits.kernel_limit,
            Which::Ramdisk => self.limits.ramdisk_limit,
        };
        let job = fetch::Job { address: from, network: &self.network, limit: bytes };
        let mut progress = |done, total| (self.progress)(which, done, total);
        if which == Which::Ramdisk {
            return fetch::fetch(&by, &job, self.ramdisk, &mut progress);
        }
        let packed =
            memfd_create("kernel as it came", MFdFlags::MFD_CLOEXEC).map_err(fetch::Error::refused)?;
        let packed = File::from(packed);
        fetch::fetch(&by, &job, &packed, &mut progress)?;
        if let Some(wanted) = checksum {
            let found = Checksums::of(&packed).map_err(fetch::Error::refused)?;
            if !found.matches(wanted) {
                return Err(fetch::Error::refused("its checksum is not install-kernel-checksum"));
            }
        }
        self.image(&packed).map_err(|error| match error {
            crate::Error::Stopped(_) => fetch::Error::Cancelled,
            other => fetch::Error::refused(other),
        })
    }

    fn local(&mut self, which: Which, path: &Path) -> Result<()> {
        let missing = |error: io::Error| Error::SupportMissing(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(missing)?;
        let limit = match which {
            Which::Kernel => return Ok(self.image(&file)?),
            Which::Ramdisk => self.limits.ramdisk_limit,
        };
        if file.metadata().map_err(missing)?.len() > limit {
            return Err(Error::Limits { place: path.display().to_string(), limit });
        }
        let mut output = self.ramdisk;
        io::copy(&mut file.take(limit), &mut output).map_err(missing).map(drop)
    }

    fn disk(&mut self, wanted: Wanted, request: &Request) -> crate::Result<Answer> {
        self.read(self.disk, wanted, request)
    }

    fn ramdisk(&mut self) -> Result<(&File, u64)> {
        Ok((self.ramdisk, self.limits.ramdisk_limit))
    }
}
