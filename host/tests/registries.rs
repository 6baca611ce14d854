//! Registries that do everything wrong, and the real child that speaks with them: the host keeps its size, and each ends in a
//! sentence.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::stream;
use nagaya::{
    model::digest::Digest,
    modules::{
        Modules,
        oci::{Error, Image, Registries, Registry, Settings},
    },
};
use serde_json::json;
use tokio::net::TcpListener;

/// The largest component of these hosts.
const LIMIT: u64 = 64 << 10;

/// A registry whose repositories are named for what they do.
async fn registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = Router::new()
        .route("/v2/", get(|| async { "{}" }))
        .route("/v2/{repository}/manifests/{reference}", get(manifest))
        .route("/v2/{repository}/blobs/{digest}", get(blob));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn endless() -> Response {
    let part = Bytes::from(vec![b' '; 64 << 10]);
    let parts = stream::repeat_with(move || Ok::<_, std::io::Error>(part.clone()));
    Body::from_stream(parts).into_response()
}

/// The largest component that a host takes.
fn large() -> Vec<u8> {
    (0..32 << 20).map(|at: u32| at.to_le_bytes()[usize::from(at.is_multiple_of(3))]).collect()
}

fn component() -> Vec<u8> {
    b"\0asm and so on".to_vec()
}

