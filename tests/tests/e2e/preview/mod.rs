//! What a candidate would do: plans, shadow runs and gates, with the audit log as witness that nothing was done.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::Rule;
use e2e::component::Component;
use e2e::control_plane::{self, audit};
use e2e::controller::{Controller, condition};
use e2e::load::Load;
use e2e::wait::within;
use e2e::webhook::{Does, Webhook};
use e2e::{Test, host, manifest, own_api, test, test_alone, test_in_turn};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use nagaya::model::plan::{PlanPhase, PlanStatus, ShadowStatus};
use serde_json::{Value, json};

mod gates;
mod harm;

const LIMIT: Duration = Duration::from_secs(120);
/// Applies at the same time.
const AT_ONCE: usize = 16;

/// What `shaper` needs with any config.
const RULES: &[Rule] = &[
    Rule { group: "examples.nagaya.dev", resource: "websites", verbs: &["get", "list", "watch"] },
    Rule { group: "examples.nagaya.dev", resource: "websites/status", verbs: &["patch"] },
    Rule {
        group: "apps",
        resource: "deployments",
        verbs: &["get", "list", "watch", "create", "patch"],
    },
    Rule {
        group: "",
        resource: "configmaps",
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
    },
    Rule { group: "events.k8s.io", resource: "events", verbs: &["create", "patch"] },
];

/// `shaper` live with `config`, for so many Websites `site-0` …, whose Deployments are there.
async fn live(test: &Test, config: &Value, sites: usize) -> Result<(Controller, String)> {
    let spec = json!({"limits": {"writesPerMinute": 60_000}});
    let shaper = test.guest("shaper", RULES, spec).await?;
    let revision = shaper.push_config(&Component::load("shaper")?, config).await?;
    shaper.active(&revision).await?;
    let names = (0..sites).map(|number| format!("site-{number}"));
    let made = futures::stream::iter(names).map(async |name| test.website(&name, "one").await);
    made.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    within(LIMIT, &format!("{sites} Deployments"), async || {
        let count = test.api::<Deployment>().list(&ListParams::default()).await?.items.len();
        ensure!(count == sites, "{count}");
        Ok(())
    })
    .await?;
    test.idle("shaper").await?;
    Ok((shaper, revision))
}

/// `copier` live, for so many Websites whose ConfigMaps are there: many objects, and nobody but the guest touches them.
async fn copies(test: &Test, sites: usize) -> Result<Controller> {
    let (copier, _) = test.copier("copier", &json!({"mark": "one"})).await?;
    let mut titles = BTreeMap::new();
    test.retitle(&mut titles, sites, "one").await?;
    test.copied(&titles, LIMIT).await?;
    test.idle("copier").await?;
    Ok(copier)
}

/// Stages `copier` with another config; the revision.
async fn marked(copier: &Controller, config: Value) -> Result<String> {
    let revision = copier.push_config(&Component::load("copier")?, &config).await?;
    copier.candidate(&revision).await?;
    Ok(revision)
}

/// Stages `shaper` with another config; the revision.
async fn candidate(shaper: &Controller, config: &Value) -> Result<String> {
    let revision = shaper.push_config(&Component::load("shaper")?, config).await?;
    shaper.candidate(&revision).await?;
    Ok(revision)
}

/// The plan of a revision, once it is whole.
async fn plan(shaper: &Controller, revision: &str) -> Result<PlanStatus> {
    let seen = shaper.revision(revision, "has a plan", |status| {
        status.plan.as_ref().is_some_and(|plan| plan.phase == PlanPhase::Complete)
    });
    Ok(*seen.await?.status.and_then(|status| status.plan).context("no plan")?)
}

