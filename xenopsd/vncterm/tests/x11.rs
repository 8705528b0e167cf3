//! TightVNC's viewer on an X server: what it draws, what is typed into it, and its clipboard in both directions.
//!
//! ```text
//!   this test ──X11──► Xvfb ◄──X11── xtightvncviewer ──RFB──► vncterm ──► a command
//!       keys, pointer (XTEST) ─►     windows, CUT_BUFFER0
//!       ◄─ damage, then the framebuffer
//! ```
//!
//! Every wait is for an event of the X server: something was drawn, or a property changed.

mod common;

use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::time::Instant;

use common::{LIMIT, Other, Program};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use x11rb::connection::Connection as _;
use x11rb::protocol::Event;
use x11rb::protocol::damage::{ConnectionExt as _, ReportLevel};
use x11rb::protocol::xproto::{
    self, AtomEnum, ChangeWindowAttributesAux, ConnectionExt as _, EventMask, ImageFormat, PropMode, Window,
};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;
use x11rb::wrapper::ConnectionExt as _;
use xenopsd::rfb::Picture;

/// Pixels of the X server's screen: more than the viewer's window, so that the pointer can leave that.
const SCREEN: (u16, u16) = (800, 600);

/// Keysyms (X11/keysymdef.h).
const RETURN: u32 = 0xff0d;
const SHIFT: u32 = 0xffe1;

/// An X server in memory, and a connection to it.
struct Display {
    x: RustConnection,
    root: Window,
    damage: u32,
    number: String,
    _server: Other,
}

