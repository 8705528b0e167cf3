//! The Debian packages this machine needs: one list, with what each is for.

use crate::{
    error::{Error, Result},
    process,
    progress::{say, step},
};
use std::{process::Command, time::Duration};

/// A Debian package and what needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    /// The package's name.
    pub name: &'static str,
    /// What it is for.
    pub why: &'static str,
}

const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, why }
}

/// Everything the build, the nested host and the tests use from the distribution.
pub const PACKAGES: &[Package] = &[
    package("gcc", "linking Rust programs"),
    package("libc6-dev", "linking Rust programs"),
    package("pkg-config", "finding the Xen libraries"),
    package("libxen-dev", "Xen's headers and libraries, which ffi binds to"),
    package("libclang-dev", "bindgen reads the Xen headers with it"),
    package("binutils", "stripping the unpacked guest kernel"),
    package("kmod", "kernel module dependencies of the dom0 image"),
    package("libc-bin", "library cache of the dom0 image"),
    package("openssh-client", "commands, files and sockets in and out of dom0"),
    package("qemu-system-x86", "the machine Xen runs on"),
    package("qemu-system-xen", "the disk server's tests"),
    package("qemu-utils", "images of the disk server's tests"),
    package("grub-common", "the boot loader of Debian's disk"),
    package("grub-pc-bin", "the boot loader of Debian's disk"),
    package("grub-efi-amd64-bin", "the boot loader that UEFI firmware starts"),
    package("ovmf", "that firmware"),
    package("squashfs-tools", "the dom0 image's file system"),
    package("util-linux", "setpriv, so that no QEMU outlives its test"),
    package("xz-utils", "unpacking the Linux kernel"),
    package("zstd", "unpacking kernels compressed with it, and packing the guest's initramfs"),
    package("acpica-tools", "reading the ACPI tables of PVH guests back"),
    package("btrfs-progs", "disk images of the boot loader's tests"),
    package("cryptsetup-bin", "encrypted disks of the boot loader's tests"),
    package("debian-installer-12-netboot-amd64", "the installer that guests are started with"),
    package("dosfstools", "disk images of the boot loader's tests"),
    package("e2fsprogs", "disk images of the boot loader's tests"),
    package("fdisk", "partition tables of the boot loader's tests"),
    package("openvswitch-common", "the database server that the client of Open vSwitch is tested with"),
    package("openssl", "certificates of the download tests' servers"),
    package("mtools", "disk images of the boot loader's tests"),
    package("gvncviewer", "a VNC viewer (gtk-vnc) that vncterm's screen is seen with"),
    package("vncsnapshot", "another (TightVNC)"),
    package("tightvncpasswd", "password files for it"),
    package("xvfb", "an X server in memory for a VNC viewer with a window"),
    package("xtightvncviewer", "that viewer (TightVNC)"),
    package("chromium-headless-shell", "a browser without a window, for noVNC"),
    package("novnc", "a VNC viewer in a browser that vncterm's screen is seen with"),
    package("xfsprogs", "disk images of the boot loader's tests"),
    package("xorriso", "disk images of the boot loader's tests, CDs of HVM guests"),
    package("python3", "the sample storage program"),
    package("python3-venv", "VNC clients written in Python that vncterm's screen is seen with"),
    package("systemd", "looking at the daemon's unit"),
    package("time", "memory of programs in the benches"),
    package("xen-utils-4.17", "the C and OCaml xenstored that the store is compared with"),
    package("xenstore-utils", "xenstore clients for the same comparison"),
];

/// Longest `apt-get` run: a slow mirror needs minutes, a hung one must not hold a CI job for ever.
const APT_LIMIT: Duration = Duration::from_secs(900);

/// Longest query of the package database, which is local.
const QUERY_LIMIT: Duration = Duration::from_secs(30);

/// The packages of the list that are not installed.
///
/// # Errors
/// [`Error::Start`] when there is no `dpkg-query`: not a Debian machine.
pub fn missing() -> Result<Vec<Package>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"]);
    query.args(PACKAGES.iter().map(|p| p.name));
    // It fails when one of them is unknown, and still lists the others.
    let listed = process::run(&mut query, None, QUERY_LIMIT, None)?.text();
    Ok(not_installed(&listed))
}

