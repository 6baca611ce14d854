//! The demo's Websites and their children, looked at from outside the host.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::username;
use e2e::control_plane::audit;
use e2e::manifest::{self, resource};
use e2e::wait::within;
use e2e::witness::{Change, Sight, Witness};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use super::NAMESPACE;
use super::stage::Stage;
use crate::progress::Progress;

/// The kinds of a Website's children.
pub(super) const KINDS: [(&str, &str); 3] =
    [("v1", "ConfigMap"), ("apps/v1", "Deployment"), ("v1", "Service")];
/// The label of every child; its value is the Website's name.
const WEBSITE: &str = "examples.nagaya.dev/website";
/// Version 3 puts it on every child.
pub(super) const DESIGN: &str = "examples.nagaya.dev/design";

/// Enough for a busy machine; all of it takes a few seconds.
const LIMIT: Duration = Duration::from_secs(60);
/// The host writes hundreds of times a second while it has something to do.
const QUIET: Duration = Duration::from_millis(500);

/// The Websites.
pub(super) struct Sites<'a> {
    stage: &'a Stage,
    children: Witness,
    pointer: Witness,
    audit: Option<audit::Log>,
}

impl<'a> Sites<'a> {
    /// Starts to watch.
    pub(super) async fn start(stage: &'a Stage) -> Result<Self> {
        let kinds = KINDS.map(|(version, kind)| resource(version, kind));
        let controllers = [resource("nagaya.dev/v1alpha1", "WasmController")];
        Ok(Self {
            stage,
            children: Witness::start(&stage.admin, NAMESPACE, &kinds, WEBSITE).await?,
            pointer: Witness::start(&stage.admin, NAMESPACE, &controllers, "").await?,
            audit: stage.control_plane.audit().ok(),
        })
    }

    /// Makes them.
    pub(super) async fn create(&self, count: usize) -> Result<()> {
        let sites = (1..=count).map(|number| {
            json!({
                "apiVersion": "examples.nagaya.dev/v1",
                "kind": "Website",
                "metadata": {"name": format!("site-{number:02}"), "namespace": NAMESPACE},
                "spec": {"title": format!("Site {number}"), "page": "<p>Welcome.</p>"},
            })
        });
        let apply = async |site| manifest::apply(&self.stage.admin, &[site]).await;
        futures::stream::iter(sites.map(apply)).buffer_unordered(8).try_collect().await
    }

    /// Waits until each has all its children and says that it is ready.
    pub(super) async fn complete(&self, count: usize) -> Result<()> {
        within(LIMIT, "every Website has its children", async || {
            let there: Vec<_> = self.children_by_kind().await?.iter().map(Vec::len).collect();
            ensure!(there.iter().all(|number| *number == count), "there are {there:?}");
            let websites = self.api("examples.nagaya.dev/v1", "Website");
            let sites = websites.list(&ListParams::default()).await?.items;
            let ready = sites.iter().filter(|site| {
                let conditions = site.data["status"]["conditions"].as_array().into_iter().flatten();
                conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
            });
            let ready = ready.count();
            ensure!(ready == count, "{ready} Websites are ready");
            Ok(())
        })
        .await
    }

    /// Prints counts and the first few.
    pub(super) async fn show(&self, progress: &Progress) -> Result<()> {
        let children = self.children_by_kind().await?;
        for ((_, kind), children) in KINDS.iter().zip(&children) {
            progress.say(&format!("{:>4} {kind}s", children.len()));
        }
        progress.say(&format!(
            "{:<12}{:<14}{:<14}{:<14}DESIGN",
            "WEBSITE", "CONFIGMAP", "DEPLOYMENT", "SERVICE"
        ));
        for name in ["site-01", "site-02", "site-03"] {
            let row = children.iter().map(|children| {
                let child = children.iter().find(|child| child.name_any() == name);
                format!("{:<14}", child.map_or("-", |_| "yes"))
            });
            let label = children.iter().flatten().find(|child| child.name_any() == name);
            let design =
                label.and_then(|child| child.labels().get(DESIGN)).map_or("-", String::as_str);
            progress.say(&format!("{name:<12}{}{design}", row.collect::<String>()));
        }
        progress.say("…");
        Ok(())
    }

