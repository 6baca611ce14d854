//! Where a follower goes over from its own connection to the feed, with no gap and no step back; pure.
//!
//! The feed brings whatever happens after the version at which it was joined. The follower reads over its own connection until it
//! has seen that version: from there on the feed leaves nothing out. What the feed brings again, up to what the follower has
//! seen by then, is dropped, for it could bring back what is gone. A deletion never is: to a cache that knows better a late one is
//! no news, and there are servers that give it the version of the object's last state.
//!
//! Invariant: `followers_end_up_with_what_the_server_has`.

use super::super::envelope::Version;

/// The place of one follower.
#[derive(Debug)]
pub(crate) struct Place {
    from: Version,
    seen: Option<Version>,
}

impl Place {
    /// The feed brings what comes after `from`.
    pub(crate) fn new(from: Version) -> Self {
        Self { from, seen: None }
    }

    /// Whether nothing is missing between what was seen up to `seen` and what the feed brings.
    pub(crate) fn meets(&self, seen: &Version) -> bool {
        *seen >= self.from
    }

    /// The follower goes over, and has seen everything up to `seen`.
    pub(crate) fn enter(&mut self, seen: Version) {
        self.seen = Some(seen);
    }

    /// Whether the follower has yet to be told of a change of this version.
    pub(crate) fn admits(&self, version: &Version, is_gone: bool) -> bool {
        is_gone || self.seen.as_ref().is_none_or(|seen| version > seen)
    }
}
