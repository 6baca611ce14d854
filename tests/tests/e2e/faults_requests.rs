//! Faults of requests: slow, refused, broken off, in conflict, with credentials that change.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::controller::condition;
use e2e::credentials::Files;
use e2e::proxy::{Action, Authority, End, Matcher, Rule};
use e2e::site::{datum, owning};
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use serde_json::json;
use tokio::time::Instant;

const SEED: u64 = 7;
const SITES: usize = 20;
const COPIED_WITHIN: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(30);
/// Every client of a busy host sends something in this time.
const EACH_ASKS_WITHIN: Duration = Duration::from_secs(15);

/// Requests of runs.
fn of_runs() -> Matcher {
    Matcher::all().agent("controller=")
}

#[test]
fn f27_a_slow_and_broken_server_gets_no_storm() -> Result<()> {
    test(async |test| {
        let proxy = test.behind_proxy(SEED).await?;
        test.copier("copier", &json!({"maps": 2})).await?;
        let mut titles = BTreeMap::new();
        let mut counted = vec![];
        let mut guards = vec![];
        for round in ["plain", "faulty"] {
            let before = (proxy.count(&of_runs()), proxy.count(&Matcher::all()));
            let begun = Instant::now();
            for title in ["a", "b", "c"] {
                test.retitle(&mut titles, SITES, &format!("{round} {title}")).await?;
                test.copied(&titles, COPIED_WITHIN).await?;
            }
            let runs = proxy.count(&of_runs()) - before.0;
            let all = proxy.count(&Matcher::all()) - before.1;
            println!(
                "f27: {round}: {runs} requests by runs, {all} in all, {:.1?}",
                begun.elapsed()
            );
            counted.push(runs);
            let calls = Matcher::calls;
            let answer = |code| Action::Answer { code, retry_after: None };
            guards.extend([
                proxy.add(Rule::new(calls(), Action::Delay(Duration::from_secs(2))).share(0.25)),
                proxy.add(Rule::new(calls(), answer(500)).share(0.04)),
                proxy.add(Rule::new(calls(), answer(503)).share(0.03)),
                proxy.add(Rule::new(calls(), answer(504)).share(0.03)),
                proxy.add(Rule::new(calls(), Action::Reset { answered: false }).share(0.02)),
                proxy.add(Rule::new(calls(), Action::Reset { answered: true }).share(0.02)),
            ]);
        }
        let hits: Vec<_> = guards[..6].iter().map(e2e::proxy::Guard::hits).collect();
        println!("f27: delayed, 500, 503, 504, cut before and after: {hits:?}");
        ensure!(hits.iter().all(|hits| *hits > 0), "not every fault has struck: {hits:?}");
        drop(guards);
        ensure!(counted[1] <= 3 * counted[0], "{} requests instead of {}", counted[1], counted[0]);
        Ok(())
    })
}

/// `hostile` that copies the annotation `value` of Websites with the label `team`.
async fn team(test: &Test, name: &str) -> Result<()> {
    let mut config = owning("write");
    config["manifest"]["primary"]["labelSelector"] = json!(format!("team={name}"));
    config["manifest"]["primary"]["when"] = json!(null);
    let hostile = test.guest(name, GUEST_RULES, json!({})).await?;
    let revision = hostile.push_config(&Component::load("hostile")?, &config).await?;
    hostile.active(&revision).await.map(drop)
}

/// Gives the Website `name` of this team another value.
async fn say(test: &Test, team: &str, name: &str, value: &str) -> Result<()> {
    let mut site = e2e::site::website(&test.namespace, name, "A site");
    site["metadata"]["labels"] = json!({"team": team});
    site["metadata"]["annotations"] = json!({"hostile.nagaya.dev/value": value});
    test.apply(&[site]).await
}

