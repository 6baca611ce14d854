//! The fake API server's objects: as a server keeps them, with versions, generations, a history and who watches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use nagaya_selector::Selector;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    fields::Owners,
    kinds::{Served, usual},
    log::Log,
    rules::{Access, Fault},
    watch::Line,
};

/// Where an object lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) group: String,
    pub(crate) plural: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub(crate) struct Happened {
    pub(crate) version: u64,
    pub(crate) at: At,
    pub(crate) old: Option<Value>,
    pub(crate) new: Option<Value>,
}

/// Which objects somebody asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) group: String,
    pub(crate) plural: String,
    pub(crate) namespace: Option<String>,
    pub(crate) labels: Option<Selector>,
    /// Path, whether it must be equal, value.
    pub(crate) fields: Vec<(String, bool, String)>,
    pub(crate) metadata_only: bool,
}

/// One running watch.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) wanted: Wanted,
    pub(crate) account: String,
    /// It is told of what is newer than this.
    pub(crate) from: u64,
    pub(crate) lines: mpsc::UnboundedSender<Line>,
}

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) served: Vec<Served>,
    pub(crate) objects: BTreeMap<At, (Value, Owners)>,
    pub(crate) version: u64,
    pub(crate) history: Vec<Happened>,
    /// What happened at or before it is no longer known.
    pub(crate) compacted: u64,
    pub(crate) watchers: Vec<Watcher>,
    /// Plurals whose watches are held back, and what they would have said.
    pub(crate) held: HashMap<String, Vec<Happened>>,
    pub(crate) log: Log,
    pub(crate) faults: Vec<Fault>,
    pub(crate) access: Vec<Access>,
    /// Whether watches may begin with the initial state.
    pub(crate) watch_list: bool,
    /// Whether an empty list has `items: null`.
    pub(crate) null_items: bool,
    /// The present write is only tried.
    pub(crate) dry: bool,
    made: u64,
    began: Instant,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            served: usual(),
            objects: BTreeMap::new(),
            version: 100,
            history: vec![],
            compacted: 0,
            watchers: vec![],
            held: HashMap::new(),
            log: Log::default(),
            faults: vec![],
            access: vec![],
            watch_list: true,
            null_items: false,
            dry: false,
            made: 0,
            began: Instant::now(),
        }
    }

    pub(crate) fn served(&self, group: &str, plural: &str) -> Option<&Served> {
        self.served.iter().find(|one| one.kind.group == group && one.plural == plural)
    }

    /// The time of the server, as text.
    pub(crate) fn now(&self) -> String {
        let start = k8s_openapi::jiff::Timestamp::from_second(1_767_225_600).unwrap();
        (start + self.began.elapsed()).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// A name that nobody has.
    pub(crate) fn generated(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}{:05x}", self.made * 7919)
    }

    /// Puts an object in the place of the present one, with all that a server sets; what is being deleted and has no
    /// finalizers left goes away. Nothing changes, nothing happens.
    pub(crate) fn put(&mut self, at: &At, mut object: Value, owners: Owners) -> Value {
        let served = self.served(&at.group, &at.plural).unwrap().clone();
        let before = self.objects.get(at).map(|(object, _)| object.clone());
        object["apiVersion"] = json!(served.kind.api_version());
        object["kind"] = json!(served.kind.kind);
        let own = before.clone().unwrap_or_default();
        for field in ["uid", "creationTimestamp", "resourceVersion"] {
            object["metadata"][field] = own["metadata"][field].clone();
        }
        if before.is_none() {
            self.made += 1;
            object["metadata"]["uid"] =
                json!(format!("00000000-0000-4000-8000-{:012x}", self.made));
            object["metadata"]["creationTimestamp"] = json!(self.now());
        }
        object["metadata"]["name"] = json!(at.name);
        if let Some(namespace) = &at.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let is_deleting = |object: &Value| object["metadata"].get("deletionTimestamp").is_some();
        if served.counts {
            let generation = own["metadata"]["generation"].as_i64().unwrap_or_default();
            let grew =
                content(&object) != content(&own) || is_deleting(&object) != is_deleting(&own);
            object["metadata"]["generation"] = json!(generation + i64::from(grew));
        }
        object["metadata"]["managedFields"] = owners.shown(&served.kind.api_version());
        if before.as_ref() == Some(&object) {
            return object;
        }
        if self.dry {
            if before.is_none() {
                object["metadata"]["resourceVersion"] = json!("");
            }
            return object;
        }
        object["metadata"]["resourceVersion"] = json!((self.version + 1).to_string());
        let stays = object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
            || object["metadata"]["deletionGracePeriodSeconds"].as_u64().is_some_and(|s| s > 0);
        let new = (!is_deleting(&object) || stays).then(|| object.clone());
        match &new {
            Some(object) => drop(self.objects.insert(at.clone(), (object.clone(), owners))),
            None => drop(self.objects.remove(at)),
        }
        self.happened(at, before, new);
        object
    }

    /// Takes an object away, whatever holds it.
    pub(crate) fn remove(&mut self, at: &At) {
        if let Some((old, _)) = self.objects.remove(at) {
            self.happened(at, Some(old), None);
        }
    }

    fn happened(&mut self, at: &At, old: Option<Value>, new: Option<Value>) {
        self.version += 1;
        let happened = Happened { version: self.version, at: at.clone(), old, new };
        self.history.push(happened.clone());
        match self.held.get_mut(&at.plural) {
            Some(held) => held.push(happened),
            None => self.tell(&happened),
        }
        self.log.changed();
    }

    /// Tells whoever watches.
    pub(crate) fn tell(&mut self, happened: &Happened) {
        self.watchers.retain(|watcher| {
            let is_news = happened.version > watcher.from;
            let line = watcher.wanted.line(happened).filter(|_| is_news);
            line.is_none_or(|line| watcher.lines.send(Line::Text(line)).is_ok())
                && !watcher.lines.is_closed()
        });
    }

    /// Deletes an object as a server does: at once, or marked while something holds it. The grace, if it begins.
    pub(crate) fn delete(&mut self, at: &At) -> Option<Duration> {
        let (mut object, owners) = self.objects.get(at).cloned()?;
        if object["metadata"].get("deletionTimestamp").is_some() {
            return None;
        }
        let grace = self.served(&at.group, &at.plural)?.grace;
        object["metadata"]["deletionTimestamp"] = json!(self.now());
        let seconds = grace.map_or(0, |grace| grace.as_secs());
        object["metadata"]["deletionGracePeriodSeconds"] = json!(seconds);
        self.put(at, object, owners);
        grace
    }

    /// The grace is over.
    pub(crate) fn grace_is_over(&mut self, at: &At, uid: &Value) {
        let Some((mut object, owners)) = self.objects.get(at).cloned() else { return };
        if object["metadata"]["uid"] == *uid {
            object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
            self.put(at, object, owners);
        }
    }

    /// Ends what a server would end: every watch of a kind that is no longer served.
    pub(crate) fn end_watches(&mut self, plural: &str, how: &Line) {
        self.watchers.retain(|watcher| {
            let ends = plural == "*" || watcher.wanted.plural == plural;
            if ends {
                let _ = watcher.lines.send(how.clone());
            }
            !ends
        });
    }

    pub(crate) fn selected(&self, wanted: &Wanted) -> Vec<(&At, &Value)> {
        let all = self.objects.iter().map(|(at, (object, _))| (at, object));
        all.filter(|(at, object)| wanted.selects(at, object)).collect()
    }

    /// The accounts that have a watch open, by plural.
    pub(crate) fn watched(&self) -> BTreeSet<(String, String)> {
        let open = self.watchers.iter().filter(|watcher| !watcher.lines.is_closed());
        open.map(|watcher| (watcher.wanted.plural.clone(), watcher.account.clone())).collect()
    }
}

