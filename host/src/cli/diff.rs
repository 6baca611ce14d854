//! `nagaya diff`: what a revision would make of one object's things, or of all, as unified diffs.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use super::{
    Output,
    cluster::Cluster,
    plan::wrapped,
    planned::{Wanted, follow},
    say, span,
};
use crate::model::plan::{PlannedChange, PlannedObject};

/// Which revision, and which objects.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya diff website shop          what the candidate would make of the things of one object
  nagaya diff website demo/shop     of one in another namespace than -n says
  nagaya diff website               of all: a whole plan
  nagaya diff website -o json       the same as data, one JSON object a line

What the live revision would change as well is counted out of the plan, and shows in the diff of an object that differs in
something else. A Secret's values are not shown. The role `edit` of the namespace is needed.")]
pub(super) struct Args {
    /// The WasmController
    name: String,
    /// The primary: NAME, or NAMESPACE/NAME
    object: Option<String>,
    /// The revision [default: the one that would go live next]
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// Give up waiting after this long
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = span)]
    timeout: Duration,
    /// The form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Shows the differences as they are found.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    let object = args.object.as_deref().map(|object| {
        if object.contains('/') {
            object.to_owned()
        } else {
            format!("{}/{object}", cluster.namespace())
        }
    });
    let revision = args.revision.clone();
    let wanted = Wanted { name: args.name.clone(), revision, object, values: true };
    let colours = io::stdout().is_terminal();
    let planned = follow(&cluster, &wanted, args.timeout, |object| match args.output {
        Output::Json => say(&(serde_json::to_string(&json!(object))? + "\n")),
        Output::Text => say(&drawn(&object, colours)?),
    });
    let planned = planned.await?;
    let message = planned.plan.message.unwrap_or_default();
    eprint!("{}", wrapped(&format!("{} {message}", planned.revision), 2));
    Ok(())
}

fn drawn(object: &PlannedObject, colours: bool) -> Result<String> {
    let mut text = String::new();
    for change in &object.changes {
        text.push_str(&of_change(&object.object, change, colours)?);
    }
    if let Some(error) = &object.error {
        text.push_str(&paint(colours, "31", &format!("# {}: fails: {error}\n", object.object)));
    }
    for why in &object.untold {
        let line = format!("# {}: cannot be told: {why}\n", object.object);
        text.push_str(&paint(colours, "33", &line));
    }
    Ok(text)
}

fn of_change(object: &str, change: &PlannedChange, colours: bool) -> Result<String> {
    let kind = change.named_kind();
    let place = change.namespace.as_ref().map(|text| format!("{text}/")).unwrap_or_default();
    let named = format!("{kind} {place}{}", change.name);
    let yaml = |value: &Value| match value {
        Value::Null => Ok(String::new()),
        value => serde_saphyr::to_string(value),
    };
    let (before, after) = (yaml(&change.before)?, yaml(&change.after)?);
    let diff = TextDiff::from_lines(&before, &after);
    let [old, new] =
        [&before, &after].map(|text| if text.is_empty() { "/dev/null" } else { &named });
    let head = format!(
        "# {object}: {}\n--- {old}\n+++ {new}\n",
        format!("{:?}", change.change).to_lowercase()
    );
    let mut text = paint(colours, "1", &head);
    for hunk in diff.unified_diff().context_radius(3).iter_hunks() {
        text.push_str(&paint(colours, "36", &format!("{}\n", hunk.header())));
        for line in hunk.iter_changes() {
            let (sign, colour) = match line.tag() {
                ChangeTag::Delete => ("-", "31"),
                ChangeTag::Insert => ("+", "32"),
                ChangeTag::Equal => (" ", ""),
            };
            let plain = format!("{sign}{}", line.value());
            let plain = if plain.ends_with('\n') { plain } else { format!("{plain}\n") };
            text.push_str(&paint(colours && !colour.is_empty(), colour, &plain));
        }
    }
    Ok(text)
}

/// Colours each line by itself, so that a pager keeps it.
fn paint(colours: bool, colour: &str, text: &str) -> String {
    if !colours {
        return text.to_owned();
    }
    text.lines().map(|line| format!("\u{1b}[{colour}m{line}\u{1b}[0m\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::ChangeSort;

    #[test]
    fn a_change_is_a_unified_diff() {
        let object =
            |label: &str| json!({ "metadata": { "labels": { "tier": label }, "name": "shop" } });
        let change = PlannedChange {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            namespace: Some("demo".into()),
            name: "shop".into(),
            before: object("back"),
            after: object("front"),
            ..PlannedChange::default()
        };
        let deleted =
            PlannedChange { change: ChangeSort::Delete, after: Value::Null, ..change.clone() };
        let object = PlannedObject {
            object: "demo/shop".into(),
            changes: vec![change],
            error: Some("it trapped".into()),
            ..PlannedObject::default()
        };
        let expected = "\
# demo/shop: update
--- Deployment.apps demo/shop
+++ Deployment.apps demo/shop
@@ -1,4 +1,4 @@
 metadata:
   labels:
-    tier: back
+    tier: front
   name: shop
# demo/shop: fails: it trapped
";
        assert_eq!(drawn(&object, false).unwrap(), expected);
        let text = of_change("demo/shop", &deleted, true).unwrap();
        assert!(text.contains("+++ /dev/null") && text.contains("\u{1b}[31m-"), "{text}");
    }
}