#[test]
fn f28_a_server_that_asks_to_wait_is_obeyed() -> Result<()> {
    test(async |test| {
        let proxy = test.behind_proxy(SEED).await?;
        for name in ["a", "b"] {
            team(test, name).await?;
        }
        say(test, "a", "site-a", "first").await?;
        say(test, "b", "site-b", "first").await?;
        test.written("site-a", "first").await?;
        test.written("site-b", "first").await?;

        // Longer than a call may take, then shorter.
        for (seconds, value) in [(15, "second"), (1, "third")] {
            let account = test.username("a");
            let busy = Action::Answer { code: 429, retry_after: Some(seconds) };
            let meant = of_runs().actor(&account);
            let guard = proxy.add(Rule::new(meant.clone(), busy).times(1));
            let from = proxy.log().len();
            say(test, "a", "site-a", value).await?;
            within(SOON, "the server asks to wait", async || {
                ensure!(guard.hits() == 1, "not yet");
                Ok(())
            })
            .await?;
            // The other team's flow does not wait.
            say(test, "b", "site-b", value).await?;
            test.written("site-b", value).await?;
            let maps: Api<ConfigMap> = test.api();
            if seconds > 2 {
                let meanwhile = datum(&maps, "site-a", "config").await?;
                ensure!(meanwhile != value, "the other team's write came too late to compare");
            }
            test.written("site-a", value).await?;
            let log = proxy.log().split_off(from);
            let mut flow = log.iter().filter(|seen| meant.matches(&seen.asked));
            let asked = flow.find(|seen| seen.end == End::Answered(429)).context("no 429")?;
            let next = flow.next().context("never asked again")?;
            let waited = next.at.duration_since(asked.at);
            println!("f28: Retry-After {seconds}: the flow is silent for {waited:.2?}");
            ensure!(waited >= Duration::from_secs(seconds), "asked again after {waited:?}");
            ensure!(waited < Duration::from_secs(5 * seconds + 5), "only after {waited:?}");
        }
        Ok(())
    })
}

#[test]
fn f29_a_fault_of_one_kind_is_felt_by_those_who_use_it() -> Result<()> {
    test(async |test| {
        let proxy = test.behind_proxy(SEED).await?;
        team(test, "uses").await?;
        // It only looks at Websites.
        let spares = test.guest("spares", GUEST_RULES, json!({})).await?;
        let config = json!({"reconcile": "ok"});
        let revision = spares.push_config(&Component::load("hostile")?, &config).await?;
        spares.active(&revision).await?;
        say(test, "uses", "site", "first").await?;
        test.written("site", "first").await?;

        for code in [403, 500] {
            let maps = Matcher::all().uri(format!("/namespaces/{}/configmaps", test.namespace));
            let answer = Action::Answer { code, retry_after: None };
            let guard = proxy.add(Rule::new(maps.clone(), answer));
            proxy.cut(&maps);
            say(test, "uses", "site", &format!("during {code}")).await?;
            if code == 403 {
                let marked = test
                    .controller("uses")?
                    .until(SOON, "the controller says what it lacks", |seen| {
                        let degraded = condition(seen, "Degraded");
                        degraded.is_some_and(|it| it.message.to_lowercase().contains("configmap"))
                    })
                    .await?;
                let told = condition(&marked, "Degraded").map(|it| it.message.clone());
                println!("f29: {code}: {}", told.unwrap_or_default());
            }
            let runs = test.runs("spares").await?;
            let begun = Instant::now();
            test.website("other", &format!("Title {code}")).await?;
            within(SOON, "the other controller runs", async || {
                ensure!(test.runs("spares").await? > runs, "it does not");
                Ok(())
            })
            .await?;
            println!("f29: {code}: the other controller has run {:.0?} later", begun.elapsed());
            let other = spares.get().await?;
            let degraded = condition(&other, "Degraded");
            ensure!(degraded.is_none_or(|one| one.status != "True"), "{degraded:?}");
            drop(guard);
            test.written("site", &format!("during {code}")).await?;
        }
        Ok(())
    })
}

