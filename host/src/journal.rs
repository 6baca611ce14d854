//! What guests have said lately, kept for their teams: a ring of lines for each controller.
//!
//! It is what `nagaya logs` shows. The host's own log has the same lines and keeps them for whoever runs the host; these are in
//! memory alone, the oldest go first, and a host that begins to work begins with none.
//!
//! Invariants: `a_ring_keeps_the_newest_lines_within_its_bytes`, `all_rings_together_are_bounded`,
//! `no_two_lines_of_a_ring_have_one_time`.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::watch;

/// Bytes of one controller's ring.
pub const EACH: usize = 256 << 10;
/// Bytes of all rings together. Beyond it a ring that takes a line gives up its oldest ones.
pub const ALL: usize = 32 << 20;
/// Bytes that a ring keeps even then.
pub const LEAST: usize = 16 << 10;
/// What a line costs besides its texts.
const OVERHEAD: usize = 160;
/// Between two lines of a ring, at least: a reader goes on after the time of the last one.
const TICK: SignedDuration = SignedDuration::from_micros(1);

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For whoever mends the guest.
    Debug,
    /// News.
    Info,
    /// Perhaps wrong.
    Warn,
    /// Wrong.
    Error,
}

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The team's code.
    Guest,
    /// The host, of a run.
    Host,
}

/// In whose run a line is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Speaker {
    /// The WasmRevision.
    pub revision: Arc<str>,
    /// The primary, as `namespace/name`; empty: none, as while a revision is described.
    pub object: Arc<str>,
    /// The run; empty: none.
    pub run: Arc<str>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it was said; no two of a ring have the same.
    pub time: Timestamp,
    /// How much it matters.
    pub level: Level,
    /// Who wrote it.
    pub source: Source,
    /// The WasmRevision.
    pub revision: Arc<str>,
    /// The primary, as `namespace/name`.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub object: Arc<str>,
    /// The run.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub run: Arc<str>,
    /// What was said.
    pub message: Box<str>,
    /// The guest's own fields.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub fields: Map<String, Value>,
}

/// Which lines somebody wants.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Said after this.
    pub after: Option<Timestamp>,
    /// Of this WasmRevision.
    pub revision: Option<String>,
    /// Of this primary: `namespace/name`, or the name alone.
    pub object: Option<String>,
    /// That matter at least so much.
    pub level: Option<Level>,
}

/// The rings of all controllers; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Journals(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    of: Mutex<HashMap<String, Arc<Journal>>>,
    bytes: Arc<AtomicUsize>,
}

/// The ring of one controller.
#[derive(Debug)]
pub struct Journal {
    ring: Mutex<Ring>,
    /// The bytes of all rings.
    all: Arc<AtomicUsize>,
    /// The time of the newest line.
    news: watch::Sender<Option<Timestamp>>,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
}

impl Journals {
    /// The ring of `controller`, `namespace/name`; made if there is none.
    pub fn of(&self, controller: &str) -> Arc<Journal> {
        let mut of = self.0.of.lock();
        let made = || Arc::new(Journal::counted(self.0.bytes.clone()));
        of.entry(controller.to_owned()).or_insert_with(made).clone()
    }

    /// The ring of `controller`, if it has one.
    pub fn get(&self, controller: &str) -> Option<Arc<Journal>> {
        self.0.of.lock().get(controller).cloned()
    }

    /// `controller` is gone, and with it what it has said.
    pub fn forget(&self, controller: &str) {
        self.0.of.lock().remove(controller);
    }

    /// The bytes that all rings take.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self::counted(Arc::default())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.all.fetch_sub(self.ring.get_mut().bytes, Ordering::Relaxed);
    }
}

impl Journal {
    fn counted(all: Arc<AtomicUsize>) -> Self {
        Self { ring: Mutex::default(), all, news: watch::channel(None).0 }
    }

    /// Takes a line in.
    pub fn say(
        &self,
        speaker: &Speaker,
        (source, level): (Source, Level),
        message: &str,
        fields: Map<String, Value>,
    ) {
        let Speaker { revision, object, run } = speaker.clone();
        let (time, message) = (Timestamp::now(), message.into());
        self.take(Line { time, level, source, revision, object, run, message, fields });
    }

    fn take(&self, mut line: Line) {
        let mut ring = self.ring.lock();
        let earliest = ring.lines.back().and_then(|last| last.time.checked_add(TICK).ok());
        let time = earliest.map_or(line.time, |earliest| earliest.max(line.time));
        line.time = time;
        self.all.fetch_add(ring.push(line), Ordering::Relaxed);
        let over = |ring: &Ring| {
            ring.bytes > EACH || (self.all.load(Ordering::Relaxed) > ALL && ring.bytes > LEAST)
        };
        while ring.lines.len() > 1 && over(&ring) {
            self.all.fetch_sub(ring.drop_oldest(), Ordering::Relaxed);
        }
        drop(ring);
        self.news.send_replace(Some(time));
    }

    /// The lines that are `wanted`, oldest first.
    pub fn lines(&self, wanted: &Wanted) -> Vec<Arc<Line>> {
        let ring = self.ring.lock();
        let begin =
            wanted.after.map_or(0, |after| ring.lines.partition_point(|line| line.time <= after));
        ring.lines.range(begin..).filter(|line| wanted.has(line)).cloned().collect()
    }

    /// Moves with every line.
    pub fn news(&self) -> watch::Receiver<Option<Timestamp>> {
        self.news.subscribe()
    }
}

