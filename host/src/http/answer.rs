//! Answers as the Kubernetes API gives them: a `Status` with a code, a reason and words for people.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

/// A `Status` of this code that says `message`.
pub(super) fn status(code: StatusCode, message: &str) -> Response {
    let success = code.is_success();
    let status = json!({
        "apiVersion": "v1",
        "kind": "Status",
        "status": if success { "Success" } else { "Failure" },
        "code": code.as_u16(),
        "reason": reason(code),
        "message": message,
    });
    (code, Json(status)).into_response()
}

/// The API's word for a code.
fn reason(code: StatusCode) -> &'static str {
    match code.as_u16() {
        200..300 => "",
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        408 | 504 => "Timeout",
        409 => "Conflict",
        413 => "RequestEntityTooLarge",
        415 => "UnsupportedMediaType",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    }
}
