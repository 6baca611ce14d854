//! The host as a process: it ends when asked, it never outlives its owner, and what it missed while
//! it was down is found when it is back.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::host::is_running;
use e2e::site::datum;
use e2e::test;
use e2e::wait::within;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::DeleteParams;

const LIMIT: Duration = Duration::from_secs(20);
/// A killed host is followed when its Lease has expired.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(60);

/// Set for the child process that plays the owner which is killed.
const ACT_AS_OWNER: &str = "NAGAYA_TEST_HOST_OWNER";

#[test]
fn a_killed_owner_leaves_no_host() -> Result<()> {
    if std::env::var_os(ACT_AS_OWNER).is_some() {
        return test(async |test| {
            println!("\nhost={}", test.host.id());
            std::future::pending().await
        });
    }
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--exact", "host::a_killed_owner_leaves_no_host", "--nocapture"])
        .env(ACT_AS_OWNER, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines =
        BufReader::new(owner.stdout.take().context("no output")?).lines().map_while(Result::ok);
    let host = lines.find_map(|line| line.strip_prefix("host=").map(str::to_owned));
    let host = host.context("the owner started no host")?.parse()?;
    assert!(is_running(host));
    owner.kill()?;
    owner.wait()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(within(LIMIT, "the host is gone", async || {
        ensure!(!is_running(host), "it runs");
        Ok(())
    }))
}

#[test]
fn probes_and_metrics_answer() -> Result<()> {
    test(async |test| {
        assert_eq!(test.host.probe("/healthz").await?, 200);
        assert_eq!(test.host.probe("/readyz").await?, 200);
        let at = test.example("at").await?;
        let revision = at.push(&Component::load("at")?).await?;
        at.active(&revision).await?;
        let page = test.host.metrics().await?.page().to_owned();
        let label = format!("controller=\"{}/at\"", test.namespace);
        for name in ["controller_runtime_max_concurrent_reconciles", "workqueue_adds_total"] {
            let mut lines = page.lines().filter(|line| line.starts_with(name));
            assert!(lines.any(|line| line.contains(&label)), "no {name} in\n{page}");
        }
        Ok(())
    })
}

#[test]
fn what_happened_while_the_host_was_down_is_put_right() -> Result<()> {
    test(async |test| {
        test.follow_quickly().await?;
        let website = test.example("website").await?;
        let v1 = website.push(&Component::load("website_v1")?).await?;
        website.active(&v1).await?;
        for name in ["changed", "damaged", "left"] {
            test.website(name, "Before").await?;
        }
        let (maps, services) = (test.api::<ConfigMap>(), test.api::<Service>());
        within(LIMIT, "three pages and Services", async || {
            for name in ["changed", "damaged", "left"] {
                datum(&maps, name, "index.html").await?;
                services.get(name).await?;
            }
            Ok(())
        })
        .await?;
        test.idle("website").await?;

        test.host.kill()?;
        test.website("changed", "After").await?;
        test.website("new", "New").await?;
        services.delete("damaged", &DeleteParams::default()).await?;
        test.start_host().await?;

        let website = test.controller("website")?;
        within(TAKEN_OVER_WITHIN, "the state of now", async || {
            let page = datum(&maps, "changed", "index.html").await?;
            ensure!(page.contains("After"), "{page}");
            datum(&maps, "new", "index.html").await?;
            services.get("damaged").await.context("no Service")?;
            Ok(())
        })
        .await?;
        let seen = website.get().await?.status.unwrap_or_default();
        assert_eq!(seen.active.as_deref(), Some(&*v1), "nothing was uploaded again");
        Ok(())
    })
}
