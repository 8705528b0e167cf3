//! Pages that are shared with a guest, or what stands for them in a test.

use ffi::given::GuestPages;
use ffi::shared::SharedError;

/// Memory that somebody else may change between two reads.
pub trait Shared {
    /// Copies bytes out; they may be a mixture of what was there before and after a change.
    ///
    /// # Errors
    /// [`SharedError`] for what is outside of it.
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), SharedError>;

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`SharedError`] for what is outside of it, or when it is for reading only.
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), SharedError>;

    /// Reads a ring's index: what was written before it is visible after this.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn load(&self, offset: usize) -> Result<u32, SharedError>;

    /// Writes a ring's index, after everything that was done before.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn store(&self, offset: usize, value: u32) -> Result<(), SharedError>;
}

impl Shared for GuestPages {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), SharedError> {
        self.memory().read(offset, into)
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), SharedError> {
        self.memory().write(offset, bytes)
    }

    fn load(&self, offset: usize) -> Result<u32, SharedError> {
        self.memory().load_u32(offset)
    }

    fn store(&self, offset: usize, value: u32) -> Result<(), SharedError> {
        self.memory().store_u32(offset, value)
    }
}
