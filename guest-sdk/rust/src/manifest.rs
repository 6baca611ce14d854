//! What a reconciler says it needs; the host refuses at run time whatever is not declared.
//!
//! It leaves the component as JSON text (`wit/manifest.schema.json`).
//!
//! Invariant: `the_published_example_is_what_the_builder_makes`.

use serde_json::{Map, Value, json};

use crate::{Kind, Mapping, Object, Predicate, Verbs, object::kind_of};

/// The manifest of a reconciler, built from the type of its primary.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub(crate) primary: Watched,
    pub(crate) owns: Vec<Watched>,
    pub(crate) watches: Vec<(Watched, Mapping)>,
    pub(crate) reads_live: Vec<Kind>,
    pub(crate) writes: Vec<(Kind, Verbs)>,
    pub(crate) indexes: Vec<Index>,
    pub(crate) finalizer: Option<String>,
}

/// A kind and how it is watched.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Watched {
    pub(crate) kind: Kind,
    pub(crate) watch: Watch,
}

/// A named index.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Index {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) path: String,
}

/// How a kind is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    pub(crate) is_full: bool,
    pub(crate) labels: Option<String>,
    pub(crate) fields: Option<String>,
    pub(crate) when: Option<Predicate>,
}

impl Watch {
    /// Only apiVersion, kind and metadata are kept and returned: a fraction of the memory and traffic.
    pub fn metadata() -> Self {
        Self { is_full: false, labels: None, fields: None, when: None }
    }

    /// Whole objects are kept and returned.
    pub fn full() -> Self {
        Self { is_full: true, ..Self::metadata() }
    }

    /// Only objects that match this label selector. It makes a watch and a cache of its own.
    #[must_use]
    pub fn labels(self, selector: impl Into<String>) -> Self {
        Self { labels: Some(selector.into()), ..self }
    }

    /// Only objects that match this field selector. It makes a watch and a cache of its own.
    #[must_use]
    pub fn fields(self, selector: impl Into<String>) -> Self {
        Self { fields: Some(selector.into()), ..self }
    }

    /// Only these changes wake anything.
    #[must_use]
    pub fn when(self, predicate: Predicate) -> Self {
        Self { when: Some(predicate), ..self }
    }
}

impl Watched {
    fn text(&self, is_full_by_default: bool) -> Map<String, Value> {
        let Watch { is_full, labels, fields, when } = &self.watch;
        let mut text = named(&self.kind);
        if *is_full != is_full_by_default {
            let word = if *is_full { "full" } else { "metadata" };
            text.insert("projection".to_owned(), word.into());
        }
        for (key, value) in [("labelSelector", labels), ("fieldSelector", fields)] {
            if let Some(value) = value {
                text.insert(key.to_owned(), value.as_str().into());
            }
        }
        if let Some(Predicate(when)) = when {
            text.insert("when".to_owned(), when.clone());
        }
        text
    }
}

fn named(kind: &Kind) -> Map<String, Value> {
    let api_version = match kind.group.as_str() {
        "" => kind.version.clone(),
        group => format!("{group}/{}", kind.version),
    };
    let mut text = Map::new();
    text.insert("apiVersion".to_owned(), api_version.into());
    text.insert("kind".to_owned(), kind.name.as_str().into());
    text
}

impl Manifest {
    /// A reconciler of `K` that watches nothing else and writes nothing; every change of a primary wakes it.
    pub fn of<K: Object>() -> Self {
        Self {
            primary: Watched { kind: kind_of::<K>(), watch: Watch::full() },
            owns: vec![],
            watches: vec![],
            reads_live: vec![],
            writes: vec![],
            indexes: vec![],
            finalizer: None,
        }
    }

