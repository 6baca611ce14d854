//! Sends what may be sent: in time, as often as it may be, and after the fence; on the control runtime.
//!
//! Invariant: `only_one_timeout_goes_out`.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use http::Method;
use tokio::time::{Instant, sleep};

use super::{
    Client, Error, Mode, answer, dry,
    flow::{self, Sort},
    intent::Intent,
};
use crate::{
    apiserver::{self, Call, Status},
    fail,
    model::{kind::Kind, object::ObjectKey},
    text,
};

/// Time for all tries of a call: just under a host call's 5 s, so that the guest hears why.
const IN_ALL: Duration = Duration::from_millis(4_500);
/// With less time a try is not begun.
const SHORTEST: Duration = Duration::from_millis(250);
/// Tries of a write of one object in one run against other writers.
const AGAINST_OTHERS: u32 = 5;
/// Time for the API server to say that it is well.
const WELL_WITHIN: Duration = Duration::from_secs(1);

/// What stood in a run's way; decides when its object is run again.
#[derive(Debug, Default)]
pub(super) struct Obstacles {
    /// When the budget allows what was refused.
    pub(super) budget: Option<Instant>,
    /// Until when the API server has asked to wait.
    held: Option<Instant>,
    /// A right that the account lacks, in the server's words.
    pub(super) forbidden: Option<String>,
    /// What the cluster's schema of a kind does not have, in the server's words.
    pub(super) outdated: Option<String>,
    /// Whether something was refused that may be allowed another time.
    pub(super) refused: bool,
    /// Whether the API server did not answer as one that is well.
    faulty: bool,
    /// Writes of each object that met another writer.
    conflicts: HashMap<(Kind, ObjectKey), u32>,
}

#[derive(Debug)]
pub(super) enum Unwritten {
    /// The host refused; nothing was sent.
    Refused(Error),
    /// The API server refused or did not answer.
    Call(apiserver::Error),
}

impl Client {
    /// How long until the budget allows what was refused, if something was.
    pub fn over_budget(&self) -> Option<Duration> {
        let budget = self.obstacles().budget?;
        Some(budget.saturating_duration_since(Instant::now()))
    }

    /// Whether the API server had no time for this run, or did not answer as one that is well.
    pub fn was_short_of_time(&self) -> bool {
        self.obstacles().faulty || self.held().is_some()
    }

    /// How much longer the API server has asked the run to wait, if it has.
    pub fn held(&self) -> Option<Duration> {
        let held = self.obstacles().held?;
        Some(held.saturating_duration_since(Instant::now())).filter(|wait| !wait.is_zero())
    }

    /// A right that the account turned out to lack, in the server's words: it concerns the whole controller.
    pub fn forbidden(&self) -> Option<String> {
        self.obstacles().forbidden.clone()
    }

    /// A field that the code writes and the cluster's schema does not have: the revision is ahead of its
    /// `CustomResourceDefinition`, whatever the object.
    pub fn outdated_schema(&self) -> Option<String> {
        self.obstacles().outdated.clone()
    }

    /// Whether the API server refused something that it may allow another time, although the object stays as it is.
    pub fn was_refused(&self) -> bool {
        self.obstacles().refused
    }

    /// Whether other writers of some object were faster as often as it may be tried in one run.
    pub fn is_beaten(&self) -> bool {
        self.obstacles().conflicts.values().any(|count| *count >= AGAINST_OTHERS)
    }

    /// Nothing new is sent for the guest from now on: it has ended.
    pub(super) fn end_guest(&self) {
        self.0.gone.store(true, Ordering::SeqCst);
    }

    /// Whether a call of this run went wrong because the API server is down: then the run has not failed.
    pub async fn server_is_down(&self) -> bool {
        if !*self.0.account.reachable.borrow() {
            return true;
        }
        if !self.obstacles().faulty {
            return false;
        }
        // One kind may be served by somebody else, who is down, or be behind a webhook that hangs.
        let well = Call { limit: WELL_WITHIN, ..Call::new(Method::GET, "/readyz") };
        match self.0.account.api.call(well).await {
            Ok(_) => false,
            Err(error) => error.code().is_none_or(|code| code >= 500),
        }
    }

    /// A live read, with the tries that a read may have.
    pub(super) async fn read(&self, call: Call) -> Result<String, apiserver::Error> {
        let client = self.clone();
        let task = self.0.account.control.spawn(async move { client.read_now(call).await });
        task.await.unwrap_or_else(|error| Err(apiserver::Error::Connection(error.into())))
    }

    async fn read_now(&self, call: Call) -> Result<String, apiserver::Error> {
        match self.tried(call, Sort::Read, || Ok(())).await {
            Ok(text) => Ok(text),
            Err(Unwritten::Call(error)) => Err(error),
            Err(Unwritten::Refused(error)) => Err(apiserver::Error::Request(error.to_string())),
        }
    }

