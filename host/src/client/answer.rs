//! Turns the API server's answers into what they mean: to the guest, to its team, and to the next try; pure.
//!
//! A status code alone does not say it. A 403 is a right that the account lacks, or a policy, a quota or a namespace
//! that is going away; a 404 is an object that is gone, or a path that is not served; a 500 is a server in trouble, or
//! an apply that does not fit the schema. The texts are those of kube-apiserver's own sources, read where they begin,
//! so that what an object's owner or a policy's author wrote into a message decides nothing.
//!
//! Invariants, each held by the test of that name:
//!
//! - `every_status_has_one_meaning`
//! - `only_a_refusal_by_the_authorizer_is_a_missing_right`
//! - `a_message_that_quotes_another_one_is_not_taken_for_it`
//! - `an_error_of_the_client_is_none_of_the_server_whatever_its_code`
//! - `a_kind_that_is_not_served_is_no_object_that_is_gone`
//! - `what_became_another_object_is_a_conflict`
//! - `a_webhook_that_takes_no_dry_runs_is_told_from_one_that_refuses`

use crate::{
    apiserver::{self, Status},
    cluster::Error,
};

/// What a JSON patch that does not fit the object is answered with, a failed `test` among them.
const MISFIT: &str = "the server rejected our request due to an error in our request";
/// A kind or subresource that is not served under this path, in a `Status`; a path that no handler knows is plain text.
const NOT_SERVED: &str = "the server could not find the requested resource";
/// How errors begin that server-side apply makes of what the client sent, or of what is stored: without a reason, and
/// before anything is written.
const CANNOT_APPLY: [&str; 8] = [
    "failed to create typed patch object",
    "failed to create typed live object",
    "failed to convert new",
    "failed to convert live object",
    "failed to convert to unversioned",
    "failed to decode managed fields",
    "failed to update ManagedFields",
    "strconv.ParseUint: parsing",
];
/// What the store says of an object that has grown too large.
const TOO_LARGE: [&str; 2] =
    ["etcdserver: request is too large", "trying to send message larger than max"];
/// A webhook that could not be asked; the write was not made.
const WEBHOOK_DOWN: &str = "Internal error occurred: failed calling webhook";

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// There is no such object.
    Gone,
    /// The kind is not served as it was when the revision was staged.
    NotServed,
    /// The name is taken.
    Exists,
    /// Another writer, another object, or a precondition.
    Conflict,
    /// The account lacks a right.
    NoRight,
    /// The object does not fit the kind's schema: the code is ahead of its `CustomResourceDefinition`.
    Schema,
    /// The object is refused as it is, at present.
    Object,
    /// The server cannot answer for now.
    Trouble,
}

/// What a refused or failed call means to the guest.
pub(super) fn error(error: &apiserver::Error) -> Error {
    let apiserver::Error::Refused(status) = error else {
        return match error {
            apiserver::Error::Request(text) => Error::Invalid(text.clone()),
            other => Error::Unavailable(other.to_string()),
        };
    };
    let message = status.message.clone();
    match meaning(status) {
        Meaning::Gone => Error::NotFound,
        Meaning::NotServed => Error::Unavailable(format!(
            "the API server does not serve the kind as it did when the revision was staged ({message}); the host asks how it is served now"
        )),
        Meaning::Exists => Error::AlreadyExists(message),
        Meaning::Conflict if message == MISFIT => Error::Conflict(
            "the JSON patch does not fit the object as it is: a test failed, or a path is not there"
                .to_owned(),
        ),
        Meaning::Conflict => Error::Conflict(message),
        Meaning::NoRight => Error::Forbidden(message),
        Meaning::Schema => Error::Invalid(format!(
            "the code is ahead of the CustomResourceDefinition in the cluster, install the one that it was built with: {message}"
        )),
        Meaning::Object => Error::Invalid(message),
        Meaning::Trouble if status.code == 401 => Error::Unavailable(format!(
            "the API server does not accept the host's own credentials: {message}"
        )),
        Meaning::Trouble => Error::Unavailable(message),
    }
}

/// Whether a write that ended so may have been executed, or may yet be.
pub(super) fn is_outcome_unknown(error: &apiserver::Error) -> bool {
    match error {
        apiserver::Error::Refused(status) => {
            status.code >= 500
                && meaning(status) == Meaning::Trouble
                && !status.message.starts_with(WEBHOOK_DOWN)
        }
        apiserver::Error::Request(_) => false,
        apiserver::Error::Timeout(_)
        | apiserver::Error::Connection(_)
        | apiserver::Error::Answer(_) => true,
    }
}

/// Whether another writer or a precondition stood in the way.
pub(super) fn is_conflict(error: &apiserver::Error) -> bool {
    let apiserver::Error::Refused(status) = error else { return false };
    status.code == 409 && meaning(status) == Meaning::Conflict
}

