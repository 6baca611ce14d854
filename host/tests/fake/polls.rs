//! Counts how often each of the host's loops is polled: a loop that spins is as right as one that waits, only dearer.
//!
//! Each loop runs in a span called `loop`, which is entered for every poll.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::DefaultGuard,
};

/// So many polls of one loop are no longer a loop that waits: time would stand still for ever.
const ENDLESS: u64 = 50_000;

/// Counts while it lives, on its thread.
pub(crate) struct Polls {
    counts: Arc<Mutex<Counts>>,
    _guard: DefaultGuard,
}

#[derive(Default)]
struct Counts {
    made: u64,
    /// Kind and polls of each loop.
    loops: HashMap<u64, (String, u64)>,
}

struct Counter(Arc<Mutex<Counts>>);

impl Polls {
    /// Counts the polls of spans of this name from now on.
    pub(crate) fn count() -> Self {
        let counts = Arc::<Mutex<Counts>>::default();
        let guard = tracing::subscriber::set_default(Counter(counts.clone()));
        Self { counts, _guard: guard }
    }

    /// The polls of the busiest loop of each kind since the last call.
    pub(crate) fn most(&self) -> BTreeMap<String, u64> {
        let mut counts = self.counts.lock().unwrap();
        let mut most = BTreeMap::new();
        for (kind, polls) in counts.loops.values_mut() {
            let polls = std::mem::take(polls);
            let of_kind: &mut u64 = most.entry(kind.clone()).or_default();
            *of_kind = polls.max(*of_kind);
        }
        most
    }
}

/// The value of the field `of`.
#[derive(Default)]
struct Of(String);

impl Visit for Of {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "of" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl Subscriber for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && ["loop", "reconcile"].contains(&metadata.name())
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut of = Of::default();
        attributes.record(&mut of);
        let kind = if of.0.is_empty() { attributes.metadata().name().to_owned() } else { of.0 };
        let mut counts = self.0.lock().unwrap();
        counts.made += 1;
        let id = counts.made;
        counts.loops.insert(id, (kind, 0));
        Id::from_u64(id)
    }

    fn enter(&self, span: &Id) {
        let mut counts = self.0.lock().unwrap();
        let Some((kind, polls)) = counts.loops.get_mut(&span.into_u64()) else { return };
        *polls += 1;
        if *polls == ENDLESS {
            let kind = kind.clone();
            drop(counts);
            // A panic would end one task, and the test would wait for ever.
            eprintln!("the loop `{kind}` spins: {ENDLESS} polls");
            std::process::exit(101);
        }
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn exit(&self, _: &Id) {}
}
