//! An API server in memory, and the host over it: no socket, no process, no real time.
//!
//! Left out: schemas and defaults, garbage collection, admission, watches of one object by its name in the path. What a
//! test needs of those it does itself.

pub(crate) mod fields;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod kinds;
pub(crate) mod log;
pub(crate) mod polls;
pub(crate) mod rules;
pub(crate) mod server;
pub(crate) mod store;
pub(crate) mod watch;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::{Value, json};

use self::{
    fields::Writer,
    rules::Access,
    store::{At, Store},
    watch::Line,
};
pub(crate) use self::{
    guest::{Guest, Stop, native},
    host::Host,
    kinds::Served,
    log::{Asked, HOST},
    rules::{Effect, Fault, Verdict},
};

/// Nothing was written for so long: nothing more comes by itself.
const QUIET: Duration = Duration::from_secs(3);
/// No condition takes longer, in paused time.
const LIMIT: Duration = Duration::from_secs(120);

/// The fake API server; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Fake(Arc<Mutex<Store>>);

impl Fake {
    /// An empty cluster.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Store::new())))
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap()
    }

    // What somebody else does in the cluster.

    /// Creates an object or puts it in the place of the one of its name, as kubectl would.
    pub(crate) fn put(&self, object: Value) -> Value {
        let (at, served) = self.place_of(&object);
        let mut store = self.store();
        let (old, mut owners) = store.objects.get(&at).cloned().unwrap_or_default();
        let mut new = object;
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
            if let Some(value) = old["metadata"].get(field) {
                new["metadata"][field] = value.clone();
            }
        }
        if let (None, Some(status)) = (new.get("status"), old.get("status")) {
            new["status"] = status.clone();
        }
        let writer = kubectl(&served);
        owners.update(&old, &new, &writer);
        store.put(&at, new, owners)
    }

    /// Changes an object: `configmaps/web`, or `other/configmaps/web` in the namespace `other`.
    #[track_caller]
    pub(crate) fn edit(&self, what: &str, edit: impl FnOnce(&mut Value)) -> Value {
        let (at, served) = self.at(what);
        let mut store = self.store();
        let Some((old, mut owners)) = store.objects.get(&at).cloned() else {
            panic!("there is no {what}")
        };
        let mut new = old.clone();
        edit(&mut new);
        owners.update(&old, &new, &kubectl(&served));
        store.put(&at, new, owners)
    }

    /// Changes an object in a way that nobody cares about.
    #[track_caller]
    pub(crate) fn touch(&self, what: &str) -> Value {
        let mark = json!(self.store().version.to_string());
        self.edit(what, |object| object["metadata"]["annotations"]["touched"] = mark)
    }

    /// Deletes an object, or marks it while something holds it.
    #[track_caller]
    pub(crate) fn delete(&self, what: &str) {
        let (at, _) = self.at(what);
        let mut store = self.store();
        assert!(store.objects.contains_key(&at), "there is no {what}");
        store.delete(&at);
    }

    /// Takes an object away whatever holds it, as the kubelet does with a pod that has ended.
    #[track_caller]
    pub(crate) fn finish(&self, what: &str) {
        let (at, _) = self.at(what);
        self.store().remove(&at);
    }

    /// An object as it is now.
    #[track_caller]
    pub(crate) fn get(&self, what: &str) -> Option<Value> {
        let (at, _) = self.at(what);
        self.store().object(&at)
    }

    /// The names of all objects of a kind, with their namespaces.
    pub(crate) fn names(&self, plural: &str) -> Vec<String> {
        let store = self.store();
        let all = store.objects.keys().filter(|at| at.plural == plural);
        all.map(|at| at.namespace.iter().map(|ns| format!("{ns}/")).collect::<String>() + &at.name)
            .collect()
    }

    /// Serves one kind more.
    pub(crate) fn serve(&self, served: Served) {
        let mut store = self.store();
        store.served.retain(|one| one.plural != served.plural);
        store.served.push(served);
    }

    /// No longer serves a kind: its objects are gone, and its watches end.
    pub(crate) fn withdraw(&self, plural: &str) {
        let mut store = self.store();
        store.served.retain(|one| one.plural != plural);
        store.objects.retain(|at, _| at.plural != plural);
        store.end_watches(plural, &Line::End);
    }

    // What the server does wrong.

    /// From now on; of two rules about a request the later one holds.
    pub(crate) fn fault(&self, fault: Fault) {
        self.store().faults.insert(0, fault);
    }

    /// Takes all faults back.
    pub(crate) fn heal(&self) {
        self.store().faults.clear();
    }

    /// Takes a right away; `*` is any. The account is `namespace/name`, or `host`; the resource a plural.
    pub(crate) fn deny(&self, account: &str, verb: &str, resource: &str) {
        self.rule(account, verb, resource, Verdict::Denied);
    }

    /// Gives a right.
    pub(crate) fn allow(&self, account: &str, verb: &str, resource: &str) {
        self.rule(account, verb, resource, Verdict::Allowed);
    }

    /// What becomes of a question about a right, until another rule is about it.
    pub(crate) fn rule(&self, account: &str, verb: &str, resource: &str, verdict: Verdict) {
        self.store().access.push(Access::new((account, verb, resource), "*", verdict));
    }

    /// The same of the right in all namespaces at once, and not of those in single ones.
    pub(crate) fn rule_everywhere(
        &self,
        account: &str,
        verb: &str,
        resource: &str,
        verdict: Verdict,
    ) {
        self.store().access.push(Access::new((account, verb, resource), "", verdict));
    }

    /// Watches of a kind are told nothing until [`Fake::release`].
    pub(crate) fn hold(&self, plural: &str) {
        self.store().held.entry(plural.to_owned()).or_default();
    }

    /// Watches hear what was held back.
    pub(crate) fn release(&self, plural: &str) {
        let mut store = self.store();
        for happened in store.held.remove(plural).unwrap_or_default() {
            store.tell(&happened);
        }
    }

    /// Watches hear the first thing of what was held back, and no more.
    pub(crate) fn release_one(&self, plural: &str) {
        let mut store = self.store();
        let held = store.held.get_mut(plural).filter(|held| !held.is_empty());
        if let Some(happened) = held.map(|held| held.remove(0)) {
            store.tell(&happened);
        }
    }

    /// The watches of a kind (`*`: all) end in good order.
    pub(crate) fn end_watches(&self, plural: &str) {
        self.store().end_watches(plural, &Line::End);
    }

    /// The connections of the watches of a kind (`*`: all) break.
    pub(crate) fn break_watches(&self, plural: &str) {
        self.store().end_watches(plural, &Line::Break);
    }

    /// The server forgets its history: running watches end with 410, and none can be taken up again.
    pub(crate) fn compact(&self) {
        let mut store = self.store();
        store.compacted = store.version;
        store.history.clear();
        store.end_watches("*", &Line::Expired);
    }

    /// A server before 1.32: no watch begins with the initial state.
    pub(crate) fn without_watch_list(&self) {
        self.store().watch_list = false;
    }

    /// A server that says `items: null` of an empty list.
    pub(crate) fn with_null_items(&self) {
        self.store().null_items = true;
    }

    // What was asked of it.

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.store().log.asked.clone()
    }

    /// Which kinds are watched at the moment, and as whom.
    pub(crate) fn watched(&self) -> Vec<(String, String)> {
        self.store().watched().into_iter().collect()
    }

    /// The namespace of each open watch of a kind; `None`: all of them.
    pub(crate) fn watched_in(&self, plural: &str) -> Vec<Option<String>> {
        let store = self.store();
        let open = store.watchers.iter().filter(|watcher| !watcher.lines.is_closed());
        let of_kind = open.filter(|watcher| watcher.wanted.plural == plural);
        of_kind.map(|watcher| watcher.wanted.namespace.clone()).collect()
    }

    /// Up to which version watches of a kind were told.
    fn told(&self, plural: &str) -> u64 {
        self.store().told(plural)
    }

    /// What the controllers have written since the last call, once nothing more comes.
    pub(crate) async fn writes(&self) -> Vec<String> {
        self.taken(|asked| asked.account != HOST).await
    }

    /// The same with the writes of the host itself.
    pub(crate) async fn all_writes(&self) -> Vec<String> {
        self.taken(|_| true).await
    }

    async fn taken(&self, of: impl Fn(&Asked) -> bool) -> Vec<String> {
        self.quiet().await;
        let mut store = self.store();
        let upto = store.log.asked.len();
        let from = std::mem::replace(&mut store.log.told, upto);
        let store = &*store;
        let new = store.log.asked[from..].iter().filter(|asked| asked.is_write() && of(asked));
        new.map(Asked::shown).collect()
    }

    /// Until nobody has written anything for a while.
    pub(crate) async fn quiet(&self) {
        let writes = || self.store().log.asked.iter().filter(|asked| asked.is_write()).count();
        let mut before = writes();
        loop {
            tokio::time::sleep(QUIET).await;
            let now = writes();
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// Until `condition` gives something; it is asked again with every change and every request.
    #[track_caller]
    pub(crate) fn until<'a, T, C: Fn(&Self) -> Option<T>>(
        &'a self,
        what: &str,
        condition: C,
    ) -> impl Future<Output = T> + use<'a, T, C> {
        let (caller, what) = (std::panic::Location::caller(), what.to_owned());
        async move {
            let mut moves = self.store().log.moves();
            let deadline = tokio::time::Instant::now() + LIMIT;
            loop {
                moves.mark_unchanged();
                if let Some(found) = condition(self) {
                    return found;
                }
                let moved = tokio::time::timeout_at(deadline, moves.changed()).await;
                assert!(moved.is_ok(), "{caller}: not within {LIMIT:?}: {what}\n{}", self.last());
            }
        }
    }

    /// Until an object is so.
    #[track_caller]
    pub(crate) fn until_object<'a, C: Fn(&Value) -> bool>(
        &'a self,
        what: &str,
        is: C,
    ) -> impl Future<Output = Value> + use<'a, C> {
        let wanted = what.to_owned();
        self.until(&format!("{what} as wanted"), move |api| api.get(&wanted).filter(&is))
    }

    /// The last requests, for failures.
    fn last(&self) -> String {
        let asked = self.asked();
        let lines = asked.iter().rev().take(30).rev();
        lines.map(|asked| format!("  {} -> {:?}\n", asked.shown(), asked.code)).collect()
    }

    #[track_caller]
    fn at(&self, what: &str) -> (At, Served) {
        let parts: Vec<&str> = what.split('/').collect();
        let (namespace, plural, name) = match parts[..] {
            [plural, name] => ("demo", plural, name),
            [namespace, plural, name] => (namespace, plural, name),
            _ => panic!("{what:?} is not like configmaps/web or other/configmaps/web"),
        };
        let store = self.store();
        let Some(served) = store.served.iter().find(|one| one.plural == plural).cloned() else {
            panic!("{plural} are not served")
        };
        let at = At {
            group: served.kind.group.clone(),
            plural: plural.to_owned(),
            namespace: served.namespaced.then(|| namespace.to_owned()),
            name: name.to_owned(),
        };
        (at, served)
    }

    #[track_caller]
    fn place_of(&self, object: &Value) -> (At, Served) {
        let (api_version, kind) = (object["apiVersion"].as_str(), object["kind"].as_str());
        let plural = self.store().served.iter().find_map(|one| {
            let same = Some(&*one.kind.api_version()) == api_version;
            (same && Some(&*one.kind.kind) == kind).then(|| one.plural.clone())
        });
        let Some(plural) = plural else { panic!("{api_version:?} {kind:?} is not served") };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("demo");
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        self.at(&format!("{namespace}/{plural}/{name}"))
    }
}

fn kubectl(served: &Served) -> Writer<'static> {
    Writer {
        manager: "kubectl",
        subresource: "",
        force: false,
        atomic_conditions: served.atomic_conditions,
    }
}
