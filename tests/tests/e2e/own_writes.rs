//! A controller reads its own writes, however far its cache is behind.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::component::Component;
use e2e::site::{datum, owning};
use e2e::test;
use e2e::wait::within;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);
const TOP: usize = 60;

/// Each run reads the number that the one before it wrote, and asks to run again at once: a run that saw an older state
/// would write a number twice.
#[test]
fn a_run_sees_what_the_one_before_it_wrote() -> Result<()> {
    test(async |test| {
        let log = test.audit().map(|log| log.from_now()).transpose()?;
        let hostile = test.guest("hostile", GUEST_RULES, json!({})).await?;
        let config = owning(&format!("climb:{TOP}"));
        let revision = hostile.push_config(&Component::load("hostile")?, &config).await?;
        hostile.active(&revision).await?;
        let sites = ["a", "b", "c"];
        for name in sites {
            test.website(name, "Climber").await?;
        }
        let maps = test.api::<ConfigMap>();
        for name in sites {
            within(LIMIT, "the top", async || {
                let reached = datum(&maps, name, "config").await?;
                ensure!(reached == TOP.to_string(), "{reached}");
                Ok(())
            })
            .await?;
        }
        test.idle("hostile").await?;
        let Some(log) = log else { return Ok(()) };
        let account = test.username("hostile");
        for name in sites {
            let path = format!("/configmaps/{name}?");
            let writes: Vec<_> = log.events()?;
            let writes = writes.iter().filter(|event| {
                event.actor() == account
                    && event.request_uri.contains(&path)
                    && event.verb == "patch"
            });
            let (landed, unknown): (Vec<_>, Vec<_>) = writes
                .filter(|event| !event.code().is_some_and(|code| (400..500).contains(&code)))
                .partition(|event| event.code().is_some_and(|code| code < 300));
            // One whose answer was lost may have landed, and is not made again then.
            let count = landed.len();
            assert!(count <= TOP && count + unknown.len() >= TOP, "{count} of {TOP} numbers");
        }
        Ok(())
    })
}
