//! Reads WasmControllers and WasmRevisions as they are stored, also those that no API server would let in today; pure.
//!
//! What was stored once stays stored: under a `CustomResourceDefinition` that had fewer limits, by a host that knew more
//! fields. What can be read of it is read, so that one odd field does not stop a controller that runs.
//!
//! Invariants, each held by the test of that name:
//!
//! - `a_config_that_cannot_be_used_is_left_out_and_said`
//! - `whatever_is_stored_is_read_or_told_in_a_sentence`

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    model::crd::{WasmController, WasmRevision},
    text::cut,
};

/// How deep objects and lists of a config may be nested. The parsers of both sides end at about 128, and the host wraps a
/// config a few times.
pub const CONFIG_DEPTH: usize = 100;
/// The largest config as JSON text: the object and its revision must fit into etcd with their status.
pub const CONFIG_BYTES: usize = 512 << 10;
/// How much is shown of why an object cannot be read.
const WHY: usize = 300;

/// A WasmController as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The object, without its config if that cannot be used.
    pub controller: WasmController,
    /// Why its config cannot be used, and what to do.
    pub unusable: Option<String>,
}

/// The object is not what this host knows by its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl Unreadable {
    fn new(error: &serde_json::Error) -> Self {
        Self(cut(&error.to_string(), WHY).into_owned())
    }
}

/// Reads a WasmController.
pub fn controller(text: &str) -> Result<Stored, Unreadable> {
    // An object whose whole text is within the limits has a config that is.
    if text.len() <= CONFIG_BYTES && depth(text) <= CONFIG_DEPTH {
        let read = serde_json::from_str(text).map_err(|error| Unreadable::new(&error));
        return Ok(Stored { controller: read?, unusable: None });
    }
    let (text, unusable) = without_config(text, unusable)?;
    let controller = serde_json::from_str(&text).map_err(|error| Unreadable::new(&error))?;
    Ok(Stored { controller, unusable })
}

/// Reads a WasmRevision. One whose config cannot be used is no revision.
pub fn revision(text: &str) -> Result<WasmRevision, Unreadable> {
    serde_json::from_str(text).map_err(|error| Unreadable::new(&error))
}

/// The text of an object of either kind, without a config that cannot be used: for those who only show it.
pub fn shown(text: &str) -> Result<String, Unreadable> {
    if depth(text) <= CONFIG_DEPTH {
        return Ok(text.to_owned());
    }
    Ok(without_config(text, unusable)?.0)
}

/// The object without its config if `judge` has something against that, and without its field managers, whose record
/// of a config is as deep as the config.
fn without_config(
    text: &str,
    judge: impl Fn(&str) -> Option<String>,
) -> Result<(String, Option<String>), Unreadable> {
    let mut object = fields(text)?;
    let mut metadata = fields(object.remove("metadata").map_or("{}", RawValue::get))?;
    metadata.remove("managedFields");
    let mut spec = fields(object.remove("spec").map_or("{}", RawValue::get))?;
    let against = spec.get("config").and_then(|config| judge(config.get()));
    if against.is_some() {
        spec.remove("config");
    }
    let mut parts: Vec<String> = object.iter().map(|(key, value)| pair(key, value.get())).collect();
    parts.push(pair("metadata", &braced(&metadata)));
    parts.push(pair("spec", &braced(&spec)));
    Ok((format!("{{{}}}", parts.join(",")), against))
}

/// What is wrong with a config that cannot be used.
fn unusable(config: &str) -> Option<String> {
    let (bytes, levels) = (config.len(), depth(config));
    if levels > CONFIG_DEPTH {
        return Some(format!(
            "spec.config is nested {levels} levels deep, and at most {CONFIG_DEPTH} can be used: make it flatter"
        ));
    }
    (bytes > CONFIG_BYTES).then(|| {
        format!(
            "spec.config has {bytes} bytes, and at most {CONFIG_BYTES} can be used: put what is large into a ConfigMap that the guest reads"
        )
    })
}

#[derive(Deserialize)]
struct Fields<'a>(#[serde(borrow)] BTreeMap<String, &'a RawValue>);

fn fields(text: &str) -> Result<BTreeMap<String, &RawValue>, Unreadable> {
    let Fields(fields) = serde_json::from_str(text).map_err(|error| Unreadable::new(&error))?;
    Ok(fields)
}

fn braced(fields: &BTreeMap<String, &RawValue>) -> String {
    let pairs: Vec<String> = fields.iter().map(|(key, value)| pair(key, value.get())).collect();
    format!("{{{}}}", pairs.join(","))
}

fn pair(key: &str, value: &str) -> String {
    format!("{}:{value}", serde_json::Value::from(key))
}

