//! Looks whether a primary kind has a place where the host can say that the guest refuses an object: the condition
//! `Accepted` beside the guest's own conditions. What it finds is advice, no refusal: most guests never say `invalid`.
//!
//! The schema is read as the API server publishes it for everybody; nothing has to be granted for it.
//!
//! Invariants: `a_list_map_by_type_under_a_status_subresource_is_fit`, `what_is_unfit_is_told_with_what_mends_it`.

use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    access::view::View,
    apiserver::{ApiServer, Call, Resource},
    model::kind::Kind,
};

/// How long what was found is believed: while it is fit, and while it is not and somebody may be mending it.
const FIT_FOR: Duration = Duration::from_secs(600);
const UNFIT_FOR: Duration = Duration::from_secs(60);
/// Time for the schema, which may be long.
const LIMIT: Duration = Duration::from_secs(3);

/// Why there is no fit place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    /// One CamelCase word.
    pub(super) reason: &'static str,
    /// What is missing, what follows, and the YAML that mends it.
    pub(super) message: String,
}

/// What was found, and until when it is believed.
#[derive(Debug, Default)]
pub(super) struct Looks {
    of: Option<Kind>,
    found: Option<Unfit>,
    until: Option<Instant>,
}

impl Looks {
    /// What was found last.
    pub(super) fn found(&self) -> Option<Unfit> {
        self.found.clone()
    }

    /// Looks again if it is time to.
    pub(super) async fn look(&mut self, api: &ApiServer, view: Option<&View>) {
        let Some(view) = view else { return };
        let kind = &view.manifest().primary.kind;
        let is_known = self.of.as_ref() == Some(kind);
        if is_known && self.until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let Some(resource) = view.resource(kind) else { return };
        let looked = look(api, &resource).await;
        let is_fit = matches!(looked, Ok(None));
        match looked {
            Ok(found) => self.found = found,
            // It is only advice; what was found before is better than nothing.
            Err(error) => tracing::debug!(%kind, error, "cannot read a kind's schema"),
        }
        let believed = if is_fit { FIT_FOR } else { UNFIT_FOR };
        (self.of, self.until) = (Some(kind.clone()), Some(Instant::now() + believed));
    }
}

async fn look(api: &ApiServer, resource: &Resource) -> Result<Option<Unfit>, String> {
    let kind = &resource.kind;
    // Kinds whose schema nobody mends.
    if kind.is_built_in() {
        return Ok(None);
    }
    let path = format!("/openapi/v3/apis/{}", kind.api_version());
    let call = Call { limit: LIMIT, ..Call::new(Method::GET, path) };
    let text = api.call(call).await.map_err(|error| crate::causes::all(&error))?;
    let document: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    // Discovery as it was at staging may be old: the schema's own paths tell what is served now.
    Ok(judge(&document, resource))
}

fn judge(document: &Value, resource: &Resource) -> Option<Unfit> {
    let kind = &resource.kind;
    let schema = schema(document, kind)?;
    let status = format!("/{}/{{name}}/status", resource.plural);
    let paths = document["paths"].as_object()?;
    let is_served = paths.keys().any(|path| path.ends_with(&status));
    if !is_served {
        return Some(unfit(
            kind,
            "NoStatusSubresource",
            "it has no subresource status",
            "spec:\n  versions:\n  - subresources: {status: {}}",
        ));
    }
    let properties = &schema["properties"]["status"]["properties"];
    let conditions = &properties["conditions"];
    let keys = conditions["x-kubernetes-list-map-keys"].as_array();
    let by_type = keys.is_some_and(|keys| keys.len() == 1 && keys[0] == "type");
    let is_map = conditions["x-kubernetes-list-type"] == "map" && by_type;
    if is_map {
        return None;
    }
    let (reason, what) = if conditions.is_object() {
        ("ConditionsAtomic", "its status.conditions is no list map by type")
    } else {
        ("NoConditions", "its status has no conditions")
    };
    Some(unfit(kind, reason, what, CONDITIONS))
}

