//! The licence check: every dependency's SPDX expression against the list in `deny.toml`, without cargo-deny.

use crate::{Failure, cargo::cargo};
use serde_json::Value;
use std::{collections::BTreeSet, fs};
use xen_host::workspace;

/// Checks all dependencies and tells how many there are.
pub(crate) fn check() -> Result<usize, Failure> {
    let path = workspace().join("deny.toml");
    let allowed = allowed(&fs::read_to_string(&path)?);
    if allowed.is_empty() {
        return Err(Failure::Licences(vec![format!("{} allows nothing", path.display())]));
    }
    let mut command = cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
        "x86_64-unknown-linux-gnu",
    ]);
    let output = command.output().map_err(|e| Failure::start(&command, e))?;
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|e| Failure::Step {
        command: "cargo metadata".to_owned(),
        status: format!("{e}: {}", String::from_utf8_lossy(&output.stderr).trim()),
    })?;
    let packages = metadata.get("packages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let refused: Vec<_> = packages.iter().filter_map(|package| refused(package, &allowed)).collect();
    if refused.is_empty() { Ok(packages.len()) } else { Err(Failure::Licences(refused)) }
}

fn refused(package: &Value, allowed: &BTreeSet<String>) -> Option<String> {
    let field = |name| package.get(name).and_then(Value::as_str).unwrap_or("?");
    let licence = field("license");
    (!permits(licence, allowed)).then(|| format!("{} {}: {licence}", field("name"), field("version")))
}

/// The strings of the `allow` list of the `[licenses]` section. Reads only the plain form that file is written in.
fn allowed(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let section =
        lines.skip_while(|line| *line != "[licenses]").skip(1).take_while(|line| !line.starts_with('['));
    let list = section.skip_while(|line| !line.starts_with("allow")).take_while(|line| *line != "]");
    list.flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Whether an SPDX expression can be satisfied with the allowed licences. `/` is the old way to write `OR`.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed, depth: 0 };
    parser.any() == Some(true) && parser.words.is_empty()
}

/// Deepest nesting of parentheses that is followed; real expressions have one or two.
const MAX_DEPTH: usize = 16;

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a BTreeSet<String>,
    depth: usize,
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        match self.words.split_first() {
            Some((first, rest)) if *first == word => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }

    fn any(&mut self) -> Option<bool> {
        let mut permitted = self.all()?;
        while self.take("OR") {
            permitted |= self.all()?;
        }
        Some(permitted)
    }

    fn all(&mut self) -> Option<bool> {
        let mut permitted = self.one()?;
        while self.take("AND") {
            permitted &= self.one()?;
        }
        Some(permitted)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return None;
            }
            let permitted = self.any()?;
            self.depth -= 1;
            return self.take(")").then_some(permitted);
        }
        let (name, rest) = self.words.split_first()?;
        self.words = rest;
        if self.take("WITH") {
            let (exception, rest) = self.words.split_first()?;
            self.words = rest;
            // An exception only adds permissions.
            let both = format!("{name} WITH {exception}");
            return Some(self.allowed.contains(&both) || self.allowed.contains(*name));
        }
        Some(self.allowed.contains(*name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> BTreeSet<String> {
        ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into()
    }

    #[test]
    fn expressions() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Foo",
            "Foo OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(permits(good, &list()), "{good}");
        }
        for bad in ["", "?", "Foo", "MIT AND Foo", "(MIT", "MIT)", "MIT OR", "MIT Apache-2.0", "( ( ", "WITH"]
        {
            assert!(!permits(bad, &list()), "{bad}");
        }
        assert!(!permits(&"(".repeat(100_000), &list()));
    }

    #[test]
    fn our_dependencies_are_allowed() {
        assert!(check().expect("all allowed") > 10);
    }

    #[test]
    fn the_list_is_read() {
        let text = "[graph]\nallow = [\"No\"]\n[licenses]\n# \"Not\"\nallow = [\n  \"MIT\", # \"Nor\"\n  \"ISC\",\n]\n[bans]\nallow = [\"No\"]\n";
        assert_eq!(allowed(text), ["ISC", "MIT"].map(str::to_owned).into());
    }
}
