//! What comes from outside at and beyond each limit, in thousands: the host keeps its size, and every refusal is a sentence.

#![cfg(test)] // Tells clippy that helpers are test code too.

use std::time::Duration;

use nagaya::{
    apiserver::{ApiServer, Identity},
    events::{self, Event},
    kubeconfig::Source,
    model::{
        kind::Kind,
        manifest::{
            Index, Manifest, Mapping, PredicateStep, Projection, Reference, Verb, Watch, Write,
        },
        object::{ObjectReference, Severity},
    },
    text,
    watch::{Change, Entry, Trigger, envelope},
};
use nagaya_selector::Selector;
use serde_json::json;

const MIB: usize = 1 << 20;
/// What the host may hold more than before.
const MORE: usize = 32 * MIB;
/// A refusal, with the quotation of what is refused.
const SENTENCE: usize = 2 * text::MESSAGE;

/// A seeded generator: what fails once fails again. A tame one stays within the limits.
struct Random(fastrand::Rng, bool);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound.max(1))
    }

    /// Mostly small; at a limit, just beyond it, or far beyond it otherwise.
    fn size(&mut self, limit: usize, far: usize) -> usize {
        match self.below(8) {
            0 => limit.min(if self.1 { 300 } else { limit }),
            1 | 2 if self.1 => 1,
            1 => limit + 1,
            2 => far,
            _ => 1 + self.below(limit.min(6)),
        }
    }

    /// A text of about so many bytes, of which some would forge a line or do not fit into a name.
    fn text(&mut self, bytes: usize) -> String {
        let piece =
            ["n", "n", "n", "n", "ä", "…", "\n", "\u{1b}[2J", "\u{202e}", "\0"][self.below(10)];
        if self.1 || self.below(2) == 0 {
            "n".repeat(bytes)
        } else {
            piece.repeat(bytes / piece.len() + 1)
        }
    }

    fn word(&mut self, limit: usize) -> String {
        let bytes = self.size(limit, 50_000);
        self.text(bytes)
    }

    fn kind(&mut self) -> Kind {
        match self.below(6) {
            0 => Kind { group: self.word(253), version: self.word(63), kind: self.word(63) },
            _ => Kind::new("example.com/v1", &format!("Kind{}", self.below(100))),
        }
    }

    fn selector(&mut self) -> String {
        let count = self.size(64, 50_000);
        match if self.1 { 0 } else { self.below(3) } {
            0 => vec!["a=b"; count].join(","),
            1 => format!("a in ({})", vec!["b"; self.size(2_044, 300_000)].join(",")),
            _ => self.word(4_096),
        }
    }

    fn watch(&mut self) -> Watch {
        let path = |random: &mut Self| match random.below(3) {
            0 => "spec.names".to_owned(),
            1 => vec!["p"; random.size(16, 20_000)].join("."),
            _ => random.word(256),
        };
        let reference = |random: &mut Self| Reference {
            name: path(random),
            namespace: (random.below(3) == 0).then(|| path(random)),
        };
        let mapping = match self.below(8) {
            0 => Mapping::Label(reference(self)),
            1 => Mapping::Annotation(reference(self)),
            2 => Mapping::Field(reference(self)),
            3 if !self.1 => Mapping::Index(self.word(63)),
            4 => Mapping::Every,
            5 => Mapping::Owner,
            _ => Mapping::Controller,
        };
        let steps = if self.below(4) == 0 { self.size(64, 5_000) } else { 0 };
        let mut predicate = vec![PredicateStep::Negate; steps];
        if let Some(first) = predicate.first_mut() {
            *first = if self.below(2) == 0 {
                PredicateStep::MatchesLabels(self.selector())
            } else {
                PredicateStep::GenerationChanged
            };
        }
        Watch {
            kind: self.kind(),
            projection: if self.1 || self.below(2) == 0 {
                Projection::Full
            } else {
                Projection::Metadata
            },
            label_selector: (self.below(4) == 0).then(|| self.selector()),
            field_selector: (self.below(6) == 0).then(|| self.word(1_024)),
            predicate,
            mapping,
        }
    }

    fn many<T>(&mut self, limit: usize, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        let count = if self.below(6) == 0 { self.size(limit, 3 * limit) } else { self.below(3) };
        (0..count).map(|_| make(self)).collect()
    }

    fn manifest(&mut self) -> Manifest {
        self.1 = self.below(2) == 0;
        let manifest = Manifest {
            primary: Watch { mapping: Mapping::Same, projection: Projection::Full, ..self.watch() },
            owned: self.many(64, |random| Watch { mapping: Mapping::Controller, ..random.watch() }),
            watches: self.many(64, Self::watch),
            live: self.many(64, Self::kind),
            writes: self
                .many(128, |random| Write { kind: random.kind(), verbs: [Verb::Apply].into() }),
            indexes: if self.1 { vec![] } else { self.indexes() },
            http: vec![],
            finalizer: (self.below(4) == 0).then(|| format!("example.com/{}", self.word(63))),
        };
        self.1 = false;
        manifest
    }

    fn indexes(&mut self) -> Vec<Index> {
        self.many(32, |random| Index {
            name: random.word(63),
            kind: random.kind(),
            path: random.word(256),
        })
    }

    fn event(&mut self) -> Event {
        let team = format!("team-{}", self.below(30));
        let account =
            Identity::ServiceAccount { namespace: team.as_str().into(), name: "c".into() };
        Event {
            identity: if self.below(4) == 0 { Identity::Host } else { account },
            controller: format!("{team}/c{}", self.below(3)),
            regarding: ObjectReference {
                kind: self.kind(),
                namespace: Some(self.word(253)),
                name: self.word(600_000),
            },
            uid: Some(self.word(36)),
            severity: Severity::Warning,
            reason: self.word(128),
            action: self.word(128),
            note: self.word(1_024),
        }
    }

    /// An object that names so many primaries, of which some cannot be.
    fn object(&mut self) -> Entry {
        let names = self.size(500, 5_000);
        let names: Vec<_> = (0..names).map(|number| format!("{}{number}", self.text(3))).collect();
        let labels = json!({ "n": "x" });
        let version = (1 + self.below(1_000_000)).to_string();
        let text = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "spec": { "names": names },
            "metadata": { "name": "c", "namespace": "n", "uid": "u", "resourceVersion": version, "labels": labels },
        });
        envelope::object(&text.to_string()).unwrap()
    }
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

