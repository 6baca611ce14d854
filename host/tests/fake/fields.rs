//! Who owns which field: server-side apply, and what other writes take over.
//!
//! Fields are paths; items of lists that are maps or sets are named by their keys, all other lists are one value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Field(String),
    /// The item of a list with these keys, as JSON text.
    Item(String),
    /// The item of a set, as JSON text.
    Member(String),
}

pub(crate) type Path = Vec<Step>;

/// Manager, whether by apply, subresource.
type Manager = (String, bool, String);

/// Who owns what in one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Owners(BTreeMap<Manager, BTreeSet<Path>>);

/// As whom, and how.
#[derive(Clone, Debug)]
pub(crate) struct Writer<'a> {
    pub(crate) manager: &'a str,
    /// Empty: the object itself.
    pub(crate) subresource: &'a str,
    pub(crate) force: bool,
    pub(crate) atomic_conditions: bool,
}

/// Why an apply is refused.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Fields of others: who, which.
    Conflicts(Vec<(String, String)>),
    /// Two items of a list have the same keys.
    Duplicate(String),
}

/// What identifies an object is nobody's.
const NOBODYS: &[&str] = &[
    "name",
    "namespace",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
];

enum List {
    Map(&'static [&'static str]),
    Set,
    One,
}

fn list(path: &Path, atomic_conditions: bool) -> List {
    let Some(Step::Field(name)) = path.last() else { return List::One };
    match name.as_str() {
        "conditions" if atomic_conditions => List::One,
        "conditions" => List::Map(&["type"]),
        "ownerReferences" => List::Map(&["uid"]),
        "finalizers" => List::Set,
        "containers" | "initContainers" | "volumes" | "env" => List::Map(&["name"]),
        "volumeMounts" => List::Map(&["mountPath"]),
        "ports" if path.iter().any(|step| *step == Step::Field("containers".to_owned())) => {
            List::Map(&["containerPort", "protocol"])
        }
        "ports" => List::Map(&["port", "protocol"]),
        _ => List::One,
    }
}

fn key(item: &Value, keys: &[&str]) -> String {
    let of = |name: &str| match (item.get(name), name) {
        (None, "protocol") => json!("TCP"),
        (found, _) => found.cloned().unwrap_or_default(),
    };
    let pairs: Map<String, Value> =
        keys.iter().map(|name| ((*name).to_owned(), of(name))).collect();
    Value::Object(pairs).to_string()
}

/// The leaves of an object, without what identifies it.
fn leaves(object: &Value, atomic_conditions: bool) -> Result<BTreeMap<Path, Value>, Refused> {
    let mut found = BTreeMap::new();
    collect(object, &mut vec![], atomic_conditions, &mut found)?;
    let field = |step: Option<&Step>| match step {
        Some(Step::Field(name)) => name.clone(),
        _ => String::new(),
    };
    found.retain(|path, _| match &*field(path.first()) {
        "apiVersion" | "kind" => false,
        "metadata" => path.len() > 1 && !NOBODYS.contains(&&*field(path.get(1))),
        // Nothing at all is no field.
        _ => !path.is_empty(),
    });
    Ok(found)
}

fn collect(
    value: &Value,
    path: &mut Path,
    atomic_conditions: bool,
    found: &mut BTreeMap<Path, Value>,
) -> Result<(), Refused> {
    let (kind, at) = (list(path, atomic_conditions), dotted(path));
    let mut inside = |step: Step, value: &Value| {
        path.push(step);
        if found.contains_key(path) {
            return Err(Refused::Duplicate(dotted(path)));
        }
        collect(value, path, atomic_conditions, found)?;
        path.pop();
        Ok(())
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                inside(Step::Field(name.clone()), value)?;
            }
        }
        Value::Array(items) if !items.is_empty() => match kind {
            List::Map(keys) => {
                let mut seen = BTreeSet::new();
                for item in items {
                    let key = key(item, keys);
                    if !seen.insert(key.clone()) {
                        return Err(Refused::Duplicate(format!("{at}[{key}]")));
                    }
                    inside(Step::Item(key), item)?;
                }
            }
            List::Set => {
                for item in items {
                    inside(Step::Member(item.to_string()), item)?;
                }
            }
            List::One => drop(found.insert(path.clone(), value.clone())),
        },
        _ => drop(found.insert(path.clone(), value.clone())),
    }
    Ok(())
}

