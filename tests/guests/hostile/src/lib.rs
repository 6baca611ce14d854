//! Does what its config says, mostly harm.
//!
//! ```text
//! {
//!   "describe": "ok" | steps,    what describe does, then answers; besides the steps below:
//!                                refuse          answers an error, `message`; `refuse:<n>` one of n kB
//!                                watches:<n>     declares n watches of ConfigMaps, each under another selector
//!                                selects:<n>     declares a watch under a label selector of n kB
//!                                words:<n>       declares a finalizer and an index of n kB
//!   "reconcile": "ok" | steps,   what a run does
//!   "gone": "ok" | steps,        what a run does if the primary is gone
//!   "message": "…",              the text of refuse, retry, terminal and invalid
//!   "value": …,                  what `write` writes
//!   "primary": …, "manifest": …  see the crate `declared`
//! }
//! ```
//!
//! Steps are separated by commas and done in order, `write,sleep:500,write,trap`. An annotation
//! `hostile.nagaya.dev/reconcile` of the primary goes before the config's, likewise `hostile.nagaya.dev/value`.
//!
//! | step | |
//! |---|---|
//! | `ok` | nothing |
//! | `trap`, `panic`, `exit:<code>` | ends at once: `unreachable`, a Rust panic, `wasi:cli/exit` |
//! | `loop`, `spin:<n>` | computes for ever, or n million rounds |
//! | `stack` | recurses for ever |
//! | `alloc`, `fill:<n>` | takes memory until there is none; overwrites n MiB (32) for ever |
//! | `handles:<n>` | takes n handles of the host and keeps them |
//! | `sleep:<ms>` | waits by the clock of WASI |
//! | `log-flood`, `stdout-flood` | 1 KiB lines for ever; `log-flood:<n>` only n |
//! | `now:<n>` | n host calls |
//! | `huge-output:<n>` | applies an object of n MiB (4) |
//! | `long-list:<n>` | logs one line with n fields |
//! | `deep-json:<n>` | applies an object whose data is n lists, one in the other |
//! | `count` | answers `retry` with how often this was done before in this instance |
//! | `huge-answer` | answers `retry` with 8 MiB |
//! | `write` | applies a `ConfigMap` of the primary's name, as its child, with data `{"config": value}` |
//! | `climb:<n>` | reads that `ConfigMap`, writes the next number, and asks to run again until n is reached |
//! | `grab:<name>` | the same under that name, with force and without an owner: two controllers can fight over it |
//! | `storm:<n>` | applies that `ConfigMap` n times, each time with another value |
//! | `events:<n>` | n Events about the primary |
//! | `event-names:<n>` | n Events about objects whose names have 600 kB; answers `retry` with the last refusal |
//! | `names:<n>` | asks for an object whose name has n kB; answers `retry` with the refusal |
//! | `selector:<n>` | lists by a selector of n requirements; answers `retry` with the refusal |
//! | `hold:<n>` | fills n MiB and keeps them for a second |
//! | `explore` | looks for files, variables, arguments, input and a network; writes what it found, as `write` does |
//! | `retry`, `terminal`, `invalid` | answers that failure |
//! | `requeue:<ms>` | answers `requeue-after` |

#![cfg(target_family = "wasm")]

mod explore;
mod greed;
mod handles;

use core::sync::atomic::{AtomicU32, Ordering};

use declared::Failure;
use nagaya_sdk::bindings::{
    exports::nagaya::controller::guest::{Action, Guest, Request},
    nagaya::controller::{
        cluster::{self, Event, Ownership, Severity},
        runtime::{self, Level},
        common::{Field, ObjectReference},
    },
};
use serde_json::{Value, json};

struct Hostile;

nagaya_sdk::bindings::export!(Hostile with_types_in nagaya_sdk::bindings);

impl Guest for Hostile {
    fn describe() -> Result<String, String> {
        let config = config();
        let steps = config["describe"].as_str().unwrap_or("ok");
        let run = Run { message: text(&config, "message"), ..Run::default() };
        for step in steps.split(',') {
            match step.split_once(':').unwrap_or((step, "")) {
                ("refuse", "") => return Err(run.message),
                ("refuse", size) => return Err("r".repeat(kilobytes(size))),
                _ => (),
            }
        }
        if let Err(Failure::Retry(text) | Failure::Terminal(text) | Failure::Invalid(text)) =
            run.all(steps)
        {
            return Err(text);
        }
        let mut manifest = declared::manifest(&config);
        for step in steps.split(',') {
            let (name, argument) = step.split_once(':').unwrap_or((step, ""));
            greed::grow(&mut manifest, name, argument);
        }
        Ok(manifest.to_string())
    }

    fn reconcile(request: Request) -> Result<Action, String> {
        declared::answer(reconciled(request))
    }
}

