//! Faults of the server: it is killed, its store stands still or forgets, and the host is killed in between. Each test
//! has a server of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::control_plane::{Options, Program};
use e2e::proxy::{Action, Asked, End, Matcher, Rule};
use e2e::wait::within;
use e2e::{Test, test, test_alone};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use tokio::time::{Instant, sleep};

const SEED: u64 = 7;
const SITES: usize = 30;
const COPIED_WITHIN: Duration = Duration::from_secs(60);
/// After the server is ready; five times that is asserted.
const RESUMED: Duration = Duration::from_secs(5);
/// How long the server is down.
const DOWN: Duration = Duration::from_secs(10);
/// How long etcd stands still.
const STILL: Duration = Duration::from_secs(20);

/// Runs that ended badly, of all controllers.
async fn errors(test: &Test) -> Result<f64> {
    Ok(test.host.metrics().await?.sum("controller_runtime_reconcile_errors_total", &[]))
}

async fn objects(test: &Test, resource: &str) -> Result<f64> {
    Ok(test.host.metrics().await?.sum("nagaya_store_objects", &[("resource", resource)]))
}

#[test]
fn f24_a_server_that_is_gone_for_a_while_costs_nothing() -> Result<()> {
    test_alone(Options::default(), async |test, server| {
        test.copier("copier", &json!({})).await?;
        let mut titles = BTreeMap::new();
        test.retitle(&mut titles, SITES, "first").await?;
        test.copied(&titles, COPIED_WITHIN).await?;
        let kept = objects(test, "websites").await?;
        ensure!(kept == 30.0, "{kept} Websites in the cache");

        // In the middle of a burst, so that writes are under way.
        test.retitle(&mut titles, SITES, "second").await?;
        server.kill(Program::ApiServer).await?;
        // The runs that were cut off have ended, and from then on none begins.
        within(COPIED_WITHIN, "no run goes on", async || {
            let running = test.running("copier").await?;
            ensure!(running == 0.0, "{running} run");
            Ok(())
        })
        .await?;
        let (runs, failed) = (test.runs("copier").await?, errors(test).await?);
        sleep(DOWN).await;
        ensure!(test.host.ended()?.is_none(), "the host has ended");
        let (ran, failed_more) = (test.runs("copier").await? - runs, errors(test).await? - failed);
        let now = objects(test, "websites").await?;
        ensure!(now == kept, "{now} Websites in the cache, {kept} before");
        println!(
            "f24: down for {DOWN:?}: {ran} runs, {failed_more} of them failed; {failed} were cut off by the kill"
        );
        ensure!(failed_more <= 1.0, "{failed_more} runs failed while the server was away");

        server.revive(Program::ApiServer).await?;
        let took = test.copied(&titles, 5 * RESUMED).await?;
        println!(
            "f24: what was under way is done {took:.1?} after the server is ready (bound 5 s)"
        );
        test.retitle(&mut titles, SITES, "third").await?;
        test.copied(&titles, COPIED_WITHIN).await.map(drop)
    })
}

#[test]
fn f24_a_server_that_restarts_in_mid_burst_loses_nothing() -> Result<()> {
    test_alone(Options::default(), async |test, server| {
        test.copier("copier", &json!({"maps": 2})).await?;
        let mut titles = BTreeMap::new();
        for round in 0..2 {
            test.retitle(&mut titles, SITES, &format!("round {round}")).await?;
            let begun = Instant::now();
            server.restart(Program::ApiServer).await?;
            let took = test.copied(&titles, 5 * RESUMED).await?;
            println!(
                "f24: restart in {:.1?}, all is done {took:.1?} later",
                begun.elapsed().saturating_sub(took)
            );
        }
        Ok(())
    })
}

/// Whether it asks for all there is: a LIST, or a watch that begins with the initial state.
fn is_relist(asked: &Asked, plural: &str) -> bool {
    asked.method == "GET"
        && asked.path().ends_with(&format!("/{plural}"))
        && (!asked.is_watch() || asked.parameter("sendInitialEvents") == Some("true"))
        // The consistent LIST of one object only asks for the newest version.
        && asked.parameter("limit") != Some("1")
}

