//! The memory of all guests together: no run starts without some, and none gets what is not there.
//!
//! A team may have three quarters of it, so that another's next run has room. What a run took is free again when its store
//! is gone. A run that would need more than is left fails for the host's reason, not for its own, and is tried again.
//! What comes behind live runs takes nothing of its team's, never of the last quarter, and stands in no line before them.
//!
//! Invariants: `all_guests_together_have_no_more_than_there_is`, `one_team_leaves_memory_to_others`,
//! `a_run_waits_until_there_is_memory_to_begin_with`, `what_comes_behind_leaves_memory_to_live_runs`.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

/// What is handed out at once: a page of WebAssembly.
const PAGE: usize = 64 << 10;
/// Pages with which a run begins: a small guest needs no more.
const FIRST: u32 = 32;
/// What comes behind asks so often whether there is enough: in the semaphore's line it would hold up who comes after.
const AGAIN: Duration = Duration::from_millis(50);

/// What there is for guests.
#[derive(Debug)]
pub(super) struct GuestMemory {
    bytes: usize,
    of_one_team: usize,
    all: Arc<Semaphore>,
    teams: Mutex<HashMap<Arc<str>, Weak<Semaphore>>>,
}

/// What one run holds of it; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Share {
    all: OwnedSemaphorePermit,
    /// `None`: it comes behind, and leaves `spare` pages of all.
    team: Option<OwnedSemaphorePermit>,
    spare: usize,
    limits: UsedUp,
}

/// Why a run gets no more: others have it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the memory for guests is used up: all together may have {} MiB on this host, and those of one team, or all previews, {} \
     MiB; it is tried again. If that lasts, have --guest-memory or the container's limit raised, or lower limits.concurrency",
    .bytes >> 20, .of_these >> 20
)]
pub(super) struct UsedUp {
    bytes: usize,
    /// Those of one team, or all previews.
    of_these: usize,
}

impl GuestMemory {
    /// So many bytes for all; `ceiling` is what one guest may have, which is never more than its team may.
    pub(super) fn new(bytes: usize, ceiling: usize) -> Self {
        let of_one_team = (bytes - bytes / 4).max(ceiling).min(bytes);
        let all = Arc::new(Semaphore::new((bytes / PAGE).min(Semaphore::MAX_PERMITS)));
        Self { bytes, of_one_team, all, teams: Mutex::default() }
    }

    /// Waits until there is something for one more run of `team`; `None`: never, the host ends.
    pub(super) async fn begin(&self, team: &Arc<str>) -> Option<Share> {
        // Its own team's first, so that nobody waits with what others could use.
        let team = self.of(team).acquire_many_owned(FIRST).await.ok()?;
        let all = self.all.clone().acquire_many_owned(FIRST).await.ok()?;
        let limits = UsedUp { bytes: self.bytes, of_these: self.of_one_team };
        Some(Share { all, team: Some(team), spare: 0, limits })
    }

    /// The same for a run that comes behind all live ones.
    pub(super) async fn begin_behind(&self) -> Option<Share> {
        let spare = self.bytes / 4 / PAGE;
        let limits = UsedUp { bytes: self.bytes, of_these: self.bytes - spare * PAGE };
        loop {
            if self.all.is_closed() {
                return None;
            }
            if let Some(all) = take(&self.all, FIRST, spare) {
                return Some(Share { all, team: None, spare, limits });
            }
            sleep(AGAIN).await;
        }
    }

    /// Bytes that runs hold, and those that there are.
    pub(super) fn held(&self) -> (usize, usize) {
        let all = (self.bytes / PAGE).min(Semaphore::MAX_PERMITS);
        (all.saturating_sub(self.all.available_permits()) * PAGE, self.bytes)
    }

    fn of(&self, team: &Arc<str>) -> Arc<Semaphore> {
        let mut teams = self.teams.lock();
        if let Some(known) = teams.get(team).and_then(Weak::upgrade) {
            return known;
        }
        teams.retain(|_, known| known.strong_count() > 0);
        let pages = (self.of_one_team / PAGE).min(Semaphore::MAX_PERMITS);
        let new = Arc::new(Semaphore::new(pages));
        teams.insert(team.clone(), Arc::downgrade(&new));
        new
    }
}

impl Share {
    /// Takes as much as is missing for so many bytes in all.
    pub(super) fn cover(&mut self, bytes: usize) -> Result<(), UsedUp> {
        let missing = bytes.div_ceil(PAGE).saturating_sub(self.all.num_permits());
        let missing = u32::try_from(missing).map_err(|_| self.limits)?;
        if missing == 0 {
            return Ok(());
        }
        let more = |held: &OwnedSemaphorePermit, spare| {
            take(held.semaphore(), missing, spare).ok_or(self.limits)
        };
        let of_team = self.team.as_ref().map(|team| more(team, 0)).transpose()?;
        self.all.merge(more(&self.all, self.spare)?);
        if let (Some(team), Some(more)) = (&mut self.team, of_team) {
            team.merge(more);
        }
        Ok(())
    }
}

