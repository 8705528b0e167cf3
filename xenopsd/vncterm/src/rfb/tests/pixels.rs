//! The same decoder for screens of pixels.

use super::super::pixel_viewer::{Act, PixelViewer};
use super::*;
use crate::fb::Shared;
use crate::fb::canvas::Canvas;
use crate::fb::described::{Geometry, Said};
use crate::fb::ring::Told;
use ffi::shared::SharedError;

/// A guest's pixels.
struct Pixels {
    width: usize,
    height: usize,
    rgb: Vec<u32>,
}

impl Shared for Pixels {
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), SharedError> {
        for (n, byte) in into.iter_mut().enumerate() {
            let at = offset + n;
            *byte = self.rgb[at / 4].to_le_bytes()[at % 4];
        }
        Ok(())
    }

    fn write(&self, _: usize, _: &[u8]) -> Result<(), SharedError> {
        Err(SharedError::ReadOnly)
    }

    fn load(&self, _: usize) -> Result<u32, SharedError> {
        Ok(0)
    }

    fn store(&self, _: usize, _: u32) -> Result<(), SharedError> {
        Err(SharedError::ReadOnly)
    }
}

impl Pixels {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, rgb: vec![0; width * height] }
    }

    fn geometry(&self) -> Geometry {
        let side = |pixels: usize| i32::try_from(pixels).unwrap();
        let stride = i64::from(side(self.width)) * 4;
        let said = Said { width: side(self.width), height: side(self.height), stride, depth: 32, offset: 0 };
        Geometry::checked(&said, self.rgb.len() * 4).unwrap()
    }

    /// Some colours in a rectangle, and what the guest tells of it.
    fn draw(&mut self, [x, y, width, height]: [usize; 4], colours: u32, canvas: &mut Canvas) {
        let (right, lower) = ((x + width).min(self.width), (y + height).min(self.height));
        for y in y..lower {
            for x in x..right {
                let n = u32::try_from(x * 7 + y * 13).unwrap() % colours;
                self.rgb[y * self.width + x] = (n * 0x0001_f3a7 + colours) & 0x00ff_ffff;
            }
        }
        let [x, y, width, height] = [x, y, width, height].map(|n| i32::try_from(n).unwrap());
        canvas.drawn(&Told::Update { x, y, width, height });
    }
}

impl Client<PixelViewer> {
    fn watch(canvas: &Canvas, format: PixelFormat, numbers: &[i32]) -> Self {
        let mut viewer = PixelViewer::new(None);
        let (width, height) = canvas.size();
        for said in [&b"RFB 003.008\n"[..], &[1], &[1], &format_message(format), &encodings(numbers)] {
            viewer.received(said, canvas, |act| panic!("{act:?}")).unwrap();
        }
        viewer.sent(usize::MAX);
        let pixels = vec![vec![0xee; format.bytes]; usize::from(width) * usize::from(height)];
        Self {
            viewer,
            width: width.into(),
            height: height.into(),
            bytes: format.bytes,
            compact: format.compact().len(),
            pixels,
            zlib_begun: false,
            kinds: Vec::new(),
        }
    }

    /// Asks, and takes what comes after a look at what was drawn.
    fn ask(&mut self, canvas: &mut Canvas, memory: &Pixels) {
        self.viewer.received(&REQUEST, canvas, |_| ()).unwrap();
        canvas.look(memory, &mut usize::MAX.clone(), |tile| self.viewer.changed(tile)).unwrap();
        self.viewer.update(canvas);
        let output = self.viewer.output().to_vec();
        self.viewer.sent(usize::MAX);
        self.decode(output);
    }

    fn sees(&self, memory: &Pixels, format: &PixelFormat) {
        assert_eq!((self.width, self.height), (memory.width, memory.height));
        for (at, (seen, drawn)) in self.pixels.iter().zip(&memory.rgb).enumerate() {
            assert_eq!(seen, &format.pixel(*drawn)[..format.bytes], "pixel {at}");
        }
    }
}

