//! What becomes of a VM's record when a round is done: all of it together, or none.

use super::{Install, Repository};

/// Limits for what was installed, which take the place of those for the installer.
const LIMITS: [(&str, &str); 2] = [
    ("pv-postinstall-kernel-max-size", "pv-kernel-max-size"),
    ("pv-postinstall-ramdisk-max-size", "pv-ramdisk-max-size"),
];

/// What a record has that changes: whoever keeps it does that in one step.
pub trait Record {
    /// A key's value.
    fn get(&self, key: &str) -> Option<String>;
    /// Sets a key, or takes it away.
    fn set(&mut self, key: &str, value: Option<&str>);
    /// Sets the boot loader.
    fn set_boot_loader(&mut self, name: &str);
    /// Sets the boot loader's arguments.
    fn set_boot_loader_args(&mut self, args: &str);
    /// The disk number 0 becomes the one that is booted from.
    fn boot_from_first_disk(&mut self);
    /// Takes a disk away.
    fn remove_disk(&mut self, disk: &str);
}

/// The changes of one round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// From now on the boot loader is this.
    pub boot_loader: Option<&'static str>,
    /// With these arguments.
    pub boot_loader_args: Option<String>,
    /// Keys and their values; none takes a key away.
    pub keys: Vec<(&'static str, Option<String>)>,
    /// The keys of limits whose values move to other keys.
    pub post_install_limits: bool,
    /// The CD is not booted from any more.
    pub boot_from_first_disk: bool,
    /// A disk that was for the installer.
    pub remove_disk: Option<String>,
}

impl Changes {
    /// Of a round that has its kernel.
    pub(super) fn of(install: &Install, boot_loader_args: Option<String>) -> Self {
        let last = install.is_last_round();
        let round = ("install-round", (!last).then(|| (install.round + 1).to_string()));
        let mut changes = Self { boot_loader_args, keys: vec![round], ..Self::default() };
        if last {
            changes.boot_loader = Some("pygrub");
            changes.post_install_limits = true;
            // So that nobody is asked for media when the VM is copied.
            changes.keys.push(("install-distro", None));
            changes.remove_disk = install.leaving_disk().map(str::to_owned);
        }
        changes.boot_from_first_disk = install.round == 1 && install.repository == Some(Repository::Cdrom);
        changes
    }

    /// Makes them in a record.
    pub fn apply(&self, record: &mut dyn Record) {
        if let Some(name) = self.boot_loader {
            record.set_boot_loader(name);
        }
        if let Some(args) = &self.boot_loader_args {
            record.set_boot_loader_args(args);
        }
        for (key, value) in &self.keys {
            record.set(key, value.as_deref());
        }
        if self.post_install_limits {
            for (from, to) in LIMITS {
                if let Some(value) = record.get(from) {
                    record.set(to, Some(&value));
                    record.set(from, None);
                }
            }
        }
        if self.boot_from_first_disk {
            record.boot_from_first_disk();
        }
        if let Some(disk) = &self.remove_disk {
            record.remove_disk(disk);
        }
    }
}
