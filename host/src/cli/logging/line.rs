//! One log line as text or JSON; pure.
//!
//! Invariant: `no_text_that_came_from_outside_begins_a_line_of_its_own`.

use std::fmt::Write;

use serde_json::{Map, Value};
use tracing::Level;

/// No text is longer: an error may quote an answer of megabytes.
const LONGEST: usize = 16 << 10;
/// What a line says of itself; a field of that name gets an underscore.
const OWN: [&str; 5] = ["timestamp", "level", "target", "span", "message"];
/// The field with a guest's own fields, which are JSON already.
const GUEST: &str = "guest";

/// Fields in the order in which they were recorded, each name once.
#[derive(Debug, Default)]
pub(super) struct Fields {
    message: Option<String>,
    others: Vec<(String, Value)>,
}

/// What every line begins with.
pub(super) struct Line<'a> {
    pub(super) time: &'a str,
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) span: Option<&'static str>,
}

impl Fields {
    /// Adds a field; the first text named `message` is the message, a second value of a field replaces the first.
    pub(super) fn push(&mut self, name: &str, value: impl Into<Value>) {
        // Of lines that come from libraries without spans, the place in their source says nothing.
        if name.starts_with("log.") {
            return;
        }
        let value = match value.into() {
            Value::String(text) if name == GUEST => {
                serde_json::from_str(&text).unwrap_or_else(|_| cut(text).into())
            }
            Value::String(text) => cut(text).into(),
            other => other,
        };
        if name == "message" && self.message.is_none() {
            self.message = Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            return;
        }
        let name = if OWN.contains(&name) { format!("{name}_") } else { name.to_owned() };
        match self.others.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => self.others.push((name, value)),
        }
    }

    /// Adds the fields of an outer span, as far as no inner one has them.
    pub(super) fn add(&mut self, outer: &Self) {
        for (name, value) in &outer.others {
            if !self.has(name) {
                self.others.push((name.clone(), value.clone()));
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.others.iter().any(|(known, _)| known == name)
    }
}

impl Line<'_> {
    /// As one JSON object.
    pub(super) fn json(&self, own: Fields, around: &Fields) -> String {
        let mut object = Map::new();
        object.insert("timestamp".into(), self.time.into());
        object.insert("level".into(), self.level.as_str().into());
        object.insert("target".into(), self.target.into());
        object.insert("message".into(), own.message.clone().unwrap_or_default().into());
        if let Some(span) = self.span {
            object.insert("span".into(), span.into());
        }
        let mut all = own;
        all.add(around);
        object.extend(all.others);
        // JSON leaves line ends of Unicode as they are.
        let text = Value::from(object).to_string();
        let mut line = String::with_capacity(text.len() + 1);
        for c in text.chars() {
            match c {
                '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => {
                    // Writing to a String cannot fail.
                    let _ = write!(line, "\\u{:04x}", u32::from(c));
                }
                c => line.push(c),
            }
        }
        line.push('\n');
        line
    }

    /// For people.
    pub(super) fn text(&self, own: Fields, around: &Fields, colours: bool) -> String {
        let colour = match self.level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            _ => 34,
        };
        let mut line = format!("{} ", self.time);
        let (begin, end) =
            if colours { (format!("\u{1b}[{colour}m"), "\u{1b}[0m") } else { (String::new(), "") };
        let _ = write!(line, "{begin}{}{end} ", self.level);
        if let Some(span) = self.span {
            let _ = write!(line, "{span}: ");
        }
        let _ = write!(line, "{}: ", self.target);
        escaped(own.message.as_deref().unwrap_or_default(), &mut line);
        let mut all = own;
        all.add(around);
        for (name, value) in &all.others {
            let _ = write!(line, " {name}=");
            match value {
                Value::String(text) => escaped(text, &mut line),
                other => escaped(&other.to_string(), &mut line),
            }
        }
        line.push('\n');
        line
    }
}

/// Control characters and line ends as Rust writes them.
fn escaped(text: &str, line: &mut String) {
    for c in text.chars() {
        if c.is_control() && c != '\t' || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = text.floor_char_boundary(LONGEST);
        let more = text.len() - end;
        text.truncate(end);
        let _ = write!(text, "… ({more} bytes more)");
    }
    text
}
