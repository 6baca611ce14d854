//! The path of a change: from an object on a real server through a guest to a write, and back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::control_plane::audit;
use e2e::controller::Controller;
use e2e::manifest::{self, api_of};
use e2e::site::{self, datum};
use e2e::wait::within;
use e2e::{Test, test};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);

async fn active_website(test: &Test) -> Result<Controller> {
    let website = test.example("website").await?;
    let v1 = website.push(&Component::load("website_v1")?).await?;
    website.active(&v1).await?;
    Ok(website)
}

/// The Website as it is on the server.
async fn get_website(test: &Test, name: &str) -> Result<Value> {
    let website = api_of(&test.admin, &site::website(&test.namespace, name, ""))?.get(name).await?;
    Ok(serde_json::to_value(website)?)
}

async fn annotate(test: &Test, name: &str, annotations: Value) -> Result<()> {
    let websites = api_of(&test.admin, &site::website(&test.namespace, name, ""))?;
    let patch = json!({"metadata": {"annotations": annotations}});
    websites.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

#[test]
fn a_website_gets_its_children_and_follows_its_spec() -> Result<()> {
    test(async |test| {
        active_website(test).await?;
        test.website("web", "First").await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "all children and the status", async || {
            let page = datum(&maps, "web", "index.html").await?;
            ensure!(page.contains("<h1>First</h1>"), "{page}");
            test.api::<Deployment>().get("web").await?;
            test.api::<Service>().get("web").await?;
            let website = get_website(test, "web").await?;
            let ready = website["status"]["conditions"][0]["status"] == "True";
            ensure!(ready && website["status"]["observedGeneration"] == 1, "{}", website["status"]);
            Ok(())
        })
        .await?;
        let owner = &maps.get("web").await?.owner_references()[0].clone();
        assert_eq!((&*owner.kind, owner.controller), ("Website", Some(true)));

        test.website("web", "Second").await?;
        within(LIMIT, "the new title", async || {
            let page = datum(&maps, "web", "index.html").await?;
            ensure!(page.contains("<h1>Second</h1>"), "{page}");
            let website = get_website(test, "web").await?;
            ensure!(website["status"]["observedGeneration"] == 2, "{}", website["status"]);
            Ok(())
        })
        .await
    })
}

#[test]
fn a_deleted_primary_calls_the_guest() -> Result<()> {
    test(async |test| {
        let config = json!({"reconcile": "write", "gone": "grab:farewell", "value": "bye"});
        test.hostile(json!({}), &config).await?;
        test.website("web", "Short-lived").await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "the first run's write", async || datum(&maps, "web", "config").await)
            .await?;
        assert!(maps.get_opt("farewell").await?.is_none());

        let websites = api_of(&test.admin, &site::website(&test.namespace, "web", ""))?;
        websites.delete("web", &DeleteParams::default()).await?;
        let said = async || datum(&maps, "farewell", "config").await;
        assert_eq!(within(LIMIT, "the guest's last word", said).await?, "bye");
        Ok(())
    })
}

#[test]
fn a_deleted_child_comes_back() -> Result<()> {
    test(async |test| {
        active_website(test).await?;
        test.website("web", "Here to stay").await?;
        let services = test.api::<Service>();
        let first = within(LIMIT, "a Service", async || Ok(services.get("web").await?)).await?;
        test.idle("website").await?;
        services.delete("web", &DeleteParams::default()).await?;
        within(LIMIT, "another Service", async || {
            let second = services.get_opt("web").await?.context("there is none")?;
            ensure!(second.uid() != first.uid(), "it is still the first");
            Ok(())
        })
        .await
    })
}

#[test]
fn an_edited_child_is_put_back() -> Result<()> {
    test(async |test| {
        active_website(test).await?;
        test.website("web", "As it was").await?;
        let maps = test.api::<ConfigMap>();
        let page = async || datum(&maps, "web", "index.html").await;
        let before = within(LIMIT, "a page", page).await?;
        test.idle("website").await?;
        let edit = json!({"data": {"index.html": "hacked"}});
        maps.patch("web", &PatchParams::default(), &Patch::Merge(&edit)).await?;
        within(LIMIT, "the page as it was", async || {
            let now = datum(&maps, "web", "index.html").await?;
            ensure!(now == before, "{now}");
            Ok(())
        })
        .await?;
        // A server-side apply with force, so that the other manager's claim is gone too.
        let edit = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"},
            "data": {"index.html": "taken over"},
        });
        let force = PatchParams::apply("somebody").force();
        maps.patch("web", &force, &Patch::Apply(&edit)).await?;
        within(LIMIT, "the page as it was, again", async || {
            let now = datum(&maps, "web", "index.html").await?;
            ensure!(now == before, "{now}");
            Ok(())
        })
        .await
    })
}

