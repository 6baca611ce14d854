//! The ways to do harm, with the bounds that each must keep.

use std::time::Duration;

use e2e::memory::MIB;
use serde_json::{Value, json};

/// Set by `cargo xtask test --hostile`: longer windows, and what takes half a minute.
const LONG: &str = "NAGAYA_HOSTILE";
/// The deadline of a run in all fault tests.
const DEADLINE: Duration = Duration::from_millis(100);

/// One way to do harm.
#[derive(Clone)]
pub(crate) struct Harm {
    /// A letter for its kind (F: of one run, G: of a component) and a number.
    pub(crate) fault: &'static str,
    pub(crate) name: &'static str,
    /// What the guest does; the table of steps is in `tests/guests/hostile`.
    pub(crate) steps: &'static str,
    /// So many objects do it at once.
    pub(crate) objects: usize,
    pub(crate) limits: Value,
    /// What may end a run: for people, and words of the failure. The first must be among what is seen.
    pub(crate) ends: &'static [(&'static str, &'static str)],
    /// When a run is to be ended, and how much later it may be.
    pub(crate) after: Option<(Duration, Duration)>,
    /// How much slower the bystander may get.
    pub(crate) others: Duration,
    /// How much more the host may hold meanwhile.
    pub(crate) holds: Option<u64>,
    pub(crate) traces: Traces,
}

/// What of it may reach the world.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traces {
    None,
    /// So many bytes of log a second.
    Log(usize),
    /// So many Events about one object.
    Events(usize),
    /// So many writes a second, after a burst.
    Writes {
        burst: usize,
        a_second: usize,
    },
}

const TIME: (&str, &str) = ("deadline", "computed longer than limits.deadline");
const MEMORY: (&str, &str) = ("memory limit", "more memory than limits.memory");
const WAITED: (&str, &str) = ("waiting limit", "waited too long");
const AT_ONCE: (&str, &str) = ("limit of one call", "handed over too much at once");
const SLEEPS: &str =
    "sleep:4000,sleep:4000,sleep:4000,sleep:4000,sleep:4000,sleep:4000,sleep:4000,sleep:4000";

pub(crate) fn is_long() -> bool {
    std::env::var_os(LONG).is_some_and(|value| value == "long")
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// `steps` end a run by `ends`; a bystander may be 25 ms slower. Where the deadline is not what is to end a run it is
/// far away, also on a machine that is slow.
fn harm(
    fault: &'static str,
    name: &'static str,
    steps: &'static str,
    ends: &'static [(&'static str, &'static str)],
) -> Harm {
    let deadline = if ends == [TIME] { "100ms" } else { "5s" };
    Harm {
        fault,
        name,
        steps,
        objects: 1,
        limits: json!({"deadline": deadline, "writesPerMinute": 6_000}),
        ends,
        after: None,
        others: ms(25),
        holds: None,
        traces: Traces::None,
    }
}

/// All of them, in the order of their numbers.
pub(crate) fn harms() -> Vec<Harm> {
    let mut all = [computing(), memory(), handing_over(), flooding()].concat();
    if is_long() {
        let slow = harm("F8", "sleeps of 4 s, again and again", SLEEPS, &[WAITED]);
        all.push(Harm { after: Some((Duration::from_secs(30), ms(250))), others: ms(15), ..slow });
    }
    all.sort_by_key(|harm| harm.fault[1..].parse::<u8>().unwrap_or_default());
    all
}

fn computing() -> Vec<Harm> {
    let sleep = harm("F8", "sleep in a host call", "sleep:60000", &[WAITED]);
    vec![
        Harm {
            after: Some((ms(0), ms(50))),
            ..harm("F1", "trap", "trap", &[("trap", "guest trapped")])
        },
        harm("F1", "panic", "panic", &[("trap, with its words", "told to panic")]),
        harm("F1", "process exit", "exit:1", &[("exit", "called exit with code 1")]),
        Harm { after: Some((DEADLINE, ms(60))), ..harm("F3", "endless loop", "loop", &[TIME]) },
        Harm { objects: 8, ..harm("F3", "8 endless loops at once", "loop", &[TIME]) },
        Harm {
            after: Some((ms(0), ms(50))),
            ..harm("F5", "deep recursion", "stack", &[("stack overflow", "stack overflow")])
        },
        Harm { after: Some((Duration::from_secs(5), ms(250))), others: ms(15), ..sleep },
    ]
}

fn memory() -> Vec<Harm> {
    vec![
        Harm { holds: Some(80 * MIB), ..harm("F4", "memory bomb", "alloc", &[MEMORY]) },
        Harm {
            after: Some((DEADLINE, ms(100))),
            ..harm("F6", "filling 60 MiB, again and again", "fill:60", &[TIME])
        },
    ]
}

const NAME: &[(&str, &str)] = &[("limit of a name", "there may be at most 253")];

fn handing_over() -> Vec<Harm> {
    const OBJECT: &[(&str, &str)] = &[("limit of an object", "more than 1048576")];
    const DEEP: &[(&str, &str)] = &[("refused as invalid", "Invalid")];
    const HANDLES: &[(&str, &str)] = &[("handle limit", "table")];
    const SELECTOR: &[(&str, &str)] = &[("limit of a selector", "there may be at most 4096")];
    // The guest's own memory, and 8 MiB for what it hands over.
    let f7 = |name, steps, ends| Harm { holds: Some(72 * MIB), ..harm("F7", name, steps, ends) };
    vec![
        harm("F5", "JSON, 100,000 lists deep", "deep-json:100000", DEEP),
        f7("object of 2 MiB", "huge-output:2", OBJECT),
        f7("object of 8 MiB", "huge-output:8", &[AT_ONCE]),
        f7("list of 100,000", "long-list:100000", &[AT_ONCE]),
        f7("answer of 8 MiB", "huge-answer", &[AT_ONCE]),
        f7("10,000 handles", "handles:10000", HANDLES),
        f7("name of 3 MB", "names:3000", NAME),
        f7("selector of 200,000 requirements", "selector:200000", SELECTOR),
    ]
}

fn flooding() -> Vec<Harm> {
    const BUDGET: &[(&str, &str)] = &[("write budget", "BudgetExceeded")];
    let log = |name, steps| Harm {
        others: ms(15),
        traces: Traces::Log(64 << 10),
        ..harm("F9", name, steps, &[TIME])
    };
    vec![
        log("log flood", "log-flood"),
        log("flood of standard output", "stdout-flood"),
        Harm {
            traces: Traces::Events(25),
            ..harm("F10", "flood of Events", "events:1000000", &[TIME])
        },
        Harm {
            holds: Some(32 * MIB),
            ..harm("F10", "100 Events about names of 600 kB", "event-names:100", NAME)
        },
        Harm {
            limits: json!({"deadline": "5s", "writesPerMinute": 60}),
            traces: Traces::Writes { burst: 10, a_second: 1 },
            ..harm("F11", "write storm", "storm:1000", BUDGET)
        },
    ]
}
