//! Stands for the content of an object: equal where nothing that an apply could change differs; pure.
//!
//! Invariant: `a_fingerprint_sees_what_an_apply_could_change_and_no_more`.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use ring::digest::{Context, SHA256};
use serde_json::value::RawValue;

/// Which part of an object a [`Fingerprint`] covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but status, resourceVersion and managedFields.
    Main,
    /// The status alone.
    Status,
    /// The metadata, with resourceVersion where the kind has no generation.
    Metadata,
}

/// Stands for a text: equal for equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 16]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Fingerprint {
    /// That of a part of an object; the order of the fields at its top and in its metadata does not matter.
    pub fn of_part(text: &str, part: Part) -> Self {
        let fields: BTreeMap<Cow<'_, str>, &RawValue> =
            serde_json::from_str(text).unwrap_or_default();
        let mut hash = Hash::new();
        if part == Part::Status {
            hash.add("status", fields.get("status").map_or("", |raw| raw.get()));
            return hash.finish();
        }
        let metadata = fields.get("metadata").map_or("{}", |raw| raw.get());
        let metadata: BTreeMap<Cow<'_, str>, &RawValue> =
            serde_json::from_str(metadata).unwrap_or_default();
        let keeps_version = part == Part::Metadata && !metadata.contains_key("generation");
        for (name, value) in &metadata {
            if name != "managedFields" && (keeps_version || name != "resourceVersion") {
                hash.add(name, value.get());
            }
        }
        if part == Part::Main {
            for (name, value) in &fields {
                if !matches!(name.as_ref(), "metadata" | "status" | "apiVersion" | "kind") {
                    hash.add(name, value.get());
                }
            }
        }
        hash.finish()
    }

    /// That of a text as it stands.
    pub fn of_text(text: &str) -> Self {
        let mut hash = Hash::new();
        hash.add("", text);
        hash.finish()
    }
}

struct Hash(Context);

impl Hash {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    fn add(&mut self, name: &str, value: &str) {
        for text in [name, value] {
            self.0.update(text.as_bytes());
            // JSON has no such byte outside of escapes: it ends a text.
            self.0.update(&[0]);
        }
    }

    fn finish(self) -> Fingerprint {
        let mut half = [0; 16];
        half.copy_from_slice(&self.0.finish().as_ref()[..16]);
        Fingerprint(half)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_fingerprint_sees_what_an_apply_could_change_and_no_more() {
        let base = json!({"kind": "T", "metadata": {"name": "a", "resourceVersion": "1", "labels": {"x": "1"}},
            "spec": {"a": 1}, "status": {"s": 1}});
        let changed = |pointer: &str, new: Value| {
            let mut value = base.clone();
            *value.pointer_mut(pointer).unwrap() = new;
            value.to_string()
        };
        let print = |text: &str, part| Fingerprint::of_part(text, part);
        let text = base.to_string();
        for (other, main, status, metadata) in [
            (changed("/metadata/resourceVersion", json!("2")), true, true, false),
            (changed("/status", json!({"s": 2})), true, false, true),
            (changed("/spec", json!({"a": 2})), false, true, true),
            (changed("/metadata/labels", json!({})), false, true, false),
        ] {
            assert_eq!(print(&text, Part::Main) == print(&other, Part::Main), main, "{other}");
            assert_eq!(
                print(&text, Part::Status) == print(&other, Part::Status),
                status,
                "{other}"
            );
            assert_eq!(
                print(&text, Part::Metadata) == print(&other, Part::Metadata),
                metadata,
                "{other}"
            );
        }
        let reordered = r#"{"status":{"s":1},"spec":{"a":1},"metadata":{"labels":{"x":"1"},"name":"a","resourceVersion":"1"}}"#;
        assert_eq!(print(&text, Part::Main), print(reordered, Part::Main));
        let with_generation = |version: &str| {
            json!({"metadata": {"generation": 1, "resourceVersion": version}}).to_string()
        };
        assert_eq!(
            print(&with_generation("1"), Part::Metadata),
            print(&with_generation("2"), Part::Metadata),
            "a status of a kind with generation is no change"
        );
    }
}
