//! Rectangles of pixels as Raw, Hextile and ZRLE: what has few colours is sent as such, which is most of a desktop or of a
//! console; the rest as it is.

use super::encode::{HEXTILE_BACKGROUND, HEXTILE_RAW, MAX_PACKED};
use super::pixel::PixelFormat;
use crate::fb::canvas::{Area, Canvas};

fn rows(canvas: &Canvas, area: Area) -> impl Iterator<Item = &[u32]> {
    (area.y..area.y + area.height).map(move |y| canvas.row(area.x, y, area.width))
}

/// The pixels as the viewer wants them.
pub(super) fn raw(out: &mut Vec<u8>, canvas: &Canvas, area: Area, format: &PixelFormat) {
    out.reserve(area.width * area.height * format.bytes);
    for pixel in rows(canvas, area).flatten() {
        out.extend_from_slice(&format.pixel(*pixel)[..format.bytes]);
    }
}

/// A tile of at most 16x16 pixels: of one colour, or raw.
pub(super) fn hextile(out: &mut Vec<u8>, canvas: &Canvas, area: Area, format: &PixelFormat) {
    if let [one] = palette(canvas, area)[..] {
        out.push(HEXTILE_BACKGROUND);
        out.extend_from_slice(&format.pixel(one)[..format.bytes]);
    } else {
        out.push(HEXTILE_RAW);
        raw(out, canvas, area, format);
    }
}

/// The colours, none when there are more than a packed palette has.
fn palette(canvas: &Canvas, area: Area) -> Vec<u32> {
    let mut palette = Vec::with_capacity(MAX_PACKED);
    let mut last = None;
    for pixel in rows(canvas, area).flatten().copied() {
        if last == Some(pixel) || palette.contains(&pixel) {
            last = Some(pixel);
            continue;
        }
        if palette.len() == MAX_PACKED {
            return Vec::new();
        }
        palette.push(pixel);
        last = Some(pixel);
    }
    palette
}

/// A tile of at most 64x64 pixels.
pub(super) fn zrle(out: &mut Vec<u8>, canvas: &Canvas, area: Area, format: &PixelFormat) {
    let compact = format.compact();
    let palette = palette(canvas, area);
    // 0 is for raw pixels, and so it is for a palette that there is none of.
    out.push(u8::try_from(palette.len()).unwrap_or(0));
    for colour in &palette {
        out.extend_from_slice(&format.pixel(*colour)[compact.clone()]);
    }
    let bits = match palette.len() {
        0 => {
            for pixel in rows(canvas, area).flatten() {
                out.extend_from_slice(&format.pixel(*pixel)[compact.clone()]);
            }
            return;
        }
        1 => return,
        2 => 1,
        3..=4 => 2,
        _ => 4,
    };
    for row in rows(canvas, area) {
        // A row begins in a byte of its own, its first pixel in the highest bits.
        for pixels in row.chunks(8 / bits) {
            let entries = pixels.iter().map(|pixel| palette.iter().position(|colour| colour == pixel));
            let packed = entries
                .fold(0_u32, |packed, entry| packed << bits | u32::try_from(entry.unwrap_or(0)).unwrap_or(0));
            let missing = 8 / bits - pixels.len();
            out.push(u8::try_from(packed << (missing * bits) & 0xff).unwrap_or(0));
        }
    }
}
