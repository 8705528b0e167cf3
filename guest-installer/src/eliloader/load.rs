//! A round, with whatever tools there are.

use super::{
    Changes, Error, Install, Result,
    fixup::{Checksum, Checksums, Fixups},
    plan::{Pair, Plan, Work, plan},
};
use crate::{
    boot::{Booted, Request},
    fetch::{self, Address},
    worker::{Answer, Wanted},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The kernel; it is checked to be one on its way into the output.
    Kernel,
    /// The ramdisk.
    Ramdisk,
}

/// What a round is done with. Outputs are the tools'.
pub trait Tools {
    /// Gets a file from a server into its output.
    ///
    /// # Errors
    /// The server's; what is wrong with a kernel is [`fetch::Error::Refused`].
    fn server(&mut self, which: Which, from: &Address, checksum: Option<&Checksum>) -> fetch::Result<()>;

    /// A file of dom0 into its output.
    ///
    /// # Errors
    /// [`Error::SupportMissing`], [`Error::Limits`].
    fn local(&mut self, which: Which, path: &Path) -> Result<()>;

    /// Asks the VM's boot disk; with [`Wanted::Deliver`] the outputs are filled.
    ///
    /// # Errors
    /// As [`crate::worker::run`].
    fn disk(&mut self, wanted: Wanted, request: &Request) -> crate::Result<Answer>;

    /// The ramdisk's output, for fix-ups, and how large it may be.
    ///
    /// # Errors
    /// [`Error::Internal`].
    fn ramdisk(&mut self) -> Result<(&File, u64)>;
}

/// What a round comes to, its files being in the outputs.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where the kernel is from, for people.
    pub kernel: String,
    /// Where the ramdisk is from; empty without one.
    pub ramdisk: String,
    /// The boot loader's part of the command line.
    pub args: String,
    /// For the record, once the domain is built.
    pub changes: Changes,
}

/// Does the next round. `own` are the arguments of the boot loader in the record, for what is read from a disk.
///
/// # Errors
/// [`Error`]; the outputs may hold a part then.
pub fn load(install: &Install, own: &Request, fixups: &Fixups, tools: &mut dyn Tools) -> Result<Loaded> {
    let plan = plan(install)?;
    let mut boot_loader_args = None;
    let (booted, ramdisk) = match &plan.work {
        Work::Server(base, pairs) => server(install, base, pairs, tools)?,
        Work::Local(pairs) => local(pairs, tools)?,
        Work::Cdrom(pairs) => names(&cdrom(install, pairs, own, tools)?),
        Work::CdromDefault => names(&booted(tools.disk(Wanted::Deliver, own)?)?),
        Work::Disk | Work::DiskNotOracle | Work::DiskOr(_) => {
            let request = match &plan.work {
                Work::DiskNotOracle => not_oracle(own, tools)?,
                Work::DiskOr(pairs) => like_dom_u_loader(own, pairs, tools)?,
                _ => None,
            };
            let booted = booted(tools.disk(Wanted::Deliver, request.as_ref().map_or(own, |(r, _)| r))?)?;
            boot_loader_args = request.map(|(_, args)| args);
            let (kernel, ramdisk) = names(&booted);
            let changes = Changes::of(install, boot_loader_args);
            return Ok(Loaded { kernel, ramdisk, args: booted.args, changes });
        }
    };
    finish(install, &plan, fixups, !ramdisk.is_empty(), tools)?;
    let changes = Changes::of(install, boot_loader_args);
    Ok(Loaded { kernel: booted, ramdisk, args: plan.args, changes })
}

/// What a ramdisk has to be, and what it lacks.
fn finish(install: &Install, plan: &Plan, fixups: &Fixups, there: bool, tools: &mut dyn Tools) -> Result<()> {
    let fixups = Some(fixups).filter(|fixups| plan.fixups && !fixups.is_empty());
    if !there || (fixups.is_none() && install.ramdisk_checksum.is_none()) {
        return Ok(());
    }
    let (ramdisk, limit) = tools.ramdisk()?;
    let checksums = Checksums::of(ramdisk)?;
    if install.ramdisk_checksum.as_ref().is_some_and(|wanted| !checksums.matches(wanted)) {
        return Err(Error::InvalidSource {
            place: "ramdisk".to_owned(),
            why: "its checksum is not install-ramdisk-checksum".to_owned(),
        });
    }
    fixups.map_or(Ok(()), |fixups| fixups.apply(ramdisk, &checksums, limit))
}

/// The first pair of dom0's files whose kernel is there; the error is about the first.
fn local(pairs: &[(PathBuf, PathBuf)], tools: &mut dyn Tools) -> Result<(String, String)> {
    let mut missing = None;
    for (kernel, ramdisk) in pairs {
        match tools.local(Which::Kernel, kernel) {
            Ok(()) => {}
            Err(error @ Error::SupportMissing(_)) => {
                missing = missing.or(Some(error));
                continue;
            }
            Err(error) => return Err(error),
        }
        tools.local(Which::Ramdisk, ramdisk)?;
        return Ok((kernel.display().to_string(), ramdisk.display().to_string()));
    }
    Err(missing.unwrap_or_else(|| Error::Internal("no file of dom0 is named".to_owned())))
}