/// How deep the objects and lists of a JSON text are nested; by its bytes, since no parser goes deep enough.
fn depth(json: &str) -> usize {
    let (mut now, mut most, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => (),
            b'{' | b'[' => {
                now += 1;
                most = most.max(now);
            }
            b'}' | b']' => now = now.saturating_sub(1),
            _ => (),
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn nested(levels: usize) -> String {
        format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels))
    }

    fn object(config: &str, limits: &str) -> String {
        format!(
            r#"{{"apiVersion":"nagaya.dev/v1alpha1","kind":"WasmController","metadata":{{"name":"web","namespace":"demo","uid":"u","resourceVersion":"7"}},"spec":{{"serviceAccountName":"web","module":{{"digest":"sha256:1"}},"config":{config},"limits":{limits}}},"status":{{"active":"web-1","phase":"Running"}}}}"#
        )
    }

    #[test]
    fn a_config_that_cannot_be_used_is_left_out_and_said() {
        for (levels, fits) in
            [(1, true), (97, true), (100, true), (101, false), (140, false), (9_000, false)]
        {
            let stored = controller(&object(&nested(levels), "{}")).unwrap();
            assert_eq!(stored.unusable.is_none(), fits, "{levels}: {:?}", stored.unusable);
            assert_eq!(stored.controller.spec.config.is_some(), fits, "{levels}");
            assert_eq!(stored.controller.status.unwrap().active.as_deref(), Some("web-1"));
        }
        let braces = format!(r#"{{"a":"{}\"{}"}}"#, "{[".repeat(200), "{".repeat(200));
        assert_eq!(controller(&object(&braces, "{}")).unwrap().unusable, None, "in a text");
        for (bytes, fits) in [(CONFIG_BYTES - 8, true), (CONFIG_BYTES + 1, false)] {
            let stored = controller(&object(&format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes)), "{}"));
            assert_eq!(stored.unwrap().unusable.is_none(), fits, "{bytes}");
        }
        let told = controller(&object(&nested(140), "{}")).unwrap().unusable.unwrap();
        assert!(told.contains("140 levels deep, and at most 100"), "{told}");
        assert!(!shown(&object(&nested(140), "{}")).unwrap().contains("config"));
    }

    #[test]
    fn numbers_over_their_limit_are_the_limit() {
        let limits = r#"{"writesPerMinute":4294967296,"deletesPerHour":99999999999999999999999,"concurrency":-1}"#;
        let read = controller(&object("{}", limits)).unwrap().controller.spec.limits;
        assert_eq!((read.writes_per_minute, read.deletes_per_hour), (u32::MAX, u32::MAX));
        assert_eq!(read.concurrency, 0);
    }

    #[test]
    fn a_status_of_another_version_keeps_what_decides() {
        let text = object("{}", "{}").replace("Running", "Dreaming");
        let status = controller(&text).unwrap().controller.status.unwrap();
        assert_eq!(status.active.as_deref(), Some("web-1"));
        let text = r#"{"metadata":{"name":"web-1"},"spec":{"controller":"web","number":1,"digest":"d"},"status":{"phase":"Dreaming","conditions":[{"type":3}]}}"#;
        assert_eq!(revision(text).unwrap().spec.controller, "web");
    }

    /// A value of the field, mostly one that is at or beyond a limit, or of another type.
    fn odd(random: &mut u64) -> String {
        *random = fastrand::Rng::with_seed(*random).u64(..);
        let number = *random / 16;
        match *random % 14 {
            0 => "null".to_owned(),
            1 => "0".to_owned(),
            2 => "-1".to_owned(),
            3 => u32::MAX.to_string(),
            4 => (u64::from(u32::MAX) + 1).to_string(),
            5 => "1e400".to_owned(),
            6 => format!("{number}.5"),
            7 => json!("x".repeat(usize::try_from(number % 3 * 600_000).unwrap())).to_string(),
            8 => nested(usize::try_from(number % 300).unwrap()),
            9 => format!("[{}]", vec!["\"n\""; usize::try_from(number % 2_000).unwrap()].join(",")),
            10 => "true".to_owned(),
            11 => r#""64Mi""#.to_owned(),
            12 => "[]".to_owned(),
            _ => r#""\u0000\ud83d\ude00""#.to_owned(),
        }
    }

    #[test]
    fn whatever_is_stored_is_read_or_told_in_a_sentence() {
        let (mut random, mut read, mut told) = (7_u64, 0, 0);
        let good = object("{}", "{}");
        for _ in 0..1_000 {
            let mut parts: BTreeMap<&str, String> = BTreeMap::from([
                ("serviceAccountName", r#""web""#.to_owned()),
                ("module", r#"{"digest":"sha256:1"}"#.to_owned()),
            ]);
            for field in
                ["config", "limits", "scope", "rollout", "revisionHistoryLimit", "exclusive"]
            {
                let value = odd(&mut random);
                match (field, random / 32 % 12) {
                    ("limits", 0) => {
                        drop(parts.insert(field, format!(r#"{{"writesPerMinute":{value}}}"#)));
                    }
                    ("scope", 0) => {
                        drop(parts.insert(field, format!(r#"{{"namespaces":{value}}}"#)));
                    }
                    ("rollout", 0) => {
                        drop(parts.insert(field, format!(r#"{{"rejected":{value}}}"#)));
                    }
                    (_, 1) => drop(parts.insert(field, value)),
                    _ => (),
                }
            }
            let spec: Vec<String> = parts.iter().map(|(key, value)| pair(key, value)).collect();
            let text = format!(
                r#"{{"metadata":{{"name":"web"}},"spec":{{{}}},"status":{{"active":"web-1"}}}}"#,
                spec.join(",")
            );
            match controller(&text) {
                Ok(stored) => {
                    read += 1;
                    assert_eq!(stored.controller.status.unwrap().active.as_deref(), Some("web-1"));
                    assert!(stored.unusable.is_none_or(|text| text.len() < 300));
                }
                Err(why) => {
                    told += 1;
                    assert!(why.to_string().len() <= WHY && !why.to_string().is_empty());
                }
            }
        }
        println!("{read} read, {told} told");
        assert!(read > 100 && told > 100, "{read} read, {told} told");
        assert!(serde_json::from_str::<Value>(&good).is_ok());
    }
}
