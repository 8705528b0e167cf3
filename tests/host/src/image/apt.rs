//! Finding and fetching an image's packages with this machine's `apt-get`, its mirrors and its keys, but with a state of
//! our own: what is installed here plays no part, and nothing is installed.

use super::recipe::RELEASE;
use crate::{
    error::{Context as _, Error, Result},
    lock::Lock,
    paths, process,
};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

/// Longest run of `apt-get`: 140 MB from a slow mirror.
const LIMIT: Duration = Duration::from_secs(900);

/// Package lists older than this are fetched again: mirrors drop superseded packages.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// Names another mirror than the ones in `/etc/apt`.
const MIRROR_VARIABLE: &str = "XEN_HOST_MIRROR";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt of our own under `target/nested/apt`. One process at a time has it.
pub(super) struct Apt {
    dir: PathBuf,
    #[expect(dead_code, reason = "holding it is its purpose")]
    lock: Lock,
}

impl Apt {
    pub(super) fn new() -> Result<Self> {
        let lock = Lock::exclusive("apt")?;
        let dir = paths::nested_dir("apt")?;
        for sub in ["lists/partial", "archives/partial", "parts"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).at("create", path)?;
        }
        let sources = match env::var(MIRROR_VARIABLE) {
            Ok(mirror) => vec![from_mirror(&mirror)],
            Err(_) => sources(&configured()?),
        };
        if sources.is_empty() {
            return Err(Error::Image(format!(
                "/etc/apt names no mirror for Debian {RELEASE}; set {MIRROR_VARIABLE} to one"
            )));
        }
        let list = dir.join("sources.list");
        fs::write(&list, sources.join("\n") + "\n").at("write", list)?;
        // Nothing is installed in the system to be: every dependency is part of the answer.
        let status = dir.join("status");
        fs::write(&status, "").at("write", status)?;
        Ok(Self { dir, lock })
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        let mut set = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        set("Dir::State", &self.dir);
        set("Dir::State::lists", &self.dir.join("lists"));
        set("Dir::State::status", &self.dir.join("status"));
        set("Dir::Cache", &self.dir);
        set("Dir::Cache::archives", &self.archives());
        set("Dir::Etc::SourceList", &self.dir.join("sources.list"));
        set("Dir::Etc::SourceParts", &self.dir.join("parts"));
        for plain in [
            "Dir::Etc::Preferences=/dev/null",
            "Dir::Etc::PreferencesParts=/dev/null",
            "APT::Architecture=amd64",
            "APT::Install-Recommends=0",
            "APT::Get::Assume-Yes=1",
            // The download user of apt cannot write below a private home directory.
            "APT::Sandbox::User=",
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            "Debug::NoLocking=1",
        ] {
            command.args(["-o", plain]);
        }
        command.env("LC_ALL", "C").arg("-qq");
        command
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("archives")
    }

    /// Fetches packages and what they depend on, and returns their files in an order in which dependencies come first.
    pub(super) fn fetch(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let fresh = self.lists_are_fresh();
        if !fresh {
            self.update()?;
        }
        match self.download(packages) {
            // A mirror may have moved on since the lists were fetched.
            Err(Error::Program { .. }) if fresh => {
                self.update()?;
                self.download(packages)
            }
            other => other,
        }
    }

    fn lists_are_fresh(&self) -> bool {
        let stamp = fs::metadata(self.dir.join("updated")).and_then(|m| m.modified());
        let age = |then| SystemTime::now().duration_since(then).unwrap_or(Duration::MAX);
        stamp.is_ok_and(|then| age(then) < LISTS_FRESH)
    }

    fn update(&self) -> Result<()> {
        process::check(self.get().args(["-o", "APT::Update::Error-Mode=any", "update"]), LIMIT)?;
        let stamp = self.dir.join("updated");
        fs::write(&stamp, "").at("write", stamp)
    }

    fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        process::check(self.get().args(["--download-only", "install"]).args(packages), LIMIT)?;
        let plan = process::check(self.get().args(["--simulate", "install"]).args(packages), LIMIT)?.text();
        let files: Vec<_> = planned(&plan).into_iter().map(|name| self.archives().join(name)).collect();
        match files.iter().find(|f| !f.is_file()) {
            Some(lost) => Err(Error::Image(format!("apt-get left no {}", lost.display()))),
            None if files.is_empty() => Err(Error::Image(format!("apt-get's plan is empty: {plan}"))),
            None => Ok(files),
        }
    }
}

/// File names in the cache for the `Inst NAME (VERSION ORIGIN... [ARCH])` lines of a simulated install.
fn planned(simulation: &str) -> Vec<String> {
    let file = |line: &str| -> Option<String> {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
        let (version, rest) = rest.split_once(' ')?;
        let (_, rest) = rest.split_once('[')?;
        let (arch, _) = rest.split_once(']')?;
        // apt writes the colon of an epoch so.
        Some(format!("{name}_{}_{arch}.deb", version.replace(':', "%3a")))
    };
    simulation.lines().filter_map(file).collect()
}

