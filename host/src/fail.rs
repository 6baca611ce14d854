//! Failpoints: places where a test ends, breaks or delays the host.
//!
//! Compiled in only with the feature `failpoints`, which no released binary has; without it a point is nothing. One is
//! armed at the start by `NAGAYA_FAIL=<step>:<kill|panic|delay>[@N]`, and acts once, at its Nth passage.

/// Every step that has a point: those of a swap in their order, and a run's.
pub const STEPS: [&str; 19] = [
    "recv",
    "hash",
    "verify",
    "fsync",
    "rename",
    "cr-written",
    "compile-start",
    "compiled",
    "instantiate",
    "describe",
    "intent-cas",
    "gate-closed",
    "drained",
    "gate-open",
    "requeue",
    "gc",
    // Before a write is sent, after its answer, and in a host function that a guest has called.
    "write",
    "written",
    "host-call",
];

/// What [`arm`] cannot read.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not <step>:<kill|panic|delay>[@N]; the steps are {list}", list = STEPS.join(", "))]
pub struct Unknown(String);

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    /// How long `delay` holds a step up.
    const DELAY: Duration = Duration::from_secs(3);

    #[derive(Clone, Copy)]
    pub(super) enum Act {
        Kill,
        Panic,
        Delay,
    }

    pub(super) struct Plan {
        pub(super) step: String,
        pub(super) act: Act,
        pub(super) at: u32,
        pub(super) passed: AtomicU32,
    }

    pub(super) static PLAN: OnceLock<Plan> = OnceLock::new();

    impl Plan {
        pub(super) fn pass(&self) {
            if self.passed.fetch_add(1, Ordering::SeqCst) + 1 != self.at {
                return;
            }
            tracing::warn!(step = self.step, "a failpoint acts");
            match self.act {
                Act::Kill => {
                    let _ = rustix::process::kill_process(
                        rustix::process::getpid(),
                        rustix::process::Signal::KILL,
                    );
                }
                Act::Panic => std::panic::resume_unwind(Box::new("a failpoint")),
                Act::Delay => std::thread::sleep(DELAY),
            }
        }
    }
}

/// Arms the one point that `text` names.
#[cfg(feature = "failpoints")]
pub fn arm(text: &str) -> Result<(), Unknown> {
    use armed::{Act, PLAN, Plan};
    let unknown = || Unknown(text.to_owned());
    let (step, act) = text.split_once(':').ok_or_else(unknown)?;
    let (act, at) = act.split_once('@').unwrap_or((act, "1"));
    let act = match act {
        "kill" => Act::Kill,
        "panic" => Act::Panic,
        "delay" => Act::Delay,
        _ => return Err(unknown()),
    };
    let at = at.parse().map_err(|_| unknown())?;
    if !STEPS.contains(&step) {
        return Err(unknown());
    }
    let _ = PLAN.set(Plan { step: step.to_owned(), act, at, passed: 0.into() });
    Ok(())
}

/// A step of the host's work; nothing, unless a test has armed it.
#[cfg(feature = "failpoints")]
pub fn point(step: &str) {
    if let Some(plan) = armed::PLAN.get().filter(|plan| plan.step == step) {
        plan.pass();
    }
}

/// A released host has no failpoints: whoever wants one should hear of it.
#[cfg(not(feature = "failpoints"))]
pub fn arm(text: &str) -> Result<(), Unknown> {
    Err(Unknown(format!("{text}, in a host without failpoints,")))
}

/// A step of the host's work; nothing, unless a test has armed it.
#[cfg(not(feature = "failpoints"))]
pub fn point(_step: &str) {}
