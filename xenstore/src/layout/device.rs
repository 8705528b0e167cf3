//! What all devices have in common: three trees, their states, and how they are taken away.
//!
//! ```text
//!   /local/domain/D/device/K/N     frontend  the guest's; a guest can delete or change all of it
//!   /local/domain/B/backend/K/D/N  backend   the backend's
//!   /libxl/D/device/K/N            private   the toolstack's copy; what is removed is found here and nowhere else
//! ```

use super::arrange::arrange;
use super::guest_addresses::GuestAddresses;
use super::table::{Layout, Side, copy_backend, items, write_side};
use super::xenbus::XenbusState;
use super::{Pairs, domain_path, libxl_path};
use crate::batch::Batch;
use crate::error::Error;
use crate::operations::Operations;
use crate::path::Path;
use crate::perms::{DomId, Perms};
use std::fmt;

/// A class of devices, by its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKind {
    /// Disk served by the kernel (blkback).
    Vbd,
    /// Disk served by QEMU.
    Qdisk,
    /// Network interface.
    Vif,
    /// Text console.
    Console,
    /// Keyboard and pointer.
    Vkbd,
    /// Frame buffer.
    Vfb,
}

impl DeviceKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [Self::Vbd, Self::Qdisk, Self::Vif, Self::Console, Self::Vkbd, Self::Vfb];

    /// Its directory's name on the backend side.
    pub const fn backend_name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Qdisk => "qdisk",
            Self::Vif => "vif",
            Self::Console => "console",
            Self::Vkbd => "vkbd",
            Self::Vfb => "vfb",
        }
    }

    /// Its directory's name on the frontend and private sides.
    pub const fn frontend_name(self) -> &'static str {
        match self {
            Self::Qdisk => Self::Vbd.backend_name(),
            other => other.backend_name(),
        }
    }
}

/// Names a device of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceAddress {
    /// Its class.
    pub kind: DeviceKind,
    /// The guest.
    pub domid: DomId,
    /// Its number within the class: a device number for disks, an index for the rest.
    pub id: u32,
    /// The domain that runs the backend.
    pub backend_domid: DomId,
}

impl DeviceAddress {
    /// The guest's side.
    pub fn frontend(&self) -> Path {
        let home = domain_path(self.domid);
        match (self.kind, self.id) {
            // The first console is older than the device directory.
            (DeviceKind::Console, 0) => home.at("console"),
            (kind, id) => home.at(format!("device/{}/{id}", kind.frontend_name())),
        }
    }

    /// The backend's side.
    pub fn backend(&self) -> Path {
        domain_path(self.backend_domid).at(self.below_backend_domain())
    }

    /// The toolstack's side.
    pub fn private(&self) -> Path {
        libxl_path(self.domid).at(format!("device/{}/{}", self.kind.frontend_name(), self.id))
    }

    /// Where the backend's driver leaves an error text.
    pub fn backend_error(&self) -> Path {
        domain_path(self.backend_domid).at(format!("error/{}/error", self.below_backend_domain()))
    }

    /// Where the guest's driver leaves an error text. Hostile.
    pub fn frontend_error(&self) -> Path {
        let place = format!("error/device/{}/{}/error", self.kind.frontend_name(), self.id);
        domain_path(self.domid).at(place)
    }

    fn below_backend_domain(&self) -> String {
        format!("backend/{}/{}/{}", self.kind.backend_name(), self.domid, self.id)
    }

    /// The backend's `state` node, to be watched.
    pub fn backend_state(&self) -> Path {
        self.backend().at("state")
    }

    /// Asks the backend to close: the first step of an unplug. Leave it out when there is no backend state, lest the
    /// backend directory come back to life.
    pub fn request_close(&self) -> Batch {
        let mut batch = self.set_offline();
        batch.write(self.backend_state(), XenbusState::Closing.to_value());
        batch
    }

    /// Tells the backend not to wait for another frontend after this one.
    pub fn set_offline(&self) -> Batch {
        let mut batch = Batch::new();
        batch.write(self.backend().at("online"), "0");
        batch
    }

    /// Takes the frontend away from a guest that does not let go: its backend then closes by itself.
    pub fn hide_frontend(&self) -> Batch {
        let mut batch = Batch::new();
        batch.rm(self.frontend());
        batch
    }

