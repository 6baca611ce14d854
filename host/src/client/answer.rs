//! Turns the API server's answers into the guest's errors: each case has one way to arise; pure.

use crate::{apiserver, client::Error};

/// What a refused or failed call means to the guest.
pub(super) fn error(error: &apiserver::Error) -> Error {
    let apiserver::Error::Refused(status) = error else {
        return match error {
            apiserver::Error::Request(text) => Error::Invalid(text.clone()),
            other => Error::Unavailable(other.to_string()),
        };
    };
    let message = status.message.clone();
    match (status.code, status.reason.as_str()) {
        (404, _) => Error::NotFound,
        (409, "AlreadyExists") => Error::AlreadyExists(message),
        (409 | 412, _) => Error::Conflict(message),
        (401 | 403, _) => Error::Forbidden(message),
        (400 | 405 | 406 | 413 | 415 | 422, _) => Error::Invalid(message),
        _ => Error::Unavailable(message),
    }
}

/// Whether a write that ended so may have been executed, or may yet be (server-facts.md).
pub(super) fn is_outcome_unknown(error: &apiserver::Error) -> bool {
    match error {
        apiserver::Error::Refused(status) => status.code >= 500,
        apiserver::Error::Request(_) => false,
        apiserver::Error::Timeout(_)
        | apiserver::Error::Connection(_)
        | apiserver::Error::Answer(_) => true,
    }
}

/// Whether another writer or a precondition stood in the way.
pub(super) fn is_conflict(error: &apiserver::Error) -> bool {
    let apiserver::Error::Refused(status) = error else { return false };
    status.code == 409 && status.reason != "AlreadyExists"
}

/// Whether the API server itself may be unwell. What it does not serve itself it answers for without a reason.
pub(super) fn is_fault_of_server(error: &apiserver::Error) -> bool {
    match error {
        apiserver::Error::Refused(status) => status.code >= 500 && !status.reason.is_empty(),
        apiserver::Error::Request(_) | apiserver::Error::Answer(_) => false,
        apiserver::Error::Timeout(_) | apiserver::Error::Connection(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::Status;

    #[test]
    fn every_status_has_one_meaning() {
        let refused = |code, reason: &str| {
            let status =
                Status { code, reason: reason.into(), message: "m".into(), ..Status::default() };
            apiserver::Error::Refused(Box::new(status))
        };
        assert!(!is_fault_of_server(&refused(503, "")), "an aggregated API is down");
        let m = || "m".to_owned();
        for (code, reason, expected, unknown) in [
            (404, "NotFound", Error::NotFound, false),
            (409, "AlreadyExists", Error::AlreadyExists(m()), false),
            (409, "Conflict", Error::Conflict(m()), false),
            (403, "Forbidden", Error::Forbidden(m()), false),
            (422, "Invalid", Error::Invalid(m()), false),
            (429, "TooManyRequests", Error::Unavailable(m()), false),
            (504, "Timeout", Error::Unavailable(m()), true),
        ] {
            let error = refused(code, reason);
            assert_eq!(super::error(&error), expected);
            assert_eq!(is_outcome_unknown(&error), unknown, "{code}");
            assert_eq!(is_conflict(&error), reason == "Conflict", "{code}");
            assert_eq!(is_fault_of_server(&error), unknown, "{code}");
        }
    }
}
