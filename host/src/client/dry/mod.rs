//! A run whose writes are only tried: the API server says what each would lead to, and nothing is stored.
//!
//! It is the same client with one value changed. Reads see first what the run itself would have written; a write goes out
//! with `dryRun=All` as the controller's account, so that defaulting, admission, field ownership and RBAC are the
//! server's. What the server cannot say is named, and never guessed. Nothing of the account's is touched: no budget, no
//! fight, no barrier, no memory of what was applied last.
//!
//! Invariants: `nothing_goes_out_that_is_not_dry`, `what_was_tried_beyond_the_pace_is_waited_for`; on a real server
//! `a_preview_changes_nothing_whatever_the_guest`.

mod keys;
mod merge;
mod overlay;
mod support;

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Client, Error, Flow, answer, flow::Sort, intent::Intent, read::as_object, send::Unwritten,
};
use crate::{
    apiserver::{self, ApiServer, Call},
    clock,
    model::{kind::Kind, manifest::Verb, object::ObjectKey},
    rate::Bucket,
    watch::Entry,
};
pub use keys::{Keys, List};
pub use overlay::Would;
use overlay::{Answered, Next, Overlay};
pub use support::Support;

/// How often an object is looked at while others change it.
const LOOKS: u32 = 3;
/// Tried writes a second of all previews, and at once.
const MOST: f64 = 150.0;
const BURST: f64 = 8.0;
/// After a write that took this long or longer, previews rest for no more than this.
const LONGEST_REST: Duration = Duration::from_secs(2);
/// No more of the server's refusals are kept.
const WORDS: usize = 20;

/// What all previews of one controller share.
#[derive(Debug)]
pub struct Bench {
    /// Connections of their own: no live request waits behind them.
    api: ApiServer,
    /// Who takes dry runs.
    support: Support,
    /// What the API server has asked previews to wait.
    flow: Mutex<Flow>,
    /// How fast those of this controller write, and those of all.
    own: Pace,
    all: Arc<Pace>,
}

/// How fast writes are tried: never faster than a number, and never for more than half of the time, so that a server that is
/// slow because it is busy has as much time without previews as with them. No run waits in its middle, where its own time
/// would run out: what was tried beyond it the next look waits for.
#[derive(Debug)]
pub struct Pace(Mutex<Account>);

/// What may be tried now, and what was tried beyond it.
#[derive(Debug)]
struct Account {
    bucket: Bucket,
    debt: u32,
    /// Nothing is tried before.
    rests_until: Option<Instant>,
}

impl Account {
    fn new(bucket: Bucket) -> Self {
        Self { bucket, debt: 0, rests_until: None }
    }

    fn tried(&mut self, now: Instant) {
        self.debt += u32::from(self.bucket.take(now).is_err());
    }

    /// The answer to one has taken this long: as long nothing more is tried.
    fn answered(&mut self, now: Instant, took: Duration) {
        let from = self.rests_until.unwrap_or(now).max(now);
        self.rests_until = Some((from + took).min(now + LONGEST_REST));
    }

    /// Pays what can be paid; how long until more can be, if there is debt left.
    fn pay(&mut self, now: Instant) -> Option<Duration> {
        if let Some(until) = self.rests_until.filter(|until| *until > now) {
            return Some(until - now);
        }
        while self.debt > 0 {
            match self.bucket.take(now) {
                Ok(()) => self.debt -= 1,
                Err(wait) => return Some(wait.max(Duration::from_millis(1))),
            }
        }
        None
    }
}

impl Pace {
    /// That of all previews of a host: a dry run costs the API server about as much as a write, and live ones come first.
    pub fn of_host() -> Self {
        Self::new(Bucket::new(MOST, BURST))
    }

    fn new(bucket: Bucket) -> Self {
        Self(Mutex::new(Account::new(bucket)))
    }

    async fn turn(&self) {
        loop {
            let wait = self.0.lock().pay(clock::now());
            let Some(wait) = wait else { return };
            sleep(wait).await;
        }
    }

