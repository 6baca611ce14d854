//! Which objects [`crate::Context::list`] returns.

use crate::bindings::nagaya::controller::cluster::FindOptions;

/// Which of the cached objects of a kind are wanted; the default is all that the controller may see.
#[derive(Clone, Debug)]
pub struct Query(pub(crate) FindOptions);

impl Default for Query {
    fn default() -> Self {
        let none = String::new;
        Self(FindOptions {
            namespace: none(),
            label_selector: none(),
            index: none(),
            value: none(),
            limit: 0,
            after: none(),
        })
    }
}

impl Query {
    /// Only objects of this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.0.namespace = namespace.to_owned();
        self
    }

    /// Only objects that match this label selector, such as `app=web,tier in (a,b),!legacy`.
    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.0.label_selector = selector.into();
        self
    }

    /// Only objects found under `value` of the manifest's index `name`.
    #[must_use]
    pub fn index(mut self, name: &str, value: &str) -> Self {
        (self.0.index, self.0.value) = (name.to_owned(), value.to_owned());
        self
    }
}
