//! Which of the rights that `deploy/` gives the host it has used, by the audit log: a rule that nothing uses is one too many.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::account::host_username;
use crate::control_plane::audit::Log;
use crate::manifest;

/// A right: verb, group, and resource with its subresource.
pub type Right = (String, String, String);

/// What the roles of these names give, as `deploy/rbac.yaml` has them.
pub fn given(roles: &[&str]) -> Result<BTreeSet<Right>> {
    let mut given = BTreeSet::new();
    for role in manifest::read("deploy/rbac.yaml")? {
        if !roles.iter().any(|name| role["metadata"]["name"] == *name) {
            continue;
        }
        for rule in role["rules"].as_array().into_iter().flatten() {
            let texts = |part: &str| -> Vec<String> {
                let list = rule[part].as_array().into_iter().flatten();
                list.filter_map(Value::as_str).map(str::to_owned).collect()
            };
            for group in texts("apiGroups") {
                for resource in texts("resources") {
                    let verbs = texts("verbs").into_iter();
                    given.extend(verbs.map(|verb| (verb, group.clone(), resource.clone())));
                }
            }
        }
    }
    Ok(given)
}

/// What the host has been let do as itself.
pub fn used(log: &Log) -> Result<BTreeSet<Right>> {
    let (host, mut used) = (host_username(), BTreeSet::new());
    for event in log.events()? {
        let own = event.user.username == host && event.impersonated_user.is_none();
        let was_let = event.code() != Some(403);
        let Some(object) = event.object_ref.filter(|_| own && was_let) else { continue };
        let resource = match &*object.subresource {
            "" => object.resource,
            subresource => format!("{}/{subresource}", object.resource),
        };
        used.insert((event.verb, object.api_group, resource));
    }
    Ok(used)
}

/// Rights that a whole run of the tests on the shared server uses in no request of their own, each with its reason.
fn is_used_unseen((verb, group, resource): &Right) -> bool {
    match (&**verb, &**group, &**resource) {
        // The admission of owner references that block deletion asks for the first; the second is read if another host was faster.
        (_, "nagaya.dev", "wasmcontrollers/finalizers")
        | ("get", "nagaya.dev", "wasmrevisions") => true,
        _ => false,
    }
}

/// Fails, naming them, if a run of all tests has left rights of the host unused.
pub fn all_used(log: &Log) -> Result<()> {
    let mut given_itself = given(&["nagaya-host", "nagaya-lease"])?;
    ensure!(!given_itself.is_empty(), "deploy/rbac.yaml gives the host nothing");
    // What is shared is asked for as a whole, and then watched from its first state on: only an older server is asked to list.
    let shared = given(&["nagaya-watch-builtin"])?;
    given_itself.extend(shared.into_iter().filter(|(verb, ..)| verb == "watch"));
    let used = used(log)?;
    let unused = given_itself.difference(&used).filter(|right| !is_used_unseen(right));
    let unused: Vec<_> = unused.collect();
    ensure!(unused.is_empty(), "deploy/rbac.yaml gives the host what no test uses: {unused:?}");
    Ok(())
}
