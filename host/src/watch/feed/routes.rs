//! Who follows a feed, and which of them a line is for.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::oneshot;

use super::{
    super::envelope::Version,
    inbox::{FedLine, Sender},
};

/// The followers of a feed, by their namespaces.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    followers: HashMap<Arc<str>, Vec<Follower>>,
}

/// One that follows, or waits for the feed to begin.
#[derive(Debug)]
pub(crate) struct Follower {
    /// Tells it from others of its namespace.
    pub(crate) id: u64,
    /// Where its lines go.
    pub(crate) lines: Sender,
    /// Is told the version after which it is brought everything.
    pub(crate) begins: Option<oneshot::Sender<Version>>,
}

impl Follower {
    fn begin(&mut self, from: &Version) {
        if let Some(begins) = self.begins.take() {
            let _ = begins.send(from.clone());
        }
    }
}

impl Routes {
    /// Whether nobody follows.
    pub(crate) fn is_empty(&self) -> bool {
        self.followers.is_empty()
    }

    /// How many follow.
    pub(crate) fn len(&self) -> usize {
        self.followers.values().map(Vec::len).sum()
    }

    /// One more; `from`: the version at which the feed is, if its watch runs.
    pub(crate) fn join(
        &mut self,
        namespace: Arc<str>,
        mut follower: Follower,
        from: Option<&Version>,
    ) {
        if let Some(from) = from {
            follower.begin(from);
        }
        self.followers.entry(namespace).or_default().push(follower);
    }

    /// The feed's watch runs: whoever waited is brought what comes after `from`.
    pub(crate) fn begin(&mut self, from: &Version) {
        for follower in self.followers.values_mut().flatten() {
            follower.begin(from);
        }
    }

    /// One less.
    pub(crate) fn leave(&mut self, namespace: &str, id: u64) {
        self.keep(namespace, |follower| follower.id != id);
    }

    /// A change in `namespace`; whether anybody follows it. If nobody does it costs no copy.
    pub(crate) fn change(
        &mut self,
        namespace: &str,
        version: Version,
        is_gone: bool,
        text: &str,
    ) -> bool {
        if !self.followers.contains_key(namespace) {
            return false;
        }
        let line = FedLine { change: Some((version, is_gone)), text: text.into() };
        self.keep(namespace, |follower| follower.lines.send(line.clone()));
        true
    }

    /// What concerns everybody.
    pub(crate) fn all(&mut self, text: &str) {
        let line = FedLine { change: None, text: text.into() };
        self.followers.retain(|_, followers| {
            followers.retain(|follower| follower.lines.send(line.clone()));
            !followers.is_empty()
        });
    }

    /// What concerns one only.
    pub(crate) fn one(&mut self, namespace: &str, id: u64, text: &str) {
        let line = FedLine { change: None, text: text.into() };
        self.keep(namespace, |follower| follower.id != id || follower.lines.send(line.clone()));
    }

    fn keep(&mut self, namespace: &str, stays: impl FnMut(&Follower) -> bool) {
        let Some(followers) = self.followers.get_mut(namespace) else { return };
        followers.retain(stays);
        if followers.is_empty() {
            self.followers.remove(namespace);
        }
    }
}
