//! The in-memory cluster's store: objects as JSON, kept as an API server keeps them.
//!
//! Left out: schemas, defaults, other field managers (an unforced apply never conflicts over a field), field
//! selectors, garbage collection. Lists are replaced as a whole.
//!
//! Invariants, held by the tests of `testing`: `a_field_that_the_next_apply_leaves_out_goes_away`,
//! `a_write_that_changes_nothing_is_none`, `what_is_not_declared_is_refused`,
//! `an_object_of_somebody_else_is_taken_over_only_by_adopting_it`.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use k8s_openapi::jiff::Timestamp;
use nagaya_selector::Selector;
use serde_json::{Map, Value, json};

use crate::{
    Kind, Level, Manifest, Verbs,
    api::Api,
    bindings::nagaya::controller::{
        cluster::{Error, Event, FindOptions, Ownership, Page, PatchBody, Removal},
        common::{Field, ObjectReference},
    },
    owners::{self, Primary},
};

/// Small, so that the paging of an author's lists is tested too.
const PAGE: usize = 10;

/// Group, kind, namespace, name.
pub(crate) type Key = (String, String, Option<String>, String);

/// What a watch shows: its label selector, and whether whole objects.
type View<'a> = (&'a str, bool);

#[derive(Clone, Default)]
pub(crate) struct Memory(pub(crate) Rc<RefCell<State>>);

pub(crate) struct State {
    pub(crate) objects: BTreeMap<Key, Value>,
    /// What the controller applied last, by object; the second map holds statuses.
    applied: [BTreeMap<Key, Value>; 2],
    pub(crate) manifest: Option<Manifest>,
    /// What the run is about.
    pub(crate) primary: Primary,
    pub(crate) writes: u64,
    pub(crate) now: Timestamp,
    pub(crate) config: Value,
    pub(crate) events: Vec<Event>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            applied: [BTreeMap::new(), BTreeMap::new()],
            manifest: None,
            primary: Primary::default(),
            writes: 0,
            now: Timestamp::from_second(1_767_225_600).unwrap_or_default(),
            config: Value::Null,
            events: vec![],
        }
    }
}

impl State {
    /// Puts `object` in the place of the present one, with uid, resourceVersion, generation and creation time as a
    /// server would set them. What is being deleted and has no finalizers left goes away.
    pub(crate) fn store(&mut self, key: &Key, mut object: Value) -> Value {
        let before = self.objects.get(key).cloned().unwrap_or_default();
        let is_new = before.is_null();
        let created = if is_new {
            json!(self.now.to_string())
        } else {
            before["metadata"]["creationTimestamp"].clone()
        };
        let uid = if is_new {
            json!(format!("uid-{}", self.writes + 1))
        } else {
            before["metadata"]["uid"].clone()
        };
        let generation = before["metadata"]["generation"].as_i64().unwrap_or_default();
        let deletion = |object: &Value| object["metadata"].get("deletionTimestamp").is_some();
        let changed =
            content(&object) != content(&before) || deletion(&object) != deletion(&before);
        let metadata = &mut object["metadata"];
        metadata["creationTimestamp"] = created;
        metadata["uid"] = uid;
        metadata["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        if object.get("spec").is_some() {
            object["metadata"]["generation"] = json!(generation + i64::from(changed));
        }
        if object == before {
            return object;
        }
        self.writes += 1;
        object["metadata"]["resourceVersion"] = json!(self.writes.to_string());
        let finalizers = object["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        if deletion(&object) && finalizers == 0 {
            self.forget(key);
        } else {
            self.objects.insert(key.clone(), object.clone());
        }
        object
    }

    /// Deletes an object, or marks it while it has finalizers.
    pub(crate) fn delete(&mut self, key: &Key) -> Result<(), Error> {
        let mut object = self.objects.get(key).cloned().ok_or(Error::NotFound)?;
        if object["metadata"].get("deletionTimestamp").is_none() {
            object["metadata"]["deletionTimestamp"] = json!(self.now.to_string());
            self.store(key, object);
        }
        Ok(())
    }

    fn forget(&mut self, key: &Key) {
        self.objects.remove(key);
        self.applied.iter_mut().for_each(|applied| drop(applied.remove(key)));
    }

    fn manifest(&self) -> Result<&Manifest, Error> {
        self.manifest.as_ref().ok_or_else(|| Error::NotDeclared("no controller runs".to_owned()))
    }

