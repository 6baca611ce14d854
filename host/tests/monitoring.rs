//! What the dashboard and the alerts of the chart ask for is what the host tells: by a parser of Prometheus' language.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs,
    path::Path,
};

use nagaya::sandbox::Action;
use promql_parser::{
    parser::{Expr, LabelModifier, MatrixSelector, VectorSelector, parse},
    util::{ExprVisitor, walk_expr},
};
use serde_json::Value;

use crate::fake::{
    Fake, Host, Stop,
    guest::{child, site},
    native,
};

/// What a scrape adds to every series.
const SCRAPED: [&str; 4] = ["instance", "job", "namespace", "pod"];
/// Metrics that a host over memory does not tell: of its process, its Lease, its connections, and of all watches.
const RARE: usize = 10;

/// What an expression asks for.
#[derive(Default)]
struct Asked {
    /// Metrics, each with the labels that it must have.
    selectors: Vec<(String, BTreeSet<String>)>,
    /// Labels by which is grouped or matched: one of the metrics must have them.
    grouping: BTreeSet<String>,
}

impl ExprVisitor for Asked {
    type Error = Infallible;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Infallible> {
        match expression {
            Expr::VectorSelector(selector) => self.add(selector),
            Expr::MatrixSelector(MatrixSelector { vs, .. }) => self.add(vs),
            Expr::Aggregate(aggregate) => {
                self.group(aggregate.modifier.as_ref());
            }
            Expr::Binary(binary) => {
                let matching = binary.modifier.as_ref().and_then(|it| it.matching.as_ref());
                self.group(matching);
            }
            _ => (),
        }
        Ok(true)
    }
}

impl Asked {
    fn of(expression: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        let Ok(_) = walk_expr(&mut asked, &parse(expression)?);
        Ok(asked)
    }

    fn add(&mut self, selector: &VectorSelector) {
        let labels = selector.matchers.matchers.iter().map(|matcher| matcher.name.clone());
        self.selectors.push((selector.name.clone().unwrap_or_default(), labels.collect()));
    }

    fn group(&mut self, by: Option<&LabelModifier>) {
        self.grouping.extend(by.into_iter().flat_map(|by| by.labels().labels.iter().cloned()));
    }
}

/// An expression of Grafana as Prometheus is asked it.
fn filled(expression: &str) -> String {
    let of_labels = expression.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(','));
    let expression = of_labels.map_or(expression, |(metric, _)| metric);
    expression.replace("$__rate_interval", "5m").replace("$__range", "1h")
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
fn what_an_expression_asks_for_is_found_in_it() {
    let asked =
        Asked::of(r#"sum by (le) (rate(a_b{c="d} e_f",g=~"h{2}"}[5m] offset 1h)) > on (x) y"#);
    let asked = asked.unwrap();
    let names: Vec<_> = asked.selectors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a_b", "y"]);
    assert_eq!(asked.selectors[0].1, BTreeSet::from(["c".to_owned(), "g".to_owned()]));
    assert_eq!(asked.grouping, BTreeSet::from(["le".to_owned(), "x".to_owned()]));
    for wrong in ["sum by (a", "rate(a)", "a and on (b) 1", "changes(a) > 1", "unknown(a)"] {
        assert!(Asked::of(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_metric_of_the_dashboard_and_the_alerts_is_one_of_the_host() {
    let told = told();
    let expressions = expressions();
    assert!(expressions.len() > 40, "{expressions:?}");
    for (place, expression) in expressions {
        let asked = Asked::of(&filled(&expression)).unwrap_or_else(|error| {
            panic!("{place}: {expression}: {error}");
        });
        assert!(!asked.selectors.is_empty(), "{place}: {expression}");
        for (name, _) in asked.selectors {
            assert!(told.contains(&name), "{place}: {name} is not in host/metrics.txt");
        }
    }
}

/// The labels of every series on a page, by its name.
fn series(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut series = BTreeMap::<String, BTreeSet<String>>::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let end = line.find(['{', ' ']).unwrap();
        let asked = Asked::of(line.rsplit_once(' ').unwrap().0).unwrap();
        let (name, labels) = asked.selectors.into_iter().next().unwrap();
        assert_eq!(name, line[..end]);
        series.entry(name).or_default().extend(labels);
    }
    series
}

/// With the page of a host whose controller has worked and failed.
#[tokio::test(start_paused = true)]
async fn every_label_of_the_dashboard_and_the_alerts_is_told_by_a_host() {
    let api = Fake::new();
    let guest = native(|cx| async move {
        let Some(site) = cx.site().await? else { return Ok(Action::AwaitChange) };
        if cx.name() == "bad" {
            return Err(Stop::retry("not today"));
        }
        cx.apply(child(&site, cx.name(), "hello")).await?;
        cx.get("v1", "ConfigMap", cx.name()).await?;
        Ok(Action::AwaitChange)
    });
    let host = Host::over(&api, &guest).await;
    api.put(site("web"));
    api.put(site("bad"));
    api.writes().await;
    let series = series(&host.metrics.page().unwrap());
    let mut unseen = BTreeSet::new();
    for (place, expression) in expressions() {
        let asked = Asked::of(&filled(&expression)).unwrap();
        let mut all: BTreeSet<_> = SCRAPED.map(str::to_owned).into();
        for (name, labels) in &asked.selectors {
            let Some(told) = series.get(name) else {
                unseen.insert(name.clone());
                continue;
            };
            all.extend(told.iter().cloned());
            let strange = labels.iter().find(|label| !all.contains(*label));
            assert_eq!(strange, None, "{place}: {name} has {told:?}: {expression}");
        }
        let is_seen = asked.selectors.iter().all(|(name, _)| series.contains_key(name));
        let strange = asked.grouping.iter().find(|label| is_seen && !all.contains(*label));
        assert_eq!(strange, None, "{place}: none of its metrics has it: {expression}");
    }
    assert!(unseen.len() <= RARE, "{} are not on the page: {unseen:?}", unseen.len());
}
