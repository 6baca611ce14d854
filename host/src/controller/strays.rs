//! Objects that have left what a controller selects, and still carry its finalizer.
//!
//! Such an object is not the controller's any more: it is not run, and nothing tells the guest that it is gone, which it
//! is not. But it can be deleted only when the guest has cleaned up; so it is looked at until it is deleted, and then
//! the guest is run for it. No watch shows it: it is read by itself, and found by a list where nobody saw it leave.
//!
//! Invariants: `many_strays_are_looked_at_as_often_as_one_in_all`, `a_stray_is_let_go_when_it_is_deleted`.

use std::{collections::BTreeSet, time::Duration};

use http::Method;

use crate::{
    access::view::View,
    apiserver::{ApiServer, Call, Error, Identity, Resource, query},
    client::Account,
    model::object::ObjectKey,
    queue::{BACKGROUND, Urgency, shared::SharedQueue},
    watch::{Entry, envelope, intern::Interner},
};

/// How often a stray is looked at: who deletes it waits for so long.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Looks a second of one controller, whatever the number of its strays.
const LOOKS: f64 = 20.0;
/// Only names and finalizers are read.
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Objects in an answer.
const PAGE: &str = "500";

/// The strays of one controller, as far as they are known.
#[derive(Debug, Default)]
pub struct Strays(BTreeSet<ObjectKey>);

impl Strays {
    /// An object was found to be one; when it is to be looked at again.
    pub fn found(&mut self, key: &ObjectKey) -> Duration {
        self.0.insert(key.clone());
        let count = f64::from(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        LOOK_EVERY.max(Duration::from_secs_f64(count / LOOKS))
    }

    /// It is gone, selected again, or has no finalizer any more.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.0.remove(key);
    }

    /// Whether an object is known to be one.
    pub fn has(&self, key: &ObjectKey) -> bool {
        self.0.contains(key)
    }
}

/// Whether objects of this kind can leave what `view` selects with a finalizer on them.
pub fn are_possible(view: &View) -> bool {
    let manifest = view.manifest();
    let primary = &manifest.primary;
    let selects = primary.label_selector.is_some() || primary.field_selector.is_some();
    selects && manifest.finalizer.is_some()
}

/// Finds the objects that carry the finalizer and are not among those that `view` selects, with the account's rights.
async fn find(api: &ApiServer, account: &Identity, view: &View) -> Result<Vec<ObjectKey>, Error> {
    let manifest = view.manifest();
    let Some(finalizer) = manifest.finalizer.as_ref().filter(|_| are_possible(view)) else {
        return Ok(vec![]);
    };
    let Some(resource) = view.resource(&manifest.primary.kind) else { return Ok(vec![]) };
    let mut strays = vec![];
    for source in view.all_sources().iter().filter(|source| source.watch == manifest.primary) {
        let place = (&*resource, source.namespace.as_deref());
        let carriers = carriers(api, place, account.clone(), finalizer).await?;
        strays.extend(carriers.into_iter().filter(|key| view.primary(key).is_none()));
    }
    Ok(strays)
}

/// Looks for objects that left while nobody saw it, and has the controller look at each; whether it went well.
pub(super) async fn search(account: &Account, view: &View, queue: &SharedQueue) -> bool {
    match find(&account.api, &account.identity, view).await {
        Ok(strays) => {
            queue.add_all(strays, Urgency::news(BACKGROUND));
            true
        }
        Err(error) => {
            let error = crate::causes::all(&error);
            tracing::debug!(controller = account.controller, error, "cannot look for strays");
            false
        }
    }
}

/// The objects of a kind that carry `finalizer`, whatever selects them.
pub async fn carriers(
    api: &ApiServer,
    (resource, namespace): (&Resource, Option<&str>),
    identity: Identity,
    finalizer: &str,
) -> Result<Vec<ObjectKey>, Error> {
    let has = |entry: &Entry| entry.finalizers().any(|name| name == finalizer);
    those(api, (resource, namespace), identity, has).await
}

/// The objects of a kind of which `is_one` holds by their metadata.
pub async fn those(
    api: &ApiServer,
    (resource, namespace): (&Resource, Option<&str>),
    identity: Identity,
    is_one: impl Fn(&Entry) -> bool,
) -> Result<Vec<ObjectKey>, Error> {
    let path = resource.path(namespace, None, None)?;
    let (mut those, mut next) = (vec![], Some(String::new()));
    while let Some(page) = next {
        // Not every server takes an empty `continue` for none.
        let from = Some(("continue", &*page)).filter(|(_, page)| !page.is_empty());
        let path = query(&path, std::iter::once(("limit", PAGE)).chain(from));
        let call = Call::new(Method::GET, path).identity(identity.clone());
        let text = api.call(Call { accept: Some(METADATA_LIST), ..call }).await?;
        let list = envelope::list(&text, &resource.kind, &mut Interner::default())
            .map_err(|error| Error::Answer(error.into()))?;
        let found = list.entries.iter().filter(|entry| is_one(entry));
        those.extend(found.map(|entry| entry.key().clone()));
        next = list.next;
    }
    Ok(those)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_strays_are_looked_at_as_often_as_one_in_all() {
        let mut strays = Strays::default();
        let key = |number: u32| ObjectKey::new(Some("n"), &format!("o{number}"));
        assert_eq!(strays.found(&key(0)), LOOK_EVERY);
        assert_eq!(strays.found(&key(0)), LOOK_EVERY, "found again is one");
        for number in 1..10_000 {
            let wait = strays.found(&key(number)).as_secs_f64();
            assert!(f64::from(number + 1) / wait <= LOOKS + 0.01, "{number}: {wait}");
        }
        for number in 0..9_990 {
            strays.forget(&key(number));
        }
        assert!(strays.has(&key(9_995)) && !strays.has(&key(1)));
        assert_eq!(strays.found(&key(9_999)), LOOK_EVERY);
    }
}
