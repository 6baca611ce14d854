//! A controller reads its own writes: reads wait until the cache has them, and an object is not run again before.
//!
//! Invariant, on a real server: `a_run_sees_what_the_one_before_it_wrote`.

use std::{sync::PoisonError, time::Duration};

use http::Method;
use tokio::time::Instant;

use super::{
    Client, Error, answer,
    send::{Failure, Write},
};
use crate::{
    apiserver::Call,
    barrier::{Answer, Awaited},
    manifest::Kind,
    view::Sight,
    watch::{Cache, Entry, ObjectKey, envelope},
};

/// How long a read waits; just under the limit of a host call, so that the guest hears why.
const READ_WAITS: Duration = Duration::from_millis(4_500);
/// How often the API server is asked what a write has left while it does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long an object waits between two of its runs; then the next one reads live (R92).
const RUN_WAITS: Duration = Duration::from_secs(10);

impl Client {
    /// Before a write is sent; one whose name the server is to choose is registered by its answer.
    pub(super) fn register(&self, kind: &Kind, key: &ObjectKey) {
        if key.name.is_empty() {
            return;
        }
        self.0.account.own.send_modify(|own| own.sent(kind, key));
        let mut wrote = self.0.wrote.lock().unwrap_or_else(PoisonError::into_inner);
        let this = (kind.clone(), key.clone());
        if !wrote.contains(&this) {
            wrote.push(this);
        }
    }

    /// After it was answered.
    pub(super) fn resolve(&self, write: &Write, result: &Result<String, Failure>) {
        let (kind, mut key) = (&write.kind, write.key.clone());
        let answer = match result {
            Ok(text) => match envelope::object(text) {
                Ok(entry) => {
                    if key.name.is_empty() {
                        key = entry.key().clone();
                        self.register(kind, &key);
                    }
                    self.answer_of(write, &entry)
                }
                // The API server answers a deletion with a Status.
                Err(_) => write.deletes.clone().map_or(Answer::Refused, Answer::Deleted),
            },
            Err(Failure::Call(error)) if answer::is_outcome_unknown(error) => Answer::Unknown,
            Err(_) => Answer::Refused,
        };
        if !key.name.is_empty() {
            self.0.account.own.send_modify(|own| own.answered(kind, &key, answer));
        }
    }

    /// What the cache is to show. An object with finalizers outlives its deletion for a while; one that no watch of
    /// this kind selects will never be shown (R94).
    fn answer_of(&self, write: &Write, entry: &Entry) -> Answer {
        match &write.deletes {
            Some(uid) if entry.uid() != uid || entry.finalizers().next().is_none() => {
                return Answer::Deleted(uid.clone());
            }
            _ => (),
        }
        let namespace = entry.key().namespace.as_deref();
        let shown = self
            .0
            .view
            .sights(&write.kind)
            .filter(|sight| sight.covers(namespace))
            .any(|sight| sight.selects(entry) || sight.cache().get(entry.key()).is_some());
        if shown { Answer::Written(entry.version().clone()) } else { Answer::Refused }
    }

    /// Waits until the cache has the controller's own writes of an object; true: read it live instead.
    pub(super) async fn catch_up(&self, kind: &Kind, key: &ObjectKey) -> Result<bool, Error> {
        if self.awaited(kind, key).is_some_and(|awaited| awaited.is_late()) {
            return Ok(!self.is_visible(kind, key));
        }
        let until = Instant::now() + READ_WAITS;
        if tokio::time::timeout_at(until, self.visible(kind, key)).await.is_err() {
            let text = format!(
                "the watch of {kind} has not shown this controller's own write of {key} yet"
            );
            return Err(Error::Unavailable(text));
        }
        Ok(false)
    }

    /// The same for all objects of a kind.
    pub(super) async fn catch_up_all(&self, kind: &Kind) -> Result<(), Error> {
        let until = Instant::now() + READ_WAITS;
        let keys = self.0.account.own.borrow().keys(kind);
        for key in keys {
            if tokio::time::timeout_at(until, self.visible(kind, &key)).await.is_err() {
                let text =
                    format!("the watch of {kind} has not shown this controller's own writes yet");
                return Err(Error::Unavailable(text));
            }
        }
        Ok(())
    }

