//! Puts on a control plane what a platform team would: the CRDs and `deploy/`'s RBAC.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::account::host_username;
use crate::control_plane::{ControlPlane, User};
use crate::manifest;
use crate::wait::within;

/// The server delays creates of a new kind for two seconds; times in conditions are whole seconds.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// The label of `ClusterRoles` that share a kind with the host.
const SHARES: &str = "nagaya.dev/watch";

/// The role by which the host watches for all controllers.
const SHARED_WATCHES: &str = "nagaya-watch";

/// The folders of the examples.
pub const EXAMPLES: [&str; 4] = ["first", "website", "at", "mirror"];

/// The shared control plane, with everything on it, once a process.
pub async fn shared() -> Result<&'static ControlPlane> {
    static DONE: OnceCell<()> = OnceCell::const_new();
    let control_plane = ControlPlane::shared().await?;
    DONE.get_or_try_init(|| install(control_plane)).await?;
    Ok(control_plane)
}

/// Applies `deploy/` and the examples' kinds as the administrator, and waits until all is in force.
pub async fn install(control_plane: &ControlPlane) -> Result<()> {
    let admin = control_plane.client(User::Admin).await?;
    let definitions = definitions()?;
    manifest::apply(&admin, &definitions).await?;
    manifest::apply(&admin, &manifest::read("deploy/rbac.yaml")?).await?;
    manifest::apply(&admin, &shared_kinds()?).await?;
    for definition in &definitions {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        established(&admin, name).await?;
    }
    // The rights of a ClusterRole with an aggregation rule are the controller manager's work.
    if control_plane.has_controller_manager() {
        let what = "the host may watch the kinds that are shared with it";
        within(Duration::from_secs(30), what, async || may_watch_websites(&admin).await).await?;
    }
    Ok(())
}

/// Fills the role by which the host watches the kinds that are shared with it, as the controller manager does; where
/// there is none, it would stay empty.
pub async fn share_kinds(control_plane: &ControlPlane) -> Result<()> {
    let admin = control_plane.client(User::Admin).await?;
    let roles = Api::<ClusterRole>::all(admin.clone());
    let shared = roles.list(&ListParams::default().labels(&format!("{SHARES}=true"))).await;
    let shared = shared.context("listing the roles that share kinds")?;
    let rules: Vec<_> =
        shared.into_iter().flat_map(|role| role.rules.unwrap_or_default()).collect();
    let patch = Patch::Merge(json!({"rules": rules}));
    let patched = roles.patch(SHARED_WATCHES, &PatchParams::default(), &patch).await;
    patched.map(drop).with_context(|| format!("filling the role {SHARED_WATCHES}"))?;
    let what = "the host may watch the kinds that are shared with it";
    within(Duration::from_secs(30), what, async || may_watch_websites(&admin).await).await
}

/// The CRDs of the host and of the examples.
fn definitions() -> Result<Vec<Value>> {
    let folder = manifest::root().join("deploy/crd");
    let entries = std::fs::read_dir(&folder);
    let mut files = Vec::new();
    for entry in entries.with_context(|| format!("reading {}", folder.display()))? {
        files.push(format!("deploy/crd/{}", entry?.file_name().to_string_lossy()));
    }
    files.retain(|file| file.ends_with(".yaml"));
    files.sort();
    files.extend(EXAMPLES.map(|example| format!("examples/{example}/crd.yaml")));
    let read = files.iter().map(|file| manifest::read(file));
    Ok(read.collect::<Result<Vec<_>>>()?.concat())
}

/// The examples' `ClusterRoles` by which their kinds are watched once for all, and people may use them.
fn shared_kinds() -> Result<Vec<Value>> {
    let mut roles = Vec::new();
    for example in EXAMPLES {
        roles.extend(manifest::read(&format!("examples/{example}/platform.yaml"))?);
    }
    let shares = roles.iter().filter(|role| role["metadata"]["labels"][SHARES] == "true");
    ensure!(shares.count() == EXAMPLES.len(), "each example shares its kind by one ClusterRole");
    Ok(roles)
}

async fn established(admin: &Client, name: &str) -> Result<()> {
    let definitions = Api::<CustomResourceDefinition>::all(admin.clone());
    let since = within(Duration::from_secs(30), &format!("{name} is established"), async || {
        let conditions = definitions.get(name).await?.status.unwrap_or_default().conditions;
        let mut conditions = conditions.into_iter().flatten();
        let established = conditions
            .find(|condition| condition.type_ == "Established" && condition.status == "True");
        let since = established.context("not established")?.last_transition_time;
        since.context("established at no time").map(|time| time.0)
    })
    .await?;
    let age = Timestamp::now().duration_since(since);
    let settled = SETTLED_AFTER.saturating_sub(Duration::try_from(age).unwrap_or_default());
    sleep(settled).await;
    Ok(())
}

async fn may_watch_websites(admin: &Client) -> Result<()> {
    let attributes = ResourceAttributes {
        group: Some("examples.nagaya.dev".into()),
        resource: Some("websites".into()),
        verb: Some("watch".into()),
        ..ResourceAttributes::default()
    };
    ensure!(may(admin, &host_username(), attributes).await?, "it may not");
    Ok(())
}

/// Whether the server would let `user` do this.
pub async fn may(admin: &Client, user: &str, attributes: ResourceAttributes) -> Result<bool> {
    let spec = SubjectAccessReviewSpec {
        user: Some(user.to_owned()),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let reviews = Api::<SubjectAccessReview>::all(admin.clone());
    let answer =
        reviews.create(&PostParams::default(), &review).await.context("asking for rights")?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_share_their_kinds() {
        let roles = shared_kinds().unwrap();
        assert!(roles.iter().all(|role| role["kind"] == "ClusterRole"));
    }
}