async fn manifest(Path((repository, _)): Path<(String, String)>) -> Response {
    let layer = |size: u64| json!({ "mediaType": "application/wasm", "digest": Digest::of(&component()).to_string(), "size": size });
    let of = |layers: Vec<serde_json::Value>| {
        let body = json!({ "schemaVersion": 2, "config": { "mediaType": "x", "digest": Digest::of(b"c").to_string(), "size": 1 }, "layers": layers });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        ([(header::CONTENT_TYPE, kind)], body.to_string()).into_response()
    };
    match &*repository {
        "endless" => endless(),
        "huge" => of(vec![layer(1 << 40)]),
        "none" => of(vec![]),
        "busy" => (StatusCode::SERVICE_UNAVAILABLE, "later").into_response(),
        "closed" => StatusCode::UNAUTHORIZED.into_response(),
        "loop" => {
            let body = json!({ "manifests": [{ "digest": Digest::of(b"other").to_string(), "mediaType": "x", "size": 1 }] });
            body.to_string().into_response()
        }
        "text" => "hello".into_response(),
        "long" => of((0..10_000)
            .map(|_| json!({ "mediaType": "t".repeat(60), "digest": "d", "size": 1 }))
            .collect()),
        "good" | "liar" | "stream" => of(vec![layer(14)]),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn blob(Path((repository, _)): Path<(String, String)>) -> Response {
    match &*repository {
        "good" => component().into_response(),
        "liar" => b"\0asm and so ON".to_vec().into_response(),
        "stream" => endless(),
        "large" => large().into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn host(address: &str, mirror: Option<&str>) -> Registries {
    let known =
        |name: &str| Registry { name: name.to_owned(), plain_http: true, ..Registry::default() };
    let mirrored = mirror
        .map(|mirror| Registry { mirror: Some(mirror.to_owned()), ..known("nowhere.invalid") });
    let settings = Settings {
        registries: mirrored.into_iter().chain([known(address)]).collect(),
        ..Settings::default()
    };
    Registries::new(settings, LIMIT, Some(PathBuf::from(env!("CARGO_BIN_EXE_nagaya"))))
}

fn image(text: &str) -> Image {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_hostile_registry_costs_a_sentence() {
    let address = registry().await;
    let registries = host(&address, None);
    for (repository, words) in [
        ("endless", "take more than a pull may use"),
        ("huge", "1099511627776 bytes"),
        ("none", "no component"),
        ("busy", "cannot be reached or does not answer"),
        ("closed", "imagePullSecrets"),
        ("missing", "missing"),
        ("loop", "loop"),
        ("text", "cannot be read"),
        ("long", "9995 more"),
    ] {
        let asked = registries.resolve(&image(&format!("{address}/{repository}:1")), None).await;
        let said = asked.expect_err(repository).to_string();
        println!("{repository}: {said}");
        assert!(said.contains(words) && said.len() < 2_000, "{repository}: {said}");
    }
    let nobody = image("127.0.0.1:9/web:1");
    let said = registries.resolve(&nobody, None).await.unwrap_err();
    assert!(matches!(said, Error::Unreachable { .. }), "{said}");
}

#[tokio::test]
async fn only_what_has_its_digest_is_stored() {
    let address = registry().await;
    let registries = host(&address, None);
    let folder = tempfile::tempdir().unwrap();
    let modules = Modules::open(folder.path()).unwrap();
    let digest = Digest::of(&component());
    for (repository, words) in
        [("liar", "not what was asked for"), ("stream", "takes at most 65536"), ("none", "none")]
    {
        let image = image(&format!("{address}/{repository}:1"));
        let pulled = registries.pull(&image, &digest, None, &modules).await;
        let said = pulled.expect_err(repository).to_string();
        assert!(said.contains(words), "{repository}: {said}");
        assert!(!modules.has(&digest), "{repository}");
    }
    let good = image(&format!("{address}/good:1"));
    let resolved = registries.resolve(&good, None).await.unwrap();
    assert_eq!(resolved.digest, digest);
    assert!(resolved.image.manifest().is_some(), "{}", resolved.image);
    // What is pinned must be what it was.
    let other = good.pinned(&Digest::of(b"another manifest"));
    let said = registries.resolve(&other, None).await.unwrap_err();
    assert!(matches!(said, Error::Tampered { .. }), "{said}");
    registries.pull(&resolved.image, &digest, None, &modules).await.unwrap();
    assert_eq!(modules.read(&digest).unwrap().as_deref(), Some(&component()[..]));
}

/// Whatever the child brings is hashed by the host.
#[tokio::test]
async fn a_child_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (program, modules) = (folder.path().join("child"), folder.path().join("modules"));
    std::fs::write(&program, "#!/bin/sh\nprintf lies\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let registries = Registries::new(Settings::default(), LIMIT, Some(program));
    let digest = Digest::of(&component());
    let pinned = image("registry.example.com/web:1").pinned(&digest);
    let said = registries.resolve(&pinned, None).await.unwrap_err();
    assert!(matches!(said, Error::Tampered { .. }), "{said}");
    let modules = Modules::open(&modules).unwrap();
    let said = registries.pull(&pinned, &digest, None, &modules).await.unwrap_err();
    assert!(matches!(said, Error::Tampered { .. }), "{said}");
    assert!(!modules.has(&digest));
}

/// The child has little memory, and enough.
#[tokio::test]
async fn the_largest_component_can_be_pulled() {
    let address = registry().await;
    let settings = Settings {
        registries: vec![Registry {
            name: address.clone(),
            plain_http: true,
            ..Registry::default()
        }],
        ..Settings::default()
    };
    let program = Some(PathBuf::from(env!("CARGO_BIN_EXE_nagaya")));
    let registries = Registries::new(settings, 32 << 20, program);
    let folder = tempfile::tempdir().unwrap();
    let modules = Modules::open(folder.path()).unwrap();
    let digest = Digest::of(&large());
    let image = image(&format!("{address}/large:1"));
    registries.pull(&image, &digest, None, &modules).await.unwrap();
    assert!(modules.has(&digest));
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_where_it_has_nothing() {
    let address = registry().await;
    let registries = host(&address, Some(&address));
    let begun = tokio::time::Instant::now();
    let resolved = registries.resolve(&image("nowhere.invalid/good:1"), None).await.unwrap();
    assert_eq!(resolved.image.repository(), "nowhere.invalid/good", "the name is the image's own");
    let said = registries.resolve(&image("nowhere.invalid/missing:1"), None).await;
    let said = said.unwrap_err().to_string();
    assert!(said.starts_with("nowhere.invalid/missing"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{said}");
}
