//! A ServiceAccount with rights in one namespace, and the host's right to act as it there.
//!
//! The examples bring theirs in YAML; this makes the same for guests that exist in tests only.

use serde_json::{Value, json};

/// The host's own ServiceAccount: namespace and name.
pub const HOST: (&str, &str) = ("nagaya-system", "nagaya");

/// One rule of RBAC.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The API group.
    pub group: &'static str,
    /// The plural, perhaps with a subresource.
    pub resource: &'static str,
    /// The verbs.
    pub verbs: &'static [&'static str],
}

/// What the guests of `tests/guests` need with the small manifest: Websites, ConfigMaps, Events.
pub const GUEST_RULES: &[Rule] = &[
    Rule {
        group: "examples.nagaya.dev",
        resource: "websites",
        verbs: &["get", "list", "watch", "patch"],
    },
    Rule { group: "examples.nagaya.dev", resource: "websites/status", verbs: &["patch"] },
    Rule {
        group: "",
        resource: "configmaps",
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
    },
    Rule { group: "events.k8s.io", resource: "events", verbs: &["create", "patch"] },
];

/// The objects: the account, its Role, and the Role by which the host may act as it.
pub fn objects(namespace: &str, name: &str, rules: &[Rule]) -> Vec<Value> {
    let mut objects = own(namespace, name, rules);
    objects.extend(impersonation(namespace, name, rules));
    objects
}

/// The account and what it may do.
pub fn own(namespace: &str, name: &str, rules: &[Rule]) -> Vec<Value> {
    let rules = rules.iter().map(|rule| {
        json!({"apiGroups": [rule.group], "resources": [rule.resource], "verbs": rule.verbs})
    });
    let mut objects = vec![json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    })];
    objects.extend(role(namespace, name, (namespace, name), &rules.collect::<Vec<_>>()));
    objects
}

/// What the host may do as the account.
pub fn impersonation(namespace: &str, name: &str, rules: &[Rule]) -> Vec<Value> {
    let mut granted = vec![json!({
        "apiGroups": ["authentication.k8s.io"],
        "resources": ["serviceaccounts"],
        "resourceNames": [name],
        "verbs": ["impersonate:serviceaccount"],
    })];
    granted.extend(rules.iter().map(|rule| {
        let verbs = rule.verbs.iter().map(|verb| format!("impersonate-on:serviceaccount:{verb}"));
        let verbs: Vec<_> = verbs.collect();
        json!({"apiGroups": [rule.group], "resources": [rule.resource], "verbs": verbs})
    }));
    role(namespace, &format!("nagaya-{name}"), HOST, &granted).into()
}

fn role(namespace: &str, name: &str, to: (&str, &str), rules: &[Value]) -> [Value; 2] {
    let metadata = json!({"name": name, "namespace": namespace});
    [
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": to.0, "name": to.1}],
        }),
    ]
}

/// The name by which the server knows a ServiceAccount.
pub fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The name by which the server knows the host.
pub fn host_username() -> String {
    username(HOST.0, HOST.1)
}
