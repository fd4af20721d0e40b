//! From outside to pods, by Ingresses: a Deployment is rolled over under load.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Service, ServiceAccount},
    networking::v1::Ingress,
};
use kplane::{Cluster, IngressAddresses};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::watch};

use crate::support::{PATIENCE, tool};

/// A server that tells its version, and keeps connections.
const SERVER: &str = "import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = os.environ['VERSION'].encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()
";

fn web(version: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
            "terminationGracePeriodSeconds": 10,
            "containers": [{"name": "c", "image": "none", "command": ["python3", "-c", SERVER],
                "ports": [{"containerPort": 8080}],
                "env": [{"name": "VERSION", "value": version}],
                // As the documentation of pods advises: what was sent before the endpoint went is still answered.
                "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1}}]}}}})
}

async fn create<K>(cluster: &Cluster, object: Value)
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).unwrap();
    Api::<K>::default_namespaced(cluster.client()).create(&PostParams::default(), &object).await.unwrap();
}

/// Asks on one connection after another, several times on each, until told to stop. Every answer must be good; tells the last.
async fn ask(
    address: std::net::SocketAddr,
    going: watch::Receiver<bool>,
    answers: watch::Sender<(usize, String)>,
) {
    while *going.borrow() {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        for _ in 0..50 {
            sender.ready().await.unwrap();
            let request =
                Request::get("/shop").header("host", "shop.example").body(Empty::<Bytes>::new()).unwrap();
            let response = sender.send_request(request).await.unwrap();
            let status = response.status();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            assert_eq!(status, 200, "{body}");
            answers.send_modify(|(count, last)| {
                *count += 1;
                *last = body;
            });
        }
        connection.abort();
    }
}

fn rolled(version: &'static str) -> impl Fn(Option<&Deployment>) -> bool {
    move |deployment| {
        let Some(deployment) = deployment else { return false };
        let status = deployment.status.clone().unwrap_or_default();
        let template = &deployment.spec.template;
        let env = template.spec.as_ref().unwrap().containers[0].env.as_ref().unwrap();
        env[0].value.as_deref() == Some(version)
            && status.observed_generation == deployment.metadata.generation
            && status.updated_replicas == Some(2)
            && status.ready_replicas == Some(2)
            && status.replicas == Some(2)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_rolled_over_without_a_failed_request() {
    if tool("python3", "KPLANE_PYTHON").is_none() {
        return;
    }
    let any = ([127, 0, 0, 1], 0).into();
    let builder = Cluster::builder().processes().unwrap().ingress(IngressAddresses { http: any, https: any });
    let cluster = builder.start().await.unwrap();
    let there = |found: Option<&ServiceAccount>| found.is_some();
    cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, there).await.unwrap();
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    create::<Service>(&cluster, service).await;
    // The class is the default one.
    let path = json!({"path": "/shop", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}});
    let ingress = json!({"metadata": {"name": "web"}, "spec": {"rules": [{"host": "shop.example", "http": {"paths": [path]}}]}});
    create::<Ingress>(&cluster, ingress).await;
    create::<Deployment>(&cluster, web("1")).await;
    cluster.wait_until::<Deployment>("default", "web", PATIENCE, rolled("1")).await.unwrap();
    let served = |ingress: Option<&Ingress>| {
        let status =
            ingress.and_then(|ingress| ingress.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref());
        status.is_some_and(|addresses| {
            addresses.iter().any(|address| address.ip.as_deref() == Some("127.0.0.1"))
        })
    };
    cluster.wait_until::<Ingress>("default", "web", PATIENCE, served).await.unwrap();
    let address = cluster.ingress().unwrap().http;
    // The proxy hears of the endpoints when it does; from the first good answer on all have to be good.
    let first = async {
        loop {
            let stream = TcpStream::connect(address).await.unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let request =
                Request::get("/shop").header("host", "shop.example").body(Empty::<Bytes>::new()).unwrap();
            if sender.send_request(request).await.unwrap().status() == 200 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, first).await.unwrap();
    let going = watch::Sender::new(true);
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let answers = watch::Sender::default();
            let progress = answers.subscribe();
            (tokio::spawn(ask(address, going.subscribe(), answers)), progress)
        })
        .collect();
    let deployments = Api::<Deployment>::default_namespaced(cluster.client());
    for version in ["2", "3"] {
        let patch = Patch::Strategic(web(version));
        deployments.patch("web", &PatchParams::default(), &patch).await.unwrap();
        cluster.wait_until::<Deployment>("default", "web", PATIENCE, rolled(version)).await.unwrap();
    }
    let mut tasks = Vec::new();
    for (task, mut progress) in clients {
        let last = progress.wait_for(|(_, last)| last == "3");
        // Who has failed tells why when it is waited for.
        let _ = tokio::time::timeout(PATIENCE, last).await.unwrap();
        tasks.push(task);
    }
    going.send_replace(false);
    for task in tasks {
        task.await.unwrap();
    }
    cluster.shutdown().await.unwrap();
}
