//! Whose server takes dry runs: those of Kubernetes and of every CustomResourceDefinition, and no other.
//!
//! A server behind an `APIService` may say that it knows `dryRun`, and do what it is asked all the same (kubernetes#125623). Whose
//! a group is its `OpenAPI` says, and also whether each kind has the parameter, for which kubectl asks (`QueryParamVerifier`).
//!
//! Invariant: `a_server_that_does_not_say_so_takes_no_dry_runs`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use parking_lot::Mutex;
use serde::Deserialize;

use crate::{
    apiserver::{ApiServer, Call, Error, Resource},
    clock,
};

/// How long an answer counts: a group may come to be served by somebody else.
const VALID: Duration = Duration::from_secs(300);

/// How the server of CustomResourceDefinitions calls what it publishes (`apiextensions-apiserver/pkg/controller/openapi/builder`).
const OF_DEFINITIONS: &str = "Kubernetes CRD Swagger";

/// What is known of it; cheap to clone.
#[derive(Clone, Debug)]
pub struct Support(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    api: ApiServer,
    known: Mutex<HashMap<(String, String), Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    at: Instant,
    /// Plurals that take dry runs.
    plurals: Arc<[String]>,
}

/// The part of an `OpenAPI` document that is of interest.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    info: Info,
    paths: BTreeMap<String, Path>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Info {
    title: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Path {
    patch: Operation,
    parameters: Vec<Parameter>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Operation {
    parameters: Vec<Parameter>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Parameter {
    name: String,
}

impl Support {
    /// Asks `api`, as the host.
    pub fn new(api: ApiServer) -> Self {
        Self(Arc::new(Shared { api, known: Mutex::default() }))
    }

    /// Whether a dry run of a write is one.
    pub(super) async fn takes_dry_runs(&self, resource: &Resource) -> Result<bool, Error> {
        let kind = &resource.kind;
        if kind.is_built_in() {
            return Ok(true);
        }
        let id = (kind.group.clone(), kind.version.clone());
        let now = clock::now();
        let known = self.0.known.lock().get(&id).cloned();
        let fresh = known.filter(|known| now.saturating_duration_since(known.at) < VALID);
        let plurals = match fresh {
            Some(known) => known.plurals,
            None => {
                let path = format!("/openapi/v3/apis/{}/{}", id.0, id.1);
                let document: Document = self.0.api.fetch(Call::new(Method::GET, path)).await?;
                let plurals = document.plurals();
                self.0.known.lock().insert(id, Known { at: now, plurals: plurals.clone() });
                plurals
            }
        };
        Ok(plurals.contains(&resource.plural))
    }
}

impl Document {
    fn plurals(&self) -> Arc<[String]> {
        if self.info.title != OF_DEFINITIONS {
            return [].into();
        }
        let takes = |path: &Path| {
            let all = path.patch.parameters.iter().chain(&path.parameters);
            all.into_iter().any(|parameter| parameter.name == "dryRun")
        };
        let named = self.paths.iter().filter(|(_, path)| takes(path));
        let plural =
            |path: &str| Some(path.strip_suffix("/{name}")?.rsplit('/').next()?.to_owned());
        named.filter_map(|(path, _)| plural(path)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{apiserver::answering, model::kind::Kind};

    #[tokio::test]
    async fn a_server_that_does_not_say_so_takes_no_dry_runs() {
        let parameter = |name: &str| json!({ "patch": { "parameters": [{ "name": name }] } });
        let document = |title: &str| {
            json!({ "info": { "title": title, "version": "v0.1.0" }, "paths": {
            "/apis/x.io/v1/namespaces/{namespace}/good/{name}": parameter("dryRun"),
            "/apis/x.io/v1/namespaces/{namespace}/bad/{name}": parameter("force"),
            "/apis/x.io/v1/namespaces/{namespace}/bad/{name}/status": parameter("dryRun"),
            "/apis/x.io/v1/watch/none": { "get": {} },
        }, "components": {} })
            .to_string()
        };
        let of = |title: &str| {
            let text = document(title);
            Support::new(answering(move |_| (200, Some(text.clone()))))
        };
        let support = of(OF_DEFINITIONS);
        let resource = |group: &str, plural: &str| Resource {
            kind: Kind::new(&format!("{group}/v1"), "Any"),
            plural: plural.to_owned(),
            namespaced: true,
            has_status: true,
        };
        for (plural, expected) in [("good", true), ("bad", false), ("other", false)] {
            let takes = support.takes_dry_runs(&resource("x.io", plural)).await.unwrap();
            assert_eq!(takes, expected, "{plural}");
        }
        assert!(support.takes_dry_runs(&resource("apps", "deployments")).await.unwrap());
        // It says so, and deletes all the same.
        let takes = of("OpenShift API").takes_dry_runs(&resource("x.io", "good")).await;
        assert!(!takes.unwrap());
        let silent = Support::new(answering(|_| (404, None)));
        assert!(silent.takes_dry_runs(&resource("x.io", "good")).await.is_err());
    }
}
