//! What a VM's record says about its installation.

use super::{Error, Result, fixup::Checksum};
use crate::{
    fetch::{Address, http::Proxy},
    limits,
};

/// Every key that is read, for documentation and for whoever must not pass them to the guest.
pub const KEYS: [&str; 15] = [
    "install-repository",
    "install-distro",
    "install-round",
    "install-arch",
    "install-methods",
    "install-args",
    "install-vnc",
    "install-vncpasswd",
    "install-kernel",
    "install-ramdisk",
    "install-kernel-checksum",
    "install-ramdisk-checksum",
    "install-proxy",
    "install-updates-disk",
    "debian-release",
];

/// Which family a distribution is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distro {
    /// RHEL 4.1: the installer's files are dom0's.
    Rhel41,
    /// RHEL 4.4, likewise.
    Rhel44,
    /// RHEL and CentOS from 4.5 on, Fedora, Oracle and Scientific Linux.
    RhLike,
    /// SLES, SLED and openSUSE.
    SlesLike,
    /// Debian.
    DebianLike,
    /// Ubuntu.
    UbuntuLike,
    /// Anything whose files are named, or found by `pygrub` on its CD.
    Pygrub,
}

impl Distro {
    const NAMES: [(&'static str, Self); 7] = [
        ("rhel41", Self::Rhel41),
        ("rhel44", Self::Rhel44),
        ("rhlike", Self::RhLike),
        ("sleslike", Self::SlesLike),
        ("debianlike", Self::DebianLike),
        ("ubuntulike", Self::UbuntuLike),
        ("pygrub", Self::Pygrub),
    ];

    /// How often it is booted by this boot loader.
    pub const fn rounds(self) -> u32 {
        match self {
            Self::Rhel41 | Self::Rhel44 | Self::RhLike | Self::SlesLike => 2,
            Self::DebianLike | Self::UbuntuLike | Self::Pygrub => 1,
        }
    }
}

/// Where an installer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repository {
    /// The VM's first bootable disk, which is a CD.
    Cdrom,
    /// A server.
    Network(Address),
}

/// An installation, checked.
#[derive(Debug, Clone)]
pub struct Install {
    /// Where from; only the first round, and not each distribution's, needs one.
    pub repository: Option<Repository>,
    /// Which family.
    pub distro: Distro,
    /// Which round is next, from 1.
    pub round: u32,
    /// The processor, in the distribution's word.
    pub arch: String,
    /// Install over VNC.
    pub vnc: bool,
    /// With this password.
    pub vnc_password: Option<String>,
    /// Added to the installer's arguments.
    pub args: String,
    /// Path of the kernel in the repository, for [`Distro::Pygrub`].
    pub kernel: Option<String>,
    /// Of the ramdisk.
    pub ramdisk: Option<String>,
    /// What the kernel's file must be.
    pub kernel_checksum: Option<Checksum>,
    /// And the ramdisk's.
    pub ramdisk_checksum: Option<Checksum>,
    /// For HTTP and HTTPS.
    pub proxy: Option<Proxy>,
    /// Debian's release.
    pub release: Option<String>,
    /// A disk that is there for the installer only, by its number or name.
    pub updates_disk: Option<String>,
}

impl Install {
    /// Whether what follows this round is a boot as any other.
    pub fn is_last_round(&self) -> bool {
        self.round >= self.distro.rounds()
    }

    /// The disk that was for the installer and is none of the guest's from this round on.
    pub fn leaving_disk(&self) -> Option<&str> {
        let has_one = matches!(self.distro, Distro::Rhel41 | Distro::Rhel44) && self.is_last_round();
        self.updates_disk.as_deref().filter(|_| has_one)
    }

