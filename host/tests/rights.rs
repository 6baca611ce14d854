//! Rights that come and go: what was not delivered meanwhile is delivered later, and nobody waits for another's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use nagaya::{
    model::{
        kind::Kind,
        manifest::{Index, Mapping, PredicateStep, Verb},
    },
    sandbox::Action,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::fake::{
    Effect, Fake, Fault, Guest, Host,
    guest::{child, config_map, site, sites, watch},
    host::{account, condition, controller, what},
};

/// Longer than any answer about a right counts, and than its renewal takes.
const LONG: Duration = Duration::from_secs(18);
const REVIEWS: &str = "/subjectaccessreviews";

/// A reconciler of one ConfigMap for each Site, which notes the Sites that it was told are gone.
fn keeper(name: &str, gone: &Arc<Mutex<Vec<String>>>) -> Guest {
    let gone = gone.clone();
    Guest::new(name, sites(), move |cx| {
        let gone = gone.clone();
        async move {
            match cx.site().await? {
                Some(site) => drop(cx.apply(child(&site, cx.name(), "hello")).await?),
                None => gone.lock().unwrap().push(cx.name().to_owned()),
            }
            Ok(Action::AwaitChange)
        }
    })
}

/// A guest that only notes its runs.
fn runner(name: &str, manifest: nagaya::model::manifest::Manifest) -> Guest {
    Guest::new(name, manifest, |_| async { Ok(Action::AwaitChange) })
}

/// The ways in which a right can be lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Denied,
    Unavailable,
    NoAnswer,
}

const LOSSES: [Loss; 3] = [Loss::Denied, Loss::Unavailable, Loss::NoAnswer];

fn lose(api: &Fake, loss: Loss, resource: &str) {
    match loss {
        Loss::Denied => api.deny("demo/sites", "list", resource),
        Loss::Unavailable => api.fault(Fault::answers("POST", REVIEWS, 503)),
        Loss::NoAnswer => api.fault(Fault::does("POST", REVIEWS, Effect::Never)),
    }
}

