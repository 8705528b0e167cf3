//! SYSLINUX, EXTLINUX and ISOLINUX configurations.

use super::{Entry, Located, Menu, check_count, keyword, lines};
use crate::{
    error::{Error, Result},
    volumes::Volumes,
};

/// Most files included by one configuration, in all.
const INCLUDES: usize = 32;

#[derive(Default)]
struct Parser {
    entries: Vec<Entry>,
    default: Option<String>,
    menu_default: Option<String>,
    on_timeout: Option<String>,
    menu: bool,
    append: String,
    included: usize,
}

/// Reads a configuration; relative paths start at its directory.
///
/// # Errors
/// When an included file cannot be read or there are too many of something.
pub fn parse(volumes: &mut Volumes, volume: usize, file: &str, text: &str) -> Result<Menu> {
    let dir = file.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned();
    let mut parser = Parser::default();
    parser.read(volumes, volume, &dir, text)?;
    let Parser { entries, default, menu_default, on_timeout, menu, .. } = parser;
    // A menu's default is its own; the plain one counts when it names an entry (it may name the menu's program).
    let named = default.filter(|d| !menu || entries.iter().any(|e| e.id == first_word(d)));
    let chosen = on_timeout.or(menu_default.filter(|_| menu)).or(named);
    let chosen = chosen.map(|c| first_word(&c).to_owned());
    // Without any, SYSLINUX looks for the label `linux`, its menus take the first entry.
    let chosen = chosen.or_else(|| entries.iter().find(|e| e.id == "linux" && !menu).map(|e| e.id.clone()));
    Ok(Menu::flat(entries, chosen))
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or("")
}

fn is_menu(program: &str) -> bool {
    program.ends_with("menu.c32")
}

fn locate(volume: usize, dir: &str, path: &str) -> Located {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("{dir}/{path}") };
    Located { volume, path }
}

impl Parser {
    fn read(&mut self, volumes: &mut Volumes, volume: usize, dir: &str, text: &str) -> Result<()> {
        for (_, line) in lines(text) {
            let (word, rest) = keyword(line);
            let word = word.to_ascii_lowercase();
            match word.as_str() {
                "include" => self.include(volumes, volume, dir, rest)?,
                "default" if is_menu(rest) => self.menu = true,
                "default" => self.default = Some(rest.to_owned()),
                "ui" => self.menu = true,
                "ontimeout" => self.on_timeout = Some(rest.to_owned()),
                "label" => {
                    check_count(self.entries.len())?;
                    let args = self.append.clone();
                    self.entries.push(Entry {
                        title: rest.to_owned(),
                        id: rest.to_owned(),
                        args,
                        ..Entry::default()
                    });
                }
                "menu" => self.menu(volumes, volume, dir, rest)?,
                "append" if self.entries.is_empty() => rest.clone_into(&mut self.append),
                _ => {
                    if let Some(entry) = self.entries.last_mut() {
                        command(entry, volume, dir, &word, rest);
                    }
                }
            }
        }
        Ok(())
    }

    fn menu(&mut self, volumes: &mut Volumes, volume: usize, dir: &str, rest: &str) -> Result<()> {
        let (what, value) = keyword(rest);
        match (what.to_ascii_lowercase().as_str(), self.entries.last_mut()) {
            ("default", Some(entry)) => self.menu_default = Some(entry.id.clone()),
            // A `^` marks the hot key.
            ("label", Some(entry)) => entry.title = value.replace('^', ""),
            ("include", _) => self.include(volumes, volume, dir, first_word(value))?,
            _ => {}
        }
        Ok(())
    }

    fn include(&mut self, volumes: &mut Volumes, volume: usize, dir: &str, path: &str) -> Result<()> {
        self.included += 1;
        if self.included > INCLUDES {
            return Err(Error::too_large("included files", INCLUDES));
        }
        match volumes.text(volume, &locate(volume, dir, path).path)? {
            Some(text) => self.read(volumes, volume, dir, &text),
            None => Ok(()),
        }
    }
}

fn command(entry: &mut Entry, volume: usize, dir: &str, word: &str, rest: &str) {
    match word {
        "kernel" | "linux" if rest.ends_with("mboot.c32") => entry.problem = None,
        "kernel" | "linux" if !rest.contains(".c32") => {
            entry.kernel = Some(locate(volume, dir, first_word(rest)));
        }
        "kernel" | "linux" | "com32" | "localboot" | "boot" | "bss" | "pxe" => {
            entry.problem = Some(format!("it starts {rest:?}, which is no Linux kernel"));
        }
        "initrd" => entry.ramdisks = rest.split(',').map(|p| locate(volume, dir, p.trim())).collect(),
        "append" if entry.kernel.is_none() && rest.contains("---") => multiboot(entry, volume, dir, rest),
        "append" if rest == "-" => entry.args.clear(),
        "append" => {
            let is_ramdisk = |word: &&str| word.starts_with("initrd=");
            let (ramdisks, args): (Vec<_>, Vec<_>) = rest.split_whitespace().partition(is_ramdisk);
            entry.args = args.join(" ");
            for list in ramdisks {
                let paths = list["initrd=".len()..].split(',');
                entry.ramdisks = paths.map(|p| locate(volume, dir, p)).collect();
            }
        }
        _ => {}
    }
}

/// `xen.gz ... --- vmlinuz arguments --- initrd`: Xen is already running here.
fn multiboot(entry: &mut Entry, volume: usize, dir: &str, rest: &str) {
    let mut modules = rest.split("---").map(str::trim).skip(1);
    if let Some(kernel) = modules.next() {
        let (path, args) = kernel.split_once(char::is_whitespace).unwrap_or((kernel, ""));
        entry.kernel = Some(locate(volume, dir, path));
        args.trim().clone_into(&mut entry.args);
    }
    entry.ramdisks =
        modules.filter_map(|m| m.split_whitespace().next()).map(|p| locate(volume, dir, p)).collect();
}
