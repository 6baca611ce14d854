//! The kubeconfig by kubectl's rules: each row of docs/kubeconfig.md.

#![cfg(test)] // Tells clippy that helpers are test code too.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use http::Method;
use nagaya::{
    apiserver::{ApiServer, Call},
    app::App,
    config::Config,
    kubeconfig::{Access, Chosen, Environment, Proxies, Source},
    leader::lease::{LeaseName, Profile},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

/// A folder with files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }
}

/// What `yaml` means as the one file that is given.
fn load(yaml: impl AsRef<[u8]>) -> Result<Chosen, String> {
    let files = Files::new();
    let file = Some(files.write("config", yaml));
    chosen(&Source { file, ..Source::default() })
}

fn chosen(source: &Source) -> Result<Chosen, String> {
    match source.load() {
        Ok(Access::Cluster(chosen)) => Ok(*chosen),
        Ok(Access::Pod) => Err("the pod".to_owned()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            Err(format!("{error}{}", cause.unwrap_or_default()))
        }
    }
}

/// A kubeconfig with one of each.
fn config(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
    )
}

const SERVER: &str = "server: 'https://host:6443'";

/// One context `name` of a cluster at `server`.
fn named(name: &str, server: &str) -> String {
    format!(
        "contexts: [{{name: {name}, context: {{cluster: {name}, user: {name}, namespace: ns-{name}}}}}]\n\
         clusters: [{{name: {name}, cluster: {{server: 'https://{server}'}}}}]\n\
         users: [{{name: {name}, user: {{token: t-{name}}}}}]\n"
    )
}

fn environment(files: &[&PathBuf]) -> Environment {
    let kubeconfig = Some(std::env::join_paths(files).unwrap());
    Environment { kubeconfig, ..Environment::default() }
}

#[test]
fn the_flag_and_the_environment_treat_a_file_alike() {
    let files = Files::new();
    let authority = "certificate-authority: pki/ca.crt, tls-server-name: kubernetes";
    let user = "client-certificate: me.crt, client-key: ../me.key, tokenFile: /run/token";
    let path = files.write("deep/config", config(&format!("{SERVER}, {authority}"), user));
    let flag = Source { file: Some(path.clone()), ..Source::default() };
    let variable = Source { environment: environment(&[&path]), ..Source::default() };
    let home = Source {
        environment: Environment {
            home: Some(
                files
                    .write("home/.kube/config", fs::read(&path).unwrap())
                    .ancestors()
                    .nth(2)
                    .unwrap()
                    .to_owned(),
            ),
            ..Environment::default()
        },
        ..Source::default()
    };
    for (source, folder) in [(flag, "deep"), (variable, "deep"), (home, "home/.kube")] {
        let Chosen { server, cluster, user, .. } = chosen(&source).unwrap();
        let at =
            |name: &str| Some(files.0.path().join(folder).join(name).to_str().unwrap().to_owned());
        assert_eq!(server, "https://host:6443/");
        assert_eq!(cluster.certificate_authority, at("pki/ca.crt"));
        assert_eq!((user.client_certificate, user.client_key), (at("me.crt"), at("../me.key")));
        assert_eq!(user.token_file.as_deref(), Some("/run/token"), "absolute paths stay");
        assert_eq!(cluster.tls_server_name.as_deref(), Some("kubernetes"));
    }
}

#[test]
fn the_flag_counts_before_the_variable_and_that_before_the_home_folder() {
    let files = Files::new();
    let whole = |name: &str| format!("current-context: {name}\n{}", named(name, name));
    let [flag, variable] = ["flag", "variable"].map(|name| files.write(name, whole(name)));
    files.write(".kube/config", whole("home"));
    let mut source =
        Source { file: Some(flag), environment: environment(&[&variable]), context: None };
    source.environment.home = Some(files.0.path().to_owned());
    source.environment.in_pod = true;
    let host =
        |source: &Source| chosen(source).map(|chosen| chosen.server.host().unwrap().to_owned());
    assert_eq!(host(&source).as_deref(), Ok("flag"));
    source.file = Some(PathBuf::new());
    assert_eq!(host(&source).as_deref(), Ok("variable"), "an empty flag is none");
    source.environment.kubeconfig = Some("".into());
    assert_eq!(host(&source).as_deref(), Ok("home"), "an empty variable is none");
    source.environment.kubeconfig = Some(":".into());
    assert_eq!(host(&source).unwrap_err(), "the pod", "a variable of empty names is one");
}

