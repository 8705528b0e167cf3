//! What a round does, as a pure function of the installation.

use super::{Distro, Error, Install, Repository, Result};
use crate::fetch::{Address, url::Scheme};
use std::path::PathBuf;

/// Where XenServer's packages put what belongs to installers.
pub(super) const SUPPORT: &str = "/opt/xensource/packages/files/guest-installer";

/// A kernel with its ramdisk, by their paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) kernel: String,
    pub(super) ramdisk: Option<String>,
}

/// Where a round's files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// From the first of these that the server has.
    Server(Address, Vec<Pair>),
    /// From the first of these that the CD has.
    Cdrom(Vec<Pair>),
    /// What the CD's own boot loader takes, but for its arguments.
    CdromDefault,
    /// Files of dom0: a kernel and a ramdisk, the first of these that are there.
    Local(Vec<(PathBuf, PathBuf)>),
    /// What the guest's disk boots.
    Disk,
    /// The same, but the first entry that is no Oracle kernel for hardware if there are such.
    DiskNotOracle,
    /// The same, or one of these if the disk does not say, as domUloader did.
    DiskOr(Vec<Pair>),
}

/// A round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) work: Work,
    /// The installer's arguments.
    pub(super) args: String,
    /// Whether the ramdisk may be one of those that are fixed up.
    pub(super) fixups: bool,
}

pub(super) fn plan(install: &Install) -> Result<Plan> {
    if install.round > 1 {
        let work = match install.distro {
            Distro::SlesLike => {
                Work::DiskOr(vec![sles_installed(install, ""), sles_installed(install, "/boot")])
            }
            Distro::RhLike => Work::DiskNotOracle,
            _ => Work::Disk,
        };
        return Ok(Plan { work, args: String::new(), fixups: false });
    }
    let fixups = matches!(install.distro, Distro::RhLike | Distro::DebianLike | Distro::UbuntuLike);
    Ok(Plan { work: first_round(install)?, args: args(install), fixups })
}

fn first_round(install: &Install) -> Result<Work> {
    // XenServer 3's installer put a rhel41-install-initrd.img there; its successors' record of RHEL 4.4 names rhel4.4-vmlinuz and
    // rhel4.4-install-initrd.img. The other names follow these: nothing public has the kernel's of RHEL 4.1.
    let local = |releases: &[&str]| {
        let file = |release: &str, name: &str| PathBuf::from(SUPPORT).join(format!("{release}-{name}"));
        let pair = |release: &&str| (file(release, "vmlinuz"), file(release, "install-initrd.img"));
        match install.repository {
            // There is nothing on Red Hat's CDs that a PV guest could boot or see them with.
            Some(Repository::Cdrom) => Err(Error::UnsupportedMethod(
                "cdrom; RHEL 4.1 and 4.4 are installed from a server".to_owned(),
            )),
            _ => Ok(Work::Local(releases.iter().map(pair).collect())),
        }
    };
    match install.distro {
        Distro::Rhel41 => return local(&["rhel4.1", "rhel41"]),
        Distro::Rhel44 => return local(&["rhel4.4", "rhel44"]),
        _ => {}
    }
    let repository = install.repository.as_ref().ok_or_else(|| Error::Key {
        key: "install-repository",
        why: "it is not set, and there is nothing to install from".to_owned(),
    })?;
    match repository {
        Repository::Cdrom if install.distro == Distro::Pygrub && install.kernel.is_none() => {
            Ok(Work::CdromDefault)
        }
        Repository::Cdrom => Ok(Work::Cdrom(on_cdrom(install)?)),
        Repository::Network(address) => {
            let debian = matches!(install.distro, Distro::DebianLike | Distro::UbuntuLike);
            if debian && address.scheme == Scheme::Nfs {
                return Err(Error::UnsupportedMethod(
                    "nfs; Debian's installer is fetched by http or ftp".to_owned(),
                ));
            }
            Ok(Work::Server(address.clone(), on_server(install, address)?))
        }
    }
}

fn pair(directory: &str, kernel: &str, ramdisk: &str) -> Pair {
    Pair { kernel: format!("{directory}{kernel}"), ramdisk: Some(format!("{directory}{ramdisk}")) }
}

fn common(install: &Install) -> Result<Option<Vec<Pair>>> {
    Ok(match install.distro {
        Distro::RhLike => Some(vec![
            pair("images/xen/", "vmlinuz", "initrd.img"),
            pair("isolinux/", "vmlinuz", "initrd.img"),
            // Trees without a CD of their own: those for servers, and all of the newest.
            pair("images/pxeboot/", "vmlinuz", "initrd.img"),
        ]),
        // From SLES 12 SP2 on there is one kernel for all.
        Distro::SlesLike if is_64(install) => Some(vec![
            pair("boot/x86_64/", "vmlinuz-xen", "initrd-xen"),
            pair("boot/x86_64/loader/", "linux", "initrd"),
        ]),
        Distro::SlesLike => Some(vec![
            pair("boot/i386/", "vmlinuz-xenpae", "initrd-xenpae"),
            pair("boot/i386/loader/", "linux", "initrd"),
        ]),
        Distro::Pygrub => {
            let kernel = install.kernel.clone().ok_or_else(|| Error::Key {
                key: "install-kernel",
                why: "it is not set, and install-distro is pygrub".to_owned(),
            })?;
            Some(vec![Pair { kernel, ramdisk: install.ramdisk.clone() }])
        }
        _ => None,
    })
}

