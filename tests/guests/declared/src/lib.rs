//! A manifest out of the controller's config, in the JSON form that the host itself uses for manifests.
//!
//! `config.manifest` is a whole manifest. Without it there is a small one: `config.primary` is the reconciled kind
//! (a Website if absent), woken by changes of its generation, and a `ConfigMap` may be written in every way.

use nagaya_sdk::bindings::exports::nagaya::controller::guest as wit;
use serde::Deserialize;
use serde_json::{Value, json};

/// The manifest that `config` asks for; an error says what cannot be read.
pub fn manifest(config: &Value) -> Result<wit::Manifest, String> {
    let primary = config.get("primary").cloned().unwrap_or_else(
        || json!({ "group": "examples.nagaya.dev", "version": "v1", "kind": "Website" }),
    );
    let small = json!({
        "primary": { "kind": primary, "predicate": ["generationChanged"] },
        "writes": [{
            "kind": { "version": "v1", "kind": "ConfigMap" },
            "verbs": ["create", "apply", "patch", "delete"],
        }],
    });
    let wanted = config.get("manifest").cloned().unwrap_or(small);
    let manifest: Manifest =
        serde_json::from_value(wanted).map_err(|error| format!("config.manifest: {error}"))?;
    Ok(manifest.into())
}

/// The kind in `value`: `{"group": …, "version": …, "kind": …}`, the group empty if absent.
pub fn kind(value: &Value) -> Result<wit::Kind, String> {
    let kind =
        Kind::deserialize(value).map_err(|error| format!("{value} is not a kind: {error}"))?;
    Ok(kind.into())
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    version: String,
    #[serde(rename = "kind")]
    name: String,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Projection {
    #[default]
    Full,
    Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Step {
    GenerationChanged,
    ResourceVersionChanged,
    LabelsChanged,
    AnnotationsChanged,
    MatchesLabels(String),
    Both,
    Either,
    Negate,
}

#[derive(Deserialize)]
struct Reference {
    name: String,
    namespace: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Mapping {
    Same,
    Owner,
    #[default]
    Controller,
    Label(Reference),
    Annotation(Reference),
    Field(Reference),
    Index(String),
    Every,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Watch {
    kind: Kind,
    #[serde(default)]
    projection: Projection,
    label_selector: Option<String>,
    field_selector: Option<String>,
    #[serde(default)]
    predicate: Vec<Step>,
    #[serde(default)]
    mapping: Mapping,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Verb {
    Create,
    Apply,
    ApplyStatus,
    Patch,
    Delete,
}

#[derive(Deserialize)]
struct Write {
    kind: Kind,
    verbs: Vec<Verb>,
}

#[derive(Deserialize)]
struct Index {
    name: String,
    kind: Kind,
    path: String,
}

#[derive(Deserialize)]
#[serde(default)]
struct HttpHost {
    scheme: String,
    host: String,
    port: u16,
    methods: Vec<String>,
}

impl Default for HttpHost {
    fn default() -> Self {
        let (scheme, host) = ("https".to_owned(), "example.com".to_owned());
        Self { scheme, host, port: 443, methods: vec!["GET".to_owned()] }
    }
}

#[derive(Deserialize)]
struct Manifest {
    primary: Watch,
    #[serde(default)]
    owned: Vec<Watch>,
    #[serde(default)]
    watches: Vec<Watch>,
    #[serde(default)]
    live: Vec<Kind>,
    #[serde(default)]
    writes: Vec<Write>,
    #[serde(default)]
    indexes: Vec<Index>,
    #[serde(default)]
    http: Vec<HttpHost>,
    finalizer: Option<String>,
}

impl From<Kind> for wit::Kind {
    fn from(Kind { group, version, name }: Kind) -> Self {
        Self { group, version, kind: name }
    }
}

impl From<Projection> for wit::Projection {
    fn from(projection: Projection) -> Self {
        match projection {
            Projection::Full => Self::Full,
            Projection::Metadata => Self::Metadata,
        }
    }
}

impl From<Step> for wit::PredicateStep {
    fn from(step: Step) -> Self {
        match step {
            Step::GenerationChanged => Self::GenerationChanged,
            Step::ResourceVersionChanged => Self::ResourceVersionChanged,
            Step::LabelsChanged => Self::LabelsChanged,
            Step::AnnotationsChanged => Self::AnnotationsChanged,
            Step::MatchesLabels(selector) => Self::MatchesLabels(selector),
            Step::Both => Self::Both,
            Step::Either => Self::Either,
            Step::Negate => Self::Negate,
        }
    }
}

impl From<Reference> for wit::Reference {
    fn from(Reference { name, namespace }: Reference) -> Self {
        Self { name, namespace }
    }
}

impl From<Mapping> for wit::Mapping {
    fn from(mapping: Mapping) -> Self {
        match mapping {
            Mapping::Same => Self::Same,
            Mapping::Owner => Self::Owner,
            Mapping::Controller => Self::Controller,
            Mapping::Label(reference) => Self::Label(reference.into()),
            Mapping::Annotation(reference) => Self::Annotation(reference.into()),
            Mapping::Field(reference) => Self::Field(reference.into()),
            Mapping::Index(name) => Self::Index(name),
            Mapping::Every => Self::Every,
        }
    }
}

impl From<Watch> for wit::Watch {
    fn from(watch: Watch) -> Self {
        Self {
            kind: watch.kind.into(),
            projection: watch.projection.into(),
            label_selector: watch.label_selector,
            field_selector: watch.field_selector,
            predicate: steps(watch.predicate),
            mapping: watch.mapping.into(),
        }
    }
}

impl From<Watch> for wit::Owned {
    fn from(watch: Watch) -> Self {
        Self {
            kind: watch.kind.into(),
            projection: watch.projection.into(),
            label_selector: watch.label_selector,
            predicate: steps(watch.predicate),
        }
    }
}

impl From<Watch> for wit::Primary {
    fn from(watch: Watch) -> Self {
        Self {
            kind: watch.kind.into(),
            label_selector: watch.label_selector,
            field_selector: watch.field_selector,
            predicate: steps(watch.predicate),
        }
    }
}

impl From<Write> for wit::Write {
    fn from(write: Write) -> Self {
        let verb = |verb: Verb| match verb {
            Verb::Create => wit::Verbs::CREATE,
            Verb::Apply => wit::Verbs::APPLY,
            Verb::ApplyStatus => wit::Verbs::APPLY_STATUS,
            Verb::Patch => wit::Verbs::PATCH,
            Verb::Delete => wit::Verbs::DELETE,
        };
        Self { kind: write.kind.into(), verbs: write.verbs.into_iter().map(verb).collect() }
    }
}

impl From<Index> for wit::Index {
    fn from(Index { name, kind, path }: Index) -> Self {
        Self { name, kind: kind.into(), path }
    }
}

impl From<HttpHost> for wit::HttpHost {
    fn from(HttpHost { scheme, host, port, methods }: HttpHost) -> Self {
        Self { scheme, host, port, methods }
    }
}

impl From<Manifest> for wit::Manifest {
    fn from(manifest: Manifest) -> Self {
        Self {
            primary: manifest.primary.into(),
            owned: all(manifest.owned),
            watches: all(manifest.watches),
            live: all(manifest.live),
            writes: all(manifest.writes),
            indexes: all(manifest.indexes),
            http: all(manifest.http),
            finalizer: manifest.finalizer,
        }
    }
}

fn steps(steps: Vec<Step>) -> Vec<wit::PredicateStep> {
    all(steps)
}

fn all<A, B: From<A>>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_word_it_reconciles_websites_and_writes_config_maps() {
        let manifest = manifest(&Value::Null).unwrap();
        assert_eq!(manifest.primary.kind.kind, "Website");
        assert_eq!(manifest.primary.predicate, [wit::PredicateStep::GenerationChanged]);
        assert!(manifest.writes[0].verbs.contains(wit::Verbs::APPLY | wit::Verbs::DELETE));
        let other = json!({ "primary": { "version": "v1", "kind": "Namespace" } });
        let other = super::manifest(&other).unwrap();
        assert_eq!(
            (other.primary.kind.group.as_str(), other.primary.kind.kind.as_str()),
            ("", "Namespace")
        );
    }

    #[test]
    fn a_whole_manifest_is_taken_as_it_is() {
        let kind = json!({ "version": "v1", "kind": "ConfigMap" });
        let config = json!({ "manifest": {
            "primary": { "kind": kind, "projection": "full", "mapping": "same", "labelSelector": "a=b" },
            "owned": [{ "kind": kind, "projection": "metadata" }],
            "watches": [
                { "kind": kind, "mapping": { "label": { "name": "n", "namespace": "ns" } } },
                { "kind": kind, "mapping": { "index": "i" }, "predicate": [{ "matchesLabels": "x" }, "negate"] },
                { "kind": kind, "mapping": "every", "fieldSelector": "metadata.name=a" },
            ],
            "live": [{ "version": "v1", "kind": "Secret" }],
            "writes": [{ "kind": kind, "verbs": ["applyStatus"] }],
            "indexes": [{ "name": "i", "kind": kind, "path": "data.a" }],
            "http": [{ "host": "a.example" }],
            "finalizer": "example.com/x",
        } });
        let manifest = manifest(&config).unwrap();
        assert_eq!(manifest.primary.label_selector.as_deref(), Some("a=b"));
        assert_eq!(manifest.owned[0].projection, wit::Projection::Metadata);
        let reference = wit::Reference { name: "n".into(), namespace: Some("ns".into()) };
        assert_eq!(manifest.watches[0].mapping, wit::Mapping::Label(reference));
        assert_eq!(manifest.watches[1].mapping, wit::Mapping::Index("i".into()));
        assert_eq!(manifest.watches[1].predicate.len(), 2);
        assert_eq!(manifest.watches[2].field_selector.as_deref(), Some("metadata.name=a"));
        assert_eq!(manifest.writes[0].verbs, wit::Verbs::APPLY_STATUS);
        assert_eq!((manifest.http[0].host.as_str(), manifest.http[0].port), ("a.example", 443));
        assert_eq!(manifest.finalizer.as_deref(), Some("example.com/x"));
        assert!(super::manifest(&json!({ "manifest": {} })).is_err());
    }
}