fn position(items: &[Value], step: &Step) -> Option<usize> {
    let wanted = |text: &String| serde_json::from_str::<Value>(text).unwrap();
    match step {
        Step::Member(text) => items.iter().position(|item| *item == wanted(text)),
        Step::Item(text) => {
            let wanted = wanted(text);
            let keys: Vec<&str> = wanted.as_object().unwrap().keys().map(String::as_str).collect();
            items.iter().position(|item| key(item, &keys) == *text)
        }
        Step::Field(_) => None,
    }
}

fn get<'a>(object: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(object, |inner, step| match (inner, step) {
        (Value::Object(fields), Step::Field(name)) => fields.get(name),
        (Value::Array(items), step) => items.get(position(items, step)?),
        _ => None,
    })
}

fn set(object: &mut Value, path: &[Step], value: &Value) {
    let Some((step, rest)) = path.split_first() else {
        *object = value.clone();
        return;
    };
    match step {
        Step::Field(name) => {
            if !object.is_object() {
                *object = json!({});
            }
            set(object.as_object_mut().unwrap().entry(name).or_insert(Value::Null), rest, value);
        }
        Step::Item(_) | Step::Member(_) => {
            if !object.is_array() {
                *object = json!([]);
            }
            let items = object.as_array_mut().unwrap();
            let at = position(items, step).unwrap_or_else(|| {
                let (Step::Item(text) | Step::Member(text) | Step::Field(text)) = step;
                items.push(serde_json::from_str(text).unwrap());
                items.len() - 1
            });
            set(&mut items[at], rest, value);
        }
    }
}

/// Takes a leaf out, and what becomes empty by it.
fn remove(object: &mut Value, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else { return };
    let is_empty = |value: &Value| match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    match (object, step) {
        (Value::Object(fields), Step::Field(name)) => {
            let Some(inner) = fields.get_mut(name) else { return };
            remove(inner, rest);
            if rest.is_empty() || is_empty(inner) {
                fields.remove(name);
            }
        }
        (Value::Array(items), step) => {
            let Some(at) = position(items, step) else { return };
            remove(&mut items[at], rest);
            if rest.is_empty() || is_empty(&items[at]) {
                items.remove(at);
            }
        }
        _ => (),
    }
}

impl Owners {
    /// Server-side apply of `body` into `object`.
    pub(crate) fn apply(
        &mut self,
        object: &mut Value,
        body: &Value,
        writer: &Writer<'_>,
    ) -> Result<(), Refused> {
        let wanted = leaves(body, writer.atomic_conditions)?;
        let me = (writer.manager.to_owned(), true, writer.subresource.to_owned());
        let mut conflicts = vec![];
        for (path, value) in &wanted {
            for (other, theirs) in self.0.iter().filter(|(other, _)| **other != me) {
                if theirs.contains(path) && get(object, path) != Some(value) {
                    conflicts.push((other.clone(), path.clone()));
                }
            }
        }
        if !conflicts.is_empty() && !writer.force {
            let told = |((name, ..), path): (Manager, Path)| (name, dotted(&path));
            return Err(Refused::Conflicts(conflicts.into_iter().map(told).collect()));
        }
        for (other, path) in conflicts {
            self.0.entry(other).or_default().remove(&path);
        }
        let had = self.0.remove(&me).unwrap_or_default();
        for path in had.iter().filter(|path| !wanted.contains_key(*path)) {
            if !self.0.values().any(|theirs| theirs.contains(path)) {
                remove(object, path);
            }
        }
        for (path, value) in &wanted {
            set(object, path, value);
        }
        self.0.insert(me, wanted.into_keys().collect());
        self.0.retain(|_, paths| !paths.is_empty());
        Ok(())
    }

    /// Any other write: what it changed is the writer's from now on.
    pub(crate) fn update(&mut self, old: &Value, new: &Value, writer: &Writer<'_>) {
        let of = |object| leaves(object, writer.atomic_conditions).unwrap_or_default();
        let (old, new) = (of(old), of(new));
        let changed: BTreeSet<Path> = new
            .iter()
            .filter(|(path, value)| old.get(*path) != Some(value))
            .map(|(path, _)| path.clone())
            .collect();
        for paths in self.0.values_mut() {
            paths.retain(|path| new.contains_key(path) && !changed.contains(path));
        }
        let me = (writer.manager.to_owned(), false, writer.subresource.to_owned());
        self.0.entry(me).or_default().extend(changed);
        self.0.retain(|_, paths| !paths.is_empty());
    }

