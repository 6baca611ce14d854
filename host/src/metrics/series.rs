//! Which series a controller has besides those that every one has, so that all of them go with it.
//!
//! Invariant: `a_controller_that_is_gone_leaves_no_series`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::Labels;
use parking_lot::{Mutex, MutexGuard};

/// The series of all controllers.
#[derive(Clone, Default)]
pub(super) struct AllSeries(Arc<Mutex<BTreeMap<String, Series>>>);

/// The series of one controller that came up with what happened to it.
#[derive(Clone)]
pub(super) struct Series(Arc<Mutex<Option<BTreeSet<Labels>>>>);

impl AllSeries {
    /// Those of `controller`, from now on.
    pub(super) fn of(&self, controller: &str) -> Series {
        let new = || Series(Arc::new(Mutex::new(Some(BTreeSet::new()))));
        lock(&self.0).entry(controller.to_owned()).or_insert_with(new).clone()
    }

    /// Ends those of `controller`: what its last runs have to say makes none anew.
    pub(super) fn end(&self, controller: &str) -> BTreeSet<Labels> {
        let ended = lock(&self.0).remove(controller);
        ended.and_then(|series| lock(&series.0).take()).unwrap_or_default()
    }

    /// Takes out those of `controller` that have this label.
    pub(super) fn take(&self, controller: &str, key: &str, value: &str) -> BTreeSet<Labels> {
        let Some(series) = lock(&self.0).get(controller).cloned() else { return BTreeSet::new() };
        let mut known = lock(&series.0);
        let Some(known) = known.as_mut() else { return BTreeSet::new() };
        let has = |labels: &Labels| labels.iter().any(|(k, v)| *k == key && v == value);
        let (taken, rest) = std::mem::take(known).into_iter().partition(has);
        *known = rest;
        taken
    }
}

impl Series {
    /// Notes a series and counts in it, unless the controller is gone.
    pub(super) fn count(&self, labels: Labels, count: impl FnOnce(&Labels)) {
        if let Some(known) = lock(&self.0).as_mut() {
            count(&labels);
            known.insert(labels);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