#[test]
fn several_files_are_one_and_the_first_that_has_a_name_has_all_of_it() {
    let files = Files::new();
    let first = format!("current-context: ''\n{}", named("a", "one"));
    let second = format!("current-context: b\n{}{}", named("b", "two"), "");
    let third = format!("current-context: a\n{}", named("a", "three"));
    let [one, two, three] = [first, second, third]
        .iter()
        .enumerate()
        .map(|(number, text)| files.write(&number.to_string(), text))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let missing = files.0.path().join("missing");
    let mut source = Source {
        environment: environment(&[&missing, &one, &two, &three, &one]),
        ..Source::default()
    };
    let now = chosen(&source).unwrap();
    assert_eq!((now.server.host(), now.namespace.as_deref()), (Some("two"), Some("ns-b")));
    source.context = Some("a".into());
    let now = chosen(&source).unwrap();
    assert_eq!((now.server.host(), now.user.token.as_deref()), (Some("one"), Some("t-a")));
    let broken = files.write("broken", "clusters: {");
    source.environment = environment(&[&one, &broken]);
    assert!(chosen(&source).unwrap_err().contains("broken is no kubeconfig"));
    source.environment = environment(&[&one, &files.0.path().to_owned()]);
    assert!(chosen(&source).unwrap_err().contains("cannot read"), "a folder is no file");
}

#[test]
fn a_broken_kubeconfig_never_becomes_the_pods_account() {
    let files = Files::new();
    let in_pod = |source: Source| {
        let environment = Environment { in_pod: true, ..source.environment };
        chosen(&Source { environment, ..source }).unwrap_err()
    };
    assert_eq!(in_pod(Source::default()), "the pod");
    let empty = files.write("empty", "");
    assert_eq!(
        in_pod(Source { environment: environment(&[&empty]), ..Source::default() }),
        "the pod"
    );
    for (content, says) in [
        ("}", "is no kubeconfig"),
        ("kind: Secret\n", "kind is Secret"),
        ("current-context: x\n", "no context x"),
        ("contexts: [{name: a}]\n", "no current-context"),
    ] {
        let path = files.write("bad", content);
        for source in [
            Source { file: Some(path.clone()), ..Source::default() },
            Source { environment: environment(&[&path]), ..Source::default() },
        ] {
            let said = in_pod(source);
            assert!(said.contains(says), "{content}: {said}");
        }
    }
    let given = |path: PathBuf| in_pod(Source { file: Some(path), ..Source::default() });
    assert!(given(files.0.path().join("missing")).contains("cannot read the kubeconfig"));
    assert!(given(empty).contains("is empty"), "a file that was named by hand is meant");
    let context = Source { context: Some("x".into()), ..Source::default() };
    assert!(in_pod(context).contains("no context x"), "so is a context");
}

#[test]
fn without_any_kubeconfig_it_is_said_where_one_was_looked_for() {
    let said = chosen(&Source::default()).unwrap_err();
    assert!(said.contains("--kubeconfig") && said.contains("KUBECONFIG"), "{said}");
    let files = Files::new();
    let missing = files.0.path().join("missing");
    let source = Source { environment: environment(&[&missing]), ..Source::default() };
    let said = chosen(&source).unwrap_err();
    assert!(said.contains(missing.to_str().unwrap()), "{said}");
}

#[test]
fn a_context_is_chosen_by_its_name() {
    let both = format!(
        "{}{}",
        "current-context: a\n",
        "contexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: c, namespace: n}}, {name: c, context: null}, {name: d, context: {cluster: gone}}]\nclusters: [{name: c, cluster: {server: 'https://host'}}]\n"
    );
    let files = Files::new();
    let file = Some(files.write("config", both));
    let with = |context: Option<&str>| {
        chosen(&Source {
            file: file.clone(),
            context: context.map(Into::into),
            ..Source::default()
        })
    };
    assert_eq!(with(None).unwrap().namespace, None);
    assert_eq!(with(Some("b")).unwrap().namespace.as_deref(), Some("n"));
    for (context, says) in [
        ("x", "no context x; there is a, b, c, d"),
        ("c", "names no cluster"),
        ("d", "the cluster gone, which is not in the kubeconfig"),
    ] {
        let said = with(Some(context)).unwrap_err();
        assert!(said.contains(says), "{said}");
    }
    let said = load("contexts: [{name: a, context: {cluster: c}}]\n").unwrap_err();
    assert!(said.contains("--context (a)"), "{said}");
}

