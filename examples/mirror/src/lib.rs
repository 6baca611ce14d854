//! A Mirror copies a `ConfigMap` of its own namespace into every namespace that carries a label.
//!
//! It shows what lies beyond owned children: changes of namespaces and of the source find their primaries by
//! mappings, copies in other namespaces find theirs by labels, since owner references do not cross namespaces, and
//! a finalizer cleans up.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace},
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kube::CustomResource;
use nagaya_sdk::{
    Action, Config, Context, Error, Event, Manifest, Mapping, Predicate, Query, Reconciler,
    Statement, Verbs, Watch,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const FINALIZER: &str = "mirror.examples.nagaya.dev/copies";
const NAME: &str = "mirror.examples.nagaya.dev/name";
const NAMESPACE: &str = "mirror.examples.nagaya.dev/namespace";

/// A `ConfigMap` to copy into namespaces.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "examples.nagaya.dev",
    version = "v1",
    kind = "Mirror",
    namespaced,
    status = "MirrorStatus",
    doc = "A ConfigMap to copy into namespaces.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("the name must fit into a label: at most 63 letters"),
    printcolumn = r#"{"name":"Source","type":"string","jsonPath":".spec.configMap"}"#,
    printcolumn = r#"{"name":"Copies","type":"integer","jsonPath":".status.copies"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct MirrorSpec {
    /// The name of a `ConfigMap` in the Mirror's own namespace.
    #[schemars(length(min = 1, max = 253))]
    pub config_map: String,
    /// The label that marks the namespaces: `key`, or `key=value`.
    #[schemars(length(min = 1, max = 380))]
    pub namespace_label: String,
}

/// What became of a Mirror.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorStatus {
    /// The generation that this status speaks of.
    #[serde(default)]
    pub observed_generation: Option<i64>,
    /// How many copies there are.
    #[serde(default)]
    pub copies: i32,
    /// Ready: every marked namespace has its copy.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The reconciler.
pub struct Mirrors;

impl Reconciler for Mirrors {
    type Primary = Mirror;

    fn manifest(_: &Config) -> Result<Manifest, Error> {
        Ok(Manifest::of::<Mirror>()
            .when(Predicate::generation_changed())
            .status()
            .finalizer(FINALIZER)
            .index::<Mirror>("source", "spec.configMap")
            .watches::<ConfigMap>(Watch::full(), Mapping::index("source"))
            .watches::<ConfigMap>(Watch::full(), Mapping::label(NAME, NAMESPACE))
            .watches::<Namespace>(
                Watch::metadata().when(Predicate::labels_changed()),
                Mapping::Every,
            )
            .writes::<ConfigMap>(Verbs::APPLY | Verbs::DELETE))
    }

    fn reconcile(mirror: &Mirror, cx: &Context) -> Result<Action, Error> {
        let home = mirror.metadata.namespace.as_deref().unwrap_or_default();
        let source = cx.get::<ConfigMap>(home, &mirror.spec.config_map)?;
        let (mut kept, mut blocked) = (BTreeSet::new(), vec![]);
        if let Some(source) = &source {
            for namespace in marked_namespaces(mirror, cx)? {
                let copy = copy(mirror, source, &namespace);
                if is_taken(&copy, cx)? {
                    blocked.push(namespace);
                } else {
                    cx.apply_forced(&copy)?;
                    kept.insert(namespace);
                }
            }
        }
        delete_copies(mirror, cx, &kept)?;
        let ready = if source.is_none() {
            Statement::no("Ready", "NoSource", format!("no ConfigMap {}", mirror.spec.config_map))
        } else if blocked.is_empty() {
            Statement::yes("Ready", "Mirrored", "every marked namespace has its copy")
        } else {
            let note = format!("another ConfigMap has the name in {}", blocked.join(", "));
            cx.event(mirror, Event::warning("NameTaken", "Copy", note.as_str()))?;
            Statement::no("Ready", "NameTaken", note)
        };
        let before = mirror.status.clone().unwrap_or_default().conditions;
        let status = MirrorStatus {
            observed_generation: mirror.metadata.generation,
            copies: i32::try_from(kept.len()).unwrap_or(i32::MAX),
            conditions: vec![cx.condition(mirror, &before, ready)],
        };
        cx.apply_status(mirror, &status)?;
        Ok(Action::await_change())
    }

