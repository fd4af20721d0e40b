//! The scheduler at work in a whole cluster: spread constraints, preemption, gates, nodes that come and go, many pods that
//! wait. Time is paused, so minutes pass at once and every run is the same.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Node, Pod, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        scheduling::v1::PriorityClass,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kplane::{Cluster, ClusterBuilder};
use kruntime::{NodeConfig, runtime::simulated::SimulatedRuntime};
use ksched::{
    Profile,
    plugin::{Bind, BindError, BindOutcome, Binding},
    plugins::DefaultBinder,
};
use kube::{
    Api, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::AbortHandle};

/// Longer than anything that a test waits for; it passes in no time.
const AGES: Duration = Duration::from_secs(3600);
const ZONE: &str = "topology.kubernetes.io/zone";

async fn start(builder: ClusterBuilder, nodes: usize) -> Cluster {
    let cluster = builder.nodes(nodes).start().await.unwrap();
    cluster.wait_until::<ServiceAccount>("default", "default", AGES, |found| found.is_some()).await.unwrap();
    for number in 1..=nodes {
        joined(&cluster, &format!("node-{number}")).await;
    }
    cluster
}

/// Waits until a node is free of the taints that it begins with.
async fn joined(cluster: &Cluster, name: &str) {
    let ready = |node: Option<&Node>| {
        node.is_some_and(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
    };
    cluster.wait_until("", name, AGES, ready).await.unwrap();
}

/// Waits until nobody has anything to do: paused time goes on only then.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn create<K>(cluster: &Cluster, object: Value) -> K
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + serde::de::DeserializeOwned
        + serde::Serialize
        + Clone
        + std::fmt::Debug,
{
    let api: Api<K> = Api::default_namespaced(cluster.client());
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        match key.as_str() {
            "cpu" => pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": value}}),
            "labels" => pod["metadata"]["labels"] = value.clone(),
            _ => pod["spec"][key] = value.clone(),
        }
    }
    pod
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

async fn bound(cluster: &Cluster, name: &str) -> String {
    let has_node = |pod: Option<&Pod>| pod.and_then(node_of).is_some();
    let pod = cluster.wait_until("default", name, AGES, has_node).await.unwrap().unwrap();
    node_of(&pod).unwrap().to_owned()
}

/// Waits until all pods of this generation are there, and no others.
async fn available(cluster: &Cluster, count: i32, generation: Option<i64>) {
    let all = |deployment: Option<&Deployment>| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        status.is_some_and(|status| {
            [status.available_replicas, status.updated_replicas, status.replicas] == [Some(count); 3]
                && status.observed_generation >= generation
        })
    };
    cluster.wait_until("default", "web", AGES, all).await.unwrap();
}

/// Every state of every pod, in order, as a watch shows them.
struct History {
    states: Arc<Mutex<Vec<(Pod, bool)>>>,
    task: AbortHandle,
}

impl History {
    async fn begin(cluster: &Cluster) -> Self {
        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        let list = pods.list(&ListParams::default()).await.unwrap();
        let mut revision = list.metadata.resource_version.unwrap();
        let states = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&states);
        let task = tokio::spawn(async move {
            // A watch ends after some minutes, and goes on where it was.
            loop {
                let mut watch = pods.watch(&WatchParams::default(), &revision).await.unwrap().boxed();
                while let Some(event) = watch.try_next().await.unwrap() {
                    let (pod, is_gone) = match event {
                        WatchEvent::Added(pod) | WatchEvent::Modified(pod) => (pod, false),
                        WatchEvent::Deleted(pod) => (pod, true),
                        other => panic!("{other:?}"),
                    };
                    revision = pod.metadata.resource_version.clone().unwrap();
                    shown.lock().unwrap().push((pod, is_gone));
                }
            }
        });
        Self { states, task: task.abort_handle() }
    }

    /// Asks `check` about the pods that there were after each change, by name.
    async fn at_each_moment(&self, mut check: impl FnMut(&BTreeMap<String, Pod>)) {
        settled().await;
        let mut pods = BTreeMap::new();
        for (pod, is_gone) in self.states.lock().unwrap().iter() {
            let name = pod.metadata.name.clone().unwrap();
            if *is_gone {
                pods.remove(&name);
            } else {
                pods.insert(name, pod.clone());
            }
            check(&pods);
        }
        assert!(!self.states.lock().unwrap().is_empty());
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn web(replicas: i32, spec: Value) -> Value {
    let mut template = pod("", spec);
    template["metadata"] = json!({"labels": {"app": "web"}});
    json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}},
        "template": template}})
}

