//! `nagaya get`: the controllers as a table, or one of them as a tree.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, typed},
    edit::Seen,
    presence::{Presence, doubt},
    print, say, tree,
};
use crate::model::crd::WasmController;

/// Marks what may not be so any more.
const MARK: &str = "?";

/// What to show.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya get                      the controllers of the namespace
  nagaya get -A                   those of all namespaces
  nagaya get website              one with its conditions, revisions and watches
  nagaya get website -o yaml      the WasmController and its WasmRevisions

-o json and -o yaml print {\"items\": […]}: the controllers, or the one and then its revisions, newest first.")]
pub(super) struct Args {
    /// The WasmController; without it all are listed
    name: Option<String>,
    /// List the controllers of all namespaces
    #[arg(short = 'A', long, conflicts_with = "name")]
    all_namespaces: bool,
    /// The form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
    Yaml,
}

/// Shows one controller or many.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    match &args.name {
        Some(name) => one(name, args.output, &cluster).await,
        None => many(&args, &cluster).await,
    }
}

async fn one(name: &str, output: Output, cluster: &Cluster) -> Result<()> {
    if output == Output::Text {
        let seen: Seen = cluster.must_see(name).await?;
        let (presence, live) = tokio::join!(cluster.presence(), cluster.live(name));
        return say(&tree::draw(&seen, live.as_ref(), &presence, Timestamp::now()));
    }
    let namespace = cluster.namespace();
    let controller = cluster
        .controller(name)
        .await?
        .with_context(|| format!("there is no WasmController {name} in namespace {namespace}"))?;
    let mut items = vec![controller];
    let mut revisions = cluster.revisions(name).await?.items;
    revisions.sort_by_key(|revision| std::cmp::Reverse(revision["spec"]["number"].as_i64()));
    items.append(&mut revisions);
    say(&objects(items, output)?)
}

async fn many(args: &Args, cluster: &Cluster) -> Result<()> {
    let namespace = (!args.all_namespaces).then(|| cluster.namespace());
    let items = cluster.controllers(namespace).await?.items;
    if args.output != Output::Text {
        return say(&objects(items, args.output)?);
    }
    if items.is_empty() {
        let place =
            namespace.map_or_else(|| "the cluster".to_owned(), |ns| format!("namespace {ns}"));
        eprintln!("there is no WasmController in {place}");
        return Ok(());
    }
    let mut controllers: Vec<WasmController> = vec![];
    for item in items {
        // One that this program cannot read does not hide the others.
        match typed(item) {
            Ok(controller) => controllers.push(controller),
            Err(error) => eprintln!("{error:#}"),
        }
    }
    let presence = cluster.presence().await;
    say(&table(&controllers, &presence, args.all_namespaces, Timestamp::now()))?;
    let doubts: BTreeSet<_> = controllers.iter().filter_map(|one| doubt(one, &presence)).collect();
    for doubt in doubts {
        eprintln!("{MARK}  {doubt}");
    }
    Ok(())
}

/// `{"items": […]}`, without the field managers' bookkeeping.
fn objects(mut items: Vec<Value>, output: Output) -> Result<String> {
    for item in &mut items {
        if let Some(metadata) = item["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    }
    let list = json!({ "items": items });
    match output {
        Output::Yaml => Ok(serde_saphyr::to_string(&list)?),
        Output::Json | Output::Text => Ok(serde_json::to_string_pretty(&list)? + "\n"),
    }
}

fn table(
    controllers: &[WasmController],
    presence: &Presence,
    with_namespace: bool,
    now: Timestamp,
) -> String {
    let head = ["NAMESPACE", "NAME", "PHASE", "ACTIVE", "CANDIDATE", "READY", "FAILING", "AGE"];
    let rows = controllers.iter().map(|controller| {
        let meta = &controller.metadata;
        let status = controller.status.clone().unwrap_or_default();
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let mark = if doubt(controller, presence).is_some() { MARK } else { "" };
        [
            or_dash(meta.namespace.as_deref()),
            or_dash(meta.name.as_deref()),
            format!("{:?}{mark}", status.phase),
            or_dash(status.active.as_deref()),
            or_dash(status.candidate.as_deref()),
            or_dash(ready.map(|ready| ready.status.as_str())) + mark,
            status.failing_objects.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            print::age(meta.creation_timestamp.as_ref().map(|time| time.0), now),
        ]
    });
    let skipped = usize::from(!with_namespace);
    let rows = std::iter::once(head.map(str::to_owned)).chain(rows);
    print::table(&rows.map(|row| row[skipped..].to_vec()).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::{super::edit::tests::seen, *};

    #[test]
    fn the_table_has_a_namespace_column_only_when_asked() {
        let controllers = [seen().controller];
        let text = table(&controllers, &Presence::Unknown, false, Timestamp::now());
        let head: Vec<_> = text.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(head, ["NAME", "PHASE", "ACTIVE", "CANDIDATE", "READY", "FAILING", "AGE"]);
        let text = table(&controllers, &Presence::Unknown, true, Timestamp::now());
        let mut lines =
            text.lines().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>());
        assert_eq!(lines.next().unwrap(), ["NAMESPACE", "NAME", "PHASE"]);
        assert_eq!(lines.next().unwrap(), ["demo", "web", "Pending"]);
        let gone = Presence::Gone("no host runs".to_owned());
        let text = table(&controllers, &gone, false, Timestamp::now());
        assert!(text.contains("Pending?"), "nobody knows whether it still is: {text}");
    }

    #[test]
    fn the_table_counts_objects_whose_runs_fail() {
        let mut controller = seen().controller;
        let row = |controller: &WasmController| {
            let one = std::slice::from_ref(controller);
            let text = table(one, &Presence::Unknown, false, Timestamp::now());
            text.lines().nth(1).unwrap().split_whitespace().nth(5).unwrap().to_owned()
        };
        assert_eq!(row(&controller), "-");
        controller.status.as_mut().unwrap().failing_objects = Some(3);
        assert_eq!(row(&controller), "3");
    }

    #[test]
    fn objects_are_items_without_bookkeeping() {
        let object = json!({ "kind": "X", "metadata": { "name": "a", "managedFields": [1] } });
        let expected = json!({ "items": [{ "kind": "X", "metadata": { "name": "a" } }] });
        let text = objects(vec![object.clone()], Output::Json).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        let text = objects(vec![object], Output::Yaml).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), expected);
    }
}