    /// Deletes a Service; how long it took until there was another.
    pub(super) async fn delete_service(&self, name: &str) -> Result<Duration> {
        let services = Api::<Service>::namespaced(self.stage.admin.clone(), NAMESPACE);
        let before = Instant::now();
        services.delete(name, &DeleteParams::default()).await.context("deleting a Service")?;
        let is_back = |sight: &Sight| {
            (&*sight.kind, &*sight.name, sight.change) == ("Service", name, Change::Added)
        };
        within(LIMIT, "the Service is back", async || {
            let seen = self.children.since(before)?;
            let back = seen.iter().find(|sight| is_back(sight)).context("it is not there")?;
            Ok(back.at - before)
        })
        .await
    }

    /// Overwrites a page; how long it took until it was as before.
    pub(super) async fn edit_page(&self, name: &str) -> Result<Duration> {
        let maps = Api::<ConfigMap>::namespaced(self.stage.admin.clone(), NAMESPACE);
        let page = maps.get(name).await.context("reading a page")?.data;
        let edit = json!({"data": {"index.html": "<h1>Hacked</h1>"}});
        let before = Instant::now();
        maps.patch(name, &PatchParams::default(), &Patch::Merge(&edit))
            .await
            .context("editing a page")?;
        within(LIMIT, "the page is as before", async || {
            let now = maps.get(name).await?.data;
            ensure!(now == page, "it is {now:?}");
            let seen = self.children.since(before)?;
            let mut seen =
                seen.iter().filter(|sight| (&*sight.kind, &*sight.name) == ("ConfigMap", name));
            // The edit itself, then what put it right.
            let back = seen.nth(1).context("its last change was not seen yet")?;
            Ok(back.at - before)
        })
        .await
    }

    /// Waits until the controller has written nothing for a while.
    pub(super) async fn quiet(&self) -> Result<()> {
        self.numbered().await?;
        let Some(log) = &self.audit else { return self.children.settled(QUIET).await };
        within(LIMIT, "the controller has nothing to do", async || {
            let events = log.events()?;
            let last =
                events.iter().rev().find(|event| event.is_write() && event.actor() == account());
            let last = last.context("it never wrote")?.stage_timestamp;
            let idle =
                Duration::try_from(Timestamp::now().duration_since(last)).unwrap_or_default();
            ensure!(idle > QUIET, "its last write is {idle:?} old");
            Ok(())
        })
        .await
    }

    /// Waits until Kubernetes' own controller has numbered each Deployment's rollout: an annotation, which wakes the
    /// Website's controller once more.
    async fn numbered(&self) -> Result<()> {
        if !self.stage.control_plane.has_controller_manager() {
            return Ok(());
        }
        within(LIMIT, "the Deployments are rolled out", async || {
            let children = self.children_by_kind().await?;
            let deployments = children.get(1).context("no Deployments")?;
            let fresh = deployments.iter().filter(|deployment| {
                !deployment.annotations().contains_key("deployment.kubernetes.io/revision")
            });
            let fresh = fresh.count();
            ensure!(fresh == 0, "{fresh} are not");
            Ok(())
        })
        .await
    }

    /// A moment, for [`writes_since`](Self::writes_since).
    pub(super) fn mark(&self) -> Result<(Option<audit::Log>, Instant)> {
        let log = self.audit.as_ref().map(audit::Log::from_now).transpose()?;
        Ok((log, Instant::now()))
    }

