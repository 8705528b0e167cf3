//! Disks of a storage layer: what is asked of its program, and what it answers.
//!
//! ```text
//!   PROGRAM attach      {"datapath", "vm", "sr", "vdi", "writable"}  ──► {"implementations": [["BlockDevice", {"path": …}]]}
//!   PROGRAM activate    the same                                      ──► {}, or nothing
//!   PROGRAM deactivate  the same                                      ──► {}, or nothing
//!   PROGRAM detach      the same                                      ──► {}, or nothing
//!
//!   exit code 0: done · anything else: refused, with {"code": …, "params": […]} if it can say why
//! ```
//!
//! `docs/storage.md` is the page for whoever writes such a program. This module has no effects.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crossbeam::channel::Receiver;

use crate::api::Error;
use crate::api::value::{ToValue, Value};
use crate::rpc::json;

/// Longest name of a storage repository or of a disk in it, in bytes: both are UUIDs where xapi is concerned.
pub const MAX_NAME: usize = 255;

/// Most implementations of a disk that are looked at: the model knows four.
const MAX_IMPLEMENTATIONS: usize = 16;

/// Most parameters of a refusal that are handed on, and characters of each.
const MAX_PARAMS: usize = 8;
const MAX_TEXT: usize = 1024;

/// Longest path that Linux takes (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// The contract's code for a program that cannot be used, or is not there.
pub const UNUSABLE: &str = "STORAGE_PROGRAM_UNUSABLE";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Make the disk reachable from dom0; the answer says where. Nothing is read or written yet.
    Attach,
    /// It is about to be read or written.
    Activate,
    /// It is not any more.
    Deactivate,
    /// It need not be reachable any more.
    Detach,
}

impl Verb {
    /// Every one, in the order of a disk's life.
    pub const ALL: [Self; 4] = [Self::Attach, Self::Activate, Self::Deactivate, Self::Detach];
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attach => "attach",
            Self::Activate => "activate",
            Self::Deactivate => "deactivate",
            Self::Detach => "detach",
        })
    }
}

/// Which disk of which storage repository: the contract's `SR/VDI`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vdi {
    /// The repository.
    pub sr: String,
    /// The disk in it.
    pub vdi: String,
}

impl std::str::FromStr for Vdi {
    type Err = String;

    /// Takes the contract's text apart: two names with one slash between them.
    fn from_str(text: &str) -> Result<Self, String> {
        let sound = |name: &str| {
            (1..=MAX_NAME).contains(&name.len())
                && !name.contains('/')
                && !name.chars().any(char::is_control)
                && !matches!(name, "." | "..")
        };
        match text.split_once('/') {
            Some((sr, vdi)) if sound(sr) && sound(vdi) => Ok(Self { sr: sr.to_owned(), vdi: vdi.to_owned() }),
            _ => Err(format!(
                "{text:?} names no disk of a storage service: SR/VDI, each of 1 to {MAX_NAME} bytes"
            )),
        }
    }
}

impl fmt::Display for Vdi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.sr, self.vdi)
    }
}

/// A disk in somebody's use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datapath {
    /// Names the use: the same in all calls for it, and different from every other on this host.
    pub name: String,
    /// The VM.
    pub vm: String,
    /// The disk.
    pub disk: Vdi,
    /// Whether it is to be written.
    pub writable: bool,
}

impl Datapath {
    /// What the program reads.
    pub fn request(&self) -> Vec<u8> {
        let members = [
            ("datapath", self.name.to_value()),
            ("vm", self.vm.to_value()),
            ("sr", self.disk.sr.to_value()),
            ("vdi", self.disk.vdi.to_value()),
            ("writable", self.writable.to_value()),
        ];
        json::print(&Value::Dict(members.into_iter().map(|(key, value)| (key.into(), value)).collect()))
    }
}

/// One call of the program.
#[derive(Debug)]
pub struct StorageCall<'a> {
    /// What is asked.
    pub verb: Verb,
    /// Of which disk.
    pub datapath: &'a Datapath,
    /// How long it may take.
    pub limit: Duration,
    /// Disconnected when it is no longer wanted.
    pub cancelled: &'a Receiver<Infallible>,
}

/// Where an attached disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// A block device or raw file in dom0.
    pub path: PathBuf,
    /// For the backend's directory.
    pub extra: Vec<(String, String)>,
}

/// Why a disk cannot be had, or given back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The program refused, or cannot be used.
    #[error("{code} ({})", params.join(", "))]
    Refused {
        /// Its own code, or [`UNUSABLE`].
        code: String,
        /// What belongs to it.
        params: Vec<String>,
    },
    /// It was not wanted any more, and is killed.
    #[error("it was cancelled")]
    Cancelled,
}

impl StorageError {
    /// A program that did not do its part.
    pub fn unusable(text: impl fmt::Display) -> Self {
        Self::Refused { code: UNUSABLE.to_owned(), params: vec![text.to_string()] }
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Refused { code, params } => Self::StorageBackendError { code, params },
            StorageError::Cancelled => Self::internal("the storage program was cancelled"),
        }
    }
}

/// What an `attach` that exited with 0 has answered.
///
/// # Errors
/// [`StorageError::Refused`] when it is not that, or names no implementation that can be used here.
pub fn parse_attached(answer: &[u8]) -> Result<Attached, StorageError> {
    let wrong = |why: &str| StorageError::unusable(format!("the answer to attach {why}"));
    let answer = json::parse(answer).map_err(|error| wrong(&format!("is not JSON: {error}")))?;
    let Some(Value::Array(found)) = answer.get("implementations") else {
        return Err(wrong("has no list of implementations"));
    };
    let usable = found.iter().take(MAX_IMPLEMENTATIONS).find_map(implementation);
    usable.ok_or_else(|| {
        wrong("has no BlockDevice, File, or XenDisk of backend type vbd or phy with an absolute path")
    })
}