/// The same, asked for anew by the annotation.
async fn plan_again(shaper: &Controller, revision: &str, request: &str) -> Result<PlanStatus> {
    shaper.patch(&json!({"metadata": {"annotations": {"nagaya.dev/plan": request}}})).await?;
    let what = format!("has the plan {request}");
    let seen = shaper.revision(revision, &what, |status| {
        status.plan.as_ref().is_some_and(|plan| {
            plan.phase == PlanPhase::Complete && plan.request.as_deref() == Some(request)
        })
    });
    Ok(*seen.await?.status.and_then(|status| status.plan).context("no plan")?)
}

/// Every object that a guest could touch, with its version.
async fn versions(test: &Test) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for (version, kind) in [
        ("examples.nagaya.dev/v1", "Website"),
        ("apps/v1", "Deployment"),
        ("v1", "ConfigMap"),
        ("v1", "Secret"),
        ("v1", "Service"),
    ] {
        let resource = manifest::resource(version, kind);
        let api =
            Api::<DynamicObject>::namespaced_with(test.admin.clone(), &test.namespace, &resource);
        for object in api.list(&ListParams::default()).await?.items {
            let name = object.metadata.name.clone().unwrap_or_default();
            let metadata = object.metadata;
            // Kubernetes' own controllers go on writing the status and annotations of a Deployment.
            let version = match kind {
                "Deployment" => {
                    format!("{:?} {:?} {:?}", metadata.uid, metadata.generation, metadata.labels)
                }
                _ => metadata.resource_version.unwrap_or_default(),
            };
            all.insert(format!("{kind} {name}"), version);
        }
    }
    Ok(all)
}

/// The account's requests since `log` was opened that are no reads: of real ones, and of dry runs.
fn requests(log: &audit::Log, account: &str) -> Result<(Vec<String>, usize)> {
    let (mut real, mut dry) = (vec![], 0);
    for event in log.events()? {
        let writes = ["create", "update", "patch", "delete", "deletecollection"];
        if event.actor() != account || !writes.contains(&&*event.verb) {
            continue;
        }
        if event.is_dry_run() {
            dry += 1;
        } else {
            real.push(event.summary());
        }
    }
    Ok((real, dry))
}

fn words(plan: &PlanStatus) -> String {
    json!(plan).to_string()
}

#[test]
fn an_identical_candidate_shows_nothing() -> Result<()> {
    test_in_turn(async |test| {
        let copier = copies(test, 1_000).await?;
        test.quiet("copier").await?;
        let log = test.audit().map(|log| log.from_now()).transpose()?;
        let before = versions(test).await?;
        let revision = marked(&copier, json!({"none": 1})).await?;
        let whole = plan(&copier, &revision).await?;
        ensure!(whole.objects.total == 1_000 && whole.objects.looked == 1_000, "{}", words(&whole));
        ensure!(
            whole.message.as_deref() == Some("changes nothing in 1000 objects"),
            "{}",
            words(&whole)
        );
        ensure!(
            whole.objects.changed + whole.objects.failed + whole.objects.untold == 0,
            "{}",
            words(&whole)
        );
        if let Some(log) = &log {
            let (real, dry) = requests(log, &test.username("copier"))?;
            ensure!(real.is_empty() && dry == 0, "{dry} dry runs, and {real:?}");
        }
        ensure!(versions(test).await? == before, "something has changed");
        // The same while everything moves.
        let names = (0..1_000).map(|number| format!("site-{number}")).collect();
        let load = Load::start(test.admin.clone(), &test.namespace, names, 50);
        for round in 0..10 {
            let whole = plan_again(&copier, &revision, &format!("round-{round}")).await?;
            let counts = &whole.objects;
            ensure!(counts.looked == 1_000, "{}", words(&whole));
            ensure!(
                counts.changed + counts.failed + counts.untold == 0,
                "{round}: {}",
                words(&whole)
            );
        }
        load.stop().await.map(drop)
    })
}

