//! The host's own API behind the API server: who is let in, what a standby does, and what hangs while nobody answers.
//!
//! Each test has a server of its own: an `APIService` is the whole cluster's.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::account::GUEST_RULES;
use e2e::cli::Cli;
use e2e::component::Component;
use e2e::controller::{Controller, NO_DIGEST};
use e2e::host::{self, Host};
use e2e::own_api;
use e2e::rights;
use e2e::wait::within;
use e2e::{Test, control_plane, test_alone};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use nagaya::model::crd::revision_name;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

const LIMIT: Duration = Duration::from_secs(60);
/// The host looks after what its API rests on once a minute.
const PUT_RIGHT: Duration = Duration::from_secs(90);

fn with_controller_manager() -> control_plane::Options {
    control_plane::Options { controller_manager: true, ..Default::default() }
}

/// Begins the test's host anew with its API, and makes the API server pass on to it.
async fn serve(test: &mut Test) -> Result<()> {
    test.host.stop().await?;
    test.start_host_as(own_api::serving(test.options())).await?;
    own_api::pass_on_to(&test.admin, &test.host).await
}

/// A person: an account of the namespace, bound to a role in some namespace.
async fn person(test: &Test, name: &str, bound: Option<(&str, &str)>) -> Result<Cli> {
    let namespace = test.namespace.as_str();
    let mut objects = vec![json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    })];
    if let Some((role, place)) = bound {
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": format!("{name}-{role}"), "namespace": place},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }));
    }
    test.apply(&objects).await?;
    let token = host::token_of(&test.control_plane, (namespace, name)).await?;
    let kubeconfig = test.control_plane.kubeconfig_with_token(name, &token)?;
    Ok(Cli { kubeconfig, host: String::new() })
}

/// What a command said, and whether it went well.
async fn said(cli: &Cli, arguments: &[&str]) -> Result<(bool, String)> {
    let output = cli.output(arguments).await?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

fn saved(test: &Test, component: &Component) -> Result<String> {
    let file = test.folder().join("component.wasm");
    fs::write(&file, &component.bytes)?;
    Ok(file.display().to_string())
}

/// `nagaya logs -f`, and what it prints.
struct Following {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Following {
    async fn start(cli: &Cli, arguments: &[&str]) -> Result<Self> {
        let mut child = cli.command(arguments).await?.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Self { _child: child, lines })
    }

    /// The next line of this object; what else there is is passed over.
    async fn of(&mut self, object: &str) -> Result<Value> {
        let found = async {
            while let Some(line) = self.lines.next_line().await? {
                let line: Value = serde_json::from_str(&line)?;
                if line["object"].as_str().is_some_and(|name| name.ends_with(object)) {
                    return Ok(line);
                }
            }
            anyhow::bail!("the log ended")
        };
        tokio::time::timeout(LIMIT, found).await.with_context(|| format!("no line of {object}"))?
    }
}

#[test]
fn the_api_lets_in_whom_the_cluster_lets_in() -> Result<()> {
    test_alone(with_controller_manager(), async |test, _| {
        serve(test).await?;
        let namespace = test.namespace.clone();
        let elsewhere = test.another_namespace(&[]).await?;
        let editor = person(test, "editor", Some(("edit", &namespace))).await?;
        let viewer = person(test, "viewer", Some(("view", &namespace))).await?;
        let other = person(test, "other", Some(("admin", &elsewhere))).await?;
        let nobody = person(test, "nobody", None).await?;
        let component = Component::load("hostile")?;
        let file = saved(test, &component)?;
        let config = json!({"reconcile": "log-flood:2"});
        let hostile = test.guest("hostile", GUEST_RULES, json!({"config": config})).await?;

        let push = ["push", "hostile", &file, "-n", &namespace, "--timeout", "60s"];
        let get = ["get", "hostile", "-n", &namespace];
        let logs = ["logs", "hostile", "-n", &namespace, "-o", "json"];
        for (who, cli) in [("viewer", &viewer), ("other", &other), ("nobody", &nobody)] {
            let (went_well, text) = said(cli, &push).await?;
            ensure!(!went_well && text.contains("403"), "{who} pushes: {text}");
        }
        let (went_well, text) = said(&editor, &push).await?;
        ensure!(went_well && text.contains("live:"), "the editor cannot push: {text}");
        let revision = revision_name("hostile", &component.digest, Some(&config));
        hostile.active(&revision).await?;
        // As docs/provider.md says it for those without the command line.
        let path = format!(
            "/apis/run.nagaya.dev/v1alpha1/namespaces/{namespace}/modules/{}",
            component.digest
        );
        let kubectl = tokio::process::Command::new("kubectl")
            .args(["replace", "--raw", &path, "-f", &file])
            .env("KUBECONFIG", &editor.kubeconfig)
            .output()
            .await?;
        ensure!(kubectl.status.success(), "{}", String::from_utf8_lossy(&kubectl.stderr));

        test.website("shop", "A").await?;
        let mut following = Following::start(&editor, &[&logs[..], &["-f"]].concat()).await?;
        let line = following.of("/shop").await?;
        ensure!(line["revision"] == *revision && line["source"] == "guest", "{line}");
        for (who, cli, may) in [
            ("editor", &editor, true),
            ("viewer", &viewer, true),
            ("other", &other, false),
            ("nobody", &nobody, false),
        ] {
            for command in [&get[..], &logs[..]] {
                let (went_well, text) = said(cli, command).await?;
                ensure!(went_well == may, "{who} runs {command:?}: {text}");
                ensure!(may || text.contains("403"), "{who} runs {command:?}: {text}");
            }
        }
        what_is_asked_for_is_shown(&viewer, &namespace).await?;
        a_right_on_the_api_alone_shows_nothing(test, &nobody).await?;
        the_port_takes_nothing_without_the_front_proxy(test, &component).await?;
        only_what_the_namespace_names_is_taken(test, &elsewhere, &component).await
    })
}

/// The live state, and lines by object, level and revision.
async fn what_is_asked_for_is_shown(viewer: &Cli, namespace: &str) -> Result<()> {
    let get = ["get", "hostile", "-n", namespace];
    let logs = ["logs", "hostile", "-n", namespace, "-o", "json"];
    let (_, text) = said(viewer, &get).await?;
    ensure!(text.contains("queue  ") && text.contains(" objects"), "no live state: {text}");
    for (asked, expected) in [
        (vec!["--object", "shop", "--tail", "1"], 1),
        (vec!["--object", "another"], 0),
        (vec!["--level", "error"], 0),
        (vec!["--revision", "another"], 0),
    ] {
        let output = viewer.output(&[&logs[..], &asked].concat()).await?;
        let count = String::from_utf8_lossy(&output.stdout).lines().count();
        ensure!(count == expected, "{asked:?}: {count} lines");
    }
    Ok(())
}

/// Nor does a right on the API alone show anything of a controller that one may not read.
async fn a_right_on_the_api_alone_shows_nothing(test: &Test, nobody: &Cli) -> Result<()> {
    let namespace = test.namespace.as_str();
    let logs = ["logs", "hostile", "-n", namespace, "-o", "json"];
    let rules = json!([{"apiGroups": ["run.nagaya.dev"], "resources": ["*"], "verbs": ["*"]}]);
    test.apply(&[
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "api-only", "namespace": namespace}, "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "api-only", "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "api-only"},
            "subjects": [{"kind": "ServiceAccount", "name": "nobody", "namespace": namespace}],
        }),
    ])
    .await?;
    within(LIMIT, "the refusal is the host's", async || {
        let (went_well, text) = said(nobody, &logs).await?;
        ensure!(!went_well && text.contains("wasmcontrollers.nagaya.dev"), "{text}");
        Ok(())
    })
    .await
}

