//! Where log lines go: stderr, as text or JSON, filtered by `NAGAYA_LOG`.
//!
//! A line of JSON is one flat object: time, level, target and message, the name and the fields of the spans around it
//! (an inner one's count before an outer one's), and its own fields, which count before theirs.

mod line;

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use k8s_openapi::jiff::Timestamp;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use line::{Fields, Line};

/// The environment variable with the filter, for example `info,nagaya::watch=debug`.
pub const FILTER: &str = "NAGAYA_LOG";

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging, once for the process; `default` is the filter if the environment has none.
pub fn start(format: Format, default: &str) {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(default));
    let colours = format == Format::Text && io::stderr().is_terminal();
    let lines =
        Lines { format, colours, to: |line: &[u8]| drop(io::stderr().lock().write_all(line)) };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_err() {
        tracing::debug!("logging was started already");
    }
}

/// Writes each event as one line.
pub struct Lines<W> {
    format: Format,
    colours: bool,
    /// Takes a whole line at once, so that two threads never share one.
    to: W,
}

impl<W> fmt::Debug for Lines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("format", &self.format).finish_non_exhaustive()
    }
}

impl<W: Fn(&[u8])> Lines<W> {
    /// Lines without colours, handed to `to`.
    pub fn new(format: Format, to: W) -> Self {
        Self { format, colours: false, to }
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn(&[u8]) + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut Recorder(&mut fields));
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(&mut Recorder(fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut Recorder(&mut fields));
        let mut around = Fields::default();
        let mut name = None;
        for span in context.event_scope(event).into_iter().flatten() {
            name = name.or(Some(span.name()));
            if let Some(fields) = span.extensions().get::<Fields>() {
                around.add(fields);
            }
        }
        let metadata = event.metadata();
        let time = format!("{:.6}", Timestamp::now());
        let line =
            Line { time: &time, level: *metadata.level(), target: metadata.target(), span: name };
        (self.to)(
            match self.format {
                Format::Text => line.text(fields, &around, self.colours),
                Format::Json => line.json(fields, &around),
            }
            .as_bytes(),
        );
    }
}

/// Keeps what is recorded, with its type.
struct Recorder<'a>(&'a mut Fields);

impl Visit for Recorder<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push(field.name(), value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use parking_lot::Mutex;

    use super::*;

    fn lines(format: Format, act: impl FnOnce()) -> Vec<String> {
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let to = seen.clone();
        let lines = Lines::new(format, move |line: &[u8]| to.lock().extend_from_slice(line));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), act);
        let text = String::from_utf8(seen.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The keys of an object in the order of its text, which a map would not show twice.
    fn keys(line: &str) -> Vec<String> {
        let value: Value = serde_json::from_str(line).unwrap();
        let keys = value.as_object().unwrap().keys();
        keys.flat_map(|key| vec![key.clone(); line.matches(&format!("\"{key}\":")).count()])
            .collect()
    }

    fn busy() {
        let outer = tracing::info_span!(
            "outer",
            controller = "a/b",
            attempt = 1,
            late = tracing::field::Empty
        );
        let _outer = outer.enter();
        outer.record("late", 7);
        let inner = tracing::info_span!("inner", attempt = 2, object = %"x");
        let _inner = inner.enter();
        tracing::warn!(message = "second", seconds = 0.5, object = "own", ok = true, error = ?Some("e"), "first");
    }

    #[test]
    fn a_line_of_json_is_one_flat_object_that_says_nothing_twice() {
        let lines = lines(Format::Json, busy);
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let mut value: Value = serde_json::from_str(line).unwrap();
        let time = value["timestamp"].take();
        assert!(
            time.as_str().unwrap().ends_with('Z') && time.as_str().unwrap().len() == 27,
            "{time}"
        );
        let expected = json!({
            "timestamp": null, "level": "WARN", "target": "nagaya::cli::logging::tests", "message": "first",
            "message_": "second", "span": "inner", "controller": "a/b", "attempt": 2, "late": 7, "object": "own",
            "seconds": 0.5, "ok": true, "error": "Some(\"e\")",
        });
        assert_eq!(value, expected);
        let keys = keys(line);
        assert_eq!(keys.len(), 13, "{keys:?}");
    }

    #[test]
    fn no_text_that_came_from_outside_begins_a_line_of_its_own() {
        let evil = "a\n2026-01-01T00:00:00Z ERROR nagaya: forged\r\u{2028}\u{85}\u{1b}[31m\0";
        let act = || {
            let span = tracing::info_span!("s", object = %evil);
            let _entered = span.enter();
            tracing::info!(error = %evil, debug = ?evil, plain = evil, "{evil}");
        };
        for format in [Format::Text, Format::Json] {
            let lines = lines(format, act);
            assert_eq!(lines.len(), 1, "{format:?}: {lines:?}");
            let controls =
                lines[0].chars().find(|c| c.is_control() || "\u{2028}\u{2029}".contains(*c));
            assert_eq!(controls, None, "{format:?}: {lines:?}");
        }
        let lines = lines(Format::Json, act);
        let value: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(
            (&value["message"], &value["plain"]),
            (&json!(evil), &json!(evil)),
            "nothing is lost"
        );
    }

    #[test]
    fn a_field_cannot_pass_for_one_of_the_line_itself() {
        let lines = lines(Format::Json, || {
            let span = tracing::info_span!("s", level = "ERROR", span = "host");
            let _entered = span.enter();
            tracing::info!(target: "guest", timestamp = "then", level = "ERROR", "hello");
        });
        let value: Value = serde_json::from_str(&lines[0]).unwrap();
        let at = |key: &str| value[key].as_str().unwrap_or_default();
        assert_eq!(
            (at("level"), at("target"), at("span"), at("message")),
            ("INFO", "guest", "s", "hello")
        );
        assert_eq!((at("level_"), at("timestamp_"), at("span_")), ("ERROR", "then", "host"));
    }

    #[test]
    fn a_line_of_text_has_the_same_for_people() {
        let lines = lines(Format::Text, busy);
        let line = lines[0].split_once("Z ").unwrap().1;
        assert_eq!(
            line,
            "WARN inner: nagaya::cli::logging::tests: first message_=second seconds=0.5 object=own ok=true \
             error=Some(\"e\") attempt=2 controller=a/b late=7"
        );
    }

    #[test]
    fn a_long_field_is_cut() {
        let long = "ä".repeat(1 << 20);
        for format in [Format::Text, Format::Json] {
            let lines = lines(format, || tracing::info!(error = long, "{long}"));
            assert!(lines[0].len() < 50 << 10, "{}", lines[0].len());
            assert!(lines[0].contains("bytes more"), "{format:?}");
        }
    }
}
