//! Conditions of a status, as Kubernetes wants them: dated by their last change, bound to a generation.
//!
//! A status is stated anew in each run and holds the controller's own conditions only: whoever copies all that it
//! read takes over the conditions of others, the host's `Accepted` among them, and they can never go away again.
//! Hence nothing here edits a list; old conditions only lend their date.
//!
//! Invariant: `the_date_moves_with_the_status_only`.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// What a condition says; [`crate::Context::condition`] makes a [`Condition`] of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    kind: &'static str,
    status: &'static str,
    reason: String,
    message: String,
}

impl Statement {
    /// The condition `kind` holds, because of `reason` (one CamelCase word).
    pub fn yes(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, status: "True", reason: reason.to_owned(), message: message.into() }
    }

    /// The condition `kind` does not hold.
    pub fn no(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { status: "False", ..Self::yes(kind, reason, message) }
    }

    /// Nobody knows.
    pub fn unknown(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { status: "Unknown", ..Self::yes(kind, reason, message) }
    }

    /// The condition, with the date of the one of its type in `before` if the status is the same.
    pub(crate) fn dated(
        self,
        before: &[Condition],
        generation: Option<i64>,
        now: Timestamp,
    ) -> Condition {
        let same = before.iter().find(|old| old.type_ == self.kind && old.status == self.status);
        Condition {
            last_transition_time: same.map_or(Time(now), |old| old.last_transition_time.clone()),
            message: self.message,
            observed_generation: generation,
            reason: self.reason,
            status: self.status.to_owned(),
            type_: self.kind.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_moves_with_the_status_only() {
        let at = |second| Timestamp::new(second, 0).unwrap();
        let first = Statement::no("Ready", "Waiting", "").dated(&[], Some(1), at(1));
        assert_eq!(first.last_transition_time, Time(at(1)));
        let before = [Statement::no("Other", "X", "").dated(&[], None, at(0)), first];
        let same = Statement::no("Ready", "StillWaiting", "x").dated(&before, Some(2), at(2));
        assert_eq!(same.last_transition_time, Time(at(1)));
        assert_eq!((same.observed_generation, same.reason.as_str()), (Some(2), "StillWaiting"));
        let changed = Statement::yes("Ready", "Done", "").dated(&before, Some(2), at(3));
        assert_eq!(changed.last_transition_time, Time(at(3)));
        assert_eq!(
            Statement::unknown("Ready", "R", "").dated(&before, None, at(4)).status,
            "Unknown"
        );
    }
}
