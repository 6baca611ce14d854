//! `nagaya explain-access`: the rights that a revision needs as YAML that gives them, and what another needs besides.
//!
//! What a revision needs follows from its manifest, which the host has written into its status, and from how the cluster
//! serves the manifest's kinds. Nothing is asked of the host, and nobody's rights are looked at.
//!
//! Invariants: `what_is_printed_can_be_applied`, `a_name_that_yaml_would_read_otherwise_is_refused`,
//! `what_only_one_of_two_revisions_needs_is_told`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    Output,
    cluster::{Cluster, typed},
    say,
};
use crate::{
    access::{
        grant::{self, Right},
        needs::{Needs, Whose},
    },
    apiserver::{Identity, Resource},
    model::{
        crd::{WasmController, WasmControllerStatus},
        manifest::Manifest,
    },
    text,
};

/// What `deploy/chart` names the host's account, installed as `nagaya` into the namespace that its documents name.
pub(super) const HOST: &str = "nagaya-system/nagaya";

/// Which revision is meant.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nagaya explain-access website                              what the candidate needs, and how it differs from what is live
  nagaya explain-access website | kubectl apply -f -         gives it
  nagaya explain-access website --revision website-5f2c9e01ab --against website-1f2e77c0d4
  nagaya explain-access website -o json                      the rights in words, and the YAML

The first part is for the ServiceAccount of the controller, the second lets the host act as this account. All that is no YAML
is a comment. Before Kubernetes 1.36 the second part has no effect: deploy/README.md has the older form.")]
pub(super) struct Args {
    /// The WasmController
    name: String,
    /// The revision [default: the candidate, else the live one]
    #[arg(long)]
    revision: Option<String>,
    /// The revision to compare with [default: the live one]
    #[arg(long, value_name = "REVISION")]
    against: Option<String>,
    /// The ServiceAccount that the host runs as
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = HOST, value_parser = user)]
    host_account: String,
    /// The form
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Whose rights they are, and where: the same for all revisions of a controller.
#[derive(Debug)]
pub(super) struct Parties {
    pub(super) account: Identity,
    /// The host's user name.
    pub(super) host: String,
    /// The controller's scope; `None`: the whole cluster.
    pub(super) namespaces: Option<Vec<Arc<str>>>,
}

/// What one revision needs.
#[derive(Debug)]
pub(super) struct Needed {
    revision: String,
    /// Of its account.
    account: BTreeSet<Right>,
    /// What the host must be let do as the account.
    pub(super) host: BTreeSet<Right>,
    /// What it declares and its plan has not used, in words.
    unused: BTreeSet<String>,
}

/// Shows what a revision needs.
pub(super) async fn run(args: Args, cluster: Cluster) -> Result<()> {
    let (name, namespace) = (&args.name, cluster.namespace());
    let controller = cluster.controller(name).await?.with_context(|| {
        format!(
            "there is no WasmController {name} in namespace {namespace}; `nagaya get -A` lists those that exist"
        )
    })?;
    let controller: WasmController = typed(controller)?;
    let revisions = cluster.revisions(name).await?.items;
    let status = controller.status.clone().unwrap_or_default();
    let (shown, other) = chosen(&args, &status)?;
    let parties = Parties::of(&controller, namespace, &args.host_account);
    let needed = parties.needed(&cluster, &revisions, &shown).await?;
    let other = match other {
        None => None,
        Some(other) => match parties.needed(&cluster, &revisions, &other).await {
            Ok(needed) => Some(needed),
            // Nobody has asked for this one by its name.
            Err(error) if args.against.is_none() => {
                eprintln!("not compared with {other}: {error:#}");
                None
            }
            Err(error) => return Err(error),
        },
    };
    say(&match args.output {
        Output::Text => parties.text(&needed, other.as_ref()),
        Output::Json => {
            serde_json::to_string_pretty(&parties.object(&needed, other.as_ref()))? + "\n"
        }
    })
}

