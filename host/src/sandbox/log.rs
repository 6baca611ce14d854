//! A guest's log lines on their way into the host's log: cut, cleaned, and limited in number.
//!
//! Every line is an event of target `guest` inside the run's span; the guest's own fields are one object, so that a
//! guest cannot pretend to be the host. Nothing of it is ever an error to the guest: a failing `println!` panics.
//!
//! Invariants: `a_line_is_cut_at_4_kib`, `a_controller_gets_64_kib_a_second`, `escape_codes_do_not_reach_the_log`.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Map, Value};
use tracing::Span;

pub(super) use crate::journal::Level;
use crate::{
    clock,
    journal::{Journal, Source, Speaker},
    metrics::ControllerMetrics,
};

/// The longest line, fields included.
const LINE: usize = 4 << 10;
/// Bytes a second and controller.
const RATE: u64 = 64 << 10;
/// What a line costs besides its text: span fields and time are written with each.
const OVERHEAD: u64 = 64;

/// A Rust panic has three lines: where, what, and a hint.
const LAST_LINES: usize = 3;
/// How much of each is kept for a report.
const LAST_LINE: usize = 240;

/// The log of a controller, shared by all its runs: where its lines are kept, and what is left of it this second.
#[derive(Debug)]
pub struct ControllerLog {
    metrics: ControllerMetrics,
    /// `None`: what is said is kept for the run's own report, and goes nowhere.
    journal: Option<Arc<Journal>>,
    bucket: Mutex<Bucket>,
    /// Of what the host says about the guest.
    of_host: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: u64,
    at: Option<Instant>,
}

impl ControllerLog {
    /// With a full quota; what goes beyond it is counted in `metrics`.
    pub fn new(metrics: ControllerMetrics, journal: Arc<Journal>) -> Self {
        Self::of(metrics, Some(journal))
    }

    /// Of runs whose words nobody reads, as those of a preview: a thousand of them would drown the others'.
    pub fn silent(metrics: ControllerMetrics) -> Self {
        Self::of(metrics, None)
    }

    fn of(metrics: ControllerMetrics, journal: Option<Arc<Journal>>) -> Self {
        let full = || Mutex::new(Bucket { left: RATE, at: None });
        Self { metrics, journal, bucket: full(), of_host: full() }
    }

    /// Whether a line that the host writes about a run still fits: what the guest answered is in it. One that does is kept for
    /// the team; one that does not is counted as dropped. What the guest logs itself takes nothing away from these.
    pub fn takes(&self, speaker: &Speaker, line: &str) -> bool {
        let Some(journal) = &self.journal else { return false };
        let mut bucket = self.of_host.lock();
        let fits = bucket.take(line.len(), clock::now());
        drop(bucket);
        if fits {
            journal.say(speaker, (Source::Host, Level::Warn), line, Map::new());
        } else {
            self.metrics.log_dropped(line.len() as u64);
        }
        fits
    }

    fn take(&self, bytes: usize) -> bool {
        self.bucket.lock().take(bytes, clock::now())
    }
}

impl Bucket {
    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let since =
            now.saturating_duration_since(self.at.unwrap_or(now)).min(Duration::from_secs(1));
        let refill = RATE * u64::try_from(since.as_micros()).unwrap_or(u64::MAX) / 1_000_000;
        if refill > 0 || self.at.is_none() {
            self.at = Some(now);
            self.left = RATE.min(self.left + refill);
        }
        let cost = bytes as u64 + OVERHEAD;
        let fits = cost <= self.left;
        if fits {
            self.left -= cost;
        }
        fits
    }
}

/// The log of one run; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct GuestLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    span: Span,
    speaker: Speaker,
    quota: Arc<ControllerLog>,
    last: Mutex<VecDeque<String>>,
}

impl GuestLog {
    pub(super) fn new(span: Span, speaker: Speaker, quota: Arc<ControllerLog>) -> Self {
        Self(Arc::new(Inner { span, speaker, quota, last: Mutex::default() }))
    }

