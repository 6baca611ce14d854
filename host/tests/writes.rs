//! What a guest's reads and writes meet: own writes that the caches have not shown, objects of somebody else, refusals.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use nagaya::{
    cluster::{Error, ListOptions, Ownership, PatchBody},
    model::{
        kind::Kind,
        manifest::{Manifest, Mapping, Verb, Watch},
    },
    sandbox::Action,
};
use serde_json::{Value, json};

use crate::fake::{
    Fake, Fault, Guest, Host, Served, Stop,
    guest::{Cx, child, config_map, site, sites, watch, writes},
    host::{condition, what},
    native,
};

/// What a guest has seen, for its test.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, what: &str, result: &Result<impl Sized, Error>) {
        let told = match result {
            Ok(_) => "ok",
            Err(Error::NotFound) => "not-found",
            Err(Error::AlreadyExists(_)) => "already-exists",
            Err(Error::Conflict(_)) => "conflict",
            Err(Error::Forbidden(_)) => "forbidden",
            Err(Error::Invalid(_)) => "invalid",
            Err(Error::NotDeclared(_)) => "not-declared",
            Err(Error::BudgetExceeded(_)) => "budget-exceeded",
            Err(Error::Unavailable(_)) => "unavailable",
        };
        self.0.lock().unwrap().push(format!("{what}: {told}"));
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn map() -> Kind {
    Kind::new("v1", "ConfigMap")
}

fn watch_of(kind: &Kind, labels: Option<&str>, fields: Option<&str>) -> Watch {
    Watch {
        label_selector: labels.map(str::to_owned),
        field_selector: fields.map(str::to_owned),
        ..watch(kind, Mapping::Every)
    }
}

/// Sites, and watches of ConfigMaps of which nothing wakes anybody.
fn watching(watches: Vec<Watch>) -> Manifest {
    let quiet = |watch: Watch| Watch { mapping: Mapping::Same, ..watch };
    Manifest { owned: vec![], watches: watches.into_iter().map(quiet).collect(), ..sites() }
}

async fn own(cx: &Cx) -> Result<Value, Stop> {
    cx.site().await?.ok_or_else(|| Stop::retry("the site is gone"))
}

async fn apply(cx: &Cx, object: Value, ownership: Ownership) -> Result<Arc<str>, Error> {
    cx.client().apply(object.to_string(), ownership).await
}

/// One that has asked the guest to delete its Pod, which takes its time to go, does not wait for that.
#[tokio::test(start_paused = true)]
async fn an_object_in_its_grace_period_holds_up_no_list() {
    let (api, notes) = (Fake::new(), Notes::default());
    let pod = Kind::new("v1", "Pod");
    let mut manifest = sites();
    manifest.owned = vec![watch(&pod, Mapping::Controller)];
    manifest.writes.push(writes("v1", "Pod", &[Verb::Delete, Verb::Create]));
    let seen = notes.clone();
    let guest = Guest::new("deletes", manifest, move |cx| {
        let (notes, pod) = (seen.clone(), pod.clone());
        async move {
            let began = tokio::time::Instant::now();
            notes.add("delete", &cx.delete("v1", "Pod", "web").await);
            notes.add("list", &cx.client().list(&pod, ListOptions::default()).await);
            notes.add("get", &cx.client().get(&pod, Some("demo"), "web").await);
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            Ok(Action::AwaitChange)
        }
    });
    let _host = Host::over(&api, &guest).await;
    api.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "demo", "name": "web"}}));
    api.quiet().await;
    api.put(site("web"));
    api.until("the run", |_| (!notes.0.lock().unwrap().is_empty()).then_some(())).await;
    api.quiet().await;
    let told = notes.take();
    assert_eq!(told[..3], ["delete: ok", "list: ok", "get: ok"]);
}

