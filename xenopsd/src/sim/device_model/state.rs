//! The state of a simulated device model: a line that says how many processors it had.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use super::emulated::Vcpus;
use crate::edge::MAX_STATE;

fn text(vcpus: Vcpus) -> String {
    format!("state of a simulated device model for {} vcpus", vcpus.present)
}

/// Writes it, or more than there is room for.
pub(super) fn write(into: &OwnedFd, vcpus: Vcpus, huge: bool) -> Result<(), &'static str> {
    let written = (|| {
        let mut file = File::from(into.try_clone()?);
        if huge {
            return file.set_len(MAX_STATE + 1);
        }
        file.write_all(text(vcpus).as_bytes())
    })();
    written.map_err(|_: io::Error| "An IO error has occurred")
}

/// Whether what comes from there is the state of one with as many processors: QEMU takes no other.
pub(super) fn is_of(from: Option<&OwnedFd>, vcpus: Vcpus) -> bool {
    let mut found = String::new();
    let read =
        from.and_then(|file| file.try_clone().ok()).map(|file| File::from(file).read_to_string(&mut found));
    matches!(read, Some(Ok(_))) && found == text(vcpus)
}
