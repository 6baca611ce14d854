//! Hands out the sandbox's places in the order that [`crate::share::schedule`] decides.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::share::schedule::Schedule;

/// The places of one host; cheap to clone.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    schedule: Schedule<u64>,
    teams: HashMap<String, u64>,
    waiting: HashMap<u64, oneshot::Sender<Place>>,
    registered: u64,
}

/// Who asks for places: a controller of a team.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    team: u64,
    controller: u64,
}

/// The right to one run; dropping it gives the place to the next.
#[derive(Debug)]
pub struct Place {
    team: u64,
    places: Option<Places>,
}

impl Places {
    /// So many places.
    pub fn new(places: usize) -> Self {
        Self::of(Schedule::new(places))
    }

    /// So many places, of which one team may have `most` at a time.
    pub fn with_most(places: usize, most: usize) -> Self {
        Self::of(Schedule::with_most(places, most))
    }

    fn of(schedule: Schedule<u64>) -> Self {
        let (teams, waiting) = (HashMap::new(), HashMap::new());
        Self(Arc::new(Mutex::new(State { schedule, teams, waiting, registered: 0 })))
    }

    /// Makes a controller of a team known.
    pub fn register(&self, team: &str) -> Guest {
        let mut state = self.state();
        let number = state.teams.len() as u64;
        let team = *state.teams.entry(team.to_owned()).or_insert(number);
        state.registered += 1;
        Guest { team, controller: state.registered }
    }

    /// Asks for one place; dropping the receiver gives up waiting.
    pub fn ask(&self, Guest { team, controller }: Guest) -> oneshot::Receiver<Place> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state();
        state.waiting.insert(controller, sender);
        state.schedule.ask(team, controller);
        drop(state);
        self.serve();
        receiver
    }

    /// Waits for a place for one piece of work of a team, which is no controller's loop: that has its own turn.
    pub async fn take(&self, team: &str) -> Place {
        let one = self.register(team);
        // Whoever waits holds these places alive, and those who ask are served or give up: there is always an answer.
        self.ask(one).await.unwrap_or(Place { team: one.team, places: None })
    }

    /// Serves whoever is next. Who has given up is passed over, and the place goes on to the next.
    fn serve(&self) {
        loop {
            let mut state = self.state();
            let Some((team, controller)) = state.schedule.serve() else { return };
            let sender = state.waiting.remove(&controller);
            drop(state);
            let place = Place { team, places: Some(self.clone()) };
            if let Some(Err(mut unwanted)) = sender.map(|sender| sender.send(place)) {
                unwanted.places = None;
                self.state().schedule.release(team);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = self.places.take() {
            places.state().schedule.release(self.team);
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
        let [one, two, three, four, five] =
            ["a", "a", "b", "b", "c"].map(|team| places.register(team));
        let first = places.ask(one).try_recv().unwrap();
        let given_up = places.ask(two);
        let mut third = places.ask(three);
        drop(given_up);
        assert!(third.try_recv().is_err());
        drop(first);
        let place = third.try_recv().unwrap();
        assert!(places.ask(four).try_recv().is_err());
        drop(place);
        assert!(places.ask(five).try_recv().is_ok());
    }

    #[tokio::test]
    async fn work_of_one_team_leaves_a_place_for_anothers() {
        let places = Places::with_most(2, 1);
        let first = places.take("a").await;
        let mut queued: Vec<_> = (0..80).map(|_| places.ask(places.register("a"))).collect();
        let _other = places.take("b").await;
        let mut served =
            || queued.iter_mut().filter_map(|ask| ask.try_recv().ok()).collect::<Vec<_>>();
        assert!(served().is_empty(), "one at a time");
        let mut third = places.ask(places.register("c"));
        drop(first);
        let second = served();
        assert_eq!((second.len(), third.try_recv().is_ok()), (1, false), "it has waited longer");
        drop(second);
        assert!(third.try_recv().is_ok(), "and then it is the other's turn");
    }
}
