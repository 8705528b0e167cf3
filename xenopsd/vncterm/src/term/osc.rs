//! Operating system commands: the window's title and the palette.

use super::screen::Screen;

/// Characters of a title that are kept.
pub(super) const MAX_TITLE: usize = 128;

/// Obeys a command. Nothing is ever answered to one: what a guest wrote must not come back as its input.
pub(super) fn obey(screen: &mut Screen, text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    if text == "R" {
        return screen.palette.reset();
    }
    let (number, rest) = text.split_once(';').unwrap_or((&text, ""));
    match number {
        "0" | "2" => screen.title = rest.chars().filter(|c| !c.is_control()).take(MAX_TITLE).collect(),
        "4" => {
            let mut parts = rest.split(';');
            while let (Some(index), Some(color)) = (parts.next(), parts.next()) {
                if let (Ok(index), Some(rgb)) = (index.parse(), parse_color(color)) {
                    screen.palette.set(index, rgb);
                }
            }
        }
        "104" if rest.is_empty() => screen.palette.reset(),
        "104" => {
            for index in rest.split(';').filter_map(|index| index.parse().ok()) {
                screen.palette.reset_entry(index);
            }
        }
        _ => {}
    }
}

/// `rgb:R/G/B` with one to four hexadecimal digits each, or `#RRGGBB` (XParseColor(3)).
fn parse_color(text: &str) -> Option<u32> {
    if let Some(digits) = text.strip_prefix('#') {
        let valid = digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        return valid.then(|| u32::from_str_radix(digits, 16).ok()).flatten();
    }
    let mut parts = text.strip_prefix("rgb:")?.split('/');
    let mut rgb = 0;
    for _ in 0..3 {
        let digits = parts
            .next()
            .filter(|d| (1..=4).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let value = u32::from_str_radix(digits, 16).ok()?;
        let most = (1 << (4 * digits.len())) - 1;
        rgb = (rgb << 8) | (value * 255 / most);
    }
    parts.next().is_none().then_some(rgb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_are_read() {
        assert_eq!(parse_color("#12aBff"), Some(0x12_abff));
        assert_eq!(parse_color("rgb:ff/00/80"), Some(0xff_0080));
        assert_eq!(parse_color("rgb:f/0/8"), Some(0xff_0088));
        assert_eq!(parse_color("rgb:ffff/0000/8080"), Some(0xff_0080));
        for bad in [
            "",
            "#",
            "#12345",
            "#+12345",
            "rgb:",
            "rgb:1/2",
            "rgb:1/2/3/4",
            "rgb:12345/0/0",
            "rgb:+1/0/0",
            "red",
        ] {
            assert_eq!(parse_color(bad), None, "{bad}");
        }
    }
}
