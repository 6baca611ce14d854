//! Tables, ages and progress: how the command line looks.

use std::{fmt::Write, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::jiff::Timestamp;

/// What is going on, on stderr: a spinner or a bar on a terminal, plain lines elsewhere.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Nothing is shown before the first call.
    pub(super) fn new() -> Self {
        Self(ProgressBar::new_spinner())
    }

    /// Says one thing for good.
    pub(super) fn note(&self, text: &str) {
        if self.0.is_hidden() {
            eprintln!("{text}");
        } else {
            self.0.println(text);
        }
    }

    /// Says what is being waited for.
    pub(super) fn wait(&self, text: impl Into<String>) {
        let text = text.into();
        if self.0.is_hidden() {
            eprintln!("{text} …");
        } else {
            self.0.set_message(text);
            self.0.enable_steady_tick(Duration::from_millis(100));
        }
    }

    /// A bar for `total` bytes, in the place of the spinner.
    pub(super) fn bytes(&self, total: u64) -> ProgressBar {
        self.0.disable_steady_tick();
        let bar = ProgressBar::new(total);
        let template = "{bar:30} {bytes} of {total_bytes} ({bytes_per_sec})";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Columns, aligned, two spaces apart.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row: &Vec<String>| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// How long ago, as kubectl says it.
pub(super) fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "-".to_owned() };
    let seconds = (now.as_second() - since.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The first twelve hex digits of a digest.
pub(super) fn short(digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.chars().take(12).collect()
}

/// A span as a person would say it.
pub(super) fn span(time: Duration) -> String {
    let millis = time.as_millis();
    if millis < 10_000 { format!("{millis} ms") } else { format!("{:.1} s", time.as_secs_f64()) }
}

/// A tree of lines, drawn as `tree` does.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    lines: Vec<String>,
    children: Vec<Tree>,
}

impl Tree {
    /// A node; further lines of `text` stand under the first.
    pub(super) fn new(text: &str) -> Self {
        Self { lines: text.lines().map(str::to_owned).collect(), children: vec![] }
    }

    /// A node with these children.
    pub(super) fn with(text: &str, children: impl IntoIterator<Item = Tree>) -> Self {
        Self { children: children.into_iter().collect(), ..Self::new(text) }
    }

    /// Adds a child.
    pub(super) fn push(&mut self, child: Tree) {
        self.children.push(child);
    }

    /// The whole tree as text.
    pub(super) fn draw(&self) -> String {
        let mut text = String::new();
        self.draw_under("", "", &mut text);
        text
    }

    fn draw_under(&self, first: &str, rest: &str, text: &mut String) {
        let stem = if self.children.is_empty() { "  " } else { "│ " };
        for (position, line) in self.lines.iter().enumerate() {
            let line = match position {
                0 => format!("{first}{line}"),
                _ => format!("{rest}{stem}{line}"),
            };
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for (position, child) in self.children.iter().enumerate() {
            let (branch, below) = if position + 1 == self.children.len() {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            child.draw_under(&format!("{rest}{branch}"), &format!("{rest}{below}"), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let rows = [["NAME", "PHASE", ""], ["website", "Running", "x"], ["ä", "", ""]];
        let rows: Vec<Vec<String>> = rows.map(|row| row.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(table(&rows), "NAME     PHASE\nwebsite  Running  x\nä\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn an_age_has_one_unit() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (seconds, expected) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (172_800, "2d"),
        ] {
            let since = Timestamp::from_second(1_000_000 - seconds).unwrap();
            assert_eq!(age(Some(since), now), expected);
        }
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn a_tree_keeps_its_branches_beside_long_texts() {
        let tree = Tree::with(
            "web",
            [Tree::with("a\nmore", [Tree::new("b\nc")]), Tree::new("last\nline")],
        );
        let expected = "web\n├─ a\n│  │ more\n│  └─ b\n│       c\n└─ last\n     line\n";
        assert_eq!(tree.draw(), expected);
    }
}
