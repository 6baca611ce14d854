//! What a revision says it needs: the guest's answer to `describe`, as plain values, checked once.
//!
//! Everything here comes from the guest and is believed only as a *request*: what a controller may really read
//! and write is its [`crate::access::grant`].
//!
//! Invariants: `a_manifest_is_refused_by_name_for_what_is_not_built`, `a_predicate_leaves_exactly_one_value`; how much it
//! may ask for is in `limits.rs`, and how a guest writes it in `wire.rs`.

mod limits;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

use nagaya_selector::Selector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kind::{Kind, same_kind};
use crate::text;
pub use wire::schema;

/// How much of each object a watch keeps.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Projection {
    /// The whole object.
    Full,
    /// apiVersion, kind and metadata only.
    Metadata,
}

impl Projection {
    /// The word for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Metadata => "metadata",
        }
    }
}

/// One step of a predicate in postfix notation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PredicateStep {
    /// `metadata.generation` differs, or the kind has none and anything differs.
    GenerationChanged,
    /// `metadata.resourceVersion` differs.
    ResourceVersionChanged,
    /// `metadata.labels` differ.
    LabelsChanged,
    /// `metadata.annotations` differ.
    AnnotationsChanged,
    /// The object before or after matches this label selector.
    MatchesLabels(String),
    /// Both of the two values on top.
    Both,
    /// Either of the two values on top.
    Either,
    /// The opposite of the value on top.
    Negate,
}

/// Where in a changed object the primary's name stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reference {
    /// Label key, annotation key or field path that holds the name.
    pub name: String,
    /// The same for the namespace; `None`: the changed object's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Which primaries a change wakes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mapping {
    /// The primary of the same namespace and name.
    Same,
    /// The primary in an owner reference of its group and kind.
    Owner,
    /// The same, only the controller reference.
    Controller,
    /// The primary named in a label.
    Label(Reference),
    /// The primary named in an annotation.
    Annotation(Reference),
    /// The primary named in a field.
    Field(Reference),
    /// The primaries whose index of this name holds the changed object's name.
    Index(String),
    /// Every primary.
    Every,
}

/// A watched kind: the primary, an owned kind or any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Watch {
    /// The kind.
    pub kind: Kind,
    /// How much of it is kept.
    pub projection: Projection,
    /// Label selector on the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<String>,
    /// Field selector on the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field_selector: Option<String>,
    /// Which changes count; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub predicate: Vec<PredicateStep>,
    /// Whom they wake.
    pub mapping: Mapping,
}

/// What a guest does to objects of a kind.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    /// Create.
    Create,
    /// Server-side apply.
    Apply,
    /// Server-side apply of the status.
    ApplyStatus,
    /// JSON or merge patch.
    Patch,
    /// Delete.
    Delete,
}

/// A written kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Write {
    /// The kind.
    pub kind: Kind,
    /// What is done to it.
    pub verbs: BTreeSet<Verb>,
}

/// A named index over the objects of a watched kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Its name.
    pub name: String,
    /// The indexed kind.
    pub kind: Kind,
    /// The field's path, segments separated by dots.
    pub path: String,
}

/// Everything a revision declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The reconciled kind; its mapping is always `same`, its projection `full`.
    pub primary: Watch,
    /// Kinds whose children name a primary as their controller; their mapping is `controller`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owned: Vec<Watch>,
    /// Other watched kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<Watch>,
    /// Kinds read live only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub live: Vec<Kind>,
    /// Kinds written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writes: Vec<Write>,
    /// Named indexes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indexes: Vec<Index>,
    /// Outbound HTTP destinations, as text; refused by [`Manifest::check`] while it is not built.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<String>,
    /// The controller's finalizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finalizer: Option<String>,
}

/// Why a manifest is refused; the text is shown to the team as it is.
#[derive(Debug, thiserror::Error)]
#[error("the manifest is refused: {0}")]
pub struct Error(String);

impl Error {
    fn new(text: &str) -> Self {
        // What is quoted in it is the guest's.
        Self(text::line(text, text::MESSAGE - 64).into_owned())
    }
}

impl Manifest {
    /// Every watch: the primary first, then owned kinds, then the others.
    pub fn all_watches(&self) -> impl Iterator<Item = &Watch> {
        std::iter::once(&self.primary).chain(&self.owned).chain(&self.watches)
    }

