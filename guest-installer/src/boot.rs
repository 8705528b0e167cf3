//! From a disk to what a guest boots: the configuration, the entry, its files.
//!
//! ```text
//!   Volumes ── find (GRUB 2, SYSLINUX, GRUB legacy, loader entries) ──► Menu ──► Entry ──► kernel, ramdisk, arguments
//! ```

use crate::{
    bytes::{le16, le32},
    config::{Entry, Located, Menu, bls, grub2, grubenv, legacy, syslinux},
    disk::{Disk, Volume},
    error::{Error, Result, printable},
    kernel, limits,
    output::{Check, Output},
    volumes::Volumes,
};
use std::rc::Rc;

/// What a caller may ask for; all empty means: what the guest's own boot loader would take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Take this kernel instead of a configuration's.
    pub kernel: Option<String>,
    /// With this ramdisk.
    pub ramdisk: Option<String>,
    /// The kernel's arguments; those of an entry come before them.
    pub args: Option<String>,
    /// The entry: an index among all, a title or an id.
    pub entry: Option<String>,
    /// The file system starts at this byte of the disk; partition tables are not looked at.
    pub offset: Option<u64>,
    /// The disk is no disk but a configuration's text, to see what it would boot.
    pub config: bool,
    /// Largest kernel file in bytes.
    pub kernel_limit: u64,
    /// Largest size of all ramdisks together in bytes.
    pub ramdisk_limit: u64,
    /// Deliver the ELF file in the kernel image, of at most as many bytes as this, instead of the image.
    pub unpack: Option<u64>,
}

impl Request {
    /// A request with the usual limits.
    #[must_use]
    pub fn new() -> Self {
        Self { kernel_limit: limits::KERNEL_BYTES, ramdisk_limit: limits::RAMDISK_BYTES, ..Self::default() }
    }
}

/// What was chosen, with the files already passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Booted {
    /// The title of the entry; empty for an explicit kernel.
    pub title: String,
    /// Where the kernel is on the guest's disk.
    pub kernel: String,
    /// Where the ramdisks are.
    pub ramdisks: Vec<String>,
    /// The kernel's command line.
    pub args: String,
}

/// A disk with its configuration read.
#[derive(Debug)]
pub struct Found {
    volumes: Volumes,
    menu: Menu,
}

/// GRUB 2's configurations, in the order in which they are looked for.
const GRUB2: &[&str] = &["/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub2/grub.cfg"];
/// SYSLINUX' and its relatives'.
const SYSLINUX: &[&str] = &[
    "/boot/isolinux/isolinux.cfg",
    "/isolinux/isolinux.cfg",
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
    "/isolinux.cfg",
];
/// GRUB legacy's.
const LEGACY: &[&str] = &["/boot/grub/menu.lst", "/boot/grub/grub.conf", "/grub/menu.lst", "/grub/grub.conf"];
/// Loader entries with the environment block beside them.
const LOADER: &[(&str, &str)] =
    &[("/boot/loader/entries", "/boot/grub2/grubenv"), ("/loader/entries", "/grub2/grubenv")];

impl Found {
    /// Looks for a configuration on a disk.
    ///
    /// # Errors
    /// [`Error::NoFileSystem`], [`Error::NoBootConfig`], and what is wrong with the configuration.
    pub fn on(disk: &Volume, request: &Request) -> Result<Self> {
        if request.config {
            return Self::in_text(disk);
        }
        let part = match request.offset {
            Some(offset) => {
                let len = disk.size().saturating_sub(offset);
                disk.part(offset, len).ok_or(Error::OutOfRange { offset, len: 1, size: disk.size() })?
            }
            None => disk.clone(),
        };
        let mut volumes = Volumes::open(&part)?;
        if request.kernel.is_some() {
            return Ok(Self { volumes, menu: Menu::default() });
        }
        let mut looked_at = Vec::new();
        let mut empty = None;
        for volume in volumes.indices() {
            for root in roots(&mut volumes, volume)? {
                match configuration(&mut volumes, volume, &root)? {
                    Some(menu) if !menu.entries().is_empty() => return Ok(Self { volumes, menu }),
                    Some(menu) => empty = empty.or(Some(menu)),
                    None => {}
                }
            }
            looked_at.push(volumes.name(volume));
        }
        // A configuration without entries is looked over, as another volume may have a real one.
        if let Some(menu) = empty {
            return Ok(Self { volumes, menu });
        }
        looked_at.extend(std::mem::take(&mut volumes.notes));
        Err(Error::NoBootConfig(looked_at))
    }

