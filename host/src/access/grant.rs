//! What a controller may read and write: its manifest, the answers of the API server, and the hard deny-list; pure.
//!
//! The API server decides authority. What stands here is how old an answer may be before it counts as none
//! (closed), which kinds no guest ever touches, and how a missing right is put into words that
//! can be applied.
//!
//! Invariants, each held by the test of that name:
//!
//! - `an_allow_is_worth_nothing_after_ten_seconds`
//! - `an_older_answer_never_replaces_a_newer_one`
//! - `escalation_kinds_are_denied_whatever_the_account_may`
//! - `a_missing_right_is_shown_as_yaml_that_gives_it`
//! - `a_name_from_outside_stays_a_name`

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::apiserver::{Identity, Resource};

/// How long an allow counts. Authorizers other than RBAC emit no event when they change, so this is short.
pub const ALLOW_VALID: Duration = Duration::from_secs(10);
/// How long a deny counts.
pub const DENY_VALID: Duration = Duration::from_secs(30);

/// Names of objects end at 253 bytes, and a fingerprint follows.
const LONGEST_STEM: usize = 240;

/// One thing that an account may or may not do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Right {
    /// RBAC verb.
    pub verb: Arc<str>,
    /// API group.
    pub group: Arc<str>,
    /// Plural, with `/subresource` where one is meant.
    pub resource: Arc<str>,
    /// Namespace; `None`: the whole cluster.
    pub namespace: Option<Arc<str>>,
    /// One object only.
    pub name: Option<Arc<str>>,
}

impl Right {
    /// `verb` on all objects of `resource` in `namespace`, or in the whole cluster.
    pub fn on(verb: &str, resource: &Resource, namespace: Option<&str>) -> Self {
        Self {
            verb: verb.into(),
            group: resource.kind.group.as_str().into(),
            resource: resource.plural.as_str().into(),
            namespace: namespace.filter(|_| resource.namespaced).map(Into::into),
            name: None,
        }
    }

    /// The same right on a subresource.
    #[must_use]
    pub fn subresource(self, name: &str) -> Self {
        Self { resource: format!("{}/{name}", self.resource).into(), ..self }
    }

    /// The right of the host to act as `account` at all.
    pub fn to_impersonate(account: &Identity, verb: &str, group: &str) -> Option<Self> {
        let Identity::ServiceAccount { namespace, name } = account else { return None };
        Some(Self {
            verb: verb.into(),
            group: group.into(),
            resource: "serviceaccounts".into(),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
        })
    }

    /// The host's right to use this right as a ServiceAccount (KEP-5284).
    #[must_use]
    pub fn impersonated(&self) -> Self {
        Self { verb: format!("impersonate-on:serviceaccount:{}", self.verb).into(), ..self.clone() }
    }

    /// Verb, resource and the one object it is of, wherever that lies: `patch deployments.apps/status`.
    pub fn plain(&self) -> String {
        let (plural, sub) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
        let dot = if self.group.is_empty() { "" } else { "." };
        let slash = if sub.is_empty() { "" } else { "/" };
        let of = self.name.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
        format!("{} {plural}{dot}{}{slash}{sub}{of}", self.verb, self.group)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => write!(f, " in the whole cluster"),
        }
    }
}

/// What is known of a right at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server said yes, recently enough.
    Allowed,
    /// The server said no, recently enough.
    Denied,
    /// Nobody knows: refuse, and ask.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    allowed: bool,
    at: Instant,
}

/// The API server's answers, with the time at which each was asked for.
#[derive(Debug, Default)]
pub struct Answers(HashMap<(Identity, Right), Answer>);

impl Answers {
    /// Remembers an answer to a question that was sent at `asked`.
    pub fn learn(&mut self, account: &Identity, right: &Right, allowed: bool, asked: Instant) {
        let answer = Answer { allowed, at: asked };
        let known = self.0.entry((account.clone(), right.clone())).or_insert(answer);
        if known.at <= asked {
            *known = answer;
        }
    }