/// The listed packages that are installed in a newer version than the package lists have, such as a backport, with the
/// newest that the lists have: "name=version", as `apt-get` takes it. They can break what is missing.
fn foreign() -> Result<Vec<String>> {
    let names = || PACKAGES.iter().map(|p| p.name);
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Package} ${Version}\\n"]).args(names());
    let installed = process::run(&mut query, None, QUERY_LIMIT, None)?.text();
    let mut lists = Command::new("apt-cache");
    lists.arg("madison").args(names());
    let offered = process::run(&mut lists, None, QUERY_LIMIT, None)?.text();
    let mut foreign = Vec::new();
    for (name, installed, offered) in with_offers(&installed, &offered) {
        let mut compare = Command::new("dpkg");
        compare.args(["--compare-versions", installed, "gt", offered]);
        if process::run(&mut compare, None, QUERY_LIMIT, None)?.success() {
            foreign.push(format!("{name}={offered}"));
        }
    }
    Ok(foreign)
}

/// What is installed (lines "name version"), its version, and the newest one on offer (`apt-cache madison`: lines
/// "name | version | source", the newest first).
fn with_offers<'a>(installed: &'a str, offered: &'a str) -> Vec<(&'a str, &'a str, &'a str)> {
    let newest = |name: &str| {
        let fields = offered.lines().map(|l| l.split('|').map(str::trim).collect::<Vec<_>>());
        let mut binary = fields.filter(|f| f.len() == 3 && f[0] == name && f[2].ends_with(" Packages"));
        binary.next().map(|f| f[1])
    };
    let installed =
        installed.lines().filter_map(|l| l.split_once(' ')).filter(|(_, version)| !version.is_empty());
    installed.filter_map(|(name, version)| Some((name, version, newest(name)?))).collect()
}

fn not_installed(listed: &str) -> Vec<Package> {
    let installed = |p: &&Package| listed.lines().any(|l| l.strip_prefix(p.name) == Some(" installed"));
    PACKAGES.iter().filter(|p| !installed(p)).copied().collect()
}

/// Installs what is missing; says what and why.
///
/// # Errors
/// [`Error::Packages`] when something is missing and this user cannot install it, or `apt-get` fails.
pub fn install() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        say(&format!("needs {} ({})", package.name, package.why));
    }
    let names: Vec<_> = missing.iter().map(|p| p.name).collect();
    let refuse =
        |reason: String| Error::Packages { missing: names.iter().map(|&n| n.to_owned()).collect(), reason };
    if !nix::unistd::geteuid().is_root() {
        let how = format!("run as root: apt-get install --no-install-recommends {}", names.join(" "));
        return Err(refuse(how));
    }
    let mut wanted = names.clone();
    let Err(error) = step("apt-get install", || apt_install(&wanted)) else { return Ok(()) };
    // Lists that are missing or stale make the first try fail; fresh ones are worth one more.
    say(&format!("{error}; updating the package lists"));
    step("apt-get update", || apt(&["update"])).map_err(|e| refuse(e.to_string()))?;
    // So does a package from elsewhere that those of this release cannot be installed beside (a backport of
    // qemu-utils breaks QEMU).
    let foreign = foreign()?;
    if !foreign.is_empty() {
        say(&format!("with this release's own versions: {}", foreign.join(" ")));
        wanted.push("--allow-downgrades");
        wanted.extend(foreign.iter().map(String::as_str));
    }
    step("apt-get install", || apt_install(&wanted)).map_err(|e| refuse(e.to_string()))
}

fn apt_install(names: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "--no-install-recommends", "--yes"];
    arguments.extend(names);
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.arg("-qq").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    // Another apt (an unattended upgrade) may hold the lock for a while.
    command.args(["-o", "DPkg::Lock::Timeout=120"]);
    process::check(&mut command, APT_LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_read() {
        let all = PACKAGES.iter().map(|p| p.name).collect::<Vec<_>>().join(" installed\n") + " installed\n";
        assert_eq!(not_installed(&all), []);
        let without = all.replace("kmod installed", "kmod config-files");
        assert_eq!(not_installed(&without).iter().map(|p| p.name).collect::<Vec<_>>(), ["kmod"]);
        assert_eq!(not_installed("").len(), PACKAGES.len());
    }

    #[test]
    fn what_the_lists_offer_is_read() {
        let offered = "qemu-utils | 1:7.2-7+b3 | mirror bookworm/main amd64 Packages\n\
            qemu-utils | 1:7.2-5 | mirror bookworm-security/main amd64 Packages\n      \
            kmod | 30-1 | mirror bookworm/main amd64 Packages\n      \
            qemu | 1:7.2-7 | mirror bookworm/main Sources\n";
        let installed = "qemu-utils 1:10.0~bpo12\nkmod 30-1\nlocal-only 1\nxvfb \nqemu 1:8\n";
        let found = [("qemu-utils", "1:10.0~bpo12", "1:7.2-7+b3"), ("kmod", "30-1", "30-1")];
        assert_eq!(with_offers(installed, offered), found);
    }
}
