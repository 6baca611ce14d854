//! Makes a manifest declare more than a host can keep.

use serde_json::{Value, json};

/// Does one step of `describe` to the manifest, if it is one of these.
pub(crate) fn grow(manifest: &mut Value, step: &str, argument: &str) {
    let number = argument.parse::<usize>().unwrap_or(1);
    match step {
        "watches" => {
            let watches = (0..number).map(|n| selecting(&format!("greed!=n{n}")));
            manifest["watches"] = watches.collect();
        }
        "selects" => {
            let selector = format!("greed notin ({})", "v,".repeat(number * 500));
            manifest["watches"] = json!([selecting(&selector)]);
        }
        "words" => {
            manifest["finalizer"] = format!("greed.example/{}", "f".repeat(number * 1_000)).into();
            let (name, path) = ("i".repeat(number * 1_000), "p".repeat(number * 1_000));
            manifest["indexes"] = json!([
                {"name": name, "apiVersion": "v1", "kind": "ConfigMap", "path": path}
            ]);
        }
        _ => (),
    }
}

fn selecting(labels: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "labelSelector": labels, "wakes": "every"})
}
