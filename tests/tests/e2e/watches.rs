//! Shared watches: one a kind, however many controllers and revisions look at it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::account::{self, GUEST_RULES, Rule, host_username};
use e2e::component::Component;
use e2e::control_plane::audit;
use e2e::site::owning;
use e2e::wait::within;
use e2e::{Test, test};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
/// A watch that nobody uses stays open for a minute, in case somebody comes back.
const LINGERS: Duration = Duration::from_secs(90);
const CONTROLLERS: usize = 30;

/// How many watches of the host are open since `log` began, by kind: of the primaries and children
/// of this test's namespace, under whatever identity.
fn open_watches(test: &Test, log: &audit::Log) -> Result<BTreeMap<String, usize>> {
    let host = host_username();
    let open = log.open_watches(|event| event.user.username == host)?;
    let mut by_kind = BTreeMap::new();
    for kind in ["websites", "configmaps"] {
        let path = format!("/namespaces/{}/{kind}?", test.namespace);
        let count = open.iter().filter(|uri| uri.contains(&path)).count();
        by_kind.insert(kind.to_owned(), count);
    }
    Ok(by_kind)
}

/// Waits until one watch a kind is open. One that was silent for long is joined by another for a moment, which proves that it
/// lives.
async fn one_each(test: &Test, log: &audit::Log) -> Result<()> {
    let one = BTreeMap::from([("configmaps".to_owned(), 1), ("websites".to_owned(), 1)]);
    within(LIMIT, "one watch a kind", async || {
        let open = open_watches(test, log)?;
        ensure!(open == one, "{open:?}");
        Ok(())
    })
    .await
}

#[test]
fn thirty_controllers_and_two_revisions_share_one_watch_a_kind() -> Result<()> {
    test(async |test| {
        let Some(log) = test.audit() else { return Ok(()) };
        let log = log.from_now()?;
        test.apply(&account::objects(&test.namespace, "team", GUEST_RULES)).await?;
        let component = Component::load("hostile")?;
        let config = owning("ok");
        let mut controllers = vec![];
        for number in 0..CONTROLLERS {
            let spec = json!({"config": config, "module": {"digest": component.digest}});
            let name = format!("c{number}");
            controllers.push(test.bare_controller(&name, "team", spec).await?);
        }
        // One upload serves all of them.
        let first = controllers[0].push_config(&component, &config).await?;
        controllers[0].active(&first).await?;
        for controller in &controllers {
            let name = controller.name();
            let what = format!("{name} has an active revision");
            let is_active = |seen: &nagaya::model::crd::WasmController| {
                seen.status.as_ref().is_some_and(|status| status.active.is_some())
            };
            controller.until(LIMIT, &what, is_active).await?;
        }
        test.website("web", "Web").await?;
        within(LIMIT, "each of them has run once", async || {
            for controller in &controllers {
                let runs = test.runs(controller.name()).await?;
                ensure!(runs >= 1.0, "{} has not", controller.name());
            }
            Ok(())
        })
        .await?;
        one_each(test, &log).await?;

        // A second revision looks through the same watches, staged and live.
        let second = controllers[0].push(&component.marked("second")?).await?;
        controllers[0].candidate(&second).await?;
        one_each(test, &log).await?;
        controllers[0].promote(&second).await?;
        controllers[0].active(&second).await?;
        one_each(test, &log).await?;

        // The last one closes them.
        for controller in &controllers {
            controller.delete().await?;
        }
        for controller in &controllers {
            controller.gone(LIMIT).await?;
        }
        within(LINGERS, "no open watch", async || {
            let open = open_watches(test, &log)?;
            ensure!(open.values().all(|count| *count == 0), "{open:?}");
            Ok(())
        })
        .await
    })
}

/// Built-in kinds of namespaces that `deploy/` shares: as `apiVersion`, kind, group and plural.
const BUILT_IN: [(&str, &str, &str, &str); 12] = [
    ("v1", "ConfigMap", "", "configmaps"),
    ("v1", "Service", "", "services"),
    ("v1", "PersistentVolumeClaim", "", "persistentvolumeclaims"),
    ("apps/v1", "Deployment", "apps", "deployments"),
    ("apps/v1", "StatefulSet", "apps", "statefulsets"),
    ("apps/v1", "DaemonSet", "apps", "daemonsets"),
    ("batch/v1", "Job", "batch", "jobs"),
    ("batch/v1", "CronJob", "batch", "cronjobs"),
    ("networking.k8s.io/v1", "Ingress", "networking.k8s.io", "ingresses"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networking.k8s.io", "networkpolicies"),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "autoscaling", "horizontalpodautoscalers"),
    ("policy/v1", "PodDisruptionBudget", "policy", "poddisruptionbudgets"),
];

#[test]
fn built_in_kinds_are_watched_as_the_host_and_not_once_an_account() -> Result<()> {
    test(async |test| {
        let Some(log) = test.audit() else { return Ok(()) };
        let log = log.from_now()?;
        let mut rules = GUEST_RULES.to_vec();
        rules.extend(BUILT_IN.map(|(_, _, group, resource)| Rule {
            group,
            resource,
            verbs: &["get", "list", "watch"],
        }));
        let owned: Vec<_> = BUILT_IN
            .iter()
            .map(|(version, kind, _, _)| {
                json!({"apiVersion": version, "kind": kind, "projection": "full"})
            })
            .collect();
        let mut config = owning("ok");
        config["manifest"]["owns"] = owned.into();
        let hostile = test.guest("hostile", &rules, json!({"config": config})).await?;
        let revision = hostile.push_config(&Component::load("hostile")?, &config).await?;
        hostile.active(&revision).await?;
        let host = host_username();
        let as_itself = log.open_watches(|event| {
            event.user.username == host && event.impersonated_user.is_none()
        })?;
        for (_, _, _, plural) in BUILT_IN {
            let path = format!("/namespaces/{}/{plural}?", test.namespace);
            ensure!(as_itself.iter().any(|uri| uri.contains(&path)), "{plural}: {as_itself:#?}");
        }
        Ok(())
    })
}
