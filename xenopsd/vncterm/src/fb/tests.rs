//! The backend against pages that a test, in place of a guest, writes what it likes to.

use std::cell::RefCell;

use ffi::shared::{PAGE_SIZE, SharedError};

use super::Shared;
use super::canvas::{Area, Canvas, TILE};
use super::described::{Abi, Described, DescribedError, Geometry, Said};
use super::input::{Pressed, Queue};
use super::ring::{Event, Input, Lost, Told, Updates};

/// Pages of the test's own.
struct Pages(RefCell<Vec<u8>>);

impl Pages {
    fn new(pages: usize) -> Self {
        Self(RefCell::new(vec![0; pages * PAGE_SIZE]))
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&self, at: usize, word: u32) {
        self.put(at, &word.to_le_bytes());
    }
}

fn outside(offset: usize, len: usize, size: usize) -> SharedError {
    SharedError::OutOfBounds { offset, len, size }
}

impl Shared for Pages {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), SharedError> {
        let bytes = self.0.borrow();
        let from = bytes.get(offset..).and_then(|from| from.get(..into.len()));
        into.copy_from_slice(from.ok_or_else(|| outside(offset, into.len(), bytes.len()))?);
        Ok(())
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<(), SharedError> {
        let mut bytes = self.0.borrow_mut();
        let size = bytes.len();
        let into = bytes.get_mut(offset..).and_then(|into| into.get_mut(..from.len()));
        into.ok_or_else(|| outside(offset, from.len(), size))?.copy_from_slice(from);
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

/// As Linux writes it for 800x600 pixels of 32 bits.
fn linux() -> Pages {
    let page = Pages::new(1);
    for (at, word) in [(16, 800), (20, 600), (24, 3200), (28, 2 << 20), (32, 32), (40, 0x1234)] {
        page.word(at, word);
    }
    page
}

fn read(change: impl FnOnce(&Pages)) -> Result<Described, DescribedError> {
    let page = linux();
    change(&page);
    Described::read(&page, Abi::Bits64)
}

#[test]
fn what_linux_says_is_understood() {
    let described = read(|_| ()).unwrap();
    let Geometry { width, height, bytes, .. } = described.geometry;
    assert_eq!((width, height, bytes), (800, 600, 4));
    // 512 pages of it, in one page of the directory.
    assert_eq!((described.memory(), &described.directory[..]), (2 << 20, &[0x1234][..]));
    let directory = Pages::new(1);
    directory.put(8, &0x0fed_cba9_8765_4321_u64.to_le_bytes());
    let frames = described.frames(&directory).unwrap();
    assert_eq!((frames.len(), frames[0], frames[1]), (512, 0, 0x0fed_cba9_8765_4321));
}

#[test]
fn a_32_bit_guest_has_a_directory_of_half_as_long_words() {
    let page = linux();
    page.put(36, &[0x78, 0x56, 0x34, 0x12]);
    let described = Described::read(&page, Abi::Bits32).unwrap();
    assert_eq!(described.directory, [0x1234_5678]);
    let directory = Pages::new(1);
    directory.put(4, &[1, 2, 3, 4]);
    assert_eq!(described.frames(&directory).unwrap()[..3], [0, 0x0403_0201, 0]);
}

#[test]
fn a_frame_buffer_of_more_pages_has_more_of_a_directory() {
    let described = read(|page| page.word(28, (2 << 20) + 1)).unwrap();
    assert_eq!((described.memory(), described.directory.len()), ((2 << 20) + PAGE_SIZE, 2));
    assert!(described.frames(&Pages::new(1)).is_err(), "a page of it is missing");
    assert_eq!(described.frames(&Pages::new(2)).unwrap().len(), 513);
}

#[test]
fn what_cannot_be_a_frame_buffer_is_refused() {
    let refused = |at: usize, word: u32| read(|page| page.word(at, word)).unwrap_err();
    for (at, side) in [(16, 0), (20, 0), (16, u32::MAX), (16, 4097), (20, 1 << 31), (20, 65537)] {
        assert!(matches!(refused(at, side), DescribedError::Size { .. }), "{at} {side:#x}");
    }
    // Each side may be, not their product.
    let square = read(|page| {
        page.word(16, 4096);
        page.word(20, 4096);
    });
    assert!(matches!(square, Err(DescribedError::Size { width: 4096, height: 4096 })));
    for depth in [0, 1, 15, 33, 255] {
        assert_eq!(refused(32, depth), DescribedError::Depth(depth.into()));
    }
    for stride in [0, 3199, 1 << 31, u32::MAX] {
        assert!(matches!(refused(24, stride), DescribedError::Rows { .. }), "{stride:#x}");
    }
    // One byte too few for the last row.
    assert!(matches!(refused(28, 800 * 600 * 4 - 1), DescribedError::Rows { .. }));
    assert!(read(|page| page.word(28, 800 * 600 * 4)).is_ok());
    for memory in [0, (16 << 20) + 1, u32::MAX] {
        assert_eq!(refused(28, memory), DescribedError::Memory(memory));
    }
}

fn said(width: i32, height: i32) -> Said {
    Said { width, height, stride: i64::from(width) * 4, depth: 32, offset: 0 }
}

#[test]
fn pixels_of_every_depth_have_their_colours() {
    let colours = |depth: i64, pixel: &[u8]| {
        let geometry = Geometry::checked(&Said { depth, ..said(1, 1) }, 4).unwrap();
        assert_eq!(geometry.bytes, pixel.len());
        Geometry::colour(pixel)
    };
    assert_eq!(colours(32, &[0x33, 0x22, 0x11, 0xff]), 0x0011_2233);
    assert_eq!(colours(24, &[0x33, 0x22, 0x11]), 0x0011_2233);
    assert_eq!(
        [[0xff, 0xff], [0x00, 0xf8], [0xe0, 0x07], [0x1f, 0]].map(|p| colours(16, &p)),
        [0x00ff_ffff, 0x00ff_0000, 0x0000_ff00, 0x0000_00ff]
    );
    assert_eq!(
        [[0xff], [0xe0], [0x1c], [0x03], [0]].map(|p| colours(8, &p)),
        [0x00ff_ffff, 0x00ff_0000, 0x0000_ff00, 0x0000_00ff, 0]
    );
}

fn update(x: i32, y: i32, width: i32, height: i32) -> [u8; 40] {
    let mut event = [0; 40];
    event[0] = 2;
    event[4..20].copy_from_slice([x, y, width, height].map(i32::to_le_bytes).as_flattened());
    event
}

const OUT_PRODUCED: usize = 12;

#[test]
fn updates_are_taken_once_each_round_the_ring() {
    let page = linux();
    page.word(8, 40);
    page.word(OUT_PRODUCED, 40);
    let mut updates = Updates::new(&page).unwrap();
    // Not up to the last number: after it the protocol itself uses a slot twice.
    let mut produced = 40_u32;
    for turn in 0..10_i32 {
        for n in 0..17 {
            let slot = usize::try_from(produced % 51).unwrap();
            page.put(2048 + slot * 40, &update(turn, n, 1, 1));
            produced = produced.wrapping_add(1);
        }
        page.word(OUT_PRODUCED, produced);
        let mut taken = Vec::new();
        let lost = updates.take(&page, |told| taken.push(told)).unwrap();
        let expected: Vec<_> = (0..17).map(|y| Told::Update { x: turn, y, width: 1, height: 1 }).collect();
        assert_eq!((lost, taken), (Lost(false), expected));
        assert_eq!(page.load(8).unwrap(), produced, "the guest sees how far they were taken");
        assert_eq!(updates.take(&page, |told| panic!("{told:?}")).unwrap(), Lost(false));
    }
}

#[test]
fn an_index_that_jumps_loses_events_and_costs_no_more_than_a_ring() {
    let page = linux();
    let mut updates = Updates::new(&page).unwrap();
    for produced in [52, 51, 1 << 31, 7, u32::MAX - 60] {
        page.word(OUT_PRODUCED, produced);
        assert_eq!(updates.take(&page, |told| panic!("{told:?}")).unwrap(), Lost(true), "{produced}");
    }
    // The other side's word is the guest's to spoil; it is not read again.
    page.word(8, 12345);
    page.word(OUT_PRODUCED, u32::MAX - 10);
    let mut count = 0;
    page.put(2048, &[0; 2040]);
    assert_eq!(updates.take(&page, |_| count += 1).unwrap(), Lost(false));
    assert_eq!(count, 0, "events of unknown types are none");
}

#[test]
fn a_guest_that_takes_no_input_is_written_nothing_over() {
    let page = Pages::new(1);
    let mut input = Input::new(&page).unwrap();
    let key = |code| Event::Key { code, pressed: true };
    for code in 0..51 {
        assert!(input.put(&page, key(code)).unwrap());
    }
    let full = page.0.borrow().clone();
    assert!(!input.put(&page, key(99)).unwrap());
    assert_eq!(*page.0.borrow(), full);
    assert_eq!((page.load(4).unwrap(), &full[1024 + 40..1024 + 49]), (51, &[3, 1, 0, 0, 1, 0, 0, 0, 0][..]));
    // The guest has taken one, and then says that it has taken more than there were.
    page.word(0, 1);
    assert!(input.put(&page, Event::Position { x: 1, y: 2, z: -1 }).unwrap());
    assert_eq!(page.0.borrow()[1024..1040], [4, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 255, 255, 255, 255]);
    for nonsense in [1000, u32::MAX, 1 << 31] {
        page.word(0, nonsense);
        assert!(!input.put(&page, key(1)).unwrap(), "{nonsense}");
    }
}

fn taken(queue: &mut Queue) -> Vec<Event> {
    let mut events = Vec::new();
    queue
        .flush(|event| {
            events.push(event);
            Ok::<_, ()>(true)
        })
        .unwrap();
    events
}

fn key(code: u16, pressed: bool) -> Event {
    Event::Key { code, pressed }
}

#[test]
fn what_a_viewer_holds_is_let_go_when_it_goes() {
    let (mut queue, mut one, mut other) = (Queue::new(true), Pressed::default(), Pressed::default());
    queue.key(&mut one, true, u32::from('a'));
    queue.key(&mut one, true, 0xffe1);
    queue.key(&mut other, true, u32::from('b'));
    queue.pointer(&mut one, 1, (3, 4));
    queue.key(&mut one, false, u32::from('a'));
    let expected = [
        key(30, true),
        key(42, true),
        key(48, true),
        Event::Position { x: 3, y: 4, z: 0 },
        key(0x110, true),
        key(30, false),
    ];
    assert_eq!(taken(&mut queue), expected);
    queue.gone(one);
    assert_eq!(taken(&mut queue), [key(42, false), key(0x110, false)]);
    queue.gone(other);
    assert_eq!(taken(&mut queue), [key(48, false)]);
}

#[test]
fn a_guest_that_takes_nothing_owes_a_bounded_number_of_events_and_no_key_stays_down() {
    let (mut queue, mut viewer) = (Queue::new(false), Pressed::default());
    let mut down = std::collections::BTreeSet::new();
    for turn in 0..10_000_u32 {
        queue.key(&mut viewer, true, 0x20 + turn % 0x5f);
        queue.pointer(&mut viewer, u8::try_from(turn % 256).unwrap(), (u16::try_from(turn).unwrap(), 7));
        queue.flush(|_| Ok::<_, ()>(false)).unwrap();
        assert!(queue.waiting() < 256 + 110, "{}", queue.waiting());
    }
    queue.gone(viewer);
    for event in taken(&mut queue) {
        if let Event::Key { code, pressed } = event {
            if pressed {
                down.insert(code);
            } else {
                assert!(down.remove(&code), "{code} is let go");
            }
        }
    }
    assert_eq!(down.len(), 0);
}

#[test]
fn moves_add_up_and_only_the_last_place_is_told() {
    let mut viewer = Pressed::default();
    let mut relative = Queue::new(false);
    relative.pointer(&mut viewer, 0, (10, 10));
    relative.pointer(&mut viewer, 8, (4, 12));
    relative.pointer(&mut viewer, 0, (4, 12));
    assert_eq!(taken(&mut relative), [Event::Motion { x: 4, y: 12, z: -1 }]);
    let mut absolute = Queue::new(true);
    absolute.pointer(&mut viewer, 0, (10, 10));
    absolute.pointer(&mut viewer, 16, (7, 8));
    assert_eq!(taken(&mut absolute), [Event::Position { x: 7, y: 8, z: 1 }]);
}

/// Looks at all of it; the tiles that were told of.
fn look(canvas: &mut Canvas, memory: &Pages, mut budget: usize) -> (Vec<usize>, usize) {
    let mut changed = Vec::new();
    canvas.look(memory, &mut budget, |tile| changed.push(tile)).unwrap();
    (changed, budget)
}

/// 3 by 3 tiles, those at the right and below of 16 pixels.
fn drawing() -> (Canvas, Pages) {
    let memory = Pages::new(21);
    let geometry = Geometry::checked(&said(144, 144), 21 * PAGE_SIZE).unwrap();
    (Canvas::new(geometry), memory)
}

#[test]
fn only_what_was_drawn_to_is_looked_at_and_only_what_differs_is_told() {
    let (mut canvas, memory) = drawing();
    memory.put(0, &[1, 2, 3, 0]);
    assert_eq!(look(&mut canvas, &memory, 1 << 20).0, [0]);
    assert_eq!(canvas.row(0, 0, 2), [0x0003_0201, 0]);
    memory.put((143 * 144 + 143) * 4, &[9, 9, 9, 9]);
    memory.put(0, &[0; 4]);
    assert_eq!(look(&mut canvas, &memory, 1 << 20), (vec![], 1 << 20), "the guest has not said so");
    canvas.drawn(&Told::Update { x: 143, y: 143, width: i32::MAX, height: 1 });
    assert_eq!(look(&mut canvas, &memory, 1 << 20), (vec![8], (1 << 20) - 16 * 16 * 4));
    assert_eq!(canvas.area(8), Area { x: 128, y: 128, width: 16, height: 16 });
}

#[test]
fn rectangles_are_cut_to_the_screen() {
    let (mut canvas, memory) = drawing();
    let (i32_min, i32_max) = (i32::MIN, i32::MAX);
    look(&mut canvas, &memory, 1 << 20);
    let mut stale = |x, y, width, height| {
        canvas.drawn(&Told::Update { x, y, width, height });
        let stale: Vec<_> = (0..9).filter(|tile| canvas.is_stale(*tile)).collect();
        look(&mut canvas, &memory, 1 << 20);
        stale
    };
    assert_eq!(stale(-1, -1, 2, 2), [0]);
    assert_eq!(stale(63, 64, 2, 1), [3, 4]);
    assert_eq!(stale(i32_min, i32_min, i32_max, i32_max), Vec::<usize>::new());
    assert_eq!(stale(-5, -5, i32_max, i32_max), (0..9).collect::<Vec<_>>());
    assert_eq!(stale(i32_max, 0, i32_max, 1), Vec::<usize>::new());
    assert_eq!(stale(1, 1, 0, 5), Vec::<usize>::new());
    assert_eq!(stale(1, 1, -3, i32_min), Vec::<usize>::new());
}

#[test]
fn a_budget_is_kept_and_no_tile_is_put_off_for_ever() {
    let (mut canvas, memory) = drawing();
    let tile = TILE * TILE * 4;
    let mut looked = Vec::new();
    for _ in 0..9 {
        // The guest draws to all of it all the time, and there is time for two tiles.
        let before: Vec<_> = (0..9).filter(|n| canvas.is_stale(*n)).collect();
        let (_, left) = look(&mut canvas, &memory, 2 * tile);
        assert!(left < tile);
        looked.extend(before.into_iter().filter(|n| !canvas.is_stale(*n)));
        canvas.all_drawn();
    }
    assert!((0..9).all(|n| looked.contains(&n)), "{looked:?}");
}

#[test]
fn less_memory_than_was_checked_is_an_error() {
    let geometry = Geometry::checked(&said(144, 144), 21 * PAGE_SIZE).unwrap();
    assert!(Canvas::new(geometry).look(&Pages::new(20), &mut usize::MAX.clone(), |_| ()).is_err());
}
