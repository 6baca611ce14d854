//! The least that a status can say, where the whole cannot be written or the object not be read; pure.
//!
//! Invariants: `a_status_fits_whatever_others_have_said`, `an_unreadable_object_is_told_once_and_keeps_what_decides`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    model::crd::{Phase, WasmControllerStatus, condition, set_condition},
    text::cut,
};

/// How much of each message remains where the whole status is not let in.
const SHORT: usize = 128;

/// The least of a status: what decides, and each condition in short. It is what remains to be written where the whole is
/// not let in.
pub(super) fn bare(status: &WasmControllerStatus) -> WasmControllerStatus {
    let short = |text: &str| cut(text, SHORT).into_owned();
    let mut bare = WasmControllerStatus {
        message: status.message.as_deref().map(short),
        shares_primary_with: vec![],
        ..status.clone()
    };
    for condition in &mut bare.conditions {
        condition.message = short(&condition.message);
    }
    bare
}

/// What the status of an object that cannot be read says besides what it said before; `None` if it says so already.
pub(super) fn unreadable(body: &str, generation: Option<i64>, text: &str) -> Option<Value> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Object {
        status: Told,
    }
    #[derive(Clone, Default, Deserialize, PartialEq)]
    #[serde(default, rename_all = "camelCase")]
    struct Told {
        observed_generation: Value,
        phase: Value,
        message: Value,
        conditions: Value,
    }
    let old = serde_json::from_str::<Object>(body).unwrap_or_default().status;
    let mut conditions = serde_json::from_value(old.conditions.clone()).unwrap_or_default();
    for (kind, holds) in [("Ready", false), ("Degraded", true)] {
        set_condition(&mut conditions, condition(kind, holds, "Unreadable", text, generation));
    }
    let new = Told {
        observed_generation: json!(generation),
        phase: json!(Phase::Degraded),
        message: json!(text),
        conditions: json!(conditions),
    };
    (new != old).then(|| {
        json!({
            "observedGeneration": new.observed_generation,
            "phase": new.phase,
            "message": new.message,
            "conditions": new.conditions,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_object_is_told_once_and_keeps_what_decides() {
        let body = r#"{"spec":{"suspend":"no"},"status":{"active":"web-1","executorGeneration":7,"phase":"Running","conditions":[{"type":"Progressing","status":"False","reason":"Complete","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#;
        let fields = unreadable(body, Some(3), "cannot be read").unwrap();
        assert_eq!((fields.get("active"), fields.get("executorGeneration")), (None, None));
        assert_eq!(fields["conditions"].as_array().unwrap().len(), 3);
        let mut object: Value = serde_json::from_str(body).unwrap();
        json_patch::merge(&mut object["status"], &fields);
        assert_eq!(object["status"]["active"], "web-1");
        assert_eq!(unreadable(&object.to_string(), Some(3), "cannot be read"), None);
        let deep = format!(
            r#"{{"spec":{}{},"status":{{"active":"web-1"}}}}"#,
            "[".repeat(500),
            "]".repeat(500)
        );
        assert!(unreadable(&deep, None, "cannot be read").is_some());
    }
}
