//! The fault proxy against the real server: without rules nothing changes, and each fault does what
//! it says.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::control_plane::{self, ControlPlane, User};
use e2e::proxy::{Action, Authority, End, Matcher, Proxy, Rule};
use e2e::wait::within;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ListParams, ObjectMeta, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::time::{Instant, timeout};

/// A line of a watch comes within milliseconds.
const SOON: Duration = Duration::from_secs(10);
/// Long enough that a line which may come would have come.
const QUIET: Duration = Duration::from_millis(400);
const LATE: Duration = Duration::from_secs(1);

type Events = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Send>>;

/// A proxy, and ConfigMaps of a namespace seen through it and past it.
struct Bench {
    proxy: Proxy,
    direct: Api<ConfigMap>,
    through: Api<ConfigMap>,
}

impl Bench {
    async fn new() -> Result<Self> {
        let control_plane = ControlPlane::shared().await?;
        let admin = control_plane.client(User::Admin).await?;
        let metadata = ObjectMeta { generate_name: Some("proxy-".into()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let namespaces = Api::<Namespace>::all(admin.clone());
        let namespace = namespaces.create(&PostParams::default(), &namespace).await?;
        let namespace = namespace.metadata.name.context("a namespace without name")?;
        let proxy = Proxy::start(control_plane, 7).await?;
        let kubeconfig = proxy.kubeconfig(&control_plane.kubeconfig(User::Admin))?;
        let through = client(&kubeconfig).await?;
        let direct = Api::<ConfigMap>::namespaced(admin, &namespace);
        if control_plane.has_controller_manager() {
            // It puts one of its own into each namespace, some time.
            within(3 * SOON, "the namespace is complete", async || {
                Ok(direct.get("kube-root-ca.crt").await.map(drop)?)
            })
            .await?;
        }
        Ok(Self { proxy, direct, through: Api::namespaced(through, &namespace) })
    }

    async fn watch(&self) -> Result<Events> {
        let list = self.direct.list(&ListParams::default()).await?;
        let from = list.metadata.resource_version.context("a list without version")?;
        Ok(Box::pin(self.through.watch(&WatchParams::default(), &from).await?))
    }

    async fn create(&self, name: &str) -> Result<()> {
        let created = self.direct.create(&PostParams::default(), &map(name)).await;
        created.map(drop).context("creating a ConfigMap")
    }
}

async fn client(kubeconfig: &std::path::Path) -> Result<Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    // Each fault is to be seen as it is.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn map(name: &str) -> ConfigMap {
    let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    ConfigMap { metadata, ..ConfigMap::default() }
}

/// The name of the next object that the watch tells of.
async fn next(events: &mut Events) -> Result<String> {
    loop {
        let event = timeout(SOON, events.next()).await.context("nothing comes")?;
        match event.context("the watch has ended")?? {
            WatchEvent::Added(map) | WatchEvent::Modified(map) | WatchEvent::Deleted(map) => {
                return map.metadata.name.context("a ConfigMap without name");
            }
            WatchEvent::Bookmark(_) => (),
            WatchEvent::Error(error) => bail!("{error:?}"),
        }
    }
}

async fn is_silent(events: &mut Events) -> bool {
    timeout(QUIET, events.next()).await.is_err()
}

fn maps() -> Matcher {
    Matcher::watches().uri("/configmaps")
}

fn run(body: impl AsyncFnOnce(&Bench) -> Result<()>) -> Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build()?.block_on(async {
        let bench = Bench::new().await?;
        body(&bench).await
    })
}

#[test]
fn without_rules_nothing_changes() -> Result<()> {
    run(async |bench| {
        let mut events = bench.watch().await?;
        for name in ["a", "b"] {
            bench.through.create(&PostParams::default(), &map(name)).await?;
            assert_eq!(next(&mut events).await?, name);
        }
        assert_eq!(bench.through.get("a").await?, bench.direct.get("a").await?);
        let log = bench.proxy.log();
        let posts: Vec<_> = log.iter().filter(|seen| seen.asked.method == "POST").collect();
        assert!(posts.iter().all(|seen| seen.end == End::Forwarded(201)), "{posts:?}");
        assert_eq!(posts.len(), 2);
        assert_eq!(bench.proxy.count(&maps()), 1);
        assert_eq!(bench.proxy.open_watches(&maps()).len(), 1);
        drop(events);
        let watches = async || {
            let open = bench.proxy.open_watches(&maps());
            ensure!(open.is_empty(), "{open:?}");
            Ok(())
        };
        within(SOON, "the proxy closes the watch with its client", watches).await
    })
}