    fn tried(&self) {
        self.0.lock().tried(clock::now());
    }

    fn answered(&self, took: Duration) {
        self.0.lock().answered(clock::now(), took);
    }
}

impl Bench {
    /// So many tried writes a minute, and not more than `all` previews of the host may.
    pub fn new(
        api: ApiServer,
        support: Support,
        (writes_per_minute, all): (u32, Arc<Pace>),
    ) -> Self {
        let (rate, burst) = pace(writes_per_minute);
        let own = Pace::new(Bucket::new(rate, burst));
        Self { api, support, flow: Mutex::default(), own, all }
    }

    /// Another pace from now on.
    pub fn set_pace(&self, writes_per_minute: u32) {
        let (rate, burst) = pace(writes_per_minute);
        self.own.0.lock().bucket.set(rate, burst);
    }

    /// Waits until more may be tried.
    pub async fn turn(&self) {
        self.own.turn().await;
        self.all.turn().await;
    }

    fn tried(&self) {
        self.own.tried();
        self.all.tried();
    }
}

/// What one previewed run is given instead of the right to write.
#[derive(Debug)]
pub struct Dry {
    bench: Arc<Bench>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    overlay: Overlay,
    trial: Trial,
}

/// What a run would have left of an object.
#[derive(Clone, Debug)]
pub(super) enum Left {
    /// Nothing.
    Gone,
    /// This.
    Here(Arc<Entry>),
}

impl Left {
    pub(super) fn here(self) -> Option<Arc<Entry>> {
        match self {
            Self::Gone => None,
            Self::Here(entry) => Some(entry),
        }
    }
}

/// What a previewed run has come to.
#[derive(Debug, Default)]
pub struct Trial {
    /// What it would have written, in the order of kind and name.
    pub writes: Vec<Would>,
    /// Events that it would have sent.
    pub events: usize,
    /// Writes that the server was asked about.
    pub asked: usize,
    /// What nobody can say, and why.
    pub untold: BTreeSet<String>,
    /// What the server would refuse.
    pub refused: Vec<String>,
    /// Kinds and what was done to them.
    pub used: BTreeSet<(Kind, Use)>,
    /// Hashes of the objects that it has read, with their versions.
    pub seen: HashMap<u64, u64>,
}

/// What a run does to a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Reads it from the API server.
    Live,
    /// Writes it.
    Write(Verb),
}

impl Trial {
    /// What was read alone, for a comparison after the rest is used.
    #[must_use]
    pub fn without_writes(&mut self) -> Self {
        Self { seen: std::mem::take(&mut self.seen), ..Self::default() }
    }

    /// Whether some object that both have read had changed between the two.
    pub fn saw_another_state(&self, other: &Self) -> bool {
        let moved = |(object, version): (&u64, &u64)| {
            other.seen.get(object).is_some_and(|other| other != version)
        };
        self.seen.iter().any(moved)
    }
}

impl Dry {
    /// For one run.
    pub fn new(bench: Arc<Bench>) -> Self {
        Self { bench, state: Mutex::default() }
    }

    pub(super) fn api(&self) -> &ApiServer {
        &self.bench.api
    }

