//! The dom0 image: everything the nested machine boots from, made of Debian packages.
//!
//! ```text
//!   apt-get ──▶ packages ──▶ root directory ──▶ trimmed ──▶ root.squashfs
//!                                 ├──▶ boot/xen-4.17-amd64.gz ──▶ xen
//!                                 ├──▶ boot/vmlinuz-*         ──▶ vmlinux
//!                                 └──▶ busybox, modules       ──▶ initramfs (dom0's; the guest's is in the root)
//! ```
//!
//! The product is `target/nested/image-KEY`, where KEY is the hash of the recipe: it appears in one step when it is
//! complete, and is never changed.

mod apt;
mod cpio;
mod debian;
mod grub;
mod initramfs;
mod kernel;
mod modules;
mod recipe;
mod rootfs;

pub use debian::DebianDisk;

use crate::{
    error::{Context as _, Result},
    lock::Lock,
    paths::{self, Building},
    process,
    progress::step,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Longest generation of a key.
const KEYGEN_LIMIT: Duration = Duration::from_secs(30);

/// A complete dom0 image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    dir: PathBuf,
    key: String,
}

impl Image {
    /// The image of the current recipe, built when it is not there. Several processes may ask at once; one builds.
    ///
    /// # Errors
    /// When a package cannot be fetched, a program is missing or fails, or the disk is full.
    pub fn get() -> Result<Self> {
        let key = recipe::key().to_string();
        Ok(Self { dir: product("dom0 image", "image-", &key, build)?, key })
    }

    /// Removes the image, so that the next [`Image::get`] builds it again (from cached downloads).
    ///
    /// # Errors
    /// When files cannot be removed.
    pub fn discard() -> Result<()> {
        let name = format!("image-{}", recipe::key());
        let _lock = Lock::exclusive(&name)?;
        paths::remove_tree(&paths::nested()?.join(name))
    }

    /// The image's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The recipe's hash.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The unpacked hypervisor.
    pub fn xen(&self) -> PathBuf {
        self.dir.join("xen")
    }

    /// The unpacked dom0 kernel.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// dom0's initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// dom0's root file system.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.squashfs")
    }

    /// The private key that opens dom0.
    pub fn ssh_key(&self) -> PathBuf {
        self.dir.join("key")
    }
}

fn build(name: &str, to: &Path) -> Result<()> {
    let building = Building::new(name)?;
    let product = building.path().join("product");
    let root = building.path().join("root");
    for dir in [&product, &root] {
        fs::create_dir_all(dir).at("create", dir)?;
    }
    let packages = step("  fetch packages", || apt::Apt::new()?.fetch(recipe::PACKAGES))?;
    step("  unpack packages", || rootfs::unpack(&root, &packages))?;
    let modules = step("  kernel modules", || {
        let modules = modules::Modules::new(&root)?;
        modules.keep_only(&[recipe::DOM0_MODULES, recipe::GUEST_EMULATED].concat())?;
        Ok::<_, crate::Error>(modules)
    })?;
    step("  xen, kernel, initramfs, keys", || {
        kernel::unpack_file("gzip", &rootfs::hypervisor(&root)?, &product.join("xen"))?;
        let vmlinux = product.join("vmlinux");
        kernel::unpack(&rootfs::vmlinuz(&root, &modules.release), &vmlinux)?;
        let path = product.join("initramfs");
        fs::write(&path, initramfs::tiny(&root, &modules)?).at("write", path)?;
        rootfs::add_guests(&root, &modules, &initramfs::guest(&root, &modules)?, &vmlinux)?;
        let host_key = building.path().join("host_key");
        keygen(&product.join("key"))?;
        keygen(&host_key)?;
        rootfs::settle(&root, &product.join("key"), &host_key)
    })?;
    step("  pack root", || rootfs::pack(&root, &product.join("root.squashfs")))?;
    // `to` must appear complete or not at all.
    fs::rename(&product, to).at("rename", &product)
}

fn keygen(path: &Path) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "nested-xen", "-f"]).arg(path);
    process::check(&mut command, KEYGEN_LIMIT).map(drop)
}

/// The directory of what is made once by a recipe, of which `key` is the hash: made now, and older ones removed, when it is
/// not there. `build` gets its name and its place.
fn product(
    what: &str,
    kind: &str,
    key: &str,
    build: impl FnOnce(&str, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let name = format!("{kind}{key}");
    let dir = paths::nested()?.join(&name);
    if !dir.is_dir() {
        let _lock = Lock::exclusive(&name)?;
        if !dir.is_dir() {
            step(what, || build(&name, &dir))?;
            prune(kind, &name)?;
        }
    }
    Ok(dir)
}

/// Removes products of older recipes; hosts that still run from one keep its files open.
fn prune(kind: &str, current: &str) -> Result<()> {
    let dir = paths::nested()?;
    for entry in fs::read_dir(&dir).at("list", &dir)? {
        let name = entry.at("list", &dir)?.file_name().to_string_lossy().into_owned();
        if !name.starts_with(kind) || name == current {
            continue;
        }
        if let Some(_lock) = Lock::try_exclusive(&name)? {
            paths::remove_tree(&dir.join(&name))?;
        }
    }
    Ok(())
}
