//! `cpus`: which of the host's processors a guest's vCPUs may run on.

use std::collections::BTreeSet;

use super::error::Fault;
use super::reader::Reader;
use super::syntax::Value;

/// Most processors that Xen can have (`NR_CPUS`, 4095 at most).
const MOST: u16 = 4095;

const ACCEPTED: &str = "processors are written 0-3,^1: numbers and ranges up to 4094, ^ for those that are not meant; \
                        a list has one text for each vcpu";

impl Reader {
    /// A text for all vCPUs, or a list with one for each. `all` is what leaving the key out means.
    pub(super) fn affinity(&mut self) -> Vec<Vec<u16>> {
        let texts = match self.setting("cpus") {
            None => return Vec::new(),
            Some((line, Value::Number(number))) => vec![(line, number.to_string())],
            Some((line, Value::Text(text))) if text == "all" => {
                self.ignored(line, "cpus", text, "guests run on all processors unless told otherwise");
                return Vec::new();
            }
            Some((line, Value::Text(text))) => vec![(line, text)],
            Some((_, Value::List(_))) => self.devices("cpus"),
        };
        let mut lists = Vec::new();
        for (line, text) in texts {
            match processors(&text) {
                Some(list) => lists.push(list),
                None => self.fault(line, "cpus", Fault::bad(text, ACCEPTED)),
            }
        }
        lists
    }
}

/// The processors that a text means, in their order; none when it means nothing.
fn processors(text: &str) -> Option<Vec<u16>> {
    let (mut meant, mut excluded) = (BTreeSet::new(), BTreeSet::new());
    for part in text.split(',').map(str::trim) {
        let (part, set) = match part.strip_prefix('^') {
            Some(part) => (part, &mut excluded),
            None => (part, &mut meant),
        };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number < MOST);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        set.extend(first..=last);
    }
    let left: Vec<u16> = meant.difference(&excluded).copied().collect();
    (!left.is_empty()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_and_exclusions() {
        assert_eq!(processors("3"), Some(vec![3]));
        assert_eq!(processors("0-3, 7,^1"), Some(vec![0, 2, 3, 7]));
        assert_eq!(processors("^0,0-2"), Some(vec![1, 2]));
        for bad in ["", "all", "x", "3-1", "1-", "-1", "^1", "1,^1", "4095", "0-99999", "node:0", "1,,2"] {
            assert_eq!(processors(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[0-9,^ -]{0,30}") {
            let _ = processors(&text);
        }
    }
}
