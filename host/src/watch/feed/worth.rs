//! Whether a feed costs less than the connections in whose place it is; pure.
//!
//! A connection of its own costs a namespace some memory and the proofs that it lives; a feed costs whatever happens in namespaces
//! that nobody follows, by its lines and by their bytes. Figures: `docs/decisions/0014-one-connection-for-many-namespaces.md`.

use std::time::{Duration, Instant};

/// Lines a second that nobody follows, for each follower; above it connections of their own cost less.
const TOO_MANY: u32 = 20;
/// One of more bytes counts as several.
const LINE: usize = 4 << 10;
/// It is judged by what came in this time: one burst is no reason.
const SPAN: Duration = Duration::from_secs(60);

/// Counts the lines that nobody follows.
#[derive(Debug)]
pub(crate) struct Worth {
    since: Instant,
    unfollowed: u64,
}

impl Worth {
    /// Counts from `now` on.
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, unfollowed: 0 }
    }

    /// A line of so many bytes has come that nobody follows.
    pub(crate) fn unfollowed(&mut self, bytes: usize) {
        self.unfollowed += 1 + u64::try_from(bytes / LINE).unwrap_or(0);
    }

    /// Whether it has not been worth it, with so many followers; begins anew after each span.
    pub(crate) fn is_too_dear(&mut self, followers: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        if passed < SPAN {
            return false;
        }
        let followers = u32::try_from(followers).unwrap_or(u32::MAX);
        let bound = passed.as_secs_f64() * f64::from(TOO_MANY) * f64::from(followers);
        let Self { unfollowed, .. } = std::mem::replace(self, Self::new(now));
        followers > 0 && u32::try_from(unfollowed).map_or(true, |count| f64::from(count) > bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn epoch() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_feed_is_too_dear_if_most_of_it_is_for_nobody() {
        let began = epoch();
        let after = |worth: &mut Worth, lines: u32, followers, seconds| {
            (0..lines).for_each(|_| worth.unfollowed(2_000));
            worth.is_too_dear(followers, began + Duration::from_secs(seconds))
        };
        let mut worth = Worth::new(began);
        assert!(!after(&mut worth, 100_000, 2, 59), "it is judged once a minute");
        assert!(after(&mut worth, 0, 2, 60));
        assert!(!after(&mut worth, 2 * 20 * 60, 2, 120), "as many as two may cost");
        assert!(after(&mut worth, 2 * 20 * 60 + 1, 2, 180));
        assert!(!after(&mut worth, 2 * 20 * 60 + 1, 3, 240));
        assert!(!after(&mut worth, 1_000, 0, 300), "of nobody it asks nothing");
        assert!(!after(&mut worth, 2 * 20 * 600, 2, 900), "of ten minutes");
        worth.unfollowed(2 * 20 * 60 * LINE);
        assert!(after(&mut worth, 0, 2, 960), "as many bytes in one line");
    }
}