#[test]
fn a_user_that_is_not_there_is_nobody() {
    for users in ["", "users: null\n", "users: [{name: u}]\n", "users: [{name: u, user: null}]\n"] {
        let text = format!(
            "current-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\nclusters: [{{name: c, cluster: {{{SERVER}}}}}]\n{users}"
        );
        let chosen = load(&text).unwrap();
        assert!(chosen.user.token.is_none());
        assert_eq!(chosen.nobody.is_some(), !users.contains("name: u"), "{users}");
    }
}

#[test]
fn empty_and_null_are_absent() {
    for nothing in ["''", "null", "~", "\"\""] {
        let cluster = format!(
            "{SERVER}, certificate-authority: {nothing}, certificate-authority-data: {nothing}, tls-server-name: {nothing}, \
             proxy-url: {nothing}, insecure-skip-tls-verify: null, extensions: null, disable-compression: null"
        );
        let user = format!(
            "token: {nothing}, tokenFile: {nothing}, username: {nothing}, password: {nothing}, client-certificate: {nothing}, \
             client-certificate-data: {nothing}, client-key: {nothing}, client-key-data: {nothing}, as: {nothing}, as-uid: {nothing}, \
             as-groups: null, as-user-extra: null, exec: null, auth-provider: null"
        );
        let text = config(&cluster, &user)
            .replace("user: u}", &format!("user: u, namespace: {nothing}}}"));
        let Chosen { cluster, user, namespace, proxy, nobody, .. } = load(text).unwrap();
        assert!(cluster.certificate_authority.is_none() && cluster.tls_server_name.is_none());
        assert!(user.token.is_none() && user.impersonate.is_none() && user.exec.is_none());
        assert_eq!((namespace, proxy, nobody), (None, None, None));
    }
    assert!(load("").unwrap_err().contains("is empty"));
    assert!(load("---\n").unwrap_err().contains("is empty"));
    assert!(
        load("clusters: null\ncontexts: null\nusers: null\n").unwrap_err().contains("is empty")
    );
}

#[test]
fn what_nobody_knows_is_ignored_and_what_is_said_twice_is_not() {
    let more =
        "preferences: {colors: true}\nextensions: [{name: e, extension: {a: 1}}]\nfuture: [1]\n";
    let text = config(
        &format!("{SERVER}, future: 1, extensions: [{{name: e, extension: x}}]"),
        "future: {}",
    );
    assert!(load(text.clone() + more).is_ok());
    assert!(load(text.replace("apiVersion: v1\nkind: Config\n", "")).is_ok(), "no kind is one");
    let json = r#"{"current-context":"x","contexts":[{"name":"x","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":"https://host"}}]}"#;
    assert!(load(json).is_ok());
    for (text, says) in [
        (text.replace("kind: Config", "kind: Pod"), "its kind is Pod"),
        (text.replace("apiVersion: v1", "apiVersion: v2"), "its apiVersion is v2"),
        (text.replace("users: [", "users: [{name: u, user: {}}, "), "two users with the name u"),
        (text.clone() + "clusters: []\n", "line "),
        ("users: [{name: u, user: {token: {secret: hunter2}}}]\n".into(), "line 1"),
        ("users: hunter2\n".into(), "line 1"),
    ] {
        let said = load(&text).unwrap_err();
        assert!(said.contains(says), "{text}: {said}");
        assert!(!said.contains("hunter2"), "there are secrets in it: {said}");
    }
}

#[test]
fn a_file_may_have_the_marks_of_an_editor() {
    let text = config(SERVER, "token: t");
    let wide = |mark: [u8; 2], write: fn(u16) -> [u8; 2]| {
        mark.into_iter().chain(text.encode_utf16().flat_map(write)).collect::<Vec<u8>>()
    };
    for bytes in [
        [b"\xEF\xBB\xBF", text.as_bytes()].concat(),
        wide([0xFF, 0xFE], u16::to_le_bytes),
        wide([0xFE, 0xFF], u16::to_be_bytes),
        text.replace('\n', "\r\n").into_bytes(),
    ] {
        assert_eq!(load(bytes).unwrap().user.token.as_deref(), Some("t"));
    }
    assert!(load(b"\xC0\xC1").unwrap_err().contains("no text"));
}

