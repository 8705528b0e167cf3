//! A guest: what its kernel and its init would do, as its script says.

use std::time::{Duration, Instant};

use xenstore::layout::XenbusState;
use xenstore::store::ConnectionId;
use xenstore::{Access, Client, Operations, Path, Perms, Request};

use super::agent::Agent;
use super::chance::Luck;
use super::{Shared, store_domid};
use crate::edge::{DomId, ShutdownReason};

/// Writes of a flooding guest in one step; others get their turn in between.
const FLOOD_STEP: u32 = 200;

/// Until its next step: others are heard first.
const FLOOD_PAUSE: Duration = Duration::from_micros(1);

/// Different nodes that a flood writes to: below a guest's quota of nodes, so that they all take effect.
const FLOOD_NODES: u32 = 500;

/// Most nodes that a script may ask to be written.
const MAX_FLOOD: u32 = 1_000_000;

/// Pages that a slow balloon moves in one step: a MiB.
const SLOW_PAGES: u64 = 256;

/// How long a balloon waits before it asks again for memory that was not free: first and longest, as Linux'.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(32);

/// KiB of a page.
const PAGE_KIB: u64 = 4;

/// Most vcpus that are looked at: what a PV guest's kernel is built for is far less.
const MAX_VCPUS: u32 = 512;

/// The keys of a script, below `vm-data/sim`.
pub const SCRIPT_KEYS: &[&str] = &[
    "shutdown",
    "suspend",
    "then",
    "then-ms",
    "devices",
    "device-model",
    "drivers",
    "flood",
    "balloon",
    "agent",
];

/// How a guest takes a request to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Manners {
    #[default]
    Obey,
    Ignore,
    Acknowledge,
    Silent,
    /// Takes it and crashes; a request to suspend only.
    Crash,
}

impl Manners {
    fn of(word: &str) -> Self {
        match word {
            "ignore" => Self::Ignore,
            "acknowledge" => Self::Acknowledge,
            "silent" => Self::Silent,
            "crash" => Self::Crash,
            _ => Self::Obey,
        }
    }
}

/// What it does with its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Devices {
    #[default]
    Connect,
    Keep,
    Refuse,
    Ignore,
    Hostile,
}

/// How its balloon driver takes a new target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Balloon {
    #[default]
    Obey,
    Refuse,
    Slow,
}

/// See the table in the module `sim`. Words that are not in it mean the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Script {
    shutdown: Manners,
    suspend: Manners,
    devices: Devices,
    then: Option<ShutdownReason>,
    then_after: Duration,
    flood: u32,
    balloon: Balloon,
    agent: Agent,
}

impl Script {
    /// What the VM says, else what `defaults` say.
    fn read(store: &mut Client, first_boot: bool, defaults: &[(String, String)]) -> Self {
        let mut word = |key: &str| {
            let value = path(&format!("vm-data/sim/{key}")).and_then(|p| store.read(&p).ok()).flatten();
            let default = || defaults.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.clone());
            value.and_then(|v| String::from_utf8(v).ok()).or_else(default).unwrap_or_default()
        };
        Self {
            shutdown: Manners::of(&word("shutdown")),
            // Without drivers it hears of nothing.
            suspend: if word("drivers") == "none" { Manners::Ignore } else { Manners::of(&word("suspend")) },
            devices: match &*word("devices") {
                "keep" => Devices::Keep,
                "refuse" => Devices::Refuse,
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
            balloon: match &*word("balloon") {
                "refuse" => Balloon::Refuse,
                "slow" => Balloon::Slow,
                _ => Balloon::Obey,
            },
            agent: Agent::of(&word("agent")),
        }
    }
}

impl Script {
    /// What a word of dom0's makes of the guest, and how it takes it.
    fn answer(&self, word: &[u8]) -> Option<(ShutdownReason, Manners)> {
        let reason = match word {
            b"poweroff" | b"halt" => ShutdownReason::PowerOff,
            b"reboot" => ShutdownReason::Reboot,
            b"suspend" => ShutdownReason::Suspend,
            _ => return None,
        };
        let manners = if reason == ShutdownReason::Suspend { self.suspend } else { self.shutdown };
        let reason = if manners == Manners::Crash { ShutdownReason::Crash } else { reason };
        Some((reason, manners))
    }
}

/// A running, or paused, guest.
pub(super) struct Guest {
    domid: DomId,
    name: String,
    luck: Luck,
    most: Duration,
    store: Client,
    script: Script,
    up_at: Instant,
    /// Backends whose state it watches.
    watched: Vec<Path>,
    stop: Option<(Instant, ShutdownReason)>,
    written: u32,
    /// How often it has been asked to go down, has scribbled, and has moved its balloon.
    asked: u64,
    scribbled: u64,
    ballooned: u64,
    /// How long its balloon waits for memory the next time.
    retry: Duration,
}

