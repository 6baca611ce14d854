//! Decides which team computes next; pure.
//!
//! Start-time fair queueing over teams: each has a virtual time that grows with the CPU time that its guests were
//! measured to take, divided by its weight, and whoever is furthest behind is next. A team that has no permit comes
//! before one that has, so that nobody computes twice while another waits; a team that was idle starts from now, and
//! saves nothing up. Within a team, guests that the host has answered come
//! before others, so that what is begun ends soon. What comes behind computes only while nobody else waits, and never with
//! all permits: who comes next finds one.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_flood_leaves_another_team_its_share`
//! - `shares_follow_the_weights`
//! - `no_team_computes_twice_while_another_waits`
//! - `an_idle_team_saves_nothing_up`
//! - `what_comes_behind_leaves_a_permit_and_its_turn_to_others`
//! - `a_permit_is_never_lost_nor_made`

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
    time::Duration,
};

/// What a grant is thought to take before it was measured once.
const GUESS: Duration = Duration::from_millis(1);

/// Who waits for a permit to compute, and who has one.
#[derive(Debug)]
pub struct Fair<T> {
    free: usize,
    /// Permits that work behind others may have, and those that it has.
    most_behind: usize,
    held_behind: usize,
    /// Virtual time of the last grant, and of the last one of what comes behind.
    now: f64,
    now_behind: f64,
    teams: HashMap<T, Team>,
    /// Teams with somebody who waits: first those without a permit, then by virtual time.
    ready: BTreeSet<Rank<T>>,
    tickets: u64,
    /// Those who wait no longer, until their turn comes.
    withdrawn: HashSet<u64>,
}

/// Names one who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has waited for the host, and goes on.
    Resumed,
    /// It begins, or has computed for a whole tick.
    New,
}

/// A permit was given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grant<T> {
    /// To this team.
    pub team: T,
    /// For this ticket.
    pub ticket: Ticket,
    /// What it was charged beforehand, in seconds; [`Fair::release`] puts it right.
    pub charged: f64,
}

#[derive(Debug)]
struct Team {
    /// Seconds of CPU time by weight.
    time: f64,
    weight: f64,
    behind: bool,
    /// What a grant takes: a moving average, in seconds.
    estimate: f64,
    held: usize,
    resumed: VecDeque<u64>,
    new: VecDeque<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Rank<T> {
    behind: bool,
    has_permit: bool,
    time: f64,
    team: T,
}

impl<T: Ord + Copy> Eq for Rank<T> {}

impl<T: Ord + Copy> PartialOrd for Rank<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord + Copy> Ord for Rank<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.behind
            .cmp(&other.behind)
            .then(self.has_permit.cmp(&other.has_permit))
            .then(self.time.total_cmp(&other.time))
            .then(self.team.cmp(&other.team))
    }
}

impl<T: Ord + Copy + Hash> Fair<T> {
    /// So many permits, and nobody who waits.
    pub fn new(permits: usize) -> Self {
        Self {
            free: permits,
            most_behind: permits.saturating_sub(1).max(1),
            held_behind: 0,
            now: 0.0,
            now_behind: 0.0,
            teams: HashMap::new(),
            ready: BTreeSet::new(),
            tickets: 0,
            withdrawn: HashSet::new(),
        }
    }

    /// Gives a team a weight; without one it is 1.
    pub fn set_weight(&mut self, team: T, weight: f64) {
        let now = self.now;
        self.teams.entry(team).or_insert_with(|| Team::new(now)).weight = weight.max(0.001);
    }

    /// What this team does comes behind what all others do; said before it asks for the first time.
    pub fn put_behind(&mut self, team: T) {
        let now = self.now_behind;
        self.teams.entry(team).or_insert_with(|| Team { behind: true, ..Team::new(now) });
    }

    /// Asks for a permit; [`Fair::grant`] says whose turn it is.
    pub fn ask(&mut self, team: T, turn: Turn) -> Ticket {
        self.tickets += 1;
        let (ticket, now) = (self.tickets, self.now);
        let state = self.teams.entry(team).or_insert_with(|| Team::new(now));
        if !state.waits() {
            if state.held == 0 {
                let now = if state.behind { self.now_behind } else { now };
                state.time = state.time.max(now);
            }
            self.ready.insert(state.rank(team));
        }
        match turn {
            Turn::Resumed => state.resumed.push_back(ticket),
            Turn::New => state.new.push_back(ticket),
        }
        Ticket(ticket)
    }

