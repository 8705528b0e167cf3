//! The rings: what the guest tells of its screen, and what it is told of keys and the pointer. Events are 40 bytes each.

use ffi::shared::SharedError;

use super::described::Said;
use super::shared::Shared;

/// Bytes of an event (`XENFB_OUT_EVENT_SIZE`, `XENKBD_IN_EVENT_SIZE`).
const EVENT: usize = 40;

/// Bytes of either ring that is used, and events in it (`XENFB_OUT_RING_LEN`, `XENKBD_IN_RING_LEN`).
const RING: usize = 2048;
const LENGTH: u32 = 51;
const _: () = assert!(RING / EVENT == 51);

/// Offsets of indices in both pages: how far either side has come in the ring to the guest and in that from it.
const IN_CONSUMED: usize = 0;
const IN_PRODUCED: usize = 4;
const OUT_CONSUMED: usize = 8;
const OUT_PRODUCED: usize = 12;

/// Where the rings begin (`XENFB_OUT_RING_OFFS`, `XENKBD_IN_RING_OFFS`).
const UPDATES: usize = 2048;
const INPUT: usize = 1024;

/// What the guest tells of its screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A rectangle was drawn to; where there is no such place it is cut off later.
    Update {
        /// In pixels.
        x: i32,
        /// In pixels.
        y: i32,
        /// In pixels.
        width: i32,
        /// In pixels.
        height: i32,
    },
    /// Its pixels are laid out otherwise.
    Resize(Said),
}

fn told(event: [u8; EVENT]) -> Option<Told> {
    /// `XENFB_TYPE_UPDATE` and `XENFB_TYPE_RESIZE`; others are left out.
    const UPDATE: u8 = 2;
    const RESIZE: u8 = 3;
    let number = |n: usize| i32::from_le_bytes(event[4 * n..].first_chunk().copied().unwrap_or_default());
    match event[0] {
        UPDATE => Some(Told::Update { x: number(1), y: number(2), width: number(3), height: number(4) }),
        RESIZE => Some(Told::Resize(Said {
            width: number(1),
            height: number(2),
            stride: number(3).into(),
            depth: number(4).into(),
            offset: number(5).into(),
        })),
        _ => None,
    }
}

/// The ring from the guest. How far it was read is kept here: the guest could change it in the page.
#[derive(Debug)]
pub struct Updates {
    consumed: u32,
}

/// The guest said that there are more events than a ring has: which ones were lost is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost(pub bool);

impl Updates {
    /// From where the last backend stopped.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn new(page: &impl Shared) -> Result<Self, SharedError> {
        Ok(Self { consumed: page.load(OUT_CONSUMED)? })
    }

    /// Takes all that is there now, at most a ring's length.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn take(&mut self, page: &impl Shared, mut each: impl FnMut(Told)) -> Result<Lost, SharedError> {
        let produced = page.load(OUT_PRODUCED)?;
        let lost = produced.wrapping_sub(self.consumed) > LENGTH;
        if lost {
            self.consumed = produced;
        }
        while self.consumed != produced {
            let mut event = [0; EVENT];
            page.read(UPDATES + slot(self.consumed), &mut event)?;
            self.consumed = self.consumed.wrapping_add(1);
            told(event).into_iter().for_each(&mut each);
        }
        page.store(OUT_CONSUMED, self.consumed)?;
        Ok(Lost(lost))
    }
}

/// Where in its ring an event is.
fn slot(index: u32) -> usize {
    // Below 51, and so a small number on every machine.
    usize::try_from(index % LENGTH).unwrap_or(0) * EVENT
}

/// What the guest is told of keys and the pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The pointer was moved by so many pixels, and the wheel turned by so many steps.
    Motion {
        /// To the right.
        x: i32,
        /// Downwards.
        y: i32,
        /// Wheel, downwards.
        z: i32,
    },
    /// The pointer is there, and the wheel was turned.
    Position {
        /// In pixels of the frame buffer.
        x: i32,
        /// In pixels of the frame buffer.
        y: i32,
        /// Wheel, downwards.
        z: i32,
    },
    /// A key or a button, by its number in Linux' `input-event-codes.h`.
    Key {
        /// Which.
        code: u16,
        /// Or let go.
        pressed: bool,
    },
}

impl Event {
    fn to_bytes(self) -> [u8; EVENT] {
        /// `XENKBD_TYPE_*`.
        const MOTION: u8 = 1;
        const KEY: u8 = 3;
        const POSITION: u8 = 4;
        let mut bytes = [0; EVENT];
        let mut words =
            |words: [i32; 3]| bytes[4..16].copy_from_slice(words.map(i32::to_le_bytes).as_flattened());
        let kind = match self {
            Self::Motion { x, y, z } => {
                words([x, y, z]);
                MOTION
            }
            Self::Position { x, y, z } => {
                words([x, y, z]);
                POSITION
            }
            Self::Key { code, pressed } => {
                words([code.into(), 0, 0]);
                bytes[1] = pressed.into();
                KEY
            }
        };
        bytes[0] = kind;
        bytes
    }
}

/// The ring to the guest. How far it was written is kept here.
#[derive(Debug)]
pub struct Input {
    produced: u32,
}

impl Input {
    /// From where the last backend stopped.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn new(page: &impl Shared) -> Result<Self, SharedError> {
        Ok(Self { produced: page.load(IN_PRODUCED)? })
    }

    /// Puts an event there; whether there was room.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn put(&mut self, page: &impl Shared, event: Event) -> Result<bool, SharedError> {
        // More than a ring's length is nonsense of the guest's: it has no room then, either.
        if self.produced.wrapping_sub(page.load(IN_CONSUMED)?) >= LENGTH {
            return Ok(false);
        }
        page.write(INPUT + slot(self.produced), &event.to_bytes())?;
        self.produced = self.produced.wrapping_add(1);
        page.store(IN_PRODUCED, self.produced)?;
        Ok(true)
    }
}