    /// Removes all of the device's nodes, and directories that this leaves empty, by exact path.
    pub fn remove(&self) -> Batch {
        let mut batch = Batch::new();
        let error = self.backend_error();
        // What its agent was asked for and said of it, in the guest's tree.
        let asked = (self.kind == DeviceKind::Vif).then(|| GuestAddresses::directory(self.domid, self.id));
        for path in [Some(self.frontend()), asked].into_iter().flatten() {
            batch.rm(path.clone());
            // The home directory is the parent of the first console; it is not this device's to prune.
            if let Some(parent) = path.parent().filter(|p| *p != domain_path(self.domid)) {
                batch.prune(parent);
            }
        }
        // A guest's kernel has to hear of its node's removal, while dom0's takes that of a directory for all in it.
        for path in [Some(self.private()), Some(self.backend()), error.parent()].into_iter().flatten() {
            batch.uproot(path);
        }
        batch
    }

    /// Where its backend's domain has the domain's devices of this class, and errors of theirs.
    pub(super) fn domains_directories(&self) -> impl Iterator<Item = Path> {
        // Nothing drives a console's backend, and so nothing says that it failed.
        let error = (self.kind != DeviceKind::Console).then(|| self.backend_error());
        let error = error.and_then(|error| error.parent()?.parent());
        self.backend().parent().into_iter().chain(error)
    }

    /// Reads the state of both ends in one round trip.
    ///
    /// # Errors
    /// As [`Operations::read_all`].
    pub fn status(&self, store: &mut (impl Operations + ?Sized)) -> Result<DeviceStatus, Error> {
        let (front, back) = (self.frontend(), self.backend());
        let paths = [
            back.at("state"),
            front.at("state"),
            back.at("hotplug-status"),
            back.at("hotplug-error"),
            self.backend_error(),
        ];
        let mut values = store.read_all(&paths)?.into_iter();
        let mut next = || values.next().flatten();
        let state = |value: Option<Vec<u8>>| value.map(|v| XenbusState::from_value(&v));
        Ok(DeviceStatus {
            backend: state(next()),
            frontend: state(next()),
            hotplug_status: next(),
            hotplug_error: next(),
            backend_error: next(),
        })
    }

    /// Reads an address back from a backend path of the private side.
    pub fn from_backend_path(path: &Path) -> Option<Self> {
        let segments: Vec<_> = path.segments().collect();
        let ["local", "domain", backend, "backend", kind, domid, id] = segments[..] else { return None };
        let kind = DeviceKind::ALL.into_iter().find(|k| k.backend_name() == kind)?;
        let address = Self {
            kind,
            domid: DomId(domid.parse().ok()?),
            id: id.parse().ok()?,
            backend_domid: DomId(backend.parse().ok()?),
        };
        // `+5` and `05` parse, and are not how a number is written here.
        (address.backend() == *path).then_some(address)
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of domain {}", self.kind.backend_name(), self.id, self.domid)
    }
}

/// What both ends of a device say. The frontend's words are the guest's: hostile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// `None` when there is no such node.
    pub backend: Option<XenbusState>,
    /// `None` when there is no such node.
    pub frontend: Option<XenbusState>,
    /// What hotplug wrote: `connected`, `error`, or nothing yet.
    pub hotplug_status: Option<Vec<u8>>,
    /// Why hotplug failed.
    pub hotplug_error: Option<Vec<u8>>,
    /// Why the backend's driver failed.
    pub backend_error: Option<Vec<u8>>,
}

/// Devices of a domain, from the private side. Classes and numbers that are not ours are left out.
///
/// # Errors
/// As [`Operations::directory`] and [`Operations::read_all`].
pub fn devices_of(store: &mut (impl Operations + ?Sized), domid: DomId) -> Result<Vec<DeviceAddress>, Error> {
    let root = libxl_path(domid).at("device");
    let mut backends = Vec::new();
    for kind in store.directory(&root)?.unwrap_or_default() {
        let kind = root.join(&kind)?;
        for id in store.directory(&kind)?.unwrap_or_default() {
            backends.push(kind.join(&id)?.join("backend")?);
        }
    }
    let values = store.read_all(&backends)?;
    let address = |value: Vec<u8>| DeviceAddress::from_backend_path(&Path::from_bytes(&value).ok()?);
    let mut devices: Vec<_> =
        values.into_iter().flatten().filter_map(address).filter(|a| a.domid == domid).collect();
    devices.sort_unstable();
    Ok(devices)
}

/// The roots of a device's trees.
pub(super) fn root(address: DeviceAddress, side: Side) -> Path {
    match side {
        Side::Backend => address.backend(),
        Side::Private => address.private(),
        Side::Frontend | Side::Domain | Side::Vm => address.frontend(),
    }
}

