//! Whether a host has room for the watches of one more revision.
//!
//! Watches under different selectors are connections and caches of their own. A team may use so many bytes of caches, of
//! one that others use too only its part, and a revision so many watches. A revision that opens nothing new is always
//! staged: the team must be able to replace what runs.
//!
//! Invariants: `a_revision_has_so_many_watches`, `a_team_has_room_for_what_it_uses_already`.

use std::time::Duration;

use super::refusal::{Again, Refusal};
use crate::watch::Hub;

/// Watches of one revision: of all kinds in all namespaces of its scope.
const WATCHES: usize = 256;
/// Watches that are opened at the same time: so much more than there is room for may be read in vain.
pub(super) const AT_ONCE: usize = 8;
/// Other controllers of the team may have gone by then.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// The room of one team.
#[derive(Debug)]
pub(super) struct Room {
    hub: Hub,
    team: String,
    most: usize,
    before: usize,
}

impl Room {
    /// What `team` has while it may use `most` bytes of caches.
    pub(super) fn of(hub: &Hub, team: &str, most: usize) -> Self {
        Self { hub: hub.clone(), team: team.to_owned(), most, before: hub.held_by(team) }
    }

    /// Whether there is room for what was opened since.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        check_bytes(&self.team, (self.before, self.hub.held_by(&self.team)), self.most)
    }
}

fn check_bytes(team: &str, (before, now): (usize, usize), most: usize) -> Result<(), Refusal> {
    if now <= most || now <= before {
        return Ok(());
    }
    let text = format!(
        "the caches that {team} uses would have {} MiB, and this host gives a team {} MiB: watch fewer kinds, metadata only, \
         fewer namespaces or under a narrower selector, or have --team-caches raised",
        now.div_ceil(1 << 20),
        most >> 20
    );
    Err(Refusal { again: Again::Every(LOOK_AGAIN), ..Refusal::failed("CachesTooLarge", text) })
}

/// Whether a revision may have so many watches: kinds, and the namespaces of each.
pub(super) fn check_count(watches: usize) -> Result<(), Refusal> {
    if watches <= WATCHES {
        return Ok(());
    }
    let text = format!(
        "the revision needs {watches} watches, one for each watched kind in each namespace of spec.scope, and a host opens at \
         most {WATCHES} for it: watch fewer kinds, leave spec.scope out, or divide the namespaces between several controllers"
    );
    Err(Refusal::failed("TooManyWatches", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_has_so_many_watches() {
        assert_eq!(check_count(WATCHES), Ok(()));
        let refusal = check_count(WATCHES + 1).unwrap_err();
        assert!(refusal.message.contains("257 watches"), "{refusal:?}");
    }

    #[test]
    fn a_team_has_room_for_what_it_uses_already() {
        const MIB: usize = 1 << 20;
        let check = |before: usize, now: usize| check_bytes("demo", (before, now), 100 * MIB);
        assert_eq!(check(0, 100 * MIB), Ok(()));
        let refusal = check(0, 100 * MIB + 1).unwrap_err();
        assert!(refusal.message.contains("101 MiB") && refusal.message.contains("100 MiB"));
        assert_eq!(refusal.again, Again::Every(LOOK_AGAIN));
        assert_eq!(
            check(200 * MIB, 200 * MIB),
            Ok(()),
            "its objects have grown, or the flag was lowered"
        );
        assert!(check(200 * MIB, 201 * MIB).is_err());
    }
}