    fn watches(&self, kind: &Kind) -> Result<Vec<View<'_>>, Error> {
        let manifest = self.manifest()?;
        let others = manifest.watches.iter().map(|(watched, _)| watched);
        let views: Vec<_> = std::iter::once(&manifest.primary)
            .chain(&manifest.owns)
            .chain(others)
            .filter(|watched| same_kind(&watched.kind, kind))
            .map(|watched| &watched.watch)
            .map(|watch| (watch.labels.as_deref().unwrap_or_default(), watch.is_full))
            .collect();
        if views.is_empty() {
            return Err(Error::NotDeclared(format!("no watch of {}", kind.name)));
        }
        Ok(views)
    }

    /// What the cache would show of `object`; `None`: no watch selects it.
    fn cached(&self, kind: &Kind, object: &Value) -> Result<Option<Value>, Error> {
        let (mut is_seen, mut is_full) = (false, false);
        for (selector, whole) in self.watches(kind)? {
            is_seen |= matches(selector, object)?;
            is_full |= whole;
        }
        let mut seen = object.clone();
        if let (false, Value::Object(fields)) = (is_full, &mut seen) {
            fields.retain(|field, _| ["apiVersion", "kind", "metadata"].contains(&field.as_str()));
        }
        Ok(is_seen.then_some(seen))
    }

    fn may_write(&self, kind: &Kind, verb: Verbs) -> Result<(), Error> {
        let mut writes = self.manifest()?.writes.iter();
        if writes.any(|(written, verbs)| same_kind(written, kind) && verbs.contains(verb)) {
            return Ok(());
        }
        Err(Error::NotDeclared(format!("no write {verb:?} of {}", kind.name)))
    }

    /// The present object, whose uid and resourceVersion must be those of `metadata` where it names them.
    fn current(&self, key: &Key, metadata: &Value) -> Result<Value, Error> {
        let object = self.objects.get(key).cloned().unwrap_or_default();
        for field in ["uid", "resourceVersion"] {
            match metadata.get(field).filter(|wanted| !wanted.is_null()) {
                Some(wanted) if *wanted != object["metadata"][field] => {
                    let text = format!("{field} is not {wanted}: {} has changed", key.3);
                    return Err(Error::Conflict(text));
                }
                _ => (),
            }
        }
        Ok(object)
    }

    /// Refuses owners that the host would refuse: those that cannot be, and new ones of somebody else's object.
    fn check_owners(&self, key: &Key, left: &Value, adopts: bool) -> Result<(), Error> {
        let named = owners::of(left);
        self.primary.check(named, key)?;
        match self.objects.get(key) {
            Some(object) => self.primary.keep(named, owners::of(object), key, adopts),
            None => Ok(()),
        }
    }

    /// Makes `body` a child of the primary, as the host does.
    fn as_child(&self, body: &mut Value) -> Result<(), Error> {
        let key = self.primary.key.as_ref();
        let primary = key.and_then(|key| self.objects.get(key));
        let is_deleting =
            primary.is_some_and(|it| it["metadata"].get("deletionTimestamp").is_some());
        let version = &self.manifest()?.primary.kind.version;
        self.primary.take(body, version, is_deleting)
    }

    /// Merges `body` into the object and takes out what the last body had and this one does not.
    fn apply(&mut self, key: &Key, body: &Value, part: usize) -> Result<Value, Error> {
        let mut object = self.current(key, &body["metadata"])?;
        if let Some(last) = self.applied[part].get(key) {
            prune(&mut object, last, body);
        }
        overlay(&mut object, body);
        self.applied[part].insert(key.clone(), body.clone());
        Ok(self.store(key, object))
    }

    fn index_path(&self, kind: &Kind, name: &str) -> Result<String, Error> {
        let mut indexes = self.manifest()?.indexes.iter();
        let index = indexes.find(|index| index.name == name && same_kind(&index.kind, kind));
        let index = index.ok_or_else(|| Error::NotDeclared(format!("no index {name}")))?;
        Ok(index.path.clone())
    }
}

impl Api for Memory {
    fn get(&self, at: &ObjectReference) -> Result<String, Error> {
        let state = self.0.borrow();
        state.watches(&at.kind)?;
        let object = state.objects.get(&key(at)).ok_or(Error::NotFound)?;
        Ok(state.cached(&at.kind, object)?.ok_or(Error::NotFound)?.to_string())
    }