    /// How often the controller wrote since then; without an audit log, how often a child changed.
    pub(super) fn writes_since(&self, (log, at): &(Option<audit::Log>, Instant)) -> Result<usize> {
        match log {
            Some(log) => {
                let events = log.events()?;
                Ok(events
                    .iter()
                    .filter(|event| event.is_write() && event.actor() == account())
                    .count())
            }
            None => Ok(self.children.since(*at)?.len()),
        }
    }

    /// How many children have version 3's label.
    pub(super) async fn labelled(&self) -> Result<usize> {
        let children = self.children_by_kind().await?;
        Ok(children.iter().flatten().filter(|child| child.labels().contains_key(DESIGN)).count())
    }

    /// Waits until so many have it.
    pub(super) async fn all_labelled(&self, count: usize) -> Result<()> {
        within(LIMIT, &format!("{count} children have the label {DESIGN}"), async || {
            let labelled = self.labelled().await?;
            ensure!(labelled == count, "{labelled} have it");
            Ok(())
        })
        .await
    }

    /// When the WasmController was seen to change after `before`: the promote itself.
    pub(super) fn pointer_moved(&self, before: Instant) -> Result<Instant> {
        let seen = self.pointer.since(before)?;
        Ok(seen.first().context("the WasmController was not seen to change")?.at)
    }

    /// When each child was first seen with the label, in that order.
    pub(super) fn first_labelled(&self, before: Instant) -> Result<Vec<Instant>> {
        let mut first = BTreeMap::new();
        for sight in self.children.since(before)? {
            if sight.labels.contains_key(DESIGN) {
                first.entry((sight.kind, sight.name)).or_insert(sight.at);
            }
        }
        let mut times: Vec<_> = first.into_values().collect();
        times.sort();
        Ok(times)
    }

    /// When the last child was first seen without the label.
    pub(super) fn last_unlabelled(&self, before: Instant) -> Result<Instant> {
        let mut first = BTreeMap::new();
        for sight in self.children.since(before)? {
            if !sight.labels.contains_key(DESIGN) {
                first.entry((sight.kind, sight.name)).or_insert(sight.at);
            }
        }
        first.into_values().max().context("no child was seen to change")
    }

    /// How many changes of this sort were seen.
    pub(super) fn witnessed(&self, before: Instant, change: Change) -> Result<usize> {
        Ok(self.children.since(before)?.iter().filter(|sight| sight.change == change).count())
    }

    /// Checks in the audit log that every child was written in the name of the controller's account.
    pub(super) fn only_the_account_wrote(&self, progress: &Progress) -> Result<()> {
        let Some(log) = &self.audit else { return Ok(()) };
        let events = log.events()?;
        let of_host = |event: &&audit::Event| {
            event.user.username == e2e::account::host_username()
                && event.is_write()
                && event.object_ref.as_ref().is_some_and(|object| {
                    ["configmaps", "deployments", "services", "websites"]
                        .contains(&&*object.resource)
                })
        };
        let writes: Vec<_> = events.iter().filter(of_host).collect();
        let other = writes.iter().find(|event| event.actor() != account());
        ensure!(
            other.is_none(),
            "a write in another name: {}",
            other.map_or_else(String::new, |one| one.summary())
        );
        progress.good(&format!(
            "the audit log has {} writes of the host to Websites and children, every one as {}",
            writes.len(),
            account()
        ));
        Ok(())
    }

    async fn children_by_kind(&self) -> Result<Vec<Vec<DynamicObject>>> {
        let mut all = vec![];
        for (version, kind) in KINDS {
            let list = self.api(version, kind).list(&ListParams::default().labels(WEBSITE)).await;
            all.push(list.with_context(|| format!("listing {kind}s"))?.items);
        }
        Ok(all)
    }

    fn api(&self, version: &str, kind: &str) -> Api<DynamicObject> {
        let resource = resource(version, kind);
        Api::namespaced_with(self.stage.admin.clone(), NAMESPACE, &resource)
    }
}

fn account() -> String {
    username(NAMESPACE, "website")
}
