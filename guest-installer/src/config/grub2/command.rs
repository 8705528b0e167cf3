//! The commands that matter for what is booted.

use super::{
    condition,
    run::{Flow, Runner},
    syntax,
};
use crate::{
    config::{Item, Located, bls, grubenv},
    error::{Error, Result},
};

/// Runs a command; one that is not known does nothing and succeeds, as it only shows or prepares something.
pub(super) fn run(runner: &mut Runner<'_>, name: &str, args: &[String]) -> Result<Flow> {
    let first = args.first().map_or("", String::as_str);
    runner.status = true;
    match name {
        "set" => {
            for assignment in args {
                if let Some((name, value)) = assignment.split_once('=') {
                    runner.set(name, value.to_owned())?;
                }
            }
        }
        "unset" => args.iter().for_each(|name| drop(runner.context.variables.remove(name))),
        "export" => {
            for name in args {
                let name = match name.split_once('=') {
                    Some((name, value)) => {
                        runner.set(name, value.to_owned())?;
                        name
                    }
                    None => name,
                };
                runner.context.exported.insert(name.to_owned());
            }
        }
        "[" => {
            let inner = args.strip_suffix(&["]".to_owned()]).unwrap_or(args);
            runner.status = condition::test(runner, inner)?;
        }
        "test" => runner.status = condition::test(runner, args)?,
        // Nobody is there to press a key, and no font or picture to load.
        "false" | "keystatus" | "loadfont" | "background_image" | "cryptomount" | "loopback" | "regexp" => {
            runner.status = false;
        }
        "!" => {
            let (name, rest) = args.split_first().map_or(("", args), |(n, r)| (n.as_str(), r));
            run(runner, name, rest)?;
            runner.status = !runner.status;
        }
        "break" => return Ok(Flow::Break),
        "continue" => return Ok(Flow::Continue),
        "return" | "exit" => {
            runner.status = matches!(first, "" | "0");
            return Ok(Flow::Return);
        }
        "source" | "." | "configfile" | "extract_entries_source" => {
            source(runner, first, name == "configfile")?;
        }
        "load_env" => load_env(runner, args)?,
        "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => search(runner, name, args)?,
        "probe" => probe(runner, args)?,
        "blscfg" => boot_loader_entries(runner)?,
        "linux" | "linux16" | "linuxefi" | "linux_efi" => kernel(runner, args),
        "initrd" | "initrd16" | "initrdefi" | "initrd_efi" => {
            let files = args.iter().filter(|arg| !arg.starts_with("--"));
            let ramdisks =
                files.map(|path| runner.locate(path.strip_prefix("newc:").unwrap_or(path))).collect();
            runner.context.entry.ramdisks = ramdisks;
        }
        // Xen, which `multiboot` would load, is already running here: its first module is the kernel.
        "module" | "module2" | "xen_linux" | "xen_initrd" => module(runner, args),
        "chainloader" | "halt" | "reboot" | "fwsetup" | "kfreebsd" | "ntldr" | "xnu_kernel64" => {
            runner.context.entry.problem = Some(format!("it runs `{name}` and no Linux kernel"));
        }
        // `name=value` without `set`.
        _ => {
            if let Some((name, value)) = name.split_once('=') {
                runner.set(name, value.to_owned())?;
            }
        }
    }
    Ok(Flow::Next)
}

fn kernel(runner: &mut Runner<'_>, args: &[String]) {
    let mut args = args.iter().skip_while(|arg| arg.starts_with("--"));
    let kernel = args.next().map(|path| runner.locate(path));
    let entry = &mut runner.context.entry;
    entry.kernel = kernel;
    entry.args = args.map(String::as_str).collect::<Vec<_>>().join(" ");
}

fn module(runner: &mut Runner<'_>, args: &[String]) {
    let mut args = args.iter().skip_while(|arg| arg.starts_with("--"));
    let Some(file) = args.next().map(|path| runner.locate(path)) else { return };
    let entry = &mut runner.context.entry;
    if entry.kernel.is_some() {
        entry.ramdisks.push(file);
        return;
    }
    entry.kernel = Some(file);
    // GRUB's configurations repeat a placeholder where a name used to be.
    let rest = args.map(String::as_str).filter(|arg| *arg != "placeholder");
    entry.args = rest.collect::<Vec<_>>().join(" ");
}

