//! Kernel modules: which files a list of modules needs, in the order they load, from `modules.dep`.

use crate::{
    error::{Context as _, Error, Result},
    process,
};
use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Longest `depmod` over all of Debian's modules.
const LIMIT: Duration = Duration::from_secs(120);

/// The modules of one kernel in a root directory.
pub(super) struct Modules {
    root: PathBuf,
    /// Kernel release, as `uname -r` says it.
    pub(super) release: String,
    dependencies: Dependencies,
}

/// Path of each module (below `/lib/modules/RELEASE`) and of what it depends on, by the module's name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dependencies(HashMap<String, (String, Vec<String>)>);

/// Modules are named with either sign in lists and file names.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

impl Dependencies {
    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (path, needs) = line.split_once(':')?;
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            Some((name_of(path), (path.to_owned(), needs)))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// Paths for `names`, each after what it depends on. Names that are not there are built into the kernel.
    fn closure(&self, names: &[&str]) -> Vec<String> {
        let mut order: Vec<String> = Vec::new();
        for name in names {
            let Some((path, needs)) = self.0.get(&name.replace('-', "_")) else { continue };
            // modules.dep lists all that is needed, the first to be loaded last.
            for path in needs.iter().rev().chain([path]) {
                if !order.contains(path) {
                    order.push(path.clone());
                }
            }
        }
        order
    }
}

impl Modules {
    /// Finds the one kernel in `root` and works out its dependencies.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let dir = root.join("usr/lib/modules");
        let mut releases = Vec::new();
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            releases.push(entry.at("list", &dir)?.file_name().to_string_lossy().into_owned());
        }
        let [release] = releases.as_slice() else {
            return Err(Error::Image(format!(
                "expected one kernel in {}, found {releases:?}",
                dir.display()
            )));
        };
        depmod(root, release)?;
        let list = dir.join(release).join("modules.dep");
        let dependencies = Dependencies::parse(&fs::read_to_string(&list).at("read", list)?);
        Ok(Self { root: root.to_owned(), release: release.clone(), dependencies })
    }

    fn dir(&self) -> PathBuf {
        self.root.join("usr/lib/modules").join(&self.release)
    }

    /// Files for `names`, in loading order.
    pub(super) fn files(&self, names: &[&str]) -> Vec<PathBuf> {
        self.dependencies.closure(names).into_iter().map(|path| self.dir().join(path)).collect()
    }

    /// Removes all modules but `names` and what they need.
    pub(super) fn keep_only(&self, names: &[&str]) -> Result<()> {
        let keep: BTreeSet<_> = self.files(names).into_iter().collect();
        for (path, _) in self.dependencies.0.values() {
            let path = self.dir().join(path);
            if !keep.contains(&path) {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        depmod(&self.root, &self.release)
    }
}

fn depmod(root: &Path, release: &str) -> Result<()> {
    let mut command = Command::new("depmod");
    command.arg("-b").arg(root).arg(release);
    // Found by a user without the system directories in the path, too.
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    process::check(&mut command, LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn loading_order() {
        let dependencies = Dependencies::parse(
            "kernel/net/stp.ko: kernel/net/llc.ko\nkernel/net/llc.ko:\nkernel/net/bridge.ko: kernel/net/stp.ko kernel/net/llc.ko\nkernel/xen-blkback.ko:\n",
        );
        assert_eq!(
            dependencies.closure(&["bridge", "xen_blkback", "builtin"]),
            ["kernel/net/llc.ko", "kernel/net/stp.ko", "kernel/net/bridge.ko", "kernel/xen-blkback.ko"]
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,200}") {
            drop(Dependencies::parse(&text).closure(&["a"]));
        }
    }
}
