//! The seeded random fault run: three controllers under load, while faults of the proxy, kills of the host and restarts
//! of the server come as a seed says. It ends like a run without faults, with a clean history.
//!
//! `NAGAYA_SEED` is the seed (printed). `NAGAYA_LONG=1` makes it 5 minutes instead of one, and a seed that is not given
//! is drawn; the short run has the same one each time, so that a failure is one of the change under test.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::control_plane::{ControlPlane, Options, Program, Reads};
use e2e::history::{differences, none};
use e2e::proxy::{Action, Guard, Matcher, Proxy, Rule};
use e2e::site::{owning, website};
use e2e::wait::within;
use e2e::{Test, long, manifest, test_alone};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

const CONTROLLERS: [&str; 3] = ["a", "b", "c"];
const OBJECTS: usize = 100;
/// Together with what the controllers write this is half of what the server bears.
const CHANGES_PER_SECOND: u32 = 50;
const LONG: Duration = Duration::from_secs(300);
const SHORT: Duration = Duration::from_secs(60);
/// After the last fault; a restarted host first waits for its predecessor's Lease.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

fn seed() -> u64 {
    let given = std::env::var("NAGAYA_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| if long() { fastrand::u64(0..1_000_000) } else { 1 })
}

fn length() -> Duration {
    if long() { LONG } else { SHORT }
}

/// `hostile` that copies the annotation `value` of the Websites with its label.
async fn controller(test: &Test, name: &str) -> Result<()> {
    let mut config = owning("write");
    config["manifest"]["primary"]["labelSelector"] = json!(format!("set={name}"));
    config["manifest"]["primary"]["when"] = json!(null);
    let spec = json!({"limits": {"writesPerMinute": 60_000}});
    let hostile = test.guest(name, GUEST_RULES, spec).await?;
    let revision = hostile.push_config(&Component::load("hostile")?, &config).await?;
    hostile.active(&revision).await.map(drop)
}

/// Who changes things, past the proxy and whatever happens to the server.
struct Load {
    admin: Client,
    namespace: String,
    random: fastrand::Rng,
    /// What each child should say in the end.
    expected: BTreeMap<String, String>,
    tries: u32,
}

impl Load {
    /// The same until it is done: a try without an answer may have been done or not.
    async fn say(&mut self, set: &str, number: usize, value: &str) {
        let name = format!("{set}-{number}");
        let mut site = website(&self.namespace, &name, "A site");
        site["metadata"]["labels"] = json!({"set": set});
        site["metadata"]["annotations"] = json!({"hostile.nagaya.dev/value": value});
        while manifest::apply(&self.admin, std::slice::from_ref(&site)).await.is_err() {
            self.tries += 1;
            sleep(Duration::from_millis(200)).await;
        }
        self.expected.insert(name, value.to_owned());
    }

    /// Now and then a child is deleted, which must come back.
    async fn change(&mut self, count: u32) {
        let set = CONTROLLERS[self.random.usize(..CONTROLLERS.len())];
        let number = self.random.usize(..OBJECTS);
        self.say(set, number, &format!("change {count}")).await;
        if self.random.u32(..50) == 0 {
            let maps = Api::<ConfigMap>::namespaced(self.admin.clone(), &self.namespace);
            // Not there yet, or no server: then there is nothing that must come back.
            let _ = maps.delete(&format!("{set}-{number}"), &DeleteParams::default()).await;
        }
    }

    async fn run(mut self, until: Instant) -> Self {
        let mut ticks = interval(Duration::from_secs(1) / CHANGES_PER_SECOND);
        // Made up for what an outage took away would be a storm.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0;
        while Instant::now() < until {
            ticks.tick().await;
            count += 1;
            self.change(count).await;
        }
        self
    }
}

/// One fault of the proxy.
fn fault(random: &mut fastrand::Rng, namespace: &str) -> Rule {
    let here = |matcher: Matcher| matcher.uri(format!("/namespaces/{namespace}/"));
    let (watches, calls) = (here(Matcher::watches()), here(Matcher::calls()));
    let seconds = |random: &mut fastrand::Rng| Duration::from_millis(random.u64(200..3_000));
    let answer = |code, retry_after| Action::Answer { code, retry_after };
    match random.u32(..13) {
        0 => Rule::new(watches, Action::DelayLines(seconds(random))),
        1 => Rule::new(watches, Action::Stall { open_only: random.bool() }),
        2 => Rule::new(watches, Action::BlackHole),
        3 => Rule::new(watches, Action::Duplicate).share(0.3),
        4 => Rule::new(watches, Action::Swap { same_object: random.bool() }).share(0.3),
        5 => Rule::new(watches, Action::Again).share(0.2),
        6 => Rule::new(calls, Action::Delay(seconds(random))).share(0.3),
        7 => Rule::new(calls, answer(429, Some(1))).share(0.2),
        8 => Rule::new(calls, answer(500, None)).share(0.2),
        9 => Rule::new(calls, answer(503, None)).share(0.2),
        10 => Rule::new(calls, answer(504, None)).share(0.2),
        11 => Rule::new(calls, Action::Reset { answered: false }).share(0.2),
        _ => Rule::new(calls, Action::Reset { answered: true }).share(0.2),
    }
}

/// Makes faults until the time is over; what there was.
async fn faults(
    test: &mut Test,
    server: &mut ControlPlane,
    proxy: &Proxy,
    random: &mut fastrand::Rng,
    until: Instant,
) -> Result<BTreeMap<String, u32>> {
    let mut told = BTreeMap::new();
    let mut rules: Vec<(Instant, Guard)> = vec![];
    let mut count = |what: String| {
        println!("random: {:>5.1} s left: {what}", (until - Instant::now()).as_secs_f64());
        let kind: String = what.chars().take_while(|letter| letter.is_alphanumeric()).collect();
        *told.entry(kind).or_default() += 1;
    };
    while Instant::now() < until {
        match random.u32(..40) {
            0 | 1 => {
                count("kill of the host".into());
                test.host.kill()?;
                test.start_host().await?;
            }
            2 => {
                count("restart of the server".into());
                server.restart(Program::ApiServer).await?;
            }
            3..=6 => {
                let meant = Matcher::all().uri(format!("/namespaces/{}/", test.namespace));
                count(format!("cut of {} connections", proxy.cut(&meant)));
            }
            _ => {
                let rule = fault(random, &test.namespace);
                count(format!("{rule:?}").split(" of ").next().unwrap_or_default().to_owned());
                let ends = Instant::now() + Duration::from_millis(random.u64(500..6_000));
                rules.push((ends, proxy.add(rule)));
            }
        }
        sleep(Duration::from_millis(random.u64(100..2_000))).await;
        rules.retain(|(ends, _)| *ends > Instant::now());
        ensure!(test.host.ended()?.is_none(), "the host has ended by itself");
    }
    Ok(told)
}

async fn state(maps: &Api<ConfigMap>) -> Result<BTreeMap<String, String>> {
    let list = maps.list(&ListParams::default()).await?;
    let said =
        list.into_iter().filter_map(|map| Some((map.metadata.name?, map.data?.remove("config")?)));
    Ok(said.collect())
}

#[test]
fn a_random_fault_run_ends_as_one_without_faults() -> Result<()> {
    let (seed, length) = (seed(), length());
    println!("random: NAGAYA_SEED={seed}, {length:?}");
    let options = Options { reads: Reads::Silent, ..Options::default() };
    test_alone(options, async |test, server| {
        test.follow_quickly().await?;
        let proxy = test.behind_proxy(seed).await?;
        for name in CONTROLLERS {
            controller(test, name).await?;
        }
        let mut load = Load {
            admin: test.admin.clone(),
            namespace: test.namespace.clone(),
            random: fastrand::Rng::with_seed(seed),
            expected: BTreeMap::new(),
            tries: 0,
        };
        for number in 0..OBJECTS {
            for set in CONTROLLERS {
                load.say(set, number, "at first").await;
            }
        }
        let until = Instant::now() + length;
        let load = tokio::spawn(load.run(until));
        let mut random = fastrand::Rng::with_seed(seed);
        let told = faults(test, server, &proxy, &mut random, until).await?;
        let load = load.await?;
        println!("random: faults {told:?}; {} changes had to be tried again", load.tries);

        let begun = Instant::now();
        let maps: Api<ConfigMap> = test.api();
        within(
            SETTLED_WITHIN,
            &format!("the end of a run without faults (seed {seed})"),
            async || none(&differences(&load.expected, &state(&maps).await?)),
        )
        .await?;
        println!("random: seed {seed}: the same end {:.1?} after the last fault", begun.elapsed());
        let Some(history) = test.history()? else { return Ok(()) };
        println!("random: {} writes by runs", history.by_runs().count());
        history.check()?;
        ensure!(history.most_tries() <= 5, "{} tries by one run", history.most_tries());
        Ok(())
    })
}