    fn find(&self, kind: &Kind, options: &FindOptions) -> Result<Page, Error> {
        let state = self.0.borrow();
        state.watches(kind)?;
        let index = match options.index.as_str() {
            "" => None,
            name => Some((state.index_path(kind, name)?, options.value.as_str())),
        };
        let mut items = vec![];
        for (key, object) in &state.objects {
            let selector = options.label_selector.as_str();
            if (&key.0, &key.1) == (&kind.group, &kind.name)
                && (options.namespace.is_empty() || key.2.as_ref() == Some(&options.namespace))
                && index.as_ref().is_none_or(|(path, value)| is_indexed(object, path, value))
                && matches(selector, object)?
                && let Some(object) = state.cached(kind, object)?
            {
                items.push(object.to_string());
            }
        }
        let from = if options.after.is_empty() { Ok(0) } else { options.after.parse::<usize>() };
        let from = from.map_err(|error| Error::Invalid(error.to_string()))?.min(items.len());
        let limit = if options.limit == 0 { PAGE } else { options.limit as usize };
        let rest = items.split_off(from);
        let next = (rest.len() > limit).then(|| (from + limit).to_string()).unwrap_or_default();
        Ok(Page { items: rest.into_iter().take(limit).collect(), next })
    }

    fn get_live(&self, at: &ObjectReference) -> Result<String, Error> {
        let state = self.0.borrow();
        if !state.manifest()?.reads_live.iter().any(|live| same_kind(live, &at.kind)) {
            state.watches(&at.kind)?;
        }
        Ok(state.objects.get(&key(at)).ok_or(Error::NotFound)?.to_string())
    }

    fn apply(&self, object: &str, ownership: Ownership) -> Result<String, Error> {
        let (kind, mut body) = parse(object)?;
        let mut state = self.0.borrow_mut();
        state.may_write(&kind, Verbs::APPLY)?;
        let key = key_of(&kind, &body)?;
        if matches!(ownership, Ownership::Child | Ownership::Adopt) {
            state.as_child(&mut body)?;
        }
        state.check_owners(&key, &body, ownership == Ownership::Adopt)?;
        Ok(state.apply(&key, &body, 0)?.to_string())
    }

    fn apply_status(&self, object: &str) -> Result<String, Error> {
        let (kind, body) = parse(object)?;
        let mut state = self.0.borrow_mut();
        state.may_write(&kind, Verbs::APPLY_STATUS)?;
        let key = key_of(&kind, &body)?;
        state.objects.get(&key).ok_or(Error::NotFound)?;
        state.check_owners(&key, &body, false)?;
        Ok(state.apply(&key, &body, 1)?.to_string())
    }

    fn create(&self, object: &str, child: bool) -> Result<String, Error> {
        let (kind, mut body) = parse(object)?;
        let mut state = self.0.borrow_mut();
        state.may_write(&kind, Verbs::CREATE)?;
        if child {
            state.as_child(&mut body)?;
        }
        if let (None, Some(prefix)) =
            (body["metadata"].get("name"), body["metadata"]["generateName"].as_str())
        {
            body["metadata"]["name"] = json!(format!("{prefix}{:05}", state.writes));
        }
        let key = key_of(&kind, &body)?;
        if state.objects.contains_key(&key) {
            return Err(Error::AlreadyExists(format!("{} {} exists", kind.name, key.3)));
        }
        state.check_owners(&key, &body, false)?;
        Ok(state.store(&key, body).to_string())
    }

    fn patch(&self, at: &ObjectReference, body: &PatchBody) -> Result<String, Error> {
        let invalid = |error: &dyn ToString| Error::Invalid(error.to_string());
        let mut state = self.0.borrow_mut();
        state.may_write(&at.kind, Verbs::PATCH)?;
        let key = key(at);
        let mut object = state.objects.get(&key).cloned().ok_or(Error::NotFound)?;
        match body {
            PatchBody::Json(text) => {
                let patch: json_patch::Patch =
                    serde_json::from_str(text).map_err(|error| invalid(&error))?;
                json_patch::patch(&mut object, &patch)
                    .map_err(|error| Error::Conflict(error.to_string()))?;
            }
            PatchBody::Merge(text) => {
                let patch = serde_json::from_str(text).map_err(|error| invalid(&error))?;
                json_patch::merge(&mut object, &patch);
            }
        }
        state.check_owners(&key, &object, false)?;
        Ok(state.store(&key, object).to_string())
    }

