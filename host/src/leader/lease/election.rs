//! Decides who leads: is fed what was read and written of one Lease, says what to do next; pure.
//!
//! It follows client-go's `tools/leaderelection`: expiry is judged by when a *change* of the record was seen
//! here, never by the times in it; every write carries the version that was read; a renewal that does not come
//! through in time ends the leadership here, before anybody else can begin.
//!
//! Unlike there, the process lives on when its leadership is over, and can win it again: under the same epoch if
//! nobody else has had it in between.
//!
//! Invariants, each held by the test of that name:
//!
//! - `never_two_lead_and_epochs_only_grow`
//! - `a_dead_leader_is_followed_within_the_bound`
//! - `a_released_lease_is_taken_at_once`

use std::time::Duration;

/// How much later than the period a poll may come.
const JITTER: f64 = 1.2;

/// How long a Lease lasts and how often it is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Others wait this long after the last change that they saw.
    pub lease: Duration,
    /// A leader whose renewal has not come through for this long stops.
    pub renew: Duration,
    /// How often it is tried.
    pub retry: Duration,
}

impl Profile {
    /// The values of every Kubernetes component: 15, 10 and 2 s.
    pub const STANDARD: Self = Self {
        lease: Duration::from_secs(15),
        renew: Duration::from_secs(10),
        retry: Duration::from_secs(2),
    };
    /// A quicker take-over for twice the requests: 6, 4 and 1 s.
    pub const FAST: Self = Self {
        lease: Duration::from_secs(6),
        renew: Duration::from_secs(4),
        retry: Duration::from_secs(1),
    };

    /// No request about the Lease may take longer: two fit into the time for a renewal.
    pub fn call(&self) -> Duration {
        self.renew / 2
    }

    /// No write may take longer: one that was sent while its claim held is answered before another can hold it.
    pub fn write(&self) -> Duration {
        self.lease.saturating_sub(self.renew)
    }
}

/// The Lease as it was read or is to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Who leads; empty: nobody.
    pub holder: String,
    /// How long the holder's claim lasts after each change.
    pub lasts: Duration,
    /// How often the holder has changed.
    pub transitions: i64,
    /// When it was acquired, as text of the API; for people.
    pub acquired: Option<String>,
    /// When it was last renewed, as text of the API: it shows that the record has changed, and says no time.
    pub renewed: Option<String>,
    /// The object's resourceVersion.
    pub version: String,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time, unless something is heard.
    Wait(Duration),
    /// Read the Lease.
    Read,
    /// Write this record over the version that it names, or create it if it names none.
    Write(Record),
}

/// One candidate's view of the election. Times are since boot.
#[derive(Debug)]
pub struct Election {
    me: String,
    profile: Profile,
    /// What was last seen, and when it was first seen like that.
    seen: Option<(Option<Record>, Duration)>,
    /// The epoch that is led, and until when.
    leading: Option<(i64, Duration)>,
    /// The highest count of transitions ever seen: a Lease that somebody deletes does not set epochs back.
    highest: Option<i64>,
    next_try: Duration,
    /// Writes in a row that met another one.
    outruns: u32,
    random: fastrand::Rng,
}

