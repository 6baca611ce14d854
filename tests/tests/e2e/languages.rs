//! The example `first` in every language but Rust, from its first component to a rollback, with the command line alone. Run by
//! `cargo xtask test`, which builds the components.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::component::Component;
use e2e::manifest::{self, root};
use e2e::site::datum;
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::core::v1::ConfigMap;
use nagaya::model::crd::revision_name;
use serde_json::json;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(60);
/// What compiling takes: Python's 17 CPU-seconds may be shared with others.
const COMPILED: &str = "300s";

async fn nagaya(test: &Test, arguments: &[&str]) -> Result<String> {
    let mut arguments = arguments.to_vec();
    arguments.extend(["-n", &test.namespace]);
    test.cli().run(&arguments).await
}

async fn greet(test: &Test, name: &str, whom: &str) -> Result<()> {
    let greeting = json!({
        "apiVersion": "examples.nagaya.dev/v1",
        "kind": "Greeting",
        "metadata": {"name": name, "namespace": test.namespace},
        "spec": {"name": whom},
    });
    test.apply(&[greeting]).await
}

async fn greeted(test: &Test, name: &str, words: &str) -> Result<()> {
    let maps = test.api::<ConfigMap>();
    within(LIMIT, "the words", async || {
        let said = datum(&maps, name, "words").await?;
        ensure!(said == words, "{said:?}");
        Ok(())
    })
    .await
}

/// Pushes, greets, promotes a version that breaks down, sees why, and goes back.
fn runs_on_the_host(language: &'static str) -> Result<()> {
    test(async |test| {
        let files = [language.to_owned(), format!("{language}-2")]
            .map(|name| root().join("target/languages").join(name).with_extension("wasm"));
        let digests = files.each_ref().map(|file| {
            let bytes =
                std::fs::read(file).with_context(|| format!("{} is not built", file.display()));
            bytes.map(|bytes| revision_name("first", &Component::from_bytes(&bytes).digest, None))
        });
        let [first, second] = digests;
        let (first, second) = (first?, second?);
        // A guest's own words, with its stack behind them.
        ["panic: as asked", "Error: as asked", "RuntimeError: as asked"]
            .into_iter()
            .for_each(|words| test.expect_error(words));
        let [one, other] = files.each_ref().map(|file| file.to_string_lossy().into_owned());
        let controller = test.example("first").await?;

        let begun = Instant::now();
        nagaya(test, &["push", "first", &one, "--timeout", COMPILED]).await?;
        controller.active(&first).await?;
        let live = begun.elapsed();
        let begun = Instant::now();
        greet(test, "hello", "Nagaya").await?;
        greeted(test, "hello", "Hello, Nagaya!").await?;
        println!(
            "{language}: live after {live:.1?}, the first words after {:.1?}",
            begun.elapsed()
        );
        greet(test, "hello", "neighbour").await?;
        greeted(test, "hello", "Hello, neighbour!").await?;

        nagaya(test, &["push", "first", &other, "--timeout", COMPILED]).await?;
        controller.candidate(&second).await?;
        nagaya(test, &["promote", "first"]).await?;
        controller.active(&second).await?;
        greet(test, "hello", "broken").await?;
        within(LIMIT, "what went wrong is told", async || {
            let said = nagaya(test, &["get", "first"]).await?;
            ensure!(said.contains("as asked"), "{said}");
            let logged = std::fs::read_to_string(test.folder().join("host.log"))?;
            ensure!(logged.contains("as asked"), "the log does not say it");
            Ok(())
        })
        .await?;
        nagaya(test, &["rollback", "first"]).await?;
        controller.active(&first).await?;
        greeted(test, "hello", "Hello, broken!").await?;
        a_new_project(test, language).await
    })
}

/// What `nagaya new` has made: its kind, the rights that `nagaya rbac` prints, its controller and its sample, as its README says.
async fn a_new_project(test: &Test, language: &str) -> Result<()> {
    let name = format!("new-{language}");
    let folder = format!("target/languages/{name}");
    let file = root().join(&folder).with_extension("wasm").to_string_lossy().into_owned();
    test.apply(&manifest::read(&format!("{folder}/crd.yaml"))?).await?;
    let rights =
        within(LIMIT, "the kind is served", async || nagaya(test, &["rbac", &file]).await).await?;
    test.apply(&manifest::parse(&rights)?).await?;
    let digest = Component::from_bytes(&std::fs::read(&file)?).digest;
    let controller = test.bare_controller(&name, &name, json!({})).await?;
    nagaya(test, &["push", &name, &file, "--timeout", COMPILED]).await?;
    controller.active(&revision_name(&name, &digest, None)).await?;
    let mut sample = manifest::read(&format!("{folder}/sample.yaml"))?;
    for object in &mut sample {
        object["metadata"]["namespace"] = json!(test.namespace);
        object["metadata"]["name"] = json!("sample");
    }
    test.apply(&sample).await?;
    greeted(test, "sample", "Hello!").await
}

#[test]
#[ignore = "needs Go: cargo xtask test --only languages"]
fn go_runs_on_the_host() -> Result<()> {
    runs_on_the_host("go")
}

#[test]
#[ignore = "needs node: cargo xtask test --only languages"]
fn typescript_runs_on_the_host() -> Result<()> {
    runs_on_the_host("typescript")
}

#[test]
#[ignore = "needs Python: cargo xtask test --only languages"]
fn python_runs_on_the_host() -> Result<()> {
    runs_on_the_host("python")
}
