//! The whole way: pods are created through the API, and bound through it.

use std::{cell::Cell, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    scheduling::{v1::PriorityClass, v1beta1::PodGroup},
};
use kplane::Cluster;
use kplane_benches::{cpu_time, figure, percentile, resident_bytes};
use kreconcile::{Informer, Informers, Selection};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

use crate::workloads::{Churn, PRIORITY_CLASS, Workload, group, node, pod, too_large};

/// As many pods as upstream measures with 5,000 nodes; fewer with fewer.
const PODS_MAX: usize = 5_000;
const PATIENCE: Duration = Duration::from_secs(120);
const CONCURRENT_MAX: usize = 64;

/// Measures from the first create to the last binding, everything on one core, and prints pods a second, how long a pod took from
/// its create to its binding as a watcher sees it (with [`CONCURRENT_MAX`] creates under way), and how much memory all of it takes.
pub(crate) fn run(workload: &Workload, nodes: usize) {
    let memory_before = resident_bytes();
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
        let _ = create(&client, workload, workload.before, "sched-0", before, &pods).await;
        let left =
            if workload.per_node_max == 1 { nodes - before % (4 * nodes).min(before + 1) } else { nodes };
        let measured = PODS_MAX.min(left.min(nodes) * workload.per_node_max);
        let (begin, cpu) = (Instant::now(), cpu_time());
        let measuring = create(&client, workload, workload.measured, "sched-1", measured, &pods);
        let mut samples = if workload.churn == Churn::None {
            measuring.await
        } else {
            tokio::select! {
                samples = measuring => samples,
                () = churn(&client, workload, nodes) => Vec::new(),
            }
        };
        let (took, cpu) = (begin.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
        let name = |what: &str| format!("{}_{nodes}_whole_{what}", workload.name);
        figure(&name("rate"), measured as f64 / took, "pods/s");
        figure(&name("cpu"), cpu / measured as f64 * 1e6, "us CPU a pod");
        figure(&name("p50"), percentile(&mut samples, 0.5).as_secs_f64() * 1e3, "ms");
        figure(&name("p99"), percentile(&mut samples, 0.99).as_secs_f64() * 1e3, "ms");
        figure(&name("memory"), resident_bytes().saturating_sub(memory_before) as f64 / 1e6, "MB");
        if nodes == 5_000 {
            figure(&name("ratio"), measured as f64 / took / workload.upstream, "x upstream's threshold");
        }
        informers.stop().await;
        cluster.shutdown().await.expect("a clean end");
    });
}

/// Creates pods, and waits until all of the namespace have a node; gives how long each took.
async fn create(
    client: &kube::Client,
    workload: &Workload,
    kind: fn() -> serde_json::Value,
    namespace: &str,
    count: usize,
    seen: &Informer<Pod>,
) -> Vec<Duration> {
    let is_measured = namespace == "sched-1";
    if is_measured && workload.gang > 0 {
        let groups: Api<PodGroup> = Api::namespaced(client.clone(), namespace);
        for number in (0..count).step_by(workload.gang) {
            let least = workload.gang.min(count - number);
            let group = json!({"metadata": {"name": group(workload, number)},
                "spec": {"schedulingPolicy": {"gang": {"minCount": least}}}});
            let group = serde_json::from_value(group).expect("a group");
            groups.create(&PostParams::default(), &group).await.expect("a group");
        }
    }
    let mut changes = seen.subscribe();
    let api: Arc<Api<Pod>> = Arc::new(Api::namespaced(client.clone(), namespace));
    let begins: Vec<Cell<Option<Instant>>> = vec![Cell::new(None); count];
    let creates = stream::iter(0..count).map(|number| {
        begins[number].set(Some(Instant::now()));
        let (api, mut pod) = (Arc::clone(&api), pod(kind, namespace, &format!("pod-{number}")));
        if let Some(group) = group(workload, number).filter(|_| is_measured) {
            let spec = pod.spec.get_or_insert_default();
            spec.scheduling_group.get_or_insert_default().pod_group_name = Some(group);
        }
        async move { api.create(&PostParams::default(), &pod).await.expect("a pod") }
    });
    let creates = creates.buffer_unordered(CONCURRENT_MAX).for_each(async |_| {});
    let bound = async {
        let mut samples = Vec::with_capacity(count);
        while samples.len() < count {
            let Some(batch) = changes.next().await else { return samples };
            for change in batch.iter() {
                let node = |side: &Option<Arc<kcore::Stored>>| {
                    let header = side.as_ref()?;
                    let header = header.header();
                    (&*header.namespace == namespace)
                        .then(|| header.field("spec.nodeName").is_some_and(|node| !node.is_empty()))
                };
                if node(&change.new) == Some(true) && node(&change.old) != Some(true) {
                    let number = change.header().name.strip_prefix("pod-").and_then(|text| text.parse().ok());
                    let begin = number.and_then(|number: usize| begins.get(number)?.get());
                    samples.push(begin.map_or(Duration::ZERO, |begin| begin.elapsed()));
                }
            }
        }
        samples
    };
    let both = async { tokio::join!(creates, bound) };
    tokio::time::timeout(PATIENCE, both).await.expect("all pods have a node").1
}

/// What happens meanwhile, until it is dropped.
async fn churn(client: &kube::Client, workload: &Workload, nodes: usize) {
    let all: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), "sched-0");
    let services: Api<Service> = Api::namespaced(client.clone(), "sched-0");
    let mut interval = tokio::time::interval(workload.churn.interval());
    for number in 0_usize.. {
        interval.tick().await;
        let name = format!("large-{number}");
        pods.create(&PostParams::default(), &pod(too_large, "sched-0", &name)).await.expect("a pod");
        if workload.churn != Churn::Mixed {
            continue;
        }
        let node = all.create(&PostParams::default(), &node(workload, nodes + number)).await.expect("a node");
        let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        let service = serde_json::from_value(service).expect("a service");
        services.create(&PostParams::default(), &service).await.expect("a service");
        let how = DeleteParams::default();
        interval.tick().await;
        all.delete(&node.metadata.name.unwrap_or_default(), &how).await.expect("the node");
        pods.delete(&name, &how).await.expect("the pod");
        services.delete(&name, &how).await.expect("the service");
    }
}
