//! What the unit tests share.

use crate::disk::Disk;
use std::{io::Write as _, rc::Rc};

/// A disk with these bytes.
pub(crate) fn disk_of(bytes: &[u8]) -> Rc<Disk> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Disk::new(file, 0).unwrap()
}