/// The revision that is shown, and the one that it is compared with.
fn chosen(args: &Args, status: &WasmControllerStatus) -> Result<(String, Option<String>)> {
    let (candidate, active) = (status.candidate.as_ref(), status.active.as_ref());
    let shown = args.revision.as_ref().or(candidate).or(active).cloned().with_context(|| {
        format!(
            "{0} has neither a candidate nor a live revision: `nagaya get {0}` lists its revisions, name one with --revision",
            args.name
        )
    })?;
    let other = args.against.as_ref().or(active).filter(|other| **other != shown).cloned();
    Ok((shown, other))
}

/// The user name of an account that is given as NAMESPACE/NAME.
pub(super) fn user(account: &str) -> Result<String, String> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "-.".contains(letter);
    let is_name = |name: &str| !name.is_empty() && name.chars().all(fits);
    match account.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => {
            Ok(format!("system:serviceaccount:{namespace}:{name}"))
        }
        _ => Err(format!("{account:?} is not like {HOST}")),
    }
}

impl Parties {
    /// Those of `controller`, which lies in `namespace`.
    fn of(controller: &WasmController, namespace: &str, host: &str) -> Self {
        let spec = &controller.spec;
        let scope = spec.scope.as_ref();
        Self {
            account: Identity::ServiceAccount {
                namespace: namespace.into(),
                name: spec.service_account_name.as_str().into(),
            },
            host: host.to_owned(),
            namespaces: scope
                .map(|scope| scope.namespaces.iter().map(|name| name.as_str().into()).collect()),
        }
    }

    /// What the one of `revisions` needs that is called `name`.
    async fn needed(&self, cluster: &Cluster, revisions: &[Value], name: &str) -> Result<Needed> {
        let found = revisions.iter().find(|revision| revision["metadata"]["name"] == name);
        let revision = found.with_context(|| {
            format!("there is no revision {name} of this controller; `nagaya get` lists those that exist")
        })?;
        let manifest = manifest(name, &revision["status"])?;
        let resources = served(cluster, &manifest)
            .await
            .with_context(|| format!("cannot say what {name} needs"))?;
        let namespaces = self.namespaces.as_deref();
        let needs = Needs { manifest: &manifest, resources: &resources, namespaces };
        let needed = Needed::of(name, &needs, &revision["status"]["plan"]["rights"]);
        self.check_names(&needed)?;
        Ok(needed)
    }

    /// Refuses names that are something else in YAML: teams and guests choose them, and whoever applies what is printed may
    /// do more than they.
    pub(super) fn check_names(&self, needed: &Needed) -> Result<()> {
        let account = self.account.to_string();
        let names = needed.account.iter().chain(&needed.host).flat_map(|right| {
            let Right { verb: _, group, resource, namespace, name } = right;
            [Some(group), Some(resource), namespace.as_ref(), name.as_ref()].into_iter().flatten()
        });
        let mut names = names.map(|name| &**name).chain([account.as_str()]);
        if let Some(name) = names.find(|name| !name.chars().all(is_plain)) {
            let (revision, name) = (&needed.revision, text::cut(name, text::NAME));
            bail!("the rights of {revision} name {name:?}, which is no name in Kubernetes");
        }
        Ok(())
    }

    /// What is applied: for the account, and for the host.
    fn yaml(&self, needed: &Needed) -> [String; 2] {
        [
            grant::rbac_for_account(&self.account, &needed.account),
            grant::rbac_for_impersonation(&self.account, &self.host, &needed.host),
        ]
    }

    /// The YAML, and as comments whom it is for and what `other` needs instead.
    pub(super) fn text(&self, needed: &Needed, other: Option<&Needed>) -> String {
        let Self { account, host, .. } = self;
        let [of_account, of_host] = self.yaml(needed);
        let revision = &needed.revision;
        let mut text = format!(
            "# What {revision} needs.\n# Its account, {account}:\n{of_account}---\n\
             # The host, {host}, to act as the account.\n\
             # A kind that it may not watch for all controllers takes list and watch besides: the revision's message says so.\n\
             {of_host}"
        );
        if let Some(other) = other {
            let (added, removed) = (besides(needed, other), besides(other, needed));
            if added.is_empty() && removed.is_empty() {
                text.push_str(&format!("# {} needs the same.\n", other.revision));
            }
            for (mark, rights, only) in [('+', added, revision), ('-', removed, &other.revision)] {
                for right in &rights {
                    text.push_str(&format!("# {mark} {}   (only {only})\n", said(right)));
                }
            }
        }
        if !needed.unused.is_empty() {
            let unused: Vec<_> = needed.unused.iter().map(String::as_str).collect();
            text.push_str(&format!("# not used in the plan: {}\n", unused.join(", ")));
        }
        text
    }

