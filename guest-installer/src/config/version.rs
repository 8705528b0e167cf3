//! RPM's order of versions, which GRUB and the boot loader specification sort entries by.

use std::cmp::Ordering;

/// Compares two versions: runs of digits as numbers, runs of letters as text, `~` before everything, `^` after.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let counts = |c: &u8| c.is_ascii_alphanumeric() || *c == b'~' || *c == b'^';
    loop {
        a = &a[a.iter().position(counts).unwrap_or(a.len())..];
        b = &b[b.iter().position(counts).unwrap_or(b.len())..];
        let (x, y) = (rank(a.first()), rank(b.first()));
        match x.cmp(&y) {
            Ordering::Equal => {}
            other => return other,
        }
        match x {
            Rank::End => return Ordering::Equal,
            Rank::Before | Rank::After => {
                (a, b) = (&a[1..], &b[1..]);
                continue;
            }
            Rank::Letters | Rank::Digits => {}
        }
        let (x, y) = (run(&mut a), run(&mut b));
        let order = if x.first().is_some_and(u8::is_ascii_digit) {
            let trim = |n: &'_ [u8]| n.iter().position(|&d| d != b'0').unwrap_or(n.len());
            let (x, y) = (&x[trim(x)..], &y[trim(y)..]);
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            x.cmp(y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// What comes next in a version, in the order in which it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// `~`
    Before,
    End,
    /// `^`
    After,
    Letters,
    Digits,
}

fn rank(next: Option<&u8>) -> Rank {
    match next {
        None => Rank::End,
        Some(b'~') => Rank::Before,
        Some(b'^') => Rank::After,
        Some(c) if c.is_ascii_digit() => Rank::Digits,
        Some(_) => Rank::Letters,
    }
}

/// Takes a run of digits or of letters.
fn run<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let digits = text.first().is_some_and(u8::is_ascii_digit);
    let other = |c: &u8| !c.is_ascii_alphanumeric() || c.is_ascii_digit() != digits;
    let (head, tail) = text.split_at(text.iter().position(other).unwrap_or(text.len()));
    *text = tail;
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_pairs() {
        for (less, more) in [
            ("5.9.0", "5.10.0"),
            ("5.14.0-70.el9", "5.14.0-362.el9"),
            ("1.0~rc1", "1.0"),
            ("1.0", "1.0^git1"),
            ("1.0^git1", "1.0.1"),
            ("a", "1"),
            ("1", "1.1"),
            ("6.5.0-rc1", "6.5.1"),
        ] {
            assert_eq!(compare(less, more), Ordering::Less, "{less} {more}");
            assert_eq!(compare(more, less), Ordering::Greater, "{less} {more}");
        }
        assert_eq!(compare("1.05", "1-5"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn it_is_an_order(a in "[a0-2.~^-]{0,6}", b in "[a0-2.~^-]{0,6}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
        }
    }
}
