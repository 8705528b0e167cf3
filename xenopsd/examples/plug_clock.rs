//! Runs in dom0 for `cargo xtask bench hotplug`. Times plugging and unplugging of a disk and an interface through the daemon
//! and with `xl`, in turn.
//!
//! ```text
//!   call ──► (xl's process, or VBD.add, VBD.plug and the task's end) ──► returned ─┐
//!     └────► backend and frontend both Connected, as a watch tells ────────────────┴──► the later of both is the time
//! ```
//!
//! Unplugging is over when both directories are gone and the call has returned. Prints `MEASURE what who microseconds`.
//!
//! What no toolstack can be faster than is measured as well, as `bare`: the same nodes written by this program, in one transaction
//! and with nothing looked at before, and removed as soon as both ends have closed.
//!
//! usage: `plug_clock ROUNDS OUR_DOMID XL_DOMID DIRECTORY`, where the directory has the devices' records as `vbd.json` and
//! `vif.json`, and room for the stock scripts.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use xenopsd::api::value::FromValue;
use xenopsd::api::{
    DeviceId, Method, TaskId, Vbd, VbdAdd, VbdPlug, VbdRemove, VbdUnplug, Vif, VifAdd, VifPlug, VifRemove,
    VifUnplug,
};
use xenopsd::rpc::{Client, Codec, json};
use xenstore::layout::{self, BlockBackend, BlockDevice, DeviceAddress, DeviceKind, Mac, Media, XenbusState};
use xenstore::transport::Endpoint;
use xenstore::{Batch, DomId, Operations as _, WatchStream};

/// The daemon's socket.
const SOCKET: &str = "/var/lib/xcp/xenopsd.json";

/// Where `xl` finds its scripts.
const SCRIPTS: &str = "/etc/xen/scripts";

/// The scripts that are in the stock ones' place for the second measurement. 7:0 is `/dev/loop0`.
const ONE_LINE: [(&str, &str); 2] = [
    (
        "block",
        r#"[ "$1" != add ] || xenstore-write "$XENBUS_PATH/physical-device" 7:0 "$XENBUS_PATH/hotplug-status" connected"#,
    ),
    (
        "vif-bridge",
        r#"[ "$1" != online ] || { ip link set "$vif" master xenbr0 up && xenstore-write "$XENBUS_PATH/hotplug-status" connected; }"#,
    ),
];

/// No measurement takes so long.
const LIMIT: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let words: Vec<_> = std::env::args().collect();
    let [_, rounds, ours, theirs, directory] = &words[..] else {
        return Err("usage: plug_clock ROUNDS OUR_DOMID XL_DOMID DIRECTORY".into());
    };
    let directory = Path::new(directory);
    let bench = Bench {
        client: Client::new(SOCKET, Codec::Json),
        vbd: record(&directory.join("vbd.json"))?,
        vif: record(&directory.join("vif.json"))?,
        ours: DomId(ours.parse()?),
        theirs: DomId(theirs.parse()?),
        stock: directory.join("stock-scripts"),
    };
    fs::create_dir_all(&bench.stock)?;
    for (name, _) in ONE_LINE {
        fs::copy(Path::new(SCRIPTS).join(name), bench.stock.join(name))?;
    }
    let outcome = (0..rounds.parse()?).try_for_each(|_| bench.round());
    bench.stock_scripts()?;
    outcome
}

fn record<T: FromValue>(path: &Path) -> Outcome<T> {
    Ok(T::from_value(&json::parse(&fs::read(path)?)?)?)
}

struct Bench {
    client: Client,
    vbd: Vbd,
    vif: Vif,
    ours: DomId,
    theirs: DomId,
    /// Where copies of the stock scripts are.
    stock: PathBuf,
}

impl Bench {
    /// Each device plugged and unplugged by each of three.
    fn round(&self) -> Outcome<()> {
        let disk = self.vbd.position.ok_or("the disk's record has no position")?.to_xenstore()?;
        self.device("vbd", DeviceKind::Vbd, disk)?;
        self.device("vif", DeviceKind::Vif, 0)
    }

