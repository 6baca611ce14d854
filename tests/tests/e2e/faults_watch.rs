//! Faults of watches: they stall, come late, twice, in another order, or say that the object is another one now.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::history::none;
use e2e::proxy::{Action, Matcher, Rule};
use e2e::wait::within;
use e2e::{Test, long, test};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const SEED: u64 = 7;
const COPIED_WITHIN: Duration = Duration::from_secs(60);
/// 15 s of silence, 5 s of proof; five times that is asserted.
const STALL_SEEN: Duration = Duration::from_secs(20);
/// The label of what the guest `maker` makes; its value is the Website's name.
const MADE_FOR: &str = "maker.nagaya.dev/of";
const LAG: Duration = Duration::from_secs(5);

/// The watches that this test's controllers look through.
fn watches(test: &Test) -> Matcher {
    Matcher::watches().uri(format!("/namespaces/{}/", test.namespace))
}

/// The longest time for which a watch of this plural has been silent.
async fn staleness(test: &Test, resource: &str) -> Result<f64> {
    let metrics = test.host.metrics().await?;
    Ok(metrics.sum("nagaya_watch_staleness_seconds", &[("resource", resource)]))
}

#[test]
fn f26_a_stalled_watch_is_noticed_and_goes_on() -> Result<()> {
    test(async |test| {
        let proxy = test.behind_proxy(SEED).await?;
        test.copier("copier", &json!({})).await?;
        let mut titles = BTreeMap::new();
        test.retitle(&mut titles, 5, "before").await?;
        test.copied(&titles, COPIED_WITHIN).await?;

        // The connections stay open and say nothing; new ones work.
        let stall = Action::Stall { open_only: true };
        let guard = proxy.add(Rule::new(watches(test), stall));
        test.retitle(&mut titles, 5, "meanwhile").await?;
        let took = test.copied(&titles, 5 * STALL_SEEN).await?;
        println!("f26: what changed during a stall is reconciled after {took:.1?} (bound 20 s)");
        drop(guard);

        // Nothing is answered at all: the metric says so.
        let guard = proxy.add(Rule::new(watches(test), Action::BlackHole));
        test.retitle(&mut titles, 5, "in the dark").await?;
        let begun = Instant::now();
        within(5 * STALL_SEEN, "the watch counts as stale", async || {
            let stale = staleness(test, "websites").await?;
            ensure!(stale > STALL_SEEN.as_secs_f64(), "silent for {stale} s");
            Ok(())
        })
        .await?;
        println!("f26: a dead watch counts as stale after {:.1?}", begun.elapsed());
        drop(guard);
        let took = test.copied(&titles, 5 * STALL_SEEN).await?;
        println!("f26: and is back {took:.1?} after the server is");
        within(COPIED_WITHIN, "the watches are not stale any more", async || {
            let stale = staleness(test, "websites").await?;
            ensure!(stale < STALL_SEEN.as_secs_f64(), "silent for {stale} s");
            Ok(())
        })
        .await
    })
}

/// The children that the guest `maker` made, by the name of their Website.
async fn children(test: &Test) -> Result<BTreeMap<String, Vec<ConfigMap>>> {
    let maps: Api<ConfigMap> = test.api();
    let list = maps.list(&ListParams::default().labels(MADE_FOR)).await?;
    let mut children = BTreeMap::<_, Vec<_>>::new();
    for map in list {
        let site = map.labels().get(MADE_FOR).cloned().context("a child of nobody")?;
        children.entry(site).or_default().push(map);
    }
    Ok(children)
}

async fn maker(test: &Test, config: &Value) -> Result<()> {
    let spec = json!({"limits": {"writesPerMinute": 60_000}});
    let maker = test.guest("maker", GUEST_RULES, spec).await?;
    let revision = maker.push_config(&Component::load("maker")?, config).await?;
    maker.active(&revision).await.map(drop)
}

