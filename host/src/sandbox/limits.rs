//! What one run may take: memory, tables, handles, bytes in one call, and time; pure.
//!
//! Invariants: `all_memories_of_a_run_count_together`, `a_refused_growth_is_remembered`,
//! `memory_that_others_have_is_no_fault_of_the_guest`.

use std::time::Duration;

use wasmtime::ResourceLimiter;

use super::{engine, memory::Share};

/// Length of one wasmtime epoch: how often a guest is looked at.
pub(super) const TICK: Duration = Duration::from_millis(10);
/// Bytes that may leave the guest in one call, before the host allocates for them; wasmtime's own limit lets 100 MiB
/// through.
pub(super) const HOSTCALL_FUEL: usize = 4 << 20;
/// Handles that a guest may hold.
pub(super) const HANDLES: usize = 1_000;

/// Ceilings of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLimits {
    /// Bytes of all memories together.
    pub memory: usize,
    /// Time in the guest's own code.
    pub deadline: Duration,
    /// Time in one call of the host.
    pub host_call: Duration,
    /// Time from the first instruction to the answer.
    pub wall: Duration,
}

impl Default for RunLimits {
    fn default() -> Self {
        Self {
            // One bulk instruction over all of it cannot be interrupted: 64 MiB keep that below 100 ms.
            memory: 64 << 20,
            deadline: Duration::from_secs(5),
            host_call: Duration::from_secs(5),
            wall: Duration::from_secs(30),
        }
    }
}

impl RunLimits {
    /// Ticks until the deadline, at least one.
    pub(super) fn ticks(&self) -> u64 {
        u64::try_from(self.deadline.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

/// Adds up what a run takes.
#[derive(Debug)]
pub(super) struct Meter {
    limit: usize,
    used: usize,
    last_growth: usize,
    refused: bool,
    share: Share,
}

impl Meter {
    /// `share` is what the run has of the memory that all guests share.
    pub(super) fn new(limits: &RunLimits, share: Share) -> Self {
        Self { limit: limits.memory, used: 0, last_growth: 0, refused: false, share }
    }

    /// Whether the guest was ever refused more memory.
    pub(super) fn has_refused(&self) -> bool {
        self.refused
    }
}

impl ResourceLimiter for Meter {
    /// Beyond its own limit refused with -1 in the guest, not with a trap; a trap if it is others who have the memory, since
    /// the guest would take that for its own fault.
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let growth = desired.saturating_sub(current);
        let total = self.used.saturating_add(growth);
        if total > self.limit {
            self.refused = true;
            return Ok(false);
        }
        self.share.cover(total)?;
        self.used = total;
        self.last_growth = growth;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.refused = true;
        self.used = self.used.saturating_sub(std::mem::take(&mut self.last_growth));
        Ok(())
    }

    fn table_growing(
        &mut self,
        _: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= engine::TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        engine::CORE_INSTANCES as usize
    }

    fn tables(&self) -> usize {
        engine::TABLES as usize
    }

    fn memories(&self) -> usize {
        engine::MEMORIES as usize
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::sandbox::memory::{GuestMemory, UsedUp};

    fn share(memory: &GuestMemory) -> Share {
        memory.begin(&"team".into()).now_or_never().flatten().unwrap()
    }

    fn meter() -> Meter {
        let limits = RunLimits { memory: 100, ..RunLimits::default() };
        Meter::new(&limits, share(&GuestMemory::new(8 << 20, 8 << 20)))
    }

    #[test]
    fn memory_that_others_have_is_no_fault_of_the_guest() {
        let memory = GuestMemory::new(8 << 20, 8 << 20);
        let limits = RunLimits { memory: 8 << 20, ..RunLimits::default() };
        let mut one = Meter::new(&limits, share(&memory));
        let mut other = Meter::new(&limits, share(&memory));
        assert!(one.memory_growing(0, 6 << 20, None).unwrap());
        assert!(other.memory_growing(0, 2 << 20, None).unwrap(), "it began with that");
        let error = other.memory_growing(2 << 20, 3 << 20, None).unwrap_err();
        assert!(error.downcast_ref::<UsedUp>().is_some() && !other.has_refused());
        drop(one);
        assert!(other.memory_growing(2 << 20, 8 << 20, None).unwrap(), "the other one has ended");
        assert!(
            !other.memory_growing(8 << 20, (8 << 20) + 1, None).unwrap() && other.has_refused()
        );
    }

    #[test]
    fn all_memories_of_a_run_count_together() {
        let mut meter = meter();
        assert!(meter.memory_growing(0, 60, None).unwrap());
        assert!(meter.memory_growing(0, 30, None).unwrap(), "a second memory");
        assert!(!meter.memory_growing(30, 41, None).unwrap());
        assert!(meter.memory_growing(30, 40, None).unwrap());
        assert!(meter.table_growing(0, engine::TABLE_ELEMENTS, None).unwrap());
        assert!(!meter.table_growing(0, engine::TABLE_ELEMENTS + 1, None).unwrap());
    }

    #[test]
    fn a_refused_growth_is_remembered() {
        let mut meter = meter();
        assert!(meter.memory_growing(0, 90, None).unwrap() && !meter.has_refused());
        meter.memory_grow_failed(wasmtime::Error::msg("no room")).unwrap();
        assert!(meter.has_refused());
        assert!(meter.memory_growing(0, 90, None).unwrap(), "what failed does not count");
        let mut other = self::meter();
        assert!(!other.memory_growing(0, 101, None).unwrap());
        assert!(other.has_refused());
    }

    #[test]
    fn a_deadline_is_at_least_one_tick() {
        let limits = |deadline| RunLimits { deadline, ..RunLimits::default() };
        assert_eq!(limits(Duration::from_secs(5)).ticks(), 500);
        assert_eq!(limits(Duration::from_millis(3)).ticks(), 1);
    }
}
