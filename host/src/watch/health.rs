//! Whether the API server can be reached: asked once a second while a watch cannot.
//!
//! While it cannot be, runs are paused and not failed, and stores are kept; when it is back, watches end their pauses.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use tokio::sync::watch;

use crate::apiserver::{ApiServer, Call, Error};

/// How often, and how long one question may take.
const EVERY: Duration = Duration::from_secs(1);

/// What is known of the API server; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Watches that cannot reach it.
    failing: watch::Sender<usize>,
    reachable: watch::Sender<bool>,
    /// Grows with each good answer while a watch is failing.
    recoveries: watch::Sender<u64>,
}

/// One watch that cannot reach the API server.
#[derive(Debug)]
pub(super) struct Failing(Arc<Inner>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Inner {
            failing: watch::channel(0).0,
            reachable: watch::channel(true).0,
            recoveries: watch::channel(0).0,
        }))
    }
}

impl Health {
    /// Says that a watch cannot reach the API server, until the value is dropped.
    pub(super) fn failing(&self) -> Failing {
        self.0.failing.send_modify(|count| *count += 1);
        Failing(self.0.clone())
    }

    /// Moves when the API server answers although a watch was failing.
    fn recoveries(&self) -> watch::Receiver<u64> {
        self.0.recoveries.subscribe()
    }

    /// Waits out a pause. `spread`: of a watch that cannot reach the API server, which goes on when that has come back and
    /// so much more has passed; true: it has.
    pub(super) async fn pause(&self, until: Instant, spread: Option<Duration>) -> bool {
        let mut back = self.recoveries();
        let hurried = async {
            let _ = back.changed().await;
            tokio::time::sleep(spread.unwrap_or_default()).await;
        };
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => false,
            () = hurried, if spread.is_some() => true,
        }
    }

    /// Whether it answers, as far as anybody has had a reason to ask.
    pub(super) fn reachable(&self) -> watch::Receiver<bool> {
        self.0.reachable.subscribe()
    }

    /// Asks whenever there is a reason, for ever: a watch is failing, or the last answer was none. Watches may come
    /// back by themselves before the server was asked again, and runs would stay paused.
    pub(super) async fn run(self, api: ApiServer) {
        let mut failing = self.0.failing.subscribe();
        loop {
            let asked_on = !*self.0.reachable.borrow();
            if !asked_on && failing.wait_for(|count| *count > 0).await.is_err() {
                return;
            }
            let call = Call { limit: EVERY, ..Call::new(Method::GET, "/readyz") };
            let answers = is_up(&api.call(call).await);
            self.0.reachable.send_if_modified(|reachable| {
                let changed = *reachable != answers;
                *reachable = answers;
                if changed && answers {
                    tracing::info!("the API server answers again");
                } else if changed {
                    tracing::warn!(
                        "the API server does not answer: runs are paused, caches are kept"
                    );
                }
                changed
            });
            if answers {
                self.0.recoveries.send_modify(|count| *count += 1);
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// A refusal is an answer too: many clusters do not let everybody ask.
fn is_up(answer: &Result<String, Error>) -> bool {
    let refused = |error: &Error| error.code().is_some_and(|code| code < 500);
    answer.as_ref().map_or_else(refused, |_| true)
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.0.failing.send_modify(|count| *count = count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::Status;

    #[test]
    fn a_server_that_refuses_to_say_whether_it_is_ready_answers() {
        let refused = |code| Err(Error::Refused(Box::new(Status { code, ..Status::default() })));
        for (code, up) in
            [(401, true), (403, true), (404, true), (429, true), (500, false), (503, false)]
        {
            assert_eq!(is_up(&refused(code)), up, "{code}");
        }
        assert!(is_up(&Ok("ok".to_owned())));
        assert!(!is_up(&Err(Error::Timeout(EVERY))));
    }
}
