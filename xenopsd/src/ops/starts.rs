//! How often a process that serves a guest is started again: what ends it may be what the guest does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The starts of late.
#[derive(Debug, Default)]
pub struct Starts(VecDeque<Instant>);

impl Starts {
    /// Most starts within [`Starts::WINDOW`].
    pub const MOST: usize = 5;
    /// See there.
    pub const WINDOW: Duration = Duration::from_secs(60);

    /// Counts a start. When there were too many of late it is none, and the time is given when there may be one.
    ///
    /// # Errors
    /// That time.
    pub fn count(&mut self, now: Instant) -> Result<(), Instant> {
        while self.0.front().is_some_and(|first| now.duration_since(*first) >= Self::WINDOW) {
            self.0.pop_front();
        }
        match self.0.front() {
            Some(first) if self.0.len() >= Self::MOST => Err(*first + Self::WINDOW),
            _ => {
                self.0.push_back(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_five_and_the_next_is_when_the_first_is_a_minute_ago() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut starts = Starts::default();
        for n in 0..5 {
            assert_eq!(starts.count(begin + second * n), Ok(()));
        }
        for now in [begin + second * 5, begin + second * 59] {
            assert_eq!(starts.count(now), Err(begin + Starts::WINDOW));
        }
        assert_eq!(starts.count(begin + second * 60), Ok(()));
        assert_eq!(starts.count(begin + second * 60), Err(begin + second + Starts::WINDOW));
    }
}