#[test]
fn a_plan_names_exactly_what_differs() -> Result<()> {
    test(async |test| {
        let (shaper, active) = live(test, &json!({"delete": "nobody"}), 50).await?;
        let map = |name: &str, data: Value| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
                "metadata": {"name": name, "namespace": test.namespace}})
        };
        test.apply(&[
            map("site-7-old", json!({"x": "1"})),
            map("site-9-theirs", json!({"owner": "somebody", "other": "stays"})),
        ])
        .await?;
        within(LIMIT, "the Deployments are numbered", async || test.deployed(50).await).await?;
        test.quiet("shaper").await?;
        let log = test.audit().map(|log| log.from_now()).transpose()?;
        let before = versions(test).await?;
        let config = json!({"label": "front", "delete": "site-7", "take": "site-9"});
        let revision = candidate(&shaper, &config).await?;
        let whole = plan(&shaper, &revision).await?;
        let text = words(&whole);
        ensure!(whole.against == active && whole.objects.changed == 50, "{text}");
        ensure!(whole.objects.failed + whole.objects.untold == 0, "{text}");
        let counts = |kinds: &[nagaya::model::plan::KindCount]| {
            kinds.iter().map(|one| (one.kind.clone(), one.objects)).collect::<Vec<_>>()
        };
        let kind = |kind: &str, objects: i64| (kind.to_owned(), objects);
        ensure!(counts(&whole.creates).is_empty(), "{text}");
        ensure!(
            counts(&whole.updates) == [kind("Deployment.apps", 50), kind("ConfigMap", 1)],
            "{text}"
        );
        ensure!(counts(&whole.deletes) == [kind("ConfigMap", 1)], "{text}");
        let paths: Vec<_> =
            whole.paths.iter().map(|one| (one.path.as_str(), one.objects)).collect();
        ensure!(paths == [("metadata.labels.tier", 50), ("data.owner", 1)], "{text}");
        let deleted = whole.samples.iter().find(|sample| sample.sort == "Delete");
        let deleted = deleted.with_context(|| text.clone())?;
        ensure!(
            deleted.object.ends_with("/site-7") && deleted.text.contains("site-7-old"),
            "{text}"
        );
        // Both declare it; the dry run is what shows that it is needed.
        ensure!(whole.new_rights.is_empty(), "{text}");
        ensure!(whole.rights.contains(&"delete configmaps".to_owned()), "{text}");
        if let Some(log) = &log {
            let (real, dry) = requests(log, &test.username("shaper"))?;
            ensure!(real.is_empty() && dry >= 52, "{dry} dry runs, and {real:?}");
        }
        ensure!(versions(test).await? == before, "something has changed");
        // Once it is live, another one of the same is no difference.
        shaper.promote(&revision).await?;
        shaper.active(&revision).await?;
        test.quiet("shaper").await?;
        let again = candidate(
            &shaper,
            &json!({"label": "front", "delete": "site-7", "take": "site-9", "none": 1}),
        )
        .await?;
        let whole = plan(&shaper, &again).await?;
        ensure!(whole.objects.changed == 0, "{}", words(&whole));
        Ok(())
    })
}

#[test]
fn what_moves_by_itself_is_no_difference() -> Result<()> {
    test(async |test| {
        let (shaper, _) = live(test, &json!({"clock": true}), 20).await?;
        let revision = candidate(&shaper, &json!({"clock": true, "none": 1})).await?;
        let whole = plan(&shaper, &revision).await?;
        ensure!(whole.objects.looked == 20 && whole.objects.changed == 0, "{}", words(&whole));
        ensure!(whole.objects.failed + whole.objects.untold == 0, "{}", words(&whole));
        // It writes twice in one run, reads that back, and only the new of it is told.
        let revision = candidate(&shaper, &json!({"clock": true, "twice": true})).await?;
        let whole = plan(&shaper, &revision).await?;
        let paths: Vec<_> =
            whole.paths.iter().map(|one| (one.path.as_str(), one.objects)).collect();
        ensure!(paths == [("metadata.annotations.shaper", 20)], "{}", words(&whole));
        ensure!(whole.objects.failed == 0, "{}", words(&whole));
        Ok(())
    })
}

