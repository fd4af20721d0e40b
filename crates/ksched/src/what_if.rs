//! What would happen: where pods would go, what draining a node would do, how two profiles differ. Nothing is written.
//!
//! A snapshot comes from a running cluster ([`from_cluster`]), from objects such as those of a YAML file
//! ([`from_objects`]), or is [made by hand](crate::build).
//!
//! ```
//! use ksched::{Profile, plugins::{NodeResourcesFit, ScoringStrategy}, what_if};
//! use serde_json::json;
//! use std::sync::Arc;
//!
//! let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
//!     "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
//! let pod = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
//!     "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]}});
//! let objects = [node("a"), node("b"), pod("p"), pod("q")];
//!
//! let profile = Profile::default();
//! let (snapshot, waiting) = what_if::from_objects(objects, std::slice::from_ref(&profile))?;
//! let spread = what_if::place(&profile, &snapshot, &waiting);
//! assert_eq!(spread.placed.len(), 2);
//!
//! let most = NodeResourcesFit::new(ScoringStrategy::MostAllocated, [("cpu", 1), ("memory", 1)]);
//! let packing = Profile::builder().score(Arc::new(most), 10).build()?;
//! let difference = what_if::compare(&profile, &packing, &snapshot, &waiting);
//! assert_eq!(difference.nodes_used, (2, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kcore::Stored;
use kreconcile::{Change, ResourceType};
use kube::{Client, api::ListParams, core::Request};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cycle::decide,
    node::NodeInfo,
    planner::{Plan, Planner},
    plugin::{QueueSort, Verdict},
    pod::PodInfo,
    profile::{Entry, Profile},
    queue::QueuedPod,
    scheduler,
    snapshot::{Snapshot, catalog::Interest},
};

/// How many objects are asked for at once.
pub const PAGE_OBJECTS_MAX: u32 = 500;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WhatIfError {
    /// The API server refused, or can't be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// An object can't be read as what it says it is.
    #[error("{kind} {name:?} can't be read: {why}")]
    Object {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
}

/// Where pods would go.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The pods that found a node, in the order in which they were placed.
    pub placed: Vec<(Arc<PodInfo>, Arc<str>)>,
    /// The pods that found none, and why, in kube-scheduler's words.
    pub unplaced: Vec<(Arc<PodInfo>, String)>,
    /// The cluster as it would be then.
    pub snapshot: Snapshot,
}

/// A pod for which two profiles choose differently.
#[derive(Clone, Debug)]
pub struct Move {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// The node that each profile chooses; `None` for no node.
    pub nodes: (Option<Arc<str>>, Option<Arc<str>>),
}

/// Where two profiles would place the same pods.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The pods that would go elsewhere.
    pub moved: Vec<Move>,
    /// How many pods each profile finds no node for.
    pub unplaced: (usize, usize),
    /// How many nodes have pods then, with each profile.
    pub nodes_used: (usize, usize),
}

/// Places pods, in the order of the profile's queue, without removing others for them.
#[must_use]
pub fn place(profile: &Profile, snapshot: &Snapshot, pods: &[Arc<PodInfo>]) -> Placement {
    let sort = &profile.points.queue_sort[0].plugin;
    let now = tokio::time::Instant::now();
    let mut queued: Vec<QueuedPod> = pods.iter().map(|pod| QueuedPod::new(Arc::clone(pod), now)).collect();
    queued.sort_by(|a, b| QueueSort::compare(&**sort, a, b));
    let mut planner = Planner::with_snapshot([profile.clone()].into(), snapshot.clone());
    let (mut placed, mut unplaced) = (Vec::new(), Vec::new());
    for QueuedPod { pod, .. } in queued {
        let plan = planner.plan(0, &pod, &[]);
        match (plan.node(&planner).map(Arc::<str>::from), plan) {
            (Some(node), plan) => {
                planner.place(&pod, &node);
                match book(profile, &mut planner, &pod, &node, plan) {
                    None => placed.push((pod, node)),
                    Some(why) => {
                        planner.remove_pod(&pod.uid);
                        unplaced.push((pod, why));
                    }
                }
            }
            (None, Plan::Decision(decision)) => unplaced.push((pod, decision.failure().unwrap_or_default())),
            (None, Plan::Node(_)) => {}
        }
    }
    Placement { placed, unplaced, snapshot: planner.snapshot().clone() }
}

