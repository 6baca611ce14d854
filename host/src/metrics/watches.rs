//! What the open watches say of themselves at the moment of a scrape.

use std::{collections::BTreeMap, fmt, time::Duration};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::{Labels, gauges};

/// One open watch.
#[derive(Clone, Debug)]
pub struct WatchStats {
    /// API group of its kind; empty: core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// How much of each object is kept: `full` or `metadata`.
    pub projection: &'static str,
    /// Objects in its cache.
    pub objects: usize,
    /// Bytes of their texts.
    pub bytes: usize,
    /// How long ago it last showed that it lives.
    pub silent: Duration,
}

type Ask = Box<dyn Fn() -> Vec<WatchStats> + Send + Sync>;

/// Asks for the watches at every scrape; those of one kind are one line.
pub(super) struct Watches(pub(super) Ask);

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").finish_non_exhaustive()
    }
}

impl Collector for Watches {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut silent: BTreeMap<Labels, f64> = BTreeMap::new();
        let mut sizes: BTreeMap<Labels, (i64, i64)> = BTreeMap::new();
        for watch in (self.0)() {
            let mut labels = vec![
                ("group", watch.group),
                ("version", watch.version),
                ("resource", watch.resource),
            ];
            let longest = silent.entry(labels.clone()).or_default();
            *longest = longest.max(watch.silent.as_secs_f64());
            labels.push(("projection", watch.projection.to_owned()));
            let size = sizes.entry(labels).or_default();
            size.0 += i64::try_from(watch.objects).unwrap_or(i64::MAX);
            size.1 += i64::try_from(watch.bytes).unwrap_or(i64::MAX);
        }
        let help = "Seconds since a watch last showed that it lives; above 20 it does not";
        gauges(&mut encoder, "nagaya_watch_staleness_seconds", help, silent.into_iter().collect())?;
        let of = |value: fn(&(i64, i64)) -> i64| {
            sizes.iter().map(|(labels, size)| (labels.clone(), value(size))).collect::<Vec<_>>()
        };
        gauges(&mut encoder, "nagaya_store_objects", "Objects in a cache", of(|size| size.0))?;
        gauges(&mut encoder, "nagaya_store_bytes", "Bytes of their texts", of(|size| size.1))
    }
}
