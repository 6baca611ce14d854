//! Decides which controller gets the next free place in the sandbox; pure.
//!
//! Round robin: a controller that waits is served before any other is served twice. Weighted fairness between
//! teams (R71–R73) will take this module's place and keep its three verbs.
//!
//! Invariants: `nobody_is_served_twice_while_another_waits`, `a_place_is_never_lost_nor_made`.

use std::collections::VecDeque;

/// Who waits for a place. A controller asks for one place at a time.
#[derive(Debug)]
pub struct Schedule<T> {
    free: usize,
    waiting: VecDeque<T>,
}

impl<T: PartialEq> Schedule<T> {
    /// A schedule of `places` free places.
    pub fn new(places: usize) -> Self {
        Self { free: places, waiting: VecDeque::new() }
    }

    /// Queues `controller` for one place, unless it waits already.
    pub fn ask(&mut self, controller: T) {
        if !self.waiting.contains(&controller) {
            self.waiting.push_back(controller);
        }
    }

    /// Gives up waiting.
    pub fn withdraw(&mut self, controller: &T) {
        self.waiting.retain(|waiting| waiting != controller);
    }

    /// The next controller to be served; the place is its own until [`Schedule::release`].
    pub fn serve(&mut self) -> Option<T> {
        if self.free == 0 {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.free -= 1;
        Some(next)
    }

    /// Takes a place back.
    pub fn release(&mut self) {
        self.free += 1;
    }

    /// Places that nobody holds.
    pub fn free(&self) -> usize {
        self.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_served_twice_while_another_waits() {
        let mut schedule = Schedule::new(1);
        for controller in ["a", "b", "c"] {
            schedule.ask(controller);
        }
        let mut served = vec![];
        for _ in 0..6 {
            let next = schedule.serve().unwrap();
            served.push(next);
            schedule.ask(next);
            assert_eq!(schedule.serve(), None, "one place");
            schedule.release();
        }
        assert_eq!(served, ["a", "b", "c", "a", "b", "c"]);
    }

    #[test]
    fn a_place_is_never_lost_nor_made() {
        for seed in 1..100_u64 {
            let (mut schedule, mut held, mut random) = (Schedule::new(3), 0, seed);
            for _ in 0..300 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                match random % 4 {
                    0 => schedule.ask(random / 4 % 5),
                    1 => schedule.withdraw(&(random / 4 % 5)),
                    2 => held += usize::from(schedule.serve().is_some()),
                    _ if held > 0 => {
                        schedule.release();
                        held -= 1;
                    }
                    _ => (),
                }
                assert_eq!(schedule.free() + held, 3, "seed {seed}");
            }
        }
    }
}
