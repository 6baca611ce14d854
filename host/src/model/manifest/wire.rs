//! The manifest as a guest writes it: JSON text with a published schema (`wit/manifest.schema.json`).
//!
//! Text, because a record of the component model cannot grow: a field more, and no component of any language that is there
//! already would load. A field that is not known is refused and never ignored: what it asks for would not be done.
//!
//! Invariants: `the_published_schema_is_that_of_these_types`, `the_published_example_is_read_whole`,
//! `what_is_not_known_is_refused_by_name_and_place`.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Error, Index, Manifest, Mapping, PredicateStep, Projection, Verb, Watch, Write, refuse,
};
use crate::{model::kind::Kind, text};

/// Bytes of a manifest; what the host keeps of it is counted more closely.
const TEXT: usize = 1 << 20;
/// Conditions within conditions.
const DEPTH: usize = 16;

/// What a revision needs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Manifest of a reconciler")]
struct Wire {
    /// The kind that the controller reconciles. It stays the same for the controller's life.
    primary: Primary,
    /// Kinds that the controller makes, with the primary as their controller: a change of a child wakes its primary.
    #[serde(default)]
    owns: Vec<Owned>,
    /// Other kinds whose changes wake primaries, or that the guest reads from the cache.
    #[serde(default)]
    watches: Vec<Watched>,
    /// Kinds that are only read by `cluster.get-live`, Secrets among them.
    #[serde(default)]
    reads_live: Vec<Named>,
    /// Kinds that the guest writes, and how.
    #[serde(default)]
    writes: Vec<Written>,
    /// Named indexes, for `cluster.find` and for waking by `index`.
    #[serde(default)]
    indexes: Vec<Indexed>,
    /// Destinations of outbound HTTP. Not served yet: a manifest that names one is refused.
    #[serde(default)]
    http: Vec<Destination>,
    /// The controller's finalizer (`group.example/name`). The host adds it before the first run of an object, the guest takes
    /// it away when its cleanup is done. The first revision's choice holds for the controller's life.
    #[serde(default)]
    finalizer: Option<String>,
}

/// A kind as an object names it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Named {
    /// `v1`, `apps/v1`, `example.com/v1alpha1`.
    api_version: String,
    /// `ConfigMap`, `Deployment`.
    kind: String,
}

/// The reconciled kind.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Primary {
    /// Its group and version.
    api_version: String,
    /// Its name.
    kind: String,
    /// Only objects that match this label selector.
    #[serde(default)]
    label_selector: Option<String>,
    /// Only objects that match this field selector.
    #[serde(default)]
    field_selector: Option<String>,
    /// Which changes of a primary wake it; absent: all. Mostly `generationChanged`.
    #[serde(default)]
    when: Option<When>,
}

/// A kind that the controller makes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Owned {
    /// Its group and version.
    api_version: String,
    /// Its name.
    kind: String,
    /// How much of each object is kept and returned; absent: `metadata`.
    #[serde(default)]
    projection: Option<Projection>,
    /// Only objects that match this label selector.
    #[serde(default)]
    label_selector: Option<String>,
    /// Only objects that match this field selector.
    #[serde(default)]
    field_selector: Option<String>,
    /// Which changes of a child wake its primary; absent: all.
    #[serde(default)]
    when: Option<When>,
}

/// Another watched kind.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Watched {
    /// Its group and version.
    api_version: String,
    /// Its name.
    kind: String,
    /// How much of each object is kept and returned; absent: `full`.
    #[serde(default)]
    projection: Option<Projection>,
    /// Only objects that match this label selector.
    #[serde(default)]
    label_selector: Option<String>,
    /// Only objects that match this field selector.
    #[serde(default)]
    field_selector: Option<String>,
    /// Which changes count; absent: all.
    #[serde(default)]
    when: Option<When>,
    /// Which primaries a change wakes. The object before and the object after the change are both asked, so that a primary
    /// hears of an object that has just left it.
    wakes: Mapping,
}

