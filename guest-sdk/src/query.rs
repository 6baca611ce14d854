//! Which objects [`crate::Context::list`] returns.

use crate::bindings::nagaya::controller::cluster::ListOptions;

/// Which of the cached objects of a kind are wanted; the default is all that the controller may see.
#[derive(Clone, Debug)]
pub struct Query(pub(crate) ListOptions);

impl Default for Query {
    fn default() -> Self {
        Self(ListOptions {
            namespace: None,
            label_selector: None,
            index: None,
            limit: 0,
            from: None,
        })
    }
}

impl Query {
    /// Only objects of this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.0.namespace = Some(namespace.to_owned());
        self
    }

    /// Only objects that match this label selector, such as `app=web,tier in (a,b),!legacy`.
    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.0.label_selector = Some(selector.into());
        self
    }

    /// Only objects found under `value` of the manifest's index `name`.
    #[must_use]
    pub fn index(mut self, name: &str, value: &str) -> Self {
        self.0.index = Some((name.to_owned(), value.to_owned()));
        self
    }
}