impl Election {
    /// A candidate called `me` that has seen nothing; `seed` spreads its polls.
    pub fn new(me: String, profile: Profile, seed: u64) -> Self {
        Self {
            me,
            profile,
            seen: None,
            leading: None,
            highest: None,
            next_try: Duration::ZERO,
            outruns: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// What to do now.
    pub fn next(&mut self, now: Duration) -> Step {
        self.expire(now);
        let Some((record, since)) = &self.seen else {
            return if now < self.next_try { Step::Wait(self.next_try) } else { Step::Read };
        };
        if let Some((epoch, until)) = self.leading {
            if now < self.next_try {
                return Step::Wait(self.next_try.min(until));
            }
            let record = record.clone().unwrap_or_default();
            return Step::Write(Record { transitions: epoch, ..self.mine(record) });
        }
        let free_at = match record {
            Some(record) if !record.holder.is_empty() && record.holder != self.me => {
                *since + record.lasts
            }
            _ => Duration::ZERO,
        };
        if now < free_at {
            return Step::Wait(free_at);
        }
        if now < self.next_try {
            return Step::Wait(self.next_try);
        }
        let record = record.clone().unwrap_or_default();
        if record.holder == self.me {
            // Nobody has had it in between: it is the same leadership, found again.
            return Step::Write(self.mine(record));
        }
        let transitions = self.highest.map_or(0, |highest| highest + 1);
        Step::Write(Record { transitions, acquired: None, ..self.mine(record) })
    }

    fn mine(&self, record: Record) -> Record {
        Record { holder: self.me.clone(), lasts: self.profile.lease, ..record }
    }

    /// Ends a leadership whose time is over. Returns whether one was ended.
    pub fn expire(&mut self, now: Duration) -> bool {
        let over = self.leading.is_some_and(|(_, until)| now >= until);
        if over {
            self.lose();
        }
        over
    }

    fn lose(&mut self) {
        self.leading = None;
        self.seen = None;
        self.next_try = Duration::ZERO;
    }

    /// The Lease was read, or a watch has shown it; `None`: there is none.
    pub fn read(&mut self, record: Option<Record>, now: Duration) {
        let held_by_other =
            record.as_ref().is_none_or(|record| record.holder != self.me) && self.leading.is_some();
        if held_by_other {
            self.lose();
        }
        if record.as_ref().is_some_and(|record| !["", &self.me].contains(&&*record.holder)) {
            self.outruns = 0;
        }
        self.see(record, now);
    }

    fn see(&mut self, record: Option<Record>, now: Duration) {
        if let Some(record) = &record {
            self.highest = Some(self.highest.unwrap_or(record.transitions).max(record.transitions));
        }
        match &self.seen {
            Some((known, _)) if *known == record => (),
            _ => self.seen = Some((record, now)),
        }
    }

    /// A write that was begun at `begun` has come through, and the Lease is now `record`.
    pub fn written(&mut self, record: Record, begun: Duration, now: Duration) {
        if record.holder == self.me {
            self.leading = Some((record.transitions, begun + self.profile.renew));
        } else {
            self.leading = None;
        }
        self.see(Some(record), now);
        self.outruns = 0;
        self.next_try = now + self.profile.retry;
        self.expire(now);
    }

    /// Somebody else has written meanwhile: what is there now must be read.
    ///
    /// At once the first time. A server that refuses every write must not be asked without end.
    pub fn outrun(&mut self, now: Duration) {
        self.seen = None;
        self.next_try = if self.outruns == 0 { Duration::ZERO } else { now + self.pause() };
        self.outruns = self.outruns.saturating_add(1);
    }

    /// A request has failed, and what it did is unknown.
    pub fn failed(&mut self, now: Duration) {
        // What was seen last may no longer be there: a write that was not answered may have landed.
        self.seen = match self.seen.take() {
            Some(seen) if self.leading.is_some() => Some(seen),
            _ => None,
        };
        self.next_try = now + self.pause();
    }

    /// A leader tries evenly, others spread.
    fn pause(&mut self) -> Duration {
        if self.leading.is_some() {
            return self.profile.retry;
        }
        self.profile.retry.mul_f64(1.0 + JITTER * self.random.f64())
    }

    /// When a follower should look again although it has heard nothing: its watch may be broken.
    pub fn poll_at(&mut self, now: Duration) -> Duration {
        now + self.pause()
    }

    /// The epoch that is led and until when, if nothing more comes through.
    pub fn leading(&self) -> Option<(i64, Duration)> {
        self.leading
    }

    /// Who leads, as far as was seen; empty: nobody, or nobody knows.
    pub fn holder(&self) -> &str {
        match &self.seen {
            Some((Some(record), _)) => &record.holder,
            _ => "",
        }
    }

    /// The version that was last seen; empty: none.
    pub fn version(&self) -> &str {
        match &self.seen {
            Some((Some(record), _)) => &record.version,
            _ => "",
        }
    }

    /// What gives the Lease up, if it is held: all work must have ended before.
    pub fn release(&self) -> Option<Record> {
        let (epoch, _) = self.leading?;
        let Some((Some(record), _)) = &self.seen else { return None };
        Some(Record {
            holder: String::new(),
            lasts: Duration::from_secs(1),
            transitions: epoch,
            ..record.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// The server: one object, writes only over the version that was read.
    #[derive(Default)]
    struct Server {
        record: Option<Record>,
        versions: u64,
        renewals: u64,
    }

    impl Server {
        fn write(&mut self, mut record: Record) -> Option<Record> {
            let current = self.record.as_ref().map(|record| record.version.clone());
            if current.unwrap_or_default() != record.version {
                return None;
            }
            self.versions += 1;
            self.renewals += 1;
            record.version = self.versions.to_string();
            record.renewed = Some(self.renewals.to_string());
            self.record = Some(record.clone());
            Some(record)
        }
    }

    fn election(name: &str) -> Election {
        Election::new(name.to_owned(), Profile::STANDARD, 42)
    }

    /// One step against the server, all answers at once.
    fn act(election: &mut Election, server: &mut Server, now: Duration) -> Option<Duration> {
        match election.next(now) {
            Step::Wait(at) => return Some(at),
            Step::Read => election.read(server.record.clone(), now),
            Step::Write(record) => match server.write(record) {
                Some(record) => election.written(record, now, now),
                None => election.outrun(now),
            },
        }
        None
    }

    fn settle(election: &mut Election, server: &mut Server, now: Duration) -> Duration {
        (0..10).find_map(|_| act(election, server, now)).expect("a pause within ten steps")
    }

    #[test]
    fn a_dead_leader_is_followed_within_the_bound() {
        let mut server = Server::default();
        let (mut first, mut second) = (election("a"), election("b"));
        let mut now = SECOND;
        assert_eq!(settle(&mut first, &mut server, now), now + Profile::STANDARD.retry);
        assert_eq!(first.leading(), Some((0, now + Profile::STANDARD.renew)));
        settle(&mut second, &mut server, now);
        assert_eq!((second.leading(), second.holder()), (None, "a"));
        now += 2 * SECOND;
        settle(&mut first, &mut server, now);
        second.read(server.record.clone(), now);
        let at = settle(&mut second, &mut server, now);
        assert_eq!(at, now + Profile::STANDARD.lease, "counted from the change it saw");
        settle(&mut second, &mut server, at);
        assert_eq!(second.leading().map(|(epoch, _)| epoch), Some(1));
        assert!(first.expire(at), "it stopped 5 s earlier");
        settle(&mut first, &mut server, at);
        assert_eq!((first.leading(), first.holder()), (None, "b"));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let mut server = Server::default();
        let (mut first, mut second) = (election("a"), election("b"));
        settle(&mut first, &mut server, SECOND);
        settle(&mut second, &mut server, SECOND);
        let gone = server.write(first.release().unwrap()).unwrap();
        assert_eq!((gone.holder.as_str(), gone.lasts), ("", SECOND));
        first.written(gone.clone(), SECOND, SECOND);
        assert_eq!(first.leading(), None);
        second.read(Some(gone), 2 * SECOND);
        settle(&mut second, &mut server, 2 * SECOND);
        assert_eq!(second.leading().map(|(epoch, _)| epoch), Some(1));
    }

    #[test]
    fn a_deleted_lease_sets_no_epoch_back_and_ends_the_leadership() {
        let mut server = Server::default();
        let mut first = election("a");
        server.write(Record { holder: "x".into(), transitions: 7, ..Record::default() });
        settle(&mut first, &mut server, SECOND);
        assert_eq!(first.leading().map(|(epoch, _)| epoch), Some(8));
        server.record = None;
        first.read(None, 2 * SECOND);
        assert_eq!(first.leading(), None);
        settle(&mut first, &mut server, 2 * SECOND);
        assert_eq!(first.leading().map(|(epoch, _)| epoch), Some(9));
    }

    #[test]
    fn a_leadership_that_nobody_took_is_found_again() {
        let mut server = Server::default();
        let mut first = election("a");
        server.write(Record { holder: "x".into(), transitions: 7, ..Record::default() });
        settle(&mut first, &mut server, SECOND);
        let later = SECOND + Profile::STANDARD.renew;
        assert!(first.expire(later), "its renewals did not come through");
        settle(&mut first, &mut server, later);
        assert_eq!(first.leading(), Some((8, later + Profile::STANDARD.renew)), "the same epoch");
    }

    #[test]
    fn an_unanswered_renewal_is_repeated_until_the_deadline() {
        let mut server = Server::default();
        let mut first = election("a");
        let begun = SECOND;
        let mut now = settle(&mut first, &mut server, begun);
        while first.leading().is_some() {
            match first.next(now) {
                Step::Wait(at) => now = at,
                Step::Write(_) => first.failed(now),
                Step::Read => panic!("a leader knows what it wrote"),
            }
            assert!(now <= begun + Profile::STANDARD.renew);
            first.expire(now);
        }
        assert_eq!(now, begun + Profile::STANDARD.renew);
        assert_eq!(first.next(now), Step::Read);
    }

    /// Three candidates on a server that answers late, loses answers and is sometimes down; candidates freeze and wake.
    /// Whenever one of them leads by its own clock, no other does, and each leadership has a higher epoch.
    #[test]
    #[expect(clippy::too_many_lines, reason = "one server, one walk")]
    fn never_two_lead_and_epochs_only_grow() {
        struct Flight {
            lands: Duration,
            answers: Option<Duration>,
            begun: Duration,
            ask: Option<Record>,
            answer: Answer,
        }
        enum Answer {
            Open,
            Read(Option<Record>),
            Written(Option<Record>),
        }
        let mut changes = 0;
        for seed in 1..=200_u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut server = Server::default();
            let mut nodes: Vec<_> = (0..3)
                .map(|n| (election(&format!("n{n}")), Duration::ZERO, None::<Flight>))
                .collect();
            let mut led: Vec<(i64, usize)> = vec![];
            let mut now = SECOND;
            for _ in 0..20_000 {
                now += 50 * MILLI;
                for (index, (election, frozen_until, flight)) in nodes.iter_mut().enumerate() {
                    if let Some(sent) = flight.as_mut().filter(|sent| sent.lands <= now)
                        && matches!(sent.answer, Answer::Open)
                    {
                        sent.answer = match sent.ask.take() {
                            None => Answer::Read(server.record.clone()),
                            Some(record) => Answer::Written(server.write(record)),
                        };
                    }
                    if *frozen_until > now {
                        continue;
                    }
                    if random.u64(..2_000) == 0 {
                        *frozen_until = now + SECOND * u32::try_from(random.u64(..40)).unwrap();
                        continue;
                    }
                    election.expire(now);
                    if let Some(sent) = flight.take() {
                        let timed_out = now >= sent.begun + Profile::STANDARD.call();
                        let here = sent.answers.is_some_and(|at| at <= now);
                        match sent.answer {
                            _ if timed_out => election.failed(now),
                            Answer::Read(record) if here => election.read(record, now),
                            Answer::Written(Some(record)) if here => {
                                election.written(record, sent.begun, now);
                            }
                            Answer::Written(None) if here => election.outrun(now),
                            _ => *flight = Some(sent),
                        }
                    }
                    if flight.is_none() {
                        let ask = match election.next(now) {
                            Step::Wait(_) if random.u64(..40) == 0 => None,
                            Step::Wait(_) => continue,
                            Step::Read => None,
                            Step::Write(record) => Some(record),
                        };
                        let lands = now + MILLI * u32::try_from(random.u64(..3_000)).unwrap();
                        let lost = random.u64(..10) == 0;
                        let answers = (!lost)
                            .then(|| lands + MILLI * u32::try_from(random.u64(..1_000)).unwrap());
                        let answer = Answer::Open;
                        *flight = Some(Flight { lands, answers, begun: now, ask, answer });
                    }
                    if let Some((epoch, _)) = election.leading()
                        && led.last() != Some(&(epoch, index))
                    {
                        let last = led.last().map_or(-1, |(epoch, _)| *epoch);
                        assert!(epoch > last, "seed {seed}: epoch {epoch} after {last}");
                        led.push((epoch, index));
                    }
                }
                let leaders = nodes.iter().filter(|(election, ..)| {
                    election.leading().is_some_and(|(_, until)| now < until)
                });
                assert!(leaders.count() <= 1, "seed {seed}: two lead at {now:?}");
            }
            changes += led.len();
        }
        assert!(changes > 600, "{changes} leaders of 200 elections");
    }
}