/// Which changes count. It sees the object before and after a change. Creation and deletion always pass the
/// `…Changed` tests; an unchanged object that is delivered again passes none of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum When {
    /// `metadata.generation` differs, or the kind has no generation and anything differs.
    GenerationChanged,
    /// `metadata.resourceVersion` differs.
    ResourceVersionChanged,
    /// `metadata.labels` differ.
    LabelsChanged,
    /// `metadata.annotations` differ.
    AnnotationsChanged,
    /// The object, before or after the change, matches this label selector (`a=b,c!=d,e in (f,g),!h`).
    MatchesLabels(String),
    /// All of these; at least one.
    All(Vec<When>),
    /// At least one of these; at least one.
    Any(Vec<When>),
    /// Not this.
    Not(Box<When>),
}

/// A kind that the controller writes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    /// Its group and version.
    api_version: String,
    /// Its name.
    kind: String,
    /// What the guest does to it; the account's RBAC must allow the same.
    verbs: BTreeSet<Verb>,
}

/// A named index over the objects of a watched kind.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Indexed {
    /// Its name, unique in the manifest.
    name: String,
    /// The indexed kind's group and version.
    api_version: String,
    /// The indexed kind: the primary kind or a watched one, with projection `full` unless the path is in metadata.
    kind: String,
    /// Path of the field whose value is indexed (`spec.claimRef.name`); a list of strings gives one entry for each.
    path: String,
}

/// A destination of outbound HTTP.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Destination {
    /// Scheme, host and port: `https://api.example.com:443`.
    origin: String,
    /// Methods, in capitals.
    methods: Vec<String>,
}

impl Manifest {
    /// Reads what `describe` has answered; [`Manifest::check`] says whether it can be served.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > TEXT {
            return refuse(&format!(
                "it has {} bytes, and there may be at most {TEXT}",
                text.len()
            ));
        }
        let json = &mut serde_json::Deserializer::from_str(text);
        let wire: Wire = serde_path_to_error::deserialize(json).map_err(|error| {
            let place = error.path().to_string();
            unread(&place, error.inner())
        })?;
        wire.try_into()
    }
}

fn unread(place: &str, error: &serde_json::Error) -> Error {
    let why = error.to_string();
    let newer = if why.starts_with("unknown field") || why.starts_with("unknown variant") {
        "; if it is spelt right, a newer host knows it"
    } else {
        ""
    };
    // What is quoted of it is the guest's, and the reason comes after it.
    let at = match place {
        "." => String::new(),
        place => format!("at {}: ", text::line(place, 100)),
    };
    Error::new(&format!("{at}{why}{newer}"))
}

impl TryFrom<Wire> for Manifest {
    type Error = Error;

    fn try_from(wire: Wire) -> Result<Self, Error> {
        Ok(Self {
            primary: wire.primary.try_into()?,
            owned: wire.owns.into_iter().map(Watch::try_from).collect::<Result<_, _>>()?,
            watches: wire.watches.into_iter().map(Watch::try_from).collect::<Result<_, _>>()?,
            live: wire.reads_live.iter().map(|it| Kind::new(&it.api_version, &it.kind)).collect(),
            writes: wire.writes.into_iter().map(Into::into).collect(),
            indexes: wire.indexes.into_iter().map(Into::into).collect(),
            http: wire.http.iter().map(Destination::text).collect(),
            finalizer: wire.finalizer,
        })
    }
}

impl TryFrom<Primary> for Watch {
    type Error = Error;

    fn try_from(it: Primary) -> Result<Self, Error> {
        let selectors = [it.label_selector, it.field_selector];
        let kind = Kind::new(&it.api_version, &it.kind);
        watched(kind, selectors, it.when, (Projection::Full, Mapping::Same))
    }
}

impl TryFrom<Owned> for Watch {
    type Error = Error;

    fn try_from(it: Owned) -> Result<Self, Error> {
        let selectors = [it.label_selector, it.field_selector];
        let kind = Kind::new(&it.api_version, &it.kind);
        let projection = it.projection.unwrap_or(Projection::Metadata);
        watched(kind, selectors, it.when, (projection, Mapping::Controller))
    }
}

impl TryFrom<Watched> for Watch {
    type Error = Error;

