//! An API server behind another, and a webhook that converts: both are reached through services, with TLS.

use std::{io, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use kapi::{
    ApiServer,
    authn::{PeerCertificates, UserInfo},
    node::NodeConnection,
    outbound::{ProxyCredentials, ServiceDialer},
    registry::ResourceDef,
};
use kube::CustomResource;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::harness::{get, json as send};

#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(group = "wardrobe.example.com", version = "v1", kind = "Shirt", namespaced)]
struct ShirtSpec {
    color: String,
}

/// An authority, the configuration of a server that it signed for, and a client certificate.
pub(crate) struct Pki {
    pub(crate) authority_pem: String,
    pub(crate) server: Arc<ServerConfig>,
    proxy: ProxyCredentials,
}

pub(crate) fn pki(server_name: &str) -> Pki {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let signed = |params: CertificateParams| {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let (certificate, key) = signed(CertificateParams::new([server_name.to_owned()]).unwrap());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "front-proxy");
    let (certificate_pem, key_pem) = signed(params);
    Pki { authority_pem, server: Arc::new(server), proxy: ProxyCredentials { certificate_pem, key_pem } }
}

pub(crate) type Answer =
    tower::util::BoxCloneSyncService<Request<Incoming>, Response<kapi::Body>, std::convert::Infallible>;

/// Leads to a service in this process, without a network.
pub(crate) struct Local {
    pub(crate) service: (&'static str, &'static str),
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) answer: Answer,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Local")
    }
}

#[async_trait]
impl ServiceDialer for Local {
    async fn dial(
        &self,
        namespace: &str,
        name: &str,
        _port: u16,
        _cluster_ip: Option<&str>,
    ) -> io::Result<Box<dyn NodeConnection>> {
        if (namespace, name) != self.service {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no such service"));
        }
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (acceptor, answer) = (TlsAcceptor::from(Arc::clone(&self.tls)), self.answer.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(far).await else { return };
            let chain = stream.get_ref().1.peer_certificates().map(|chain| {
                PeerCertificates(Arc::new(chain.iter().map(|certificate| certificate.to_vec()).collect()))
            });
            let service = tower::service_fn(move |mut request: Request<Incoming>| {
                if let Some(chain) = &chain {
                    request.extensions_mut().insert(chain.clone());
                }
                answer.clone().oneshot(request)
            });
            let server = hyper::server::conn::http1::Builder::new();
            let serving = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            let _ = serving.with_upgrades().await;
        });
        Ok(Box::new(near))
    }
}

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

#[tokio::test]
async fn a_server_of_own_kinds_stands_behind_another() {
    let pki = pki("wardrobe.default.svc");
    let shirts = ResourceDef::of::<Shirt>().build().unwrap();
    let behind = ApiServer::builder().kind(shirts).front_proxy(["front-proxy"]).build().unwrap();
    behind.bootstrap().await.unwrap();
    let answer = Answer::new(behind.clone());
    let dialer = Local { service: ("default", "wardrobe"), tls: pki.server, answer };
    let front = ApiServer::builder().services(Arc::new(dialer)).proxy_credentials(pki.proxy).build().unwrap();
    front.bootstrap().await.unwrap();

    let shirts = "/apis/wardrobe.example.com/v1/namespaces/default/shirts";
    assert_eq!(get(&front, shirts).await.0, 404);
    let service = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.wardrobe.example.com"},
        "spec": {"group": "wardrobe.example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15,
            "service": {"namespace": "default", "name": "wardrobe"}, "caBundle": STANDARD.encode(&pki.authority_pem)}});
    let (code, made) = send(&front, "POST", API_SERVICES, &service).await;
    assert_eq!(code, 201, "{made}");
    let path = format!("{API_SERVICES}/v1.wardrobe.example.com");
    let condition = async || get(&front, &path).await.1["status"]["conditions"][0].clone();
    assert_eq!(condition().await["reason"], "ServiceNotFound");
    let wardrobe = json!({"metadata": {"name": "wardrobe"}, "spec": {"ports": [{"port": 443}]}});
    assert_eq!(send(&front, "POST", "/api/v1/namespaces/default/services", &wardrobe).await.0, 201);
    let (_, current) = get(&front, &path).await;
    assert_eq!(send(&front, "PUT", &path, &current).await.0, 200);
    assert_eq!(condition().await["reason"], "Passed", "{}", condition().await);

    // Requests go through, and the one behind knows who asks.
    let shirt = json!({"apiVersion": "wardrobe.example.com/v1", "kind": "Shirt", "metadata": {"name": "a"}, "spec": {"color": "red"}});
    let (code, made) = send(&front, "POST", shirts, &shirt).await;
    assert_eq!((code, &made["spec"]["color"]), (201, &json!("red")), "{made}");
    let (_, own) = get(&behind, shirts).await;
    assert_eq!(own["items"][0]["metadata"]["name"], "a");
    let (code, status) = get(&front, &format!("{shirts}/none")).await;
    assert_eq!((code, status["reason"].as_str()), (404, Some("NotFound")));
    let (_, groups) = get(&front, "/apis").await;
    assert!(groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == "wardrobe.example.com"));
    let (_, resources) = get(&front, "/apis/wardrobe.example.com/v1").await;
    assert_eq!(resources["resources"][0]["kind"], "Shirt");

    // Its documents are found, too.
    let (_, index) = get(&front, "/openapi/v3").await;
    let url = &index["paths"]["apis/wardrobe.example.com/v1"]["serverRelativeURL"];
    let (_, document) = get(&front, url.as_str().unwrap()).await;
    assert!(document["paths"].get("/apis/wardrobe.example.com/v1/namespaces/{namespace}/shirts").is_some());
    assert!(index["paths"].get("api/v1").is_some());
    let (_, everything) = get(&front, "/openapi/v2").await;
    assert!(everything["paths"].get("/api/v1/pods").is_some());
    let path = &everything["paths"]["/apis/wardrobe.example.com/v1/namespaces/{namespace}/shirts/{name}"];
    let definition = path["get"]["responses"]["200"]["schema"]["$ref"].as_str().unwrap();
    assert!(everything.pointer(definition.trim_start_matches('#')).is_some(), "{definition}");
}