/// One way to reach the disk, if it is one that the kernel's blkback can go.
fn implementation(found: &Value) -> Option<Attached> {
    let Value::Array(pair) = found else { return None };
    let [kind, how] = &pair[..] else { return None };
    let (path, extra) = match text(kind)? {
        "BlockDevice" | "File" => (text(how.get("path")?)?, Vec::new()),
        "XenDisk" if matches!(text(how.get("backend_type")?)?, "vbd" | "phy") => {
            (text(how.get("params")?)?, extra(how.get("extra"))?)
        }
        _ => return None,
    };
    let sound = path.starts_with('/') && path.len() < MAX_PATH && !path.contains('\0');
    sound.then(|| Attached { path: path.into(), extra })
}

fn extra(found: Option<&Value>) -> Option<Vec<(String, String)>> {
    match found {
        None => Some(Vec::new()),
        Some(Value::Dict(pairs)) => {
            let pair = |(key, value): &(_, Value)| {
                let key: &crate::api::value::Text = key;
                Some((key.as_str()?.to_owned(), text(value)?.to_owned()))
            };
            pairs.iter().map(pair).collect()
        }
        Some(_) => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => text.as_str(),
        _ => None,
    }
}

/// Why a program that exited with `code` has refused.
pub fn parse_refusal(verb: Verb, code: i32, answer: &[u8], complaint: &str) -> StorageError {
    let said = json::parse(answer).ok().and_then(|answer| {
        let short = |value: &Value| text(value).map(|text| text.chars().take(MAX_TEXT).collect::<String>());
        let params = match answer.get("params") {
            Some(Value::Array(params)) => params.iter().take(MAX_PARAMS).filter_map(short).collect(),
            _ => Vec::new(),
        };
        Some(StorageError::Refused { code: short(answer.get("code")?)?, params })
    });
    said.unwrap_or_else(|| {
        let why: String = complaint.trim().chars().take(MAX_TEXT).collect();
        StorageError::unusable(format!("{verb} exited with {code}: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(answer: &[u8]) -> (String, Vec<String>) {
        match parse_refusal(Verb::Attach, 3, answer, "said\n") {
            StorageError::Refused { code, params } => (code, params),
            StorageError::Cancelled => panic!("nobody cancelled"),
        }
    }

    #[test]
    fn disks_are_two_names() {
        let disk: Vdi = "sr-1/vdi 2".parse().unwrap();
        assert_eq!((&*disk.sr, &*disk.vdi, &*disk.to_string()), ("sr-1", "vdi 2", "sr-1/vdi 2"));
        let long = "x".repeat(MAX_NAME + 1);
        for bad in ["", "sr", "/vdi", "sr/", "a/b/c", "../vdi", "sr/..", "sr/v\n", &format!("sr/{long}")] {
            assert!(bad.parse::<Vdi>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_implementation_that_can_be_used_is() {
        let attached = |text: &str| parse_attached(text.as_bytes());
        let at = |path: &str| Attached { path: path.into(), extra: Vec::new() };
        assert_eq!(
            attached(
                r#"{"implementations": [["Nbd", {"uri": "nbd:x"}], ["BlockDevice", {"path": "/dev/x"}], ["File", {"path": "/y"}]]}"#
            ),
            Ok(at("/dev/x"))
        );
        assert_eq!(
            attached(
                r#"{"implementations": [["XenDisk", {"params": "vdi:1", "backend_type": "vbd3"}], ["File", {"path": "/y"}]]}"#
            ),
            Ok(at("/y"))
        );
        let xen = attached(
            r#"{"implementations": [["XenDisk", {"params": "/dev/z", "extra": {"sm-data/k": "v"}, "backend_type": "vbd"}]]}"#,
        );
        let extra = vec![("sm-data/k".to_owned(), "v".to_owned())];
        assert_eq!(xen, Ok(Attached { path: "/dev/z".into(), extra }));
        for bad in [
            "",
            "{",
            "{}",
            r#"{"implementations": {}}"#,
            r#"{"implementations": []}"#,
            r#"{"implementations": [["File", {"path": "relative"}]]}"#,
            r#"{"implementations": [["File", {"path": "/a\u0000b"}]]}"#,
            r#"{"implementations": [["File"], [], 1, ["File", {"path": 1}]]}"#,
            r#"{"implementations": [["XenDisk", {"params": "/dev/z", "extra": 1, "backend_type": "vbd"}]]}"#,
        ] {
            assert!(attached(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refusal_says_why_if_it_can() {
        let said = refusal(br#"{"code": "VDI_IN_USE", "params": ["a", 1, "b"]}"#);
        assert_eq!(said, ("VDI_IN_USE".to_owned(), vec!["a".to_owned(), "b".to_owned()]));
        for unsaid in [&b""[..], b"{", b"[]", br#"{"code": 1}"#] {
            assert_eq!(refusal(unsaid), (UNUSABLE.to_owned(), vec!["attach exited with 3: said".to_owned()]));
        }
        let many = format!(r#"{{"code": "X", "params": [{}"y"]}}"#, r#""x","#.repeat(100));
        assert_eq!(refusal(many.as_bytes()).1.len(), MAX_PARAMS);
    }

    #[test]
    fn a_request_is_one_object() {
        let disk = "sr/vdi".parse().unwrap();
        let datapath =
            Datapath { name: "vbd/vm/51712".to_owned(), vm: "vm".to_owned(), disk, writable: true };
        let value = json::parse(&datapath.request()).unwrap();
        assert_eq!(value.get("vdi"), Some(&Value::string("vdi")));
        assert_eq!(value.get("writable"), Some(&Value::Bool(true)));
    }
}