    fn deleting(mirror: &Mirror, cx: &Context) -> Result<Action, Error> {
        delete_copies(mirror, cx, &BTreeSet::new())?;
        cx.remove_finalizer(mirror, FINALIZER)?;
        Ok(Action::await_change())
    }
}

/// The namespaces with the label, without the Mirror's own and those that are going away.
fn marked_namespaces(mirror: &Mirror, cx: &Context) -> Result<Vec<String>, Error> {
    let query = Query::default().labels(mirror.spec.namespace_label.as_str());
    let namespaces = cx.list::<Namespace>(query).map_err(|error| match error {
        Error::Rejected(message) => Error::invalid(message),
        error => error,
    })?;
    let staying = namespaces.into_iter().filter(|n| n.metadata.deletion_timestamp.is_none());
    let names = staying.filter_map(|namespace| namespace.metadata.name);
    Ok(names.filter(|name| Some(name) != mirror.metadata.namespace.as_ref()).collect())
}

fn copy(mirror: &Mirror, source: &ConfigMap, namespace: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: source.metadata.name.clone(),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels(mirror)),
            ..ObjectMeta::default()
        },
        data: source.data.clone(),
        binary_data: source.binary_data.clone(),
        immutable: None,
    }
}

/// What leads from a copy to its Mirror.
fn labels(mirror: &Mirror) -> BTreeMap<String, String> {
    let name = mirror.metadata.name.clone().unwrap_or_default();
    let namespace = mirror.metadata.namespace.clone().unwrap_or_default();
    BTreeMap::from([(NAME.to_owned(), name), (NAMESPACE.to_owned(), namespace)])
}

/// Whether an object of the copy's name is there that is not this copy.
fn is_taken(copy: &ConfigMap, cx: &Context) -> Result<bool, Error> {
    let name = copy.metadata.name.as_deref().unwrap_or_default();
    let there = cx.get::<ConfigMap>(copy.metadata.namespace.as_deref(), name)?;
    let label = |object: &ConfigMap, key| object.metadata.labels.as_ref()?.get(key).cloned();
    let differs = |there: &ConfigMap| {
        [NAME, NAMESPACE].iter().any(|key| label(there, *key) != label(copy, *key))
    };
    Ok(there.is_some_and(|there| differs(&there)))
}

/// Deletes the Mirror's copies but those of `kept` namespaces and of the source's present name.
fn delete_copies(mirror: &Mirror, cx: &Context, kept: &BTreeSet<String>) -> Result<(), Error> {
    let selector: Vec<_> =
        labels(mirror).iter().map(|(key, value)| format!("{key}={value}")).collect();
    for copy in cx.list::<ConfigMap>(Query::default().labels(selector.join(",")))? {
        let is_current = copy.metadata.name.as_ref() == Some(&mirror.spec.config_map);
        let is_kept = copy.metadata.namespace.as_ref().is_some_and(|name| kept.contains(name));
        if !(is_current && is_kept) {
            cx.delete(&copy)?;
        }
    }
    Ok(())
}

