//! `cargo xtask install` and `uninstall`: the programs, their manual pages and completions, the systemd unit and a
//! settings file, put where a dom0 of any distribution has such things.
//!
//! ```text
//!  PREFIX/sbin/xenopsd          PREFIX/libexec/xenopsd/{vncterm,pygrub,eliloader}
//!  PREFIX/bin/xenops            PREFIX/lib/systemd/system/xenopsd.service
//!  PREFIX/share/{man,bash-completion,zsh,fish}               /etc/xenopsd.conf
//! ```

use crate::{
    Failure,
    cargo::{build_programs, check},
};
use clap::Args;
use std::{
    ffi::OsString,
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};
use xen_host::{progress::say, target, workspace};

/// The settings file: the daemon looks nowhere else unless told.
const SETTINGS: &str = "/etc/xenopsd.conf";

/// Whether systemd is the service manager here, as sd_booted(3) finds out.
const SYSTEMD: &str = "/run/systemd/system";

const PROGRAM: u32 = 0o755;
const DATA: u32 = 0o644;

/// Arguments of `cargo xtask install` and `uninstall`.
#[derive(Debug, Args)]
pub(crate) struct InstallArguments {
    /// Where programs and their data belong
    #[arg(long, value_name = "DIRECTORY", default_value = "/usr/local")]
    prefix: PathBuf,
    /// A tree to install into instead of this machine, for making a package
    #[arg(long, value_name = "DIRECTORY")]
    destdir: Option<PathBuf>,
    /// Directory of built programs [default: a release build is made and taken]
    #[arg(long, value_name = "DIRECTORY")]
    from: Option<PathBuf>,
}

impl InstallArguments {
    /// Where a file of the running system is put.
    fn place(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix("/").unwrap_or(path);
        self.destdir.as_ref().map_or_else(|| path.to_owned(), |root| root.join(below))
    }

    /// Refuses a prefix that would be another thing in the unit than on the disk.
    fn check(&self) -> Result<(), Failure> {
        if self.prefix.is_absolute() { Ok(()) } else { Err(Failure::Prefix(self.prefix.clone())) }
    }
}

/// A file to install: where it belongs, its mode, and what is in it.
struct Item {
    path: PathBuf,
    mode: u32,
    content: Vec<u8>,
}