#[test]
fn a_server_is_a_url_or_a_host() {
    for (cluster, user, expected) in [
        ("server: 'https://host:6443'", "", "https://host:6443/"),
        ("server: 'https://host/k8s/clusters/c-1'", "", "https://host/k8s/clusters/c-1"),
        ("server: ' https://[fd12::1]:6443 '", "", "https://[fd12::1]:6443/"),
        ("server: 'http://host'", "", "http://host/"),
        ("server: 'host:8080'", "", "http://host:8080/"),
        ("server: 'host:6443', insecure-skip-tls-verify: true", "", "https://host:6443/"),
        ("server: 'host', certificate-authority: ca.crt", "", "https://host/"),
        ("server: 'host'", "client-certificate: c, client-key: k", "https://host/"),
    ] {
        let chosen = load(config(cluster, user));
        assert_eq!(chosen.map(|chosen| chosen.server.to_string()).as_deref(), Ok(expected));
    }
    for (cluster, says) in [
        ("", "has no server"),
        ("server: ''", "has no server"),
        ("server: 'ftp://host'", "no URL"),
        ("server: 'https://'", "no URL"),
        ("server: 'https://host?x=1'", "no URL"),
        ("server: 'a host'", "no URL"),
    ] {
        let said = load(config(cluster, "")).unwrap_err();
        assert!(said.contains(says), "{cluster}: {said}");
    }
}

#[test]
fn what_contradicts_itself_is_refused_with_what_to_do() {
    for (cluster, user, says) in [
        (
            "certificate-authority: a, certificate-authority-data: YQ==",
            "",
            "both certificate-authority",
        ),
        (
            "certificate-authority: a, insecure-skip-tls-verify: true",
            "",
            "insecure-skip-tls-verify: keep one",
        ),
        ("", "token: t, username: u", "a token and a username"),
        ("", "token: t, password: p", "a token and a username"),
        ("", "token: 'a b'", "characters"),
        ("", "token: ' '", "characters"),
        (
            "",
            "client-certificate: c, client-certificate-data: YQ==, client-key: k",
            "both client-certificate",
        ),
        ("", "client-certificate: c, client-key: k, client-key-data: YQ==", "both client-key"),
        ("", "client-certificate: c", "without a key"),
        ("", "client-key: k", "without a certificate"),
        ("", "as-uid: '1'", "not `as`"),
        ("", "as-groups: [g]", "not `as`"),
        ("", "as-user-extra: {a: [b]}", "not `as`"),
        ("", "exec: {}", "without a command"),
        ("", "exec: {command: c}", "without an apiVersion"),
        ("", "exec: {command: c, apiVersion: v, env: [{value: x}]}", "no name"),
        ("", "exec: {command: c, apiVersion: v, interactiveMode: Sometimes}", "interactiveMode"),
        ("", "exec: {command: c, apiVersion: v}, auth-provider: {name: gcp}", "both exec and"),
        ("proxy-url: 'ftp://p'", "", "proxy-url of the cluster c has the scheme ftp"),
        ("proxy-url: 'proxy:3128'", "", "proxy-url of the cluster c"),
        ("proxy-url: 'socks5h://p:1'", "", "socks5h"),
    ] {
        let cluster = format!("{SERVER}, {cluster}");
        let said = load(config(cluster.trim_end_matches(", "), user)).unwrap_err();
        assert!(said.contains(says), "{cluster} {user}: {said}");
    }
    for user in [
        "token: t, tokenFile: f",
        "username: u",
        "password: p",
        "as: a, as-uid: '1', as-groups: [g]",
        "exec: {command: c, apiVersion: v, args: null, env: null, interactiveMode: null}",
        "token: t, client-certificate: c, client-key: k",
    ] {
        assert!(load(config(SERVER, user)).is_ok(), "{user}");
    }
}

#[test]
fn a_command_with_a_path_is_beside_the_file_and_a_bare_one_in_the_path() {
    let files = Files::new();
    for (command, expected) in [
        ("./bin/login", files.0.path().join("./bin/login").to_str().unwrap().to_owned()),
        ("aws", "aws".to_owned()),
        ("/usr/bin/login", "/usr/bin/login".to_owned()),
    ] {
        let user =
            format!("exec: {{apiVersion: client.authentication.k8s.io/v1, command: {command}}}");
        let file = Some(files.write("config", config(SERVER, &user)));
        let chosen = chosen(&Source { file, ..Source::default() }).unwrap();
        assert_eq!(chosen.user.exec.unwrap().command, Some(expected));
    }
}

