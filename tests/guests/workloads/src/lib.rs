//! Applies a Deployment, a `StatefulSet`, a Pod and a Job and reads each back whole, as an ordinary operator does: what
//! serde makes of these types is the largest code that a reconciler in Rust brings along.
//!
//! ```text
//! {
//!   "echo": false,       describe answers with what it has read of the config, for tests without a cluster
//!   "deployment": {},    what is applied, under the name of the primary; the same for "statefulSet", "pod", "job"
//! }
//! ```

#![cfg(target_family = "wasm")]

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use nagaya_sdk::{Action, Config, Context, Error, Manifest, Object, Reconciler, Watch, child};
use serde::{Deserialize, Serialize};

#[derive(Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Given {
    #[serde(skip_serializing)]
    echo: bool,
    deployment: Deployment,
    stateful_set: StatefulSet,
    pod: Pod,
    job: Job,
}

/// The reconciler; its primaries are `ConfigMaps`.
struct Workloads;

impl Reconciler for Workloads {
    type Primary = ConfigMap;

    fn manifest(config: &Config) -> Result<Manifest, Error> {
        let given: Given = config.parse()?;
        if given.echo {
            let text = serde_json::to_string(&given);
            return Err(Error::terminal(text.unwrap_or_else(|error| error.to_string())));
        }
        Ok(Manifest::of::<ConfigMap>()
            .labels("nagaya.dev/workloads")
            .owns_with::<Deployment>(Watch::full())
            .owns_with::<StatefulSet>(Watch::full())
            .owns_with::<Pod>(Watch::full())
            .owns_with::<Job>(Watch::full()))
    }

    fn reconcile(owner: &ConfigMap, cx: &Context) -> Result<Action, Error> {
        let mut given: Given = cx.config().parse()?;
        given.deployment = put(owner, given.deployment, cx)?;
        given.stateful_set = put(owner, given.stateful_set, cx)?;
        given.pod = put(owner, given.pod, cx)?;
        given.job = put(owner, given.job, cx)?;
        let seen = serde_json::to_string(&given).unwrap_or_default();
        cx.log(nagaya_sdk::Level::Info, "workloads", &[("seen", &seen)]);
        Ok(Action::await_change())
    }
}

fn put<K: Object>(owner: &ConfigMap, mut object: K, cx: &Context) -> Result<K, Error> {
    *object.meta_mut() = child(owner, owner.metadata.name.clone().unwrap_or_default());
    cx.apply(&object)?.read()
}

nagaya_sdk::export!(Workloads);
