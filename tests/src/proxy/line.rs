//! The lines of one watch on their way: split, delayed, dropped, doubled, swapped, sent again.
//!
//! Is handed bytes and `now`, and says what is due.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

/// Lines kept of one watch, for those that come again.
const KEPT: usize = 20_000;
/// A line that waits for another to change places with goes on alone after this.
const HELD_FOR: Duration = Duration::from_secs(10);

/// What happens to one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Delay(Duration),
    Drop,
    Duplicate,
    Swap {
        same_object: bool,
    },
    /// An earlier line again, chosen by this number.
    Again(u64),
}

/// What the proxy reads of a line.
#[derive(Debug, Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    what: &'a str,
    #[serde(borrow)]
    object: Object<'a>,
}

#[derive(Debug, Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'a> {
    #[serde(default)]
    namespace: Option<&'a str>,
    #[serde(default)]
    name: Option<&'a str>,
    #[serde(default)]
    resource_version: Option<&'a str>,
}

/// Which object a line is about; bookmarks and what is no event are about none.
fn object(line: &str) -> Option<(Option<&str>, &str)> {
    let event: Event = serde_json::from_str(line).ok()?;
    let is_bookmark = event.what == "BOOKMARK";
    let meta = event.object.metadata;
    meta.name.filter(|_| !is_bookmark).map(|name| (meta.namespace, name))
}

/// The resourceVersion that a line speaks of, if it is a number.
pub(super) fn version(line: &str) -> Option<u128> {
    let event: Event = serde_json::from_str(line).ok()?;
    event.object.metadata.resource_version?.parse().ok()
}

#[derive(Debug)]
struct Held {
    line: String,
    same_object: bool,
    until: Instant,
    delay: Duration,
}

/// One watch's lines.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    partial: Vec<u8>,
    held: Option<Held>,
    waiting: VecDeque<(Instant, String)>,
    past: VecDeque<String>,
}

