//! What dom0's drivers do with a device: blkback and netback, as far as the store shows it.
//!
//! ```text
//!   Initialising ──► InitWait ──frontend is ready──► Connected ──frontend closes or is gone──► Closing ──► Closed
//!        └── physical-device missing: error node, Closing
//! ```

use std::sync::atomic::Ordering;
use std::time::Duration;

use xenstore::layout::{DeviceAddress, DeviceKind, DeviceStatus, XenbusState};
use xenstore::{Batch, Client, Operations, Path, Request};

use super::Shared;
use super::chance::Luck;
use crate::edge::DomId;

/// Bytes of what blkback counts disks in.
const SECTOR: u64 = 512;

/// What a driver does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// Nothing until something changes.
    Stay,
    /// Probe the device and wait for the frontend.
    TakeUp,
    /// Map the frontend's rings.
    Connect,
    /// The frontend closes.
    Closing,
    /// The frontend has closed.
    Closed,
    /// The device is gone.
    Forget,
}

/// A device that a driver knows.
#[derive(Debug)]
pub(super) struct Backend {
    name: String,
    luck: Luck,
    /// How often it has moved.
    moves: u64,
    watching: bool,
    /// It has memory of the guest mapped.
    holds: bool,
}

fn next(kind: DeviceKind, status: &DeviceStatus) -> Move {
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
    let plugged = kind != DeviceKind::Vif || status.hotplug_status.as_deref() == Some(b"connected");
    match (status.backend, status.frontend) {
        (None, _) => Move::Forget,
        (Some(Initialising), _) => Move::TakeUp,
        (Some(InitWait | Initialised), Some(Initialised | Connected)) if plugged => Move::Connect,
        (Some(Connected), Some(Closing)) => Move::Closing,
        (Some(InitWait | Initialised | Connected | Closing), None | Some(Closed | Unknown)) => Move::Closed,
        _ => Move::Stay,
    }
}

impl Backend {
    pub(super) fn new(name: String, luck: Luck) -> Self {
        Self { name, luck, moves: 0, watching: false, holds: false }
    }

    /// How long it takes for its next move. Looks that find nothing to do cost it nothing.
    pub(super) fn delay(&self, most: Duration) -> Duration {
        self.luck.delay(self.moves, most)
    }

