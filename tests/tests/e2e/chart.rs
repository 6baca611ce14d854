//! What `deploy/chart` makes of its values.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::{Context, Result, ensure};
use e2e::component;
use e2e::helm::Helm;
use e2e::manifest::root;
use nagaya::modules::{oci, policy::Policy};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

/// Objects by kind and name.
pub(crate) type Objects = BTreeMap<String, Value>;

/// What the chart makes, whole and each once.
pub(crate) fn rendered(helm: &Helm, arguments: &[&str]) -> Result<Objects> {
    named_so(helm, "nagaya", &[&["deploy/chart", "-n", "nagaya-system"], arguments].concat())
}

fn named_so(helm: &Helm, release: &str, arguments: &[&str]) -> Result<Objects> {
    let text = helm.run(&[&["template", release], arguments].concat())?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).context("reading the objects")?;
    let mut objects = Objects::new();
    for object in documents.into_iter().filter(|object| !object.is_null()) {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let (kind, name) = kind.zip(name).with_context(|| format!("no name: {object}"))?;
        ensure!(text("/apiVersion").is_some(), "no version: {object}");
        // A binding of the same name lies in the namespace of the server, too.
        let place = match text("/metadata/namespace") {
            Some("kube-system") => "kube-system/",
            _ => "",
        };
        let twice = objects.insert(format!("{kind}/{place}{name}"), object.clone());
        ensure!(twice.is_none(), "twice: {kind} {name}");
    }
    Ok(objects)
}

/// A file with these values; JSON is YAML.
pub(crate) fn file(values: &Value) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::with_suffix(".yaml").context("creating a file")?;
    file.write_all(values.to_string().as_bytes()).context("writing values")?;
    Ok(file)
}

/// Nearly every value, another than the default.
pub(crate) fn everything() -> Value {
    json!({
        "image": {"repository": "r.example.com:5000/nagaya", "digest": format!("sha256:{}", "a".repeat(64))},
        "imagePullSecrets": [{"name": "login"}],
        "replicas": 3,
        "persistence": {"enabled": true, "accessMode": "ReadWriteMany", "size": "5Gi", "storageClass": "fast"},
        "serviceAccount": {"annotations": {"x": "y"}},
        "controllers": "team in (a,b)",
        "leaderElection": {"lease": "other/nagaya", "profile": "fast"},
        "registries": {
            "entries": [
                {"name": "ghcr.io", "mirror": "mirror.example.com/ghcr"},
                {"name": "local:5000", "plainHttp": true},
                {"name": "harbor.example.com", "ca": "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"},
            ],
            "onlyListed": true,
        },
        "policy": {
            "signers": {"release": include_str!("../../../host/tests/vectors/cosign.pub")},
            "rules": [{"namespaces": ["*"], "signedBy": ["release"]}],
        },
        "admission": {"rules": [{
            "name": "prod",
            "namespaces": ["shop"],
            "ship": {"groups": ["release"]},
            "promote": {"users": ["ann"], "groups": ["oncall"]},
            "images": ["ghcr.io/acme/"],
        }]},
        "logFormat": "text",
        "logFilter": "info,nagaya::watch=debug",
        "extraArgs": ["--slots=128"],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "x"},
        "priorityClassName": "high",
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [],
        "networkPolicy": {
            "uploadsFrom": [{"namespaceSelector": {}}],
            "metricsFrom": [{"podSelector": {"matchLabels": {"a": "b"}}}],
        },
        "metrics": {
            "serviceMonitor": {"enabled": true, "labels": {"release": "prom"}},
            "prometheusRule": {"enabled": true, "labels": {"release": "prom"}},
            "dashboard": {"enabled": true},
        },
    })
}

const HOST: &str = "Deployment/nagaya";
const POD: &str = "/spec/template/spec";
const KEPT: &str = "/metadata/annotations/helm.sh~1resource-policy";
const CRD: &str = "CustomResourceDefinition/wasmcontrollers.nagaya.dev";

