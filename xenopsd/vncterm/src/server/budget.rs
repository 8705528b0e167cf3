//! Bytes of a guest's that may be looked at: so many a second, and some at once.

use std::time::{Duration, Instant};

/// What is left of it.
#[derive(Debug)]
pub(super) struct Budget {
    /// Bytes a second.
    rate: u32,
    /// The most that there are at once.
    burst: usize,
    /// Bytes that may be looked at now.
    pub(super) left: usize,
    /// When it last had more.
    pub(super) refilled: Instant,
}

impl Budget {
    /// A full one.
    pub(super) fn new(rate: u32, burst: usize) -> Self {
        Self { rate, burst, left: burst, refilled: Instant::now() }
    }

    /// Adds what the time that has passed allows.
    pub(super) fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled).as_micros();
        let added = usize::try_from(passed * u128::from(self.rate) / 1_000_000).unwrap_or(self.burst);
        if added > 0 {
            self.left = self.left.saturating_add(added).min(self.burst);
            self.refilled = now;
        }
    }

    /// When there are so many.
    pub(super) fn has(&self, bytes: usize) -> Instant {
        let missing = u32::try_from(bytes.saturating_sub(self.left)).unwrap_or(u32::MAX);
        self.refilled + Duration::from_secs(1) * missing / self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_by_its_rate_up_to_its_burst() {
        let mut budget = Budget::new(1000, 500);
        let begin = budget.refilled;
        budget.left = 0;
        budget.refill(begin + Duration::from_micros(999));
        assert_eq!((budget.left, budget.refilled), (0, begin), "less than a byte is not lost");
        assert_eq!(budget.has(100), begin + Duration::from_millis(100));
        budget.refill(begin + Duration::from_millis(100));
        assert_eq!(budget.left, 100);
        assert_eq!(budget.has(100), budget.refilled);
        budget.refill(begin + Duration::from_secs(100));
        assert_eq!(budget.left, 500);
    }
}