#[test]
fn answers_are_made_up_late_or_lost() -> Result<()> {
    run(async |bench| {
        let maps = &bench.through;
        let writes = || Matcher::writes().uri("/configmaps");
        let busy = Action::Answer { code: 429, retry_after: Some(7) };
        let guard = bench.proxy.add(Rule::new(writes(), busy).times(1));
        let error = maps.create(&PostParams::default(), &map("a")).await.unwrap_err();
        let kube::Error::Api(status) = error else { bail!("{error:?}") };
        assert_eq!((status.code, &*status.reason), (429, "TooManyRequests"));
        let seconds = status.details.as_ref().map(|details| details.retry_after_seconds);
        assert_eq!(seconds, Some(7));
        assert_eq!(guard.hits(), 1);
        maps.create(&PostParams::default(), &map("a")).await?;

        let delay = Rule::new(Matcher::calls().uri("/configmaps/a"), Action::Delay(LATE));
        let guard = bench.proxy.add(delay);
        let start = Instant::now();
        maps.get("a").await?;
        assert!(start.elapsed() >= LATE);
        drop(guard);

        let guard = bench.proxy.add(Rule::new(writes(), Action::Reset { answered: false }));
        maps.create(&PostParams::default(), &map("b")).await.unwrap_err();
        assert_eq!(bench.direct.get_opt("b").await?, None, "it did not reach the server");
        drop(guard);
        let guard = bench.proxy.add(Rule::new(writes(), Action::Reset { answered: true }));
        maps.create(&PostParams::default(), &map("b")).await.unwrap_err();
        assert!(bench.direct.get_opt("b").await?.is_some(), "it reached the server");
        assert!(bench.proxy.log().iter().any(|seen| seen.end == End::Lost(201)));
        drop(guard);
        maps.create(&PostParams::default(), &map("c")).await?;
        Ok(())
    })
}

#[test]
fn a_watch_stalls_and_goes_on() -> Result<()> {
    run(async |bench| {
        let mut events = bench.watch().await?;
        let guard = bench.proxy.add(Rule::new(maps(), Action::Stall { open_only: true }));
        bench.create("a").await?;
        assert!(is_silent(&mut events).await);
        let mut second = bench.watch().await?;
        bench.create("b").await?;
        assert_eq!(next(&mut second).await?, "b", "a watch that came later");
        drop(guard);
        assert_eq!((next(&mut events).await?, next(&mut events).await?), ("a".into(), "b".into()));

        let guard = bench.proxy.add(Rule::new(maps(), Action::BlackHole));
        bench.create("c").await?;
        assert!(is_silent(&mut events).await);
        assert!(timeout(QUIET, bench.watch()).await.is_err(), "a new one is not answered");
        drop(guard);
        next(&mut events).await.unwrap_err();
        Ok(())
    })
}

#[test]
fn lines_come_late_twice_in_another_order_or_never() -> Result<()> {
    run(async |bench| {
        let mut events = bench.watch().await?;
        let guard = bench.proxy.add(Rule::new(maps(), Action::DelayLines(LATE)));
        let start = Instant::now();
        bench.create("a").await?;
        assert_eq!(next(&mut events).await?, "a");
        assert!(start.elapsed() >= LATE);
        drop(guard);

        let guard = bench.proxy.add(Rule::new(maps(), Action::Drop).times(1));
        bench.create("b").await?;
        bench.create("c").await?;
        assert_eq!(next(&mut events).await?, "c");
        drop(guard);
        let guard = bench.proxy.add(Rule::new(maps(), Action::Duplicate).times(1));
        bench.create("d").await?;
        assert_eq!((next(&mut events).await?, next(&mut events).await?), ("d".into(), "d".into()));
        drop(guard);
        let swap = Action::Swap { same_object: false };
        let guard = bench.proxy.add(Rule::new(maps(), swap).times(1));
        bench.create("e").await?;
        bench.create("f").await?;
        assert_eq!((next(&mut events).await?, next(&mut events).await?), ("f".into(), "e".into()));
        drop(guard);
        let guard = bench.proxy.add(Rule::new(maps(), Action::Again).times(1));
        bench.create("g").await?;
        assert_eq!(next(&mut events).await?, "g");
        next(&mut events).await?;
        drop(guard);

        let line = format!(
            r#"{{"type":"MODIFIED","object":{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{}"}}}}}}"#,
            "made-up"
        );
        assert_eq!(bench.proxy.inject(&maps(), &[line]).await, 1);
        assert_eq!(next(&mut events).await?, "made-up");
        Ok(())
    })
}

#[test]
fn time_stands_still() -> Result<()> {
    run(async |bench| {
        bench.create("old").await?;
        let initial = WatchParams::default().initial_events();
        let mut events: Events = Box::pin(bench.through.watch(&initial, "0").await?);
        while next(&mut events).await? != "old" {}
        let guard = bench.proxy.freeze(maps()).await?;
        bench.create("new").await?;
        assert_eq!(next(&mut events).await?, "new", "the watch that was open goes on");
        assert!(bench.proxy.cut(&maps()) > 0);
        next(&mut events).await.unwrap_err();

        // The client may take a connection that was broken before it knows.
        let again = async || Ok(bench.through.watch(&initial, "0").await?);
        let mut events: Events = Box::pin(within(SOON, "another connection", again).await?);
        while next(&mut events).await? != "old" {}
        let rest = async { while next(&mut events).await.unwrap_or_default() != "new" {} };
        assert!(timeout(QUIET, rest).await.is_err());
        drop(guard);
        let mut events: Events = Box::pin(within(SOON, "a watch as before", again).await?);
        while next(&mut events).await? != "new" {}
        Ok(())
    })
}

#[test]
fn another_certificate_is_shown() -> Result<()> {
    run(async |bench| {
        let kubeconfig =
            bench.proxy.kubeconfig(&ControlPlane::shared().await?.kubeconfig(User::Admin))?;
        let fresh = async || {
            let namespaces = Api::<Namespace>::all(control_plane::client(&kubeconfig).await?);
            anyhow::Ok(namespaces.get("default").await?)
        };
        fresh().await?;
        let list = async || bench.through.list(&ListParams::default()).await;
        list().await?;
        bench.proxy.show(&Authority::new()?)?;
        list().await.context("on the connection that is still open")?;
        fresh().await.unwrap_err();
        Ok(())
    })
}
