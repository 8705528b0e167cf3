//! Entries of the boot loader specification (`loader/entries/*.conf`), as GRUB's `blscfg` and systemd-boot read them.

use super::{Entry, Located, Menu, check_count, grubenv, keyword, lines, version};
use crate::{error::Result, volumes::Volumes};
use std::{
    cmp::{Ordering, Reverse},
    collections::HashMap,
};

/// Variables of GRUB's environment.
pub(crate) type Variables = HashMap<String, String>;

/// An entry's file with its keys.
struct File {
    id: String,
    keys: Vec<(String, String)>,
}

impl File {
    fn new(id: &str, text: &str) -> Self {
        let keys =
            lines(text).map(|(_, line)| keyword(line)).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Self { id: id.to_owned(), keys }
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.keys.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// The entries of a directory, newest first: by sort key, machine and version where they have one, then by name.
fn files(volumes: &mut Volumes, volume: usize, dir: &str, sort_keys: bool) -> Result<Vec<File>> {
    let mut found = Vec::new();
    for name in volumes.list(volume, dir)? {
        let Some(id) = name.strip_suffix(".conf") else { continue };
        check_count(found.len())?;
        let Some(text) = volumes.text(volume, &format!("{dir}/{name}"))? else { continue };
        found.push(File::new(id, &text));
    }
    found.sort_by(|a, b| order(a, b, sort_keys));
    Ok(found)
}

/// Which of two entries comes first.
fn order(a: &File, b: &File, sort_keys: bool) -> Ordering {
    let by_name = version::compare(&b.id, &a.id);
    if !sort_keys {
        return by_name;
    }
    let newer = version::compare(b.get("version").unwrap_or(""), a.get("version").unwrap_or(""));
    // Those with a sort key come first.
    let (x, y) = (a.get("sort-key"), b.get("sort-key"));
    let rank = Reverse(x.is_some()).cmp(&Reverse(y.is_some())).then_with(|| x.cmp(&y));
    if x.is_some() && y.is_some() { rank.then(newer).then(by_name) } else { rank.then(by_name) }
}

/// The entries of a directory as GRUB's `blscfg` makes them: `$name` stands for a variable of the environment.
///
/// # Errors
/// When the volume cannot be read or there are too many.
pub(crate) fn entries(
    volumes: &mut Volumes,
    volume: usize,
    dir: &str,
    variables: &Variables,
) -> Result<Vec<Entry>> {
    let files = files(volumes, volume, dir, false)?;
    files.iter().map(|file| entry(volumes, volume, file, variables)).collect()
}

fn entry(volumes: &mut Volumes, volume: usize, file: &File, variables: &Variables) -> Result<Entry> {
    let title = file.get("title").unwrap_or(&file.id);
    let mut entry = Entry { title: expand(title, variables), id: file.id.clone(), ..Entry::default() };
    match file.get("linux") {
        Some(path) => {
            entry.kernel = Some(locate(volumes, volume, &expand(path, variables))?);
            for path in file.all("initrd").map(|value| expand(value, variables)) {
                for path in path.split_whitespace() {
                    entry.ramdisks.push(locate(volumes, volume, path)?);
                }
            }
        }
        None => entry.problem = Some("it has no kernel".to_owned()),
    }
    let options: Vec<_> = file.all("options").map(|value| expand(value, variables)).collect();
    entry.args = options.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(entry)
}

/// Where a path of an entry is: entries assume that `/boot` is, or is not, a file system of its own.
fn locate(volumes: &mut Volumes, volume: usize, path: &str) -> Result<Located> {
    let plain = format!("/{}", path.trim_start_matches('/'));
    let within = format!("/boot{plain}");
    let without = plain.strip_prefix("/boot").filter(|rest| rest.starts_with('/')).map(str::to_owned);
    for candidate in [Some(plain.clone()), Some(within), without].into_iter().flatten() {
        if volumes.is_file(volume, &candidate)? {
            return Ok(Located { volume, path: candidate });
        }
    }
    Ok(Located { volume, path: plain })
}

/// Replaces `$name` and `${name}`; unknown ones by nothing, as GRUB does.
fn expand(text: &str, variables: &Variables) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        let braced = after.strip_prefix('{').and_then(|braced| braced.split_once('}'));
        let (name, tail) = braced.unwrap_or_else(|| {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            after.split_at(end)
        });
        out += variables.get(name).map_or("", String::as_str);
        rest = tail;
    }
    out + rest
}

