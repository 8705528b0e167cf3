//! The three forms in which the result is printed.

use crate::{
    boot::Booted,
    error::{Error, Result},
};
use std::fmt::Write as _;

/// A form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// An S-expression on one line, strings as Python writes them.
    Sxp,
    /// A line each, and an empty one.
    Simple,
    /// The same with zero bytes in place of line ends.
    Simple0,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "sxp" => Ok(Self::Sxp),
            "simple" => Ok(Self::Simple),
            "simple0" => Ok(Self::Simple0),
            other => Err(format!("unknown output format {other}")),
        }
    }
}

/// Prints a result.
///
/// # Errors
/// [`Error::ControlCharacter`] for what would be taken for the next line.
pub(super) fn format(format: Format, kernel: &str, ramdisk: Option<&str>, args: &str) -> Result<String> {
    let args = Some(args).filter(|args| !args.is_empty());
    let fields = [("kernel", Some(kernel)), ("ramdisk", ramdisk), ("args", args)];
    let fields = fields.into_iter().filter_map(|(key, value)| Some((key, value?)));
    match format {
        Format::Sxp => {
            let mut text = String::from("linux ");
            for (key, value) in fields {
                let _ = write!(text, "({key} {})", quoted(value));
            }
            Ok(text)
        }
        Format::Simple => separated(fields, '\n', b'\n'),
        Format::Simple0 => separated(fields, '\0', 0),
    }
}

/// What a configuration without its disk would boot, as the original prints it.
pub(super) fn of_config(booted: &Booted) -> String {
    let initrd = booted.ramdisks.first().map_or_else(String::new, |path| format!("  initrd: {path}\n"));
    format!("  kernel: {}\n{initrd}  args: {}\n", booted.kernel, booted.args)
}

fn separated<'a>(
    fields: impl Iterator<Item = (&'static str, &'a str)>,
    separator: char,
    byte: u8,
) -> Result<String> {
    let mut text = String::new();
    for (key, value) in fields {
        if value.contains(separator) {
            return Err(Error::ControlCharacter { what: key, byte });
        }
        let _ = write!(text, "{key} {value}{separator}");
    }
    text.push(separator);
    Ok(text)
}

/// As Python's `repr`.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms() {
        let of = |form, ramdisk, args| format(form, "/run/k", ramdisk, args).unwrap();
        assert_eq!(of(Format::Simple, Some("/run/r"), "a b"), "kernel /run/k\nramdisk /run/r\nargs a b\n\n");
        assert_eq!(of(Format::Simple0, None, "a"), "kernel /run/k\0args a\0\0");
        assert_eq!(of(Format::Simple, None, ""), "kernel /run/k\n\n");
        assert_eq!(
            of(Format::Sxp, Some("/run/r"), "a b"),
            "linux (kernel '/run/k')(ramdisk '/run/r')(args 'a b')"
        );
    }

    /// CVE-2016-9379 and CVE-2016-9380: a command line that ends its own string and goes on with a file of dom0.
    #[test]
    fn an_argument_stays_one() {
        let evil = "x')(ramdisk '/etc/shadow";
        assert_eq!(
            format(Format::Sxp, "k", None, evil).unwrap(),
            "linux (kernel 'k')(args \"x')(ramdisk '/etc/shadow\")"
        );
        assert_eq!(quoted("a'b\"c\\"), "'a\\'b\"c\\\\'");
        assert_eq!(quoted("\x01\t"), "'\\x01\\t'");
        assert!(format(Format::Simple, "k", None, "x\nramdisk /etc/shadow").is_err());
        assert!(format(Format::Simple0, "k", None, "x\0ramdisk /etc/shadow").is_err());
    }
}
