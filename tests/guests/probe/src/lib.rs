//! Makes the calls that its config names and reports each answer, so that tests see every error case.
//!
//! ```text
//! { "calls": [ {"call": "get", "kind": {"apiVersion": "v1", "kind": "Secret"}, "namespace": "demo", "name": "a"}, … ],
//!   "report": "configMap" | "terminal",
//!   "primary": …, "manifest": …  see the crate `declared` }
//! ```
//!
//! An annotation `probe.nagaya.dev/calls` of the primary (a JSON list) goes before the config's calls. In their texts
//! `$name`, `$namespace`, `$uid` and `$resourceVersion` stand for the primary's.
//!
//! | call | arguments |
//! |---|---|
//! | `get`, `get-live` | `kind`, `namespace`?, `name` |
//! | `list` | `kind`, and optionally `namespace`, `labels`, `index` (a pair), `limit`, `from` |
//! | `apply`, `apply-child`, `apply-forced`, `adopt`, `apply-status`, `create`, `create-child` | `object` (JSON, or a text to be sent as it is) |
//! | `patch-json`, `patch-merge` | `kind`, `namespace`?, `name`, `body` |
//! | `delete` | `kind`, `namespace`?, `name`, and optionally `uid`, `resourceVersion`, `propagation` (foreground, orphan) |
//! | `event` | `kind`, `namespace`?, `name`, and optionally `reason`, `action`, `note`, `warning` |
//! | `now`, `config`, `log` (`message`), `random` (`length`) | |
//!
//! The report is a list: `{"ok": answer}` or `{"error": "not-declared", "message": "…"}` for each call. It becomes
//! `data.report` of the `ConfigMap` `<primary>-probe` beside the primary (in `default` for one without namespace), or the
//! message of a terminal failure.

#![cfg(target_family = "wasm")]

use declared::Failure;
use nagaya_sdk::bindings::{
    exports::nagaya::controller::guest::{Action, Guest, Request},
    nagaya::controller::{
        cluster::{
            self, Error, Event, FindOptions, Ownership, PatchBody, Propagation, Removal, Severity,
        },
        runtime::{self, Level},
        common::ObjectReference,
    },
};
use serde_json::{Value, json};

struct Probe;

nagaya_sdk::bindings::export!(Probe with_types_in nagaya_sdk::bindings);

impl Guest for Probe {
    fn describe() -> Result<String, String> {
        Ok(declared::manifest(&config()).to_string())
    }

    fn reconcile(request: Request) -> Result<Action, String> {
        declared::answer(run(&request))
    }
}

fn run(request: &Request) -> Result<Action, Failure> {
        let config = config();
        let kind = declared::primary(&config).map_err(Failure::Terminal)?;
        let primary = match cluster::get(&kind, &request.namespace, &request.name) {
            Ok(text) => read(&text),
            Err(Error::NotFound) => return Ok(Action::AwaitChange),
            Err(error) => return Err(Failure::Retry(format!("{error:?}"))),
        };
        let calls = calls(&config, &primary["metadata"]).map_err(Failure::Terminal)?;
        let report = Value::Array(calls.iter().map(outcome).collect()).to_string();
        if config["report"] == "terminal" {
            return Err(Failure::Terminal(report));
        }
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": format!("{}-probe", request.name),
                "namespace": if request.namespace.is_empty() { "default" } else { &request.namespace },
            },
            "data": { "report": report },
        });
        match cluster::apply(&object.to_string(), Ownership::Force) {
            Ok(_) => Ok(Action::AwaitChange),
            Err(error) => Err(Failure::Retry(format!("{error:?}"))),
        }
    }

fn config() -> Value {
    read(&runtime::config())
}

/// The JSON in `text`, or the text itself.
fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

/// The calls, with the primary's words put in.
fn calls(config: &Value, metadata: &Value) -> Result<Vec<Value>, String> {
    let mut text = match metadata["annotations"]["probe.nagaya.dev/calls"].as_str() {
        Some(text) => text.to_owned(),
        None => config["calls"].to_string(),
    };
    // The longer word first: `$name` is the beginning of `$namespace`.
    for word in ["namespace", "name", "uid", "resourceVersion"] {
        text = text.replace(&format!("${word}"), metadata[word].as_str().unwrap_or_default());
    }
    serde_json::from_str(&text).map_err(|error| format!("the calls {text}: {error}"))
}

fn outcome(call: &Value) -> Value {
    match make(call) {
        Ok(answer) => json!({ "ok": answer }),
        Err(error) => {
            let (name, message) = named(error);
            json!({ "error": name, "message": message })
        }
    }
}

