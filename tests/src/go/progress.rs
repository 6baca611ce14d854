//! Shows how far the Go build is: silent minutes look like a hang.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Program;

/// A CI log with a line every ten seconds stays readable, and no CI calls that a hang.
pub(super) const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Progress {
    program: &'static Program,
    bar: ProgressBar,
    plain: bool,
    said_at: Duration,
}

impl Progress {
    pub(super) fn new(program: &'static Program) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let packages = Some(program.packages);
        let bar = ProgressBar::with_draw_target(packages, ProgressDrawTarget::hidden());
        let Program { title, what, takes, .. } = program;
        if plain {
            say(&format!("{title}: building {what}, once, {takes}"));
        } else {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            let figures = "[{elapsed}] {bar:20} {pos}/~{len} {wide_msg}";
            if let Ok(style) = ProgressStyle::with_template(&format!("building {what} {figures}")) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { program, bar, plain, said_at: Duration::ZERO }
    }

    /// One more package is compiled.
    pub(super) fn package(&mut self, name: &str) {
        self.bar.inc(1);
        self.bar.set_message(name.to_owned());
        self.still();
    }

    /// Anything else Go says, such as what it downloads.
    pub(super) fn note(&mut self, line: &str) {
        self.bar.set_message(line.to_owned());
        self.still();
    }

    /// The build goes on.
    pub(super) fn still(&mut self) {
        let elapsed = self.bar.elapsed();
        if self.plain && elapsed.saturating_sub(self.said_at) >= PLAIN_INTERVAL {
            self.said_at = elapsed;
            let Program { title, packages, .. } = self.program;
            say(&format!(
                "{title}: {} of about {packages} packages after {} s, now {}",
                self.bar.position(),
                elapsed.as_secs(),
                self.bar.message()
            ));
        }
    }

    pub(super) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// A line on stderr that shows in a test run too: the test harness keeps `eprintln!` to itself.
pub(crate) fn say(line: &str) {
    // Nobody is left to tell if stderr is gone.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