#[test]
fn f33_a_second_writer_costs_tries_and_no_update() -> Result<()> {
    test(async |test| {
        let controller = test.example("website").await?;
        let revision = controller.push(&Component::load("website_v1")?).await?;
        controller.active(&revision).await?;
        let kind = e2e::manifest::resource("examples.nagaya.dev/v1", "Website");
        let websites: Api<DynamicObject> =
            Api::namespaced_with(test.admin.clone(), &test.namespace, &kind);
        test.website("web", "first").await?;
        // Each of its updates carries the version that it read: a conflict is the other's turn.
        let mut updates = 0_u32;
        let mut refused = 0_u32;
        let begun = Instant::now();
        let mut title = 0;
        while begun.elapsed() < Duration::from_secs(10) {
            let mut site = websites.get("web").await?;
            let annotations = site.metadata.annotations.get_or_insert_default();
            let count = annotations.get("e2e.nagaya.dev/count").and_then(|text| text.parse().ok());
            ensure!(count.unwrap_or(0) == updates, "an update was lost: {count:?} of {updates}");
            annotations.insert("e2e.nagaya.dev/count".into(), (updates + 1).to_string());
            if updates.is_multiple_of(20) {
                title += 1;
                site.data["spec"]["title"] = json!(format!("title {title}"));
            }
            match websites.replace("web", &PostParams::default(), &site).await {
                Ok(_) => updates += 1,
                Err(kube::Error::Api(status)) if status.code == 409 => refused += 1,
                Err(error) => return Err(error.into()),
            }
        }
        within(SOON, "the last title is served", async || {
            let site = websites.get("web").await?;
            let (generation, status) = (site.metadata.generation, &site.data["status"]);
            ensure!(status["observedGeneration"].as_i64() == generation, "{generation:?} {status}");
            Ok(())
        })
        .await?;
        let site = websites.get("web").await?;
        let count = site.metadata.annotations.context("no annotations")?;
        ensure!(
            count["e2e.nagaya.dev/count"] == updates.to_string(),
            "an update was lost: {count:?}"
        );
        let Some(history) = test.history()? else { return Ok(()) };
        let tries = history.most_tries();
        let mine = history.writes().iter().filter(|write| write.code == 409).count();
        println!(
            "f33: {updates} updates of another, {refused} of them refused first; {mine} conflicts, at most {tries} tries"
        );
        ensure!(tries <= 5, "{tries} tries by one run");
        Ok(())
    })
}

/// Token, CA and server certificate change under way, as files that are rewritten.
#[test]
fn f34_credentials_change_and_nothing_stops() -> Result<()> {
    test(async |test| {
        let proxy = test.behind_proxy(SEED).await?;
        test.host.stop().await?;
        let files = Files::write(&test.control_plane, &proxy, test.folder()).await?;
        test.use_kubeconfig(files.kubeconfig());
        test.start_host().await?;
        test.copier("copier", &json!({})).await?;
        let mut titles = BTreeMap::new();
        test.retitle(&mut titles, SITES, "first").await?;
        test.copied(&titles, COPIED_WITHIN).await?;
        let host = test.host.id();

        // A server certificate of the same authority: new connections only.
        proxy.show(files.authority())?;
        proxy.cut(&Matcher::all());
        test.retitle(&mut titles, SITES, "after the certificate").await?;
        let took = test.copied(&titles, SOON).await?;
        println!("f34: another server certificate: {took:.1?} (bound 5 s)");

        let old = proxy.log().last().context("no request")?.asked.credential;
        let next = Authority::new()?;
        files.renew(&test.control_plane, &next).await?;
        let begun = Instant::now();
        within(Duration::from_secs(150), "the new token is used", async || {
            let last = proxy.log().last().context("no request")?.asked.credential;
            ensure!(last != old, "still the old one");
            Ok(())
        })
        .await?;
        println!("f34: the new token is used {:.1?} after it was written", begun.elapsed());
        // The host has a client for itself, one for guests and one for its Lease: each reads the file when it comes to it.
        let mut round = 0;
        within(Duration::from_secs(150), "no client uses the old token", async || {
            round += 1;
            test.retitle(&mut titles, 1, &format!("round {round}")).await?;
            test.copied(&titles, COPIED_WITHIN).await?;
            let log = proxy.log();
            let late = log.iter().rfind(|seen| seen.asked.credential == old).context("none")?;
            ensure!(late.at.elapsed() > EACH_ASKS_WITHIN, "{}", late.asked.uri);
            Ok(())
        })
        .await?;
        // The server forgets the old one.
        let expired = Action::Answer { code: 401, retry_after: None };
        let guard = proxy.add(Rule::new(Matcher::all().credential(old), expired));
        // And is issued by the new authority alone.
        proxy.show(&next)?;
        proxy.cut(&Matcher::all());
        test.retitle(&mut titles, SITES, "after the authority").await?;
        let took = test.copied(&titles, SOON).await?;
        println!(
            "f34: another token and authority: {took:.1?} (bound 5 s), {} refused",
            guard.hits()
        );
        ensure!(guard.hits() == 0, "{} requests with the expired token", guard.hits());
        ensure!(test.host.id() == host && test.host.ended()?.is_none(), "the host was restarted");
        Ok(())
    })
}
