//! Gives back what idle programs hold: code pages after a quiet time, the allocator's leftovers after a bulk drop.
//!
//! Programs are held weakly: to be listed here keeps none of them loaded. A run only counts itself; clock, list and
//! system calls are on the side of the looks, which end with the sandbox.
//!
//! Invariants: `pages_go_back_once_in_a_quiet_time`, `a_bulk_drop_is_seen_once`,
//! `a_program_runs_after_its_pages_were_given_back`.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::mm::Advice;
use tokio::{
    runtime::Handle,
    time::{Instant, MissedTickBehavior},
};
use wasmtime::component::Component;

use super::imports::{AbortOnDrop, State, bindings::ReconcilerPre};

/// Without a run for this long a program is idle. Its next run costs a millisecond more: nothing for what runs less
/// than once a minute, too much for what is retried every few seconds.
pub(super) const QUIET: Duration = Duration::from_secs(60);
/// Looks in a quiet time: pages go back a sixth of it late at most.
const LOOKS: u32 = 6;
/// Programs dropped since the last trim that make another worth its lock on every arena: about half a MiB.
const BULK: usize = 8;

/// The code that runs start from.
pub(super) type Code = Counted<ReconcilerPre<State>>;

/// Something, and how often it was used.
pub(super) struct Counted<T> {
    what: T,
    uses: AtomicU64,
}

impl<T> Counted<T> {
    pub(super) fn new(what: T) -> Self {
        Self { what, uses: AtomicU64::new(0) }
    }

    /// It, for one more use.
    pub(super) fn used(&self) -> &T {
        self.uses.fetch_add(1, Ordering::Relaxed);
        &self.what
    }
}

/// Looks after the programs of one sandbox until it is dropped.
pub(super) struct Idle {
    list: Arc<Mutex<List<ReconcilerPre<State>>>>,
    _looks: AbortOnDrop<()>,
}

impl Idle {
    /// Begins to look, on `control`'s threads for what blocks.
    pub(super) fn start(quiet: Duration, control: &Handle) -> Self {
        let list = Arc::new(Mutex::new(List::new(quiet)));
        let looks = AbortOnDrop(control.spawn(look_for_ever(list.clone(), quiet / LOOKS)));
        Self { list, _looks: looks }
    }

    /// Lists a program, which counts as used now.
    pub(super) fn add(&self, code: &Arc<Code>) {
        let mut list = self.list.lock();
        list.add(code, Instant::now());
    }
}

async fn look_for_ever(list: Arc<Mutex<List<ReconcilerPre<State>>>>, period: Duration) {
    // An interval of nothing is refused.
    let mut looks = tokio::time::interval(period.max(Duration::from_millis(1)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = looks.tick().await;
        let look = list.lock().look(now);
        if look.idle.is_empty() && !look.trim {
            continue;
        }
        if let Err(error) = tokio::task::spawn_blocking(move || act(&look)).await {
            tracing::error!(%error, "giving memory of idle programs back broke off");
        }
    }
}

fn act(look: &Look<ReconcilerPre<State>>) {
    // What fails for one fails for all: one line says so.
    let failed = look.idle.iter().find_map(|code| {
        let component = code.what.instance_pre().component();
        give_back(component).err()
    });
    if let Some(error) = failed {
        tracing::warn!(%error, "the system does not take pages of idle code back; they stay in memory");
    } else if !look.idle.is_empty() {
        tracing::debug!(programs = look.idle.len(), "idle programs gave their pages back");
    }
    if look.trim {
        trim();
    }
}

/// Gives the pages of a component's code back; the next run reads them from the file again.
fn give_back(component: &Component) -> io::Result<()> {
    let image = component.image_range();
    let length = image.end.addr().saturating_sub(image.start.addr());
    #[expect(
        unsafe_code,
        reason = "the range is the component's own mapping, which `component` keeps in place during the call, and \
                  paging out changes no content: a page is dropped only if its file holds the same, and whoever \
                  touches it, running guests too, gets it back"
    )]
    // SAFETY: see the reason above.
    let done =
        unsafe { rustix::mm::madvise(image.start.cast_mut().cast(), length, Advice::LinuxPageOut) };
    Ok(done?)
}