fn named(error: Error) -> (&'static str, String) {
    match error {
        Error::NotFound => ("not-found", String::new()),
        Error::AlreadyExists(message) => ("already-exists", message),
        Error::Conflict(message) => ("conflict", message),
        Error::Forbidden(message) => ("forbidden", message),
        Error::Invalid(message) => ("invalid", message),
        Error::NotDeclared(message) => ("not-declared", message),
        Error::BudgetExceeded(message) => ("budget-exceeded", message),
        Error::Unavailable(message) => ("unavailable", message),
    }
}

fn make(call: &Value) -> Result<Value, Error> {
    let name = call["name"].as_str().unwrap_or_default();
    let namespace = call["namespace"].as_str().unwrap_or_default();
    let kind = || declared::kind(&call["kind"]).map_err(Error::Invalid);
    match call["call"].as_str().unwrap_or_default() {
        "get" => cluster::get(&kind()?, namespace, name).map(|text| read(&text)),
        "get-live" => cluster::get_live(&kind()?, namespace, name).map(|text| read(&text)),
        "list" => list(&kind()?, call),
        "apply" => {
            cluster::apply(&text(&call["object"]), Ownership::Standard).map(|text| read(&text))
        }
        "apply-forced" => {
            cluster::apply(&text(&call["object"]), Ownership::Force).map(|text| read(&text))
        }
        "apply-child" => {
            cluster::apply(&text(&call["object"]), Ownership::Child).map(|text| read(&text))
        }
        "adopt" => cluster::apply(&text(&call["object"]), Ownership::Adopt).map(|text| read(&text)),
        "apply-status" => cluster::apply_status(&text(&call["object"])).map(|text| read(&text)),
        "create" | "create-child" => {
            let child = call["call"] == "create-child";
            cluster::create(&text(&call["object"]), child).map(|text| read(&text))
        }
        "patch-json" => {
            let body = PatchBody::Json(text(&call["body"]));
            cluster::patch(&kind()?, namespace, name, &body).map(|text| read(&text))
        }
        "patch-merge" => {
            let body = PatchBody::Merge(text(&call["body"]));
            cluster::patch(&kind()?, namespace, name, &body).map(|text| read(&text))
        }
        "delete" => delete(&kind()?, call).map(Value::from),
        "event" => event(kind()?, call).map(Value::from),
        other => runtime_call(other, call),
    }
}

/// Objects are sent as JSON; a text is sent as it is, so that a test can send what is none.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn word(call: &Value, key: &str) -> String {
    call[key].as_str().unwrap_or_default().to_owned()
}

fn list(kind: &cluster::Kind, call: &Value) -> Result<Value, Error> {
    let at = |place: usize| call["index"][place].as_str().unwrap_or_default().to_owned();
    let options = FindOptions {
        namespace: word(call, "namespace"),
        label_selector: word(call, "labels"),
        index: at(0),
        value: at(1),
        limit: call["limit"].as_u64().and_then(|limit| u32::try_from(limit).ok()).unwrap_or(0),
        after: word(call, "from"),
    };
    let page = cluster::find(kind, &options)?;
    let items: Vec<Value> = page.items.iter().map(|text| read(text)).collect();
    Ok(json!({ "items": items, "next": page.next }))
}

fn delete(kind: &cluster::Kind, call: &Value) -> Result<(), Error> {
    let removal = Removal {
        uid: word(call, "uid"),
        resource_version: word(call, "resourceVersion"),
        propagation: match call["propagation"].as_str() {
            Some("foreground") => Propagation::Foreground,
            Some("orphan") => Propagation::Orphan,
            _ => Propagation::Background,
        },
    };
    cluster::remove(kind, &word(call, "namespace"), &word(call, "name"), &removal)
}

fn event(kind: cluster::Kind, call: &Value) -> Result<(), Error> {
    let or = |key: &str, word: &str| call[key].as_str().unwrap_or(word).to_owned();
    cluster::emit_event(&Event {
        regarding: ObjectReference {
            kind,
            namespace: word(call, "namespace"),
            name: word(call, "name"),
        },
        severity: if call["warning"] == true { Severity::Warning } else { Severity::Normal },
        reason: or("reason", "Probed"),
        action: or("action", "Probe"),
        note: word(call, "note"),
    })
}

fn runtime_call(name: &str, call: &Value) -> Result<Value, Error> {
    match name {
        "now" => Ok(json!(runtime::now())),
        "config" => Ok(config()),
        "random" => {
            let length = call["length"].as_u64().and_then(|length| u32::try_from(length).ok());
            Ok(json!(runtime::random(length.unwrap_or(8))))
        }
        "log" => {
            runtime::log(Level::Info, call["message"].as_str().unwrap_or_default(), &[]);
            Ok(Value::Null)
        }
        other => Err(Error::Invalid(format!("the probe knows no call {other:?}"))),
    }
}
