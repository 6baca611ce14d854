//! Watches of single namespaces over one connection: whatever happens, each ends up with what the server has, and none
//! goes back meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use nagaya::{
    apiserver::{ApiServer, Identity, Resource},
    model::{
        kind::Kind,
        manifest::{Mapping, Projection, Watch},
    },
    queue::Urgency,
    watch::{Hub, Subscriber, Subscription, Trigger, Wake, Wakes, WatchKey},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::fake::{Asked, Effect, Fake, Fault, Verdict};

const NAMESPACES: [&str; 4] = ["n0", "n1", "n2", "n3"];
/// Nobody watches these alone.
const OTHERS: [&str; 2] = ["other0", "other1"];
/// Longer than every pause of a watch, and than what a feed rests.
const LONG: Duration = Duration::from_secs(700);

#[derive(Default)]
struct Woken(Mutex<BTreeSet<String>>);

impl Wakes for Woken {
    fn wake(&self, wake: Wake, _: Urgency) {
        if let Wake::One(key) = wake {
            self.0.lock().insert(key.to_string());
        }
    }
}

fn maps() -> Resource {
    Resource {
        kind: Kind::new("v1", "ConfigMap"),
        plural: "configmaps".to_owned(),
        namespaced: true,
        has_status: false,
    }
}

fn key(namespace: Option<&str>) -> WatchKey {
    WatchKey {
        resource: maps(),
        namespace: namespace.map(Into::into),
        label_selector: None,
        field_selector: None,
        projection: Projection::Full,
        identity: Identity::Host,
    }
}

/// Watches one namespace, as a controller does.
pub(crate) struct Scope {
    subscription: Subscription,
    woken: Arc<Woken>,
    /// The last version of each object, and whether it was there.
    seen: BTreeMap<String, (u64, bool)>,
}

impl Scope {
    pub(crate) fn open(hub: &Hub, namespace: &str) -> Self {
        Self::as_whom(hub, namespace, Identity::Host)
    }

    fn as_whom(hub: &Hub, namespace: &str, identity: Identity) -> Self {
        let woken = Arc::<Woken>::default();
        let watch = Watch {
            kind: maps().kind,
            projection: Projection::Full,
            mapping: Mapping::Same,
            label_selector: None,
            field_selector: None,
            predicate: vec![],
        };
        let subscriber = Subscriber {
            trigger: Trigger::new(&watch, &maps()).unwrap(),
            wakes: woken.clone(),
            indexes: vec![],
        };
        let key = WatchKey { identity, ..key(Some(namespace)) };
        Self { subscription: hub.subscribe(&key, subscriber), woken, seen: BTreeMap::new() }
    }

    pub(crate) async fn synced(self) -> Self {
        let mut state = self.subscription.state();
        let synced = state.wait_for(|state| state.synced);
        tokio::time::timeout(LONG, synced).await.expect("synced").unwrap();
        self
    }

    fn has(&self) -> BTreeMap<String, u64> {
        let entries = self.subscription.cache().entries();
        let of = |version: String| version.parse().unwrap();
        entries
            .iter()
            .map(|entry| (entry.key().name.to_string(), of(entry.resource_version())))
            .collect()
    }

    /// No object goes back to an older state, and what is gone does not come again.
    fn never_goes_back(&mut self, told: &str) {
        let has = self.has();
        for (name, version) in &has {
            let (seen, was_there) = self.seen.get(name).copied().unwrap_or_default();
            let goes_on = if was_there { *version >= seen } else { *version > seen || seen == 0 };
            assert!(goes_on, "{told}: {name} was at {seen} (there: {was_there}), now {version}");
        }
        for (name, (_, there)) in &mut self.seen {
            *there = has.contains_key(name);
        }
        for (name, version) in has {
            self.seen.insert(name, (version, true));
        }
    }
}

fn object(namespace: &str, name: &str, bytes: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace}, "data": {"x": "x".repeat(bytes)},
    })
}

