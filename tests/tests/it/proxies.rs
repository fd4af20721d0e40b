//! Services of a cluster of processes behind each built-in proxy, in network namespaces.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, client::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kplane::{
    Cluster, ProxyMode, StartError,
    knet::{policy::nftables::Existing, proxy::ipvs::Scheduler},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    namespace::{inside, shell, without_programs},
    support::{PATIENCE, tool},
};

const KERNEL_TOOLS: &[&str] = &["nft", "iptables", "conntrack"];
/// A pause between two questions whether something is so.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

async fn start(mode: ProxyMode) -> Cluster {
    let builder = Cluster::builder().nodes(2).processes().unwrap().service_proxy(mode);
    let cluster = builder.proxy_health(([127, 0, 0, 1], 0).into()).start().await.unwrap();
    let there = |found: Option<&ServiceAccount>| found.is_some();
    cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, there).await.unwrap();
    cluster
}

async fn create<K>(cluster: &Cluster, object: Value) -> K
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).unwrap();
    let api = Api::<K>::default_namespaced(cluster.client());
    api.create(&PostParams::default(), &object).await.unwrap()
}

/// One request on a connection of its own: the status and the body, or why there is none.
async fn try_get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let asked = async {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("handshake: {error}"))?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "web.example")
            .header("connection", "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| format!("request: {error}"))?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| format!("body: {error}"))?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    tokio::time::timeout(PATIENCE, asked).await.map_err(|_| "no answer".to_owned())?
}

/// Asks until the answer is as wanted.
async fn get_until(address: SocketAddr, path: &str, is_wanted: impl Fn(u16, &str) -> bool) -> String {
    let mut last = Ok((0, String::new()));
    let asked = async {
        loop {
            last = try_get(address, path).await;
            if let Ok((status, body)) = &last
                && is_wanted(*status, body)
            {
                return body.clone();
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, asked).await;
    found.unwrap_or_else(|_| panic!("{address}{path}: {last:?}"))
}

async fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = service_fn(async |_: Request<Incoming>| {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    address
}

/// Whether the kernel has IPVS. Not every one has, so nobody can require it.
fn has_ipvs() -> bool {
    let has = std::path::Path::new("/proc/net/ip_vs").exists() || shell("modprobe ip_vs").status.success();
    if !has {
        println!("skipped: needs IPVS in the kernel");
    }
    has
}

/// What is served and told of it is the same with each proxy; when the cluster has ended, nothing of it is in the kernel.
async fn serves_and_tells(mode: ProxyMode) {
    let cluster = start(mode).await;
    let health = cluster.proxy_health().unwrap();
    assert_eq!(try_get(health, "/proxyMode").await.unwrap(), (200, mode.to_string()));
    get_until(health, "/healthz", |status, _| status == 200).await;
    let backend = backend().await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer",
        "externalTrafficPolicy": "Local", "ports": [{"port": 8000}]}});
    let service: Service = create(&cluster, service).await;
    let spec = service.spec.unwrap();
    let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": backend.port()}],
        "endpoints": [{"addresses": [backend.ip()], "nodeName": "node-1"}]});
    create::<EndpointSlice>(&cluster, slice).await;
    let cluster_ip = SocketAddr::new(spec.cluster_ip.unwrap().parse().unwrap(), 8000);
    assert_eq!(get_until(cluster_ip, "/", |status, _| status == 200).await, "served");
    let node_port = u16::try_from(spec.ports.unwrap()[0].node_port.unwrap()).unwrap();
    let check_port = u16::try_from(spec.health_check_node_port.unwrap()).unwrap();
    let [first, second] = cluster.node_addresses() else { panic!("two nodes") };
    for node in [first, second] {
        let address = SocketAddr::new(*node, node_port);
        assert_eq!(get_until(address, "/", |status, _| status == 200).await, "served");
    }
    // A load balancer asks there which nodes have endpoints of the Service.
    for (node, status, endpoints) in [(first, 200, 1), (second, 503, 0)] {
        let address = SocketAddr::new(*node, check_port);
        let body = get_until(address, "/", |found, _| found == status).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&body["localEndpoints"], &body["serviceProxyHealthy"]),
            (&json!(endpoints), &json!(true))
        );
    }
    cluster.shutdown().await.unwrap();
    assert!(try_get(health, "/healthz").await.is_err(), "nobody tells of a proxy that has ended");
    assert_eq!(left_in_the_kernel(), "", "{mode}");
}

