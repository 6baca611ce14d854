//! What the roles for people let them do: by `view`, `edit` and `admin` of a namespace, in it and nowhere else.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::install::may;
use e2e::wait::within;
use e2e::{Test, test};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use serde_json::json;

/// The rights of an aggregated role are the controller manager's work.
const AGGREGATED_WITHIN: Duration = Duration::from_secs(30);

/// All that anybody could ask of `run.nagaya.dev`, and one thing more each.
const ASKED: [&str; 9] = [
    "get modules",
    "update modules",
    "create modules",
    "delete modules",
    "get controllers",
    "list controllers",
    "update controllers",
    "get controllers/log",
    "get modules/log",
];

const SEES: [&str; 2] = ["get controllers", "get controllers/log"];
const UPLOADS: [&str; 4] =
    ["get controllers", "get controllers/log", "get modules", "update modules"];

/// What `user` may do there.
async fn allowed(test: &Test, user: &str, namespace: &str) -> Result<BTreeSet<&'static str>> {
    let mut allowed = BTreeSet::new();
    for asked in ASKED {
        let (verb, resource) = asked.split_once(' ').unwrap_or_default();
        let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
        let attributes = ResourceAttributes {
            namespace: Some(namespace.into()),
            group: Some("run.nagaya.dev".into()),
            resource: Some(resource.into()),
            subresource: Some(part.into()),
            verb: Some(verb.into()),
            ..ResourceAttributes::default()
        };
        if may(&test.admin, user, attributes).await? {
            allowed.insert(asked);
        }
    }
    Ok(allowed)
}

#[test]
fn people_see_and_upload_in_their_namespace_and_in_no_other() -> Result<()> {
    test(async |test| {
        if !test.control_plane.has_controller_manager() {
            eprintln!("not run: no controller manager, which makes aggregated roles");
            return Ok(());
        }
        let other = test.another_namespace(&[]).await?;
        let here = test.namespace.clone();
        let rights: [(&str, &[&str]); 4] =
            [("view", &SEES), ("edit", &UPLOADS), ("admin", &UPLOADS), ("none", &[])];
        for (role, expected) in rights {
            let user = format!("{role}-of-{here}");
            if role != "none" {
                let group = "rbac.authorization.k8s.io";
                let binding = json!({
                    "apiVersion": format!("{group}/v1"),
                    "kind": "RoleBinding",
                    "metadata": {"name": user, "namespace": here},
                    "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
                    "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
                });
                test.apply(&[binding]).await?;
            }
            let expected: BTreeSet<_> = expected.iter().copied().collect();
            within(AGGREGATED_WITHIN, &format!("the rights of {user}"), async || {
                let allowed = allowed(test, &user, &here).await?;
                ensure!(allowed == expected, "{allowed:?}");
                Ok(())
            })
            .await?;
            assert_eq!(allowed(test, &user, &other).await?, BTreeSet::new(), "{user} in {other}");
        }
        Ok(())
    })
}
