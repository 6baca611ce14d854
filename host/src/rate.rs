//! A token bucket: so many at once, then so many a second; pure.
//!
//! Invariant: `a_bucket_never_gives_more_than_its_burst_and_its_rate`.

use std::time::{Duration, Instant};

/// What may be taken is earned at a steady rate and saved up to a limit.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Tokens a second.
    rate: f64,
    burst: f64,
    tokens: f64,
    /// When `tokens` was true; `None`: nothing was taken yet.
    at: Option<Instant>,
}

impl Bucket {
    /// A full bucket that earns `rate` tokens a second and holds `burst`, one at least.
    pub fn new(rate: f64, burst: f64) -> Self {
        let burst = burst.max(1.0);
        Self { rate, burst, tokens: burst, at: None }
    }

    /// Earns another number from now on and holds another; what it has stays, as far as it fits.
    pub fn set(&mut self, rate: f64, burst: f64) {
        (self.rate, self.burst) = (rate, burst.max(1.0));
        self.tokens = self.tokens.min(self.burst);
    }

    /// Takes one token; the error is how long until there is one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.tokens = self.tokens(now);
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        match self.wait(now) {
            Duration::ZERO => {
                self.tokens -= 1.0;
                Ok(())
            }
            wait => Err(wait),
        }
    }

    /// How long until there is a token; zero: there is one.
    pub fn wait(&self, now: Instant) -> Duration {
        let missing = 1.0 - self.tokens(now);
        if missing <= 0.0 {
            return Duration::ZERO;
        }
        // Never zero, or whoever waits would ask at once and in vain.
        let wait = Duration::try_from_secs_f64(missing / self.rate).unwrap_or(Duration::MAX);
        wait.max(Duration::from_micros(1))
    }

    /// Whether nothing has been taken, or all of it has been earned again.
    pub fn is_full(&self, now: Instant) -> bool {
        self.tokens(now) >= self.burst
    }

    fn tokens(&self, now: Instant) -> f64 {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (self.tokens + passed.as_secs_f64() * self.rate).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn another_rate_fills_no_bucket() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1.0, 2.0);
        (0..2).for_each(|_| bucket.take(start).unwrap());
        bucket.set(10.0, 20.0);
        assert_eq!(bucket.take(start), Err(Duration::from_millis(100)));
        bucket.set(1.0, 0.0);
        let later = start + Duration::from_secs(60);
        assert!(bucket.take(later).is_ok() && bucket.take(later).is_err(), "one, and not sixty");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn a_bucket_never_gives_more_than_its_burst_and_its_rate() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut bucket = Bucket::new(10.0, 5.0);
        assert!(bucket.is_full(start));
        assert_eq!((0..20).filter(|_| bucket.take(after(0)).is_ok()).count(), 5);
        let wait = bucket.take(after(0)).unwrap_err();
        assert!(wait > Duration::from_millis(99) && wait < Duration::from_millis(101), "{wait:?}");
        let taken = (1..=10_000).filter(|millis| bucket.take(after(*millis)).is_ok()).count();
        assert!((99..=100).contains(&taken), "ten a second: {taken}");
        assert!(bucket.take(after(5_000)).is_err(), "a clock that goes back earns nothing");
        assert!(bucket.is_full(after(11_000)));
    }
}
