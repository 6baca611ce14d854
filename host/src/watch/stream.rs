//! The state machine of one list-watch: is fed answers, lines and times, says what to ask next; pure.
//!
//! It follows client-go's reflector (`tools/cache/reflector.go`): a watch that begins with the initial state
//! (KEP-3157), LIST and WATCH where the server cannot do that, a resume at the last version seen, a relist where that
//! is too old. What cannot be read is asked for in another way: the initial state in one answer, in pages of
//! the newest state, in smaller pages, and as a watch again.
//!
//! Invariants, each held by the test of that name:
//!
//! - `what_cannot_be_read_is_asked_for_in_another_way`
//! - `a_server_that_expires_each_version_it_gives_is_asked_with_pauses`
//! - `the_initial_state_replaces_everything_at_once`
//! - `the_version_never_goes_back_while_the_server_keeps_its_history`
//! - `an_expired_watch_is_listed_again_from_the_last_version`
//! - `whatever_the_server_does_the_stream_asks_again`

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    envelope::{self, Entry, Line, Version},
    fault::{Fault, Flaw},
    intern::Interner,
};
use crate::model::{kind::Kind, object::ObjectKey};

/// Objects in a page of a LIST, as client-go has it.
const PAGE: u32 = 500;
/// A page that is not there in time is asked for in smaller ones down to this: the network may be what is slow.
const SMALL_PAGE: u32 = 50;
/// The first pause after an error; doubles up to [`LONGEST_PAUSE`], each spread over as much again.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The pause after a refusal that somebody will lift: a right is missing, or the kind is not served.
const AFTER_REFUSAL: Duration = Duration::from_secs(4);
/// After this long without an error the pauses start from the first one again.
const FORGET_AFTER: Duration = Duration::from_secs(120);
/// A watch that ends sooner than this without progress counts as an error.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// The longest pause that a server may ask for: an operator who mends it should not wait for hours.
const LONGEST_WISH: Duration = Duration::from_secs(120);
/// An initial state that has no end after this is given up: a server that does not know initial events may send
/// changes for ever. A hundred thousand objects come in a tenth of it.
const INITIAL_LIMIT: Duration = Duration::from_secs(60);
/// Initial states in a row that broke off before the state is listed instead: one may have been the network's fault.
const INITIAL_TRIES: u32 = 2;
/// Watches in a row that ended before anything came, after which the state is listed each time: what stands between may
/// let no watch through.
const CUT_TRIES: u32 = 3;
/// A state is asked for anew without a pause, but only once in this time: a server may refuse each version it gives.
const AT_ONCE_EVERY: Duration = Duration::from_secs(10);

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
    /// The last version seen; `None` before the first state is complete, or if the server gives none.
    version: Option<String>,
    collected: BTreeMap<ObjectKey, Entry>,
    interner: Interner,
    opened: Option<Instant>,
    /// The version at which the watch was opened.
    opened_at: Option<String>,
    /// Whether the server gives initial states by a watch, as far as it has not refused to.
    initial: bool,
    /// Initial states in a row that broke off.
    broken_off: u32,
    /// Watches in a row that ended before anything came.
    cut_short: u32,
    /// Objects in a page, once the whole list was too large for one answer.
    page_size: u32,
    whole: bool,
    at_once: Option<Instant>,
    failures: u32,
    failed_at: Option<Instant>,
    resume_at: Option<Instant>,
    trouble: Option<Fault>,
    random: fastrand::Rng,
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
            opened_at: None,
            initial: true,
            broken_off: 0,
            cut_short: 0,
            page_size: PAGE,
            whole: true,
            at_once: None,
            failures: 0,
            failed_at: None,
            resume_at: None,
            trouble: None,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// A stream that has seen everything up to `version`, and hears what comes after it.
    pub(super) fn resuming(kind: Kind, seed: u64, version: &Version) -> Self {
        let version = Some(version.to_string());
        Self { phase: Phase::Watch, version, ..Self::new(kind, seed) }
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
                self.opened = None;
                let mut query = self.watch_query(version);
                query.push(("sendInitialEvents", "true".to_owned()));
                query.push(("resourceVersionMatch", "NotOlderThan".to_owned()));
                Step::Watch(query)
            }
            Phase::List { page: Some(page), .. } => {
                Step::List(vec![("limit", self.page_size.to_string()), ("continue", page)])
            }
            Phase::List { from, page: None } => {
                self.collected.clear();
                let limit = ("limit", self.page_size.to_string());
                match (from, version.is_empty()) {
                    (From::Newest, _) => Step::List(vec![limit]),
                    // Many servers ignore the limit here and answer from memory.
                    (From::Cache, true) => {
                        Step::List(vec![limit, ("resourceVersion", "0".to_owned())])
                    }
                    (From::Cache, false) => Step::List(vec![
                        ("resourceVersion", version),
                        ("resourceVersionMatch", "NotOlderThan".to_owned()),
                    ]),
                }
            }
            Phase::Watch => {
                self.opened = None;
                Step::Watch(self.watch_query(version))
            }
        }
    }

    /// What opens a second connection to a watch that runs, from the last version seen, to prove it or to replace it
    ///; `lasting`: for so many seconds only, which makes the server send a bookmark within two. `None`: no
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
        let seconds = 300 + self.random.u64(..300);
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
        self.opened_at.clone_from(&self.version);
        // A kind that nobody changes may send nothing for a minute; a refusal in the stream comes at once.
        if self.phase == Phase::Watch {
            self.trouble = None;
        }
    }

    /// A line of the watch has come.
    pub fn line(&mut self, text: &str, now: Instant) -> Effect {
        if text.trim_ascii().is_empty() {
            return Effect::None;
        }
        match envelope::line(text, &self.kind, &mut self.interner) {
            Ok(line) => self.take(line, now),
            Err(error) => {
                self.failed(unreadable(&error), now);
                Effect::Reopen
            }
        }
    }

    fn take(&mut self, line: Line, now: Instant) -> Effect {
        match line {
            Line::Error { code, reason, message, retry_after } => {
                let retry_after = retry_after.map(Duration::from_secs);
                let code = Some(code);
                self.failed(Fault { code, reason, message, retry_after, flaw: None }, now);
                Effect::Reopen
            }
            line if self.phase == Phase::Initial => self.gather(line, now),
            line => self.hear(line),
        }
    }

    /// A line of a watch whose state is complete.
    fn hear(&mut self, line: Line) -> Effect {
        self.cut_short = 0;
        match line {
            // What it means is unknown, so nothing is done; a state that it changed comes with the next list.
            Line::Unknown(_) | Line::Error { .. } => Effect::None,
            Line::Bookmark { version, .. } => {
                self.gets_on(&Version::parse(&version));
                Effect::None
            }
            Line::Changed(entry) => {
                self.gets_on(entry.version());
                Effect::Changed(entry)
            }
            Line::Deleted(entry) => {
                self.gets_on(entry.version());
                Effect::Deleted(entry)
            }
        }
    }

    /// A line before the end of the initial state.
    fn gather(&mut self, line: Line, now: Instant) -> Effect {
        match line {
            Line::Bookmark { version, initial_end: true } if is_version(&version) => {
                return self.complete(version, Phase::Watch);
            }
            // Without a version nobody knows from where to go on.
            Line::Bookmark { initial_end: true, .. } => return self.give_up_initial(now),
            Line::Changed(entry) => drop(self.collected.insert(entry.key().clone(), entry)),
            Line::Deleted(entry) => drop(self.collected.remove(entry.key())),
            _ => (),
        }
        match self.opened {
            Some(at) if now.saturating_duration_since(at) > INITIAL_LIMIT => {
                self.give_up_initial(now)
            }
            _ => Effect::None,
        }
    }

    fn give_up_initial(&mut self, now: Instant) -> Effect {
        self.broken_off = INITIAL_TRIES;
        self.failed(endless(), now);
        Effect::Reopen
    }

    /// A line that comes twice or late takes nothing back.
    fn advance(&mut self, version: &Version) {
        let text = version.to_string();
        let seen = self.version.as_deref().map(Version::parse);
        let is_later =
            seen.is_none_or(|seen| seen <= *version || seen.partial_cmp(version).is_none());
        if is_later && is_version(&text) {
            self.version = Some(text);
        }
    }

    /// A page of a LIST has come.
    pub fn page(&mut self, text: &str, now: Instant) -> Effect {
        let list = match envelope::list(text, &self.kind, &mut self.interner) {
            Ok(list) => list,
            Err(error) => {
                self.failed(unreadable(&error), now);
                return Effect::None;
            }
        };
        let entries = list.entries.into_iter().map(|entry| (entry.key().clone(), entry));
        self.collected.extend(entries);
        match (list.next, &mut self.phase) {
            (Some(next), Phase::List { page, .. }) if page.as_ref() == Some(&next) => {
                let message = "a page of the list names itself as the next one".to_owned();
                self.failed(Fault::flawed(Flaw::Unreadable, message), now);
                Effect::None
            }
            (Some(next), Phase::List { page, .. }) => {
                *page = Some(next);
                Effect::None
            }
            _ => self.complete(list.version, Phase::Watch),
        }
    }

    fn complete(&mut self, version: String, next: Phase) -> Effect {
        self.well();
        self.broken_off = 0;
        self.page_size = (self.page_size * 2).min(PAGE);
        self.version = Some(version).filter(|version| is_version(version));
        self.phase = next;
        Effect::Replaced(std::mem::take(&mut self.collected).into_values().collect())
    }

    /// A line of a watch whose state nobody keeps has come: everything up to `version` was seen.
    pub(super) fn passed(&mut self, version: &Version) {
        self.cut_short = 0;
        self.gets_on(version);
    }

    /// Somebody else's connection, which brings the lines, is in trouble, or well again.
    pub(super) fn set_trouble(&mut self, trouble: Option<Fault>) {
        self.trouble = trouble;
    }

    /// The watch shows what happens: what failed before it is over, and makes nobody wait any longer. As in client-go, where a
    /// watch that has shown something is opened again at once (`tools/cache/reflector.go`).
    fn gets_on(&mut self, version: &Version) {
        self.well();
        self.failures = 0;
        self.advance(version);
    }

    fn well(&mut self) {
        self.trouble = None;
    }

    /// The server has closed the watch, as it does after `timeoutSeconds`.
    pub fn closed(&mut self, now: Instant) {
        if self.phase == Phase::Initial {
            self.failed(endless(), now);
        } else if self.was_short(now) {
            let message = "the watch was closed before anything came".to_owned();
            self.failed(Fault { message, ..Fault::default() }, now);
        } else if self.version.is_none() {
            self.phase = self.listed(From::Newest);
        }
    }

    /// Whether the watch that was opened has ended at once and without progress.
    fn was_short(&self, now: Instant) -> bool {
        let moved = self.version.is_some() && self.version != self.opened_at;
        let is_short = |at: Instant| now.saturating_duration_since(at) < SHORTEST_WATCH;
        self.opened.is_some_and(is_short) && !moved
    }

    /// A request has failed, or the server has ended the watch with an error.
    pub fn failed(&mut self, mut fault: Fault, now: Instant) {
        let before = self.phase.clone();
        if before == Phase::Watch && fault.number().is_none() && self.was_short(now) {
            self.cut_short += 1;
            fault.flaw = (self.cut_short >= CUT_TRIES).then_some(Flaw::CutShort);
        }
        let at_once = match before.clone() {
            Phase::Watch => self.watch_failed(&fault),
            Phase::Initial => self.initial_failed(&fault),
            Phase::List { from, page } => self.list_failed(&fault, from, page.is_some()),
        };
        let just = |at: Instant| now.saturating_duration_since(at) < AT_ONCE_EVERY;
        // Each way is tried at once, but not in a circle.
        let circles = before == Phase::Watch && self.at_once.is_some_and(just);
        if !at_once || circles {
            self.back_off(&fault, now);
        } else if before == Phase::Watch {
            self.at_once = Some(now);
        }
        self.trouble = Some(fault);
    }

    /// How it goes on after a watch; whether at once.
    fn watch_failed(&mut self, fault: &Fault) -> bool {
        if fault.is_expired() {
            self.phase = if self.initial { Phase::Initial } else { self.listed(From::Cache) };
            return true;
        }
        if self.version.is_none() {
            self.phase = self.listed(From::Newest);
        } else if !fault.is_passing() {
            self.phase = self.listed(From::Cache);
        }
        false
    }

    /// How it goes on after an initial state broke off; whether at once.
    fn initial_failed(&mut self, fault: &Fault) -> bool {
        if fault.is_passing() {
            return false;
        }
        self.broken_off += 1;
        if fault.flaw == Some(Flaw::Endless) && self.broken_off < INITIAL_TRIES {
            return false;
        }
        self.broken_off = 0;
        // A server that does not serve initial events says so in many ways.
        self.initial &= !matches!(fault.code, Some(400 | 422));
        self.phase = self.listed(From::Cache);
        true
    }

    /// How it goes on after a list, or `within` it a page; whether at once.
    fn list_failed(&mut self, fault: &Fault, from: From, within: bool) -> bool {
        let is_slow = fault.flaw == Some(Flaw::Slow);
        let too_large = fault.flaw == Some(Flaw::TooLarge);
        if fault.is_passing() {
            return false;
        }
        if from == From::Cache {
            self.whole &= !too_large;
            self.phase = Phase::List { from: From::Newest, page: None };
            return !is_slow;
        }
        if too_large && self.page_size > 1 || is_slow && self.page_size > SMALL_PAGE {
            // The same page, smaller.
            self.page_size = (self.page_size / 4).max(1);
            return too_large;
        }
        self.broken_off += 1;
        if (fault.is_expired() || fault.is_too_new()) && self.broken_off < INITIAL_TRIES {
            self.phase = Phase::List { from: From::Newest, page: None };
            return within;
        }
        self.broken_off = 0;
        self.phase = if self.initial { Phase::Initial } else { self.listed(From::Cache) };
        false
    }

    /// A list from its begin; of pages, once it was too much for one answer.
    fn listed(&self, from: From) -> Phase {
        Phase::List { from: if self.whole { from } else { From::Newest }, page: None }
    }

    fn back_off(&mut self, fault: &Fault, now: Instant) {
        if self.failed_at.is_none_or(|at| now.saturating_duration_since(at) > FORGET_AFTER) {
            self.failures = 0;
        }
        let longest = if fault.is_refusal() { AFTER_REFUSAL } else { LONGEST_PAUSE };
        let base = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(longest);
        let pause = match fault.retry_after {
            // Whoever says when to come back says nothing of how often it was in vain.
            Some(wish) => wish.clamp(FIRST_PAUSE, LONGEST_WISH),
            None => {
                self.failures += 1;
                base + base.mul_f64(self.share())
            }
        };
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
        self.random.f64()
    }
}