/// Each Website changes again before the cache shows what the first run made for it.
#[test]
fn f32_nothing_is_made_twice_while_the_cache_is_five_seconds_behind() -> Result<()> {
    let long = long();
    let count = if long { 10_000 } else { 1_000 };
    test(async |test| {
        let proxy = test.behind_proxy(SEED).await?;
        maker(test, &json!({})).await?;
        let guard = proxy.add(Rule::new(watches(test), Action::DelayLines(LAG)));
        let begun = Instant::now();
        let mut titles = BTreeMap::new();
        // In blocks, so that the second change comes within the lag of the first.
        let block = 100;
        for first in (0..count).step_by(block) {
            for title in ["first", "second"] {
                let names = (first..first + block).map(|number| format!("site-{number}"));
                for name in names {
                    test.website(&name, title).await?;
                    titles.insert(name, title.to_owned());
                }
            }
        }
        let limit = COPIED_WITHIN + begun.elapsed();
        let made = within(limit, "each Website has a child that says its title", async || {
            let children = children(test).await?;
            let right = |maps: &&Vec<ConfigMap>| {
                let title = maps[0].data.as_ref().and_then(|data| data.get("title"));
                title.is_some_and(|title| title == "second")
            };
            let done = children.values().filter(right).count();
            ensure!(done == count, "{done} of {count}");
            Ok(children)
        })
        .await?;
        let lines = guard.hits();
        drop(guard);
        within(COPIED_WITHIN, "it is idle", async || test.idle("maker").await).await?;
        let twice = made.values().filter(|maps| maps.len() > 1).count();
        // A sum of no samples is a negative zero.
        let timeouts = 0.0 + test.host.metrics().await?.sum("nagaya_ryow_timeouts_total", &[]);
        println!(
            "f32: {count} objects made by POST, {lines} events 5 s late: {twice} doubled; {timeouts} keys went on \
             with live reads; {:.1?}",
            begun.elapsed()
        );
        ensure!(twice == 0, "{twice} Websites have more than one child");
        ensure!(lines >= u64::try_from(count)?, "only {lines} events were late");
        if let Some(history) = test.history()? {
            none(&history.duplicate_children("configmaps"))?;
        }
        Ok(())
    })
}