    /// How long the next call has to wait.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.bench.flow.lock().wait(now)
    }

    /// The server has asked to wait.
    pub(super) fn asked(&self, wait: Duration, now: Instant) {
        self.bench.flow.lock().asked(wait, now);
    }

    /// As the run would find it; `None`: as it is.
    pub(super) fn overlaid(&self, kind: &Kind, key: &ObjectKey) -> Option<Left> {
        let left = self.state.lock().overlay.get(kind, key)?.left.clone();
        Some(left.map_or(Left::Gone, Left::Here))
    }

    /// The same of all objects of a kind.
    pub(super) fn all_overlaid(&self, kind: &Kind) -> Vec<(ObjectKey, Option<Arc<Entry>>)> {
        let state = self.state.lock();
        state.overlay.of_kind(kind).map(|would| (would.key.clone(), would.left.clone())).collect()
    }

    /// Remembers what was read.
    pub(super) fn saw(&self, kind: &Kind, entry: &Entry) {
        self.remember(kind, entry.key(), Some(entry));
    }

    /// Remembers that there was none.
    pub(super) fn missed(&self, kind: &Kind, key: &ObjectKey) {
        self.remember(kind, key, None);
    }

    /// Remembers which objects a question was answered with.
    pub(super) fn listed<'a>(
        &self,
        kind: &Kind,
        question: &str,
        found: impl Iterator<Item = &'a ObjectKey>,
    ) {
        let hash = hashed;
        let answer: Vec<&ObjectKey> = found.collect();
        let question = hash(&|hasher| (&kind.group, &kind.kind, question).hash(hasher));
        let answer = hash(&|hasher| answer.hash(hasher));
        let mut state = self.state.lock();
        let known = state.trial.seen.entry(question).or_insert(answer);
        if *known != answer {
            *known = known.rotate_left(1) ^ answer;
        }
    }

    fn remember(&self, kind: &Kind, key: &ObjectKey, entry: Option<&Entry>) {
        let hash = hashed;
        let object = hash(&|hasher| (&kind.group, &kind.kind, key).hash(hasher));
        let version = entry.map_or(0, |entry| {
            hash(&|hasher| (entry.uid(), entry.resource_version()).hash(hasher))
        });
        // Whatever was seen of it, in this order: another state is another number.
        let mut state = self.state.lock();
        let known = state.trial.seen.entry(object).or_insert(version);
        if *known != version {
            *known = known.rotate_left(1) ^ version;
        }
    }

    /// Remembers what was done to a kind.
    pub(super) fn used(&self, kind: &Kind, what: Use) {
        self.state.lock().trial.used.insert((kind.clone(), what));
    }

    pub(super) fn event(&self) {
        self.state.lock().trial.events += 1;
    }

    fn untold(&self, what: String) -> Unwritten {
        let text = format!("a preview cannot say what would become of it: {what}");
        self.state.lock().trial.untold.insert(what);
        Unwritten::Refused(Error::Unavailable(text))
    }

    /// What the run has come to; what it would have written is taken away.
    fn end(&self) -> Trial {
        let mut state = self.state.lock();
        let writes = std::mem::take(&mut state.overlay).into_all();
        Trial { writes, ..std::mem::take(&mut state.trial) }
    }

    /// Puts an answer into the overlay; what the guest is told.
    fn take(
        &self,
        intent: &Intent,
        (stored, answer): (Option<Arc<Entry>>, String),
    ) -> Result<String, Unwritten> {
        let kind = &intent.kind;
        let parsed: Value = serde_json::from_str(&answer).unwrap_or_default();
        let left = as_object(&answer).ok().filter(|left| !left.key().name.is_empty());
        let key = match &left {
            Some(left) if intent.key.name.is_empty() => left.key().clone(),
            _ => intent.key.clone(),
        };
        // Of a deletion the server shows what waits for finalizers, and otherwise what is gone.
        let waits = |left: &Arc<Entry>| {
            let grace = parsed["metadata"]["deletionGracePeriodSeconds"].as_i64();
            left.is_deleting() && (left.finalizers().next().is_some() || grace.unwrap_or(0) > 0)
        };
        let is_delete = intent.verb == Verb::Delete;
        let left = left.filter(|left| !is_delete || waits(left));
        let generated = parsed["metadata"]["generateName"].as_str();
        let generated = generated.filter(|_| intent.key.name.is_empty()).map(str::to_owned);
        self.remember(kind, &key, stored.as_deref());
        let keys = Keys::of(&parsed);
        let answered = Answered { verb: intent.verb, generated, stored, left, keys };
        let fits = self.state.lock().overlay.put(kind, &key, answered);
        if !fits {
            let why = "two writes of one run change the same of it in different ways";
            return Err(self.untold(format!("{kind}: {why}")));
        }
        if is_delete {
            return Ok(answer);
        }
        let told = self.overlaid(kind, &key).and_then(Left::here);
        Ok(told.map_or(answer, |entry| entry.body().to_string()))
    }
}

