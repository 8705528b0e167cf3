//! The two small initramfs archives: dom0's, which finds its root, and the test guest's.

use super::{cpio::Cpio, modules::Modules, recipe};
use crate::error::{Context as _, Error, Result};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Longest listing of a program's libraries.
const LIMIT: Duration = Duration::from_secs(30);

type Archive = Cpio<Vec<u8>>;

/// dom0's: busybox, the modules for its disk and [`recipe::TINY_INIT`].
pub(super) fn tiny(root: &Path, modules: &Modules) -> Result<Vec<u8>> {
    write(|cpio| {
        for dir in ["bin", "dev", "lower", "modules", "proc", "root", "rw", "sys"] {
            directory(cpio, dir)?;
        }
        base(cpio, root, modules, recipe::TINY_MODULES, recipe::TINY_INIT)
    })
}

/// The test guest's: busybox, a xenstore client, the frontend drivers and [`recipe::GUEST_INIT`].
pub(super) fn guest(root: &Path, modules: &Modules) -> Result<Vec<u8>> {
    write(|cpio| {
        for dir in [
            "bin", "dev", "emulated", "etc", "lib", "lib64", "mnt", "modules", "proc", "root", "sbin", "sys",
            "tmp", "var",
        ] {
            directory(cpio, dir)?;
        }
        base(cpio, root, modules, recipe::GUEST_MODULES, recipe::GUEST_INIT)?;
        add_modules(cpio, "emulated", &modules.files(recipe::GUEST_EMULATED))?;
        for name in recipe::GUEST_BUSYBOX.iter().filter(|n| **n != "sh") {
            link(cpio, &format!("bin/{name}"), "busybox")?;
        }
        for name in ["poweroff", "reboot", "halt"] {
            file(cpio, &format!("sbin/{name}"), 0o755, recipe::GUEST_END.as_bytes())?;
        }
        let mut libraries = BTreeSet::new();
        for program in recipe::GUEST_PROGRAMS {
            let path = root.join(program);
            let name = program.rsplit('/').next().unwrap_or(program);
            file(cpio, &format!("bin/{name}"), 0o755, &read(&path)?)?;
            needed(root, &path, &mut libraries)?;
        }
        for name in recipe::GUEST_XENSTORE {
            link(cpio, &format!("bin/{name}"), "xenstore")?;
        }
        for library in libraries {
            let content = read(&find(root, &library)?)?;
            file(cpio, &format!("lib/{library}"), 0o755, &content)?;
        }
        // The loader's name is part of the programs.
        link(cpio, "lib64/ld-linux-x86-64.so.2", "../lib/ld-linux-x86-64.so.2")
    })
}

fn base(cpio: &mut Archive, root: &Path, modules: &Modules, names: &[&str], init: &str) -> Result<()> {
    cpio.character_device("dev/console", 5, 1).at("write", "dev/console")?;
    file(cpio, "bin/busybox", 0o755, &read(&root.join("usr/bin/busybox"))?)?;
    link(cpio, "bin/sh", "busybox")?;
    add_modules(cpio, "modules", &modules.files(names))?;
    file(cpio, "init", 0o755, init.as_bytes())
}

fn add_modules(cpio: &mut Archive, directory: &str, files: &[PathBuf]) -> Result<()> {
    for (number, path) in files.iter().enumerate() {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // The number keeps the loading order.
        file(cpio, &format!("{directory}/{number:02}-{name}"), 0o644, &read(path)?)?;
    }
    Ok(())
}

fn write(fill: impl FnOnce(&mut Archive) -> Result<()>) -> Result<Vec<u8>> {
    let mut cpio = Cpio::new(Vec::new());
    fill(&mut cpio)?;
    cpio.finish().at("write", "initramfs")
}

fn directory(cpio: &mut Archive, name: &str) -> Result<()> {
    cpio.directory(name).at("write", name)
}

fn file(cpio: &mut Archive, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    cpio.file(name, mode, content).at("write", name)
}

fn link(cpio: &mut Archive, name: &str, target: &str) -> Result<()> {
    cpio.symlink(name, target).at("write", name)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).at("read", path)
}

/// Adds the names of the libraries `program` needs, and those need.
fn needed(root: &Path, program: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    let listed = crate::process::check(Command::new("readelf").arg("--dynamic").arg(program), LIMIT)?.text();
    found.insert("ld-linux-x86-64.so.2".to_owned());
    for name in needed_names(&listed) {
        if found.insert(name.to_owned()) {
            needed(root, &find(root, name)?, found)?;
        }
    }
    Ok(())
}

/// The names in lines such as ` 0x1 (NEEDED)  Shared library: [libc.so.6]`.
fn needed_names(listed: &str) -> impl Iterator<Item = &str> {
    let needed = listed.lines().filter(|line| line.contains("(NEEDED)"));
    needed.filter_map(|line| line.split_once('[')?.1.split_once(']').map(|(name, _)| name))
}

fn find(root: &Path, library: &str) -> Result<PathBuf> {
    let places = ["usr/lib/x86_64-linux-gnu", "usr/lib64"];
    let found = places.iter().map(|dir| root.join(dir).join(library)).find(|path| path.exists());
    found.ok_or_else(|| Error::Image(format!("no library {library} in dom0's root")))
}

#[cfg(test)]
mod tests {
    use super::needed_names;

    #[test]
    fn libraries_are_read() {
        let listed = " 0x0000000000000001 (NEEDED)             Shared library: [libxenstore.so.4]\n \
                      0x000000000000000c (INIT)               0x1000\n \
                      0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n";
        assert_eq!(needed_names(listed).collect::<Vec<_>>(), ["libxenstore.so.4", "libc.so.6"]);
    }
}