#[track_caller]
fn is_sentence(what: &str, refusal: &str) {
    let plain = !refusal.contains(char::is_control) && refusal.contains(' ');
    assert!(plain && refusal.len() <= SENTENCE, "{what}: {} bytes: {refusal:?}", refusal.len());
}

/// An API server that nobody can reach: what is sent to it waits as long as it may.
async fn unreachable() -> ApiServer {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let cluster = json!({ "server": "http://127.0.0.1:9" });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": cluster }],
        "users": [{ "name": "c", "user": {} }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "c" } }],
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let source = Source { file: Some(file), ..Source::default() };
    ApiServer::connect(&source, "test").await.unwrap()
}

/// Seen from outside: 100 names of 600 kB were 400 MiB for good, one selector of 700 kB 42 MiB for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_of_each_at_and_beyond_the_limits_leave_the_host_as_it_was() {
    let mut random = Random(fastrand::Rng::with_seed(1), false);
    let (recorder, sender) = events::recorder(unreachable().await, "test".to_owned());
    let sending = tokio::spawn(sender.run());
    let site = nagaya::apiserver::Resource {
        kind: Kind::new("example.com/v1", "Site"),
        plural: "sites".to_owned(),
        namespaced: true,
        has_status: true,
    };
    // What accepted revisions keep, each in place of an older one.
    let mut kept: Vec<(Manifest, Vec<Trigger>)> = vec![];
    let (mut accepted, mut refused, mut base) = (0, 0, 0);
    for round in 0..1_100 {
        if round == 100 {
            // Pages of the allocator, threads and tables are there by now.
            base = resident();
        }
        let manifest = random.manifest();
        match manifest.check() {
            Ok(()) => {
                accepted += 1;
                let triggers =
                    manifest.all_watches().map(|watch| Trigger::new(watch, &site).unwrap());
                let triggers = triggers.collect();
                kept.push((manifest, triggers));
                if kept.len() > 50 {
                    kept.remove(0);
                }
            }
            Err(error) => {
                refused += 1;
                is_sentence("a manifest", &error.to_string());
            }
        }
        if let Err(error) = Selector::parse(&random.selector()) {
            is_sentence("a selector", &error.to_string().escape_default().to_string());
        }
        let change = Change { old: None, new: Some(random.object().into()) };
        for (_, triggers) in &kept {
            let wakes = triggers.iter().map(|trigger| trigger.wakes(&change).len());
            assert!(wakes.max() <= Some(500));
        }
        for _ in 0..3 {
            recorder.record(random.event());
        }
        let message = random.word(1_024);
        assert!(text::line(&message, 1_024).len() <= 1_024);
        assert!(text::cut_owned(message, 1_024).capacity() <= 1_024);
        tokio::task::yield_now().await;
    }
    let more = resident().saturating_sub(base);
    assert!(more < MORE, "the host holds {} MiB more", more / MIB);
    assert!(accepted > 200 && refused > 200, "{accepted} accepted, {refused} refused");
    sending.abort();
    tokio::time::timeout(Duration::from_secs(10), sending).await.unwrap().unwrap_err();
}
