//! How much a manifest may ask for: every list is counted and every text measured before anything is made of them; pure.
//!
//! What is declared costs the host connections, caches and memory, whether or not its account may see anything.
//!
//! Invariants: `every_list_and_text_of_a_manifest_has_a_limit`, `a_refusal_is_one_short_sentence`.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, Manifest, Mapping, PredicateStep, Reference, Watch, refuse};
use crate::{model::kind::Kind, text};

/// Owned kinds, other watches, kinds read live.
const KINDS: usize = 64;
/// Written kinds.
const WRITES: usize = 128;
/// Named indexes.
const INDEXES: usize = 32;
/// Different watches of one kind: each is a connection and a cache of its own.
const PER_KIND: usize = 8;
/// Steps of one predicate.
const STEPS: usize = 64;
/// Bytes of a field selector.
const FIELD_SELECTOR: usize = 1_024;
/// Conditions of a field selector.
const FIELD_CONDITIONS: usize = 16;
/// Bytes of an index's name, a version or a kind.
const WORD: usize = 63;
/// Bytes of a label's or annotation's key: prefix, slash and name.
const KEY: usize = text::NAME + 1 + WORD;
/// Bytes of the path of a field.
const PATH: usize = 256;
/// Segments of the path of a field.
const SEGMENTS: usize = 16;
/// Bytes of all texts together.
const TOTAL: usize = 64 << 10;

/// Refuses what is more than a host can keep for one revision, and says how much there may be.
pub(super) fn check(manifest: &Manifest) -> Result<(), Error> {
    for (what, count, most) in [
        ("owned kinds", manifest.owned.len(), KINDS),
        ("watches", manifest.watches.len(), KINDS),
        ("kinds under live", manifest.live.len(), KINDS),
        ("writes", manifest.writes.len(), WRITES),
        ("indexes", manifest.indexes.len(), INDEXES),
    ] {
        if count > most {
            return refuse(&format!(
                "it has {count} {what}, and a revision may have at most {most}: leave out what is not needed, or divide the \
                 work between several controllers"
            ));
        }
    }
    let mut sizes = Sizes::default();
    for kind in manifest.kinds() {
        sizes.kind(kind)?;
    }
    for watch in manifest.all_watches() {
        check_watch(watch, &mut sizes)?;
    }
    for index in &manifest.indexes {
        sizes.kind(&index.kind)?;
        sizes.text("the name of an index", &index.name, WORD)?;
        sizes.path(&index.path)?;
    }
    if let Some(finalizer) = &manifest.finalizer {
        sizes.text("the finalizer", finalizer, KEY)?;
    }
    check_per_kind(manifest)?;
    sizes.check_total()
}

fn check_watch(watch: &Watch, sizes: &mut Sizes) -> Result<(), Error> {
    let kind = &watch.kind;
    // How long a label selector may be is said by its parser, with everything else about it.
    sizes.total += watch.label_selector.as_deref().map_or(0, str::len);
    if let Some(selector) = &watch.field_selector {
        sizes.text("a field selector", selector, FIELD_SELECTOR)?;
        let conditions = selector.split(',').count();
        if conditions > FIELD_CONDITIONS {
            return refuse(&format!(
                "the field selector of {kind} has {conditions} conditions, and there may be at most {FIELD_CONDITIONS}"
            ));
        }
    }
    if watch.predicate.len() > STEPS {
        return refuse(&format!(
            "the predicate of {kind} has {} steps, and there may be at most {STEPS}: decide the rest in reconcile",
            watch.predicate.len()
        ));
    }
    for step in &watch.predicate {
        if let PredicateStep::MatchesLabels(selector) = step {
            sizes.total += selector.len();
        }
    }
    match &watch.mapping {
        Mapping::Label(at) | Mapping::Annotation(at) => {
            for key in keys(at) {
                sizes.text("the key of a label or annotation", key, KEY)?;
            }
            Ok(())
        }
        Mapping::Field(at) => keys(at).try_for_each(|path| sizes.path(path)),
        Mapping::Index(name) => sizes.text("the name of an index", name, WORD),
        Mapping::Same | Mapping::Owner | Mapping::Controller | Mapping::Every => Ok(()),
    }
}

fn keys(at: &Reference) -> impl Iterator<Item = &String> {
    std::iter::once(&at.name).chain(&at.namespace)
}