    fn device(&self, name: &str, kind: DeviceKind, id: u32) -> Outcome<()> {
        let of = |domid| DeviceAddress { kind, domid, id, backend_domid: DomId::DOM0 };
        timed(&format!("{name}-plug"), "xenopsd", of(self.ours), connected, || self.plug(kind))?;
        timed(&format!("{name}-unplug"), "xenopsd", of(self.ours), gone, || self.unplug(kind))?;
        let mut store = xenstore::Client::connect()?;
        let nodes = bare_nodes(of(self.theirs));
        timed(&format!("{name}-plug"), "bare", of(self.theirs), connected, || Ok(store.commit(&nodes)?))?;
        timed(&format!("{name}-unplug"), "bare", of(self.theirs), gone, || {
            bare_unplug(&mut store, of(self.theirs))
        })?;
        for who in ["xl-stock", "xl-line"] {
            if who == "xl-stock" { self.stock_scripts() } else { one_line_scripts() }?;
            timed(&format!("{name}-plug"), who, of(self.theirs), connected, || self.xl_attach(kind))?;
            timed(&format!("{name}-unplug"), who, of(self.theirs), gone, || self.xl_detach(kind, id))?;
        }
        Ok(())
    }

    fn plug(&self, kind: DeviceKind) -> Outcome<()> {
        let debug_info = dbg();
        if kind == DeviceKind::Vbd {
            let id = self.client.call(&VbdAdd { debug_info: dbg(), vbd: self.vbd.clone() })?;
            self.task(&VbdPlug { debug_info, id })
        } else {
            let id = self.client.call(&VifAdd { debug_info: dbg(), vif: self.vif.clone() })?;
            self.task(&VifPlug { debug_info, id })
        }
    }

    fn unplug(&self, kind: DeviceKind) -> Outcome<()> {
        let (debug_info, force) = (dbg(), false);
        let id: DeviceId = if kind == DeviceKind::Vbd { self.vbd.id.clone() } else { self.vif.id.clone() };
        if kind == DeviceKind::Vbd {
            self.task(&VbdUnplug { debug_info, id: id.clone(), force })?;
            self.client.call(&VbdRemove { debug_info: dbg(), id })?;
        } else {
            self.task(&VifUnplug { debug_info, id: id.clone(), force })?;
            self.client.call(&VifRemove { debug_info: dbg(), id })?;
        }
        Ok(())
    }

    /// A call that answers with a task, to the task's end: what a management layer does.
    fn task<M: Method<Result = TaskId>>(&self, call: &M) -> Outcome<()> {
        let task = self.client.call(call)?;
        self.client.finish_task(&dbg(), &task, |_| ())?;
        Ok(())
    }

    fn xl_attach(&self, kind: DeviceKind) -> Outcome<()> {
        let domid = self.theirs.to_string();
        if kind == DeviceKind::Vbd {
            xl(&["block-attach", &domid, "phy:/dev/loop0", "xvdf", "w"])
        } else {
            xl(&["network-attach", &domid, "bridge=xenbr0", "mac=00:16:3e:00:00:77"])
        }
    }

    fn xl_detach(&self, kind: DeviceKind, id: u32) -> Outcome<()> {
        let command = if kind == DeviceKind::Vbd { "block-detach" } else { "network-detach" };
        xl(&[command, &self.theirs.to_string(), &id.to_string()])
    }

    fn stock_scripts(&self) -> Outcome<()> {
        for (name, _) in ONE_LINE {
            fs::copy(self.stock.join(name), Path::new(SCRIPTS).join(name))?;
        }
        Ok(())
    }
}