    fn remove(&self, at: &ObjectReference, removal: &Removal) -> Result<(), Error> {
        let mut state = self.0.borrow_mut();
        state.may_write(&at.kind, Verbs::DELETE)?;
        let key = key(at);
        if !state.objects.contains_key(&key) {
            return Err(Error::NotFound);
        }
        let some = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
        let wanted = json!({
            "uid": some(&removal.uid), "resourceVersion": some(&removal.resource_version),
        });
        state.current(&key, &wanted)?;
        state.delete(&key)
    }

    fn emit_event(&self, event: &Event) -> Result<(), Error> {
        let mut state = self.0.borrow_mut();
        let kind = &event.regarding.kind;
        let manifest = state.manifest()?;
        let mut written = manifest.writes.iter().map(|(kind, _)| kind).chain(&manifest.reads_live);
        if !written.any(|declared| same_kind(declared, kind)) {
            state.watches(kind)?;
        }
        state.events.push(event.clone());
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "milliseconds are far below 2^53")]
    fn now(&self) -> f64 {
        self.0.borrow().now.as_millisecond() as f64
    }

    fn random(&self, length: u32) -> Vec<u8> {
        (0..=u8::MAX).cycle().take(length as usize).collect()
    }

    fn config(&self) -> String {
        self.0.borrow().config.to_string()
    }

    fn log(&self, level: Level, message: &str, fields: &[Field]) {
        println!("{level:?} {message} {fields:?}");
    }
}

/// The key of the object of this kind, namespace and name.
pub(crate) fn key(at: &ObjectReference) -> Key {
    let namespace = (!at.namespace.is_empty()).then(|| at.namespace.clone());
    (at.kind.group.clone(), at.kind.name.clone(), namespace, at.name.clone())
}

/// The key of `body`, which must have a name.
pub(crate) fn key_of(kind: &Kind, body: &Value) -> Result<Key, Error> {
    let metadata = &body["metadata"];
    let text = |field: &str| metadata[field].as_str().map(str::to_owned);
    let name = text("name").ok_or_else(|| Error::Invalid("no metadata.name".to_owned()))?;
    Ok((kind.group.clone(), kind.name.clone(), text("namespace"), name))
}

fn parse(text: &str) -> Result<(Kind, Value), Error> {
    let body: Value =
        serde_json::from_str(text).map_err(|error| Error::Invalid(error.to_string()))?;
    let word = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let api_version = word("apiVersion");
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    Ok((Kind { group: group.to_owned(), version: version.to_owned(), name: word("kind") }, body))
}

fn same_kind(a: &Kind, b: &Kind) -> bool {
    (&a.group, &a.name) == (&b.group, &b.name)
}

fn matches(selector: &str, object: &Value) -> Result<bool, Error> {
    let selector = Selector::parse(selector).map_err(|error| Error::Invalid(error.to_string()))?;
    let labels = &object["metadata"]["labels"];
    Ok(selector.matches(|key| labels[key].as_str()))
}

/// All that counts for the generation: not the metadata, not the status.
fn content(object: &Value) -> Map<String, Value> {
    let mut content = object.as_object().cloned().unwrap_or_default();
    content.retain(|key, _| key != "metadata" && key != "status");
    content
}

fn is_indexed(object: &Value, path: &str, value: &str) -> bool {
    let found = path.split('.').try_fold(object, |inner, segment| inner.get(segment));
    match found {
        Some(Value::Array(items)) => items.iter().any(|item| item == value),
        Some(found) => found == value,
        None => false,
    }
}

/// Puts the fields of `body` over those of `target`. Not a merge patch: a null is a value that somebody applied.
fn overlay(target: &mut Value, body: &Value) {
    match (target, body) {
        (Value::Object(target), Value::Object(body)) => {
            for (key, value) in body {
                overlay(target.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (target, body) => *target = body.clone(),
    }
}

/// Takes out of `target` what `last` has and `next` does not, and the maps that become empty by it.
fn prune(target: &mut Value, last: &Value, next: &Value) {
    let (Value::Object(map), Value::Object(last)) = (target, last) else { return };
    for (key, last) in last {
        if let (Some(inner), Value::Object(_)) = (map.get_mut(key), last) {
            let next = next.get(key).unwrap_or(&Value::Null);
            prune(inner, last, next);
            if next.is_null() && inner.as_object().is_some_and(Map::is_empty) {
                map.remove(key);
            }
        } else if next.get(key).is_none() {
            map.remove(key);
        }
    }
}