    /// What is known at `now`.
    pub fn verdict(&self, account: &Identity, right: &Right, now: Instant) -> Verdict {
        let Some(answer) = self.0.get(&(account.clone(), right.clone())) else {
            return Verdict::Unknown;
        };
        let age = now.saturating_duration_since(answer.at);
        match answer.allowed {
            true if age <= ALLOW_VALID => Verdict::Allowed,
            false if age <= DENY_VALID => Verdict::Denied,
            _ => Verdict::Unknown,
        }
    }

    /// How old the answer is; `None` if there is none.
    pub fn age(&self, account: &Identity, right: &Right, now: Instant) -> Option<Duration> {
        let answer = self.0.get(&(account.clone(), right.clone()))?;
        Some(now.saturating_duration_since(answer.at))
    }

    /// Forgets answers that nobody could use any more.
    pub fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, answer| now.saturating_duration_since(answer.at) <= DENY_VALID * 2);
    }
}

/// Why no guest may touch this, whatever its account may; `None` if it may be asked for.
pub fn denied_to_guests(group: &str, resource: &str) -> Option<&'static str> {
    let whole_groups = [
        ("rbac.authorization.k8s.io", "it grants rights"),
        ("admissionregistration.k8s.io", "it sees and changes everybody's writes"),
        ("apiextensions.k8s.io", "it defines kinds for the whole cluster"),
        ("apiregistration.k8s.io", "it routes API groups"),
        (crate::model::crd::GROUP, "it is the host's own"),
        ("authentication.k8s.io", "it proves identities"),
    ];
    if let Some((_, why)) = whole_groups.into_iter().find(|(name, _)| *name == group) {
        return Some(why);
    }
    match (group, resource) {
        ("", "pods/exec" | "pods/attach" | "pods/portforward" | "pods/ephemeralcontainers") => {
            Some("it reaches into pods")
        }
        ("", "nodes/proxy") => Some("it reaches into nodes"),
        ("", "serviceaccounts/token") | ("certificates.k8s.io", _) => Some("it makes credentials"),
        _ => None,
    }
}

/// The YAML that gives `rights` to `account`: what its own team applies.
pub fn rbac_for_account(account: &Identity, rights: &BTreeSet<Right>) -> String {
    let Identity::ServiceAccount { namespace, name } = account else { return String::new() };
    let subject = service_account(namespace, name);
    documents(name, &subject, rights)
}

/// The YAML that lets the host use `rights` as `account`.
pub fn rbac_for_impersonation(account: &Identity, host: &str, rights: &BTreeSet<Right>) -> String {
    let mut needed: BTreeSet<Right> = rights.iter().map(Right::impersonated).collect();
    needed.extend(Right::to_impersonate(
        account,
        "impersonate:serviceaccount",
        "authentication.k8s.io",
    ));
    rbac_for_host(account, host, &needed)
}

/// The YAML that lets the host do all that `account` may, which is the only right of the kind before Kubernetes 1.36.
pub fn rbac_for_whole_impersonation(account: &Identity, host: &str) -> String {
    let needed = Right::to_impersonate(account, "impersonate", "").into_iter().collect();
    rbac_for_host(account, host, &needed)
}

fn rbac_for_host(account: &Identity, host: &str, needed: &BTreeSet<Right>) -> String {
    let Identity::ServiceAccount { name, .. } = account else { return String::new() };
    let subject = match host
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
    {
        Some((namespace, name)) => service_account(namespace, name),
        None => format!("{{ kind: User, apiGroup: rbac.authorization.k8s.io, name: {host:?} }}"),
    };
    documents(&format!("nagaya-as-{name}"), &subject, needed)
}

fn service_account(namespace: &str, name: &str) -> String {
    let (namespace, name) = (scalar(namespace), scalar(name));
    format!("{{ kind: ServiceAccount, name: {name}, namespace: {namespace} }}")
}

/// A text as YAML reads it: names come from outside, and what is no name must not become another document.
fn scalar(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let is_word = text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('.')
        && text.chars().all(is_plain)
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text);
    if is_word { text.into() } else { serde_json::Value::from(text).to_string().into() }
}

