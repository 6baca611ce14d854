//! Says what is going on: numbered steps, the commands, what came of them. Colours are for terminals.

use std::io::IsTerminal;
use std::time::Duration;

use tokio::time::Instant;

/// The steps of a long command, on stdout.
#[derive(Debug)]
pub(crate) struct Progress {
    coloured: bool,
    total: usize,
    begun: usize,
    started: Instant,
}

#[derive(Clone, Copy)]
enum Colour {
    Bold,
    Faint,
    Green,
    Cyan,
}

impl Progress {
    /// Of a command with so many steps.
    pub(crate) fn new(total: usize) -> Self {
        let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { coloured, total, begun: 0, started: Instant::now() }
    }

    /// The next step begins.
    pub(crate) fn step(&mut self, title: &str) {
        self.begun += 1;
        let number = format!("[{}/{}]", self.begun, self.total);
        let at = format!("({})", span(self.started.elapsed()));
        println!();
        println!(
            "{} {} {}",
            self.paint(Colour::Cyan, &number),
            self.paint(Colour::Bold, title),
            self.paint(Colour::Faint, &at)
        );
    }

    /// A plain line.
    #[expect(clippy::unused_self, reason = "all lines go through the one who counts the steps")]
    pub(crate) fn say(&self, text: &str) {
        println!("      {text}");
    }

    /// Something is as it should be.
    pub(crate) fn good(&self, text: &str) {
        println!("    {} {text}", self.paint(Colour::Green, "✓"));
    }

    /// A command, as it could be typed.
    pub(crate) fn command(&self, line: &str) {
        println!("    {} {}", self.paint(Colour::Faint, "$"), self.paint(Colour::Bold, line));
    }

    /// A heading without a number.
    pub(crate) fn heading(&self, title: &str) {
        println!();
        println!("{}", self.paint(Colour::Bold, title));
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if !self.coloured {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Bold => "1",
            Colour::Faint => "2",
            Colour::Green => "32",
            Colour::Cyan => "36",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A span as a person says it: `12 ms`, `1.40 s`, `3 min 5 s`.
pub(crate) fn span(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{} ms", span.as_millis()),
        seconds if seconds < 60 => format!("{:.2} s", span.as_secs_f64()),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_in_the_unit_that_fits() {
        let said = [12, 1_400, 185_000].map(|ms| span(Duration::from_millis(ms)));
        assert_eq!(said, ["12 ms", "1.40 s", "3 min 5 s"]);
    }
}