fn reconciled(request: Request) -> Result<Action, Failure> {
        let config = config();
        let kind = declared::primary(&config).map_err(Failure::Terminal)?;
        let found = cluster::get(&kind, &request.namespace, &request.name);
        let primary = match found {
            Ok(text) => serde_json::from_str(&text).unwrap_or_default(),
            Err(cluster::Error::NotFound) => Value::Null,
            Err(error) => return Err(Failure::Retry(format!("{error:?}"))),
        };
        let annotation = |name: &str| {
            primary["metadata"]["annotations"].get(format!("hostile.nagaya.dev/{name}")).cloned()
        };
        let steps = if primary.is_null() {
            config["gone"].clone()
        } else {
            annotation("reconcile").unwrap_or_else(|| config["reconcile"].clone())
        };
        let run = Run {
            message: text(&config, "message"),
            value: annotation("value").unwrap_or_else(|| config["value"].clone()),
            primary: ObjectReference { kind, namespace: request.namespace, name: request.name },
            uid: primary["metadata"]["uid"].as_str().map(str::to_owned),
        };
        run.all(steps.as_str().unwrap_or("ok"))
    }

fn config() -> Value {
    serde_json::from_str(&runtime::config()).unwrap_or_default()
}

fn text(config: &Value, key: &str) -> String {
    config[key].as_str().unwrap_or("as configured").to_owned()
}

struct Run {
    message: String,
    value: Value,
    primary: ObjectReference,
    uid: Option<String>,
}

impl Default for Run {
    fn default() -> Self {
        let kind =
            cluster::Kind { group: String::new(), version: String::new(), name: String::new() };
        let primary = ObjectReference { kind, namespace: String::new(), name: String::new() };
        Self { message: String::new(), value: Value::Null, primary, uid: None }
    }
}

impl Run {
    fn all(&self, steps: &str) -> Result<Action, Failure> {
        for step in steps.split(',') {
            let (name, argument) = step.split_once(':').unwrap_or((step, ""));
            if let Some(action) = self.step(name, argument)? {
                return Ok(action);
            }
        }
        Ok(Action::AwaitChange)
    }

    fn step(&self, name: &str, argument: &str) -> Result<Option<Action>, Failure> {
        let number = argument.parse::<u32>();
        match name {
            "retry" => return Err(Failure::Retry(self.message.clone())),
            "terminal" => return Err(Failure::Terminal(self.message.clone())),
            "invalid" => return Err(Failure::Invalid(self.message.clone())),
            "count" => {
                static TIMES: AtomicU32 = AtomicU32::new(0);
                let before = TIMES.fetch_add(1, Ordering::Relaxed);
                return Err(Failure::Retry(format!("{before} times before")));
            }
            "huge-answer" => return Err(Failure::Retry("x".repeat(8 << 20))),
            "requeue" => return Ok(Some(Action::RequeueAfter(number.unwrap_or(0)))),
            "sleep" => {
                std::thread::sleep(std::time::Duration::from_millis(number.unwrap_or(0).into()));
            }
            "log-flood" => flood(number.unwrap_or(u32::MAX)),
            "now" => (0..number.unwrap_or(0)).for_each(|_| drop(runtime::now().to_string())),
            "write" => self.apply(&self.primary.name, &self.value)?,
            "climb" => return self.climb(number.unwrap_or(0)),
            "grab" => self.apply(argument, &self.value)?,
            "storm" => {
                for n in 0..number.unwrap_or(0) {
                    self.apply(&self.primary.name, &json!(n))?;
                }
            }
            "huge-output" => {
                let size = number.unwrap_or(4) as usize;
                self.apply(&self.primary.name, &json!("x".repeat(size << 20)))?;
            }
            "long-list" => {
                let field = Field { key: String::new(), value: String::new() };
                let fields = vec![field; number.unwrap_or(0) as usize];
                runtime::log(Level::Info, "a long list", &fields);
            }
            "deep-json" => self.deep_json(number.unwrap_or(0) as usize)?,
            "handles" => handles::take(number.unwrap_or(0))?,
            "explore" => self.apply(&self.primary.name, &json!(explore::explore()))?,
            "event-names" => self.event_names(number.unwrap_or(1))?,
            "names" => self.long_name(argument)?,
            "selector" => self.long_selector(number.unwrap_or(1) as usize)?,
            "hold" => {
                let block = std::hint::black_box(vec![1_u8; (number.unwrap_or(1) as usize) << 20]);
                std::thread::sleep(std::time::Duration::from_secs(1));
                drop(block);
            }
            "events" => (0..number.unwrap_or(0)).try_for_each(|n| self.event(n))?,
            "spin" => spin(u64::from(number.unwrap_or(1)) * 1_000_000),
            "fill" => fill(number.unwrap_or(32) as usize),
            _ => end(name, argument),
        }
        Ok(None)
    }