/// A Role and RoleBinding for each namespace, a ClusterRole and ClusterRoleBinding for the rest. Their name says what
/// they give: applying them never takes away what an earlier message gave, which a live revision may need.
fn documents(stem: &str, subject: &str, rights: &BTreeSet<Right>) -> String {
    let stem = &stem[..stem.floor_char_boundary(LONGEST_STEM)];
    let name = format!("{stem}-{:08x}", fingerprint(rights));
    let name = &*scalar(&name);
    let mut by_scope: BTreeMap<Option<&Arc<str>>, Vec<&Right>> = BTreeMap::new();
    for right in rights {
        by_scope.entry(right.namespace.as_ref()).or_default().push(right);
    }
    let mut documents = vec![];
    for (namespace, rights) in by_scope {
        let (prefix, place) = match namespace {
            Some(namespace) => {
                ("", format!("{{ name: {name}, namespace: {} }}", scalar(namespace)))
            }
            None => ("Cluster", format!("{{ name: {name} }}")),
        };
        let api = "apiVersion: rbac.authorization.k8s.io/v1";
        let mut text = format!("{api}\nkind: {prefix}Role\nmetadata: {place}\nrules:\n");
        for rule in rules(&rights) {
            let _ = writeln!(text, "- {rule}");
        }
        documents.push(text);
        documents.push(format!(
            "{api}\nkind: {prefix}RoleBinding\nmetadata: {place}\nroleRef: {{ apiGroup: \
             rbac.authorization.k8s.io, kind: {prefix}Role, name: {name} }}\nsubjects:\n- {subject}\n"
        ));
    }
    documents.join("---\n")
}