    /// The same for programs.
    pub(super) fn object(&self, needed: &Needed, other: Option<&Needed>) -> Value {
        let words = |rights: &BTreeSet<Right>| rights.iter().map(said).collect::<Vec<_>>();
        let (added, removed) =
            other.map(|other| (besides(needed, other), besides(other, needed))).unwrap_or_default();
        json!({
            "revision": needed.revision,
            "against": other.map(|other| &other.revision),
            "account": words(&needed.account),
            "host": words(&needed.host),
            "added": words(&added),
            "removed": words(&removed),
            "unused": needed.unused,
            "yaml": self.yaml(needed).join("---\n"),
        })
    }
}

impl Needed {
    /// What follows from `needs`; `plan`: the rights that the revision's plan has used, if it has one.
    pub(super) fn of(revision: &str, needs: &Needs<'_>, plan: &Value) -> Self {
        Self {
            revision: revision.to_owned(),
            account: needs.account(),
            host: needs.host(),
            // An apply is one request, a patch, whether or not the account needs `create` for it.
            unused: unused(&needs.writes(Whose::Host), plan),
        }
    }
}

/// What the revision `name` has declared, by its status.
fn manifest(name: &str, status: &Value) -> Result<Manifest> {
    let manifest = &status["manifest"];
    if manifest.is_null() {
        let told = status["message"].as_str().map(|text| format!(": {text}")).unwrap_or_default();
        bail!("{name} has not been described yet, so nobody knows what it needs{told}");
    }
    serde_json::from_value(manifest.clone()).with_context(|| {
        format!("cannot read the manifest of {name}; is this program as new as the host?")
    })
}

/// How each kind of the manifest is served, by group and kind.
pub(super) async fn served(
    cluster: &Cluster,
    manifest: &Manifest,
) -> Result<BTreeMap<(String, String), Resource>> {
    let kinds: BTreeSet<_> = manifest.kinds().collect();
    let mut resources = BTreeMap::new();
    for kind in kinds {
        let found = cluster.api().discover(kind).await;
        let found = found.with_context(|| format!("cannot ask how {kind} is served"))?;
        let resource = found.with_context(|| {
            format!(
                "the cluster does not serve {kind} in version {}; install its CustomResourceDefinition",
                kind.version
            )
        })?;
        resources.insert((kind.group.clone(), kind.kind.clone()), resource);
    }
    Ok(resources)
}

/// What `one` needs, and `other` does not. A right of the host is told where the account's is no news: of an apply the
/// account needs `create` and the host does not.
fn besides(one: &Needed, other: &Needed) -> BTreeSet<Right> {
    let mut rights: BTreeSet<Right> = one.account.difference(&other.account).cloned().collect();
    let of_host = one.host.difference(&other.host).filter(|right| !rights.contains(*right));
    let of_host: Vec<Right> = of_host.map(Right::impersonated).collect();
    rights.extend(of_host);
    rights
}

/// Those of `declared` that are not among the rights that a plan has used; none if there is no plan.
fn unused(declared: &BTreeSet<Right>, plan: &Value) -> BTreeSet<String> {
    let Some(used) = plan.as_array() else { return BTreeSet::new() };
    let used: BTreeSet<&str> = used.iter().filter_map(Value::as_str).collect();
    declared.iter().map(Right::plain).filter(|right| !used.contains(right.as_str())).collect()
}

/// The right in words, with the one object that it is of: two rights would look the same without.
fn said(right: &Right) -> String {
    match &right.name {
        Some(name) => format!("{right}, of {name} only"),
        None => right.to_string(),
    }
}

