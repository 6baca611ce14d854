//! Copies the title of a Website into `ConfigMaps`: the smallest reconciler that does real work, for tests under load.
//!
//! ```text
//! {
//!   "mark": "one",     stands in each ConfigMap beside the title: which revision wrote it
//!   "maps": 1,         so many ConfigMaps: `<name>`, `<name>-1`, …
//!   "pause": 0         milliseconds between reading and writing
//! }
//! ```

#![cfg(target_family = "wasm")]

use nagaya_sdk::bindings::{
    exports::nagaya::controller::guest::{Action, Guest, Request},
    nagaya::controller::{
        cluster::{self, Kind, Ownership},
        runtime,
    },
};
use serde_json::{Value, json};

struct Copier;

nagaya_sdk::bindings::export!(Copier with_types_in nagaya_sdk::bindings);

impl Guest for Copier {
    fn describe() -> Result<String, String> {
        let manifest = json!({
            "primary": {
                "apiVersion": "examples.nagaya.dev/v1", "kind": "Website", "when": "generationChanged",
            },
            "owns": [{"apiVersion": "v1", "kind": "ConfigMap", "projection": "full"}],
            "writes": [{"apiVersion": "v1", "kind": "ConfigMap", "verbs": ["apply"]}],
        });
        Ok(manifest.to_string())
    }

    fn reconcile(request: Request) -> Result<Action, String> {
        let config: Value = serde_json::from_str(&runtime::config()).unwrap_or_default();
        let website = Kind {
            group: "examples.nagaya.dev".to_owned(),
            version: "v1".to_owned(),
            name: "Website".to_owned(),
        };
        let site: Value = match cluster::get(&website, &request.namespace, &request.name)
        {
            Ok(text) => serde_json::from_str(&text).unwrap_or_default(),
            Err(cluster::Error::NotFound) => return Ok(Action::AwaitChange),
            Err(error) => return Err(format!("{error:?}")),
        };
        if site["metadata"]["deletionTimestamp"].is_string() {
            return Ok(Action::AwaitChange);
        }
        if let Some(pause) = config["pause"].as_u64().filter(|pause| *pause > 0) {
            std::thread::sleep(std::time::Duration::from_millis(pause));
        }
        for number in 0..config["maps"].as_u64().unwrap_or(1) {
            let name = match number {
                0 => request.name.clone(),
                number => format!("{}-{number}", request.name),
            };
            let map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": name,
                    "namespace": request.namespace,
                    "ownerReferences": [{
                        "apiVersion": "examples.nagaya.dev/v1", "kind": "Website", "controller": true,
                        "name": request.name, "uid": site["metadata"]["uid"],
                    }],
                },
                "data": { "title": site["spec"]["title"], "mark": config["mark"] },
            });
            cluster::apply(&map.to_string(), Ownership::Standard)
                .map_err(|error| format!("{error:?}"))?;
        }
        Ok(Action::AwaitChange)
    }
}