impl Display {
    fn new() -> Self {
        let mut server = Other::start("Xvfb", |xvfb| {
            let (width, height) = SCREEN;
            xvfb.args(["-screen", "0", &format!("{width}x{height}x24"), "-nolisten", "tcp", "-noreset"]);
            // It says which number it took when clients can connect.
            xvfb.args(["-displayfd", "1"]).stdout(Stdio::piped()).stderr(Stdio::null());
        });
        let mut number = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut number).unwrap();
        let number = format!(":{}", number.trim());
        let (x, screen) = x11rb::connect(Some(&number)).unwrap();
        let root = x.setup().roots[screen].root;
        x.damage_query_version(1, 1).unwrap().reply().unwrap();
        let damage = x.generate_id().unwrap();
        x.damage_create(damage, root, ReportLevel::NON_EMPTY).unwrap().check().unwrap();
        let properties = ChangeWindowAttributesAux::new().event_mask(EventMask::PROPERTY_CHANGE);
        x.change_window_attributes(root, &properties).unwrap().check().unwrap();
        Self { x, root, damage, number, _server: server }
    }

    fn event(&self, deadline: Instant) -> Option<Event> {
        loop {
            self.x.flush().unwrap();
            if let Some(event) = self.x.poll_for_event().unwrap() {
                return Some(event);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let mut fds = [PollFd::new(self.x.stream().as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
        }
    }

    /// Red, green and blue of an area's pixels.
    fn pixels(&self, [x, y, width, height]: [i32; 4]) -> Vec<u8> {
        let number = |value: i32| i16::try_from(value).unwrap();
        let size = |value: i32| u16::try_from(value).unwrap();
        let (width, height) = (size(width), size(height));
        let image = xproto::get_image(
            &self.x,
            ImageFormat::Z_PIXMAP,
            self.root,
            number(x),
            number(y),
            width,
            height,
            u32::MAX,
        );
        // 24 bits in 32, blue first on a little-endian server.
        let bytes = image.unwrap().reply().unwrap().data;
        bytes.chunks_exact(4).flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]).collect()
    }

    /// Where `picture` is on the screen: in one of the windows.
    fn find(&self, picture: &Picture) -> Option<(i32, i32)> {
        let windows = self.x.query_tree(self.root).unwrap().reply().unwrap().children;
        windows.into_iter().find_map(|window| {
            // It may have gone since.
            let shape = self.x.get_geometry(window).unwrap().reply().ok()?;
            let (x, y) = (
                i32::from(shape.x) + i32::from(shape.border_width),
                i32::from(shape.y) + i32::from(shape.border_width),
            );
            let (width, height) = (i32::from(picture.width()), i32::from(picture.height()));
            let fits =
                x >= 0 && y >= 0 && x + width <= i32::from(SCREEN.0) && y + height <= i32::from(SCREEN.1);
            (fits && self.pixels([x, y, width, height]) == picture.rgb()).then_some((x, y))
        })
    }

    /// Waits until the screen shows `picture`; where.
    fn shows(&self, picture: &Picture, what: &str) -> (i32, i32) {
        let deadline = Instant::now() + LIMIT;
        loop {
            // What is drawn from here on is told of again.
            self.x.damage_subtract(self.damage, x11rb::NONE, x11rb::NONE).unwrap().check().unwrap();
            if let Some(place) = self.find(picture) {
                return place;
            }
            loop {
                match self.event(deadline) {
                    Some(Event::DamageNotify(_)) => break,
                    Some(_) => {}
                    None => panic!("the viewer does not show {what}"),
                }
            }
        }
    }

    fn fake(&self, kind: u8, detail: u8, (x, y): (i32, i32)) {
        let (x, y) = (i16::try_from(x).unwrap(), i16::try_from(y).unwrap());
        self.x.xtest_fake_input(kind, detail, 0, self.root, x, y, 0).unwrap().check().unwrap();
    }

    fn point(&self, place: (i32, i32)) {
        self.fake(xproto::MOTION_NOTIFY_EVENT, 0, place);
    }

    fn button(&self, button: u8, down: bool) {
        let kind = if down { xproto::BUTTON_PRESS_EVENT } else { xproto::BUTTON_RELEASE_EVENT };
        self.fake(kind, button, (0, 0));
    }

    /// As on the server's own keyboard.
    fn type_in(&self, keysyms: impl IntoIterator<Item = u32>) {
        let setup = self.x.setup();
        let count = setup.max_keycode - setup.min_keycode + 1;
        let mapping = self.x.get_keyboard_mapping(setup.min_keycode, count).unwrap().reply().unwrap();
        let each = usize::from(mapping.keysyms_per_keycode);
        let key = |keysym: u32| {
            let at = mapping.keysyms.iter().position(|entry| *entry == keysym).unwrap();
            (setup.min_keycode + u8::try_from(at / each).unwrap(), at % each == 1)
        };
        let press = |code: u8| self.fake(xproto::KEY_PRESS_EVENT, code, (0, 0));
        let release = |code: u8| self.fake(xproto::KEY_RELEASE_EVENT, code, (0, 0));
        for keysym in keysyms {
            let (code, shifted) = key(keysym);
            let shift = key(SHIFT).0;
            if shifted {
                press(shift);
            }
            press(code);
            release(code);
            if shifted {
                release(shift);
            }
        }
    }

    /// Has the primary selection, as a program in which something is marked (ICCCM, 2.1). When it is.
    fn mark(&self) -> u32 {
        let (window, none) = (self.x.generate_id().unwrap(), xproto::CreateWindowAux::new());
        let only = xproto::WindowClass::INPUT_ONLY;
        let place = (0, 0, 1, 1, 0, only, x11rb::COPY_FROM_PARENT);
        let (x, y, width, height, border, class, visual) = place;
        let made =
            self.x.create_window(0, window, self.root, x, y, width, height, border, class, visual, &none);
        made.unwrap().check().unwrap();
        // The server's time comes with any change of a property.
        let (name, kind) = (AtomEnum::WM_NAME, AtomEnum::STRING);
        self.x.change_property8(PropMode::REPLACE, self.root, name, kind, b"test").unwrap().check().unwrap();
        let deadline = Instant::now() + LIMIT;
        let time = loop {
            match self.event(deadline).expect("the property changed") {
                Event::PropertyNotify(changed) if changed.atom == u32::from(name) => break changed.time,
                _ => {}
            }
        };
        self.x.set_selection_owner(window, u32::from(AtomEnum::PRIMARY), time).unwrap().check().unwrap();
        time
    }

    /// Hands what is marked to the one program that asks: first since when, then for the text.
    fn hand_over(&self, since: u32, text: &[u8]) {
        let timestamp = self.x.intern_atom(false, b"TIMESTAMP").unwrap().reply().unwrap().atom;
        let deadline = Instant::now() + LIMIT;
        loop {
            let Event::SelectionRequest(asked) = self.event(deadline).expect("the viewer asks for it") else {
                continue;
            };
            let (window, property) = (asked.requestor, asked.property);
            let is_text = asked.target == u32::from(AtomEnum::STRING);
            if is_text {
                self.x.change_property8(PropMode::REPLACE, window, property, AtomEnum::STRING, text)
            } else {
                assert_eq!(asked.target, timestamp);
                self.x.change_property32(PropMode::REPLACE, window, property, AtomEnum::INTEGER, &[since])
            }
            .unwrap()
            .check()
            .unwrap();
            let told = xproto::SelectionNotifyEvent {
                response_type: xproto::SELECTION_NOTIFY_EVENT,
                sequence: 0,
                time: asked.time,
                requestor: window,
                selection: asked.selection,
                target: asked.target,
                property,
            };
            self.x.send_event(false, window, EventMask::NO_EVENT, told).unwrap().check().unwrap();
            if is_text {
                return;
            }
        }
    }

    /// Waits until another program has put this on the clipboard.
    fn clipboard(&self, until: &[u8]) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let (buffer, kind) = (AtomEnum::CUT_BUFFE_R0, AtomEnum::STRING);
            let property = self.x.get_property(false, self.root, buffer, kind, 0, 1024).unwrap();
            let value = property.reply().unwrap().value;
            if value == until {
                return;
            }
            let seen = String::from_utf8_lossy(&value);
            loop {
                match self.event(deadline) {
                    Some(Event::PropertyNotify(_)) => break,
                    Some(_) => {}
                    None => panic!("the clipboard is {seen:?}"),
                }
            }
        }
    }
}

