//! The lines that wait for a follower, bounded in bytes: who falls behind is let go, and holds nobody up.
//!
//! Invariant: `who_falls_behind_is_let_go`.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use super::super::envelope::Version;

/// So many bytes may wait; one line may, whatever it has.
const LIMIT: usize = 4 << 20;
/// What a line costs besides its text.
const EACH: usize = 64;

/// A line of the feed for one follower.
#[derive(Clone, Debug)]
pub(crate) struct FedLine {
    /// Of a change: its version, and whether it is a deletion.
    pub(crate) change: Option<(Version, bool)>,
    /// The line.
    pub(crate) text: Arc<str>,
}

/// The end that the feed has.
#[derive(Debug)]
pub(crate) struct Sender {
    lines: mpsc::UnboundedSender<FedLine>,
    held: Arc<AtomicUsize>,
}

/// The end that the follower has.
#[derive(Debug)]
pub(crate) struct Receiver {
    lines: mpsc::UnboundedReceiver<FedLine>,
    held: Arc<AtomicUsize>,
}

/// An empty one.
pub(crate) fn inbox() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let held = Arc::<AtomicUsize>::default();
    (Sender { lines: sender, held: held.clone() }, Receiver { lines: receiver, held })
}

impl FedLine {
    fn cost(&self) -> usize {
        self.text.len() + EACH
    }
}

impl Sender {
    /// Whether the line has a place; else the follower is behind, or gone, and must not be sent anything any more.
    #[must_use]
    pub(crate) fn send(&self, line: FedLine) -> bool {
        let cost = line.cost();
        let held = self.held.fetch_add(cost, Ordering::Relaxed);
        let fits = held == 0 || held + cost <= LIMIT;
        fits && self.lines.send(line).is_ok()
    }
}

impl Receiver {
    /// The next line; `None`: there are no more. May be dropped while it waits: nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<FedLine> {
        let line = self.lines.recv().await?;
        Some(self.taken(line))
    }

    /// Whether nothing can be sent to it any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.lines.is_closed()
    }

    /// The next line, if there is one now.
    #[cfg(test)]
    pub(crate) fn now(&mut self) -> Result<FedLine, mpsc::error::TryRecvError> {
        let line = self.lines.try_recv()?;
        Ok(self.taken(line))
    }

    fn taken(&self, line: FedLine) -> FedLine {
        self.held.fetch_sub(line.cost(), Ordering::Relaxed);
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: usize) -> FedLine {
        FedLine { change: None, text: "x".repeat(bytes).into() }
    }

    #[test]
    fn who_falls_behind_is_let_go() {
        let (sender, mut receiver) = inbox();
        assert!(sender.send(line(LIMIT + 1)), "one line may be as large as it likes");
        assert!(!sender.send(line(0)), "and then there is no room");

        let (sender, mut second) = inbox();
        let half = LIMIT / 2 - EACH;
        for _ in 0..100 {
            assert!(sender.send(line(half)) && sender.send(line(half)));
            second.now().unwrap();
            second.now().unwrap();
        }
        drop(second);
        assert!(!sender.send(line(0)), "nobody is there");

        assert_eq!(receiver.now().unwrap().text.len(), LIMIT + 1);
    }
}