/// Installs, and says how to go on.
pub(crate) fn install(arguments: &InstallArguments) -> Result<ExitCode, Failure> {
    arguments.check()?;
    if arguments.from.is_none() {
        say("building");
        build_programs()?;
    }
    let built = arguments.from.clone().unwrap_or_else(|| target().join("release"));
    // All that can fail without a trace comes first.
    let items = items(&arguments.prefix, &built)?;
    for item in &items {
        write(&arguments.place(&item.path), item.mode, &item.content)?;
    }
    let settings = arguments.place(Path::new(SETTINGS));
    if settings.try_exists()? {
        say(&format!("{} is left as it is", settings.display()));
    } else {
        write(&settings, DATA, &said(&built.join("xenopsd"), &["--print", "settings"])?)?;
    }
    reload(arguments)?;
    println!("{} files installed.", items.len());
    if arguments.destdir.is_none() {
        println!("Is this a working dom0?  {}", arguments.prefix.join("bin/xenops check").display());
        println!("Start the daemon:        systemctl enable --now xenopsd");
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes what [`install`] puts there, but for the settings.
pub(crate) fn uninstall(arguments: &InstallArguments) -> Result<ExitCode, Failure> {
    arguments.check()?;
    let built = arguments.place(&arguments.prefix.join("bin"));
    let daemon = arguments.place(&arguments.prefix.join("sbin/xenopsd"));
    let mut paths = programs(&arguments.prefix).map(|(path, _)| path).to_vec();
    paths.push(unit(&arguments.prefix));
    // Which pages and completions there are is what the installed programs say.
    if built.join("xenops").is_file() && daemon.is_file() {
        paths.extend(
            documents(&arguments.prefix, &built.join("xenops"), &daemon)?.into_iter().map(|item| item.path),
        );
    }
    let mut removed = 0;
    for path in paths {
        match fs::remove_file(arguments.place(&path)) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    let libexec = arguments.place(&arguments.prefix.join("libexec/xenopsd"));
    match fs::remove_dir(&libexec) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            say(&format!("{}: {error}", libexec.display()));
        }
        _ => {}
    }
    reload(arguments)?;
    println!("{removed} files removed; {SETTINGS}, VMs' records and guests are left alone.");
    Ok(ExitCode::SUCCESS)
}

/// The programs: where each belongs and what cargo calls it.
fn programs(prefix: &Path) -> [(PathBuf, &'static str); 5] {
    let helper = |name: &'static str| (prefix.join("libexec/xenopsd").join(name), name);
    [
        (prefix.join("sbin/xenopsd"), "xenopsd"),
        (prefix.join("bin/xenops"), "xenops"),
        helper("vncterm"),
        helper("pygrub"),
        helper("eliloader"),
    ]
}

fn unit(prefix: &Path) -> PathBuf {
    prefix.join("lib/systemd/system/xenopsd.service")
}

fn items(prefix: &Path, built: &Path) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    for (path, name) in programs(prefix) {
        let program = built.join(name);
        let content = fs::read(&program).map_err(|source| Failure::NotBuilt { program, source })?;
        items.push(Item { path, mode: PROGRAM, content });
    }
    let template = fs::read_to_string(workspace().join("xenopsd/dist/xenopsd.service"))?;
    let content = template.replace("@SBINDIR@", &prefix.join("sbin").display().to_string()).into_bytes();
    items.push(Item { path: unit(prefix), mode: DATA, content });
    items.extend(documents(prefix, &built.join("xenops"), &built.join("xenopsd"))?);
    Ok(items)
}

/// Manual pages and completions, as the programs print them.
fn documents(prefix: &Path, client: &Path, daemon: &Path) -> Result<Vec<Item>, Failure> {
    let item = |path: &str, content| Item { path: prefix.join("share").join(path), mode: DATA, content };
    let mut items = vec![item("man/man8/xenopsd.8", said(daemon, &["--print", "manual"])?)];
    // A page for each command that another page names.
    let mut open = vec![vec!["xenops".to_owned()]];
    while let Some(words) = open.pop() {
        let arguments: Vec<&str> =
            std::iter::once("man").chain(words[1..].iter().map(String::as_str)).collect();
        let (name, page) = (words.join("-"), said(client, &arguments)?);
        for command in commands(&String::from_utf8_lossy(&page), &name) {
            open.push(words.iter().cloned().chain([command]).collect());
        }
        items.push(item(&format!("man/man1/{name}.1"), page));
    }
    for (shell, path) in [
        ("bash", "bash-completion/completions/xenops"),
        ("zsh", "zsh/site-functions/_xenops"),
        ("fish", "fish/vendor_completions.d/xenops.fish"),
    ] {
        items.push(item(path, said(client, &["completions", shell])?));
    }
    Ok(items)
}

/// The commands below its own that a manual page refers to: `xenops\-vbd\-attach(1)` on the page of `xenops-vbd`.
fn commands(page: &str, own: &str) -> Vec<String> {
    let plain = page.replace('\\', "");
    let below = |line: &str| {
        let name = line.strip_prefix(own)?.strip_prefix('-')?.strip_suffix("(1)")?;
        (name != "help").then(|| name.to_owned())
    };
    plain.lines().filter_map(below).collect()
}

/// What a program prints.
fn said(program: &Path, arguments: &[&str]) -> Result<Vec<u8>, Failure> {
    let mut command = Command::new(program);
    let output = command.args(arguments).output().map_err(|e| Failure::start(&command, e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Failure::Step {
        command: format!("{} {}", program.display(), arguments.join(" ")),
        status: format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
    })
}

/// In one step: a program that runs is replaced, not written over.
fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), Failure> {
    let at = |source| Failure::Write { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(at)?;
    }
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let new = path.with_file_name(name);
    let _ = fs::remove_file(&new);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.map_err(at)
}

/// Lets systemd see the unit, when it is this machine's.
fn reload(arguments: &InstallArguments) -> Result<(), Failure> {
    if arguments.destdir.is_none() && Path::new(SYSTEMD).is_dir() {
        check(Command::new("systemctl").arg("daemon-reload"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_name_their_commands() {
        let page =
            ".TP\nxenops\\-list(1)\nList\n.TP\nxenops\\-fast\\-resume(1)\nxenops\\-help(1)\nxenops\\-x\n";
        assert_eq!(commands(page, "xenops"), ["list", "fast-resume"]);
        assert_eq!(commands("xenops\\-vbd\\-attach(1)\n", "xenops-vbd"), ["attach"]);
    }

    #[test]
    fn a_tree_is_a_root_of_its_own() {
        let mut arguments = InstallArguments { prefix: "/usr".into(), destdir: None, from: None };
        assert_eq!(arguments.place(Path::new("/usr/bin/x")), Path::new("/usr/bin/x"));
        arguments.destdir = Some("/tmp/tree".into());
        assert_eq!(arguments.place(Path::new("/usr/bin/x")), Path::new("/tmp/tree/usr/bin/x"));
        arguments.prefix = "usr".into();
        assert!(matches!(install(&arguments), Err(Failure::Prefix(_))));
    }
}
