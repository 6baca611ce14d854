//! Decides how one revision takes over from another, and who may write meanwhile; pure.
//!
//! Runs in flight go on when another revision becomes live, and may write until the drain is over. What was live stays open until
//! the watches of what is live now have delivered all that they saw: no change falls between the two. Nothing here knows what
//! a revision is. One is live at a time; whom a gate admits is a set, for those that are drained.
//!
//! Invariant: `whatever_happens_only_who_is_admitted_writes_and_every_view_is_closed`.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use super::rollout::Rollout;
use crate::leader::fence::{Claim, Gate};

/// How long runs of a replaced revision, or of a deleted controller, may go on.
pub const DRAIN: Duration = Duration::from_secs(30);
/// The generation of a controller that ends: no run has it.
const NOBODY: i64 = i64::MAX;

/// What happens to a controller.
#[derive(Debug)]
pub(super) enum Input<R, Id> {
    /// The manager has another value.
    Rollout(Rollout<R>),
    /// The claim was acquired, lost, or acquired anew.
    Claim(Option<Claim>),
    /// A run has begun under the present claim, of the revision of this generation.
    Began(Id, i64),
    /// A run is over.
    Ended(Id),
    /// The watches have delivered what they saw before this revision was replaced.
    Delivered(Arc<R>),
    /// Time has passed.
    Tick,
    /// The controller ends: its runs are drained.
    End,
}

/// What is to be done about it, in this order.
#[derive(Debug)]
pub(super) enum Do<R, Id> {
    /// Whom the fence lets through from now on.
    Admit(Gate),
    /// The revision's view wakes the controller from now on.
    Open(Arc<R>),
    /// The new one hears of what went unseen, and the old one is [`Input::Delivered`] in time.
    Hand { old: Arc<R>, new: Arc<R> },
    /// The view wakes the controller no more; what it still had to deliver is left to `next`.
    Close { old: Arc<R>, next: Option<Arc<R>> },
    /// The run must end.
    Stop(Id),
    /// No run of what was replaced is left.
    Drained,
}

#[derive(Debug)]
struct Flight {
    generation: i64,
    claim: Option<Claim>,
    /// It was told to end, and may not write any more.
    is_cut: bool,
}

/// The revisions of one controller and its runs.
#[derive(Debug)]
pub(super) struct Swap<R, Id> {
    current: Rollout<R>,
    /// Was live last, while nothing is: its watches go on filling the queue.
    resting: Option<Arc<R>>,
    flights: HashMap<Id, Flight>,
    drain_until: Option<Instant>,
    gate: Gate,
}

impl<R, Id: Copy + Eq + Hash> Swap<R, Id> {
    pub(super) fn new(claim: Option<Claim>) -> Self {
        let current = Rollout::default();
        let gate = Gate { admitted: [current.generation].into(), claim };
        Self { current, resting: None, flights: HashMap::new(), drain_until: None, gate }
    }

    /// What is live.
    pub(super) fn current(&self) -> &Rollout<R> {
        &self.current
    }

