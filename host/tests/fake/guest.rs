//! Guests in Rust: what a test's reconciler is, and what it can do.

use std::{
    collections::BTreeSet,
    fmt::{self, Debug},
    sync::{Arc, Mutex},
};

use futures::{FutureExt, future::BoxFuture};
use nagaya::{
    cluster::{
        self, Ask, Cluster, DeleteOptions, Error, GuestEvent, ListOptions, Ownership, Page,
        PatchBody, Propagation,
    },
    model::{
        digest::Digest,
        kind::Kind,
        manifest::{Manifest, Mapping, Projection, Verb, Watch, Write},
        object::{ObjectReference, Severity},
    },
    sandbox::{Action, Native, NativeCall, Returned},
};
use serde_json::{Value, json};

/// What a reconciler returns.
pub(crate) type Answer = Result<Action, Stop>;

/// Why a run ends without an action; `?` makes one of a failed call, as the SDK does.
#[derive(Debug)]
pub(crate) struct Stop(Returned);

impl Stop {
    pub(crate) fn retry(text: &str) -> Self {
        Self(Returned::Retry(text.to_owned()))
    }

    pub(crate) fn terminal(text: &str) -> Self {
        Self(Returned::Terminal(text.to_owned()))
    }

    pub(crate) fn invalid(text: &str) -> Self {
        Self(Returned::Invalid(text.to_owned()))
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::retry(&error.to_string())
    }
}

type Reconcile = Box<dyn Fn(Cx) -> BoxFuture<'static, Answer> + Send + Sync>;
type Describe = Box<dyn Fn() -> BoxFuture<'static, Result<Manifest, String>> + Send + Sync>;

/// A guest; cheap to clone.
#[derive(Clone)]
pub(crate) struct Guest(Arc<Inner>);

struct Inner {
    name: String,
    describe: Describe,
    reconcile: Reconcile,
    runs: Mutex<Vec<String>>,
}

/// A guest that reconciles Sites, owns ConfigMaps, and applies those and the status of its Sites.
pub(crate) fn native<F>(reconcile: impl Fn(Cx) -> F + Send + Sync + 'static) -> Guest
where
    F: Future<Output = Answer> + Send + 'static,
{
    Guest::new("native", sites(), reconcile)
}

/// What most tests' guests need.
pub(crate) fn sites() -> Manifest {
    let site = Kind::new("example.io/v1", "Site");
    Manifest {
        primary: watch(&site, Mapping::Same),
        owned: vec![watch(&Kind::new("v1", "ConfigMap"), Mapping::Controller)],
        watches: vec![],
        live: vec![],
        writes: vec![
            writes("v1", "ConfigMap", &[Verb::Create, Verb::Apply, Verb::Patch, Verb::Delete]),
            Write { kind: site, verbs: BTreeSet::from([Verb::ApplyStatus]) },
        ],
        indexes: vec![],
        http: vec![],
        finalizer: None,
    }
}

/// A watch of all objects of a kind, whole.
pub(crate) fn watch(kind: &Kind, mapping: Mapping) -> Watch {
    Watch {
        kind: kind.clone(),
        projection: Projection::Full,
        label_selector: None,
        field_selector: None,
        predicate: vec![],
        mapping,
    }
}

/// A declared write.
pub(crate) fn writes(api_version: &str, kind: &str, verbs: &[Verb]) -> Write {
    Write { kind: Kind::new(api_version, kind), verbs: verbs.iter().copied().collect() }
}

impl Guest {
    /// A guest of this name (which stands for its code: another name, another module) and manifest.
    pub(crate) fn new<F>(
        name: &str,
        manifest: Manifest,
        reconcile: impl Fn(Cx) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::describing(name, move || Ok(manifest.clone()), reconcile)
    }

    /// One that describes itself anew each time.
    pub(crate) fn describing<F>(
        name: &str,
        describe: impl Fn() -> Result<Manifest, String> + Send + Sync + 'static,
        reconcile: impl Fn(Cx) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self(Arc::new(Inner {
            name: name.to_owned(),
            describe: Box::new(move || Box::pin(std::future::ready(describe()))),
            reconcile: Box::new(move |cx| Box::pin(reconcile(cx))),
            runs: Mutex::default(),
        }))
    }

    /// The keys of the runs since the last call, in their order.
    pub(crate) fn runs(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.runs.lock().unwrap())
    }

    /// The bytes of its module.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        format!("the native guest {}", self.0.name).into_bytes()
    }

    /// What a WasmController calls it by.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.bytes())
    }
}

