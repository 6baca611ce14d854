//! What was accepted runs, whatever becomes of statuses, candidates, revisions and the object itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use nagaya::{
    model::{digest::Digest, manifest::Manifest},
    sandbox::{Action, Native, NativeCall, Returned},
};
use serde_json::{Value, json};

use crate::fake::{
    Effect, Fake, Fault, Guest, HOST, Host, Stop,
    guest::{child, config_map, site, sites},
    host::{TEAM_CACHES, account, condition, controller, what},
};

const SITES: &str = "demo/sites";
/// Controllers that nobody would make: each of them passes a server without a schema.
const ODD: u64 = 60;
const STATUS: &str = "wasmcontrollers/sites/status";

/// One ConfigMap for each Site.
fn one_child(name: &str) -> Guest {
    Guest::new(name, sites(), |cx| async move {
        let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
        cx.apply(child(&site, cx.name(), "hello")).await?;
        Ok(Action::AwaitChange)
    })
}

/// Ends the host and starts another one over the same cluster.
async fn restart(host: Host, api: &Fake, guests: &[&Guest]) -> Host {
    host.stop().await;
    let host = Host::standby(api, None).await;
    for guest in guests {
        host.upload(guest);
    }
    host.lead();
    host
}

/// Runs a Site that is made now.
async fn works(api: &Fake, name: &str) {
    api.put(site(name));
    api.until_object(&format!("configmaps/{name}"), |_| true).await;
}

/// How often the host has tried to write what the path names.
fn tries(api: &Fake, path: &str) -> usize {
    let all = api.asked();
    all.iter().filter(|asked| asked.is_write() && asked.path.contains(path)).count()
}

fn degraded(object: &Value) -> (String, String) {
    let condition = condition(object, "Degraded");
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!({ "a": inner }))
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_runs_although_its_status_cannot_be_written() {
    for code in [400, 403, 409, 413, 422, 500, 503] {
        let (api, guest) = (Fake::new(), one_child("first"));
        let host = Host::over(&api, &guest).await;
        api.fault(Fault::answers("PATCH", STATUS, code).saying("request is too large"));
        api.edit(&what(SITES), |object| object["spec"]["limits"] = json!({ "concurrency": 3 }));
        works(&api, "before").await;
        let host = restart(host, &api, &[&guest]).await;
        works(&api, "after").await;
        let (tried, minutes) = (tries(&api, STATUS), 10);
        tokio::time::sleep(Duration::from_secs(minutes * 60)).await;
        let again = tries(&api, STATUS) - tried;
        // A conflict is over with the next event; whatever else it is, is not over so soon.
        let most = if code == 409 { 700 } else { 60 };
        assert!((1..most).contains(&again), "{code}: tried {again} times in {minutes} minutes");
        let page = host.metrics.page().unwrap();
        let counted =
            page.lines().find(|line| line.starts_with("nagaya_status_write_errors_total"));
        assert_eq!(counted.is_some_and(|line| line.ends_with(" 0")), code == 409, "{counted:?}");
        api.heal();
        host.ready(SITES).await;
    }
}