/// Equal watches share a cache, others do not.
fn check_per_kind(manifest: &Manifest) -> Result<(), Error> {
    let mut different = BTreeMap::<_, BTreeSet<_>>::new();
    for Watch { kind, label_selector, field_selector, projection, .. } in manifest.all_watches() {
        let of_kind = different.entry((&kind.group, &kind.kind)).or_default();
        of_kind.insert((label_selector, field_selector, projection));
        if of_kind.len() > PER_KIND {
            return refuse(&format!(
                "{kind} is watched under more than {PER_KIND} different selectors, each of which is a connection and a cache of \
                 its own: watch it once, and select with list or an index"
            ));
        }
    }
    Ok(())
}

/// Measures texts one by one and all together.
#[derive(Default)]
struct Sizes {
    total: usize,
}

impl Sizes {
    fn text(&mut self, what: &str, text: &str, most: usize) -> Result<(), Error> {
        self.total += text.len();
        if text.len() <= most {
            return Ok(());
        }
        let (bytes, shown) = (text.len(), text::line(text, 40));
        refuse(&format!("{what} has {bytes} bytes, and there may be at most {most}: {shown}"))
    }

    fn kind(&mut self, kind: &Kind) -> Result<(), Error> {
        self.text("the group of a kind", &kind.group, text::NAME)?;
        self.text("the version of a kind", &kind.version, WORD)?;
        self.text("the name of a kind", &kind.kind, WORD)?;
        let fits = |text: &str, extra: &str| {
            text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        if fits(&kind.group, "-.") && fits(&kind.version, "-") && fits(&kind.kind, "-") {
            return Ok(());
        }
        let shown = format!("{}, {}", kind.api_version(), kind.kind);
        refuse(&format!("{} is no apiVersion and kind", text::line(&shown, 100)))
    }

    fn path(&mut self, path: &str) -> Result<(), Error> {
        self.text("the path of a field", path, PATH)?;
        let segments = path.split('.').count();
        if segments <= SEGMENTS {
            return Ok(());
        }
        refuse(&format!(
            "the path {} has {segments} segments, and there may be at most {SEGMENTS}",
            text::line(path, PATH)
        ))
    }

    fn check_total(&self) -> Result<(), Error> {
        if self.total <= TOTAL {
            return Ok(());
        }
        refuse(&format!(
            "its names, selectors and paths have {} bytes, and there may be at most {TOTAL} in all",
            self.total
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{config_map, manifest, watch},
        *,
    };
    use crate::model::manifest::{Index, Projection, Write};

    fn kind(number: usize) -> Kind {
        Kind::new("example.com/v1", &format!("K{number}"))
    }

    fn selecting(selector: impl Into<String>) -> Watch {
        Watch { label_selector: Some(selector.into()), ..watch(config_map(), Mapping::Every) }
    }

    fn index(name: impl Into<String>, path: impl Into<String>) -> Index {
        Index { name: name.into(), kind: config_map(), path: path.into() }
    }

    fn reference(name: String) -> Reference {
        Reference { name, namespace: None }
    }

    /// One way for a manifest to be large, as far as a number says.
    type Grow = fn(&mut Manifest, usize);

    /// Every one of them with what there may be, and a word of the sentence beyond it.
    const LIMITS: &[(usize, &str, Grow)] = &[
        (KINDS, "owned kinds", |m, n| {
            m.owned = (0..n).map(|n| watch(kind(n), Mapping::Controller)).collect();
        }),
        (KINDS, "watches", |m, n| {
            m.watches = (0..n).map(|n| watch(kind(n), Mapping::Every)).collect();
        }),
        (KINDS, "kinds under live", |m, n| m.live = (0..n).map(kind).collect()),
        (WRITES, "writes", |m, n| {
            m.writes = (0..n).map(|n| Write { kind: kind(n), verbs: [].into() }).collect();
        }),
        (INDEXES, "indexes", |m, n| {
            m.indexes = (0..n).map(|n| index(format!("i{n}"), "a.b")).collect();
        }),
        // The manifest owns ConfigMaps, under no selector.
        (PER_KIND - 1, "different selectors", |m, n| {
            m.watches = (0..n).map(|n| selecting(format!("a=b{n}"))).collect();
        }),
        (PER_KIND, "different selectors", |m, n| {
            let metadata = |n: usize| Watch {
                projection: Projection::Metadata,
                field_selector: Some(format!("metadata.name=n{n}")),
                ..watch(Kind::new("v1", "Secret"), Mapping::Every)
            };
            m.watches = (0..n).map(metadata).collect();
        }),
        (STEPS, "steps", |m, n| {
            m.primary.predicate = vec![PredicateStep::Negate; n];
            m.primary.predicate[0] = PredicateStep::LabelsChanged;
        }),
        (4_096, "label selector", |m, n| {
            m.watches.push(selecting(format!("a in ({})", &"b,".repeat(n)[..n - 7])));
        }),
        (64, "label selector", |m, n| m.primary.label_selector = Some(vec!["!a"; n].join(","))),
        (64, "predicate of Site", |m, n| {
            m.primary.predicate = vec![PredicateStep::MatchesLabels(vec!["a=b"; n].join(","))];
        }),
        (FIELD_SELECTOR, "field selector", |m, n| {
            m.primary.field_selector = Some("x".repeat(n));
        }),
        (FIELD_CONDITIONS, "conditions", |m, n| {
            m.primary.field_selector = Some(vec!["a=b"; n].join(","));
        }),
        (KEY, "label or annotation", |m, n| {
            m.owned[0].mapping = Mapping::Label(reference("k".repeat(n)));
        }),
        (KEY, "label or annotation", |m, n| {
            m.owned[0].mapping = Mapping::Annotation(reference("k".repeat(n)));
        }),
        (PATH, "path of a field", |m, n| {
            m.owned[0].mapping = Mapping::Field(reference("p".repeat(n)));
        }),
        (SEGMENTS, "segments", |m, n| {
            m.owned[0].mapping = Mapping::Field(reference(vec!["p"; n].join(".")));
        }),
        (PATH, "path of a field", |m, n| m.indexes = vec![index("i", "p".repeat(n))]),
        (SEGMENTS, "segments", |m, n| m.indexes = vec![index("i", vec!["p"; n].join("."))]),
        (WORD, "name of an index", |m, n| m.indexes = vec![index("i".repeat(n), "p")]),
        (text::NAME, "group of a kind", |m, n| {
            m.live = vec![Kind::new(&format!("{}/v1", "g".repeat(n)), "K")];
        }),
        (WORD, "version of a kind", |m, n| m.live = vec![Kind::new(&"v".repeat(n), "K")]),
        (WORD, "name of a kind", |m, n| m.live = vec![Kind::new("v1", &"K".repeat(n))]),
        (16, "in all", |m, n| {
            let long = |at: usize| Watch {
                kind: kind(at),
                ..selecting(format!("a in ({})", vec!["b"; 1_970].join(",")))
            };
            m.watches = (0..n).map(long).collect();
        }),
    ];

    #[test]
    fn every_list_and_text_of_a_manifest_has_a_limit() {
        for (most, words, grow) in LIMITS {
            let check = |size: usize| {
                let mut manifest = manifest();
                grow(&mut manifest, size);
                manifest.check().map_err(|error| error.to_string())
            };
            assert_eq!(check(*most), Ok(()), "{words}");
            let error = check(most + 1).expect_err(words);
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    /// However large what is refused is, and whatever is in it.
    #[test]
    fn a_refusal_is_one_short_sentence() {
        for (most, words, grow) in LIMITS {
            let mut manifest = manifest();
            grow(&mut manifest, most * 1_000);
            let error = manifest.check().expect_err(words).to_string();
            assert!(error.len() <= text::MESSAGE, "{words}: {} bytes", error.len());
        }
        let forged = "a\nERROR nagaya: forged\u{1b}[31m".repeat(1_000);
        let all: [fn(&mut Manifest, String); 8] = [
            |m, text| m.http = vec![text],
            |m, text| m.finalizer = Some(text),
            |m, text| m.primary.label_selector = Some(text),
            |m, text| m.primary.field_selector = Some(text),
            |m, text| m.primary.predicate = vec![PredicateStep::MatchesLabels(text)],
            |m, text| m.owned[0].mapping = Mapping::Index(text),
            |m, text| m.indexes = vec![index(text.clone(), "a"), index(text, "a")],
            |m, text| {
                m.live = vec![Kind { group: text.clone(), version: text.clone(), kind: text }];
            },
        ];
        for (number, put) in all.iter().enumerate() {
            for length in [10, 30, 60, 250, forged.len()] {
                let mut manifest = manifest();
                put(&mut manifest, forged[..length].to_owned());
                let Err(error) = manifest.check() else {
                    // A field selector is the API server's to judge.
                    assert_eq!(number, 3);
                    continue;
                };
                let error = error.to_string();
                assert!(
                    error.len() <= text::MESSAGE && !error.contains(char::is_control),
                    "{error:?}"
                );
            }
        }
    }
}
