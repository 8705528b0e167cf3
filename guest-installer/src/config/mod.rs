//! Boot configurations: what entries there are, and which one the guest's own boot loader takes.
//!
//! ```text
//!   grub2 (a script, run within bounds) ──┐
//!   bls, legacy, syslinux ────────────────┼─► Menu ── default, or what the user wants ──► Entry
//! ```

pub mod bls;
pub mod grub2;
pub mod grubenv;
pub mod legacy;
pub mod syslinux;
pub mod version;

use crate::{
    error::{Error, Result},
    limits,
};

/// A file on one of the disk's volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The volume's index in [`crate::volumes::Volumes`].
    pub volume: usize,
    /// The path on it.
    pub path: String,
}

/// A boot entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The title; of an entry in a submenu only its own.
    pub title: String,
    /// Its id, where the configuration has ids.
    pub id: String,
    /// The kernel; none when the entry starts something else.
    pub kernel: Option<Located>,
    /// The ramdisks, in order.
    pub ramdisks: Vec<Located>,
    /// The kernel's command line.
    pub args: String,
    /// Why it cannot be started, when it has no kernel.
    pub problem: Option<String>,
}

/// An entry or a submenu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An entry.
    Entry(Entry),
    /// A menu in the menu.
    Submenu {
        /// Its title.
        title: String,
        /// Its id.
        id: String,
        /// What is in it.
        items: Vec<Item>,
    },
}

impl Item {
    fn names(&self) -> [&str; 2] {
        match self {
            Self::Entry(entry) => [&entry.id, &entry.title],
            Self::Submenu { title, id, .. } => [id, title],
        }
    }
}

/// A configuration that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Menu {
    /// The entries and submenus.
    pub items: Vec<Item>,
    /// The default as GRUB writes it: an index, id or title, or several with `>` between them. `None` is the first.
    pub default: Option<String>,
}

impl Menu {
    /// A menu without submenus.
    pub(crate) fn flat(entries: Vec<Entry>, default: Option<String>) -> Self {
        Self { items: entries.into_iter().map(Item::Entry).collect(), default }
    }

    /// All entries, submenus' ones where the submenu is: the order of `--entry` and of a listing.
    pub fn entries(&self) -> Vec<&Entry> {
        fn collect<'a>(items: &'a [Item], found: &mut Vec<&'a Entry>) {
            for item in items {
                match item {
                    Item::Entry(entry) => found.push(entry),
                    Item::Submenu { items, .. } => collect(items, found),
                }
            }
        }
        let mut found = Vec::new();
        collect(&self.items, &mut found);
        found
    }

    /// The entry that the guest's own boot loader takes.
    ///
    /// # Errors
    /// [`Error::NoEntry`] when the default names none, or there are none.
    pub fn default_entry(&self) -> Result<&Entry> {
        let wanted = self.default.as_deref().unwrap_or("");
        self.by_path(wanted).ok_or_else(|| self.no_entry(wanted))
    }

    /// The entry a user asks for: its index among all, or its title or id.
    ///
    /// # Errors
    /// [`Error::NoEntry`].
    pub fn wanted_entry(&self, wanted: &str) -> Result<&Entry> {
        let entries = self.entries();
        let found = match wanted.parse::<usize>() {
            Ok(index) => entries.get(index).copied(),
            Err(_) => entries.into_iter().find(|e| e.title == wanted || (!e.id.is_empty() && e.id == wanted)),
        };
        found
            .or_else(|| self.by_path(wanted).filter(|_| !wanted.is_empty()))
            .ok_or_else(|| self.no_entry(wanted))
    }

    fn no_entry(&self, wanted: &str) -> Error {
        Error::NoEntry {
            wanted: wanted.to_owned(),
            entries: self.entries().iter().map(|e| e.title.clone()).collect(),
        }
    }

    fn by_path(&self, path: &str) -> Option<&Entry> {
        // A whole name first: ids of boot loader entries may hold anything.
        let whole = |item: &&Item| !path.is_empty() && item.names().contains(&path);
        if let Some(Item::Entry(entry)) = self.items.iter().find(whole) {
            return Some(entry);
        }
        let mut items = self.items.as_slice();
        let mut segments = segments(path).into_iter();
        loop {
            match find(items, &segments.next().unwrap_or_default())? {
                Item::Entry(entry) => return Some(entry),
                Item::Submenu { items: inner, .. } => items = inner,
            }
        }
    }
}