/// The chains and tables of proxies that are in the kernel.
fn left_in_the_kernel() -> String {
    let found = shell(
        "nft list tables | grep kplane; iptables-save 2>/dev/null | grep KUBE; ip -o link | grep kube-ipvs0; \
         grep -s : /proc/net/ip_vs | grep -v Address:Port",
    );
    String::from_utf8_lossy(&found.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn userspace_serves_and_tells() {
    if inside("proxies::userspace_serves_and_tells", KERNEL_TOOLS) {
        serves_and_tells(ProxyMode::Userspace).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nftables_serves_and_tells() {
    if inside("proxies::nftables_serves_and_tells", KERNEL_TOOLS) {
        // A cluster that was killed leaves its rules; the next one with another proxy takes them away.
        let killed = start(ProxyMode::Iptables).await;
        let chains = || left_in_the_kernel().contains("KUBE-SERVICES");
        while !chains() {
            tokio::time::sleep(PAUSE).await;
        }
        drop(killed);
        assert!(chains());
        serves_and_tells(ProxyMode::Nftables).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iptables_serves_and_tells() {
    if inside("proxies::iptables_serves_and_tells", KERNEL_TOOLS) {
        serves_and_tells(ProxyMode::Iptables).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipvs_serves_and_tells() {
    if has_ipvs() && inside("proxies::ipvs_serves_and_tells", KERNEL_TOOLS) {
        serves_and_tells(ProxyMode::Ipvs(Scheduler::LeastConnection)).await;
    }
}

/// Why a cluster did not start, with what is behind it.
fn told(started: Result<Cluster, StartError>) -> String {
    let error = started.expect_err("it can't work here");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn what_cannot_work_here_is_told_at_the_start() {
    if !without_programs("proxies::what_cannot_work_here_is_told_at_the_start") {
        return;
    }
    let bare = || Cluster::builder().nodes(0);
    let processes = || bare().processes().unwrap();
    let any = || SocketAddr::from(([127, 0, 0, 1], 0));
    let taken = TcpListener::bind(any()).await.unwrap();
    let cases = [
        (
            bare().service_proxy(ProxyMode::Userspace),
            "the service proxy userspace can't be used: it listens on the addresses of Services itself",
        ),
        (
            bare().service_proxy(ProxyMode::Nftables),
            "the service proxy nftables can't be used: nft: No such file or directory",
        ),
        (
            processes().service_proxy(ProxyMode::Ipvs(Scheduler::RoundRobin)),
            "the service proxy ipvs can't be used: nft: No such file or directory",
        ),
        (
            processes().service_proxy(ProxyMode::Iptables),
            "the service proxy iptables can't be used: iptables-save: No such file or directory",
        ),
        (
            processes().network_policies(Existing::Kept),
            "network policies can't be enforced: pods that are processes, or simulated, have no network",
        ),
        (
            bare().proxy_health(any()),
            "the health of the service proxy can't be served: there is no service proxy",
        ),
        (
            processes().proxy_health(taken.local_addr().unwrap()),
            "the health of the service proxy can't be served: Address already in use",
        ),
        (
            bare().gateway([(80, taken.local_addr().unwrap())]),
            "gateways can't be served: port 80 at 127.0.0.1:",
        ),
    ];
    for (builder, expected) in cases {
        let told = told(builder.start().await);
        assert!(told.starts_with(expected), "{told}");
    }
}

/// A server that tells its version.
const SERVER: &str = "import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ['VERSION'].encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
class S(http.server.ThreadingHTTPServer):
    request_queue_size = 128
S(('0.0.0.0', 8080), H).serve_forever()
";

/// How a Deployment is rolled over, and for how long its old pods go on to answer.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    replicas: i32,
    unavailable: i32,
    surge: i32,
    linger_seconds: u32,
}

/// New pods come first, as one has it in production.
const WIDE: Shape = Shape { name: "wide", replicas: 2, unavailable: 0, surge: 1, linger_seconds: 3 };
/// The only pod goes before the new one is there: until then connections go to it while it ends (KEP-1669). It ends long after the
/// test does.
const SOLO: Shape = Shape { name: "solo", replicas: 1, unavailable: 1, surge: 0, linger_seconds: 120 };

impl Shape {
    fn deployment(self, version: &str) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": self.name}, "spec": {
            "replicas": self.replicas,
            "selector": {"matchLabels": {"app": self.name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": self.unavailable, "maxSurge": self.surge}},
            "template": {"metadata": {"labels": {"app": self.name}}, "spec": {
                "terminationGracePeriodSeconds": self.linger_seconds + 10,
                "containers": [{"name": "c", "image": "none", "command": ["python3", "-c", SERVER],
                    "ports": [{"containerPort": 8080}],
                    "env": [{"name": "VERSION", "value": version}],
                    "lifecycle": {"preStop": {"sleep": {"seconds": self.linger_seconds}}},
                    "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 30}}]}}}})
    }

    async fn rolled(self, cluster: &Cluster, version: &'static str) {
        let is_rolled = move |deployment: Option<&Deployment>| {
            let Some(deployment) = deployment else { return false };
            let status = deployment.status.clone().unwrap_or_default();
            let env = deployment.spec.template.spec.as_ref().and_then(|pod| pod.containers[0].env.as_ref());
            env.is_some_and(|env| env[0].value.as_deref() == Some(version))
                && status.observed_generation == deployment.metadata.generation
                && status.updated_replicas == Some(self.replicas)
                && status.ready_replicas == Some(self.replicas)
                && status.replicas == Some(self.replicas)
        };
        cluster.wait_until::<Deployment>("default", self.name, PATIENCE, is_rolled).await.unwrap();
    }
}

/// Asks, on a new connection each time, until told to stop. Every answer must be good; tells the last.
async fn load(
    address: SocketAddr,
    going: watch::Receiver<bool>,
    answers: watch::Sender<(usize, String)>,
) -> Result<usize, String> {
    while *going.borrow() {
        let asked = answers.borrow().0;
        let (status, body) =
            try_get(address, "/").await.map_err(|error| format!("after {asked} answers: {error}"))?;
        if status != 200 {
            return Err(format!("after {asked} answers: {status} {body}"));
        }
        answers.send_modify(|(count, last)| {
            *count += 1;
            *last = body;
        });
    }
    Ok(answers.borrow().0)
}

async fn rolls_over(mode: ProxyMode) {
    let cluster = start(mode).await;
    let shapes = [WIDE, SOLO];
    let mut addresses = Vec::new();
    for shape in shapes {
        let service = json!({"metadata": {"name": shape.name}, "spec": {"selector": {"app": shape.name},
            "ports": [{"port": 8000, "targetPort": 8080}]}});
        let service: Service = create(&cluster, service).await;
        create::<Deployment>(&cluster, shape.deployment("1")).await;
        let address = service.spec.unwrap().cluster_ip.unwrap();
        addresses.push(SocketAddr::new(address.parse().unwrap(), 8000));
    }
    let going = watch::Sender::new(true);
    let mut clients = Vec::new();
    for (shape, address) in shapes.into_iter().zip(&addresses) {
        shape.rolled(&cluster, "1").await;
        // The proxy hears of the endpoints when it does; from the first good answer on all have to be good.
        get_until(*address, "/", |status, _| status == 200).await;
        for _ in 0..2 {
            let answers = watch::Sender::default();
            let progress = answers.subscribe();
            clients.push((tokio::spawn(load(*address, going.subscribe(), answers)), progress));
        }
    }
    let deployments = Api::<Deployment>::default_namespaced(cluster.client());
    for version in ["2", "3"] {
        for shape in shapes {
            let patch = Patch::Strategic(shape.deployment(version));
            deployments.patch(shape.name, &PatchParams::default(), &patch).await.unwrap();
        }
        for shape in shapes {
            shape.rolled(&cluster, version).await;
        }
    }
    for (_, progress) in &mut clients {
        // Who has failed tells why when it is waited for.
        let _ = tokio::time::timeout(PATIENCE, progress.wait_for(|(_, last)| last == "3")).await.unwrap();
    }
    going.send_replace(false);
    for (client, _) in clients {
        let answered = client.await.unwrap();
        assert!(answered.as_ref().is_ok_and(|count| *count > 0), "{mode}: {answered:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_rolled_over_behind_userspace() {
    let test = "proxies::a_deployment_is_rolled_over_behind_userspace";
    if tool("python3", "KPLANE_PYTHON").is_some() && inside(test, KERNEL_TOOLS) {
        rolls_over(ProxyMode::Userspace).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_rolled_over_behind_nftables() {
    let test = "proxies::a_deployment_is_rolled_over_behind_nftables";
    if tool("python3", "KPLANE_PYTHON").is_some() && inside(test, KERNEL_TOOLS) {
        rolls_over(ProxyMode::Nftables).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_rolled_over_behind_iptables() {
    let test = "proxies::a_deployment_is_rolled_over_behind_iptables";
    if tool("python3", "KPLANE_PYTHON").is_some() && inside(test, KERNEL_TOOLS) {
        rolls_over(ProxyMode::Iptables).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_rolled_over_behind_ipvs() {
    let test = "proxies::a_deployment_is_rolled_over_behind_ipvs";
    if has_ipvs() && tool("python3", "KPLANE_PYTHON").is_some() && inside(test, KERNEL_TOOLS) {
        rolls_over(ProxyMode::Ipvs(Scheduler::RoundRobin)).await;
    }
}
