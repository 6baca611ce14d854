//! Why a run failed, and what the host does about it.
//!
//! | error | the host |
//! |---|---|
//! | `NotFound`, `AlreadyExists`, `Conflict`, `BudgetExceeded`, `Unavailable` | runs the object again after its backoff: the next run sees another state |
//! | `Forbidden` | the same: rights come and go without a change that the controller watches, so waiting for one could last forever |
//! | `Rejected` | says so in an Event and runs the object again slowly, from 10 s to 10 minutes, and at once after a change: a policy, a quota or a schema may be another by then. What the host itself has refused (no object, too large, an owner that Kubernetes does not allow) only after a change |
//! | `NotDeclared` | waits for a change and says so in an Event: the same call would be refused again |
//! | `Retry`, `Terminal`, `Invalid` | what the author decides |
//!
//! Invariant: `every_error_has_one_answer`.

use crate::bindings::nagaya::controller::cluster;
#[cfg(any(target_family = "wasm", test))]
use crate::bindings::nagaya::controller::common::Action;

/// Why a run, or a call to the cluster, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such object (or namespace).
    #[error("not found")]
    NotFound,
    /// `create`: an object of that name exists.
    #[error("already exists: {0}")]
    AlreadyExists(String),
    /// Somebody else changed the object, owns it or the field, or a precondition does not hold.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The controller's account may not do this.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// The object or the arguments are wrong, or the API server refuses the object as it is: by the kind's schema, a
    /// policy, a webhook, a quota, or because its namespace is going away.
    #[error("rejected: {0}")]
    Rejected(String),
    /// The manifest does not declare this kind or verb.
    #[error("not declared: {0}")]
    NotDeclared(String),
    /// The controller has used up its writes or deletes for now.
    #[error("over budget: {0}")]
    BudgetExceeded(String),
    /// The API server did not answer in time. After a write the outcome is unknown.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The author wants another run after the backoff.
    #[error("{0}")]
    Retry(String),
    /// The author wants no other run until something changes; the message becomes an Event.
    #[error("{0}")]
    Terminal(String),
    /// As `Terminal`, and the primary itself is at fault: the message becomes its condition `Accepted: False`.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Run the object again after its backoff.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::Retry(message.into())
    }

    /// Do not run the object again until something changes.
    pub fn terminal(message: impl Into<String>) -> Self {
        Self::Terminal(message.into())
    }

    /// The primary itself is at fault; its owner has to change it.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }
}

impl From<cluster::Error> for Error {
    fn from(error: cluster::Error) -> Self {
        match error {
            cluster::Error::NotFound => Self::NotFound,
            cluster::Error::AlreadyExists(message) => Self::AlreadyExists(message),
            cluster::Error::Conflict(message) => Self::Conflict(message),
            cluster::Error::Forbidden(message) => Self::Forbidden(message),
            cluster::Error::Invalid(message) => Self::Rejected(message),
            cluster::Error::NotDeclared(message) => Self::NotDeclared(message),
            cluster::Error::BudgetExceeded(message) => Self::BudgetExceeded(message),
            cluster::Error::Unavailable(message) => Self::Unavailable(message),
        }
    }
}

#[cfg(any(target_family = "wasm", test))]
impl Error {
    /// What the export `reconcile` answers: an error is a retry, what another run would not mend is an action.
    pub(crate) fn answer(self) -> Result<Action, String> {
        let message = self.to_string();
        match self {
            Error::NotFound
            | Error::AlreadyExists(_)
            | Error::Conflict(_)
            | Error::Forbidden(_)
            | Error::BudgetExceeded(_)
            | Error::Unavailable(_)
            | Error::Retry(_) => Err(message),
            Error::Rejected(_) | Error::NotDeclared(_) | Error::Terminal(_) => {
                Ok(Action::Terminal(message))
            }
            Error::Invalid(_) => Ok(Action::Invalid(message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_one_answer() {
        let retry = |text: &str| Err(text.to_owned());
        let terminal = |text: &str| Ok(Action::Terminal(text.to_owned()));
        for (error, answer) in [
            (cluster::Error::NotFound, retry("not found")),
            (cluster::Error::AlreadyExists("m".into()), retry("already exists: m")),
            (cluster::Error::Conflict("m".into()), retry("conflict: m")),
            (cluster::Error::Forbidden("m".into()), retry("forbidden: m")),
            (cluster::Error::Invalid("m".into()), terminal("rejected: m")),
            (cluster::Error::NotDeclared("m".into()), terminal("not declared: m")),
            (cluster::Error::BudgetExceeded("m".into()), retry("over budget: m")),
            (cluster::Error::Unavailable("m".into()), retry("unavailable: m")),
        ] {
            assert_eq!(Error::from(error).answer(), answer);
        }
        assert_eq!(Error::retry("m").answer(), retry("m"));
        assert_eq!(Error::terminal("m").answer(), terminal("m"));
        assert_eq!(Error::invalid("m").answer(), Ok(Action::Invalid("m".into())));
    }
}
