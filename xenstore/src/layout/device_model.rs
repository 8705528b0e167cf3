//! What people and viewers look for of a domain's device model.
//!
//! QEMU itself writes `/local/domain/0/device-model/D/state`, which goes with the domain; nobody here reads it.

use super::domain::{domain_path, libxl_path};
use super::table::{Layout, Node, Side, write_side};
use super::text;
use crate::batch::Batch;
use crate::path::Path;
use crate::perms::DomId;

/// A device model that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceModel {
    /// The guest.
    pub domid: DomId,
    /// Its process.
    pub pid: u32,
    /// The pseudo-terminal of the first serial port; none when there is no port, or when the node is there already.
    pub serial: Option<String>,
    /// Where on 127.0.0.1 the screen is to be reached.
    pub vnc_port: Option<u16>,
}

const PID: &str = "image/device-model-pid";
const SERIAL: &str = "serial/0/tty";
const VNC_PORT: &str = "console/vnc-port";

impl DeviceModel {
    /// All nodes. A port of an earlier daemon's is removed when there is none now.
    pub fn create(&self) -> Batch {
        let mut batch = Batch::new();
        if self.vnc_port.is_none() {
            batch.rm(domain_path(self.domid).at(VNC_PORT));
        }
        write_side(self, Side::Domain, &mut batch);
        batch
    }

    /// The node of the serial port's terminal.
    pub fn serial_path(domid: DomId) -> Path {
        domain_path(domid).at(SERIAL)
    }

    /// The node of the screen's port.
    pub fn vnc_port_path(domid: DomId) -> Path {
        domain_path(domid).at(VNC_PORT)
    }
}

impl Layout for DeviceModel {
    const TITLE: &'static str = "Device model";

    const NODES: &'static [Node<Self>] = &[
        Node::value(Side::Domain, PID, "N", |m| text(m.pid), "xl, people"),
        Node::value(Side::Domain, SERIAL, "/dev/pts/N", |m| text(m.serial.as_ref()?), "xl console -t serial"),
        Node::value(
            Side::Domain,
            VNC_PORT,
            "N",
            |m| text(m.vnc_port?),
            "viewers, by way of the management layer; the toolstack itself listens there",
        ),
    ];

    fn root(&self, side: Side) -> Path {
        if side == Side::Private { libxl_path(self.domid) } else { domain_path(self.domid) }
    }

    fn root_shown(_: Side) -> &'static str {
        "/local/domain/D"
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, DomId::DOM0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Operations;
    use crate::store::SharedStore;

    #[test]
    fn what_is_not_there_leaves_no_node_but_the_serial_port_stays() {
        let domid = DomId(7);
        let store = SharedStore::new();
        let mut client = store.client(DomId::DOM0);
        let first =
            DeviceModel { domid, pid: 42, serial: Some("/dev/pts/3".to_owned()), vnc_port: Some(5901) };
        client.commit(&first.create()).unwrap();
        assert_eq!(client.read_str(&DeviceModel::vnc_port_path(domid)).unwrap().as_deref(), Some("5901"));
        let later = DeviceModel { serial: None, vnc_port: None, ..first };
        client.commit(&later.create()).unwrap();
        assert_eq!(client.read_str(&DeviceModel::vnc_port_path(domid)).unwrap(), None);
        assert_eq!(client.read_str(&DeviceModel::serial_path(domid)).unwrap().as_deref(), Some("/dev/pts/3"));
    }
}
