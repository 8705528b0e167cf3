//! What is left to chance, as a function of the seed: no object's luck depends on what others do.
//!
//! ```text
//!   seed ──► Chance ──of("vbd 51712 of VM, start 2")──► Luck ──draw(step)──► number
//! ```
//!
//! There is no state between two draws, so threads may reach them in any order.

use std::time::Duration;

/// FNV-1a's offset and prime (RFC 9923): to turn a name into a number.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// The seed of a machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The luck of an object.
    pub(super) fn of(self, object: &str) -> Luck {
        Luck(mixed(self.0).wrapping_add(hash(object)))
    }
}

/// The luck of one object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Luck(u64);

impl Luck {
    /// What its step of this number draws.
    pub(super) const fn draw(self, step: u64) -> u64 {
        mixed(mixed(self.0).wrapping_add(step))
    }

    /// What something named draws: steps that have no order.
    pub(super) fn draw_for(self, name: &str, step: u64) -> u64 {
        Self(self.0.wrapping_add(hash(name))).draw(step)
    }

    /// A delay of at most `most`, for the step of this number.
    pub(super) fn delay(self, step: u64, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.draw(step) % most.saturating_add(1))
    }
}

fn hash(name: &str) -> u64 {
    name.bytes().fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

/// One step of `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
const fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_question_has_the_same_answer() {
        let draw = |seed, object, step| Chance::new(seed).of(object).draw(step);
        assert_eq!(draw(1, "a", 2), draw(1, "a", 2));
        assert_ne!(draw(1, "a", 2), draw(2, "a", 2));
        assert_ne!(draw(1, "a", 2), draw(1, "b", 2));
        assert_ne!(draw(1, "a", 2), draw(1, "a", 3));
        let luck = Chance::new(1).of("a");
        assert_ne!(luck.draw_for("x", 0), luck.draw_for("y", 0));
    }

    #[test]
    fn draws_are_spread() {
        let luck = Chance::new(0).of("x");
        let tens = (0..1000).filter(|n| luck.draw(*n).is_multiple_of(10)).count();
        assert!((50..200).contains(&tens), "{tens}");
        assert!((0..1000).all(|n| luck.delay(n, Duration::from_millis(2)) <= Duration::from_millis(2)));
        assert_eq!(luck.delay(0, Duration::ZERO), Duration::ZERO);
    }
}