fn server(
    install: &Install,
    base: &Address,
    pairs: &[Pair],
    tools: &mut dyn Tools,
) -> Result<(String, String)> {
    let mut tried = Vec::new();
    for pair in pairs {
        let kernel = base.join(&pair.kernel);
        match tools.server(Which::Kernel, &kernel, install.kernel_checksum.as_ref()) {
            Ok(()) => {}
            Err(fetch::Error::NotFound) => {
                tried.push(pair.kernel.clone());
                continue;
            }
            Err(error) => return Err(Error::source(kernel, error)),
        }
        let Some(ramdisk) = &pair.ramdisk else { return Ok((kernel.to_string(), String::new())) };
        let ramdisk = base.join(ramdisk);
        tools.server(Which::Ramdisk, &ramdisk, None).map_err(|error| Error::source(&ramdisk, error))?;
        return Ok((kernel.to_string(), ramdisk.to_string()));
    }
    let why = format!("it has none of {}", tried.join(", "));
    Err(Error::InvalidSource { place: base.to_string(), why })
}

fn cdrom(install: &Install, pairs: &[Pair], own: &Request, tools: &mut dyn Tools) -> Result<Booted> {
    if install.kernel_checksum.is_some() {
        return Err(Error::Key {
            key: "install-kernel-checksum",
            why: "a CD's kernel is not checked; install from a server".to_owned(),
        });
    }
    for pair in pairs {
        match tools.disk(Wanted::Deliver, &explicit(own, pair)) {
            Ok(answer) => return booted(answer),
            Err(error) if error.code() == "FILE_MISSING" => {}
            Err(error) => return Err(cd(error)),
        }
    }
    let tried: Vec<_> = pairs.iter().map(|pair| pair.kernel.as_str()).collect();
    let why = format!("it has none of {}", tried.join(", "));
    Err(Error::InvalidSource { place: "cdrom".to_owned(), why })
}

fn cd(error: crate::Error) -> Error {
    match error.into() {
        Error::Disk(error) => Error::InvalidSource { place: "cdrom".to_owned(), why: error.to_string() },
        other => other,
    }
}

/// These files and no others, with the record's limits.
fn explicit(own: &Request, pair: &Pair) -> Request {
    let rooted = |path: &String| format!("/{}", path.trim_start_matches('/'));
    Request {
        kernel: Some(rooted(&pair.kernel)),
        ramdisk: pair.ramdisk.as_ref().map(rooted),
        args: None,
        entry: None,
        ..own.clone()
    }
}

/// Oracle's kernels for hardware, which come first in what its installer leaves, do not start as PV: the first other one
/// is taken, and stays the default.
fn not_oracle(own: &Request, tools: &mut dyn Tools) -> Result<Option<(Request, String)>> {
    let is_oracle = |title: &str| {
        let title = title.to_ascii_lowercase();
        title.find("oracle").is_some_and(|at| title[at..].contains("el5uek"))
    };
    if own.entry.is_some() || own.kernel.is_some() {
        return Ok(None);
    }
    let entries = match tools.disk(Wanted::List, own) {
        Ok(Answer::Entries(entries)) => entries,
        Ok(Answer::Booted(_)) => {
            return Err(Error::Internal("the worker answered another question".to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    if !entries.iter().any(|entry| is_oracle(&entry.title)) {
        return Ok(None);
    }
    let other = entries.iter().position(|entry| !is_oracle(&entry.title));
    let index = other.ok_or_else(|| {
        Error::Disk(crate::Error::NoEntry {
            wanted: "one that is not el5uek".to_owned(),
            entries: entries.iter().map(|entry| entry.title.clone()).collect(),
        })
    })?;
    let request = Request { entry: Some(index.to_string()), ..own.clone() };
    Ok(Some((request, format!("--entry {index}"))))
}

/// SLES 9 and 10 leave no boot configuration: then the kernel is where they put it, and stays there.
fn like_dom_u_loader(
    own: &Request,
    pairs: &[Pair],
    tools: &mut dyn Tools,
) -> Result<Option<(Request, String)>> {
    let Err(first) = tools.disk(Wanted::Check, own) else { return Ok(None) };
    if own.kernel.is_some() || matches!(first.code(), "IO" | "TIMEOUT" | "STOPPED" | "WORKER" | "TOO_LARGE") {
        return Err(first.into());
    }
    for pair in pairs {
        let request = explicit(own, pair);
        match tools.disk(Wanted::Check, &request) {
            Ok(_) => {
                let ramdisk = pair.ramdisk.as_ref().map(|path| format!(" --ramdisk {path}"));
                let args = format!("--kernel {}{}", pair.kernel, ramdisk.unwrap_or_default());
                return Ok(Some((request, args)));
            }
            Err(error) if error.code() == "FILE_MISSING" => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Why the disk does not boot by itself says more than what else was tried.
    Err(first.into())
}

fn booted(answer: Answer) -> Result<Booted> {
    match answer {
        Answer::Booted(booted) => Ok(booted),
        Answer::Entries(_) => Err(Error::Internal("the worker answered another question".to_owned())),
    }
}

fn names(booted: &Booted) -> (String, String) {
    (booted.kernel.clone(), booted.ramdisks.join(", "))
}