    fn try_from(it: Watched) -> Result<Self, Error> {
        let selectors = [it.label_selector, it.field_selector];
        let kind = Kind::new(&it.api_version, &it.kind);
        let projection = it.projection.unwrap_or(Projection::Full);
        watched(kind, selectors, it.when, (projection, it.wakes))
    }
}

/// serde cannot flatten a common part of types that refuse unknown fields, so the three meet here.
fn watched(
    kind: Kind,
    [label_selector, field_selector]: [Option<String>; 2],
    when: Option<When>,
    (projection, mapping): (Projection, Mapping),
) -> Result<Watch, Error> {
    let predicate = steps(when, &kind.kind)?;
    Ok(Watch { kind, projection, label_selector, field_selector, predicate, mapping })
}

impl From<Written> for Write {
    fn from(Written { api_version, kind, verbs }: Written) -> Self {
        Self { kind: Kind::new(&api_version, &kind), verbs }
    }
}

impl From<Indexed> for Index {
    fn from(Indexed { name, api_version, kind, path }: Indexed) -> Self {
        Self { name, kind: Kind::new(&api_version, &kind), path }
    }
}

impl Destination {
    fn text(&self) -> String {
        format!("{} {}", self.methods.join(","), self.origin)
    }
}

/// The expression in postfix notation, which is how it is evaluated.
fn steps(when: Option<When>, kind: &str) -> Result<Vec<PredicateStep>, Error> {
    let mut steps = vec![];
    if let Some(when) = when {
        when.write(&mut steps, 0).map_err(|why| Error::new(&format!("`when` of {kind}: {why}")))?;
    }
    Ok(steps)
}

impl When {
    fn write(self, steps: &mut Vec<PredicateStep>, depth: usize) -> Result<(), String> {
        if depth > DEPTH {
            return Err(format!("more than {DEPTH} conditions lie within one another"));
        }
        let step = match self {
            Self::GenerationChanged => PredicateStep::GenerationChanged,
            Self::ResourceVersionChanged => PredicateStep::ResourceVersionChanged,
            Self::LabelsChanged => PredicateStep::LabelsChanged,
            Self::AnnotationsChanged => PredicateStep::AnnotationsChanged,
            Self::MatchesLabels(selector) => PredicateStep::MatchesLabels(selector),
            Self::Not(inner) => {
                inner.write(steps, depth + 1)?;
                PredicateStep::Negate
            }
            Self::All(list) => return joined(list, &PredicateStep::Both, (steps, depth)),
            Self::Any(list) => return joined(list, &PredicateStep::Either, (steps, depth)),
        };
        steps.push(step);
        Ok(())
    }
}

fn joined(
    list: Vec<When>,
    by: &PredicateStep,
    (steps, depth): (&mut Vec<PredicateStep>, usize),
) -> Result<(), String> {
    if list.is_empty() {
        return Err("`all` and `any` need at least one condition".to_owned());
    }
    for (number, when) in list.into_iter().enumerate() {
        when.write(steps, depth + 1)?;
        if number > 0 {
            steps.push(by.clone());
        }
    }
    Ok(())
}

