//! Many nodes in one process: the aim is 5,000 with 150,000 pods Running in 60 s, in less than 6 GB, on two cores.
//!
//! The pods name their nodes: what is measured is the API server, the store and the nodes' agent, with all controllers and the scheduler
//! beside them. Nodes send heartbeats all the time.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kplane::Cluster;
use kplane_benches::{cpu_time, figure, resident_bytes};
use kreconcile::{Informers, Selection};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

const NODES: usize = 5_000;
const PODS: usize = 150_000;
/// How many creates are under way at the same time.
const CREATES_AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(1_200);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long the process is watched when there is nothing to do; six heartbeats of each node.
const IDLE: Duration = Duration::from_secs(60);
/// How long what is left to do gets before that.
const SETTLE: Duration = Duration::from_secs(30);

pub(crate) async fn run() {
    let (begin, cpu) = (Instant::now(), cpu_time());
    let cluster = Cluster::builder().nodes(NODES).start().await.expect("a cluster");
    let there = |account: Option<&ServiceAccount>| account.is_some();
    cluster.wait_until("default", "default", PATIENCE, there).await.expect("a service account");
    let names = ready_nodes(&cluster).await;
    figure("nodes_ready", begin.elapsed().as_secs_f64(), "s");
    figure("cpu_per_node_to_ready", (cpu_time() - cpu).as_secs_f64() * 1e6 / NODES as f64, "us");
    figure("resident_with_5000_nodes", resident_bytes() as f64 / 1e6, "MB");
    idle("idle_5000_nodes").await;

    let informers = Informers::new(cluster.client());
    let seen = informers.of::<Pod>(Selection::all());
    seen.synced().await;
    let (begin, cpu) = (Instant::now(), cpu_time());
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let create =
        stream::iter(0..PODS).map(Ok::<_, kube::Error>).try_for_each_concurrent(CREATES_AT_ONCE, |number| {
            let (pods, pod) = (pods.clone(), pod(number, &names[number % names.len()]));
            async move { pods.create(&PostParams::default(), &pod).await.map(drop) }
        });
    create.await.expect("created");
    figure("pods_created", begin.elapsed().as_secs_f64(), "s");
    let running = async {
        let mut every = tokio::time::interval(LOOK_EVERY);
        loop {
            every.tick().await;
            let runs =
                |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
            if seen.list().iter().filter(|pod| runs(pod)).count() == PODS {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, running).await.expect("all pods run");
    let (took, cpu) = (begin.elapsed(), cpu_time() - cpu);
    figure("150000_pods_running", took.as_secs_f64(), "s");
    figure("pods_running_per_second_5000_nodes", PODS as f64 / took.as_secs_f64(), "pods/s");
    figure("cpu_per_bound_pod_to_running", cpu.as_secs_f64() * 1e6 / PODS as f64, "us");
    figure("resident_with_150000_pods", resident_bytes() as f64 / 1e6, "MB");
    drop(seen);
    informers.stop().await;
    idle("idle_150000_pods").await;
    figure("resident_with_150000_pods_idle", resident_bytes() as f64 / 1e6, "MB");
}

/// The names of all nodes, once none has a taint any more.
async fn ready_nodes(cluster: &Cluster) -> Vec<String> {
    let nodes: Api<Node> = Api::all(cluster.client());
    let ready = async {
        loop {
            let list = nodes.list(&ListParams::default()).await.expect("nodes").items;
            let untainted =
                list.into_iter().filter(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()));
            let names: BTreeSet<String> = untainted.filter_map(|node| node.metadata.name).collect();
            if names.len() == NODES {
                return names.into_iter().collect();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("nodes are ready")
}

fn pod(number: usize, node: &str) -> Pod {
    let requests = json!({"cpu": "10m", "memory": "16Mi"});
    let container = json!({"name": "c", "image": "x", "resources": {"requests": requests}});
    let pod = json!({"metadata": {"name": format!("pod-{number}"), "labels": {"app": "web"}},
        "spec": {"nodeName": node, "containers": [container]}});
    serde_json::from_value(pod).expect("a pod")
}

/// What the process uses while nothing happens but heartbeats: of one core, and of one core for each node.
async fn idle(name: &str) {
    tokio::time::sleep(SETTLE).await;
    let (begin, cpu) = (Instant::now(), cpu_time());
    tokio::time::sleep(IDLE).await;
    let share = (cpu_time() - cpu).as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
    figure(name, share, "% of a core");
    figure(&format!("{name}_each_node"), share / NODES as f64, "% of a core");
}
