//! The last look at a guest's frame buffer, in tiles: what viewers are sent, and which tiles must be looked at again.

use ffi::shared::SharedError;

use super::described::Geometry;
use super::ring::Told;
use super::shared::Shared;

/// Pixels of a tile's side; ZRLE's tiles are as large (RFC 6143, 7.7.6).
pub const TILE: usize = 64;

/// A rectangle in pixels, inside of the screen and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its left side.
    pub x: usize,
    /// Its upper side.
    pub y: usize,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
}

/// A screen.
#[derive(Debug)]
pub struct Canvas {
    geometry: Geometry,
    /// 0xRRGGBB each, row by row.
    pixels: Vec<u32>,
    /// Tiles that the guest has drawn to since they were looked at.
    stale: Vec<bool>,
    /// Where the next look begins, so that none is put off for ever.
    next: usize,
    generation: u64,
    row: Vec<u8>,
}

impl Canvas {
    /// A black one, of which nothing has been looked at.
    pub fn new(geometry: Geometry) -> Self {
        let (width, height) = (usize::from(geometry.width), usize::from(geometry.height));
        let tiles = width.div_ceil(TILE) * height.div_ceil(TILE);
        Self {
            pixels: vec![0; width * height],
            stale: vec![true; tiles],
            next: 0,
            generation: 0,
            row: vec![0; TILE * geometry.bytes],
            geometry,
        }
    }

    /// Begins anew: viewers have nothing of this one.
    pub fn resize(&mut self, geometry: Geometry) {
        *self = Self { generation: self.generation + 1, ..Self::new(geometry) };
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u16, u16) {
        (self.geometry.width, self.geometry.height)
    }

    /// How often it began anew.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Tiles in a row.
    pub fn columns(&self) -> usize {
        usize::from(self.geometry.width).div_ceil(TILE)
    }

    /// All tiles.
    pub fn tiles(&self) -> usize {
        self.stale.len()
    }

    /// Whether a tile is to be looked at again.
    pub fn is_stale(&self, tile: usize) -> bool {
        self.stale.get(tile).copied().unwrap_or(false)
    }

    /// Whether some are.
    pub fn has_stale(&self) -> bool {
        self.stale.contains(&true)
    }

    /// Where a tile is; those at the right and lower sides may be smaller.
    pub fn area(&self, tile: usize) -> Area {
        let (x, y) = (tile % self.columns() * TILE, tile / self.columns() * TILE);
        let left = |side: u16, from: usize| TILE.min(usize::from(side).saturating_sub(from));
        Area { x, y, width: left(self.geometry.width, x), height: left(self.geometry.height, y) }
    }

    /// Pixels of a part of a row.
    pub fn row(&self, x: usize, y: usize, width: usize) -> &[u32] {
        let start = y * usize::from(self.geometry.width) + x;
        self.pixels.get(start..start + width).unwrap_or_default()
    }

    /// The guest has drawn there.
    pub fn drawn(&mut self, told: &Told) {
        let &Told::Update { x, y, width, height } = told else { return };
        let columns = self.columns();
        for row in tiles(y, height, self.geometry.height) {
            let (from, to) = span(x, width, self.geometry.width);
            let marked = self.stale.get_mut(row * columns + from..row * columns + to);
            marked.into_iter().flatten().for_each(|stale| *stale = true);
        }
    }

    /// Everything is to be looked at again.
    pub fn all_drawn(&mut self) {
        self.stale.fill(true);
    }

    /// Looks at stale tiles, as many as `budget` bytes allow, and takes what that costs from it. Tells of each that looks
    /// otherwise than before.
    ///
    /// # Errors
    /// [`SharedError`], when `memory` is less than the geometry was checked against.
    pub fn look(
        &mut self,
        memory: &impl Shared,
        budget: &mut usize,
        mut changed: impl FnMut(usize),
    ) -> Result<(), SharedError> {
        let tiles = self.tiles();
        for tile in (self.next..tiles).chain(0..self.next) {
            if !self.stale[tile] {
                continue;
            }
            let area = self.area(tile);
            let cost = area.width * area.height * self.geometry.bytes;
            let Some(left) = budget.checked_sub(cost) else {
                self.next = tile;
                return Ok(());
            };
            *budget = left;
            self.stale[tile] = false;
            if self.copy(memory, area)? {
                changed(tile);
            }
        }
        Ok(())
    }

    /// Copies one from the guest; whether it is another than before.
    fn copy(&mut self, memory: &impl Shared, area: Area) -> Result<bool, SharedError> {
        let bytes = self.geometry.bytes;
        let mut differs = false;
        for y in area.y..area.y + area.height {
            let row = &mut self.row[..area.width * bytes];
            memory.read(self.geometry.at(area.x, y), row)?;
            let start = y * usize::from(self.geometry.width) + area.x;
            let kept = &mut self.pixels[start..start + area.width];
            for (kept, pixel) in kept.iter_mut().zip(row.chunks_exact(bytes)) {
                let colour = Geometry::colour(pixel);
                differs |= *kept != colour;
                *kept = colour;
            }
        }
        Ok(differs)
    }
}

/// The tiles that a part of a side touches, cut to the side: the first, and the one after the last.
fn span(from: i32, length: i32, side: u16) -> (usize, usize) {
    let cut = |at: i64| usize::try_from(at.clamp(0, side.into())).unwrap_or(0);
    let (start, end) = (cut(from.into()), cut(i64::from(from) + i64::from(length)));
    if start < end { (start / TILE, end.div_ceil(TILE)) } else { (0, 0) }
}

fn tiles(from: i32, length: i32, side: u16) -> std::ops::Range<usize> {
    let (start, end) = span(from, length, side);
    start..end
}
