//! What the unit tests share.

use crate::disk::Disk;
use std::{io::Write as _, rc::Rc};

/// A disk with these bytes.
pub(crate) fn disk_of(bytes: &[u8]) -> Rc<Disk> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Disk::new(file, 0).unwrap()
}

/// Bytes that do not compress, always the same.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let step = move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 56).to_le_bytes()[0]
    };
    std::iter::repeat_with(step).take(len).collect()
}