/// What is at a place of an object: `null` if nothing is, and `""` is the whole object.
type Seen = (&'static str, String, Value);

/// Values, and what the chart makes of them.
#[expect(clippy::too_many_lines, reason = "a table")]
fn combinations() -> Vec<(&'static str, Vec<Seen>)> {
    let at = |object, path: &str, value| (object, path.to_owned(), value);
    let pod = |path: &str, value| (HOST, format!("{POD}{path}"), value);
    let none = |object| (object, String::new(), Value::Null);
    vec![
        (
            "replicas=2",
            vec![
                at(CRD, KEPT, json!("keep")),
                at(HOST, "/spec/strategy/rollingUpdate/maxUnavailable", json!(0)),
                at("Secret/nagaya-api", "/data", Value::Null),
                at("APIService/v1alpha1.run.nagaya.dev", "/spec/caBundle", Value::Null),
                none("ConfigMap/nagaya"),
                none("PersistentVolumeClaim/nagaya"),
            ],
        ),
        (
            "api.aggregated=false",
            vec![
                none("APIService/v1alpha1.run.nagaya.dev"),
                none("Service/nagaya-api"),
                none("Secret/nagaya-api"),
                none("ClusterRole/nagaya-api"),
                none("Role/nagaya-api"),
                none("RoleBinding/kube-system/nagaya-api"),
                pod("/containers/0/args/5", json!("--lease-profile=standard")),
                pod("/containers/0/env", Value::Null),
                pod("/containers/0/ports/1/name", json!("probes")),
            ],
        ),
        (
            "persistence.enabled=true,replicas=1,persistence.storageClass=fast",
            vec![
                at(HOST, "/spec/strategy", json!({"type": "Recreate"})),
                at("PersistentVolumeClaim/nagaya", "/spec/storageClassName", json!("fast")),
                pod("/topologySpreadConstraints", Value::Null),
                none("PodDisruptionBudget/nagaya"),
            ],
        ),
        (
            "persistence.enabled=true,persistence.accessMode=ReadWriteMany,persistence.existingClaim=mine",
            vec![
                at(HOST, "/spec/strategy/type", json!("RollingUpdate")),
                pod("/volumes/0/persistentVolumeClaim/claimName", json!("mine")),
                none("PersistentVolumeClaim/nagaya"),
            ],
        ),
        (
            "crds.keep=false",
            vec![at(CRD, KEPT, Value::Null), at(CRD, "/spec/group", json!("nagaya.dev"))],
        ),
        ("crds.enabled=false", vec![none(CRD)]),
        (
            "serviceAccount.create=false,serviceAccount.name=mine,rbac.aggregateRoles=false,watch.builtin=false",
            vec![
                none("ServiceAccount/nagaya"),
                pod("/serviceAccountName", json!("mine")),
                at("RoleBinding/kube-system/nagaya-api", "/subjects/0/name", json!("mine")),
                at(
                    "ClusterRole/nagaya-view",
                    "/metadata/labels/rbac.authorization.k8s.io~1aggregate-to-view",
                    Value::Null,
                ),
                none("ClusterRole/nagaya-watch-builtin"),
            ],
        ),
        (
            "networkPolicy.enabled=false,podDisruptionBudget.enabled=false,replicas=0,resources=null",
            vec![
                at(HOST, "/spec/replicas", json!(0)),
                pod("/containers/0/resources", Value::Null),
                none("NetworkPolicy/nagaya"),
                none("PodDisruptionBudget/nagaya"),
            ],
        ),
        (
            "podSecurityContext.runAsUser=null,podSecurityContext.fsGroup=null",
            vec![
                pod("/securityContext/runAsUser", Value::Null),
                pod("/securityContext/fsGroup", Value::Null),
                pod("/securityContext/runAsNonRoot", json!(true)),
            ],
        ),
        (
            "fullnameOverride=foo",
            vec![
                at(
                    "Deployment/foo",
                    "/spec/selector/matchLabels/app.kubernetes.io~1name",
                    json!("foo"),
                ),
                at("Service/foo-api", "/spec/selector/app.kubernetes.io~1name", json!("foo")),
                none(HOST),
            ],
        ),
    ]
}

/// Arguments, and what the refusal says.
const REFUSED: [(&[&str], &str); 17] = [
    (&["--set", "persistence.enabled=true"], "set replicas to 1, or accessMode to ReadWriteMany"),
    (&["--set", "serviceAccount.create=false"], "name the account that the host runs as"),
    (&["--set", "replicas=two"], "'/replicas': got string, want integer"),
    (&["--set", "replica=3"], "additional properties 'replica' not allowed"),
    (&["--set", "api.agregated=false"], "additional properties 'agregated' not allowed"),
    (&["--set", "image.digest=sha256:abc"], "'/image/digest'"),
    (&["--set", "image.repository=a@b"], "'/image/repository'"),
    (&["--set", "persistence.accessMode=RWX"], "'ReadWriteOncePod', 'ReadWriteMany'"),
    (&["--set", "persistence.size=2GB"], "'/persistence/size': '2GB'"),
    (&["--set", "leaderElection.profile=slow"], "'standard', 'fast'"),
    (&["--set", "logFormat=yaml"], "'text', 'json'"),
    (&["--set", "registries.entries[0].mirror=x"], "missing property 'name'"),
    (&["--set", "extraArgs[0]=slots"], "'/extraArgs/0'"),
    (&["--set", "metrics.serviceMonitor.interval=30"], "'/metrics/serviceMonitor/interval'"),
    (&["--set", "fullnameOverride=Nagaya"], "'/fullnameOverride'"),
    (&["--set-string", "crds.enabled=no"], "'/crds/enabled': got string, want boolean"),
    (&["--kube-version", "1.27.0"], "requires kubeVersion: >=1.28.0-0"),
];

#[test]
fn the_rendered_files_are_what_the_chart_makes() -> Result<()> {
    for (name, text) in Helm::find()?.rendered()? {
        let file = std::fs::read_to_string(root().join("deploy").join(name))?;
        assert_eq!(file, text, "deploy/{name}: run `cargo xtask chart`");
    }
    Ok(())
}

#[test]
fn the_chart_is_one_that_helm_has_nothing_to_say_about() -> Result<()> {
    let values = file(&everything())?;
    let values = values.path().to_str().context("a path")?;
    Helm::find()?.run(&["lint", "--strict", "deploy/chart"])?;
    Helm::find()?.run(&["lint", "--strict", "deploy/chart", "--values", values]).map(drop)
}

#[test]
fn a_packed_chart_makes_what_its_folder_makes() -> Result<()> {
    let helm = Helm::find()?;
    let folder = tempfile::tempdir()?;
    let place = folder.path().to_str().context("a path")?;
    helm.run(&["package", "deploy/chart", "--destination", place])?;
    let archives: Vec<_> = std::fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
    assert_eq!(archives.len(), 1);
    let archive = archives[0].path();
    let archive = archive.to_str().context("a path")?;
    let packed = named_so(&helm, "nagaya", &[archive, "-n", "nagaya-system"])?;
    assert!(packed.contains_key(CRD), "its link to deploy/crd was not followed");
    assert_eq!(packed, rendered(&helm, &[])?);
    Ok(())
}

#[test]
fn each_value_does_what_it_says() -> Result<()> {
    let helm = Helm::find()?;
    for (values, expected) in combinations() {
        let objects = rendered(&helm, &["--set", values])?;
        for (object, path, value) in expected {
            let seen = objects.get(object).and_then(|object| object.pointer(&path));
            assert_eq!(seen.unwrap_or(&Value::Null), &value, "{values}: {object} {path}");
        }
    }
    Ok(())
}

#[test]
fn another_release_shares_no_name_with_the_first() -> Result<()> {
    let helm = Helm::find()?;
    let first: BTreeSet<_> = rendered(&helm, &[])?.into_keys().collect();
    let values = "crds.enabled=false,api.aggregated=false";
    let other = named_so(&helm, "blue", &["deploy/chart", "-n", "x", "--set", values])?;
    for (name, object) in &other {
        assert!(!first.contains(name) && name.contains("/blue-nagaya"), "{name}");
        let namespace = object["metadata"]["namespace"].as_str();
        assert!(namespace.is_none_or(|namespace| namespace == "x"), "{name}: {namespace:?}");
    }
    Ok(())
}

#[test]
fn a_value_that_means_nothing_is_refused() -> Result<()> {
    let helm = Helm::find()?;
    for (arguments, text) in REFUSED {
        let error = rendered(&helm, arguments).map(drop).expect_err(arguments[1]);
        assert!(format!("{error:#}").contains(text), "{arguments:?}: {error:#}");
    }
    Ok(())
}

#[tokio::test]
async fn the_host_understands_all_that_the_chart_hands_it() -> Result<()> {
    let helm = tokio::task::spawn_blocking(Helm::find).await??;
    let values = everything();
    let file = file(&values)?;
    let objects = rendered(&helm, &["--values", file.path().to_str().context("a path")?])?;

    let files = &objects["ConfigMap/nagaya"]["data"];
    let registries = files["registries.yaml"].as_str().context("no registries")?;
    let registries: oci::Settings = serde_saphyr::from_str(registries)?;
    let entries = &values["registries"]["entries"];
    let wanted = json!({"registries": entries, "onlyListed": true});
    assert_eq!(registries, serde_json::from_value(wanted)?);
    let policy = files["policy.yaml"].as_str().context("no policy")?;
    serde_saphyr::from_str::<Policy>(policy)?;

    let template = &objects[HOST]["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    let image = format!("r.example.com:5000/nagaya@sha256:{}", "a".repeat(64));
    assert_eq!(container["image"], image);
    assert_eq!(template["metadata"]["labels"]["team"], "x");
    // Whoever changes a file wants it read.
    assert!(template["metadata"]["annotations"]["checksum/files"].is_string(), "{template}");
    let text = objects["ConfigMap/nagaya-dashboard"]["data"]["nagaya.json"].as_str();
    serde_json::from_str::<Value>(text.context("no dashboard")?)?;

    // With `--help` behind them arguments are parsed, and nothing is started.
    let arguments = container["args"].as_array().context("no arguments")?;
    let arguments = arguments.iter().filter_map(Value::as_str);
    let mut command = tokio::process::Command::new(component::binary().await?);
    let output = command.args(arguments).arg("--help").output().await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{error}");
    Ok(())
}
