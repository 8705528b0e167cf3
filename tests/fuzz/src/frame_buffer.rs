//! A guest's frame buffer: whatever is in the pages.

use std::cell::RefCell;

use ffi::shared::SharedError;
use vncterm::fb::Shared;
use vncterm::fb::canvas::Canvas;
use vncterm::fb::described::{Abi, Described, Geometry};
use vncterm::fb::ring::{Event, Input, Told, Updates};

const PAGE: usize = 4096;

/// Pages whose bytes are another's: beyond the last one they begin again.
struct Pages {
    bytes: RefCell<Vec<u8>>,
    size: usize,
}

impl Pages {
    fn of(bytes: &[u8], pages: usize) -> Self {
        let mut bytes = bytes[..bytes.len().min(pages * PAGE)].to_vec();
        bytes.resize(bytes.len().max(PAGE), 0);
        Self { bytes: RefCell::new(bytes), size: pages * PAGE }
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), SharedError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size);
        if inside { Ok(()) } else { Err(SharedError::OutOfBounds { offset, len, size: self.size }) }
    }
}

impl Shared for Pages {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), SharedError> {
        self.check(offset, into.len())?;
        let bytes = self.bytes.borrow();
        for (at, byte) in (offset..).zip(into) {
            *byte = bytes[at % bytes.len()];
        }
        Ok(())
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<(), SharedError> {
        self.check(offset, from.len())?;
        let mut bytes = self.bytes.borrow_mut();
        let length = bytes.len();
        for (at, byte) in (offset..).zip(from) {
            bytes[at % length] = *byte;
        }
        Ok(())
    }

    fn load(&self, offset: usize) -> Result<u32, SharedError> {
        let mut word = [0; 4];
        self.read(offset, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    fn store(&self, offset: usize, value: u32) -> Result<(), SharedError> {
        self.write(offset, &value.to_le_bytes())
    }
}

/// Whatever a guest's pages hold, what is shown lies inside of them, and a look at its rings takes no more than they hold.
pub fn frame_buffer(bytes: &[u8]) {
    for abi in [Abi::Bits32, Abi::Bits64] {
        let page = Pages::of(bytes, 1);
        let Ok(described) = Described::read(&page, abi) else { continue };
        let frames = described.frames(&Pages::of(bytes, described.directory.len())).expect("it is as large");
        assert_eq!(frames.len() * PAGE, described.memory());
        let memory = Pages::of(bytes, frames.len());
        let mut canvas = Canvas::new(described.geometry);
        look(&mut canvas, &memory);
        let mut updates = Updates::new(&page).expect("a page");
        let mut told = Vec::new();
        updates.take(&page, |event| told.push(event)).expect("a page");
        assert!(told.len() <= 51);
        // The canvas of one and the same size is drawn to many times, and few are made: each costs as its pixels do.
        for event in &told {
            canvas.drawn(event);
        }
        let resize = told.iter().find_map(|event| match event {
            Told::Resize(said) => Geometry::checked(said, described.memory()).ok(),
            Told::Update { .. } => None,
        });
        if let Some(geometry) = resize {
            canvas.resize(geometry);
        }
        look(&mut canvas, &memory);
        updates.take(&page, |event| panic!("it was taken: {event:?}")).expect("a page");
        let mut input = Input::new(&page).expect("a page");
        let put = |_: &u32| input.put(&page, Event::Motion { x: 1, y: 2, z: 3 }).expect("a page");
        assert!((0..100_u32).take_while(put).count() <= 51);
    }
}

/// All pixels are inside of the memory, or this fails.
fn look(canvas: &mut Canvas, memory: &Pages) {
    // A tile or some: more of them find nothing else.
    let mut budget = 16 << 10;
    canvas.look(memory, &mut budget, |_| ()).expect("it was checked");
}
