//! `nagaya rbac`: the rights that a component in a file needs, as YAML, before anything of it is in the cluster.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};

use super::{
    Output,
    cluster::Cluster,
    described::described,
    explain::{HOST, Needed, Parties, served, user},
    say,
};
use crate::{access::needs::Needs, apiserver::Identity};

/// Which component, and for whom.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The cluster is asked how the kinds are served; nothing is written. The first part is for the controller's ServiceAccount, the second
lets the host act as it.

Examples:
  nagaya rbac shop.wasm -n demo                            for the account `shop`, in the namespace demo alone
  nagaya rbac shop.wasm -n demo | kubectl apply -f -
  nagaya rbac shop.wasm -n demo --account robot --scope demo,shop
  nagaya rbac shop.wasm -n demo --scope '*'                everywhere: takes a cluster admin")]
pub(super) struct Args {
    /// The component
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The controller's ServiceAccount [default: the file's name]
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// The namespaces of `spec.scope`, or * for all [default: the namespace]
    #[arg(long, value_delimiter = ',', value_name = "NS")]
    scope: Vec<String>,
    /// The config with which it describes itself, as JSON
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// The ServiceAccount that the host runs as
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = HOST, value_parser = user)]
    host_account: String,
    /// The form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Prints what it needs.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    let file = args.file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let manifest = described(&args.file, args.config.as_deref()).await?.manifest;
    let namespace = cluster.namespace();
    let scope = match args.scope.as_slice() {
        [] => Some(vec![Arc::from(namespace)]),
        [all] if all == "*" => None,
        some => Some(some.iter().map(|name| Arc::from(name.as_str())).collect()),
    };
    let account = args.account.as_deref().unwrap_or(file);
    let parties = Parties {
        account: Identity::ServiceAccount { namespace: namespace.into(), name: account.into() },
        host: args.host_account.clone(),
        namespaces: scope,
    };
    let resources = served(&cluster, &manifest)
        .await
        .with_context(|| format!("cannot say what {} needs", args.file.display()))?;
    let namespaces = parties.namespaces.as_deref();
    let needs = Needs { manifest: &manifest, resources: &resources, namespaces };
    let mut needed = Needed::of(file, &needs, &serde_json::Value::Null);
    // Whether the platform shares a kind nobody knows here: one that it does not the host watches as the account.
    needed.host.extend(needs.reads());
    parties.check_names(&needed)?;
    let own = format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{ name: {account:?}, namespace: {namespace:?} }}\n---\n"
    );
    say(&match args.output {
        Output::Text => own + &parties.text(&needed, None),
        Output::Json => {
            let mut object = parties.object(&needed, None);
            object["yaml"] = format!("{own}{}", object["yaml"].as_str().unwrap_or_default()).into();
            serde_json::to_string_pretty(&object)? + "\n"
        }
    })
}
