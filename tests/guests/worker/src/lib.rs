//! Does the work of the crate `work` with the object that is its config, and applies what it made; without a config
//! it does nothing.
//!
//! No object of a cluster is read, so the benchmark runs it without one: the host refuses the write at once.

#![cfg(target_family = "wasm")]

use nagaya_sdk::bindings::{
    exports::nagaya::controller::guest::{Action, Guest, Request},
    nagaya::controller::{
        cluster::{self, Ownership},
        runtime,
    },
};

struct Worker;

nagaya_sdk::bindings::export!(Worker with_types_in nagaya_sdk::bindings);

impl Guest for Worker {
    fn describe() -> Result<String, String> {
        Err("this guest is for the benchmark, which only runs it".to_owned())
    }

    fn reconcile(_: Request) -> Result<Action, String> {
        let gateway = runtime::config();
        if !gateway.is_empty() {
            let made = match work::work(&gateway) {
                Ok(made) => made,
                Err(error) => return Ok(Action::Terminal(error.to_string())),
            };
            // Refused where there is no cluster; making the call is what is measured.
            let _ = cluster::apply(&made, Ownership::Standard);
        }
        Ok(Action::AwaitChange)
    }
}
