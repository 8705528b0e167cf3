//! The program `eliloader`: a round for whoever keeps a VM's record in a file.
//!
//! The record is lines `key=value`: the keys of [`super::keys`], and `PV-bootloader`, `PV-bootloader-args`,
//! `PV-boot-disk` (0 once the CD is not booted from any more) and `PV-remove-disk` as a round leaves them. A round that
//! succeeds replaces the file by one with all its changes, in one step; one that fails leaves it alone.

use super::{
    Error, Install, Record, Result,
    fixup::Fixups,
    load::load,
    tools::{Jailed, roots},
};
use crate::{
    boot::Request,
    fetch::{self, Network},
    limits,
    pygrub::{self, Args, Parsed},
    worker::{WALL, Worker},
};
use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// What `--help` prints.
const USAGE: &str = "\
Usage: eliloader --record=FILE [OPTIONS] IMAGE

Does the next round of a VM's installation: gets the installer's kernel and ramdisk, or once it is installed what its
disk boots, and prints where they are. IMAGE is the disk the VM boots from, or its CD.

      --record=FILE           the VM's record, lines of key=value; replaced when the round is done
      --vm=UUID               accepted
      --runas=UID             the workers' user (default 99000 for root)
      --output=FILE|-, --output-format=FORMAT, --output-directory=DIR, --entry, --kernel, --ramdisk, -q: as pygrub's

Keys: install-repository, install-distro, install-round, install-arch, install-methods, install-args, install-vnc,
install-vncpasswd, install-kernel, install-ramdisk, install-kernel-checksum, install-ramdisk-checksum, install-proxy,
install-updates-disk, debian-release.
Environment: PYGRUB_MAX_FILE_SIZE_MB, largest kernel and ramdisk in MiB (default 32 and 128).
Exit status: 0, or 1 with the reason on standard error.";

/// Largest record.
const RECORD_BYTES: u64 = 1 << 20;

/// Runs with these arguments, the program's name not among them.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (record, args) = match parse(arguments) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => {
            eprintln!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("eliloader: {why}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match go(&record, &args) {
        Ok(()) => ExitCode::SUCCESS,
        // As the original's last line, which its callers look for.
        Err(error) => {
            eprintln!("RuntimeError: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The record's file, and what pygrub knows of the rest.
fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> std::result::Result<Option<(PathBuf, Args)>, String> {
    let (mut record, mut rest) = (None, Vec::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy().into_owned();
        let (name, value) =
            text.split_once('=').map_or((&*text, None), |(name, v)| (name, Some(v.to_owned())));
        match name {
            "--record" | "--vm" => {
                let value = value.map(OsString::from).or_else(|| arguments.next());
                let value = value.ok_or(format!("{name} needs a value"))?;
                if name == "--record" {
                    record = Some(PathBuf::from(value));
                }
            }
            _ => rest.push(argument),
        }
    }
    match pygrub::parse(rest)? {
        Parsed::Help => Ok(None),
        Parsed::Run(args) => Ok(Some((record.ok_or("no --record is given")?, *args))),
    }
}

fn go(path: &Path, args: &Args) -> Result<()> {
    let io = |what: &'static str| move |error: std::io::Error| Error::Internal(format!("{what}: {error}"));
    let mut record = Lines::read(path)?;
    let disk = File::open(&args.image).map_err(io("opening the disk"))?;
    let install = Install::read(|key| record.find(key))?;
    let bytes = |default| args.file_limit.unwrap_or(default);
    let limits = Request {
        kernel_limit: bytes(limits::KERNEL_BYTES),
        ramdisk_limit: bytes(limits::RAMDISK_BYTES),
        ..args.request.clone()
    };
    let fixups = Fixups::of_host()?;
    pygrub::deliver(args, |kernel, ramdisk| {
        let mut tools = Jailed {
            disk: &disk,
            kernel,
            ramdisk,
            limits: limits.clone(),
            reader: &Worker::default(),
            getter: &Worker::fetching(),
            jailing: pygrub::jailing(args.run_as),
            network: Network { proxy: install.proxy.clone(), roots: roots() },
            read_wall: WALL,
            get_wall: fetch::WALL,
            stop: None,
            progress: &mut |_, _, _| {},
        };
        let loaded = load(&install, &limits, &fixups, &mut tools)?;
        loaded.changes.apply(&mut record);
        let replacing = record.write(path)?;
        let there = !loaded.ramdisk.is_empty();
        // The last step, once the result is printed.
        let keep = move || replacing.persist(path).map(drop).map_err(|e| io("replacing the record")(e.error));
        Ok((there, loaded.args, keep))
    })
}

/// A record in a file.
#[derive(Debug, Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    fn read(path: &Path) -> Result<Self> {
        let wrong =
            |why: &dyn std::fmt::Display| Error::Internal(format!("record {}: {why}", path.display()));
        let mut text = String::new();
        let file = File::open(path).map_err(|e| wrong(&e))?;
        file.take(RECORD_BYTES).read_to_string(&mut text).map_err(|e| wrong(&e))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let pairs = lines.map(|line| {
            let (key, value) =
                line.split_once('=').ok_or_else(|| wrong(&format_args!("no = in {line:?}")))?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        });
        pairs.collect::<Result<_>>().map(Self)
    }

    fn find(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Beside the file, to take its place.
    fn write(&self, path: &Path) -> Result<tempfile::NamedTempFile> {
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let text = self.0.iter().fold(String::new(), |mut text, (key, value)| {
            let _ = writeln!(text, "{key}={value}");
            text
        });
        let written = || -> std::io::Result<_> {
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(text.as_bytes())?;
            file.as_file().set_permissions(fs::metadata(path)?.permissions())?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        written().map_err(|error| Error::Internal(format!("writing the record: {error}")))
    }
}

impl Record for Lines {
    fn get(&self, key: &str) -> Option<String> {
        self.find(key).map(str::to_owned)
    }

    fn set(&mut self, key: &str, value: Option<&str>) {
        self.0.retain(|(k, _)| k != key);
        self.0.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    }

    fn set_boot_loader(&mut self, name: &str) {
        self.set("PV-bootloader", Some(name));
    }

    fn set_boot_loader_args(&mut self, args: &str) {
        self.set("PV-bootloader-args", Some(args));
    }

    fn boot_from_first_disk(&mut self) {
        self.set("PV-boot-disk", Some("0"));
    }

    fn remove_disk(&mut self, disk: &str) {
        self.set("PV-remove-disk", Some(disk));
    }
}