impl Client {
    /// What a previewed run has come to.
    pub fn trial(&self) -> Trial {
        self.dry().map(|dry| dry.end()).unwrap_or_default()
    }

    /// Asks what a write would lead to.
    pub(super) async fn try_out(
        &self,
        dry: &Arc<Dry>,
        intent: Intent,
    ) -> Result<String, Unwritten> {
        self.check_tries(&intent.kind, &intent.key).map_err(Unwritten::Refused)?;
        let (kind, key) = (&intent.kind, &intent.key);
        let next = dry.state.lock().overlay.next(intent.verb, kind, key);
        match next {
            Next::Ask => (),
            Next::Gone => return Err(Unwritten::Refused(Error::NotFound)),
            Next::Exists => {
                let text = format!("{kind} {key} already exists");
                return Err(Unwritten::Refused(Error::AlreadyExists(text)));
            }
            Next::Undone => {
                dry.state.lock().overlay.undo(kind, key);
                return Ok("{}".to_owned());
            }
            Next::Untold(why) => return Err(dry.untold(format!("{kind}: {why}"))),
        }
        self.check_support(dry, kind).await?;
        for _ in 0..LOOKS {
            let answer = self.ask_dry(dry, &intent).await?;
            let stored = self.stored(&intent, &answer).await?;
            // What it would be is of the state that it is compared with.
            let fits = |left: &Entry| {
                stored.as_ref().is_none_or(|stored| stored.version() == left.version())
            };
            if intent.verb == Verb::Delete || as_object(&answer).is_ok_and(|left| fits(&left)) {
                return dry.take(&intent, (stored, answer));
            }
        }
        Err(dry.untold(format!("{kind}: others kept changing it meanwhile")))
    }

    /// Whether a dry run of this kind may be sent at all.
    pub(super) async fn takes_dry_runs(&self, kind: &Kind) -> bool {
        match self.dry() {
            Some(dry) => self.check_support(dry, kind).await.is_ok(),
            None => true,
        }
    }

