//! A steady stream of changes: Websites get new titles, one after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::manifest::resource;

/// A server that is down is asked again after this.
const AGAIN: Duration = Duration::from_millis(200);

/// A running stream of changes.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    work: JoinHandle<BTreeMap<String, String>>,
}

impl Load {
    /// Changes the Websites of these names in turn, `rate` times a second. A change that the server did not confirm
    /// is made again until it is.
    pub fn start(client: Client, namespace: &str, names: Vec<String>, rate: u32) -> Self {
        let (stop, stopped) = watch::channel(false);
        let sites =
            Api::namespaced_with(client, namespace, &resource("examples.nagaya.dev/v1", "Website"));
        let work = tokio::spawn(change(sites, names, Duration::from_secs(1) / rate, stopped));
        Self { stop, work }
    }

    /// Ends it; the last title of each Website that was changed.
    pub async fn stop(self) -> Result<BTreeMap<String, String>> {
        self.stop.send_replace(true);
        self.work.await.context("changing Websites")
    }
}

async fn change(
    sites: Api<DynamicObject>,
    names: Vec<String>,
    every: Duration,
    stopped: watch::Receiver<bool>,
) -> BTreeMap<String, String> {
    let mut titles = BTreeMap::new();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for (number, name) in names.iter().cycle().enumerate() {
        ticks.tick().await;
        if *stopped.borrow() {
            break;
        }
        let title = format!("title {number}");
        let patch = Patch::Merge(json!({"spec": {"title": title}}));
        while sites.patch(name, &PatchParams::default(), &patch).await.is_err() {
            sleep(AGAIN).await;
        }
        titles.insert(name.clone(), title);
    }
    titles
}
