//! What a cluster has of the place that it runs in: load balancers on this machine, and machines and routes of a provider made for
//! the test. What is expected is what `k8s.io/cloud-provider`'s controllers do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Event, Node, NodeAddress, Pod, Service, ServiceAccount};
use kplane::Cluster;
use kreconcile::cloud::{
    CloudError, CloudProvider, InstanceMetadata, InstanceState, Instances, LOAD_BALANCER_FINALIZER, Route,
    Routes, SHUTDOWN_TAINT, UNINITIALIZED_TAINT,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::PATIENCE;

/// Longer than anything takes; it passes in no time where time is paused.
const AGES: Duration = Duration::from_secs(7200);

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn ready(cluster: &Cluster) {
    let there = |found: Option<&ServiceAccount>| found.is_some();
    cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, there).await.unwrap();
}

fn balancer(service: Option<&Service>) -> Option<String> {
    let status = service?.status.as_ref()?.load_balancer.as_ref()?;
    status.ingress.as_ref()?.first()?.ip.clone()
}

fn has_finalizer(service: Option<&Service>) -> bool {
    service.is_some_and(|service| {
        service.metadata.finalizers.iter().flatten().any(|known| known == LOAD_BALANCER_FINALIZER)
    })
}

/// A service of the type LoadBalancer answers at an address of this machine, as long as it is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_balancer_answers_on_this_machine() {
    let cluster = Cluster::builder().processes().unwrap().start().await.unwrap();
    ready(&cluster).await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let listen = "import http.server as h\nclass A(h.BaseHTTPRequestHandler):\n def do_GET(s):\n  s.send_response(200); s.end_headers(); s.wfile.write(b'here')\n def log_message(s, *a): pass\nh.HTTPServer(('0.0.0.0', 8080), A).serve_forever()";
    let pod = json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "none", "command": ["python3", "-c", listen],
            "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1}}]}});
    pods.create(&PostParams::default(), &from(pod)).await.unwrap();
    let services: Api<Service> = Api::default_namespaced(cluster.client());
    let service = json!({"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "selector": {"app": "web"},
        "ports": [{"port": 8099, "targetPort": 8080}]}});
    services.create(&PostParams::default(), &from(service)).await.unwrap();
    let given = cluster
        .wait_until::<Service>("default", "web", PATIENCE, |found| balancer(found).is_some())
        .await
        .unwrap();
    assert!(has_finalizer(given.as_deref()));
    let address = format!("{}:8099", balancer(given.as_deref()).unwrap());
    assert!(address.starts_with("127."), "{address}");
    // The proxy listens as soon as it has heard of the address, and refuses until the pod is ready.
    let answer = async {
        loop {
            if let Ok(mut stream) = tokio::net::TcpStream::connect(&address).await {
                let mut text = String::new();
                let asked = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await;
                if asked.is_ok() && stream.read_to_string(&mut text).await.is_ok() && text.ends_with("here") {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, answer).await.expect("the service answers at its load balancer's address");

    let patch = Patch::Merge(json!({"spec": {"type": "ClusterIP"}}));
    services.patch("web", &PatchParams::default(), &patch).await.unwrap();
    let released = |found: Option<&Service>| balancer(found).is_none() && !has_finalizer(found);
    cluster.wait_until::<Service>("default", "web", PATIENCE, released).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"type": "LoadBalancer"}}));
    services.patch("web", &PatchParams::default(), &patch).await.unwrap();
    cluster
        .wait_until::<Service>("default", "web", PATIENCE, |found| balancer(found).is_some())
        .await
        .unwrap();
    services.delete("web", &DeleteParams::default()).await.unwrap();
    cluster.wait_until::<Service>("default", "web", PATIENCE, |found| found.is_none()).await.unwrap();
    let events = Api::<Event>::default_namespaced(cluster.client());
    let said = async {
        loop {
            let all = events.list(&Default::default()).await.unwrap();
            let of_service = all
                .items
                .into_iter()
                .filter(|event| event.involved_object.kind.as_deref() == Some("Service"));
            let reasons: Vec<String> = of_service.filter_map(|event| event.reason).collect();
            let expected = [
                "EnsuringLoadBalancer",
                "EnsuredLoadBalancer",
                "DeletingLoadBalancer",
                "DeletedLoadBalancer",
            ];
            if expected.iter().all(|reason| reasons.iter().any(|said| said == reason)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, said).await.expect("what was done is told in events");
    cluster.shutdown().await.unwrap();
}

/// Machines and routes that a test can change.
#[derive(Clone, Debug, Default)]
struct Place(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    machines: BTreeMap<String, Option<InstanceState>>,
    routes: Vec<Route>,
    full: bool,
}

impl CloudProvider for Place {
    fn name(&self) -> &str {
        "test"
    }

    fn instances(&self) -> Option<Arc<dyn Instances>> {
        Some(Arc::new(self.clone()))
    }

    fn routes(&self) -> Option<Arc<dyn Routes>> {
        Some(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Instances for Place {
    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, CloudError> {
        let name = node.metadata.name.clone().unwrap();
        let address =
            |type_: &str, address: &str| NodeAddress { type_: type_.into(), address: address.into() };
        Ok(Some(InstanceMetadata {
            provider_id: format!("test:///{name}"),
            instance_type: "small".into(),
            addresses: vec![address("InternalIP", "10.0.0.1"), address("ExternalIP", "198.51.100.1")],
            zone: "z1".into(),
            ..InstanceMetadata::default()
        }))
    }

    async fn state(&self, node: &Node) -> Result<InstanceState, CloudError> {
        let known = self.0.lock().unwrap().machines.get(node.metadata.name.as_deref().unwrap()).copied();
        known.unwrap_or(Some(InstanceState::Running)).ok_or_else(|| CloudError::new("nobody answers"))
    }
}

#[async_trait]
impl Routes for Place {
    async fn list(&self) -> Result<Vec<Route>, CloudError> {
        Ok(self.0.lock().unwrap().routes.clone())
    }

    async fn create(&self, hint: &str, route: &Route) -> Result<(), CloudError> {
        let mut state = self.0.lock().unwrap();
        if state.full {
            return Err(CloudError::new("the table is full"));
        }
        state.routes.push(Route { name: hint.to_owned(), ..route.clone() });
        Ok(())
    }

    async fn delete(&self, route: &Route) -> Result<(), CloudError> {
        self.0.lock().unwrap().routes.retain(|known| known != route);
        Ok(())
    }
}

fn condition(node: Option<&Node>, type_: &str) -> Option<(String, String)> {
    let conditions = node?.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((found.status.clone(), found.reason.clone().unwrap_or_default()))
}

fn taints(node: Option<&Node>) -> Vec<String> {
    let taints = node.and_then(|node| node.spec.as_ref()?.taints.clone());
    taints.into_iter().flatten().map(|taint| taint.key).collect()
}

/// A node is made known, gets its routes, is switched off and comes back, and goes with its machine. Nobody is refused anything
/// meanwhile: every controller has the rights that upstream gives to it.
#[tokio::test(start_paused = true)]
async fn nodes_follow_their_machines() {
    let place = Place::default();
    place.0.lock().unwrap().full = true;
    let provider = Arc::new(place.clone());
    let cluster = Cluster::builder().nodes(2).configure_node(|config| {
        config.taints =
            vec![from(json!({"key": UNINITIALIZED_TAINT, "value": "true", "effect": "NoSchedule"}))];
    });
    let cluster = cluster.settings(move |settings| {
        settings.cloud = Some(provider);
        settings.cluster_ranges = vec!["10.244.0.0/16".to_owned()];
    });
    let cluster = cluster.start().await.unwrap();
    let known = |node: Option<&Node>| {
        node.is_some_and(|node| node.spec.as_ref().is_some_and(|spec| spec.provider_id.is_some()))
            && !taints(node).contains(&UNINITIALIZED_TAINT.to_owned())
    };
    let node = cluster.wait_until::<Node>("", "node-1", AGES, known).await.unwrap().unwrap();
    assert_eq!(node.spec.as_ref().unwrap().provider_id.as_deref(), Some("test:///node-1"));
    let labels = node.metadata.labels.as_ref().unwrap();
    assert_eq!(
        (labels["topology.kubernetes.io/zone"].as_str(), labels["node.kubernetes.io/instance-type"].as_str()),
        ("z1", "small")
    );
    let addressed = |node: Option<&Node>| {
        let addresses = node.and_then(|node| node.status.as_ref()?.addresses.clone()).unwrap_or_default();
        addresses.iter().any(|address| address.type_ == "ExternalIP" && address.address == "198.51.100.1")
    };
    cluster.wait_until::<Node>("", "node-1", AGES, addressed).await.unwrap();

    // Its pods get a range, and the range a route; at first there is no room for it.
    let network = |status: &str, reason: &str| {
        let expected = Some((status.to_owned(), reason.to_owned()));
        move |node: Option<&Node>| condition(node, "NetworkUnavailable") == expected
    };
    cluster.wait_until::<Node>("", "node-1", AGES, network("True", "NoRouteCreated")).await.unwrap();
    place.0.lock().unwrap().full = false;
    let mut expected = Vec::new();
    for name in ["node-1", "node-2"] {
        let node =
            cluster.wait_until::<Node>("", name, AGES, network("False", "RouteCreated")).await.unwrap();
        let range = node.and_then(|node| node.spec.as_ref()?.pod_cidr.clone()).unwrap();
        assert!(range.starts_with("10.244.") && range.ends_with(".0/24"), "{range}");
        expected.push((name.to_owned(), range));
    }
    let mut routes: Vec<(String, String)> = place
        .0
        .lock()
        .unwrap()
        .routes
        .iter()
        .map(|route| (route.node.clone(), route.destination.clone()))
        .collect();
    routes.sort();
    assert_eq!(routes, expected);

    // The machine is switched off: the node is tainted. Nothing is done as long as nobody knows.
    place.0.lock().unwrap().machines.insert("node-2".into(), None);
    assert!(cluster.nodes().unwrap().stop_node("node-2").await);
    let silent =
        |node: Option<&Node>| condition(node, "Ready").is_some_and(|(status, _)| status == "Unknown");
    cluster.wait_until::<Node>("", "node-2", AGES, silent).await.unwrap();
    place.0.lock().unwrap().machines.insert("node-2".into(), Some(InstanceState::ShutDown));
    let tainted = |node: Option<&Node>| taints(node).contains(&SHUTDOWN_TAINT.to_owned());
    cluster.wait_until::<Node>("", "node-2", AGES, tainted).await.unwrap();
    // It is no more: the node goes.
    place.0.lock().unwrap().machines.insert("node-2".into(), Some(InstanceState::Gone));
    cluster.wait_until::<Node>("", "node-2", AGES, |node| node.is_none()).await.unwrap();
    cluster.shutdown().await.unwrap();
}
