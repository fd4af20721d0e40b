//! The controllers at scale, with everything on one core: a large Deployment, a large StatefulSet in parallel mode, many dependents of
//! one owner, and reconciles that do nothing.

use std::{sync::atomic::Ordering, time::Duration};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, ServiceAccount},
};
use kplane::Cluster;
use kplane_benches::{cpu_time, figure};
use kreconcile::{Action, Controller, Informers, MapTo, Selection, Trigger, reconcile_fn};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(600);
const NODES: usize = 100;
const REPLICAS: i32 = 10_000;
const MEMBERS: i32 = 1_000;
const DEPENDENTS: usize = 100_000;
/// Objects that are made at the same time.
const CONCURRENT_CREATES_MAX: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let cluster = cluster(NODES).await;
    deployment(&cluster).await;
    cluster.shutdown().await.expect("a clean end");
    let cluster = self::cluster(NODES).await;
    stateful_set(&cluster).await;
    cluster.shutdown().await.expect("a clean end");
    let cluster = self::cluster(0).await;
    dependents(&cluster).await;
    cluster.shutdown().await.expect("a clean end");
}

async fn cluster(nodes: usize) -> Cluster {
    let cluster = Cluster::builder().nodes(nodes).start().await.expect("a cluster");
    let there = |account: Option<&ServiceAccount>| account.is_some();
    cluster.wait_until("default", "default", PATIENCE, there).await.expect("a service account");
    cluster
}

fn template() -> Value {
    // So small that the nodes' number of pods is the only limit.
    let requests = json!({"cpu": "1m", "memory": "1Mi"});
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "c", "image": "x", "resources": {"requests": requests}}]}})
}

async fn deployment(cluster: &Cluster) {
    let object: Deployment =
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"replicas": REPLICAS,
        "selector": {"matchLabels": {"app": "web"}}, "template": template()}}))
        .expect("a deployment");
    let (begin, cpu) = (Instant::now(), cpu_time());
    let api = Api::<Deployment>::default_namespaced(cluster.client());
    api.create(&PostParams::default(), &object).await.expect("created");
    let all = |found: Option<&Deployment>| {
        let status = found.and_then(|found| found.status.as_ref());
        status.is_some_and(|status| status.available_replicas == Some(REPLICAS))
    };
    cluster.wait_until("default", "web", PATIENCE, all).await.expect("all replicas are available");
    figure("deployment_10000_replicas", begin.elapsed().as_secs_f64(), "s");
    figure("deployment_10000_replicas_cpu", (cpu_time() - cpu).as_secs_f64(), "s");
}

async fn stateful_set(cluster: &Cluster) {
    let object: StatefulSet =
        serde_json::from_value(json!({"metadata": {"name": "db"}, "spec": {"replicas": MEMBERS,
        "podManagementPolicy": "Parallel", "serviceName": "db", "selector": {"matchLabels": {"app": "web"}},
        "template": template()}}))
        .expect("a stateful set");
    let begin = Instant::now();
    let api = Api::<StatefulSet>::default_namespaced(cluster.client());
    api.create(&PostParams::default(), &object).await.expect("created");
    let all = |found: Option<&StatefulSet>| {
        let status = found.and_then(|found| found.status.as_ref());
        status.is_some_and(|status| status.available_replicas == Some(MEMBERS))
    };
    cluster.wait_until("default", "db", PATIENCE, all).await.expect("all members are available");
    figure("stateful_set_1000_pods_parallel", begin.elapsed().as_secs_f64(), "s");
}

async fn dependents(cluster: &Cluster) {
    let api = Api::<ConfigMap>::default_namespaced(cluster.client());
    let map = |metadata: Value| -> ConfigMap {
        serde_json::from_value(json!({"metadata": metadata})).expect("a config map")
    };
    let owner = api.create(&PostParams::default(), &map(json!({"name": "owner"}))).await.expect("created");
    let reference =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}]);
    let made = stream::iter(0..DEPENDENTS).map(|number| {
        let (api, one) =
            (api.clone(), map(json!({"name": format!("d{number}"), "ownerReferences": reference})));
        async move { api.create(&PostParams::default(), &one).await.expect("created") }
    });
    made.buffer_unordered(CONCURRENT_CREATES_MAX).for_each(|_| async {}).await;
    reconciles(cluster).await;
    let begin = Instant::now();
    api.delete("owner", &DeleteParams::background()).await.expect("deleted");
    loop {
        let page = api.list(&ListParams::default().limit(2)).await.expect("a list");
        // The bundle of the cluster's authority stays.
        if page.items.iter().all(|map| map.metadata.owner_references.is_none()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    figure("gc_100000_dependents", begin.elapsed().as_secs_f64(), "s");
}

/// A controller that has nothing to do, over what is there.
async fn reconciles(cluster: &Cluster) {
    let informers = Informers::new(cluster.client());
    let maps = informers.of::<ConfigMap>(Selection::all());
    maps.synced().await;
    let controller = Controller::new("idle", reconcile_fn(|_| async { Ok(Action::Done) }))
        .on(Trigger::new(&maps, MapTo::Itself));
    let (stop, begin) = (CancellationToken::new(), Instant::now());
    let running = tokio::spawn({
        let (controller, stop) = (controller.clone(), stop.clone());
        async move { controller.run(stop).await }
    });
    while controller.stats().reconciles.load(Ordering::Relaxed) < DEPENDENTS as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    figure("reconciles_per_second", DEPENDENTS as f64 / begin.elapsed().as_secs_f64(), "1/s");
    stop.cancel();
    running.await.expect("the controller ends");
    informers.stop().await;
}
