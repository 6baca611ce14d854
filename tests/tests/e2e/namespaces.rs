//! Controllers of many namespaces over one connection, on a server that is restarted and compacted meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::{self, GUEST_RULES, host_username};
use e2e::component::Component;
use e2e::control_plane::{Options, Program, audit};
use e2e::site;
use e2e::wait::within;
use e2e::{Test, install, test_alone};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
/// What the feed has let go comes back when it proves that it lives; a brief connection takes it as far as the feed is.
const JOINED_WITHIN: Duration = Duration::from_secs(60);
const NAMESPACES: usize = 5;
const SITES: usize = 4;

/// How many watches of the host are open: of Websites and ConfigMaps everywhere, and of those of one namespace.
fn open_watches(log: &audit::Log) -> Result<(Vec<String>, Vec<String>)> {
    let host = host_username();
    let open = log.open_watches(|event| event.user.username == host)?;
    let ours = |uri: &&String| ["/websites?", "/configmaps?"].iter().any(|kind| uri.contains(kind));
    Ok(open.iter().filter(ours).cloned().partition(|uri| !uri.contains("/namespaces/")))
}

/// Waits until one connection for each of the two kinds is all there is. One that was silent for long is joined by another
/// for a moment.
async fn one_a_kind(log: &audit::Log) -> Result<()> {
    within(JOINED_WITHIN, "one connection a kind", async || {
        let (everywhere, scoped) = open_watches(log)?;
        ensure!(scoped.is_empty() && everywhere.len() == 2, "{everywhere:#?}, {scoped:#?}");
        Ok(())
    })
    .await
}

/// Changes every Website of every namespace, and waits until each is copied in its own.
async fn retitled(test: &Test, namespaces: &[String], title: &str) -> Result<()> {
    let mut titles = BTreeMap::new();
    for number in 0..SITES {
        for namespace in namespaces {
            let (name, title) = (format!("site-{number}"), format!("{title} of {namespace}"));
            test.apply(&[site::website(namespace, &name, &title)]).await?;
            titles.entry(namespace).or_insert_with(BTreeMap::new).insert(name, title);
        }
    }
    for (namespace, titles) in titles {
        let maps: Api<ConfigMap> = Api::namespaced(test.admin.clone(), namespace);
        site::copied(&maps, &titles, LIMIT).await.with_context(|| format!("in {namespace}"))?;
    }
    Ok(())
}

#[test]
fn namespaces_share_one_connection_from_the_second_on() -> Result<()> {
    test_alone(Options::default(), async |test, server| {
        install::share_kinds(server).await?;
        let log_from_now =
            |test: &Test| test.audit().context("a server of its own has an audit log")?.from_now();
        let log = log_from_now(test)?;
        let mut namespaces = vec![test.namespace.clone()];
        let component = Component::load("copier")?;
        for number in 0..NAMESPACES {
            if number > 0 {
                namespaces.push(test.another_namespace(&[]).await?);
            }
            let namespace = &namespaces[number];
            test.apply(&account::objects(namespace, "copier", GUEST_RULES)).await?;
            let controller = test.controller_in(namespace, "copier", "copier", json!({})).await?;
            let revision = controller.push_config(&component, &json!({})).await?;
            controller.active(&revision).await?;
            if number == 0 {
                retitled(test, &namespaces, "first").await?;
                let (everywhere, scoped) = open_watches(&log)?;
                ensure!(everywhere.is_empty() && scoped.len() == 2, "{everywhere:?}, {scoped:?}");
            }
        }
        retitled(test, &namespaces, "second").await?;
        one_a_kind(&log).await?;
        // What somebody deletes is made again, in its own namespace.
        for namespace in &namespaces {
            let maps: Api<ConfigMap> = Api::namespaced(test.admin.clone(), namespace);
            maps.delete("site-0", &DeleteParams::default()).await.context("deleting a copy")?;
            within(LIMIT, "the copy is made again", async || {
                site::datum(&maps, "site-0", "title").await.map(drop)
            })
            .await?;
        }
        one_a_kind(&log).await?;

        // The connection goes on where it was, twice; and with a history that the server has forgotten.
        for title in ["third", "fourth"] {
            let log = log_from_now(test)?;
            server.restart(Program::ApiServer).await?;
            retitled(test, &namespaces, title).await?;
            one_a_kind(&log).await?;
        }
        server.kill(Program::ApiServer).await?;
        server.compact().await?;
        let log = log_from_now(test)?;
        server.revive(Program::ApiServer).await?;
        retitled(test, &namespaces, "fifth").await?;
        one_a_kind(&log).await
    })
}
