//! What waits for its turn, a lane for each team; pure.
//!
//! A lane has an end, by number and by bytes, and so have all of them together: then the longest one gives way. Lanes
//! take turns. So a flood costs its own team's news, and nobody else's.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_flood_in_one_lane_leaves_the_others_theirs`
//! - `all_lanes_together_have_an_end`
//! - `lanes_take_turns`

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Things in one lane.
const ITEMS: usize = 250;
/// Bytes in one lane.
const BYTES: usize = 256 << 10;
/// Bytes in all lanes.
const ALL_BYTES: usize = 4 << 20;

/// Everything that waits.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    of: HashMap<Arc<str>, Lane<T>>,
    /// Lanes that have something, the next one first.
    order: VecDeque<Arc<str>>,
    bytes: usize,
}

#[derive(Debug)]
struct Lane<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
}

/// There was no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl<T> Lanes<T> {
    pub(super) fn new() -> Self {
        Self { of: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    /// Puts a thing of so many bytes at the end of its lane.
    pub(super) fn push(&mut self, name: &str, item: T, bytes: usize) -> Result<(), Full> {
        let lane = self.of.get(name);
        let (count, held) = lane.map_or((0, 0), |lane| (lane.items.len(), lane.bytes));
        if count >= ITEMS || held + bytes > BYTES {
            return Err(Full);
        }
        while self.bytes + bytes > ALL_BYTES {
            self.shorten(held + bytes)?;
        }
        let name: Arc<str> = name.into();
        let lane = self.of.entry(name.clone()).or_insert_with(|| {
            self.order.push_back(name);
            Lane { items: VecDeque::new(), bytes: 0 }
        });
        lane.items.push_back((item, bytes));
        lane.bytes += bytes;
        self.bytes += bytes;
        Ok(())
    }

    /// The first thing of the next lane that `may` be served.
    pub(super) fn pop(&mut self, may: impl Fn(&str) -> bool) -> Option<(Arc<str>, T)> {
        let at = self.order.iter().position(|name| may(name))?;
        let name = self.order.remove(at)?;
        let lane = self.of.get_mut(&name)?;
        let (item, bytes) = lane.items.pop_front()?;
        lane.bytes -= bytes;
        self.bytes -= bytes;
        if lane.items.is_empty() {
            self.of.remove(&name);
        } else {
            self.order.push_back(name.clone());
        }
        Some((name, item))
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Takes the newest thing away from the lane with the most bytes, if that has more than `than`.
    fn shorten(&mut self, than: usize) -> Result<(), Full> {
        let longest = self.of.values_mut().max_by_key(|lane| lane.bytes).ok_or(Full)?;
        // Its last thing stays: an empty lane is none.
        if longest.bytes <= than || longest.items.len() < 2 {
            return Err(Full);
        }
        let (_, bytes) = longest.items.pop_back().ok_or(Full)?;
        longest.bytes -= bytes;
        self.bytes -= bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lanes: &mut Lanes<u32>) -> Vec<(Arc<str>, u32)> {
        std::iter::from_fn(|| lanes.pop(|_| true)).collect()
    }

    #[test]
    fn a_flood_in_one_lane_leaves_the_others_theirs() {
        let mut lanes = Lanes::new();
        let taken = (0..100_000).filter(|n| lanes.push("loud", *n, 100).is_ok()).count();
        assert_eq!(taken, ITEMS);
        let taken = (0..100_000).filter(|n| lanes.push("large", *n, 3_000).is_ok()).count();
        assert_eq!(taken, BYTES / 3_000);
        assert_eq!(lanes.push("quiet", 7, 100), Ok(()));
        let first: Vec<_> = (0..3).filter_map(|_| lanes.pop(|_| true)).map(|(_, n)| n).collect();
        assert_eq!(first, [0, 0, 7], "the quiet one waits for one of each");
        assert_eq!(lanes.push("loud", 1, 100), Ok(()), "there is room again");
    }

    #[test]
    fn all_lanes_together_have_an_end() {
        let mut lanes = Lanes::new();
        for number in 0..1_000 {
            let name = format!("team-{number}");
            while lanes.push(&name, number, 1_000).is_ok() && number < 16 {}
        }
        assert!(lanes.bytes <= ALL_BYTES && lanes.bytes > ALL_BYTES - 2_000, "{}", lanes.bytes);
        let held: usize = lanes.of.values().map(|lane| lane.bytes).sum();
        assert_eq!(held, lanes.bytes);
        let teams: std::collections::HashSet<_> =
            all(&mut lanes).into_iter().map(|(name, _)| name).collect();
        assert_eq!(teams.len(), 1_000, "those who came late have their place, too");
        assert!(lanes.is_empty() && lanes.of.is_empty() && lanes.bytes == 0);
    }

    #[test]
    fn lanes_take_turns() {
        let mut lanes = Lanes::new();
        for (name, item) in [("a", 1), ("a", 2), ("b", 3), ("a", 4), ("c", 5)] {
            lanes.push(name, item, 1).unwrap();
        }
        let (name, item) = lanes.pop(|name| name != "a").unwrap();
        assert_eq!((&*name, item), ("b", 3), "a is busy");
        let rest: Vec<_> = all(&mut lanes).into_iter().map(|(_, item)| item).collect();
        assert_eq!(rest, [1, 5, 2, 4]);
    }
}
