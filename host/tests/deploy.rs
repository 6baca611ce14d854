//! `deploy/` is what the project says it is: every file parses, and the host's own rights are the least.

#![cfg(test)] // Tells clippy that helpers are test code too.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

const WRITES: [&str; 6] =
    ["create", "update", "patch", "delete", "deletecollection", "impersonate"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Every document of every YAML file, with the file's name. What is in `chart/` are templates.
fn documents() -> Vec<(String, Value)> {
    let mut documents = vec![];
    let mut folders = vec![folder()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend((!path.ends_with("chart")).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                let text = fs::read_to_string(&path).unwrap();
                let name = path.strip_prefix(self::folder()).unwrap().display().to_string();
                let parsed: Vec<Value> = serde_saphyr::from_multiple(&text)
                    .unwrap_or_else(|error| panic!("deploy/{name}: {error}"));
                documents.extend(parsed.into_iter().map(|document| (name.clone(), document)));
            }
        }
    }
    documents
}

fn named(documents: &[(String, Value)], kind: &str, name: &str) -> Value {
    let found = documents
        .iter()
        .find(|(_, object)| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name} in deploy/")).1.clone()
}

fn texts(list: &Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// An aggregated role has none of its own.
fn rules(role: &Value) -> Vec<Value> {
    if role["aggregationRule"].is_object() {
        vec![]
    } else {
        role["rules"].as_array().unwrap().clone()
    }
}

fn full_name(kind: &Value, name: &Value) -> String {
    format!("{}/{}", kind.as_str().unwrap(), name.as_str().unwrap())
}

fn is_shared(role: &Value) -> bool {
    role["metadata"]["labels"]["nagaya.dev/watch"] == "true"
}

/// A role that every API server has and no file.
const OF_THE_SERVER: &str = "Role/extension-apiserver-authentication-reader";

/// The roles whose rules the host's account holds, as `kind/name`, of every file: bound ones, and those that
/// are aggregated into a bound one.
fn roles_of_the_host(documents: &[(String, Value)]) -> Vec<(String, Value)> {
    let account =
        |subject: &Value| subject["name"] == "nagaya" && subject["namespace"] == "nagaya-system";
    let bound: BTreeSet<_> = documents
        .iter()
        .map(|(_, object)| object)
        .filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("RoleBinding")))
        .filter(|binding| binding["subjects"].as_array().unwrap().iter().any(account))
        .map(|binding| full_name(&binding["roleRef"]["kind"], &binding["roleRef"]["name"]))
        .collect();
    let roles: Vec<_> = documents
        .iter()
        .map(|(_, object)| object)
        .filter(|object| matches!(object["kind"].as_str(), Some("Role" | "ClusterRole")))
        .map(|role| (full_name(&role["kind"], &role["metadata"]["name"]), role.clone()))
        .filter(|(name, role)| bound.contains(name) || is_shared(role))
        .collect();
    assert!(
        bound
            .iter()
            .all(|name| name == OF_THE_SERVER || roles.iter().any(|(role, _)| role == name)),
        "a binding names no role: {bound:?}"
    );
    roles
}

#[test]
fn every_file_of_deploy_is_made_of_whole_objects() {
    let documents = documents();
    let files: BTreeSet<_> = documents.iter().map(|(file, _)| file.as_str()).collect();
    let expected = [
        "crd/nagaya.dev_wasmcontrollers.yaml",
        "crd/nagaya.dev_wasmrevisions.yaml",
        "install.yaml",
        "namespace.yaml",
        "rbac.yaml",
    ];
    assert_eq!(files, BTreeSet::from(expected));
    for (file, object) in &documents {
        for field in [&object["apiVersion"], &object["kind"], &object["metadata"]["name"]] {
            assert!(field.is_string(), "{file}: {object}");
        }
    }
}