    /// Writes one line.
    pub(super) fn line(&self, level: Level, message: &str, fields: &[(String, String)]) {
        let given: usize = message.len()
            + fields.iter().map(|(key, value)| key.len() + value.len() + 2).sum::<usize>();
        let message = clean(message, LINE);
        let (fields, kept) = kept(fields, LINE - message.len());
        self.remember(&message);
        let Some(journal) = &self.0.quota.journal else { return };
        let kept = message.len() + kept;
        let dropped = if self.0.quota.take(kept) {
            self.emit(level, &message, &fields);
            let inner = &self.0;
            journal.say(&inner.speaker, (Source::Guest, level), &message, fields);
            given.saturating_sub(kept)
        } else {
            given
        };
        if dropped > 0 {
            self.0.quota.metrics.log_dropped(dropped as u64);
        }
    }

    /// Counts bytes that were never made a line.
    fn dropped(&self, bytes: usize) {
        self.0.quota.metrics.log_dropped(bytes as u64);
    }

    /// The last things the guest said, whether or not they reached the log: a panic says why.
    pub(super) fn last_lines(&self) -> String {
        self.last().make_contiguous().join(" | ")
    }

    fn remember(&self, line: &str) {
        let end = line.floor_char_boundary(LAST_LINE);
        let mut last = self.last();
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line[..end].to_owned());
    }

    fn last(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.last.lock()
    }

    fn emit(&self, level: Level, message: &str, fields: &Map<String, Value>) {
        let parent = &self.0.span;
        let guest = (!fields.is_empty()).then(|| Value::Object(fields.clone()).to_string());
        let guest = guest.as_deref();
        match level {
            Level::Error => tracing::error!(target: "guest", parent: parent, guest, "{message}"),
            Level::Warn => tracing::warn!(target: "guest", parent: parent, guest, "{message}"),
            Level::Info => tracing::info!(target: "guest", parent: parent, guest, "{message}"),
            Level::Debug => tracing::debug!(target: "guest", parent: parent, guest, "{message}"),
        }
    }
}

/// Standard output or error of one run: bytes become lines.
#[derive(Debug)]
pub(super) struct Lines {
    log: GuestLog,
    level: Level,
    stream: &'static str,
    begun: Vec<u8>,
}

impl Lines {
    pub(super) fn new(log: GuestLog, level: Level, stream: &'static str) -> Self {
        Self { log, level, stream, begun: vec![] }
    }

