//! A guest: what its kernel and its init would do, as its script says.

use std::time::{Duration, Instant};

use xenstore::layout::XenbusState;
use xenstore::store::ConnectionId;
use xenstore::{Access, Client, DomId, Operations, Path, Perms, Request};

use super::faults::Dice;
use crate::edge::ShutdownReason;

/// Writes of a flooding guest in one step; others get their turn in between.
const FLOOD_STEP: u32 = 200;

/// Different nodes that a flood writes to: below a guest's quota of nodes, so that they all take effect.
const FLOOD_NODES: u32 = 500;

/// Most nodes that a script may ask to be written.
const MAX_FLOOD: u32 = 1_000_000;

/// How a guest takes a request to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Manners {
    #[default]
    Obey,
    Ignore,
    Acknowledge,
    Silent,
}

/// What it does with its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Devices {
    #[default]
    Connect,
    Ignore,
    Hostile,
}

/// See the table in the module `sim`. Words that are not in it mean the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Script {
    manners: Manners,
    devices: Devices,
    then: Option<ShutdownReason>,
    then_after: Duration,
    flood: u32,
}

impl Script {
    fn read(store: &mut Client, first_boot: bool) -> Self {
        let mut word = |key: &str| {
            let value = path(&format!("vm-data/sim/{key}")).and_then(|p| store.read(&p).ok()).flatten();
            value.and_then(|v| String::from_utf8(v).ok()).unwrap_or_default()
        };
        Self {
            manners: match &*word("shutdown") {
                "ignore" => Manners::Ignore,
                "acknowledge" => Manners::Acknowledge,
                "silent" => Manners::Silent,
                _ => Manners::Obey,
            },
            devices: match &*word("devices") {
                "ignore" => Devices::Ignore,
                "hostile" => Devices::Hostile,
                _ => Devices::Connect,
            },
            then: match &*word("then") {
                "poweroff" => Some(ShutdownReason::PowerOff),
                "reboot" => Some(ShutdownReason::Reboot),
                "crash" => Some(ShutdownReason::Crash),
                "suspend" => Some(ShutdownReason::Suspend),
                _ => None,
            }
            .filter(|_| first_boot),
            then_after: Duration::from_millis(word("then-ms").parse().unwrap_or(0)),
            flood: word("flood").parse().unwrap_or(0).min(MAX_FLOOD),
        }
    }
}

/// A running, or paused, guest.
pub(super) struct Guest {
    domid: DomId,
    store: Client,
    script: Script,
    up_at: Instant,
    /// Backends whose state it watches.
    watched: Vec<Path>,
    stop: Option<(Instant, ShutdownReason)>,
    written: u32,
}

/// What a guest wants after a step.
pub(super) enum Wish {
    /// To be woken by the store.
    Wait,
    /// To be called at a time.
    At(Instant),
    /// To stop.
    Stop(ShutdownReason),
}

impl Guest {
    /// A guest that begins to boot now.
    pub(super) fn new(domid: DomId, mut store: Client, boots: u32, now: Instant, boot: Duration) -> Self {
        let script = Script::read(&mut store, boots <= 1);
        let up_at = now + boot;
        let stop = script.then.map(|reason| (up_at + script.then_after, reason));
        let mut guest = Self { domid, store, script, up_at, watched: Vec::new(), stop, written: 0 };
        guest.watch("control/shutdown");
        guest.watch("device");
        guest
    }

    /// The connection that is made for it, known before the client is.
    pub(super) fn connect(store: &xenstore::store::SharedStore, domid: DomId) -> (Client, ConnectionId) {
        let transport = store.transport(domid);
        let connection = transport.connection();
        (Client::new(Box::new(transport)), connection)
    }

    fn watch(&mut self, at: &str) {
        if let Some(path) = path(at) {
            // Over its quota a guest hears nothing; so it is on real Xen.
            let _ = self.store.request(Request::Watch { path, token: b"guest".to_vec() });
        }
    }

    /// Does what is due. The store may refuse anything to a guest; it goes on without.
    pub(super) fn step(&mut self, now: Instant, dice: &mut Dice, delay: Duration) -> Wish {
        if now < self.up_at {
            return Wish::At(self.up_at);
        }
        self.requested(now, delay);
        match self.stop {
            Some((at, reason)) if now >= at => return Wish::Stop(reason),
            _ => {}
        }
        match self.script.devices {
            Devices::Connect => drop(self.connect_devices()),
            Devices::Ignore => {}
            Devices::Hostile => self.scribble(dice),
        }
        if self.written < self.script.flood {
            self.flood();
            return Wish::At(now);
        }
        self.stop.map_or(Wish::Wait, |(at, _)| Wish::At(at))
    }

