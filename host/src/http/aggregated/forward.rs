//! A standby passes what it is asked on to the host that works, whose address is in the Lease.
//!
//! It comes through that host's door as a host of the deployment, with the headers in which the API server said who asks. What was
//! passed on once is not passed on again: while nobody works, or somebody else than the Lease says, the answer is 503.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::sync::watch;

use super::{Served, Standing, hosts::leader};
use crate::{causes, http::answer::status};

/// That a request was passed on.
const PASSED_ON: HeaderName = HeaderName::from_static("x-nagaya-passed-on");
/// Headers that are of one connection, and not of what is passed on over it.
const OF_CONNECTION: [HeaderName; 5] =
    [header::CONNECTION, header::HOST, header::TRANSFER_ENCODING, header::UPGRADE, header::TE];

/// Asks the host that works, and gives its answer.
pub(super) async fn forward(served: &Served, standing: &Standing, request: Request) -> Response {
    let unavailable = |text: &str| status(StatusCode::SERVICE_UNAVAILABLE, text);
    if request.headers().contains_key(PASSED_ON) {
        return unavailable("no host works at present; try again in a moment");
    }
    let leader = match leader(served).await {
        Ok(leader) => leader,
        Err(text) => return unavailable(&text),
    };
    match pass_on(served, standing, leader, request).await {
        Ok(answer) => answer,
        Err(error) => {
            let error = causes::all(&error);
            unavailable(&format!("the host that works, at {leader}, cannot be asked: {error}"))
        }
    }
}

async fn pass_on(
    served: &Served,
    standing: &Standing,
    leader: std::net::SocketAddr,
    request: Request,
) -> Result<Response, reqwest::Error> {
    let client = standing.client(&served.service, leader)?;
    let (mut parts, body) = request.into_parts();
    for name in &OF_CONNECTION {
        parts.headers.remove(name);
    }
    parts.headers.insert(PASSED_ON, HeaderValue::from_static("1"));
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let url = format!("https://{}:{}{path}", served.service.host(), leader.port());
    let answer = client
        .request(parts.method, url)
        .headers(parts.headers)
        .body(reqwest::Body::wrap_stream(body.into_data_stream()))
        .send()
        .await?;
    let mut given = Response::new(Body::empty());
    *given.status_mut() = answer.status();
    for (name, value) in answer.headers() {
        if !OF_CONNECTION.contains(name) {
            given.headers_mut().append(name.clone(), value.clone());
        }
    }
    let pieces = until(served.stop.clone(), answer.bytes_stream());
    *given.body_mut() = Body::from_stream(pieces.map_err(std::io::Error::other));
    Ok(given)
}

/// What comes until `stop` becomes true.
fn until<S: Stream>(mut stop: watch::Receiver<bool>, pieces: S) -> impl Stream<Item = S::Item> {
    pieces.take_until(async move {
        if stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_passed_on_ends_with_the_host_that_does_so() {
        let (tell, stop) = watch::channel(false);
        let endless = futures::stream::iter([1]).chain(futures::stream::pending());
        let mut pieces = std::pin::pin!(until(stop, endless));
        assert_eq!(pieces.next().await, Some(1));
        tell.send_replace(true);
        assert_eq!(pieces.next().await, None);
    }
}
