//! What a controller's guests have said, as lines of JSON: those that are kept, and with `follow` those that come.
//!
//! Whoever follows is asked for its rights anew after ten minutes: then the stream ends, and a client opens another one that begins
//! after the last line it had. A stream ends as well when its host no longer works.
//!
//! Invariants: `a_stream_has_each_line_once`, `a_stream_ends_in_time`, `nobody_takes_all_seats`.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use futures::{Stream, StreamExt, stream};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{sync::watch, time::Instant};

use crate::{
    journal::{Journal, Level, Line, Wanted},
    leader::fence::Claim,
};

/// A stream ends after this.
const STREAM: Duration = Duration::from_secs(600);
/// Streams at a time.
const SEATS: usize = 96;
/// The same of one namespace.
const SEATS_OF_ONE: usize = 16;

/// What is asked for, as query parameters. Named as the API names them for the logs of a pod, where it has them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Question {
    /// Whether lines are sent as they come.
    pub(super) follow: bool,
    /// Only lines of the last seconds.
    since_seconds: Option<u32>,
    /// Only lines after this.
    since_time: Option<Timestamp>,
    /// At most so many of those that are kept, the newest.
    tail_lines: Option<usize>,
    revision: Option<String>,
    object: Option<String>,
    level: Option<Level>,
    /// What the API server adds to every request that it bounds.
    #[serde(rename = "timeout")]
    _timeout: Option<String>,
}

impl Question {
    fn wanted(&self, now: Timestamp) -> Wanted {
        let span = |seconds: u32| now.checked_sub(SignedDuration::from_secs(seconds.into())).ok();
        Wanted {
            after: self.since_seconds.and_then(span).max(self.since_time),
            revision: self.revision.clone(),
            object: self.object.clone(),
            level: self.level,
        }
    }
}

/// Who follows at present; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Seats(Arc<Mutex<HashMap<String, usize>>>);

/// One of them.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    namespace: String,
}

impl Seats {
    /// A seat for somebody of `namespace`, unless there are too many.
    pub(super) fn take(&self, namespace: &str) -> Option<Seat> {
        let mut taken = self.0.lock();
        let (all, own) = (taken.values().sum::<usize>(), taken.get(namespace).copied());
        if all >= SEATS || own.is_some_and(|own| own >= SEATS_OF_ONE) {
            return None;
        }
        *taken.entry(namespace.to_owned()).or_default() += 1;
        Some(Seat { seats: self.clone(), namespace: namespace.to_owned() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock();
        if let Some(count) = taken.get_mut(&self.namespace) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.namespace);
            }
        }
    }
}

/// The lines that are kept, as one body.
pub(super) fn kept(journal: &Journal, question: &Question) -> Body {
    Body::from(text(&begin(journal, question).0))
}

/// These and, until the stream ends, those that come.
pub(super) fn followed(
    journal: Arc<Journal>,
    question: &Question,
    claim: watch::Receiver<Option<Claim>>,
    seat: Seat,
) -> Body {
    // Marked before the first look: a line that comes between is seen at the second.
    let news = journal.news();
    let (first, wanted) = begin(&journal, question);
    let until = Instant::now() + STREAM;
    let follow = Follow { journal, wanted, news, claim, until, _seat: seat };
    let first = stream::iter((!first.is_empty()).then(|| text(&first)));
    Body::from_stream(first.chain(follow.stream()).map(Ok::<_, Infallible>))
}

fn begin(journal: &Journal, question: &Question) -> (Vec<Arc<Line>>, Wanted) {
    let mut wanted = question.wanted(Timestamp::now());
    let mut lines = journal.lines(&wanted);
    if let Some(last) = lines.last() {
        wanted.after = Some(last.time);
    }
    if let Some(most) = question.tail_lines {
        lines.drain(..lines.len().saturating_sub(most));
    }
    (lines, wanted)
}

fn text(lines: &[Arc<Line>]) -> Bytes {
    let mut text = Vec::new();
    for line in lines {
        // Nothing in it is without a form in JSON.
        let _ = serde_json::to_writer(&mut text, line);
        text.push(b'\n');
    }
    text.into()
}

