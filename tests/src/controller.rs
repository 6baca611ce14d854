//! A WasmController as its team handles it without the command line: plain patches of the object
//! and one PUT of the bytes.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use nagaya::model::crd::{
    Phase, RevisionPhase, WasmController, WasmRevision, WasmRevisionStatus, revision_name,
};
use serde_json::{Value, json};

use crate::component::Component;
use crate::host;
use crate::wait::within;

/// No component has this digest: a controller waits with it until something is pushed.
pub const NO_DIGEST: &str =
    "sha256:0000000000000000000000000000000000000000000000000000000000000000";
/// Compiling a component on a busy machine is the longest part of it.
pub const STAGED_WITHIN: Duration = Duration::from_secs(60);
/// What takes no compiling.
pub const SEEN_WITHIN: Duration = Duration::from_secs(20);

/// One WasmController.
#[derive(Debug, Clone)]
pub struct Controller {
    name: String,
    api: Api<WasmController>,
    revisions: Api<WasmRevision>,
    host: String,
    http: reqwest::Client,
}

impl Controller {
    /// The controller of this name; `host` is the URL that uploads go to.
    pub fn new(client: &Client, namespace: &str, name: &str, host: &str) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            api: Api::namespaced(client.clone(), namespace),
            revisions: Api::namespaced(client.clone(), namespace),
            host: host.to_owned(),
            http: host::client()?,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object as it is now.
    pub async fn get(&self) -> Result<WasmController> {
        self.api.get(&self.name).await.with_context(|| format!("reading {}", self.name))
    }