    fn climb(&self, top: u32) -> Result<Option<Action>, Failure> {
        let kind =
            cluster::Kind { group: String::new(), version: "v1".into(), name: "ConfigMap".into() };
        let (namespace, name) = (self.primary.namespace.as_str(), &self.primary.name);
        let reached = match cluster::get(&kind, namespace, name) {
            Ok(text) => {
                let map: Value = serde_json::from_str(&text).unwrap_or_default();
                map["data"]["config"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
            }
            Err(cluster::Error::NotFound) => 0,
            Err(error) => return Err(Failure::Retry(format!("{error:?}"))),
        };
        if reached >= top {
            return Ok(None);
        }
        self.apply(name, &json!(reached + 1))?;
        Ok(Some(Action::RequeueAfter(0)))
    }

    fn apply(&self, name: &str, value: &Value) -> Result<(), Failure> {
        let is_own = name == self.primary.name;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": self.namespace() },
            "data": { "config": text },
        });
        let ownership = if is_own { Ownership::Standard } else { Ownership::Force };
        if let (true, Some(uid)) = (is_own, &self.uid) {
            object["metadata"]["ownerReferences"] = self.owners(uid);
        }
        let answer = cluster::apply(&object.to_string(), ownership);
        answer.map(drop).map_err(|error| Failure::Retry(format!("{error:?}")))
    }

    fn namespace(&self) -> &str {
        match self.primary.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        }
    }

    /// Not by serde, which would end its own recursion here.
    fn deep_json(&self, depth: usize) -> Result<(), Failure> {
        let metadata = json!({ "name": self.primary.name, "namespace": self.namespace() });
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        let object = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{metadata},"data":{open}{close}}}"#
        );
        let answer = cluster::apply(&object, Ownership::Standard);
        answer.map(drop).map_err(|error| Failure::Retry(format!("{error:?}")))
    }

    fn owners(&self, uid: &str) -> Value {
        let kind = &self.primary.kind;
        let api_version = if kind.group.is_empty() {
            kind.version.clone()
        } else {
            format!("{}/{}", kind.group, kind.version)
        };
        json!([{
            "apiVersion": api_version, "kind": kind.name, "name": self.primary.name, "uid": uid, "controller": true,
        }])
    }

    fn event_names(&self, count: u32) -> Result<(), Failure> {
        let mut last = Ok(());
        for n in 0..count {
            let name = format!("{n}{}", "n".repeat(600_000));
            last = cluster::emit_event(&Event {
                regarding: ObjectReference { name, ..self.primary.clone() },
                severity: Severity::Normal,
                reason: "Long".to_owned(),
                action: "Act".to_owned(),
                note: "n".repeat(600_000),
            });
        }
        Err(Failure::Retry(format!("{last:?}")))
    }

    fn long_name(&self, size: &str) -> Result<(), Failure> {
        let name = "n".repeat(kilobytes(size));
        let answer = cluster::get(&self.primary.kind, &self.primary.namespace, &name);
        Err(Failure::Retry(format!("{answer:?}")))
    }

    fn long_selector(&self, requirements: usize) -> Result<(), Failure> {
        let options = cluster::FindOptions {
            namespace: String::new(),
            label_selector: vec!["a=b"; requirements].join(","),
            index: String::new(),
            value: String::new(),
            limit: 0,
            after: String::new(),
        };
        let answer = cluster::find(&self.primary.kind, &options);
        Err(Failure::Retry(format!("{:?}", answer.map(|page| page.items.len()))))
    }

    fn event(&self, n: u32) -> Result<(), Failure> {
        let event = Event {
            regarding: self.primary.clone(),
            severity: Severity::Normal,
            reason: format!("Reason{n}"),
            action: "Act".to_owned(),
            note: self.message.clone(),
        };
        cluster::emit_event(&event).map_err(|error| Failure::Retry(format!("{error:?}")))
    }
}

fn kilobytes(size: &str) -> usize {
    size.parse::<usize>().unwrap_or(1) * 1_000
}

/// The steps after which there is nothing more, and the unknown ones.
#[expect(clippy::panic, reason = "that is what is asked for")]
fn end(name: &str, argument: &str) {
    match name {
        "ok" | "refuse" | "watches" | "selects" | "words" => (),
        "trap" => core::arch::wasm32::unreachable(),
        "exit" => std::process::exit(argument.parse().unwrap_or(1)),
        "loop" => spin(u64::MAX),
        "stack" => drop(recurse(1).to_string()),
        "alloc" => alloc(),
        "stdout-flood" => loop {
            println!("{}", "x".repeat(1_023));
        },
        "panic" => panic!("this guest was told to panic"),
        other => panic!("no such step: {other}"),
    }
}

fn spin(rounds: u64) {
    let mut number = 1_u64;
    for round in 0..rounds {
        number = std::hint::black_box(number.wrapping_mul(3) ^ round);
    }
}

fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 32]);
    if frame[0] == 0 { 0 } else { recurse(depth + 1) + frame[31] }
}

fn alloc() {
    let mut all = vec![];
    loop {
        all.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}

fn fill(size: usize) {
    let mut block = vec![0_u8; size << 20];
    for byte in (0..=u8::MAX).cycle() {
        std::hint::black_box(&mut block).fill(byte);
    }
}

fn flood(lines: u32) {
    let line = "x".repeat(1_024);
    let mut left = lines;
    while left > 0 {
        runtime::log(Level::Info, &line, &[]);
        left = if lines == u32::MAX { left } else { left - 1 };
    }
}
