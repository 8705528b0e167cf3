//! Where the nested host keeps things: all of it under `target/nested`, so that `cargo clean` removes it.
//!
//! ```text
//! target/nested/apt/            package lists and downloaded packages
//!              /image-KEY/      xen, vmlinux, initramfs, root, ssh keys (one per recipe)
//!              /debian-KEY/     a disk with Debian 12 on it
//!              /template-KEY/   RAM file and device state of a snapshot
//!              /interrupt-lock-KEY.so  what mends QEMU for it
//!              /host-NAME/      a running host: console, monitor socket, ssh control sockets
//!              /lock/           lock files and clone slots
//!              /tmp/            things being built
//! ```

use crate::error::{Context as _, Result};
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The cargo target directory: `CARGO_TARGET_DIR`, or `target` in the workspace.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() => dir.into(),
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// `target/nested`, created when missing.
pub(crate) fn nested() -> Result<PathBuf> {
    made(target().join("nested"))
}

/// A subdirectory of `target/nested`, created when missing.
pub(crate) fn nested_dir(name: &str) -> Result<PathBuf> {
    made(nested()?.join(name))
}

fn made(dir: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&dir).at("create", &dir)?;
    Ok(dir)
}

/// Removes a directory tree; one that is not there is fine.
pub(crate) fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", dir),
        _ => Ok(()),
    }
}

/// A directory under `target/nested/tmp` that is removed when dropped, unless it was moved to its final place.
#[derive(Debug)]
pub(crate) struct Building {
    path: PathBuf,
}

impl Building {
    /// An empty directory for one build product. The caller holds the product's lock, so a directory of the same
    /// name can only be what an interrupted build left.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = nested_dir("tmp")?.join(name);
        remove_tree(&path)?;
        fs::create_dir_all(&path).at("create", &path)?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the finished product to `to` in one step.
    pub(crate) fn finish(self, to: &Path) -> Result<()> {
        remove_tree(to)?;
        fs::rename(&self.path, to).at("rename", &self.path)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // Nothing to tell anybody: the next build of the same product empties it first.
        drop(remove_tree(&self.path));
    }
}