#[test]
fn a_timed_requeue_comes_at_its_time_and_once() -> Result<()> {
    test(async |test| {
        let at = test.example("at").await?;
        let revision = at.push(&Component::load("at")?).await?;
        at.active(&revision).await?;
        let due = Timestamp::now().checked_add(Duration::from_secs(15))?;
        let mut tea =
            manifest::moved(&manifest::read("examples/at/sample.yaml")?[0], &test.namespace);
        tea["spec"]["time"] = json!(due.to_string());
        test.apply(&[tea.clone()]).await?;

        let ats = api_of(&test.admin, &tea)?;
        let phase = async || {
            let now = serde_json::to_value(ats.get("tea").await?)?;
            let phase = now["status"]["phase"].as_str().map(str::to_owned);
            phase.context("it was not looked at yet")
        };
        let maps = test.api::<ConfigMap>();
        assert_eq!(within(LIMIT, "a first look", phase).await?, "Pending");
        let early = maps.get_opt("tea-job").await?;
        assert!(early.is_none() || Timestamp::now() >= due, "{early:?}");

        let job = within(LIMIT, "the job", async || Ok(maps.get("tea-job").await?)).await?;
        let made = job.creation_timestamp().context("made at no time")?.0;
        // Times of objects are whole seconds, rounded down.
        assert!(made.as_second() >= due.as_second(), "made at {made}, due at {due}");
        assert_eq!(job.data.unwrap_or_default()["command"], "echo\nthe tea is ready");
        within(LIMIT, "the end", async || {
            let phase = phase().await?;
            ensure!(phase == "Done", "{phase}");
            Ok(())
        })
        .await?;
        test.idle("at").await?;
        let runs = test.runs("at").await?;
        assert!((2.0..=10.0).contains(&runs), "{runs} runs: it waits, it does not poll");
        Ok(())
    })
}

#[test]
fn a_watched_object_wakes_every_mapped_primary() -> Result<()> {
    test(async |test| {
        let label = [("trusts", test.namespace.clone())];
        let label = label.each_ref().map(|(key, value)| (*key, &**value));
        let (one, two) =
            (test.another_namespace(&label).await?, test.another_namespace(&label).await?);
        let mirror = test.example("mirror").await?;
        let revision = mirror.push(&Component::load("mirror")?).await?;
        mirror.active(&revision).await?;
        let sample = manifest::read("examples/mirror/sample.yaml")?;
        let sample: Vec<_> =
            sample.iter().map(|object| manifest::moved(object, &test.namespace)).collect();
        test.apply(&sample).await?;

        let maps =
            |namespace: &str| kube::Api::<ConfigMap>::namespaced(test.admin.clone(), namespace);
        let copies = async |want: &str| {
            for namespace in [&one, &two] {
                let copy = datum(&maps(namespace), "ca", "ca.crt").await?;
                ensure!(copy == want, "in {namespace}: {copy}");
            }
            Ok(())
        };
        let text = "not really a certificate";
        within(LIMIT, "two copies", async || copies(text).await).await?;

        // The source, by the index; a copy, by its label; a namespace, by the mapping to all.
        let patch = Patch::Merge(json!({"data": {"ca.crt": "a newer one"}}));
        maps(&test.namespace).patch("ca", &PatchParams::default(), &patch).await?;
        within(LIMIT, "two new copies", async || copies("a newer one").await).await?;
        maps(&one).delete("ca", &DeleteParams::default()).await?;
        within(LIMIT, "the deleted copy", async || copies("a newer one").await).await?;
        let namespaces =
            kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(test.admin.clone());
        let patch = Patch::Merge(json!({"metadata": {"labels": {"trusts": null}}}));
        namespaces.patch(&two, &PatchParams::default(), &patch).await?;
        within(LIMIT, "one copy only", async || {
            ensure!(maps(&two).get_opt("ca").await?.is_none(), "the other is still there");
            datum(&maps(&one), "ca", "ca.crt").await
        })
        .await?;

        // Its finalizer cleans up, since no owner reference reaches into other namespaces.
        let mirrors = api_of(&test.admin, &sample[1])?;
        ensure!(!mirrors.get("ca").await?.finalizers().is_empty(), "the host adds the finalizer");
        mirrors.delete("ca", &DeleteParams::default()).await?;
        within(LIMIT, "neither Mirror nor copy", async || {
            ensure!(mirrors.get_opt("ca").await?.is_none(), "the Mirror is still there");
            ensure!(maps(&one).get_opt("ca").await?.is_none(), "a copy is still there");
            Ok(())
        })
        .await
    })
}

