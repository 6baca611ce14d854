//! Label selectors in the API server's own notation; pure.
//!
//! The host and the in-memory cluster of the guest SDK read them alike: what a test accepts, a host accepts.
//!
//! `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, joined by commas. As on the server, `!=` and
//! `notin` also match objects that do not have the label.
//!
//! Invariants: `a_selector_matches_as_the_server_does`, `a_selector_has_limits`.

use std::collections::BTreeSet;

/// Bytes of a selector: it becomes a part of a URL, and it is evaluated for every object.
const BYTES: usize = 4 << 10;
/// Requirements of a selector.
const REQUIREMENTS: usize = 64;
/// Bytes of a label's key: prefix, slash and name.
const KEY: usize = 253 + 1 + 63;
/// How much of what is wrong is shown.
const SHOWN: usize = 200;

/// A parsed selector: all of its requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Missing,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
}

/// Not a label selector.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a label selector: {why}")]
pub struct Error {
    text: String,
    why: String,
}

impl Selector {
    /// Reads `text`; the empty text matches everything.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |why: String| Error { text: cut(text, SHOWN), why: cut(&why, SHOWN) };
        if text.len() > BYTES {
            let bytes = text.len();
            return Err(wrong(format!("it has {bytes} bytes, and there may be at most {BYTES}")));
        }
        let parts = split(text).map_err(wrong)?;
        if parts.len() > REQUIREMENTS {
            let count = parts.len();
            return Err(wrong(format!(
                "it has {count} requirements, and there may be at most {REQUIREMENTS}"
            )));
        }
        let requirements = parts.into_iter().map(requirement).collect::<Result<_, _>>();
        requirements.map(Self).map_err(wrong)
    }

    /// Whether an object with these labels matches.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = label(&requirement.key);
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            }
        })
    }
}

/// At most `limit` bytes of `text`; what was cut ends in an ellipsis.
fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(limit - "…".len())])
}

/// A part of a selector as it is quoted.
fn shown(text: &str) -> String {
    format!("{:?}", cut(text, SHOWN / 4))
}

/// Splits at the commas outside parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut inside) = (vec![], 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '(' if inside => return Err("a parenthesis inside parentheses".to_owned()),
            '(' => inside = true,
            ')' if !inside => {
                return Err("a closing parenthesis without its opening one".to_owned());
            }
            ')' => inside = false,
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => (),
        }
    }
    if inside {
        return Err("a parenthesis is not closed".to_owned());
    }
    parts.push(&text[start..]);
    if parts.len() == 1 && parts[0].trim().is_empty() {
        parts.clear();
    }
    Ok(parts)
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let part = part.trim();
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement { key: label_key(key)?, test: Test::Missing });
    }
    if let Some(list) = part.strip_suffix(')') {
        let (head, values) = list
            .split_once('(')
            .ok_or_else(|| format!("{} has no opening parenthesis", shown(part)))?;
        let words: Vec<_> = head.split_whitespace().collect();
        let values = values.split(',').map(label_value).collect::<Result<_, _>>()?;
        return match words[..] {
            [key, "in"] => Ok(Requirement { key: label_key(key)?, test: Test::In(values) }),
            [key, "notin"] => Ok(Requirement { key: label_key(key)?, test: Test::NotIn(values) }),
            _ => Err(format!("{} is neither `key in (…)` nor `key notin (…)`", shown(part))),
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        let values = BTreeSet::from([label_value(value)?]);
        return Ok(Requirement { key: label_key(key)?, test: Test::NotIn(values) });
    }
    if let Some((key, value)) = part.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        let values = BTreeSet::from([label_value(value)?]);
        return Ok(Requirement { key: label_key(key)?, test: Test::In(values) });
    }
    Ok(Requirement { key: label_key(part)?, test: Test::Exists })
}

fn label_key(text: &str) -> Result<String, String> {
    let text = text.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let fits = text.len() <= KEY && text.chars().all(good) && text.matches('/').count() <= 1;
    if text.is_empty() || !fits {
        return Err(format!("{} is no label key", shown(text)));
    }
    Ok(text.to_owned())
}

fn label_value(text: &str) -> Result<String, String> {
    let text = text.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.len() > 63 || !text.chars().all(good) {
        return Err(format!("{} is no label value", shown(text)));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let label = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        Selector::parse(selector).unwrap().matches(label)
    }

    #[test]
    fn a_selector_matches_as_the_server_does() {
        let labels = [("app", "web"), ("example.com/tier", "front"), ("empty", "")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app == web, example.com/tier in (front, back)", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (a,b)", false),
            ("app notin (a,b),!other", true),
            ("other notin (a)", true),
            ("other in (a)", false),
            ("app,empty", true),
            ("empty=", true),
            ("!app", false),
            ("app=web,other", false),
        ] {
            assert_eq!(matches(selector, &labels), expected, "{selector}");
        }
    }

    /// Seen from outside: one of 200,000 requirements was evaluated for seconds, one of 700 kB was kept for ever.
    #[test]
    fn a_selector_has_limits() {
        let most = vec!["!a"; REQUIREMENTS].join(",");
        assert!(Selector::parse(&most).is_ok());
        let long = format!("a in ({})", "b,".repeat((BYTES - 7) / 2));
        assert!(Selector::parse(&long).is_ok(), "{} bytes", long.len());
        for (bad, why) in [
            (format!("{most},!a"), "65 requirements"),
            (vec!["a=b"; 200_000].join(","), "799999 bytes"),
            (format!("{long:<width$}", width = BYTES + 1), "4097 bytes"),
            (format!("a={}", "b".repeat(4_000)), "no label value"),
            ("k".repeat(KEY + 1), "no label key"),
        ] {
            let error = Selector::parse(&bad).expect_err(why).to_string();
            assert!(error.contains(why) && error.len() < 3 * SHOWN, "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_text() {
        for bad in [
            "a in b",
            "a in (b",
            "a)",
            "=b",
            "a=b=c",
            "a b",
            "in (b)",
            "a,,b",
            "a in ((b))",
            "a=b/c",
        ] {
            let error = Selector::parse(bad).expect_err(bad).to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
