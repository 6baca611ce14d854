//! What a reconciler does to objects of a kind.

use std::{
    fmt,
    ops::{BitOr, BitOrAssign},
};

use serde_json::Value;

/// What a reconciler does to objects of a kind; combine with `|`. The account's RBAC must allow the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verbs(u8);

const NAMES: [&str; 5] = ["create", "apply", "applyStatus", "patch", "delete"];

impl Verbs {
    /// [`crate::Context::create`]: RBAC verb create.
    pub const CREATE: Self = Self(1);
    /// [`crate::Context::apply`]: RBAC verbs patch, and create where the object is not there yet. For a kind that is
    /// not watched also get, if objects with owner references are applied.
    pub const APPLY: Self = Self(2);
    /// [`crate::Context::apply_status`]: RBAC verb patch on the subresource `status`.
    pub const APPLY_STATUS: Self = Self(4);
    /// [`crate::Context::patch`]: RBAC verb patch.
    pub const PATCH: Self = Self(8);
    /// [`crate::Context::delete`]: RBAC verb delete.
    pub const DELETE: Self = Self(16);

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES
            .into_iter()
            .enumerate()
            .filter(move |(bit, _)| self.0 >> bit & 1 == 1)
            .map(|(_, name)| name)
    }

    pub(crate) fn to_value(self) -> Value {
        self.names().map(Value::from).collect()
    }
}

impl BitOr for Verbs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Verbs {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join("|"))
    }
}