    /// Waits no longer.
    pub fn withdraw(&mut self, ticket: Ticket) {
        self.withdrawn.insert(ticket.0);
    }

    /// Gives a free permit to whose turn it is.
    pub fn grant(&mut self) -> Option<Grant<T>> {
        while self.free > 0 {
            let Rank { team, behind, .. } = *self.ready.first()?;
            // All that is left is behind.
            if behind && self.held_behind >= self.most_behind {
                return None;
            }
            self.ready.pop_first();
            let state = self.teams.get_mut(&team)?;
            let next = state.resumed.pop_front().or_else(|| state.new.pop_front());
            let granted = next.filter(|ticket| !self.withdrawn.remove(ticket));
            let charged = state.estimate;
            if granted.is_some() {
                self.free -= 1;
                self.held_behind += usize::from(behind);
                let now = if behind { &mut self.now_behind } else { &mut self.now };
                *now = now.max(state.time);
                state.held += 1;
                state.time += charged / state.weight;
            }
            if state.waits() {
                self.ready.insert(state.rank(team));
            }
            if let Some(ticket) = granted {
                return Some(Grant { team, ticket: Ticket(ticket), charged });
            }
        }
        None
    }

    /// Takes a permit back, and charges the CPU time for which it was used.
    pub fn release(&mut self, grant: Grant<T>, used: Duration) {
        self.free += 1;
        let Some(state) = self.teams.get_mut(&grant.team) else { return };
        let waits = state.waits();
        if waits {
            self.ready.remove(&state.rank(grant.team));
        }
        let used = used.as_secs_f64();
        self.held_behind -= usize::from(state.behind);
        state.held -= 1;
        state.time += (used - grant.charged) / state.weight;
        state.estimate += (used - state.estimate) / 8.0;
        if waits {
            self.ready.insert(state.rank(grant.team));
        }
    }

    /// Permits that nobody has.
    pub fn free(&self) -> usize {
        self.free
    }
}

impl Team {
    fn new(now: f64) -> Self {
        Self {
            time: now,
            weight: 1.0,
            behind: false,
            estimate: GUESS.as_secs_f64(),
            held: 0,
            resumed: VecDeque::new(),
            new: VecDeque::new(),
        }
    }

    fn waits(&self) -> bool {
        !self.resumed.is_empty() || !self.new.is_empty()
    }