    /// Only primaries that match this label selector.
    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.primary.watch = self.primary.watch.labels(selector);
        self
    }

    /// Only primaries that match this field selector.
    #[must_use]
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.primary.watch = self.primary.watch.fields(selector);
        self
    }

    /// Only these changes of a primary wake it; mostly [`Predicate::generation_changed`].
    #[must_use]
    pub fn when(mut self, predicate: Predicate) -> Self {
        self.primary.watch = self.primary.watch.when(predicate);
        self
    }

    /// The reconciler writes the primary's status.
    #[must_use]
    pub fn status(self) -> Self {
        let kind = self.primary.kind.clone();
        self.may(kind, Verbs::APPLY_STATUS)
    }

    /// The host adds this finalizer (`group.example/name`) before the first run of a primary; the reconciler takes
    /// it away by [`crate::Context::remove_finalizer`]. The first revision's choice holds for the controller's life.
    #[must_use]
    pub fn finalizer(mut self, name: &str) -> Self {
        self.finalizer = Some(name.to_owned());
        let kind = self.primary.kind.clone();
        self.may(kind, Verbs::PATCH)
    }

    /// The reconciler applies objects of `K` with the primary as their controller (see
    /// [`crate::Context::apply_child`]), watched metadata-only: a change of a child wakes its primary.
    #[must_use]
    pub fn owns<K: Object>(self) -> Self {
        self.owns_with::<K>(Watch::metadata())
    }

    /// The same, watched otherwise: `Watch::full()` if their fields are read.
    #[must_use]
    pub fn owns_with<K: Object>(mut self, watch: Watch) -> Self {
        let kind = kind_of::<K>();
        self.owns.push(Watched { kind: kind.clone(), watch });
        self.may(kind, Verbs::APPLY)
    }

    /// The reconciler reads objects of `K` from the cache, and a change of one wakes the primaries that `mapping`
    /// finds. A kind may be watched several times with different mappings; the cache is shared.
    #[must_use]
    pub fn watches<K: Object>(mut self, watch: Watch, mapping: Mapping) -> Self {
        self.watches.push((Watched { kind: kind_of::<K>(), watch }, mapping));
        self
    }

    /// The reconciler reads objects of `K` by [`crate::Context::get_live`] only. Secrets are read in no other way.
    #[must_use]
    pub fn reads_live<K: Object>(mut self) -> Self {
        self.reads_live.push(kind_of::<K>());
        self
    }

    /// The reconciler writes objects of `K`.
    #[must_use]
    pub fn writes<K: Object>(self, verbs: Verbs) -> Self {
        self.may(kind_of::<K>(), verbs)
    }

    /// A named index over the field `path` (`spec.claimRef.name`) of a watched kind or the primary kind, for
    /// [`crate::Query::index`] and [`Mapping::Index`].
    #[must_use]
    pub fn index<K: Object>(mut self, name: &str, path: &str) -> Self {
        let (name, path) = (name.to_owned(), path.to_owned());
        self.indexes.push(Index { name, kind: kind_of::<K>(), path });
        self
    }

    /// What the export `describe` answers.
    pub fn to_json(&self) -> String {
        let with = |mut text: Map<String, Value>, key: &str, value: Value| {
            text.insert(key.to_owned(), value);
            Value::Object(text)
        };
        let mut text = Map::new();
        text.insert("primary".to_owned(), Value::Object(self.primary.text(true)));
        let owns = self.owns.iter().map(|watched| Value::Object(watched.text(false)));
        let watches = self.watches.iter();
        let watches =
            watches.map(|(watched, wakes)| with(watched.text(true), "wakes", wakes.to_value()));
        let live = self.reads_live.iter().map(|kind| Value::Object(named(kind)));
        let writes = self.writes.iter();
        let writes = writes.map(|(kind, verbs)| with(named(kind), "verbs", verbs.to_value()));
        let indexes = self.indexes.iter().map(|Index { name, kind, path }| {
            let named = with(named(kind), "name", name.as_str().into());
            let Value::Object(named) = named else { return named };
            with(named, "path", path.as_str().into())
        });
        let lists: [(&str, Vec<Value>); 5] = [
            ("owns", owns.collect()),
            ("watches", watches.collect()),
            ("readsLive", live.collect()),
            ("writes", writes.collect()),
            ("indexes", indexes.collect()),
        ];
        for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            text.insert(key.to_owned(), list.into());
        }
        if let Some(finalizer) = &self.finalizer {
            text.insert("finalizer".to_owned(), finalizer.as_str().into());
        }
        Value::Object(text).to_string()
    }

    fn may(mut self, kind: Kind, verbs: Verbs) -> Self {
        match self.writes.iter_mut().find(|(written, _)| *written == kind) {
            Some((_, may)) => *may |= verbs,
            None => self.writes.push((kind, verbs)),
        }
        self
    }
}

