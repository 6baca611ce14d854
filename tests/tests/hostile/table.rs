//! A table that grows while it is measured.

use std::time::Duration;

use e2e::memory::MIB;

/// One line.
pub(crate) struct Row {
    pub(crate) fault: &'static str,
    pub(crate) name: &'static str,
    /// What ended it, for people.
    pub(crate) ends: String,
    /// How long each run took.
    pub(crate) took: Vec<Duration>,
    /// The bystander's p99 meanwhile.
    pub(crate) bystander: Duration,
    /// The most the host held.
    pub(crate) peak: u64,
    /// What it held when the guest was gone.
    pub(crate) after: u64,
    /// What of it reached the world.
    pub(crate) traces: Option<String>,
}

pub(crate) struct Table {
    base: u64,
}

impl Table {
    /// Prints the head; `alone` and `base` are the bystander's p99 and what the host holds without any harm.
    pub(crate) fn begin(what: &str, alone: Duration, base: u64) -> Self {
        println!();
        println!("The bystander's p99 alone is {}; the host holds {}.", span(alone), mib(base));
        println!();
        println!(
            "{:<4} {what:<42} {:<28} {:>20} {:>10} {:>18}",
            "", "ended by", "after, p50 – max", "bystander", "host MiB, peak end"
        );
        println!("{}", "─".repeat(4 + 1 + 42 + 1 + 28 + 1 + 20 + 1 + 10 + 1 + 18));
        Self { base }
    }

    pub(crate) fn print(&self, row: &Row) {
        let Row { fault, name, ends, bystander, .. } = row;
        let more = |bytes: u64| {
            let base = self.base / MIB;
            format!("{:+}", i128::from(bytes / MIB) - i128::from(base))
        };
        println!(
            "{fault:<4} {name:<42} {ends:<28} {:>20} {:>10} {:>12} {:>5}",
            spans(&row.took),
            span(*bystander),
            more(row.peak),
            more(row.after),
        );
        if let Some(traces) = &row.traces {
            println!("     └ {traces}");
        }
    }
}

/// Median and maximum.
fn spans(all: &[Duration]) -> String {
    let mut all = all.to_vec();
    all.sort();
    match (all.get(all.len() / 2), all.last()) {
        (Some(only), Some(_)) if all.len() == 1 => span(*only),
        (Some(median), Some(most)) => format!("{} – {}", span(*median), span(*most)),
        _ => "–".to_owned(),
    }
}

fn span(span: Duration) -> String {
    match span.as_millis() {
        0..10 => format!("{:.1} ms", span.as_secs_f64() * 1e3),
        10..10_000 => format!("{} ms", span.as_millis()),
        _ => format!("{:.1} s", span.as_secs_f64()),
    }
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / MIB)
}
