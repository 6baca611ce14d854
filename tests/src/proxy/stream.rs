//! An open watch: moves its lines from the server to the client, as the rules have it.

use std::sync::Arc;

use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::connection::Body;
use super::line::Pipe;
use super::rule::Asked;
use super::rules::Flow;
use super::{Order, Shared, Stream};

/// Pieces on their way to the client; it reads faster than they come, else the server waits.
const PIECES: usize = 16;

type Piece = Result<Frame<Bytes>, anyhow::Error>;

/// The body of a watch, with everything that happens to it.
pub(super) fn follow(
    shared: Arc<Shared>,
    asked: Asked,
    server: Incoming,
    breaks: Arc<Notify>,
) -> Body {
    let (client, pieces) = mpsc::channel(PIECES);
    let (orders, ordered) = mpsc::channel(PIECES);
    let mut state = shared.state();
    let number = state.next_stream;
    state.next_stream += 1;
    state.streams.insert(number, Stream { asked: asked.clone(), orders });
    drop(state);
    let watch = Watch {
        shared,
        asked,
        number,
        server,
        client,
        orders: ordered,
        breaks,
        pipe: Pipe::default(),
        over: false,
        in_hole: false,
    };
    tokio::spawn(watch.run());
    body(pieces)
}

fn body(pieces: mpsc::Receiver<Piece>) -> Body {
    let pieces = stream::unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces)));
    StreamBody::new(Box::pin(pieces)).boxed_unsync()
}

/// A body that says `text` and then nothing while the rule is there; then the connection breaks.
pub(super) fn frozen(shared: Arc<Shared>, breaks: Arc<Notify>, rule: u64, text: String) -> Body {
    let (client, pieces) = mpsc::channel(1);
    tokio::spawn(async move {
        // An error means that the client has gone.
        if !text.is_empty() && client.send(Ok(Frame::data(text.into()))).await.is_err() {
            return;
        }
        tokio::select! {
            () = shared.without(rule) => breaks.notify_one(),
            () = client.closed() => (),
        }
    });
    body(pieces)
}

struct Watch {
    shared: Arc<Shared>,
    asked: Asked,
    number: u64,
    server: Incoming,
    client: mpsc::Sender<Piece>,
    orders: mpsc::Receiver<Order>,
    breaks: Arc<Notify>,
    pipe: Pipe,
    /// The server has ended it.
    over: bool,
    in_hole: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.state().streams.remove(&self.number);
    }
}

impl Watch {
    async fn run(mut self) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            let flow = self.shared.state().rules.flow(&self.asked, self.number);
            if self.in_hole && flow != Flow::Hole {
                self.breaks.notify_one();
                return;
            }
            self.in_hole = flow == Flow::Hole;
            let open = flow == Flow::Open;
            if open && !self.send().await {
                return;
            }
            let next = self.pipe.next();
            if open && self.over && next.is_none() {
                return;
            }
            let due = next.unwrap_or_else(Instant::now);
            tokio::select! {
                () = self.client.closed() => return,
                // The sender is in `shared`.
                _ = changed.changed() => (),
                frame = self.server.frame(), if open && !self.over => match frame {
                    Some(Ok(frame)) => self.take(frame),
                    Some(Err(error)) => {
                        // An error here means that the client has gone first.
                        let _ = self.client.send(Err(error.into())).await;
                        return;
                    }
                    None => self.over = true,
                },
                Some(order) = self.orders.recv() => self.obey(order),
                () = sleep_until(due), if open && next.is_some() => (),
            }
        }
    }

    /// Sends what is due; false if the client has gone.
    async fn send(&mut self) -> bool {
        let text = self.pipe.due(Instant::now());
        text.is_empty() || self.client.send(Ok(Frame::data(text.into()))).await.is_ok()
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        let Ok(bytes) = frame.into_data() else { return };
        for line in self.pipe.split(&bytes) {
            let effects = self.shared.state().rules.line(&self.asked, &line);
            self.pipe.take(line, &effects, Instant::now());
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Send(lines) => self.pipe.inject(lines, Instant::now()),
            // An error means that nobody wants to know any more.
            Order::Tell(to) => drop(to.send(self.pipe.past())),
        }
    }
}
