//! Which primaries a change of a watched object wakes.

use serde_json::{Value, json};

/// Which primaries a change of a watched object wakes. Both the object before and the object after the change are
/// mapped, so that a primary hears of an object that has just left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The primary with the changed object's namespace and name.
    Same,
    /// The primary named by an owner reference of the primary's group and kind (the version is ignored),
    /// whether or not it is the controller.
    Owner,
    /// The same, only if that reference says `controller: true`.
    Controller,
    /// The primary whose name stands in a label.
    Label(Place),
    /// The primary whose name stands in an annotation.
    Annotation(Place),
    /// The primary whose name stands in a field; the watch must be full.
    Field(Place),
    /// The primaries in whose index of this name the changed object's name stands: the reverse of `Field`. An index
    /// value `a` means the primary's own namespace, `ns/a` another.
    Index(String),
    /// Every primary.
    Every,
}

/// Where in a changed object the primary's name stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    name: String,
    namespace: Option<String>,
}

impl Place {
    fn new(name: &str, namespace: Option<&str>) -> Self {
        Self { name: name.to_owned(), namespace: namespace.map(str::to_owned) }
    }

    pub(crate) fn to_value(&self) -> Value {
        let mut value = json!({ "name": self.name });
        if let Some(namespace) = &self.namespace {
            value["namespace"] = namespace.as_str().into();
        }
        value
    }
}

impl Mapping {
    /// The primary whose name and namespace stand in these labels; without the second, the object's own namespace.
    pub fn label<'a>(name: &str, namespace: impl Into<Option<&'a str>>) -> Self {
        Self::Label(Place::new(name, namespace.into()))
    }

    /// The same with annotations.
    pub fn annotation<'a>(name: &str, namespace: impl Into<Option<&'a str>>) -> Self {
        Self::Annotation(Place::new(name, namespace.into()))
    }

    /// The same with fields (`spec.claimRef.name`); the watch must be full.
    pub fn field<'a>(name: &str, namespace: impl Into<Option<&'a str>>) -> Self {
        Self::Field(Place::new(name, namespace.into()))
    }

    /// The primaries in whose index of this name the changed object's name stands.
    pub fn index(name: &str) -> Self {
        Self::Index(name.to_owned())
    }
}