fn on_cdrom(install: &Install) -> Result<Vec<Pair>> {
    if let Some(pairs) = common(install)? {
        return Ok(pairs);
    }
    let directory = if is_64(install) { "install.amd/" } else { "install.386/" };
    let directories = [format!("{directory}xen/"), directory.to_owned(), "install/".to_owned()];
    Ok(directories.iter().map(|directory| pair(directory, "vmlinuz", "initrd.gz")).collect())
}

fn on_server(install: &Install, address: &Address) -> Result<Vec<Pair>> {
    if let Some(pairs) = common(install)? {
        return Ok(pairs);
    }
    // A repository that already names a release is below its "dists".
    let named =
        address.path.split_once("/dists/").is_some_and(|(_, rest)| !rest.trim_matches('/').is_empty());
    let dists = match (&install.release, named) {
        (_, true) => String::new(),
        (Some(release), false) => format!("dists/{release}/"),
        (None, false) => {
            return Err(Error::Key {
                key: "debian-release",
                why: "it is not set, and the repository names no release".to_owned(),
            });
        }
    };
    let arch = if is_64(install) { "amd64" } else { &install.arch };
    let images = format!("{dists}main/installer-{arch}/current/images/netboot/");
    let mut pairs = vec![pair(&format!("{images}xen/"), "vmlinuz", "initrd.gz")];
    // Releases without a kernel of its own for Xen: the usual one starts as PVH.
    let usual = match install.distro {
        Distro::UbuntuLike => vec![
            format!("{images}ubuntu-installer/{arch}/"),
            // Where 20.04, the last one with this installer, has it.
            format!("{dists}main/installer-{arch}/current/legacy-images/netboot/ubuntu-installer/{arch}/"),
        ],
        _ => vec![format!("{images}debian-installer/{arch}/")],
    };
    pairs.extend(usual.iter().map(|directory| pair(directory, "linux", "initrd.gz")));
    Ok(pairs)
}

fn is_64(install: &Install) -> bool {
    matches!(&*install.arch, "amd64" | "x86_64")
}

fn sles_installed(install: &Install, directory: &str) -> Pair {
    let kind = if is_64(install) { "xen" } else { "xenpae" };
    pair(&format!("{directory}/"), &format!("vmlinuz-{kind}"), &format!("initrd-{kind}"))
}

/// What an installer is told: where its repository is, and how its user sees it.
fn args(install: &Install) -> String {
    let at = match &install.repository {
        Some(Repository::Network(address)) => Some(address),
        _ => None,
    };
    let mut words = match install.distro {
        Distro::Rhel41 | Distro::Rhel44 => vec!["text updates ramdisk_size=32000 nofb serial".to_owned()],
        _ => Vec::new(),
    };
    match (install.distro, at) {
        (Distro::RhLike | Distro::Rhel41 | Distro::Rhel44, Some(at)) => {
            words.push(format!("method={}", for_anaconda(at)));
        }
        (Distro::SlesLike, Some(at)) => words.push(format!("install={}", with_slash(at.whole()))),
        // Its installer sees the CD as a disk.
        (Distro::SlesLike, None) => words.push("install=hd".to_owned()),
        _ => {}
    }
    if install.vnc {
        words.push("vnc".to_owned());
    }
    words.extend(install.vnc_password.as_ref().map(|password| format!("vncpassword={password}")));
    words.extend(Some(install.args.clone()).filter(|args| !args.is_empty()));
    words.join(" ")
}

/// An address as anaconda takes it, with a colon before the path of NFS. (SUSE's linuxrc takes `nfs://`.) A guest has no
/// other way to its user's password than this.
fn for_anaconda(address: &Address) -> String {
    with_slash(match address.scheme {
        Scheme::Nfs => format!("nfs:{}:{}", address.host, address.path),
        _ => address.whole(),
    })
}

fn with_slash(address: String) -> String {
    if address.ends_with('/') { address } else { address + "/" }
}

/// What must hold of any plan; see [`super::keys::fuzz`].
pub(super) fn fuzz(install: &Install) {
    let Ok(plan) = plan(install) else { return };
    assert!(!plan.args.contains(char::is_control));
    let inside = |path: &str| !path.split('/').any(|name| name == "..");
    match &plan.work {
        Work::Server(_, pairs) | Work::Cdrom(pairs) | Work::DiskOr(pairs) => {
            assert!(!pairs.is_empty());
            for pair in pairs {
                assert!(inside(&pair.kernel) && pair.ramdisk.as_deref().is_none_or(inside));
            }
        }
        Work::Local(pairs) => {
            assert!(
                pairs
                    .iter()
                    .all(|(kernel, ramdisk)| kernel.starts_with(SUPPORT) && ramdisk.starts_with(SUPPORT))
            );
        }
        Work::CdromDefault | Work::Disk | Work::DiskNotOracle => {}
    }
}
