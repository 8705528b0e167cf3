//! The command line.

use super::output::Format;
use crate::{boot::Request, worker::Wanted};
use lexopt::{Arg, Parser, ValueExt};
use std::{ffi::OsString, path::PathBuf};

/// Where the files go by default, as in the original.
const OUTPUT_DIRECTORY: &str = "/var/run/xen/pygrub";

/// The environment variable with the size limit of each file, in MiB, as in the original.
const FILE_LIMIT: &str = "PYGRUB_MAX_FILE_SIZE_MB";

/// What `--help` prints.
pub(super) const USAGE: &str = "\
Usage: pygrub [OPTIONS] IMAGE

Finds what a guest would boot from its disk, copies its kernel and ramdisk, and prints where they are.

  -q, --quiet                 accepted; there is no menu in any case
  -i, --interactive           accepted; the guest's own default is taken
  -l, --list-entries          print the entries of the guest's configuration and exit
  -n, --not-really            print what would be booted, copy nothing
      --entry=N|TITLE|ID      take this entry
      --kernel=PATH           take this kernel from the guest's disk, whatever its configuration says
      --ramdisk=PATH          with this ramdisk
      --args=TEXT             add these to the kernel's arguments
      --offset=BYTES          the file system starts here; partition tables are not looked at
      --output=FILE|-         print there
      --output-format=FORMAT  sxp (default), simple or simple0
      --output-directory=DIR  where the copies go (default /var/run/xen/pygrub)
      --runas=UID             read the disk as this user (default 99000 for root); needs -q or --entry
      --isconfig              IMAGE is a boot configuration and no disk: print what it would boot
      --debug                 accepted

Environment: PYGRUB_MAX_FILE_SIZE_MB, largest kernel and ramdisk in MiB (default 32 and 128).
Exit status: 0, or 1 with the reason on standard error.";

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) wanted: Wanted,
    pub(crate) request: Request,
    pub(crate) format: Format,
    pub(crate) output: Option<PathBuf>,
    pub(crate) output_directory: PathBuf,
    pub(crate) run_as: Option<u32>,
    /// In bytes.
    pub(crate) file_limit: Option<u64>,
    pub(crate) image: PathBuf,
}

/// What a command line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Run(Box<Args>),
    Help,
}

pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, String> {
    let file_limit = std::env::var(FILE_LIMIT).ok();
    parse_with(arguments, file_limit.as_deref()).map_err(|error| error.to_string())
}

