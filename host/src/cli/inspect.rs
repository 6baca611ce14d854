//! `nagaya inspect`: what a component in a file is, what it imports, and what it asks for.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wasmparser::{Parser, Payload};

use super::{
    Output,
    described::{Described, described},
    say,
};
use crate::model::manifest::{Manifest, Mapping, Watch};

/// Which component.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing of a cluster is asked. What the host would refuse is refused here, in the same words.

Examples:
  nagaya inspect shop.wasm
  nagaya inspect shop.wasm --config '{\"region\": \"eu\"}'
  nagaya inspect shop.wasm -o json                         the manifest, for programs")]
pub(super) struct Args {
    /// The component
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The config with which it describes itself, as JSON
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// The form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Shows it.
pub(super) fn run(args: &Args) -> Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        runtime.worker_threads(1).enable_all().build().context("cannot start a runtime")?;
    let found = runtime.block_on(described(&args.file, args.config.as_deref()))?;
    let imports = imports(&found.bytes).context("cannot read the imports")?;
    say(&match args.output {
        Output::Text => text(&found, &imports),
        Output::Json => {
            let object = json!({
                "digest": found.digest.to_string(),
                "size": found.bytes.len(),
                "imports": imports,
                "manifest": manifest_value(&found.manifest),
            });
            serde_json::to_string_pretty(&object)? + "\n"
        }
    })
}

/// The names of all interfaces that the component imports.
fn imports(bytes: &[u8]) -> Result<BTreeSet<String>> {
    let (mut names, mut depth) = (BTreeSet::new(), 0_usize);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    names.insert(import?.name.name.to_owned());
                }
            }
            _ => (),
        }
    }
    Ok(names)
}

fn manifest_value(manifest: &Manifest) -> Value {
    serde_json::to_value(manifest).unwrap_or_default()
}

fn text(found: &Described, imports: &BTreeSet<String>) -> String {
    let Manifest { primary, owned, watches, live, writes, indexes, http: _, finalizer } =
        &found.manifest;
    let mut lines = vec![
        ("digest", found.digest.to_string()),
        ("size", format!("{} bytes", found.bytes.len())),
    ];
    let (ours, wasi): (Vec<_>, Vec<_>) =
        imports.iter().map(String::as_str).partition(|name| name.starts_with("nagaya:"));
    lines.push(("imports", ours.join(", ")));
    if !wasi.is_empty() {
        lines.push(("", format!("{} interfaces of WASI", wasi.len())));
    }
    lines.push(("reconciles", watched(primary)));
    lines.extend(owned.iter().map(|watch| ("owns", watched(watch))));
    lines.extend(watches.iter().map(|watch| ("watches", watched(watch))));
    lines.extend(live.iter().map(|kind| ("reads live", kind.to_string())));
    lines.extend(writes.iter().map(|write| {
        let verbs: Vec<_> =
            write.verbs.iter().filter_map(|verb| serde_json::to_value(verb).ok()).collect();
        let verbs: Vec<_> = verbs.iter().filter_map(Value::as_str).collect();
        ("writes", format!("{}: {}", write.kind, verbs.join(", ")))
    }));
    let index = |index: &crate::model::manifest::Index| {
        ("index", format!("{} of {}: {}", index.name, index.kind, index.path))
    };
    lines.extend(indexes.iter().map(index));
    lines.extend(finalizer.iter().map(|name| ("finalizer", name.clone())));
    let (mut text, mut last) = (String::new(), "");
    for (word, what) in &lines {
        let shown = if *word == last { "" } else { word };
        text.push_str(&format!("{shown:<12}{what}\n"));
        last = word;
    }
    text
}

fn watched(watch: &Watch) -> String {
    let mut text = format!("{} ({})", watch.kind, watch.kind.version);
    if !matches!(watch.mapping, Mapping::Same) || watch.projection.name() == "metadata" {
        text.push_str(&format!(", {}", watch.projection.name()));
    }
    for selector in [&watch.label_selector, &watch.field_selector].into_iter().flatten() {
        text.push_str(&format!(", of {selector}"));
    }
    if !watch.predicate.is_empty() {
        text.push_str(", on some changes");
    }
    text
}
