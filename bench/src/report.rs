//! All figures of a run with their conditions: as a table for people, as the README's table, and as JSON.

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::figure::{Figure, Worst};

/// Columns before the figures' names end.
const WIDTH: usize = 58;

/// What was measured, where and when.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    conditions: Conditions,
    parts: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Conditions {
    at: String,
    nagaya: &'static str,
    build: &'static str,
    processor: String,
    cores: usize,
    kernel: String,
}

/// One part.
#[derive(Debug, Serialize)]
struct Measured {
    part: String,
    about: String,
    /// Processes that wanted to run, over the minute before and the one at the end.
    load: [f64; 2],
    figures: Vec<Figure>,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new() -> Result<Self> {
        let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name"));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        let conditions = Conditions {
            at: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            nagaya: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "NOT --release" } else { "--release" },
            processor: processor.unwrap_or("unknown").trim_matches([':', ' ', '\t']).to_owned(),
            cores: std::thread::available_parallelism().context("counting cores")?.get(),
            kernel: kernel.context("asking for the kernel")?.trim().to_owned(),
        };
        Ok(Self { conditions, parts: vec![] })
    }

    /// Adds a part, which `measure` measures now.
    pub(crate) fn add(
        &mut self,
        part: &str,
        about: String,
        measure: impl FnOnce() -> Result<Vec<Figure>>,
    ) -> Result<()> {
        eprintln!("measuring {part}: {about}");
        let before = load()?;
        let figures = measure().with_context(|| format!("measuring {part}"))?;
        let load = [before, load()?];
        self.parts.push(Measured { part: part.to_owned(), about, load, figures });
        Ok(())
    }

    /// For programs.
    pub(crate) fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("writing JSON")
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let Conditions { at, nagaya, build, processor, cores, kernel } = &self.conditions;
        let mut text =
            format!("nagaya {nagaya}, {build}, {at}\n{processor}, {cores} cores, Linux {kernel}\n");
        for Measured { part, about, load: [before, after], figures } in &self.parts {
            text += &format!("\n{part}: {about} (load {before} before, {after} after)\n");
            text.extend(figures.iter().map(row));
        }
        text
    }
}

impl Report {
    /// Those figures that the README shows, and under which conditions, as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let Conditions { at, processor, cores, kernel, .. } = &self.conditions;
        let mut text = "| | measured | to reach |\n|---|---|---|\n".to_owned();
        let shown = self.parts.iter().flat_map(|part| &part.figures).filter(|f| f.is_headline());
        text.extend(shown.map(markdown_row));
        let loads = self.parts.iter().flat_map(|part| part.load);
        let [least, most] = [f64::min, f64::max].map(|of| loads.clone().reduce(of).unwrap_or(0.0));
        text += &format!(
            "\nConditions: {at}, {cores} cores ({processor}), Linux {kernel}, load {least} to {most}\n"
        );
        text
    }

    /// Fails, naming them, if figures show a bug.
    pub(crate) fn verdict(&self) -> Result<()> {
        let figures = self.parts.iter().flat_map(|part| &part.figures);
        let broken: Vec<_> = figures.filter(|figure| figure.is_broken()).map(row).collect();
        ensure!(
            broken.is_empty(),
            "this is no matter of speed but a bug: a guest that waits is polled, or something else spins\n{}",
            broken.concat().trim_end()
        );
        Ok(())
    }
}

fn markdown_row(figure: &Figure) -> String {
    let Figure { what, unit, value, worst, target, .. } = figure;
    let worst = match worst {
        Some(Worst::P90(value)) => format!(" (p90 {})", number(*value)),
        Some(Worst::Max(value)) => format!(" (worst {})", number(*value)),
        None => String::new(),
    };
    let target = target.map(|target| format!("≤ {} {unit}", number(target))).unwrap_or_default();
    let missed = if figure.is_met() == Some(false) { "**" } else { "" };
    let value = format!("{} {unit}", number(*value));
    let value = value.trim_end();
    format!("| {what} | {missed}{value}{missed}{worst} | {} |\n", target.trim_end())
}

fn row(figure: &Figure) -> String {
    let Figure { what, unit, value, worst, target, .. } = figure;
    let worst = match worst {
        Some(Worst::P90(value)) => format!("p90 {}", number(*value)),
        Some(Worst::Max(value)) => format!("max {}", number(*value)),
        None => String::new(),
    };
    let target = match (target, figure.is_met()) {
        (Some(target), Some(met)) => {
            format!("at most {}: {}", number(*target), if met { "met" } else { "MISSED" })
        }
        _ => String::new(),
    };
    let row = format!("  {what:<WIDTH$}{:>9} {unit:<4} {worst:<12} {target}", number(*value));
    format!("{}\n", row.trim_end())
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").context("asking for the load")?;
    text.split(' ').next().unwrap_or_default().parse().context("understanding the load")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_gets_the_headlines_and_a_bug_fails() {
        let mut report = Report::new().unwrap();
        let figures = || {
            vec![
                Figure::of_few("a swap", "ms", &[1.5, 20.25, 150.4]).at_most(20.0),
                Figure::new("watches", "", 1.0).at_most(1.0),
                Figure::new("a detail", "s", 3.0),
            ]
        };
        report.add("one", String::new(), || Ok(figures())).unwrap();
        let text = report.markdown();
        assert!(text.contains("| a swap | **20.2 ms** (worst 150) | ≤ 20 ms |\n"), "{text}");
        assert!(text.contains("| watches | 1 | ≤ 1 |\n") && !text.contains("detail"), "{text}");
        report.verdict().unwrap();
        let spins = Figure::new("a run that waits, CPU", "µs", 20_000.0).never_above(300.0);
        report.add("two", String::new(), || Ok(vec![spins])).unwrap();
        let text = report.verdict().unwrap_err().to_string();
        assert!(text.contains("a run that waits, CPU") && text.contains("MISSED"), "{text}");
    }

    #[test]
    fn a_row_says_whether_the_target_is_met() {
        let figure = Figure::of_few("a swap", "ms", &[1.5, 20.25, 150.4]).at_most(20.0);
        let row = row(&figure);
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words.join(" "), "a swap 20.2 ms max 150 at most 20: MISSED");
    }
}
