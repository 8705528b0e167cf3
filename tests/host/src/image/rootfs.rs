//! dom0's root directory: packages unpacked side by side, then the few things their maintainer scripts would have
//! made. Running those scripts would take a chroot, root and two minutes; nothing else of theirs is used here.

use super::{modules::Modules, recipe};
use crate::{
    error::{Context as _, Error, Result},
    process,
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// Longest unpacking of one package, the kernel's on a busy machine.
const UNPACK_LIMIT: Duration = Duration::from_secs(180);

/// Unpacks the packages into `root`, on as many threads as there are cores.
pub(super) fn unpack(root: &Path, packages: &[PathBuf]) -> Result<()> {
    // Debian 12 has these merged into /usr, but not every package is built that way.
    for dir in ["bin", "sbin", "lib", "lib64"] {
        let path = root.join("usr").join(dir);
        fs::create_dir_all(&path).at("create", path)?;
        let link = root.join(dir);
        symlink(format!("usr/{dir}"), &link).at("link", link)?;
    }
    // The largest take longest: first, so that no thread is left with one at the end.
    let mut queue = packages.to_vec();
    queue.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).map_or(0, |m| m.len())));
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(package) = queue.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = unpack_one(root, package) {
                        process::locked(&failed).get_or_insert(error);
                        next.store(queue.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or(None).map_or(Ok(()), Err)
}

fn unpack_one(root: &Path, package: &Path) -> Result<()> {
    let script = "set -o pipefail; dpkg-deb --fsys-tarfile \"$1\" | \
                  tar -x -C \"$2\" --keep-directory-symlink --no-same-owner \"${@:3}\"";
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash"]).arg(package).arg(root);
    bash.args(recipe::EXCLUDED.iter().map(|path| format!("--exclude={path}")));
    process::check(&mut bash, UNPACK_LIMIT).map(drop)
}

/// What `base-passwd`, `openssh-server` and the Xen packages would have added. No password is ever valid.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const SHADOW: &str = "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n";

/// Access is by key only, and Unix sockets are forwarded.
const SSHD: &str = "HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\n\
                    PasswordAuthentication no\nUsePAM no\nUseDNS no\nPrintMotd no\nMaxSessions 100\n\
                    AllowStreamLocalForwarding yes\nStreamLocalBindUnlink yes\n";

/// Makes the unpacked packages a system that boots.
pub(super) fn settle(root: &Path, ssh_key: &Path, host_key: &Path) -> Result<()> {
    let group = root.join("usr/share/base-passwd/group.master");
    let group = fs::read_to_string(&group).at("read", group)?;
    write(root, "etc/group", &group, 0o644)?;
    write(root, "etc/passwd", PASSWD, 0o644)?;
    write(root, "etc/shadow", SHADOW, 0o600)?;
    // Who has another shell may not log in.
    write(root, "etc/shells", "/bin/sh\n/bin/bash\n", 0o644)?;
    write(root, "etc/hostname", "dom0\n", 0o644)?;
    write(root, "etc/hosts", "127.0.0.1 localhost dom0\n", 0o644)?;
    write(root, "etc/ssh/sshd_config", SSHD, 0o644)?;
    write(root, "etc/resolv.conf", "", 0o644)?;
    // What is on a guest's disk is no business of dom0's kernel, its partition tables included.
    write(root, "etc/modprobe.d/nbd.conf", "options nbd max_part=0\n", 0o644)?;
    write(root, "init", recipe::DOM0_INIT, 0o755)?;
    let read = |path: &Path| fs::read_to_string(path).at("read", path);
    write(root, "root/.ssh/authorized_keys", &read(&ssh_key.with_extension("pub"))?, 0o600)?;
    write(root, "etc/ssh/ssh_host_ed25519_key", &read(host_key)?, 0o600)?;
    for private in ["root", "root/.ssh"] {
        mode(&root.join(private), 0o700)?;
    }
    for dir in
        ["etc/dropbear", "home", "mnt", "opt", "usr/local/bin", "usr/local/sbin", "var/cache", "var/lib/xen"]
    {
        let path = root.join(dir);
        fs::create_dir_all(&path).at("create", path)?;
    }
    for (link, target) in [("usr/bin/awk", "mawk"), ("usr/bin/nc", "busybox"), ("usr/bin/vi", "busybox")] {
        let link = root.join(link);
        if link.symlink_metadata().is_err() {
            symlink(target, &link).at("link", link)?;
        }
    }
    // Without the cache every program looks for its libraries in a dozen directories. It needs a chroot, so a build
    // without root goes without; the libraries are in the default places.
    let mut ldconfig = Command::new("ldconfig");
    ldconfig.arg("-r").arg(root).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    drop(process::check(&mut ldconfig, UNPACK_LIMIT));
    Ok(())
}

fn write(root: &Path, name: &str, text: &str, bits: u32) -> Result<()> {
    let path = root.join(name);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).at("create", dir)?;
    }
    fs::write(&path, text).at("write", &path)?;
    mode(&path, bits)
}

fn mode(path: &Path, bits: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).at("set the mode of", path)
}

/// Puts the guests' kernels, initramfs and configurations into `/guests`. A device model hands an initramfs over byte by byte,
/// which takes minutes on an emulated processor: for its guests there is a packed one.
pub(super) fn add_guests(root: &Path, modules: &Modules, initramfs: &[u8], vmlinux: &Path) -> Result<()> {
    let dir = root.join("guests");
    fs::create_dir_all(&dir).at("create", &dir)?;
    let copy = |from: &Path, name: &str| {
        let to = dir.join(name);
        fs::copy(from, &to).map(drop).at("write", to)
    };
    copy(vmlinux, "vmlinux")?;
    copy(&vmlinuz(root, &modules.release), "vmlinuz")?;
    let path = dir.join("initramfs");
    fs::write(&path, initramfs).at("write", &path)?;
    let mut zstd = Command::new("zstd");
    zstd.args(["-q", "-19"]).arg(&path).arg("-o").arg(dir.join("initramfs.zst"));
    process::check(&mut zstd, UNPACK_LIMIT)?;
    for (name, text) in recipe::GUEST_CONFIGS {
        let path = dir.join(name);
        fs::write(&path, text).at("write", path)?;
    }
    Ok(())
}

/// The kernel as its package has it.
pub(super) fn vmlinuz(root: &Path, release: &str) -> PathBuf {
    root.join("boot").join(format!("vmlinuz-{release}"))
}

/// The packed hypervisor as its package has it.
pub(super) fn hypervisor(root: &Path) -> Result<PathBuf> {
    let dir = root.join("boot");
    for entry in fs::read_dir(&dir).at("list", &dir)? {
        let path = entry.at("list", &dir)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // Links to it (xen-4.17-amd64.efi and the like) have other names.
        if name.starts_with("xen-4") && path.extension().is_some_and(|e| e == "gz") && path.is_file() {
            return Ok(path);
        }
    }
    Err(Error::Image("the hypervisor's package holds no boot/xen-4*.gz".to_owned()))
}

/// Packs `root` into the squashfs image `to`.
pub(super) fn pack(root: &Path, to: &Path) -> Result<()> {
    // Level 6 packs within 5 % of level 15 in a third of the time. /boot is only needed before the boot.
    let mut command = Command::new("mksquashfs");
    command.arg(root).arg(to).args(["-noappend", "-quiet", "-no-progress", "-all-root", "-no-xattrs"]);
    command.args(["-comp", "zstd", "-Xcompression-level", "6", "-e", "boot"]);
    process::check(&mut command, UNPACK_LIMIT).map(drop)
}