fn from_mirror(mirror: &str) -> String {
    let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    format!("deb {signed}{mirror} {RELEASE} main")
}

/// A configuration file of apt: true for the "deb822" form.
type SourceFile = (bool, String);

fn configured() -> Result<Vec<SourceFile>> {
    let parts = Path::new("/etc/apt/sources.list.d");
    let mut found = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir(parts) {
        for entry in entries {
            found.push(entry.at("list", parts)?.path());
        }
    }
    found.sort();
    let mut files = Vec::new();
    for path in found {
        let new_form = match path.extension().and_then(|e| e.to_str()) {
            Some("sources") => true,
            Some("list") => false,
            _ => continue,
        };
        // An unreadable or missing file is one that apt would not get a mirror from either.
        if let Ok(text) = fs::read_to_string(&path) {
            files.push((new_form, text));
        }
    }
    Ok(files)
}

/// The one-line entries for the release that apt's configuration files amount to.
fn sources(files: &[SourceFile]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (new_form, text) in files {
        let entries = if *new_form { stanzas(text) } else { text.lines().filter_map(one_line).collect() };
        for entry in entries.into_iter().flatten() {
            if !lines.contains(&entry) {
                lines.push(entry);
            }
        }
    }
    lines
}

fn wanted(suite: &str) -> bool {
    let suite = suite.trim_end_matches('/');
    suite.strip_prefix(RELEASE).is_some_and(|rest| matches!(rest, "" | "-updates" | "-security"))
}

fn entries(options: &str, uris: &[&str], suites: &[&str], components: &[&str]) -> Vec<String> {
    if !components.contains(&"main") {
        return Vec::new();
    }
    let options = if options.is_empty() { String::new() } else { format!("[{options}] ") };
    let suites = || suites.iter().filter(|s| wanted(s));
    uris.iter()
        .flat_map(|uri| suites().map(move |suite| (uri, suite)))
        .map(|(uri, suite)| format!("deb {options}{uri} {suite} main"))
        .collect()
}

/// `deb [options] URI SUITE COMPONENT...`
fn one_line(line: &str) -> Option<Vec<String>> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let words: Vec<_> = rest.split_whitespace().collect();
    let (uri, rest) = words.split_first()?;
    let (suite, components) = rest.split_first()?;
    Some(entries(options.trim(), &[uri], &[suite], components))
}

/// Paragraphs of `Field: value` lines, as in deb822(5) and sources.list(5).
fn stanzas(text: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let lines: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
    for stanza in lines.split(|l| l.trim().is_empty()) {
        let field = |name: &str| -> Vec<&str> {
            let mut values = Vec::new();
            let mut inside = false;
            for line in stanza {
                if !line.starts_with([' ', '\t']) {
                    let (key, value) = line.split_once(':').unwrap_or((line, ""));
                    inside = key.eq_ignore_ascii_case(name);
                    if inside {
                        values.extend(value.split_whitespace());
                    }
                } else if inside {
                    values.extend(line.split_whitespace());
                }
            }
            values
        };
        if !field("Types").contains(&"deb") || field("Enabled").first() == Some(&"no") {
            continue;
        }
        // A key given inline cannot be said on one line; the machine's trusted keys have to do then.
        let options = match field("Signed-By").as_slice() {
            [path] if path.starts_with('/') => format!("signed-by={path}"),
            _ => String::new(),
        };
        all.push(entries(&options, &field("URIs"), &field("Suites"), &field("Components")));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_of_sources() {
        let new = "Types: deb deb-src\n# a comment\nURIs: http://a.test/debian\nSuites: bookworm bookworm-updates sid\n\
                   Components: main\n contrib\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://b.test/x\nSuites: nodistro\n\
                   Components: main\n\nTypes: deb\nEnabled: no\nURIs: http://c.test\nSuites: bookworm\nComponents: main\n";
        let old = "# deb http://no.test bookworm main\ndeb [arch=amd64] http://d.test bookworm-security main # tail\n\
                   deb-src http://d.test bookworm main\ndeb http://e.test bookworm contrib\n";
        let got = sources(&[(true, new.to_owned()), (false, old.to_owned())]);
        assert_eq!(
            got,
            [
                "deb [signed-by=/k.gpg] http://a.test/debian bookworm main",
                "deb [signed-by=/k.gpg] http://a.test/debian bookworm-updates main",
                "deb [arch=amd64] http://d.test bookworm-security main",
            ]
        );
    }

    #[test]
    fn the_plan_names_cache_files() {
        let plan = "NOTE: simulation\nInst libc6 (2.36-9 Debian:12.11/oldstable [amd64]) []\n\
                    Inst openssh-server (1:9.2p1-2 Debian-Security:12/oldstable-security [amd64])\nConf libc6 (2.36-9 [amd64])\n";
        assert_eq!(planned(plan), ["libc6_2.36-9_amd64.deb", "openssh-server_1%3a9.2p1-2_amd64.deb"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,200}", new_form: bool) {
            drop(sources(&[(new_form, text.clone())]));
            drop(planned(&text));
        }
    }
}
