//! A registry on a loopback address, and what is fetched from it.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use kcore::TokioClock;
use kruntime::{
    images::{ContentStore, Credentials, Digest, Platform, Reference, Registry},
    testing::images::{Tar, write_layout},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// Serves the layouts below a directory as repositories, to those who have a token, which those get who know the password.
struct TestRegistry {
    address: String,
    seen: Arc<Mutex<Vec<String>>>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Door {
    Open,
    Token,
    Basic,
}

const BASIC: &str = "Basic bWU6c2VjcmV0";

impl TestRegistry {
    async fn start(root: &Path, door: Door) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, root, own) = (Arc::default(), root.to_owned(), address.clone());
        let log = Arc::clone(&seen);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (root, log, own) = (root.clone(), Arc::clone(&log), own.clone());
                tokio::spawn(async move {
                    let answer = service_fn(|request| {
                        let answer = answer(&root, door, &own, &log, &request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        });
        Self { address, seen, _serving: AbortOnDropHandle::new(serving) }
    }
}

fn answer(
    root: &Path,
    door: Door,
    own: &str,
    log: &Mutex<Vec<String>>,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let authorization =
        request.headers().get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
    log.lock().unwrap().push(path.to_owned());
    let status = |status: StatusCode| Response::builder().status(status);
    let empty = |response: http::response::Builder| response.body(Full::default()).unwrap();
    if path == "/token" {
        let query = request.uri().query().unwrap_or_default();
        assert!(
            query.contains("service=test%20registry")
                && query.contains("scope=repository%3Ateam%2Fapp%3Apull"),
            "{query}"
        );
        if authorization != BASIC {
            return empty(status(StatusCode::UNAUTHORIZED));
        }
        return status(StatusCode::OK).body(json!({"token": "t0ken"}).to_string().into()).unwrap();
    }
    let (challenge, wanted) = match door {
        Door::Open => (String::new(), ""),
        Door::Basic => ("Basic realm=\"r\"".to_owned(), BASIC),
        Door::Token => (
            format!(
                "Bearer realm=\"http://{own}/token\",service=\"test registry\",scope=\"repository:team/app:pull\""
            ),
            "Bearer t0ken",
        ),
    };
    // A blob is served elsewhere, where no token may be shown.
    if let Some(digest) = path.strip_prefix("/elsewhere/") {
        let found = std::fs::read(root.join("blobs/sha256").join(digest));
        return found
            .map_or_else(|_| empty(status(StatusCode::NOT_FOUND)), |bytes| Response::new(bytes.into()));
    }
    if authorization != wanted {
        return empty(status(StatusCode::UNAUTHORIZED).header("www-authenticate", challenge));
    }
    let Some(rest) = path.strip_prefix("/v2/team/app/") else {
        let body = json!({"errors": [{"code": "NAME_UNKNOWN", "message": "no such repository"}]});
        return status(StatusCode::NOT_FOUND).body(body.to_string().into()).unwrap();
    };
    match rest.split_once('/') {
        Some(("blobs", digest)) => empty(
            status(StatusCode::TEMPORARY_REDIRECT).header("location", format!("/elsewhere/{}", &digest[7..])),
        ),
        Some(("manifests", "v1")) => Response::new(std::fs::read(root.join("index.json")).unwrap().into()),
        Some(("manifests", digest)) if digest.starts_with("sha256:") => {
            let found = std::fs::read(root.join("blobs/sha256").join(&digest[7..]));
            found.map_or_else(|_| empty(status(StatusCode::NOT_FOUND)), |bytes| Response::new(bytes.into()))
        }
        _ => empty(status(StatusCode::NOT_FOUND)),
    }
}

/// A layout whose index has an entry for another machine before ours.
fn layout(dir: &Path) -> PathBuf {
    let root = dir.join("layout");
    let layers =
        [Tar::default().file("a", 0o644, b"a").finish(), Tar::default().file("b", 0o644, b"b").finish()];
    write_layout(&root, "x", &json!({"Cmd": ["/a"]}), &layers).unwrap();
    let mut index: Value = serde_json::from_slice(&std::fs::read(root.join("index.json")).unwrap()).unwrap();
    let Platform { os, architecture, .. } = Platform::of_this_machine();
    index["manifests"][0]["platform"] = json!({"os": os, "architecture": architecture});
    let mut other = index["manifests"][0].clone();
    other["platform"]["architecture"] = json!("s390x");
    other["digest"] = json!(Digest::of(b"not there"));
    index["manifests"].as_array_mut().unwrap().insert(0, other);
    std::fs::write(root.join("index.json"), index.to_string()).unwrap();
    root
}

fn client() -> Registry {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Registry::new(tls)
}

fn password(registry: &TestRegistry, auth: &str) -> Credentials {
    Credentials::parse(json!({"auths": {&registry.address: {"auth": auth}}}).to_string().as_bytes()).unwrap()
}

#[tokio::test]
async fn images_are_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let root = layout(dir.path());
    for (door, number) in [(Door::Open, 0), (Door::Token, 1), (Door::Basic, 2)] {
        let registry = TestRegistry::start(&root, door).await;
        let store =
            ContentStore::open(dir.path().join(format!("store{number}")), Arc::new(TokioClock::new()))
                .unwrap();
        let name: Reference = format!("{}/team/app:v1", registry.address).parse().unwrap();
        let credentials = password(&registry, "bWU6c2VjcmV0");
        let image = client().pull(&store, &name, &credentials).await.unwrap();
        assert_eq!(store.unpack(&image).unwrap().len(), 2);
        assert_eq!(store.find(&name).unwrap().id, image.id);
        // By its digest, and nothing that is there is fetched again.
        registry.seen.lock().unwrap().clear();
        let by_digest: Reference =
            format!("{}/team/app@{}", registry.address, image.manifest).parse().unwrap();
        client().pull(&store, &by_digest, &credentials).await.unwrap();
        let seen = registry.seen.lock().unwrap().clone();
        assert!(!seen.iter().any(|path| path.contains("/blobs/")), "{seen:?}");
    }
}

/// The words are containerd's, as `kubectl describe` shows them.
#[tokio::test]
async fn failures_are_told_in_words_that_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let root = layout(dir.path());
    let store = ContentStore::open(dir.path().join("store"), Arc::new(TokioClock::new())).unwrap();
    let guarded = TestRegistry::start(&root, Door::Token).await;
    let open = TestRegistry::start(&root, Door::Open).await;
    let check = async |name: &str, credentials: &Credentials, expected: &str| {
        let error = client().pull(&store, &name.parse().unwrap(), credentials).await.unwrap_err().to_string();
        let begin = format!("failed to pull and unpack image \"{name}\": ");
        assert!(error.starts_with(&begin) && error.contains(expected), "{error}");
    };
    let none = Credentials::default();
    let (open_at, guarded_at) = (open.address.clone(), guarded.address.clone());
    let name = format!("{open_at}/team/none:v1");
    check(&name, &none, &format!("failed to resolve reference \"{name}\": {name}: not found")).await;
    check(&format!("{open_at}/team/app:v2"), &none, "not found").await;
    check(&format!("{guarded_at}/team/app:v1"), &none, "pull access denied").await;
    check(&format!("{guarded_at}/team/app:v1"), &password(&guarded, "bWU6d3Jvbmc="), "pull access denied")
        .await;
    // Nobody listens on port 1.
    check("127.0.0.1:1/team/app:v1", &none, "onnection refused").await;
    // A layer that is not what its digest says.
    for blob in std::fs::read_dir(root.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()) {
        if std::fs::read(&blob).unwrap().starts_with(b"a\0") {
            let length = std::fs::metadata(&blob).unwrap().len();
            std::fs::write(&blob, vec![0; usize::try_from(length).unwrap()]).unwrap();
        }
    }
    check(&format!("{open_at}/team/app:v1"), &none, "expected sha256:").await;
    assert!(store.images().is_empty());
}
