//! No loop of the host is polled without a reason: each state below lasts a while, and each loop has the polls of its timers.

use std::{collections::BTreeMap, time::Duration};

use nagaya::sandbox::Action;
use serde_json::json;

use crate::{
    fake::{
        Effect, Fake, Fault, Guest, Host, Served, Stop,
        guest::{child, site, sites},
        host::{account, controller},
        native,
        polls::Polls,
    },
    feed::{self, Scope},
    guests,
};

/// Long enough for every pause to have come to its longest.
const A_WHILE: Duration = Duration::from_secs(600);

/// How often a loop of each kind may be polled in that time: a few times for each time that a timer of it rings.
const BOUNDS: &[(&str, u64)] = &[
    // Each 1.5 s what was missed and lost is looked for.
    ("controller", 3 * 400),
    // An Event is tried twelve times, with pauses of 10 s; series are looked at each 30 s.
    ("events", 3 * 20),
    ("events-writer", 3 * 60),
    // As a watch, for all namespaces at once.
    ("feed", 6 * 600),
    // Each second while something fails.
    ("health", 4 * 600),
    // Each second after a failed pass, each five seconds for what others must provide.
    ("keeper", 4 * 600),
    ("manager", 60),
    // Ten seconds, with each event of the kind.
    ("own-writes", 100),
    // Each two seconds while it has something to tell.
    ("plan", 2 * 300),
    ("reconcile", 100),
    // Each 1.5 s the ages of all answers.
    ("rights", 20 * 400),
    ("shadow", 4 * 300),
    // Silence of 15 s is proven, pauses after a refusal are of seconds.
    ("watch", 6 * 600),
];

/// Loops that an idle host with one controller does not have.
const SOMETIMES: [&str; 5] = ["feed", "own-writes", "plan", "reconcile", "shadow"];

fn one_child() -> Guest {
    native(|cx| async move {
        let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
        cx.apply(child(&site, cx.name(), "hello")).await?;
        Ok(Action::AwaitChange)
    })
}

