//! Signatures in every place where cosign puts them, and registries that lie about them, through the real child.

use std::{
    collections::HashMap,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures::stream;
use nagaya::{
    model::digest::Digest,
    modules::{
        oci::{Error, Flaw, Image, Registries, Registry, Settings},
        policy::{Demand, Policy},
    },
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

// Made by cosign 3.1.3, which signs one image in three ways.
const MANIFEST: &[u8] = include_bytes!("vectors/artifact.manifest.json");
const REFERRER: &[u8] = include_bytes!("vectors/bundle.manifest.json");
const BUNDLE: &[u8] = include_bytes!("vectors/bundle.v0.3.json");
const OLDER: &[u8] = include_bytes!("vectors/simplesigning.manifest.json");
const PAYLOAD: &[u8] = include_bytes!("vectors/simplesigning.payload.json");
const KEY: &str = include_str!("vectors/cosign.pub");

const LIMIT: u64 = 64 << 10;
const TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// What is where in the repository `web`; another path is 404.
#[derive(Clone, Default)]
struct Shelf(HashMap<String, Answer>);

#[derive(Clone)]
enum Answer {
    Bytes(Vec<u8>),
    Code(StatusCode),
    Endless,
}

impl Shelf {
    /// The image alone.
    fn image() -> Self {
        let mut shelf = Self::default();
        shelf.at(&format!("manifests/{}", image()), Answer::Bytes(MANIFEST.to_vec()));
        shelf
    }

    fn at(&mut self, path: &str, answer: Answer) -> &mut Self {
        self.0.insert(format!("/v2/web/{path}"), answer);
        self
    }

    fn manifest(&mut self, reference: &str, bytes: &[u8]) -> &mut Self {
        self.at(&format!("manifests/{reference}"), Answer::Bytes(bytes.to_vec()))
    }

    fn referrer(&mut self) -> &mut Self {
        self.manifest(&Digest::of(REFERRER).to_string(), REFERRER).blob(BUNDLE)
    }

    fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        self.at(&format!("blobs/{}", Digest::of(bytes)), Answer::Bytes(bytes.to_vec()))
    }

    /// The referrers API.
    fn listing(&mut self, listed: &[Value]) -> &mut Self {
        self.at(&format!("referrers/{}", image()), Answer::Bytes(index(listed)))
    }

    /// The tag in the place of it.
    fn tagging(&mut self, listed: &[Value]) -> &mut Self {
        let tag = image().to_string().replace(':', "-");
        self.manifest(&tag, &index(listed))
    }

    fn older(&mut self, manifest: &[u8]) -> &mut Self {
        let tag = image().to_string().replace(':', "-");
        self.manifest(&format!("{tag}.sig"), manifest).blob(PAYLOAD)
    }

    /// Serves it; its address, and how often it is asked.
    async fn serve(self) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (asked, shelf) = (Arc::new(AtomicUsize::new(0)), Arc::new(self));
        let counted = asked.clone();
        let router = Router::new().fallback(move |uri: Uri| {
            // The client asks before each question whether it has to log in.
            counted.fetch_add(usize::from(uri.path() != "/v2/"), Ordering::Relaxed);
            let answer = shelf.0.get(uri.path()).cloned();
            async move { answer.map_or_else(|| StatusCode::NOT_FOUND.into_response(), answered) }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        (address, asked)
    }
}

fn answered(answer: Answer) -> Response {
    match answer {
        Answer::Bytes(bytes) => bytes.into_response(),
        Answer::Code(code) => code.into_response(),
        Answer::Endless => {
            let part = Bytes::from(vec![b' '; 64 << 10]);
            let parts = stream::repeat_with(move || Ok::<_, std::io::Error>(part.clone()));
            Body::from_stream(parts).into_response()
        }
    }
}

fn image() -> Digest {
    Digest::of(MANIFEST)
}

fn component() -> Digest {
    let manifest: Value = serde_json::from_slice(MANIFEST).unwrap();
    manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap()
}

fn index(listed: &[Value]) -> Vec<u8> {
    let kind = "application/vnd.oci.image.index.v1+json";
    json!({ "schemaVersion": 2, "mediaType": kind, "manifests": listed }).to_string().into_bytes()
}

fn listed(manifest: &[u8], kind: &str) -> Value {
    let of = "application/vnd.oci.image.manifest.v1+json";
    json!({ "mediaType": of, "digest": Digest::of(manifest).to_string(), "size": manifest.len(), "artifactType": kind })
}

/// A manifest of something else beside the image.
fn other(number: usize, subject: &Digest) -> Vec<u8> {
    let layer = json!({ "mediaType": TYPE, "digest": Digest::of(BUNDLE).to_string(), "size": 1 });
    let subject = json!({ "mediaType": "x", "digest": subject.to_string(), "size": 1 });
    json!({ "schemaVersion": 2, "layers": [layer], "subject": subject, "number": number })
        .to_string()
        .into_bytes()
}

fn registries(known: &[(&str, Option<&str>)], program: PathBuf) -> Registries {
    let known = known.iter().map(|(name, mirror)| Registry {
        name: (*name).to_owned(),
        plain_http: true,
        mirror: mirror.map(str::to_owned),
        ..Registry::default()
    });
    let settings = Settings { registries: known.collect(), ..Settings::default() };
    Registries::new(settings, LIMIT, Some(program))
}

fn demand() -> Demand {
    let policy = json!({
        "signers": { "platform": KEY }, "rules": [{ "namespaces": ["*"], "signedBy": ["platform"] }],
    });
    let policy: Policy = serde_json::from_value(policy).unwrap();
    policy.demand("demo").unwrap().clone()
}

/// What is said of the image there; empty if it is signed.
async fn said(shelf: &Shelf) -> (String, usize) {
    let (address, asked) = shelf.clone().serve().await;
    let registries = registries(&[(&address, None)], PathBuf::from(env!("CARGO_BIN_EXE_nagaya")));
    let image = format!("{address}/web:1").parse::<Image>().unwrap().pinned(&image());
    let proved = registries.prove((&image, &component()), None, &demand()).await;
    let said = proved.err().map_or_else(String::new, |error| error.to_string());
    (said, asked.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_signature_is_found_wherever_cosign_puts_it() {
    let mine = listed(REFERRER, TYPE);
    // As some registries call it.
    let by_config = listed(REFERRER, "application/vnd.oci.empty.v1+json");
    let stranger = other(0, &Digest::of(b"another image"));
    let many: Vec<_> =
        (0..10_000).map(|number| listed(&other(number, &image()), "a/report")).collect();
    let mut noted = listed(REFERRER, "a/report");
    noted["annotations"] =
        json!({ "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1" });
    let mut shelves: Vec<(&str, Shelf)> = vec![];
    let mut shelf = |name, fill: &dyn Fn(&mut Shelf)| {
        let mut shelf = Shelf::image();
        fill(&mut shelf);
        shelves.push((name, shelf));
    };
    shelf("listed", &|it| {
        it.referrer().listing(&[mine.clone()]);
    });
    shelf("under a tag", &|it| {
        it.referrer().tagging(&[mine.clone()]);
    });
    shelf("by config", &|it| {
        it.referrer().tagging(&[by_config.clone()]);
    });
    shelf("the older form", &|it| {
        it.older(OLDER);
    });
    shelf("older, listing nothing", &|it| {
        it.listing(&[]).older(OLDER);
    });
    shelf("no such list", &|it| {
        let path = format!("referrers/{}", image());
        it.referrer()
            .tagging(&[mine.clone()])
            .at(&path, Answer::Code(StatusCode::METHOD_NOT_ALLOWED));
    });
    // The tag leads to the image itself.
    shelf("older, odd tag", &|it| {
        let tag = image().to_string().replace(':', "-");
        it.manifest(&tag, MANIFEST).older(OLDER);
    });
    shelf("behind a stranger's and one that is gone", &|it| {
        let gone = listed(b"gone", TYPE);
        let all = [listed(&stranger, TYPE), gone, mine.clone()];
        it.manifest(&Digest::of(&stranger).to_string(), &stranger).referrer().listing(&all);
    });
    shelf("behind 10,000 reports", &|it| {
        it.referrer().listing(&[many.clone(), vec![mine.clone()]].concat());
    });
    shelf("by its annotation", &|it| {
        it.referrer().listing(&[many.clone(), vec![noted.clone()]].concat());
    });
    for (name, shelf) in shelves {
        let (said, asked) = said(&shelf).await;
        assert_eq!(said, "", "{name}");
        assert!(asked < 100, "{name}: {asked} requests");
    }
}

#[tokio::test]
async fn a_registry_that_lies_about_signatures_costs_a_sentence() {
    let mine = listed(REFERRER, TYPE);
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let many: Vec<_> = (0..10_000).map(|number| listed(&other(number, &image()), TYPE)).collect();
    let listing = format!("referrers/{}", image());
    let bundle = format!("blobs/{}", Digest::of(BUNDLE));
    let payload = format!("blobs/{}", Digest::of(PAYLOAD));
    let mut shelves: Vec<(&str, Shelf, &str)> = vec![];
    let mut shelf = |name, words, fill: &dyn Fn(&mut Shelf)| {
        let mut shelf = Shelf::image();
        fill(&mut shelf);
        shelves.push((name, shelf, words));
    };
    shelf("nothing", "it is not signed", &|_| ());
    shelf("changed bundle", "or they were changed", &|it| {
        let at = BUNDLE.windows(8).position(|part| part == b"\"sig\":\"M").unwrap() + 20;
        it.referrer().listing(&[mine.clone()]).at(&bundle, Answer::Bytes(flipped(BUNDLE, at)));
    });
    shelf("changed payload", "or they were changed", &|it| {
        it.older(OLDER).at(&payload, Answer::Bytes(flipped(PAYLOAD, 90)));
    });
    shelf("endless bundle", "it is not signed", &|it| {
        it.referrer().listing(&[mine.clone()]).at(&bundle, Answer::Endless);
    });
    shelf("endless list", "take more than a pull may use", &|it| {
        it.at(&listing, Answer::Endless);
    });
    shelf("endless referrer", "take more than a pull may use", &|it| {
        it.listing(&[mine.clone()])
            .at(&format!("manifests/{}", Digest::of(REFERRER)), Answer::Endless);
    });
    shelf("10,000 that are not there", "it is not signed", &|it| {
        it.listing(&many);
    });
    shelf("nonsense", "it is not signed", &|it| {
        it.at(&listing, Answer::Bytes(b"hello".to_vec())).older(b"[]");
    });
    shelf("busy", "cannot be reached or does not answer", &|it| {
        it.older(OLDER).at(&listing, Answer::Code(StatusCode::SERVICE_UNAVAILABLE));
    });
    shelf("another manifest", "not what was asked for", &|it| {
        it.manifest(&image().to_string(), &flipped(MANIFEST, 100)).older(OLDER);
    });
    for (name, shelf, words) in shelves {
        let (said, asked) = said(&shelf).await;
        println!("{name}: {said}");
        assert!(said.contains(words) && said.len() < 1_000, "{name}: {said}");
        assert!(asked < 100, "{name}: {asked} requests");
    }
}

/// A mirror rarely has what stands beside an image.
#[tokio::test]
async fn what_the_mirror_cannot_prove_the_registry_is_asked_for() {
    let (mirror, asked) = Shelf::image().serve().await;
    let mut shelf = Shelf::image();
    shelf.older(OLDER);
    let (own, _) = shelf.serve().await;
    let known = [(&*own, Some(&*mirror)), (&mirror, None)];
    let registries = registries(&known, PathBuf::from(env!("CARGO_BIN_EXE_nagaya")));
    let image = format!("{own}/web:1").parse::<Image>().unwrap().pinned(&image());
    registries.prove((&image, &component()), None, &demand()).await.unwrap();
    assert!(asked.load(Ordering::Relaxed) > 0);
}

/// Whatever the child brings is checked by the host.
#[tokio::test]
async fn a_child_is_not_believed_about_signatures() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("child");
    let manifest = std::str::from_utf8(MANIFEST).unwrap();
    let encoded = |text: &str| serde_json::to_value(k8s_openapi::ByteString(text.into())).unwrap();
    let bundle = json!({ "Bundle": encoded(std::str::from_utf8(BUNDLE).unwrap()) });
    let good = json!({ "manifest": encoded(manifest), "signatures": [bundle] });
    let image = "registry.example.com/web:1".parse::<Image>().unwrap().pinned(&image());
    let mut at_all = false;
    for (brought, of, flaw) in [
        (good.to_string(), component(), None),
        ("lies".to_owned(), component(), Some("cannot be read")),
        (good.to_string(), Digest::of(b"uploaded by somebody"), Some("another component")),
        (
            json!({ "manifest": encoded(&manifest.replace("wasm", "wasn")), "signatures": [bundle] })
                .to_string(),
            component(),
            Some("its manifest was changed"),
        ),
        (
            json!({ "manifest": encoded(manifest), "signatures": [] }).to_string(),
            component(),
            Some("it is not signed"),
        ),
    ] {
        std::fs::write(&program, format!("#!/bin/sh\nprintf '%s' '{brought}'\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let registries = registries(&[], program.clone());
        let proved = registries.prove((&image, &of), None, &demand()).await;
        match (proved, flaw) {
            (Ok(_), None) => at_all = true,
            (Err(error @ Error::NotSigned { .. }), Some(words)) => {
                let said = error.to_string();
                assert!(said.contains(words) && said.contains("platform"), "{said}");
                assert!(!matches!(error, Error::NotSigned { flaw: Flaw::OtherKey, .. }), "{said}");
            }
            (proved, flaw) => panic!("{flaw:?}: {proved:?}"),
        }
    }
    assert!(at_all);
}
