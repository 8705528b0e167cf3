//! Makes `src/font/unifont.bin` from GNU Unifont's `.hex` file (Debian package `unifont`):
//!
//! ```text
//! cargo run -p vncterm --example unifont -- /usr/share/unifont/unifont.hex xenopsd/vncterm/src/font/unifont.bin
//! ```
//!
//! The format, little-endian: u32 count of runs; for each run of characters of one width u32 first, u16 count, u16
//! bytes for each row (1 or 2), u32 offset of the first glyph after the runs; then the glyphs, 16 rows each.

use std::process::ExitCode;

/// What there is no picture of: controls, private use, surrogates, non-characters. Unifont has boxes with their number.
fn is_shown(c: u32) -> bool {
    let hidden =
        matches!(c, 0..0x20 | 0x7f..0xa0 | 0xd800..0xf900 | 0xfdd0..0xfdf0 | 0xfff0..0xfff9 | 0xfffe..);
    !hidden
}

struct Run {
    first: u32,
    count: u16,
    stride: u16,
    offset: u32,
}

fn convert(hex: &str) -> Option<Vec<u8>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut glyphs = Vec::new();
    for line in hex.lines() {
        let (c, rows) = line.split_once(':')?;
        let c = u32::from_str_radix(c, 16).ok()?;
        if !is_shown(c) {
            continue;
        }
        let stride = u16::try_from(rows.len() / 32).ok()?;
        match runs.last_mut() {
            Some(run) if run.first + u32::from(run.count) == c && run.stride == stride => run.count += 1,
            _ => runs.push(Run { first: c, count: 1, stride, offset: u32::try_from(glyphs.len()).ok()? }),
        }
        for at in (0..rows.len()).step_by(2) {
            glyphs.push(u8::from_str_radix(rows.get(at..at + 2)?, 16).ok()?);
        }
    }
    let mut out = u32::try_from(runs.len()).ok()?.to_le_bytes().to_vec();
    for run in runs {
        out.extend(run.first.to_le_bytes());
        out.extend(run.count.to_le_bytes());
        out.extend(run.stride.to_le_bytes());
        out.extend(run.offset.to_le_bytes());
    }
    out.extend(glyphs);
    Some(out)
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [hex, to] = arguments.as_slice() else {
        eprintln!("usage: unifont UNIFONT.HEX OUTPUT");
        return ExitCode::FAILURE;
    };
    let written = std::fs::read_to_string(hex)
        .and_then(|hex| convert(&hex).ok_or_else(|| std::io::Error::other("not a .hex font")))
        .and_then(|font| std::fs::write(to, font));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unifont: {error}");
            ExitCode::FAILURE
        }
    }
}
