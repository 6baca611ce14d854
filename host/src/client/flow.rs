//! Decides whether a call is tried again, and how long all calls of an account wait; pure.
//!
//! The API server's fairness works on accounts: when it asks one call of an account to wait, it means all of them.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_write_is_sent_again_only_if_it_was_surely_not_executed`
//! - `an_account_waits_for_as_long_as_it_was_asked_to`

use std::time::{Duration, Instant};

use crate::apiserver;

/// Tries of a call in all.
const TRIES: u32 = 3;
/// The pause after the first try, if the server names none; doubles.
const PAUSE: Duration = Duration::from_millis(100);

/// What the API server has asked of an account.
#[derive(Debug, Default)]
pub struct Flow {
    until: Option<Instant>,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Read,
    Write,
}

impl Flow {
    /// How long the account's next call has to wait.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// The server has asked to wait.
    pub(super) fn asked(&mut self, wait: Duration, now: Instant) {
        self.until = self.until.max(now.checked_add(wait));
    }
}

/// How long to wait before the call is tried again after it has failed `tries` times; `None`: it is not.
pub(super) fn pause(sort: Sort, tries: u32, error: &apiserver::Error) -> Option<Duration> {
    let may = match sort {
        Sort::Read => {
            matches!(error.code(), Some(429 | 503))
                || matches!(error, apiserver::Error::Connection(_))
        }
        // Whatever else happened, the server may have executed it, or may yet.
        Sort::Write => error.code() == Some(429),
    };
    let usual = PAUSE * 2_u32.pow(tries.saturating_sub(1).min(TRIES));
    (may && tries < TRIES).then(|| error.retry_after().unwrap_or(usual))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::{Error, Status};

    fn refused(code: u16) -> Error {
        Error::Refused(Box::new(Status { code, ..Status::default() }))
    }

    #[test]
    fn a_write_is_sent_again_only_if_it_was_surely_not_executed() {
        let cut = || Error::Connection("reset".into());
        let late = Error::Timeout(PAUSE);
        for (error, read, write) in [
            (refused(429), true, true),
            (refused(503), true, false),
            (cut(), true, false),
            (late, false, false),
            (refused(500), false, false),
            (refused(504), false, false),
            (refused(409), false, false),
        ] {
            assert_eq!(pause(Sort::Read, 1, &error).is_some(), read, "{error}");
            assert_eq!(pause(Sort::Write, 1, &error).is_some(), write, "{error}");
        }
        let pauses = [1, 2, 3].map(|tries| pause(Sort::Read, tries, &cut()));
        assert_eq!(pauses, [Some(PAUSE), Some(PAUSE * 2), None], "three tries in all");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn an_account_waits_for_as_long_as_it_was_asked_to() {
        let (mut flow, now) = (Flow::default(), Instant::now());
        let seconds = Duration::from_secs;
        assert_eq!(flow.wait(now), seconds(0));
        flow.asked(seconds(7), now);
        flow.asked(seconds(3), now + seconds(1));
        assert_eq!(flow.wait(now + seconds(2)), seconds(5), "the longer one");
        assert_eq!(flow.wait(now + seconds(8)), seconds(0));
        flow.asked(Duration::MAX, now);
        assert_eq!(flow.wait(now + seconds(8)), seconds(0), "no clock ends");
    }
}