impl Mapping {
    fn to_value(&self) -> Value {
        match self {
            Self::Same => "same".into(),
            Self::Owner => "owner".into(),
            Self::Controller => "controller".into(),
            Self::Label(at) => json!({ "label": at.to_value() }),
            Self::Annotation(at) => json!({ "annotation": at.to_value() }),
            Self::Field(at) => json!({ "field": at.to_value() }),
            Self::Index(name) => json!({ "index": name }),
            Self::Every => "every".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Pod, Secret, Service},
    };

    use super::*;

    macro_rules! kind {
        ($name:ident) => {
            #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
            struct $name {
                metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            }

            impl kube_core::Resource for $name {
                type DynamicType = ();
                type Scope = kube_core::NamespaceResourceScope;
                fn kind((): &()) -> std::borrow::Cow<'_, str> {
                    stringify!($name).into()
                }
                fn group((): &()) -> std::borrow::Cow<'_, str> {
                    "example.com".into()
                }
                fn version((): &()) -> std::borrow::Cow<'_, str> {
                    "v1".into()
                }
                fn plural((): &()) -> std::borrow::Cow<'_, str> {
                    "".into()
                }
                fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                    &self.metadata
                }
                fn meta_mut(
                    &mut self,
                ) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                    &mut self.metadata
                }
            }
        };
    }

    kind!(Site);
    kind!(Theme);
    kind!(Claim);

    #[test]
    fn the_published_example_is_what_the_builder_makes() {
        let mut published: Value =
            serde_json::from_str(include_str!("../../../wit/manifest.example.json")).unwrap();
        // Not served yet, so not in the builder.
        published.as_object_mut().unwrap().remove("http");
        let all = Verbs::CREATE | Verbs::APPLY | Verbs::APPLY_STATUS | Verbs::PATCH | Verbs::DELETE;
        let generation = Predicate::generation_changed;
        let paused = Predicate::matches_labels("paused");
        let mut manifest = Manifest::of::<Site>()
            .labels("tier=web")
            .fields("metadata.namespace!=kube-system")
            .when(generation() | Predicate::annotations_changed())
            .writes::<ConfigMap>(all)
            .owns_with::<Deployment>(Watch::full().when(generation() & !paused))
            .owns_with::<ConfigMap>(Watch::metadata().labels("made-by=site"))
            .watches::<Theme>(Watch::full(), Mapping::Same)
            .watches::<Theme>(Watch::full().when(Predicate::labels_changed()), Mapping::Owner)
            .watches::<Service>(Watch::metadata(), Mapping::Controller)
            .watches::<ConfigMap>(
                Watch::full()
                    .fields("metadata.name=defaults")
                    .when(Predicate::resource_version_changed()),
                Mapping::Every,
            )
            .watches::<Pod>(
                Watch::metadata(),
                Mapping::label("example.com/site", "example.com/site-namespace"),
            )
            .watches::<Namespace>(Watch::metadata(), Mapping::annotation("example.com/site", None))
            .watches::<Claim>(
                Watch::full(),
                Mapping::field("spec.site.name", "spec.site.namespace"),
            )
            .watches::<Secret>(Watch::metadata(), Mapping::index("by-secret"))
            .reads_live::<Secret>()
            .index::<Site>("by-secret", "spec.secretName")
            .finalizer("example.com/cleanup");
        // The builder knows that a finalizer is taken away by a patch.
        assert_eq!(manifest.writes.pop().map(|(kind, _)| kind.name).as_deref(), Some("Site"));
        let made: Value = serde_json::from_str(&manifest.to_json()).unwrap();
        assert_eq!(made, published);
    }

    #[test]
    fn verbs_of_a_kind_are_gathered() {
        let manifest = Manifest::of::<Deployment>()
            .status()
            .finalizer("example.com/x")
            .owns::<ConfigMap>()
            .writes::<ConfigMap>(Verbs::DELETE);
        let verbs: Vec<_> =
            manifest.writes.iter().map(|(kind, verbs)| (kind.name.as_str(), *verbs)).collect();
        let expected = [
            ("Deployment", Verbs::APPLY_STATUS | Verbs::PATCH),
            ("ConfigMap", Verbs::APPLY | Verbs::DELETE),
        ];
        assert_eq!(verbs, expected);
    }
}
