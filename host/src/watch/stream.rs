//! The state machine of one list-watch: is fed answers, lines and times, says what to ask next; pure.
//!
//! It follows client-go's reflector (`tools/cache/reflector.go`): a watch that begins with the initial state
//! (KEP-3157), LIST and WATCH where the server cannot do that, a resume at the last version seen, a relist where that
//! is too old (R1–R4).
//!
//! Invariants, each held by the test of that name:
//!
//! - `the_initial_state_replaces_everything_at_once`
//! - `the_version_never_goes_back_while_the_server_keeps_its_history`
//! - `an_expired_watch_is_listed_again_from_the_last_version`
//! - `whatever_the_server_does_the_stream_asks_again`

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    envelope::{self, Entry, Line, ObjectKey, Version},
    intern::Interner,
};
use crate::manifest::Kind;

/// Objects in a page of a LIST, as client-go has it.
const PAGE: u32 = 500;
/// The first pause after an error; doubles up to [`LONGEST_PAUSE`], each spread over as much again (R4).
const FIRST_PAUSE: Duration = Duration::from_millis(800);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The pause after a refusal that somebody will lift: a right is missing, or the kind is not served (R43).
const AFTER_REFUSAL: Duration = Duration::from_secs(4);
/// After this long without an error the pauses start from the first one again.
const FORGET_AFTER: Duration = Duration::from_secs(120);
/// A watch that ends sooner than this without an event counts as an error.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// What to ask the API server next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time.
    Wait(Instant),
    /// A LIST, with these query parameters.
    List(Vec<(&'static str, String)>),
    /// A WATCH, with these query parameters.
    Watch(Vec<(&'static str, String)>),
}

/// What an answer means for the cache.
#[derive(Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// An object was added or has changed.
    Changed(Entry),
    /// An object is gone.
    Deleted(Entry),
    /// The objects are exactly these.
    Replaced(Vec<Entry>),
    /// The connection is to be dropped; [`Stream::next`] says how it goes on.
    Reopen,
}

/// Why a request failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// HTTP status; `None`: no answer.
    pub code: Option<u16>,
    /// One CamelCase word of the server.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The server asks to wait so long.
    pub retry_after: Option<Duration>,
}

impl Fault {
    /// Whether the version that was asked for is no longer known.
    fn is_expired(&self) -> bool {
        self.code == Some(410) || matches!(self.reason.as_str(), "Expired" | "Gone")
    }

    /// Whether the version that was asked for is not known yet: the server's data are older than ours.
    fn is_too_new(&self) -> bool {
        self.code == Some(504) && self.message.contains("Too large resource version")
    }

    /// Whether the same request may do later.
    fn is_passing(&self) -> bool {
        let refused = matches!(self.code, Some(401 | 403 | 404));
        !self.is_too_new() && (refused || self.code.is_none_or(|code| code == 429 || code >= 500))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// A watch that begins with all objects; they are collected until its bookmark.
    Initial,
    /// A LIST, from the version that the watch cache has at least.
    List { from: From, page: Option<String> },
    /// A watch from the last version.
    Watch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// Any version that the server has at hand, but none older than what was seen.
    Cache,
    /// The newest; it costs the server a read of its store.
    Newest,
}

/// One list-watch.
#[derive(Debug)]
pub struct Stream {
    kind: Kind,
    phase: Phase,
    /// The last version seen; `None` before the first state is complete.
    version: Option<String>,
    collected: BTreeMap<ObjectKey, Entry>,
    interner: Interner,
    opened: Option<Instant>,
    events: bool,
    failures: u32,
    failed_at: Option<Instant>,
    resume_at: Option<Instant>,
    trouble: Option<Fault>,
    random: u64,
}

impl Stream {
    /// A stream that has seen nothing; `seed` spreads pauses and timeouts.
    pub fn new(kind: Kind, seed: u64) -> Self {
        Self {
            kind,
            phase: Phase::Initial,
            version: None,
            collected: BTreeMap::new(),
            interner: Interner::default(),
            opened: None,
            events: false,
            failures: 0,
            failed_at: None,
            resume_at: None,
            trouble: None,
            random: seed | 1,
        }
    }

    /// What to ask next.
    pub fn next(&mut self, now: Instant) -> Step {
        if let Some(at) = self.resume_at.take_if(|at| *at > now) {
            self.resume_at = Some(at);
            return Step::Wait(at);
        }
        self.resume_at = None;
        let version = self.version.clone().unwrap_or_default();
        match self.phase.clone() {
            Phase::Initial => {
                self.collected.clear();
                let mut query = self.watch_query(version);
                query.push(("sendInitialEvents", "true".to_owned()));
                query.push(("resourceVersionMatch", "NotOlderThan".to_owned()));
                Step::Watch(query)
            }
            Phase::List { page: Some(page), .. } => {
                Step::List(vec![("limit", PAGE.to_string()), ("continue", page)])
            }
            Phase::List { from, page: None } => {
                self.collected.clear();
                match (from, version.is_empty()) {
                    (From::Newest, _) => Step::List(vec![("limit", PAGE.to_string())]),
                    (From::Cache, true) => Step::List(vec![
                        ("limit", PAGE.to_string()),
                        ("resourceVersion", "0".to_owned()),
                    ]),
                    (From::Cache, false) => Step::List(vec![
                        ("resourceVersion", version),
                        ("resourceVersionMatch", "NotOlderThan".to_owned()),
                    ]),
                }
            }
            Phase::Watch => Step::Watch(self.watch_query(version)),
        }
    }

    /// What opens a second connection to a watch that runs, from the last version seen, to prove it or to replace it
    /// (R45); `lasting`: for so many seconds only, which makes the server send a bookmark within two. `None`: no
    /// watch runs, or its initial state is still being received.
    pub fn reopening(&mut self, lasting: Option<u32>) -> Option<Vec<(&'static str, String)>> {
        if self.phase != Phase::Watch {
            return None;
        }
        let version = self.version.clone()?;
        let mut query = self.watch_query(version);
        if let (Some(seconds), Some((_, value))) =
            (lasting, query.iter_mut().find(|(name, _)| *name == "timeoutSeconds"))
        {
            *value = seconds.to_string();
        }
        Some(query)
    }

    /// Whether what is asked next is the newest state there is, and not only one that is no older than what was seen.
    pub fn asks_newest(&self) -> bool {
        match &self.phase {
            Phase::Initial => self.version.is_none(),
            Phase::List { from, .. } => *from == From::Newest,
            Phase::Watch => false,
        }
    }

    fn watch_query(&mut self, version: String) -> Vec<(&'static str, String)> {
        let seconds = 300 + self.random() % 300;
        vec![
            ("watch", "true".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("timeoutSeconds", seconds.to_string()),
            ("resourceVersion", version),
        ]
    }

    /// The watch was opened.
    pub fn opened(&mut self, now: Instant) {
        self.opened = Some(now);
        self.events = false;
        // A kind that nobody changes may send nothing for a minute; a refusal in the stream comes at once.
        if self.phase == Phase::Watch {
            self.trouble = None;
        }
    }

    /// A line of the watch has come.
    pub fn line(&mut self, text: &str, now: Instant) -> Effect {
        match envelope::line(text, &self.kind, &mut self.interner) {
            Ok(line) => self.take(line, now),
            Err(error) => {
                let message = format!(
                    "{error}: {}",
                    std::error::Error::source(&error).map_or(String::new(), ToString::to_string)
                );
                self.ended(
                    Fault {
                        message,
                        reason: "Unreadable".to_owned(),
                        code: Some(500),
                        ..Fault::default()
                    },
                    now,
                );
                Effect::Reopen
            }
        }
    }

    fn take(&mut self, line: Line, now: Instant) -> Effect {
        match line {
            Line::Error { code, reason, message, retry_after } => {
                let retry_after = retry_after.map(Duration::from_secs);
                self.ended(Fault { code: Some(code), reason, message, retry_after }, now);
                Effect::Reopen
            }
            Line::Bookmark { version, initial_end } if self.phase == Phase::Initial => {
                if !initial_end {
                    return Effect::None;
                }
                self.complete(version, Phase::Watch)
            }
            Line::Bookmark { version, .. } => {
                self.well();
                self.advance(&Version::parse(&version));
                Effect::None
            }
            Line::Changed(entry) if self.phase == Phase::Initial => {
                self.events = true;
                self.collected.insert(entry.key().clone(), entry);
                Effect::None
            }
            Line::Deleted(entry) if self.phase == Phase::Initial => {
                self.collected.remove(entry.key());
                Effect::None
            }
            Line::Changed(entry) => {
                self.well();
                self.advance(entry.version());
                Effect::Changed(entry)
            }
            Line::Deleted(entry) => {
                self.well();
                self.advance(entry.version());
                Effect::Deleted(entry)
            }
        }
    }

    /// A line that comes twice or late takes nothing back (F36).
    fn advance(&mut self, version: &Version) {
        let seen = self.version.as_deref().map(Version::parse);
        if seen.is_none_or(|seen| seen <= *version || seen.partial_cmp(version).is_none()) {
            self.version = Some(version.to_string());
        }
    }

    /// A page of a LIST has come.
    pub fn page(&mut self, text: &str, now: Instant) -> Effect {
        match envelope::list(text, &self.kind, &mut self.interner) {
            Ok(list) => {
                let entries = list.entries.into_iter().map(|entry| (entry.key().clone(), entry));
                self.collected.extend(entries);
                match (list.next, &mut self.phase) {
                    (Some(next), Phase::List { page, .. }) => {
                        *page = Some(next);
                        Effect::None
                    }
                    _ => self.complete(list.version, Phase::Watch),
                }
            }
            Err(error) => {
                self.failed(
                    Fault { message: error.to_string(), code: Some(500), ..Fault::default() },
                    now,
                );
                Effect::None
            }
        }
    }

    fn complete(&mut self, version: String, next: Phase) -> Effect {
        self.well();
        self.version = Some(version);
        self.phase = next;
        Effect::Replaced(std::mem::take(&mut self.collected).into_values().collect())
    }

    fn well(&mut self) {
        self.events = true;
        self.trouble = None;
    }

    /// The server has closed the watch, as it does after `timeoutSeconds`.
    pub fn closed(&mut self, now: Instant) {
        let lasted = self.opened.map(|at| now.saturating_duration_since(at)).unwrap_or_default();
        if self.phase == Phase::Initial || (lasted < SHORTEST_WATCH && !self.events) {
            let message = "the watch was closed before anything came".to_owned();
            self.ended(Fault { message, ..Fault::default() }, now);
        }
    }

    /// A request has failed, or the server has ended the watch with an error.
    pub fn failed(&mut self, fault: Fault, now: Instant) {
        self.ended(fault, now);
    }

    fn ended(&mut self, fault: Fault, now: Instant) {
        let at_once = match &mut self.phase {
            Phase::Watch if fault.is_expired() => {
                self.phase = Phase::Initial;
                true
            }
            // A server that does not serve initial events says so in many ways.
            Phase::Initial if !fault.is_passing() => {
                self.phase = Phase::List { from: From::Cache, page: None };
                true
            }
            Phase::Watch if !fault.is_passing() => {
                self.phase = Phase::List { from: From::Cache, page: None };
                false
            }
            Phase::List { from, page } if fault.is_expired() || fault.is_too_new() => {
                let again = *from == From::Newest && page.is_none();
                (*from, *page) = (From::Newest, None);
                !again
            }
            _ => false,
        };
        if !at_once {
            self.back_off(&fault, now);
        }
        self.trouble = Some(fault);
    }

    fn back_off(&mut self, fault: &Fault, now: Instant) {
        if self.failed_at.is_none_or(|at| now.saturating_duration_since(at) > FORGET_AFTER) {
            self.failures = 0;
        }
        let refused = matches!(fault.code, Some(401 | 403 | 404));
        let longest = if refused { AFTER_REFUSAL } else { LONGEST_PAUSE };
        let base = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(longest);
        let spread = base.mul_f64(self.share());
        let pause = fault.retry_after.unwrap_or(base + spread);
        self.failures += 1;
        self.failed_at = Some(now + pause);
        self.resume_at = Some(now + pause);
    }

    /// The version up to which everything was seen; `None` before the first state is complete.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The last failure, unless something has gone well since.
    pub fn trouble(&self) -> Option<&Fault> {
        self.trouble.as_ref()
    }

    /// Whether the next answers are an initial state, which costs memory and should be bounded.
    pub fn is_listing(&self) -> bool {
        self.phase != Phase::Watch
    }

    /// Lets a pause end now.
    pub fn hurry(&mut self) {
        self.resume_at = None;
    }

    /// A random share of 1.
    pub fn share(&mut self) -> f64 {
        f64::from(u32::try_from(self.random() % 1_000).unwrap_or(0)) / 1_000.0
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn stream() -> (Stream, Instant) {
        (Stream::new(Kind::new("v1", "ConfigMap"), 42), epoch())
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn epoch() -> Instant {
        Instant::now()
    }

    fn object(name: &str, version: u64) -> Value {
        json!({"kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": version.to_string()}})
    }

    fn event(kind: &str, object: &Value) -> String {
        json!({"type": kind, "object": object}).to_string()
    }

    fn bookmark(version: u64, end: bool) -> String {
        let annotations =
            if end { json!({"k8s.io/initial-events-end": "true"}) } else { json!({}) };
        event(
            "BOOKMARK",
            &json!({"metadata": {"resourceVersion": version.to_string(), "annotations": annotations}}),
        )
    }

    fn error(code: u16, message: &str) -> String {
        event(
            "ERROR",
            &json!({"code": code, "reason": if code == 410 { "Expired" } else { "X" }, "message": message}),
        )
    }

    fn asks(step: &Step, parameter: &str) -> Option<String> {
        let (Step::List(query) | Step::Watch(query)) = step else { return None };
        query.iter().find(|(name, _)| *name == parameter).map(|(_, value)| value.clone())
    }

    #[test]
    fn the_initial_state_replaces_everything_at_once() {
        let (mut stream, now) = stream();
        let step = stream.next(now);
        assert_eq!(asks(&step, "sendInitialEvents").as_deref(), Some("true"));
        assert_eq!(asks(&step, "resourceVersion").as_deref(), Some(""));
        let seconds: u64 = asks(&step, "timeoutSeconds").unwrap().parse().unwrap();
        assert!((300..600).contains(&seconds));
        stream.opened(now);
        for (name, version) in [("a", 3), ("b", 2)] {
            assert!(matches!(
                stream.line(&event("ADDED", &object(name, version)), now),
                Effect::None
            ));
        }
        let Effect::Replaced(entries) = stream.line(&bookmark(9, true), now) else {
            panic!("complete")
        };
        assert_eq!(entries.len(), 2);
        assert!(matches!(
            stream.line(&event("MODIFIED", &object("a", 10)), now),
            Effect::Changed(_)
        ));
        stream.closed(now + Duration::from_secs(400));
        let step = stream.next(now);
        assert_eq!(
            asks(&step, "resourceVersion").as_deref(),
            Some("10"),
            "it resumes where it was"
        );
        assert_eq!(asks(&step, "sendInitialEvents"), None);
    }

    fn synced() -> (Stream, Instant) {
        let (mut stream, now) = stream();
        stream.next(now);
        stream.opened(now);
        stream.line(&bookmark(9, true), now);
        (stream, now)
    }

    #[test]
    fn an_expired_watch_is_listed_again_from_the_last_version() {
        let (mut stream, now) = synced();
        assert!(matches!(
            stream.line(&error(410, "too old resource version: 9 (20)"), now),
            Effect::Reopen
        ));
        let step = stream.next(now);
        assert_eq!(asks(&step, "sendInitialEvents").as_deref(), Some("true"));
        assert_eq!(
            asks(&step, "resourceVersion").as_deref(),
            Some("9"),
            "never older than what was seen"
        );
        assert_eq!(asks(&step, "resourceVersionMatch").as_deref(), Some("NotOlderThan"));
    }

    #[test]
    fn a_server_without_initial_events_is_listed() {
        let (mut stream, now) = stream();
        stream.next(now);
        stream.failed(
            Fault {
                code: Some(422),
                message: "sendInitialEvents is forbidden".into(),
                ..Fault::default()
            },
            now,
        );
        let step = stream.next(now);
        assert!(matches!(step, Step::List(_)), "{step:?}");
        assert_eq!(asks(&step, "resourceVersion").as_deref(), Some("0"));
        let page = |name: &str, next: Option<&str>| {
            json!({"metadata": {"resourceVersion": "7", "continue": next}, "items": [object(name, 1)]}).to_string()
        };
        assert!(matches!(stream.page(&page("a", Some("token")), now), Effect::None));
        let step = stream.next(now);
        assert_eq!(
            (asks(&step, "continue").as_deref(), asks(&step, "resourceVersion")),
            (Some("token"), None)
        );
        let Effect::Replaced(entries) = stream.page(&page("b", None), now) else {
            panic!("complete")
        };
        assert_eq!(entries.len(), 2);
        assert_eq!(asks(&stream.next(now), "resourceVersion").as_deref(), Some("7"));
    }

    #[test]
    fn a_list_asks_for_the_newest_only_after_it_failed_itself() {
        let (mut stream, now) = synced();
        stream.line(&error(504, "Too large resource version: 9, current: 3"), now);
        let Step::Wait(at) = stream.next(now) else { panic!("a pause") };
        assert_eq!(asks(&stream.next(at), "resourceVersion").as_deref(), Some("9"));
        let too_new = Fault {
            code: Some(504),
            message: "Too large resource version: 9".into(),
            ..Fault::default()
        };
        stream.failed(too_new, at);
        let step = stream.next(at);
        assert!(
            matches!(step, Step::List(_)) && asks(&step, "resourceVersion").is_none(),
            "{step:?}"
        );
    }

    #[test]
    fn lines_that_come_twice_or_late_take_nothing_back() {
        let (mut stream, now) = synced();
        for line in [
            event("MODIFIED", &object("a", 15)),
            event("MODIFIED", &object("b", 12)),
            bookmark(11, false),
        ] {
            stream.line(&line, now);
            assert_eq!(stream.version(), Some("15"));
        }
        let query = stream.reopening(Some(3)).unwrap();
        let asks = |name: &str| {
            query.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
        };
        assert_eq!((asks("resourceVersion"), asks("timeoutSeconds")), (Some("15"), Some("3")));
        assert_eq!(asks("sendInitialEvents"), None, "a second connection never lists");
    }

    #[test]
    fn a_refusal_is_asked_about_again_within_seconds() {
        let (mut stream, mut now) = synced();
        for _ in 0..8 {
            stream.failed(Fault { code: Some(404), ..Fault::default() }, now);
            while let Step::Wait(at) = stream.next(now) {
                assert!(at - now <= 2 * AFTER_REFUSAL);
                now = at;
            }
        }
    }

    #[test]
    fn pauses_double_are_spread_and_are_forgotten() {
        let (mut stream, mut now) = synced();
        let down = || Fault { message: "connection refused".into(), ..Fault::default() };
        for expected in [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0] {
            stream.failed(down(), now);
            let Step::Wait(at) = stream.next(now) else { panic!("a pause") };
            let pause = (at - now).as_secs_f64();
            assert!(
                (expected..2.0 * expected).contains(&pause),
                "{pause} is not in [{expected}, 2 × {expected})"
            );
            now = at;
            assert_eq!(asks(&stream.next(now), "resourceVersion").as_deref(), Some("9"));
        }
        assert_eq!(
            stream.trouble().map(|fault| fault.message.as_str()),
            Some("connection refused")
        );
        stream.opened(now);
        stream.line(&bookmark(11, false), now);
        assert_eq!(stream.trouble(), None);
        now += FORGET_AFTER + Duration::from_secs(1);
        stream.failed(
            Fault { code: Some(429), retry_after: Some(Duration::from_secs(1)), ..down() },
            now,
        );
        assert_eq!(
            stream.next(now),
            Step::Wait(now + Duration::from_secs(1)),
            "the server's own wish"
        );
        now += Duration::from_secs(1);
        stream.opened(now);
        stream.closed(now + Duration::from_millis(10));
        let Step::Wait(_) = stream.next(now) else {
            panic!("a watch that ends at once is an error")
        };
    }

    /// A random server: whatever it answers, the stream's version never falls (as long as the server has its
    /// history), a complete state is never mixed with an old one, and the stream always asks again.
    #[test]
    #[expect(clippy::too_many_lines, reason = "one server, one walk")]
    fn whatever_the_server_does_the_stream_asks_again() {
        for seed in 1..=200_u64 {
            let (mut stream, mut now) = stream();
            let mut random = seed;
            let mut below = |bound: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % bound
            };
            let (mut server, mut model) = (1_u64, BTreeMap::<String, u64>::new());
            let mut highest = Version::Number(0);
            let mut replaced = false;
            for _ in 0..200 {
                server += 1;
                let name = format!("o{}", below(5));
                let _ = match below(4) {
                    0 => model.remove(&name),
                    _ => model.insert(name, server),
                };
                let effects = match stream.next(now) {
                    Step::Wait(at) => {
                        assert!(at - now <= SHORTEST_WATCH + 2 * LONGEST_PAUSE);
                        now = at;
                        continue;
                    }
                    Step::List(_) if below(3) == 0 => {
                        stream.failed(
                            Fault {
                                code: Some([410, 500, 403][usize::try_from(below(3)).unwrap()]),
                                ..Fault::default()
                            },
                            now,
                        );
                        vec![]
                    }
                    Step::List(_) => {
                        let items: Vec<_> =
                            model.iter().map(|(name, version)| object(name, *version)).collect();
                        let list = json!({"metadata": {"resourceVersion": server.to_string()}, "items": items});
                        vec![stream.page(&list.to_string(), now)]
                    }
                    Step::Watch(_) if below(5) == 0 => {
                        stream.failed(
                            Fault {
                                code: [None, Some(422), Some(429)]
                                    [usize::try_from(below(3)).unwrap()],
                                ..Fault::default()
                            },
                            now,
                        );
                        vec![]
                    }
                    Step::Watch(query) => {
                        stream.opened(now);
                        let mut effects = vec![];
                        if query.iter().any(|(name, _)| *name == "sendInitialEvents") {
                            for (name, version) in &model {
                                effects.push(
                                    stream.line(&event("ADDED", &object(name, *version)), now),
                                );
                            }
                            if below(3) > 0 {
                                effects.push(stream.line(&bookmark(server, true), now));
                            }
                        }
                        match below(4) {
                            0 => effects.push(stream.line(&error(410, "too old"), now)),
                            1 => effects.push(stream.line("{not json", now)),
                            _ => stream.closed(now + SHORTEST_WATCH),
                        }
                        effects
                    }
                };
                for effect in effects {
                    if let Effect::Replaced(entries) = effect {
                        replaced = true;
                        let seen: BTreeMap<_, u64> = entries
                            .iter()
                            .map(|e| {
                                (e.key().name.to_string(), e.resource_version().parse().unwrap())
                            })
                            .collect();
                        assert_eq!(seen, model, "seed {seed}: a complete state is the server's");
                    }
                }
                let version = Version::parse(stream.version.as_deref().unwrap_or("0"));
                if let (Version::Number(_), Version::Number(_)) = (&version, &highest) {
                    assert!(version >= highest, "seed {seed}");
                    highest = version;
                }
            }
            assert!(replaced, "seed {seed}: no state was ever complete");
        }
    }

    #[test]
    fn the_version_never_goes_back_while_the_server_keeps_its_history() {
        let (mut stream, now) = synced();
        for line in [
            bookmark(12, false),
            event("ADDED", &object("a", 15)),
            event("DELETED", &object("a", 17)),
        ] {
            stream.line(&line, now);
        }
        assert_eq!(stream.version.as_deref(), Some("17"));
        stream.failed(Fault { code: Some(403), ..Fault::default() }, now);
        let Step::Wait(at) = stream.next(now) else { panic!("a pause") };
        assert_eq!(asks(&stream.next(at), "resourceVersion").as_deref(), Some("17"));
    }
}
