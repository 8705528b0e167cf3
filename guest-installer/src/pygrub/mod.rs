//! The program `pygrub`, with the command line and output of the original: what `xl` and others name as a PV guest's
//! `bootloader`.
//!
//! ```text
//!   arguments ─► worker (reads the disk, jailed) ─► boot_kernel.XXXXXX, boot_ramdisk.XXXXXX ─► sxp, simple, simple0
//! ```
//! Where it differs: there is no menu to choose from, the entry that the guest's own boot loader would take by itself is
//! taken; a failure leaves no files.

mod args;
mod output;

use crate::{
    boot::Request,
    error::{Error, Result},
    limits,
    worker::{Answer, Files, Jailing, Job, Limit, Listed, Wanted, Worker, run},
};
pub use args::request;
pub(crate) use args::{Args, Parsed, parse};
use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::Path,
    process::ExitCode,
};
use tempfile::NamedTempFile;

/// The user of a worker that nobody gave another: above those of domains (65536 and the domain's number) and below
/// those that distributions give to containers (100000 and above).
pub const UID: u32 = 99_000;

/// Runs with these arguments, the program's name not among them.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match parse(arguments) {
        Ok(Parsed::Run(args)) => *args,
        Ok(Parsed::Help) => {
            eprintln!("{}", args::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("pygrub: {why}\n{}", args::USAGE);
            return ExitCode::FAILURE;
        }
    };
    match go(&args) {
        Ok(()) => ExitCode::SUCCESS,
        // The last line of what a Python program prints when it fails: xenopsd and others look for the words before the
        // colon.
        Err(error) => {
            eprintln!("RuntimeError: {error}");
            ExitCode::FAILURE
        }
    }
}

fn go(args: &Args) -> Result<()> {
    let disk = File::open(&args.image).map_err(Error::io("opening the disk"))?;
    match args.wanted {
        Wanted::List => {
            let (kernel, ramdisk) = (nowhere()?, nowhere()?);
            match ask(args, &Files { disk: &disk, kernel: &kernel, ramdisk: &ramdisk })? {
                Answer::Entries(entries) => {
                    say(&mut output(args)?, &entries.iter().map(listing).collect::<String>())
                }
                Answer::Booted(_) => Err(Error::Worker("it answered another question".to_owned())),
            }
        }
        Wanted::Check if args.request.config => {
            let (kernel, ramdisk) = (nowhere()?, nowhere()?);
            let booted = booted(ask(args, &Files { disk: &disk, kernel: &kernel, ramdisk: &ramdisk })?)?;
            say(&mut output(args)?, &output::of_config(&booted))
        }
        Wanted::Check => {
            let (kernel, ramdisk) = (nowhere()?, nowhere()?);
            let booted = booted(ask(args, &Files { disk: &disk, kernel: &kernel, ramdisk: &ramdisk })?)?;
            let named = |what: &str, path: &str| format!("<{what}:{path}>");
            let kernel = named("kernel", &booted.kernel);
            let ramdisk = booted.ramdisks.first().map(|path| named("ramdisk", path));
            let text = output::format(args.format, &kernel, ramdisk.as_deref(), &booted.args)?;
            say(&mut output(args)?, &text)
        }
        Wanted::Deliver | Wanted::Image => deliver(args, |kernel, ramdisk| {
            let booted = booted(ask(args, &Files { disk: &disk, kernel, ramdisk })?)?;
            Ok((!booted.ramdisks.is_empty(), booted.args, || Ok(())))
        }),
    }
}

/// Makes the two files, has them filled, and prints where they are. `load` says whether there is a ramdisk, which
/// arguments there are, and what is to be done last; when anything fails nothing is left of the files.
pub(crate) fn deliver<E: From<Error>, Last: FnOnce() -> std::result::Result<(), E>>(
    args: &Args,
    load: impl FnOnce(&File, &File) -> std::result::Result<(bool, String, Last), E>,
) -> std::result::Result<(), E> {
    // Opened before anything is made: a result that nobody takes is none.
    let mut out = output(args)?;
    let directory = directory(&args.output_directory)?;
    let (kernel, ramdisk) = (create(directory, "boot_kernel.")?, create(directory, "boot_ramdisk.")?);
    let (there, arguments, last) = load(kernel.as_file(), ramdisk.as_file())?;
    let ramdisk = there.then_some(ramdisk);
    let path = |file: &NamedTempFile| file.path().to_string_lossy().into_owned();
    let text =
        output::format(args.format, &path(&kernel), ramdisk.as_ref().map(path).as_deref(), &arguments)?;
    say(&mut out, &text)?;
    last()?;
    // From here on they are the caller's.
    for file in std::iter::once(kernel).chain(ramdisk) {
        file.keep().map_err(|e| Error::io("keeping what was delivered")(e.error))?;
    }
    Ok(())
}

/// Where the result goes.
fn output(args: &Args) -> Result<Box<dyn Write>> {
    Ok(match &args.output {
        None => Box::new(std::io::stdout()),
        Some(path) => {
            Box::new(File::options().write(true).open(path).map_err(Error::io("opening the --output file"))?)
        }
    })
}

fn say(out: &mut Box<dyn Write>, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("writing the result"))
}

/// Whose rights the workers have.
pub(crate) fn jailing(run_as: Option<u32>) -> Jailing {
    if nix::unistd::geteuid().is_root() { Jailing::User(run_as.unwrap_or(UID)) } else { Jailing::Caller }
}

fn ask(args: &Args, files: &Files<'_>) -> Result<Answer> {
    let bytes = |default| args.file_limit.unwrap_or(default);
    let request = Request {
        kernel_limit: bytes(limits::KERNEL_BYTES),
        ramdisk_limit: bytes(limits::RAMDISK_BYTES),
        ..args.request.clone()
    };
    let jailing = jailing(args.run_as);
    run(&Worker::default(), jailing, Limit::default(), &Job { wanted: args.wanted, request }, files)
}

fn booted(answer: Answer) -> Result<crate::boot::Booted> {
    match answer {
        Answer::Booted(booted) => Ok(booted),
        Answer::Entries(_) => Err(Error::Worker("it answered another question".to_owned())),
    }
}

/// An output for a worker that delivers nothing.
fn nowhere() -> Result<File> {
    File::options().write(true).open("/dev/null").map_err(Error::io("/dev/null"))
}

fn directory(path: &Path) -> Result<&Path> {
    if !path.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(Error::io("making the --output-directory"))?;
    }
    Ok(path)
}

fn create(directory: &Path, prefix: &str) -> Result<NamedTempFile> {
    let directory = fs::canonicalize(directory).map_err(Error::io("the --output-directory"))?;
    tempfile::Builder::new()
        .prefix(prefix)
        .tempfile_in(directory)
        .map_err(Error::io("making a file in the --output-directory"))
}

fn listing(entry: &Listed) -> String {
    format!(
        "title: {}\n  root: {}\n  kernel: {}\n  args: {}\n  initrd: {}\n",
        entry.title,
        entry.volume,
        entry.kernel,
        entry.args,
        entry.ramdisks.join(" ")
    )
}
