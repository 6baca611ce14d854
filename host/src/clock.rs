//! What time it is: for everything that is decided, and for Leases, whose time goes on while the machine sleeps.
//!
//! A host that was suspended must find its Lease expired; `Instant` stands still meanwhile. The other clock is
//! the one by which the runtime sleeps, so that a test which pauses it moves the whole host through an hour at once.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Now, by the runtime's clock.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Time since the machine was booted, suspension included (`CLOCK_BOOTTIME`).
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::Boottime).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_moves_everything_that_is_decided() {
        let before = now();
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert!(now() - before >= Duration::from_secs(3_600));
    }

    #[test]
    fn it_never_goes_back() {
        let first = since_boot();
        assert!(first > Duration::ZERO && since_boot() >= first);
    }
}
