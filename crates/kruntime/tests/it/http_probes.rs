//! Probes by HTTP and HTTPS, of real servers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kcore::SystemClock;
use knet::{AddressRange, loopback::LoopbackBlock};
use kreconcile::{Informers, Manager, Start};
use kruntime::{
    NodeAgent, NodeConfig,
    runtime::process::{ProcessOptions, ProcessRuntime},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, rustls};
use tokio_util::task::AbortOnDropHandle;

use crate::fake::FakeApi;

const PATIENCE: Duration = Duration::from_secs(60);

/// `/to/X` leads to the path `X`, `/away` to another host, `/round` to itself; `/fine` is fine, everything else is not found.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let moved = |location: &str| {
        let response = Response::builder().status(302).header("location", location);
        response.body(Full::from("moved")).unwrap()
    };
    let path = request.uri().path();
    Ok(match path {
        "/fine" => Response::new(Full::from("fine")),
        "/away" => moved("http://elsewhere.example/fine"),
        "/round" => moved("/round"),
        path if path.starts_with("/to/") => moved(&path[3..]),
        _ => Response::builder().status(404).body(Full::default()).unwrap(),
    })
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let service = hyper::service::service_fn(answer);
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A server, with a certificate that nobody knows where `tls` is set.
async fn listen(address: SocketAddr, tls: bool) -> AbortOnDropHandle<()> {
    let key = rcgen::generate_simple_self_signed(vec!["somebody.example".to_owned()]).unwrap();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(address).await.unwrap();
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match tls {
                    false => serve(stream).await,
                    true => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(stream).await;
                        }
                    }
                }
            });
        }
    }))
}

#[tokio::test]
async fn servers_are_asked_by_http_and_https() {
    let (api, dir, block) =
        (FakeApi::default(), tempfile::tempdir().unwrap(), LoopbackBlock::claim().unwrap());
    let addresses: AddressRange = block.pods()[0].parse().unwrap();
    let clock = Arc::new(SystemClock);
    let options = ProcessOptions::new(dir.path().join("runtime"), Arc::new(addresses), clock.clone());
    let informers = Informers::new(api.client());
    let mut config = NodeConfig::new("node", Arc::new(ProcessRuntime::new(options).unwrap()));
    config.state_dir = Some(dir.path().join("node"));
    let agent = NodeAgent::new(&informers, clock, [config]);
    let _running = Manager::new().informers(&informers).add(Start::Always, agent).start();
    let container = |name: &str, scheme: &str, port: u16, path: &str| {
        // Nobody is restarted, and a busy machine may need its time.
        json!({"name": name, "image": "i", "command": ["sleep", "1000"], "readinessProbe": {
            "httpGet": {"scheme": scheme, "port": port, "path": path}, "periodSeconds": 1, "timeoutSeconds": 30}})
    };
    let containers = [
        container("plain", "HTTP", 5000, "/fine"),
        container("tls", "HTTPS", 5001, "/fine"),
        container("moved", "HTTPS", 5001, "/to/fine"),
        container("away", "HTTP", 5000, "/away"),
        container("lost", "HTTP", 5000, "/to/nowhere"),
        container("round", "HTTP", 5000, "/round"),
        container("mixed", "HTTPS", 5000, "/fine"),
    ];
    api.put(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": "default", "uid": "1"},
        "spec": {"nodeName": "node", "terminationGracePeriodSeconds": 1, "containers": containers},
        "status": {"phase": "Pending"},
    }));
    let within = async |what: &str, waits: &mut (dyn Future<Output = ()> + Unpin)| {
        let done = tokio::time::timeout(PATIENCE, waits).await;
        done.unwrap_or_else(|_| {
            panic!("{what}: {} {:?}", api.pods()["pod"]["status"], api.writes_to("/events"))
        });
    };
    let runs = |pod: &Value| pod["status"]["phase"] == "Running" && pod["status"]["podIP"].is_string();
    within("it runs", &mut Box::pin(api.until(|pods| runs(&pods["pod"])))).await;
    let address = api.pods()["pod"]["status"]["podIP"].as_str().unwrap().to_owned();
    let _servers = [
        listen(format!("{address}:5000").parse().unwrap(), false).await,
        listen(format!("{address}:5001").parse().unwrap(), true).await,
    ];
    let ready = |pod: &Value, name: &str| {
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.iter().any(|one| one["name"] == name && one["ready"] == true)
    };
    for name in ["plain", "tls", "moved", "away"] {
        within(name, &mut Box::pin(api.until(|pods| ready(&pods["pod"], name)))).await;
    }
    let said = |writes: &[crate::fake::Write], is: &dyn Fn(&str, &str) -> bool| {
        writes.iter().any(|(_, _, event)| {
            is(event["reason"].as_str().unwrap_or_default(), event["message"].as_str().unwrap_or_default())
        })
    };
    let expected: [(&str, &str); 4] = [
        ("ProbeWarning", "Readiness probe warning: Probe terminated redirects, Response body: moved"),
        ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404"),
        ("Unhealthy", "Readiness probe failed: stopped after 10 redirects"),
        ("Unhealthy", "Readiness probe failed: tls: "),
    ];
    for (reason, words) in expected {
        let is = |found: &str, message: &str| found == reason && message.starts_with(words);
        let told = api.until_written("/events", |writes| said(writes, &is));
        within(words, &mut Box::pin(told)).await;
    }
    let pod = api.pods()["pod"].clone();
    assert!(["lost", "round", "mixed"].iter().all(|name| !ready(&pod, name)), "{pod}");
}
