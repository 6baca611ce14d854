//! Each Greeting has a `ConfigMap` with its words: the smallest reconciler with a kind of its own.
//!
//! The README at the top shows the lines between the marks, word for word.

// README begins
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{CustomResource, ResourceExt};
use nagaya_sdk::{Action, Config, Context, Error, Manifest, Reconciler, child};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A greeting for somebody.
#[derive(CustomResource, JsonSchema, Clone, Debug, Serialize, Deserialize)]
#[kube(group = "examples.nagaya.dev", version = "v1", kind = "Greeting", namespaced)]
pub struct GreetingSpec {
    /// Whom to greet.
    pub name: String,
}

/// Keeps a `ConfigMap` with the words beside each Greeting.
pub struct Greeter;

impl Reconciler for Greeter {
    type Primary = Greeting;
    fn manifest(_: &Config) -> Result<Manifest, Error> {
        Ok(Manifest::of::<Greeting>().owns::<ConfigMap>())
    }
    fn reconcile(greeting: &Greeting, cx: &Context) -> Result<Action, Error> {
        let words = format!("Hello, {}!", greeting.spec.name);
        let data = Some([("words".to_owned(), words)].into());
        let metadata = child(greeting, greeting.name_any());
        cx.apply(&ConfigMap { metadata, data, ..ConfigMap::default() })?;
        Ok(Action::await_change())
    }
}
nagaya_sdk::export!(Greeter);
// README ends

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use nagaya_sdk::testing::Cluster;

    use super::*;

    const SOURCE: &str = include_str!("lib.rs");
    const README: &str = include_str!("../../../README.md");

    #[test]
    fn a_greeting_has_its_words_and_hears_of_a_change() {
        let cluster = Cluster::new();
        let mut greeting = Greeting::new("first", GreetingSpec { name: "Nagaya".into() });
        greeting.metadata.namespace = Some("demo".into());
        let mut words = |name: &str| {
            greeting.spec.name = name.into();
            cluster.put(&greeting).unwrap();
            assert_eq!(cluster.run::<Greeter>("demo", "first"), Ok(Action::AwaitChange));
            let child: ConfigMap = cluster.get("demo", "first").unwrap().unwrap();
            assert_eq!(child.metadata.owner_references.unwrap()[0].kind, "Greeting");
            child.data.unwrap()["words"].clone()
        };
        assert_eq!(words("Nagaya"), "Hello, Nagaya!");
        assert_eq!(words("neighbour"), "Hello, neighbour!");
    }

    #[test]
    fn the_readme_shows_this_reconciler_in_thirty_lines() {
        let (_, rest) = SOURCE.split_once("// README begins\n").unwrap();
        let (shown, _) = rest.split_once("// README ends\n").unwrap();
        assert!(
            README.contains(&format!("```rust\n{shown}```\n")),
            "copy the lines into README.md"
        );
        let code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("///");
        let lines = shown.lines().filter(code).count();
        assert!(lines <= 30, "{lines} lines of code are no longer a first reconciler");
    }

    #[test]
    fn the_committed_crd_is_the_generated_one() {
        let generated = serde_saphyr::to_string(&Greeting::crd()).unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crd.yaml");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(committed, generated, "UPDATE=1 renews it");
    }
}