impl Native for Inner {
    fn describe(&self, _: Arc<str>) -> BoxFuture<'static, Result<Manifest, String>> {
        (self.describe)()
    }

    fn reconcile(&self, call: NativeCall) -> BoxFuture<'static, Result<Action, Returned>> {
        let cx = Cx(Arc::new(call));
        self.runs.lock().unwrap().push(cx.key());
        let work = (self.reconcile)(cx);
        Box::pin(async move { work.await.map_err(|Stop(returned)| returned) })
    }
}

impl Guest {
    pub(crate) fn native(&self) -> Arc<dyn Native> {
        self.0.clone()
    }
}

impl Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guest").field(&self.0.name).finish()
    }
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Cx(Arc<NativeCall>);

impl Cx {
    /// The object's name.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// The object's namespace.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.0.namespace.as_deref()
    }

    /// `namespace/name`.
    pub(crate) fn key(&self) -> String {
        self.namespace().map(|ns| format!("{ns}/")).unwrap_or_default() + self.name()
    }

    /// What a guest may call.
    pub(crate) fn client(&self) -> Calls {
        Calls(self.0.cluster.clone())
    }

    /// The Site of this run; `None`: it is gone.
    pub(crate) async fn site(&self) -> Result<Option<Value>, Stop> {
        self.get("example.io/v1", "Site", self.name()).await
    }

    /// An object of the run's namespace, from the cache.
    pub(crate) async fn get(
        &self,
        api_version: &str,
        kind: &str,
        name: &str,
    ) -> Result<Option<Value>, Stop> {
        let (kind, client) = (Kind::new(api_version, kind), self.client());
        match self.within(client.get(&kind, self.namespace(), name)).await {
            Ok(text) => Ok(Some(serde_json::from_str(&text).unwrap())),
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The names of all objects of a kind in the run's namespace, from the cache.
    pub(crate) async fn list(&self, api_version: &str, kind: &str) -> Result<Vec<String>, Error> {
        let options = ListOptions { namespace: self.0.namespace.clone(), ..ListOptions::default() };
        let kind = Kind::new(api_version, kind);
        let page = self.within(self.client().list(&kind, options)).await?;
        let name = |text: &Arc<str>| {
            let object: Value = serde_json::from_str(text).unwrap();
            object["metadata"]["name"].as_str().unwrap().to_owned()
        };
        Ok(page.items.iter().map(name).collect())
    }

    /// Server-side apply.
    pub(crate) async fn apply(&self, object: Value) -> Result<Value, Error> {
        let client = self.client();
        let text = object.to_string();
        let work = async move { client.apply(text, Ownership::Standard).await };
        Ok(serde_json::from_str(&self.outliving(work).await?).unwrap())
    }

    /// Server-side apply of the Site's status.
    pub(crate) async fn apply_status(&self, status: Value) -> Result<(), Error> {
        let mut object = site(self.name());
        object.as_object_mut().unwrap().remove("spec");
        object["metadata"]["namespace"] = json!(self.namespace());
        object["status"] = status;
        let client = self.client();
        let work = async move { client.apply_status(object.to_string()).await };
        self.outliving(work).await.map(drop)
    }

    /// Creates an object.
    pub(crate) async fn create(&self, object: Value) -> Result<(), Error> {
        let client = self.client();
        let work = async move { client.create(object.to_string()).await };
        self.outliving(work).await.map(drop)
    }

    /// Deletes an object of the run's namespace.
    pub(crate) async fn delete(
        &self,
        api_version: &str,
        kind: &str,
        name: &str,
    ) -> Result<(), Error> {
        let (client, kind) = (self.client(), Kind::new(api_version, kind));
        let (namespace, name) = (self.0.namespace.clone(), name.to_owned());
        let options = DeleteOptions {
            uid: None,
            resource_version: None,
            propagation: Propagation::Background,
        };
        let work = async move { client.delete(&kind, namespace.as_deref(), &name, options).await };
        self.outliving(work).await
    }

    /// An Event about the Site.
    pub(crate) fn event(&self, reason: &str, note: &str) -> Result<(), Error> {
        self.client().emit(GuestEvent {
            regarding: ObjectReference {
                kind: Kind::new("example.io/v1", "Site"),
                namespace: self.0.namespace.clone(),
                name: self.name().to_owned(),
            },
            severity: Severity::Normal,
            reason: reason.to_owned(),
            action: "Reconcile".to_owned(),
            note: note.to_owned(),
        })
    }

    /// As long as one call of the host may take; a write goes on when its guest has given up, as in the sandbox.
    async fn outliving<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let task = tokio::spawn(work);
        self.within(async { task.await.unwrap() }).await
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.0.limits.host_call;
        let late = || Error::Unavailable(format!("no answer within {limit:?}"));
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
    }
}

