//! A cluster as a whole: how fast it starts, what it weighs, how many pods a second it brings to Running.
//!
//! `cargo bench -p kplane-benches --bench cluster -- nodes` asks another question: 5,000 simulated nodes with 150,000 pods, in one process.

mod nodes;

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Node, ServiceAccount},
};
use kplane::Cluster;
use kplane_benches::{CountingAllocator, cpu_time, figure, resident_bytes};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PATIENCE: Duration = Duration::from_secs(120);
const STARTS: usize = 50;
const FURTHER: u64 = 20;
const NODES: usize = 1_000;
const PODS: i32 = 10_000;

fn main() {
    // What cargo adds begins with dashes.
    let part = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let (mut builder, work): (_, std::pin::Pin<Box<dyn Future<Output = ()>>>) = match part.as_deref() {
        None => (tokio::runtime::Builder::new_current_thread(), Box::pin(small())),
        Some("nodes") => (tokio::runtime::Builder::new_multi_thread(), Box::pin(nodes::run())),
        Some(other) => panic!("there is no part {other:?}: nodes, or none"),
    };
    builder.enable_all().build().expect("a runtime").block_on(work);
}

async fn small() {
    memory().await;
    start().await;
    pods().await;
}

/// From `builder()` to the first answer to a request.
async fn start() {
    let mut samples = Vec::new();
    for _ in 0..STARTS {
        let begin = Instant::now();
        let cluster = Cluster::builder().start().await.expect("a cluster");
        let namespaces: Api<Namespace> = Api::all(cluster.client());
        namespaces.get("default").await.expect("the namespace");
        samples.push(begin.elapsed());
        cluster.shutdown().await.expect("a clean end");
    }
    let median = kplane_benches::percentile(&mut samples, 0.5);
    figure("start_to_first_request", median.as_secs_f64() * 1000.0, "ms");
}

/// Resident memory, once the controllers are idle.
async fn memory() {
    let first = idle_cluster().await;
    figure("idle_cluster_resident", resident_bytes() as f64 / 1e6, "MB");
    let before = resident_bytes();
    let mut more = Vec::new();
    for _ in 0..FURTHER {
        more.push(idle_cluster().await);
    }
    let each = resident_bytes().saturating_sub(before) as f64 / FURTHER as f64;
    figure("further_cluster_resident", each / 1e6, "MB");
    drop((first, more));
}

async fn idle_cluster() -> Cluster {
    let cluster = Cluster::builder().start().await.expect("a cluster");
    let there = |account: Option<&ServiceAccount>| account.is_some();
    cluster.wait_until("default", "default", PATIENCE, there).await.expect("a service account");
    let ready = |node: Option<&Node>| node.is_some();
    cluster.wait_until("", "node-1", PATIENCE, ready).await.expect("a node");
    cluster
}

/// Pods a second from a Deployment to Running, on simulated nodes, with everything on one core.
async fn pods() {
    let cluster = Cluster::builder().nodes(NODES).start().await.expect("a cluster");
    let there = |account: Option<&ServiceAccount>| account.is_some();
    cluster.wait_until("default", "default", PATIENCE, there).await.expect("a service account");
    let nodes: Api<Node> = Api::all(cluster.client());
    let ready = async {
        loop {
            let list = nodes.list(&ListParams::default()).await.expect("nodes").items;
            let untainted = list
                .iter()
                .filter(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
                .count();
            if untainted == NODES {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("nodes are ready");
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": PODS, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
                {"name": "c", "image": "x", "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]}}},
    }))
    .expect("a deployment");
    let (begin, cpu) = (Instant::now(), cpu_time());
    Api::<Deployment>::default_namespaced(cluster.client())
        .create(&PostParams::default(), &deployment)
        .await
        .expect("created");
    let all = |deployment: Option<&Deployment>| {
        deployment
            .and_then(|deployment| deployment.status.as_ref())
            .is_some_and(|status| status.available_replicas == Some(PODS))
    };
    cluster.wait_until::<Deployment>("default", "web", PATIENCE, all).await.expect("all pods run");
    let (took, cpu) = (begin.elapsed(), cpu_time() - cpu);
    figure("pods_running_per_second_1000_nodes", f64::from(PODS) / took.as_secs_f64(), "pods/s");
    figure("cpu_per_pod_to_running", cpu.as_secs_f64() * 1e6 / f64::from(PODS), "us");
    figure("resident_with_10000_pods", resident_bytes() as f64 / 1e6, "MB");
}
