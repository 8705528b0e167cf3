//! Open vSwitch: ports made and removed in its database, over the Unix socket of its server (RFC 7047).
//!
//! ```text
//!   transact: port in, or moved ──► ovsdb-server ──► ovs-vswitchd: makes it so ──► cur_cfg
//!        next_cfg + 1 ─────────────────── awaited: update with cur_cfg ≥ next_cfg ◄────┘
//! ```
//!
//! A connection is made for each change and closed after it. Everything awaited has one deadline, everything read a bound.

mod message;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::netlink::IfName;
use crate::api::value::Value;
use crate::rpc::json;
use message::{elements, is, list, map, object, set, text, uuid};

pub use message::{Framer, MAX_MESSAGE, MessageError};

/// Where the database server listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/openvswitch/db.sock";

/// How long a change may take until the switch has made it so: milliseconds, unless its daemon does not run.
const LIMIT: Duration = Duration::from_secs(10);

/// Name of the switch's database.
const DATABASE: &str = "Open_vSwitch";

/// Bytes read at once.
const PIECE: usize = 16 * 1024;

/// Most messages read for one answer: the server may put others in between, and is not to do so for ever.
const MAX_MESSAGES: usize = 256;

/// Why the switch did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum OvsError {
    /// Its server is not reached, or the connection broke.
    #[error("Open vSwitch's database at {}: {source}; is openvswitch-switch running?", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No answer.
    #[error("Open vSwitch has not {what} within {} s: is ovs-vswitchd running?", LIMIT.as_secs())]
    Timeout {
        /// What was awaited.
        what: &'static str,
    },
    /// Bytes that are no message.
    #[error("Open vSwitch's database server: {0}")]
    Message(#[from] MessageError),
    /// An answer that is not one to the question.
    #[error("Open vSwitch's database server answers {what} that is not as RFC 7047 has it")]
    Answer {
        /// To what.
        what: &'static str,
    },
    /// The server says no.
    #[error("Open vSwitch refuses {what}: {why}")]
    Refused {
        /// What.
        what: &'static str,
        /// Its words.
        why: String,
    },
    /// No such bridge in its database.
    #[error("Open vSwitch has no bridge {bridge} in its database; make it with `ovs-vsctl add-br {bridge}`")]
    NoBridge {
        /// The bridge.
        bridge: IfName,
    },
    /// The port is there and does not work.
    #[error("Open vSwitch cannot use {interface} as a port of {bridge}: {why}")]
    Port {
        /// The interface.
        interface: IfName,
        /// The bridge.
        bridge: IfName,
        /// The switch's words.
        why: String,
    },
}

/// A port as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port<'a> {
    /// Its interface.
    pub interface: &'a IfName,
    /// Its bridge.
    pub bridge: &'a IfName,
    /// The VLAN it is in; none for all that `trunks` lets through.
    pub vlan: Option<u16>,
    /// VLANs that it carries tagged; empty for all.
    pub trunks: &'a [u16],
    /// What controllers know the interface by.
    pub external_ids: &'a [(String, String)],
}

/// Puts an interface into a bridge, or out of another into that, and waits until the switch has done so.
///
/// # Errors
/// [`OvsError`]; nothing of it is left in the database then.
pub fn add_port(socket: &Path, port: &Port<'_>) -> Result<(), OvsError> {
    let mut client = Client::connect(socket)?;
    client.follow()?;
    let found = client.find(port.interface, Some(port.bridge))?;
    let bridge = found.bridge.ok_or_else(|| OvsError::NoBridge { bridge: port.bridge.clone() })?;
    let (mut changes, reference) = match &found.port {
        Some(known) => {
            let reference = list([text("uuid"), text(known)]);
            (change_port(port, &reference), reference)
        }
        None => (new_port(port), list([text("named-uuid"), text("port")])),
    };
    changes.push(mutate(
        "Bridge",
        is("_uuid", list([text("uuid"), text(&bridge)])),
        "ports",
        "insert",
        reference,
    ));
    let done = client.change("a new port", changes).and_then(|()| client.check(port));
    if done.is_err() {
        // The first refusal is the one to report.
        let _ = client.remove(port.interface);
    }
    done
}

/// Removes the port of an interface, whichever bridge it is in, and waits until the switch has; whether there was one.
///
/// # Errors
/// [`OvsError`].
pub fn remove_port(socket: &Path, interface: &IfName) -> Result<bool, OvsError> {
    let mut client = Client::connect(socket)?;
    client.follow()?;
    client.remove(interface)
}

fn operation<const N: usize>(what: &str, table: &str, members: [(&str, Value); N]) -> Value {
    let mut all = vec![("op".into(), text(what)), ("table".into(), text(table))];
    all.extend(members.map(|(key, value)| (key.into(), value)));
    Value::Dict(all)
}

fn select<const N: usize>(table: &str, rows: Value, columns: [&str; N]) -> Value {
    operation("select", table, [("where", rows), ("columns", list(columns.map(text)))])
}