/// Whether it says from where a watch can go on: "0" is any version that the server likes.
fn is_version(text: &str) -> bool {
    !text.is_empty() && text != "0"
}

fn unreadable(error: &envelope::Error) -> Fault {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    Fault::flawed(Flaw::Unreadable, format!("{error}{}", cause.unwrap_or_default()))
}

fn endless() -> Fault {
    let message = "the server does not say where the initial state ends".to_owned();
    Fault::flawed(Flaw::Endless, message)
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

    /// A random server with random faults.
    struct Server {
        random: fastrand::Rng,
        version: u64,
        model: BTreeMap<String, u64>,
        /// Its answers carry no version.
        unversioned: bool,
    }

    impl Server {
        fn below(&mut self, bound: u64) -> u64 {
            self.random.u64(..bound)
        }

        fn one<T>(&mut self, of: Vec<T>) -> T {
            let at = usize::try_from(self.below(of.len() as u64)).unwrap();
            of.into_iter().nth(at).unwrap()
        }

        fn change(&mut self) {
            self.version += 1;
            let name = format!("o{}", self.below(5));
            let _ = match self.below(4) {
                0 => self.model.remove(&name),
                _ => self.model.insert(name, self.version),
            };
        }

        fn fault(&mut self) -> Fault {
            let flaws = vec![Flaw::Unreadable, Flaw::TooLarge, Flaw::Slow, Flaw::Endless];
            let codes = vec![
                None,
                Some(400),
                Some(401),
                Some(403),
                Some(404),
                Some(405),
                Some(410),
                Some(422),
                Some(429),
                Some(500),
            ];
            let wish = self.one(vec![None, None, Some(0), Some(5), Some(1_000_000)]);
            match self.below(3) {
                0 => Fault::flawed(self.one(flaws), "flawed".into()),
                1 => Fault {
                    code: Some(504),
                    message: "Too large resource version".into(),
                    ..Fault::default()
                },
                _ => Fault {
                    code: self.one(codes),
                    retry_after: wish.map(Duration::from_secs),
                    ..Fault::default()
                },
            }
        }

        fn list(&mut self) -> String {
            let version = if self.unversioned { String::new() } else { self.version.to_string() };
            let items: Vec<_> = self.model.iter().map(|(name, at)| object(name, *at)).collect();
            let list = match (items.is_empty(), self.below(3)) {
                (true, 0) => json!({"metadata": {"resourceVersion": version}, "items": null}),
                (true, 1) => json!({"metadata": {"resourceVersion": version}}),
                _ => json!({"metadata": {"resourceVersion": version}, "items": items}),
            };
            list.to_string()
        }

        /// One that has nothing to do with the state.
        fn odd_line(&mut self) -> String {
            let version = self.version;
            self.one(vec![
                String::new(),
                "\r".into(),
                "{not json".into(),
                error(410, "too old"),
                error(0, "odd"),
                event("PAUSED", &object("o1", version)),
                event("ERROR", &Value::Null),
                event("BOOKMARK", &Value::Null),
                bookmark(version, false),
            ])
        }

        fn answer(&mut self, stream: &mut Stream, step: &Step, now: &mut Instant) -> Vec<Effect> {
            match step {
                Step::Wait(at) => {
                    assert!(*at - *now <= LONGEST_WISH);
                    *now = *at;
                    vec![]
                }
                _ if self.below(3) == 0 => {
                    let fault = self.fault();
                    stream.failed(fault, *now);
                    vec![]
                }
                Step::List(_) => vec![stream.page(&self.list(), *now)],
                Step::Watch(query) => {
                    stream.opened(*now);
                    let mut lines = vec![];
                    if query.iter().any(|(name, _)| *name == "sendInitialEvents") {
                        lines.extend(
                            self.model.iter().map(|(name, at)| event("ADDED", &object(name, *at))),
                        );
                        if self.below(3) > 0 {
                            lines.push(bookmark(self.version, true));
                        }
                    }
                    if self.below(2) == 0 {
                        lines.push(self.odd_line());
                    }
                    let mut effects = vec![];
                    for line in lines {
                        effects.push(stream.line(&line, *now));
                        if matches!(effects.last(), Some(Effect::Reopen)) {
                            return effects;
                        }
                    }
                    *now += Duration::from_secs(self.one(vec![0, 1, 400]));
                    stream.closed(*now);
                    effects
                }
            }
        }
    }

    /// Whatever it answers, the stream's version never falls (as long as the server has its history), a complete
    /// state is never mixed with an old one, and the stream always asks again, though not without end at once.
    #[test]
    fn whatever_the_server_does_the_stream_asks_again() {
        for seed in 1..=300_u64 {
            let (mut stream, mut now) = stream();
            let unversioned = seed % 5 == 0;
            let mut server = Server {
                random: fastrand::Rng::with_seed(seed),
                version: 1,
                model: BTreeMap::new(),
                unversioned,
            };
            let mut highest = Version::Number(0);
            let (mut replaced, mut asked_at, mut in_a_moment) = (false, now, 0);
            for _ in 0..300 {
                server.change();
                let step = stream.next(now);
                in_a_moment = if now == asked_at { in_a_moment + 1 } else { 0 };
                asked_at = now;
                // Initial, list, pages of 500, 125, 31, 7 and 1; and the same after a state that came in between.
                assert!(in_a_moment < 20, "seed {seed}: {in_a_moment} requests in one moment");
                for effect in server.answer(&mut stream, &step, &mut now) {
                    let Effect::Replaced(entries) = effect else { continue };
                    replaced = true;
                    let seen = entries.iter().map(|entry| {
                        (entry.key().name.to_string(), entry.resource_version().parse().unwrap())
                    });
                    let seen: BTreeMap<_, u64> = seen.collect();
                    assert_eq!(seen, server.model, "seed {seed}: a complete state is the server's");
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

    /// What a stream asks of a server that answers everything with `fault`, up to the `count`th request.
    fn asked(fault: &Fault, count: usize) -> Vec<String> {
        let (mut stream, mut now) = stream();
        let mut asked = vec![];
        while asked.len() < count {
            let step = stream.next(now);
            if let Step::Wait(at) = step {
                now = at;
                continue;
            }
            let initial = asks(&step, "sendInitialEvents").is_some();
            let way = match (&step, asks(&step, "resourceVersion"), asks(&step, "limit")) {
                (Step::Watch(_), ..) if initial => "initial".to_owned(),
                (Step::List(_), Some(_), _) => "cache".to_owned(),
                (Step::List(_), None, Some(limit)) => format!("pages of {limit}"),
                other => panic!("{other:?}"),
            };
            asked.push(way);
            stream.failed(fault.clone(), now);
            assert_eq!(stream.trouble(), Some(fault));
        }
        asked
    }

    #[test]
    fn what_cannot_be_read_is_asked_for_in_another_way() {
        let flawed = |flaw| Fault::flawed(flaw, "no".into());
        let three = ["initial", "cache", "pages of 500"];
        assert_eq!(asked(&flawed(Flaw::Unreadable), 6), [three, three].concat());
        assert_eq!(
            asked(&flawed(Flaw::TooLarge), 9),
            [
                "initial",
                "cache",
                "pages of 500",
                "pages of 125",
                "pages of 31",
                "pages of 7",
                "pages of 1",
                "initial",
                "pages of 1"
            ]
        );
        assert_eq!(
            asked(&flawed(Flaw::Endless), 5),
            ["initial", "initial", "cache", "pages of 500", "initial"]
        );
        let refused = Fault { code: Some(422), ..Fault::default() };
        assert_eq!(
            asked(&refused, 5),
            ["initial", "cache", "pages of 500", "cache", "pages of 500"]
        );
        let expired = Fault { code: Some(410), ..Fault::default() };
        assert_eq!(
            asked(&expired, 5),
            ["initial", "cache", "pages of 500", "pages of 500", "initial"]
        );
        for passing in [Some(403), Some(429), Some(503), None] {
            let fault = Fault { code: passing, ..Fault::default() };
            assert_eq!(asked(&fault, 3), ["initial"; 3], "{passing:?} may pass");
        }
    }

    #[test]
    fn a_server_that_knows_no_initial_events_is_listed_although_it_accepts_them() {
        // Some close the watch, some send changes for ever.
        let (mut stream, mut now) = stream();
        for _ in 0..INITIAL_TRIES {
            while let Step::Wait(at) = stream.next(now) {
                now = at;
            }
            stream.opened(now);
            stream.line(&event("ADDED", &object("a", 3)), now);
            stream.line(&bookmark(5, false), now);
            now += Duration::from_secs(5);
            stream.closed(now);
        }
        assert!(matches!(stream.next(now), Step::List(_)));

        let (mut stream, mut now) = self::stream();
        stream.next(now);
        stream.opened(now);
        for version in 1..=60 {
            now += Duration::from_secs(1);
            assert!(matches!(
                stream.line(&event("MODIFIED", &object("a", version)), now),
                Effect::None
            ));
        }
        now += Duration::from_secs(1);
        assert!(matches!(stream.line(&bookmark(61, false), now), Effect::Reopen));
        assert!(matches!(stream.next(now), Step::List(_)));

        // The end of an initial state without a version is none.
        let (mut stream, now) = self::stream();
        stream.next(now);
        stream.opened(now);
        let end = event(
            "BOOKMARK",
            &json!({"metadata": {"annotations": {"k8s.io/initial-events-end": "true"}}}),
        );
        assert!(matches!(stream.line(&end, now), Effect::Reopen));
        assert!(matches!(stream.next(now), Step::List(_)));
    }

    /// A stream whose initial state was refused, so that it lists.
    fn listing() -> (Stream, Instant) {
        let (mut stream, now) = stream();
        stream.next(now);
        stream.failed(Fault { code: Some(422), ..Fault::default() }, now);
        stream.next(now);
        (stream, now)
    }

    fn page(names: &[&str], next: Option<&str>) -> String {
        let items: Vec<_> = names.iter().map(|name| object(name, 1)).collect();
        json!({"metadata": {"resourceVersion": "7", "continue": next}, "items": items}).to_string()
    }

    #[test]
    fn a_list_that_is_too_large_for_one_answer_is_asked_for_in_pages_from_then_on() {
        let (mut stream, now) = listing();
        let too_large = || Fault::flawed(Flaw::TooLarge, "64 MiB".into());
        stream.failed(too_large(), now);
        let step = stream.next(now);
        assert_eq!(
            (asks(&step, "limit").as_deref(), asks(&step, "resourceVersion")),
            (Some("500"), None)
        );
        stream.page(&page(&["a"], Some("one")), now);
        stream.failed(too_large(), now);
        let step = stream.next(now);
        let asked = (asks(&step, "limit"), asks(&step, "continue"));
        assert_eq!(asked, (Some("125".into()), Some("one".into())), "the same page, smaller");
        let Effect::Replaced(entries) = stream.page(&page(&["b"], None), now) else {
            panic!("complete")
        };
        assert_eq!(entries.len(), 2);
        stream.next(now);
        stream.opened(now);
        stream.line(&error(410, "too old"), now);
        let step = stream.next(now);
        assert!(
            asks(&step, "resourceVersion").is_none() && asks(&step, "limit").is_some(),
            "{step:?}"
        );
    }

    #[test]
    fn a_page_that_has_expired_begins_the_list_anew() {
        let (mut stream, mut now) = listing();
        stream.page(&page(&["a"], Some("one")), now);
        let expired = || Fault { code: Some(410), reason: "Expired".into(), ..Fault::default() };
        stream.failed(expired(), now);
        let step = stream.next(now);
        assert!(
            asks(&step, "continue").is_none() && asks(&step, "resourceVersion").is_none(),
            "{step:?}"
        );
        stream.page(&page(&["b"], Some("two")), now);
        stream.failed(expired(), now);
        let step = stream.next(now);
        assert!(asks(&step, "continue").is_none(), "{step:?}");
        stream.page(&page(&["c"], Some("three")), now);
        stream.failed(expired(), now);
        let Step::Wait(at) = stream.next(now) else { panic!("a pause: three in one moment") };
        now = at;
        stream.next(now);
        let Effect::None = stream.page(&page(&["d"], Some("four")), now) else {
            panic!("more to come")
        };
        stream.next(now);
        let Effect::Replaced(entries) = stream.page(&page(&["e"], None), now) else {
            panic!("complete")
        };
        let names: Vec<_> = entries.iter().map(|entry| entry.key().name.to_string()).collect();
        assert_eq!(names, ["d", "e"], "nothing of the lists that broke off");
    }

    #[test]
    fn a_page_that_names_itself_ends_the_list() {
        let (mut stream, now) = listing();
        stream.page(&page(&["a"], Some("one")), now);
        stream.next(now);
        assert!(matches!(stream.page(&page(&["b"], Some("one")), now), Effect::None));
        assert!(stream.trouble().is_some_and(|fault| fault.flaw == Some(Flaw::Unreadable)));
        assert_eq!(asks(&stream.next(now), "continue"), None);
    }

    #[test]
    fn a_server_that_gives_no_version_is_listed_again_after_each_watch() {
        for version in [Value::Null, json!(""), json!("0")] {
            let (mut stream, mut now) = listing();
            let list = json!({"metadata": {"resourceVersion": version}, "items": null});
            let Effect::Replaced(entries) = stream.page(&list.to_string(), now) else {
                panic!("complete")
            };
            assert!(entries.is_empty());
            let step = stream.next(now);
            assert!(matches!(step, Step::Watch(_)), "{step:?}");
            assert_eq!(asks(&step, "resourceVersion").as_deref(), Some(""));
            stream.opened(now);
            stream.line(&bookmark(0, false), now);
            now += Duration::from_secs(300);
            stream.closed(now);
            let step = stream.next(now);
            assert!(
                matches!(step, Step::List(_)) && asks(&step, "resourceVersion").is_none(),
                "{step:?}"
            );
        }
    }

    #[test]
    fn an_event_that_cannot_be_read_is_stepped_over_by_a_list() {
        let (mut stream, now) = synced();
        for line in ["", "  \r", &event("PAUSED", &object("a", 12))] {
            assert!(matches!(stream.line(line, now), Effect::None), "{line:?}");
        }
        assert_eq!((stream.version(), stream.trouble()), (Some("9"), None));
        stream.line(&event("ADDED", &json!({"metadata": {}})), now);
        assert!(
            stream.trouble().is_some_and(|fault| fault.number() == Some(0)),
            "{:?}",
            stream.trouble()
        );
        let Step::Wait(at) = stream.next(now) else { panic!("a pause") };
        let step = stream.next(at);
        assert!(matches!(step, Step::List(_)), "{step:?}");
        assert_eq!(asks(&step, "resourceVersion").as_deref(), Some("9"));
    }

    #[test]
    fn a_server_that_expires_each_version_it_gives_is_asked_with_pauses() {
        let (mut stream, mut now) = synced();
        let (start, mut requests) = (now, 0);
        while now - start < Duration::from_secs(60) {
            match stream.next(now) {
                Step::Wait(at) => now = at,
                _ => {
                    requests += 1;
                    stream.opened(now);
                    if stream.is_listing() {
                        stream.line(&bookmark(9, true), now);
                    } else {
                        stream.line(&error(410, "too old"), now);
                    }
                }
            }
        }
        assert!(requests < 40, "{requests} requests in a minute");
    }

    /// Seen on a server that was restarted twice within five seconds: the second time a watch was blind for 25 s.
    #[test]
    fn restarts_of_a_server_do_not_add_up() {
        let (mut stream, mut now) = synced();
        for restart in 1..=5_u64 {
            let begun = now;
            // Cut off; the store is not ready; the new server's history begins after what was seen.
            stream.failed(Fault::default(), now);
            for answer in [Some(429), Some(410)] {
                loop {
                    match stream.next(now) {
                        Step::Wait(at) => now = at,
                        _ if answer == Some(429) => {
                            let retry_after = Some(Duration::from_secs(1));
                            let fault = Fault { code: answer, retry_after, ..Fault::default() };
                            break stream.failed(fault, now);
                        }
                        _ => {
                            stream.opened(now);
                            break drop(stream.line(&error(410, "too old"), now));
                        }
                    }
                }
            }
            while let Step::Wait(at) = stream.next(now) {
                now = at;
            }
            stream.opened(now);
            stream.line(&bookmark(10 * restart, true), now);
            stream.next(now);
            stream.opened(now);
            stream.line(&bookmark(10 * restart + 1, false), now);
            let waited = now - begun;
            assert!(waited < AT_ONCE_EVERY, "restart {restart}: {waited:?}");
            now += Duration::from_secs(5);
        }
    }

    #[test]
    fn a_wish_for_a_pause_is_kept_within_bounds() {
        for (wish, pause) in
            [(0, FIRST_PAUSE), (7, Duration::from_secs(7)), (u64::MAX, LONGEST_WISH)]
        {
            let (mut stream, now) = synced();
            let retry_after = Some(Duration::from_secs(wish));
            stream.failed(Fault { code: Some(429), retry_after, ..Fault::default() }, now);
            assert_eq!(stream.next(now), Step::Wait(now + pause), "{wish} s");
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