/// Nodes of a new device. Leftovers of an earlier one with the same number go first: writing to a node that is there
/// would keep its owner.
pub(super) fn create<T: Layout>(layout: &T, address: DeviceAddress, private: &Pairs) -> Batch {
    let mut batch = Batch::new();
    for path in [address.private(), address.frontend(), address.backend()] {
        batch.rm(path);
    }
    batch.append(nodes(layout, address, private, None));
    batch
}

/// The nodes of a device that comes with its domain, whose home has the permissions `home`: before it was there neither had
/// any nodes, but the backend may have some of an earlier domain's.
pub(super) fn create_with_domain<T: Layout>(layout: &T, address: DeviceAddress, home: &Perms) -> Batch {
    let mut batch = Batch::new();
    batch.rm(address.backend());
    batch.append(nodes(layout, address, &Vec::new(), Some(home)));
    batch
}

fn nodes<T: Layout>(layout: &T, address: DeviceAddress, private: &Pairs, home: Option<&Perms>) -> Batch {
    let mut batch = Batch::new();
    // `frontend` is copied from the backend's.
    batch.write(address.private().at("backend"), address.backend().as_str());
    copy_backend(layout, &mut batch);
    for (name, value) in private {
        if let Ok(path) = address.private().join(name.as_str()) {
            batch.write(path, value.clone());
        }
    }
    arrange(&address.frontend(), items(layout, Side::Frontend), home, &mut batch);
    write_side(layout, Side::Backend, &mut batch);
    write_side(layout, Side::Private, &mut batch);
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::remove_domain;
    use proptest::prelude::*;

    const DISK: DeviceAddress =
        DeviceAddress { kind: DeviceKind::Vbd, domid: DomId(5), id: 51712, backend_domid: DomId(0) };

    #[test]
    fn removal_names_every_path_and_prunes_one_level() {
        let expected = "\
rm /local/domain/5/device/vbd/51712
prune /local/domain/5/device/vbd
uproot /libxl/5/device/vbd/51712
uproot /local/domain/0/backend/vbd/5/51712
uproot /local/domain/0/error/backend/vbd/5/51712
";
        assert_eq!(DISK.remove().to_string(), expected);
    }

    #[test]
    fn the_end_of_a_domain_takes_each_directory_of_its_backends_once() {
        let [console, vif] =
            [DeviceKind::Console, DeviceKind::Vif].map(|kind| DeviceAddress { kind, id: 0, ..DISK });
        let devices = [
            console,
            DISK,
            DeviceAddress { id: 51728, ..DISK },
            DeviceAddress { backend_domid: DomId(3), ..vif },
        ];
        let expected = "\
rm /local/domain/0/backend/console/5
rm /local/domain/0/backend/vbd/5
rm /local/domain/0/error/backend/vbd/5
rm /local/domain/3/backend/vif/5
rm /local/domain/3/error/backend/vif/5
rm /local/domain/5
rm /libxl/5
rm /local/domain/0/device-model/5
";
        assert_eq!(remove_domain(DomId(5), None, &devices).to_string(), expected);
    }

    #[test]
    fn the_first_console_does_not_prune_its_domain() {
        let console = DeviceAddress { kind: DeviceKind::Console, id: 0, ..DISK };
        assert_eq!(console.frontend().as_str(), "/local/domain/5/console");
        assert!(!console.remove().to_string().contains("prune /local/domain/5\n"));
    }

    #[test]
    fn a_qdisk_is_a_vbd_to_the_guest() {
        let disk = DeviceAddress { kind: DeviceKind::Qdisk, ..DISK };
        assert_eq!(disk.frontend(), DISK.frontend());
        assert_eq!(disk.private(), DISK.private());
        assert_eq!(disk.backend().as_str(), "/local/domain/0/backend/qdisk/5/51712");
    }

    #[test]
    fn addresses_come_back_from_backend_paths_and_from_nothing_else() {
        for kind in DeviceKind::ALL {
            let address = DeviceAddress { kind, ..DISK };
            assert_eq!(DeviceAddress::from_backend_path(&address.backend()), Some(address));
        }
        for bad in [
            "/local/domain/0/backend/vbd/5",
            "/local/domain/0/backend/vbd/5/51712/x",
            "/local/domain/0/backend/vbd/05/51712",
            "/local/domain/0/backend/nothing/5/1",
            "/local/domain/70000/backend/vbd/5/1",
            "/local/domain/5/device/vbd/51712",
        ] {
            assert_eq!(DeviceAddress::from_backend_path(&Path::known(bad)), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn backend_paths_never_panic(path in "(/[a-z0-9]{1,8}){1,8}") {
            let _ = DeviceAddress::from_backend_path(&Path::new(&path).unwrap());
        }
    }
}