#[test]
fn the_host_reads_no_secret_but_its_own_and_has_no_wildcard() {
    let roles = roles_of_the_host(&documents());
    let names: BTreeSet<_> = roles.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "ClusterRole/nagaya-api",
        "ClusterRole/nagaya-host",
        "ClusterRole/nagaya-watch",
        "ClusterRole/nagaya-watch-builtin",
        "Role/nagaya-api",
        "Role/nagaya-lease",
    ];
    assert_eq!(names, BTreeSet::from(expected));
    for (name, role) in roles {
        for rule in rules(&role) {
            for part in ["apiGroups", "resources", "verbs"] {
                let parts = texts(&rule[part]);
                assert!(!parts.iter().any(|part| part.contains('*')), "{name}: {rule}");
                let secrets = parts.iter().any(|part| part.starts_with("secrets"));
                assert!(
                    !secrets || (&*name, &rule) == ("Role/nagaya-api", &own_secret()),
                    "{name}: {rule}"
                );
            }
        }
    }
}

/// The certificate of its API, in its own namespace: no list, no watch, no other name.
fn own_secret() -> Value {
    json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["nagaya-api"], "verbs": ["get", "update"]})
}

/// For the authority of that certificate, which the API server knows the host by.
fn own_api_service() -> Value {
    json!({
        "apiGroups": ["apiregistration.k8s.io"], "resources": ["apiservices"],
        "resourceNames": ["v1alpha1.run.nagaya.dev"], "verbs": ["get", "patch"],
    })
}

#[test]
fn the_host_writes_nothing_but_its_own_kinds_lease_and_api_events_and_reviews() {
    for (name, role) in roles_of_the_host(&documents()) {
        for rule in rules(&role) {
            let verbs = texts(&rule["verbs"]);
            let writes: Vec<_> =
                verbs.iter().filter(|verb| WRITES.contains(&verb.as_str())).collect();
            if writes.is_empty() {
                continue;
            }
            let group = rule["apiGroups"][0].as_str().unwrap();
            assert_eq!(rule["apiGroups"].as_array().unwrap().len(), 1, "{name}: {rule}");
            let create_only = writes == ["create"];
            let allowed = match group {
                "nagaya.dev" => true,
                // In its own namespace only, to decide which host works.
                "coordination.k8s.io" => name == "Role/nagaya-lease",
                "" => name == "Role/nagaya-api" && rule == own_secret(),
                "apiregistration.k8s.io" => rule == own_api_service(),
                // An event that comes again is counted in its series.
                "events.k8s.io" => writes == ["create", "patch"],
                "authorization.k8s.io" => create_only,
                "authentication.k8s.io" => create_only && texts(&rule["resources"]).len() == 1,
                _ => false,
            };
            assert!(allowed && !is_shared(&role), "{name}: {rule}");
        }
    }
}

#[test]
fn shared_kinds_are_only_read_and_end_up_in_the_watch_role() {
    let documents = documents();
    let selector = &named(&documents, "ClusterRole", "nagaya-watch")["aggregationRule"]["clusterRoleSelectors"];
    assert_eq!(selector[0]["matchLabels"]["nagaya.dev/watch"], "true");
    let shared = named(&documents, "ClusterRole", "nagaya-watch-builtin");
    assert!(is_shared(&shared));
    for rule in shared["rules"].as_array().unwrap() {
        assert_eq!(
            texts(&rule["verbs"]),
            ["get", "list", "watch"].map(str::to_owned).into(),
            "{rule}"
        );
        assert!(!texts(&rule["resources"]).contains("pods"), "{rule}");
    }
}

/// An admin of a namespace may grant what constrained impersonation needs, and that role alone may say `*`.
#[test]
fn only_the_grantable_verbs_reach_every_kind() {
    let documents = documents();
    let roles = documents.iter().filter(|(_, object)| object["kind"] == "ClusterRole");
    for (_, role) in roles {
        let text = role["rules"].to_string();
        assert_eq!(text.contains("\"*\""), role["metadata"]["name"] == "nagaya-grant", "{role}");
    }
    let grant = named(&documents, "ClusterRole", "nagaya-grant");
    let labels = &grant["metadata"]["labels"];
    assert_eq!(labels["rbac.authorization.k8s.io/aggregate-to-admin"], "true");
    for rule in grant["rules"].as_array().unwrap() {
        let constrained = |verb: &String| {
            verb == "impersonate:serviceaccount"
                || verb.starts_with("impersonate-on:serviceaccount:")
        };
        assert!(texts(&rule["verbs"]).iter().all(constrained), "{rule}");
    }
}