/// systemd-boot's menu on a volume; `None` when there are no entries.
///
/// # Errors
/// As [`entries`].
pub fn systemd_boot(volumes: &mut Volumes, volume: usize) -> Result<Option<Menu>> {
    let files = files(volumes, volume, "/loader/entries", true)?;
    if files.is_empty() {
        return Ok(None);
    }
    let none = HashMap::new();
    let entries: Vec<_> = files.iter().map(|f| entry(volumes, volume, f, &none)).collect::<Result<_>>()?;
    let loader = volumes.text(volume, "/loader/loader.conf")?.unwrap_or_default();
    let pattern =
        lines(&loader).map(|(_, l)| keyword(l)).filter(|(k, _)| *k == "default").last().map(|(_, v)| v);
    let default = match pattern {
        None => None,
        // A pattern for the file's name; one that fits nothing stays, and is an error when it is looked up.
        Some(pattern) => {
            let fits = |e: &&Entry| glob(pattern, &format!("{}.conf", e.id)) || glob(pattern, &e.id);
            Some(entries.iter().find(fits).map_or_else(|| pattern.to_owned(), |e| e.id.clone()))
        }
    };
    Ok(Some(Menu::flat(entries, default)))
}

/// Boot loader entries without a GRUB script: the environment block says which is saved.
///
/// # Errors
/// As [`entries`].
pub fn bare(volumes: &mut Volumes, volume: usize, dir: &str, env: &str) -> Result<Option<Menu>> {
    let block = volumes.text(volume, env)?.unwrap_or_default();
    let variables: HashMap<_, _> = grubenv::parse(&block).into_iter().collect();
    let entries = entries(volumes, volume, dir, &variables)?;
    let saved = variables.get("saved_entry").filter(|id| !id.is_empty()).cloned();
    Ok((!entries.is_empty()).then(|| Menu::flat(entries, saved)))
}

/// Whether a name fits a pattern with `*` and `?`.
pub(crate) fn glob(pattern: &str, name: &str) -> bool {
    // Only the last star is ever gone back to, so the work is at most the product of the lengths.
    let (pattern, name): (Vec<_>, Vec<_>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut seen, mut back) = (0, 0, None);
    while seen < name.len() {
        match pattern.get(at) {
            Some('*') => {
                back = Some((at, seen));
                at += 1;
            }
            Some(&c) if c == '?' || c == name[seen] => (at, seen) = (at + 1, seen + 1),
            _ => match back {
                Some((star, from)) => {
                    back = Some((star, from + 1));
                    (at, seen) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&c| c == '*')
}

/// Entries in a row, a zero between them, the first line of each its name and the first of all an environment: whatever
/// they say, they have an order, and their values can be taken; for fuzzing.
pub fn fuzz(text: &str) {
    let mut parts = text.split('\0');
    let variables: Variables = grubenv::parse(parts.next().unwrap_or_default()).into_iter().collect();
    let file = |part: &str| part.split_once('\n').map(|(id, text)| File::new(id, text));
    let files: Vec<_> = parts.filter_map(file).take(FUZZED).collect();
    for sort_keys in [false, true] {
        let order = |a: usize, b: usize| order(&files[a], &files[b], sort_keys);
        for a in 0..files.len() {
            for b in 0..files.len() {
                assert_eq!(order(a, b), order(b, a).reverse());
                for c in 0..files.len() {
                    assert!(order(a, b).is_gt() || order(b, c).is_gt() || order(a, c).is_le());
                }
            }
        }
    }
    for file in &files {
        for (_, value) in &file.keys {
            let _ = (expand(value, &variables), glob(value, &file.id));
        }
    }
}

/// Entries of which all three are compared.
const FUZZED: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("arch*", "arch.conf", true),
            ("a?c*.conf", "arc-1.conf", true),
            ("*-6.*-*.conf", "m-6.1-2.conf", true),
            ("arch", "arch.conf", false),
            ("*a*a*a*a*b", &"a".repeat(60), false),
        ] {
            assert_eq!(glob(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn variables_are_expanded_once() {
        let variables =
            HashMap::from([("a".to_owned(), "x $b".to_owned()), ("b".to_owned(), "y".to_owned())]);
        assert_eq!(expand("1 $a ${b}2 $none$ end", &variables), "1 x $b y2  end");
        assert_eq!(expand("${a", &variables), "{a");
    }
}
