//! One watch of a kind in all namespaces, from which the watches of single namespaces take their lines.
//!
//! A hundred controllers that are bound to a namespace each would hold a hundred watches of a shared kind. From the second
//! namespace on one connection serves them all: the [task](task) sorts its lines by namespace and drops what
//! nobody follows. Each namespace keeps its own cache, so a team holds, and is charged for, its namespaces only.
//!
//! A follower is an ordinary watch. It lists its namespace itself, and its [place](place) says when it may go over; a feed that
//! ends, loses its place in the server's history, is not allowed to the host, or brings mostly what nobody follows lets
//! its followers go, and they go on over connections of their own, as if there had never been a feed.
//!
//! Invariants, each held by the test of that name:
//!
//! - `followers_end_up_with_what_the_server_has`
//! - `what_was_gone_before_a_namespace_was_listed_does_not_come_again`
//! - `who_falls_behind_is_let_go`
//! - `a_line_belongs_where_its_object_does`
//! - `a_feed_is_too_dear_if_most_of_it_is_for_nobody`
//! - on a real server: `namespaces_share_one_connection_from_the_second_on`

mod inbox;
mod place;
mod route;
mod routes;
mod task;
mod worth;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{Fault, envelope::Version, life::Life};
pub(super) use task::Task;
use {inbox::Receiver, place::Place, routes::Follower};

/// A feed that runs; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Feed {
    messages: mpsc::UnboundedSender<Message>,
    trouble: watch::Receiver<Option<Fault>>,
    life: Arc<Life>,
    joined: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Join(Arc<str>, Follower),
    Leave(Arc<str>, u64),
    /// This follower wants to know how far the feed is.
    Again(Arc<str>, u64),
}

/// One use of a feed; dropping it gives it up.
#[derive(Debug)]
pub(super) struct Following {
    id: u64,
    namespace: Arc<str>,
    feed: Feed,
    begins: Option<oneshot::Receiver<Version>>,
    place: Option<Place>,
    lines: Receiver,
}

/// What comes to a follower.
pub(super) enum Fed {
    /// A line of its namespace, or one for all.
    Line(Arc<str>),
    /// Whether the feed is well has changed.
    Trouble(Option<Fault>),
    /// Nothing more.
    End,
}

impl Feed {
    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }

    /// When it last showed that it lives.
    pub(super) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    /// Follows it: whatever happens in `namespace` after this call is kept for the follower, once the feed has begun.
    pub(super) fn join(&self, namespace: Arc<str>) -> Following {
        let id = self.joined.fetch_add(1, Ordering::Relaxed);
        let (begins, begun) = oneshot::channel();
        let (sender, lines) = inbox::inbox();
        let follower = Follower { id, lines: sender, begins: Some(begins) };
        // To a feed that has ended nothing can be sent, and the follower hears that it does not begin.
        let _ = self.messages.send(Message::Join(namespace.clone(), follower));
        Following { id, namespace, feed: self.clone(), begins: Some(begun), place: None, lines }
    }
}

impl Following {
    /// Waits until the feed has begun; false: it will not.
    pub(super) async fn begun(&mut self) -> bool {
        match &mut self.begins {
            Some(begins) => {
                self.place = begins.await.ok().map(Place::new);
                self.begins = None;
                self.place.is_some()
            }
            None => std::future::pending().await,
        }
    }

    /// Whether the feed has let it go.
    pub(super) fn is_over(&self) -> bool {
        self.lines.is_closed()
    }

    /// Whether it goes on and leaves nothing out for who has seen everything up to `seen`.
    pub(super) fn meets(&self, seen: &Version) -> bool {
        !self.is_over() && self.place.as_ref().is_some_and(|place| place.meets(seen))
    }

    /// From here on only what is newer than `seen` comes.
    pub(super) fn enter(&mut self, seen: Version) {
        if let Some(place) = &mut self.place {
            place.enter(seen);
        }
    }

    /// What comes next. May be dropped while it waits: nothing is lost.
    pub(super) async fn next(&mut self) -> Fed {
        loop {
            let line = tokio::select! {
                biased;
                line = self.lines.next() => line,
                Ok(()) = self.feed.trouble.changed() => {
                    return Fed::Trouble(self.feed.trouble.borrow_and_update().clone());
                }
            };
            let Some(line) = line else { return Fed::End };
            let admits = |place: &Place, (version, is_gone): &(Version, bool)| {
                place.admits(version, *is_gone)
            };
            if line.change.iter().zip(&self.place).all(|(change, place)| admits(place, change)) {
                return Fed::Line(line.text);
            }
        }
    }

    /// Makes the feed say soon how far it is.
    pub(super) fn again(&self) {
        let _ = self.feed.messages.send(Message::Again(self.namespace.clone(), self.id));
    }

    /// When the feed last showed that it lives.
    pub(super) fn life(&self) -> &Arc<Life> {
        self.feed.life()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.feed.messages.send(Message::Leave(self.namespace.clone(), self.id));
    }
}
