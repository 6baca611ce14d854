//! Hands out the sandbox's places in the order that [`crate::schedule`] decides.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::schedule::Schedule;

/// The places of one host; cheap to clone.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    schedule: Schedule<u64>,
    waiting: HashMap<u64, oneshot::Sender<Place>>,
    registered: u64,
}

/// The right to one run; dropping it gives the place to the next.
#[derive(Debug)]
pub struct Place(Option<Places>);

impl Places {
    /// So many places.
    pub fn new(places: usize) -> Self {
        let schedule = Schedule::new(places);
        Self(Arc::new(Mutex::new(State { schedule, waiting: HashMap::new(), registered: 0 })))
    }

    /// A number for a controller.
    pub fn register(&self) -> u64 {
        let mut state = self.state();
        state.registered += 1;
        state.registered
    }

    /// Asks for one place; dropping the receiver gives up waiting.
    pub fn ask(&self, controller: u64) -> oneshot::Receiver<Place> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state();
        state.waiting.insert(controller, sender);
        state.schedule.ask(controller);
        drop(state);
        self.serve();
        receiver
    }

    /// Serves whoever is next. Who has given up is passed over, and the place goes on to the next.
    fn serve(&self) {
        loop {
            let mut state = self.state();
            let Some(controller) = state.schedule.serve() else { return };
            let sender = state.waiting.remove(&controller);
            drop(state);
            let place = Place(Some(self.clone()));
            if let Some(Err(mut unwanted)) = sender.map(|sender| sender.send(place)) {
                unwanted.0 = None;
                self.state().schedule.release();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = self.0.take() {
            places.state().schedule.release();
            places.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_goes_to_whoever_still_waits() {
        let places = Places::new(1);
        let first = places.ask(1).try_recv().unwrap();
        let given_up = places.ask(2);
        let mut third = places.ask(3);
        drop(given_up);
        assert!(third.try_recv().is_err());
        drop(first);
        let place = third.try_recv().unwrap();
        assert!(places.ask(4).try_recv().is_err());
        drop(place);
        assert!(places.ask(5).try_recv().is_ok());
    }
}
