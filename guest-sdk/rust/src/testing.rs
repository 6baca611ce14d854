//! Unit tests of a reconciler without host and without WebAssembly.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    Action, Config, Context, Error, Manifest, Object, Reconciler, Request,
    api::Api,
    bindings::nagaya::controller::cluster,
    memory::{Memory, key, key_of},
    object::{at, decode, encode, kind_of},
    owners::Primary,
    reconciler,
};

/// A cluster in memory. It keeps objects as an API server does, enforces the reconciler's manifest, and forgets the
/// fields that an apply leaves out; it knows no schemas, no other field managers and no garbage collection.
///
/// A test plays the user with [`Cluster::put`] and [`Cluster::delete`], and the host with [`Cluster::run`].
#[derive(Default)]
pub struct Cluster(Memory);

impl Cluster {
    /// An empty cluster at 2026-01-01T00:00:00Z.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `spec.config` of the controller.
    pub fn set_config(&self, config: Value) {
        self.0.0.borrow_mut().config = config;
    }

    /// Sets the clock.
    pub fn set_now(&self, now: Timestamp) {
        self.0.0.borrow_mut().now = now;
    }

    /// Moves the clock on.
    pub fn advance(&self, span: SignedDuration) {
        let mut state = self.0.0.borrow_mut();
        state.now = state.now.saturating_add(span).unwrap_or(Timestamp::MAX);
    }