#[test]
fn the_hosts_pod_is_restricted() {
    let documents = documents();
    let namespace = named(&documents, "Namespace", "nagaya-system");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    let deployment = named(&documents, "Deployment", "nagaya");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "nagaya");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL".to_owned()].into());
}

/// A Service, a disruption budget or a policy that finds no pod, or no port of it, says nothing.
#[test]
fn whatever_selects_the_hosts_pods_finds_them_and_their_ports() {
    let documents = documents();
    let template = named(&documents, "Deployment", "nagaya")["spec"]["template"].clone();
    let labels = template["metadata"]["labels"].as_object().unwrap();
    let ports = template["spec"]["containers"][0]["ports"].as_array().unwrap();
    let ports: BTreeSet<_> = ports.iter().map(|port| port["name"].as_str().unwrap()).collect();
    let selectors = [
        ("Deployment", "nagaya", "/spec/selector/matchLabels"),
        ("Service", "nagaya", "/spec/selector"),
        ("Service", "nagaya-api", "/spec/selector"),
        ("NetworkPolicy", "nagaya", "/spec/podSelector/matchLabels"),
        ("PodDisruptionBudget", "nagaya", "/spec/selector/matchLabels"),
    ];
    for (kind, name, path) in selectors {
        let object = named(&documents, kind, name);
        let selector = object.pointer(path).and_then(Value::as_object).unwrap();
        assert!(!selector.is_empty(), "{kind} {name}");
        for (label, value) in selector {
            assert_eq!(labels.get(label), Some(value), "{kind} {name}");
        }
        let open = object["spec"]["ingress"].as_array().into_iter().flatten();
        let open =
            open.flat_map(|rule| rule["ports"].as_array().unwrap()).map(|port| &port["port"]);
        let served = object["spec"]["ports"].as_array().into_iter().flatten();
        for port in open.chain(served.map(|port| &port["targetPort"])) {
            assert!(ports.contains(port.as_str().unwrap()), "{kind} {name}: {port}");
        }
    }
}

/// With `--help` behind them the arguments are parsed, and nothing is started.
#[test]
fn the_host_understands_its_arguments_and_variables() {
    let parse = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nagaya"));
        command.args(arguments).arg("--help").output().unwrap()
    };
    let deployment = named(&documents(), "Deployment", "nagaya");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let arguments = container["args"].as_array().unwrap();
    let mut arguments: Vec<_> = arguments.iter().map(|text| text.as_str().unwrap()).collect();
    let understood = parse(&arguments);
    assert!(understood.status.success(), "{}", String::from_utf8_lossy(&understood.stderr));
    let help = String::from_utf8_lossy(&understood.stdout);
    for variable in container["env"].as_array().unwrap() {
        assert!(help.contains(&format!("[env: {}=", variable["name"].as_str().unwrap())), "{help}");
    }
    for wrong in ["--no-such-flag", "--lease-profile=slow"] {
        arguments.push(wrong);
        assert!(!parse(&arguments).status.success(), "{wrong} is not refused");
        arguments.pop();
    }
}

/// The grants of the examples name the account that deploy/ makes.
#[test]
fn every_example_grants_to_the_hosts_account() {
    named(&documents(), "ServiceAccount", "nagaya");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut grants = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let file = entry.unwrap().path().join("rbac.yaml");
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for object in objects {
            let role = object["roleRef"]["name"].as_str().unwrap_or_default();
            if role.starts_with("nagaya-") {
                let subject = &object["subjects"][0];
                assert_eq!(subject["name"], "nagaya", "{}", file.display());
                assert_eq!(subject["namespace"], "nagaya-system", "{}", file.display());
                grants += 1;
            }
        }
    }
    assert!(grants > 0, "the examples grant nothing");
}