/// Runs another file; a configuration file replaces the menu.
fn source(runner: &mut Runner<'_>, path: &str, replace: bool) -> Result<()> {
    let Located { volume, path } = runner.locate(path);
    let Some(text) = runner.volumes.text(volume, &path)? else {
        runner.status = false;
        return Ok(());
    };
    let script = syntax::parse(&path, &text)?;
    if replace {
        runner.context.items.clear();
    }
    runner.deeper(|runner| runner.block(&script)).map(drop)
}

/// `load_env [--file FILE] [NAME...]`.
fn load_env(runner: &mut Runner<'_>, args: &[String]) -> Result<()> {
    let (mut file, mut wanted) = (None, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-f" | "--file" => file = args.next().cloned(),
            other => match other.strip_prefix("--file=") {
                Some(path) => file = Some(path.to_owned()),
                None if other.starts_with('-') => {}
                None => wanted.push(other),
            },
        }
    }
    let default = || format!("{}/grubenv", runner.variable("prefix").unwrap_or(""));
    let Located { volume, path } = runner.locate(&file.unwrap_or_else(default));
    let Some(text) = runner.volumes.text(volume, &path)? else {
        runner.status = false;
        return Ok(());
    };
    for (name, value) in grubenv::parse(&text) {
        if wanted.is_empty() || wanted.contains(&name.as_str()) {
            runner.set(&name, value)?;
        }
    }
    Ok(())
}

fn search(runner: &mut Runner<'_>, name: &str, args: &[String]) -> Result<()> {
    let mut kind = name.strip_prefix("search.").unwrap_or("file");
    let mut variable = "root".to_owned();
    let mut plain = Vec::new();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-u" | "--fs-uuid" => kind = "fs_uuid",
            "-l" | "--label" | "--fs-label" => kind = "fs_label",
            "-f" | "--file" => kind = "file",
            "-s" | "--set" => {
                // Its value may follow as a word of its own.
                if args.len() > 1 && args.peek().is_some_and(|next| !next.starts_with('-')) {
                    variable = args.next().cloned().unwrap_or_default();
                }
            }
            "--hint" => drop(args.next()),
            other => match other.strip_prefix("--set=") {
                Some(name) => name.clone_into(&mut variable),
                None if other.starts_with('-') => {}
                None => plain.push(other.to_owned()),
            },
        }
    }
    let Some(wanted) = plain.first() else {
        runner.status = false;
        return Ok(());
    };
    if let (true, Some(name)) = (name.starts_with("search."), plain.get(1)) {
        name.clone_into(&mut variable);
    }
    let found = match kind {
        "fs_uuid" => runner.volumes.by_uuid(wanted),
        "fs_label" => runner.volumes.by_label(wanted),
        _ => {
            let mut found = None;
            for volume in runner.volumes.indices() {
                if found.is_none() && runner.volumes.kind(volume, wanted)?.is_some() {
                    found = Some(volume);
                }
            }
            found
        }
    };
    let Some(volume) = found else {
        runner.status = false;
        return Ok(());
    };
    let name = runner.volumes.grub_name(volume);
    runner.set(&variable, name)
}

/// `probe --set=NAME --fs-uuid DEVICE`.
fn probe(runner: &mut Runner<'_>, args: &[String]) -> Result<()> {
    let name = args.iter().find_map(|a| a.strip_prefix("--set=")).map(str::to_owned);
    let device = args.iter().rfind(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    let volume = runner.locate(&format!("{device}/")).volume;
    let wanted = args.iter().any(|a| a == "-u" || a == "--fs-uuid");
    let (Some(name), Some(uuid)) = (name, runner.volumes.uuid(volume).filter(|_| wanted)) else {
        runner.status = false;
        return Ok(());
    };
    runner.set(&name, uuid)
}

fn boot_loader_entries(runner: &mut Runner<'_>) -> Result<()> {
    let dir = runner.variable("blsdir").filter(|d| !d.is_empty()).map(str::to_owned);
    let candidates = match dir {
        Some(dir) => vec![dir],
        None => vec!["/loader/entries".to_owned(), "/boot/loader/entries".to_owned()],
    };
    let variables = runner.context.variables.clone();
    for dir in candidates {
        let Located { volume, path } = runner.locate(&dir);
        let entries = bls::entries(runner.volumes, volume, &path, &variables)?;
        if !entries.is_empty() {
            if runner.context.items.len() + entries.len() > crate::limits::ENTRIES {
                return Err(Error::too_large("boot entries", crate::limits::ENTRIES));
            }
            runner.context.items.extend(entries.into_iter().map(Item::Entry));
            return Ok(());
        }
    }
    runner.status = false;
    Ok(())
}
