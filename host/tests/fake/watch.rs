//! The answer to a watch: lines as things happen, bookmarks, and its end.

use std::{io, time::Duration};

use bytes::Bytes;
use futures::{Stream, stream};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{Fake, kinds::Served, rules::status};

/// What a watch is told.
#[derive(Clone, Debug)]
pub(crate) enum Line {
    /// An event.
    Text(String),
    /// The server ends it in good order.
    End,
    /// The connection breaks.
    Break,
    /// Its version is too old.
    Expired,
}

/// Between two bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Before the end of a watch there is one more.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

pub(crate) struct Running {
    pub(crate) api: Fake,
    pub(crate) served: Served,
    pub(crate) lines: mpsc::UnboundedReceiver<Line>,
    pub(crate) metadata_only: bool,
    /// Whether bookmarks were asked for.
    pub(crate) bookmarks: bool,
    pub(crate) ends: Instant,
}

/// The bytes of the answer.
pub(crate) fn body(running: Running) -> impl Stream<Item = Result<Bytes, io::Error>> {
    let first = next_bookmark(running.ends);
    stream::unfold(Some((running, first)), |state| async move {
        let (mut running, bookmark) = state?;
        tokio::select! {
            biased;
            line = running.lines.recv() => match line {
                Some(Line::Text(text)) => Some((Ok(line_of(text)), Some((running, bookmark)))),
                Some(Line::Expired) => {
                    let gone = status(410, "Expired", "too old resource version");
                    let text = json!({ "type": "ERROR", "object": gone }).to_string();
                    Some((Ok(line_of(text)), None))
                }
                Some(Line::Break) => {
                    Some((Err(io::Error::other("the test breaks the connection")), None))
                }
                Some(Line::End) | None => None,
            },
            () = tokio::time::sleep_until(bookmark), if running.bookmarks => {
                let text = running.bookmark();
                let next = next_bookmark(running.ends);
                Some((Ok(text), Some((running, next))))
            }
            () = tokio::time::sleep_until(running.ends) => None,
        }
    })
}

fn next_bookmark(ends: Instant) -> Instant {
    let (now, last) = (Instant::now(), ends - LAST_BOOKMARK);
    let next = now + BOOKMARKS;
    if now < last { next.min(last) } else { next }
}

impl Running {
    /// As new as what the watch was told.
    fn bookmark(&self) -> Bytes {
        let version = self.api.told(&self.served.plural);
        line_of(bookmark(&self.served, self.metadata_only, version, false))
    }
}

/// A bookmark; `end`: of the initial state.
pub(crate) fn bookmark(served: &Served, metadata_only: bool, version: u64, end: bool) -> String {
    let annotations =
        if end { json!({ "k8s.io/initial-events-end": "true" }) } else { Value::Null };
    let (kind, api_version) = if metadata_only {
        ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned())
    } else {
        (served.kind.kind.clone(), served.kind.api_version())
    };
    let mut object = json!({
        "kind": kind, "apiVersion": api_version,
        "metadata": { "resourceVersion": version.to_string(), "creationTimestamp": null },
    });
    if end {
        object["metadata"]["annotations"] = annotations;
    }
    json!({ "type": "BOOKMARK", "object": object }).to_string()
}

fn line_of(text: String) -> Bytes {
    Bytes::from(text + "\n")
}
