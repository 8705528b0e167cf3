//! The guest's pages, mapped: from here on nothing is opened or mapped any more.

use std::io;
use std::os::fd::OwnedFd;

use ffi::DomId;
use ffi::evtchn::Port;
use ffi::given::{Channels, GuestPages, Memory};
use ffi::shared::Access;

use super::described::{Described, DescribedError, Geometry};
use super::wanted::{Ring, Wanted};
use crate::server::Device;

/// Why a guest's frame buffer is not served.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A domain's number that none has.
    #[error("{0} is no domain")]
    Domain(u16),
    /// Pages, which are the guest's to name: one that it does not own is not mapped.
    #[error("the {what} of domain {domid}, from frame {frame} on, cannot be mapped: {source}")]
    Map {
        /// Which.
        what: &'static str,
        /// Whose.
        domid: DomId,
        /// The first of them.
        frame: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// A port, which is the guest's to name.
    #[error("event channel {port} of the {what} of domain {domid} cannot be bound: {source}")]
    Bind {
        /// Whose.
        what: &'static str,
        /// Whose.
        domid: DomId,
        /// Which.
        port: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// What the page says.
    #[error(transparent)]
    Described(#[from] DescribedError),
    /// The descriptor of event channels is none.
    #[error("event channels: {0}")]
    Channels(io::Error),
}

/// A guest's screen and keyboard.
#[derive(Debug)]
pub struct Connected {
    /// How guest and server wake each other.
    pub channels: Channels,
    /// The frame buffer's shared page.
    pub screen: Device<GuestPages>,
    /// How its pixels are laid out.
    pub geometry: Geometry,
    /// Its pages, for reading.
    pub memory: GuestPages,
    /// Bytes of them.
    pub length: usize,
    /// Keyboard and pointer.
    pub input: Option<(Device<GuestPages>, bool)>,
}

struct Guest {
    domid: DomId,
    memory: Memory,
    channels: Channels,
}

impl Guest {
    fn map(&self, what: &'static str, frames: &[u64], access: Access) -> Result<GuestPages, ConnectError> {
        let Self { domid, memory, .. } = self;
        memory.map(*domid, frames, access).map_err(|source| {
            let frame = frames.first().copied().unwrap_or_default();
            ConnectError::Map { what, domid: *domid, frame, source }
        })
    }

    fn device(&self, what: &'static str, ring: Ring) -> Result<Device<GuestPages>, ConnectError> {
        let page = self.map(what, &[ring.frame], Access::ReadWrite)?;
        let bound = self.channels.bind(self.domid, Port::new(ring.port));
        let (domid, port) = (self.domid, ring.port);
        let port = bound.map_err(|source| ConnectError::Bind { what, domid, port, source })?;
        Ok(Device { page, port })
    }
}

/// Maps what is wanted through the two drivers, both of which are restricted to the domain.
///
/// # Errors
/// [`ConnectError`]; nothing stays mapped.
pub fn connect(wanted: &Wanted, privcmd: OwnedFd, evtchn: OwnedFd) -> Result<Connected, ConnectError> {
    let domid = DomId::new(wanted.domid).ok_or(ConnectError::Domain(wanted.domid))?;
    let channels = Channels::new(evtchn).map_err(ConnectError::Channels)?;
    let guest = Guest { domid, memory: Memory::new(privcmd), channels };
    let screen = guest.device("frame buffer's shared page", wanted.screen)?;
    let described = Described::read(&screen.page, wanted.abi)?;
    let directory = guest.map("frame buffer's directory", &described.directory, Access::Read)?;
    let frames = described.frames(&directory).map_err(DescribedError::from)?;
    let memory = guest.map("frame buffer", &frames, Access::Read)?;
    let input = wanted.input.map(|(ring, absolute)| {
        guest.device("keyboard's shared page", ring).map(|device| (device, absolute))
    });
    let input = input.transpose()?;
    let Guest { channels, .. } = guest;
    Ok(Connected {
        channels,
        screen,
        geometry: described.geometry,
        memory,
        length: described.memory(),
        input,
    })
}