/// Whether a name of this character alone is the same in YAML.
fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "-._:/".contains(letter)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{super::edit::tests::seen, *};
    use crate::model::{
        crd::manifest_value,
        manifest::{
            Verb, Write,
            tests::{config_map, manifest as declared},
        },
    };

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn args(text: &str) -> Args {
        Command::parse_from(text.split_whitespace()).args
    }

    fn parties() -> Parties {
        Parties::of(&seen().controller, "demo", &user(HOST).unwrap())
    }

    /// What a manifest needs that is served as usual, in one namespace.
    fn of(revision: &str, manifest: &Manifest, plan: &Value) -> Needed {
        let kinds = [(manifest.primary.kind.clone(), "sites"), (config_map(), "configmaps")];
        let resources = BTreeMap::from(kinds.map(|(kind, plural)| {
            let key = (kind.group.clone(), kind.kind.clone());
            (key, Resource { kind, plural: plural.to_owned(), namespaced: true, has_status: true })
        }));
        let scope: [Arc<str>; 1] = ["demo".into()];
        let needs = Needs { manifest, resources: &resources, namespaces: Some(&scope[..]) };
        Needed::of(revision, &needs, plan)
    }

    /// The same of one that does this to ConfigMaps.
    fn doing(revision: &str, verbs: &[Verb]) -> Needed {
        let verbs = verbs.iter().copied().collect();
        let writes = vec![Write { kind: config_map(), verbs }];
        of(revision, &Manifest { writes, ..declared() }, &Value::Null)
    }

    /// The lines of `text` that begin with `mark`.
    fn marked<'a>(text: &'a str, mark: &str) -> Vec<&'a str> {
        text.lines().filter(|line| line.starts_with(mark)).collect()
    }

    #[test]
    fn what_is_printed_can_be_applied() {
        let parties = Parties {
            account: Identity::ServiceAccount { namespace: "demo".into(), name: "web".into() },
            ..parties()
        };
        let (new, old) = (doing("web-2", &[Verb::Apply, Verb::Delete]), doing("web-1", &[]));
        let text = parties.text(&new, Some(&old));
        assert!(text.starts_with("# What web-2 needs.\n"), "{text}");
        let bare: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let yaml = parties.yaml(&new).join("---\n");
        assert_eq!(bare, yaml.lines().collect::<Vec<_>>());
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let kinds: Vec<_> = documents.iter().filter_map(|one| one["kind"].as_str()).collect();
        assert_eq!(kinds, ["Role", "RoleBinding", "Role", "RoleBinding"], "{text}");
        assert_eq!(documents[1]["subjects"][0]["name"], "web");
        let host =
            json!({ "kind": "ServiceAccount", "name": "nagaya", "namespace": "nagaya-system" });
        assert_eq!(documents[3]["subjects"], json!([host]));
        let object = parties.object(&new, Some(&old));
        let same: Vec<Value> =
            serde_saphyr::from_multiple(object["yaml"].as_str().unwrap()).unwrap();
        assert_eq!(same, documents);
        assert_eq!((&object["revision"], &object["against"]), (&json!("web-2"), &json!("web-1")));
        assert_eq!(object["removed"], json!([]));
    }

    #[test]
    fn what_only_one_of_two_revisions_needs_is_told() {
        let parties = parties();
        let (new, old) =
            (doing("web-2", &[Verb::Apply, Verb::Delete]), doing("web-1", &[Verb::Apply]));
        let delete = "delete configmaps in namespace demo";
        let text = parties.text(&new, Some(&old));
        assert_eq!(marked(&text, "# + "), [format!("# + {delete}   (only web-2)")]);
        assert!(marked(&text, "# - ").is_empty(), "{text}");
        let text = parties.text(&old, Some(&new));
        assert_eq!(marked(&text, "# - "), [format!("# - {delete}   (only web-2)")]);
        assert!(marked(&text, "# + ").is_empty(), "{text}");
        assert_eq!(parties.object(&new, Some(&old))["added"], json!([delete]));
        assert!(parties.text(&new, Some(&new)).ends_with("# web-2 needs the same.\n"));
        let alone = parties.text(&new, None);
        assert!(marked(&alone, "# + ").is_empty() && !alone.contains("the same"), "{alone}");
        // The account needs for two requests what it needs for one apply, and the host does not.
        let by_hand = doing("web-3", &[Verb::Create, Verb::Patch]);
        let words: Vec<_> = besides(&by_hand, &old).iter().map(said).collect();
        assert_eq!(words, ["impersonate-on:serviceaccount:create configmaps in namespace demo"]);
        assert!(besides(&old, &by_hand).is_empty());
    }

    #[test]
    fn a_right_on_one_object_is_told_from_one_on_all() {
        let mut manifest = declared();
        manifest.owned[0].field_selector = Some("metadata.name=settings".into());
        let words: Vec<_> = of("web-1", &manifest, &Value::Null).account.iter().map(said).collect();
        let expected = "watch configmaps in namespace demo, of settings only".to_owned();
        assert!(words.contains(&expected), "{words:?}");
    }

    #[test]
    fn a_name_that_yaml_would_read_otherwise_is_refused() {
        let parties = parties();
        let mut manifest = declared();
        for (name, fits) in [
            ("settings", true),
            ("system:node-1.a_b", true),
            ("x] }\n---\nkind: ClusterRole", false),
            ("a,b", false),
            ("a #b", false),
        ] {
            manifest.owned[0].field_selector = Some(format!("metadata.name={name}"));
            let checked = parties.check_names(&of("web-1", &manifest, &Value::Null));
            assert_eq!(checked.is_ok(), fits, "{name:?}: {checked:?}");
        }
        let mut controller = seen().controller;
        controller.spec.service_account_name = "a\nb".into();
        let odd = Parties::of(&controller, "demo", HOST);
        let error = odd.check_names(&doing("web-1", &[])).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn the_candidate_is_compared_with_what_is_live() {
        let status = seen().status();
        let (active, candidate) =
            (status.active.clone().unwrap(), status.candidate.clone().unwrap());
        let pair = |shown: &str, other: Option<&str>| (shown.to_owned(), other.map(str::to_owned));
        let chosen = |text: &str| chosen(&args(text), &status).unwrap();
        assert_eq!(chosen("x web"), pair(&candidate, Some(active.as_str())));
        assert_eq!(chosen("x web --revision web-x"), pair("web-x", Some(active.as_str())));
        assert_eq!(chosen(&format!("x web --revision {active}")), pair(&active, None));
        assert_eq!(chosen("x web --against web-x"), pair(&candidate, Some("web-x")));
        let fresh = WasmControllerStatus::default();
        assert!(super::chosen(&args("x web"), &fresh).is_err());
        let only = WasmControllerStatus { active: Some(active.clone()), ..fresh };
        assert_eq!(super::chosen(&args("x web"), &only).unwrap(), pair(&active, None));
    }

    #[test]
    fn the_account_of_the_host_has_a_namespace() {
        assert_eq!(args("x web").host_account, "system:serviceaccount:nagaya-system:nagaya");
        assert_eq!(user("a/b").unwrap(), "system:serviceaccount:a:b");
        for bad in ["", "a", "/a", "a/", "a/b/c", "a/b c"] {
            assert!(user(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_revision_without_a_manifest_says_why() {
        let status = json!({ "message": "the host has no component" });
        let error = manifest("web-1", &status).unwrap_err().to_string();
        assert!(error.contains("not been described yet"), "{error}");
        assert!(error.ends_with(": the host has no component"), "{error}");
        assert!(manifest("web-1", &Value::Null).is_err());
        assert!(manifest("web-1", &json!({ "manifest": { "primary": 1 } })).is_err());
        let status = json!({ "manifest": manifest_value(&declared()) });
        assert_eq!(manifest("web-1", &status).unwrap(), declared());
    }

    #[test]
    fn what_a_plan_has_not_used_is_told_if_there_is_a_plan() {
        let kind = config_map();
        let mut manifest = declared();
        manifest.finalizer = Some("example.com/cleanup".into());
        manifest.writes.push(Write { kind, verbs: [Verb::Delete, Verb::ApplyStatus].into() });
        let unused = |plan: Value| Vec::from_iter(of("web-1", &manifest, &plan).unused);
        assert!(unused(Value::Null).is_empty());
        assert!(unused(json!("delete configmaps")).is_empty());
        let plan = json!(["patch configmaps", "patch configmaps/status", 7, "get secrets"]);
        assert_eq!(unused(plan), ["delete configmaps", "patch sites.example.com"]);
        let status = Right {
            verb: "patch".into(),
            group: "example.com".into(),
            resource: "sites/status".into(),
            namespace: None,
            name: None,
        };
        assert_eq!(status.plain(), "patch sites.example.com/status");
    }
}
