//! What a reconciler can reach: the host, or natively the in-memory cluster of the tests.

#[cfg(target_family = "wasm")]
use crate::bindings::nagaya::controller::{cluster, runtime};
use crate::{
    Kind, Level,
    bindings::nagaya::controller::{
        cluster::{Error, Event, FindOptions, Ownership, Page, PatchBody, Removal},
        common::{Field, ObjectReference},
    },
};

/// The imports of the world, one method each.
pub(crate) trait Api {
    fn get(&self, at: &ObjectReference) -> Result<String, Error>;
    fn find(&self, kind: &Kind, options: &FindOptions) -> Result<Page, Error>;
    fn get_live(&self, at: &ObjectReference) -> Result<String, Error>;
    fn apply(&self, object: &str, ownership: Ownership) -> Result<String, Error>;
    fn apply_status(&self, object: &str) -> Result<String, Error>;
    fn create(&self, object: &str, child: bool) -> Result<String, Error>;
    fn patch(&self, at: &ObjectReference, body: &PatchBody) -> Result<String, Error>;
    fn remove(&self, at: &ObjectReference, removal: &Removal) -> Result<(), Error>;
    fn emit_event(&self, event: &Event) -> Result<(), Error>;
    fn now(&self) -> f64;
    fn random(&self, length: u32) -> Vec<u8>;
    fn config(&self) -> String;
    fn log(&self, level: Level, message: &str, fields: &[Field]);
}

/// The host.
#[cfg(target_family = "wasm")]
pub(crate) struct Host;

#[cfg(target_family = "wasm")]
impl Api for Host {
    fn get(&self, at: &ObjectReference) -> Result<String, Error> {
        cluster::get(&at.kind, &at.namespace, &at.name)
    }

    fn find(&self, kind: &Kind, options: &FindOptions) -> Result<Page, Error> {
        cluster::find(kind, options)
    }

    fn get_live(&self, at: &ObjectReference) -> Result<String, Error> {
        cluster::get_live(&at.kind, &at.namespace, &at.name)
    }

    fn apply(&self, object: &str, ownership: Ownership) -> Result<String, Error> {
        cluster::apply(object, ownership)
    }

    fn apply_status(&self, object: &str) -> Result<String, Error> {
        cluster::apply_status(object)
    }

    fn create(&self, object: &str, child: bool) -> Result<String, Error> {
        cluster::create(object, child)
    }

    fn patch(&self, at: &ObjectReference, body: &PatchBody) -> Result<String, Error> {
        cluster::patch(&at.kind, &at.namespace, &at.name, body)
    }

    fn remove(&self, at: &ObjectReference, removal: &Removal) -> Result<(), Error> {
        cluster::remove(&at.kind, &at.namespace, &at.name, removal)
    }

    fn emit_event(&self, event: &Event) -> Result<(), Error> {
        cluster::emit_event(event)
    }

    fn now(&self) -> f64 {
        runtime::now()
    }

    fn random(&self, length: u32) -> Vec<u8> {
        runtime::random(length)
    }

    fn config(&self) -> String {
        runtime::config()
    }

    fn log(&self, level: Level, message: &str, fields: &[Field]) {
        runtime::log(level, message, fields);
    }
}