/// Whether the API server itself may be unwell. What it does not serve itself it answers for without a reason.
pub(super) fn is_fault_of_server(error: &apiserver::Error) -> bool {
    match error {
        apiserver::Error::Refused(status) => {
            status.code >= 500 && !status.reason.is_empty() && meaning(status) == Meaning::Trouble
        }
        apiserver::Error::Request(_) | apiserver::Error::Answer(_) => false,
        apiserver::Error::Timeout(_) | apiserver::Error::Connection(_) => true,
    }
}

/// Whether the API server refused for what may be another way tomorrow, though the guest's object stays as it is: a
/// right, a policy, a quota, another owner, a schema.
pub(super) fn may_pass(error: &apiserver::Error) -> bool {
    let apiserver::Error::Refused(status) = error else { return false };
    matches!(
        meaning(status),
        Meaning::NoRight | Meaning::Schema | Meaning::Object | Meaning::Conflict | Meaning::Exists
    )
}

/// Whether the server cannot say what a write would lead to: a webhook that does something of its own is not asked for a dry
/// run (`NewDryRunUnsupportedErr`).
pub(super) fn is_against_dry_runs(error: &apiserver::Error) -> bool {
    let apiserver::Error::Refused(status) = error else { return false };
    let webhook = status.message.strip_prefix("admission webhook ").and_then(quoted);
    status.code == 400 && webhook == Some(" does not support dry run")
}

/// Whether how the kind is served must be asked again.
pub(super) fn is_not_served(error: &apiserver::Error) -> bool {
    let apiserver::Error::Refused(status) = error else { return false };
    meaning(status) == Meaning::NotServed
}

/// The right that the account lacks, in the server's words, without the object that happened to need it: for everybody
/// who reads the controller's conditions.
pub(super) fn missing_right(error: &apiserver::Error) -> Option<&str> {
    let apiserver::Error::Refused(status) = error else { return None };
    if meaning(status) == Meaning::NoRight { cause(&status.message) } else { None }
}

/// What the schema does not have, in the server's words, without the object.
pub(super) fn outdated_schema(error: &apiserver::Error) -> Option<&str> {
    let apiserver::Error::Refused(status) = error else { return None };
    if meaning(status) != Meaning::Schema {
        return None;
    }
    // `failed to create typed patch object (ns/name; group/version, Kind=Kind):.status.x: field not declared in schema`
    let (_, after) = status.message.split_once("; ")?;
    Some(after)
}

fn meaning(status: &Status) -> Meaning {
    let message = status.message.as_str();
    if is_denied_by_admission(message) {
        return Meaning::Object;
    }
    match status.code {
        403 if is_missing_right(message) => Meaning::NoRight,
        404 if status.reason == "NotFound" && message != NOT_SERVED => Meaning::Gone,
        404 | 405 => Meaning::NotServed,
        409 if status.reason == "AlreadyExists" => Meaning::Exists,
        409 | 412 => Meaning::Conflict,
        422 if is_about_another_object(message) => Meaning::Conflict,
        401 | 408 | 410 | 425 | 429 => Meaning::Trouble,
        400..500 => Meaning::Object,
        _ if TOO_LARGE.iter().any(|text| message.contains(text)) => Meaning::Object,
        // The server's own faults have a reason; what an apply makes of a body has none.
        500 if status.reason.is_empty() && begins_with_any(message, &CANNOT_APPLY) => {
            if message.starts_with(CANNOT_APPLY[0]) && message.contains("not declared in schema") {
                Meaning::Schema
            } else {
                Meaning::Object
            }
        }
        _ => Meaning::Trouble,
    }
}

fn begins_with_any(message: &str, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|text| message.starts_with(text))
}

/// A webhook chooses the code of its refusal, and so does a policy.
fn is_denied_by_admission(message: &str) -> bool {
    let by_webhook = message
        .strip_prefix("admission webhook ")
        .and_then(quoted)
        .is_some_and(|rest| rest.starts_with(" denied the request"));
    by_webhook
        || cause(message).is_some_and(|cause| cause.starts_with("ValidatingAdmissionPolicy '"))
}

/// What every authorizer's refusal reads like, and the two of the admission that protects owner references.
fn is_missing_right(message: &str) -> bool {
    let Some(cause) = cause(message) else { return false };
    let by_authorizer = cause
        .strip_prefix("User ")
        .and_then(quoted)
        .is_some_and(|rest| rest.starts_with(" cannot "));
    by_authorizer
        || begins_with_any(
            cause,
            &[
                "cannot set an ownerRef on a resource you can't delete",
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on",
            ],
        )
}

