//! A plan as a stream of lines: begun by whoever asks, told as it is made.
//!
//! It is a watch of `plans`, since the API server cuts off within a minute whatever else takes longer.
//!
//! What an object would be is shown to whoever may act as the controller's account: the right is of the role `edit`, which may
//! impersonate the ServiceAccounts of the namespace anyway. A Secret's values are shown to nobody.

use std::convert::Infallible;

use axum::{
    Extension,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{About, Served, front::User, log::Seats, missing, status};
use crate::{
    manager::PlanAsk,
    model::{
        live::GROUP,
        object::ObjectKey,
        plan::{PlanLine, PlannedObject},
    },
};

/// Lines that wait for whoever asked.
const LINES: usize = 64;

/// What is asked for, as query parameters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Question {
    /// A watch: nothing else is served.
    watch: bool,
    /// Of which controller: `metadata.name=NAME`.
    field_selector: String,
    /// The revision; none: the one that would go live next.
    revision: Option<String>,
    /// One object alone, as `namespace/name` or `name`.
    object: Option<String>,
    /// Whether whole objects come with the fields that change.
    values: bool,
    /// What the API server adds to every request that it bounds.
    #[serde(rename = "timeout")]
    _timeout: Option<String>,
}

pub(super) async fn plan(
    State(served): State<Served>,
    Extension(user): Extension<User>,
    Extension(seats): Extension<Seats>,
    Path(namespace): Path<String>,
    question: Result<Query<Question>, QueryRejection>,
) -> Response {
    let question = match question {
        Ok(Query(question)) => question,
        Err(error) => return status(StatusCode::BAD_REQUEST, &error.body_text()),
    };
    let name = question.field_selector.strip_prefix("metadata.name=").unwrap_or_default();
    if !question.watch || name.is_empty() {
        let text = "a plan is a watch of one: ?watch=true&fieldSelector=metadata.name=NAME";
        return status(StatusCode::BAD_REQUEST, text);
    }
    let (verb, resource, subresource) = ("watch", "plans", "");
    let about = About { verb, group: GROUP, resource, subresource, namespace: &namespace, name };
    if let Err(refused) = served.authorise(&user, about).await {
        return refused;
    }
    let key = ObjectKey::new(Some(&namespace), name);
    if !served.directory.has(&key) {
        return missing(&namespace, name);
    }
    let Some(seat) = seats.take(&namespace) else {
        let text = "too many follow logs and plans of this namespace, or of this host, already";
        return status(StatusCode::TOO_MANY_REQUESTS, text);
    };
    let object = question.object.as_deref().map(|text| match text.split_once('/') {
        Some((namespace, name)) => ObjectKey::new(Some(namespace), name),
        None => ObjectKey::new(None, text),
    });
    let (send, lines) = mpsc::channel(LINES);
    let ask = PlanAsk { revision: question.revision, object, lines: send };
    if !served.directory.ask(&key, ask) {
        let text =
            "the controller is not kept by this host at present, or too many ask for a plan of it";
        return status(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    let values = question.values;
    let lines = stream::unfold((lines, seat), move |(mut lines, seat)| async move {
        let line = lines.recv().await?;
        Some((Ok::<_, Infallible>(text(line, values)), (lines, seat)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn text(line: PlanLine, values: bool) -> Bytes {
    let line = match line {
        PlanLine::Object(object) if !values => PlanLine::Object(without_values(object)),
        other => other,
    };
    // Nothing in it is without a form in JSON.
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

fn without_values(mut object: PlannedObject) -> PlannedObject {
    for change in &mut object.changes {
        (change.before, change.after) = (Value::Null, Value::Null);
    }
    object
}