    /// Makes the next move; false when the device is to be forgotten.
    pub(super) fn step(
        &mut self,
        address: DeviceAddress,
        store: &mut Client,
        shared: &Shared,
    ) -> Result<bool, xenstore::Error> {
        let status = address.status(store)?;
        let to = |state: XenbusState| {
            let mut batch = Batch::new();
            batch.write(address.backend_state(), state.to_value());
            batch
        };
        let next = next(address.kind, &status);
        if !matches!(next, Move::Stay | Move::Forget) {
            shared.trace.note(&self.name, || format!("{next:?}, luck {:x}", self.luck.draw(self.moves)));
            self.moves += 1;
        }
        match next {
            Move::Stay => {}
            Move::TakeUp if !shared.drivers.load(Ordering::Relaxed) => {}
            Move::TakeUp => {
                self.watch_frontend(address, store)?;
                let batch = probe(address, store, shared)?;
                change(address, store, &batch)?;
            }
            Move::Connect => {
                self.holds = DomId::new(address.domid.0).is_some_and(|domid| shared.hardware().hold(domid));
                let state = if self.holds { XenbusState::Connected } else { XenbusState::Closed };
                change(address, store, &to(state))?;
            }
            Move::Closing => change(address, store, &to(XenbusState::Closing))?,
            Move::Closed => {
                // As the kernel does: mappings go before anybody is told.
                self.let_go(address, shared);
                change(address, store, &to(XenbusState::Closed))?;
            }
            Move::Forget => {
                self.let_go(address, shared);
                if self.watching {
                    let (path, token) = frontend_watch(address);
                    store.request(Request::Unwatch { path, token })?;
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn watch_frontend(&mut self, address: DeviceAddress, store: &mut Client) -> Result<(), xenstore::Error> {
        if !self.watching {
            let (path, token) = frontend_watch(address);
            store.request(Request::Watch { path, token })?;
            self.watching = true;
        }
        Ok(())
    }

    fn let_go(&mut self, address: DeviceAddress, shared: &Shared) {
        if std::mem::take(&mut self.holds)
            && let Some(domid) = DomId::new(address.domid.0)
        {
            shared.hardware().let_go(domid);
        }
    }
}

/// The frontend's whole directory, so that its removal is seen too; the token is the backend's path.
fn frontend_watch(address: DeviceAddress) -> (Path, Vec<u8>) {
    (address.frontend(), address.backend().as_str().as_bytes().to_vec())
}

/// What a driver offers, or why it does not.
fn probe(address: DeviceAddress, store: &mut Client, shared: &Shared) -> Result<Batch, xenstore::Error> {
    let mut batch = Batch::new();
    let backend = address.backend();
    let mut state = XenbusState::InitWait;
    match address.kind {
        DeviceKind::Vbd => {
            let number = store.read(&backend.join("physical-device")?)?.unwrap_or_default();
            if is_device_number(&number) {
                let sectors = (shared.disk_bytes.load(Ordering::Relaxed) / SECTOR).to_string();
                let offers = [
                    ("sectors", sectors.as_str()),
                    ("sector-size", "512"),
                    ("info", "0"),
                    ("feature-flush-cache", "1"),
                ];
                for (name, value) in offers {
                    batch.write(backend.join(name)?, value);
                }
            } else {
                batch.write(address.backend_error(), "22 reading physical-device");
                state = XenbusState::Closing;
            }
        }
        _ => {
            for name in ["feature-sg", "feature-rx-copy", "feature-ctrl-ring", "multi-queue-max-queues"] {
                batch.write(backend.join(name)?, "1");
            }
        }
    }
    batch.write(address.backend_state(), state.to_value());
    Ok(batch)
}

/// `major:minor` in hexadecimal, as blkback parses it.
fn is_device_number(text: &[u8]) -> bool {
    let hex = |part: &str| u32::from_str_radix(part, 16).is_ok();
    std::str::from_utf8(text).ok().and_then(|t| t.split_once(':')).is_some_and(|(a, b)| hex(a) && hex(b))
}

/// Makes changes unless the device has gone meanwhile: a driver's last words must not bring its directory back.
fn change(address: DeviceAddress, store: &mut Client, batch: &Batch) -> Result<(), xenstore::Error> {
    store.transaction(|t| if t.exists(&address.backend_state())? { t.apply(batch) } else { Ok(()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(
        backend: Option<XenbusState>,
        frontend: Option<XenbusState>,
        hotplug: Option<&str>,
    ) -> DeviceStatus {
        let hotplug_status = hotplug.map(|h| h.as_bytes().to_vec());
        DeviceStatus { backend, frontend, hotplug_status, hotplug_error: None, backend_error: None }
    }

    #[test]
    fn the_handshake() {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
        let vbd = |b, f| next(DeviceKind::Vbd, &status(b, f, None));
        assert_eq!(vbd(Some(Initialising), Some(Initialising)), Move::TakeUp);
        assert_eq!(vbd(Some(InitWait), Some(Initialising)), Move::Stay);
        assert_eq!(vbd(Some(InitWait), Some(Initialised)), Move::Connect);
        assert_eq!(vbd(Some(Connected), Some(Connected)), Move::Stay);
        assert_eq!(vbd(Some(Connected), Some(Closing)), Move::Closing);
        assert_eq!(vbd(Some(Closing), Some(Connected)), Move::Stay);
        for gone in [None, Some(Closed), Some(Unknown)] {
            assert_eq!(vbd(Some(Closing), gone), Move::Closed);
            assert_eq!(vbd(Some(InitWait), gone), Move::Closed);
            assert_eq!(vbd(Some(Closed), gone), Move::Stay);
            assert_eq!(vbd(None, gone), Move::Forget);
        }
    }

    #[test]
    fn netback_waits_for_hotplug() {
        let vif =
            |h| next(DeviceKind::Vif, &status(Some(XenbusState::InitWait), Some(XenbusState::Connected), h));
        assert_eq!(vif(None), Move::Stay);
        assert_eq!(vif(Some("error")), Move::Stay);
        assert_eq!(vif(Some("connected")), Move::Connect);
    }

    #[test]
    fn device_numbers() {
        assert!(is_device_number(b"7:1a"));
        for bad in [&b""[..], b"7", b"7:", b"x:1", b"7:1:2", b"\xff:1"] {
            assert!(!is_device_number(bad), "{bad:?}");
        }
    }
}
