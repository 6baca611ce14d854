//! What the host logged, line by line.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// The host's log file.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
    from: usize,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Line(Value);

impl Log {
    /// The whole log in `path`.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), from: 0 }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same log without the whole lines that are in it now.
    pub fn from_now(&self) -> Result<Self> {
        let from = self.text()?.rfind('\n').map_or(0, |end| end + 1);
        Ok(Self { path: self.path.clone(), from })
    }

    /// The lines so far. What is not JSON, such as a panic's message, is a line with that message.
    pub fn lines(&self) -> Result<Vec<Line>> {
        let text = self.text()?;
        let new = text.get(self.from..).unwrap_or_default();
        // A line without its end is still being written.
        let whole = new.rfind('\n').map_or("", |end| &new[..end]);
        Ok(whole.lines().map(Line::parse).collect())
    }

    fn text(&self) -> Result<String> {
        let bytes = fs::read(&self.path);
        let bytes = bytes.with_context(|| format!("reading {}", self.path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines as they stand there.
    pub fn tail(&self, count: usize) -> String {
        let text = self.text().unwrap_or_else(|error| format!("(no log: {error})"));
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
    }
}

impl Line {
    fn parse(text: &str) -> Self {
        let plain = || serde_json::json!({"level": "ERROR", "message": text});
        Self(serde_json::from_str(text).ok().filter(Value::is_object).unwrap_or_else(plain))
    }

    /// The message.
    pub fn message(&self) -> &str {
        self.field("message").and_then(Value::as_str).unwrap_or_default()
    }

    /// `ERROR`, `WARN`, `INFO` and so on.
    pub fn level(&self) -> &str {
        self.0["level"].as_str().unwrap_or_default()
    }

    /// A field of the event, else of the innermost span that has it: a line is flat.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A field as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.field(name)?.as_str()
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_spans_fields_and_a_panic_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = [
            r#"{"level":"INFO","message":"listening","server":"api","span":"b","key":2}"#,
            "thread 'main' panicked",
            r#"{"level":"INFO","mes"#,
        ];
        fs::write(file.path(), lines.join("\n")).unwrap();
        let log = Log::open(file.path());
        let read = log.lines().unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].message(), read[0].text("server")), ("listening", Some("api")));
        assert_eq!(read[0].field("key"), Some(&Value::from(2)));
        assert_eq!((read[1].level(), read[1].message()), ("ERROR", "thread 'main' panicked"));
        let later = log.from_now().unwrap();
        assert!(later.lines().unwrap().is_empty());
        let rest = r#"sage":"stopped"}"#;
        fs::write(file.path(), lines.join("\n") + rest + "\n").unwrap();
        assert_eq!(later.lines().unwrap()[0].message(), "stopped");
    }
}