    /// Whether something that this run wrote is not in the cache yet.
    pub fn has_unseen(&self) -> bool {
        let wrote = self.0.wrote.lock().unwrap_or_else(PoisonError::into_inner);
        wrote.iter().any(|(kind, key)| !self.is_visible(kind, key))
    }

    /// Waits until everything that this run wrote is in the cache, or the time is over: then it is read live.
    pub async fn seen(&self) {
        let until = Instant::now() + RUN_WAITS;
        let wrote = self.0.wrote.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let started = Instant::now();
        for (kind, key) in wrote {
            if tokio::time::timeout_at(until, self.visible(&kind, &key)).await.is_err() {
                self.0.account.metrics.own_write_unseen();
                self.0.account.own.send_modify(|own| own.gave_up(&kind, &key));
            }
        }
        self.0.account.metrics.own_writes_seen(started.elapsed());
    }

    /// Returns once the cache shows what the controller wrote of an object; woken by the watch and by answers.
    async fn visible(&self, kind: &Kind, key: &ObjectKey) {
        let Some(sight) = self.sight(kind, key) else { return };
        let mut observed = sight.cache().observed();
        let mut answers = self.0.account.own.subscribe();
        loop {
            observed.mark_unchanged();
            answers.mark_unchanged();
            if self.is_visible(kind, key) {
                return;
            }
            if self.awaited(kind, key).is_some_and(|awaited| awaited.is_unknown()) {
                self.find_out(kind, key).await;
                continue;
            }
            tokio::select! {
                _ = observed.changed() => (),
                _ = answers.changed() => (),
            }
        }
    }

    pub(super) fn is_visible(&self, kind: &Kind, key: &ObjectKey) -> bool {
        let Some(awaited) = self.awaited(kind, key) else { return true };
        let Some(sight) = self.sight(kind, key) else { return true };
        let cache: &Cache = sight.cache();
        // The version first: what is observed after it was read is in the cache by then.
        let observed = cache.observed().borrow().clone();
        let visible = awaited.is_visible(cache.get(key).as_deref(), observed.as_ref());
        if visible {
            self.0.account.own.send_if_modified(|own| {
                own.seen(kind, key, &awaited);
                false
            });
        }
        visible
    }

    /// Asks the API server what a write that was given up has left (server-facts.md).
    async fn find_out(&self, kind: &Kind, key: &ObjectKey) {
        let path = self.0.view.resource(kind).and_then(|resource| {
            resource.path(key.namespace.as_deref(), Some(&key.name), None).ok()
        });
        let Some(path) = path else {
            // Who waits asks again at once: what cannot be asked must count as answered.
            return self.0.account.own.send_modify(|own| own.found_out(kind, key, None));
        };
        let call = Call::new(Method::GET, path).identity(self.0.account.identity.clone());
        let version = match self.read(call).await {
            Ok(text) => match envelope::object(&text) {
                Ok(entry) => Some(entry.version().clone()),
                Err(_) => None,
            },
            // It is gone, or nobody lets the host look: there is nothing more to learn, and waiting would never end.
            Err(error) if matches!(error.code(), Some(401 | 403 | 404)) => None,
            Err(_) => {
                tokio::time::sleep(ASK_AGAIN).await;
                return;
            }
        };
        self.0.account.own.send_modify(|own| own.found_out(kind, key, version));
    }

    fn awaited(&self, kind: &Kind, key: &ObjectKey) -> Option<Awaited> {
        self.0.account.own.borrow().awaited(kind, key).cloned()
    }

    /// A subscription that would show the object; `None`: nobody watches it, so there is nothing to wait for.
    fn sight(&self, kind: &Kind, key: &ObjectKey) -> Option<&Sight> {
        self.0.view.sights(kind).find(|sight| sight.covers(key.namespace.as_deref()))
    }
}
