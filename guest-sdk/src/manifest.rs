//! What a reconciler says it needs; the host refuses at run time whatever is not declared.

use crate::{
    Kind, Mapping, Object, Predicate, Verbs, bindings::exports::nagaya::controller::guest as wit,
    object::kind_of,
};

/// The manifest of a reconciler, built from the type of its primary.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest(pub(crate) wit::Manifest);

/// How a kind is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    projection: wit::Projection,
    label_selector: Option<String>,
    field_selector: Option<String>,
    predicate: Vec<wit::PredicateStep>,
}

impl Watch {
    /// Only apiVersion, kind and metadata are kept and returned: a fraction of the memory and traffic.
    pub fn metadata() -> Self {
        Self {
            projection: wit::Projection::Metadata,
            label_selector: None,
            field_selector: None,
            predicate: vec![],
        }
    }

    /// Whole objects are kept and returned.
    pub fn full() -> Self {
        Self { projection: wit::Projection::Full, ..Self::metadata() }
    }

    /// Only objects that match this label selector. It makes a watch and a cache of its own.
    #[must_use]
    pub fn labels(self, selector: impl Into<String>) -> Self {
        Self { label_selector: Some(selector.into()), ..self }
    }

    /// Only objects that match this field selector. It makes a watch and a cache of its own.
    #[must_use]
    pub fn fields(self, selector: impl Into<String>) -> Self {
        Self { field_selector: Some(selector.into()), ..self }
    }

    /// Only these changes wake anything.
    #[must_use]
    pub fn when(self, predicate: Predicate) -> Self {
        Self { predicate: predicate.0, ..self }
    }
}

impl Manifest {
    /// A reconciler of `K` that watches nothing else and writes nothing; every change of a primary wakes it.
    pub fn of<K: Object>() -> Self {
        Self(wit::Manifest {
            primary: wit::Primary {
                kind: kind_of::<K>(),
                label_selector: None,
                field_selector: None,
                predicate: vec![],
            },
            owned: vec![],
            watches: vec![],
            live: vec![],
            writes: vec![],
            indexes: vec![],
            http: vec![],
            finalizer: None,
        })
    }

    /// Only primaries that match this label selector.
    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.0.primary.label_selector = Some(selector.into());
        self
    }

    /// Only primaries that match this field selector.
    #[must_use]
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.0.primary.field_selector = Some(selector.into());
        self
    }

    /// Only these changes of a primary wake it; mostly [`Predicate::generation_changed`].
    #[must_use]
    pub fn when(mut self, predicate: Predicate) -> Self {
        self.0.primary.predicate = predicate.0;
        self
    }

    /// The reconciler writes the primary's status.
    #[must_use]
    pub fn status(self) -> Self {
        let kind = self.0.primary.kind.clone();
        self.may(kind, Verbs::APPLY_STATUS)
    }

    /// The host adds this finalizer (`group.example/name`) before the first run of a primary; the reconciler takes
    /// it away by [`crate::Context::remove_finalizer`]. The first revision's choice holds for the controller's life.
    #[must_use]
    pub fn finalizer(mut self, name: &str) -> Self {
        self.0.finalizer = Some(name.to_owned());
        let kind = self.0.primary.kind.clone();
        self.may(kind, Verbs::PATCH)
    }

    /// The reconciler applies objects of `K` with the primary as their controller (see [`crate::child`]), watched
    /// metadata-only: a change of a child wakes its primary.
    #[must_use]
    pub fn owns<K: Object>(self) -> Self {
        self.owns_with::<K>(Watch::metadata())
    }

    /// The same, watched otherwise: `Watch::full()` if their fields are read.
    #[must_use]
    pub fn owns_with<K: Object>(mut self, watch: Watch) -> Self {
        let kind = kind_of::<K>();
        if watch.field_selector.is_some() {
            // An owned kind has no field selector in the contract; this watch is the same one.
            self = self.watches::<K>(watch, Mapping::Controller);
        } else {
            self.0.owned.push(wit::Owned {
                kind: kind.clone(),
                projection: watch.projection,
                label_selector: watch.label_selector,
                predicate: watch.predicate,
            });
        }
        self.may(kind, Verbs::APPLY)
    }

    /// The reconciler reads objects of `K` from the cache, and a change of one wakes the primaries that `mapping`
    /// finds. A kind may be watched several times with different mappings; the cache is shared.
    #[must_use]
    pub fn watches<K: Object>(mut self, watch: Watch, mapping: Mapping) -> Self {
        self.0.watches.push(wit::Watch {
            kind: kind_of::<K>(),
            projection: watch.projection,
            label_selector: watch.label_selector,
            field_selector: watch.field_selector,
            predicate: watch.predicate,
            mapping,
        });
        self
    }

    /// The reconciler reads objects of `K` by [`crate::Context::get_live`] only. Secrets are read in no other way.
    #[must_use]
    pub fn reads_live<K: Object>(mut self) -> Self {
        self.0.live.push(kind_of::<K>());
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
        self.0.indexes.push(wit::Index { name, kind: kind_of::<K>(), path });
        self
    }

    fn may(mut self, kind: Kind, verbs: Verbs) -> Self {
        match self.0.writes.iter_mut().find(|write| write.kind == kind) {
            Some(write) => write.verbs |= verbs,
            None => self.0.writes.push(wit::Write { kind, verbs }),
        }
        self
    }
}