/// What a guest begins with.
pub(super) struct Birth {
    pub(super) domid: DomId,
    /// What it is called in the trace.
    pub(super) name: String,
    pub(super) luck: Luck,
    /// The longest time it takes for one step.
    pub(super) most: Duration,
    /// Whether its VM has not been started here before.
    pub(super) first: bool,
    pub(super) now: Instant,
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
    pub(super) fn new(
        birth: Birth,
        mut store: Client,
        defaults: &[(String, String)],
        shared: &Shared,
    ) -> Self {
        let Birth { domid, name, luck, most, first, now } = birth;
        let script = Script::read(&mut store, first, defaults);
        let boot = luck.delay(luck.draw_for("boot", 0), most);
        shared.trace.note(&name, || format!("boots in {boot:?}, {script:?}"));
        let up_at = now + boot;
        let stop = script.then.map(|reason| (up_at + script.then_after, reason));
        let (watched, retry) = (Vec::new(), FIRST_RETRY);
        let (written, asked, scribbled, ballooned) = (0, 0, 0, 0);
        let mut guest = Self {
            domid,
            name,
            luck,
            most,
            store,
            script,
            up_at,
            watched,
            stop,
            written,
            asked,
            scribbled,
            ballooned,
            retry,
        };
        for node in ["control/shutdown", "device", "cpu", "memory/target"] {
            guest.watch(node);
        }
        guest
    }

