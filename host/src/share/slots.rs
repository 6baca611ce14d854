//! Hands out the sandbox's slots in the order that [`crate::share::schedule`] decides.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::share::schedule::Schedule;

/// The slots of one host; cheap to clone.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    schedule: Schedule<u64>,
    teams: HashMap<String, u64>,
    waiting: HashMap<u64, oneshot::Sender<Slot>>,
    registered: u64,
}

/// Who asks for slots: a controller of a team.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    team: u64,
    controller: u64,
}

/// The right to one run; dropping it gives the slot to the next.
#[derive(Debug)]
pub struct Slot {
    team: u64,
    slots: Option<Slots>,
}

impl Slots {
    /// So many slots.
    pub fn new(slots: usize) -> Self {
        Self::of(Schedule::new(slots))
    }

    /// So many slots, of which one team may have `most` at a time.
    pub fn with_most(slots: usize, most: usize) -> Self {
        Self::of(Schedule::with_most(slots, most))
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

    /// Asks for one slot; dropping the receiver gives up waiting.
    pub fn ask(&self, Guest { team, controller }: Guest) -> oneshot::Receiver<Slot> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state();
        state.waiting.insert(controller, sender);
        state.schedule.ask(team, controller);
        drop(state);
        self.serve();
        receiver
    }

    /// Waits for a slot for one piece of work of a team, which is no controller's loop: that has its own turn.
    pub async fn take(&self, team: &str) -> Slot {
        let one = self.register(team);
        // Whoever waits holds these slots alive, and those who ask are served or give up: there is always an answer.
        self.ask(one).await.unwrap_or(Slot { team: one.team, slots: None })
    }

    /// Serves whoever is next. Who has given up is passed over, and the slot goes on to the next.
    fn serve(&self) {
        loop {
            let mut state = self.state();
            let Some((team, controller)) = state.schedule.serve() else { return };
            let sender = state.waiting.remove(&controller);
            drop(state);
            let slot = Slot { team, slots: Some(self.clone()) };
            if let Some(Err(mut unwanted)) = sender.map(|sender| sender.send(slot)) {
                unwanted.slots = None;
                self.state().schedule.release(team);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.take() {
            slots.state().schedule.release(self.team);
            slots.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_goes_to_whoever_still_waits() {
        let slots = Slots::new(1);
        let [one, two, three, four, five] =
            ["a", "a", "b", "b", "c"].map(|team| slots.register(team));
        let first = slots.ask(one).try_recv().unwrap();
        let given_up = slots.ask(two);
        let mut third = slots.ask(three);
        drop(given_up);
        assert!(third.try_recv().is_err());
        drop(first);
        let slot = third.try_recv().unwrap();
        assert!(slots.ask(four).try_recv().is_err());
        drop(slot);
        assert!(slots.ask(five).try_recv().is_ok());
    }

    #[tokio::test]
    async fn work_of_one_team_leaves_a_place_for_anothers() {
        let slots = Slots::with_most(2, 1);
        let first = slots.take("a").await;
        let mut queued: Vec<_> = (0..80).map(|_| slots.ask(slots.register("a"))).collect();
        let _other = slots.take("b").await;
        let mut served =
            || queued.iter_mut().filter_map(|ask| ask.try_recv().ok()).collect::<Vec<_>>();
        assert!(served().is_empty(), "one at a time");
        let mut third = slots.ask(slots.register("c"));
        drop(first);
        let second = served();
        assert_eq!((second.len(), third.try_recv().is_ok()), (1, false), "it has waited longer");
        drop(second);
        assert!(third.try_recv().is_ok(), "and then it is the other's turn");
    }
}
