//! Applies a Deployment, a `StatefulSet`, a Pod and a Job and reads each back whole, as an ordinary operator does: what
//! serde makes of these types is the largest code that a reconciler in Rust brings along.
//!
//! ```text
//! {
//!   "echo": 0,           describe answers with a part of what it has read of the config, from this byte on
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

/// Bytes of one answer: the host cuts messages at 1 KiB.
const PART: usize = 900;

#[derive(Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Given {
    #[serde(skip_serializing)]
    echo: Option<usize>,
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
        if let Some(from) = given.echo {
            let text = serde_json::to_string(&given).unwrap_or_else(|error| error.to_string());
            let rest = text.get(from..).unwrap_or_default();
            return Err(Error::terminal(rest.get(..PART).unwrap_or(rest).to_owned()));
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