/// <https://kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints/>: with `matchLabelKeys`, the skew
/// is that of each revision by itself, so that it holds while both revisions run.
#[tokio::test(start_paused = true)]
async fn a_rolling_update_keeps_the_skew() {
    let builder = Cluster::builder().configure_node(|node| {
        let zone = node.name.bytes().last().unwrap_or_default() % 3;
        node.labels.insert(ZONE.to_owned(), format!("zone-{zone}"));
    });
    let cluster = start(builder, 6).await;
    let history = History::begin(&cluster).await;
    let constraint = json!({"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["pod-template-hash"]});
    // But for the constraint, all would go to one zone.
    let preference = json!({"weight": 100, "preference": {"matchExpressions": [
        {"key": ZONE, "operator": "In", "values": ["zone-0"]}]}});
    let affinity = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preference]}});
    let deployment =
        web(9, json!({"topologySpreadConstraints": [constraint], "affinity": affinity, "cpu": "100m"}));
    create::<Deployment>(&cluster, deployment).await;
    available(&cluster, 9, Some(1)).await;
    let api: Api<Deployment> = Api::default_namespaced(cluster.client());
    for version in ["2", "3"] {
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"version": version}}}}});
        let patched = api.patch("web", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
        available(&cluster, 9, patched.metadata.generation).await;
    }
    let nodes: Api<Node> = Api::all(cluster.client());
    let nodes = nodes.list(&ListParams::default()).await.unwrap().items.into_iter();
    let zones: BTreeMap<String, String> = nodes
        .map(|node| (node.metadata.name.unwrap(), node.metadata.labels.unwrap()[ZONE].clone()))
        .collect();
    // A revision that goes is not kept even by anyone; the ones that come must be, at each step.
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    history
        .at_each_moment(|pods| {
            let mut revisions: BTreeMap<String, BTreeMap<&str, usize>> = BTreeMap::new();
            for pod in pods.values() {
                let Some(node) = node_of(pod) else { continue };
                let hash = pod.metadata.labels.as_ref().unwrap()["pod-template-hash"].clone();
                *revisions.entry(hash).or_default().entry(&zones[node]).or_default() += 1;
            }
            for (hash, counts) in revisions {
                let count = counts.values().sum();
                let before = most.get(&hash).copied().unwrap_or_default();
                if count > before {
                    most.insert(hash, count);
                    let count = |zone: &str| counts.get(zone).copied().unwrap_or_default();
                    let counts = ["zone-0", "zone-1", "zone-2"].map(count);
                    let skew = counts.iter().max().unwrap() - counts.iter().min().unwrap();
                    assert!(skew <= 1, "{counts:?}");
                }
            }
        })
        .await;
    assert_eq!(most.values().copied().collect::<Vec<_>>(), [9, 9, 9], "three revisions, each in full");
    cluster.shutdown().await.unwrap();
}

async fn classes(cluster: &Cluster) {
    let api: Api<PriorityClass> = Api::all(cluster.client());
    for (name, value) in [("low", 1), ("middle", 5), ("high", 1000)] {
        let class = json!({"metadata": {"name": name}, "value": value});
        api.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    }
}