    /// What was let through is sent, and no longer than the fence allows. The task belongs to the control runtime and outlives
    /// the guest.
    pub(super) async fn send(&self, intent: Intent) -> Result<String, Unwritten> {
        let client = self.clone();
        self.0.sent.send_modify(|count| *count += 1);
        self.register(&intent.kind, &intent.key);
        let task = self.0.account.control.spawn(async move {
            let may_send = || client.may_send(&intent);
            let result = client.tried(intent.call.clone(), Sort::Write, may_send).await;
            if let Err(Unwritten::Call(error)) = &result {
                client.note_write_failure(&intent, error);
                client.learn_anew(&intent.kind, error).await;
            }
            client.resolve(&intent, &result);
            client.0.sent.send_modify(|count| *count -= 1);
            result
        });
        task.await.unwrap_or_else(|error| {
            Err(Unwritten::Call(apiserver::Error::Connection(error.into())))
        })
    }

    /// Whether a write of this object that met another writer may be tried once more in this run.
    pub(super) fn may_try_again(&self, kind: &Kind, key: &ObjectKey) -> bool {
        self.check_tries(kind, key).is_ok()
    }

    /// Refuses a write of an object that met another writer as often as it may in one run.
    pub(super) fn check_tries(&self, kind: &Kind, key: &ObjectKey) -> Result<(), Error> {
        match self.obstacles().conflicts.get(&(kind.clone(), key.clone())) {
            Some(count) if *count >= AGAINST_OTHERS => Err(Error::Conflict(format!(
                "another writer of {kind} {key} was faster {count} times; the run must end, and the next one sees the new state"
            ))),
            _ => Ok(()),
        }
    }

    /// The last look before a write leaves.
    fn may_send(&self, intent: &Intent) -> Result<(), Error> {
        let fenced = |reason: &str| self.0.account.metrics.fenced(reason);
        self.check_guest(intent).inspect_err(|_| fenced("ended"))?;
        match &self.0.run.mode {
            Mode::Live(fence) => fence.check().map_err(|refusal| {
                fenced(refusal.reason());
                Error::Unavailable(refusal.to_string())
            }),
            Mode::Dry(_) => Err(Error::Unavailable("a preview writes nothing".to_owned())),
        }
    }

    /// Nothing is done for a guest that has ended.
    pub(super) fn check_guest(&self, intent: &Intent) -> Result<(), Error> {
        if !intent.by_host && self.0.gone.load(Ordering::SeqCst) {
            return Err(Error::Unavailable("the run has ended".to_owned()));
        }
        Ok(())
    }

    /// Sends a call until it is answered for good; `may_send` has the last word before each try.
    pub(super) async fn tried(
        &self,
        call: Call,
        sort: Sort,
        may_send: impl Fn() -> Result<(), Error>,
    ) -> Result<String, Unwritten> {
        let until = Instant::now() + IN_ALL;
        for tries in 1.. {
            let wait = self.must_wait();
            if !fits(wait, until) {
                self.hold(wait);
                return Err(Unwritten::Call(asked_to_wait(wait)));
            }
            if !wait.is_zero() {
                sleep(wait).await;
            }
            may_send().map_err(Unwritten::Refused)?;
            let left = until.saturating_duration_since(Instant::now());
            let call = match sort {
                Sort::Read => Call { limit: call.limit.min(left), ..call.clone() },
                Sort::Write => timed(&call, left.min(self.0.account.write_timeout)),
            };
            if sort == Sort::Write {
                fail::point("write");
            }
            let error = match self.request(call).await {
                Ok(text) => {
                    if sort == Sort::Write {
                        fail::point("written");
                    }
                    return Ok(text);
                }
                Err(error) => error,
            };
            if let Some(wait) = error.retry_after() {
                self.asked_to_wait(wait);
            }
            match flow::pause(sort, tries, &error) {
                Some(pause) if fits(pause, until) => sleep(pause).await,
                _ => {
                    self.note_failure(&error);
                    return Err(Unwritten::Call(error));
                }
            }
        }
        Err(Unwritten::Refused(Error::Unavailable("no try was left".to_owned())))
    }

    /// One request; none of a preview changes anything.
    async fn request(&self, call: Call) -> Result<String, apiserver::Error> {
        match self.dry() {
            Some(_) if !dry::is_dry(&call) => {
                let text = "a preview writes nothing".to_owned();
                Err(apiserver::Error::Request(text))
            }
            Some(dry) => dry.api().call(call).await,
            None => self.0.account.api.call(call).await,
        }
    }

