//! Hands out permits to compute, in the order that [`crate::share::fair`] decides, and measures what they are used for.
//!
//! A guest has a permit while its code runs, and gives it back whenever it waits: for a host call, or at a tick for its
//! next turn. So a team that loops on every thread holds another one up for a tick at most.
//!
//! Invariants: `a_permit_is_held_while_code_runs_and_no_longer`, `who_gives_up_leaves_no_permit_behind`,
//! `who_waits_is_polled_when_it_is_woken_and_not_before`.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::share::fair::{Fair, Grant, Ticket, Turn};
use parking_lot::{Mutex, MutexGuard};

/// The permits of one host; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cpu(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    fair: Fair<u64>,
    /// Teams by name, and once more for their work that comes behind. There are as many as there were namespaces with
    /// controllers.
    teams: HashMap<(Arc<str>, bool), u64>,
    waiting: HashMap<Ticket, Wait>,
}

#[derive(Debug)]
enum Wait {
    Asked(Waker),
    Granted(Grant<u64>),
}

/// What the code of a turn and the one that metes it out tell each other.
#[derive(Debug, Default)]
pub struct TurnClock {
    /// CPU time of the thread when the turn began, in nanoseconds.
    began: AtomicU64,
    ticked: AtomicBool,
}

/// Computes only with a permit.
pub struct Metered<F> {
    cpu: Cpu,
    team: u64,
    turned: Arc<TurnClock>,
    work: Pin<Box<F>>,
    stage: Stage,
    turn: Turn,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Waits for something else than a permit.
    Away,
    Waiting(Ticket),
    Granted(Grant<u64>),
}

