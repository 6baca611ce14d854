//! Objects as YAML files have them: read, moved into another namespace, applied.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::Value;

/// The field manager of what tests and the demo apply.
pub const FIELD_MANAGER: &str = "e2e";

/// The namespace that the files of `examples/` are written for.
const WRITTEN_FOR: &str = "demo";

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All documents of a YAML file; `path` is relative to the root.
pub fn read(path: &str) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(root().join(path));
    parse(&text.with_context(|| format!("reading {path}"))?)
        .with_context(|| format!("understanding {path}"))
}

/// The objects of a text of YAML documents.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    // Comments alone between two separators are no document.
    let is_empty = |part: &&str| {
        part.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    };
    let parts = text.split("\n---").filter(|part| !is_empty(part));
    parts.map(|part| Ok(serde_saphyr::from_str(part.trim_start_matches("---"))?)).collect()
}

/// The same object with the word `demo` replaced in all of its texts: the namespace, the scope, and
/// the names of cluster-wide roles, which would collide otherwise.
pub fn moved(object: &Value, namespace: &str) -> Value {
    match object {
        Value::String(text) => Value::String(replace_word(text, WRITTEN_FOR, namespace)),
        Value::Array(items) => items.iter().map(|item| moved(item, namespace)).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (key.clone(), moved(value, namespace)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

fn replace_word(text: &str, word: &str, with: &str) -> String {
    let pieces = text.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric());
    pieces
        .map(|piece| match piece.strip_prefix(word) {
            Some(rest) if !rest.starts_with(|letter: char| letter.is_ascii_alphanumeric()) => {
                format!("{with}{rest}")
            }
            _ => piece.to_owned(),
        })
        .collect()
}

/// The API of the kind of `object`, in its namespace if it has one.
pub fn api_of(client: &Client, object: &Value) -> Result<Api<DynamicObject>> {
    let text =
        |name: &str| object[name].as_str().with_context(|| format!("{object} has no {name}"));
    let resource = resource(text("apiVersion")?, text("kind")?);
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    })
}

/// The resource of a kind whose plural follows the rule.
pub fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Applies the objects in their order.
pub async fn apply(client: &Client, objects: &[Value]) -> Result<()> {
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let applied = api_of(client, object)?.patch(name, &parameters, &Patch::Apply(object)).await;
        applied.with_context(|| format!("applying {} {name}", object["kind"]))?;
    }
    Ok(())
}

/// `object` as its own type.
pub fn typed<K: for<'de> Deserialize<'de>>(object: &Value) -> Result<K> {
    K::deserialize(object).with_context(|| format!("understanding {object}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_word_is_replaced() {
        let object = json!({
            "metadata": {"namespace": "demo", "name": "nagaya-demo-mirror"},
            "spec": {"namespaces": ["demo"], "label": "trusts=demo", "title": "demonstration demos"},
        });
        assert_eq!(
            moved(&object, "t-1"),
            json!({
                "metadata": {"namespace": "t-1", "name": "nagaya-t-1-mirror"},
                "spec": {"namespaces": ["t-1"], "label": "trusts=t-1", "title": "demonstration demos"},
            })
        );
    }

    #[test]
    fn a_file_is_its_documents() {
        let text = "# the first\na: 1\n---\n# nothing\n---\nb: 2\n";
        assert_eq!(parse(text).unwrap(), [json!({"a": 1}), json!({"b": 2})]);
    }

    #[test]
    fn every_example_can_be_read() {
        for example in ["website", "at", "mirror"] {
            for file in ["crd", "rbac", "controller", "sample"] {
                let objects = read(&format!("examples/{example}/{file}.yaml")).unwrap();
                assert!(
                    objects.iter().all(|object| object["kind"].is_string()),
                    "{example}/{file}"
                );
            }
        }
    }

    #[test]
    fn plurals_follow_the_rule() {
        let plural = |kind| resource("examples.nagaya.dev/v1", kind).plural;
        assert_eq!(plural("At"), "ats");
        assert_eq!(plural("WasmController"), "wasmcontrollers");
        assert_eq!(resource("v1", "ConfigMap").group, "");
    }
}
