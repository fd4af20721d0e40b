//! An API server behind another, and a webhook that converts: both are reached through services, with TLS.

use std::{io, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use kapi::{
    ApiServer,
    authn::PeerCertificates,
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
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::harness::{get, json as send};

#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(group = "wardrobe.example.com", version = "v1", kind = "Shirt", namespaced)]
struct ShirtSpec {
    color: String,
}

/// An authority, the configuration of a server that it signed for, and a client certificate.
struct Pki {
    authority_pem: String,
    server: Arc<ServerConfig>,
    proxy: ProxyCredentials,
}

fn pki(server_name: &str) -> Pki {
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

type Answer =
    tower::util::BoxCloneSyncService<Request<Incoming>, Response<kapi::Body>, std::convert::Infallible>;

/// Leads to a service in this process, without a network.
struct Local {
    service: (&'static str, &'static str),
    tls: Arc<ServerConfig>,
    answer: Answer,
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
            let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
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
