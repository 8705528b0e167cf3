//! CPU policies as text: hexadecimal 32-bit words joined by dashes, bit by bit what a guest may use.

use crate::api::{CpuPolicy, Error};

/// Most words of a policy: some 30 are in use, and the text of more has no meaning to any hypervisor.
const MAX_WORDS: usize = 256;

/// The text of some words.
pub(super) fn print(words: &[u32]) -> CpuPolicy {
    let words: Vec<_> = words.iter().map(|word| format!("{word:08x}")).collect();
    CpuPolicy(words.join("-"))
}

fn parse(policy: &CpuPolicy) -> Result<Vec<u32>, Error> {
    words(&policy.0)
}

/// The words of a text; none of an empty one.
///
/// # Errors
/// `Internal_error` for a text that is no policy.
pub fn words(text: &str) -> Result<Vec<u32>, Error> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let bad = || {
        let shown: String = text.chars().take(80).collect();
        Error::internal(format!(
            "{shown:?} is no CPU policy: up to {MAX_WORDS} hexadecimal words joined by dashes"
        ))
    };
    let word = |text: &str| {
        let fine = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if fine { u32::from_str_radix(text, 16).map_err(|_| bad()) } else { Err(bad()) }
    };
    if text.len() > MAX_WORDS * "01234567-".len() {
        return Err(bad());
    }
    text.split('-').map(word).collect()
}

/// What both allow. An empty policy allows everything, so that policies can be combined one after the other; a word
/// that one of them does not have allows nothing.
///
/// # Errors
/// `Internal_error` for a text that is no policy.
pub fn combine(one: &CpuPolicy, other: &CpuPolicy) -> Result<CpuPolicy, Error> {
    let (one, other) = (parse(one)?, parse(other)?);
    if one.is_empty() || other.is_empty() {
        return Ok(print(if one.is_empty() { &other } else { &one }));
    }
    let word = |words: &[u32], n: usize| words.get(n).copied().unwrap_or(0);
    let both = (0..one.len().max(other.len())).map(|n| word(&one, n) & word(&other, n));
    Ok(print(&both.collect::<Vec<_>>()))
}

/// Whether a host has all that a VM was given.
///
/// # Errors
/// `Internal_error` for a text that is no policy.
pub fn is_compatible(vm: &CpuPolicy, host: &CpuPolicy) -> Result<bool, Error> {
    let (vm, host) = (parse(vm)?, parse(host)?);
    let has = |(n, word): (usize, &u32)| word & !host.get(n).copied().unwrap_or(0) == 0;
    Ok(vm.iter().enumerate().all(has))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(text: &str) -> CpuPolicy {
        CpuPolicy(text.to_owned())
    }

    #[test]
    fn feature_sets_are_dashed_words() {
        assert_eq!(print(&[0x0178_bfff, 1]).0, "0178bfff-00000001");
        assert_eq!(print(&[]).0, "");
    }

    #[test]
    fn what_both_allow() {
        let cases = [
            ("ff-0f", "0f-ff", "0000000f-0000000f"),
            ("ff", "ff-ff", "000000ff-00000000"),
            ("", "1-2", "00000001-00000002"),
        ];
        for (one, other, both) in cases {
            assert_eq!(combine(&policy(one), &policy(other)).unwrap().0, both);
            assert_eq!(combine(&policy(other), &policy(one)).unwrap().0, both);
        }
    }

    #[test]
    fn a_host_needs_all_that_the_vm_has() {
        for (vm, host, fits) in [
            ("1", "3", true),
            ("2", "1", false),
            ("1-0", "1", true),
            ("1-1", "1", false),
            ("", "", true),
            ("1", "3-f", true),
        ] {
            assert_eq!(is_compatible(&policy(vm), &policy(host)).unwrap(), fits, "{vm} on {host}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["x", "-", "1-", "1--2", "123456789", "+1", " 1", "1\n", &"0-".repeat(1 << 20)] {
            assert!(matches!(combine(&policy(bad), &policy("1")), Err(Error::InternalError(_))));
            assert!(is_compatible(&policy("1"), &policy(bad)).is_err());
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_fits_both(one in "[0-9a-f-]{0,40}", other in "\\PC{0,20}", words in prop::collection::vec(any::<u32>(), 1..20)) {
            let _ = combine(&policy(&one), &policy(&other));
            let whole = print(&words);
            if let Ok(both) = combine(&policy(&one), &whole) {
                prop_assert!(is_compatible(&both, &whole).unwrap());
            }
        }
    }
}