nagaya_sdk::export!(Mirrors);

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use nagaya_sdk::testing::Cluster;

    use super::*;

    fn config_map(namespace: &str, name: &str, value: &str) -> ConfigMap {
        let data = BTreeMap::from([("key".to_owned(), value.to_owned())]);
        let mut object = ConfigMap { data: Some(data), ..ConfigMap::default() };
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some(namespace.into());
        object
    }

    fn mark(cluster: &Cluster, name: &str, label: Option<&str>) {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.into());
        namespace.metadata.labels =
            label.map(|value| BTreeMap::from([("mirrored".to_owned(), value.to_owned())]));
        cluster.put(&namespace).unwrap();
    }

    fn cluster() -> Cluster {
        let cluster = Cluster::new();
        for name in ["a", "b", "demo"] {
            mark(&cluster, name, Some("yes"));
        }
        mark(&cluster, "c", None);
        cluster.put(&config_map("demo", "ca", "1")).unwrap();
        let spec = MirrorSpec { config_map: "ca".into(), namespace_label: "mirrored=yes".into() };
        let mut mirror = Mirror::new("ca", spec);
        mirror.metadata.namespace = Some("demo".into());
        cluster.put(&mirror).unwrap();
        cluster
    }

    fn run(cluster: &Cluster) -> Result<Option<MirrorStatus>, Error> {
        cluster.run::<Mirrors>("demo", "ca")?;
        Ok(cluster.get::<Mirror>("demo", "ca").unwrap().and_then(|mirror| mirror.status))
    }

    /// Namespace and value of each `ConfigMap`.
    fn found(cluster: &Cluster) -> Vec<(String, String)> {
        let objects = cluster.list::<ConfigMap>().unwrap().into_iter();
        objects.map(|o| (o.metadata.namespace.unwrap(), o.data.unwrap()["key"].clone())).collect()
    }

    fn expected<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
        pairs.map(|(namespace, value)| (namespace.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn copies_follow_the_source_and_the_labels() {
        let cluster = cluster();
        let status = run(&cluster).unwrap().unwrap();
        assert_eq!((status.copies, status.conditions[0].status.as_str()), (2, "True"));
        assert_eq!(found(&cluster), expected([("a", "1"), ("b", "1"), ("demo", "1")]));
        let writes = cluster.writes();
        run(&cluster).unwrap();
        assert_eq!(cluster.writes(), writes, "a second run has nothing to do");
        cluster.put(&config_map("demo", "ca", "2")).unwrap();
        mark(&cluster, "b", None);
        mark(&cluster, "c", Some("yes"));
        run(&cluster).unwrap();
        assert_eq!(found(&cluster), expected([("a", "2"), ("c", "2"), ("demo", "2")]));
        cluster.delete::<ConfigMap>("demo", "ca").unwrap();
        let status = run(&cluster).unwrap().unwrap();
        assert_eq!((status.copies, status.conditions[0].reason.as_str()), (0, "NoSource"));
        assert_eq!(found(&cluster), []);
    }

    #[test]
    fn another_source_replaces_the_copies() {
        let cluster = cluster();
        run(&cluster).unwrap();
        cluster.put(&config_map("demo", "other", "3")).unwrap();
        let mut mirror: Mirror = cluster.get("demo", "ca").unwrap().unwrap();
        mirror.spec.config_map = "other".into();
        cluster.put(&mirror).unwrap();
        run(&cluster).unwrap();
        assert_eq!(
            found(&cluster),
            expected([("a", "3"), ("b", "3"), ("demo", "1"), ("demo", "3")])
        );
    }

    #[test]
    fn what_belongs_to_others_is_left_alone() {
        let cluster = cluster();
        cluster.put(&config_map("a", "ca", "theirs")).unwrap();
        let status = run(&cluster).unwrap().unwrap();
        assert_eq!((status.copies, status.conditions[0].reason.as_str()), (1, "NameTaken"));
        assert_eq!(found(&cluster), expected([("a", "theirs"), ("b", "1"), ("demo", "1")]));
        assert_eq!(cluster.events()[0].reason, "NameTaken");
    }

    #[test]
    fn a_deleted_mirror_leaves_no_copies() {
        let cluster = cluster();
        run(&cluster).unwrap();
        cluster.delete::<Mirror>("demo", "ca").unwrap();
        assert!(cluster.get::<Mirror>("demo", "ca").unwrap().is_some(), "the finalizer holds it");
        assert_eq!(run(&cluster), Ok(None));
        assert_eq!(found(&cluster), expected([("demo", "1")]));
    }

    #[test]
    fn a_selector_that_cannot_be_read_is_the_mirrors_fault() {
        let cluster = cluster();
        let mut mirror: Mirror = cluster.get("demo", "ca").unwrap().unwrap();
        mirror.spec.namespace_label = "=".into();
        cluster.put(&mirror).unwrap();
        assert!(matches!(run(&cluster), Err(Error::Invalid(_))));
    }

    #[test]
    fn the_committed_crd_is_the_generated_one() {
        let generated = serde_saphyr::to_string(&Mirror::crd()).unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crd.yaml");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            generated,
            "UPDATE=1 renews it"
        );
    }
}
