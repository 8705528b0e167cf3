//! Pictures of guests' screens, taken as an administrator takes them.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use xen_host::quote;
use xenopsd::rfb::{self, Picture};
use xenopsd::rpc::Codec;

use crate::dom0::Dom0;
use crate::guest::Guest;

/// Where a picture is in dom0.
const FILE: &str = "/run/screen.png";

/// A picture of a guest's screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Pixels of a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Red, green, blue of each pixel.
    pub pixels: Vec<[u8; 3]>,
}

impl Screen {
    /// How many colours it has: one means that nothing is shown.
    pub fn colours(&self) -> usize {
        self.pixels.iter().collect::<HashSet<_>>().len()
    }
}

impl Dom0 {
    /// A picture of a guest's screen, by `xenops screenshot`.
    #[track_caller]
    pub fn screenshot(&self, guest: &Guest) -> Screen {
        self.sh(&format!("xenops screenshot {} {FILE}", quote(guest.id())));
        let directory = tempfile::tempdir().expect("a directory");
        let copy = directory.path().join("screen.png");
        self.host.get(FILE, &copy).expect("the picture is fetched");
        let file = BufReader::new(File::open(&copy).expect("is there"));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
        let mut bytes = vec![0; reader.output_buffer_size().expect("a screen's size")];
        let info = reader.next_frame(&mut bytes).expect("a whole picture");
        assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        let pixels = bytes.chunks_exact(3).map(|rgb| [rgb[0], rgb[1], rgb[2]]).collect();
        Screen { width: info.width, height: info.height, pixels }
    }

    /// Connects to a guest's screen over the daemon's own socket, as a management layer's proxy does, and looks at it once.
    #[track_caller]
    pub fn view(&self, guest: &Guest) -> (Viewing, Picture) {
        let mut stream = self.connect(Codec::Xml);
        write!(stream, "CONNECT /console?ref={} HTTP/1.1\r\n\r\n", guest.id()).expect("asks");
        let mut answer = [0; 19];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK\r\n\r\n");
        let picture = rfb::capture(&mut stream, rfb::LIMIT).expect("a picture");
        (Viewing(stream), picture)
    }
}

/// A viewer of a guest's screen, which has seen it.
#[derive(Debug)]
pub struct Viewing(UnixStream);

impl Viewing {
    /// Presses keys, by their symbols, one after the other (RFC 6143, 7.5.4).
    #[track_caller]
    pub fn types(&mut self, symbols: &[u16]) {
        let event = |symbol: u16, down: u8| {
            let [high, low] = symbol.to_be_bytes();
            [4, down, 0, 0, 0, 0, high, low]
        };
        let events: Vec<u8> =
            symbols.iter().flat_map(|symbol| [event(*symbol, 1), event(*symbol, 0)]).flatten().collect();
        self.0.write_all(&events).expect("types");
    }

    /// Presses the left button of the pointer at a place, and lets it go (RFC 6143, 7.5.5).
    #[track_caller]
    pub fn clicks(&mut self, x: u16, y: u16) {
        let ([x, x_low], [y, y_low]) = (x.to_be_bytes(), y.to_be_bytes());
        let events = [1, 0].map(|buttons| [5, buttons, x, x_low, y, y_low]).concat();
        self.0.write_all(&events).expect("clicks");
    }
}
