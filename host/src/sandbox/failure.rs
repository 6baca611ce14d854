//! How a run ends badly, as data: what the guest said, what it did, or what ran out.
//!
//! Languages differ (a `QuickJS` throw is an answer, a Python exception a trap); they all end in this one set. Every text
//! of a guest is cut and made one line here, where it enters: it goes into logs, conditions and Events of others.
//!
//! Invariants, held by `tests/sandbox.rs`: `an_endless_loop_ends_at_its_deadline`, `a_memory_bomb_is_called_memory`,
//! `a_huge_answer_is_too_large`, `an_exit_is_a_failure`, `a_panic_is_a_trap_with_its_words`,
//! `what_a_guest_returns_is_one_line_of_a_kibibyte`.

use std::fmt::Write;

use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::{
    imports::{Cut, State},
    limits::HOSTCALL_FUEL,
    memory::UsedUp,
    wasi::WaitedTooLong,
};
use crate::text;

/// The longest report of a trap: it ends in an Event and in a condition.
const REPORT: usize = 900;
/// The longest name of a function in it: a component may name its functions as it likes.
const FUNCTION: usize = 120;
/// Frames of a report.
const FRAMES: usize = 4;
/// So many equal frames are a recursion: wasmtime keeps twenty.
const RECURSION: usize = 12;

/// Why a run did not end with an action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The guest said so.
    #[error(transparent)]
    Returned(Returned),
    /// The guest broke down; what is known of it is for its own team.
    #[error("the guest trapped: {0}")]
    Trap(String),
    /// It computed for too long.
    #[error("the guest computed longer than limits.deadline allows")]
    Deadline,
    /// It waited for too long, in one host call or in all.
    #[error("the guest waited too long: one call of the host may take 5 s, and a whole run 30 s")]
    Wall,
    /// It wanted more memory than it may have.
    #[error("the guest needs more memory than limits.memory allows")]
    Memory,
    /// It handed more bytes to the host at once than it may; the text says where.
    #[error("the guest handed over too much at once: {0}")]
    TooLarge(String),
    /// It called `exit`.
    #[error("the guest called exit with code {0} instead of answering")]
    Exit(i32),
    /// The host ended it: a drain is over or a claim is lost.
    #[error("the run was ended by the host")]
    Drained,
    /// A host function broke down; the instance is dropped, and only this run fails.
    #[error("the host panicked while it served the guest, which is a bug of the host")]
    Panicked,
    /// The host's own trouble.
    #[error("the host could not run the guest: {0}")]
    Host(String),
}

impl Failure {
    /// Whether the guest broke down, in whatever way, instead of answering.
    pub fn is_breakdown(&self) -> bool {
        match self {
            Self::Trap(_)
            | Self::Deadline
            | Self::Wall
            | Self::Memory
            | Self::TooLarge(_)
            | Self::Exit(_) => true,
            Self::Returned(_) | Self::Drained | Self::Panicked | Self::Host(_) => false,
        }
    }
}

/// What the guest said went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Returned {
    /// Try again later.
    #[error("{0}")]
    Retry(String),
    /// Do not try again until something changes.
    #[error("terminal: {0}")]
    Terminal(String),
    /// The object is at fault.
    #[error("invalid: {0}")]
    Invalid(String),
}

/// What an error of wasmtime means, with what the run's state tells of it.
pub(super) fn judge(error: &wasmtime::Error, state: &State) -> Failure {
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return Failure::Exit(*code);
    }
    if error.downcast_ref::<WaitedTooLong>().is_some() {
        return Failure::Wall;
    }
    if let Some(used_up) = error.downcast_ref::<UsedUp>() {
        return Failure::Host(used_up.to_string());
    }
    let backtrace = error.downcast_ref::<WasmBacktrace>();
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => match state.cut {
            Some(Cut::Drained) => Failure::Drained,
            _ => Failure::Deadline,
        },
        Some(Trap::UnreachableCodeReached) if state.meter.has_refused() => Failure::Memory,
        Some(trap) => Failure::Trap(report(*trap, backtrace, &state.log.last_lines())),
        None => judge_text(&format!("{:#}", error.root_cause()), backtrace.is_some(), state),
    }
}

/// wasmtime has no types for these.
fn judge_text(text: &str, is_in_guest: bool, state: &State) -> Failure {
    if text.contains("fuel allocated for hostcalls has been exhausted") {
        let limit = HOSTCALL_FUEL >> 20;
        return Failure::TooLarge(if is_in_guest {
            format!(
                "over {limit} MiB in the call of an import; the import called before was {}",
                state.last_call
            )
        } else {
            format!(
                "over {limit} MiB in its answer; the last import called was {}",
                state.last_call
            )
        });
    }
    if text.contains("exceeds memory limits") || text.contains("exceeds the limit of") {
        return Failure::Memory;
    }
    let is_hosts = ["concurrent limit", "os error", "host bug", "the host has no randomness"]
        .iter()
        .any(|words| text.contains(words));
    let text = cut(text);
    if is_hosts { Failure::Host(text) } else { Failure::Trap(text) }
}

fn report(trap: Trap, backtrace: Option<&WasmBacktrace>, last_lines: &str) -> String {
    let frames = backtrace.map_or(&[][..], |backtrace| backtrace.frames());
    let functions: Vec<u32> = frames.iter().map(wasmtime::FrameInfo::func_index).collect();
    let most = functions.iter().map(|f| functions.iter().filter(|other| *other == f).count()).max();
    let is_recursion = most.unwrap_or(0) >= RECURSION;
    let mut report = match trap {
        Trap::UnreachableCodeReached => "it panicked or aborted".to_owned(),
        // The shadow stack runs below address 0 long before the real one ends.
        Trap::MemoryOutOfBounds | Trap::StackOverflow if is_recursion => {
            "stack overflow: a function calls itself without end".to_owned()
        }
        other => other.to_string(),
    };
    if !last_lines.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(report, "; its last log lines: {last_lines}");
    }
    for (number, frame) in frames.iter().take(FRAMES).enumerate() {
        let before = if number == 0 { "; at" } else { " <-" };
        match frame.func_name() {
            Some(name) => drop(write!(report, "{before} {}", text::line(name, FUNCTION))),
            None => drop(write!(report, "{before} function {}", frame.func_index())),
        }
    }
    cut(&report)
}

/// What a guest has said, as it may be told.
pub(super) fn said(text: &str) -> String {
    text::line(text, text::MESSAGE).into_owned()
}

pub(super) fn cut(text: &str) -> String {
    text::line(text, REPORT).into_owned()
}