/// What the arguments of a boot loader in a VM's record ask for: words between spaces, as xapi has them, without quoting.
/// Options that say where the output goes mean nothing here.
///
/// # Errors
/// What is wrong, for people.
pub fn request(arguments: &str) -> Result<Request, String> {
    let words = arguments.split_ascii_whitespace().map(OsString::from).chain(["disk".into()]);
    match parse_with(words, None) {
        Ok(Parsed::Run(args)) if args.wanted == Wanted::Deliver => Ok(args.request),
        Ok(_) => Err("a VM's boot loader can only boot".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_with(
    arguments: impl IntoIterator<Item = OsString>,
    file_limit: Option<&str>,
) -> Result<Parsed, lexopt::Error> {
    let mut args = Args {
        wanted: Wanted::Deliver,
        request: Request::new(),
        format: Format::Sxp,
        output: None,
        output_directory: OUTPUT_DIRECTORY.into(),
        run_as: None,
        file_limit: file_limit.map(mib).transpose()?,
        image: PathBuf::new(),
    };
    let (mut interactive, mut images) = (true, Vec::new());
    let mut parser = Parser::from_args(arguments);
    while let Some(arg) = parser.next()? {
        let request = &mut args.request;
        let arg = match arg {
            Arg::Long(name) => Arg::Long(whole(name)?),
            Arg::Short(letter) => Arg::Short(letter),
            Arg::Value(image) => {
                images.push(image);
                continue;
            }
        };
        match arg {
            Arg::Short('q') | Arg::Long("quiet") => interactive = false,
            Arg::Short('i') | Arg::Long("interactive") => interactive = true,
            Arg::Short('l') | Arg::Long("list-entries") => args.wanted = Wanted::List,
            Arg::Short('n') | Arg::Long("not-really") => args.wanted = Wanted::Check,
            Arg::Short('h') | Arg::Long("help") => return Ok(Parsed::Help),
            Arg::Long("debug") => {}
            Arg::Long("entry") => {
                request.entry = Some(parser.value()?.string()?);
                interactive = false;
            }
            Arg::Long("kernel") => request.kernel = Some(parser.value()?.string()?),
            Arg::Long("ramdisk") => request.ramdisk = Some(parser.value()?.string()?),
            Arg::Long("args") => request.args = Some(parser.value()?.string()?),
            Arg::Long("offset") => request.offset = Some(parser.value()?.parse()?),
            Arg::Long("output") => {
                args.output = Some(PathBuf::from(parser.value()?)).filter(|path| path.as_os_str() != "-");
            }
            Arg::Long("output-format") => args.format = parser.value()?.parse()?,
            Arg::Long("output-directory") => {
                args.output_directory = parser.value()?.into();
                if !args.output_directory.is_dir() {
                    return Err(
                        format!("{} is not an existing directory", args.output_directory.display()).into()
                    );
                }
            }
            Arg::Long("runas") => args.run_as = Some(parser.value()?.parse()?),
            Arg::Long("isconfig") => request.config = true,
            other => return Err(other.unexpected()),
        }
    }
    if interactive && args.run_as.is_some() {
        return Err("in order to use --runas, you must also set --entry or -q".into());
    }
    // A configuration has no files to deliver.
    if args.request.config && args.wanted == Wanted::Deliver {
        args.wanted = Wanted::Check;
    }
    // As in the original, those after the first mean nothing.
    args.image = images.into_iter().next().ok_or("no disk is given")?.into();
    Ok(Parsed::Run(Box::new(args)))
}

/// A long option by its name or the beginning of one only, as getopt(3) has it.
fn whole(name: &str) -> Result<&'static str, lexopt::Error> {
    const ALL: [&str; 16] = [
        "quiet",
        "interactive",
        "list-entries",
        "not-really",
        "help",
        "output",
        "output-format",
        "output-directory",
        "offset",
        "runas",
        "entry",
        "kernel",
        "ramdisk",
        "args",
        "isconfig",
        "debug",
    ];
    let mut begun = ALL.iter().filter(|option| option.starts_with(name));
    match (ALL.iter().find(|option| **option == name), begun.next(), begun.next()) {
        (Some(option), _, _) | (None, Some(option), None) => Ok(option),
        (None, Some(_), Some(_)) => Err(format!("--{name} may be several options").into()),
        (None, None, _) => Err(format!("there is no option --{name}").into()),
    }
}

fn mib(text: &str) -> Result<u64, lexopt::Error> {
    let bytes = text.trim().parse().ok().and_then(|mib: u64| mib.checked_mul(1 << 20));
    bytes
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| format!("{FILE_LIMIT}: {text:?} is no number of MiB").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Parsed, String> {
        parse_with(line.split_whitespace().map(OsString::from), None).map_err(|e| e.to_string())
    }

    fn run(line: &str) -> Args {
        match parsed(line) {
            Ok(Parsed::Run(args)) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_libxl_passes() {
        let args = run(
            "--kernel=/vmlinuz --ramdisk=/initrd --args=quiet --output=/run/fifo --output-format=simple0 \
             --output-directory=/tmp --runas=65537 --quiet /dev/loop0",
        );
        assert_eq!((args.run_as, args.format, args.wanted), (Some(65537), Format::Simple0, Wanted::Deliver));
        assert_eq!((args.output, args.output_directory), (Some("/run/fifo".into()), PathBuf::from("/tmp")));
        assert_eq!(args.image, PathBuf::from("/dev/loop0"));
        let request = args.request;
        assert_eq!(request.kernel.as_deref(), Some("/vmlinuz"));
        assert_eq!((request.ramdisk.as_deref(), request.args.as_deref()), (Some("/initrd"), Some("quiet")));
    }

    #[test]
    fn short_and_long_in_any_order() {
        assert_eq!(run("disk -l").wanted, Wanted::List);
        assert_eq!(run("-qn disk").wanted, Wanted::Check);
        let args = run("disk --entry 2 --offset 1048576 --output - --output-format simple");
        assert_eq!((args.request.entry.as_deref(), args.request.offset), (Some("2"), Some(1 << 20)));
        assert_eq!((args.output, args.format), (None, Format::Simple));
        assert_eq!(parsed("--help"), Ok(Parsed::Help));
        // As getopt(3) has it.
        let args = run("--quie --ent 2 --output-f simple0 --not disk");
        assert_eq!(
            (args.wanted, args.format, args.request.entry.as_deref()),
            (Wanted::Check, Format::Simple0, Some("2"))
        );
        assert!(run("--isconfig grub.cfg").request.config && !run("disk").request.config);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, why) in [
            ("", "no disk"),
            ("--runas=1 disk", "--entry or -q"),
            ("-q --runas=x disk", "invalid"),
            ("--offset=-1 disk", "invalid"),
            ("--output-format=xml disk", "xml"),
            ("--output-directory=/nonexistent disk", "/nonexistent is not an existing directory"),
            ("--nonsense disk", "nonsense"),
            ("--o - disk", "several"),
            ("--quiet=x disk", "quiet"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn the_arguments_in_a_record_are_words() {
        let request = super::request("-q  --entry=2 --args=quiet --output-format=simple").unwrap();
        assert_eq!((request.entry.as_deref(), request.args.as_deref()), (Some("2"), Some("quiet")));
        assert_eq!(super::request("").unwrap(), Request::new());
        for bad in ["-l", "-n", "--isconfig", "--help", "--nonsense", "--offset=x"] {
            assert!(super::request(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_size_limit_is_in_mib() {
        let limited = |text| {
            parse_with(["disk".into()], Some(text)).map(|parsed| match parsed {
                Parsed::Run(args) => args.file_limit,
                Parsed::Help => None,
            })
        };
        assert_eq!(limited("64").unwrap(), Some(64 << 20));
        for bad in ["", "x", "0", "-1", "99999999999999999"] {
            assert!(limited(bad).is_err(), "{bad}");
        }
    }
}