#[test]
fn names_that_the_server_chooses_are_no_difference() -> Result<()> {
    test(async |test| {
        let (shaper, _) = live(test, &json!({"make": "job-"}), 5).await?;
        let revision = candidate(&shaper, &json!({"make": "job-", "none": 1})).await?;
        let whole = plan(&shaper, &revision).await?;
        ensure!(whole.objects.looked == 5 && whole.objects.changed == 0, "{}", words(&whole));
        let revision = candidate(&shaper, &json!({"make": "task-"})).await?;
        let whole = plan(&shaper, &revision).await?;
        ensure!(whole.objects.changed == 5 && whole.creates[0].objects == 5, "{}", words(&whole));
        Ok(())
    })
}

#[test]
fn a_candidate_that_breaks_down_for_some_is_named_for_these() -> Result<()> {
    test(async |test| {
        let (shaper, _) = live(test, &json!({}), 50).await?;
        let config = json!({"trap": ["site-3", "site-5", "site-8"]});
        let revision = candidate(&shaper, &config).await?;
        let whole = plan(&shaper, &revision).await?;
        ensure!(whole.objects.failed == 3 && whole.objects.changed == 0, "{}", words(&whole));
        let failed: Vec<_> = whole.samples.iter().filter(|one| one.sort == "Error").collect();
        for name in ["site-3", "site-5", "site-8"] {
            let is_it =
                |one: &&&nagaya::model::plan::Sample| one.object.ends_with(&format!("/{name}"));
            let one = failed.iter().find(is_it).with_context(|| words(&whole))?;
            ensure!(one.text.contains("trapped"), "{}", one.text);
        }
        let metrics = test.host.metrics().await?;
        let traps = metrics.sum(
            "nagaya_guest_traps_total",
            &[("controller", &format!("{}/shaper", test.namespace))],
        );
        ensure!(traps == 0.0, "a preview is no live run");
        Ok(())
    })
}

#[test]
fn webhooks_are_shown_as_what_they_are() -> Result<()> {
    test_in_turn(async |test| {
        if test.control_plane.is_given() {
            eprintln!("not looked at: webhooks, which a given cluster cannot reach");
            return Ok(());
        }
        let (shaper, _) = live(test, &json!({}), 5).await?;
        let pod = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "x", "image": "x"}]}});
        let probe = json!({"kind": "Deployment",
            "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": pod}});
        let of = ("apps", "v1", "deployments");
        let config = json!({"label": "front"});
        // One that defaults a field: both revisions' writes get it, and the difference stays the label.
        let does =
            Does::Defaults { pointer: "/metadata/annotations/defaulted", value: json!("yes") };
        let hook = Webhook::start(test, "defaults", of, does, &probe).await?;
        let revision = candidate(&shaper, &config).await?;
        let whole = plan(&shaper, &revision).await?;
        let paths: Vec<_> = whole.paths.iter().map(|one| one.path.as_str()).collect();
        ensure!(paths.contains(&"metadata.labels.tier"), "{}", words(&whole));
        ensure!(
            paths.contains(&"metadata.annotations.defaulted"),
            "the live one writes nothing now: {}",
            words(&whole)
        );
        ensure!(hook.asked().1 >= 5, "{:?}", hook.asked());
        hook.end().await?;
        let hook =
            Webhook::start(test, "refuses", of, Does::Refuses("not on a Friday"), &probe).await?;
        let whole = plan_again(&shaper, &revision, "refuses").await?;
        ensure!(whole.objects.failed == 5, "{}", words(&whole));
        ensure!(words(&whole).contains("not on a Friday"), "{}", words(&whole));
        hook.end().await?;
        let hook = Webhook::start(test, "effects", of, Does::RefusesDryRuns, &probe).await?;
        let whole = plan_again(&shaper, &revision, "effects").await?;
        ensure!(whole.objects.failed == 5, "{}", words(&whole));
        ensure!(words(&whole).contains("takes no dry runs"), "{}", words(&whole));
        hook.end().await?;
        // The API server itself says of this one that it cannot tell: nobody has failed.
        let hook = Webhook::start(test, "effects-of-old", of, Does::HasEffects, &probe).await?;
        let whole = plan_again(&shaper, &revision, "effects of old").await?;
        ensure!((whole.objects.untold, whole.objects.failed) == (5, 0), "{}", words(&whole));
        ensure!(words(&whole).contains("does not support dry run"), "{}", words(&whole));
        ensure!(hook.asked() == (0, 0), "{:?}", hook.asked());
        hook.end().await?;
        Ok(())
    })
}

