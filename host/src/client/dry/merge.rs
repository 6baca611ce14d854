//! What two writes of one object come to, of which the server was asked for each alone; pure.
//!
//! A dry run leaves nothing behind, so the second one is answered as if the first had not been. What each changes of the
//! stored object is put together; where both change the same in different ways nobody knows what would be left.
//!
//! Invariant: `two_changes_are_one_unless_they_meet`.

use serde_json::{Map, Value};

/// What is left by both changes of `stored`; `None`: they meet.
pub(super) fn merged(stored: &Value, first: &Value, second: &Value) -> Option<Value> {
    combined((stored, first, second), "")
}

fn combined((stored, first, second): (&Value, &Value, &Value), of: &str) -> Option<Value> {
    if second == stored || first == second {
        return Some(first.clone());
    }
    if first == stored {
        return Some(second.clone());
    }
    let (Value::Object(first), Value::Object(second)) = (first, second) else { return None };
    let (none, gone) = (Map::new(), Value::Null);
    let stored = stored.as_object().unwrap_or(&none);
    let names: std::collections::BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let mut all = Map::new();
    for name in names {
        // A field that is null is none.
        let [stored, first, second] =
            [stored, first, second].map(|object| object.get(name).unwrap_or(&gone));
        let value = if of == "metadata" && BOOKKEEPING.contains(&name.as_str()) {
            second.clone()
        } else {
            // Only the object's own metadata is the server's.
            let of = if of.is_empty() { name.as_str() } else { "spec" };
            combined((stored, first, second), of)?
        };
        if !value.is_null() {
            all.insert(name.clone(), value);
        }
    }
    Some(Value::Object(all))
}

/// What the server moves with each write.
const BOOKKEEPING: [&str; 3] = ["managedFields", "generation", "resourceVersion"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn two_changes_are_one_unless_they_meet() {
        let stored = json!({ "metadata": { "labels": { "a": "1" } }, "spec": { "x": 1, "l": [1] }, "status": { "n": 0 } });
        let with = |pointer: &str, value: Value| {
            let mut object = stored.clone();
            *object.pointer_mut(pointer).unwrap() = value;
            object
        };
        let (spec, status) = (with("/spec/x", json!(2)), with("/status/n", json!(1)));
        let both = merged(&stored, &spec, &status).unwrap();
        assert_eq!((&both["spec"]["x"], &both["status"]["n"]), (&json!(2), &json!(1)));
        assert_eq!(merged(&stored, &status, &spec).unwrap(), both);
        assert_eq!(merged(&stored, &spec, &with("/spec/x", json!(3))), None);
        assert_eq!(merged(&stored, &spec, &spec), Some(spec.clone()));
        let (one, other) = (with("/spec/l", json!([1, 2])), with("/spec/l", json!([1, 3])));
        assert_eq!(merged(&stored, &one, &other), None, "a list is one value");
        let mut without = stored.clone();
        without["spec"].as_object_mut().unwrap().remove("x");
        let left = merged(&stored, &without, &status).unwrap();
        assert!(left["spec"].get("x").is_none() && left["status"]["n"] == 1);
        let (one, other) = (json!({ "a": { "b": 1 } }), json!({ "a": { "c": 2 } }));
        assert_eq!(merged(&json!({}), &one, &other), Some(json!({ "a": { "b": 1, "c": 2 } })));
        let of = |part: &str, number: u8| json!({ part: { "generation": number } });
        let both = |part| merged(&of(part, 1), &of(part, 2), &of(part, 3));
        assert_eq!(both("metadata"), Some(of("metadata", 3)), "the server's own");
        assert_eq!(both("spec"), None, "somebody's field");
    }
}
