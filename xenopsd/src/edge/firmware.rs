//! Xen's own programs that a guest starts with, and the firmware of an emulated PC: where they are on this host.

use std::path::{Path, PathBuf};

use ffi::builder::MAX_FIRMWARE;
use ffi::xenctrl::linked_version;

use super::{HostError, Image, ImageError, ImageFile, MAX_KERNEL};

/// A file that a guest starts with and that is not its owner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Firmware {
    /// Xen's shim, which runs a PV kernel in a PVH domain.
    PvShim,
    /// What an HVM domain starts with: it sets the emulated PC up and starts the firmware.
    Hvmloader,
    /// A BIOS.
    SeaBios,
    /// A UEFI firmware.
    Ovmf,
}

impl Firmware {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PvShim => "PV shim",
            Self::Hvmloader => "hvmloader",
            Self::SeaBios => "SeaBIOS",
            Self::Ovmf => "OVMF",
        }
    }

    /// The setting that names its file.
    const fn setting(self) -> &'static str {
        match self {
            Self::PvShim => "pvinpvh-xen",
            Self::Hvmloader => "hvmloader",
            Self::SeaBios => "seabios",
            Self::Ovmf => "ovmf",
        }
    }

    /// The Debian package that has it.
    fn package(self) -> String {
        let (major, minor) = linked_version();
        match self {
            Self::PvShim | Self::Hvmloader => format!("xen-utils-{major}.{minor}"),
            Self::SeaBios => "seabios".to_owned(),
            Self::Ovmf => "ovmf".to_owned(),
        }
    }

    /// Where distributions have it, the likeliest first.
    fn places(self) -> Vec<PathBuf> {
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect();
        match self {
            Self::PvShim => beside_xen("xen-shim"),
            Self::Hvmloader => beside_xen("hvmloader"),
            Self::SeaBios => paths(&["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin"]),
            Self::Ovmf => {
                paths(&["/usr/share/ovmf/OVMF.fd", "/usr/share/OVMF/OVMF.fd", "/usr/share/qemu/OVMF.fd"])
            }
        }
    }

    /// Largest file that can be one, in bytes.
    const fn limit(self) -> u64 {
        match self {
            Self::PvShim | Self::Hvmloader => MAX_KERNEL,
            Self::SeaBios | Self::Ovmf => MAX_FIRMWARE as u64,
        }
    }
}

/// Where Xen's own programs for guests are.
fn beside_xen(name: &str) -> Vec<PathBuf> {
    let (major, minor) = linked_version();
    [&*format!("/usr/lib/xen-{major}.{minor}"), "/usr/lib/xen", "/usr/libexec/xen"]
        .map(|directory| Path::new(directory).join("boot").join(name))
        .to_vec()
}

/// Paths that the administrator has chosen; others are looked for where distributions have them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirmwarePaths {
    /// Of [`Firmware::PvShim`].
    pub pv_shim: Option<PathBuf>,
    /// Of [`Firmware::Hvmloader`].
    pub hvmloader: Option<PathBuf>,
    /// Of [`Firmware::SeaBios`].
    pub seabios: Option<PathBuf>,
    /// Of [`Firmware::Ovmf`].
    pub ovmf: Option<PathBuf>,
}

impl FirmwarePaths {
    const fn chosen(&self, firmware: Firmware) -> Option<&PathBuf> {
        match firmware {
            Firmware::PvShim => self.pv_shim.as_ref(),
            Firmware::Hvmloader => self.hvmloader.as_ref(),
            Firmware::SeaBios => self.seabios.as_ref(),
            Firmware::Ovmf => self.ovmf.as_ref(),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`HostError::Missing`] with all places that were looked at; [`HostError::Unusable`].
    pub(super) fn open(&self, firmware: Firmware) -> Result<ImageFile, HostError> {
        match self.chosen(firmware) {
            Some(path) => open_first(firmware, std::slice::from_ref(path)),
            None => open_first(firmware, &firmware.places()),
        }
    }
}

fn open_first(firmware: Firmware, places: &[PathBuf]) -> Result<ImageFile, HostError> {
    for path in places {
        match Image::open(firmware.name(), path, firmware.limit()) {
            Err(ImageError::Missing { .. }) => {}
            Err(error) => {
                return Err(HostError::Unusable { class: firmware.name(), text: error.to_string() });
            }
            Ok(file) => return Ok(file),
        }
    }
    let tried: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
    Err(HostError::Missing {
        class: firmware.name(),
        id: tried.first().cloned().unwrap_or_default(),
        text: format!(
            "{}: there is no {}; install Debian's {}, or name the file with `{} = PATH` in the settings",
            firmware.name(),
            tried.join(" nor "),
            firmware.package(),
            firmware.setting(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::Pages;

    #[test]
    fn a_chosen_path_is_the_only_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shim");
        let paths = FirmwarePaths { pv_shim: Some(path.clone()), ..FirmwarePaths::default() };
        let missing = paths.open(Firmware::PvShim).unwrap_err();
        let HostError::Missing { id, text, .. } = &missing else { panic!("{missing}") };
        assert_eq!(*id, path.display().to_string());
        assert!(text.contains("xen-utils-") && text.contains("pvinpvh-xen = PATH"), "{text}");
        std::fs::write(&path, "").unwrap();
        assert!(matches!(paths.open(Firmware::PvShim), Err(HostError::Unusable { .. })));
        std::fs::write(&path, b"\x7fELF").unwrap();
        assert_eq!(paths.open(Firmware::PvShim).unwrap().read(Pages::Now).unwrap().bytes(), b"\x7fELF");
    }

    #[test]
    fn the_next_place_is_tried_when_one_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let places = ["no", "yes"].map(|name| directory.path().join(name));
        std::fs::write(&places[1], "x").unwrap();
        assert!(open_first(Firmware::PvShim, &places).is_ok());
        let missing = open_first(Firmware::PvShim, &places[..1]).unwrap_err().to_string();
        assert!(missing.contains("there is no"), "{missing}");
    }
}