    /// Merges `body` into it.
    pub async fn patch(&self, body: &Value) -> Result<WasmController> {
        let patched =
            self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(body)).await;
        patched.with_context(|| format!("patching {} with {body}", self.name))
    }

    /// Deletes it; [`gone`](Self::gone) waits.
    pub async fn delete(&self) -> Result<()> {
        let deleted = self.api.delete(&self.name, &DeleteParams::default()).await;
        deleted.map(drop).with_context(|| format!("deleting {}", self.name))
    }

    /// Waits until it is gone.
    pub async fn gone(&self, limit: Duration) -> Result<()> {
        let what = format!("{} is gone", self.name);
        within(limit, &what, async || match self.api.get_opt(&self.name).await? {
            None => Ok(()),
            Some(there) => bail!("{}", summary(&there)),
        })
        .await
    }

    /// Names the component in the spec, object first, then sends its bytes; the revision's name.
    pub async fn push(&self, component: &Component) -> Result<String> {
        self.push_patch(component, json!({"spec": {"module": {"digest": component.digest}}})).await
    }

    /// The same together with a config.
    pub async fn push_config(&self, component: &Component, config: &Value) -> Result<String> {
        let patch = json!({"spec": {"module": {"digest": component.digest}, "config": config}});
        self.push_patch(component, patch).await
    }

    async fn push_patch(&self, component: &Component, patch: Value) -> Result<String> {
        let patched = self.patch(&patch).await?;
        self.observed(patched.metadata.generation.unwrap_or_default()).await?;
        let (status, answer) = self.upload(component).await?;
        ensure!(matches!(status, 200 | 201), "the upload was answered {status}: {answer}");
        Ok(revision_name(&self.name, &component.digest, patched.spec.config.as_ref()))
    }

    /// Waits until the host has seen this generation.
    pub async fn observed(&self, generation: i64) -> Result<WasmController> {
        let what = format!("the host has seen generation {generation} of {}", self.name);
        self.until(SEEN_WITHIN, &what, |seen| {
            let observed = seen.status.as_ref().and_then(|status| status.observed_generation);
            observed.is_some_and(|observed| observed >= generation)
        })
        .await
    }

    /// One PUT of the bytes, as curl would do it: status and answer.
    pub async fn upload(&self, component: &Component) -> Result<(u16, String)> {
        let url = format!("{}/v1/modules/{}", self.host, component.digest);
        let body = component.bytes.to_vec();
        let answer = self.http.put(url).body(body).send().await.context("sending a component")?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await.context("reading the answer to an upload")?))
    }

    /// Waits until the object is as `wanted`; the error shows what it is instead.
    pub async fn until(
        &self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&WasmController) -> bool,
    ) -> Result<WasmController> {
        within(limit, what, async || {
            let seen = self.get().await?;
            ensure!(wanted(&seen), "{}", summary(&seen));
            Ok(seen)
        })
        .await
    }

    /// Waits until this revision is live.
    pub async fn active(&self, revision: &str) -> Result<WasmController> {
        let what = format!("{revision} is active");
        self.until(STAGED_WITHIN, &what, |seen| {
            seen.status.as_ref().is_some_and(|status| status.active.as_deref() == Some(revision))
        })
        .await
    }

    /// Waits until this revision waits for its promotion.
    pub async fn candidate(&self, revision: &str) -> Result<WasmController> {
        let what = format!("{revision} is the candidate");
        self.until(STAGED_WITHIN, &what, |seen| {
            seen.status.as_ref().is_some_and(|status| status.candidate.as_deref() == Some(revision))
        })
        .await
    }

    /// Waits until it does this.
    pub async fn phase(&self, phase: Phase) -> Result<WasmController> {
        let what = format!("{} is {phase:?}", self.name);
        self.until(SEEN_WITHIN, &what, |seen| {
            seen.status.as_ref().is_some_and(|status| status.phase == phase)
        })
        .await
    }

    /// Waits until this revision stands there, and the host has seen the controller as it is now: a revision that has just
    /// been made is pending, too, and its bytes are welcome a moment later.
    pub async fn stands(&self, revision: &str, phase: RevisionPhase) -> Result<WasmRevision> {
        self.observed(self.get().await?.metadata.generation.unwrap_or_default()).await?;
        self.revision(revision, &format!("is {phase:?}"), |status| status.phase == phase).await
    }

    /// Waits until this revision is refused for `reason` and the controller says so too; the message.
    pub async fn refused(&self, revision: &str, reason: &str) -> Result<String> {
        let failed = self.stands(revision, RevisionPhase::Failed).await?.status.unwrap_or_default();
        let why = failed.conditions.first().map(|condition| condition.reason.as_str());
        ensure!(why == Some(reason), "{revision} is refused for {why:?}, not {reason}");
        let told = format!("the controller says {reason}");
        self.until(SEEN_WITHIN, &told, |seen| {
            let conditions = seen.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|condition| condition.reason == reason)
        })
        .await?;
        failed.message.with_context(|| format!("{revision} is refused without a word"))
    }

    /// Waits until a condition of this type has this status; the condition.
    pub async fn condition(&self, kind: &str, status: &str) -> Result<Condition> {
        let what = format!("{} has {kind}={status}", self.name);
        let seen = self
            .until(STAGED_WITHIN, &what, |seen| {
                condition(seen, kind).is_some_and(|condition| condition.status == status)
            })
            .await?;
        condition(&seen, kind).cloned().with_context(|| what.clone())
    }

    /// One declarative write: this revision is to be live.
    pub async fn promote(&self, revision: &str) -> Result<WasmController> {
        let mut rejected = self.get().await?.spec.rollout.rejected;
        rejected.retain(|other| other != revision);
        self.patch(&json!({"spec": {"rollout": {"active": revision, "rejected": rejected}}})).await
    }

    /// One declarative write: this revision must not go live.
    pub async fn abort(&self, revision: &str) -> Result<WasmController> {
        let mut rejected = self.get().await?.spec.rollout.rejected;
        rejected.push(revision.to_owned());
        self.patch(&json!({"spec": {"rollout": {"rejected": rejected}}})).await
    }

    /// Both in one: back to `to`, and `from` is not to be a candidate again.
    pub async fn roll_back(&self, from: &str, to: &str) -> Result<WasmController> {
        let mut rejected = self.get().await?.spec.rollout.rejected;
        rejected.retain(|other| other != to);
        rejected.push(from.to_owned());
        self.patch(&json!({"spec": {"rollout": {"active": to, "rejected": rejected}}})).await
    }

    /// Its revisions, oldest first. One of the digest before the first push is left out: whether the
    /// host saw that digest is a matter of luck.
    pub async fn revisions(&self) -> Result<Vec<WasmRevision>> {
        let all = self.revisions.list(&ListParams::default()).await.context("listing revisions")?;
        let is_own =
            |one: &WasmRevision| one.spec.controller == self.name && one.spec.digest != NO_DIGEST;
        let mut own: Vec<_> = all.items.into_iter().filter(is_own).collect();
        own.sort_by_key(|one| one.spec.number);
        Ok(own)
    }

    /// Waits until this revision exists and its status is as `wanted`.
    pub async fn revision(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&WasmRevisionStatus) -> bool,
    ) -> Result<WasmRevision> {
        within(STAGED_WITHIN, &format!("{name} {what}"), async || {
            let seen = self.revisions.get(name).await?;
            let status = seen.status.clone().unwrap_or_default();
            ensure!(wanted(&status), "{}", json!(status));
            Ok(seen)
        })
        .await
    }
}

/// The condition of this type.
pub fn condition<'a>(controller: &'a WasmController, kind: &str) -> Option<&'a Condition> {
    controller.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind)
}

/// What a person wants to see of it.
fn summary(controller: &WasmController) -> String {
    let meta = &controller.metadata;
    json!({
        "name": controller.name_any(),
        "generation": meta.generation,
        "deletionTimestamp": meta.deletion_timestamp,
        "rollout": controller.spec.rollout,
        "status": controller.status,
    })
    .to_string()
}
