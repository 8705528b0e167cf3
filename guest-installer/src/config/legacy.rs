//! GRUB legacy: `menu.lst` and `grub.conf`.

use super::{Entry, Located, Menu, check_count, keyword, lines};
use crate::{error::Result, volumes::Volumes};

/// Reads a configuration of a volume. `saved` is what `/boot/grub/default` says.
///
/// # Errors
/// When there are too many entries.
pub fn parse(volumes: &Volumes, volume: usize, text: &str, saved: Option<&str>) -> Result<Menu> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut default = None;
    let mut root = volume;
    for (_, line) in lines(text) {
        let (word, rest) = keyword(line);
        let word = word.to_ascii_lowercase();
        let Some(entry) = entries.last_mut().filter(|_| word != "title") else {
            match word.as_str() {
                "default" if rest == "saved" => default = Some(saved.unwrap_or("0").trim().to_owned()),
                "default" => default = Some(rest.to_owned()),
                "title" => {
                    check_count(entries.len())?;
                    root = volume;
                    entries.push(Entry { title: rest.to_owned(), ..Entry::default() });
                }
                _ => {}
            }
            continue;
        };
        let locate = |path: &str| locate(volumes, root, path);
        match word.as_str() {
            "root" | "rootnoverify" => root = device(volumes, rest).unwrap_or(volume),
            "kernel" => {
                // Options of GRUB itself come before the path.
                let rest = rest.trim_start_matches([' ', '\t']);
                let rest = rest
                    .split_once("--")
                    .filter(|(before, _)| before.is_empty())
                    .map_or(rest, |(_, after)| {
                        after.split_once([' ', '\t']).map_or("", |(_, path)| path.trim_start())
                    });
                let (path, args) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
                entry.kernel = Some(locate(path));
                args.trim().clone_into(&mut entry.args);
            }
            "initrd" => entry.ramdisks = rest.split_whitespace().map(locate).collect(),
            "module" if entry.kernel.as_ref().is_some_and(|k| is_xen(&k.path)) => {
                // Xen itself is already running here: its first module is the kernel.
                let (path, args) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
                entry.kernel = Some(locate(path));
                args.trim().clone_into(&mut entry.args);
            }
            "module" => entry.ramdisks.extend(rest.split_whitespace().take(1).map(locate)),
            "chainloader" => entry.problem = Some("it chain-loads another boot sector".to_owned()),
            _ => {}
        }
    }
    Ok(Menu::flat(entries, default))
}

fn is_xen(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.starts_with("xen") && !name.starts_with("xenkernel") && !name.contains("linu")
}

/// `(hd0,1)`: legacy GRUB counts partitions from 0.
fn device(volumes: &Volumes, name: &str) -> Option<usize> {
    let inner = name.trim().strip_prefix('(')?.split_once(')')?.0;
    match inner.split_once(',') {
        Some((_, part)) => volumes.by_number(part.trim().parse::<u32>().ok()?.checked_add(1)?),
        None => volumes.whole(),
    }
}

/// A path with or without a device; an unknown device is where the entry's root is.
fn locate(volumes: &Volumes, root: usize, path: &str) -> Located {
    let volume = device(volumes, path).unwrap_or(root);
    let path = if path.starts_with('(') { path.split_once(')').map_or("", |(_, p)| p) } else { path };
    Located { volume, path: path.to_owned() }
}
