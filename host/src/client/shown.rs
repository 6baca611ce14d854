//! Whether a watch would show an object, by its label selector and its field selector; pure.
//!
//! The API server evaluates `metadata.name` and `metadata.namespace` for every kind, and for some kinds a handful of
//! fields that stand in the object under the path that the selector names. A field that is absent counts as empty,
//! as it does there.
//!
//! Invariant: `a_field_selector_is_evaluated_as_the_server_does`.

use nagaya_selector::Selector;
use serde_json::Value;

use crate::{model::manifest::Watch, watch::Entry};

/// Whether an object in this state is in the cache of `watch`, or will be. What cannot be evaluated is not waited for.
pub(super) fn selects(watch: &Watch, entry: &Entry) -> bool {
    let labels = watch.label_selector.as_deref().is_none_or(|text| {
        Selector::parse(text).is_ok_and(|selector| selector.matches(|key| entry.label(key)))
    });
    labels && watch.field_selector.as_deref().is_none_or(|text| has_fields(text, entry))
}

fn has_fields(selector: &str, entry: &Entry) -> bool {
    let terms = split(selector, ',');
    let needs_body = terms.iter().any(|term| !term.starts_with("metadata."));
    let body = if needs_body {
        serde_json::from_str(entry.body()).unwrap_or(Value::Null)
    } else {
        Value::Null
    };
    terms.iter().filter(|term| !term.is_empty()).all(|term| {
        let Some((path, is_equal, wanted)) = parse(term) else { return false };
        let found = match path {
            "metadata.name" => entry.key().name.to_string(),
            "metadata.namespace" => entry.key().namespace.as_deref().unwrap_or_default().to_owned(),
            _ => match path.split('.').try_fold(&body, |inner, segment| inner.get(segment)) {
                Some(Value::String(text)) => text.clone(),
                Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
                // Numbers and truth values have a zero of their own.
                None | Some(Value::Null) if ["0", "false"].contains(&&*wanted) => wanted.clone(),
                _ => String::new(),
            },
        };
        (found == wanted) == is_equal
    })
}

/// Path, whether it must be equal, and the value without its escapes.
fn parse(term: &str) -> Option<(&str, bool, String)> {
    let at = term.find(['=', '!'])?;
    let (path, rest) = term.split_at(at);
    let (is_equal, value) = match rest.strip_prefix("!=") {
        Some(value) => (false, value),
        None => (true, rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?),
    };
    let mut plain = String::new();
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        plain.push(if c == '\\' { rest.next()? } else { c });
    }
    Some((path, is_equal, plain))
}

/// The parts between separators that no backslash stands before.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut is_escaped) = (vec![], 0, false);
    for (at, c) in text.char_indices() {
        if c == separator && !is_escaped {
            parts.push(&text[start..at]);
            start = at + c.len_utf8();
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        model::manifest::{
            Mapping,
            tests::{config_map, watch},
        },
        watch::envelope,
    };

    #[test]
    fn a_field_selector_is_evaluated_as_the_server_does() {
        let text = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "demo", "labels": {"app": "web"}},
            "spec": {"nodeName": "a,b", "hostNetwork": true, "priority": 7}, "status": {"phase": "Running"}});
        let entry = envelope::object(&text.to_string()).unwrap();
        let selects = |labels: Option<&str>, fields: &str| {
            let plain = watch(config_map(), Mapping::Same);
            let watch = Watch {
                label_selector: labels.map(str::to_owned),
                field_selector: Some(fields.to_owned()),
                ..plain
            };
            super::selects(&watch, &entry)
        };
        for (fields, expected) in [
            ("", true),
            ("metadata.name=web", true),
            ("metadata.name==web,metadata.namespace=demo", true),
            ("metadata.name=other", false),
            ("metadata.name!=web", false),
            ("metadata.namespace!=other,status.phase=Running", true),
            ("status.phase!=Running", false),
            (r"spec.nodeName=a\,b", true),
            ("spec.nodeName=", false),
            ("spec.hostNetwork=true", true),
            ("spec.hostNetwork=false", false),
            ("spec.priority=7", true),
            ("spec.unschedulable=false", true),
            ("spec.schedulerName=", true),
            ("spec.schedulerName!=x", true),
            ("spec.schedulerName=x", false),
            ("status.successful=0", true),
            ("nonsense", false),
            (r"metadata.name=web\", false),
        ] {
            assert_eq!(selects(None, fields), expected, "{fields}");
        }
        assert!(selects(Some("app=web"), "metadata.name=web"));
        assert!(!selects(Some("app!=web"), "metadata.name=web"));
    }
}
