//! The pixels that were received, and which have not been yet.

use super::{MAX_PIXELS, MAX_SIDE, RfbError};

/// Bytes of a pixel as it is held: red, green, blue.
const RGB: usize = 3;

/// Bytes of a pixel as it is asked for.
pub(super) const SENT: usize = 4;

/// Why a picture cannot be written as PNG.
#[derive(Debug, thiserror::Error)]
#[error("the picture cannot be written as PNG: {0}")]
pub struct PictureError(#[from] png::EncodingError);

/// A picture of a screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: u16,
    height: u16,
    /// Row by row.
    rgb: Vec<u8>,
}

impl Picture {
    /// Pixels of a row.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u16 {
        self.height
    }

    /// Three bytes a pixel (red, green, blue), row by row from the top left.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// How many colours it has: a screen of one colour shows nothing.
    pub fn colours(&self) -> usize {
        let pixels = self.rgb.chunks_exact(RGB);
        pixels.collect::<std::collections::HashSet<_>>().len()
    }

    /// As a PNG file.
    ///
    /// # Errors
    /// [`PictureError`].
    pub fn to_png(&self) -> Result<Vec<u8>, PictureError> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, u32::from(self.width), u32::from(self.height));
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.rgb)?;
        writer.finish()?;
        Ok(file)
    }
}

/// A picture on its way.
#[derive(Debug)]
pub(super) struct Canvas {
    picture: Picture,
    /// For each pixel, whether it was received.
    received: Vec<bool>,
    missing: usize,
}

impl Canvas {
    /// An empty one.
    pub(super) fn new(width: u16, height: u16) -> Result<Self, RfbError> {
        let pixels = usize::from(width) * usize::from(height);
        if width > MAX_SIDE || height > MAX_SIDE || !(1..=MAX_PIXELS).contains(&pixels) {
            return Err(RfbError::Size { width, height });
        }
        let rgb = vec![0; pixels * RGB];
        Ok(Self { picture: Picture { width, height, rgb }, received: vec![false; pixels], missing: pixels })
    }

    pub(super) fn size(&self) -> (u16, u16) {
        (self.picture.width, self.picture.height)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// The picture, whole.
    pub(super) fn into_picture(self) -> Picture {
        self.picture
    }

    /// Whether a rectangle lies on it.
    pub(super) fn holds(&self, [x, y, width, height]: [u16; 4]) -> bool {
        let within =
            |start: u16, length: u16, most: u16| u32::from(start) + u32::from(length) <= u32::from(most);
        within(x, width, self.picture.width) && within(y, height, self.picture.height)
    }

    /// Takes part of a row that lies on it: pixels of [`SENT`] bytes, blue first.
    pub(super) fn put(&mut self, x: u16, y: u16, pixels: &[u8]) {
        let start = usize::from(y) * usize::from(self.picture.width) + usize::from(x);
        let places = self.picture.rgb[start * RGB..].chunks_exact_mut(RGB);
        for ((pixel, place), received) in
            pixels.chunks_exact(SENT).zip(places).zip(&mut self.received[start..])
        {
            place.copy_from_slice(&[pixel[2], pixel[1], pixel[0]]);
            if !*received {
                *received = true;
                self.missing -= 1;
            }
        }
    }
}