#[test]
fn f36_doubled_swapped_repeated_and_missing_events_lead_to_the_same_end() -> Result<()> {
    test(async |test| {
        let proxy = test.behind_proxy(SEED).await?;
        test.copier("copier", &json!({})).await?;
        let meant = || watches(test);
        let is_plain_bookmark =
            |line: &str| line.contains(r#""BOOKMARK""#) && !line.contains("initial-events-end");
        let is_object = |line: &str| !line.contains(r#""BOOKMARK""#);
        let guards = [
            proxy.add(Rule::new(meant(), Action::Drop).line(is_plain_bookmark)),
            proxy.add(Rule::new(meant(), Action::Duplicate).share(0.2).line(is_object)),
            proxy.add(Rule::new(meant(), Action::Swap { same_object: false }).share(0.2)),
            proxy.add(Rule::new(meant(), Action::Swap { same_object: true }).share(0.1)),
            proxy.add(Rule::new(meant(), Action::Again).share(0.1).line(is_object)),
        ];
        let mut titles = BTreeMap::new();
        let maps: Api<ConfigMap> = test.api();
        for round in 0..6 {
            test.retitle(&mut titles, 30, &format!("round {round}")).await?;
            // Deletions too: their children come back.
            for number in (round..30).step_by(6) {
                match maps.delete(&format!("site-{number}"), &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => (),
                    answer => drop(answer?),
                }
            }
        }
        let took = test.copied(&titles, COPIED_WITHIN).await?;
        let hits = guards.each_ref().map(e2e::proxy::Guard::hits);
        println!(
            "f36: {hits:?} events dropped, doubled, swapped (2), repeated; the end after {took:.1?}"
        );
        ensure!(hits[1..].iter().all(|hits| *hits > 0), "not every fault has struck: {hits:?}");
        drop(guards);
        // And it stays so: no late event brings an old state back.
        test.quiet("copier").await?;
        test.stays(&titles).await
    })
}

#[test]
fn f37_a_run_of_a_deleted_object_never_touches_its_successor() -> Result<()> {
    test(async |test| {
        let Some(log) = test.audit() else { return Ok(()) };
        let log = log.from_now()?;
        let proxy = test.behind_proxy(SEED).await?;
        let controller = test.example("website").await?;
        let revision = controller.push(&Component::load("website_v1")?).await?;
        controller.active(&revision).await?;
        // The run's first write takes 1 s, less than its time limit; its last one is the status of the Website that it
        // began with.
        let first = Matcher::writes().uri("/configmaps/web").agent("controller=");
        let guard = proxy.add(Rule::new(first, Action::Delay(Duration::from_secs(1))).times(1));
        test.website("web", "old").await?;
        within(COPIED_WITHIN, "the first write is under way", async || {
            ensure!(guard.hits() == 1, "not yet");
            Ok(())
        })
        .await?;
        let websites = websites(test);
        let old = websites.get("web").await?.uid().context("no uid")?;
        websites.delete("web", &DeleteParams::default()).await?;
        test.website("web", "new").await?;
        let new = websites.get("web").await?.uid().context("no uid")?;
        ensure!(old != new, "the same uid");
        within(COPIED_WITHIN, "the new one is served", async || {
            let site = websites.get("web").await?;
            ensure!(site.data["status"]["observedGeneration"] == 1, "{}", site.data["status"]);
            let maps: Api<ConfigMap> = test.api();
            let map = maps.get_opt("web").await?.context("no page")?;
            let owner = map.owner_references().first().context("no owner")?.uid.clone();
            ensure!(owner == new, "the page's owner is {owner}, not {new}");
            Ok(())
        })
        .await?;
        test.quiet("website").await?;
        let history = e2e::history::History::of(&log.events()?);
        // The run that wrote something as a child of the old one must have written nothing to the new one.
        let old_runs: Vec<_> = history
            .by_runs()
            .filter(|(write, _)| write.owners.contains(&old))
            .map(|(_, author)| author.reconcile.clone())
            .collect();
        let touched = history
            .by_runs()
            .filter(|(write, author)| write.uid == new && old_runs.contains(&author.reconcile));
        let touched: Vec<_> = touched.map(|(write, _)| write.line.clone()).collect();
        println!("f37: {} writes by runs of the old uid, none to the new one", old_runs.len());
        ensure!(
            !old_runs.is_empty(),
            "the run of the old one wrote nothing: nothing was put to the test"
        );
        ensure!(touched.is_empty(), "touched: {touched:?}");
        Ok(())
    })
}

#[test]
fn f31_nothing_is_deleted_by_what_a_stale_server_says() -> Result<()> {
    test(async |test| {
        test.follow_quickly().await?;
        let proxy = test.behind_proxy(SEED).await?;
        maker(test, &json!({"orphans": true})).await?;
        test.website("web", "first").await?;
        let child = async |test: &Test| {
            within(COPIED_WITHIN, "one child", async || {
                let mut all: Vec<_> = children(test).await?.into_values().flatten().collect();
                ensure!(all.len() == 1, "{} children", all.len());
                all.pop().context("none")
            })
            .await
        };
        let first = child(test).await?;
        // Deleted between the child and the note of its name, the guest would make another one and delete both.
        test.idle("maker").await?;
        websites(test).delete("web", &DeleteParams::default()).await?;
        within(COPIED_WITHIN, "the child goes with its Website", async || {
            let left = children(test).await?.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await?;
        test.idle("maker").await?;

        // From now on the watch of Websites is in the time when there was none, and that of children is not.
        let past = watches(test).uri("/websites");
        let frozen = proxy.freeze(past.clone()).await?;
        test.website("web", "second").await?;
        let second = child(test).await?;
        ensure!(second.uid() != first.uid(), "another child");
        // Killed between the child and the note of its name, the guest would make another one.
        test.idle("maker").await?;
        proxy.cut(&past);
        test.host.kill()?;
        let maps: Api<ConfigMap> = test.api();
        let name = second.name_any();
        let thaw = async {
            // As long as a host needs to be led astray, Lease included.
            sleep(Duration::from_secs(25)).await;
            let now = maps.get_opt(&name).await?.context("the child was deleted")?;
            ensure!(now.uid() == second.uid(), "the child was made anew");
            let told = frozen.hits();
            drop(frozen);
            anyhow::Ok(told)
        };
        let (started, told) = tokio::join!(test.start_host(), thaw);
        started?;
        println!("f31: {} watches were answered from the past, nothing was deleted", told?);
        test.website("web", "third").await?;
        within(5 * STALL_SEEN, "the present is seen again", async || {
            let now = maps.get(&name).await?;
            let title = now.data.as_ref().and_then(|data| data.get("title"));
            ensure!(title.is_some_and(|title| title == "third"), "{title:?}");
            ensure!(now.uid() == second.uid(), "the child was made anew");
            Ok(())
        })
        .await?;
        let Some(history) = test.history()? else { return Ok(()) };
        let deletes = history.by_runs().filter(|(write, _)| write.verb == "delete");
        let deletes: Vec<_> = deletes.map(|(write, _)| &write.line).collect();
        ensure!(deletes.len() == 1, "deletions by runs: {deletes:?}");
        none(&history.bare_deletes())?;
        none(&history.duplicate_children("configmaps"))
    })
}

fn websites(test: &Test) -> Api<kube::api::DynamicObject> {
    let kind = e2e::manifest::resource("examples.nagaya.dev/v1", "Website");
    Api::namespaced_with(test.admin.clone(), &test.namespace, &kind)
}