    /// Reads a configuration without its disk. Its name says nothing: it is of the first kind in which it has an entry.
    fn in_text(file: &Volume) -> Result<Self> {
        if file.size() > limits::CONFIG_BYTES {
            return Err(Error::too_large("the configuration", limits::CONFIG_BYTES));
        }
        let bytes = file.read(0, usize::try_from(file.size()).unwrap_or(0))?;
        let (text, mut volumes) = (String::from_utf8_lossy(&bytes).into_owned(), Volumes::none());
        let menus = [
            grub2::parse(&mut volumes, 0, "the file", &text),
            syslinux::parse(&mut volumes, 0, "", &text),
            legacy::parse(&volumes, 0, &text, None),
        ];
        let (read, failed): (Vec<_>, Vec<_>) = menus.into_iter().partition(Result::is_ok);
        let found = read.into_iter().flatten().find(|menu| menu.entries().iter().any(|e| e.kernel.is_some()));
        match (found, failed.into_iter().next()) {
            (Some(menu), _) => Ok(Self { volumes, menu }),
            (None, Some(Err(error))) => Err(error),
            (None, _) => {
                Err(Error::NoBootConfig(vec!["the file, as GRUB 2, SYSLINUX and GRUB legacy".to_owned()]))
            }
        }
    }

    /// A volume's name for people.
    pub fn volume_name(&self, volume: usize) -> String {
        self.volumes.name(volume)
    }

    /// The configuration's menu.
    pub fn menu(&self) -> &Menu {
        &self.menu
    }

    /// The entry a request asks for.
    ///
    /// # Errors
    /// [`Error::NoEntry`], [`Error::FileMissing`].
    pub fn entry(&mut self, request: &Request) -> Result<Entry> {
        let mut entry = match (&request.kernel, &request.entry) {
            (Some(kernel), _) => self.explicit(kernel, request.ramdisk.as_deref())?,
            (None, Some(wanted)) => self.menu.wanted_entry(wanted)?.clone(),
            (None, None) => self.menu.default_entry()?.clone(),
        };
        if let (None, Some(ramdisk)) = (&request.kernel, &request.ramdisk) {
            let volume = entry.kernel.as_ref().map_or(0, |k| k.volume);
            entry.ramdisks = vec![Located { volume, path: ramdisk.clone() }];
        }
        if let Some(args) = request.args.as_deref().filter(|args| !args.is_empty()) {
            entry.args =
                if entry.args.is_empty() { args.to_owned() } else { format!("{} {args}", entry.args) };
        }
        Ok(entry)
    }

    /// A kernel by its path, on the first volume that has it.
    fn explicit(&mut self, kernel: &str, ramdisk: Option<&str>) -> Result<Entry> {
        for volume in self.volumes.indices() {
            if self.volumes.is_file(volume, kernel)? {
                let located = |path: &str| Located { volume, path: path.to_owned() };
                let ramdisks = ramdisk.map(located).into_iter().collect();
                return Ok(Entry { kernel: Some(located(kernel)), ramdisks, ..Entry::default() });
            }
        }
        let tried: Vec<_> = self.volumes.indices().map(|v| self.volumes.name(v)).collect();
        Err(Error::FileMissing { entry: String::new(), path: printable(kernel), volume: tried.join(", ") })
    }

