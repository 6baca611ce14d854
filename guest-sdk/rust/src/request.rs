//! What a run is about.

use crate::bindings::nagaya::controller::common;

/// The primary object of a run. It never says what changed or why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The object's namespace; `None` if the primary kind is cluster-scoped.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
}

impl From<common::Request> for Request {
    fn from(common::Request { namespace, name }: common::Request) -> Self {
        Self { namespace: (!namespace.is_empty()).then_some(namespace), name }
    }
}
