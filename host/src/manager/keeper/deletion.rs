//! The end of a controller: drained, what it leaves behind counted and told, and then let go.

use http::Method;
use tokio::time::Instant;

use super::{
    super::{news, plan, running::Setup},
    AT_LEAST_EVERY, Keeper, Next,
};
use crate::{
    apiserver::{ApiServer, Call, Error, Identity, Resource, query},
    crd::{FINALIZER, WasmController},
    manifest::Kind,
    rollout::Decision,
    watch::{envelope, intern::Interner},
};

const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const PAGE: &str = "500";

impl Keeper {
    /// Drains, warns of what stays behind, and lets the object go.
    pub(super) async fn delete(&mut self, controller: &WasmController) -> Result<Next, Error> {
        let mut finalizers = controller.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            self.end().await;
            return Ok(Next::At(Instant::now() + AT_LEAST_EVERY));
        }
        let controller = self.say_deleting(controller).await?;
        let left = self.left(&controller).await;
        self.end().await;
        if let Some((count, finalizer)) = left.filter(|(count, _)| *count != Some(0)) {
            self.estate.recorder.record(news::left_behind(&controller, count, &finalizer));
        }
        finalizers.retain(|name| name != FINALIZER);
        self.own = Some(self.objects.set_finalizers(&controller, &finalizers).await?);
        Ok(Next::At(Instant::now() + AT_LEAST_EVERY))
    }

    /// Draining takes a while, and whoever waits for it reads why.
    async fn say_deleting(&mut self, controller: &WasmController) -> Result<WasmController, Error> {
        let old = plan::status(controller);
        let decision = Decision {
            active: old.active.clone(),
            candidate: old.candidate.clone(),
            previous: old.previous.clone(),
            problem: None,
        };
        let plan = plan::plan(controller, |_| true);
        let status = self.status(controller, &plan, &old, &decision);
        if controller.status.as_ref() == Some(&status) {
            return Ok(controller.clone());
        }
        let value = serde_json::to_value(&status).unwrap_or_default();
        let written = self.objects.set_status(controller, value).await?;
        self.own = Some(written.clone());
        Ok(written)
    }

    /// How many objects carry the finalizer that nobody removes from now on, and its name; `None` of them: nobody could count.
    async fn left(&self, controller: &WasmController) -> Option<(Option<usize>, String)> {
        let status = plan::status(controller);
        let finalizer = status.finalizer.filter(|name| !name.is_empty())?;
        if let Some(executor) = self.executors.values().next() {
            let carriers =
                executor.view.primaries().filter(|e| e.finalizers().any(|name| *name == finalizer));
            return Some((Some(carriers.count()), finalizer));
        }
        match count(&self.estate.api, controller, &status.primary?, &finalizer).await {
            Ok(count) => Some((Some(count), finalizer)),
            Err(error) => {
                tracing::warn!(controller = %self.key, finalizer, error = crate::causes::all(&error), "cannot count the objects that carry the finalizer");
                Some((None, finalizer))
            }
        }
    }
}

/// How many objects of `primary` in the controller's scope carry `finalizer`.
async fn count(
    api: &ApiServer,
    controller: &WasmController,
    primary: &Kind,
    finalizer: &str,
) -> Result<usize, Error> {
    let Some(resource) = api.discover(primary).await? else { return Ok(0) };
    let setup = Setup::of(controller);
    let namespaces = match &setup.namespaces {
        Some(namespaces) if resource.namespaced => {
            namespaces.iter().map(|ns| Some(&**ns)).collect()
        }
        _ => vec![None],
    };
    let mut count = 0;
    for namespace in namespaces {
        // A shared kind is the host's to read, another only the account's.
        let own = in_namespace(api, &resource, namespace, Identity::Host, finalizer).await;
        count += match own {
            Err(error) if error.code() == Some(403) => {
                in_namespace(api, &resource, namespace, setup.account.clone(), finalizer).await?
            }
            result => result?,
        };
    }
    Ok(count)
}

async fn in_namespace(
    api: &ApiServer,
    resource: &Resource,
    namespace: Option<&str>,
    identity: Identity,
    finalizer: &str,
) -> Result<usize, Error> {
    let path = resource.path(namespace, None, None)?;
    let (mut count, mut next) = (0, Some(String::new()));
    while let Some(page) = next {
        let path = query(&path, [("limit", PAGE), ("continue", &page)]);
        let call = Call::new(Method::GET, path).identity(identity.clone());
        let text = api.call(Call { accept: Some(METADATA_LIST), ..call }).await?;
        let list = envelope::list(&text, &resource.kind, &mut Interner::default())
            .map_err(|error| Error::Answer(error.into()))?;
        let carriers = list.entries.iter().filter(|e| e.finalizers().any(|name| name == finalizer));
        count += carriers.count();
        next = list.next;
    }
    Ok(count)
}