    /// Takes all of `bytes`; of a line longer than the limit the rest is dropped.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            // One byte more than a line shows that it was cut.
            let room = (LINE + 1).saturating_sub(self.begun.len()).min(text.len());
            self.begun.extend_from_slice(&text[..room]);
            if room < text.len() {
                self.log.dropped(text.len() - room);
            }
            if ends {
                self.finish();
            }
        }
    }

    /// Writes what has no end yet.
    fn finish(&mut self) {
        let line = std::mem::take(&mut self.begun);
        if !line.is_empty() {
            let fields = [("stream".to_owned(), self.stream.to_owned())];
            self.log.line(self.level, &String::from_utf8_lossy(&line), &fields);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The fields that have room, and how much of it they take.
fn kept(fields: &[(String, String)], room: usize) -> (Map<String, Value>, usize) {
    let (mut kept, mut taken) = (Map::new(), 0);
    for (key, value) in fields {
        let key = clean(key, room - taken);
        let value = clean(value, room.saturating_sub(taken + key.len() + 2));
        let takes = key.len() + value.len() + 2;
        if taken + takes > room {
            break;
        }
        taken += takes;
        kept.insert(key, value.into());
    }
    (kept, taken)
}

/// At most `room` bytes of `text` without escape sequences and control characters; line ends are shown as `\n`.
fn clean(text: &str, room: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(room));
    let mut chars = text.chars().peekable();
    let mut utf8 = [0; 4];
    while let Some(c) = chars.next() {
        let piece = match c {
            '\u{1b}' => {
                skip_escape(&mut chars);
                continue;
            }
            '\n' => "\\n",
            '\t' => "\t",
            c if c.is_control() => continue,
            c => c.encode_utf8(&mut utf8),
        };
        if clean.len() + piece.len() > room {
            break;
        }
        clean.push_str(piece);
    }
    clean
}

/// Reads over the rest of an escape sequence: `[`…letter, `]`…bell, or one character.
fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    let ends: fn(char) -> bool = match chars.next() {
        Some('[') => |c| ('@'..='~').contains(&c),
        Some(']' | 'P' | '_' | '^' | 'X') => |c| matches!(c, '\u{7}' | '\\' | '\u{9c}'),
        _ => return,
    };
    for c in chars.by_ref() {
        if ends(c) {
            return;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Weak;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::{
        cli::logging,
        metrics::{Metrics, QueueStats, Watched},
    };

    struct NoQueue;

    impl Watched for NoQueue {
        fn stats(&self) -> QueueStats {
            QueueStats::default()
        }
    }

    /// A quota with counters of its own.
    pub(in crate::sandbox) fn quota(metrics: &Metrics) -> Arc<ControllerLog> {
        let queue: Weak<NoQueue> = Weak::new();
        Arc::new(ControllerLog::new(metrics.controller("a/b", queue), Arc::default()))
    }

    fn seen(act: impl FnOnce(&GuestLog)) -> (Vec<Value>, String) {
        let metrics = Metrics::default();
        let quota = quota(&metrics);
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let to = seen.clone();
        let lines = logging::Lines::new(logging::Format::Json, move |line: &[u8]| {
            to.lock().extend_from_slice(line);
        });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            act(&GuestLog::new(
                tracing::info_span!("reconcile", object = "x"),
                Speaker::default(),
                quota,
            ));
        });
        let bytes = seen.lock().clone();
        let lines = String::from_utf8(bytes).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines, metrics.page().unwrap())
    }

    fn message(line: &Value) -> &str {
        line["message"].as_str().unwrap()
    }

    #[test]
    fn a_line_is_an_event_in_the_span_of_its_run() {
        let (lines, _) = seen(|log| {
            log.line(
                Level::Warn,
                "hello",
                &[("target".into(), "host".into()), ("n".into(), "1".into())],
            );
        });
        let line = &lines[0];
        assert_eq!(message(line), "hello");
        assert_eq!(line["guest"], serde_json::json!({"target": "host", "n": "1"}));
        assert_eq!((&line["target"], &line["level"]), (&"guest".into(), &"WARN".into()));
        assert_eq!((&line["span"], &line["object"]), (&"reconcile".into(), &"x".into()));
    }

    #[test]
    fn what_a_guest_calls_its_fields_stays_its_own() {
        let evil = |name: &str| (name.to_owned(), "a\nERROR nagaya: forged \"}".to_owned());
        let names = ["level", "message", "timestamp", "guest", "span", "a\nb\u{1b}[1m", "\"}{", ""];
        let (lines, _) = seen(|log| {
            log.line(Level::Info, "hello\nworld", &names.map(evil));
            let many: Vec<_> = (0..5_000).map(|n| (format!("k{n}"), "v".repeat(40))).collect();
            log.line(Level::Info, "many", &many);
        });
        assert_eq!(lines.len(), 2);
        assert_eq!((message(&lines[0]), &lines[0]["level"]), ("hello\\nworld", &"INFO".into()));
        let guest = lines[0]["guest"].as_object().unwrap();
        assert_eq!(guest.len(), names.len());
        assert_eq!(guest["level"], "a\\nERROR nagaya: forged \"}");
        assert_eq!(guest["a\\nb"], guest["level"]);
        let many = lines[1]["guest"].as_object().unwrap();
        let size: usize = many.iter().map(|(k, v)| k.len() + v.as_str().unwrap().len() + 2).sum();
        assert!((3_900..=LINE).contains(&size), "{size}");
    }

    #[test]
    fn a_line_is_cut_at_4_kib() {
        let (lines, page) = seen(|log| {
            log.line(Level::Info, &"ä".repeat(3_000), &[("k".into(), "v".repeat(10))]);
            let mut out = Lines::new(log.clone(), Level::Info, "stdout");
            out.write("y".repeat(5_000).as_bytes());
            out.write(b"yyy\nsh");
            out.write(b"ort\n\nend");
        });
        assert_eq!(message(&lines[0]), "ä".repeat(2_048));
        assert_eq!(message(&lines[1]), "y".repeat(4_096));
        assert_eq!(lines[2..].iter().map(message).collect::<Vec<_>>(), ["short", "end"]);
        assert!(
            page.contains("nagaya_guest_log_dropped_bytes_total{controller=\"a/b\"}"),
            "{page}"
        );
    }

    #[test]
    fn a_controller_gets_64_kib_a_second() {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
        let start = Instant::now();
        let mut bucket = Bucket { left: RATE, at: None };
        let mut kept = |at: u64| {
            let now = start + Duration::from_millis(at);
            (0..1_000).filter(|_| bucket.take(960, now)).count()
        };
        assert_eq!(kept(0), 64);
        assert_eq!(kept(500), 32);
        assert_eq!(kept(600), 6);
        assert_eq!(kept(60_000), 64, "silence saves up one second, no more");
        let (lines, _) = seen(|log| (0..5_000).for_each(|_| log.line(Level::Info, "", &[])));
        assert!(lines.len() < 5_000, "empty lines cost too");
        let (lines, page) =
            seen(|log| (0..200).for_each(|_| log.line(Level::Info, &"z".repeat(1_000), &[])));
        assert!((61..200).contains(&lines.len()), "{}", lines.len());
        let dropped = format!("}} {}", (200 - lines.len()) * 1_000);
        let line =
            page.lines().find(|l| l.starts_with("nagaya_guest_log_dropped_bytes_total{")).unwrap();
        assert!(line.ends_with(&dropped), "{line} {dropped}");
    }

    /// Returned errors were logged whole and without a limit: 185 MiB in ten seconds.
    #[test]
    fn what_the_host_says_about_runs_has_a_limit_too() {
        let (_, page) = seen(|log| {
            let quota = &log.0.quota;
            let line = "x".repeat(1_000);
            let kept = (0..5_000).filter(|_| quota.takes(&Speaker::default(), &line)).count();
            assert!((61..200).contains(&kept), "{kept}");
            log.line(Level::Info, "said by the guest", &[]);
        });
        assert!(page.contains("nagaya_guest_log_dropped_bytes_total{"), "{page}");
    }

    #[test]
    fn escape_codes_do_not_reach_the_log() {
        for (text, expected) in [
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;title\u{7}x", "x"),
            ("a\nERROR nagaya: fake", "a\\nERROR nagaya: fake"),
            ("tab\tbell\u{7}\r\u{9b}1m", "tab\tbell1m"),
            ("\u{1b}", ""),
            ("\u{1b}[never ends", ""),
        ] {
            let cleaned = clean(text, 100);
            assert!(!cleaned.contains('\u{1b}'));
            if text != "\u{1b}[never ends" {
                assert_eq!(cleaned, expected, "{text:?}");
            }
        }
    }

    #[test]
    fn the_last_line_is_kept_for_the_report_even_if_it_was_dropped() {
        seen(|log| {
            (0..200).for_each(|_| log.line(Level::Info, &"z".repeat(1_000), &[]));
            log.line(Level::Error, "panicked at src/lib.rs:1", &[]);
            assert!(log.last_lines().ends_with("z | panicked at src/lib.rs:1"));
            assert!(log.last_lines().len() <= 3 * LAST_LINE + 6);
        });
    }
}
