//! The cases of `wit/conformance.json`, which every SDK's cluster in memory and the host answer alike.

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        Kind, Manifest, Propagation, Severity, Verbs, Watch,
        api::Api,
        bindings::nagaya::controller::{
            cluster::{Error, Event, FindOptions, Ownership, PatchBody, Removal},
            common::ObjectReference,
        },
        manifest::{Index, Watched},
        memory::{Memory, key_of},
        owners::Primary,
    };

    fn kind(value: &Value) -> Kind {
        let word = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        let api_version = word("apiVersion");
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        Kind { group: group.to_owned(), version: version.to_owned(), name: word("kind") }
    }

    /// The manifest of the cases, which the builder cannot make of kinds without types.
    fn manifest(text: &Value) -> Manifest {
        let verbs = |write: &Value| {
            let one = |verb: &Value| match verb.as_str() {
                Some("create") => Verbs::CREATE,
                Some("apply") => Verbs::APPLY,
                Some("applyStatus") => Verbs::APPLY_STATUS,
                Some("patch") => Verbs::PATCH,
                _ => Verbs::DELETE,
            };
            write["verbs"].as_array().unwrap().iter().map(one).reduce(|a, b| a | b).unwrap()
        };
        let all = |field: &str| text[field].as_array().cloned().unwrap_or_default();
        let watched = |value: &Value| Watched { kind: kind(value), watch: Watch::full() };
        let index = |value: &Value| {
            let word = |field: &str| value[field].as_str().unwrap().to_owned();
            Index { name: word("name"), kind: kind(value), path: word("path") }
        };
        let made = Manifest {
            primary: watched(&text["primary"]),
            owns: all("owns").iter().map(watched).collect(),
            watches: vec![],
            reads_live: all("readsLive").iter().map(kind).collect(),
            writes: all("writes").iter().map(|write| (kind(write), verbs(write))).collect(),
            indexes: all("indexes").iter().map(index).collect(),
            finalizer: None,
        };
        assert_eq!(serde_json::from_str::<Value>(&made.to_json()).unwrap(), *text);
        made
    }

    fn make(api: &Memory, call: &Value) -> Result<Value, Error> {
        let word = |field: &str| call[field].as_str().unwrap_or_default().to_owned();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let read = |text: String| serde_json::from_str(&text).unwrap();
        let at = ObjectReference {
            kind: kind(&call["kind"]),
            namespace: word("namespace"),
            name: word("name"),
        };
        let object = text(&call["object"]);
        let apply = |ownership| api.apply(&object, ownership).map(read);
        match word("call").as_str() {
            "get" => api.get(&at).map(read),
            "get-live" => api.get_live(&at).map(read),
            "list" => {
                let of =
                    |place: usize| call["index"][place].as_str().unwrap_or_default().to_owned();
                let options = FindOptions {
                    namespace: word("namespace"),
                    label_selector: word("labels"),
                    index: of(0),
                    value: of(1),
                    limit: u32::try_from(call["limit"].as_u64().unwrap_or(0)).unwrap(),
                    after: String::new(),
                };
                let page = api.find(&at.kind, &options)?;
                let items: Vec<Value> = page.items.into_iter().map(read).collect();
                Ok(json!({"items": items, "next": page.next}))
            }
            "apply" => apply(Ownership::Standard),
            "apply-child" => apply(Ownership::Child),
            "apply-forced" => apply(Ownership::Force),
            "adopt" => apply(Ownership::Adopt),
            "apply-status" => api.apply_status(&object).map(read),
            "create" => api.create(&object, false).map(read),
            "create-child" => api.create(&object, true).map(read),
            "patch-merge" => api.patch(&at, &PatchBody::Merge(text(&call["body"]))).map(read),
            "patch-json" => api.patch(&at, &PatchBody::Json(text(&call["body"]))).map(read),
            "delete" => {
                let removal = Removal {
                    uid: word("uid"),
                    resource_version: String::new(),
                    propagation: Propagation::Background,
                };
                api.remove(&at, &removal).map(|()| Value::Null)
            }
            "event" => {
                let event = Event {
                    regarding: at,
                    severity: Severity::Normal,
                    reason: "Probed".to_owned(),
                    action: "Probe".to_owned(),
                    note: String::new(),
                };
                api.emit_event(&event).map(|()| Value::Null)
            }
            other => unreachable!("no call {other}"),
        }
    }

    fn named(error: &Error) -> &'static str {
        match error {
            Error::NotFound => "not-found",
            Error::AlreadyExists(_) => "already-exists",
            Error::Conflict(_) => "conflict",
            Error::Forbidden(_) => "forbidden",
            Error::Invalid(_) => "invalid",
            Error::NotDeclared(_) => "not-declared",
            Error::BudgetExceeded(_) => "budget-exceeded",
            Error::Unavailable(_) => "unavailable",
        }
    }

    /// Every field that is expected is there and alike; a null means that there is none.
    fn fits(found: &Value, expected: &Value) -> bool {
        match expected {
            Value::Array(list) => found.as_array().is_some_and(|found| {
                found.len() == list.len()
                    && found.iter().zip(list).all(|(found, expected)| fits(found, expected))
            }),
            Value::Object(fields) => {
                found.is_object() && fields.iter().all(|(field, one)| fits(&found[field], one))
            }
            other => found == other,
        }
    }

    #[test]
    fn the_cluster_in_memory_answers_as_the_contract_says() {
        let memory = Memory::default();
        let store = |object: Value| {
            let key = key_of(&kind(&object), &object).unwrap();
            let stored = memory.0.borrow_mut().store(&key, object);
            (key, stored)
        };
        let (key, web) = store(json!({
            "apiVersion": "examples.nagaya.dev/v1", "kind": "Website",
            "metadata": {"name": "web", "namespace": "demo"}, "spec": {},
        }));
        let uid = web["metadata"]["uid"].as_str().unwrap();
        let text = include_str!("../../../wit/conformance.json");
        let text = text
            .replace("$other", "another")
            .replace("$namespace", "demo")
            .replace("$name", "web")
            .replace("$uid", uid);
        let suite: Value = serde_json::from_str(&text).unwrap();
        for object in suite["objects"].as_array().unwrap() {
            store(object.clone());
        }
        {
            let mut state = memory.0.borrow_mut();
            state.primary = Primary { key: Some(key), uid: Some(uid.to_owned()) };
            state.manifest = Some(manifest(&suite["manifest"]));
        }
        let cases = suite["cases"].as_array().unwrap();
        for case in cases {
            let (answer, expected) = (make(&memory, &case["call"]), &case["expect"]);
            let is_right = match &answer {
                Ok(answer) => expected.get("ok").is_some_and(|ok| fits(answer, ok)),
                Err(error) => expected["error"] == named(error),
            };
            assert!(is_right, "{}: {answer:?} instead of {expected}", case["name"]);
        }
        assert!(cases.len() > 40);
    }
}