    /// Checks an entry and names its files, without reading them.
    ///
    /// # Errors
    /// [`Error::FileMissing`], [`Error::Kernel`] for an entry without one, and what could be taken for syntax.
    pub fn check(&mut self, entry: &Entry) -> Result<Booted> {
        let Some(kernel) = &entry.kernel else {
            let why = entry.problem.clone().unwrap_or_else(|| "it names no kernel".to_owned());
            return Err(Error::Kernel(format!(
                "boot entry {:?}: {}",
                printable(&entry.title),
                printable(&why)
            )));
        };
        for file in std::iter::once(kernel).chain(&entry.ramdisks) {
            clean("a path", &file.path)?;
            // Without its disk there is nothing to be missing on.
            if !self.volumes.is_none() && !self.volumes.is_file(file.volume, &file.path)? {
                return Err(Error::FileMissing {
                    entry: printable(&entry.title),
                    path: printable(&file.path),
                    volume: self.volumes.name(file.volume),
                });
            }
        }
        clean("the command line", &entry.args)?;
        if entry.args.len() > limits::ARGS_BYTES {
            return Err(Error::too_large("the command line", limits::ARGS_BYTES));
        }
        Ok(Booted {
            title: printable(&entry.title),
            kernel: kernel.path.clone(),
            ramdisks: entry.ramdisks.iter().map(|r| r.path.clone()).collect(),
            args: entry.args.clone(),
        })
    }

    /// Writes an entry's kernel and ramdisk; several ramdisks one after the other, each at a multiple of four bytes, as
    /// Linux wants them.
    ///
    /// # Errors
    /// As [`Found::check`], [`Error::Kernel`], [`Error::TooLarge`], and those of reading and writing. The outputs may
    /// hold a part then.
    pub fn deliver(
        &mut self,
        entry: &Entry,
        request: &Request,
        kernel: &mut dyn Output,
        ramdisk: &mut dyn Output,
    ) -> Result<Booted> {
        let booted = self.check(entry)?;
        let Some(file) = &entry.kernel else { return Err(Error::Kernel("there is none".to_owned())) };
        self.deliver_kernel(file, request, kernel)?;
        let mut written = 0u64;
        for file in &entry.ramdisks {
            let padding = usize::try_from(written.next_multiple_of(4) - written).unwrap_or(0);
            ramdisk.write_all(&[0; 4][..padding]).map_err(Error::io("writing the ramdisk"))?;
            written = written.next_multiple_of(4);
            let left = request.ramdisk_limit.saturating_sub(written);
            written += self.volumes.deliver(file.volume, &file.path, left, Check::NONE, ramdisk)?;
        }
        Ok(booted)
    }

    fn deliver_kernel(&mut self, file: &Located, request: &Request, kernel: &mut dyn Output) -> Result<()> {
        let (volume, path, limit) = (file.volume, &file.path, request.kernel_limit);
        let Some(unpacked) = request.unpack else {
            let check = Check { bytes: kernel::HEAD, refuse: kernel::check };
            return self.volumes.deliver(volume, path, limit, check, kernel).map(drop);
        };
        let mut image = Vec::new();
        self.volumes.deliver(volume, path, limit, Check::NONE, &mut image)?;
        kernel::unpack(&image, unpacked, &mut |bytes| {
            kernel.write_all(bytes).map_err(Error::io("writing the kernel"))
        })
    }
}

/// Whatever a configuration says, what is taken of it is one line each, within the limits; for fuzzing.
pub fn fuzz_config(text: &str) {
    for (name, value) in grubenv::parse(text) {
        assert!(name.len() + value.len() < text.len());
    }
    if let Ok(disk) = Disk::of_bytes(text.as_bytes()) {
        boots(&disk, &Request { config: true, ..Request::new() });
    }
}

