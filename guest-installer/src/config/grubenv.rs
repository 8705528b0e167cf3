//! GRUB's environment block: 1,024 bytes of `name=value` lines, padded with `#`.

/// The variables of a block, in order; what is no assignment is passed over.
pub fn parse(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(n, v)| (n.to_owned(), unescape(v))).collect()
}

/// A backslash takes the next character as it is.
fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read() {
        let text =
            "# GRUB Environment Block\nsaved_entry=a>b\nkernelopts=root=UUID=1 ro \\\\x\nempty=\n########";
        let found = parse(text);
        let expected = [("saved_entry", "a>b"), ("kernelopts", "root=UUID=1 ro \\x"), ("empty", "")];
        assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}