impl Wanted {
    fn selects(&self, at: &At, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let field = |path: &str| {
            let found = path.split('.').try_fold(object, |inner, name| inner.get(name));
            match found {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            }
        };
        self.group == at.group
            && self.plural == at.plural
            && (self.namespace.is_none() || self.namespace == at.namespace)
            && self.labels.as_ref().is_none_or(|s| s.matches(|key| labels.get(key)?.as_str()))
            && self.fields.iter().all(|(path, equal, value)| (field(path) == *value) == *equal)
    }

    /// What a watch says of it.
    pub(crate) fn line(&self, happened: &Happened) -> Option<String> {
        let seen = |object: &Option<Value>| {
            object.clone().filter(|object| self.selects(&happened.at, object))
        };
        let (old, new) = (seen(&happened.old), seen(&happened.new));
        let (kind, object) = match (old, new) {
            (None, Some(new)) => ("ADDED", new),
            (Some(_), Some(new)) => ("MODIFIED", new),
            (Some(mut old), None) => {
                old["metadata"]["resourceVersion"] = json!(happened.version.to_string());
                ("DELETED", old)
            }
            (None, None) => return None,
        };
        Some(json!({ "type": kind, "object": self.shown(object) }).to_string())
    }

    /// As much of an object as was asked for.
    pub(crate) fn shown(&self, object: Value) -> Value {
        if !self.metadata_only {
            return object;
        }
        json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        })
    }
}

/// All that counts for the generation.
fn content(object: &Value) -> Value {
    let mut content = object.clone();
    if let Some(fields) = content.as_object_mut() {
        fields.retain(|name, _| !["metadata", "status", "apiVersion", "kind"].contains(&&**name));
    }
    content
}
