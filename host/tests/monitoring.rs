//! What the dashboard and the alerts of the chart ask for is what the host tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::Value;

/// Words of the language that stand where a metric could.
const WORDS: [&str; 7] = ["and", "bool", "inf", "nan", "offset", "or", "unless"];
/// What has a list of labels behind it.
const LABELS: [&str; 6] = ["by", "group_left", "group_right", "ignoring", "on", "without"];

/// The names of metrics in an expression of Prometheus: what is neither in quotes, braces or brackets, nor a function, a label or a word of
/// the language.
fn metrics(expression: &str) -> BTreeSet<String> {
    // Grafana's: label_values(metric, label).
    let of_labels = expression.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(','));
    let bare = bare(of_labels.map_or(expression, |(metric, _)| metric));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = BTreeSet::new();
    let mut rest = &*bare;
    while let Some(start) = rest.find(is_name) {
        let name = &rest[start..];
        let (name, after) = name.split_at(name.find(|c| !is_name(c)).unwrap_or(name.len()));
        rest = after.trim_start();
        if LABELS.contains(&name) {
            // group_left may stand alone.
            let list = rest.strip_prefix('(').and_then(|list| list.split_once(')'));
            rest = list.map_or(rest, |(_, after)| after);
            continue;
        }
        let takes = ["(", "by ", "without "].iter().any(|what| rest.starts_with(what));
        if !takes && !name.starts_with(|c: char| c.is_ascii_digit()) && !WORDS.contains(&name) {
            found.insert(name.to_owned());
        }
    }
    found
}

/// Without quotes, braces and brackets, and what is in them.
fn bare(expression: &str) -> String {
    let (mut quoted, mut depth) = (false, 0);
    let stays = |c: &char| {
        quoted ^= *c == '"';
        let change = match c {
            _ if quoted => 0,
            '{' | '[' => 1,
            '}' | ']' => -1,
            _ => 0,
        };
        depth += change;
        !quoted && depth == 0 && change == 0 && *c != '"'
    };
    expression.chars().filter(stays).collect()
}

/// Where each stands, and the expression.
fn expressions() -> Vec<(String, String)> {
    let read = |path: &str| {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart");
        fs::read_to_string(chart.join(path)).unwrap()
    };
    let dashboard: Value = serde_json::from_str(&read("dashboards/nagaya.json")).unwrap();
    let alerts: Value = serde_saphyr::from_str(&read("files/alerts.yaml")).unwrap();
    let list = |value: &Value| value.as_array().into_iter().flatten().cloned().collect::<Vec<_>>();
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
    let mut all = vec![];
    for panel in list(&dashboard["panels"]) {
        let targets = list(&panel["targets"]);
        all.extend(targets.iter().map(|target| (text(&panel["title"]), text(&target["expr"]))));
    }
    for variable in list(&dashboard["templating"]["list"]) {
        if variable["type"] == "query" {
            all.push((text(&variable["name"]), text(&variable["definition"])));
            assert_eq!(variable["query"]["query"], variable["definition"], "{variable}");
        }
    }
    for rule in list(&alerts["groups"]).iter().flat_map(|group| list(&group["rules"])) {
        all.push((text(&rule["alert"]), text(&rule["expr"])));
    }
    all
}

/// As Prometheus shows what `host/metrics.txt` has.
fn told() -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("metrics.txt");
    let list = fs::read_to_string(file).unwrap();
    let endings: BTreeMap<_, &[&str]> = BTreeMap::from([
        ("counter", ["_total"].as_slice()),
        ("gauge", &[""]),
        ("histogram", &["_bucket", "_count", "_sum"]),
        ("info", &["_info"]),
    ]);
    let lines = list.lines().map(|line| line.split_once(' ').unwrap());
    lines
        .flat_map(|(name, kind)| endings[kind].iter().map(move |ending| format!("{name}{ending}")))
        .collect()
}

#[test]
fn names_of_metrics_are_found_in_an_expression() {
    let check = |expression: &str, expected: &[&str]| {
        let found = metrics(expression);
        assert_eq!(found, expected.iter().map(|name| (*name).to_owned()).collect(), "{expression}");
    };
    check(r#"sum by (le) (rate(a_b{c="d} e_f",g=~"h{2}"}[5m] offset 1h)) > 0.1"#, &["a_b"]);
    check("a unless on(job, x) group_left (y) max without (z) (b) or c:d", &["a", "b", "c:d"]);
    check(r#"label_values(up{job="$job"}, controller)"#, &["up"]);
    check("histogram_quantile(0.99, sum(x_bucket)) * 1e3", &["x_bucket"]);
}

#[test]
fn every_metric_of_the_dashboard_and_the_alerts_is_one_of_the_host() {
    let told = told();
    let expressions = expressions();
    assert!(expressions.len() > 40, "{expressions:?}");
    for (place, expression) in expressions {
        let asked = metrics(&expression);
        assert!(!asked.is_empty(), "{place}: {expression}");
        for name in asked {
            assert!(told.contains(&name), "{place}: {name} is not in host/metrics.txt");
        }
    }
}