    /// Every kind that is watched, read live or written.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        let written = self.writes.iter().map(|write| &write.kind);
        self.all_watches().map(|watch| &watch.kind).chain(&self.live).chain(written)
    }

    /// The verbs declared on `kind`, whatever its version.
    pub fn verbs(&self, kind: &Kind) -> BTreeSet<Verb> {
        self.writes
            .iter()
            .filter(|write| same_kind(&write.kind, kind))
            .flat_map(|write| write.verbs.iter().copied())
            .collect()
    }

    /// Whether `kind` may be read at all, from the cache or live.
    pub fn reads(&self, kind: &Kind) -> bool {
        self.all_watches().any(|watch| same_kind(&watch.kind, kind))
            || self.live.iter().any(|live| same_kind(live, kind))
    }

    /// The projection under which `kind` is cached: full if any watch of it asks for that.
    pub fn projection(&self, kind: &Kind) -> Option<Projection> {
        self.all_watches()
            .filter(|watch| same_kind(&watch.kind, kind))
            .map(|watch| watch.projection)
            .min()
    }

    /// Refuses what the host cannot serve or cannot make sense of, by name.
    pub fn check(&self) -> Result<(), Error> {
        limits::check(self)?;
        if let Some(host) = self.http.first() {
            return refuse(&format!(
                "http names {host}, but outbound HTTP is not built yet; remove it from the manifest"
            ));
        }
        let mut index_names = BTreeSet::new();
        for index in &self.indexes {
            if !index_names.insert(&index.name) {
                return refuse(&format!("two indexes are called {}", index.name));
            }
            if !self.all_watches().any(|watch| same_kind(&watch.kind, &index.kind)) {
                return refuse(&format!(
                    "index {} is over {}, which no watch declares",
                    index.name, index.kind
                ));
            }
            if index.path.split('.').any(str::is_empty) {
                return refuse(&format!("index {} has the path {:?}", index.name, index.path));
            }
        }
        for watch in self.all_watches() {
            self.check_watch(watch)?;
        }
        self.check_kinds()?;
        match &self.finalizer {
            Some(name) if !is_qualified_name(name) => refuse(&format!(
                "the finalizer {name:?} must have the form group.example/name, as the API server wants it"
            )),
            _ => Ok(()),
        }
    }

    /// Refuses owned kinds whose objects no primary can own: the garbage collector would delete them. `is_namespaced`
    /// says how a kind is served.
    pub fn check_owned(&self, is_namespaced: impl Fn(&Kind) -> Option<bool>) -> Result<(), Error> {
        let primary = &self.primary.kind;
        if is_namespaced(primary) != Some(true) {
            return Ok(());
        }
        match self.owned.iter().find(|owned| is_namespaced(&owned.kind) == Some(false)) {
            None => Ok(()),
            Some(owned) => refuse(&format!(
                "{} is cluster-scoped, so {primary}, which is namespaced, cannot own it: Kubernetes would delete it. Watch it instead of owning it, mapped by a label, and delete it under a finalizer",
                owned.kind
            )),
        }
    }

    fn check_watch(&self, watch: &Watch) -> Result<(), Error> {
        let kind = &watch.kind;
        if kind.is_secret() && watch.projection == Projection::Full {
            return refuse(
                "Secret is watched with projection full; watch its metadata and read values with get-live",
            );
        }
        if let Some(text) = &watch.label_selector {
            Selector::parse(text)
                .map_err(|e| Error::new(&format!("the label selector of {kind}: {e}")))?;
        }
        check_predicate(&watch.predicate)
            .map_err(|e| Error::new(&format!("the predicate of {kind}: {e}")))?;
        match &watch.mapping {
            Mapping::Field(_) if watch.projection == Projection::Metadata => {
                refuse(&format!("{kind} is mapped by a field, which needs the projection full"))
            }
            Mapping::Index(name) => match self.indexes.iter().find(|index| &index.name == name) {
                None => refuse(&format!("{kind} is mapped by index {name}, which is not declared")),
                Some(index) if !same_kind(&index.kind, &self.primary.kind) => refuse(&format!(
                    "{kind} is mapped by index {name}, which is over {} and not over the primary kind",
                    index.kind
                )),
                Some(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Group and kind stand for one version each, or the same object would be cached in two shapes.
    fn check_kinds(&self) -> Result<(), Error> {
        let mut versions = BTreeMap::new();
        for kind in self.kinds() {
            if kind.kind.is_empty() || kind.version.is_empty() {
                return refuse(&format!("a kind has no name or no version: {kind:?}"));
            }
            let version = versions.entry((&kind.group, &kind.kind)).or_insert(&kind.version);
            if *version != &kind.version {
                return refuse(&format!("{kind} is used as {version} and as {}", kind.version));
            }
        }
        Ok(())
    }
}

fn refuse<T>(text: &str) -> Result<T, Error> {
    Err(Error::new(text))
}

fn check_predicate(steps: &[PredicateStep]) -> Result<(), String> {
    if steps.is_empty() {
        return Ok(());
    }
    let mut depth = 0_usize;
    for (position, step) in steps.iter().enumerate() {
        let takes = match step {
            PredicateStep::Both | PredicateStep::Either => 2,
            PredicateStep::Negate => 1,
            _ => 0,
        };
        if depth < takes {
            return Err(format!(
                "step {position} ({step:?}) takes {takes} values, but there are {depth}"
            ));
        }
        if let PredicateStep::MatchesLabels(text) = step {
            Selector::parse(text).map_err(|error| error.to_string())?;
        }
        depth = depth - takes + 1;
    }
    if depth == 1 {
        Ok(())
    } else {
        Err(format!("{depth} values are left at the end; there must be one"))
    }
}

fn is_qualified_name(name: &str) -> bool {
    let Some((prefix, rest)) = name.split_once('/') else { return false };
    let plain = |text: &str, extra: &str| {
        !text.is_empty()
            && text.len() <= text::NAME
            && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    plain(prefix, "-.") && plain(rest, "-_.") && rest.len() <= 63
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn config_map() -> Kind {
        Kind::new("v1", "ConfigMap")
    }

    pub(crate) fn watch(kind: Kind, mapping: Mapping) -> Watch {
        Watch {
            kind,
            projection: Projection::Full,
            label_selector: None,
            field_selector: None,
            predicate: vec![],
            mapping,
        }
    }

    pub(crate) fn manifest() -> Manifest {
        Manifest {
            primary: watch(Kind::new("example.com/v1", "Site"), Mapping::Same),
            owned: vec![watch(config_map(), Mapping::Controller)],
            watches: vec![],
            live: vec![],
            writes: vec![Write { kind: config_map(), verbs: [Verb::Apply].into() }],
            indexes: vec![],
            http: vec![],
            finalizer: None,
        }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Manifest), expected: &str) {
        let mut manifest = manifest();
        change(&mut manifest);
        let error = manifest.check().expect_err("must be refused").to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_manifest_is_refused_by_name_for_what_is_not_built() {
        manifest().check().unwrap();
        refused(
            |m| m.http.push("https://example.com:443".into()),
            "outbound HTTP is not built yet",
        );
        refused(|m| m.finalizer = Some("cleanup".into()), "group.example/name");
        refused(
            |m| m.watches.push(watch(Kind::new("v1", "Secret"), Mapping::Every)),
            "Secret is watched",
        );
        refused(
            |m| m.watches.push(watch(Kind::new("v2", "ConfigMap"), Mapping::Every)),
            "used as v1 and as v2",
        );
        refused(
            |m| m.watches.push(watch(config_map(), Mapping::Index("x".into()))),
            "not declared",
        );
    }

    #[test]
    fn a_predicate_leaves_exactly_one_value() {
        use PredicateStep::{Both, GenerationChanged as G, LabelsChanged as L, Negate};
        refused(|m| m.primary.predicate = vec![G, L], "2 values are left");
        refused(|m| m.primary.predicate = vec![G, Both], "takes 2 values");
        refused(
            |m| m.primary.predicate = vec![PredicateStep::MatchesLabels("a in b".into())],
            "predicate of Site",
        );
        let mut good = manifest();
        good.primary.predicate = vec![G, L, Both, Negate];
        good.check().unwrap();
    }

    #[test]
    fn a_namespaced_primary_owns_nothing_that_is_cluster_scoped() {
        let manifest = manifest();
        for (primary, owned, is_refused) in [
            (Some(true), Some(true), false),
            (Some(true), Some(false), true),
            (Some(false), Some(false), false),
            (Some(false), Some(true), false),
            (None, Some(false), false),
            (Some(true), None, false),
        ] {
            let scope = |kind: &Kind| if kind.kind == "Site" { primary } else { owned };
            let result = manifest.check_owned(scope);
            assert_eq!(result.is_err(), is_refused, "{primary:?} {owned:?}");
            if let Err(error) = result {
                assert!(error.to_string().contains("ConfigMap is cluster-scoped"), "{error}");
            }
        }
    }
}
