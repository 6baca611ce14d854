//! Reads, writes and follows the objects of `nagaya.dev` as the user of the kubeconfig.

use std::{ops::ControlFlow, time::Duration};

use anyhow::{Context, Result, bail};
use http::Method;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    edit::{self, Edit, Seen},
    presence::{self, Presence},
};
use crate::{
    apiserver::{ApiServer, Call, Error, Lines, Media, Resource, query},
    kubeconfig::Source,
    model::{
        crd::{GROUP, WasmController, WasmRevision},
        kind::Kind,
        stored,
    },
};

/// Between two tries after the API server broke off or refused for a moment.
const PAUSE: Duration = Duration::from_millis(300);

/// One of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// `WasmController`.
    Controllers,
    /// `WasmRevision`.
    Revisions,
}

/// A cluster and the namespace that is meant.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    api: ApiServer,
    namespace: String,
}

/// What a list says, objects as they came.
#[derive(Debug)]
pub(super) struct List {
    metadata: ListMeta,
    /// The objects.
    pub(super) items: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawList {
    metadata: ListMeta,
    #[serde(deserialize_with = "none_for_null")]
    items: Vec<Box<RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
}

/// A list without objects may come as null.
fn none_for_null<'de, D>(deserializer: D) -> Result<Vec<Box<RawValue>>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Change {
    #[serde(rename = "type")]
    what: String,
    object: Box<RawValue>,
}

impl Own {
    fn resource(self) -> Resource {
        let (kind, plural) = match self {
            Self::Controllers => ("WasmController", "wasmcontrollers"),
            Self::Revisions => ("WasmRevision", "wasmrevisions"),
        };
        Resource {
            kind: Kind::new(&format!("{GROUP}/v1alpha1"), kind),
            plural: plural.to_owned(),
            namespaced: true,
            has_status: true,
        }
    }
}

impl Cluster {
    /// Connects as the kubeconfig says; its context's namespace is meant if none is given.
    pub(super) async fn connect(source: &Source, namespace: Option<String>) -> Result<Self> {
        let api = ApiServer::connect(source, "nagaya")
            .await
            .context("cannot set up a connection to the API server")?;
        let namespace = namespace.unwrap_or_else(|| api.default_namespace().to_owned());
        Ok(Self { api, namespace })
    }

    /// The connection.
    pub(super) fn api(&self) -> &ApiServer {
        &self.api
    }

    /// The namespace that is meant.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The controllers of one namespace, or of all.
    pub(super) async fn controllers(&self, namespace: Option<&str>) -> Result<List> {
        self.list(Own::Controllers, namespace).await
    }

    /// The controller `name` as it came; `None` if there is none.
    pub(super) async fn controller(&self, name: &str) -> Result<Option<Value>> {
        let path = Own::Controllers.resource().path(Some(&self.namespace), Some(name), None)?;
        match self.api.call(Call::new(Method::GET, path)).await {
            Ok(text) => shown(&text).map(Some),
            Err(error) if is_missing_object(&error) => Ok(None),
            Err(error) => Err(explained(
                error,
                &format!("cannot read WasmController {}/{name}", self.namespace),
            )),
        }
    }

    /// The revisions of the controller `name` as they came.
    pub(super) async fn revisions(&self, name: &str) -> Result<List> {
        let mut list = self.list(Own::Revisions, Some(&self.namespace)).await?;
        list.items.retain(|revision| revision["spec"]["controller"] == name);
        Ok(list)
    }

    /// The controller `name` and its revisions.
    pub(super) async fn see(&self, name: &str) -> Result<Option<Seen>> {
        Ok(self.look(name).await?.map(|(seen, _)| seen))
    }

    /// The same, an error if it does not exist.
    pub(super) async fn must_see(&self, name: &str) -> Result<Seen> {
        let namespace = &self.namespace;
        self.see(name).await?.with_context(|| {
            format!(
                "there is no WasmController {name} in namespace {namespace}; `nagaya get -A` lists those that exist"
            )
        })
    }