fn of_server(api: &Fake, namespace: &str) -> BTreeMap<String, u64> {
    let version = |name: &str| {
        let object = api.get(&format!("{namespace}/configmaps/{name}")).unwrap();
        object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    };
    let names = api.names("configmaps").into_iter();
    let names =
        names.filter_map(|name| name.strip_prefix(&format!("{namespace}/")).map(str::to_owned));
    names.map(|name| (name.clone(), version(&name))).collect()
}

/// The connections of the host that are open: how many of all namespaces, and how many of one.
fn connections(api: &Fake) -> (usize, usize) {
    let open = api.watched_in("configmaps");
    let of_all = open.iter().filter(|namespace| namespace.is_none()).count();
    (of_all, open.len() - of_all)
}

/// The watches of a host, which has nothing else.
pub(crate) fn hub(api: &Fake) -> Hub {
    let control = tokio::runtime::Handle::current();
    Hub::new(ApiServer::over(api.clone(), "test"), control)
}

async fn until(api: &Fake, what: &str, is: impl Fn() -> bool) {
    let looked = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let done = tokio::time::timeout(LONG, looked).await;
    assert!(done.is_ok(), "{what}: {:?}", connections(api));
}

#[tokio::test(start_paused = true)]
async fn from_the_second_namespace_on_one_connection_serves_all() {
    let api = Fake::new();
    let hub = hub(&api);
    api.put(object("n0", "a", 1));
    let first = Scope::open(&hub, "n0").synced().await;
    tokio::time::sleep(LONG).await;
    assert_eq!(connections(&api), (0, 1), "one namespace has a connection of its own");
    let second = Scope::open(&hub, "n1").synced().await;
    until(&api, "one connection", || connections(&api) == (1, 0)).await;
    let mut scopes = vec![first, second];
    for number in 2..100 {
        scopes.push(Scope::open(&hub, &format!("n{number}")).synced().await);
    }
    until(&api, "one connection", || connections(&api) == (1, 0)).await;
    let before = api.asked().len();
    // Time in which each connection of its own would have been opened anew.
    tokio::time::sleep(LONG).await;
    let asked = api.asked().split_off(before);
    // One connection that is silent proves every 15 s that it lives.
    assert!(asked.len() < 60, "{} requests", asked.len());
    assert!(asked.iter().all(|asked| asked.path == "/api/v1/configmaps"), "{asked:#?}");
    assert_eq!(connections(&api), (1, 0));
    for number in 0..100 {
        api.put(object(&format!("n{number}"), "b", 1));
    }
    api.put(object("other0", "b", 1));
    for (number, scope) in scopes.iter().enumerate() {
        let has = |scope: &Scope| scope.has() == of_server(&api, &format!("n{number}"));
        until(&api, "the change", || has(scope)).await;
        assert_eq!(scope.has().len(), if number == 0 { 2 } else { 1 });
        assert!(scope.woken.0.lock().contains(&format!("n{number}/b")));
    }
    // As long as two are left it stays, and goes when one is.
    scopes.truncate(2);
    tokio::time::sleep(LONG).await;
    assert_eq!(connections(&api), (1, 0));
    scopes.truncate(1);
    until(&api, "a connection of its own again", || connections(&api) == (0, 1)).await;
    api.put(object("n0", "c", 1));
    until(&api, "the change", || scopes[0].has() == of_server(&api, "n0")).await;
    drop(scopes);
    until(&api, "nobody watches", || connections(&api) == (0, 0)).await;
}

/// What a team asks under its own name is not told to others.
#[tokio::test(start_paused = true)]
async fn watches_of_accounts_share_nothing() {
    let api = Fake::new();
    let hub = hub(&api);
    let account =
        |name: &str| Identity::ServiceAccount { namespace: name.into(), name: "team".into() };
    let _first = Scope::as_whom(&hub, "n0", account("n0")).synced().await;
    let _second = Scope::as_whom(&hub, "n1", account("n1")).synced().await;
    let _third = Scope::as_whom(&hub, "n2", account("n1")).synced().await;
    tokio::time::sleep(LONG).await;
    assert_eq!(connections(&api), (0, 3));
}