    async fn check_support(&self, dry: &Arc<Dry>, kind: &Kind) -> Result<(), Unwritten> {
        let Some(resource) = self.0.view.resource(kind) else { return Ok(()) };
        match dry.bench.support.takes_dry_runs(&resource).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(dry.untold(format!(
                "{kind}: another server than Kubernetes' own serves it, which may write on a dry run"
            ))),
            Err(error) => Err(dry.untold(format!(
                "{kind}: whether its server takes dry runs could not be asked: {error}"
            ))),
        }
    }

    /// One dry run.
    async fn ask_dry(&self, dry: &Arc<Dry>, intent: &Intent) -> Result<String, Unwritten> {
        dry.bench.tried();
        dry.state.lock().trial.asked += 1;
        let Some(call) = made_dry(intent.call.clone()) else {
            let text = "the write cannot be made a dry run".to_owned();
            return Err(Unwritten::Refused(Error::Unavailable(text)));
        };
        let (client, probe, asked) = (self.clone(), intent.clone(), clock::now());
        let task = self.0.account.control.spawn(async move {
            let gone = || client.check_guest(&probe);
            client.tried(call, Sort::Write, gone).await
        });
        let answer = task.await.unwrap_or_else(|error| {
            Err(Unwritten::Call(apiserver::Error::Connection(error.into())))
        });
        dry.bench.all.answered(clock::now().saturating_duration_since(asked));
        match answer {
            Err(Unwritten::Call(error)) => Err(self.refused_dry(dry, intent, error)),
            other => other,
        }
    }

    /// What a refusal of a dry run says of the write.
    fn refused_dry(&self, dry: &Arc<Dry>, intent: &Intent, error: apiserver::Error) -> Unwritten {
        self.note_conflict(intent, &error);
        let kind = &intent.kind;
        let namespace = intent.key.namespace.as_deref().unwrap_or_default();
        if answer::is_against_dry_runs(&error) {
            return dry.untold(format!("{kind}: {error}"));
        }
        if error.code() == Some(404) && dry.state.lock().overlay.makes_namespace(namespace) {
            return dry.untold(format!("{kind}: only this run would make its namespace"));
        }
        let is_changed = dry.state.lock().overlay.get(kind, &intent.key).is_some();
        if is_changed && error.code().is_some_and(|code| code < 500 && code != 429) {
            let why = "the server does not know what this run would have changed of it before";
            return dry.untold(format!("{kind}: {why}"));
        }
        // That another was faster, or that the object is there, is how a run finds its way.
        let is_usual = matches!(error.code(), Some(404 | 409)) || error.code().is_none();
        let mut state = dry.state.lock();
        if !is_usual && state.trial.refused.len() < WORDS {
            let text = format!("{:?} {kind}: {error}", intent.verb);
            state.trial.refused.push(crate::text::line(&text, crate::text::MESSAGE).into_owned());
        }
        drop(state);
        Unwritten::Call(error)
    }

    /// The object as it is, whole, of the version that a dry run was answered for; `None`: there is none.
    async fn stored(&self, intent: &Intent, answer: &str) -> Result<Option<Arc<Entry>>, Unwritten> {
        let (kind, key) = (&intent.kind, &intent.key);
        let left = as_object(answer).ok();
        let is_new = left.as_ref().is_some_and(|left| left.resource_version().is_empty());
        if key.name.is_empty() || (is_new && intent.verb != Verb::Delete) {
            return Ok(None);
        }
        let cached = self.0.view.entry(kind, key.namespace.as_deref(), &key.name);
        let is_whole = self.part(kind) != crate::watch::fingerprint::Part::Metadata;
        let is_it = |entry: &Arc<Entry>| {
            intent.verb == Verb::Delete
                || is_whole && left.as_ref().is_some_and(|left| left.version() == entry.version())
        };
        match cached.filter(is_it) {
            Some(entry) => Ok(Some(entry)),
            None => self.look_past(kind, key).await.map_err(Unwritten::Refused),
        }
    }
}

fn hashed(what: &dyn Fn(&mut DefaultHasher)) -> u64 {
    let mut hasher = DefaultHasher::new();
    what(&mut hasher);
    hasher.finish()
}

/// So many writes a minute, a sixth of them at once as of live ones; how small the bursts are the pace of all says.
fn pace(writes_per_minute: u32) -> (f64, f64) {
    let writes = f64::from(writes_per_minute.max(1));
    (writes / 60.0, writes / 6.0)
}

/// The same call, of which nothing is stored. A deletion has options in its body, and then those in the path do not count.
fn made_dry(mut call: Call) -> Option<Call> {
    let joint = if call.path.contains('?') { '&' } else { '?' };
    call.path = format!("{}{joint}dryRun=All", call.path);
    if call.method == Method::DELETE
        && let Some((media, text)) = call.body.take()
    {
        let mut options: Value = serde_json::from_str(&text).ok()?;
        options.as_object_mut()?.insert("dryRun".to_owned(), json!(["All"]));
        call.body = Some((media, options.to_string()));
    }
    Some(call)
}

