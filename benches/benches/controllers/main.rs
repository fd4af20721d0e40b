//! The controllers at scale: a large Deployment, a large StatefulSet in parallel mode, many dependents of one owner, reconciles that do
//! nothing, and what an object costs that is watched. The cluster, its controllers with it, runs on one thread.
//!
//! `KPLANE_PEER_CONTROLLER_MANAGER` names the binary of a `kube-controller-manager`: then the same loads are carried by it, over a
//! cluster of kplane that has no controllers, with figures `peer_...` and the ratios to them. `KPLANE_BENCH_SCALE=10` makes every
//! load a tenth; the figures' names tell the size.

mod peer;

use std::{collections::BTreeMap, path::PathBuf, sync::atomic::Ordering, time::Duration};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, ServiceAccount},
};
use kplane::Cluster;
use kplane_benches::{CountingAllocator, Growth, cpu_time, figure};
use kreconcile::{Action, Controller, Informers, MapTo, Selection, Trigger, reconcile_fn};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::peer::Peer;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PATIENCE: Duration = Duration::from_secs(1800);
const NODES: usize = 100;
const REPLICAS: i32 = 10_000;
const MEMBERS: i32 = 1_000;
const DEPENDENTS: usize = 100_000;
/// Objects that are made at the same time.
const CONCURRENT_CREATES_MAX: usize = 64;

/// How large the loads are.
#[derive(Clone, Copy)]
struct Sizes {
    nodes: usize,
    replicas: i32,
    members: i32,
    dependents: usize,
}

impl Sizes {
    fn read() -> Self {
        let scale = std::env::var("KPLANE_BENCH_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        let (scale, parts) = (scale.max(1), i32::try_from(scale).unwrap_or(i32::MAX).max(1));
        Self {
            nodes: (NODES / scale).max(1),
            replicas: (REPLICAS / parts).max(1),
            members: (MEMBERS / parts).max(1),
            dependents: (DEPENDENTS / scale).max(1),
        }
    }
}

/// A cluster whose controllers are its own, or a peer's.
struct Subject {
    cluster: Cluster,
    peer: Option<Peer>,
}

impl Subject {
    async fn start(nodes: usize, peer: Option<&PathBuf>) -> Self {
        let builder = Cluster::builder().nodes(nodes);
        let builder = if peer.is_some() { builder.without_controllers() } else { builder };
        let cluster = builder.start().await.expect("a cluster");
        let peer = match peer {
            Some(program) => Some(Peer::start(program, &kubeconfig(&cluster).await)),
            None => None,
        };
        let there = |account: Option<&ServiceAccount>| account.is_some();
        let waited = cluster.wait_until("default", "default", PATIENCE, there).await;
        assert!(waited.is_ok(), "no service account: {}", peer.as_ref().map(Peer::log).unwrap_or_default());
        Self { cluster, peer }
    }

    /// Processor time of the cluster and its controllers.
    fn cpu(&self) -> Duration {
        cpu_time() + self.peer.as_ref().map(Peer::cpu).unwrap_or_default()
    }

    async fn end(self) {
        drop(self.peer);
        self.cluster.shutdown().await.expect("a clean end");
    }
}

async fn kubeconfig(cluster: &Cluster) -> String {
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.expect("it can be served");
    serving.kubeconfig
}

type Figures = BTreeMap<String, f64>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let sizes = Sizes::read();
    let own = all(sizes, None).await;
    let Some(program) = std::env::var_os("KPLANE_PEER_CONTROLLER_MANAGER").map(PathBuf::from) else {
        println!("no peer: KPLANE_PEER_CONTROLLER_MANAGER is not set");
        return;
    };
    let peer = all(sizes, Some(&program)).await;
    for (name, theirs) in &peer {
        if let Some(ours) = own.get(name) {
            figure(&format!("{name}_peer_to_own"), theirs / ours.max(1e-9), "ratio");
        }
    }
}

/// Every load, each in a cluster of its own.
async fn all(sizes: Sizes, peer: Option<&PathBuf>) -> Figures {
    let mut figures = Figures::new();
    let subject = Subject::start(sizes.nodes, peer).await;
    deployment(&subject, sizes.replicas, &mut figures).await;
    subject.end().await;
    let subject = Subject::start(sizes.nodes, peer).await;
    stateful_set(&subject, sizes.members, &mut figures).await;
    subject.end().await;
    let subject = Subject::start(0, peer).await;
    dependents(&subject, sizes.dependents, &mut figures).await;
    subject.end().await;
    figures
}

/// Prints a time and the processor time that it took, and keeps both.
fn tell(subject: &Subject, figures: &mut Figures, name: &str, begin: Instant, cpu: Duration) {
    let prefix = if subject.peer.is_some() { "peer_" } else { "" };
    for (name, value) in [
        (name.to_owned(), begin.elapsed().as_secs_f64()),
        (format!("{name}_cpu"), (subject.cpu() - cpu).as_secs_f64()),
    ] {
        figure(&format!("{prefix}{name}"), value, "s");
        figures.insert(name, value);
    }
}

fn template() -> Value {
    // So small that the nodes' number of pods is the only limit.
    let requests = json!({"cpu": "1m", "memory": "1Mi"});
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "c", "image": "x", "resources": {"requests": requests}}]}})
}