fn rectangle() -> impl Strategy<Value = ([usize; 4], u32)> {
    ([0..150_usize, 0..100_usize, 1..150_usize, 1..100_usize], prop_oneof![1..20_u32, Just(1000)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_viewer_sees_what_is_drawn(
        drawn in proptest::collection::vec(rectangle(), 1..8),
        format in 0..4_usize,
        encoding in prop_oneof![Just(Encoding::Raw), Just(Encoding::Hextile), Just(Encoding::Zrle)],
    ) {
        let mut memory = Pixels::new(150, 100);
        let mut canvas = Canvas::new(memory.geometry());
        let format = formats()[format];
        let mut client = Client::watch(&canvas, format, &[encoding.number(), -223]);
        client.ask(&mut canvas, &memory);
        client.sees(&memory, &format);
        for (area, colours) in drawn {
            memory.draw(area, colours, &mut canvas);
            client.ask(&mut canvas, &memory);
            client.sees(&memory, &format);
        }
        let before = client.kinds.len();
        client.ask(&mut canvas, &memory);
        prop_assert_eq!(client.kinds.len(), before, "nothing changed, nothing is sent");
        let mut larger = Pixels::new(190, 30);
        canvas.resize(larger.geometry());
        larger.draw([5, 5, 300, 300], 9, &mut canvas);
        client.ask(&mut canvas, &larger);
        client.sees(&larger, &format);
    }
}

#[test]
fn one_that_cannot_be_told_of_another_size_sees_what_fits() {
    let memory = Pixels::new(150, 100);
    let mut canvas = Canvas::new(memory.geometry());
    let mut client = Client::watch(&canvas, PixelFormat::OFFERED, &[16]);
    client.ask(&mut canvas, &memory);
    let mut other = Pixels::new(300, 40);
    canvas.resize(other.geometry());
    other.draw([0, 0, 300, 40], 5, &mut canvas);
    // Rectangles outside of what it knows would fail in the decoder.
    client.ask(&mut canvas, &other);
    assert_eq!((client.width, client.height), (150, 100));
    for y in 0..40 {
        for x in 0..150 {
            let pixel = PixelFormat::OFFERED.pixel(other.rgb[y * 300 + x]);
            assert_eq!(client.pixels[y * 150 + x], pixel, "{x},{y}");
        }
    }
}

#[test]
fn a_large_screen_comes_in_pieces_and_all_of_it() {
    let mut memory = Pixels::new(1600, 1200);
    let mut canvas = Canvas::new(memory.geometry());
    memory.draw([0, 0, 1600, 1200], 1000, &mut canvas);
    let mut client = Client::watch(&canvas, PixelFormat::OFFERED, &[0]);
    let mut updates = 0;
    while client.kinds.len() < 19 {
        let before = client.kinds.len();
        client.ask(&mut canvas, &memory);
        assert!(client.kinds.len() > before && (client.kinds.len() - before) * 64 * 1600 * 4 < 3 << 20);
        updates += 1;
    }
    assert!(updates > 2, "{updates}");
    client.sees(&memory, &PixelFormat::OFFERED);
}

#[test]
fn keys_and_the_pointer_are_handed_on_within_the_screen() {
    let memory = Pixels::new(150, 100);
    let canvas = Canvas::new(memory.geometry());
    let mut client = Client::watch(&canvas, PixelFormat::OFFERED, &[0]);
    let mut acts = Vec::new();
    let said = [&[4, 1, 0, 0, 0, 0, 0, 97][..], &[5, 3, 0xff, 0xff, 0, 50], &[6, 0, 0, 0, 0, 0, 0, 1, b'x']];
    client.viewer.received(&said.concat(), &canvas, |act| acts.push(act)).unwrap();
    let expected = [Act::Key { down: true, keysym: 97 }, Act::Pointer { buttons: 3, x: 149, y: 50 }];
    assert_eq!(acts, expected);
}