/// The calls of a guest, a function each.
#[derive(Clone, Debug)]
pub(crate) struct Calls(Arc<dyn Cluster>);

impl Calls {
    pub(crate) async fn get(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Arc<str>, Error> {
        self.object(Ask::Get(reference(kind, namespace, name))).await
    }

    pub(crate) async fn list(&self, kind: &Kind, options: ListOptions) -> Result<Page, Error> {
        match self.0.call(Ask::List(kind.clone(), options)).await? {
            cluster::Answer::Page(page) => Ok(page),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn apply(
        &self,
        text: String,
        ownership: Ownership,
    ) -> Result<Arc<str>, Error> {
        self.object(Ask::Apply(text, ownership)).await
    }

    pub(crate) async fn apply_status(&self, text: String) -> Result<Arc<str>, Error> {
        self.object(Ask::ApplyStatus(text)).await
    }

    pub(crate) async fn create(&self, text: String) -> Result<Arc<str>, Error> {
        self.object(Ask::Create(text, false)).await
    }

    pub(crate) async fn patch(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        body: PatchBody,
    ) -> Result<Arc<str>, Error> {
        self.object(Ask::Patch(reference(kind, namespace, name), body)).await
    }

    pub(crate) async fn delete(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        options: DeleteOptions,
    ) -> Result<(), Error> {
        self.0.call(Ask::Delete(reference(kind, namespace, name), options)).await.map(drop)
    }

    /// An Event is handed over at once.
    pub(crate) fn emit(&self, event: GuestEvent) -> Result<(), Error> {
        self.0.call(Ask::Event(event)).now_or_never().unwrap().map(drop)
    }

    async fn object(&self, ask: Ask) -> Result<Arc<str>, Error> {
        match self.0.call(ask).await? {
            cluster::Answer::Object(text) => Ok(text),
            other => panic!("{other:?}"),
        }
    }
}

fn reference(kind: &Kind, namespace: Option<&str>, name: &str) -> ObjectReference {
    let namespace = namespace.map(str::to_owned);
    ObjectReference { kind: kind.clone(), namespace, name: name.to_owned() }
}

/// A Site.
pub(crate) fn site(name: &str) -> Value {
    json!({
        "apiVersion": "example.io/v1", "kind": "Site",
        "metadata": { "namespace": "demo", "name": name }, "spec": { "replicas": 1 },
    })
}

/// A ConfigMap that belongs to nobody.
pub(crate) fn config_map(name: &str, text: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": "demo", "name": name }, "data": { "text": text },
    })
}

/// A ConfigMap that belongs to `site`.
pub(crate) fn child(site: &Value, name: &str, text: &str) -> Value {
    let mut object = config_map(name, text);
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": site["apiVersion"], "kind": site["kind"], "name": site["metadata"]["name"],
        "uid": site["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    }]);
    object["metadata"]["namespace"] = site["metadata"]["namespace"].clone();
    object
}
