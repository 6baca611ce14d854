//! Proves that a cache has everything that was written before a moment.
//!
//! A host that takes over may have a cache that is older than the last writes of its predecessor. One consistent LIST
//! of a single object says which version is the newest; once the watch has passed it, nothing is missing. A quiet
//! watch would pass it with its next bookmark, up to a minute later, so it is opened anew for a moment.

use std::time::{Duration, Instant};

use http::Method;
use serde::Deserialize;

use super::{Message, Subscription, WatchKey, envelope::Version, lenient::or_default};
use crate::{
    apiserver::{self, Call, query},
    clock,
};

/// The pause after a failed question.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A watch that was to be opened anew and has not passed the version yet is asked again.
const PASS_LIMIT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct List {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Meta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    #[serde(deserialize_with = "or_default")]
    resource_version: String,
}

impl Subscription {
    /// Whether the cache is known to have all that was written before `since`.
    pub fn is_fresh(&self, since: Instant) -> bool {
        self.watching.state.borrow().fresh.is_some_and(|fresh| fresh >= since)
    }

    /// Waits until the cache has all that was written before `since`.
    pub async fn fresh(&self, since: Instant) {
        let proving = self.watching.proving.clone();
        let _one = proving.acquire().await;
        while !self.is_fresh(since) {
            let _ = self.watching.state.clone().wait_for(|state| state.synced).await;
            match self.newest().await {
                Ok((begun, version)) => self.pass(begun, &version).await,
                Err(error) => {
                    tracing::debug!(watch = %self.key, %error, "cannot ask how new a cache must be");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    /// The newest version there is, and when it was asked for.
    async fn newest(&self) -> Result<(Instant, Version), apiserver::Error> {
        let begun = clock::now();
        let WatchKey { resource, namespace, identity, .. } = &self.key;
        let path = resource.path(namespace.as_deref(), None, None)?;
        let selectors = [
            ("labelSelector", &self.key.label_selector),
            ("fieldSelector", &self.key.field_selector),
        ];
        let selectors =
            selectors.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?)));
        let call =
            Call::new(Method::GET, query(&path, [("limit", "1")].into_iter().chain(selectors)));
        let list: List = self.hub.0.api.fetch(call.identity(identity.clone())).await?;
        Ok((begun, Version::parse(&list.metadata.resource_version)))
    }

    async fn pass(&self, begun: Instant, version: &Version) {
        let mut observed = self.watching.cache.observed();
        let passed = |seen: &Option<Version>| seen.as_ref().is_some_and(|seen| seen >= version);
        // Versions that cannot be compared set no floor.
        let mut done = matches!(version, Version::Text(_)) || passed(&observed.borrow());
        if !done {
            let _ = self.watching.messages.send(Message::Again);
            done = tokio::time::timeout(PASS_LIMIT, observed.wait_for(passed)).await.is_ok();
        }
        if done {
            let _ = self.watching.messages.send(Message::Fresh(begun));
            let _ = self.watching.state.clone().wait_for(|state| state.fresh >= Some(begun)).await;
        }
    }
}