    /// Who may write.
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// When [`Input::Tick`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.drain_until
    }

    /// What `event` leads to.
    pub(super) fn next(&mut self, event: Input<R, Id>, now: Instant) -> Vec<Do<R, Id>> {
        let mut todo = vec![];
        match event {
            Input::Rollout(next) => self.replace(next, now, &mut todo),
            Input::Claim(claim) => {
                self.gate.claim.clone_from(&claim);
                todo.push(Do::Admit(self.gate.clone()));
                let lost = self.flights.iter().filter(|(_, flight)| flight.claim != claim);
                todo.extend(lost.map(|(id, _)| Do::Stop(*id)));
            }
            Input::Began(id, generation) => {
                let claim = self.gate.claim.clone();
                self.flights.insert(id, Flight { generation, claim, is_cut: false });
            }
            Input::Ended(id) => drop(self.flights.remove(&id)),
            Input::Delivered(old) => self.close(old, &mut todo),
            Input::Tick if self.drain_until.is_some_and(|at| at <= now) => {
                self.drain_until = None;
                for flight in self.flights.values_mut() {
                    flight.is_cut |= flight.generation < self.current.generation;
                }
                self.admit(&mut todo);
                let cut = self.flights.iter().filter(|(_, flight)| flight.is_cut);
                todo.extend(cut.map(|(id, _)| Do::Stop(*id)));
            }
            Input::Tick => (),
            Input::End => {
                let last = self.current.active.take().into_iter().chain(self.resting.take());
                todo.extend(last.map(|old| Do::Close { old, next: None }));
                self.replace(Rollout { active: None, generation: NOBODY }, now, &mut todo);
            }
        }
        self.settle(&mut todo);
        todo
    }

    fn replace(&mut self, next: Rollout<R>, now: Instant, todo: &mut Vec<Do<R, Id>>) {
        let is_another = next.generation != self.current.generation;
        let old = std::mem::replace(&mut self.current, next).active.or_else(|| self.resting.take());
        // Before anything of it runs.
        self.admit(todo);
        if let Some(new) = &self.current.active {
            todo.push(Do::Open(new.clone()));
        }
        match (old, self.current.active.clone()) {
            (Some(old), Some(new)) => todo.push(Do::Hand { old, new }),
            (old, _) => self.resting = old,
        }
        if is_another && !self.flights.is_empty() {
            self.drain_until = Some(now + DRAIN);
        }
    }

    /// One that is live again meanwhile stays open.
    fn close(&self, old: Arc<R>, todo: &mut Vec<Do<R, Id>>) {
        let next = self.current.active.as_ref().or(self.resting.as_ref());
        if !next.is_some_and(|next| Arc::ptr_eq(next, &old)) {
            todo.push(Do::Close { old, next: next.cloned() });
        }
    }

    /// Lets nobody write longer than it has to, and ends the drain when nothing is left of it.
    fn settle(&mut self, todo: &mut Vec<Do<R, Id>>) {
        self.admit(todo);
        let current = self.current.generation;
        let is_drained = self.flights.values().all(|flight| flight.generation >= current);
        if is_drained && self.drain_until.take().is_some() {
            todo.push(Do::Drained);
        }
    }

    /// What is live, and what is being drained.
    fn admit(&mut self, todo: &mut Vec<Do<R, Id>>) {
        let flying = self.flights.values().filter(|flight| !flight.is_cut);
        let mut admitted: BTreeSet<_> = flying.map(|flight| flight.generation).collect();
        admitted.insert(self.current.generation);
        if self.gate.admitted != admitted {
            self.gate.admitted = admitted;
            todo.push(Do::Admit(self.gate.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What the loop would have made of it.
    #[derive(Default)]
    struct World {
        /// How often each view was opened more than closed.
        open: BTreeMap<usize, i32>,
        handed: Vec<Arc<usize>>,
        stopped: BTreeSet<u32>,
        drained: usize,
        admitted: BTreeSet<i64>,
    }

    impl World {
        fn does(&mut self, todo: Vec<Do<usize, u32>>) {
            for one in todo {
                match one {
                    Do::Admit(gate) => self.admitted = gate.admitted,
                    Do::Open(new) => *self.open.entry(*new).or_default() = 1,
                    Do::Hand { old, .. } => self.handed.push(old),
                    Do::Close { old, next } => {
                        assert_ne!(next.as_deref(), Some(&*old), "closed for itself");
                        *self.open.entry(*old).or_default() -= 1;
                    }
                    Do::Stop(id) => drop(self.stopped.insert(id)),
                    Do::Drained => self.drained += 1,
                }
            }
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    #[expect(clippy::too_many_lines, reason = "one controller, one walk")]
    fn whatever_happens_only_who_is_admitted_writes_and_every_view_is_closed() {
        for seed in 0..400 {
            let mut random = fastrand::Rng::with_seed(seed);
            let start = Instant::now();
            let claim = || Some(Claim::new(1, start, Duration::MAX));
            let (mut now, mut held) = (start, claim());
            let mut swap = Swap::<usize, u32>::new(held.clone());
            let mut world = World { admitted: swap.gate().admitted.clone(), ..World::default() };
            let revisions: Vec<_> = (0..4).map(Arc::new).collect();
            let mut flights = BTreeMap::<u32, (i64, Option<Claim>, Instant)>::new();
            let (mut generation, mut next_id, mut replaced_at) = (0, 0, start);
            for _ in 0..300 {
                now += Duration::from_millis(random.u64(0..8_000));
                if swap.due().is_some_and(|at| at <= now) {
                    world.does(swap.next(Input::Tick, now));
                }
                match random.u8(0..10) {
                    0 => {
                        // Now and then the same value again, or nothing at all.
                        let active = random.choice(&revisions).filter(|_| random.u8(0..5) > 0);
                        let same = swap.current().active.as_ref().map(Arc::as_ptr)
                            == active.map(Arc::as_ptr);
                        generation += i64::from(!same);
                        if !same {
                            replaced_at = now;
                        }
                        let next = Rollout { active: active.cloned(), generation };
                        world.does(swap.next(Input::Rollout(next), now));
                    }
                    1 => {
                        held = if random.bool() { claim() } else { None };
                        world.does(swap.next(Input::Claim(held.clone()), now));
                        for (id, (_, under, _)) in &flights {
                            assert!(*under == held || world.stopped.contains(id), "seed {seed}");
                        }
                    }
                    2 | 3 if !flights.is_empty() => {
                        let ids: Vec<_> = flights.keys().copied().collect();
                        let id = *random.choice(&ids).unwrap();
                        flights.remove(&id);
                        world.does(swap.next(Input::Ended(id), now));
                    }
                    4 | 5 if !world.handed.is_empty() => {
                        let at = random.usize(0..world.handed.len());
                        let old = world.handed.swap_remove(at);
                        world.does(swap.next(Input::Delivered(old), now));
                    }
                    _ if swap.current().active.is_some() && held.is_some() => {
                        flights.insert(next_id, (generation, held.clone(), now));
                        world.does(swap.next(Input::Began(next_id, generation), now));
                        next_id += 1;
                    }
                    _ => (),
                }
                assert_eq!(world.admitted, swap.gate().admitted, "seed {seed}: the loop knows it");
                assert!(world.admitted.contains(&generation), "seed {seed}: what is live writes");
                for (id, (of, _, _)) in &flights {
                    let is_old = *of < generation;
                    let is_over = now >= replaced_at + DRAIN;
                    assert!(!is_old || !is_over || world.stopped.contains(id), "seed {seed}");
                    assert!(
                        !is_old || !is_over || !world.admitted.contains(of),
                        "seed {seed}: {of} may write after its drain"
                    );
                }
                let useless =
                    |of: &i64| *of != generation && !flights.values().any(|flight| flight.0 == *of);
                assert!(!world.admitted.iter().any(useless), "seed {seed}: {:?}", world.admitted);
            }
            world.does(swap.next(Input::End, now));
            for id in flights.keys() {
                world.does(swap.next(Input::Ended(*id), now));
            }
            while let Some(old) = world.handed.pop() {
                world.does(swap.next(Input::Delivered(old), now));
            }
            assert!(!world.admitted.iter().any(|of| *of <= generation), "nobody writes any more");
            for (revision, open) in &world.open {
                assert!(*open <= 0, "seed {seed}: the view of {revision} stays open");
            }
        }
    }
}
