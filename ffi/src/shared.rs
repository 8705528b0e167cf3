//! Memory that a guest can change at any moment.
//!
//! There is no `&[u8]` over it: a value read twice may differ, and the compiler must not assume otherwise. Bytes are
//! copied out and in with volatile accesses, ring indices read and written as atomics.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// What a mapping may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    ReadWrite,
}

impl Access {
    /// `PROT_*` bits.
    pub(crate) const fn prot(self) -> i32 {
        match self {
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A refused access to mapped memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SharedError {
    /// Not inside the mapping.
    #[error("{len} bytes at offset {offset} are outside a mapping of {size} bytes")]
    OutOfBounds {
        /// Where, bytes from the start.
        offset: usize,
        /// How many.
        len: usize,
        /// Size of the mapping.
        size: usize,
    },
    /// A 32-bit word must start at a multiple of four.
    #[error("a 32-bit word cannot start at offset {offset}")]
    Misaligned {
        /// Where, bytes from the start.
        offset: usize,
    },
    /// The mapping was made for reading.
    #[error("the mapping is read-only")]
    ReadOnly,
}

/// Mapped pages of a guest. Whoever made the mapping unmaps it.
#[derive(Debug)]
pub struct SharedPages {
    address: NonNull<u8>,
    size: usize,
    access: Access,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for SharedPages {}
// SAFETY: all accesses are volatile or atomic; tearing is possible at any time anyway, because of the guest.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// # Safety
    /// `address` is page-aligned and `pages` whole pages from it are mapped with this access, and stay mapped while
    /// the value lives.
    pub(crate) const unsafe fn new(address: NonNull<u8>, pages: usize, access: Access) -> Self {
        Self { address, size: pages * PAGE_SIZE, access }
    }

    pub(crate) const fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// Size, bytes.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Number of pages.
    pub const fn pages(&self) -> usize {
        self.size / PAGE_SIZE
    }

    fn check(&self, offset: usize, len: usize) -> Result<NonNull<u8>, SharedError> {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.size) {
            return Err(SharedError::OutOfBounds { offset, len, size: self.size });
        }
        // SAFETY: `offset` is inside the mapping, or its end.
        Ok(unsafe { self.address.add(offset) })
    }

    fn check_write(&self, offset: usize, len: usize) -> Result<NonNull<u8>, SharedError> {
        match self.access {
            Access::ReadWrite => self.check(offset, len),
            Access::Read => Err(SharedError::ReadOnly),
        }
    }

    /// Copies bytes out. They may be a mixture of what the guest wrote before and after.
    ///
    /// # Errors
    /// [`SharedError::OutOfBounds`].
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), SharedError> {
        let from = self.check(offset, into.len())?;
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: inside the mapping, as checked.
            *byte = unsafe { from.add(index).read_volatile() };
        }
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`SharedError::OutOfBounds`], [`SharedError::ReadOnly`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), SharedError> {
        let to = self.check_write(offset, bytes.len())?;
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping, as checked, and mapped for writing.
            unsafe { to.add(index).write_volatile(*byte) };
        }
        Ok(())
    }

    /// The word at a checked place.
    fn word(&self, at: NonNull<u8>) -> Result<&AtomicU32, SharedError> {
        let offset = at.addr().get() - self.address.addr().get();
        if !offset.is_multiple_of(align_of::<AtomicU32>()) {
            return Err(SharedError::Misaligned { offset });
        }
        // SAFETY: inside the mapping and aligned, since pages are; accessed by others only as guests do.
        Ok(unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) })
    }

    /// Reads a ring index: what the other side wrote before it is visible after this.
    ///
    /// # Errors
    /// [`SharedError::OutOfBounds`], [`SharedError::Misaligned`].
    pub fn load_u32(&self, offset: usize) -> Result<u32, SharedError> {
        let at = self.check(offset, size_of::<u32>())?;
        Ok(self.word(at)?.load(Ordering::Acquire))
    }

    /// Writes a ring index: what was written or read before it is done before the other side sees this. A full
    /// barrier, so that a following look at the other side's index cannot come first.
    ///
    /// # Errors
    /// [`SharedError::OutOfBounds`], [`SharedError::Misaligned`], [`SharedError::ReadOnly`].
    pub fn store_u32(&self, offset: usize, value: u32) -> Result<(), SharedError> {
        let at = self.check_write(offset, size_of::<u32>())?;
        self.word(at)?.store(value, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of our own in place of a guest's.
    #[repr(align(4096))]
    struct Page([u8; PAGE_SIZE]);

    fn with_page(access: Access, test: impl FnOnce(&SharedPages)) {
        let mut page = Box::new(Page([0; PAGE_SIZE]));
        // SAFETY: a page-aligned page that outlives the value.
        let pages = unsafe { SharedPages::new(NonNull::from(&mut page.0).cast(), 1, access) };
        test(&pages);
    }

    #[test]
    fn what_is_written_is_read() {
        with_page(Access::ReadWrite, |pages| {
            pages.write(5, b"hello").unwrap();
            let mut back = [0; 5];
            pages.read(5, &mut back).unwrap();
            assert_eq!(&back, b"hello");
            pages.store_u32(4092, 0x0403_0201).unwrap();
            pages.read(4092, back.first_chunk_mut::<4>().unwrap()).unwrap();
            assert_eq!(back.first_chunk::<4>(), Some(&[1, 2, 3, 4]));
            assert_eq!(pages.load_u32(4092), Ok(0x0403_0201));
        });
    }

    #[test]
    fn nothing_outside_is_touched() {
        with_page(Access::ReadWrite, |pages| {
            for (offset, len) in [(4096, 1), (4095, 2), (usize::MAX, 1), (usize::MAX, 2)] {
                let mut buffer = vec![0; len];
                let expected = Err(SharedError::OutOfBounds { offset, len, size: PAGE_SIZE });
                assert_eq!(pages.read(offset, &mut buffer), expected);
                assert_eq!(pages.write(offset, &buffer), expected);
            }
            assert_eq!(pages.read(4096, &mut []), Ok(()));
            assert_eq!(pages.load_u32(2), Err(SharedError::Misaligned { offset: 2 }));
            assert!(pages.load_u32(4094).is_err());
        });
    }

    #[test]
    fn a_read_only_mapping_is_not_written() {
        with_page(Access::Read, |pages| {
            assert_eq!(pages.write(0, b"x"), Err(SharedError::ReadOnly));
            assert_eq!(pages.store_u32(0, 1), Err(SharedError::ReadOnly));
        });
    }
}