#[test]
fn what_the_server_cannot_say_is_named() -> Result<()> {
    test(async |test| {
        let (shaper, _) = live(test, &json!({}), 3).await?;
        may_make_namespaces(test).await?;
        let config = json!({"namespace": format!("{}-new", test.namespace)});
        let revision = candidate(&shaper, &config).await?;
        let whole = plan(&shaper, &revision).await?;
        ensure!(whole.objects.untold == 3 && whole.objects.failed == 0, "{}", words(&whole));
        ensure!(
            words(&whole).contains("only this run would make its namespace"),
            "{}",
            words(&whole)
        );
        ensure!(
            whole.new_rights.iter().any(|one| one.right == "create namespaces" && one.used),
            "{}",
            words(&whole)
        );
        Ok(())
    })
}

/// Gives the account of `shaper`, and the host as that account, the right to make namespaces.
async fn may_make_namespaces(test: &Test) -> Result<()> {
    let namespace = test.namespace.as_str();
    let mut objects = vec![];
    let impersonate = "impersonate-on:serviceaccount:create";
    for (name, verb, subject) in [
        ("shaper", "create", (namespace, "shaper")),
        ("nagaya-shaper", impersonate, e2e::account::HOST),
    ] {
        let metadata = json!({"name": format!("{namespace}-{name}")});
        let api = "rbac.authorization.k8s.io/v1";
        objects.push(json!({
            "apiVersion": api, "kind": "ClusterRole", "metadata": metadata,
            "rules": [{"apiGroups": [""], "resources": ["namespaces", "configmaps"], "verbs": [verb]}],
        }));
        objects.push(json!({
            "apiVersion": api, "kind": "ClusterRoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": metadata["name"]},
            "subjects": [{"kind": "ServiceAccount", "namespace": subject.0, "name": subject.1}],
        }));
    }
    test.apply(&objects).await
}

async fn reason(shaper: &Controller) -> Result<String> {
    let seen = shaper.get().await?;
    Ok(condition(&seen, "Gated").map(|one| one.reason.clone()).unwrap_or_default())
}

