//! A storage layer that has every disk, and insists on the order of what is asked of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::edge::{Attached, StorageCall, StorageError, Verb};

/// Where its disks are, in the simulated dom0.
const HOME: &str = "/sim";

/// One call. What is given back need not be there, as the interface has it; everything else is in order or refused.
pub(super) fn call(
    disks: &Mutex<BTreeMap<String, bool>>,
    call: &StorageCall<'_>,
) -> Result<Option<Attached>, StorageError> {
    let mut disks = disks.lock().unwrap_or_else(PoisonError::into_inner);
    let datapath = call.datapath;
    let out_of_order = |what: &str| StorageError::Refused {
        code: "SIMULATED_STORAGE".to_owned(),
        params: vec![format!("{} of {}: {what}", call.verb, datapath.name)],
    };
    match (call.verb, disks.get_mut(&datapath.name)) {
        (Verb::Attach, None) => {
            disks.insert(datapath.name.clone(), false);
            let path = PathBuf::from(HOME).join(&datapath.disk.sr).join(&datapath.disk.vdi);
            return Ok(Some(Attached {
                path,
                extra: vec![("sm-data/sr".to_owned(), datapath.disk.sr.clone())],
            }));
        }
        (Verb::Activate, Some(active @ false)) => *active = true,
        (Verb::Deactivate, Some(active)) => *active = false,
        (Verb::Detach, Some(false)) => drop(disks.remove(&datapath.name)),
        (Verb::Deactivate | Verb::Detach, None) => {}
        (Verb::Attach, Some(_)) => return Err(out_of_order("it is attached")),
        (Verb::Activate, _) => return Err(out_of_order("it is not attached, or active")),
        (Verb::Detach, Some(true)) => return Err(out_of_order("it is active")),
    }
    Ok(None)
}