/// Lets a while pass and fails for each loop that was polled more often than its timers ring.
#[track_caller]
fn a_while(polls: &Polls) -> impl Future<Output = BTreeMap<String, u64>> {
    let caller = std::panic::Location::caller();
    polls.most();
    async move {
        tokio::time::sleep(A_WHILE).await;
        let most = polls.most();
        for (kind, count) in &most {
            let bound = BOUNDS.iter().find(|(name, _)| name == kind);
            let Some((_, bound)) = bound else { panic!("{caller}: no bound for `{kind}`") };
            assert!(count <= bound, "{caller}: `{kind}` was polled {count} times: {most:?}");
        }
        println!("{caller}: {most:?}");
        most
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_host_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.writes().await;
    let most = a_while(&polls).await;
    for (kind, _) in BOUNDS.iter().filter(|(kind, _)| !SOMETIMES.contains(kind)) {
        assert!(most.contains_key(*kind), "`{kind}` is not among the loops: {most:?}");
    }
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_looks_ahead_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let host = Host::over(&api, &guest).await;
    api.edit("demo/wasmcontrollers/sites", |object| {
        object["spec"]["rollout"] =
            json!({ "strategy": "BlueGreen", "shadow": { "percent": 100 } });
    });
    api.put(site("web"));
    api.writes().await;
    let candidate = Guest::new("two", sites(), |cx| async move {
        let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
        cx.apply(child(&site, cx.name(), "changed")).await?;
        Ok(Action::AwaitChange)
    });
    host.upload(&candidate);
    api.edit("demo/wasmcontrollers/sites", |object| {
        object["spec"]["module"]["digest"] = candidate.digest().to_string().into();
    });
    api.until("the plan is so", |api: &Fake| {
        let names = api.names("wasmrevisions");
        let mut all =
            names.iter().filter_map(|name| api.get(&name.replace('/', "/wasmrevisions/")));
        all.any(|one| one["status"]["plan"]["phase"] == "Complete").then_some(())
    })
    .await;
    api.touch("demo/sites/web");
    let most = a_while(&polls).await;
    assert!(most.contains_key("shadow") && most.contains_key("plan"), "{most:?}");
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_without_an_api_server_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.writes().await;
    api.fault(Fault::does("*", "", Effect::Down));
    api.break_watches("*");
    a_while(&polls).await;
    api.heal();
    api.fault(Fault::does("*", "", Effect::Never));
    api.end_watches("*");
    a_while(&polls).await;
    api.heal();
    api.edit("configmaps/web", |child| child["data"]["text"] = "spoilt".into());
    api.until_object("configmaps/web", |child| child["data"]["text"] == "hello").await;
    drop(host);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_refused_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.writes().await;
    for code in [401, 403, 410, 429, 503] {
        api.fault(Fault::answers("*", "", code));
        api.break_watches("*");
        a_while(&polls).await;
        api.heal();
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_watches_end_at_once_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    for bytes in [0, 10] {
        api.fault(Fault::does("GET", "watch=true", Effect::Cut(bytes)));
        api.break_watches("*");
        a_while(&polls).await;
        api.heal();
    }
}

/// Idle, refused, cut off, and while the API server is away.
#[tokio::test(start_paused = true)]
async fn namespaces_that_share_a_connection_wait() {
    let polls = Polls::count();
    let api = Fake::new();
    let hub = feed::hub(&api);
    let mut scopes = vec![];
    for number in 0..20 {
        scopes.push(Scope::open(&hub, &format!("n{number}")).synced().await);
    }
    let most = a_while(&polls).await;
    assert!(most.contains_key("feed") && most.contains_key("watch"), "{most:?}");
    assert!(most["watch"] <= 30, "who follows hears the bookmarks: {most:?}");
    for fault in [
        Fault::answers("GET", "/api/v1/configmaps", 403),
        Fault::answers("GET", "/api/v1/configmaps", 503),
        Fault::does("GET", "watch=true", Effect::Cut(0)),
        Fault::does("GET", "", Effect::Down),
    ] {
        api.fault(fault);
        api.break_watches("*");
        a_while(&polls).await;
        api.heal();
        a_while(&polls).await;
    }
    assert_eq!(api.watched_in("configmaps"), [None], "and share it again");
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_rights_nobody_confirms_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    for fault in [
        Fault::answers("POST", "accessreviews", 503),
        Fault::does("POST", "accessreviews", Effect::Never),
        Fault::does("POST", "accessreviews", Effect::Late(Duration::from_secs(3))),
    ] {
        api.fault(fault);
        a_while(&polls).await;
        api.heal();
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_may_not_go_on_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let host = Host::over(&api, &guest).await;
    api.deny("demo/sites", "*", "configmaps");
    api.put(site("web"));
    a_while(&polls).await;
    api.edit("wasmcontrollers/sites", |controller| controller["spec"]["suspend"] = json!(true));
    api.touch("sites/web");
    a_while(&polls).await;
    host.follow();
    a_while(&polls).await;
}

/// It was refused for now, and then its account went: nothing is staged, and there is nothing to look at.
#[tokio::test(start_paused = true)]
async fn a_refused_controller_without_its_account_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let host = Host::start(&api).await;
    api.deny("demo/sites", "*", "sites");
    host.upload(&guest);
    api.put(account("demo/sites"));
    api.put(controller("demo/sites", &guest.digest()));
    a_while(&polls).await;
    api.delete("serviceaccounts/sites");
    a_while(&polls).await;
}

#[tokio::test(start_paused = true)]
async fn a_controller_whose_module_is_missing_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::start(&api).await;
    api.put(account("demo/sites"));
    api.put(controller("demo/sites", &guest.digest()));
    a_while(&polls).await;
}

#[tokio::test(start_paused = true)]
async fn a_standby_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let leader = Host::over(&api, &guest).await;
    let standby = Host::standby(&api, None).await;
    standby.upload(&guest);
    a_while(&polls).await;
    leader.follow();
    standby.lead();
    api.put(site("web"));
    assert_eq!(api.writes().await, ["PATCH configmaps/web as demo/sites"]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_for_ever_waits() {
    let polls = Polls::count();
    let api = Fake::new();
    let guest = native(|_| async { Err(Stop::retry("not today")) });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    a_while(&polls).await;
    let runs = guest.runs().len();
    assert!((5..50).contains(&runs), "{runs} runs");
}

/// A real component in the real engine, and real time: its run is polled when it begins, when the answer is there, and once
/// more if a permit to compute is not free; what ends it counts, too.
#[tokio::test]
async fn a_guest_that_waits_for_one_call_is_polled_at_most_five_times() {
    let polls = Polls::count();
    let api = Fake::new();
    api.serve(Served::new("examples.nagaya.dev/v1", "Website", "websites"));
    let host = Host::start(&api).await;
    let digest = host.store(&guests::guest("copier"));
    api.put(account("demo/copier"));
    api.put(controller("demo/copier", &digest));
    host.ready("demo/copier").await;
    let wait = Duration::from_millis(500);
    api.fault(Fault::does("PATCH", "configmaps", Effect::Late(wait)).times(1));
    polls.most();
    api.put(json!({
        "apiVersion": "examples.nagaya.dev/v1", "kind": "Website",
        "metadata": { "name": "web" }, "spec": { "title": "Hello" },
    }));
    api.until_object("configmaps/web", |map| map["data"]["title"] == "Hello").await;
    tokio::time::sleep(2 * wait).await;
    let most = polls.most();
    assert!((2..=5).contains(&most["reconcile"]), "{most:?}");
}

/// Until its time is over: then it is read live.
#[tokio::test(start_paused = true)]
async fn a_run_that_waits_for_its_own_write_waits() {
    let polls = Polls::count();
    let api = Fake::new();
    let guest = native(|cx| async move {
        let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
        cx.apply(child(&site, cx.name(), "hello")).await?;
        cx.get("v1", "ConfigMap", cx.name()).await?;
        Ok(Action::AwaitChange)
    });
    let _host = Host::over(&api, &guest).await;
    api.hold("configmaps");
    api.put(site("web"));
    a_while(&polls).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits() {
    let polls = Polls::count();
    let api = Fake::new();
    let guest = native(|_| async { std::future::pending().await });
    let _host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.until("a run", |_| (!guest.runs().is_empty()).then_some(())).await;
    api.delete("wasmcontrollers/sites");
    a_while(&polls).await;
    assert_eq!(api.get("wasmcontrollers/sites"), None, "the drain has an end");
}

/// The object goes when its finalizer goes, and the finalizer when somebody lets it.
#[tokio::test(start_paused = true)]
async fn a_controller_whose_deletion_is_refused_waits() {
    let polls = Polls::count();
    let (api, guest) = (Fake::new(), one_child());
    let _host = Host::over(&api, &guest).await;
    api.fault(Fault::answers("PATCH", "wasmcontrollers/sites", 403));
    api.delete("wasmcontrollers/sites");
    a_while(&polls).await;
    api.heal();
    api.until("the controller to be gone", |api| {
        api.get("wasmcontrollers/sites").is_none().then_some(())
    })
    .await;
}
