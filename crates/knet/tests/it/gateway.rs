//! The Gateway API as an agent follows it: kinds that are not there, and policies that a real backend is spoken to by.

use std::{net::SocketAddr, sync::Arc};

use kcore::{TokioClock, local::LocalEvent};
use knet::{
    gateway::{CONTROLLER, GatewayAgent},
    http_proxy::{Action, BackendTls, HttpProxy, ProxyOptions, RouteTable},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    agents::{Server, run, stored},
    http_proxy::{
        backend_tls::{Issuer, authority, dns, serve},
        parts::Client,
    },
};

/// An object of the Gateway API in the namespace `shop`.
fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "shop", "generation": 1}, "spec": spec})
}

fn bundle(issuer: &Issuer) -> Value {
    json!({"metadata": {"name": "ca", "namespace": "shop"}, "data": {"ca.crt": issuer.pem()}})
}

/// Whether the one backend of the table has TLS as wanted.
fn tls(table: &RouteTable, is_wanted: impl Fn(Option<&BackendTls>) -> bool) -> bool {
    table.rules().any(|rule| match &rule.action {
        Action::Forward(backends) => is_wanted(backends[0].tls.as_ref()),
        Action::Redirect(_) => false,
    })
}

impl Server {
    /// Waits until a status of the policy was written that says so.
    async fn told(&self, kind: &str, status: &str, reason: &str) {
        loop {
            let written = self.written.lock().unwrap().clone();
            let all = written.iter().filter(|(path, _)| path.ends_with("/backendtlspolicies/web/status"));
            let mut conditions =
                all.flat_map(|(_, body)| body["status"]["ancestors"][0]["conditions"].as_array().unwrap());
            if conditions.any(|one| one["type"] == kind && one["status"] == status && one["reason"] == reason)
            {
                return;
            }
            self.writes.notified().await;
        }
    }
}

/// A server with some of the kinds only: what is there is served; a policy whose kind comes later counts from then on, with the authorities of
/// the moment.
#[tokio::test]
async fn kinds_may_be_absent_and_policies_count_when_theirs_is_there() {
    let (issuer, stranger) = (authority(), authority());
    let endpoint = serve(&issuer, &[dns("web.example")]).await;
    let class = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": "own"}, "spec": {"controllerName": CONTROLLER}});
    let listener = json!({"name": "http", "port": 80, "protocol": "HTTP"});
    let gateway = object("Gateway", "gw", json!({"gatewayClassName": "own", "listeners": [listener]}));
    let route =
        json!({"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": [{"name": "web", "port": 443}]}]});
    let policy = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "validation": {"hostname": "web.example", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]}});
    let service = json!({"metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}});
    let slice = json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"port": endpoint.port(), "name": ""}],
        "endpoints": [{"addresses": [endpoint.ip()]}]});
    let server = Server::new([
        ("gatewayclasses", vec![class]),
        ("gateways", vec![gateway]),
        ("httproutes", vec![object("HTTPRoute", "web", route)]),
        ("backendtlspolicies", vec![object("BackendTLSPolicy", "web", policy)]),
        ("services", vec![service]),
        ("endpointslices", vec![slice]),
        ("configmaps", vec![bundle(&issuer)]),
    ]);
    server.lacks(&["grpcroutes", "tlsroutes", "listenersets", "referencegrants", "backendtlspolicies"]);
    let proxy = HttpProxy::new(ProxyOptions::default());
    let mut tables = proxy.tables();
    let address: SocketAddr = proxy.serve(80, TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    let clock = Arc::new(TokioClock::new());
    let agent = GatewayAgent::new(&server.informers(), proxy.clone(), clock, [80]);
    let _agent = run(agent.addresses(vec![address.ip()]));
    drop(tables.wait_for(|table| tls(table, |tls| tls.is_none())).await.unwrap());
    let mut client = Client::http1(address).await;
    assert_eq!(client.get("/").await.0, 502, "in the clear the backend understands nothing");

    server.lacks(&[]);
    let good = tables.wait_for(|table| tls(table, |tls| tls.is_some())).await.unwrap().clone();
    assert_eq!(client.get("/").await, (200, "web.example HTTP/1.1 - shop.example".to_owned()));
    server.told("Accepted", "True", "Accepted").await;

    server.send("configmaps", LocalEvent::Modified(stored(bundle(&stranger), 2)));
    let same = |tls: Option<&BackendTls>| tls.is_some_and(|other| self::tls(&good, |tls| tls == Some(other)));
    drop(tables.wait_for(|table| !tls(table, same)).await.unwrap());
    assert_eq!(client.get("/").await.0, 502, "nobody who is believed knows the backend");

    server.send("configmaps", LocalEvent::Deleted(stored(bundle(&stranger), 3)));
    drop(tables.wait_for(|table| tls(table, |tls| tls.is_none())).await.unwrap());
    assert_eq!(client.get("/").await.0, 500, "what is to be sealed is not sent in the clear");
    server.told("Accepted", "False", "NoValidCACertificate").await;
}