/// Whoever reaches the port and has not the front proxy's certificate completes no handshake, whatever it says of itself.
async fn the_port_takes_nothing_without_the_front_proxy(
    test: &Test,
    component: &Component,
) -> Result<()> {
    let port = own_api::port(&test.host).await?;
    let url = format!(
        "https://127.0.0.1:{port}/apis/run.nagaya.dev/v1alpha1/namespaces/{}/modules/{}",
        test.namespace, component.digest
    );
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "front-proxy-client");
    let own = params.self_signed(&key)?.pem() + &key.serialize_pem();
    let builder = || reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy();
    let own = reqwest::Identity::from_pem(own.as_bytes())?;
    for client in [builder().build()?, builder().identity(own).build()?] {
        let asked = client
            .get(&url)
            .header("X-Remote-User", "admin")
            .header("X-Remote-Group", "system:masters");
        let answer = asked.send().await;
        ensure!(answer.is_err(), "it answers: {answer:?}");
    }
    let plain = reqwest::get(url.replace("https", "http")).await;
    ensure!(plain.is_err(), "it answers in the clear: {plain:?}");
    Ok(())
}

/// Bytes that another namespace names are not taken in this one, and nobody learns that they are there.
async fn only_what_the_namespace_names_is_taken(
    test: &Test,
    elsewhere: &str,
    component: &Component,
) -> Result<()> {
    let path = format!(
        "/apis/run.nagaya.dev/v1alpha1/namespaces/{elsewhere}/modules/{}",
        component.digest
    );
    let request = http::Request::put(&path).body(component.bytes.to_vec())?;
    let refused = test.admin.request_text(request).await;
    let text = format!("{refused:?}");
    ensure!(refused.is_err() && text.contains("404") && text.contains(elsewhere), "{text}");
    Ok(())
}