struct Follow {
    journal: Arc<Journal>,
    wanted: Wanted,
    news: watch::Receiver<Option<Timestamp>>,
    claim: watch::Receiver<Option<Claim>>,
    until: Instant,
    _seat: Seat,
}

impl Follow {
    fn stream(self) -> impl Stream<Item = Bytes> {
        stream::unfold(self, async |mut follow| {
            let text = follow.next().await?;
            Some((text, follow))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let works = self.claim.borrow_and_update().as_ref().is_some_and(Claim::holds);
            if !works {
                return None;
            }
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                Ok(()) = self.claim.changed() => continue,
                () = tokio::time::sleep_until(self.until) => return None,
            }
            let lines = self.journal.lines(&self.wanted);
            if let Some(last) = lines.last() {
                self.wanted.after = Some(last.time);
                return Some(text(&lines));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::journal::{Source, Speaker};

    fn say(journal: &Journal, text: &str) {
        let level = (Source::Guest, Level::Info);
        journal.say(&Speaker::default(), level, text, Map::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_each_line_once() {
        let journal = Arc::new(Journal::default());
        let claim = Claim::new(1, crate::clock::now(), Duration::MAX);
        let (claims, claim) = watch::channel(Some(claim));
        (0..5).for_each(|number| say(&journal, &number.to_string()));
        let seats = Seats::default();
        let question = Question { tail_lines: Some(2), follow: true, ..Question::default() };
        let body = followed(journal.clone(), &question, claim, seats.take("demo").unwrap());
        let mut body = body.into_data_stream();
        let mut seen = vec![];
        for number in 5..8 {
            let bytes = body.next().await.unwrap().unwrap();
            for line in std::str::from_utf8(&bytes).unwrap().lines() {
                let line: Line = serde_json::from_str(line).unwrap();
                seen.push(line.message.to_string());
            }
            say(&journal, &number.to_string());
        }
        assert_eq!(seen, ["3", "4", "5", "6"]);
        assert_eq!(seats.0.lock().len(), 1);
        claims.send_replace(None);
        while body.next().await.is_some() {}
        drop(body);
        assert!(seats.0.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_follows_a_quiet_log_waits() {
        let claim = Claim::new(1, crate::clock::now(), Duration::MAX);
        let (_keep, claim) = watch::channel(Some(claim));
        let journal = Arc::new(Journal::default());
        let question = Question { object: Some("another".to_owned()), ..Question::default() };
        let seat = Seats::default().take("demo").unwrap();
        let mut body = followed(journal.clone(), &question, claim, seat).into_data_stream();
        let said = async {
            for number in 0..10 {
                tokio::time::sleep(Duration::from_secs(10)).await;
                say(&journal, &number.to_string());
            }
        };
        let mut polls = 0;
        let counted = std::future::poll_fn(|context| {
            polls += 1;
            body.poll_next_unpin(context)
        });
        let (next, ()) = tokio::join!(counted, said);
        assert!(next.is_none(), "nothing of it was wanted");
        assert!(polls <= 30, "{polls} polls");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_in_time() {
        let claim = Claim::new(1, crate::clock::now(), Duration::MAX);
        let (_keep, claim) = watch::channel(Some(claim));
        let (journal, seats) = (Arc::default(), Seats::default());
        let begun = Instant::now();
        let body = followed(journal, &Question::default(), claim, seats.take("demo").unwrap());
        assert!(body.into_data_stream().next().await.is_none());
        assert_eq!(begun.elapsed().as_secs(), STREAM.as_secs());
    }

    #[test]
    fn nobody_takes_all_seats() {
        let seats = Seats::default();
        let mut taken: Vec<_> = (0..SEATS_OF_ONE).map(|_| seats.take("loud").unwrap()).collect();
        assert!(seats.take("loud").is_none());
        taken.push(seats.take("quiet").unwrap());
        for number in taken.len()..SEATS {
            taken.push(seats.take(&format!("team-{number}")).unwrap());
        }
        assert!(seats.take("late").is_none());
        taken.pop();
        assert!(seats.take("late").is_some());
    }
}