impl Cpu {
    /// So many permits: as many as threads compute.
    pub fn new(permits: usize) -> Self {
        let state =
            State { fair: Fair::new(permits), teams: HashMap::new(), waiting: HashMap::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// `work` of a team; `behind`: only while nobody else waits to compute. `turned` is what the code within may ask for how long it has computed.
    pub fn metered<F>(
        &self,
        (team, behind): (&Arc<str>, bool),
        turned: Arc<TurnClock>,
        work: F,
    ) -> Metered<F> {
        let mut state = self.state();
        let number = state.teams.len() as u64;
        let team = *state.teams.entry((team.clone(), behind)).or_insert(number);
        if behind {
            state.fair.put_behind(team);
        }
        drop(state);
        let (cpu, work) = (self.clone(), Box::pin(work));
        Metered { cpu, team, turned, work, stage: Stage::Away, turn: Turn::New }
    }

    fn ask(&self, team: u64, turn: Turn, waker: &Waker) -> Stage {
        let mut state = self.state();
        let ticket = state.fair.ask(team, turn);
        // Who asks looks at once, below: a waker of its own here would make it poll itself for as long as it waits.
        state.waiting.insert(ticket, Wait::Asked(Waker::noop().clone()));
        let woken = state.serve();
        let stage = state.look(ticket, waker);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        stage
    }

    fn look(&self, ticket: Ticket, waker: &Waker) -> Stage {
        self.state().look(ticket, waker)
    }

    fn release(&self, grant: Grant<u64>, used: Duration) {
        let mut state = self.state();
        state.fair.release(grant, used);
        let woken = state.serve();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    fn withdraw(&self, ticket: Ticket) {
        let mut state = self.state();
        match state.waiting.remove(&ticket) {
            Some(Wait::Granted(grant)) => {
                drop(state);
                self.release(grant, Duration::ZERO);
            }
            Some(Wait::Asked(_)) => state.fair.withdraw(ticket),
            None => (),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// Gives what is free; whom to wake.
    fn serve(&mut self) -> Vec<Waker> {
        let mut woken = vec![];
        while let Some(grant) = self.fair.grant() {
            if let Some(Wait::Asked(waker)) =
                self.waiting.insert(grant.ticket, Wait::Granted(grant))
            {
                woken.push(waker);
            }
        }
        woken
    }

    fn look(&mut self, ticket: Ticket, waker: &Waker) -> Stage {
        match self.waiting.get_mut(&ticket) {
            Some(Wait::Asked(known)) => {
                known.clone_from(waker);
                Stage::Waiting(ticket)
            }
            Some(Wait::Granted(grant)) => {
                let grant = *grant;
                self.waiting.remove(&ticket);
                Stage::Granted(grant)
            }
            None => Stage::Away,
        }
    }
}

impl TurnClock {
    fn begin(&self) -> Duration {
        let now = thread_time();
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.began.store(nanos, Ordering::Relaxed);
        now
    }

    /// CPU time since the turn began; only for the thread on which it runs.
    pub fn used(&self) -> Duration {
        thread_time().saturating_sub(Duration::from_nanos(self.began.load(Ordering::Relaxed)))
    }

    /// The turn ends because a tick has come: others are next, those that begin too.
    pub fn tick(&self) {
        self.ticked.store(true, Ordering::Relaxed);
    }

    fn next(&self) -> Turn {
        if self.ticked.swap(false, Ordering::Relaxed) { Turn::New } else { Turn::Resumed }
    }
}

impl<F: Future> Metered<F> {
    /// Returns once the first permit is there, so that a clock can begin with the code and not with the wait for it.
    pub async fn turn(&mut self) {
        std::future::poll_fn(|context| self.poll_permit(context).map(drop)).await;
    }

    fn poll_permit(&mut self, context: &Context<'_>) -> Poll<Grant<u64>> {
        self.stage = match self.stage {
            Stage::Away => self.cpu.ask(self.team, self.turn, context.waker()),
            Stage::Waiting(ticket) => self.cpu.look(ticket, context.waker()),
            granted @ Stage::Granted(_) => granted,
        };
        match self.stage {
            Stage::Granted(grant) => Poll::Ready(grant),
            Stage::Away | Stage::Waiting(_) => Poll::Pending,
        }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Poll::Ready(grant) = self.poll_permit(context) else { return Poll::Pending };
        let began = self.turned.begin();
        let result = self.work.as_mut().poll(context);
        let used = thread_time().saturating_sub(began);
        self.stage = Stage::Away;
        self.turn = self.turned.next();
        self.cpu.release(grant, used);
        result
    }
}

impl<F> Drop for Metered<F> {
    fn drop(&mut self) {
        match self.stage {
            Stage::Away => (),
            Stage::Waiting(ticket) => self.cpu.withdraw(ticket),
            // Also if the work panicked.
            Stage::Granted(grant) => self.cpu.release(grant, Duration::ZERO),
        }
    }
}

/// How long this thread has computed.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    fn metered<F: Future>(cpu: &Cpu, team: &str, work: F) -> Metered<F> {
        cpu.metered((&team.into(), false), Arc::default(), work)
    }

    fn free(cpu: &Cpu) -> usize {
        cpu.state().fair.free()
    }

    #[tokio::test]
    async fn a_permit_is_held_while_code_runs_and_no_longer() {
        let cpu = Cpu::new(1);
        let (answer, answered) = oneshot::channel();
        let inner = cpu.clone();
        let mut first = metered(&cpu, "a", async move {
            assert_eq!(free(&inner), 0, "it computes");
            answered.await.unwrap();
            assert_eq!(free(&inner), 0, "again");
        });
        assert!((&mut first).now_or_never().is_none());
        assert_eq!(free(&cpu), 1, "it waits for an answer");
        let mut turn = metered(&cpu, "b", async {});
        turn.turn().now_or_never().unwrap();
        assert_eq!(free(&cpu), 0);
        answer.send(()).unwrap();
        assert!((&mut first).now_or_never().is_none(), "the other has the permit");
        let second = tokio::spawn(first);
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        turn.await;
        second.await.unwrap();
        assert_eq!(free(&cpu), 1);
    }

    /// Wakes of a run that waits for one answer of the host: one when the answer is there, one if a permit was not free.
    #[tokio::test]
    async fn who_waits_is_polled_when_it_is_woken_and_not_before() {
        let cpu = Cpu::new(1);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let (answer, answered) = oneshot::channel();
        let mut first = std::pin::pin!(metered(&cpu, "a", async { answered.await.unwrap() }));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert_eq!(woken.count(), 0, "the permit was free, and nobody has answered");
        let mut turn = metered(&cpu, "b", async {});
        turn.turn().now_or_never().unwrap();
        answer.send(()).unwrap();
        assert_eq!(woken.count(), 1, "answered");
        assert!(first.as_mut().poll(&mut context).is_pending(), "the other has the permit");
        assert_eq!(woken.count(), 1, "it waits for the permit");
        turn.await;
        assert_eq!(woken.count(), 2, "the permit is free");
        assert!(first.as_mut().poll(&mut context).is_ready());
        assert_eq!(woken.count(), 2);
    }

    #[derive(Default)]
    struct Woken(AtomicU64);

    impl Woken {
        fn count(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn who_gives_up_leaves_no_permit_behind() {
        let cpu = Cpu::new(1);
        let mut first = metered(&cpu, "a", async {});
        first.turn().await;
        let mut second = metered(&cpu, "b", async {});
        let mut third = metered(&cpu, "c", async {});
        assert!(second.turn().now_or_never().is_none() && third.turn().now_or_never().is_none());
        drop(second);
        drop(first);
        assert_eq!(free(&cpu), 0, "it is the third's, who has not looked yet");
        drop(third);
        assert_eq!((free(&cpu), cpu.state().waiting.len()), (1, 0));
    }
}
