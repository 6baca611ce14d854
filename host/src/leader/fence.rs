//! Decides, just before a write is sent, whether its run may still write.
//!
//! A run carries the executor generation under which it started and the claim it started under. The controller
//! publishes the generations that may write and its current claim; a trapped, superseded or demoted run has another. A claim also ends by itself, at a time that only its renewal moves on: a host that was
//! frozen past it sends nothing when it wakes, even before anybody has told it.
//!
//! Invariants: `a_run_that_is_not_admitted_or_of_an_old_claim_is_refused`, `a_claim_that_nobody_renews_ends_by_itself`.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::clock;

/// The right to act for a controller: held while the bucket's Lease is.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Grows with each acquisition of the Lease: its `leaseTransitions`.
    pub epoch: i64,
    /// When it was acquired: what was read before may be older than the last holder's writes.
    pub since: Instant,
    /// When it ends unless it is renewed, in milliseconds since boot.
    until: Arc<AtomicU64>,
}

/// What may write now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The executor generations whose runs may write: of what is live, and of what is being drained.
    pub admitted: BTreeSet<i64>,
    /// The current claim; `None`: nothing may be written.
    pub claim: Option<Claim>,
}

/// Why a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Barred {
    /// A newer revision has taken over.
    #[error("a newer revision has taken over")]
    Superseded,
    /// The claim is lost or another.
    #[error("this host no longer holds the controller's claim")]
    Demoted,
}

impl Barred {
    /// The value of the metric's label `reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Demoted => "demoted",
        }
    }
}

/// One run's fence.
#[derive(Clone, Debug)]
pub struct Fence {
    /// The executor generation under which the run started.
    pub generation: i64,
    /// The claim under which it started.
    pub claim: Claim,
    /// What may write now.
    pub gate: watch::Receiver<Gate>,
}

impl Claim {
    /// A claim acquired now that ends at `until`, a time since boot.
    pub fn new(epoch: i64, since: Instant, until: Duration) -> Self {
        Self { epoch, since, until: Arc::new(AtomicU64::new(millis(until))) }
    }

    /// Moves the end on, for every copy.
    pub fn extend(&self, until: Duration) {
        self.until.fetch_max(millis(until), Ordering::SeqCst);
    }

    /// Whether it holds at this moment.
    pub fn holds(&self) -> bool {
        self.holds_at(clock::since_boot())
    }

    fn holds_at(&self, now: Duration) -> bool {
        millis(now) < self.until.load(Ordering::SeqCst)
    }
}

/// A claim that was lost and found again is another one: what ran under the first may not write under the second.
impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.until, &other.until)
    }
}

impl Eq for Claim {}

impl Fence {
    /// Whether the run may write at this moment.
    pub fn check(&self) -> Result<(), Barred> {
        {
            let gate = self.gate.borrow();
            if gate.claim.as_ref() != Some(&self.claim) {
                return Err(Barred::Demoted);
            }
            if !gate.admitted.contains(&self.generation) {
                return Err(Barred::Superseded);
            }
        }
        if self.claim.holds() { Ok(()) } else { Err(Barred::Demoted) }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn claim(epoch: i64, until: Duration) -> Claim {
        Claim::new(epoch, Instant::now(), until)
    }

    #[test]
    fn a_run_that_is_not_admitted_or_of_an_old_claim_is_refused() {
        let first = claim(1, Duration::MAX);
        let (sender, gate) =
            watch::channel(Gate { admitted: [3, 5].into(), claim: Some(first.clone()) });
        let fence = |generation| Fence { generation, claim: first.clone(), gate: gate.clone() };
        assert_eq!(fence(3).check(), Ok(()));
        assert_eq!(fence(5).check(), Ok(()), "two may be live");
        assert_eq!(fence(2).check(), Err(Barred::Superseded));
        assert_eq!(fence(4).check(), Err(Barred::Superseded), "taken back, though it is newer");
        let admitted = || [3].into();
        let another = Some(claim(2, Duration::MAX));
        sender.send_replace(Gate { admitted: admitted(), claim: another });
        assert_eq!(fence(3).check(), Err(Barred::Demoted));
        sender.send_replace(Gate { admitted: admitted(), claim: None });
        assert_eq!(fence(3).check(), Err(Barred::Demoted));
    }

    #[test]
    fn a_claim_that_nobody_renews_ends_by_itself() {
        let held = claim(1, 10 * SECOND);
        let copy = held.clone();
        assert!(copy.holds_at(9 * SECOND) && !copy.holds_at(10 * SECOND));
        held.extend(20 * SECOND);
        held.extend(15 * SECOND);
        assert!(copy.holds_at(19 * SECOND), "a renewal reaches every copy and never shortens");
        assert!(!copy.holds_at(20 * SECOND));
        let over = claim(2, Duration::ZERO);
        let (_sender, gate) =
            watch::channel(Gate { admitted: [1].into(), claim: Some(over.clone()) });
        let fence = Fence { generation: 1, claim: over, gate };
        assert_eq!(fence.check(), Err(Barred::Demoted), "though nobody has taken it away yet");
    }
}
