//! Write a Kubernetes reconciler as a WebAssembly component for the Nagaya host.
//!
//! The host owns watches, caches, queues, retries and credentials. A reconciler says once what it needs
//! ([`Reconciler::manifest`]) and is then called with one object at a time ([`Reconciler::reconcile`]). Every call
//! gets a fresh instance, so nothing is remembered between calls.
//!
//! ```
//! use k8s_openapi::{api::core::v1::ConfigMap, api::core::v1::Namespace};
//! use nagaya_sdk::{Action, Config, Context, Error, Manifest, Reconciler, child};
//!
//! /// Puts a ConfigMap called `hello` into every namespace. A real one has a kind of its own, by kube's `CustomResource`.
//! struct Hello;
//!
//! impl Reconciler for Hello {
//!     type Primary = Namespace;
//!
//!     fn manifest(_: &Config) -> Result<Manifest, Error> {
//!         Ok(Manifest::of::<Namespace>().owns::<ConfigMap>())
//!     }
//!
//!     fn reconcile(namespace: &Namespace, cx: &Context) -> Result<Action, Error> {
//!         let mut hello = ConfigMap { metadata: child(namespace, "hello"), ..ConfigMap::default() };
//!         hello.metadata.namespace = namespace.metadata.name.clone();
//!         cx.apply(&hello)?;
//!         Ok(Action::await_change())
//!     }
//! }
//!
//! nagaya_sdk::export!(Hello);
//!
//! // The unit test, without host and without WebAssembly.
//! # #[cfg(not(target_family = "wasm"))]
//! # fn main() -> Result<(), Error> {
//! let cluster = nagaya_sdk::testing::Cluster::new();
//! let metadata = child(&Namespace::default(), "demo");
//! cluster.put(&Namespace { metadata, ..Namespace::default() })?;
//! cluster.run::<Hello>(None, "demo")?;
//! assert!(cluster.get::<ConfigMap>("demo", "hello")?.is_some());
//! # Ok(())
//! # }
//! # #[cfg(target_family = "wasm")]
//! # fn main() {}
//! ```
//!
//! Read in this order: [`Reconciler`], [`Manifest`], [`Context`], [`Action`], [`Error`], [`testing`].

mod action;
mod api;
#[cfg(any(target_family = "wasm", test))]
mod arena;
pub mod bindings;
mod body;
mod condition;
mod config;
#[cfg(test)]
mod conformance;
mod context;
mod error;
mod event;
mod manifest;
mod mapping;
#[cfg(not(target_family = "wasm"))]
mod memory;
mod object;
#[cfg(not(target_family = "wasm"))]
mod owners;
mod predicate;
mod query;
mod reconciler;
mod request;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
mod verbs;

pub use action::Action;
pub use bindings::nagaya::controller::{
    cluster::{Propagation, Severity},
    common::Kind,
    runtime::Level,
};
pub use condition::Statement;
pub use config::Config;
pub use context::{Context, Patch};
pub use error::Error;
pub use event::Event;
pub use manifest::{Manifest, Watch};
pub use mapping::{Mapping, Place};
pub use object::{Object, Stored, child};
pub use predicate::Predicate;
pub use query::Query;
pub use reconciler::Reconciler;
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub use reconciler::{describe, reconcile};
pub use request::Request;
pub use verbs::Verbs;
pub use {k8s_openapi, kube_core, serde_json};

/// Makes a [`Reconciler`] the component's entry point. Natively it does nothing, so that unit tests link.
#[macro_export]
macro_rules! export {
    ($reconciler:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::bindings::{
                export,
                exports::nagaya::controller::guest::{Action, Guest, Request},
            };

            struct Component;

            impl Guest for Component {
                fn describe() -> Result<String, String> {
                    $crate::describe::<$reconciler>()
                }

                fn reconcile(request: Request) -> Result<Action, String> {
                    $crate::reconcile::<$reconciler>(request)
                }
            }

    export!(Component with_types_in $crate::bindings);
        };
    };
}
