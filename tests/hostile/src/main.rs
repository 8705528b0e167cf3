//! A hostile program for QEMU's place: the daemon starts it as a device model, and it tries to get out.
//!
//! ```text
//!   started ─► opens Xen's drivers ─► greets ─► sealed by the daemon ─► `cont`: tries everything ─► answers it
//!                └ tries what it will try again: it must be possible here, or a refusal later says nothing
//! ```
//!
//! What it does follows from the name of its VM (`-name guest=NAME`), see [`Role`]. Each attempt is a line of its log:
//! `before|after NAME: allowed|ERRNO`.

mod files;
mod log;
mod monitor;
mod xen;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use ffi::domid::DomId;

/// What the name of the VM asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `attack-N`: behaves until it is told to run, then tries everything, on domain N where it takes another domain.
    Attack(DomId),
    /// `keeps-xenbus`, `keeps-gntdev`: does not close what cannot be restricted.
    KeepsDevice(&'static str),
    /// `keeps-root`: has its first root directory open, below which Xen's drivers are.
    KeepsRoot,
    /// `keeps-library`: has a file of the host open that can be executed.
    KeepsLibrary,
    /// `keeps-channels-N`: has restricted its event channels to domain N.
    KeepsChannels(DomId),
    /// `eats`: takes memory when it is told to run, until it is killed.
    Eats,
    /// `behaves`: does nothing bad, until it is killed.
    Behaves,
    /// `runs`: says that the guest is running.
    Runs,
    /// `exits`: ends at once.
    Exits,
    /// `silent`: never greets.
    Silent,
}

impl Role {
    fn of(name: &str) -> Option<Self> {
        let domain = |prefix| name.strip_prefix(prefix)?.parse().ok().and_then(DomId::new);
        match name {
            "keeps-xenbus" => Some(Self::KeepsDevice("/dev/xen/xenbus")),
            "keeps-gntdev" => Some(Self::KeepsDevice("/dev/xen/gntdev")),
            "keeps-root" => Some(Self::KeepsRoot),
            "keeps-library" => Some(Self::KeepsLibrary),
            "eats" => Some(Self::Eats),
            "behaves" => Some(Self::Behaves),
            "runs" => Some(Self::Runs),
            "exits" => Some(Self::Exits),
            "silent" => Some(Self::Silent),
            _ => domain("attack-")
                .map(Self::Attack)
                .or_else(|| domain("keeps-channels-").map(Self::KeepsChannels)),
        }
    }
}

/// What it keeps open, so that the daemon finds it.
#[derive(Default)]
struct Kept {
    files: Vec<File>,
    handles: Option<xen::Handles>,
    channels: Option<ffi::restrict::Restricted<ffi::evtchn::Evtchn>>,
}

/// The command line that QEMU would have got.
struct CommandLine {
    role: Role,
    own: DomId,
    /// As given, from the monitor's socket on.
    descriptors: Vec<OwnedFd>,
    /// Places in `descriptors` of the first drive and of the CD-ROM drive, where there are such.
    disk: Option<usize>,
    cdrom: Option<usize>,
}

/// The monitor's socket.
const MONITOR: i32 = 3;

/// QEMU's numbers of the sets that the drives `hda` and `hdc` are in.
const DISK_SET: &str = "0";
const CDROM_SET: &str = "2";

fn command_line() -> Result<CommandLine, String> {
    let words: Vec<String> = std::env::args().collect();
    let after = |flag: &str| words.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1].as_str());
    let name = after("-name").and_then(|value| value.strip_prefix("guest=")?.split(',').next());
    let name = name.ok_or("no -name guest=NAME")?;
    let own = after("-xen-domid").and_then(|value| value.parse().ok()).and_then(DomId::new);
    let sets = words.windows(2).filter(|pair| pair[0] == "-add-fd").filter_map(|pair| {
        let (fd, set) = pair[1].strip_prefix("fd=")?.split_once(",set=")?;
        Some((fd.parse::<i32>().ok()?, set.to_owned()))
    });
    let sets: Vec<_> = sets.collect();
    let last = sets.iter().map(|(fd, _)| *fd).max().unwrap_or(MONITOR);
    let descriptors = ffi::jail::given(MONITOR, last - MONITOR + 1).map_err(|error| error.to_string())?;
    let place = |wanted: &str| {
        let (fd, _) = sets.iter().find(|(_, set)| set == wanted)?;
        usize::try_from(fd - MONITOR).ok()
    };
    Ok(CommandLine {
        role: Role::of(name).ok_or_else(|| format!("{name} is no role"))?,
        own: own.ok_or("no -xen-domid N")?,
        disk: place(DISK_SET),
        cdrom: place(CDROM_SET),
        descriptors,
    })
}

fn prepare(role: Role, own: DomId) -> Result<Kept, String> {
    let mut kept = Kept::default();
    let open = |path: &str| File::open(path).map_err(|error| format!("{path}: {error}"));
    match role {
        Role::KeepsDevice(path) => {
            kept.files
                .push(File::options().read(true).write(true).open(path).map_err(|e| format!("{path}: {e}"))?);
        }
        Role::KeepsRoot => kept.files.push(open("/")?),
        Role::KeepsLibrary => kept.files.push(open("/lib64/ld-linux-x86-64.so.2")?),
        Role::KeepsChannels(other) => {
            let channels = ffi::evtchn::Evtchn::open().map_err(|error| error.to_string())?;
            let restricted = ffi::restrict::Restricted::new(channels, other);
            kept.channels = Some(restricted.map_err(|error| error.to_string())?);
        }
        Role::Attack(other) => {
            let handles = xen::Handles::open(own, other).map_err(|error| error.to_string())?;
            handles.attempts("before", own, other);
            files::before();
            kept.handles = Some(handles);
        }
        Role::Eats | Role::Behaves | Role::Runs | Role::Exits | Role::Silent => {}
    }
    Ok(kept)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            log::say(text);
            ExitCode::from(3)
        }
    }
}

fn run() -> Result<(), String> {
    let CommandLine { role, own, mut descriptors, disk, cdrom } = command_line()?;
    if role == Role::Exits {
        return Err("these are my last words".to_owned());
    }
    let kept = prepare(role, own)?;
    let listener = descriptors.remove(0);
    if role == Role::Silent {
        log::say("silent from now on");
        loop {
            std::thread::park();
        }
    }
    let status = if role == Role::Runs { "running" } else { "prelaunch" };
    let mut drives =
        descriptors.into_iter().map(|descriptor| Some(File::from(descriptor))).collect::<Vec<_>>();
    // The monitor's socket was the first.
    let mut drive = |place: Option<usize>| drives.get_mut(place?.checked_sub(1)?).and_then(Option::take);
    let (disk, cdrom) = (drive(disk), drive(cdrom));
    monitor::serve(listener, status, || {
        if role == Role::Eats {
            return files::eat();
        }
        let (Role::Attack(other), Some(handles)) = (role, &kept.handles) else { return Ok(()) };
        handles.attempts("after", own, other);
        files::after(disk.as_ref(), cdrom.as_ref());
        log::fill()?;
        // So that its guest is not let run, which would find no machine.
        Err("everything was tried".to_owned())
    })
}