impl Pipe {
    /// The whole lines that `bytes` complete.
    pub(super) fn split(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = vec![];
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.partial.extend(&rest[..end]);
            lines.push(String::from_utf8_lossy(&self.partial).into_owned());
            self.partial.clear();
            rest = &rest[end + 1..];
        }
        self.partial.extend(rest);
        lines
    }

    /// Takes one line in.
    pub(super) fn take(&mut self, line: String, effects: &[Effect], now: Instant) {
        let (mut delay, mut copies, mut again, mut swap) = (Duration::ZERO, 1, None, None);
        for effect in effects {
            match effect {
                Effect::Delay(more) => delay += *more,
                Effect::Drop => copies = 0,
                Effect::Duplicate => copies *= 2,
                Effect::Swap { same_object } => swap = Some(*same_object),
                Effect::Again(choice) => again = Some(*choice),
            }
        }
        let earlier = again.and_then(|choice| {
            let last = u64::try_from(self.past.len()).ok().filter(|length| *length > 0)?;
            self.past.get(usize::try_from(choice % last).ok()?).cloned()
        });
        if self.past.len() == KEPT {
            self.past.pop_front();
        }
        self.past.push_back(line.clone());
        if let Some(held) = self.held.take() {
            let changes = match (object(&held.line), object(&line)) {
                (Some(one), Some(other)) => held.same_object || one != other,
                _ => false,
            };
            if changes {
                self.push(&line, copies, delay, now);
                self.push(&held.line, 1, held.delay, now);
            } else {
                self.push(&held.line, 1, held.delay, now);
                self.push(&line, copies, delay, now);
            }
        } else if let Some(same_object) = swap.filter(|_| copies == 1 && object(&line).is_some()) {
            self.held = Some(Held { line, same_object, until: now + HELD_FOR, delay });
        } else {
            self.push(&line, copies, delay, now);
        }
        if let Some(earlier) = earlier {
            self.push(&earlier, 1, delay, now);
        }
    }

    fn push(&mut self, line: &str, copies: usize, delay: Duration, now: Instant) {
        let last = self.waiting.back().map_or(now, |(due, _)| *due);
        for _ in 0..copies {
            self.waiting.push_back((last.max(now + delay), line.to_owned()));
        }
    }

    /// Lines that came from elsewhere, at once and behind all others.
    pub(super) fn inject(&mut self, lines: Vec<String>, now: Instant) {
        for line in lines {
            self.push(&line, 1, Duration::ZERO, now);
        }
    }

    /// The text that is to be sent by `now`; empty if none.
    pub(super) fn due(&mut self, now: Instant) -> String {
        if let Some(held) = self.held.take_if(|held| held.until <= now) {
            self.push(&held.line, 1, held.delay, now);
        }
        let mut text = String::new();
        while let Some((_, line)) = self.waiting.pop_front_if(|(due, _)| *due <= now) {
            text += &line;
            text.push('\n');
        }
        text
    }

    /// When something will be due.
    pub(super) fn next(&self) -> Option<Instant> {
        let held = self.held.as_ref().map(|held| held.until);
        let waiting = self.waiting.front().map(|(due, _)| *due);
        held.into_iter().chain(waiting).min()
    }

    /// What the server has sent so far.
    pub(super) fn past(&self) -> Vec<String> {
        self.past.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: &str, name: &str, version: u32) -> String {
        format!(
            r#"{{"type":"{what}","object":{{"metadata":{{"namespace":"a","name":"{name}","resourceVersion":"{version}"}}}}}}"#
        )
    }

    fn versions(text: &str) -> Vec<u128> {
        text.lines().filter_map(version).collect()
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut pipe = Pipe::default();
        assert_eq!(pipe.split(b"one\ntw"), ["one"]);
        assert_eq!(pipe.split(b"o"), [""; 0]);
        assert_eq!(pipe.split(b"\nthree\n\n"), ["two", "three", ""]);
    }

    #[test]
    fn a_delay_keeps_the_order() {
        let (mut pipe, start) = (Pipe::default(), Instant::now());
        let seconds = Duration::from_secs;
        pipe.take(event("ADDED", "x", 1), &[Effect::Delay(seconds(5))], start);
        pipe.take(event("ADDED", "y", 2), &[], start + seconds(1));
        assert_eq!(pipe.due(start + seconds(4)), "");
        assert_eq!(pipe.next(), Some(start + seconds(5)));
        assert_eq!(versions(&pipe.due(start + seconds(5))), [1, 2]);
        assert_eq!(pipe.next(), None);
    }

    #[test]
    fn lines_are_dropped_doubled_and_sent_again() {
        let (mut pipe, now) = (Pipe::default(), Instant::now());
        pipe.take(event("ADDED", "x", 1), &[Effect::Drop], now);
        pipe.take(event("ADDED", "y", 2), &[Effect::Duplicate], now);
        pipe.take(event("ADDED", "z", 3), &[Effect::Again(4)], now);
        // 4 modulo the two lines there were: even a dropped one may come.
        assert_eq!(versions(&pipe.due(now)), [2, 2, 3, 1]);
        assert_eq!(pipe.past().len(), 3);
    }

    #[test]
    fn neighbours_change_places_if_they_may() {
        let (mut pipe, now) = (Pipe::default(), Instant::now());
        let other = [Effect::Swap { same_object: false }];
        pipe.take(event("ADDED", "x", 1), &other, now);
        assert_eq!(pipe.due(now), "");
        pipe.take(event("ADDED", "y", 2), &other, now);
        assert_eq!(versions(&pipe.due(now)), [2, 1]);
        pipe.take(event("MODIFIED", "x", 3), &other, now);
        pipe.take(event("DELETED", "x", 4), &other, now);
        assert_eq!(versions(&pipe.due(now)), [3, 4]);
        let any = [Effect::Swap { same_object: true }];
        pipe.take(event("MODIFIED", "x", 5), &any, now);
        pipe.take(event("DELETED", "x", 6), &any, now);
        assert_eq!(versions(&pipe.due(now)), [6, 5]);
        pipe.take(event("MODIFIED", "x", 7), &any, now);
        pipe.take(event("BOOKMARK", "", 8), &any, now);
        assert_eq!(versions(&pipe.due(now)), [7, 8]);
        pipe.take(event("MODIFIED", "x", 9), &any, now);
        assert_eq!(versions(&pipe.due(now)), [0; 0]);
        assert_eq!(versions(&pipe.due(now + HELD_FOR)), [9], "nobody came");
    }
}
