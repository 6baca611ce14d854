//! Where log lines go: stderr, as text or JSON, filtered by `NAGAYA_LOG`.
//!
//! Whatever is in it, an event is one line: what is quoted of guests and servers forges no other.
//!
//! Invariant: `an_event_is_one_line`.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

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
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        Format::Text => {
            let colours = std::io::stderr().is_terminal();
            let lines = fmt::layer().with_ansi(colours).with_writer(|| OneLine(io::stderr()));
            registry.with(lines).try_init()
        }
        Format::Json => registry.with(fmt::layer().json().with_writer(io::stderr)).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started already");
    }
}

/// Takes each event as a whole, as the text layer writes it, and shows line ends within it.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (text, end) = match event.split_last() {
            Some((b'\n', text)) => (text, &b"\n"[..]),
            _ => (event, &[][..]),
        };
        if text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            let mut line = Vec::with_capacity(event.len() + 16);
            for byte in text {
                match byte {
                    b'\n' => line.extend(b"\\n"),
                    b'\r' => line.extend(b"\\r"),
                    other => line.push(*other),
                }
            }
            line.extend(end);
            self.0.write_all(&line)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<u8>>>);

    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let seen = Seen::default();
        let writer = seen.clone();
        let layer = fmt::layer().with_ansi(false).with_writer(move || OneLine(writer.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let forged = "no\n2020-01-01T00:00:00Z ERROR nagaya: forged\r\n";
            tracing::warn!(error = forged, display = %forged, "{forged}");
            tracing::warn!("plain");
        });
        let text = String::from_utf8(seen.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.contains("no\\n2020") && text.ends_with("plain\n") && !text.contains('\r'),
            "{text}"
        );
    }
}