#[test]
fn a_clusters_proxy_counts_whatever_the_environment_says() {
    let files = Files::new();
    let with = |cluster: &str, none: &str| {
        let file = Some(files.write("config", config(cluster, "")));
        let proxies = Proxies {
            https: Some("http://environment:1".into()),
            http: None,
            none: Some(none.into()),
        };
        let environment = Environment { proxies, ..Environment::default() };
        let chosen = chosen(&Source { file, environment, context: None }).unwrap();
        chosen.proxy.map(|proxy| proxy.host().unwrap().to_owned())
    };
    let own = format!("{SERVER}, proxy-url: 'https://own:1'");
    assert_eq!(with(&own, "*").as_deref(), Some("own"));
    assert_eq!(with(SERVER, "").as_deref(), Some("environment"));
    assert_eq!(with(SERVER, "host").as_deref(), None, "the server's name counts, not the proxy's");
    assert_eq!(with(SERVER, "environment").as_deref(), Some("environment"));
    assert_eq!(with("server: 'http://host'", ""), None);
    assert_eq!(with("server: 'https://127.0.0.1:6443'", ""), None);
}

/// What reached an endpoint: the heads of requests, one after the other.
type Heads = Arc<Mutex<Vec<String>>>;

/// A server that is a proxy for CONNECT and an API server for the rest; both in plain HTTP.
async fn endpoint() -> (SocketAddr, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Heads::default();
    let seen = heads.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let answer = if head.starts_with("CONNECT") {
                        "HTTP/1.1 200 OK\r\n\r\n"
                    } else {
                        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
                    };
                    seen.lock().unwrap().push(head);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (address, heads)
}

fn tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn ask(cluster: &str, user: &str) -> Result<String, String> {
    let files = Files::new();
    let file = Some(files.write("config", config(cluster, user)));
    let connected = ApiServer::connect(&Source { file, ..Source::default() }, "t").await;
    let api = connected.map_err(|error| error.to_string())?;
    api.call(Call::new(Method::GET, "/version")).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_cluster_behind_a_proxy_is_reached_through_it() {
    tls();
    let (proxy, heads) = endpoint().await;
    let cluster =
        format!("server: 'http://cluster.invalid:6443', proxy-url: 'http://me:p%40ss@{proxy}'");
    assert_eq!(ask(&cluster, "token: t").await.as_deref(), Ok("{}"));
    let heads = heads.lock().unwrap().clone();
    let [connect, request] = heads.as_slice() else { panic!("{heads:?}") };
    assert!(connect.starts_with("CONNECT cluster.invalid:6443 "), "{connect}");
    // me:p@ss
    assert!(
        connect.to_lowercase().contains("proxy-authorization: basic bwu6cebzcw=="),
        "{connect}"
    );
    assert!(!connect.contains("Bearer") && request.contains("Bearer t"), "{connect}{request}");
}

#[tokio::test]
async fn a_cluster_behind_a_socks_proxy_is_reached_through_it() {
    tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 2];
        stream.read_exact(&mut hello).await.unwrap();
        let mut methods = vec![0; usize::from(hello[1])];
        stream.read_exact(&mut methods).await.unwrap();
        stream.write_all(&[5, 0]).await.unwrap();
        let mut head = [0; 5];
        stream.read_exact(&mut head).await.unwrap();
        let mut name = vec![0; usize::from(head[4]) + 2];
        stream.read_exact(&mut name).await.unwrap();
        stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while line.trim_end() != "" || line.is_empty() {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        (head[3], String::from_utf8_lossy(&name[..name.len() - 2]).into_owned())
    });
    let cluster = format!("server: 'http://cluster.invalid:6443', proxy-url: 'socks5://{proxy}'");
    assert_eq!(ask(&cluster, "").await.as_deref(), Ok("{}"));
    let by_name = 3;
    assert_eq!(served.await.unwrap(), (by_name, "cluster.invalid".to_owned()));
}

