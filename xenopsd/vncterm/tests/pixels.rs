//! The server of a frame buffer with a guest of the test's own behind it, and real sockets to viewers: memory stands for
//! the guest's pages, a socket for its event channel.
//!
//! ```text
//!   test ─ writes pages, signals ─► server (a thread) ◄──RFB──► xenops' own client, and raw connections
//! ```

use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ffi::evtchn::Port;
use ffi::shared::{PAGE_SIZE, SharedError};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vncterm::fb::Shared;
use vncterm::fb::described::{Abi, Described};
use vncterm::server::{Device, Listener, PixelServer, Signals};
use xenopsd::rfb::{Address, Picture, capture, open};

const LIMIT: Duration = Duration::from_secs(20);

const WIDTH: usize = 640;
const HEIGHT: usize = 400;

/// Offsets in either page: indices to the guest and from it.
const IN_CONSUMED: usize = 0;
const IN_PRODUCED: usize = 4;
const OUT_CONSUMED: usize = 8;
const OUT_PRODUCED: usize = 12;

#[derive(Clone)]
struct Pages(Arc<Mutex<Vec<u8>>>);

impl Pages {
    fn new(pages: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![0; pages * PAGE_SIZE])))
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap()
    }

    fn word(&self, at: usize, word: u32) {
        self.bytes()[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
}

impl Shared for Pages {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), SharedError> {
        into.copy_from_slice(&self.bytes()[offset..offset + into.len()]);
        Ok(())
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<(), SharedError> {
        self.bytes()[offset..offset + from.len()].copy_from_slice(from);
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

/// A byte each way for a signal. A port that was signalled is told once until it is unmasked, as the kernel has it.
struct Channel {
    socket: UnixStream,
    masked: Cell<bool>,
    unmasked: Arc<Mutex<u32>>,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Signals for Channel {
    fn pending(&self) -> std::io::Result<Option<Port>> {
        let mut some = false;
        while !self.masked.get() {
            match (&self.socket).read(&mut [0; 4096]) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => some = true,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.masked.set(some),
                Err(error) => return Err(error),
            }
            if !self.masked.get() && !some {
                return Ok(None);
            }
        }
        Ok(some.then(|| Port::new(7)))
    }

    fn unmask(&self, _: Port) -> std::io::Result<()> {
        self.masked.set(false);
        *self.unmasked.lock().unwrap() += 1;
        Ok(())
    }

    fn notify(&self, port: Port) -> std::io::Result<()> {
        (&self.socket).write_all(&[u8::try_from(port.get()).unwrap()])
    }
}

struct Guest {
    screen: Pages,
    keyboard: Pages,
    pixels: Pages,
    socket: UnixStream,
    unmasked: Arc<Mutex<u32>>,
    port: u16,
    server: Option<JoinHandle<std::io::Result<()>>>,
}

impl Guest {
    fn start() -> Self {
        let screen = Pages::new(1);
        let number = |n: usize| u32::try_from(n).unwrap();
        let length = WIDTH * HEIGHT * 4;
        for (at, word) in [(16, WIDTH), (20, HEIGHT), (24, WIDTH * 4), (28, length), (32, 32)] {
            screen.word(at, number(word));
        }
        let described = Described::read(&screen, Abi::Bits64).unwrap();
        let (keyboard, pixels) = (Pages::new(1), Pages::new(described.memory() / PAGE_SIZE));
        let (socket, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let unmasked = Arc::new(Mutex::new(0));
        // A signal that nobody sends.
        let mask: SigSet = [Signal::SIGUSR2].into_iter().collect();
        let server = PixelServer {
            channels: Channel { socket: theirs, masked: Cell::new(false), unmasked: Arc::clone(&unmasked) },
            screen: Device { page: screen.clone(), port: Port::new(7) },
            geometry: described.geometry,
            memory: pixels.clone(),
            length: described.memory(),
            input: Some((Device { page: keyboard.clone(), port: Port::new(8) }, true)),
            listener: Listener::from_tcp(listener).unwrap(),
            password: None,
            signals: SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK).unwrap(),
        };
        let server = Some(std::thread::spawn(move || server.run()));
        Self { screen, keyboard, pixels, socket, unmasked, port, server }
    }

    fn fill(&self, [x, y, width, height]: [usize; 4], rgb: u32) {
        let mut bytes = self.pixels.bytes();
        for row in y..y + height {
            for col in x..x + width {
                let at = (row * WIDTH + col) * 4;
                bytes[at..at + 4].copy_from_slice(&rgb.to_le_bytes());
            }
        }
    }

    fn tell(&mut self, event: &[i32]) {
        let produced = self.screen.load(OUT_PRODUCED).unwrap();
        let at = 2048 + usize::try_from(produced % 51).unwrap() * 40;
        let bytes: Vec<u8> = event.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.screen.write(at, &bytes).unwrap();
        self.screen.store(OUT_PRODUCED, produced.wrapping_add(1)).unwrap();
        self.socket.write_all(&[0]).unwrap();
    }

    /// Waits until it was signalled on a port.
    fn signalled(&mut self, port: u8) {
        let mut byte = [0];
        while byte[0] != port {
            self.socket.read_exact(&mut byte).unwrap();
        }
    }

    fn picture(&self) -> Picture {
        capture(&mut open(&Address::Port(self.port), LIMIT).unwrap(), LIMIT).unwrap()
    }

    fn viewer(&self) -> TcpStream {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"RFB 003.008\n\x01\x01").unwrap();
        // The version, the security, its result, the size, the pixels, the name.
        let mut greeting = [0; 12 + 2 + 4 + 4 + 16 + 4 + 6];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting[18..22], [2, 128, 1, 144]);
        stream
    }

    fn keys(&self) -> Vec<[u8; 5]> {
        let (from, to) = (self.keyboard.load(IN_CONSUMED).unwrap(), self.keyboard.load(IN_PRODUCED).unwrap());
        let keys = (from..to).map(|n| {
            let at = 1024 + usize::try_from(n % 51).unwrap() * 40;
            let mut event = [0; 8];
            self.keyboard.read(at, &mut event).unwrap();
            [event[0], event[1], event[4], event[5], event[6]]
        });
        keys.collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The end of its channel ends the server, as an error does.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let ended = self.server.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(Err(_)))));
    }
}