/// A screen without a cursor on which this is to be read in the end.
fn picture(shown: &str, until: &str) -> Picture {
    let command = format!("stty -echo; printf '\\033[?25l\\033[2J\\033[H{shown}'; read rest");
    Program::showing(&["-c", &command], until).picture()
}

#[test]
fn tight_vnc_s_window_is_typed_into_and_shares_its_clipboard() {
    let display = Display::new();
    let login = "printf '\\033[?25l\\033[2J\\033[Hlogin: '; read name; printf \"Welcome, $name.\"; read rest";
    let shown = Program::showing(&["-c", login], "login: ");
    let outside = (i32::from(SCREEN.0) - 1, i32::from(SCREEN.1) - 1);
    display.point(outside);
    let _viewer = Other::start("xtightvncviewer", |viewer| {
        // It would draw the mouse pointer into its window.
        viewer.args(["-nocursorshape", &format!("127.0.0.1::{}", shown.vnc)]);
        viewer.env("DISPLAY", &display.number).stderr(Stdio::null());
    });
    let (x, y) = display.shows(&picture("login: ", "login: "), "the login prompt");

    // The middle of a cell in the viewer's window.
    let cell = |row: i32, col: i32| (x + col * 8 + 4, y + row * 16 + 8);
    display.point(cell(10, 10));
    display.type_in("Alice_7".bytes().map(u32::from).chain([RETURN]));
    let welcome = "login: Alice_7\\r\\nWelcome, Alice_7.";
    display.shows(&picture(welcome, "Welcome, Alice_7."), "the greeting");

    // When the pointer comes in it gets what is marked elsewhere, and the middle button pastes that.
    display.point(outside);
    let since = display.mark();
    // Where the left button is pressed later: the viewer takes motions together, also over a press between them.
    display.point(cell(1, 9));
    display.hand_over(since, b" caf\xe9");
    display.button(2, true);
    display.button(2, false);
    let pasted = format!("{welcome} caf\\303\\251");
    display.shows(&picture(&pasted, "café"), "what was pasted");

    // What is marked with the left button is shown, and is the X server's clipboard when the pointer goes out.
    display.button(1, true);
    display.point(cell(1, 20));
    let marked = "login: Alice_7\\r\\nWelcome, \\033[7mAlice_7. caf\\033[27m\\303\\251";
    display.shows(&picture(marked, "é"), "what is marked");
    display.button(1, false);
    display.shows(&picture(&pasted, "café"), "that nothing is marked any more");
    display.point(outside);
    display.clipboard(b"Alice_7. caf");
}