#[tokio::test]
async fn a_user_is_who_the_kubeconfig_says() {
    tls();
    let files = Files::new();
    let token = files.write("token", "from-file\n");
    let token = token.display();
    let script = "#!/bin/sh\necho '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{\"token\":\"'$WHO'\"}}'\n";
    let program = files.write("login", script);
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, executable).unwrap();
    let exec = format!(
        "apiVersion: client.authentication.k8s.io/v1, command: {}, env: [{{name: WHO, value: x7}}]",
        program.display()
    );
    for (user, expected) in [
        ("token: t".to_owned(), &["authorization: Bearer t\r\n"][..]),
        ("token: \"t\\n\"".to_owned(), &["authorization: Bearer t\r\n"]),
        (format!("tokenFile: {token}"), &["authorization: Bearer from-file\r\n"]),
        (format!("tokenFile: {token}, token: inline"), &["authorization: Bearer from-file\r\n"]),
        ("tokenFile: /missing, token: inline".to_owned(), &["authorization: Bearer inline\r\n"]),
        ("username: u, password: p".to_owned(), &["authorization: Basic dTpw\r\n"]),
        ("username: u".to_owned(), &["authorization: Basic dTo=\r\n"]),
        (format!("exec: {{{exec}}}"), &["authorization: Bearer x7\r\n"]),
        (format!("token: t, exec: {{{exec}}}"), &["authorization: Bearer t\r\n"]),
        (
            "token: t, as: jane, as-uid: '7', as-groups: [a, b]".to_owned(),
            &[
                "impersonate-user: jane\r\n",
                "impersonate-uid: 7\r\n",
                "impersonate-group: a\r\n",
                "impersonate-group: b\r\n",
            ],
        ),
    ] {
        let (address, heads) = endpoint().await;
        let answer = ask(&format!("server: 'http://{address}/prefix/'"), &user).await;
        assert_eq!(answer.as_deref(), Ok("{}"), "{user}");
        let head = heads.lock().unwrap().concat();
        assert!(head.starts_with("GET /prefix/version"), "{head}");
        for line in expected {
            assert!(head.contains(line), "{user}: no {line:?} in {head}");
        }
    }
    let (address, heads) = endpoint().await;
    ask(&format!("server: 'http://{address}'"), "").await.unwrap();
    assert!(!heads.lock().unwrap().concat().contains("authorization"), "nobody is nobody");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    tls();
    let files = Files::new();
    let garbage = files.write("garbage", "not PEM");
    let garbage = garbage.display();
    for (cluster, user, says) in [
        (
            "certificate-authority: /missing/ca".to_owned(),
            String::new(),
            "certificate-authority /missing/ca",
        ),
        (format!("certificate-authority: {garbage}"), String::new(), "garbage has no certificate"),
        (
            "certificate-authority-data: '!'".to_owned(),
            String::new(),
            "certificate-authority-data is not base64",
        ),
        (
            "certificate-authority-data: YQ==".to_owned(),
            String::new(),
            "certificate-authority-data has no certificate",
        ),
        (String::new(), "tokenFile: /missing/token".to_owned(), "/missing/token"),
        (
            String::new(),
            format!("client-certificate: /missing/crt, client-key: {garbage}"),
            "client-certificate /missing/crt",
        ),
        (String::new(), "exec: {apiVersion: v1, command: /missing/login}".to_owned(), "auth exec"),
    ] {
        let cluster = format!("{SERVER}, {cluster}");
        let said = ask(cluster.trim_end_matches(", "), &user).await.unwrap_err();
        assert!(said.contains(says), "{cluster} {user}: {said}");
    }
}

#[tokio::test]
async fn an_answer_that_was_compressed_on_the_way_is_named() {
    tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = [0; 4096];
        let _ = stream.read(&mut bytes).await.unwrap();
        let answer =
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b";
        stream.write_all(answer).await.unwrap();
    });
    let files = Files::new();
    let file = Some(files.write("config", config(&format!("server: 'http://{address}'"), "")));
    let api = ApiServer::connect(&Source { file, ..Source::default() }, "t").await.unwrap();
    let error = api.call(Call::new(Method::GET, "/version")).await.unwrap_err();
    assert!(nagaya::causes::all(&error).contains("compressed (gzip)"), "{error:?}");
}

#[tokio::test]
async fn a_host_whose_kubeconfig_acts_as_another_does_not_start() {
    tls();
    let files = Files::new();
    let file = Some(files.write("config", config(SERVER, "token: t, as: jane")));
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        aggregated: None,
        kubeconfig: Source { file, ..Source::default() },
        data: files.0.path().join("data"),
        api: any,
        probes: any,
        metrics: any,
        controllers: None,
        lease: LeaseName { namespace: None, name: "n".into() },
        lease_profile: Profile::FAST,
        slots: 1,
        memory_ceiling: 64 << 20,
        guest_memory: None,
        team_caches: None,
        max_module: 1 << 20,
        registries: nagaya::modules::oci::Settings::default(),
        policy: nagaya::modules::policy::Policy::default(),
    };
    let said = App::new(config).await.unwrap_err().to_string();
    assert!(said.contains("acts as jane") && said.contains("credentials of its own"), "{said}");
}