impl Ring {
    /// The bytes that it takes more.
    fn push(&mut self, line: Line) -> usize {
        let cost = line.cost();
        self.bytes += cost;
        self.lines.push_back(Arc::new(line));
        cost
    }

    /// The bytes that it takes less.
    fn drop_oldest(&mut self) -> usize {
        let cost = self.lines.pop_front().map_or(0, |line| line.cost());
        self.bytes -= cost;
        if self.lines.is_empty() {
            self.lines.shrink_to_fit();
        }
        cost
    }
}

impl Line {
    /// Each run has names of its own for what it is about.
    fn cost(&self) -> usize {
        let fields = self.fields.iter().map(|(name, value)| {
            name.len() + value.as_str().map_or(0, str::len) + 3 * size_of::<Value>()
        });
        let texts = self.message.len() + self.object.len() + self.run.len() + self.revision.len();
        OVERHEAD + texts + fields.sum::<usize>()
    }
}

impl Wanted {
    fn has(&self, line: &Line) -> bool {
        let names = |object: &String| {
            *object == *line.object
                || line.object.split_once('/').is_some_and(|(_, name)| name == object)
        };
        self.level.is_none_or(|least| line.level >= least)
            && self.revision.as_ref().is_none_or(|revision| *revision == *line.revision)
            && self.object.as_ref().is_none_or(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaker(revision: &str, object: &str) -> Speaker {
        Speaker { revision: revision.into(), object: object.into(), run: "r".into() }
    }

    fn say(journal: &Journal, text: &str) {
        journal.say(&speaker("web-1", "demo/a"), (Source::Guest, Level::Info), text, Map::new());
    }

    fn messages(journal: &Journal, wanted: &Wanted) -> Vec<String> {
        journal.lines(wanted).iter().map(|line| line.message.to_string()).collect()
    }

    #[test]
    fn a_ring_keeps_the_newest_lines_within_its_bytes() {
        let journals = Journals::default();
        let journal = journals.of("demo/web");
        let mut random = fastrand::Rng::with_seed(7);
        for number in 0..5_000 {
            say(&journal, &format!("{number} {}", "x".repeat(random.usize(..3_000))));
            assert!(journals.bytes() <= EACH, "{}", journals.bytes());
        }
        let kept = messages(&journal, &Wanted::default());
        assert!(kept.len() > 50 && kept.last().unwrap().starts_with("4999 "), "{}", kept.len());
        let counted: usize = journal.lines(&Wanted::default()).iter().map(|line| line.cost()).sum();
        assert_eq!(journals.bytes(), counted);
        say(&journal, &"y".repeat(2 * EACH));
        assert_eq!(messages(&journal, &Wanted::default()).len(), 1, "the newest is always there");
        journals.forget("demo/web");
        drop(journal);
        assert_eq!(journals.bytes(), 0);
    }

    #[test]
    fn all_rings_together_are_bounded() {
        let journals = Journals::default();
        let rings: Vec<_> = (0..200).map(|number| journals.of(&format!("demo/{number}"))).collect();
        for _ in 0..300 {
            for ring in &rings {
                say(ring, &"x".repeat(1_000));
            }
        }
        let most = ALL + rings.len() * (LEAST + 2_000);
        assert!(journals.bytes() <= most, "{} of {most}", journals.bytes());
        assert!(rings.iter().all(|ring| ring.lines(&Wanted::default()).len() > 10));
    }

    #[test]
    fn no_two_lines_of_a_ring_have_one_time() {
        let journal = Journal::default();
        let now = Timestamp::UNIX_EPOCH;
        say(&journal, "now");
        let line = (*journal.lines(&Wanted::default())[0]).clone();
        let mut next = |number: i64| {
            // The clock stands, and goes back.
            let time = now.checked_sub(SignedDuration::from_secs(number % 3)).unwrap();
            journal.take(Line { time, ..line.clone() });
        };
        (0..100).for_each(&mut next);
        let lines = journal.lines(&Wanted::default());
        assert!(lines.is_sorted_by(|one, next| one.time < next.time));
        for (at, line) in lines.iter().enumerate() {
            let wanted = Wanted { after: Some(line.time), ..Wanted::default() };
            assert_eq!(journal.lines(&wanted).len(), 100 - at);
        }
    }

    #[test]
    fn lines_are_chosen_by_revision_object_and_level() {
        let journal = Journal::default();
        for (revision, object, level) in [
            ("web-1", "demo/a", Level::Debug),
            ("web-1", "demo/b", Level::Error),
            ("web-2", "prod/a", Level::Info),
            ("web-2", "", Level::Warn),
        ] {
            let text = format!("{revision} {object}");
            journal.say(&speaker(revision, object), (Source::Guest, level), &text, Map::new());
        }
        let of = |wanted: Wanted| messages(&journal, &wanted);
        let revision = Some("web-2".to_owned());
        let wanted = Wanted { revision, ..Wanted::default() };
        assert_eq!(of(wanted), ["web-2 prod/a", "web-2 "]);
        let object = |name: &str| Wanted { object: Some(name.to_owned()), ..Wanted::default() };
        assert_eq!(of(object("a")), ["web-1 demo/a", "web-2 prod/a"]);
        assert_eq!(of(object("prod/a")), ["web-2 prod/a"]);
        let level = Some(Level::Warn);
        assert_eq!(of(Wanted { level, ..Wanted::default() }), ["web-1 demo/b", "web-2 "]);
    }
}