/// The item a segment names; the empty one is the first.
fn find<'a>(items: &'a [Item], segment: &str) -> Option<&'a Item> {
    if segment.is_empty() {
        return items.first();
    }
    match segment.parse::<usize>() {
        Ok(index) => items.get(index),
        Err(_) => items.iter().find(|item| item.names().contains(&segment)),
    }
}

/// Splits at `>`; `>>` is the character itself.
fn segments(path: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '>' if chars.peek() == Some(&'>') => {
                chars.next();
                found.last_mut().expect("never empty").push('>');
            }
            '>' => found.push(String::new()),
            other => found.last_mut().expect("never empty").push(other),
        }
    }
    found
}

/// A configuration's lines with their numbers, without comments and empty ones.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.lines())
        .map(|(n, line)| (n, line.trim()))
        .filter(|(_, l)| !l.is_empty() && !l.starts_with('#'))
}

/// A line's first word and the rest.
fn keyword(line: &str) -> (&str, &str) {
    let (word, rest) = line.split_once([' ', '\t', '=']).unwrap_or((line, ""));
    (word, rest.trim_start_matches([' ', '\t', '=']).trim_end())
}

/// Refuses one entry too many.
fn check_count(entries: usize) -> Result<()> {
    if entries < limits::ENTRIES { Ok(()) } else { Err(Error::too_large("boot entries", limits::ENTRIES)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(title: &str, id: &str) -> Item {
        Item::Entry(Entry { title: title.to_owned(), id: id.to_owned(), ..Entry::default() })
    }

    fn menu(default: &str) -> Menu {
        let items = vec![
            entry("Debian", "simple"),
            Item::Submenu {
                title: "Advanced".to_owned(),
                id: "adv".to_owned(),
                items: vec![entry("new", "n"), entry("old > older", "o")],
            },
            entry("last", ""),
        ];
        Menu { items, default: Some(default.to_owned()) }
    }

    #[test]
    fn defaults_in_every_form() {
        for (default, title) in [
            ("", "Debian"),
            ("0", "Debian"),
            ("2", "last"),
            ("simple", "Debian"),
            ("last", "last"),
            ("1", "new"),
            ("1>1", "old > older"),
            ("adv>o", "old > older"),
            ("Advanced>n", "new"),
            ("Advanced>old >> older", "old > older"),
            ("1>n", "new"),
        ] {
            assert_eq!(menu(default).default_entry().unwrap().title, title, "{default}");
        }
    }

    #[test]
    fn a_default_that_leads_nowhere_is_an_error_that_lists_the_entries() {
        for default in ["3", "missing", "1>2", "adv>missing", "-1"] {
            let text = menu(default).default_entry().unwrap_err().to_string();
            assert!(text.contains("Debian; new; old > older; last"), "{default}: {text}");
        }
        assert_eq!(Menu::default().default_entry().unwrap_err().code(), "NO_ENTRY");
    }

    #[test]
    fn users_count_entries_without_submenus() {
        let menu = menu("0");
        assert_eq!(menu.wanted_entry("2").unwrap().title, "old > older");
        assert_eq!(menu.wanted_entry("o").unwrap().title, "old > older");
        assert_eq!(menu.wanted_entry("adv>n").unwrap().title, "new");
        assert!(menu.wanted_entry("4").is_err() && menu.wanted_entry("").is_err());
    }
}
