//! The whole without root: real processes behind services, restarts, node loss.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kplane::Cluster;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{PATIENCE, tool};

/// A server that tells which pod it is, on 0.0.0.0:8080 like any other.
const SERVER: &str = "import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ['POD'].encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()
";

fn web(replicas: i32) -> Deployment {
    serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}],
            "containers": [{"name": "c", "image": "none", "command": ["python3", "-c", SERVER],
                "ports": [{"containerPort": 8080}],
                "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1}}]}}}}))
    .unwrap()
}

/// One GET over a connection of its own; the body.
async fn get(address: &str) -> std::io::Result<String> {
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .ok_or_else(|| std::io::Error::other("no answer"))
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await?
}

/// Asks until every one of `pods` has answered.
async fn reaches_all(cluster: &Cluster, address: &str, pods: &BTreeSet<String>) {
    let mut missing = pods.clone();
    let ask = async {
        while !missing.is_empty() {
            if let Ok(pod) = get(address).await {
                missing.remove(&pod);
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, ask).await.is_err() {
        // Whether the slices lack the pod or the proxy lacks the slices.
        let slices = Api::<EndpointSlice>::default_namespaced(cluster.client());
        let slices = slices.list(&ListParams::default()).await.unwrap().items;
        panic!(
            "{address} does not reach {missing:?}; the slices are {}",
            serde_json::to_string(&slices).unwrap()
        );
    }
}

async fn ready_pods(cluster: &Cluster, count: i32) -> Vec<Pod> {
    let all = |deployment: Option<&Deployment>| {
        deployment
            .and_then(|deployment| deployment.status.as_ref())
            .is_some_and(|status| status.ready_replicas == Some(count) && status.replicas == Some(count))
    };
    cluster.wait_until::<Deployment>("default", "web", PATIENCE, all).await.unwrap();
    let pods = Api::<Pod>::default_namespaced(cluster.client())
        .list(&ListParams::default().labels("app=web"))
        .await
        .unwrap();
    pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
}

fn names(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_reached_restarted_and_moved() {
    if tool("python3", "KPLANE_PYTHON").is_none() {
        return;
    }
    let cluster = Cluster::builder()
        .nodes(2)
        .settings(|settings| {
            settings.node_monitor_grace = Duration::from_secs(12);
            settings.node_monitor_period = Duration::from_millis(500);
        })
        .processes()
        .unwrap()
        .start()
        .await
        .unwrap();
    cluster
        .wait_until::<k8s_openapi::api::core::v1::ServiceAccount>("default", "default", PATIENCE, |found| {
            found.is_some()
        })
        .await
        .unwrap();
    let services: Api<Service> = Api::default_namespaced(cluster.client());
    let service = json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 8000, "targetPort": 8080}]}});
    let service = services
        .create(&PostParams::default(), &serde_json::from_value(service).unwrap())
        .await
        .unwrap()
        .spec
        .unwrap();
    Api::<Deployment>::default_namespaced(cluster.client())
        .create(&PostParams::default(), &web(3))
        .await
        .unwrap();
    let pods = ready_pods(&cluster, 3).await;
    let cluster_ip = format!("{}:8000", service.cluster_ip.unwrap());
    let node_address = cluster.node_addresses()[0];
    let node_port = format!("{node_address}:{}", service.ports.unwrap()[0].node_port.unwrap());
    reaches_all(&cluster, &cluster_ip, &names(&pods)).await;
    reaches_all(&cluster, &node_port, &names(&pods)).await;
    killed_process(&cluster, &pods[0]).await;
    let pods = ready_pods(&cluster, 3).await;
    reaches_all(&cluster, &cluster_ip, &names(&pods)).await;
    // Rolled out to a new version, nothing of the old one is left.
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"version": "2"}}}}});
    Api::<Deployment>::default_namespaced(cluster.client())
        .patch("web", &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .unwrap();
    let rolled = |deployment: Option<&Deployment>| {
        let generation = deployment.and_then(|deployment| deployment.metadata.generation);
        deployment.and_then(|deployment| deployment.status.as_ref()).is_some_and(|status| {
            // The status of before the change says the same of the old version.
            status.observed_generation == generation
                && status.updated_replicas == Some(3)
                && status.replicas == Some(3)
                && status.ready_replicas == Some(3)
        })
    };
    cluster.wait_until::<Deployment>("default", "web", PATIENCE, rolled).await.unwrap();
    dead_node(&cluster, &cluster_ip).await;
    Api::<Deployment>::default_namespaced(cluster.client())
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    cluster.shutdown().await.unwrap();
}

/// A process that is killed from outside is started again, and counted.
async fn killed_process(cluster: &Cluster, pod: &Pod) {
    let name = pod.metadata.name.clone().unwrap();
    // The pod's own name is in the environment of its process.
    let wanted = format!("POD={name}");
    let process = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|process| {
            let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            let command = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
                && command.windows(7).any(|window| window == b"python3")
        });
    let process = process.expect("the pod's process");
    // SAFETY: a signal to a process that this test's cluster started.
    assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
    let restarted = |pod: Option<&Pod>| {
        let statuses = pod.and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref());
        statuses.is_some_and(|statuses| statuses[0].restart_count == 1 && statuses[0].ready)
    };
    let pod = cluster.wait_until::<Pod>("default", &name, PATIENCE, restarted).await.unwrap().unwrap();
    let status = &pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
    let last = status.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("Error")));
}

/// The pods of a node that dies move to the other one, and the service follows.
async fn dead_node(cluster: &Cluster, cluster_ip: &str) {
    assert!(cluster.nodes().unwrap().stop_node("node-1").await);
    let pods = Api::<Pod>::default_namespaced(cluster.client());
    let moved = async {
        loop {
            let list = pods.list(&ListParams::default().labels("app=web")).await.unwrap();
            let here: Vec<Pod> = list
                .items
                .into_iter()
                .filter(|pod| {
                    let ready = pod
                        .status
                        .as_ref()
                        .and_then(|status| status.conditions.as_ref())
                        .into_iter()
                        .flatten()
                        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
                    ready
                        && pod.metadata.deletion_timestamp.is_none()
                        && pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some("node-2")
                })
                .collect();
            if here.len() == 3 {
                return here;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let here = tokio::time::timeout(PATIENCE, moved).await.unwrap();
    reaches_all(cluster, cluster_ip, &names(&here)).await;
}
