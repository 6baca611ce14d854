//! A manifest out of the controller's config, and how a run's failures are answered.
//!
//! `config.manifest` is a whole manifest, as `describe` answers it. Without it there is a small one: `config.primary` is the
//! reconciled kind (a Website if absent), woken by changes of its generation, and a `ConfigMap` may be written in every way.

use nagaya_sdk::{Kind, bindings::nagaya::controller::common::Action};
use serde_json::{Value, json};

/// The manifest that `config` asks for.
pub fn manifest(config: &Value) -> Value {
    if let Some(whole) = config.get("manifest") {
        return whole.clone();
    }
    let mut primary = config.get("primary").cloned().unwrap_or_else(website);
    primary["when"] = "generationChanged".into();
    json!({
        "primary": primary,
        "writes": [{
            "apiVersion": "v1", "kind": "ConfigMap", "verbs": ["create", "apply", "patch", "delete"],
        }],
    })
}

/// The kind that `config` has reconciled.
pub fn primary(config: &Value) -> Result<Kind, String> {
    kind(&manifest(config)["primary"])
}

/// The kind in `value`: `{"apiVersion": …, "kind": …}`.
pub fn kind(value: &Value) -> Result<Kind, String> {
    let (Some(api_version), Some(name)) = (value["apiVersion"].as_str(), value["kind"].as_str())
    else {
        return Err(format!("{value} is not a kind"));
    };
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Ok(Kind { group: group.to_owned(), version: version.to_owned(), name: name.to_owned() })
}

fn website() -> Value {
    json!({ "apiVersion": "examples.nagaya.dev/v1", "kind": "Website" })
}

/// In which way a run fails.
#[derive(Debug)]
pub enum Failure {
    /// It runs again after its backoff.
    Retry(String),
    /// It waits for a change.
    Terminal(String),
    /// The same, and the object is at fault.
    Invalid(String),
}

/// What `reconcile` answers.
pub fn answer(outcome: Result<Action, Failure>) -> Result<Action, String> {
    match outcome {
        Ok(action) => Ok(action),
        Err(Failure::Retry(text)) => Err(text),
        Err(Failure::Terminal(text)) => Ok(Action::Terminal(text)),
        Err(Failure::Invalid(text)) => Ok(Action::Invalid(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_word_it_reconciles_websites_and_writes_config_maps() {
        assert_eq!(primary(&Value::Null).unwrap().name, "Website");
        let manifest = manifest(&Value::Null);
        assert_eq!(manifest["primary"]["when"], "generationChanged");
        let other = json!({"primary": {"apiVersion": "v1", "kind": "Namespace"}});
        let other = primary(&other).unwrap();
        assert_eq!((other.group.as_str(), other.name.as_str()), ("", "Namespace"));
        let whole = json!({"primary": {"apiVersion": "v1", "kind": "Namespace"}, "finalizer": "a/b"});
        assert_eq!(super::manifest(&json!({"manifest": whole})), whole);
        assert!(kind(&json!({"kind": "Namespace"})).is_err());
    }
}
