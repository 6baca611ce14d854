//! Makes one `ConfigMap` for each Website by POST, under a name that the API server makes up, and writes that name into
//! an annotation of the Website: a run that does not see what the one before it wrote makes another. When the Website
//! is gone it deletes what it made for that name.
//!
//! With `{"orphans": true}` as config the `ConfigMaps` have no owner, so that nobody else deletes them.

#![cfg(target_family = "wasm")]

use declared::Failure;
use nagaya_sdk::bindings::{
    exports::nagaya::controller::guest::{Action, Guest, Request},
    nagaya::controller::{
        cluster::{self, Error, FindOptions, Kind, PatchBody, Propagation, Removal},
        runtime,
    },
};
use serde_json::{Value, json};

/// The label of each child; its value is the Website's name.
const OF: &str = "maker.nagaya.dev/of";
/// The annotation of each Website; its value is the child's name.
const CHILD: &str = "maker.nagaya.dev/child";

struct Maker;

nagaya_sdk::bindings::export!(Maker with_types_in nagaya_sdk::bindings);

impl Guest for Maker {
    fn describe() -> Result<String, String> {
        let site = "examples.nagaya.dev/v1";
        let manifest = json!({
            "primary": {"apiVersion": site, "kind": "Website", "when": "generationChanged"},
            "watches": [{
                "apiVersion": "v1", "kind": "ConfigMap", "when": "generationChanged",
                "wakes": {"label": {"name": OF}},
            }],
            "writes": [
                {"apiVersion": "v1", "kind": "ConfigMap", "verbs": ["create", "patch", "delete"]},
                {"apiVersion": site, "kind": "Website", "verbs": ["patch"]},
            ],
        });
        Ok(manifest.to_string())
    }

    fn reconcile(request: Request) -> Result<Action, String> {
        declared::answer(run(&request))
    }
}

fn run(request: &Request) -> Result<Action, Failure> {
        let (website, map) = (kind("examples.nagaya.dev", "Website"), kind("", "ConfigMap"));
        let namespace = request.namespace.as_str();
        let site = match cluster::get(&website, namespace, &request.name) {
            Ok(text) => object(&text),
            Err(Error::NotFound) => {
                children(request)?.iter().try_for_each(|child| delete(request, child))?;
                return Ok(Action::AwaitChange);
            }
            Err(error) => return Err(failure(&error)),
        };
        if let Some(child) = site["metadata"]["annotations"][CHILD].as_str() {
            patch(&map, namespace, child, &json!({"data": {"title": site["spec"]["title"]}}))?;
        } else {
            let child = create(request, &site)?;
            let noted = json!({"metadata": {"annotations": {CHILD: child["metadata"]["name"]}}});
            patch(&website, namespace, &request.name, &noted)?;
        }
        Ok(Action::AwaitChange)
    }

fn patch(kind: &Kind, namespace: &str, name: &str, body: &Value) -> Result<(), Failure> {
    let body = PatchBody::Merge(body.to_string());
    let answer = cluster::patch(kind, namespace, name, &body);
    answer.map(drop).map_err(|error| failure(&error))
}

fn kind(group: &str, name: &str) -> Kind {
    Kind { group: group.to_owned(), version: "v1".to_owned(), name: name.to_owned() }
}

fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn failure(error: &Error) -> Failure {
    Failure::Retry(format!("{error:?}"))
}

fn children(request: &Request) -> Result<Vec<Value>, Failure> {
    let options = FindOptions {
        namespace: request.namespace.clone(),
        label_selector: format!("{OF}={}", request.name),
        index: String::new(),
        value: String::new(),
        limit: 0,
        after: String::new(),
    };
    let page = cluster::find(&kind("", "ConfigMap"), &options).map_err(|error| failure(&error))?;
    Ok(page.items.iter().map(|text| object(text)).collect())
}

fn create(request: &Request, site: &Value) -> Result<Value, Failure> {
    let mut map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "generateName": format!("{}-", request.name),
            "namespace": request.namespace,
            "labels": {OF: request.name},
            "ownerReferences": [{
                "apiVersion": "examples.nagaya.dev/v1", "kind": "Website", "controller": true,
                "name": request.name, "uid": site["metadata"]["uid"],
            }],
        },
        "data": {"title": site["spec"]["title"]},
    });
    if object(&runtime::config())["orphans"] == true {
        map["metadata"]["ownerReferences"] = json!([]);
    }
    cluster::create(&map.to_string(), false).map(|text| object(&text)).map_err(|error| failure(&error))
}

fn delete(request: &Request, child: &Value) -> Result<(), Failure> {
    let name = child["metadata"]["name"].as_str().unwrap_or_default();
    let removal = Removal {
        uid: String::new(),
        resource_version: String::new(),
        propagation: Propagation::Background,
    };
    match cluster::remove(&kind("", "ConfigMap"), &request.namespace, name, &removal) {
        Ok(()) | Err(Error::NotFound) => Ok(()),
        Err(error) => Err(failure(&error)),
    }
}
