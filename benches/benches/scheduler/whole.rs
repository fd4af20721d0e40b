//! The whole way: pods are created through the API, and bound through it.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    scheduling::v1::PriorityClass,
};
use kplane::Cluster;
use kplane_benches::{cpu_time, figure};
use kreconcile::{Informer, Informers, Selection};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

use crate::workloads::{PRIORITY_CLASS, Workload, node, pod};

/// As many pods as upstream measures with 5,000 nodes; fewer with fewer.
const PODS_MAX: usize = 5_000;
const PATIENCE: Duration = Duration::from_secs(120);
const CONCURRENT_MAX: usize = 64;

/// Measures from the first create to the last binding, everything on one core, and prints pods a second.
pub(crate) fn run(workload: &Workload, nodes: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let cluster = Cluster::builder().nodes(0).without_controllers().start().await.expect("a cluster");
        let client = cluster.client();
        let spaces: Api<Namespace> = Api::all(client.clone());
        for name in ["sched-0", "sched-1"] {
            let space = serde_json::from_value(json!({"metadata": {"name": name}})).expect("a namespace");
            spaces.create(&PostParams::default(), &space).await.expect("a namespace");
            let accounts =
                Api::<k8s_openapi::api::core::v1::ServiceAccount>::namespaced(client.clone(), name);
            let account =
                serde_json::from_value(json!({"metadata": {"name": "default"}})).expect("an account");
            accounts.create(&PostParams::default(), &account).await.expect("an account");
        }
        let classes = Api::<PriorityClass>::all(client.clone());
        let (class, value) = PRIORITY_CLASS;
        let class = json!({"metadata": {"name": class}, "value": value});
        let class = serde_json::from_value(class).expect("a class");
        classes.create(&PostParams::default(), &class).await.expect("a class");
        let all: Api<Node> = Api::all(client.clone());
        for number in 0..nodes {
            let node = all.create(&PostParams::default(), &node(workload, number)).await.expect("a node");
            // A new node is tainted until a controller has seen that it is ready; there is none.
            let patch = Patch::Merge(json!({"spec": {"taints": null}}));
            let name = node.metadata.name.unwrap_or_default();
            all.patch(&name, &PatchParams::default(), &patch).await.expect("a node");
        }
        let informers = Informers::new(client.clone());
        let pods: Informer<Pod> = informers.of(Selection::all());
        pods.synced().await;
        let before = nodes * workload.before_percent / 100;
        create(&client, workload.before, "sched-0", before, &pods).await;
        let left =
            if workload.per_node_max == 1 { nodes - before % (4 * nodes).min(before + 1) } else { nodes };
        let measured = PODS_MAX.min(left.min(nodes) * workload.per_node_max);
        let (begin, cpu) = (Instant::now(), cpu_time());
        create(&client, workload.measured, "sched-1", measured, &pods).await;
        let (took, cpu) = (begin.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
        let name = |what: &str| format!("{}_{nodes}_whole_{what}", workload.name);
        figure(&name("rate"), measured as f64 / took, "pods/s");
        figure(&name("cpu"), cpu / measured as f64 * 1e6, "us CPU a pod");
        if nodes == 5_000 {
            figure(&name("ratio"), measured as f64 / took / workload.upstream, "x upstream's threshold");
        }
        informers.stop().await;
        cluster.shutdown().await.expect("a clean end");
    });
}

/// Creates pods, and waits until all of the namespace have a node.
async fn create(
    client: &kube::Client,
    kind: fn() -> serde_json::Value,
    namespace: &str,
    count: usize,
    seen: &Informer<Pod>,
) {
    let mut changes = seen.subscribe();
    let api: Arc<Api<Pod>> = Arc::new(Api::namespaced(client.clone(), namespace));
    let creates = stream::iter(0..count).map(|number| {
        let (api, pod) = (Arc::clone(&api), pod(kind, namespace, &format!("pod-{number}")));
        async move { api.create(&PostParams::default(), &pod).await.expect("a pod") }
    });
    let creates = creates.buffer_unordered(CONCURRENT_MAX).for_each(async |_| {});
    let bound = async {
        let mut left = count;
        while left > 0 {
            let Some(batch) = changes.next().await else { return };
            for change in batch.iter() {
                let node = |side: &Option<Arc<kcore::Stored>>| {
                    let header = side.as_ref()?;
                    let header = header.header();
                    (&*header.namespace == namespace)
                        .then(|| header.field("spec.nodeName").is_some_and(|node| !node.is_empty()))
                };
                if node(&change.new) == Some(true) && node(&change.old) != Some(true) {
                    left -= 1;
                }
            }
        }
    };
    let both = async { tokio::join!(creates, bound) };
    tokio::time::timeout(PATIENCE, both).await.expect("all pods have a node");
}