/// A host that may watch a kind in some namespaces only.
#[tokio::test(start_paused = true)]
async fn who_may_not_watch_everywhere_goes_on_in_each_namespace() {
    let api = Fake::new();
    let hub = hub(&api);
    api.rule_everywhere("host", "*", "configmaps", Verdict::Denied);
    let mut scopes = vec![];
    for namespace in NAMESPACES {
        scopes.push(Scope::open(&hub, namespace).synced().await);
    }
    tokio::time::sleep(LONG).await;
    assert_eq!(connections(&api), (0, NAMESPACES.len()));
    let refused = api.asked().iter().filter(|asked| asked.code == Some(403)).count();
    assert!((1..30).contains(&refused), "{refused} refusals in {LONG:?}");
    // Nobody is told of a failure: nothing fails for him.
    assert!(scopes.iter().all(|scope| scope.subscription.state().borrow().trouble.is_none()));
    api.rule_everywhere("host", "*", "configmaps", Verdict::Allowed);
    until(&api, "one connection", || connections(&api) == (1, 0)).await;
    // And when the right goes while it runs.
    api.rule_everywhere("host", "*", "configmaps", Verdict::Denied);
    api.break_watches("configmaps");
    until(&api, "each its own", || connections(&api) == (0, NAMESPACES.len())).await;
    api.put(object("n3", "a", 1));
    until(&api, "the change", || scopes[3].has() == of_server(&api, "n3")).await;
}

/// Whatever keeps the connection for all away keeps nobody else away, and nobody is told of it.
#[tokio::test(start_paused = true)]
async fn a_connection_that_only_the_feed_cannot_have_is_no_bodys_trouble() {
    for seconds in [0, 1, 60] {
        let api = Fake::new();
        let hub = hub(&api);
        let late = (seconds > 0).then_some(seconds);
        let answer = |code| Fault::answers("GET", "/api/v1/configmaps?watch", code);
        match late {
            Some(wait) => api.fault(answer(429).retry_after(wait)),
            None => api.fault(answer(503)),
        }
        let first = Scope::open(&hub, "n0").synced().await;
        let second = Scope::open(&hub, "n1").synced().await;
        tokio::time::sleep(LONG).await;
        let of_feed = |asked: &Asked| asked.path == "/api/v1/configmaps";
        let before = api.asked().len();
        for turn in 0..20 {
            api.put(object("n0", "a", 1 + turn));
            until(&api, "the change", || first.has() == of_server(&api, "n0")).await;
            for scope in [&first, &second] {
                assert_eq!(scope.subscription.state().borrow().trouble, None);
            }
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        assert_eq!(connections(&api), (0, 2));
        let asked = api.asked().split_off(before).iter().filter(|asked| of_feed(asked)).count();
        assert!(asked < 120, "{asked} requests in ten minutes");
        api.heal();
        until(&api, "one connection", || connections(&api) == (1, 0)).await;
        // And when it breaks while it is used.
        api.fault(answer(503));
        api.break_watches("configmaps");
        tokio::time::sleep(Duration::from_secs(5)).await;
        api.put(object(OTHERS[0], "a", 1));
        let asks = second.subscription.fresh(tokio::time::Instant::now().into_std());
        assert!(tokio::time::timeout(Duration::from_secs(6), asks).await.is_err());
        assert!(second.subscription.state().borrow().trouble.is_some(), "blind, and it says so");
        until(&api, "each its own", || connections(&api) == (0, 2)).await;
        api.put(object("n1", "b", 1));
        until(&api, "the change", || second.has() == of_server(&api, "n1")).await;
        assert_eq!(second.subscription.state().borrow().trouble, None);
    }
}

/// A host that may list everywhere and not watch.
#[tokio::test(start_paused = true)]
async fn who_may_list_everywhere_and_not_watch_hears_of_no_trouble() {
    let api = Fake::new();
    let hub = hub(&api);
    api.rule_everywhere("host", "watch", "configmaps", Verdict::Denied);
    let mut scopes = vec![];
    for namespace in NAMESPACES {
        scopes.push(Scope::open(&hub, namespace).synced().await);
    }
    let mut states: Vec<_> = scopes.iter().map(|scope| scope.subscription.state()).collect();
    for _ in 0..700 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(states.iter_mut().all(|state| state.borrow_and_update().trouble.is_none()));
    }
    assert_eq!(connections(&api), (0, NAMESPACES.len()));
    let refused = api.asked().iter().filter(|asked| asked.code == Some(403)).count();
    assert!((1..30).contains(&refused), "{refused} refusals");
}

