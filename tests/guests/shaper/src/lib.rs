//! Makes a Deployment for each Website, and otherwise what its config says: two versions of one controller that differ in
//! one thing, for tests of previews.
//!
//! ```text
//! {
//!   "label": "x",              a label `tier` on every Deployment
//!   "image": "web:2",          the container's image
//!   "delete": "shop",          for the Website of this name, deletes the ConfigMap `shop-old`
//!   "take": "shop",            for this one, takes the field `data.owner` of the ConfigMap `shop-theirs`, whoever has it
//!   "clock": true,             writes the time into the status, and a random word into `data.word` of `<name>-word`
//!   "make": "job-",            makes a ConfigMap with a name that the server chooses
//!   "trap": ["a", "b"],        breaks down for these
//!   "namespace": "new",        makes this namespace, and a ConfigMap in it
//!   "twice": true,             patches its Deployment after it has applied it, and reads it back
//! }
//! ```

#![cfg(target_family = "wasm")]

use declared::Failure;
use nagaya_sdk::bindings::{
    exports::nagaya::controller::guest::{Action, Guest, Request},
    nagaya::controller::{
        cluster::{self, Error, Kind, Ownership, PatchBody, Propagation, Removal},
        runtime,
    },
};
use serde_json::{Value, json};

struct Shaper;

nagaya_sdk::bindings::export!(Shaper with_types_in nagaya_sdk::bindings);

impl Guest for Shaper {
    fn describe() -> Result<String, String> {
        let config = config();
        let website = "examples.nagaya.dev/v1";
        let mut writes = vec![
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "verbs": ["apply", "patch"]}),
            json!({"apiVersion": website, "kind": "Website", "verbs": ["applyStatus"]}),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "verbs": ["apply", "create"]}),
        ];
        if config["delete"].is_string() {
            writes[2]["verbs"] = json!(["apply", "create", "delete"]);
        }
        if config["namespace"].is_string() {
            writes.push(json!({"apiVersion": "v1", "kind": "Namespace", "verbs": ["create"]}));
        }
        let manifest = json!({
            "primary": {"apiVersion": website, "kind": "Website", "when": "generationChanged"},
            "owns": [{"apiVersion": "apps/v1", "kind": "Deployment", "projection": "full"}],
            "writes": writes,
        });
        Ok(manifest.to_string())
    }

    fn reconcile(request: Request) -> Result<Action, String> {
        declared::answer(run(&request))
    }
}

fn run(request: &Request) -> Result<Action, Failure> {
        let config = config();
        let website = kind("examples.nagaya.dev", "Website");
        let site = match cluster::get(&website, &request.namespace, &request.name) {
            Ok(text) => read(&text),
            Err(Error::NotFound) => return Ok(Action::AwaitChange),
            Err(error) => return Err(failed(error)),
        };
        if site["metadata"]["deletionTimestamp"].is_string() {
            return Ok(Action::AwaitChange);
        }
        let name = request.name.as_str();
        let traps = config["trap"].as_array().cloned().unwrap_or_default();
        if traps.iter().any(|one| one == name) {
            core::arch::wasm32::unreachable();
        }
        let namespace = request.namespace.clone();
        deploy(&config, &site, (&namespace, name))?;
        if config["delete"] == name {
            delete(&namespace, &format!("{name}-old"))?;
        }
        if config["take"] == name {
            let mut map = map(&namespace, &format!("{name}-theirs"));
            map["data"] = json!({"owner": "shaper"});
            cluster::apply(&map.to_string(), Ownership::Force).map_err(failed)?;
        }
        if config["clock"] == true {
            tell_time(&site)?;
        }
        if let Some(stem) = config["make"].as_str() {
            let mut made = map(&namespace, "");
            made["metadata"] = json!({"generateName": stem, "namespace": namespace});
            cluster::create(&made.to_string(), false).map_err(failed)?;
        }
        if let Some(new) = config["namespace"].as_str() {
            let it = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": new}});
            cluster::create(&it.to_string(), false).map_err(failed)?;
            let inside = map(new, name);
            cluster::create(&inside.to_string(), false).map_err(failed)?;
        }
        Ok(Action::AwaitChange)
    }

/// Applies the Deployment.
fn deploy(config: &Value, site: &Value, (namespace, name): (&str, &str)) -> Result<(), Failure> {
    let labels = json!({"app": name});
    let image = config["image"].as_str().unwrap_or("web:1");
    let mut deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app": name},
            "ownerReferences": [{
                "apiVersion": "examples.nagaya.dev/v1", "kind": "Website", "controller": true,
                "name": name, "uid": site["metadata"]["uid"],
            }],
        },
        "spec": {
            "replicas": site["spec"]["replicas"],
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{
                    "name": "web", "image": image, "args": [site["spec"]["title"]],
                }]},
            },
        },
    });
    if let Some(label) = config["label"].as_str() {
        deployment["metadata"]["labels"]["tier"] = label.into();
    }
    cluster::apply(&deployment.to_string(), Ownership::Standard).map_err(failed)?;
    if config["twice"] == true {
        let patch = json!({"metadata": {"annotations": {"shaper": "twice"}}}).to_string();
        let kind = kind("apps", "Deployment");
        let of = namespace;
        cluster::patch(&kind, of, name, &PatchBody::Merge(patch)).map_err(failed)?;
        let seen = read(&cluster::get(&kind, of, name).map_err(failed)?);
        let metadata = &seen["metadata"];
        if metadata["annotations"]["shaper"] != "twice" || metadata["labels"]["app"] != name {
            return Err(Failure::Terminal(format!("it does not read what it wrote: {metadata}")));
        }
    }
    Ok(())
}

fn delete(namespace: &str, name: &str) -> Result<(), Failure> {
    let removal = Removal {
        uid: String::new(),
        resource_version: String::new(),
        propagation: Propagation::Background,
    };
    match cluster::remove(&kind("", "ConfigMap"), namespace, name, &removal) {
        Ok(()) | Err(Error::NotFound) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// What differs from run to run, whatever the version.
fn tell_time(site: &Value) -> Result<(), Failure> {
    let metadata = &site["metadata"];
    let status = json!({
        "apiVersion": "examples.nagaya.dev/v1",
        "kind": "Website",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "status": {"url": format!("at {}", runtime::now())},
    });
    cluster::apply_status(&status.to_string()).map_err(failed)?;
    let (namespace, name) = (metadata["namespace"].as_str(), metadata["name"].as_str());
    let mut word = map(namespace.unwrap_or_default(), &format!("{}-word", name.unwrap_or_default()));
    let random = runtime::random(8).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    word["data"] = json!({"word": random});
    cluster::apply(&word.to_string(), Ownership::Standard).map_err(failed)?;
    Ok(())
}

fn map(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
    })
}

fn kind(group: &str, kind: &str) -> Kind {
    Kind { group: group.to_owned(), version: "v1".to_owned(), name: kind.to_owned() }
}

fn config() -> Value {
    read(&runtime::config())
}

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn failed(error: Error) -> Failure {
    Failure::Retry(format!("{error:?}"))
}