/// A webhook that renames a field between the versions.
fn webhook() -> Answer {
    let service = tower::service_fn(|request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut review: Value = serde_json::from_slice(&body).unwrap();
        let wanted = review["request"]["desiredAPIVersion"].clone();
        let mut objects = review["request"]["objects"].as_array().cloned().unwrap();
        for object in &mut objects {
            object["apiVersion"] = wanted.clone();
            let spec = object["spec"].as_object_mut().unwrap();
            let (from, to) =
                if wanted == "example.com/v2" { ("color", "colour") } else { ("colour", "color") };
            if let Some(value) = spec.remove(from) {
                spec.insert(to.to_owned(), value);
            }
        }
        let uid = review["request"]["uid"].take();
        review["response"] =
            json!({"uid": uid, "result": {"status": "Success"}, "convertedObjects": objects});
        let bytes = Bytes::from(serde_json::to_vec(&review).unwrap());
        Ok::<_, std::convert::Infallible>(Response::new(kapi::Body::from(bytes)))
    });
    Answer::new(service)
}

#[tokio::test]
async fn a_webhook_converts_between_versions() {
    let pki = pki("hook.default.svc");
    let dialer = Local { service: ("default", "hook"), tls: pki.server, answer: webhook() };
    let server = ApiServer::builder().services(Arc::new(dialer)).build().unwrap();
    server.bootstrap().await.unwrap();
    let version = |name: &str, field: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "required": [field], "properties": {field: {"type": "string"}}}}}}})
    };
    let client = json!({"service": {"namespace": "default", "name": "hook"}, "caBundle": STANDARD.encode(&pki.authority_pem)});
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "shirts.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "shirts", "singular": "shirt", "kind": "Shirt", "listKind": "ShirtList"},
            "versions": [version("v1", "color", true), version("v2", "colour", false)],
            "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]}}}});
    let (code, made) =
        send(&server, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd).await;
    assert_eq!(code, 201, "{made}");
    let at = |version: &str| format!("/apis/example.com/{version}/namespaces/default/shirts");
    let shirt = json!({"apiVersion": "example.com/v2", "kind": "Shirt", "metadata": {"name": "a"}, "spec": {"colour": "red"}});
    let (code, made) = send(&server, "POST", &at("v2"), &shirt).await;
    assert_eq!(
        (code, &made["apiVersion"], &made["spec"]),
        (201, &json!("example.com/v2"), &json!({"colour": "red"})),
        "{made}"
    );
    let (_, first) = get(&server, &format!("{}/a", at("v1"))).await;
    assert_eq!((&first["apiVersion"], &first["spec"]), (&json!("example.com/v1"), &json!({"color": "red"})));
    assert_eq!(first["metadata"]["uid"], made["metadata"]["uid"]);
    let (_, list) = get(&server, &at("v2")).await;
    assert_eq!(list["items"][0]["spec"], json!({"colour": "red"}));
    let mut changed = made.clone();
    changed["spec"]["colour"] = json!("blue");
    assert_eq!(send(&server, "PUT", &format!("{}/a", at("v2")), &changed).await.0, 200);
    assert_eq!(get(&server, &format!("{}/a", at("v1"))).await.1["spec"], json!({"color": "blue"}));
}