    /// Reads the keys of a record; those that mean nothing here are passed over.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::UnsupportedMethod`].
    pub fn read<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self> {
        let text = |key: &'static str| -> Result<Option<String>> {
            get(key).filter(|value| !value.is_empty()).map(|value| line(key, value)).transpose()
        };
        let word = |key: &'static str| -> Result<Option<String>> {
            text(key)?
                .map(|value| {
                    if value.bytes().all(|b| b.is_ascii_graphic()) {
                        Ok(value)
                    } else {
                        Err(wrong(key, "it is no word"))
                    }
                })
                .transpose()
        };
        let distro = match text("install-distro")? {
            None => Distro::RhLike,
            Some(name) => {
                Distro::NAMES.iter().find(|(known, _)| *known == name).map(|(_, d)| *d).ok_or_else(|| {
                    let known: Vec<_> = Distro::NAMES.iter().map(|(name, _)| *name).collect();
                    wrong("install-distro", format!("{name:?} is none of {}", known.join(", ")))
                })?
            }
        };
        let round = match text("install-round")? {
            None => 1,
            Some(text) => {
                text.parse().ok().filter(|round| (1..=distro.rounds()).contains(round)).ok_or_else(|| {
                    wrong("install-round", format!("{text:?}: there are {} rounds", distro.rounds()))
                })?
            }
        };
        let path = |key: &'static str| -> Result<Option<String>> {
            word(key)?
                .map(|value| if clean_path(&value) { Ok(value) } else { Err(wrong(key, "it is no path")) })
                .transpose()
        };
        let name = |key: &'static str| -> Result<Option<String>> {
            let plain = |value: &str| value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            word(key)?
                .map(
                    |v| {
                        if plain(&v) && !v.starts_with('.') {
                            Ok(v)
                        } else {
                            Err(wrong(key, "it is no name"))
                        }
                    },
                )
                .transpose()
        };
        let checksum = |key: &'static str| -> Result<Option<Checksum>> {
            word(key)?.map(|value| Checksum::parse(&value).map_err(|why| wrong(key, why))).transpose()
        };
        let install = Self {
            repository: word("install-repository")?.map(|value| repository(&value)).transpose()?,
            distro,
            round,
            arch: name("install-arch")?.unwrap_or_else(|| "i386".to_owned()),
            vnc: matches!(text("install-vnc")?.as_deref(), Some("1" | "true")),
            vnc_password: word("install-vncpasswd")?,
            args: text("install-args")?.unwrap_or_default(),
            kernel: path("install-kernel")?,
            ramdisk: path("install-ramdisk")?,
            kernel_checksum: checksum("install-kernel-checksum")?,
            ramdisk_checksum: checksum("install-ramdisk-checksum")?,
            proxy: word("install-proxy")?
                .map(|value| Proxy::parse(&value).map_err(|why| wrong("install-proxy", why)))
                .transpose()?,
            release: name("debian-release")?,
            updates_disk: name("install-updates-disk")?,
        };
        install.check_method(text("install-methods")?.as_deref())?;
        Ok(install)
    }

    /// The way its repository is reached must be one of those that its template allows, if it says which.
    fn check_method(&self, allowed: Option<&str>) -> Result<()> {
        let method = match &self.repository {
            None => return Ok(()),
            Some(Repository::Cdrom) => "cdrom",
            Some(Repository::Network(address)) => address.scheme.name(),
        };
        // Templates from before HTTPS mean it, too.
        let allows = |name: &str| name == method || (name, method) == ("http", "https");
        match allowed {
            Some(list) if !list.split(',').any(|name| allows(name.trim())) => {
                Err(Error::UnsupportedMethod(format!("{method}; this VM can be installed by {list}")))
            }
            _ => Ok(()),
        }
    }
}

/// Whatever the keys of a record are (a line `key=value` each), an installation is refused, or its plan stays within its
/// repository, its arguments in one line; and so are a boot loader's arguments. For fuzzing.
pub fn fuzz(text: &str) {
    let get = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    if let Ok(install) = Install::read(get) {
        super::plan::fuzz(&install);
    }
    if let Ok(request) = crate::pygrub::request(text) {
        assert!(!request.config && request.kernel_limit == limits::KERNEL_BYTES);
    }
}

fn wrong(key: &'static str, why: impl Into<String>) -> Error {
    Error::Key { key, why: why.into() }
}

/// A value as one line of bounded length.
fn line(key: &'static str, value: &str) -> Result<String> {
    if value.len() > limits::ARGS_BYTES || value.chars().any(char::is_control) {
        return Err(wrong(key, format!("it is not one line of at most {} bytes", limits::ARGS_BYTES)));
    }
    Ok(value.to_owned())
}

fn clean_path(path: &str) -> bool {
    !path.split('/').any(|name| name == ".." || name == ".")
}

fn repository(text: &str) -> Result<Repository> {
    if text == "cdrom" {
        return Ok(Repository::Cdrom);
    }
    match Address::parse(text) {
        Ok(address) => Ok(Repository::Network(address)),
        Err(why) => Err(wrong("install-repository", format!("it is neither cdrom nor an address: {why}"))),
    }
}
