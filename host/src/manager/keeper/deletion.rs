//! The end of a controller: drained, what it leaves behind counted and told, and then let go.

use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::{
    super::{news, objects::Version, plan, running::Setup},
    AT_LEAST_EVERY, FINALIZERS, Keeper, Next,
};
use crate::{
    apiserver::{ApiServer, Call, Error, Resource, query},
    crd::{FINALIZER, WasmController},
    manifest::Kind,
    rollout::Decision,
    stored::Stored,
    watch::{Entry, envelope, intern::Interner},
};

const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const PAGE: &str = "500";
/// Counting may not hold up the end for longer.
const COUNT_LIMIT: Duration = Duration::from_secs(10);

impl Keeper {
    /// Drains, warns of what stays behind, and lets the object go.
    pub(super) async fn delete(&mut self, stored: Stored) -> Next {
        let finalizers = stored.controller.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            self.end().await;
            return self.next(AT_LEAST_EVERY);
        }
        if !self.patience.may(FINALIZERS, Instant::now()) {
            return self.next(AT_LEAST_EVERY);
        }
        let controller = self.say_deleting(stored).await;
        // What could not be let go before was counted and told before.
        let is_first = self.patience.why(FINALIZERS).is_none();
        let left = if is_first { self.left(&controller).await } else { None };
        self.end().await;
        if let Some((count, finalizer)) = left.filter(|(count, _)| *count != Some(0)) {
            self.estate.recorder.record(news::left_behind(&controller, count, &finalizer));
        }
        self.let_go(&Version::of(&controller.metadata), finalizers).await
    }

    /// The same of an object that cannot be read.
    pub(super) async fn delete_unreadable(&mut self, entry: &Entry) -> Next {
        self.end().await;
        let finalizers: Vec<String> = entry.finalizers().map(str::to_owned).collect();
        let is_held = finalizers.iter().any(|name| name == FINALIZER);
        if !is_held || !self.patience.may(FINALIZERS, Instant::now()) {
            return self.next(AT_LEAST_EVERY);
        }
        self.let_go(&Version::of_entry(entry), finalizers).await
    }

    async fn let_go(&mut self, at: &Version, mut finalizers: Vec<String>) -> Next {
        finalizers.retain(|name| name != FINALIZER);
        match self.objects.set_finalizers(at, &finalizers).await {
            Ok(written) => {
                self.patience.worked(FINALIZERS);
                self.own = Some(written);
            }
            // What cannot be read has been written all the same.
            Err(Error::Answer(_)) => drop(self.patience.worked(FINALIZERS)),
            Err(error) => self.put_off(FINALIZERS, &error),
        }
        self.next(AT_LEAST_EVERY)
    }

    /// Draining takes a while, and whoever waits for it reads why. It does not wait for that to be written.
    async fn say_deleting(&mut self, stored: Stored) -> WasmController {
        let controller = stored.controller;
        let old = plan::status(&controller);
        let decision = Decision {
            active: old.active,
            candidate: old.candidate,
            previous: old.previous,
            problem: None,
        };
        let plan = plan::plan(&controller, stored.unusable.is_none(), |_| true);
        let status = self.status(&controller, &plan, &decision, None);
        self.write_status(&controller, &status).await;
        self.own.as_ref().map_or(controller, |own| own.controller.clone())
    }

    /// How many objects carry the finalizer that nobody removes from now on, and its name; `None` of them: nobody could count.
    async fn left(&self, controller: &WasmController) -> Option<(Option<usize>, String)> {
        let status = plan::status(controller);
        let finalizer = status.finalizer.filter(|name| !name.is_empty())?;
        if let Some(executor) = self.loads.all_ready().next() {
            let carriers =
                executor.view.primaries().filter(|e| e.finalizers().any(|name| *name == finalizer));
            return Some((Some(carriers.count()), finalizer));
        }
        let primary = status.primary?;
        let counted = count(&self.estate.api, controller, &primary, &finalizer);
        let why = match tokio::time::timeout(COUNT_LIMIT, counted).await {
            Ok(Ok(count)) => return Some((Some(count), finalizer)),
            Ok(Err(error)) => crate::causes::all(&error),
            Err(_) => format!("there are too many to count within {COUNT_LIMIT:?}"),
        };
        tracing::warn!(controller = %self.key, finalizer, error = why, "cannot count the objects that carry the finalizer");
        Some((None, finalizer))
    }
}

/// How many objects of `primary` in the controller's scope carry `finalizer`, as the account sees them: what the host may
/// read besides is none of its team's.
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
        count += in_namespace(api, &resource, namespace, &setup, finalizer).await?;
    }
    Ok(count)
}

async fn in_namespace(
    api: &ApiServer,
    resource: &Resource,
    namespace: Option<&str>,
    setup: &Setup,
    finalizer: &str,
) -> Result<usize, Error> {
    let path = resource.path(namespace, None, None)?;
    let (mut count, mut next) = (0, Some(String::new()));
    while let Some(page) = next {
        let path = query(&path, [("limit", PAGE), ("continue", &page)]);
        let call = Call::new(Method::GET, path).identity(setup.account.clone());
        let text = api.call(Call { accept: Some(METADATA_LIST), ..call }).await?;
        let list = envelope::list(&text, &resource.kind, &mut Interner::default())
            .map_err(|error| Error::Answer(error.into()))?;
        let carriers = list.entries.iter().filter(|e| e.finalizers().any(|name| name == finalizer));
        count += carriers.count();
        next = list.next;
    }
    Ok(count)
}