fn give_back(api: &Fake, resource: &str) {
    api.allow("demo/sites", "list", resource);
    api.heal();
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_came_while_a_right_was_unconfirmed_is_delivered_later() {
    for loss in LOSSES {
        let (api, gone) = (Fake::new(), Arc::default());
        let guest = keeper("keeper", &gone);
        let _host = Host::over(&api, &guest).await;
        api.put(site("web"));
        api.put(site("db"));
        api.writes().await;
        guest.runs();

        lose(&api, loss, "configmaps");
        sleep(LONG).await;
        api.delete("configmaps/web");
        sleep(LONG).await;
        assert_eq!(guest.runs(), [""; 0], "{loss:?}: what may not be seen wakes nobody");
        assert_eq!(api.get("configmaps/web"), None);
        give_back(&api, "configmaps");
        api.until_object("configmaps/web", |_| true).await;
        assert_eq!(api.writes().await, ["PATCH configmaps/web as demo/sites"], "{loss:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_call_of_a_primary_that_went_while_a_right_was_unconfirmed_comes_later() {
    for loss in LOSSES {
        let (api, gone) = (Fake::new(), Arc::default());
        let guest = keeper("keeper", &gone);
        let _host = Host::over(&api, &guest).await;
        api.put(site("web"));
        api.writes().await;
        lose(&api, loss, "sites");
        sleep(LONG).await;
        guest.runs();
        api.delete("sites/web");
        sleep(LONG).await;
        assert_eq!(guest.runs(), [""; 0], "{loss:?}");
        give_back(&api, "sites");
        sleep(LONG).await;
        assert_eq!(*gone.lock().unwrap(), ["web"], "{loss:?}");
    }
}

/// Every way from a change to a primary: what the account may not see at the time is not forgotten.
#[tokio::test(start_paused = true)]
async fn every_mapping_delivers_later_what_it_could_not_deliver() {
    let map = Kind::new("v1", "ConfigMap");
    let labelled = |value: &str| {
        let mut object = config_map("settings", "x");
        object["metadata"]["labels"] = json!({ "for": value });
        object
    };
    for (mapping, predicate) in [
        (Mapping::Every, vec![]),
        (Mapping::Index("by".into()), vec![]),
        // The label goes: what the cache has afterwards matches no more.
        (Mapping::Every, vec![PredicateStep::MatchesLabels("for=all".into())]),
    ] {
        for deletes in [true, false] {
            let mut manifest = sites();
            manifest.owned.clear();
            let mut other = watch(&map, mapping.clone());
            other.predicate = predicate.clone();
            manifest.watches = vec![other];
            let index = Index {
                name: "by".into(),
                kind: Kind::new("example.io/v1", "Site"),
                path: "spec.settings".into(),
            };
            manifest.indexes = vec![index];
            let (api, guest) = (Fake::new(), runner("runner", manifest));
            let _host = Host::over(&api, &guest).await;
            let mut web = site("web");
            web["spec"]["settings"] = json!("settings");
            api.put(web);
            api.put(labelled("all"));
            sleep(LONG).await;
            lose(&api, Loss::Denied, "configmaps");
            sleep(LONG).await;
            guest.runs();
            if deletes {
                api.delete("configmaps/settings");
            } else {
                api.put(labelled("none"));
            }
            sleep(LONG).await;
            assert_eq!(guest.runs(), [""; 0]);
            give_back(&api, "configmaps");
            sleep(LONG).await;
            assert_eq!(guest.runs(), ["demo/web"], "{mapping:?} {predicate:?} {deletes}");
        }
    }
}

/// Changes, deletions, lost rights, swaps of the revision and lost claims in any order: at last every Site has its child, and
/// of every one that went the guest has heard.
#[tokio::test(start_paused = true)]
async fn nothing_is_lost_whatever_happens_to_rights_revisions_and_claims() {
    for seed in 1..=12_u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (api, gone) = (Fake::new(), Arc::new(Mutex::new(vec![])));
        let guests = [keeper("blue", &gone), keeper("green", &gone)];
        let host = Host::over(&api, &guests[0]).await;
        host.upload(&guests[1]);
        let mut there = BTreeSet::new();
        let mut went: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..60 {
            let name = format!("s{}", random.u64(..5));
            match random.u64(..10) {
                0..=2 => {
                    api.put(site(&name));
                    there.insert(name.clone());
                    went.remove(&name);
                }
                3..=4 if there.remove(&name) => {
                    let heard = gone.lock().unwrap().iter().filter(|it| **it == name).count();
                    went.insert(name.clone(), heard);
                    api.delete(&format!("sites/{name}"));
                }
                5 if api.get(&format!("configmaps/{name}")).is_some() => {
                    api.delete(&format!("configmaps/{name}"));
                }
                6 => {
                    let resource = if random.u64(..2) == 0 { "sites" } else { "configmaps" };
                    lose(&api, LOSSES[usize::try_from(random.u64(..3)).unwrap()], resource);
                }
                7 => ["sites", "configmaps"].iter().for_each(|resource| give_back(&api, resource)),
                8 => {
                    let guest = &guests[usize::try_from(random.u64(..2)).unwrap()];
                    let digest = json!(guest.digest().to_string());
                    api.edit("wasmcontrollers/sites", |it| it["spec"]["module"]["digest"] = digest);
                }
                9 => {
                    host.follow();
                    sleep(Duration::from_millis(random.u64(..5_000))).await;
                    host.lead();
                }
                _ => (),
            }
            sleep(Duration::from_millis(random.u64(..8_000))).await;
        }
        for resource in ["sites", "configmaps"] {
            give_back(&api, resource);
        }
        sleep(LONG * 4).await;
        for name in &there {
            let child = api.get(&format!("configmaps/{name}"));
            assert!(child.is_some(), "seed {seed}: {name} has no child");
        }
        for (name, before) in &went {
            let heard = gone.lock().unwrap().iter().filter(|it| *it == name).count();
            assert!(heard > *before, "seed {seed}: nobody heard that {name} went");
        }
        host.stop().await;
    }
}

/// The account of `team/sites`, with rights in so many namespaces.
fn wide(team: &str, guest: &Guest, namespaces: usize) -> Value {
    let mut object = controller(&format!("{team}/sites"), &guest.digest());
    let all: Vec<_> = (0..namespaces).map(|number| format!("{team}-{number}")).collect();
    object["spec"]["scope"] = json!({ "namespaces": all });
    object
}

#[tokio::test(start_paused = true)]
async fn the_rights_of_one_team_hold_up_no_other() {
    let (api, guest) = (Fake::new(), runner("runner", sites()));
    let many = runner("many", sites());
    let host = Host::over(&api, &guest).await;
    host.upload(&many);
    api.put(account("big/sites"));
    api.put(wide("big", &many, 20));
    host.ready("big/sites").await;
    api.fault(Fault::does("POST", REVIEWS, Effect::Late(Duration::from_millis(300))));
    sleep(LONG).await;
    guest.runs();
    let mut worst = Duration::ZERO;
    for number in 0..40 {
        sleep(Duration::from_millis(700)).await;
        let (name, begun) = (format!("s{number}"), Instant::now());
        api.put(site(&name));
        while guest.runs().is_empty() && begun.elapsed() < LONG {
            sleep(Duration::from_millis(10)).await;
        }
        worst = worst.max(begun.elapsed());
    }
    assert!(worst < Duration::from_millis(300), "{worst:?}");

    let before = reviews(&api);
    sleep(Duration::from_secs(60)).await;
    let rate = (reviews(&api) - before) / 60;
    // 20 namespaces, two kinds, three verbs, and the six of the other team.
    assert!((15..=22).contains(&rate), "{rate} reviews a second for 126 rights");
}

fn reviews(api: &Fake) -> usize {
    api.asked().iter().filter(|asked| asked.path.contains("accessreviews")).count()
}

#[tokio::test(start_paused = true)]
async fn an_error_of_one_review_leaves_the_others_confirmed() {
    let (api, guest) = (Fake::new(), runner("runner", sites()));
    let other = runner("other", sites());
    let host = Host::over(&api, &guest).await;
    host.deploy("other/sites", &other).await;
    // What is asked of one team fails, whatever it is.
    api.fault(Fault::answers("POST", REVIEWS, 503).about("system:serviceaccount:other:sites"));
    sleep(LONG).await;
    guest.runs();
    api.put(site("web"));
    sleep(Duration::from_millis(100)).await;
    assert_eq!(guest.runs(), ["demo/web"]);
    assert_eq!(other.runs(), [""; 0]);
    api.heal();
    sleep(LONG).await;
    assert_eq!(other.runs(), ["demo/web"]);
}

/// The host may no longer watch a kind as itself, as when a ClusterRole leaves `nagaya-watch`.
#[tokio::test(start_paused = true)]
async fn a_kind_that_is_no_longer_shared_is_watched_as_the_account() {
    let (api, gone) = (Fake::new(), Arc::new(Mutex::new(vec![])));
    let guest = keeper("keeper", &gone);
    let _host = Host::over(&api, &guest).await;
    for name in ["web", "db", "old"] {
        api.put(site(name));
    }
    api.writes().await;
    let watched_by = |plural: &str, who: &str| {
        api.watched().iter().any(|(what, account)| what.contains(plural) && account == who)
    };
    assert!(watched_by("sites", "host") && watched_by("configmaps", "host"));

    for resource in ["sites", "configmaps"] {
        for verb in ["list", "watch"] {
            api.deny("host", verb, resource);
        }
        api.break_watches(resource);
    }
    // While nobody watches.
    api.delete("sites/old");
    api.delete("configmaps/web");
    api.until_object("configmaps/web", |_| true).await;
    assert!(watched_by("sites", "demo/sites") && watched_by("configmaps", "demo/sites"));
    sleep(LONG).await;
    assert!(!watched_by("sites", "host"));
    let heard: BTreeSet<_> = gone.lock().unwrap().iter().cloned().collect();
    assert_eq!(heard, BTreeSet::from(["old".to_owned()]));
    api.put(site("new"));
    api.until_object("configmaps/new", |_| true).await;
    let seen = api
        .until_object("wasmcontrollers/sites", |it| condition(it, "Degraded")["status"] == "False");
    seen.await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_nobody_may_watch_is_said_with_the_yaml_that_gives_it() {
    let (api, guest) = (Fake::new(), runner("runner", sites()));
    let _host = Host::over(&api, &guest).await;
    api.deny("host", "*", "configmaps");
    api.deny("host", "impersonate", "serviceaccounts");
    api.deny("host", "impersonate-on:serviceaccount:watch", "configmaps");
    api.break_watches("configmaps");
    let seen = api.until_object("wasmcontrollers/sites", |it| {
        let message = condition(it, "Degraded")["message"].as_str().unwrap_or_default().to_owned();
        message.contains("ConfigMap") && message.contains("impersonate-on:serviceaccount:watch")
    });
    seen.await;
}

fn exclusive(name: &str, guest: &Guest) -> Value {
    let mut object = controller(name, &guest.digest());
    object["spec"]["exclusive"] = json!(true);
    object
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_rights_is_none() {
    let api = Fake::new();
    let (poor, honest) = (runner("poor", sites()), runner("honest", sites()));
    let host = Host::start(&api).await;
    host.upload(&poor);
    api.deny("secret-team/poor", "*", "*");
    api.put(account("secret-team/poor"));
    api.put(exclusive("secret-team/poor", &poor));
    let refused = |it: &Value| condition(it, "Degraded")["reason"] == "Forbidden";
    api.until_object(&what("secret-team/poor"), refused).await;
    host.deploy("demo/honest", &honest).await;

    // With its rights it comes too late, and hears no name of another namespace.
    api.allow("secret-team/poor", "*", "*");
    let refused = |it: &Value| condition(it, "Degraded")["reason"] == "Conflict";
    let late = api.until_object(&what("secret-team/poor"), refused).await;
    let text = late["status"].to_string();
    assert!(!text.contains("honest") && !text.contains("demo"), "{text}");
    assert!(text.contains("another controller"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_staging_fails_behind_the_rights_is_withdrawn() {
    let api = Fake::new();
    let (stuck, honest) = (runner("stuck", sites()), runner("honest", sites()));
    let host = Host::start(&api).await;
    host.upload(&stuck);
    api.put(account("one/stuck"));
    api.deny("host", "watch", "configmaps");
    api.fault(Fault::answers("GET", "/configmaps", 403).of("one/stuck"));
    api.put(exclusive("one/stuck", &stuck));
    let refused = |it: &Value| it["status"].to_string().contains("WatchFailed");
    api.until_object(&what("one/stuck"), refused).await;
    host.deploy("demo/honest", &honest).await;
}

#[tokio::test(start_paused = true)]
async fn a_live_controller_that_has_lost_its_rights_stands_in_nobodys_way() {
    let api = Fake::new();
    let (first, second) = (runner("first", sites()), runner("second", sites()));
    let host = Host::start(&api).await;
    host.upload(&first);
    host.upload(&second);
    api.put(account("one/first"));
    api.put(exclusive("one/first", &first));
    host.ready("one/first").await;
    api.put(account("demo/second"));
    api.put(controller("demo/second", &second.digest()));
    let refused = |it: &Value| condition(it, "Degraded")["reason"] == "Conflict";
    api.until_object(&what("demo/second"), refused).await;
    api.deny("one/first", "list", "sites");
    host.ready("demo/second").await;
}

#[tokio::test(start_paused = true)]
async fn others_of_the_namespace_are_named_and_the_rest_is_counted() {
    let api = Fake::new();
    let host = Host::start(&api).await;
    for name in ["demo/one", "demo/two", "secret-team/three", "secret-team/four"] {
        host.deploy(name, &runner(name, sites())).await;
    }
    api.touch(&what("demo/one"));
    let seen = api.until_object(&what("demo/one"), |it| {
        it["status"]["sharesPrimaryElsewhere"] == 2
            && it["status"]["sharesPrimaryWith"] == json!(["demo/two"])
    });
    assert!(!seen.await.to_string().contains("secret-team"));
}

#[tokio::test(start_paused = true)]
async fn a_missing_right_to_write_is_said_before_anything_runs() {
    for (verb, resource) in [
        ("patch", "configmaps"),
        ("create", "configmaps"),
        ("delete", "configmaps"),
        ("patch", "sites/status"),
        ("patch", "sites"),
    ] {
        let mut manifest = sites();
        manifest.finalizer = Some("example.io/cleanup".into());
        let (api, guest) = (Fake::new(), runner("runner", manifest));
        let host = Host::start(&api).await;
        host.upload(&guest);
        api.put(site("web"));
        api.deny("demo/sites", verb, resource);
        api.put(account("demo/sites"));
        api.put(controller("demo/sites", &guest.digest()));
        let says = |it: &Value| {
            let text = condition(it, "Degraded")["message"].as_str().unwrap_or_default().to_owned();
            let plural = resource.split('/').next().unwrap();
            text.contains(&format!("demo:sites may not {verb} {resource}"))
                && text.contains("Role\n")
                && text.contains(plural)
        };
        api.until_object("wasmcontrollers/sites", says).await;
        assert_eq!(guest.runs(), [""; 0], "{verb} {resource}");
        api.allow("demo/sites", verb, resource);
        host.ready("demo/sites").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_right_to_report_is_told_and_stops_nothing() {
    for (account_of, verb, resource) in [
        ("demo/sites", "create", "events"),
        ("demo/sites", "patch", "events"),
        ("demo/sites", "patch", "sites/status"),
        ("host", "impersonate-on:serviceaccount:create", "events"),
    ] {
        let mut manifest = sites();
        manifest.writes.retain(|write| !write.verbs.contains(&Verb::ApplyStatus));
        let (api, guest) = (Fake::new(), runner("runner", manifest));
        api.deny("host", "impersonate", "serviceaccounts");
        api.deny(account_of, verb, resource);
        let _host = Host::over(&api, &guest).await;
        api.put(site("web"));
        let seen = api.until_object("wasmcontrollers/sites", |it| {
            condition(it, "Reporting")["status"] == "False"
        });
        let message = condition(&seen.await, "Reporting")["message"].to_string();
        assert!(message.contains(verb) && message.contains(resource), "{message}");
        assert!(message.contains("kind: "), "{message}");
        sleep(LONG).await;
        assert_eq!(guest.runs(), ["demo/web"], "it runs all the same");
        api.allow(account_of, verb, resource);
        let well = |it: &Value| condition(it, "Reporting").is_null();
        api.until_object("wasmcontrollers/sites", well).await;
    }
}

/// A Site that is being deleted, and its controller after it; the guest does nothing for it.
async fn ending(api: &Fake) -> Host {
    let mut manifest = sites();
    manifest.finalizer = Some(FINALIZER.into());
    let host = Host::over(api, &runner("idle", manifest)).await;
    api.put(site("web"));
    let has_it = |site: &Value| site["metadata"]["finalizers"].to_string().contains(FINALIZER);
    api.until_object("sites/web", has_it).await;
    api.delete("sites/web");
    host
}

const FINALIZER: &str = "example.io/cleanup";

fn let_go(api: &Fake) {
    api.edit("sites/web", |site| site["metadata"]["finalizers"] = json!([]));
}

async fn gone(api: &Fake) {
    let gone = |api: &Fake| api.get("wasmcontrollers/sites").is_none().then_some(());
    api.until("the controller is gone", gone).await;
}

fn says(words: &'static str) -> impl Fn(&Value) -> bool {
    move |it| it["status"]["message"].as_str().unwrap_or_default().contains(words)
}

#[tokio::test(start_paused = true)]
async fn a_deleted_controller_cleans_up_first_what_is_being_deleted() {
    let api = Fake::new();
    let _host = ending(&api).await;
    api.delete("wasmcontrollers/sites");
    api.until_object("wasmcontrollers/sites", says("to be cleaned up by the guest")).await;
    sleep(Duration::from_secs(200)).await;
    assert!(api.get("wasmcontrollers/sites").is_some());
    let_go(&api);
    gone(&api).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_controller_waits_no_longer_than_a_guest_may_take() {
    let api = Fake::new();
    let _host = ending(&api).await;
    api.delete("wasmcontrollers/sites");
    sleep(Duration::from_secs(290)).await;
    assert!(api.get("wasmcontrollers/sites").is_some());
    gone(&api).await;
    let told = api.names("events").len();
    assert!(told > 0 && api.get("sites/web").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_deleted_keeps_the_controller_that_says_what_to_do() {
    let api = Fake::new();
    let _host = ending(&api).await;
    let metadata = json!({ "name": "demo", "finalizers": ["kubernetes"] });
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }));
    api.delete("namespaces/demo");
    api.delete("serviceaccounts/sites");
    api.delete("wasmcontrollers/sites");
    let told =
        api.until_object("wasmcontrollers/sites", says("kubectl get sites.example.io")).await;
    let message = told["status"]["message"].to_string();
    for part in ["the namespace demo is being deleted", FINALIZER, "-n demo", "kubectl patch"] {
        assert!(message.contains(part), "{message}");
    }
    sleep(Duration::from_secs(900)).await;
    assert!(api.get("wasmcontrollers/sites").is_some());
    let_go(&api);
    gone(&api).await;
}

#[tokio::test(start_paused = true)]
async fn finalizers_outside_of_a_smaller_scope_are_told() {
    let api = Fake::new();
    let mut manifest = sites();
    manifest.finalizer = Some(FINALIZER.into());
    let host = Host::over(&api, &runner("idle", manifest)).await;
    let scope = |namespaces: &[&str]| {
        api.edit("wasmcontrollers/sites", |object| {
            object["spec"]["scope"] = json!({ "namespaces": namespaces });
        });
    };
    scope(&["demo", "other"]);
    let mut elsewhere = site("far");
    elsewhere["metadata"]["namespace"] = json!("other");
    let has_it = |site: &Value| site["metadata"]["finalizers"].to_string().contains(FINALIZER);
    api.put(site("near"));
    api.put(elsewhere);
    api.until_object("sites/near", has_it).await;
    api.until_object("other/sites/far", has_it).await;
    let told = |api: &Fake| {
        let mut events = api.names("events").into_iter().filter_map(|name| {
            let (namespace, name) = name.split_once('/')?;
            api.get(&format!("{namespace}/events/{name}"))
        });
        events.find(|event| event["reason"] == "FinalizersLeft")
    };
    host.ready("demo/sites").await;
    assert!(told(&api).is_none(), "nothing was left");
    scope(&["demo"]);
    let event = api.until("an Event", told).await;
    let note = event["note"].to_string();
    for part in ["1 object carries", FINALIZER, "spec.scope no longer names"] {
        assert!(note.contains(part), "{note}");
    }
}

/// The host was away when a namespace was deleted: the guest is loaded once more, and cleans up.
#[tokio::test(start_paused = true)]
async fn a_host_that_begins_while_a_controller_is_deleted_lets_its_guest_clean_up() {
    let api = Fake::new();
    let mut manifest = sites();
    manifest.finalizer = Some(FINALIZER.into());
    let guest = runner("cleans", manifest);
    let host = Host::over(&api, &guest).await;
    api.put(site("web"));
    let has_it = |site: &Value| site["metadata"]["finalizers"].to_string().contains(FINALIZER);
    api.until_object("sites/web", has_it).await;
    host.stop().await;
    api.delete("sites/web");
    api.delete("wasmcontrollers/sites");
    let host = Host::standby(&api, None).await;
    host.upload(&guest);
    host.lead();
    api.until_object("wasmcontrollers/sites", says("to be cleaned up by the guest")).await;
    let_go(&api);
    gone(&api).await;
}

/// As before, and the account has gone meanwhile: only the API server knows what the namespace waits for.
#[tokio::test(start_paused = true)]
async fn a_host_that_begins_after_the_account_went_says_what_to_do() {
    let api = Fake::new();
    let host = ending(&api).await;
    host.stop().await;
    let message = format!(
        "Some content in the namespace has finalizers remaining: {FINALIZER} in 1 resource instances"
    );
    let remaining =
        json!({ "type": "NamespaceFinalizersRemaining", "status": "True", "message": message });
    api.put(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "demo", "finalizers": ["kubernetes"] },
        "status": { "conditions": [remaining] },
    }));
    api.delete("namespaces/demo");
    api.delete("serviceaccounts/sites");
    api.delete("wasmcontrollers/sites");
    let _host = Host::start(&api).await;
    api.until_object("wasmcontrollers/sites", says("kubectl get Site.v1.example.io")).await;
    sleep(Duration::from_secs(900)).await;
    assert!(api.get("wasmcontrollers/sites").is_some());
    let_go(&api);
    api.edit("namespaces/demo", |namespace| namespace["status"]["conditions"] = json!([]));
    gone(&api).await;
}

#[tokio::test(start_paused = true)]
async fn a_controller_without_account_is_let_go_where_its_namespace_stays() {
    let api = Fake::new();
    let _host = ending(&api).await;
    api.delete("serviceaccounts/sites");
    sleep(LONG).await;
    api.delete("wasmcontrollers/sites");
    gone(&api).await;
}