fn mutate(table: &str, rows: Value, column: &str, how: &str, value: Value) -> Value {
    operation(
        "mutate",
        table,
        [("where", rows), ("mutations", list([list([text(column), text(how), value])]))],
    )
}

/// Out of any bridge that has it. Rows that nothing refers to go by themselves.
fn take_out(port: &Value) -> Value {
    let having = list([list([text("ports"), text("includes"), port.clone()])]);
    mutate("Bridge", having, "ports", "delete", port.clone())
}

fn columns(port: &Port<'_>) -> Value {
    let tag = port.vlan.map(|tag| Value::Int(tag.into())).into_iter().collect();
    let trunks = port.trunks.iter().map(|tag| Value::Int((*tag).into())).collect();
    object([("tag", set(tag)), ("trunks", set(trunks))])
}

fn new_port(port: &Port<'_>) -> Vec<Value> {
    let name = port.interface.as_str();
    let interface = object([("name", text(name)), ("external_ids", map(port.external_ids))]);
    let Value::Dict(mut row) = columns(port) else { return Vec::new() };
    row.push(("name".into(), text(name)));
    row.push(("interfaces".into(), list([text("named-uuid"), text("interface")])));
    vec![
        operation("insert", "Interface", [("row", interface), ("uuid-name", text("interface"))]),
        operation("insert", "Port", [("row", Value::Dict(row)), ("uuid-name", text("port"))]),
    ]
}

fn change_port(port: &Port<'_>, reference: &Value) -> Vec<Value> {
    let ids = object([("external_ids", map(port.external_ids))]);
    vec![
        take_out(reference),
        operation("update", "Port", [("where", is("_uuid", reference.clone())), ("row", columns(port))]),
        operation(
            "update",
            "Interface",
            [("where", is("name", text(port.interface.as_str()))), ("row", ids)],
        ),
    ]
}

/// What the database has of an interface and a bridge.
#[derive(Debug, Default)]
struct Found {
    bridge: Option<String>,
    port: Option<String>,
}

/// A connection to the database server.
struct Client<'a> {
    path: &'a Path,
    stream: UnixStream,
    framer: Framer,
    deadline: Instant,
    requests: i64,
    /// The configuration that the switch was last heard to have.
    current: i64,
}

impl<'a> Client<'a> {
    fn connect(path: &'a Path) -> Result<Self, OvsError> {
        let stream =
            UnixStream::connect(path).map_err(|source| OvsError::Socket { path: path.to_owned(), source })?;
        let deadline = Instant::now() + LIMIT;
        Ok(Self { path, stream, framer: Framer::default(), deadline, requests: 0, current: i64::MIN })
    }

    /// Has the server tell of each configuration that the switch has taken over, and which it has now.
    fn follow(&mut self) -> Result<(), OvsError> {
        let columns = object([("columns", list([text("cur_cfg")]))]);
        let parameters = list([text(DATABASE), Value::Null, object([(DATABASE, columns)])]);
        let now = self.call("monitor", parameters, "which configuration the switch has")?;
        self.hear(&now);
        Ok(())
    }

    fn find(&mut self, interface: &IfName, bridge: Option<&IfName>) -> Result<Found, OvsError> {
        let mut questions = vec![select("Port", is("name", text(interface.as_str())), ["_uuid"])];
        questions.extend(bridge.map(|bridge| select("Bridge", is("name", text(bridge.as_str())), ["_uuid"])));
        let results = self.transact("a look", questions)?;
        let first = |n: usize| Some(uuid(rows(results.get(n)?)?.first()?.get("_uuid")?)?.to_owned());
        Ok(Found { port: first(0), bridge: first(1) })
    }

    fn remove(&mut self, interface: &IfName) -> Result<bool, OvsError> {
        let Some(port) = self.find(interface, None)?.port else { return Ok(false) };
        self.change("the removal of a port", vec![take_out(&list([text("uuid"), text(&port)]))])?;
        Ok(true)
    }

    /// Makes changes, and waits until the switch has.
    fn change(&mut self, what: &'static str, mut changes: Vec<Value>) -> Result<(), OvsError> {
        changes.push(mutate(DATABASE, list([]), "next_cfg", "+=", Value::Int(1)));
        changes.push(select(DATABASE, list([]), ["next_cfg"]));
        changes.push(object([("op", text("comment")), ("comment", text("xenopsd"))]));
        let asked = changes.len() - 2;
        let results = self.transact(what, changes)?;
        let next = results.get(asked).and_then(rows).and_then(|rows| rows.first()?.get("next_cfg"));
        let Some(&Value::Int(next)) = next else { return Err(OvsError::Answer { what }) };
        for _ in 0..MAX_MESSAGES {
            if self.current >= next {
                return Ok(());
            }
            let message = self.receive("taken over its new configuration")?;
            self.overhear(&message)?;
        }
        Err(OvsError::Answer { what })
    }

