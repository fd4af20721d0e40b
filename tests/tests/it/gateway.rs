//! The Gateway API against a real API server: its definitions, statuses, and requests that come through.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, client::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kplane::{
    Cluster,
    defaults::GATEWAY_CLASS,
    knet::gateway::{
        CONTROLLER, FEATURES,
        types::{Gateway, GatewayClass, HTTPRoute, ReferenceGrant},
    },
};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::support::PATIENCE;

async fn create<K>(api: Api<K>, object: Value)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let mut object = object;
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    let object: K = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

/// A backend that answers with the path and a header of what it was asked.
async fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|request: Request<Incoming>| async move {
                let own =
                    request.headers().get("x-own").and_then(|own| own.to_str().ok()).unwrap_or_default();
                let text = format!("{} {own}", request.uri());
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "shop.example").body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn says(conditions: &[Condition], kind: &str, status: &str, reason: &str) -> bool {
    let is_meant = |condition: &&Condition| condition.type_ == kind;
    conditions
        .iter()
        .find(is_meant)
        .is_some_and(|found| (found.status.as_str(), found.reason.as_str()) == (status, reason))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_and_routes_are_served_and_told_so() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let cluster = Cluster::builder().nodes(0).gateway([(80, any)]).start().await.unwrap();
    let client = cluster.client();
    let address = cluster.gateway()[&80];
    let backend = backend().await;
    create::<Namespace>(Api::all(client.clone()), json!({"metadata": {"name": "far"}})).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
    create::<Service>(Api::namespaced(client.clone(), "far"), service).await;
    let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": backend.port()}], "endpoints": [{"addresses": [backend.ip()]}]});
    create::<EndpointSlice>(Api::namespaced(client.clone(), "far"), slice).await;
    // The builder has made the class, and the kinds.
    let accepted = |class: Option<&GatewayClass>| {
        let status = class.and_then(|class| class.status.as_ref());
        status.is_some_and(|status| {
            let features: Vec<_> = status.supported_features.iter().map(|one| one.name.as_str()).collect();
            says(&status.conditions, "Accepted", "True", "Accepted") && features == FEATURES
        })
    };
    cluster.wait_until::<GatewayClass>("", GATEWAY_CLASS, PATIENCE, accepted).await.unwrap();
    let gateway = json!({"metadata": {"name": "gw"}, "spec": {"gatewayClassName": GATEWAY_CLASS, "listeners": [
        {"name": "http", "port": 80, "protocol": "HTTP", "hostname": "*.example"}]}});
    create::<Gateway>(Api::default_namespaced(client.clone()), gateway).await;
    let route = json!({"metadata": {"name": "web"}, "spec": {"parentRefs": [{"name": "gw"}], "rules": [
        {"matches": [{"path": {"type": "PathPrefix", "value": "/shop"}}],
            "filters": [
                {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}},
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-Own", "value": "own"}]}}],
            "backendRefs": [{"name": "web", "namespace": "far", "port": 80}]}]}});
    create::<HTTPRoute>(Api::default_namespaced(client.clone()), route).await;

    let refused = |route: Option<&HTTPRoute>| {
        let parents = route.and_then(|route| route.status.as_ref()).map(|status| status.parents.as_slice());
        parents.is_some_and(|parents| {
            parents.len() == 1
                && parents[0].controller_name == CONTROLLER
                && says(&parents[0].conditions, "Accepted", "True", "Accepted")
                && says(&parents[0].conditions, "ResolvedRefs", "False", "RefNotPermitted")
        })
    };
    cluster.wait_until::<HTTPRoute>("default", "web", PATIENCE, refused).await.unwrap();
    let programmed = |gateway: Option<&Gateway>| {
        gateway.and_then(|gateway| gateway.status.as_ref()).is_some_and(|status| {
            says(&status.conditions, "Programmed", "True", "Programmed")
                && status.addresses.iter().any(|one| one.value == address.ip().to_string())
                && status.listeners.len() == 1
                && status.listeners[0].attached_routes == 1
        })
    };
    cluster.wait_until::<Gateway>("default", "gw", PATIENCE, programmed).await.unwrap();
    assert_eq!(get(address, "/shop/a").await.0, 500, "what may not be referred to is not served");
    let grant = json!({"metadata": {"name": "web"}, "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}],
        "to": [{"group": "", "kind": "Service"}]}});
    create::<ReferenceGrant>(Api::namespaced(client.clone(), "far"), grant).await;
    let resolved = |route: Option<&HTTPRoute>| {
        let status = route.and_then(|route| route.status.as_ref());
        status
            .is_some_and(|status| says(&status.parents[0].conditions, "ResolvedRefs", "True", "ResolvedRefs"))
    };
    cluster.wait_until::<HTTPRoute>("default", "web", PATIENCE, resolved).await.unwrap();
    // The table is told before the status.
    assert_eq!(get(address, "/shop/a?b").await, (200, "/a?b own".to_owned()));
    assert_eq!(get(address, "/other").await.0, 404);
    cluster.shutdown().await.unwrap();
}