    /// Makes `edit` true by one patch. A conflict is tried again while only the status has moved.
    pub(super) async fn make_so(
        &self,
        read: &Seen,
        edit: impl Fn(&Seen) -> Result<Edit, edit::Error>,
    ) -> Result<(Edit, WasmController)> {
        let mut now = read.clone();
        loop {
            let plan = edit(&now)?;
            let Edit::Patch { patch, .. } = &plan else { return Ok((plan, now.controller)) };
            match self.patch(read.name(), patch).await {
                Ok(controller) => return Ok((plan, controller)),
                Err(error) if error.code() == Some(409) => {
                    sleep(PAUSE).await;
                    now = self.must_see(read.name()).await?;
                    edit::after_conflict(read, &now)?;
                }
                Err(error) => {
                    let what =
                        format!("cannot patch WasmController {}/{}", self.namespace, read.name());
                    return Err(explained(error, &what));
                }
            }
        }
    }

    /// Looks at the controller and its revisions, again with each change of them, until `judge` breaks or refuses.
    /// `Ok(None)`: time is up.
    pub(super) async fn until<T>(
        &self,
        name: &str,
        deadline: Instant,
        mut judge: impl FnMut(&Seen) -> Result<ControlFlow<T>>,
    ) -> Result<Option<T>> {
        let follow = async {
            loop {
                let Some((seen, versions)) = self.look(name).await? else {
                    bail!("WasmController {}/{name} was deleted meanwhile", self.namespace);
                };
                if let Some(answer) = self.follow(seen, &versions, &mut judge).await? {
                    return Ok(answer);
                }
                sleep(PAUSE).await;
            }
        };
        match timeout_at(deadline, follow).await {
            Ok(answer) => answer.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Judges `seen` and what two watches make of it; `None` if they break off.
    async fn follow<T>(
        &self,
        mut seen: Seen,
        versions: &[String; 2],
        judge: &mut impl FnMut(&Seen) -> Result<ControlFlow<T>>,
    ) -> Result<Option<T>> {
        if let ControlFlow::Break(answer) = judge(&seen)? {
            return Ok(Some(answer));
        }
        let only = format!("metadata.name={}", seen.name());
        let controllers = self.watch(Own::Controllers, &versions[0], Some(&only)).await;
        let revisions = self.watch(Own::Revisions, &versions[1], None).await;
        let (Ok(mut controllers), Ok(mut revisions)) = (controllers, revisions) else {
            return Ok(None);
        };
        loop {
            let (own, line) = tokio::select! {
                line = controllers.next() => (Own::Controllers, line),
                line = revisions.next() => (Own::Revisions, line),
            };
            let Some(Ok(line)) = line else { return Ok(None) };
            let change: Change =
                serde_json::from_str(&line).context("cannot read a watch event")?;
            if !seen.take(own, &change)? {
                return Ok(None);
            }
            if let ControlFlow::Break(answer) = judge(&seen)? {
                return Ok(Some(answer));
            }
        }
    }

    async fn watch(&self, own: Own, version: &str, only: Option<&str>) -> Result<Lines, Error> {
        let path = own.resource().path(Some(&self.namespace), None, None)?;
        let mut pairs = vec![("watch", "true"), ("resourceVersion", version)];
        pairs.extend(only.map(|only| ("fieldSelector", only)));
        self.api.lines(Call::new(Method::GET, query(&path, pairs))).await
    }

    async fn look(&self, name: &str) -> Result<Option<(Seen, [String; 2])>> {
        let Some(controller) = self.controller(name).await? else { return Ok(None) };
        let list = self.revisions(name).await?;
        let controller: WasmController = typed(controller)?;
        let version = controller.metadata.resource_version.clone().unwrap_or_default();
        let revisions = list.items.into_iter().map(typed).collect::<Result<Vec<WasmRevision>>>()?;
        let versions = [version, list.metadata.resource_version];
        Ok(Some((Seen { controller, revisions }, versions)))
    }

    async fn list(&self, own: Own, namespace: Option<&str>) -> Result<List> {
        let resource = own.resource();
        let path = resource.path(namespace, None, None)?;
        let place =
            namespace.map_or_else(|| "all namespaces".to_owned(), |ns| format!("namespace {ns}"));
        let list: Result<RawList, Error> = self.api.fetch(Call::new(Method::GET, path)).await;
        let RawList { metadata, items } = list.map_err(|error| {
            explained(error, &format!("cannot list {} in {place}", resource.plural))
        })?;
        let items = items.iter().map(|item| shown(item.get())).collect::<Result<_>>()?;
        Ok(List { metadata, items })
    }

    /// Whether a host works, if its Lease can be read.
    pub(super) async fn presence(&self) -> Presence {
        let path =
            format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", presence::NAMESPACE);
        let list: Result<Value, Error> = self.api.fetch(Call::new(Method::GET, path)).await;
        let items = list.ok().and_then(|list| list["items"].as_array().cloned());
        presence::read(&items.unwrap_or_default(), Timestamp::now())
    }

    async fn patch(&self, name: &str, patch: &Value) -> Result<WasmController, Error> {
        let path = Own::Controllers.resource().path(Some(&self.namespace), Some(name), None)?;
        let path = query(&path, [("fieldManager", "nagaya-cli")]);
        let call = Call::new(Method::PATCH, path).body(Media::MergePatch, patch.to_string());
        let text = self.api.call(call).await?;
        let stored = stored::controller(&text).map_err(|error| Error::Answer(error.into()))?;
        Ok(stored.controller)
    }
}

impl Seen {
    /// Takes a watch event in; false if the watch is of no more use.
    fn take(&mut self, own: Own, change: &Change) -> Result<bool> {
        let object = shown(change.object.get())?;
        match (change.what.as_str(), own) {
            ("ADDED" | "MODIFIED", Own::Controllers) => self.controller = typed(object)?,
            ("ADDED" | "MODIFIED", Own::Revisions) => {
                let revision: WasmRevision = typed(object)?;
                if revision.spec.controller == self.name() {
                    self.revisions.retain(|old| old.metadata.name != revision.metadata.name);
                    self.revisions.push(revision);
                }
            }
            ("DELETED", Own::Revisions) => {
                let gone = object["metadata"]["name"].as_str();
                self.revisions.retain(|old| old.metadata.name.as_deref() != gone);
            }
            ("BOOKMARK", _) => (),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// An object as it is shown: without a config that is nested too deep to be read.
fn shown(text: &str) -> Result<Value> {
    let text = stored::shown(text).context("cannot read the API server's answer")?;
    serde_json::from_str(&text).context("cannot read the API server's answer")
}

/// An object of one of our kinds, typed.
pub(super) fn typed<T: DeserializeOwned>(object: Value) -> Result<T> {
    let what = format!(
        "{} {}/{}",
        object["kind"].as_str().unwrap_or("object"),
        object["metadata"]["namespace"].as_str().unwrap_or_default(),
        object["metadata"]["name"].as_str().unwrap_or_default(),
    );
    serde_json::from_value(object).with_context(|| {
        format!("cannot read {what}; is this program as new as the CustomResourceDefinitions?")
    })
}

/// A 404 about the object carries a `Status`; one about an unknown path is plain text.
fn is_missing_object(error: &Error) -> bool {
    matches!(error, Error::Refused(status) if status.code == 404 && status.reason == "NotFound")
}

fn explained(error: Error, what: &str) -> anyhow::Error {
    let hint = match error.code() {
        Some(404) => ": the API server does not know the kind; apply deploy/crd first",
        Some(401) => {
            ": the API server does not know you; are the kubeconfig's credentials still valid?"
        }
        _ => "",
    };
    anyhow::Error::new(error).context(format!("{what}{hint}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::edit::tests::{revision, seen};
    use super::*;
    use crate::{apiserver::answering, model::crd::RevisionPhase};

    fn change(what: &str, object: impl serde::Serialize) -> Change {
        Change { what: what.into(), object: serde_json::value::to_raw_value(&object).unwrap() }
    }

    /// The polls of an hour of waiting for a controller that nobody changes; `None`: its watches say nothing.
    async fn an_hour(watch: Option<&'static str>) -> u64 {
        let controller = json!({
            "apiVersion": "nagaya.dev/v1alpha1", "kind": "WasmController",
            "metadata": { "name": "web", "namespace": "demo", "resourceVersion": "1" },
            "spec": { "serviceAccountName": "web", "module": { "digest": "sha256:0" } },
        });
        let list = json!({ "metadata": { "resourceVersion": "1" }, "items": [] });
        let api = answering(move |path| {
            if path.contains("watch=true") {
                return (200, watch.map(str::to_owned));
            }
            let body = if path.ends_with("/wasmcontrollers/web") { &controller } else { &list };
            (200, Some(body.to_string()))
        });
        let cluster = Cluster { api, namespace: "demo".to_owned() };
        let deadline = Instant::now() + Duration::from_secs(3_600);
        let never = |_: &Seen| Ok(ControlFlow::<()>::Continue(()));
        let mut waiting = Box::pin(cluster.until("web", deadline, never));
        let mut polls = 0;
        let counted = std::future::poll_fn(|context| {
            polls += 1;
            waiting.as_mut().poll(context)
        });
        assert_eq!(counted.await.unwrap(), None, "time is up");
        polls
    }

    #[tokio::test(start_paused = true)]
    async fn what_follows_a_quiet_controller_waits() {
        let polls = an_hour(None).await;
        assert!(polls <= 30, "{polls} polls");
        // Each look costs a few requests, and there is a pause between two.
        let polls = an_hour(Some("")).await;
        assert!(polls <= 20 * 3_600_000 / 300, "{polls} polls");
    }

    #[test]
    fn watch_events_keep_what_was_seen_current() {
        let mut seen = seen();
        let news = revision("sha256:3", 3, RevisionPhase::Loading);
        let name = news.metadata.name.clone().unwrap();
        assert!(seen.take(Own::Revisions, &change("ADDED", &news)).unwrap());
        let news = revision("sha256:3", 3, RevisionPhase::Ready);
        assert!(seen.take(Own::Revisions, &change("MODIFIED", &news)).unwrap());
        assert_eq!(seen.standing(&name).unwrap().0, RevisionPhase::Ready);
        assert_eq!(seen.revisions.len(), 3);
        assert!(seen.take(Own::Revisions, &change("DELETED", &news)).unwrap());
        assert_eq!(seen.standing(&name), None);
        let mut other = revision("sha256:3", 3, RevisionPhase::Ready);
        other.spec.controller = "another".into();
        assert!(seen.take(Own::Revisions, &change("ADDED", &other)).unwrap());
        assert_eq!(seen.revisions.len(), 2);
        assert!(!seen.take(Own::Controllers, &change("DELETED", seen.controller.clone())).unwrap());
        assert!(!seen.take(Own::Revisions, &change("ERROR", json!({"code": 410}))).unwrap());
    }

    #[test]
    fn a_list_of_nothing_is_a_list() {
        for text in
            [r#"{"metadata":{"resourceVersion":"1"},"items":null}"#, r#"{"metadata":{}}"#, "{}"]
        {
            assert!(serde_json::from_str::<RawList>(text).unwrap().items.is_empty(), "{text}");
        }
    }

    #[test]
    fn a_missing_object_is_told_from_a_missing_kind() {
        let refused = |reason: &str| {
            Error::Refused(Box::new(crate::apiserver::Status {
                code: 404,
                reason: reason.into(),
                ..Default::default()
            }))
        };
        assert!(is_missing_object(&refused("NotFound")));
        assert!(!is_missing_object(&refused("")));
        let text = explained(refused(""), "cannot read").to_string();
        assert!(text.contains("deploy/crd"), "{text}");
    }
}
