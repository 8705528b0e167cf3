//! Keys and the pointer of viewers, as events for the guest: in order, and every key that went down comes up again.

use std::collections::{BTreeSet, VecDeque};

use super::keysyms;
use super::ring::Event;

/// Events that wait for a guest that takes none. More keys and moves are lost; a key that was let go is not.
const MAX_WAITING: usize = 256;

/// Mouse buttons (`BTN_LEFT`, `BTN_MIDDLE`, `BTN_RIGHT` of Linux' `input-event-codes.h`) by the bits of RFB's mask, and
/// its wheel's.
const BUTTONS: [(u8, u16); 3] = [(1, 0x110), (2, 0x112), (4, 0x111)];
const WHEEL_UP: u8 = 8;
const WHEEL_DOWN: u8 = 16;

/// What one viewer has pressed.
#[derive(Debug, Default)]
pub struct Pressed {
    keys: BTreeSet<u16>,
    buttons: u8,
}

/// Events on their way to the guest.
#[derive(Debug)]
pub struct Queue {
    /// It asked for places and not for moves.
    absolute: bool,
    /// Where the pointer was last.
    place: (u16, u16),
    waiting: VecDeque<Event>,
    /// What the guest was, or will be, told is down.
    down: BTreeSet<u16>,
}

impl Queue {
    /// Empty.
    pub fn new(absolute: bool) -> Self {
        Self { absolute, place: (0, 0), waiting: VecDeque::new(), down: BTreeSet::new() }
    }

    /// A viewer's key, by its X11 keysym.
    pub fn key(&mut self, viewer: &mut Pressed, down: bool, keysym: u32) {
        let Some(code) = keysyms::code(keysym) else { return };
        if down {
            viewer.keys.insert(code);
        } else {
            viewer.keys.remove(&code);
        }
        self.press(code, down);
    }

    /// A viewer's pointer is at a place of the screen, with these buttons down.
    pub fn pointer(&mut self, viewer: &mut Pressed, buttons: u8, (x, y): (u16, u16)) {
        let pressed = buttons & !viewer.buttons;
        let z = i32::from(pressed & WHEEL_DOWN != 0) - i32::from(pressed & WHEEL_UP != 0);
        let (before_x, before_y) = std::mem::replace(&mut self.place, (x, y));
        if (x, y) != (before_x, before_y) || z != 0 {
            let (here, before) = ((i32::from(x), i32::from(y)), (i32::from(before_x), i32::from(before_y)));
            self.moved(if self.absolute {
                Event::Position { x: here.0, y: here.1, z }
            } else {
                Event::Motion { x: here.0 - before.0, y: here.1 - before.1, z }
            });
        }
        for (bit, code) in BUTTONS {
            if (buttons ^ viewer.buttons) & bit != 0 {
                self.press(code, buttons & bit != 0);
            }
        }
        viewer.buttons = buttons;
    }

    /// A viewer has gone: what it held is let go.
    pub fn gone(&mut self, viewer: Pressed) {
        let buttons = BUTTONS.iter().filter(|(bit, _)| viewer.buttons & bit != 0).map(|(_, code)| *code);
        for code in viewer.keys.into_iter().chain(buttons) {
            self.press(code, false);
        }
    }

    /// The guest is told of what it has room for; whether it was told anything.
    ///
    /// # Errors
    /// Those of `put`, which says whether there was room.
    pub fn flush<E>(&mut self, mut put: impl FnMut(Event) -> Result<bool, E>) -> Result<bool, E> {
        let mut some = false;
        while let Some(event) = self.waiting.front() {
            if !put(*event)? {
                break;
            }
            self.waiting.pop_front();
            some = true;
        }
        Ok(some)
    }

    /// Events that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A repeated press is one, too: it is how viewers repeat keys.
    fn press(&mut self, code: u16, pressed: bool) {
        if pressed {
            if self.waiting.len() < MAX_WAITING {
                self.down.insert(code);
                self.waiting.push_back(Event::Key { code, pressed });
            }
        } else if self.down.remove(&code) {
            // At most one for each that is down: they are bounded, too.
            self.waiting.push_back(Event::Key { code, pressed });
        }
    }

    /// Only the last place is of interest, and moves add up, as long as nothing was pressed between.
    fn moved(&mut self, event: Event) {
        let room = self.waiting.len() < MAX_WAITING;
        match (self.waiting.back_mut(), event) {
            (Some(Event::Position { x, y, z }), Event::Position { x: to_x, y: to_y, z: by }) => {
                (*x, *y, *z) = (to_x, to_y, z.saturating_add(by));
            }
            (Some(Event::Motion { x, y, z }), Event::Motion { x: by_x, y: by_y, z: by_z }) => {
                (*x, *y, *z) = (x.saturating_add(by_x), y.saturating_add(by_y), z.saturating_add(by_z));
            }
            _ if room => self.waiting.push_back(event),
            _ => {}
        }
    }
}