    fn note_failure(&self, error: &apiserver::Error) {
        if let Some(wait) = error.retry_after() {
            self.hold(wait);
        }
        if answer::is_fault_of_server(error) {
            self.obstacles().faulty = true;
        }
    }

    fn note_write_failure(&self, intent: &Intent, error: &apiserver::Error) {
        if answer::is_outcome_unknown(error) {
            self.0.unsettled.store(true, Ordering::Relaxed);
        }
        self.note_conflict(intent, error);
    }

    pub(super) fn note_conflict(&self, intent: &Intent, error: &apiserver::Error) {
        if answer::is_conflict(error) && !intent.is_probe {
            let key = (intent.kind.clone(), intent.key.clone());
            *self.obstacles().conflicts.entry(key).or_default() += 1;
        }
    }

    /// The run's object must not be run again before this has passed.
    fn hold(&self, wait: Duration) {
        let until = Instant::now().checked_add(wait);
        let mut obstacles = self.obstacles();
        obstacles.held = obstacles.held.max(until);
    }

    /// How long the account's next call has to wait; previews wait apart.
    fn must_wait(&self) -> Duration {
        let now = Instant::now().into_std();
        let live = || self.0.account.flow.lock().wait(now);
        self.dry().map_or_else(live, |dry| dry.wait(now))
    }

    fn asked_to_wait(&self, wait: Duration) {
        let now = Instant::now().into_std();
        let live = || self.0.account.flow.lock().asked(wait, now);
        self.dry().map_or_else(live, |dry| dry.asked(wait, now));
    }

    /// Remembers a right that the account turned out to lack.
    pub(super) fn lacks(&self, text: &str) {
        let mut obstacles = self.obstacles();
        obstacles.forbidden = Some(text::line(text, text::MESSAGE).into_owned());
        obstacles.refused = true;
    }

    /// The guest's error for a failed call; what concerns the controller is remembered.
    pub(super) fn heard(&self, error: &apiserver::Error) -> Error {
        let mut obstacles = self.obstacles();
        obstacles.refused |= answer::may_pass(error);
        if let Some(right) = answer::missing_right(error) {
            obstacles.forbidden = Some(right.to_owned());
        }
        if let Some(gap) = answer::outdated_schema(error) {
            obstacles.outdated = Some(gap.to_owned());
        }
        answer::error(error)
    }

    /// Asks how a kind is served if an answer says that it is not as the host knows it.
    pub(super) async fn learn_anew(&self, kind: &Kind, error: &apiserver::Error) {
        if answer::is_not_served(error) {
            self.ask_how_it_is_served(kind).await;
        }
    }

    pub(super) async fn ask_how_it_is_served(&self, kind: &Kind) {
        // A preview changes nothing for those that run.
        if self.dry().is_some() {
            return;
        }
        match self.0.account.api.discover(kind).await {
            Ok(Some(resource)) => self.0.view.learn(resource),
            Ok(None) => (),
            Err(error) => {
                tracing::debug!(%kind, %error, "cannot ask how a kind is served");
            }
        }
    }

    /// Remembers when the budget allows what was refused.
    pub(super) fn over_budget_until(&self, until: Option<Instant>) {
        let mut obstacles = self.obstacles();
        obstacles.budget = obstacles.budget.max(until);
    }

    fn obstacles(&self) -> parking_lot::MutexGuard<'_, Obstacles> {
        self.0.obstacles.lock()
    }
}

fn fits(wait: Duration, until: Instant) -> bool {
    Instant::now().checked_add(wait + SHORTEST).is_some_and(|at| at <= until)
}

/// The call with its limit, which also goes out: the server starts no transaction after it.
fn timed(call: &Call, limit: Duration) -> Call {
    let joint = if call.path.contains('?') { '&' } else { '?' };
    let limit = call.limit.min(limit);
    let path = format!("{}{joint}timeout={}ms", call.path, limit.as_millis());
    Call { path, limit, ..call.clone() }
}

/// What the server would say if it were asked again before its time.
fn asked_to_wait(wait: Duration) -> apiserver::Error {
    let message = format!("the API server has asked this account to wait, for {wait:.1?} more");
    let reason = "TooManyRequests".to_owned();
    apiserver::Error::Refused(Box::new(Status { code: 429, reason, message, ..Status::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_timeout_goes_out() {
        let call = |path: &str| Call::new(Method::PATCH, path);
        let sent = timed(&call("/a?force=true"), Duration::from_secs(2));
        assert_eq!(
            (&*sent.path, sent.limit),
            ("/a?force=true&timeout=2000ms", Duration::from_secs(2))
        );
        let sent = timed(&Call { limit: SHORTEST, ..call("/a") }, Duration::from_secs(2));
        assert_eq!((&*sent.path, sent.limit), ("/a?timeout=250ms", SHORTEST));
    }
}
