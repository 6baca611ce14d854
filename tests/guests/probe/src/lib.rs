//! Makes the calls that its config names and reports each answer, so that tests see every error case.
//!
//! ```text
//! { "calls": [ {"call": "get", "kind": {"version": "v1", "kind": "Secret"}, "namespace": "demo", "name": "a"}, … ],
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
//! | `apply`, `apply-forced`, `adopt`, `apply-status`, `create` | `object` (JSON, or a text to be sent as it is) |
//! | `patch-json`, `patch-merge` | `kind`, `namespace`?, `name`, `body` |
//! | `delete` | `kind`, `namespace`?, `name`, and optionally `uid`, `resourceVersion`, `propagation` (foreground, orphan) |
//! | `event` | `kind`, `namespace`?, `name`, and optionally `reason`, `action`, `note`, `warning` |
//! | `now`, `config`, `log` (`message`), `random` (`length`) | |
//!
//! The report is a list: `{"ok": answer}` or `{"error": "not-declared", "message": "…"}` for each call. It becomes
//! `data.report` of the `ConfigMap` `<primary>-probe` beside the primary (in `default` for one without namespace), or the
//! message of a terminal failure.

#![cfg(target_family = "wasm")]

use nagaya_sdk::bindings::{
    exports::nagaya::controller::guest::{Action, Failure, Guest, Manifest, Request},
    nagaya::controller::{
        cluster::{
            self, DeleteOptions, Error, Event, ListOptions, Ownership, PatchBody, Propagation,
            Severity,
        },
        runtime::{self, Level},
        types::ObjectReference,
    },
};
use serde_json::{Value, json};

struct Probe;

nagaya_sdk::bindings::export!(Probe with_types_in nagaya_sdk::bindings);

impl Guest for Probe {
    fn describe() -> Result<Manifest, String> {
        declared::manifest(&config())
    }

    fn reconcile(request: Request) -> Result<Action, Failure> {
        let config = config();
        let kind = declared::manifest(&config).map_err(Failure::Terminal)?.primary.kind;
        let primary = match cluster::get(&kind, request.namespace.as_deref(), &request.name) {
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
                "namespace": request.namespace.as_deref().unwrap_or("default"),
            },
            "data": { "report": report },
        });
        match cluster::apply(&object.to_string(), Ownership::Force) {
            Ok(_) => Ok(Action::AwaitChange),
            Err(error) => Err(Failure::Retry(format!("{error:?}"))),
        }
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
    let namespace = call["namespace"].as_str();
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
        "adopt" => cluster::apply(&text(&call["object"]), Ownership::Adopt).map(|text| read(&text)),
        "apply-status" => cluster::apply_status(&text(&call["object"])).map(|text| read(&text)),
        "create" => cluster::create(&text(&call["object"])).map(|text| read(&text)),
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

fn word(call: &Value, key: &str) -> Option<String> {
    call[key].as_str().map(str::to_owned)
}

fn list(kind: &cluster::Kind, call: &Value) -> Result<Value, Error> {
    let index = call["index"].as_array().and_then(|pair| {
        Some((pair.first()?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned()))
    });
    let options = ListOptions {
        namespace: word(call, "namespace"),
        label_selector: word(call, "labels"),
        index,
        limit: call["limit"].as_u64().and_then(|limit| u32::try_from(limit).ok()).unwrap_or(0),
        from: word(call, "from"),
    };
    let page = cluster::list(kind, &options)?;
    let items: Vec<Value> = page.items.iter().map(|text| read(text)).collect();
    Ok(json!({ "items": items, "next": page.next }))
}

fn delete(kind: &cluster::Kind, call: &Value) -> Result<(), Error> {
    let options = DeleteOptions {
        uid: word(call, "uid"),
        resource_version: word(call, "resourceVersion"),
        propagation: match call["propagation"].as_str() {
            Some("foreground") => Propagation::Foreground,
            Some("orphan") => Propagation::Orphan,
            _ => Propagation::Background,
        },
    };
    let name = call["name"].as_str().unwrap_or_default();
    cluster::delete(kind, call["namespace"].as_str(), name, &options)
}

fn event(kind: cluster::Kind, call: &Value) -> Result<(), Error> {
    let name = word(call, "name").unwrap_or_default();
    cluster::emit_event(&Event {
        regarding: ObjectReference { kind, namespace: word(call, "namespace"), name },
        severity: if call["warning"] == true { Severity::Warning } else { Severity::Normal },
        reason: word(call, "reason").unwrap_or_else(|| "Probed".to_owned()),
        action: word(call, "action").unwrap_or_else(|| "Probe".to_owned()),
        note: word(call, "note").unwrap_or_default(),
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
