//! Pictures of guests' screens, taken as an administrator takes them.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;

use xen_host::quote;

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
}
