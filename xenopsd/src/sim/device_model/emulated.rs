//! What a simulated device model keeps of the machine: media and processors.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::api::value::Value;

/// Emulated CD-ROM drives, and what they are given.
#[derive(Debug, Default)]
pub(super) struct Media {
    /// The set of descriptors that each drive with a medium reads.
    pub(super) inserted: BTreeMap<String, i64>,
    pub(super) sets: BTreeMap<i64, Option<OwnedFd>>,
}

impl Media {
    /// As a command line says.
    pub(super) fn of(arguments: &[String]) -> Self {
        let mut media = Self::default();
        for drive in arguments.iter().filter(|word| word.starts_with("if=none,readonly=on,id=")) {
            let value = |key: &str| drive.split(',').find_map(|part| part.strip_prefix(key));
            let set = value("file.filename=/dev/fdset/").and_then(|set| set.parse().ok());
            if let (Some(id), Some(set)) = (value("id="), set) {
                media.inserted.insert(id.to_owned(), set);
                media.sets.insert(set, None);
            }
        }
        media
    }

    /// What a command about media does; none when it is about something else, an error's text when it is refused.
    pub(super) fn obey(
        &mut self,
        name: &str,
        arguments: Option<&Value>,
        passed: &mut Option<OwnedFd>,
        locked: bool,
    ) -> Option<Result<(), &'static str>> {
        let get = |key| arguments.and_then(|all| all.get(key));
        let text = |key| match get(key) {
            Some(Value::String(text)) => text.as_str().unwrap_or_default(),
            _ => "",
        };
        let set = match get("fdset-id") {
            Some(Value::Int(set)) => *set,
            _ => -1,
        };
        let id = text("id");
        Some(match name {
            "add-fd" => passed.take().ok_or("No file descriptor supplied via SCM_RIGHTS").map(|medium| {
                self.sets.insert(set, Some(medium));
            }),
            "remove-fd" => {
                self.sets.remove(&set).map(drop).ok_or("File descriptor named 'fdset-id' not found")
            }
            "eject" if locked && get("force") != Some(&Value::Bool(true)) => {
                Err("Device is locked and force was not specified")
            }
            "eject" => {
                self.inserted.remove(id);
                Ok(())
            }
            "blockdev-change-medium" => {
                let set = text("filename").strip_prefix("host_device:/dev/fdset/");
                let set = set.and_then(|set| set.parse().ok()).filter(|set| self.sets.contains_key(set));
                match set {
                    None => Err("Could not open the medium"),
                    Some(set) => {
                        self.inserted.insert(id.to_owned(), set);
                        Ok(())
                    }
                }
            }
            _ => return None,
        })
    }

    /// What was given for a set.
    pub(super) fn given(&self, set: usize) -> Option<&OwnedFd> {
        self.sets.get(&i64::try_from(set).ok()?)?.as_ref()
    }
}

/// Processors that are there, and places for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpus {
    /// Those that are there.
    pub present: usize,
    /// Those that can be.
    pub max: usize,
}

impl Vcpus {
    /// As a command line says; there is one if it says nothing.
    pub(super) fn of(arguments: &[String]) -> Self {
        let said = arguments.iter().skip_while(|word| *word != "-smp").nth(1);
        let numbers = said.and_then(|text| text.split_once(",maxcpus="));
        let numbers = numbers.and_then(|(present, max)| Some((present.parse().ok()?, max.parse().ok()?)));
        let (present, max) = numbers.unwrap_or((1, 1));
        Self { present, max }
    }

    /// The answer to `query-hotpluggable-cpus`.
    pub(super) fn places(self) -> String {
        let place = |index| {
            let taken = if index < self.present { r#", "qom-path": "/machine/cpu""# } else { "" };
            format!(r#"{{"type": "simulated-cpu", "props": {{"socket-id": {index}}}{taken}}}"#)
        };
        format!("[{}]", (0..self.max).rev().map(place).collect::<Vec<_>>().join(", "))
    }
}