impl Mapping {
    /// The primary whose name and namespace stand in these labels; without the second, the object's own namespace.
    pub fn label<'a>(name: &str, namespace: impl Into<Option<&'a str>>) -> Self {
        Self::Label(reference(name, namespace.into()))
    }

    /// The same with annotations.
    pub fn annotation<'a>(name: &str, namespace: impl Into<Option<&'a str>>) -> Self {
        Self::Annotation(reference(name, namespace.into()))
    }

    /// The same with fields (`spec.claimRef.name`); the watch must be full.
    pub fn field<'a>(name: &str, namespace: impl Into<Option<&'a str>>) -> Self {
        Self::Field(reference(name, namespace.into()))
    }

    /// The primaries in whose index of this name the changed object's name stands.
    pub fn index(name: &str) -> Self {
        Self::Index(name.to_owned())
    }
}

fn reference(name: &str, namespace: Option<&str>) -> wit::Reference {
    wit::Reference { name: name.to_owned(), namespace: namespace.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Secret},
    };

    use super::*;

    #[test]
    fn verbs_of_a_kind_are_gathered() {
        let manifest = Manifest::of::<Deployment>()
            .status()
            .finalizer("example.com/x")
            .owns::<ConfigMap>()
            .writes::<ConfigMap>(Verbs::DELETE)
            .reads_live::<Secret>();
        let verbs: Vec<_> =
            manifest.0.writes.iter().map(|write| (write.kind.kind.as_str(), write.verbs)).collect();
        let expected = [
            ("Deployment", Verbs::APPLY_STATUS | Verbs::PATCH),
            ("ConfigMap", Verbs::APPLY | Verbs::DELETE),
        ];
        assert_eq!(verbs, expected);
        assert_eq!(manifest.0.owned[0].projection, wit::Projection::Metadata);
        assert_eq!(manifest.0.live[0].kind, "Secret");
    }

    #[test]
    fn an_owned_kind_with_a_field_selector_is_a_watch_by_controller() {
        let watch = Watch::full().fields("metadata.name=a").labels("a=b");
        let manifest = Manifest::of::<Deployment>().owns_with::<ConfigMap>(watch);
        assert_eq!(manifest.0.owned, []);
        let watch = &manifest.0.watches[0];
        assert_eq!(watch.mapping, Mapping::Controller);
        assert_eq!(watch.field_selector.as_deref(), Some("metadata.name=a"));
        assert_eq!(manifest.0.writes[0].verbs, Verbs::APPLY);
    }
}