fn pixel(picture: &Picture, x: usize, y: usize) -> u32 {
    let at = (y * WIDTH + x) * 3;
    picture.rgb()[at..at + 3].iter().fold(0, |all, byte| all << 8 | u32::from(*byte))
}

#[test]
fn what_the_guest_draws_is_seen() {
    let mut guest = Guest::start();
    guest.fill([0, 0, WIDTH, HEIGHT], 0x0012_3456);
    let picture = guest.picture();
    assert_eq!(picture.rgb().len(), WIDTH * HEIGHT * 3);
    assert_eq!((pixel(&picture, 0, 0), pixel(&picture, 639, 399)), (0x0012_3456, 0x0012_3456));
    guest.fill([100, 100, 10, 10], 0x00fe_dcba);
    guest.tell(&[2, 100, 100, 10, 10]);
    guest.signalled(7);
    assert_eq!(guest.screen.load(OUT_CONSUMED).unwrap(), 1);
    let picture = guest.picture();
    assert_eq!((pixel(&picture, 99, 100), pixel(&picture, 100, 100)), (0x0012_3456, 0x00fe_dcba));
}

#[test]
fn a_size_that_the_guest_chooses_is_shown_and_one_that_cannot_be_is_none() {
    let mut guest = Guest::start();
    guest.fill([0, 0, WIDTH, HEIGHT], 0x0055_5555);
    guest.tell(&[3, 100_000, 1, 400_000, 32, 0]);
    guest.tell(&[3, 320, 200, 2560, 32, 0]);
    guest.tell(&[3, 320, 801, 2560, 32, 0]);
    guest.signalled(7);
    while guest.screen.load(OUT_CONSUMED).unwrap() != 3 {
        guest.signalled(7);
    }
    let picture = guest.picture();
    assert_eq!(picture.rgb().len(), 320 * 200 * 3);
    assert!(picture.rgb().iter().all(|byte| *byte == 0x55));
}

#[test]
fn keys_reach_the_guest_and_are_let_go_when_the_viewer_goes() {
    let mut guest = Guest::start();
    let mut viewer = guest.viewer();
    // Shift, A, and the pointer with its left button.
    viewer.write_all(&[4, 1, 0, 0, 0, 0, 0xff, 0xe1, 4, 1, 0, 0, 0, 0, 0, 65, 5, 1, 0, 20, 0, 30]).unwrap();
    let expected = [[3, 1, 42, 0, 0], [3, 1, 30, 0, 0], [4, 0, 20, 0, 0], [3, 1, 0x10, 1, 0]];
    while guest.keys().len() < expected.len() {
        guest.signalled(8);
    }
    assert_eq!(guest.keys(), expected);
    guest.keyboard.store(IN_CONSUMED, 4).unwrap();
    drop(viewer);
    guest.signalled(8);
    while guest.keys().len() < 3 {
        guest.signalled(8);
    }
    assert_eq!(guest.keys(), [[3, 0, 30, 0, 0], [3, 0, 42, 0, 0], [3, 0, 0x10, 1, 0]]);
}

#[test]
fn a_flood_of_updates_is_looked_at_fifty_times_a_second() {
    let mut guest = Guest::start();
    let begin = Instant::now();
    let mut told = 0_u32;
    while begin.elapsed() < Duration::from_millis(600) {
        guest.screen.store(OUT_PRODUCED, told * 1000).unwrap();
        guest.socket.write_all(&[0]).unwrap();
        told += 1;
    }
    let (looks, most) = (*guest.unmasked.lock().unwrap(), begin.elapsed().as_millis() / 20 + 2);
    assert!(u128::from(looks) <= most, "{looks} looks in {:?} for {told} signals", begin.elapsed());
    assert!(looks > 3, "and it is looked at: {looks}");
    // It goes on serving.
    guest.fill([0, 0, 1, 1], 0x0000_0001);
    guest.tell(&[2, 0, 0, 1, 1]);
    guest.signalled(7);
    guest.picture();
}
