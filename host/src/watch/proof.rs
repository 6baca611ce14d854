//! Proves that a cache has everything that was written before a moment.
//!
//! A host that takes over may have a cache that is older than the last writes of its predecessor. One consistent LIST
//! of a single object says which version is the newest; once the watch has passed it, nothing is missing. A quiet
//! watch would pass it with its next bookmark, up to a minute later, so it is opened anew for a moment.

use std::time::{Duration, Instant};

use super::{Message, Subscription, envelope::Version};

/// The pause after a failed question.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A watch that was to be opened anew and has not passed the version yet is asked again.
const PASS_LIMIT: Duration = Duration::from_secs(5);

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
            match self.asks().newest().await {
                Ok((begun, version)) => self.pass(begun, &version).await,
                Err(error) => {
                    tracing::debug!(watch = %self.key, %error, "cannot ask how new a cache must be");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
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