/// The JSON Schema of a manifest, as `wit/manifest.schema.json` has it.
pub fn schema() -> String {
    let schema = schemars::schema_for!(Wire);
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const EXAMPLE: &str = include_str!("../../../../wit/manifest.example.json");

    #[test]
    fn the_published_schema_is_that_of_these_types() {
        let published = include_str!("../../../../wit/manifest.schema.json");
        assert_eq!(published, schema(), "`cargo xtask crds` writes it");
    }

    #[test]
    fn the_published_example_is_read_whole() {
        use PredicateStep::{
            AnnotationsChanged, Both, Either, GenerationChanged, MatchesLabels, Negate,
        };
        let manifest = Manifest::parse(EXAMPLE).unwrap();
        manifest.check().expect_err("outbound HTTP is not built");
        let Manifest { primary, owned, watches, live, writes, indexes, http, finalizer } = manifest;
        assert_eq!(primary.kind, Kind::new("example.com/v1", "Site"));
        assert_eq!(primary.label_selector.as_deref(), Some("tier=web"));
        assert_eq!(primary.field_selector.as_deref(), Some("metadata.namespace!=kube-system"));
        let (mapping, projection) = (primary.mapping, primary.projection);
        assert_eq!((mapping, projection), (Mapping::Same, Projection::Full));
        let expected = [GenerationChanged, AnnotationsChanged, Either];
        assert_eq!(primary.predicate, expected);
        assert_eq!(owned[0].kind, Kind::new("apps/v1", "Deployment"));
        assert_eq!(
            (owned[0].projection, owned[1].projection),
            (Projection::Full, Projection::Metadata)
        );
        assert_eq!(owned[1].mapping, Mapping::Controller);
        let paused = MatchesLabels("paused".into());
        assert_eq!(owned[0].predicate, [GenerationChanged, paused, Negate, Both]);
        let wakes = watches.iter().map(|watch| serde_json::to_value(&watch.mapping).unwrap());
        let expected = [
            json!("same"),
            json!("owner"),
            json!("controller"),
            json!("every"),
            json!({"label": {"name": "example.com/site", "namespace": "example.com/site-namespace"}}),
            json!({"annotation": {"name": "example.com/site"}}),
            json!({"field": {"name": "spec.site.name", "namespace": "spec.site.namespace"}}),
            json!({"index": "by-secret"}),
        ];
        assert_eq!(wakes.collect::<Vec<_>>(), expected);
        assert_eq!(live, [Kind::new("v1", "Secret")]);
        assert_eq!(writes[0].verbs.len(), 5, "every verb");
        assert_eq!(indexes[0].path, "spec.secretName");
        assert_eq!(http, ["GET,POST https://api.example.com:443"]);
        assert_eq!(finalizer.as_deref(), Some("example.com/cleanup"));
    }

    #[track_caller]
    fn refused(manifest: &Value, expected: &str) {
        let error = Manifest::parse(&manifest.to_string()).expect_err("must be refused");
        let error = error.to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.len() <= crate::text::MESSAGE, "{} bytes", error.len());
    }

    #[test]
    fn what_is_not_known_is_refused_by_name_and_place() {
        let site = || json!({"apiVersion": "example.com/v1", "kind": "Site"});
        refused(&json!({"primary": site(), "owned": []}), "unknown field `owned`");
        refused(&json!({"primary": site(), "owned": []}), "a newer host knows it");
        let mut watch = site();
        watch["wakes"] = json!({"name": "a"});
        refused(&json!({"primary": site(), "watches": [watch]}), "at watches[0].wakes");
        let mut watch = site();
        watch["wakes"] = json!("same");
        watch["keeps"] = json!("full");
        refused(
            &json!({"primary": site(), "watches": [watch]}),
            "at watches[0].keeps: unknown field",
        );
        let mut primary = site();
        primary["when"] = json!({"any": ["generationChanged", "moonChanged"]});
        refused(
            &json!({"primary": primary}),
            "at primary.when.any[1]: unknown variant `moonChanged`",
        );
        for (when, words) in [
            (json!({"all": []}), "at least one condition"),
            (json!({"not": {"any": [{"all": []}]}}), "`when` of Site"),
        ] {
            let mut primary = site();
            primary["when"] = when;
            refused(&json!({"primary": primary}), words);
        }
        refused(&json!({}), "missing field `primary`");
        refused(&json!([]), "invalid");
        refused(&json!({"primary": site(), "finalizer": "x".repeat(TEXT)}), "bytes");
        let long = json!({"primary": site(), "k".repeat(500_000): 1});
        refused(&long, "unknown field");
        assert!(Manifest::parse("{").is_err() && Manifest::parse("").is_err());
    }

    #[test]
    fn conditions_within_conditions_have_an_end() {
        let nested = |depth: usize| {
            let (open, close) = (r#"{"not":"#.repeat(depth), "}".repeat(depth));
            let when = format!(r#"{open}"labelsChanged"{close}"#);
            let site = r#""apiVersion":"example.com/v1","kind":"Site""#;
            Manifest::parse(&format!(r#"{{"primary":{{{site},"when":{when}}}}}"#))
        };
        assert_eq!(nested(DEPTH).unwrap().primary.predicate.len(), DEPTH + 1);
        for depth in [DEPTH + 1, 60, 10_000] {
            assert!(nested(depth).is_err(), "{depth}");
        }
    }
}