    /// The connection that is made for it, known before the client is.
    pub(super) fn connect(
        store: &xenstore::store::SharedStore,
        domid: xenstore::DomId,
    ) -> (Client, ConnectionId) {
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

    /// How long it takes to look after something happened in the store.
    pub(super) fn reaction(&self) -> Duration {
        self.delay("reaction", 0)
    }

    fn delay(&self, what: &str, nth: u64) -> Duration {
        self.luck.delay(self.luck.draw_for(what, nth), self.most)
    }

    /// Does what is due. The store may refuse anything to a guest; it goes on without.
    pub(super) fn step(&mut self, now: Instant, shared: &Shared) -> Wish {
        if now < self.up_at {
            return Wish::At(self.up_at);
        }
        std::mem::take(&mut self.script.agent).write(&mut self.store);
        self.requested(now, shared);
        match self.stop {
            Some((at, reason)) if now >= at => {
                shared.trace.note(&self.name, || format!("stops: {reason:?}"));
                // It may be let run on.
                self.stop = None;
                return Wish::Stop(reason);
            }
            _ => {}
        }
        self.follow_vcpus(shared);
        let ballooning = self.balloon(now, shared);
        match self.script.devices {
            Devices::Connect | Devices::Keep | Devices::Refuse => drop(self.connect_devices(shared)),
            Devices::Ignore => {}
            Devices::Hostile => self.scribble(),
        }
        if self.written < self.script.flood {
            self.flood();
            return Wish::At(now + FLOOD_PAUSE);
        }
        let next = self.stop.map(|(at, _)| at).into_iter().chain(ballooning).min();
        next.map_or(Wish::Wait, Wish::At)
    }

    /// Looks whether it is asked to go down.
    fn requested(&mut self, now: Instant, shared: &Shared) {
        let Some(node) = path("control/shutdown") else { return };
        let Ok(Some(word)) = self.store.read(&node) else { return };
        if self.script.answer(&word).is_none() {
            return;
        }
        let script = &self.script;
        let taken = self.store.transaction::<_, xenstore::Error>(|t| {
            let word = t.read(&node)?;
            let request = word.and_then(|word| script.answer(&word));
            if let Some((_, manners)) = &request
                && matches!(manners, Manners::Obey | Manners::Acknowledge | Manners::Crash)
            {
                // As Linux, in one transaction: a request that is withdrawn is not half taken.
                t.write(&node, "")?;
            }
            Ok(request)
        });
        let Ok(Some((reason, manners))) = taken else { return };
        let delay = self.delay("shutdown", self.asked);
        if matches!(manners, Manners::Obey | Manners::Acknowledge | Manners::Crash) {
            shared.trace.note(&self.name, || format!("takes the request {reason:?}"));
            self.asked += 1;
        }
        if matches!(manners, Manners::Obey | Manners::Silent | Manners::Crash) && self.stop.is_none() {
            self.stop = Some((now + delay, reason));
            shared.trace.note(&self.name, || format!("is down in {delay:?}"));
        }
    }

    /// As the kernel's vcpu hotplug: those are up that the toolstack wants.
    fn follow_vcpus(&mut self, shared: &Shared) {
        let wanted = |store: &mut Client| {
            let names = store.directory(&path("cpu")?).ok()??;
            let nodes: Vec<_> = names
                .iter()
                .filter(|name| name.parse::<u32>().is_ok_and(|n| n < MAX_VCPUS))
                .filter_map(|name| path(&format!("cpu/{name}/availability")))
                .collect();
            let values = store.read_all(&nodes).ok()?;
            u32::try_from(values.iter().flatten().filter(|v| *v == b"online").count()).ok()
        };
        if let Some(vcpus) = wanted(&mut self.store) {
            shared.change(|hardware| hardware.set_online(self.domid, vcpus));
        }
    }

    /// As the kernel's balloon driver. When it wants to go on, if it does.
    fn balloon(&mut self, now: Instant, shared: &Shared) -> Option<Instant> {
        if self.script.balloon == Balloon::Refuse {
            return None;
        }
        let target = self.store.read(&path("memory/target")?).ok()??;
        let target_kib: u64 = std::str::from_utf8(&target).ok()?.parse().ok()?;
        let wanted = target_kib / PAGE_KIB;
        let have = shared.hardware().info(self.domid)?.tot_pages;
        if wanted == have {
            return None;
        }
        let aim = match self.script.balloon {
            Balloon::Slow => wanted.clamp(have.saturating_sub(SLOW_PAGES), have + SLOW_PAGES),
            _ => wanted,
        };
        let got = shared.change(|hardware| hardware.balloon(self.domid, aim))?;
        let delay = self.delay("balloon", self.ballooned);
        if got != have {
            shared.trace.note(&self.name, || format!("has {got} pages of {wanted}"));
            self.ballooned += 1;
            self.retry = FIRST_RETRY;
        }
        if got == wanted {
            return None;
        }
        if got == aim {
            return Some(now + delay);
        }
        let retry = self.retry;
        self.retry = (retry * 2).min(LAST_RETRY);
        Some(now + retry)
    }

    fn connect_devices(&mut self, shared: &Shared) -> Option<()> {
        for kind in ["vbd", "vif"] {
            let class = path(&format!("device/{kind}"))?;
            for id in self.store.directory(&class).ok().flatten().unwrap_or_default() {
                if let Ok(Some(state)) = self.connect_device(kind, &class.join(&id).ok()?) {
                    let frontend = format!("frontend {kind} {id}, {}", self.name);
                    shared.trace.note(&frontend, || format!("{state:?}"));
                }
            }
        }
        Some(())
    }

    /// As blkfront and netfront: rings are published when the backend waits; what closes is closed. The new state.
    fn connect_device(
        &mut self,
        kind: &str,
        frontend: &Path,
    ) -> Result<Option<XenbusState>, xenstore::Error> {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
        let state = frontend.join("state")?;
        let Some(backend) = self.store.read(&frontend.join("backend")?)? else { return Ok(None) };
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
            (Some(Connected), Some(Closing)) if self.script.devices == Devices::Keep => return Ok(None),
            (Some(Connected), Some(Closing)) if self.script.devices == Devices::Refuse => {
                // As blkfront did before Linux 5.16.
                let place = frontend.as_str().replacen("device/", "error/device/", 1);
                self.store
                    .write(&Path::new(&place)?.join("error")?, "16 Device in use; refusing to close")?;
                Closing
            }
            (Some(Closing), Some(Closing)) if self.script.devices == Devices::Refuse => return Ok(None),
            (Some(Initialising | Initialised | Connected | Closing), Some(Closing | Closed)) => Closed,
            _ => return Ok(None),
        };
        self.store.write(&state, next.to_value())?;
        Ok(Some(next))
    }

    /// Nonsense wherever a guest can put it.
    fn scribble(&mut self) {
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
            let roll = self.luck.draw_for(target.as_str(), self.scribbled);
            let _ = match roll % 8 {
                0 => self.store.rm(&target),
                1 => self.store.set_perms(
                    &target,
                    &Perms::owned_by(store_domid(self.domid)).with(xenstore::DomId::DOM0, Access::None),
                ),
                2 => self.store.write(&target, vec![0xff; 1900]),
                3 => self.store.write(&target, "/local/domain/0/backend/vbd/0/0"),
                4 => self.store.write(&target, "../../0"),
                5 => self.store.write(&target, format!("{}", roll % 10)),
                6 => self.store.write(&target, ""),
                _ => self.store.write(&target, roll.to_le_bytes().to_vec()),
            };
        }
        self.scribbled += 1;
    }

    fn flood(&mut self) {
        for _ in 0..FLOOD_STEP.min(self.script.flood - self.written) {
            if let Some(node) = path(&format!("data/flood-{}", self.written % FLOOD_NODES)) {
                let _ = self.store.write(&node, self.written.to_string());
            }
            self.written += 1;
        }
    }
}

fn path(text: &str) -> Option<Path> {
    Path::new(text).ok()
}