    /// Whether the switch could use the port.
    fn check(&mut self, port: &Port<'_>) -> Result<(), OvsError> {
        let which = is("name", text(port.interface.as_str()));
        let results = self.transact("a look", vec![select("Interface", which, ["ofport", "error"])])?;
        let row = results.first().and_then(rows).and_then(<[Value]>::first);
        let column = |name: &str| row.and_then(|row| row.get(name)).map(elements).unwrap_or_default();
        let refused = |why: String| {
            Err(OvsError::Port { interface: port.interface.clone(), bridge: port.bridge.clone(), why })
        };
        match (&column("error")[..], &column("ofport")[..]) {
            ([Value::String(why)], _) => refused(why.to_string()),
            (_, [Value::Int(number)]) if *number >= 0 => Ok(()),
            _ => refused("it has got no number there, and no word why".to_owned()),
        }
    }

    fn transact(&mut self, what: &'static str, operations: Vec<Value>) -> Result<Vec<Value>, OvsError> {
        let mut parameters = vec![text(DATABASE)];
        parameters.extend(operations);
        let Value::Array(results) = self.call("transact", Value::Array(parameters), what)? else {
            return Err(OvsError::Answer { what });
        };
        // An operation that fails is answered with an object that says so; one more is there when the commit failed.
        let refusal = results.iter().find_map(|result| match result.get("error")? {
            Value::Null => None,
            error => Some((error, result.get("details"))),
        });
        match refusal {
            None => Ok(results),
            Some((error, details)) => Err(OvsError::Refused { what, why: words(error, details) }),
        }
    }

    fn call(&mut self, method: &str, parameters: Value, what: &'static str) -> Result<Value, OvsError> {
        self.requests += 1;
        let id = Value::Int(self.requests);
        self.send(&object([("method", text(method)), ("params", parameters), ("id", id.clone())]))?;
        for _ in 0..MAX_MESSAGES {
            let message = self.receive("answered")?;
            if message.get("method").is_some() {
                self.overhear(&message)?;
                continue;
            }
            if message.get("id") != Some(&id) {
                return Err(OvsError::Answer { what });
            }
            return match (message.get("error"), message.get("result")) {
                (None | Some(Value::Null), Some(result)) => Ok(result.clone()),
                (Some(error), _) => Err(OvsError::Refused { what, why: words(error, None) }),
                (None, None) => Err(OvsError::Answer { what }),
            };
        }
        Err(OvsError::Answer { what })
    }

    /// What the server says without being asked: that the database changed, or whether we are still there.
    fn overhear(&mut self, message: &Value) -> Result<(), OvsError> {
        let parameters = message.get("params").cloned().unwrap_or(Value::Null);
        match message.get("method") {
            Some(Value::String(method)) if *method == "echo" => {
                let id = message.get("id").cloned().unwrap_or(Value::Null);
                self.send(&object([("result", parameters), ("error", Value::Null), ("id", id)]))
            }
            Some(Value::String(method)) if *method == "update" => {
                if let Value::Array(parameters) = &parameters {
                    for change in parameters {
                        self.hear(change);
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// `{"Open_vSwitch": {"<uuid>": {"new": {"cur_cfg": N}}}}`.
    fn hear(&mut self, change: &Value) {
        let Some(Value::Dict(changed)) = change.get(DATABASE) else { return };
        for (_, row) in changed {
            if let Some(&Value::Int(current)) = row.get("new").and_then(|new| new.get("cur_cfg")) {
                self.current = current;
            }
        }
    }

    fn send(&mut self, message: &Value) -> Result<(), OvsError> {
        let bytes = json::print(message);
        let left = self.left("taken the question")?;
        let sent = self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write_all(&bytes));
        sent.map_err(|error| self.broken(error, "taken the question"))
    }

    fn receive(&mut self, what: &'static str) -> Result<Value, OvsError> {
        let mut piece = vec![0; PIECE];
        loop {
            if let Some(message) = self.framer.message()? {
                return Ok(message);
            }
            let left = self.left(what)?;
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut piece));
            match read {
                Ok(0) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into(), what)),
                Ok(length) => self.framer.feed(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(error, what)),
            }
        }
    }

    fn left(&self, what: &'static str) -> Result<Duration, OvsError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(OvsError::Timeout { what }) } else { Ok(left) }
    }

    fn broken(&self, source: io::Error, what: &'static str) -> OvsError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => OvsError::Timeout { what },
            _ => OvsError::Socket { path: self.path.to_owned(), source },
        }
    }
}

fn rows(result: &Value) -> Option<&[Value]> {
    match result.get("rows")? {
        Value::Array(rows) => Some(rows),
        _ => None,
    }
}

/// An error of the protocol for people.
fn words(error: &Value, details: Option<&Value>) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.to_string(),
        other => String::from_utf8_lossy(&json::print(other)).into_owned(),
    };
    let details = details.filter(|d| **d != Value::Null).map(|d| format!(" ({})", word(d)));
    word(error) + &details.unwrap_or_default()
}

#[cfg(test)]
mod tests;
