//! The command lines of the three programs. One list serves our binaries and given ones. All run in
//! the instance's folder, so files are named plainly and socket paths stay short.

use super::Options;
use super::certificates::FRONT_PROXY;
use super::user::User;

/// The file of etcd's socket in the folder.
pub(super) const ETCD_SOCKET: &str = "etcd:1";
/// The audit log's name in the folder.
pub(super) const AUDIT_LOG: &str = "audit.jsonl";
/// The audit policy's name in the folder.
pub(super) const AUDIT_POLICY: &str = "audit.yaml";

pub(super) fn etcd() -> Vec<String> {
    // etcd insists on the host:port form; the socket files are named just so.
    let (client, peer) = ("unix://etcd:1", "unix://peer:1");
    lines(&format!(
        "--name=t --log-level=warn --data-dir=etcd
         --unsafe-no-fsync
         --initial-cluster=t={peer}
         --listen-client-urls={client} --advertise-client-urls={client}
         --listen-peer-urls={peer} --initial-advertise-peer-urls={peer}"
    ))
}

pub(super) fn apiserver(port: u16, options: &Options) -> Vec<String> {
    // A loopback address cannot be advertised as an endpoint: hence no reconciler. A log size of 0
    // means one plain file; the default starts a new one at 100 MB, which a reader would miss.
    // Without a grace period for watches a stop waits a minute for clients that still watch.
    let mut flags = lines(&format!(
        "--etcd-servers=unix://etcd:1
         --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port={port}
         --endpoint-reconciler-type=none --external-hostname=localhost
         --service-cluster-ip-range=10.0.0.0/24
         --tls-cert-file=apiserver.crt --tls-private-key-file=apiserver.key
         --client-ca-file=ca.crt
         --token-auth-file=tokens.csv --authorization-mode=RBAC
         --service-account-issuer=https://kubernetes.default.svc.cluster.local
         --service-account-key-file=sa.pub --service-account-signing-key-file=sa.key
         --requestheader-client-ca-file=front-proxy-ca.crt
         --requestheader-allowed-names={FRONT_PROXY}
         --requestheader-username-headers=X-Remote-User
         --requestheader-group-headers=X-Remote-Group
         --requestheader-extra-headers-prefix=X-Remote-Extra-
         --proxy-client-cert-file=front-proxy.crt --proxy-client-key-file=front-proxy.key
         --audit-policy-file={AUDIT_POLICY} --audit-log-path={AUDIT_LOG}
         --audit-log-maxsize=0 --audit-log-mode=blocking
         --shutdown-watch-termination-grace-period=1s
         --allow-privileged=true --profiling=false"
    ));
    flags.extend(options.apiserver_flags.iter().cloned());
    flags
}

pub(super) fn controller_manager() -> Vec<String> {
    let kubeconfig = format!("{}.kubeconfig", User::ControllerManager.name());
    lines(&format!(
        "--kubeconfig={kubeconfig} --authentication-kubeconfig={kubeconfig}
         --authorization-kubeconfig={kubeconfig}
         --service-account-private-key-file=sa.key --root-ca-file=ca.crt
         --use-service-account-credentials=true
         --leader-elect=false --secure-port=0 --bind-address=127.0.0.1 --profiling=false"
    ))
}

fn lines(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// What of the reads goes into the audit log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reads {
    /// Who read what, without the objects: for tests of authority, and of open watches.
    #[default]
    Audited,
    /// Nothing: for load, where the log would be most of the disk traffic.
    Silent,
}

/// Writes with both objects; secrets, tokens and leases without; reads by `reads`.
///
/// Stage `ResponseStarted` stays: only watches have it, and open ones are counted by it.
pub(super) fn audit_policy(reads: Reads) -> String {
    let reads = match reads {
        Reads::Audited => "Metadata",
        Reads::Silent => "None",
    };
    format!(
        "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: {reads}
  verbs: [get, list, watch]
- level: Metadata
  resources:
  - group: \"\"
    resources: [secrets, serviceaccounts/token]
  - group: authentication.k8s.io
  - group: coordination.k8s.io
    resources: [leases]
- level: RequestResponse
"
    )
}