/// The pod with the lowest priority has to go, unless a budget keeps it and another one can go instead
/// (<https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>).
async fn preempted(guarded: bool, victim: &str, spared: &str) {
    let cluster = start(Cluster::builder(), 2).await;
    classes(&cluster).await;
    let mut nodes = BTreeMap::new();
    for (name, class) in [("cheap", "low"), ("dear", "middle")] {
        let spec = json!({"cpu": "3", "priorityClassName": class, "labels": {"app": name}});
        create::<Pod>(&cluster, pod(name, spec)).await;
        nodes.insert(name, bound(&cluster, name).await);
    }
    if guarded {
        let budget = json!({"metadata": {"name": "cheap"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "cheap"}}}});
        create::<PodDisruptionBudget>(&cluster, budget).await;
        // As the disruption controller would write it.
        let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1,
            "desiredHealthy": 1, "expectedPods": 1}});
        let api: Api<PodDisruptionBudget> = Api::default_namespaced(cluster.client());
        api.patch_status("cheap", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
    settled().await;
    let history = History::begin(&cluster).await;
    create::<Pod>(&cluster, pod("urgent", json!({"cpu": "3", "priorityClassName": "high"}))).await;
    assert_eq!(bound(&cluster, "urgent").await, nodes[victim]);
    let (mut was_nominated, mut was_told) = (false, false);
    history
        .at_each_moment(|pods| {
            let status = pods.get("urgent").and_then(|pod| pod.status.as_ref());
            let nominated = status.and_then(|status| status.nominated_node_name.as_ref());
            was_nominated |= nominated == Some(&nodes[victim]);
            let of_victim = pods.get(victim).and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
            was_told |= of_victim.into_iter().flatten().any(|condition| {
                condition.type_ == "DisruptionTarget"
                    && condition.status == "True"
                    && condition.reason.as_deref() == Some("PreemptionByScheduler")
            });
            let other = pods.get(spared);
            assert!(other.is_none_or(|pod| pod.metadata.deletion_timestamp.is_none()), "{spared} stays");
        })
        .await;
    assert!(was_nominated && was_told, "{was_nominated} {was_told}");
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let left = pods.list(&ListParams::default()).await.unwrap().items;
    let left: Vec<_> = left.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    assert_eq!(left, [spared, "urgent"]);
    let regarding = ListParams::default().fields(&format!("reason=Preempted,involvedObject.name={victim}"));
    let events: Api<k8s_openapi::api::core::v1::Event> = Api::default_namespaced(cluster.client());
    let told = events.list(&regarding).await.unwrap().items;
    let messages: Vec<_> = told.iter().filter_map(|event| event.message.as_deref()).collect();
    assert!(matches!(messages[..], [message] if message.starts_with("Preempted by pod ")), "{messages:?}");
    cluster.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_pod_of_lowest_priority_is_preempted() {
    preempted(false, "cheap", "dear").await;
}

#[tokio::test(start_paused = true)]
async fn a_budget_has_another_pod_preempted() {
    preempted(true, "dear", "cheap").await;
}

/// KEP-3521: a pod is looked at once its last gate is gone, and says until then that it is gated.
#[tokio::test(start_paused = true)]
async fn a_gated_pod_waits_for_its_last_gate() {
    let cluster = start(Cluster::builder(), 1).await;
    let gates = json!({"schedulingGates": [{"name": "example.com/quota"}, {"name": "example.com/licence"}]});
    create::<Pod>(&cluster, pod("gated", gates)).await;
    create::<Pod>(&cluster, pod("free", json!({}))).await;
    bound(&cluster, "free").await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    for gates in [json!([{"name": "example.com/licence"}]), json!([])] {
        // Longer than any pod waits without an event.
        tokio::time::sleep(Duration::from_secs(600)).await;
        let pod = pods.get("gated").await.unwrap();
        let condition = pod.status.clone().unwrap().conditions.unwrap_or_default();
        let condition = condition.into_iter().find(|condition| condition.type_ == "PodScheduled").unwrap();
        assert_eq!((node_of(&pod), condition.reason.as_deref()), (None, Some("SchedulingGated")));
        let patch = Patch::Merge(json!({"spec": {"schedulingGates": gates}}));
        pods.patch("gated", &PatchParams::default(), &patch).await.unwrap();
    }
    assert_eq!(bound(&cluster, "gated").await, "node-1");
    cluster.shutdown().await.unwrap();
}

fn capacity(config: &mut NodeConfig, cpu: &str) {
    config.capacity.insert("cpu".to_owned(), Quantity(cpu.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn nodes_join_and_leave_while_pods_are_placed() {
    // Sixteen pods fit on a node.
    let cluster = start(Cluster::builder().configure_node(|node| capacity(node, "4")), 3).await;
    let history = History::begin(&cluster).await;
    create::<Deployment>(&cluster, web(60, json!({"cpu": "250m"}))).await;
    let agent = cluster.nodes().unwrap();
    let nodes: Api<Node> = Api::all(cluster.client());
    for number in 4..=7 {
        // Nobody waits for anything here: pods are on their way all the time.
        let runtime = Arc::new(SimulatedRuntime::new(Arc::clone(cluster.clock())));
        agent.add_node(NodeConfig::new(format!("node-{number}"), runtime));
        joined(&cluster, &format!("node-{number}")).await;
        let leaving = format!("node-{}", number - 3);
        assert!(agent.stop_node(&leaving).await);
        nodes.delete(&leaving, &DeleteParams::default()).await.unwrap();
    }
    // Three nodes are left for sixty pods: one is missing yet.
    let full = async {
        loop {
            let pods: Api<Pod> = Api::default_namespaced(cluster.client());
            let pods = pods.list(&ListParams::default()).await.unwrap().items;
            let here = |pod: &&Pod| matches!(node_of(pod), Some("node-5" | "node-6" | "node-7"));
            if pods.iter().filter(here).count() == 48 && pods.len() == 60 {
                break;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    tokio::time::timeout(AGES, full).await.unwrap();
    let runtime = Arc::new(SimulatedRuntime::new(Arc::clone(cluster.clock())));
    agent.add_node(NodeConfig::new("node-8", runtime));
    available(&cluster, 60, Some(1)).await;
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    history
        .at_each_moment(|pods| {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for (name, pod) in pods {
                let Some(node) = node_of(pod) else { continue };
                let known = places.entry(name.clone()).or_insert_with(|| node.to_owned());
                assert_eq!(known, node, "{name} has moved");
                *counts.entry(node).or_default() += 1;
            }
            assert!(counts.values().all(|count| *count <= 16), "{counts:?}");
        })
        .await;
    assert!(places.len() > 60, "some pods were lost with their nodes");
    cluster.shutdown().await.unwrap();
}

/// Binds as ever, and counts how often it is asked for each pod.
struct Counted {
    asked: Mutex<BTreeMap<String, usize>>,
    pods: watch::Sender<usize>,
}

#[async_trait]
impl Bind for Counted {
    fn name(&self) -> &str {
        "DefaultBinder"
    }

    async fn bind(&self, binding: Binding<'_>) -> Result<BindOutcome, BindError> {
        let outcome = DefaultBinder.bind(binding).await;
        let mut asked = self.asked.lock().unwrap();
        *asked.entry(binding.pod.uid.to_string()).or_default() += 1;
        self.pods.send_replace(asked.len());
        outcome
    }
}

/// How many pods wait for one node.
const PENDING: usize = 2_000;

async fn make_node(cluster: &Cluster, name: &str, pods: usize) {
    let node = json!({"metadata": {"name": name},
        "status": {"allocatable": {"cpu": "1000", "memory": "1Ti", "pods": pods.to_string()}}});
    let nodes: Api<Node> = Api::all(cluster.client());
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
}

async fn waiting(cluster: &Cluster) -> usize {
    let list = http::Request::get("/api/v1/namespaces/default/pods").body(Vec::new()).unwrap();
    let list: Value = cluster.client().request(list).await.unwrap();
    let pods = list["items"].as_array().unwrap().iter();
    pods.filter(|pod| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        pod["spec"]["nodeName"].is_null()
            && conditions.into_iter().any(|condition| {
                condition["reason"] == "Unschedulable"
                    && condition["message"].as_str().is_some_and(|why| why.contains("1 Too many pods"))
            })
    })
    .count()
}

#[tokio::test(start_paused = true)]
async fn one_node_wakes_all_pods_that_wait_for_it() {
    let counted = Arc::new(Counted { asked: Mutex::default(), pods: watch::Sender::new(0) });
    let profile = Profile::builder().bind(Arc::clone(&counted) as _).build().unwrap();
    let cluster = Cluster::builder().nodes(0).without_controllers().scheduler(profile).start().await.unwrap();
    create::<ServiceAccount>(&cluster, json!({"metadata": {"name": "default"}})).await;
    make_node(&cluster, "full", 0).await;
    // No controller is there to take the taint of new nodes away.
    let tolerant = json!({"tolerations": [{"operator": "Exists"}], "cpu": "100m"});
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let create = (0..PENDING).map(|number| {
        let pod: Pod = serde_json::from_value(pod(&format!("pod-{number}"), tolerant.clone())).unwrap();
        let pods = &pods;
        async move { pods.create(&PostParams::default(), &pod).await.map(drop) }
    });
    stream::iter(create).buffer_unordered(64).try_collect::<()>().await.unwrap();
    settled().await;
    assert_eq!(waiting(&cluster).await, PENDING);
    make_node(&cluster, "large", PENDING).await;
    let mut bound = counted.pods.subscribe();
    tokio::time::timeout(AGES, bound.wait_for(|count| *count == PENDING)).await.unwrap().unwrap();
    settled().await;
    let here = ListParams::default().fields("spec.nodeName=large");
    assert_eq!(pods.list_metadata(&here).await.unwrap().items.len(), PENDING);
    let twice: Vec<_> =
        counted.asked.lock().unwrap().clone().into_iter().filter(|(_, times)| *times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    cluster.shutdown().await.unwrap();
}