/// As the daemon writes them for a disk on `/dev/loop0` and for an interface, which is put into no bridge.
fn bare_nodes(device: DeviceAddress) -> Batch {
    let (domid, backend_domid) = (device.domid, device.backend_domid);
    if device.kind == DeviceKind::Vbd {
        let disk = layout::Vbd {
            domid,
            backend_domid,
            vdev: device.id,
            name: "xvdf".to_owned(),
            backend: BlockBackend::Phy { path: b"/dev/loop0".to_vec() },
            media: Media::Disk,
            writable: true,
            removable: false,
            discard: true,
            trusted: true,
            script: Some(format!("{SCRIPTS}/block")),
            device: Some(BlockDevice { major: 7, minor: 0 }),
            extra_backend: Vec::new(),
            extra_private: Vec::new(),
        };
        return disk.create();
    }
    let interface = layout::Vif {
        domid,
        backend_domid,
        handle: device.id,
        mac: Mac([0x00, 0x16, 0x3e, 0x00, 0x00, 0x77]),
        bridge: "xenbr0".to_owned(),
        mtu: None,
        rate: None,
        carrier: true,
        trusted: true,
        emulated: false,
        script: None,
        extra_backend: Vec::new(),
        extra_private: Vec::new(),
    };
    let mut nodes = interface.create();
    nodes.append(layout::Vif::connect(device));
    nodes
}

fn bare_unplug(store: &mut xenstore::Client, device: DeviceAddress) -> Outcome<()> {
    let (watching, begin) = channel();
    let watcher = std::thread::spawn(move || seen(device, closed, &watching));
    // One that could not begin says why when it is joined.
    let _ = begin.recv();
    store.commit(&device.request_close())?;
    watcher.join().map_err(|_| "the watching thread panicked")??;
    Ok(store.commit(&device.remove())?)
}

fn dbg() -> String {
    "bench".to_owned()
}

fn xl(words: &[&str]) -> Outcome<()> {
    let done = Command::new("xl").args(words).stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("xl {words:?}: {}", String::from_utf8_lossy(&done.stderr)).into())
}

fn one_line_scripts() -> Outcome<()> {
    for (name, line) in ONE_LINE {
        let path = Path::new(SCRIPTS).join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn connected(state: Option<XenbusState>) -> bool {
    state == Some(XenbusState::Connected)
}

fn closed(state: Option<XenbusState>) -> bool {
    matches!(state, None | Some(XenbusState::Closed))
}

fn gone(state: Option<XenbusState>) -> bool {
    state.is_none()
}

type Wanted = fn(Option<XenbusState>) -> bool;

/// One measurement: `act` on this thread, the device's states on another.
fn timed(
    what: &str,
    who: &str,
    device: DeviceAddress,
    wanted: Wanted,
    act: impl FnOnce() -> Outcome<()>,
) -> Outcome<()> {
    let (watching, begin) = channel();
    let watcher = std::thread::spawn(move || seen(device, wanted, &watching));
    // One that could not begin says why when it is joined.
    let (begun, acted) = (begin.recv().map(|()| Instant::now()), act());
    let returned = Instant::now();
    let seen = watcher.join().map_err(|_| "the watching thread panicked")?;
    let seen = seen.map_err(|error| format!("{what} {who}: {error}"))?;
    acted.map_err(|error| format!("{what} {who}: {error}"))?;
    let begun = begun?;
    for (suffix, end) in [("", returned.max(seen)), ("-call", returned)] {
        println!("MEASURE {what}{suffix} {who} {}", end.duration_since(begun).as_micros());
    }
    Ok(())
}

/// When both ends of a device are as wanted. Tells when it has begun to watch.
fn seen(device: DeviceAddress, wanted: Wanted, watching: &Sender<()>) -> Outcome<Instant> {
    let states = [device.backend_state(), device.frontend().join("state")?];
    let mut store = xenstore::Client::connect()?;
    let mut watches = WatchStream::connect(Endpoint::from_environment())?;
    for state in &states {
        watches.watch(state);
    }
    let mut poll = Poll::new()?;
    poll.registry().register(&mut watches, Token(0), Interest::READABLE | Interest::WRITABLE)?;
    let (mut events, mut heard) = (Events::with_capacity(8), 0);
    let deadline = Instant::now() + LIMIT;
    loop {
        let before = heard;
        watches.drain(|_| heard += 1)?;
        // Each watch fires once because it is set.
        if before < states.len() && heard >= states.len() {
            watching.send(())?;
        } else if heard > before {
            let values = store.read_all(&states)?;
            if values.into_iter().all(|value| wanted(value.map(|state| XenbusState::from_value(&state)))) {
                return Ok(Instant::now());
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("the device is not as wanted".into());
        }
        match poll.poll(&mut events, Some(left)) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
    }
}
