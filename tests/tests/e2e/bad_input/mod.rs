//! What people get wrong ends in a sentence that says what is wrong and what to do, and what runs goes on.
//!
//! What is tested elsewhere is not repeated here; `docs/bad-input.md` has the whole list.

mod component;
mod disk;
mod exclusive;
mod start;
mod upload;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::controller::{Controller, condition};
use e2e::{Test, test};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// `hostile`, live, whose runs write `well`; and its revision.
async fn well(test: &Test) -> Result<(Controller, String)> {
    test.hostile(json!({}), &config()).await
}

fn config() -> Value {
    json!({"reconcile": "write", "value": "well"})
}

/// The revision is still live, and it reconciles an object that is new.
async fn goes_on(test: &Test, revision: &str, object: &str) -> Result<()> {
    let active = test.controller("hostile")?.get().await?.status.and_then(|status| status.active);
    ensure!(active.as_deref() == Some(revision), "{active:?} is live");
    test.website(object, "Another").await?;
    test.written(object, "well").await
}

/// What the command line says to this; it must fail.
async fn complaint(test: &Test, arguments: &[&str]) -> Result<String> {
    let output = test.cli().output(arguments).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "nagaya {} was obeyed", arguments.join(" "));
    Ok(said)
}

/// Each of `words` is in `text`.
#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn a_limit_above_the_ceiling_is_a_condition_and_the_ceiling_holds() -> Result<()> {
    test(async |test| {
        let (hostile, revision) = well(test).await?;
        hostile.patch(&json!({"spec": {"limits": {"memory": "512Mi"}}})).await?;
        let degraded = hostile.condition("Degraded", "True").await?;
        assert_eq!(degraded.reason, "LimitTooHigh");
        says(&degraded.message, &["512Mi", "at most 64Mi", "ask for less"]);
        let ready = hostile.condition("Ready", "True").await?;
        assert_eq!(ready.reason, "Running");
        goes_on(test, &revision, "one").await?;
        // Another revision is not staged before that is put right.
        let mut other = config();
        other["value"] = json!("other");
        let second =
            hostile.push_config(&e2e::component::Component::load("hostile")?, &other).await?;
        let message = hostile.refused(&second, "LimitTooHigh").await?;
        says(&message, &["512Mi", "at most 64Mi"]);
        hostile.patch(&json!({"spec": {"limits": {"memory": "32Mi"}}})).await?;
        let seen = hostile.candidate(&second).await?;
        let degraded = condition(&seen, "Degraded").context("no condition Degraded")?;
        assert_eq!(degraded.status, "False", "{}", degraded.message);
        Ok(())
    })
}