/// One that is never silent, on a server that gives no initial state by a watch.
#[tokio::test(start_paused = true)]
async fn a_busy_namespace_of_an_older_server_goes_over_too() {
    let api = Fake::new();
    api.without_watch_list();
    let hub = hub(&api);
    let first = Scope::open(&hub, "n0").synced().await;
    let _second = Scope::open(&hub, "n1").synced().await;
    for turn in 0..20 {
        for namespace in ["n0", "n1"] {
            api.put(object(namespace, "a", 1 + turn % 2));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(connections(&api), (1, 0));
    assert_eq!(first.has(), of_server(&api, "n0"));
}

/// Where most happens in namespaces that nobody watches, connections of their own cost less.
#[tokio::test(start_paused = true)]
async fn a_feed_that_is_mostly_for_nobody_is_given_up_for_a_while() {
    let api = Fake::new();
    let hub = hub(&api);
    let first = Scope::open(&hub, "n0").synced().await;
    let second = Scope::open(&hub, "n1").synced().await;
    until(&api, "one connection", || connections(&api) == (1, 0)).await;
    let busy = async |a_second: u32, minutes: u32| {
        for number in 0..60 * a_second * minutes {
            let bytes = if number / 5 % 2 == 0 { 1 } else { 2 };
            api.put(object(OTHERS[0], &format!("o{}", number % 5), bytes));
            tokio::time::sleep(Duration::from_secs(1) / a_second).await;
        }
    };
    busy(30, 3).await;
    assert_eq!(connections(&api), (1, 0), "as much as two may cost");
    busy(50, 3).await;
    assert_eq!(connections(&api), (0, 2));
    api.put(object("n0", "a", 1));
    until(&api, "the change", || first.has() == of_server(&api, "n0")).await;
    tokio::time::sleep(Duration::from_secs(700)).await;
    until(&api, "one connection again", || connections(&api) == (1, 0)).await;
    api.put(object("n1", "a", 1));
    until(&api, "the change", || second.has() == of_server(&api, "n1")).await;
}

/// A cache that is to be as new as the server is so within seconds, with all the others asking too.
#[tokio::test(start_paused = true)]
async fn a_quiet_namespace_is_proven_fresh_over_the_feed() {
    let api = Fake::new();
    let hub = hub(&api);
    let mut scopes = vec![];
    for number in 0..50 {
        scopes.push(Scope::open(&hub, &format!("n{number}")).synced().await);
    }
    until(&api, "one connection", || connections(&api) == (1, 0)).await;
    for _ in 0..20 {
        api.put(object("other0", "a", 1));
        let since = tokio::time::Instant::now();
        let fresh = scopes.iter().map(|scope| scope.subscription.fresh(since.into_std()));
        let all = futures::future::join_all(fresh);
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("fresh within 10 s");
        assert_eq!(connections(&api).1, 0, "nobody needs a connection of its own for it");
    }
}

/// An API server that is gone is told to each, once, and nobody asks more than one would.
#[tokio::test(start_paused = true)]
async fn a_feed_that_is_in_trouble_tells_its_followers() {
    let api = Fake::new();
    let hub = hub(&api);
    let mut scopes = vec![];
    for namespace in NAMESPACES {
        scopes.push(Scope::open(&hub, namespace).synced().await);
    }
    until(&api, "one connection", || connections(&api) == (1, 0)).await;
    api.fault(Fault::does("GET", "", Effect::Down));
    api.break_watches("*");
    let troubled = |scope: &Scope| scope.subscription.state().borrow().trouble.is_some();
    until(&api, "trouble", || scopes.iter().all(troubled)).await;
    let before = api.asked().len();
    tokio::time::sleep(Duration::from_secs(120)).await;
    let asked = api.asked().split_off(before);
    let asked = asked.iter().filter(|asked| asked.path.contains("configmaps")).count();
    // As often as one watch would.
    assert!(asked < 20, "{asked} requests in two minutes");
    api.put(object("n1", "a", 1));
    api.heal();
    until(&api, "no trouble", || !scopes.iter().any(troubled)).await;
    until(&api, "the change", || scopes[1].has() == of_server(&api, "n1")).await;
    assert_eq!(connections(&api), (1, 0), "over the same feed");
}

/// The connection for all may be behind what a namespace has listed: it must not bring back what is gone by then.
#[tokio::test(start_paused = true)]
async fn what_was_gone_before_a_namespace_was_listed_does_not_come_again() {
    let api = Fake::new();
    let hub = hub(&api);
    let _first = Scope::open(&hub, "n0").synced().await;
    let _second = Scope::open(&hub, "n1").synced().await;
    until(&api, "one connection", || connections(&api) == (1, 0)).await;
    api.hold("configmaps");
    api.put(object("n2", "gone", 1));
    api.delete("n2/configmaps/gone");
    api.put(object("n2", "stays", 1));
    let old = of_server(&api, "n2");
    let third = Scope::open(&hub, "n2").synced().await;
    until(&api, "one connection", || connections(&api) == (1, 0)).await;
    third.woken.0.lock().clear();
    for _ in 0..3 {
        api.release_one("configmaps");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(third.has(), old);
        assert!(third.woken.0.lock().is_empty(), "nothing has happened since");
    }
    api.delete("n2/configmaps/stays");
    api.release("configmaps");
    until(&api, "the deletion", || third.has().is_empty()).await;
}

/// Whatever is done to the server and to the watches.
#[tokio::test(start_paused = true)]
async fn followers_end_up_with_what_the_server_has() {
    for seed in seeds() {
        walk(seed).await;
    }
}

/// `SEEDS=1000` walks further than CI does.
fn seeds() -> std::ops::RangeInclusive<u64> {
    let count = std::env::var("SEEDS").ok().and_then(|text| text.parse().ok());
    1..=count.unwrap_or(60)
}

/// A server, a hub, and whatever happens to both.
struct Walk {
    api: Fake,
    hub: Hub,
    random: fastrand::Rng,
    scopes: BTreeMap<&'static str, Scope>,
}

impl Walk {
    /// One thing happens; what it was.
    async fn step(&mut self) -> String {
        match self.random.u32(..50) {
            0..20 => self.change(),
            20..29 => self.watch(),
            29..34 => {
                self.api.release_one("configmaps");
                "the watches hear one thing more".to_owned()
            }
            34..44 => self.go_wrong(),
            _ => {
                let most = if self.random.u32(..4) == 0 { 90_000 } else { 800 };
                let wait = Duration::from_millis(self.random.u64(..most));
                tokio::time::sleep(wait).await;
                format!("{wait:?} pass")
            }
        }
    }

    /// Of an object, in some namespace.
    fn change(&mut self) -> String {
        let places = [&NAMESPACES[..], &OTHERS[..]].concat();
        let place = places[self.random.usize(..places.len())];
        let name = format!("o{}", self.random.u32(..3));
        if self.random.u32(..10) < 3
            && self.api.get(&format!("{place}/configmaps/{name}")).is_some()
        {
            self.api.delete(&format!("{place}/configmaps/{name}"));
            return format!("{place}/{name} is deleted");
        }
        let bytes = if self.random.u32(..40) == 0 { 1 << 20 } else { 10 };
        self.api.put(object(place, &name, bytes));
        format!("{place}/{name} is put")
    }

    /// A namespace is watched, or not any more.
    fn watch(&mut self) -> String {
        let namespace = NAMESPACES[self.random.usize(..NAMESPACES.len())];
        if self.random.bool() {
            self.scopes.remove(namespace);
            return format!("{namespace} is not watched");
        }
        self.scopes.entry(namespace).or_insert_with(|| Scope::open(&self.hub, namespace));
        format!("{namespace} is watched")
    }

    fn go_wrong(&mut self) -> String {
        let (api, random) = (&self.api, &mut self.random);
        match random.u32(..9) {
            0 => {
                api.compact();
                "the history is forgotten".to_owned()
            }
            1 => {
                api.break_watches("configmaps");
                "the watches break".to_owned()
            }
            2 => {
                api.end_watches("configmaps");
                "the watches end".to_owned()
            }
            3 => {
                api.hold("configmaps");
                "the watches lag".to_owned()
            }
            4 => {
                api.release("configmaps");
                "the watches go on".to_owned()
            }
            5 => {
                let code = *random.choice(&[403, 410, 429, 500, 503, 504]).unwrap_or(&500);
                api.fault(Fault::answers("GET", "configmaps", code).times(random.usize(1..4)));
                format!("{code} is answered")
            }
            6 => {
                let verdict = if random.bool() { Verdict::Denied } else { Verdict::Allowed };
                api.rule_everywhere("host", "*", "configmaps", verdict);
                format!("everywhere is {verdict:?}")
            }
            7 => {
                let wait = Duration::from_millis(random.u64(..9_000));
                let late = Fault::does("GET", "configmaps", Effect::Late(wait));
                api.fault(late.times(random.usize(1..3)));
                format!("an answer is late by {wait:?}")
            }
            _ => {
                let cut = Fault::does("GET", "configmaps", Effect::Cut(random.usize(..600)));
                api.fault(cut.times(1));
                "an answer is cut".to_owned()
            }
        }
    }
}

async fn walk(seed: u64) {
    let api = Fake::new();
    if seed.is_multiple_of(4) {
        api.without_watch_list();
    }
    let (hub, random) = (hub(&api), fastrand::Rng::with_seed(seed));
    let mut walk = Walk { api, hub, random, scopes: BTreeMap::new() };
    let mut told = vec![];
    for step in 0..250 {
        let done = walk.step().await;
        told.push(format!("{step}: {done}"));
        let last = || format!("seed {seed}: {:#?}", &told[told.len().saturating_sub(40)..]);
        for (namespace, scope) in &mut walk.scopes {
            scope.never_goes_back(&format!("{namespace}: {}", last()));
        }
    }
    let Walk { api, hub, mut scopes, .. } = walk;
    api.heal();
    api.release("configmaps");
    api.rule_everywhere("host", "*", "configmaps", Verdict::Allowed);
    for namespace in NAMESPACES {
        scopes.entry(namespace).or_insert_with(|| Scope::open(&hub, namespace));
    }
    tokio::time::sleep(LONG).await;
    // They still hear, and over one connection.
    for namespace in NAMESPACES {
        api.put(object(namespace, "last", 10));
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(connections(&api), (1, 0), "seed {seed}: {told:#?}");
    for (namespace, scope) in &mut scopes {
        scope.never_goes_back(&format!("seed {seed}, {namespace}"));
        assert_eq!(scope.has(), of_server(&api, namespace), "seed {seed}: {namespace}: {told:#?}");
        let woken = scope.woken.0.lock();
        let unheard =
            scope.has().into_keys().find(|name| !woken.contains(&format!("{namespace}/{name}")));
        assert_eq!(unheard, None, "seed {seed}: nobody was told");
    }
}
