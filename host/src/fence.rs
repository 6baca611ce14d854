//! Decides, just before a write is sent, whether its run may still write (R64).
//!
//! A run carries the executor generation under which it started and the epoch of the claim it started under. The
//! controller publishes the lowest generation that may still write and its current claim; a trapped, superseded or
//! demoted run is behind one of them.
//!
//! Invariant: `a_run_behind_the_floor_or_of_an_old_claim_is_refused`.

use tokio::sync::watch;

/// The right to act for a controller: held while the bucket's Lease is. One replica holds every claim for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Grows with each acquisition of the Lease.
    pub epoch: i64,
}

/// What may write now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Runs of a lower executor generation may not write any more.
    pub floor: i64,
    /// The current claim; `None`: nothing may be written.
    pub claim: Option<Claim>,
}

/// Why a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A newer revision has taken over.
    #[error("a newer revision has taken over")]
    Superseded,
    /// The claim is lost or another.
    #[error("this host no longer holds the controller's claim")]
    Demoted,
}

impl Refusal {
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

impl Fence {
    /// Whether the run may write at this moment.
    pub fn check(&self) -> Result<(), Refusal> {
        let gate = *self.gate.borrow();
        if gate.claim != Some(self.claim) {
            return Err(Refusal::Demoted);
        }
        if self.generation < gate.floor {
            return Err(Refusal::Superseded);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_behind_the_floor_or_of_an_old_claim_is_refused() {
        let claim = Claim { epoch: 1 };
        let (sender, gate) = watch::channel(Gate { floor: 3, claim: Some(claim) });
        let fence = |generation| Fence { generation, claim, gate: gate.clone() };
        assert_eq!(fence(3).check(), Ok(()));
        assert_eq!(fence(4).check(), Ok(()), "a newer run than the drain's end");
        assert_eq!(fence(2).check(), Err(Refusal::Superseded));
        sender.send_replace(Gate { floor: 3, claim: Some(Claim { epoch: 2 }) });
        assert_eq!(fence(3).check(), Err(Refusal::Demoted));
        sender.send_replace(Gate { floor: 3, claim: None });
        assert_eq!(fence(3).check(), Err(Refusal::Demoted));
    }
}