/// Whatever is on a disk, what is booted of it is within the limits, if anything is; for fuzzing. The disk is sparse: for each part there is
/// where it is (32 bits, little-endian, modulo [`FUZZED_DISK`]), how long (16 bits) and the bytes.
pub fn fuzz_disk(mut bytes: &[u8]) -> bool {
    let mut parts = Vec::new();
    while let (Some(at), Some(length)) = (le32(bytes, 0), le16(bytes, 4)) {
        let rest = &bytes[6..];
        let length = usize::from(length).min(rest.len());
        let (part, rest) = rest.split_at(length);
        parts.push((u64::from(at) % FUZZED_DISK, part));
        bytes = rest;
    }
    let Ok(disk) = Disk::of_parts(FUZZED_DISK, &parts) else { return false };
    let _ = crate::fs::fuzz(&Volume::whole(&disk));
    boots(&disk, &Request { kernel_limit: 1 << 20, ramdisk_limit: 1 << 20, ..Request::new() })
}

/// Size of a fuzzed disk in bytes: mkfs.xfs makes no file system on a smaller one.
pub const FUZZED_DISK: u64 = 320 << 20;

fn boots(disk: &Rc<Disk>, request: &Request) -> bool {
    let Ok(mut found) = Found::on(&Volume::whole(disk), request) else { return false };
    assert!(found.menu().entries().len() <= limits::ENTRIES);
    let Ok(entry) = found.entry(request) else { return false };
    let (mut kernel, mut ramdisk) = (Vec::new(), Vec::new());
    let booted = if request.config {
        found.check(&entry)
    } else {
        found.deliver(&entry, request, &mut kernel, &mut ramdisk)
    };
    let Ok(booted) = booted else { return false };
    let most = |limit| usize::try_from(limit).unwrap_or(usize::MAX);
    assert!(kernel.len() <= most(request.kernel_limit) && ramdisk.len() <= most(request.ramdisk_limit));
    let mut lines = booted.ramdisks.iter().chain([&booted.kernel, &booted.args, &booted.title]);
    assert!(lines.all(|line| clean("a line", line).is_ok()));
    true
}

/// Refuses what could be taken for syntax by whoever reads it.
pub(crate) fn clean(what: &'static str, text: &str) -> Result<()> {
    match text.bytes().find(|&b| b < b' ' && b != b'\t' || b == 0x7f) {
        Some(byte) => Err(Error::ControlCharacter { what, byte }),
        None => Ok(()),
    }
}

/// Where on a volume a root directory may be: at its own, or in a subvolume of btrfs.
fn roots(volumes: &mut Volumes, volume: usize) -> Result<Vec<String>> {
    /// Most directories of the top level that are looked into.
    const SUBVOLUMES: usize = 32;
    let mut roots = vec![String::new()];
    if volumes.name(volume).contains("btrfs") {
        roots.extend(volumes.list(volume, "/")?.iter().take(SUBVOLUMES).map(|name| format!("/{name}")));
    }
    Ok(roots)
}

/// The configuration below a root directory.
fn configuration(volumes: &mut Volumes, volume: usize, root: &str) -> Result<Option<Menu>> {
    for path in GRUB2 {
        let path = format!("{root}{path}");
        if let Some(text) = volumes.text(volume, &path)? {
            return grub2::parse(volumes, volume, &path, &text).map(Some);
        }
    }
    for path in SYSLINUX {
        let path = format!("{root}{path}");
        if let Some(text) = volumes.text(volume, &path)? {
            return syslinux::parse(volumes, volume, &path, &text).map(Some);
        }
    }
    for path in LEGACY {
        let path = format!("{root}{path}");
        if let Some(text) = volumes.text(volume, &path)? {
            let saved = path.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned() + "/default";
            let saved = volumes.text(volume, &saved)?;
            let saved = saved.as_deref().and_then(|text| text.lines().next());
            return legacy::parse(volumes, volume, &text, saved).map(Some);
        }
    }
    for (dir, env) in LOADER {
        let (dir, env) = (format!("{root}{dir}"), format!("{root}{env}"));
        let loader = dir == "/loader/entries" && volumes.is_file(volume, "/loader/loader.conf")?;
        let menu = if loader {
            bls::systemd_boot(volumes, volume)?
        } else {
            bls::bare(volumes, volume, &dir, &env)?
        };
        if menu.is_some() {
            return Ok(menu);
        }
    }
    Ok(None)
}