async fn deployment(subject: &Subject, replicas: i32, figures: &mut Figures) {
    let object: Deployment =
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}}, "template": template()}}))
        .expect("a deployment");
    let (begin, cpu) = (Instant::now(), subject.cpu());
    let api = Api::<Deployment>::default_namespaced(subject.cluster.client());
    api.create(&PostParams::default(), &object).await.expect("created");
    let all = |found: Option<&Deployment>| {
        let status = found.and_then(|found| found.status.as_ref());
        status.is_some_and(|status| status.available_replicas == Some(replicas))
    };
    subject.cluster.wait_until("default", "web", PATIENCE, all).await.expect("all replicas are available");
    tell(subject, figures, &format!("deployment_{replicas}_replicas"), begin, cpu);
}

async fn stateful_set(subject: &Subject, members: i32, figures: &mut Figures) {
    let object: StatefulSet =
        serde_json::from_value(json!({"metadata": {"name": "db"}, "spec": {"replicas": members,
        "podManagementPolicy": "Parallel", "serviceName": "db", "selector": {"matchLabels": {"app": "web"}},
        "template": template()}}))
        .expect("a stateful set");
    let (begin, cpu) = (Instant::now(), subject.cpu());
    let api = Api::<StatefulSet>::default_namespaced(subject.cluster.client());
    api.create(&PostParams::default(), &object).await.expect("created");
    let all = |found: Option<&StatefulSet>| {
        let status = found.and_then(|found| found.status.as_ref());
        status.is_some_and(|status| status.available_replicas == Some(members))
    };
    subject.cluster.wait_until("default", "db", PATIENCE, all).await.expect("all members are available");
    tell(subject, figures, &format!("stateful_set_{members}_pods_parallel"), begin, cpu);
}

async fn dependents(subject: &Subject, count: usize, figures: &mut Figures) {
    let api = Api::<ConfigMap>::default_namespaced(subject.cluster.client());
    let map = |metadata: Value| -> ConfigMap {
        serde_json::from_value(json!({"metadata": metadata, "data": {"key": "value"}})).expect("a config map")
    };
    let owner = api.create(&PostParams::default(), &map(json!({"name": "owner"}))).await.expect("created");
    let reference =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}]);
    let before = subject.peer.as_ref().map(Peer::resident_bytes);
    let made = stream::iter(0..count).map(|number| {
        let (api, one) =
            (api.clone(), map(json!({"name": format!("d{number}"), "ownerReferences": reference})));
        async move { api.create(&PostParams::default(), &one).await.expect("created") }
    });
    made.buffer_unordered(CONCURRENT_CREATES_MAX).for_each(|_| async {}).await;
    match (&subject.peer, before) {
        (Some(peer), Some(before)) => {
            let grown = peer.resident_bytes().saturating_sub(before);
            figure("peer_resident_per_dependent", grown as f64 / count as f64, "bytes");
        }
        _ => {
            reconciles(&subject.cluster.client(), count).await;
            watched(&subject.cluster, count).await;
        }
    }
    let (begin, cpu) = (Instant::now(), subject.cpu());
    api.delete("owner", &DeleteParams::background()).await.expect("deleted");
    loop {
        let page = api.list(&ListParams::default().limit(2)).await.expect("a list");
        // The bundle of the cluster's authority stays.
        if page.items.iter().all(|map| map.metadata.owner_references.is_none()) {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "dependents are left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tell(subject, figures, &format!("gc_{count}_dependents"), begin, cpu);
}

/// A controller that has nothing to do, over what is there.
async fn reconciles(client: &Client, count: usize) {
    let informers = Informers::new(client.clone());
    let maps = informers.of::<ConfigMap>(Selection::all());
    maps.synced().await;
    let controller = Controller::new("idle", reconcile_fn(|_| async { Ok(Action::Done) }))
        .on(Trigger::new(&maps, MapTo::Itself));
    let (stop, begin) = (CancellationToken::new(), Instant::now());
    let running = tokio::spawn({
        let (controller, stop) = (controller.clone(), stop.clone());
        async move { controller.run(stop).await }
    });
    while controller.stats().reconciles.load(Ordering::Relaxed) < count as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    figure("reconciles_per_second", count as f64 / begin.elapsed().as_secs_f64(), "1/s");
    stop.cancel();
    running.await.expect("the controller ends");
    informers.stop().await;
}

/// What an object costs that a cache holds: beside the store that has it anyway, by itself as over HTTP, and of its metadata alone.
async fn watched(cluster: &Cluster, count: usize) {
    for (name, client) in [("in_process", cluster.client()), ("over_http", cluster.client_http())] {
        let informers = Informers::new(client.clone());
        let growth = Growth::start();
        let maps = informers.of::<ConfigMap>(Selection::all());
        maps.synced().await;
        growth.print(&format!("watched_object_{name}"), count);
        informers.stop().await;
        // Others, as these would give what they have of whole objects.
        let informers = Informers::new(client);
        let growth = Growth::start();
        let maps = informers.of::<ConfigMap>(Selection::all().metadata_only());
        maps.synced().await;
        growth.print(&format!("watched_metadata_{name}"), count);
        informers.stop().await;
    }
}