    fn rank<T>(&self, team: T) -> Rank<T> {
        Rank { behind: self.behind, has_permit: self.held > 0, time: self.time, team }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// A machine on which the teams' guests compute: each wants so many milliseconds at a time, 10 at most.
    struct Machine {
        fair: Fair<u32>,
        wants: HashMap<Ticket, u32>,
        running: Vec<(Grant<u32>, u32)>,
        used: HashMap<u32, Duration>,
    }

    impl Machine {
        fn new(permits: usize) -> Self {
            let (wants, used) = (HashMap::new(), HashMap::new());
            Self { fair: Fair::new(permits), wants, running: vec![], used }
        }

        fn ask(&mut self, team: u32, turn: Turn, millis: u32) {
            let ticket = self.fair.ask(team, turn);
            self.wants.insert(ticket, millis);
        }

        /// One millisecond passes; who is done asks again for as much.
        fn step(&mut self) {
            while let Some(grant) = self.fair.grant() {
                self.running.push((grant, self.wants.remove(&grant.ticket).unwrap()));
            }
            for (grant, left) in std::mem::take(&mut self.running) {
                *self.used.entry(grant.team).or_default() += MILLI;
                if left > 1 {
                    self.running.push((grant, left - 1));
                } else {
                    // All teams want the same here, so that it need not be remembered.
                    self.fair.release(grant, MILLI * 10);
                    self.ask(grant.team, Turn::Resumed, 10);
                }
            }
        }

        fn used(&self, team: u32) -> u128 {
            self.used.get(&team).copied().unwrap_or_default().as_millis()
        }
    }

    #[test]
    fn a_flood_leaves_another_team_its_share() {
        for permits in [1, 2, 4] {
            let mut machine = Machine::new(permits);
            for _ in 0..100 {
                machine.ask(1, Turn::New, 10);
            }
            for _ in 0..1_000 {
                machine.step();
            }
            for _ in 0..permits {
                machine.ask(2, Turn::New, 10);
            }
            let before = machine.used(1);
            for _ in 0..1_000 {
                machine.step();
            }
            let (flood, other) = (machine.used(1) - before, machine.used(2));
            println!("{permits} permits: the flood {flood} ms, the other {other} ms");
            let half = permits as u128 * 500;
            assert!(other + 20 >= half && flood + 20 >= half, "{permits}: {flood} and {other}");
        }
    }

    #[test]
    fn what_comes_behind_leaves_a_permit_and_its_turn_to_others() {
        for (permits, most) in [(1, 1), (2, 1), (4, 3)] {
            let mut fair = Fair::new(permits);
            fair.put_behind('p');
            (0..10).for_each(|_| {
                fair.ask('p', Turn::New);
            });
            let held: Vec<_> = std::iter::from_fn(|| fair.grant()).collect();
            assert_eq!(held.len(), most, "{permits} permits");
            fair.ask('a', Turn::New);
            let next = fair.grant().map(|grant| grant.team);
            assert_eq!(next, (permits > most).then_some('a'), "a free one is the other's");
            fair.ask('b', Turn::New);
            fair.release(held[0], MILLI);
            let next = fair.grant().map(|grant| grant.team);
            assert_eq!(next, Some(if permits > most { 'b' } else { 'a' }), "before what is behind");
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let mut machine = Machine::new(1);
        machine.fair.set_weight(1, 3.0);
        for team in [1, 2] {
            (0..10).for_each(|_| machine.ask(team, Turn::New, 10));
        }
        for _ in 0..4_000 {
            machine.step();
        }
        let (three, one) = (machine.used(1), machine.used(2));
        println!("weight 3: {three} ms, weight 1: {one} ms");
        assert!(three > 2_900 && three < 3_100, "{three} and {one}");
    }

    #[test]
    fn no_team_computes_twice_while_another_waits() {
        let mut fair = Fair::new(3);
        for _ in 0..3 {
            fair.ask('a', Turn::New);
        }
        let first = fair.grant().unwrap();
        fair.ask('b', Turn::New);
        let teams: Vec<_> = std::iter::from_fn(|| fair.grant()).map(|grant| grant.team).collect();
        assert_eq!((first.team, &*teams), ('a', &['b', 'a'][..]), "nothing lies idle either");
    }

    #[test]
    fn who_was_answered_comes_before_who_begins() {
        let mut fair = Fair::new(1);
        let (new, resumed) = (fair.ask('a', Turn::New), fair.ask('a', Turn::Resumed));
        let gone = fair.ask('a', Turn::Resumed);
        fair.withdraw(gone);
        for expected in [resumed, new] {
            let grant = fair.grant().unwrap();
            assert_eq!(grant.ticket, expected);
            fair.release(grant, MILLI);
        }
        assert_eq!((fair.grant(), fair.withdrawn.len()), (None, 0));
    }

    #[test]
    fn an_idle_team_saves_nothing_up() {
        let mut machine = Machine::new(1);
        machine.ask(1, Turn::New, 10);
        machine.ask(2, Turn::New, 10);
        for _ in 0..100 {
            machine.step();
        }
        // Team 3 has never been there; team 1 and 2 have worked for long.
        for _ in 0..5 {
            machine.ask(3, Turn::New, 10);
        }
        for _ in 0..300 {
            machine.step();
        }
        let late = machine.used(3);
        assert!((90..=120).contains(&late), "a third of what has passed since: {late} ms");
    }

    #[test]
    fn a_permit_is_never_lost_nor_made() {
        for seed in 1..200_u64 {
            let (mut fair, mut rng) = (Fair::new(3), fastrand::Rng::with_seed(seed));
            let (mut held, mut waiting) = (vec![], vec![]);
            for _ in 0..400 {
                let random = rng.u64(..);
                let turn = if random & 64 == 0 { Turn::New } else { Turn::Resumed };
                match random % 5 {
                    0 | 1 => waiting.push(fair.ask(random / 8 % 4, turn)),
                    2 if !waiting.is_empty() => fair.withdraw(waiting.remove(0)),
                    3 => {
                        if let Some(grant) = fair.grant() {
                            assert!(waiting.contains(&grant.ticket), "seed {seed}: it gave up");
                            waiting.retain(|ticket| *ticket != grant.ticket);
                            held.push(grant);
                        } else {
                            assert!(
                                held.len() == 3 || waiting.is_empty(),
                                "seed {seed}: forgotten"
                            );
                        }
                    }
                    _ => {
                        if let Some(grant) = held.pop() {
                            fair.release(grant, MILLI);
                        }
                    }
                }
                assert_eq!(fair.free() + held.len(), 3, "seed {seed}");
            }
        }
    }
}