/// Takes so many pages, if so many stay.
fn take(from: &Arc<Semaphore>, pages: u32, spare: usize) -> Option<OwnedSemaphorePermit> {
    let wanted = usize::try_from(pages).ok()?.checked_add(spare)?;
    let is_enough = from.available_permits() >= wanted;
    is_enough.then(|| from.clone().try_acquire_many_owned(pages).ok()).flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use futures::FutureExt;
    use tokio::time::timeout;

    use super::*;

    /// The share of a run that has all memory for itself.
    pub(in crate::sandbox) fn share() -> Share {
        let memory = GuestMemory::new(64 * MIB, 64 * MIB);
        begin(&memory, "team").unwrap()
    }

    const MIB: usize = 1 << 20;

    fn begin(memory: &GuestMemory, team: &str) -> Option<Share> {
        memory.begin(&team.into()).now_or_never().flatten()
    }

    #[test]
    fn all_guests_together_have_no_more_than_there_is() {
        let memory = GuestMemory::new(64 * MIB, 16 * MIB);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut held: Vec<(Share, usize)> = vec![];
        for _ in 0..10_000 {
            let random = rng.u64(..);
            let bytes = usize::try_from(random >> 40).unwrap() % (16 * MIB);
            match random % 4 {
                0 => held.extend(
                    begin(&memory, ["a", "b", "c"][(random >> 8) as usize % 3])
                        .map(|share| (share, 2 * MIB)),
                ),
                1 if !held.is_empty() => {
                    drop(held.swap_remove((random >> 8) as usize % held.len()));
                }
                _ => {
                    if let Some((share, has)) = held.last_mut()
                        && share.cover(bytes).is_ok()
                    {
                        *has = bytes.max(*has);
                    }
                }
            }
            let all: usize = held.iter().map(|(_, has)| has.div_ceil(PAGE)).sum();
            assert!(all * PAGE <= 64 * MIB);
            assert_eq!(memory.all.available_permits() + all, 64 * MIB / PAGE, "nothing is lost");
        }
        drop(held);
        assert_eq!(memory.all.available_permits(), 64 * MIB / PAGE);
    }

    #[test]
    fn one_team_leaves_memory_to_others() {
        let memory = GuestMemory::new(64 * MIB, 16 * MIB);
        let mut loud: Vec<_> = std::iter::from_fn(|| begin(&memory, "loud")).collect();
        assert_eq!(loud.len(), 24, "three quarters");
        let mut quiet = begin(&memory, "quiet").unwrap();
        assert!(quiet.cover(14 * MIB).is_ok());
        let refused = loud[0].cover(3 * MIB).unwrap_err().to_string();
        assert!(refused.contains("64 MiB") && refused.contains("48 MiB"), "{refused}");
        drop(loud.pop());
        assert!(loud[0].cover(3 * MIB).is_ok(), "its own have ended");
        assert!(quiet.cover(usize::MAX).is_err());
        drop(loud);
        drop(quiet);
        begin(&memory, "third").unwrap();
        assert_eq!(memory.teams.lock().len(), 1, "teams without runs are forgotten");
        let tight = GuestMemory::new(64 * MIB, 60 * MIB);
        assert!(begin(&tight, "a").unwrap().cover(60 * MIB).is_ok(), "one guest at the ceiling");
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_behind_leaves_memory_to_live_runs() {
        let memory = GuestMemory::new(64 * MIB, 48 * MIB);
        let mut behind = memory.begin_behind().await.unwrap();
        assert!(behind.cover(49 * MIB).is_err(), "the last quarter is not for it");
        behind.cover(48 * MIB).unwrap();
        let mut second = Box::pin(memory.begin_behind());
        let minute = Duration::from_secs(60);
        assert!(timeout(minute, &mut second).await.is_err());
        // It waits in no line, and holds nothing of the team's.
        let mut live: Vec<_> = std::iter::from_fn(|| begin(&memory, "team")).collect();
        assert_eq!(live.len(), 8, "all that is left");
        drop(behind);
        assert!(live[0].cover(34 * MIB).is_ok(), "three quarters for its team");
        assert!(timeout(minute, &mut second).await.is_err(), "a quarter must stay");
        drop(live);
        assert!(second.await.is_some());
    }

    #[tokio::test]
    async fn a_run_waits_until_there_is_memory_to_begin_with() {
        let memory = GuestMemory::new(4 * MIB, 4 * MIB);
        let (first, _second) = (begin(&memory, "a").unwrap(), begin(&memory, "b").unwrap());
        let team: Arc<str> = "c".into();
        let mut third = Box::pin(memory.begin(&team));
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        assert!(third.await.is_some());
    }
}
