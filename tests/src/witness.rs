//! Watches objects from outside the host and writes down when each change was seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use kube::api::{ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How an object changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It is different.
    Modified,
    /// It is gone.
    Deleted,
}

/// One change, as it was seen.
#[derive(Debug, Clone)]
pub struct Sight {
    /// When.
    pub at: Instant,
    /// The object's kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// What happened.
    pub change: Change,
    /// Its resourceVersion: of all objects of one server, later changes have higher ones.
    pub version: u64,
    /// Its labels afterwards.
    pub labels: BTreeMap<String, String>,
}

/// A running record of changes.
#[derive(Debug)]
pub struct Witness {
    seen: Arc<Mutex<Record>>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Record {
    sights: Vec<Sight>,
    error: Option<String>,
}

impl Witness {
    /// Watches the kinds in `namespace`, only objects that match `selector`. When this returns, all
    /// later changes are seen.
    pub async fn start(
        client: &Client,
        namespace: &str,
        kinds: &[ApiResource],
        selector: &str,
    ) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Record::default()));
        let mut tasks = JoinSet::new();
        for kind in kinds {
            let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, kind);
            let list = api.list(&ListParams::default().labels(selector).limit(1)).await;
            let list = list.with_context(|| format!("listing {}", kind.plural))?;
            let mut from = list.metadata.resource_version.context("a list without version")?;
            let parameters = WatchParams::default().labels(selector);
            let (kind, seen) = (kind.kind.clone(), seen.clone());
            tasks.spawn(async move {
                loop {
                    if let Err(error) = follow(&api, &parameters, &kind, &mut from, &seen).await {
                        lock(&seen).error = Some(format!("watching {kind}: {error:#}"));
                        return;
                    }
                }
            });
        }
        Ok(Self { seen, _tasks: tasks })
    }

    /// What was seen at `from` or later. The error says that a watch broke.
    pub fn since(&self, from: Instant) -> Result<Vec<Sight>> {
        let record = lock(&self.seen);
        if let Some(error) = &record.error {
            bail!("{error}");
        }
        Ok(record.sights.iter().filter(|sight| sight.at >= from).cloned().collect())
    }

    /// Waits until nothing was seen for `quiet`, so that writes on their way are not missed.
    pub async fn settled(&self, quiet: Duration) -> Result<()> {
        loop {
            let before = Instant::now();
            sleep(quiet).await;
            if self.since(before)?.is_empty() {
                return Ok(());
            }
        }
    }
}

async fn follow(
    api: &Api<DynamicObject>,
    parameters: &WatchParams,
    kind: &str,
    from: &mut String,
    seen: &Mutex<Record>,
) -> Result<()> {
    let mut events = std::pin::pin!(api.watch(parameters, from).await?);
    while let Some(event) = events.try_next().await? {
        let (change, object) = match event {
            WatchEvent::Added(object) => (Change::Added, object),
            WatchEvent::Modified(object) => (Change::Modified, object),
            WatchEvent::Deleted(object) => (Change::Deleted, object),
            WatchEvent::Bookmark(bookmark) => {
                from.clone_from(&bookmark.metadata.resource_version);
                continue;
            }
            WatchEvent::Error(error) => bail!("{error:?}"),
        };
        *from = object.resource_version().context("an object without version")?;
        let sight = Sight {
            at: Instant::now(),
            kind: kind.to_owned(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            change,
            version: from.parse().context("a version that is no number")?,
            labels: object.labels().clone(),
        };
        lock(seen).sights.push(sight);
    }
    Ok(())
}

fn lock(seen: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