/// The part of a CustomResourceDefinition that makes conditions a list map.
const CONDITIONS: &str = "\
status:
  type: object
  properties:
    conditions:
      type: array
      x-kubernetes-list-type: map
      x-kubernetes-list-map-keys: [type]
      items:
        type: object
        required: [type, status]
        properties:
          type: {type: string}
          status: {type: string}
          reason: {type: string}
          message: {type: string}
          observedGeneration: {type: integer, format: int64}
          lastTransitionTime: {type: string, format: date-time}";

fn unfit(kind: &Kind, reason: &'static str, what: &str, yaml: &str) -> Unfit {
    let message = format!(
        "{kind}: {what}, so an object that the guest calls invalid is told by an Event, and not by a condition Accepted=False beside the guest's own. A guest that never says invalid needs nothing. In the kind's CustomResourceDefinition this mends it:\n{yaml}"
    );
    Unfit { reason, message }
}

fn schema<'a>(document: &'a Value, kind: &Kind) -> Option<&'a Value> {
    let schemas = document["components"]["schemas"].as_object()?;
    let is_of = |schema: &&Value| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        kinds.into_iter().flatten().any(|of| {
            of["group"] == *kind.group && of["version"] == *kind.version && of["kind"] == *kind.kind
        })
    };
    schemas.values().find(is_of)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resource() -> Resource {
        Resource {
            kind: Kind::new("example.com/v1", "Site"),
            plural: "sites".to_owned(),
            namespaced: true,
            has_status: true,
        }
    }

    /// As an API server publishes a CRD.
    fn document(status: &Value, has_subresource: bool) -> Value {
        let mut paths = json!({
            "/apis/example.com/v1/namespaces/{namespace}/sites/{name}": {},
            "/apis/example.com/v1/namespaces/{namespace}/othersites/{name}/status": {},
        });
        if has_subresource {
            paths["/apis/example.com/v1/namespaces/{namespace}/sites/{name}/status"] = json!({});
        }
        let of = |kind: &str| json!([{"group": "example.com", "version": "v1", "kind": kind}]);
        json!({"paths": paths, "components": {"schemas": {
            "com.example.v1.Other": {"x-kubernetes-group-version-kind": of("Other")},
            "com.example.v1.Site": {
                "x-kubernetes-group-version-kind": of("Site"),
                "properties": {"spec": {}, "status": status},
            },
        }}})
    }

    fn conditions(list: &Value) -> Value {
        json!({"type": "object", "properties": {"conditions": list}})
    }

    #[test]
    fn a_list_map_by_type_under_a_status_subresource_is_fit() {
        let map = json!({
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
        });
        assert_eq!(judge(&document(&conditions(&map), true), &resource()), None);
        // Of a kind that the document does not know nothing is said.
        assert_eq!(judge(&json!({}), &resource()), None);
    }

    #[test]
    fn what_is_unfit_is_told_with_what_mends_it() {
        let atomic = json!({"type": "array"});
        let set = json!({"type": "array", "x-kubernetes-list-type": "set"});
        let by_name = json!({
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
        });
        let free = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        for (status, has_subresource, reason, words) in [
            (conditions(&atomic), true, "ConditionsAtomic", "x-kubernetes-list-type: map"),
            (conditions(&set), true, "ConditionsAtomic", "x-kubernetes-list-map-keys: [type]"),
            (conditions(&by_name), true, "ConditionsAtomic", "x-kubernetes-list-map-keys: [type]"),
            (json!({"type": "object"}), true, "NoConditions", "conditions:"),
            (free, true, "NoConditions", "conditions:"),
            (json!(null), true, "NoConditions", "conditions:"),
            (conditions(&atomic), false, "NoStatusSubresource", "subresources: {status: {}}"),
        ] {
            let unfit = judge(&document(&status, has_subresource), &resource()).unwrap();
            assert_eq!(unfit.reason, reason, "{status}");
            assert!(unfit.message.contains(words), "{}", unfit.message);
            assert!(unfit.message.contains("Site.example.com"), "{}", unfit.message);
        }
    }
}