/// Has the plug-ins book what the pod needs besides its place, such as volumes and devices, so that the next one does not get
/// the same; tells why if one of them refuses.
fn book(
    profile: &Profile,
    planner: &mut Planner,
    pod: &Arc<PodInfo>,
    node: &Arc<str>,
    plan: Plan,
) -> Option<String> {
    let Plan::Decision(decision) = plan else { return None };
    let mut cycle = decision.cycle;
    for Entry { plugin, .. } in &profile.points.reserve {
        if plugin.concerns(pod, planner.snapshot().catalog())
            && let Verdict::Reject(rejection) =
                planner.book(&mut cycle, pod, node, |booking| plugin.reserve(booking))
        {
            for Entry { plugin, .. } in profile.points.reserve.iter().rev() {
                planner.book(&mut cycle, pod, node, |booking| plugin.unreserve(booking));
            }
            return Some(rejection.message());
        }
    }
    None
}

/// Cordons a node and places its pods elsewhere, but for those of DaemonSets and mirror pods, which `kubectl drain` leaves
/// too. Budgets are not asked: they say when pods may go, not where to.
#[must_use]
pub fn drain(profile: &Profile, snapshot: &Snapshot, node: &str) -> Placement {
    let mut without = snapshot.clone();
    let Some(index) = snapshot.find(node) else {
        return Placement { placed: Vec::new(), unplaced: Vec::new(), snapshot: without };
    };
    let view = snapshot.node(index);
    let mut cordoned = Node::clone(&view.info().object);
    cordoned.spec.get_or_insert_default().unschedulable = Some(true);
    without.set_node(NodeInfo::new(cordoned));
    let leaving: Vec<Arc<PodInfo>> = view.pods().iter().filter(|pod| leaves(pod)).cloned().collect();
    for pod in &leaving {
        without.remove_pod(&pod.uid);
    }
    let waiting: Vec<Arc<PodInfo>> = leaving.iter().map(|pod| waiting_again(pod)).collect();
    place(profile, &without, &waiting)
}

