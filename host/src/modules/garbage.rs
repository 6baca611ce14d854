//! Decides which stored files nobody has needed for long enough; pure.
//!
//! What is needed is looked at again and again, and a file goes only if no look of a whole [`GRACE`] needed it: a
//! controller that is deleted and made again finds its component, and a push whose object is on its way its bytes.
//!
//! Invariant: `only_what_no_look_of_an_hour_needed_goes`.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// So long nobody may have needed a file before it goes.
pub const GRACE: Duration = Duration::from_secs(3_600);

/// The files that the last look has found needless, and since when.
#[derive(Debug, Default)]
pub struct Garbage(HashMap<String, Instant>);

impl Garbage {
    /// Looks at what is `present`; returns what may go.
    pub fn look(
        &mut self,
        present: Vec<String>,
        is_needed: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Vec<String> {
        let before = std::mem::take(&mut self.0);
        for name in present.into_iter().filter(|name| !is_needed(name)) {
            let since = before.get(&name).copied().unwrap_or(now);
            self.0.insert(name, since);
        }
        let is_old = |since: &Instant| now.saturating_duration_since(*since) >= GRACE;
        let old = self.0.iter().filter(|(_, since)| is_old(since));
        old.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a start to count from")]
    fn only_what_no_look_of_an_hour_needed_goes() {
        let (mut garbage, start) = (Garbage::default(), Instant::now());
        let present = || ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut at = |minutes: u64, needed: &str| {
            let now = start + Duration::from_secs(minutes * 60);
            let mut gone = garbage.look(present(), |name| needed.contains(name), now);
            gone.sort();
            gone.concat()
        };
        assert_eq!(at(0, "ab"), "");
        assert_eq!(at(30, "a"), "");
        assert_eq!(at(59, "ab"), "", "b was needed once more");
        assert_eq!(at(60, "a"), "c");
        assert_eq!(at(119, "a"), "c");
        assert_eq!(at(120, "a"), "bc");
    }
}
