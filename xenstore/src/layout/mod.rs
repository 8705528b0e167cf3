//! What a domain and its devices find in the store, as tables.
//!
//! Each layout (a [`Domain`], its [`Built`] part, a [`Vbd`], [`Vif`], [`GuestAddresses`], [`Console`], its [`TerminalServer`], a [`DeviceModel`], a [`FrameBuffer`], its [`Keyboard`] and [`FrameBufferServer`]) is one table of nodes:
//! where it is, who owns it, what is in it, who reads it. The [`Batch`] that writes the tree is made from the table, and so is
//! its documentation ([`document`]): the two cannot drift apart.
//!
//! The trees are those that libxl writes, so that `xl list`, `xl console` and the guests' own tools find what they
//! look for, with what XenServer's guest agents need besides.

mod arrange;
mod built;
mod console;
mod device;
mod device_model;
mod domain;
mod frame_buffer;
mod guest_addresses;
mod table;
mod vbd;
mod vif;
mod xenbus;

pub use built::{Built, Memory};
pub use console::{Console, ConsoleServer, TerminalServer};
pub use device::{DeviceAddress, DeviceKind, DeviceStatus, devices_of};
pub use device_model::DeviceModel;
pub use domain::{
    Domain, DomainKind, domain_path, libxl_path, remove_domain, rename_domain, set_memory, set_memory_range,
    set_online_vcpus, time_offset_path, vm_path,
};
pub use frame_buffer::{FrameBuffer, FrameBufferSaid, FrameBufferServer, Keyboard};
pub use guest_addresses::{Asked, GuestAddresses};
pub use table::{Content, Layout, Node, Rule, Side, Writer, document};
pub use vbd::{BlockBackend, BlockDevice, Media, Vbd};
pub use vif::{Mac, Rate, Vif};
pub use xenbus::{XenbusState, printable};

pub(crate) use arrange::Item;

use crate::batch::Batch;
use crate::path::{Path, PathError};

/// Nodes that the caller adds to a layout: a relative path and a value each.
pub type Pairs = Vec<(Path, Vec<u8>)>;

/// Checks the names of nodes to add.
///
/// # Errors
/// [`PathError`] for the first name that is not a relative xenstore path.
pub fn pairs<K: AsRef<str>, V: Into<Vec<u8>>>(
    of: impl IntoIterator<Item = (K, V)>,
) -> Result<Pairs, PathError> {
    let pair = |(name, value): (K, V)| {
        let name = Path::new(name.as_ref())?;
        if name.is_absolute() { Err(PathError::NotRelative) } else { Ok((name, value.into())) }
    };
    of.into_iter().map(pair).collect()
}

/// All tables as Markdown.
pub fn document_all() -> String {
    let parts = [
        document::<Domain>(),
        document::<Built>(),
        document::<Console>(),
        document::<TerminalServer>(),
        document::<DeviceModel>(),
        document::<FrameBuffer>(),
        document::<Keyboard>(),
        document::<FrameBufferServer>(),
        document::<Vbd>(),
        document::<Vif>(),
        document::<GuestAddresses>(),
    ];
    format!("# Xenstore layout\n\n{}\n{}", table::LEGEND, parts.join("\n"))
}

/// The value of a node, from anything that can be printed.
#[expect(clippy::unnecessary_wraps, reason = "the tables want an Option: not every node is always there")]
fn text(value: impl std::fmt::Display) -> Option<Vec<u8>> {
    Some(value.to_string().into_bytes())
}

/// `1` or `0`.
fn flag(value: bool) -> Option<Vec<u8>> {
    text(u8::from(value))
}