/// Whether a call may leave a previewed run.
pub(super) fn is_dry(call: &Call) -> bool {
    let says_so = |text: &str| {
        let options: Value = serde_json::from_str(text).unwrap_or_default();
        options["dryRun"] == json!(["All"])
    };
    match call.method {
        Method::GET => true,
        Method::DELETE => {
            let body = call.body.as_ref();
            call.path.contains("dryRun=All") && body.is_none_or(|(_, text)| says_so(text))
        }
        _ => call.path.contains("dryRun=All"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::Media;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn what_was_tried_beyond_the_pace_is_waited_for() {
        let start = Instant::now();
        // One a second, one at once.
        let mut account = Account::new(Bucket::new(1.0, 1.0));
        assert_eq!(account.pay(start), None);
        (0..4).for_each(|_| account.tried(start));
        assert!(account.pay(start).is_some());
        assert!(account.pay(start + Duration::from_millis(2_500)).is_some(), "not yet the third");
        assert_eq!(account.debt, 2);
        let paid = (3..10).map(|second| account.pay(start + Duration::from_secs(second)).is_none());
        assert_eq!(paid.collect::<Vec<_>>(), [false, false, true, true, true, true, true]);
        assert_eq!(account.debt, 0, "and never less");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn the_slower_the_server_the_less_is_tried() {
        // Answers so many milliseconds late: of ten seconds, how many writes are tried by two that look in turns.
        let tried = |late: u64| {
            let mut account = Account::new(Bucket::new(MOST, BURST));
            let (start, late) = (Instant::now(), Duration::from_millis(late));
            let (mut now, mut count) = (start, 0);
            while now < start + Duration::from_secs(10) {
                match account.pay(now) {
                    Some(wait) => now += wait,
                    None => {
                        (0..2).for_each(|_| account.tried(now));
                        now += late;
                        (0..2).for_each(|_| account.answered(now, late));
                        count += 2;
                    }
                }
            }
            count
        };
        let counts = [1, 10, 100, 1_000, 60_000].map(tried);
        assert_eq!(counts, [1_508, 668, 68, 8, 2], "a fast one is asked as often as may be");
        let mut account = Account::new(Bucket::new(MOST, BURST));
        let start = Instant::now();
        (0..9).for_each(|_| account.answered(start, Duration::from_secs(60)));
        assert_eq!(account.pay(start), Some(LONGEST_REST), "one stall is no debt for ever");
        assert_eq!(account.pay(start + LONGEST_REST), None);
    }

    #[tokio::test]
    async fn another_list_is_another_state() {
        let key = |name: &str| ObjectKey::new(Some("demo"), name);
        let saw = |names: &[&str], gone: bool| {
            let api = apiserver::answering(|_| (404, None));
            let pace = (60, Arc::new(Pace::of_host()));
            let dry = Dry::new(Arc::new(Bench::new(api.clone(), Support::new(api), pace)));
            let keys: Vec<_> = names.iter().map(|name| key(name)).collect();
            let kind = Kind::new("v1", "Pod");
            dry.listed(&kind, "all of demo", keys.iter());
            if gone {
                dry.missed(&kind, &key("a"));
            }
            dry.end()
        };
        assert!(!saw(&["a"], false).saw_another_state(&saw(&["a"], false)));
        assert!(saw(&["a"], false).saw_another_state(&saw(&["a", "b"], false)));
        assert!(saw(&["a"], false).saw_another_state(&saw(&[], false)));
        assert!(!saw(&["a"], true).saw_another_state(&saw(&["a"], true)));
    }

    #[test]
    fn nothing_goes_out_that_is_not_dry() {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            for path in ["/api/v1/x", "/api/v1/x?fieldManager=a"] {
                let call = Call::new(method.clone(), path).body(Media::Json, r#"{"kind":"D"}"#);
                assert!(!is_dry(&call), "{call:?}");
                let dry = made_dry(call).unwrap();
                assert!(is_dry(&dry), "{dry:?}");
                assert_eq!(dry.path.matches('?').count(), 1);
            }
        }
        // The server reads the body's options alone.
        let path = "/api/v1/x?dryRun=All";
        assert!(!is_dry(&Call::new(Method::DELETE, path).body(Media::Json, "{}")));
        assert!(made_dry(Call::new(Method::DELETE, path).body(Media::Json, "[]")).is_none());
        assert!(is_dry(&Call::new(Method::GET, "/api/v1/x")));
    }
}