#[test]
fn a_plan_goes_on_in_another_host_and_ends_with_its_revision() -> Result<()> {
    test_in_turn(async |test| {
        copies(test, 400).await?;
        // Each look takes its time, so that the host is killed in the middle.
        test.follow_quickly().await?;
        test.idle("copier").await?;
        let copier = test.controller("copier")?;
        copier.patch(&json!({"spec": {"limits": {"writesPerMinute": 600}}})).await?;
        let revision = marked(&copier, json!({"mark": "two"})).await?;
        let is_open =
            |plan: &PlanStatus| plan.phase == PlanPhase::Running && plan.objects.looked > 0;
        let seen = copier.revision(&revision, "has begun its plan", |status| {
            status.plan.as_deref().is_some_and(is_open)
        });
        let before = seen.await?.status.and_then(|status| status.plan).context("no plan")?;
        test.host.kill()?;
        test.start_host().await?;
        let copier = test.controller("copier")?;
        copier.patch(&json!({"spec": {"limits": {"writesPerMinute": 60_000}}})).await?;
        let whole = plan(&copier, &revision).await?;
        ensure!(whole.started_at == before.started_at, "it has begun anew: {}", words(&whole));
        let counts = &whole.objects;
        ensure!(
            (counts.total, counts.looked, counts.changed) == (400, 400, 400),
            "{}",
            words(&whole)
        );
        ensure!(whole.paths[0].objects == 400, "{}", words(&whole));
        // Another candidate takes its place while it is made.
        copier.patch(&json!({"spec": {"limits": {"writesPerMinute": 600}}})).await?;
        let first = marked(&copier, json!({"mark": "three"})).await?;
        copier
            .revision(&first, "has begun its plan", |status| {
                status.plan.as_deref().is_some_and(is_open)
            })
            .await?;
        copier.patch(&json!({"spec": {"limits": {"writesPerMinute": 60_000}}})).await?;
        let second = marked(&copier, json!({"mark": "one", "none": 1})).await?;
        let interrupted = copier.revision(&first, "is interrupted", |status| {
            status.plan.as_ref().is_some_and(|plan| plan.phase == PlanPhase::Interrupted)
        });
        let text =
            interrupted.await?.status.and_then(|status| status.plan).and_then(|plan| plan.message);
        ensure!(
            text.as_deref().is_some_and(|text| text.contains("another revision took its place")),
            "{text:?}"
        );
        ensure!(plan(&copier, &second).await?.objects.changed == 0);
        Ok(())
    })
}

#[test]
fn a_plan_goes_stale_visibly_and_is_made_again() -> Result<()> {
    test(async |test| {
        let (shaper, _) = live(test, &json!({}), 5).await?;
        shaper.patch(&json!({"spec": {"rollout": {"plan": "Manual"}}})).await?;
        let revision = candidate(&shaper, &json!({"label": "front"})).await?;
        let seen = shaper.stands(&revision, nagaya::model::crd::RevisionPhase::Ready).await?;
        ensure!(seen.status.and_then(|status| status.plan).is_none(), "nobody has asked");
        let whole = plan_again(&shaper, &revision, "one").await?;
        ensure!(whole.objects.changed == 5 && whole.completed_at.is_some(), "{}", words(&whole));
        shaper.patch(&json!({"spec": {"limits": {"memory": "32Mi"}}})).await?;
        let stale = shaper.revision(&revision, "is stale", |status| {
            status.plan.as_ref().is_some_and(|plan| plan.phase == PlanPhase::Stale)
        });
        let text = stale.await?.status.and_then(|status| status.plan).and_then(|plan| plan.message);
        ensure!(
            text.as_deref().is_some_and(|text| text.contains("nagaya plan shaper")),
            "{text:?}"
        );
        shaper.patch(&json!({"spec": {"rollout": {"plan": "OnStage"}}})).await?;
        ensure!(plan(&shaper, &revision).await?.objects.changed == 5);
        Ok(())
    })
}