/// Has glibc return the pages it keeps for blocks that are free; other allocators do so by themselves.
fn trim() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(
            unsafe_code,
            reason = "glibc declares `int malloc_trim(size_t)`; it may be called at any time from any thread, and \
                      touches no block that is in use"
        )]
        // SAFETY: see the reason above.
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        let returned = malloc_trim(0) == 1;
        tracing::debug!(returned, "memory of dropped programs was trimmed");
    }
}

/// The programs there are, and since when they are quiet.
struct List<T> {
    quiet: Duration,
    kept: Vec<Kept<T>>,
    /// Since the last trim.
    dropped: usize,
}

struct Kept<T> {
    code: Weak<Counted<T>>,
    /// How often it was used at the last look.
    uses: u64,
    /// When that number was new.
    since: Instant,
    pages: Pages,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// Used since they were last given back, if ever.
    Held,
    GivenBack,
}

/// What a look finds to do.
struct Look<T> {
    /// Their pages are to be given back.
    idle: Vec<Arc<Counted<T>>>,
    /// Whether so many are gone that the allocator should let go.
    trim: bool,
}

impl<T> List<T> {
    fn new(quiet: Duration) -> Self {
        Self { quiet, kept: vec![], dropped: 0 }
    }

    fn add(&mut self, code: &Arc<Counted<T>>, now: Instant) {
        let uses = code.uses.load(Ordering::Relaxed);
        let code = Arc::downgrade(code);
        self.kept.push(Kept { code, uses, since: now, pages: Pages::Held });
    }

    fn look(&mut self, now: Instant) -> Look<T> {
        let (before, quiet) = (self.kept.len(), self.quiet);
        let mut idle = vec![];
        self.kept.retain_mut(|kept| {
            let Some(code) = kept.code.upgrade() else { return false };
            if kept.is_due(code.uses.load(Ordering::Relaxed), now, quiet) {
                idle.push(code);
            }
            true
        });
        self.dropped += before - self.kept.len();
        let trim = self.dropped >= BULK;
        if trim {
            self.dropped = 0;
        }
        Look { idle, trim }
    }
}

impl<T> Kept<T> {
    /// Whether the pages are to be given back now: once in each quiet time.
    fn is_due(&mut self, uses: u64, now: Instant, quiet: Duration) -> bool {
        if uses != self.uses {
            (self.uses, self.since, self.pages) = (uses, now, Pages::Held);
        }
        let due = self.pages == Pages::Held && now.saturating_duration_since(self.since) >= quiet;
        if due {
            self.pages = Pages::GivenBack;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> (List<()>, Instant, impl Fn(Instant, u64) -> Instant) {
        let after = |start: Instant, seconds| start + Duration::from_secs(seconds);
        (List::new(QUIET), Instant::now(), after)
    }

    #[test]
    fn pages_go_back_once_in_a_quiet_time() {
        let (mut list, start, after) = list();
        let (busy, idle) = (Arc::new(Counted::new(())), Arc::new(Counted::new(())));
        list.add(&busy, start);
        list.add(&idle, start);
        let mut found = vec![];
        for second in (0..=300).step_by(10) {
            if second % 50 == 0 {
                busy.used();
            }
            if second == 130 {
                idle.used();
            }
            for code in list.look(after(start, second)).idle {
                assert!(Arc::ptr_eq(&code, &idle), "used every 50 seconds");
                found.push(second);
            }
        }
        assert_eq!(found, [60, 190]);
    }

    #[test]
    fn a_bulk_drop_is_seen_once() {
        let (mut list, start, after) = list();
        let mut programs: Vec<_> = (0..20).map(|_| Arc::new(Counted::new(()))).collect();
        for program in &programs {
            list.add(program, start);
        }
        let mut trims = vec![];
        for (second, left) in [(1, 20), (2, 13), (3, 12), (4, 12), (5, 4), (6, 0)] {
            programs.truncate(left);
            if list.look(after(start, second)).trim {
                trims.push(second);
            }
        }
        assert_eq!(trims, [3, 5], "eight gone since the last time");
        assert!(list.kept.is_empty(), "nobody is listed for ever");
    }
}
