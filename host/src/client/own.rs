//! A controller reads its own writes: reads wait until the cache has them, and an object is not run again before.
//!
//! Invariant, on a real server: `a_run_sees_what_the_one_before_it_wrote`.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use http::Method;
use tokio::{sync::watch, time::Instant};

use super::{Client, Error, answer, intent::Intent, send::Unwritten, shown};
use crate::{
    access::view::Source,
    apiserver::Call,
    client::gates::barrier::{Answer, Awaited},
    model::{kind::Kind, object::ObjectKey},
    watch::envelope,
};

/// How long a read waits; just under the limit of a host call, so that the guest hears why.
const READ_WAITS: Duration = Duration::from_millis(4_500);
/// How often the API server is asked what a write has left while it does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long an object waits between two of its runs; then the next one reads live.
const RUN_WAITS: Duration = Duration::from_secs(10);

impl Client {
    /// Before a write is sent; one whose name the server is to choose is registered by its answer.
    pub(super) fn register(&self, kind: &Kind, key: &ObjectKey) {
        if key.name.is_empty() {
            return;
        }
        self.0.account.own.send_modify(|own| own.sent(kind, key));
        let mut wrote = self.0.wrote.lock();
        let this = (kind.clone(), key.clone());
        if !wrote.contains(&this) {
            wrote.push(this);
        }
    }

    /// After it was answered.
    pub(super) fn resolve(&self, intent: &Intent, result: &Result<String, Unwritten>) {
        let (kind, mut key) = (&intent.kind, intent.key.clone());
        let answer = match result {
            Ok(text) => match envelope::object(text) {
                Ok(entry) => {
                    if key.name.is_empty() {
                        key = entry.key().clone();
                        self.register(kind, &key);
                    }
                    match &intent.deletes {
                        Some(uid) => Answer::Deleted(uid.clone()),
                        None => Answer::Written(Arc::new(entry)),
                    }
                }
                // The API server answers a deletion with a Status.
                Err(_) => intent.deletes.clone().map_or(Answer::Refused, Answer::Deleted),
            },
            Err(Unwritten::Call(error)) if answer::is_outcome_unknown(error) => Answer::Unknown,
            Err(_) => Answer::Refused,
        };
        if !key.name.is_empty() {
            self.0.account.own.send_modify(|own| own.answered(kind, &key, answer));
        }
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
    pub(super) async fn catch_up_all(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
    ) -> Result<(), Error> {
        let until = Instant::now() + READ_WAITS;
        let keys = self.0.account.own.borrow().keys(kind, namespace);
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
        let wrote = self.0.wrote.lock();
        wrote.iter().any(|(kind, key)| !self.is_visible(kind, key))
    }

    /// Waits until everything that this run wrote is in the cache, or the time is over: then it is read live.
    pub async fn seen(&self) {
        let until = Instant::now() + RUN_WAITS;
        let wrote = self.0.wrote.lock().clone();
        let started = Instant::now();
        for (kind, key) in wrote {
            if tokio::time::timeout_at(until, self.visible(&kind, &key)).await.is_err() {
                self.0.account.metrics.own_write_unseen();
                self.0.account.own.send_modify(|own| own.gave_up(&kind, &key));
            }
        }
        self.0.account.metrics.own_writes_seen(started.elapsed());
    }

    /// Returns once the caches show what the controller wrote of an object; woken by the watches and by answers.
    async fn visible(&self, kind: &Kind, key: &ObjectKey) {
        let mut observed: Vec<_> =
            self.showing(kind, key).map(|source| source.cache().observed()).collect();
        let mut answers = self.0.account.own.subscribe();
        loop {
            observed.iter_mut().for_each(watch::Receiver::mark_unchanged);
            answers.mark_unchanged();
            if self.is_visible(kind, key) {
                return;
            }
            let is_unknown = self.awaited(kind, key).is_some_and(|awaited| awaited.is_unknown());
            // A preview finds nothing out for those that run.
            if is_unknown && self.dry().is_none() {
                self.find_out(kind, key).await;
                continue;
            }
            let any_observed = async {
                let all = observed.iter_mut().map(|one| one.changed().boxed());
                let _ = futures::future::select_all(all).await;
            };
            tokio::select! {
                () = any_observed => (),
                _ = answers.changed() => (),
            }
        }
    }

    pub(super) fn is_visible(&self, kind: &Kind, key: &ObjectKey) -> bool {
        let Some(awaited) = self.awaited(kind, key) else { return true };
        let mut showing = self.showing(kind, key).peekable();
        // Where nobody watches there is nothing to wait for.
        let is_visible = showing.peek().is_none()
            || awaited.is_settled()
                && showing.all(|source| {
                    let cache = source.cache();
                    // The version first: what is observed after it was read is in the cache by then.
                    let observed = cache.observed().borrow().clone();
                    let selects = |entry: &_| shown::selects(&source.watch, entry);
                    awaited.is_visible(selects, cache.get(key).as_deref(), observed.as_ref())
                });
        // What a preview's view shows is not what the live one's does.
        if is_visible && awaited.is_settled() && self.dry().is_none() {
            self.0.account.own.send_if_modified(|own| {
                own.seen(kind, key, &awaited);
                false
            });
        }
        is_visible
    }

    /// Asks the API server what a write that was given up has left.
    async fn find_out(&self, kind: &Kind, key: &ObjectKey) {
        let path = self.0.view.resource(kind).and_then(|resource| {
            resource.path(key.namespace.as_deref(), Some(&key.name), None).ok()
        });
        let Some(path) = path else {
            // Who waits asks again at once: what cannot be asked must count as answered.
            return self.0.account.own.send_modify(|own| own.found_out(kind, key, Answer::Refused));
        };
        let call = Call::new(Method::GET, path).identity(self.0.account.identity.clone());
        let answer = match self.read(call).await {
            Ok(text) => envelope::object(&text)
                .map_or(Answer::Refused, |entry| Answer::Written(Arc::new(entry))),
            Err(error) if answer::is_not_served(&error) => Answer::Refused,
            // What a cache still shows of it must go.
            Err(error) if error.code() == Some(404) => {
                let cached = self.showing(kind, key).find_map(|source| source.cache().get(key));
                cached.map_or(Answer::Refused, |entry| Answer::Deleted(entry.uid().to_owned()))
            }
            // Nobody lets the host look: there is nothing more to learn, and waiting would never end.
            Err(error) if matches!(error.code(), Some(401 | 403)) => Answer::Refused,
            Err(_) => {
                tokio::time::sleep(ASK_AGAIN).await;
                return;
            }
        };
        self.0.account.own.send_modify(|own| own.found_out(kind, key, answer));
    }

    fn awaited(&self, kind: &Kind, key: &ObjectKey) -> Option<Awaited> {
        self.0.account.own.borrow().awaited(kind, key).cloned()
    }

    /// Every subscription that may show the object: each has a cache and a pace of its own.
    fn showing(&self, kind: &Kind, key: &ObjectKey) -> impl Iterator<Item = &Source> {
        let namespace = key.namespace.clone();
        self.0.view.sources(kind).filter(move |source| source.covers(namespace.as_deref()))
    }
}