#[test]
fn people_see_a_plan_and_its_differences() -> Result<()> {
    let options = control_plane::Options { controller_manager: true, ..Default::default() };
    test_alone(options, async |test, _| {
        test.host.stop().await?;
        test.start_host_as(own_api::serving(test.options())).await?;
        own_api::pass_on_to(&test.admin, &test.host).await?;
        let (shaper, active) = live(test, &json!({}), 20).await?;
        let cli = test.cli();
        let namespace = test.namespace.clone();
        let refused = cli.output(&["plan", "shaper", "-n", &namespace]).await?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && text.contains("no revision waits"), "{text}");
        let revision = candidate(&shaper, &json!({"label": "front", "trap": ["site-3"]})).await?;
        plan(&shaper, &revision).await?;
        let text = cli.run(&["plan", "shaper", "-n", &namespace]).await?;
        for words in [
            format!("{revision} changes 19 of 20 objects\n"),
            "1 fail, and the live revision does not".to_owned(),
            format!("against {active}"),
            "19 Deployment.apps: metadata.labels.tier".to_owned(),
            format!("{namespace}/site-3: "),
            format!("nagaya diff shaper -n {namespace}"),
        ] {
            ensure!(text.contains(&words), "{words:?} is not in:\n{text}");
        }
        ensure!(text.lines().all(|line| line.chars().count() <= 200), "{text}");
        let text = cli.run(&["plan", "shaper", "-n", &namespace, "-o", "json"]).await?;
        let all: Value = serde_json::from_str(&text)?;
        let objects = all["objects"].as_array().context("no objects")?;
        ensure!(objects.len() == 20, "{all}");
        let text = cli.run(&["diff", "shaper", "site-1", "-n", &namespace]).await?;
        ensure!(
            text.contains("+    tier: front") && text.contains("--- Deployment.apps"),
            "{text}"
        );
        let lines = cli.run(&["diff", "shaper", "-n", &namespace, "-o", "json"]).await?;
        ensure!(lines.lines().count() == 20, "{lines}");
        let missing = cli.output(&["diff", "shaper", "nothing", "-n", &namespace]).await?;
        let text = String::from_utf8_lossy(&missing.stderr).into_owned();
        ensure!(text.contains("sees no Website.examples.nagaya.dev"), "{text}");
        let promoted = cli.output(&["promote", "shaper", "-n", &namespace]).await?;
        let text = String::from_utf8_lossy(&promoted.stderr).into_owned();
        ensure!(promoted.status.success() && text.contains("changes 19 of 20"), "{text}");
        // Who may look at controllers may not see what is in their objects.
        let viewer = person(test, "viewer", "view").await?;
        let refused = viewer.output(&["plan", "shaper", "-n", &namespace]).await?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && text.contains("forbidden"), "{text}");
        let editor = person(test, "editor", "edit").await?;
        let nothing = editor.output(&["plan", "shaper", "-n", &namespace]).await?;
        let text = String::from_utf8_lossy(&nothing.stderr).into_owned();
        ensure!(text.contains("no revision waits"), "{text}");
        Ok(())
    })
}

/// An account of the namespace with a role in it.
async fn person(test: &Test, name: &str, role: &str) -> Result<e2e::cli::Cli> {
    let namespace = test.namespace.as_str();
    test.apply(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }),
    ])
    .await?;
    let token = host::token_of(&test.control_plane, (namespace, name)).await?;
    let kubeconfig =
        test.control_plane.kubeconfig_with_token(&format!("{name}-{namespace}"), &token)?;
    Ok(e2e::cli::Cli { kubeconfig, host: String::new() })
}

#[test]
fn a_missing_right_is_shown_before_a_promotion() -> Result<()> {
    test(async |test| {
        let (shaper, first) = live(test, &json!({}), 3).await?;
        // The account may do what the manifest declares, but a policy of names is finer than that.
        let patch = json!({"metadata": {"labels": {"x": "y"}}});
        let maps = test.api::<ConfigMap>();
        test.apply(&[json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "site-1-theirs", "namespace": test.namespace}})]).await?;
        maps.patch("site-1-theirs", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        let without: Vec<_> =
            RULES.iter().copied().filter(|rule| rule.resource != "configmaps").collect();
        test.apply(&e2e::account::objects(&test.namespace, "shaper", &without)).await?;
        let revision =
            shaper.push_config(&Component::load("shaper")?, &json!({"take": "site-1"})).await?;
        let text = shaper.revision(&revision, "waits for rights", |status| {
            status.message.as_deref().is_some_and(|text| text.contains("may not"))
        });
        let text = text.await?.status.and_then(|status| status.message).unwrap_or_default();
        ensure!(text.contains("configmaps") && text.contains("kind: Role"), "{text}");
        ensure!(shaper.get().await?.status.and_then(|status| status.active) == Some(first));
        let cli = test.cli();
        let text = cli.run(&["explain-access", "shaper", "-n", &test.namespace]).await?;
        ensure!(text.contains("configmaps"), "{text}");
        Ok(())
    })
}