/// A server that speaks whatever it is asked to speak but HTTP, except to who may not: it says who the caller is and which
/// headers came along, then gives back what it is sent. Discovery it answers as an aggregated server must.
fn echo() -> Answer {
    let service = tower::service_fn(|mut request: Request<Incoming>| async move {
        let path = request.uri().path().to_owned();
        let mut response = Response::new(kapi::Body::empty());
        if path == "/apis/tunnel.example.com/v1" {
            let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "tunnel.example.com/v1", "resources": []});
            return Ok::<_, std::convert::Infallible>(Response::new(kapi::Body::from(list.to_string())));
        }
        if path.ends_with("/elsewhere") {
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert("location", "https://elsewhere.example.com/".parse().unwrap());
            return Ok(response);
        }
        let Some(protocol) =
            request.headers().get("upgrade").cloned().filter(|_| !path.ends_with("/refused"))
        else {
            *response.status_mut() = StatusCode::FORBIDDEN;
            response.headers_mut().insert("x-why", "not-upgraded".parse().unwrap());
            return Ok(response);
        };
        let names: Vec<&str> = request.headers().keys().map(http::HeaderName::as_str).collect();
        let users: Vec<_> = request.headers().get_all("x-remote-user").iter().collect();
        let groups: Vec<_> = request.headers().get_all("x-remote-group").iter().collect();
        let said = format!("{path} {users:?} {groups:?} {}\n", names.join(" "));
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            write.write_all(said.as_bytes()).await?;
            tokio::io::copy(&mut read, &mut write).await
        });
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        response.headers_mut().insert("upgrade", protocol);
        Ok(response)
    });
    Answer::new(service)
}

/// As upstream's `UpgradeAwareHandler` behind its aggregator: `exec` and the like work through an aggregated server.
#[tokio::test]
async fn upgraded_connections_go_through_to_an_aggregated_server() {
    let pki = pki("tunnel.default.svc");
    let dialer = Local { service: ("default", "tunnel"), tls: pki.server, answer: echo() };
    let front = ApiServer::builder().services(Arc::new(dialer)).proxy_credentials(pki.proxy).build().unwrap();
    front.bootstrap().await.unwrap();
    let service = json!({"metadata": {"name": "tunnel"}, "spec": {"ports": [{"port": 443}]}});
    assert_eq!(send(&front, "POST", "/api/v1/namespaces/default/services", &service).await.0, 201);
    let api = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.tunnel.example.com"},
        "spec": {"group": "tunnel.example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15,
            "service": {"namespace": "default", "name": "tunnel"}, "caBundle": STANDARD.encode(&pki.authority_pem)}});
    assert_eq!(send(&front, "POST", API_SERVICES, &api).await.0, 201);

    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "staff"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "staff"}]});
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    assert_eq!(send(&front, "POST", path, &binding).await.0, 201);
    let jane = front.as_user(UserInfo::new("jane", ["staff", "system:authenticated"]));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serving = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(far), TowerToHyperService::new(jane.clone()));
    tokio::spawn(serving.with_upgrades());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = |path: &str, protocol: &str| {
        let path = format!("/apis/tunnel.example.com/v1/namespaces/default/pods/p/{path}");
        let request =
            Request::get(path).header("host", "cluster").header("connection", "Upgrade, X-Neighbour");
        let request = request.header("upgrade", protocol).header("x-neighbour", "1").header("te", "trailers");
        let request = request.header("authorization", "Bearer secret").header("x-remote-user", "admin");
        let request =
            request.header("x-remote-group", "system:masters").header("sec-websocket-version", "13");
        request.body(Full::<Bytes>::default()).unwrap()
    };
    // Answers that don't switch are handed on as they are, but none that leads elsewhere.
    let refused = sender.send_request(request("refused", "websocket")).await.unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["x-why"]),
        (403, &"not-upgraded".parse().unwrap())
    );
    drop(refused);
    sender.ready().await.unwrap();
    let elsewhere = sender.send_request(request("elsewhere", "websocket")).await.unwrap();
    assert_eq!((elsewhere.status().as_u16(), elsewhere.headers().get("location")), (502, None));
    drop(elsewhere);
    sender.ready().await.unwrap();

    for protocol in ["websocket", "SPDY/3.1"] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(far), TowerToHyperService::new(jane.clone()));
        tokio::spawn(serving.with_upgrades());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request("exec", protocol)).await.unwrap();
        let spoken = response.headers()["upgrade"].to_str().unwrap().to_owned();
        assert_eq!((response.status().as_u16(), &*spoken), (101, protocol));
        let mut stream = BufReader::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
        let mut said = String::new();
        stream.read_line(&mut said).await.unwrap();
        // Who the caller is says the server in front, whatever the caller says; nothing that is between neighbours goes on.
        let expected = "/apis/tunnel.example.com/v1/namespaces/default/pods/p/exec [\"jane\"] [\"staff\", \"system:authenticated\"]";
        let names = said.trim_end().strip_prefix(expected).unwrap_or_else(|| panic!("{said}"));
        let mut names: Vec<&str> = names.split_whitespace().collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["connection", "host", "sec-websocket-version", "upgrade", "x-remote-group", "x-remote-user"]
        );
        for word in ["hello", "again"] {
            stream.write_all(word.as_bytes()).await.unwrap();
            let mut heard = vec![0; word.len()];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, word.as_bytes());
        }
    }
}