    /// Runs `R` once on the primary of that name, as the host does: with the manifest that fits the config, and with
    /// the finalizer added before.
    pub fn run<'a, R: Reconciler>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
    ) -> Result<Action, Error> {
        let manifest = R::manifest(&Config::new(self.0.config()))?;
        let namespace = namespace.into();
        if let Some(finalizer) = &manifest.finalizer {
            self.add_finalizer(&key(&at::<R::Primary>(namespace, name)), finalizer);
        }
        self.begin(key(&at::<R::Primary>(namespace, name)), manifest);
        let request = Request { namespace: namespace.map(str::to_owned), name: name.to_owned() };
        reconciler::run::<R>(&request, &Context::new(self.0.clone()))
    }

    /// Creates an object or replaces it, as a user; returns it with uid, resourceVersion and generation. A status
    /// that `object` does not have stays.
    pub fn put<K: Object>(&self, object: &K) -> Result<K, Error> {
        let mut body = Value::Object(encode(object)?);
        let key = key_of(&kind_of::<K>(), &body)?;
        let mut state = self.0.0.borrow_mut();
        let before = state.objects.get(&key).cloned().unwrap_or_default();
        for place in ["/status", "/metadata/finalizers", "/metadata/deletionTimestamp"] {
            if let (None, Some(kept)) = (body.pointer(place), before.pointer(place)) {
                let (parent, field) = place.rsplit_once('/').unwrap_or_default();
                if let Some(parent) = body.pointer_mut(parent) {
                    parent[field] = kept.clone();
                }
            }
        }
        decode(&state.store(&key, body).to_string())
    }

    /// Reads an object, declared or not.
    pub fn get<'a, K: Object>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
    ) -> Result<Option<K>, Error> {
        let key = key(&at::<K>(namespace.into(), name));
        self.0.0.borrow().objects.get(&key).map(|object| decode(&object.to_string())).transpose()
    }

    /// Reads all objects of a kind, in the order of namespace and name.
    pub fn list<K: Object>(&self) -> Result<Vec<K>, Error> {
        let kind = kind_of::<K>();
        let state = self.0.0.borrow();
        let objects = state.objects.iter();
        let of_kind = objects.filter(|(key, _)| (&key.0, &key.1) == (&kind.group, &kind.name));
        of_kind.map(|(_, object)| decode(&object.to_string())).collect()
    }

    /// Deletes an object, as a user: while it has finalizers it is only marked.
    pub fn delete<'a, K: Object>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
    ) -> Result<(), Error> {
        let key = key(&at::<K>(namespace.into(), name));
        Ok(self.0.0.borrow_mut().delete(&key)?)
    }

    /// How many writes have changed something so far: a second run of a good reconciler adds none.
    pub fn writes(&self) -> u64 {
        self.0.0.borrow().writes
    }

    /// The Events so far.
    pub fn events(&self) -> Vec<cluster::Event> {
        self.0.0.borrow().events.clone()
    }

    /// A run of this primary begins.
    fn begin(&self, key: crate::memory::Key, manifest: Manifest) {
        let mut state = self.0.0.borrow_mut();
        let object = state.objects.get(&key);
        let uid = object.and_then(|object| object["metadata"]["uid"].as_str()).map(str::to_owned);
        state.primary = Primary { key: Some(key), uid };
        state.manifest = Some(manifest);
    }

    fn add_finalizer(&self, key: &crate::memory::Key, finalizer: &str) {
        let mut state = self.0.0.borrow_mut();
        let Some(mut object) = state.objects.get(key).cloned() else { return };
        let metadata = &mut object["metadata"];
        let mut finalizers = metadata["finalizers"].as_array().cloned().unwrap_or_default();
        let is_deleting = metadata.get("deletionTimestamp").is_some();
        if !is_deleting && !finalizers.iter().any(|name| name == finalizer) {
            finalizers.push(json!(finalizer));
            metadata["finalizers"] = json!(finalizers);
            state.store(key, object);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, collections::BTreeMap};

    use k8s_openapi::{
        api::{
            apps::v1::{Deployment, DeploymentSpec, DeploymentStatus},
            core::v1::{ConfigMap, Secret},
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{Event, Patch, Query, Verbs, Watch, child};

    const FINALIZER: &str = "example.com/done";

    fn metadata(name: &str) -> ObjectMeta {
        child(&Deployment::default(), name)
    }

    fn config_map<const N: usize>(name: &str, data: [(&str, &str); N]) -> ConfigMap {
        let data = data.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        ConfigMap { metadata: metadata(name), data: Some(data), ..ConfigMap::default() }
    }

    fn deployment(replicas: i32) -> Deployment {
        let spec = DeploymentSpec { replicas: Some(replicas), ..DeploymentSpec::default() };
        Deployment { metadata: metadata("web"), spec: Some(spec), ..Deployment::default() }
    }

    /// A cluster in which a controller with this manifest is running.
    fn running(manifest: Manifest) -> (Cluster, Context) {
        let cluster = Cluster::new();
        cluster.0.0.borrow_mut().manifest = Some(manifest);
        let cx = Context::new(cluster.0.clone());
        (cluster, cx)
    }

    #[test]
    fn a_field_that_the_next_apply_leaves_out_goes_away() {
        let (cluster, cx) = running(Manifest::of::<Deployment>().owns::<ConfigMap>());
        let mut first = config_map("a", [("keep", "1"), ("drop", "1")]);
        first.metadata.labels = Some(BTreeMap::from([("design".to_owned(), "v2".to_owned())]));
        cx.apply(&first).unwrap();
        let mut seen = cluster.get::<ConfigMap>(None, "a").unwrap().unwrap();
        seen.data.as_mut().unwrap().insert("users".to_owned(), "1".to_owned());
        cluster.put(&seen).unwrap();
        cx.apply(&config_map("a", [("keep", "2")])).unwrap();
        let now = cluster.get::<ConfigMap>(None, "a").unwrap().unwrap();
        let expected = [("keep", "2"), ("users", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(now.data.unwrap(), expected.into(), "what others wrote stays");
        assert_eq!(now.metadata.labels, None);
        assert_eq!(now.metadata.uid, seen.metadata.uid);
    }

    #[test]
    fn nulls_of_free_form_values_are_sent_and_kept() {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Release {
            metadata: ObjectMeta,
            spec: ReleaseSpec,
        }

        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        struct ReleaseSpec {
            values: Value,
            #[serde(default)]
            chart: Option<String>,
        }

        impl kube_core::Resource for Release {
            type DynamicType = ();
            type Scope = kube_core::NamespaceResourceScope;
            fn kind((): &()) -> Cow<'_, str> {
                "Release".into()
            }
            fn group((): &()) -> Cow<'_, str> {
                "example.com".into()
            }
            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                "releases".into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }

        let manifest =
            Manifest::of::<Deployment>().writes::<Release>(Verbs::APPLY | Verbs::APPLY_STATUS);
        let (cluster, cx) = running(manifest.writes::<Release>(Verbs::CREATE));
        let stored = || cluster.0.0.borrow().objects.values().next().cloned().unwrap();
        let release = |values: Value| Release {
            metadata: metadata("a"),
            spec: ReleaseSpec { values, chart: None },
        };
        // A null, a value in its place, and the null again, which a merge patch would drop.
        let null = || json!({"a": null, "b": {"c": null}});
        for values in [null(), json!({"a": {"b": null}}), null(), json!({})] {
            cx.apply(&release(values.clone())).unwrap();
            assert_eq!(stored()["spec"], json!({"values": values}), "and no chart");
        }
        let status = json!({"last": {"values": {"a": null}}, "list": [null]});
        cx.apply_status(&release(json!({})), &status).unwrap();
        assert_eq!(stored()["status"], status);
        let mut other = release(json!({"a": null}));
        other.metadata.name = Some("0".into());
        cx.create(&other).unwrap();
        assert_eq!(stored()["spec"], json!({"values": {"a": null}}));
    }

    #[test]
    fn a_write_that_changes_nothing_is_none() {
        let (cluster, cx) = running(Manifest::of::<Deployment>().owns::<ConfigMap>().status());
        let first = cx.apply(&config_map("a", [("k", "1")])).unwrap().read().unwrap();
        let second = cx.apply(&config_map("a", [("k", "1")])).unwrap().read().unwrap();
        assert_eq!((first, cluster.writes()), (second, 1));
        let put = cluster.put(&deployment(1)).unwrap();
        assert_eq!(put.metadata.generation, Some(1));
        let status = DeploymentStatus { replicas: Some(1), ..DeploymentStatus::default() };
        let stored = cx.apply_status(&put, &status).unwrap().read().unwrap();
        assert_eq!(stored.metadata.generation, Some(1), "a status changes no generation");
        assert_eq!(stored.status, Some(status));
        assert_eq!(cluster.put(&deployment(2)).unwrap().status, stored.status);
        let changed = cluster.get::<Deployment>(None, "web").unwrap().unwrap();
        assert_eq!(changed.metadata.generation, Some(2));
    }

    #[test]
    fn what_is_not_declared_is_refused() {
        let manifest = Manifest::of::<Deployment>().reads_live::<Secret>();
        let (cluster, cx) = running(manifest);
        let refused = |error: Error| assert!(matches!(error, Error::NotDeclared(_)), "{error}");
        refused(cx.get::<ConfigMap>(None, "a").unwrap_err());
        refused(cx.list::<ConfigMap>(Query::default()).unwrap_err());
        refused(cx.get::<Secret>(None, "a").unwrap_err());
        refused(cx.apply(&config_map("a", [])).unwrap_err());
        refused(cx.create(&config_map("a", [])).unwrap_err());
        refused(cx.apply_status(&deployment(1), &json!({})).unwrap_err());
        refused(cx.delete(&deployment(1)).unwrap_err());
        refused(cx.patch::<Deployment>(None, "web", &Patch::Merge(json!({}))).unwrap_err());
        let event = || Event::warning("Bad", "Look", "note");
        refused(cx.event(&config_map("a", []), event()).unwrap_err());
        assert_eq!(cx.get_live::<Secret>(None, "a").unwrap(), None);
        assert_eq!(cx.get::<Deployment>(None, "web").unwrap(), None);
        cx.event(&deployment(1), event()).unwrap();
        assert_eq!((cluster.events().len(), cluster.writes()), (1, 0));
    }

    #[test]
    fn a_list_is_read_to_its_last_page() {
        let (cluster, cx) = running(Manifest::of::<ConfigMap>().index::<ConfigMap>("k", "data.k"));
        for n in 0..25 {
            let mut object =
                config_map(&format!("c{n:02}"), [("k", if n % 2 == 0 { "even" } else { "odd" })]);
            object.metadata.namespace = Some(format!("n{}", n % 3));
            object.metadata.labels = Some(BTreeMap::from([("n".to_owned(), n.to_string())]));
            cluster.put(&object).unwrap();
        }
        let count = |query| cx.list::<ConfigMap>(query).unwrap().len();
        assert_eq!(count(Query::default()), 25);
        assert_eq!(count(Query::default().index("k", "odd")), 12);
        assert_eq!(count(Query::default().namespace("n1").index("k", "odd")), 4);
        assert_eq!(count(Query::default().labels("n in (1,2,77)")), 2);
        let error = cx.list::<ConfigMap>(Query::default().labels("=")).unwrap_err();
        assert!(matches!(error, Error::Rejected(_)), "{error}");
        assert_eq!(cluster.list::<ConfigMap>().unwrap().len(), 25);
    }

    #[test]
    fn a_metadata_watch_shows_no_fields_and_a_selector_hides_objects() {
        let watch = Watch::metadata().labels("app=web");
        let (cluster, cx) = running(Manifest::of::<Deployment>().owns_with::<ConfigMap>(watch));
        cluster.put(&config_map("hidden", [])).unwrap();
        let mut shown = config_map("shown", [("k", "v")]);
        shown.metadata.labels = Some(BTreeMap::from([("app".to_owned(), "web".to_owned())]));
        let shown = cluster.put(&shown).unwrap();
        assert_eq!(cx.get::<ConfigMap>(None, "hidden").unwrap(), None);
        let cached = cx.get::<ConfigMap>(None, "shown").unwrap().unwrap();
        assert_eq!((cached.metadata, cached.data), (shown.metadata.clone(), None));
        assert_eq!(cx.get_live::<ConfigMap>(None, "shown").unwrap(), Some(shown));
    }

    #[test]
    fn create_delete_and_preconditions() {
        let verbs = Verbs::CREATE | Verbs::DELETE | Verbs::APPLY;
        let (cluster, cx) = running(Manifest::of::<ConfigMap>().writes::<ConfigMap>(verbs));
        let mut generated = config_map("", []);
        generated.metadata.name = None;
        generated.metadata.generate_name = Some("job-".into());
        let created = cx.create(&generated).unwrap().read().unwrap();
        assert!(created.metadata.name.as_ref().unwrap().starts_with("job-"));
        assert!(matches!(cx.create(&created), Err(Error::AlreadyExists(_))));
        let mut newer = created.clone();
        newer.data = Some(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
        cluster.put(&newer).unwrap();
        assert!(matches!(cx.delete(&created), Err(Error::Conflict(_))));
        assert!(matches!(cx.apply(&created), Err(Error::Conflict(_))));
        let name = created.metadata.name.unwrap();
        cx.delete(&config_map(&name, [])).unwrap();
        cx.delete(&config_map(&name, [])).unwrap();
        assert_eq!(cluster.list::<ConfigMap>().unwrap(), []);
    }

    /// The Deployment `web` of the namespace `demo`, and a run of it.
    fn running_for_web(verbs: Verbs) -> (Cluster, Context, Deployment) {
        let cluster = Cluster::new();
        let mut web = deployment(1);
        web.metadata.namespace = Some("demo".into());
        let web = cluster.put(&web).unwrap();
        let manifest = Manifest::of::<Deployment>().owns::<ConfigMap>().writes::<ConfigMap>(verbs);
        cluster.begin(key(&at::<Deployment>(Some("demo"), "web")), manifest);
        let cx = Context::new(cluster.0.clone());
        (cluster, cx, web)
    }

    #[test]
    fn an_object_of_somebody_else_is_taken_over_only_by_adopting_it() {
        let (cluster, cx, web) = running_for_web(Verbs::PATCH | Verbs::CREATE);
        let named = |metadata: ObjectMeta| ConfigMap { metadata, ..ConfigMap::default() };
        let conflict = |result: Result<crate::Stored<ConfigMap>, Error>| {
            let error = result.map(drop).unwrap_err();
            assert!(matches!(error, Error::Conflict(_)), "{error}");
        };
        let mut users = config_map("users", [("k", "users")]);
        users.metadata.namespace = Some("demo".into());
        cluster.put(&users).unwrap();
        let child_of_web = || named(child(&web, "users"));
        conflict(cx.apply(&child_of_web()));
        conflict(cx.apply_forced(&child_of_web()));
        let owners =
            json!({"metadata": {"ownerReferences": child_of_web().metadata.owner_references}});
        conflict(cx.patch("demo", "users", &Patch::Merge(owners)));
        let left = cluster.get::<ConfigMap>("demo", "users").unwrap().unwrap();
        assert_eq!(left.metadata.owner_references, None, "the user's object stays the user's");
        cx.apply(&users).unwrap();
        cx.adopt(&child_of_web()).unwrap();
        cx.apply(&child_of_web()).unwrap();
        let mut other = deployment(1);
        other.metadata.namespace = Some("demo".into());
        other.metadata.name = Some("other".into());
        let other = cluster.put(&other).unwrap();
        cluster.put(&named(child(&other, "others"))).unwrap();
        conflict(cx.apply(&named(child(&web, "others"))));
        conflict(cx.adopt(&named(child(&web, "others"))));
        let mut plain = config_map("plain", []);
        plain.metadata.namespace = Some("demo".into());
        cluster.put(&plain).unwrap();
        conflict(cx.apply_child(&plain));
        cx.adopt(&plain).unwrap();
        let owners = |name: &str| {
            let map = cluster.get::<ConfigMap>("demo", name).unwrap().unwrap();
            map.metadata.owner_references.unwrap_or_default()
        };
        assert_eq!(owners("plain")[0].uid, web.metadata.uid.clone().unwrap());
        plain.metadata.name = Some("made".into());
        cx.create_child(&plain).unwrap();
        cx.apply_child(&plain).unwrap();
        assert_eq!((owners("made").len(), owners("made")[0].controller), (1, Some(true)));
        plain.metadata.namespace = Some("other".into());
        assert!(matches!(cx.apply_child(&plain).map(drop), Err(Error::Rejected(_))));
        cx.apply(&named(child(&web, "new"))).unwrap();
        cx.adopt(&named(child(&web, "newer"))).unwrap();
    }

    #[test]
    fn an_owner_reference_that_kubernetes_does_not_allow_is_refused() {
        let (cluster, cx, web) = running_for_web(Verbs::PATCH | Verbs::CREATE);
        let in_namespace = |namespace: Option<&str>| {
            let mut metadata = child(&web, "a");
            metadata.namespace = namespace.map(str::to_owned);
            ConfigMap { metadata, ..ConfigMap::default() }
        };
        for namespace in [None, Some("other")] {
            for result in [cx.apply(&in_namespace(namespace)), cx.create(&in_namespace(namespace))]
            {
                assert!(matches!(result.map(drop), Err(Error::Rejected(_))), "{namespace:?}");
            }
        }
        let mut old = web.clone();
        old.metadata.uid = Some("old".into());
        let of_old = ConfigMap { metadata: child(&old, "a"), ..ConfigMap::default() };
        assert!(matches!(cx.apply(&of_old).map(drop), Err(Error::Conflict(_))));
        cx.create(&in_namespace(Some("demo"))).unwrap();
        assert_eq!(cluster.list::<ConfigMap>().unwrap().len(), 1);
    }

    struct Cleaner;

    impl Reconciler for Cleaner {
        type Primary = Deployment;

        fn manifest(config: &Config) -> Result<Manifest, Error> {
            config.parse::<BTreeMap<String, String>>()?;
            Ok(Manifest::of::<Deployment>().finalizer(FINALIZER))
        }

        fn reconcile(deployment: &Deployment, cx: &Context) -> Result<Action, Error> {
            let finalizers = deployment.metadata.finalizers.as_deref().unwrap_or_default();
            assert_eq!(finalizers, [FINALIZER]);
            cx.remove_finalizer(deployment, "example.com/another")?;
            Ok(Action::requeue_after(std::time::Duration::from_secs(1)))
        }

        fn deleting(deployment: &Deployment, cx: &Context) -> Result<Action, Error> {
            cx.remove_finalizer(deployment, FINALIZER)?;
            Ok(Action::await_change())
        }

        fn gone(request: &Request, _: &Context) -> Result<Action, Error> {
            Err(Error::terminal(format!("{} is gone", request.name)))
        }
    }

    #[test]
    fn a_primary_lives_and_goes_by_its_finalizer() {
        let cluster = Cluster::new();
        cluster.put(&deployment(1)).unwrap();
        let wait = Action::RequeueAfter(std::time::Duration::from_secs(1));
        assert_eq!(cluster.run::<Cleaner>(None, "web"), Ok(wait));
        cluster.delete::<Deployment>(None, "web").unwrap();
        let marked = cluster.get::<Deployment>(None, "web").unwrap().unwrap();
        assert_eq!(marked.metadata.generation, Some(2), "deletion counts as a change");
        assert_eq!(cluster.run::<Cleaner>(None, "web"), Ok(Action::AwaitChange));
        assert_eq!(cluster.list::<Deployment>().unwrap(), []);
        assert_eq!(cluster.run::<Cleaner>(None, "web"), Err(Error::terminal("web is gone")));
        cluster.set_config(json!([]));
        let error = cluster.run::<Cleaner>(None, "web").unwrap_err().to_string();
        assert!(error.contains("cannot read the config"), "{error}");
    }

    #[test]
    fn a_stale_list_of_finalizers_is_a_conflict() {
        let (cluster, cx) = running(Manifest::of::<Deployment>().finalizer(FINALIZER));
        let with = |names: &[&str]| {
            let mut object = deployment(1);
            object.metadata.finalizers = Some(names.iter().map(ToString::to_string).collect());
            cluster.put(&object).unwrap()
        };
        let stale = with(&[FINALIZER, "example.com/b"]);
        with(&["example.com/b", FINALIZER]);
        let error = cx.remove_finalizer(&stale, FINALIZER).unwrap_err();
        assert!(matches!(error, Error::Conflict(_)), "{error}");
    }

    #[test]
    fn a_primary_that_does_not_fit_its_type_is_invalid() {
        let cluster = Cluster::new();
        cluster.put(&deployment(1)).unwrap();
        for object in cluster.0.0.borrow_mut().objects.values_mut() {
            object["spec"]["replicas"] = json!("many");
        }
        let error = cluster.run::<Cleaner>(None, "web").unwrap_err();
        assert!(matches!(&error, Error::Invalid(text) if text.contains("Deployment")), "{error}");
    }

    #[test]
    fn the_clock_is_the_tests() {
        let (cluster, cx) = running(Manifest::of::<Deployment>());
        let start = cx.now();
        assert_eq!(start.to_string(), "2026-01-01T00:00:00Z");
        cluster.advance(SignedDuration::from_secs(90));
        assert_eq!(cx.now().duration_since(start).as_secs(), 90);
        cluster.set_now(start);
        assert_eq!(cx.now(), start);
    }
}
