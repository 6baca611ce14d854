//! Time that goes on while the machine sleeps.
//!
//! A host that was suspended must find its Lease expired; `Instant` stands still meanwhile (R100).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine was booted, suspension included (`CLOCK_BOOTTIME`).
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_goes_back() {
        let first = since_boot();
        assert!(first > Duration::ZERO && since_boot() >= first);
    }
}
