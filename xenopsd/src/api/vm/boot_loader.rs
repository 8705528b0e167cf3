//! Boot loaders by their names.

use super::{Boot, BuilderInfo, IndirectBoot, Vm};

/// A boot loader there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootLoader {
    /// What the guest's disk says.
    Pygrub,
    /// A guest that is installed from a repository, and is one of pygrub's from then on.
    Eliloader,
}

impl IndirectBoot {
    /// Which one is named; none when there is no such. Configurations give a name or a path; nothing means pygrub, as it
    /// always has.
    pub fn loader(&self) -> Option<BootLoader> {
        match self.bootloader.rsplit('/').next().unwrap_or_default() {
            "" if !self.bootloader.is_empty() => None,
            "" | "pygrub" => Some(BootLoader::Pygrub),
            "eliloader" => Some(BootLoader::Eliloader),
            _ => None,
        }
    }
}

impl Vm {
    /// How it boots from its own disk or a repository, if it does.
    pub fn indirect_boot(&self) -> Option<&IndirectBoot> {
        match &self.ty {
            BuilderInfo::Pv(pv) | BuilderInfo::PvInPvh(pv) | BuilderInfo::Pvh(pv) => match &pv.boot {
                Boot::Indirect(indirect) => Some(indirect),
                Boot::Direct(_) => None,
            },
            BuilderInfo::Hvm(_) => None,
        }
    }

    /// The same, to be changed.
    pub fn indirect_boot_mut(&mut self) -> Option<&mut IndirectBoot> {
        match &mut self.ty {
            BuilderInfo::Pv(pv) | BuilderInfo::PvInPvh(pv) | BuilderInfo::Pvh(pv) => match &mut pv.boot {
                Boot::Indirect(indirect) => Some(indirect),
                Boot::Direct(_) => None,
            },
            BuilderInfo::Hvm(_) => None,
        }
    }
}