#[test]
fn f25_a_compacted_history_costs_one_relist_a_kind() -> Result<()> {
    let flags = vec!["--watch-cache=false".to_owned()];
    let options = Options { apiserver_flags: flags, ..Options::default() };
    test_alone(options, async |test, server| {
        let proxy = test.behind_proxy(SEED).await?;
        test.copier("copier", &json!({})).await?;
        let mut titles = BTreeMap::new();
        test.retitle(&mut titles, SITES, "first").await?;
        test.copied(&titles, COPIED_WITHIN).await?;
        test.quiet("copier").await?;

        // The watches are away while things change and the history is thrown away.
        let watches = Matcher::watches().uri(format!("/namespaces/{}/", test.namespace));
        let away = Action::Reset { answered: false };
        let guard = proxy.add(Rule::new(watches.clone(), away));
        ensure!(proxy.cut(&watches) >= 2, "two watches were open");
        let runs = test.runs("copier").await?;
        let changed = 5;
        test.retitle(&mut titles, changed, "second").await?;
        let maps: Api<ConfigMap> = test.api();
        let deleted = 3;
        for number in 10..10 + deleted {
            maps.delete(&format!("site-{number}"), &DeleteParams::default()).await?;
        }
        server.compact().await?;
        let before = proxy.log().len();
        drop(guard);
        let begun = Instant::now();
        let took = test.copied(&titles, COPIED_WITHIN).await?;
        println!("f25: changes and deletions are seen {took:.1?} after the watches may come back");
        test.quiet("copier").await?;
        let seconds = begun.elapsed();
        let log = proxy.log().split_off(before);
        for plural in ["websites", "configmaps"] {
            let relists: Vec<_> =
                log.iter().filter(|seen| is_relist(&seen.asked, plural)).collect();
            let served = relists.iter().filter(|seen| seen.end == End::Forwarded(200));
            // Where initial events are not served a refused try comes before each LIST.
            let lists = served.clone().filter(|seen| !seen.asked.is_watch()).count();
            let initial = served.filter(|seen| seen.asked.is_watch()).count();
            println!("f25: {plural}: {lists} LISTs, {initial} watches with initial state");
            ensure!(lists <= 1 && initial <= 1 && lists + initial >= 1, "{relists:#?}");
        }
        let runs = test.runs("copier").await? - runs;
        println!(
            "f25: {runs} runs for {} changed keys, seen over {seconds:.1?}",
            changed + deleted
        );
        // A child that comes back wakes its owner once more, and each write once.
        ensure!(runs <= 4.0 * 8.0, "{runs} runs for 8 changed keys");
        Ok(())
    })
}

#[test]
fn a_store_that_stands_still_for_twenty_seconds_loses_nothing() -> Result<()> {
    test_alone(Options::default(), async |test, server| {
        test.copier("copier", &json!({"maps": 2})).await?;
        let mut titles = BTreeMap::new();
        test.retitle(&mut titles, SITES, "first").await?;
        test.copied(&titles, COPIED_WITHIN).await?;
        test.retitle(&mut titles, SITES, "second").await?;
        // Writes are under way, and each may land although its answer is a timeout.
        server.pause(Program::Etcd)?;
        sleep(STILL).await;
        server.resume(Program::Etcd)?;
        let took = test.copied(&titles, COPIED_WITHIN).await?;
        println!("etcd stood still for {STILL:?}: all is done {took:.1?} later");
        test.retitle(&mut titles, SITES, "third").await?;
        test.copied(&titles, COPIED_WITHIN).await?;
        let unknown = test.history()?.map(|history| {
            let unknown = |write: &&e2e::history::Write| {
                write.author.is_some() && write.outcome == e2e::history::Outcome::Unknown
            };
            history.writes().iter().filter(unknown).count()
        });
        println!("etcd stood still: {} writes of unknown outcome", unknown.unwrap_or_default());
        Ok(())
    })
}

#[test]
fn a_host_that_is_killed_in_mid_burst_loses_nothing() -> Result<()> {
    test(async |test| {
        test.follow_quickly().await?;
        test.copier("copier", &json!({"maps": 2})).await?;
        let mut titles = BTreeMap::new();
        for round in 0..3 {
            let runs = test.runs("copier").await?;
            test.retitle(&mut titles, 100, &format!("round {round}")).await?;
            within(COPIED_WITHIN, "runs are going on", async || {
                ensure!(test.runs("copier").await? > runs, "none");
                Ok(())
            })
            .await?;
            test.host.kill()?;
            let begun = Instant::now();
            test.start_host().await?;
            test.copied(&titles, COPIED_WITHIN).await?;
            println!("kill -9: all is done {:.1?} after it", begun.elapsed());
        }
        Ok(())
    })
}
