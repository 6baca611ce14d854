//! The connection of one watch that runs, and what may take its place.

use std::{sync::Arc, time::Instant};

use tokio::sync::Notify;

use super::{
    Fault,
    asks::Opening,
    envelope::Version,
    feed::{Fed, Following},
};
use crate::apiserver::{self, Lines};

/// A watch that runs.
pub(super) struct Wire {
    source: Source,
    second: Option<Second>,
    /// A feed that is to take the place of the connection.
    joining: Option<Following>,
}

enum Source {
    Own(Lines),
    Feed(Following),
}

/// A connection that is to take the place of the one that runs.
pub(super) struct Second {
    pub(super) opening: Opening,
    /// Whether the server is to end it soon, or it is opened as a proof of life.
    pub(super) is_brief: bool,
}

/// What a running watch heard.
pub(super) enum Heard {
    /// A line, or the end, of its own connection.
    Line(Option<Result<String, apiserver::Error>>),
    /// The second connection is open; it is the first one now.
    Opened,
    /// It could not be opened.
    NotOpened(apiserver::Error),
    /// Neither a line nor anything else since the time that was given.
    Silence,
    /// It is to be opened anew.
    Again,
    /// A line of the feed.
    Fed(Arc<str>),
    /// The feed lets the watch go.
    FeedEnd,
    /// Whether the feed is well.
    FeedTrouble(Option<Fault>),
    /// The feed that is to take the place has begun.
    Joined,
}

impl Wire {
    /// A connection, and a feed that may take its place.
    pub(super) fn new(lines: Lines, joining: Option<Following>) -> Self {
        Self { source: Source::Own(lines), second: None, joining }
    }

    /// What comes next. It has been silent at `silent_at`, and is opened anew, when `again` says so, from `not_before` on.
    /// May be dropped while it waits: nothing is lost.
    pub(super) async fn hear(
        &mut self,
        silent_at: Instant,
        again: &Notify,
        not_before: Option<Instant>,
    ) -> Heard {
        let Self { source, second, joining } = self;
        let (is_quiet, is_fed) = (second.is_none(), matches!(source, Source::Feed(_)));
        let asked = async {
            if let Some(at) = not_before {
                tokio::time::sleep_until(at.into()).await;
            }
            again.notified().await;
        };
        let opened = tokio::select! {
            biased;
            heard = source.next() => return heard,
            opened = opened(second) => opened,
            begun = begun(joining) => {
                *joining = joining.take().filter(|_| begun);
                return Heard::Joined;
            }
            () = asked => return Heard::Again,
            () = tokio::time::sleep_until(silent_at.into()), if is_quiet && !is_fed => {
                return Heard::Silence;
            }
        };
        match opened {
            Ok(lines) => {
                *source = Source::Own(lines);
                *second = None;
                Heard::Opened
            }
            Err(error) => Heard::NotOpened(error),
        }
    }

    /// Begins a second connection beside the one that runs, or forgets it.
    pub(super) fn set_second(&mut self, second: Option<Second>) {
        self.second = second;
    }

    /// The first connection has proven itself: a second one is needed only if it was to be brief.
    pub(super) fn is_alive(&mut self) {
        self.second = self.second.take().filter(|second| second.is_brief);
    }

    /// Whether a brief connection is being opened: it has yet to say how far the server is.
    pub(super) fn is_opening_briefly(&self) -> bool {
        self.second.as_ref().is_some_and(|second| second.is_brief)
    }

    /// The feed that it reads, if it reads one.
    pub(super) fn feed(&self) -> Option<&Following> {
        match &self.source {
            Source::Feed(following) => Some(following),
            Source::Own(_) => None,
        }
    }

    /// Lets a feed take the place of the connection as soon as it can.
    pub(super) fn join(&mut self, joining: impl FnOnce() -> Option<Following>) {
        if self.feed().is_none() && self.joining.as_ref().is_none_or(Following::is_over) {
            self.joining = joining();
        }
    }

    /// Whether a feed waits to take the place of the connection.
    pub(super) fn is_joining(&self) -> bool {
        self.joining.is_some()
    }

    /// Goes over to the feed, if that leaves nothing out after `seen`.
    pub(super) fn go_over(&mut self, seen: &Version) -> bool {
        let Some(mut following) = self.joining.take_if(|following| following.meets(seen)) else {
            return false;
        };
        following.enter(seen.clone());
        self.source = Source::Feed(following);
        self.second = None;
        true
    }
}

impl Source {
    async fn next(&mut self) -> Heard {
        match self {
            Self::Own(lines) => Heard::Line(lines.next().await),
            Self::Feed(following) => match following.next().await {
                Fed::Line(line) => Heard::Fed(line),
                Fed::Trouble(fault) => Heard::FeedTrouble(fault),
                Fed::End => Heard::FeedEnd,
            },
        }
    }
}

async fn opened(second: &mut Option<Second>) -> Result<Lines, apiserver::Error> {
    match second {
        Some(second) => (&mut second.opening).await,
        None => std::future::pending().await,
    }
}

async fn begun(joining: &mut Option<Following>) -> bool {
    match joining {
        Some(following) => following.begun().await,
        None => std::future::pending().await,
    }
}
