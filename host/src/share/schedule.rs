//! Decides which controller gets the next free slot in the sandbox; pure.
//!
//! A slot is memory for one run, and a run keeps it while it waits; who computes meanwhile is [`crate::share::fair`]'s to say.
//! The team with the fewest slots is next, and within it the controllers take turns. One team alone never gets all
//! slots: another's first run must not wait for the end of its runs.
//!
//! Invariants: `nobody_is_served_twice_while_another_waits`, `a_place_is_never_lost_nor_made`,
//! `one_team_never_has_all_places`.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
};

/// Who waits for a slot. A controller asks for one slot at a time.
#[derive(Debug)]
pub struct Schedule<T> {
    free: usize,
    /// Slots that one team may have.
    most: usize,
    teams: HashMap<u64, Team<T>>,
    /// Teams that may be served: by slots held, then by how long ago they were.
    ready: BTreeSet<(usize, u64, u64)>,
    turns: u64,
}

#[derive(Debug)]
struct Team<T> {
    held: usize,
    turn: u64,
    order: VecDeque<T>,
    waiting: HashSet<T>,
}

impl<T: Copy + Eq + Hash> Schedule<T> {
    /// A schedule of `slots` free slots.
    pub fn new(slots: usize) -> Self {
        Self::with_most(slots, slots - slots / 4)
    }

    /// The same, of which one team may have `most` at a time.
    pub fn with_most(slots: usize, most: usize) -> Self {
        Self { free: slots, most, teams: HashMap::new(), ready: BTreeSet::new(), turns: 0 }
    }

    /// Queues `controller` of a team for one slot, unless it waits already.
    pub fn ask(&mut self, team: u64, controller: T) {
        let turn = self.next_turn();
        let new = || Team { held: 0, turn, order: VecDeque::new(), waiting: HashSet::new() };
        let state = self.teams.entry(team).or_insert_with(new);
        if state.waiting.insert(controller) {
            if state.order.is_empty() {
                state.turn = turn;
            }
            state.order.push_back(controller);
        }
        self.rank(team);
    }

    /// The next controller to be served; the slot is its own until [`Schedule::release`].
    pub fn serve(&mut self) -> Option<(u64, T)> {
        if self.free == 0 {
            return None;
        }
        let (_, _, team) = self.ready.pop_first()?;
        let turn = self.next_turn();
        let state = self.teams.get_mut(&team)?;
        let next = state.order.pop_front()?;
        state.waiting.remove(&next);
        state.held += 1;
        state.turn = turn;
        self.free -= 1;
        self.rank(team);
        Some((team, next))
    }

    /// Takes a slot of a team back.
    pub fn release(&mut self, team: u64) {
        self.free += 1;
        if let Some(state) = self.teams.get_mut(&team) {
            self.ready.remove(&(state.held, state.turn, team));
            state.held = state.held.saturating_sub(1);
            if state.held == 0 && state.order.is_empty() {
                self.teams.remove(&team);
            }
        }
        self.rank(team);
    }

    /// Slots that nobody holds.
    pub fn free(&self) -> usize {
        self.free
    }

    fn rank(&mut self, team: u64) {
        let Some(state) = self.teams.get(&team) else { return };
        if !state.order.is_empty() && state.held < self.most {
            self.ready.insert((state.held, state.turn, team));
        }
    }

    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_served_twice_while_another_waits() {
        let mut schedule = Schedule::new(1);
        for (team, controller) in [(1, 'a'), (1, 'b'), (2, 'c'), (3, 'd')] {
            schedule.ask(team, controller);
        }
        let mut served = vec![];
        for _ in 0..8 {
            let (team, next) = schedule.serve().unwrap();
            served.push(next);
            schedule.ask(team, next);
            assert_eq!(schedule.serve(), None, "one slot");
            schedule.release(team);
        }
        assert_eq!(served, ['a', 'c', 'd', 'b', 'c', 'd', 'a', 'c'], "teams, and within them");
    }

    #[test]
    fn one_team_never_has_all_places() {
        let mut schedule = Schedule::new(8);
        for controller in 0..20 {
            schedule.ask(1, controller);
        }
        let served = std::iter::from_fn(|| schedule.serve()).count();
        assert_eq!((served, schedule.free()), (6, 2));
        schedule.ask(2, 100);
        assert_eq!(schedule.serve(), Some((2, 100)));
        schedule.ask(2, 101);
        schedule.release(1);
        assert_eq!(schedule.serve(), Some((2, 101)), "the one with the fewest first");
        assert_eq!(schedule.serve(), Some((1, 6)));
        assert_eq!(schedule.serve(), None);
        let mut one = Schedule::new(1);
        one.ask(1, 1);
        assert!(one.serve().is_some(), "one slot is for anybody");
    }

    #[test]
    fn a_place_is_never_lost_nor_made() {
        for seed in 1..100_u64 {
            let (mut schedule, mut held, mut rng) =
                (Schedule::new(3), vec![], fastrand::Rng::with_seed(seed));
            for _ in 0..300 {
                let random = rng.u64(..);
                match random % 3 {
                    0 => schedule.ask(random / 4 % 3, random / 16 % 5),
                    1 => held.extend(schedule.serve().map(|(team, _)| team)),
                    _ => {
                        if let Some(team) = held.pop() {
                            schedule.release(team);
                        }
                    }
                }
                assert_eq!(schedule.free() + held.len(), 3, "seed {seed}");
                let ranked: HashSet<_> = schedule.ready.iter().map(|(_, _, team)| team).collect();
                assert_eq!(ranked.len(), schedule.ready.len(), "seed {seed}: a team ranked twice");
            }
        }
    }
}