#[test]
fn one_objects_trap_holds_up_no_other() -> Result<()> {
    test(async |test| {
        let config = json!({"reconcile": "write", "value": "done"});
        let (hostile, _) = test.hostile(json!({}), &config).await?;
        let mut bad = site::website(&test.namespace, "bad", "Bad");
        bad["metadata"]["annotations"] = json!({"hostile.nagaya.dev/reconcile": "trap"});
        test.apply(&[bad]).await?;
        let events = test.api::<Event>();
        let trapped = async || {
            let all = events.list(&ListParams::default()).await?.items;
            let event = all.into_iter().find(|event| event.reason.as_deref() == Some("Trapped"));
            let event = event.context("no such event")?;
            Ok((event.regarding.and_then(|object| object.name), event.note.unwrap_or_default()))
        };
        let (name, note) = within(LIMIT, "an event of the trap", trapped).await?;
        assert_eq!(name.as_deref(), Some(hostile.name()));
        assert!(note.contains("bad"), "{note}");

        test.website("good", "Good").await?;
        let maps = test.api::<ConfigMap>();
        within(LIMIT, "the other's write", async || datum(&maps, "good", "config").await).await?;
        assert!(maps.get_opt("bad").await?.is_none());
        // It is tried again by itself: an annotation wakes nobody here.
        annotate(test, "bad", json!({"hostile.nagaya.dev/reconcile": "write"})).await?;
        within(LIMIT, "the retry's write", async || datum(&maps, "bad", "config").await).await?;
        Ok(())
    })
}

#[test]
fn an_invalid_object_says_so_until_it_is_valid() -> Result<()> {
    test(async |test| {
        let config = json!({"reconcile": "ok", "message": "no such colour"});
        test.hostile(json!({}), &config).await?;
        let mut web = site::website(&test.namespace, "web", "Web");
        web["metadata"]["annotations"] = json!({"hostile.nagaya.dev/reconcile": "invalid"});
        test.apply(&[web]).await?;
        let conditions = async || {
            let website = get_website(test, "web").await?;
            Ok::<_, anyhow::Error>(website["status"]["conditions"].clone())
        };
        within(LIMIT, "a condition", async || {
            let conditions = conditions().await?;
            let said = &conditions[0];
            ensure!(
                said["status"] == "False" && said["message"] == "no such colour",
                "{conditions}"
            );
            Ok(())
        })
        .await?;
        // The spec too: annotations wake nobody here.
        annotate(test, "web", json!({"hostile.nagaya.dev/reconcile": null})).await?;
        test.apply(&[site::website(&test.namespace, "web", "Better")]).await?;
        within(LIMIT, "no condition", async || {
            let conditions = conditions().await?;
            ensure!(conditions.as_array().is_none_or(Vec::is_empty), "{conditions}");
            Ok(())
        })
        .await
    })
}

#[test]
fn a_second_run_without_a_change_writes_nothing() -> Result<()> {
    test(async |test| {
        let website = active_website(test).await?;
        for name in ["a", "b", "c"] {
            test.website(name, "Same").await?;
        }
        let ready = async || {
            let children = site::children(&test.admin, &test.namespace).await?.len();
            ensure!(children == 9, "{children} children");
            Ok(())
        };
        within(LIMIT, "nine children", ready).await?;
        test.deployed(3).await?;
        test.quiet("website").await?;

        // The same code under another digest: every object runs again, and nothing is to be done.
        let Some(log) = test.audit() else { return Ok(()) };
        let log = log.from_now()?;
        let before = test.runs("website").await?;
        let again = Component::load("website_v1")?.marked("again")?;
        let second = website.push(&again).await?;
        website.candidate(&second).await?;
        website.promote(&second).await?;
        website.active(&second).await?;
        within(LIMIT, "three more runs", async || {
            let runs = test.runs("website").await? - before;
            ensure!(runs >= 3.0, "{runs}");
            Ok(())
        })
        .await?;
        test.idle("website").await?;
        let account = test.username("website");
        let mut writes = log.events()?;
        writes.retain(|event| event.actor() == account && event.is_write());
        assert!(
            writes.is_empty(),
            "{:?}",
            writes.iter().map(audit::Event::summary).collect::<Vec<_>>()
        );
        Ok(())
    })
}