#[test]
fn a_standby_passes_on_to_the_host_that_works() -> Result<()> {
    test_alone(with_controller_manager(), async |test, _| {
        let quick = ["--lease-profile", "fast"].map(str::to_owned);
        let mut options = test.options();
        options.arguments.extend(quick);
        test.host.stop().await?;
        test.start_host_as(options).await?;
        serve(test).await?;
        let namespace = test.namespace.clone();
        let editor = person(test, "editor", Some(("edit", &namespace))).await?;
        let (component, config) =
            (Component::load("hostile")?, json!({"reconcile": "log-flood:1"}));
        let file = saved(test, &component)?;
        let hostile = test.guest("hostile", GUEST_RULES, json!({"config": config})).await?;

        // No disk of the first host, and what is asked goes to the second one.
        let folder = test.folder().join("second");
        fs::create_dir_all(&folder)?;
        let second = Host::start(&host::Options { folder, ..test.options() }).await?;
        own_api::pass_on_to(&test.admin, &second).await?;
        editor.run(&["push", "hostile", &file, "-n", &namespace, "--timeout", "60s"]).await?;
        hostile.active(&revision_name("hostile", &component.digest, Some(&config))).await?;
        let logs = ["logs", "hostile", "-n", &namespace, "-o", "json", "-f"];
        let mut following = Following::start(&editor, &logs).await?;
        test.website("first", "A").await?;
        following.of("/first").await?;

        // The second host was never sent the bytes.
        let given =
            |line: &e2e::log::Line| line.message() == "the host that works has given a module";
        second.logged(LIMIT, "it has what was uploaded elsewhere", given).await?;
        let mut first = test.switch_to(second);
        first.kill()?;
        test.website("second", "B").await?;
        following.of("/second").await?;
        Ok(())
    })
}

#[test]
fn namespaces_are_deleted_again_as_soon_as_a_host_answers() -> Result<()> {
    test_alone(with_controller_manager(), async |test, _| {
        serve(test).await?;
        let namespaces = Api::<Namespace>::all(test.admin.clone());
        test.host.kill()?;
        // Until it has noticed, the API server knows all there is to delete.
        own_api::is_available(&test.admin, false).await?;
        let others = test.another_namespace(&[]).await?;
        namespaces.delete(&others, &DeleteParams::default()).await?;
        within(LIMIT, "the deletion says what it waits for", async || {
            let conditions =
                namespaces.get(&others).await?.status.and_then(|status| status.conditions);
            let said = conditions
                .unwrap_or_default()
                .into_iter()
                .map(|one| one.message.unwrap_or_default());
            let said: Vec<_> = said.collect();
            ensure!(said.iter().any(|text| text.contains("run.nagaya.dev")), "{said:?}");
            Ok(())
        })
        .await?;
        test.start_host().await?;
        own_api::pass_on_to(&test.admin, &test.host).await?;
        within(LIMIT, "the namespace is gone", async || {
            ensure!(namespaces.get_opt(&others).await?.is_none(), "it is there");
            Ok(())
        })
        .await?;
        what_the_api_rests_on_is_put_right_again(test).await?;
        let Some(log) = test.control_plane.audit().ok() else { return Ok(()) };
        let (given, used) = (rights::given(&["nagaya-api"])?, rights::used(&log)?);
        let unused: Vec<_> = given.difference(&used).collect();
        ensure!(!given.is_empty() && unused.is_empty(), "no test uses {unused:?}");
        Ok(())
    })
}

/// A CA that somebody took away is made anew, and the API server is made to trust it, without anybody's help.
async fn what_the_api_rests_on_is_put_right_again(test: &Test) -> Result<()> {
    let secrets = Api::<Secret>::namespaced(test.admin.clone(), own_api::SERVICE.1);
    let before = secrets.get(own_api::SERVICE.0).await?.data.context("the Secret is empty")?;
    let params = PatchParams::default();
    secrets.patch(own_api::SERVICE.0, &params, &Patch::Merge(json!({"data": null}))).await?;
    let services = Api::<APIService>::all(test.admin.clone());
    let wrong = json!({"spec": {"caBundle": null}});
    services.patch(own_api::API, &params, &Patch::Merge(wrong)).await?;
    within(PUT_RIGHT, "the CA is made anew", async || {
        let secret = secrets.get(own_api::SERVICE.0).await?;
        ensure!(
            secret.name_any() == own_api::SERVICE.0 && secret.data.is_some(),
            "the Secret is empty"
        );
        ensure!(secret.data.as_ref() != Some(&before), "it is the old one");
        Ok(())
    })
    .await?;
    own_api::is_available(&test.admin, true).await?;
    let hostile: Controller = test.guest("hostile", GUEST_RULES, json!({})).await?;
    let path =
        format!("/apis/run.nagaya.dev/v1alpha1/namespaces/{}/modules/{NO_DIGEST}", test.namespace);
    hostile.observed(1).await?;
    let text = test.admin.request_text(http::Request::get(&path).body(vec![])?).await?;
    ensure!(text.contains("Wanted"), "{text}");
    Ok(())
}
