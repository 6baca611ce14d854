//! `nagaya logs`: what a controller's guests have said lately, and say.
//!
//! Invariant: `a_stream_that_ends_is_gone_on_with_after_its_last_line`.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use tokio::time::sleep;

use super::{Output, cluster::Cluster, own_api, span};
use crate::{
    apiserver::{Error, Lines},
    journal::{Level, Line, Source},
};

/// Between two tries to go on.
const PAUSE: Duration = Duration::from_secs(1);

/// Which lines to show.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya logs website                        what the host still has: the newest 256 KiB of a controller
  nagaya logs website -f --tail 20           the last 20 lines, and those that come
  nagaya logs website --object demo/shop     of one object
  nagaya logs website --revision website-1f2e --level warn
  nagaya logs website --since 5m -o json     one JSON object a line

The role `view` of the namespace is enough. What a run failed with is among the lines. The host keeps them in memory: when another one
begins to work, it begins with none.")]
pub(super) struct Args {
    /// The WasmController
    name: String,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only of this WasmRevision
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// Only of this primary: NAME, or NAMESPACE/NAME
    #[arg(long, value_name = "OBJECT")]
    object: Option<String>,
    /// Only lines that matter at least so much: debug, info, warn or error
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    level: Option<Level>,
    /// Only lines of the last while, for example 90s or 5m
    #[arg(long, value_name = "TIME", value_parser = span)]
    since: Option<Duration>,
    /// Only so many of the lines that are there, the newest
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// The form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Shows lines until there are no more, or for ever.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    let namespace = cluster.namespace().to_owned();
    let what = format!("cannot read the log of {namespace}/{}", args.name);
    let mut reader = Reader::new(&args);
    let mut lines = match cluster.log(&args.name, &reader.question()).await {
        Ok(lines) => lines,
        Err(error) => return Err(own_api::explained(error, &what)),
    };
    loop {
        if !reader.read(&mut lines, &mut io::stdout().lock()).await? {
            return Ok(());
        }
        if !args.follow {
            if reader.last.is_none() {
                eprintln!(
                    "{namespace}/{} has said nothing since its host began to work",
                    args.name
                );
            }
            return Ok(());
        }
        lines = loop {
            match cluster.log(&args.name, &reader.question()).await {
                Ok(lines) => break lines,
                Err(error) if passes(&error) => sleep(PAUSE).await,
                Err(error) => return Err(own_api::explained(error, &what)),
            }
        };
    }
}

fn level(text: &str) -> Result<Level, String> {
    let level = serde_json::from_value(text.into());
    level.map_err(|_| format!("{text:?} is none of debug, info, warn and error"))
}

/// Whether it may go on by itself: no host works, or the API server is away.
fn passes(error: &Error) -> bool {
    match error.code() {
        None => matches!(error, Error::Timeout(_) | Error::Connection(_)),
        Some(code) => code == 429 || code >= 500,
    }
}

/// Knows the last line that was shown.
struct Reader<'a> {
    args: &'a Args,
    colours: bool,
    last: Option<Timestamp>,
}

impl<'a> Reader<'a> {
    fn new(args: &'a Args) -> Self {
        Self { args, colours: io::stdout().is_terminal(), last: None }
    }

    /// What is asked for: all that is wanted, then what came after the last line.
    fn question(&self) -> Vec<(&'static str, String)> {
        let args = self.args;
        let mut pairs = vec![];
        if args.follow {
            pairs.push(("follow", "true".to_owned()));
        }
        let texts = [("revision", &args.revision), ("object", &args.object)];
        pairs.extend(texts.into_iter().filter_map(|(key, text)| Some((key, text.clone()?))));
        if let Some(level) = args.level {
            pairs.push(("level", format!("{level:?}").to_lowercase()));
        }
        match self.last {
            Some(last) => pairs.push(("sinceTime", last.to_string())),
            None => {
                let since = args.since.map(|since| ("sinceSeconds", since.as_secs().to_string()));
                let tail = args.tail.map(|tail| ("tailLines", tail.to_string()));
                pairs.extend(since.into_iter().chain(tail));
            }
        }
        pairs
    }

    /// Shows what comes until the stream ends; one that breaks off is gone on with. False: nobody reads any more, as in `| head`.
    async fn read(&mut self, lines: &mut Lines, to: &mut impl Write) -> Result<bool> {
        while let Some(text) = lines.next().await {
            let Ok(text) = text else { return Ok(true) };
            let line: Line = serde_json::from_str(&text)
                .with_context(|| format!("cannot read a line of the log: {text}"))?;
            self.last = Some(line.time);
            let shown = match self.args.output {
                Output::Json => text,
                Output::Text => drawn(&line, self.colours),
            };
            match writeln!(to, "{shown}").and_then(|()| to.flush()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                written => written.context("cannot write to stdout")?,
            }
        }
        Ok(true)
    }
}

/// Time, level, where from, what was said, and the guest's own fields.
fn drawn(line: &Line, colours: bool) -> String {
    let time = line.time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
    let (word, colour) = match line.level {
        Level::Error => ("ERROR", "31"),
        Level::Warn => ("WARN ", "33"),
        Level::Info => ("INFO ", "32"),
        Level::Debug => ("DEBUG", "34"),
    };
    let paint = |colour: &str, text: &str| {
        if colours { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    };
    let from = match &*line.object {
        "" => line.revision.to_string(),
        object => format!("{} {object}", line.revision),
    };
    let host = if line.source == Source::Host { "host: " } else { "" };
    let mut text = format!(
        "{} {} {}  {host}{}",
        paint("2", &time.to_string()),
        paint(colour, word),
        paint("2", &from),
        line.message
    );
    for (name, value) in &line.fields {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.push_str(&format!("  {}{value}", paint("2", &format!("{name}="))));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn args(text: &str) -> Args {
        Command::parse_from(text.split_whitespace()).args
    }

    fn line() -> Line {
        serde_json::from_str(
            r#"{"time":"2026-11-30T12:00:00.123456Z","level":"warn","source":"guest","revision":"web-1","object":"demo/a",
                "run":"ab","message":"hello","fields":{"n":"1","m":"2"}}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_line_says_when_where_and_what() {
        let text = drawn(&line(), false);
        assert_eq!(text, "2026-11-30T12:00:00.123Z WARN  web-1 demo/a  hello  m=2  n=1");
        let host = Line { source: Source::Host, object: "".into(), ..line() };
        let text = drawn(&Line { fields: serde_json::Map::new(), ..host }, false);
        assert_eq!(text, "2026-11-30T12:00:00.123Z WARN  web-1  host: hello");
        assert!(drawn(&line(), true).contains("\u{1b}[33mWARN \u{1b}[0m"));
    }

    #[test]
    fn a_stream_that_ends_is_gone_on_with_after_its_last_line() {
        let args = args("logs web -f --since 5m --tail 3 --object a --level warn");
        let mut reader = Reader::new(&args);
        let pair = |key: &'static str, value: &str| (key, value.to_owned());
        let always = [pair("follow", "true"), pair("object", "a"), pair("level", "warn")];
        let first = [pair("sinceSeconds", "300"), pair("tailLines", "3")];
        assert_eq!(reader.question(), [&always[..], &first].concat());
        reader.last = Some(line().time);
        let next = [pair("sinceTime", "2026-11-30T12:00:00.123456Z")];
        assert_eq!(reader.question(), [&always[..], &next].concat());
    }
}
