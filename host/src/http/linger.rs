//! An answer that is given before the whole request was read reaches a client that is still sending.
//!
//! Closing a connection with bytes unread resets it, and the reset can overtake the answer (RFC 9112 §9.6). So what a
//! handler leaves of a body is read and thrown away, within limits, while the answer is on its way. A client that has
//! sent all of it may use the connection again.
//!
//! Invariant, in `host/tests/api.rs`: `a_refusal_reaches_a_client_that_is_still_sending`.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody},
    extract::Request,
    http::header,
};
use futures::{Stream, StreamExt};
use tokio::{runtime::Handle, time::timeout};

/// Nobody is listened to for longer once the answer is known.
const LIMIT: Duration = Duration::from_secs(5);
/// Nor for more bytes: the largest module that a host takes by default.
const MAX_BYTES: usize = 32 << 20;

/// Takes care of what the handler of `request` will leave of its body.
pub(super) async fn over(request: Request) -> Request {
    // A client that asks before it sends has sent nothing, and is told by the answer to keep it.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return request;
    }
    request.map(|body| Body::from_stream(Lingering { body: Some(body.into_data_stream()) }))
}

struct Lingering {
    /// None once it has come to its end.
    body: Option<BodyDataStream>,
}

impl Stream for Lingering {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let next = ready!(body.poll_next_unpin(context));
        if !matches!(next, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(next)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        // A host that has stopped has nobody to answer.
        let Ok(runtime) = Handle::try_current() else { return };
        if let Some(rest) = self.body.take() {
            runtime.spawn(async move { timeout(LIMIT, discard(rest)).await });
        }
    }
}

async fn discard(mut rest: BodyDataStream) {
    let mut left = MAX_BYTES;
    while let Some(Ok(bytes)) = rest.next().await {
        let Some(less) = left.checked_sub(bytes.len()) else { return };
        left = less;
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use futures::stream;

    use super::*;

    #[test]
    fn a_body_that_does_not_come_is_not_asked_for() {
        let mut asked = 0;
        let mut pieces =
            vec![Poll::Ready(None), Poll::Pending, Poll::Ready(Some("a")), Poll::Pending];
        let source = stream::poll_fn(move |_| {
            asked += 1;
            assert!(asked <= 4, "once a poll");
            pieces.pop().unwrap_or(Poll::Pending).map(|piece| piece.map(Ok::<_, axum::Error>))
        });
        let mut lingering = Lingering { body: Some(Body::from_stream(source).into_data_stream()) };
        let mut context = Context::from_waker(Waker::noop());
        let mut poll = || lingering.poll_next_unpin(&mut context);
        assert!(poll().is_pending());
        assert!(matches!(poll(), Poll::Ready(Some(Ok(_)))));
        assert!(poll().is_pending());
        assert!(matches!(poll(), Poll::Ready(None)));
        assert!(matches!(poll(), Poll::Ready(None)), "an end is an end");
    }

    #[tokio::test]
    async fn who_waits_for_a_body_is_not_woken() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, axum::Error>>());
        let mut lingering = Lingering { body: Some(body.into_data_stream()) };
        let mut polls = 0;
        let counted = poll_fn(|context| {
            polls += 1;
            lingering.poll_next_unpin(context)
        });
        assert!(timeout(Duration::from_millis(50), counted).await.is_err());
        assert!(polls <= 2, "{polls} polls");
    }
}