    /// Looks whether it is asked to go down.
    fn requested(&mut self, now: Instant, delay: Duration) {
        let Some(node) = path("control/shutdown") else { return };
        let Ok(Some(word)) = self.store.read(&node) else { return };
        let reason = match &*word {
            b"poweroff" | b"halt" => ShutdownReason::PowerOff,
            b"reboot" => ShutdownReason::Reboot,
            b"suspend" => ShutdownReason::Suspend,
            _ => return,
        };
        if matches!(self.script.manners, Manners::Obey | Manners::Acknowledge) {
            let _ = self.store.write(&node, "");
        }
        if matches!(self.script.manners, Manners::Obey | Manners::Silent) {
            self.stop.get_or_insert((now + delay, reason));
        }
    }

    fn connect_devices(&mut self) -> Option<()> {
        for kind in ["vbd", "vif"] {
            let class = path(&format!("device/{kind}"))?;
            for id in self.store.directory(&class).ok().flatten().unwrap_or_default() {
                let _ = self.connect_device(kind, &class.join(&id).ok()?);
            }
        }
        Some(())
    }

    /// As blkfront and netfront: rings are published when the backend waits; what closes is closed.
    fn connect_device(&mut self, kind: &str, frontend: &Path) -> Result<(), xenstore::Error> {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
        let state = frontend.join("state")?;
        let Some(backend) = self.store.read(&frontend.join("backend")?)? else { return Ok(()) };
        let theirs = Path::from_bytes(&backend)?.join("state")?;
        if !self.watched.contains(&theirs) {
            self.watch(theirs.as_str());
            self.watched.push(theirs.clone());
        }
        let values = self.store.read_all(&[state.clone(), theirs])?;
        let read = |n: usize| values[n].as_deref().map(XenbusState::from_value);
        let next = match (read(0), read(1)) {
            (Some(Initialising), Some(InitWait)) => {
                let rings: &[(&str, &str)] = if kind == "vbd" {
                    &[("ring-ref", "8"), ("event-channel", "5"), ("protocol", "x86_64-abi")]
                } else {
                    &[
                        ("tx-ring-ref", "9"),
                        ("rx-ring-ref", "10"),
                        ("event-channel", "6"),
                        ("request-rx-copy", "1"),
                    ]
                };
                for (name, value) in rings {
                    self.store.write(&frontend.join(name)?, *value)?;
                }
                if kind == "vbd" { Initialised } else { Connected }
            }
            (Some(Initialised), Some(Connected)) => Connected,
            (Some(Initialising | Initialised | Connected | Closing), Some(Closing | Closed)) => Closed,
            _ => return Ok(()),
        };
        self.store.write(&state, next.to_value())
    }

    /// Nonsense wherever a guest can put it.
    fn scribble(&mut self, dice: &mut Dice) {
        let all = [
            "device/vbd",
            "device/vif",
            "control/shutdown",
            "data",
            "attr",
            "error",
            "vm-data",
            "xenserver",
            "device",
        ];
        let mut targets: Vec<Path> = all.iter().filter_map(|t| path(t)).collect();
        for class in ["device/vbd", "device/vif"] {
            let Some(class) = path(class) else { continue };
            for id in self.store.directory(&class).ok().flatten().unwrap_or_default() {
                let names = ["", "/state", "/backend", "/backend-id", "/ring-ref"];
                targets.extend(names.iter().filter_map(|n| class.join(&format!("{id}{n}")).ok()));
            }
        }
        for target in targets {
            let roll = dice.next();
            let _ = match roll % 8 {
                0 => self.store.rm(&target),
                1 => self
                    .store
                    .set_perms(&target, &Perms::owned_by(self.domid).with(DomId::DOM0, Access::None)),
                2 => self.store.write(&target, vec![0xff; 1900]),
                3 => self.store.write(&target, "/local/domain/0/backend/vbd/0/0"),
                4 => self.store.write(&target, "../../0"),
                5 => self.store.write(&target, format!("{}", roll % 10)),
                6 => self.store.write(&target, ""),
                _ => self.store.write(&target, roll.to_le_bytes().to_vec()),
            };
        }
    }

    fn flood(&mut self) {
        for _ in 0..FLOOD_STEP.min(self.script.flood - self.written) {
            if let Some(node) = path(&format!("data/flood/{}", self.written % FLOOD_NODES)) {
                let _ = self.store.write(&node, self.written.to_string());
            }
            self.written += 1;
        }
    }
}

fn path(text: &str) -> Option<Path> {
    Path::new(text).ok()
}