/// FNV-1a: it needs to be the same in every version of the host, not hard to guess.
fn fingerprint(rights: &BTreeSet<Right>) -> u32 {
    let text = rights.iter().map(|right| format!("{right} {:?};", right.name));
    let bytes = text.flat_map(String::into_bytes);
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// One flow-style rule for each group, resource and name, with all its verbs.
fn rules(rights: &[&Right]) -> Vec<String> {
    type Subject<'a> = (&'a str, &'a str, Option<&'a Arc<str>>);
    let mut verbs: BTreeMap<Subject<'_>, BTreeSet<&str>> = BTreeMap::new();
    for right in rights {
        let subject = (&*right.group, &*right.resource, right.name.as_ref());
        verbs.entry(subject).or_default().insert(&right.verb);
    }
    verbs
        .into_iter()
        .map(|((group, resource, name), verbs)| {
            let verbs: Vec<_> = verbs.into_iter().map(|verb| format!("{verb:?}")).collect();
            let name = name.map(|name| format!(" resourceNames: [{}],", scalar(name)));
            let name = name.unwrap_or_default();
            format!(
                "{{ apiGroups: [{group:?}], resources: [{resource:?}],{name} verbs: [{}] }}",
                verbs.join(", ")
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kind::Kind;

    fn account() -> Identity {
        Identity::ServiceAccount { namespace: "storage".into(), name: "bucket".into() }
    }

    fn right(verb: &str, namespace: Option<&str>) -> Right {
        let resource = Resource {
            kind: Kind::new("v1", "ConfigMap"),
            plural: "configmaps".into(),
            namespaced: true,
            has_status: false,
        };
        Right::on(verb, &resource, namespace)
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary starting point")]
    fn epoch() -> Instant {
        Instant::now()
    }

    #[test]
    fn an_allow_is_worth_nothing_after_ten_seconds() {
        let (mut answers, now) = (Answers::default(), epoch());
        let right = right("list", Some("a"));
        assert_eq!(answers.verdict(&account(), &right, now), Verdict::Unknown);
        answers.learn(&account(), &right, true, now);
        assert_eq!(answers.verdict(&account(), &right, now + ALLOW_VALID), Verdict::Allowed);
        let late = now + ALLOW_VALID + Duration::from_millis(1);
        assert_eq!(answers.verdict(&account(), &right, late), Verdict::Unknown);
        answers.learn(&account(), &right, false, late);
        assert_eq!(answers.verdict(&account(), &right, late + DENY_VALID), Verdict::Denied);
        assert_eq!(answers.verdict(&Identity::Host, &right, late), Verdict::Unknown);
    }

    #[test]
    fn a_name_from_outside_stays_a_name() {
        let evil = "x] }\n---\nkind: ClusterRoleBinding";
        for name in [evil, "123", "1e3", "null", "on", "a: b", "", "ok", "a.b-c"] {
            let right = Right { name: Some(name.into()), ..right("get", Some(name)) };
            let account =
                Identity::ServiceAccount { namespace: "storage".into(), name: "b".into() };
            let text = rbac_for_account(&account, &BTreeSet::from([right]));
            let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
            assert_eq!(documents.len(), 2, "{text}");
            assert_eq!(
                documents[0]["rules"][0]["resourceNames"],
                serde_json::json!([name]),
                "{text}"
            );
            assert_eq!(documents[0]["metadata"]["namespace"], name, "{text}");
        }
    }

    /// Answers arrive in any order; the verdict is always that of the newest question.
    #[test]
    fn an_older_answer_never_replaces_a_newer_one() {
        let start = epoch();
        for seed in 1..=300_u64 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut answers = Answers::default();
            let mut newest: HashMap<u64, (u64, bool)> = HashMap::new();
            for _ in 0..100 {
                let random = rng.u64(..);
                let (which, asked, allowed) =
                    (random % 3, random / 3 % 9_000, (random / 64).is_multiple_of(2));
                let right = right("get", Some(["a", "b", "c"][usize::try_from(which).unwrap()]));
                answers.learn(&account(), &right, allowed, start + Duration::from_millis(asked));
                let known = newest.entry(which).or_insert((asked, allowed));
                if known.0 <= asked {
                    *known = (asked, allowed);
                }
                let expected = if newest[&which].1 { Verdict::Allowed } else { Verdict::Denied };
                let now = start + Duration::from_millis(9_000);
                assert_eq!(answers.verdict(&account(), &right, now), expected, "seed {seed}");
            }
            answers.sweep(start + Duration::from_secs(600));
            assert!(answers.0.is_empty());
        }
    }

    #[test]
    fn escalation_kinds_are_denied_whatever_the_account_may() {
        for (group, resource) in [
            ("rbac.authorization.k8s.io", "clusterrolebindings"),
            ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
            ("apiextensions.k8s.io", "customresourcedefinitions"),
            ("", "serviceaccounts/token"),
            ("", "pods/exec"),
            ("nagaya.dev", "wasmcontrollers"),
        ] {
            assert!(denied_to_guests(group, resource).is_some(), "{resource}.{group}");
        }
        assert_eq!(denied_to_guests("", "configmaps"), None);
        assert_eq!(denied_to_guests("apps", "deployments"), None);
    }

    #[test]
    fn a_missing_right_is_shown_as_yaml_that_gives_it() {
        let rights = BTreeSet::from([right("list", Some("a")), right("watch", Some("a"))]);
        let text = rbac_for_account(&account(), &rights);
        assert!(text.contains("kind: Role\n") && text.contains("namespace: a"), "{text}");
        assert!(text.contains(r#"resources: ["configmaps"], verbs: ["list", "watch"]"#), "{text}");
        // Two messages, one after the other, give both: neither takes the other's Role away.
        let name_of = |verb| {
            let text = rbac_for_account(&account(), &BTreeSet::from([right(verb, Some("a"))]));
            let role = text.split("---\n").next().unwrap_or_default().to_owned();
            let role = serde_saphyr::from_str::<serde_json::Value>(&role).unwrap();
            role["metadata"]["name"].as_str().unwrap().to_owned()
        };
        assert_eq!(name_of("list"), name_of("list"));
        assert_ne!(name_of("list"), name_of("patch"));
        let text = rbac_for_impersonation(
            &account(),
            "system:serviceaccount:nagaya-system:nagaya",
            &BTreeSet::from([right("patch", None)]),
        );
        assert!(text.contains("kind: ClusterRoleBinding"), "{text}");
        assert!(text.contains("resourceNames: [bucket]"), "{text}");
        assert!(text.contains("impersonate-on:serviceaccount:patch"), "{text}");
        let older = rbac_for_whole_impersonation(&account(), "system:serviceaccount:x:h");
        let rule = r#"{ apiGroups: [""], resources: ["serviceaccounts"], resourceNames: [bucket], verbs: ["impersonate"] }"#;
        assert!(older.contains(rule) && older.contains("name: h, namespace: x"), "{older}");
        for document in text.split("---\n") {
            serde_saphyr::from_str::<serde_json::Value>(document).unwrap();
        }
    }
}
