//! Label selectors, for the in-memory cluster.
//!
//! Invariant: `a_selector_means_what_kubectl_means`.

use serde_json::Value;

/// One requirement: a key, the values that it may or must not have, and whether it may be absent.
struct Requirement<'a> {
    key: &'a str,
    values: Option<Vec<&'a str>>,
    negated: bool,
}

/// Whether `object` has labels that match `selector`; an error says what cannot be read.
pub(crate) fn matches(selector: &str, object: &Value) -> Result<bool, String> {
    let labels = &object["metadata"]["labels"];
    let mut rest = selector.trim();
    let mut all = true;
    while !rest.is_empty() {
        let end = end_of_requirement(rest);
        let requirement = parse(rest[..end].trim())
            .ok_or_else(|| format!("cannot read the label selector {selector:?}"))?;
        let value = labels[requirement.key].as_str();
        let holds = match (&requirement.values, value) {
            (None, value) => value.is_some(),
            (Some(values), value) => value.is_some_and(|value| values.contains(&value)),
        };
        all &= holds != requirement.negated;
        rest = rest[end..].trim_start_matches(',').trim_start();
    }
    Ok(all)
}

/// The next comma that does not stand in parentheses.
fn end_of_requirement(text: &str) -> usize {
    let mut inside = false;
    for (place, letter) in text.char_indices() {
        match letter {
            '(' => inside = true,
            ')' => inside = false,
            ',' if !inside => return place,
            _ => (),
        }
    }
    text.len()
}

fn parse(text: &str) -> Option<Requirement<'_>> {
    let of = |key: &'_ str| !key.is_empty() && !key.contains([' ', '(', ')', '=', '!']);
    let (key, values, negated) = if let Some((key, list)) = text.split_once(" in ") {
        (key, Some(set(list)?), false)
    } else if let Some((key, list)) = text.split_once(" notin ") {
        (key, Some(set(list)?), true)
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, Some(vec![value.trim()]), true)
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Some(vec![value.trim()]), false)
    } else {
        (text.trim_start_matches('!'), None, text.starts_with('!'))
    };
    let key = key.trim();
    of(key).then_some(Requirement { key, values, negated })
}

fn set(list: &str) -> Option<Vec<&str>> {
    let inner = list.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some(inner.split(',').map(str::trim).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_means_what_kubectl_means() {
        let object = json!({"metadata": {"labels": {"app": "web", "example.com/tier": "front", "empty": ""}}});
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app == web, example.com/tier=front", true),
            ("app=db", false),
            ("app!=db", true),
            ("missing!=db", true),
            ("app in (db, web),example.com/tier", true),
            ("app notin (db,web)", false),
            ("missing notin (db)", true),
            ("app,!missing", true),
            ("!app", false),
            ("empty=", true),
        ] {
            assert_eq!(matches(selector, &object), Ok(expected), "{selector}");
        }
        for bad in ["a b", "=x", "a in b", "!"] {
            assert!(matches(bad, &object).is_err(), "{bad}");
        }
        assert_eq!(matches("a", &json!({"metadata": {}})), Ok(false));
    }
}