/// What stands in the status may be more than the server takes: then what decides is written without it.
#[tokio::test(start_paused = true)]
async fn a_promotion_is_written_where_the_whole_status_is_not_let_in() {
    let (api, first, second) = (Fake::new(), one_child("first"), one_child("second"));
    let host = Host::over(&api, &first).await;
    host.upload(&second);
    let active = api.get(&what(SITES)).unwrap()["status"]["active"].clone();
    // The whole status goes out first, and what decides after it.
    for _ in 0..20 {
        api.fault(Fault::answers("PATCH", STATUS, 413).times(1));
        api.put(controller(SITES, &second.digest()));
        tokio::time::sleep(Duration::from_secs(90)).await;
    }
    let now = api.until_object(&what(SITES), |object| object["status"]["active"] != active).await;
    assert_eq!(now["status"]["executorGeneration"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_with_a_flood_of_words_is_cut_and_stops_nothing() {
    let (api, first) = (Fake::new(), one_child("first"));
    let host = Host::over(&api, &first).await;
    let loud = Guest::describing(
        "loud",
        || Err("ß".repeat(450_000)),
        |_| async { Err(Stop::terminal("never")) },
    );
    host.upload(&loud);
    api.put(controller(SITES, &loud.digest()));
    let told = api.until_object(&what(SITES), |object| degraded(object).0 == "DescribeFailed");
    let told = told.await;
    assert!(told.to_string().len() < 16 << 10, "{} bytes", told.to_string().len());
    assert!(degraded(&told).1.contains("ßßß"), "the guest's own words");
    works(&api, "before").await;
    let _host = restart(host, &api, &[&first, &loud]).await;
    works(&api, "after").await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_is_told_once_and_what_runs_goes_on() {
    let (api, guest) = (Fake::new(), one_child("first"));
    let host = Host::over(&api, &guest).await;
    api.edit(&what(SITES), |object| object["spec"]["suspend"] = json!({ "since": "monday" }));
    let told = api.until_object(&what(SITES), |object| degraded(object).0 == "Unreadable").await;
    assert_eq!(condition(&told, "Ready")["status"], "False");
    assert!(told["status"]["active"].is_string() && told["status"]["executorGeneration"] == 1);
    works(&api, "during").await;
    let asked = api.asked().len();
    tokio::time::sleep(Duration::from_secs(120)).await;
    let host_asked = api.asked()[asked..].iter().filter(|asked| asked.is_write()).count();
    assert_eq!(host_asked, 0, "it does not spin");
    api.edit(&what(SITES), |object| object["spec"]["suspend"] = json!(false));
    host.ready(SITES).await;
    // It can also be deleted as it is.
    api.edit(&what(SITES), |object| object["spec"]["suspend"] = json!(3));
    api.delete(&what(SITES));
    api.until("its end", |api| api.get(&what(SITES)).is_none().then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_config_that_is_too_deep_is_refused_and_what_runs_goes_on() {
    let (api, guest) = (Fake::new(), one_child("first"));
    let host = Host::over(&api, &guest).await;
    let active = api.get(&what(SITES)).unwrap()["status"]["active"].clone();
    api.edit(&what(SITES), |object| object["spec"]["config"] = nested(120));
    let told = api.until_object(&what(SITES), |object| degraded(object).0 == "ConfigRefused").await;
    assert!(degraded(&told).1.contains("120 levels deep, and at most 100"), "{told}");
    works(&api, "before").await;
    let _host = restart(host, &api, &[&guest]).await;
    works(&api, "after").await;
    let told = api.until_object(&what(SITES), |object| degraded(object).0 == "ConfigRefused").await;
    assert_eq!(told["status"]["active"], active);
    api.edit(&what(SITES), |object| object["spec"]["config"] = nested(90));
    // With its new config it goes live.
    api.until_object(&what(SITES), |object| object["status"]["active"] != active).await;
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_cannot_be_made_stops_nothing() {
    let (api, first, second) = (Fake::new(), one_child("first"), one_child("second"));
    let host = Host::over(&api, &first).await;
    host.upload(&second);
    let quota = "exceeded quota: revisions, used: count/wasmrevisions.nagaya.dev=1";
    api.fault(Fault::answers("POST", "wasmrevisions", 403).saying(quota));
    api.put(controller(SITES, &second.digest()));
    let told = api.until_object(&what(SITES), |object| degraded(object).0 == "RevisionNotMade");
    assert!(degraded(&told.await).1.contains("exceeded quota"));
    let host = restart(host, &api, &[&first, &second]).await;
    works(&api, "web").await;
    let before = tries(&api, "wasmrevisions");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(tries(&api, "wasmrevisions") - before < 30);
    api.heal();
    let now = api.until_object(&what(SITES), |object| object["status"]["executorGeneration"] == 2);
    now.await;
    host.ready(SITES).await;
}

#[tokio::test(start_paused = true)]
async fn a_live_revision_whose_object_was_deleted_runs_on() {
    let (api, first, second) = (Fake::new(), one_child("first"), one_child("second"));
    let host = Host::over(&api, &first).await;
    api.edit(&what(SITES), |object| {
        object["spec"]["rollout"] = json!({ "strategy": "BlueGreen" });
        object["spec"]["module"]["digest"] = json!(second.digest().to_string());
    });
    host.upload(&second);
    let object = api.until_object(&what(SITES), |object| object["status"]["candidate"].is_string());
    let active = object.await["status"]["active"].as_str().unwrap().to_owned();
    api.delete(&format!("wasmrevisions/{active}"));
    tokio::time::sleep(Duration::from_secs(120)).await;
    works(&api, "web").await;
    let host = restart(host, &api, &[&first, &second]).await;
    api.until_object(&what(SITES), |object| degraded(object).0 == "RevisionGone").await;
    drop(host);
}

/// A guest whose describe waits.
struct Slow {
    /// How long each of the first describes waits; later ones answer at once.
    waits: Vec<Duration>,
    described: AtomicUsize,
    of: Guest,
}

impl Native for Slow {
    fn describe(&self, config: Arc<str>) -> BoxFuture<'static, Result<Manifest, String>> {
        let number = self.described.fetch_add(1, Ordering::SeqCst);
        let wait = self.waits.get(number).copied().unwrap_or_default();
        let answer = self.of.native().describe(config);
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            answer.await
        })
    }

    fn reconcile(&self, call: NativeCall) -> BoxFuture<'static, Result<Action, Returned>> {
        self.of.native().reconcile(call)
    }
}

/// Uploads `of` as a guest whose describes wait so long.
fn slow(host: &Host, of: Guest, waits: Vec<Duration>) -> Digest {
    let digest = host.store(format!("slow {of:?}").as_bytes());
    let guest = Slow { waits, described: AtomicUsize::new(0), of };
    host.sandbox.add_native(digest.clone(), Arc::new(guest));
    digest
}

#[tokio::test(start_paused = true)]
async fn a_describe_that_ran_out_of_time_is_tried_again_by_itself() {
    let api = Fake::new();
    let host = Host::start(&api).await;
    let digest = slow(&host, one_child("first"), vec![Duration::from_secs(3_600)]);
    api.put(account(SITES));
    api.put(controller(SITES, &digest));
    host.ready(SITES).await;
    works(&api, "web").await;
}

#[tokio::test(start_paused = true)]
async fn a_describe_that_is_refused_today_is_asked_again_within_the_hour() {
    let api = Fake::new();
    let host = Host::start(&api).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let moody = Guest::describing(
        "moody",
        move || {
            if count.fetch_add(1, Ordering::SeqCst) < 1 { Err("no".into()) } else { Ok(sites()) }
        },
        |_| async { Ok(Action::AwaitChange) },
    );
    host.upload(&moody);
    api.put(account(SITES));
    api.put(controller(SITES, &moody.digest()));
    api.until_object(&what(SITES), |object| degraded(object).0 == "DescribeFailed").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1, "not at once");
    tokio::time::sleep(Duration::from_secs(3_000)).await;
    host.ready(SITES).await;
}

#[tokio::test(start_paused = true)]
async fn eighty_slow_describes_of_one_team_do_not_hold_up_anothers() {
    let (api, quick) = (Fake::new(), one_child("quick"));
    let host = Host::start(&api).await;
    let waits = vec![Duration::from_secs(20); 1_000];
    let digest = slow(&host, one_child("slow"), waits);
    for number in 0..80 {
        let name = format!("flood/sites-{number}");
        api.put(account(&name));
        api.put(controller(&name, &digest));
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    let began = tokio::time::Instant::now();
    host.deploy(SITES, &quick).await;
    works(&api, "web").await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// The old account's attempt ends after the change, and what it found is of no use to the new one.
#[tokio::test(start_paused = true)]
async fn staging_under_another_account_is_begun_anew() {
    let (api, first) = (Fake::new(), one_child("first"));
    let host = Host::start(&api).await;
    let digest = slow(&host, first, vec![Duration::from_secs(10), Duration::from_secs(5)]);
    api.put(account(SITES));
    api.put(account("demo/others"));
    api.put(controller(SITES, &digest));
    tokio::time::sleep(Duration::from_secs(9)).await;
    api.edit(&what(SITES), |object| object["spec"]["serviceAccountName"] = json!("others"));
    host.ready(SITES).await;
    api.writes().await;
    api.put(site("later"));
    assert_eq!(api.writes().await, ["PATCH configmaps/later as demo/others"]);
}

#[tokio::test(start_paused = true)]
async fn finalizers_are_counted_as_the_account() {
    let api = Fake::new();
    let host = Host::start(&api).await;
    let manifest = Manifest { finalizer: Some("example.io/sites".into()), ..sites() };
    let guest = Guest::new("holding", manifest, |_| async { Ok(Action::AwaitChange) });
    host.deploy(SITES, &guest).await;
    api.put(site("web"));
    api.until_object("sites/web", |site| site["metadata"]["finalizers"].is_array()).await;
    // Its module is lost: nobody has the objects in a cache.
    let _host = restart(host, &api, &[]).await;
    let asked = api.asked().len();
    api.delete(&what(SITES));
    api.until("its end", |api| api.get(&what(SITES)).is_none().then_some(())).await;
    let counts: Vec<String> = api.asked()[asked..]
        .iter()
        .filter(|asked| asked.method == "GET" && asked.path.ends_with("/sites"))
        .filter(|asked| asked.query.iter().any(|(key, _)| key == "limit"))
        .map(|asked| asked.account.clone())
        .collect();
    assert!(!counts.is_empty() && !counts.iter().any(|account| account == HOST), "{counts:?}");
}

/// A team may use so many bytes of caches: the revision that would need more is refused, and what was read for it goes.
#[tokio::test(start_paused = true)]
async fn a_revision_that_needs_more_caches_than_a_team_may_use_is_refused_and_they_go() {
    let (api, guest) = (Fake::new(), one_child("first"));
    let host = Host::start(&api).await;
    let mut random = fastrand::Rng::with_seed(7);
    let mut letters = |count: usize| {
        let letter = || char::from(b'!' + random.u8(..90));
        std::iter::repeat_with(letter).take(count).collect::<String>()
    };
    // As much again as there may be.
    for number in 0..2 * TEAM_CACHES / (1 << 20) {
        api.put(config_map(&format!("large-{number}"), &letters(1 << 20)));
    }
    host.upload(&guest);
    api.put(account(SITES));
    api.put(controller(SITES, &guest.digest()));
    let told = api.until_object(&what(SITES), |object| degraded(object).0 == "CachesTooLarge");
    let message = degraded(&told.await).1;
    assert!(message.contains("gives a team 8 MiB"), "{message}");
    // At once: a watch that somebody may want again lingers for a minute.
    let refused = tokio::time::Instant::now();
    api.until("its watches end", |api| {
        let watched = api.watched();
        (!watched.iter().any(|(kind, _)| kind == "configmaps")).then_some(())
    })
    .await;
    assert!(refused.elapsed() < Duration::from_secs(10), "{:?}", refused.elapsed());
    assert_eq!(host.hub.held_by("demo"), 0);
    for number in 0..2 * TEAM_CACHES / (1 << 20) {
        api.delete(&format!("configmaps/large-{number}"));
    }
    // It is looked at again after ten minutes.
    tokio::time::sleep(Duration::from_secs(600)).await;
    host.ready(SITES).await;
    works(&api, "web").await;
}

/// What a host is asked to open for one revision has an end.
#[tokio::test(start_paused = true)]
async fn a_scope_of_too_many_namespaces_is_refused_before_anything_is_opened() {
    let (api, guest) = (Fake::new(), one_child("first"));
    let host = Host::start(&api).await;
    host.upload(&guest);
    let mut object = controller(SITES, &guest.digest());
    let all: Vec<_> = (0..150).map(|number| format!("team-{number}")).collect();
    object["spec"]["scope"] = json!({ "namespaces": all });
    api.put(account(SITES));
    api.put(object);
    let told = api.until_object(&what(SITES), |object| degraded(object).0 == "TooManyWatches");
    let message = degraded(&told.await).1;
    assert!(message.contains("needs 300 watches") && message.contains("256"), "{message}");
    assert!(!api.watched().iter().any(|(kind, _)| kind == "sites"));
}

/// A controller that is gone leaves no module, no native code and no series.
#[tokio::test(start_paused = true)]
async fn what_a_controller_that_is_gone_had_goes_too() {
    let (api, guest) = (Fake::new(), one_child("first"));
    let host = Host::over(&api, &guest).await;
    let other = one_child("other");
    host.deploy("demo/other", &other).await;
    works(&api, "web").await;
    // As if they had come a day ago.
    for digest in [guest.digest(), other.digest()] {
        let path = host.folder.path().join("modules").join(digest.hex()).with_extension("wasm");
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(86_400)).unwrap();
    }
    let page = |name: &str| host.metrics.page().unwrap().contains(name);
    assert!(page("demo/sites") && page("demo/other"));
    api.delete(&what(SITES));
    api.until("its end", |api| api.get(&what(SITES)).is_none().then_some(())).await;
    for name in api.names("wasmrevisions") {
        let (namespace, revision) = name.split_once('/').unwrap();
        // The garbage collector does that on a cluster.
        if revision.starts_with("sites-") {
            api.delete(&format!("{namespace}/wasmrevisions/{revision}"));
        }
    }
    tokio::time::sleep(Duration::from_secs(2 * 3_600)).await;
    assert_eq!(host.modules.stored().unwrap(), [other.digest()]);
    assert!(!page("demo/sites"), "its series stay");
    assert!(page("demo/other"));
}

/// Where a kind has no place for the condition `Accepted`, its controller says so, until it has one.
#[tokio::test(start_paused = true)]
async fn a_kind_without_a_place_for_refusals_is_told_until_it_has_one() {
    let (api, guest) = (Fake::new(), one_child("first"));
    let schema = |conditions: Value| {
        let kind = json!([{ "group": "example.io", "version": "v1", "kind": "Site" }]);
        let status = json!({ "properties": { "conditions": conditions } });
        json!({
            "paths": { "/apis/example.io/v1/namespaces/{namespace}/sites/{name}/status": {} },
            "components": { "schemas": { "io.example.v1.Site": {
                "x-kubernetes-group-version-kind": kind, "properties": { "status": status },
            } } },
        })
    };
    let publish = |conditions: Value| {
        let path = "/openapi/v3/apis/example.io/v1";
        api.fault(Fault::does("GET", path, Effect::Answer(200, schema(conditions))));
    };
    publish(json!({ "type": "array" }));
    let _host = Host::over(&api, &guest).await;
    let has = |status: &'static str| {
        move |object: &Value| condition(object, "AcceptedWritable")["status"] == status
    };
    let told = condition(&api.until_object(&what(SITES), has("False")).await, "AcceptedWritable");
    assert_eq!(told["reason"], "ConditionsAtomic");
    assert!(told["message"].as_str().unwrap().contains("x-kubernetes-list-type: map"), "{told}");
    publish(json!({
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    }));
    let is_gone = |object: &Value| condition(object, "AcceptedWritable")["status"] != "False";
    tokio::time::sleep(Duration::from_secs(60)).await;
    api.until_object(&what(SITES), is_gone).await;
    works(&api, "web").await;
}

/// Whatever passes an API server, the host neither ends nor spins, and every object that it refuses says why.
#[tokio::test(start_paused = true)]
async fn odd_controllers_leave_the_host_at_rest() {
    let (api, guest) = (Fake::new(), one_child("first"));
    let host = Host::over(&api, &guest).await;
    let mut random = fastrand::Rng::with_seed(11);
    let mut next = |most: u64| random.u64(..) % most;
    for number in 0..ODD {
        let name = format!("team-{}/odd-{number}", number % 7);
        let mut object = controller(&name, &guest.digest());
        for _ in 0..next(3) {
            let (field, value) = match next(9) {
                0 => ("config", nested(usize::try_from(next(120)).unwrap())),
                1 => {
                    let size = if next(4) == 0 { next(900_000) } else { next(900) };
                    ("config", json!({ "a": "x".repeat(usize::try_from(size).unwrap()) }))
                }
                2 => ("limits", json!({ "writesPerMinute": next(1 << 40) })),
                3 => {
                    ("limits", json!({ "memory": "x".repeat(4_000), "concurrency": next(1 << 40) }))
                }
                4 => ("revisionHistoryLimit", json!(next(1 << 40))),
                5 => (
                    "scope",
                    json!({ "namespaces": vec!["demo"; usize::try_from(next(200)).unwrap()] }),
                ),
                6 => ("suspend", json!("maybe")),
                7 => (
                    "rollout",
                    json!({ "active": "x".repeat(usize::try_from(next(60_000)).unwrap()) }),
                ),
                _ => ("fieldManager", json!("m".repeat(usize::try_from(next(400)).unwrap()))),
            };
            object["spec"][field] = value;
        }
        if next(4) > 0 {
            api.put(account(&name));
        }
        api.put(object);
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    for number in 0..ODD {
        let object = api.get(&what(&format!("team-{}/odd-{number}", number % 7))).unwrap();
        let said = object["status"]["message"].as_str().unwrap_or_default();
        assert!(!said.is_empty() && said.len() < 20_000, "{number}: {}", said.len());
    }
    let asked = api.asked().len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let writes = api.asked()[asked..].iter().filter(|asked| asked.is_write()).count();
    assert_eq!(writes, 0, "at rest");
    works(&api, "web").await;
    drop(host);
}