fn leaves(pod: &PodInfo) -> bool {
    let meta = &pod.object.metadata;
    let mut owners = meta.owner_references.iter().flatten();
    let of_daemons = owners.any(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet");
    let mirror = meta.annotations.iter().flatten().any(|(key, _)| key == "kubernetes.io/config.mirror");
    !of_daemons && !mirror
}

/// A placed pod as it would wait for a node: the one that its controller would make in its place.
#[must_use]
pub fn waiting_again(pod: &PodInfo) -> Arc<PodInfo> {
    let mut object = Pod::clone(&pod.object);
    object.spec.get_or_insert_default().node_name = None;
    object.metadata.deletion_timestamp = None;
    object.status = None;
    Arc::new(PodInfo::new(object))
}

/// Places the same pods by two profiles.
#[must_use]
pub fn compare(one: &Profile, two: &Profile, snapshot: &Snapshot, pods: &[Arc<PodInfo>]) -> Comparison {
    let (one, two) = (place(one, snapshot, pods), place(two, snapshot, pods));
    let node = |placement: &Placement, pod: &PodInfo| placement.snapshot.node_of(&pod.uid).cloned();
    let both =
        pods.iter().map(|pod| Move { pod: Arc::clone(pod), nodes: (node(&one, pod), node(&two, pod)) });
    let used =
        |placement: &Placement| placement.snapshot.nodes().filter(|node| !node.pods().is_empty()).count();
    Comparison {
        moved: both.filter(|Move { nodes: (one, two), .. }| one != two).collect(),
        unplaced: (one.unplaced.len(), two.unplaced.len()),
        nodes_used: (used(&one), used(&two)),
    }
}

/// The snapshot that objects make, and the pods among them that wait for a node. Kinds that no plug-in of the profiles asks
/// for are left out.
///
/// # Errors
/// When an object can't be read as its kind.
pub fn from_objects(
    objects: impl IntoIterator<Item = Value>,
    profiles: &[Profile],
) -> Result<(Snapshot, Vec<Arc<PodInfo>>), WhatIfError> {
    let interests = scheduler::interests(profiles);
    let (mut snapshot, mut waiting) = (Snapshot::new(), Vec::new());
    for object in objects.into_iter().flat_map(flattened) {
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let is = |resource: &ResourceType| resource.kind == kind && resource.api_version() == version;
        match (version.as_str(), kind.as_str()) {
            ("v1", "Node" | "Pod") => add(object, &kind, &mut snapshot, &mut waiting)?,
            _ => {
                if let Some(interest) = interests.iter().find(|interest| is(interest.resource())) {
                    add_other(object, interest, &mut snapshot)?;
                }
            }
        }
    }
    Ok((snapshot, waiting))
}

/// The snapshot of a running cluster, and the pods that wait for a node. It is made of one list per kind, so that it is not
/// of one moment.
///
/// # Errors
/// When the API server refuses a list; a kind that it does not have is left out.
pub async fn from_cluster(
    client: &Client,
    profiles: &[Profile],
) -> Result<(Snapshot, Vec<Arc<PodInfo>>), WhatIfError> {
    let (mut snapshot, mut waiting) = (Snapshot::new(), Vec::new());
    for (resource, kind) in [(ResourceType::of::<Node>(), "Node"), (ResourceType::of::<Pod>(), "Pod")] {
        for object in list(client, &resource).await? {
            add(object, kind, &mut snapshot, &mut waiting)?;
        }
    }
    for interest in scheduler::interests(profiles) {
        let objects = match list(client, interest.resource()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
            objects => objects?,
        };
        for object in objects {
            add_other(object, &interest, &mut snapshot)?;
        }
    }
    Ok((snapshot, waiting))
}

/// The items of a `List`, as `kubectl get -o yaml` writes it, or the object itself.
fn flattened(mut object: Value) -> Vec<Value> {
    match object["items"].take() {
        Value::Array(items) if object["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) => items,
        _ => vec![object],
    }
}

async fn list(client: &Client, resource: &ResourceType) -> Result<Vec<Value>, kube::Error> {
    let path = resource.path("", "");
    let (mut objects, mut page) = (Vec::new(), ListParams::default().limit(PAGE_OBJECTS_MAX));
    loop {
        let request = Request::new(&*path).list(&page).map_err(kube::Error::BuildRequest)?;
        let mut answer: Value = client.request(request).await?;
        if let Value::Array(items) = answer["items"].take() {
            objects.extend(items);
        }
        match answer["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(token),
            None => return Ok(objects),
        }
    }
}

fn unreadable(object: &Value, kind: &str, why: impl ToString) -> WhatIfError {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    WhatIfError::Object { kind: kind.to_owned(), name, why: why.to_string() }
}

fn add(
    mut object: Value,
    kind: &str,
    snapshot: &mut Snapshot,
    waiting: &mut Vec<Arc<PodInfo>>,
) -> Result<(), WhatIfError> {
    if kind == "Node" {
        let node = Node::deserialize(&object).map_err(|why| unreadable(&object, kind, why))?;
        snapshot.set_node(NodeInfo::new(node));
        return Ok(());
    }
    // What comes from a file has no uid, by which pods are told apart.
    if object["metadata"]["uid"].is_null() {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        object["metadata"]["uid"] = format!("{}/{}", text("namespace"), text("name")).into();
    }
    let pod = Pod::deserialize(&object).map_err(|why| unreadable(&object, kind, why))?;
    let pod = Arc::new(PodInfo::new(pod));
    match &pod.node_name {
        _ if pod.terminal => {}
        Some(node) => snapshot.place(&pod, node),
        None => waiting.push(pod),
    }
    Ok(())
}

fn add_other(mut object: Value, interest: &Interest, snapshot: &mut Snapshot) -> Result<(), WhatIfError> {
    let kind = interest.resource().kind.clone();
    // Needed by whoever reads an object without a server, and not looked at.
    if object["metadata"]["resourceVersion"].is_null() {
        object["metadata"]["resourceVersion"] = "1".into();
    }
    let stored = Stored::from_value(object.clone()).map_err(|why| unreadable(&object, &kind, why))?;
    let change = Change { old: None, new: Some(Arc::new(stored)) };
    let read = interest.apply(snapshot.catalog_mut(), &change);
    read.map(drop).ok_or_else(|| unreadable(&object, &kind, "a field has another type"))
}

/// Explains where a pod would go, node by node, best first.
///
/// A pod that has a node is looked at as if it waited again, without itself on its node.
#[must_use]
pub fn explain(profile: &Profile, snapshot: &Snapshot, pod: &Arc<PodInfo>) -> String {
    let (mut without, mut pod) = (snapshot.clone(), Arc::clone(pod));
    if pod.node_name.is_some() {
        without.remove_pod(&pod.uid);
        pod = waiting_again(&pod);
    }
    decide(profile, &without, &pod).explain()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::build::{node, pod};

    fn cluster() -> Snapshot {
        let mut snapshot = Snapshot::new();
        for name in ["a", "b"] {
            snapshot.set_node(node(name).resource("cpu", "4").resource("pods", "9").info());
        }
        snapshot
    }

    #[test]
    fn a_drained_node_gives_its_pods_to_the_others() {
        let mut snapshot = cluster();
        let daemon = pod("daemon").on("a").edit(|pod| {
            let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d", "controller": true}]);
            pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
        });
        for (pod, node) in [
            (pod("small").request("cpu", "1").on("a"), "a"),
            (pod("large").priority(5).request("cpu", "3").on("a"), "a"),
            (daemon, "a"),
            (pod("there").request("cpu", "1").on("b"), "b"),
        ] {
            snapshot.place(&Arc::new(pod.info()), node);
        }
        let drained = drain(&Profile::default(), &snapshot, "a");
        let names: Vec<_> = drained.placed.iter().map(|(pod, node)| (&*pod.name, &**node)).collect();
        assert_eq!(names, [("large", "b")]);
        let (left, why) = &drained.unplaced[0];
        assert_eq!(&*left.name, "small");
        assert!(
            why.starts_with("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable."),
            "{why}"
        );
        assert_eq!(drained.snapshot.node(drained.snapshot.find("a").unwrap()).pods().len(), 1);
        assert!(drain(&Profile::default(), &snapshot, "nowhere").placed.is_empty());
    }

    #[test]
    fn objects_of_a_file_make_a_cluster() {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "2", "pods": "9"}}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "a", "containers": []}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "q", "namespace": "n"}, "spec": {"containers": []}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": {"team": "a"}}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}},
        ]});
        let (snapshot, waiting) = from_objects([list], &[Profile::default()]).unwrap();
        assert_eq!((snapshot.len(), snapshot.node(0).pods().len(), waiting.len()), (1, 1, 1));
        assert!(snapshot.catalog().get::<k8s_openapi::api::core::v1::Namespace>("", "n").is_some());
        let wrong = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}, "spec": 5});
        let why = from_objects([wrong], &[]).unwrap_err().to_string();
        assert!(why.starts_with("Node \"x\" can't be read: "), "{why}");
    }

    #[test]
    fn a_placed_pod_is_explained_as_if_it_waited() {
        let mut snapshot = cluster();
        snapshot.set_node(node("c").unschedulable().info());
        let placed = Arc::new(pod("p").request("cpu", "3").on("a").info());
        snapshot.place(&placed, "a");
        let text = explain(&Profile::default(), &snapshot, &placed);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("NODE") && lines[1].starts_with("a ") || lines[1].starts_with("b "),
            "{text}"
        );
        assert!(text.contains("NodeUnschedulable: node(s) were unschedulable"), "{text}");
    }
}