#[tokio::test(start_paused = true)]
async fn each_watch_of_a_kind_is_asked_for_what_it_selects() {
    let (api, notes) = (Fake::new(), Notes::default());
    let manifest = watching(vec![
        watch_of(&map(), Some("app=a"), None),
        watch_of(&map(), Some("app=b"), None),
        watch_of(&map(), None, Some("metadata.name=field")),
    ]);
    let seen = notes.clone();
    let guest = Guest::new("selects", manifest, move |cx| {
        let notes = seen.clone();
        async move {
            if cx.name() != "web" {
                return Ok(Action::AwaitChange);
            }
            for (name, app) in
                [("one", "a"), ("two", "b"), ("field", "c"), ("none", "d"), ("one", "b")]
            {
                let mut object = config_map(name, app);
                object["metadata"]["labels"] = json!({"app": app});
                let began = tokio::time::Instant::now();
                apply(&cx, object, Ownership::Standard).await?;
                let text = cx.client().get(&map(), Some("demo"), name).await;
                notes.add(&format!("{name} {app}"), &text);
                if let Ok(text) = text {
                    assert!(text.contains(&format!(r#""text":"{app}""#)), "an older one: {text}");
                }
                assert!(began.elapsed() < Duration::from_secs(3), "{name}: {:?}", began.elapsed());
            }
            notes.add("list", &cx.client().list(&map(), ListOptions::default()).await);
            Ok(Action::AwaitChange)
        }
    });
    let _host = Host::over(&api, &guest).await;
    // The watches are a second behind.
    let slow = async {
        loop {
            api.hold("configmaps");
            tokio::time::sleep(Duration::from_secs(1)).await;
            api.release("configmaps");
        }
    };
    api.put(site("web"));
    let done = api.until("all of it", |_| (notes.0.lock().unwrap().len() >= 6).then_some(()));
    tokio::select! {
        _ = slow => (),
        () = done => (),
    }
    let expected =
        ["one a: ok", "two b: ok", "field c: ok", "none d: not-found", "one b: ok", "list: ok"];
    assert_eq!(notes.take()[..6], expected);
}

/// The cache does not show that somebody has taken the child's name.
#[tokio::test(start_paused = true)]
#[expect(clippy::too_many_lines, reason = "every way to take an object over")]
async fn a_child_whose_name_was_taken_a_moment_ago_is_a_conflict() {
    let (api, notes) = (Fake::new(), Notes::default());
    let seen = notes.clone();
    let guest = native(move |cx| {
        let notes = seen.clone();
        async move {
            if cx.name() != "web" {
                return Ok(Action::AwaitChange);
            }
            let web = own(&cx).await?;
            for ownership in [Ownership::Standard, Ownership::Force] {
                notes.add("apply", &apply(&cx, child(&web, "users", "ours"), ownership).await);
            }
            let owners = child(&web, "users", "")["metadata"]["ownerReferences"].clone();
            let add = json!([{"op": "add", "path": "/metadata/ownerReferences", "value": owners}]);
            let merge = json!({"metadata": {"ownerReferences": owners}});
            for body in [PatchBody::Json(add.to_string()), PatchBody::Merge(merge.to_string())] {
                notes.add("patch", &cx.client().patch(&map(), Some("demo"), "users", body).await);
            }
            notes.add(
                "adopt other",
                &apply(&cx, child(&web, "neighbours", "x"), Ownership::Adopt).await,
            );
            notes.add("new", &apply(&cx, child(&web, "new", "ours"), Ownership::Standard).await);
            notes.add("adopt", &apply(&cx, child(&web, "adopted", "ours"), Ownership::Adopt).await);
            Ok(Action::AwaitChange)
        }
    });
    let _host = Host::over(&api, &guest).await;
    api.hold("configmaps");
    for name in ["users", "adopted"] {
        api.put(config_map(name, "theirs"));
    }
    let neighbour = api.put(site("neighbour-that-is-not-run"));
    api.put(child(&neighbour, "neighbours", "theirs"));
    notes.take();
    api.put(site("web"));
    api.until("all of it", |_| {
        notes.0.lock().unwrap().iter().any(|t| t.starts_with("adopt:")).then_some(())
    })
    .await;
    let expected = [
        "apply: conflict",
        "apply: conflict",
        "patch: conflict",
        "patch: conflict",
        "adopt other: conflict",
        "new: ok",
        "adopt: ok",
    ];
    assert_eq!(notes.take(), expected);
    assert_eq!(api.get("configmaps/users").unwrap()["metadata"].get("ownerReferences"), None);
    assert_eq!(api.get("configmaps/users").unwrap()["data"]["text"], "theirs");
    let neighbours = api.get("configmaps/neighbours").unwrap();
    assert_eq!(neighbours["data"]["text"], "theirs");
    let uid = neighbours["metadata"]["ownerReferences"][0]["uid"].clone();
    assert_eq!(uid, neighbour["metadata"]["uid"], "its owner is another");
    let owner =
        |name: &str| api.get(name).unwrap()["metadata"]["ownerReferences"][0]["kind"].clone();
    assert_eq!(
        (owner("configmaps/adopted"), owner("configmaps/new")),
        ("Site".into(), "Site".into())
    );
    api.release("configmaps");
}

#[tokio::test(start_paused = true)]
async fn an_owner_in_another_namespace_is_refused_before_anything_is_sent() {
    let (api, notes) = (Fake::new(), Notes::default());
    let seen = notes.clone();
    let mut manifest = sites();
    manifest.writes.push(writes("v1", "Namespace", &[Verb::Apply, Verb::Create]));
    let guest = Guest::new("crosses", manifest, move |cx| {
        let notes = seen.clone();
        async move {
            let web = own(&cx).await?;
            let mut elsewhere = child(&web, "a", "ours");
            elsewhere["metadata"]["namespace"] = json!("other");
            let mut global = child(&web, "a", "ours");
            global["kind"] = json!("Namespace");
            global["metadata"].as_object_mut().unwrap().remove("namespace");
            for object in [elsewhere, global] {
                notes.add("apply", &apply(&cx, object.clone(), Ownership::Standard).await);
                notes.add("create", &cx.client().create(object.to_string()).await);
            }
            Ok(Action::AwaitChange)
        }
    });
    let _host = Host::over(&api, &guest).await;
    api.writes().await;
    api.put(site("web"));
    assert_eq!(api.writes().await, Vec::<String>::new());
    let told = notes.take();
    assert_eq!(told, ["apply: invalid", "create: invalid", "apply: invalid", "create: invalid"]);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_scoped_kind_that_a_namespaced_one_owns_is_refused_at_staging() {
    let api = Fake::new();
    let mut manifest = sites();
    manifest.owned.push(watch(&Kind::new("v1", "Node"), Mapping::Controller));
    let guest = Guest::new("owns", manifest, |_| async { Ok(Action::AwaitChange) });
    let host = Host::start(&api).await;
    host.upload(&guest);
    api.put(crate::fake::host::account("demo/sites"));
    api.put(crate::fake::host::controller("demo/sites", &guest.digest()));
    api.until_object(&what("demo/sites"), |it| it["status"].to_string().contains("cluster-scoped"))
        .await;
}

/// A policy that refuses today and allows tomorrow: nobody tells the host that it has changed.
#[tokio::test(start_paused = true)]
async fn what_a_policy_refused_is_tried_again_and_is_no_missing_right() {
    let api = Fake::new();
    let guest = native(|cx| async move {
        let web = own(&cx).await?;
        match apply(&cx, child(&web, cx.name(), "ours"), Ownership::Standard).await {
            // As the SDK does.
            Err(Error::Invalid(text)) => Err(Stop::terminal(&text)),
            other => other.map(|_| Action::AwaitChange).map_err(Stop::from),
        }
    });
    let _host = Host::over(&api, &guest).await;
    let policy = r#"configmaps "web" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: not today"#;
    api.fault(Fault::answers("PATCH", "configmaps/web", 403).saying(policy));
    api.put(site("web"));
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let runs = guest.runs().len();
    assert!((5..20).contains(&runs), "{runs} runs in an hour");
    let controller = api.get(&what("demo/sites")).unwrap();
    assert_ne!(condition(&controller, "Degraded")["reason"], "Forbidden", "{controller:#}");
    api.heal();
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert!(api.get("configmaps/web").is_some(), "and when it may be, it is there");
}

/// A CustomResourceDefinition was made anew, in another way.
#[tokio::test(start_paused = true)]
async fn a_kind_that_is_served_elsewhere_is_found_again() {
    let api = Fake::new();
    api.serve(Served::new("example.io/v1", "Thing", "things"));
    let mut manifest = sites();
    let thing = Kind::new("example.io/v1", "Thing");
    manifest
        .writes
        .push(nagaya::model::manifest::Write { kind: thing, verbs: BTreeSet::from([Verb::Apply]) });
    let guest = Guest::new("things", manifest, |cx| async move {
        let Some(web) = cx.site().await? else { return Ok(Action::AwaitChange) };
        let object = json!({"apiVersion": "example.io/v1", "kind": "Thing", "spec": web["spec"],
            "metadata": {"name": cx.name(), "namespace": "demo"}});
        apply(&cx, object, Ownership::Standard).await?;
        Ok(Action::AwaitChange)
    });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.until_object("things/web", |_| true).await;
    api.withdraw("things");
    api.serve(Served::new("example.io/v1", "Thing", "thingies"));
    api.edit("sites/web", |site| site["spec"]["replicas"] = json!(2));
    api.until_object("thingies/web", |_| true).await;
}

/// The same of a kind that is watched: the revision is staged anew, and its watch opened where the kind is now.
#[tokio::test(start_paused = true)]
async fn a_watched_kind_that_is_served_elsewhere_is_watched_there() {
    let api = Fake::new();
    api.serve(Served::new("example.io/v1", "Thing", "things"));
    let thing = Kind::new("example.io/v1", "Thing");
    let mut manifest = sites();
    manifest.watches = vec![watch(&thing, Mapping::Every)];
    let guest = Guest::new("watches", manifest, |_| async { Ok(Action::AwaitChange) });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.quiet().await;
    api.withdraw("things");
    api.serve(Served::new("example.io/v1", "Thing", "thingies"));
    api.until("the new watch", |api| {
        api.watched().iter().any(|(plural, _)| plural == "thingies").then_some(())
    })
    .await;
    guest.runs();
    api.put(json!({"apiVersion": "example.io/v1", "kind": "Thing",
        "metadata": {"name": "t", "namespace": "demo"}}));
    api.quiet().await;
    assert!(!guest.runs().is_empty(), "a change of it wakes again");
}