    /// `metadata.managedFields`.
    pub(crate) fn shown(&self, api_version: &str) -> Value {
        let entry = |((manager, applied, subresource), paths): (&Manager, &BTreeSet<Path>)| {
            let mut fields = json!({});
            for path in paths {
                let steps = path.iter().map(|step| match step {
                    Step::Field(name) => format!("f:{name}"),
                    Step::Item(key) => format!("k:{key}"),
                    Step::Member(value) => format!("v:{value}"),
                });
                let mut inner = &mut fields;
                for step in steps {
                    inner = inner.as_object_mut().unwrap().entry(step).or_insert(json!({}));
                }
            }
            let mut entry = json!({
                "manager": manager, "operation": if *applied { "Apply" } else { "Update" },
                "apiVersion": api_version, "fieldsType": "FieldsV1", "fieldsV1": fields,
            });
            if !subresource.is_empty() {
                entry["subresource"] = json!(subresource);
            }
            entry
        };
        self.0.iter().map(entry).collect()
    }
}

fn dotted(path: &[Step]) -> String {
    let step = |step: &Step| match step {
        Step::Field(name) => format!(".{name}"),
        Step::Item(text) | Step::Member(text) => format!("[{text}]"),
    };
    path.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(manager: &str) -> Writer<'_> {
        Writer { manager, subresource: "", force: false, atomic_conditions: false }
    }

    #[test]
    fn a_field_that_the_next_apply_leaves_out_goes_away_unless_another_has_it() {
        let (mut owners, mut object) = (Owners::default(), json!({}));
        let first = json!({"data": {"a": "1", "b": "1", "c": "1"}});
        owners.apply(&mut object, &first, &writer("one")).unwrap();
        owners.apply(&mut object, &json!({"data": {"b": "1"}}), &writer("two")).unwrap();
        owners.apply(&mut object, &json!({"data": {"a": "2"}}), &writer("one")).unwrap();
        assert_eq!(object, json!({"data": {"a": "2", "b": "1"}}));
    }

    #[test]
    fn a_field_of_another_is_a_conflict_and_force_takes_it() {
        let (mut owners, mut object) = (Owners::default(), json!({}));
        owners.apply(&mut object, &json!({"data": {"a": "1"}}), &writer("one")).unwrap();
        let theirs = json!({"data": {"a": "2"}});
        let refused = owners.apply(&mut object, &theirs, &writer("two")).unwrap_err();
        let Refused::Conflicts(conflicts) = refused else { panic!("a conflict") };
        assert_eq!(conflicts, [("one".to_owned(), ".data.a".to_owned())]);
        let force = Writer { force: true, ..writer("two") };
        owners.apply(&mut object, &theirs, &force).unwrap();
        assert_eq!(object, theirs);
        owners.apply(&mut object, &json!({}), &writer("one")).unwrap();
        assert_eq!(object, theirs, "it is the other's now");
        let mut edited = theirs.clone();
        edited["data"]["a"] = json!("3");
        owners.update(&theirs, &edited, &writer("kubectl"));
        assert!(owners.apply(&mut edited, &theirs, &writer("two")).is_err(), "an edit takes over");
    }

    #[test]
    fn items_are_told_apart_by_their_keys() {
        let (mut owners, mut object) = (Owners::default(), json!({}));
        let condition =
            |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True"}]}});
        owners.apply(&mut object, &condition("A"), &writer("one")).unwrap();
        owners.apply(&mut object, &condition("B"), &writer("two")).unwrap();
        assert_eq!(object["status"]["conditions"].as_array().unwrap().len(), 2);
        owners.apply(&mut object, &json!({}), &writer("one")).unwrap();
        assert_eq!(object, condition("B"));
        let twice = json!({"status": {"conditions": [{"type": "A"}, {"type": "A"}]}});
        let refused = owners.apply(&mut object, &twice, &writer("one")).unwrap_err();
        assert!(matches!(refused, Refused::Duplicate(_)));
        let atomic = Writer { atomic_conditions: true, ..writer("one") };
        let (mut owners, mut object) = (Owners::default(), json!({}));
        owners.apply(&mut object, &condition("A"), &atomic).unwrap();
        let other = Writer { atomic_conditions: true, ..writer("two") };
        assert!(owners.apply(&mut object, &condition("B"), &other).is_err(), "one list, one owner");
    }
}