/// The uid that a write was bound to is another's by now, the patch was made for another state, or the object has
/// another controller.
fn is_about_another_object(message: &str) -> bool {
    message == MISFIT
        || message.contains("metadata.uid: Invalid value") && message.contains("field is immutable")
        || message.contains("Only one reference can have Controller set to true")
}

/// What follows in `configmaps "web" is forbidden: …`, the object's name being whatever it is.
fn cause(message: &str) -> Option<&str> {
    if let Some(cause) = message.strip_prefix("forbidden: ") {
        return Some(cause);
    }
    let (resource, rest) = message.split_once(' ')?;
    if resource.contains('"') {
        return None;
    }
    let rest = if rest.starts_with('"') { quoted(rest)?.strip_prefix(' ')? } else { rest };
    rest.strip_prefix("is forbidden: ")
}

/// What follows a text in quotation marks, as Go writes it.
fn quoted(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('"')?;
    let mut is_escaped = false;
    for (at, c) in inner.char_indices() {
        match c {
            '"' if !is_escaped => return inner.get(at + 1..),
            _ => is_escaped = c == '\\' && !is_escaped,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, reason: &str, message: &str) -> apiserver::Error {
        let (reason, message) = (reason.to_owned(), message.to_owned());
        apiserver::Error::Refused(Box::new(Status { code, reason, message, ..Status::default() }))
    }

    const RIGHT: &str = r#"User "system:serviceaccount:a:b" cannot patch resource "configmaps" in API group "" in the namespace "a""#;

    #[test]
    fn every_status_has_one_meaning() {
        assert!(!is_fault_of_server(&refused(503, "", "m")), "an aggregated API is down");
        let m = || "m".to_owned();
        for (code, reason, expected, unknown) in [
            (404, "NotFound", Error::NotFound, false),
            (409, "AlreadyExists", Error::AlreadyExists(m()), false),
            (409, "Conflict", Error::Conflict(m()), false),
            (412, "", Error::Conflict(m()), false),
            (403, "Forbidden", Error::Invalid(m()), false),
            (422, "Invalid", Error::Invalid(m()), false),
            (400, "BadRequest", Error::Invalid(m()), false),
            (413, "RequestEntityTooLarge", Error::Invalid(m()), false),
            (418, "", Error::Invalid(m()), false),
            (408, "", Error::Unavailable(m()), false),
            (429, "TooManyRequests", Error::Unavailable(m()), false),
            (504, "Timeout", Error::Unavailable(m()), true),
            (500, "InternalError", Error::Unavailable(m()), true),
            (599, "Odd", Error::Unavailable(m()), true),
        ] {
            let error = refused(code, reason, "m");
            assert_eq!(super::error(&error), expected, "{code}");
            assert_eq!(is_outcome_unknown(&error), unknown, "{code}");
            assert_eq!(is_conflict(&error), reason == "Conflict", "{code}");
            assert_eq!(is_fault_of_server(&error), unknown, "{code}");
        }
        let stale = refused(401, "Unauthorized", "Unauthorized");
        assert!(
            matches!(super::error(&stale), Error::Unavailable(text) if text.contains("the host's own"))
        );
    }

    #[test]
    fn a_webhook_that_takes_no_dry_runs_is_told_from_one_that_refuses() {
        for (code, message, expected) in [
            (400, r#"admission webhook "a.example.com" does not support dry run"#, true),
            (400, r#"admission webhook "odd" does not support dry run" denied the request"#, false),
            (
                400,
                r#"admission webhook "a.example.com" denied the request: does not support dry run"#,
                false,
            ),
            (403, r#"admission webhook "a.example.com" does not support dry run"#, false),
        ] {
            assert_eq!(
                is_against_dry_runs(&refused(code, "BadRequest", message)),
                expected,
                "{message}"
            );
        }
    }

    #[test]
    fn only_a_refusal_by_the_authorizer_is_a_missing_right() {
        for name in ["", "\"web\" ", r#""odd\" is forbidden: \\" "#] {
            let error =
                refused(403, "Forbidden", &format!("configmaps {name}is forbidden: {RIGHT}"));
            assert!(matches!(super::error(&error), Error::Forbidden(_)), "{error}");
            assert_eq!(missing_right(&error), Some(RIGHT), "without the object's name");
        }
        let as_it = r#"users "system:serviceaccount:a:b" is forbidden: User "system:serviceaccount:n:nagaya" cannot impersonate resource "users" in API group "" at the cluster scope"#;
        assert!(missing_right(&refused(403, "Forbidden", as_it)).is_some());
        let owner = r#"configmaps "web" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>"#;
        assert!(missing_right(&refused(403, "Forbidden", owner)).is_some());
        for message in [
            r#"configmaps "web" is forbidden: unable to create new content in namespace gone because it is being terminated"#,
            r#"pods "web" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1"#,
            r#"configmaps "web" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"#,
            r#"things.example.com "web" is forbidden: create not allowed while custom resource definition is terminating"#,
            r#"pods "web" is forbidden: violates PodSecurity "restricted:latest": privileged"#,
            r#"pods "web" is forbidden: error looking up service account a/b: serviceaccount "b" not found"#,
            "no",
            "",
        ] {
            let error = refused(403, "Forbidden", message);
            assert_eq!(super::error(&error), Error::Invalid(message.to_owned()));
            assert_eq!(missing_right(&error), None);
            assert!(may_pass(&error), "{message}");
        }
    }

    #[test]
    fn a_message_that_quotes_another_one_is_not_taken_for_it() {
        for message in [
            format!(
                r#"admission webhook "w" denied the request: configmaps "web" is forbidden: {RIGHT}"#
            ),
            format!(
                r#"configmaps "web" is forbidden: ValidatingAdmissionPolicy 'p' denied request: {RIGHT}"#
            ),
            format!(
                r#"configmaps "a\" is forbidden: {RIGHT}" is forbidden: exceeded quota: small"#
            ),
            format!("configmaps is not forbidden: {RIGHT}"),
        ] {
            assert_eq!(missing_right(&refused(403, "Forbidden", &message)), None, "{message}");
        }
        let denied = r#"admission webhook "w" denied the request: not today"#;
        for code in [400, 401, 403, 404, 405, 409, 422, 429, 500, 503] {
            let error = refused(code, "NotFound", denied);
            assert_eq!(super::error(&error), Error::Invalid(denied.to_owned()), "{code}");
            assert!(!is_outcome_unknown(&error) && !is_not_served(&error), "{code}");
            assert!(!is_fault_of_server(&error) && !is_conflict(&error), "{code}");
        }
    }

    #[test]
    fn an_error_of_the_client_is_none_of_the_server_whatever_its_code() {
        let typed = "failed to create typed patch object (a/web; example.com/v1, Kind=Site): ";
        let duplicate = format!(
            r#"{typed}errors:\n  .status.conditions: duplicate entries for key [type="Ready"]"#
        );
        for message in [
            duplicate.as_str(),
            "failed to convert new object (a/web; v1, Kind=Pod) to proper version: strconv",
            "etcdserver: request is too large",
            "rpc error: code = ResourceExhausted desc = trying to send message larger than max (3 vs. 2)",
            r#"strconv.ParseUint: parsing "abc": invalid syntax"#,
        ] {
            let error = refused(500, "", message);
            assert_eq!(super::error(&error), Error::Invalid(message.to_owned()));
            assert!(!is_outcome_unknown(&error) && !is_fault_of_server(&error), "{message}");
            assert_eq!(outdated_schema(&error), None);
        }
        let ahead = refused(500, "", &format!("{typed}.status.sise: field not declared in schema"));
        assert!(matches!(super::error(&ahead), Error::Invalid(text) if text.contains("install")));
        let told = "example.com/v1, Kind=Site): .status.sise: field not declared in schema";
        assert_eq!(outdated_schema(&ahead), Some(told), "without the object's name");
        assert!(may_pass(&ahead) && !is_outcome_unknown(&ahead));
        for message in ["etcdserver: leader changed", "the failed to create typed patch object"] {
            assert!(is_outcome_unknown(&refused(500, "", message)), "{message}");
        }
        let down = refused(500, "InternalError", &format!("{WEBHOOK_DOWN} \"w\": refused"));
        assert!(!is_outcome_unknown(&down) && matches!(super::error(&down), Error::Unavailable(_)));
    }

    #[test]
    fn a_kind_that_is_not_served_is_no_object_that_is_gone() {
        for (code, reason, message) in [
            (404, "", "404 page not found"),
            (404, "NotFound", NOT_SERVED),
            (
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ),
        ] {
            let error = refused(code, reason, message);
            assert!(is_not_served(&error), "{message}");
            assert!(super::error(&error) != Error::NotFound, "{message}");
        }
        let gone = refused(404, "NotFound", r#"configmaps "web" not found"#);
        assert!(!is_not_served(&gone));
    }

    #[test]
    fn what_became_another_object_is_a_conflict() {
        for message in [
            MISFIT,
            r#"ConfigMap "web" is invalid: metadata.uid: Invalid value: "a": field is immutable"#,
            r#"ConfigMap "web" is invalid: metadata.ownerReferences: Invalid value: []: Only one reference can have Controller set to true. Found "true" in references for Site and Site"#,
        ] {
            assert!(matches!(super::error(&refused(422, "Invalid", message)), Error::Conflict(_)));
        }
        let other = r#"ConfigMap "web" is invalid: data: Forbidden: field is immutable when `immutable` is set"#;
        assert!(matches!(super::error(&refused(422, "Invalid", other)), Error::Invalid(_)));
    }
}
