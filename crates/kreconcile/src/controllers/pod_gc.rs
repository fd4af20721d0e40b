//! Pods that nobody else will ever clean up.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ahash::RandomState;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kcore::{Clock, Stored, clock::format_time};
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::{Context, pod_state},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

/// How often pods are looked through (upstream's `gcCheckPeriod`).
pub const POD_GC_PERIOD: Duration = Duration::from_secs(20);
/// How long a node must be missing before its pods go (upstream's `quarantineTime`).
pub const MISSING_NODE_GRACE: Duration = Duration::from_secs(40);

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The controller `pod-garbage-collector-controller`: deletes pods whose node is gone, pods on nodes that are out of
/// service, pods that were told to go before they had a node, and the oldest ended pods beyond
/// [`Settings::terminated_pods_max`](super::Settings::terminated_pods_max).
pub fn pod_gc(context: &Context) -> Controller {
    const NAME: &str = "pod-garbage-collector-controller";
    let nodes = context.informers().of::<Node>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let reconciler = PodGc {
        resource: ResourceType::of::<Pod>(),
        ended_max: context.settings.terminated_pods_max,
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
        missing: Mutex::default(),
        nodes: nodes.clone(),
        pods: pods.clone(),
    };
    // One key for all pods, for a pod's fate depends on the others and on the nodes.
    let everything = MapTo::one(ObjectKey::cluster("pods"));
    let periodic = futures::stream::unfold((), |()| async {
        tokio::time::sleep(POD_GC_PERIOD).await;
        Some((ObjectKey::cluster("pods"), ()))
    });
    Controller::new(NAME, reconciler)
        .workers(1)
        .reads(&pods)
        .on(Trigger::new(&nodes, everything).when(Predicate::when(|change| change.new.is_none())))
        .on(Trigger::stream(periodic))
}

/// Why a pod has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// Its node is gone.
    Orphaned,
    /// Its node is out of service.
    OutOfService,
    /// It was told to go and never had a node.
    Unscheduled,
    /// It has ended, and there are too many such.
    Ended,
}

/// What is known of nodes.
struct NodeFacts<'a> {
    /// Whether the node has been missing for long enough.
    is_gone: &'a dyn Fn(&str) -> bool,
    is_out_of_service: &'a dyn Fn(&str) -> bool,
}

/// Which pods have to go: no I/O.
fn condemned(pods: &[Arc<Pod>], nodes: &NodeFacts<'_>, ended_max: usize) -> Vec<(Arc<Pod>, Reason)> {
    let mut condemned = Vec::new();
    let mut ended: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods {
        let node = pod_state::node_name(pod);
        let goes = pod.metadata.deletion_timestamp.is_some();
        if !node.is_empty() && (nodes.is_gone)(node) {
            condemned.push((Arc::clone(pod), Reason::Orphaned));
        } else if goes && node.is_empty() {
            condemned.push((Arc::clone(pod), Reason::Unscheduled));
        } else if goes && !node.is_empty() && (nodes.is_out_of_service)(node) {
            condemned.push((Arc::clone(pod), Reason::OutOfService));
        } else if pod_state::is_terminal(pod) {
            ended.push(pod);
        }
    }
    if ended_max > 0 && ended.len() > ended_max {
        let surplus = ended.len() - ended_max;
        // Evicted pods go first, then the oldest.
        ended.sort_by_cached_key(|pod| {
            let evicted =
                pod.status.as_ref().is_some_and(|status| status.reason.as_deref() == Some("Evicted"));
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (!evicted, created, pod.metadata.name.clone())
        });
        condemned.extend(ended.into_iter().take(surplus).map(|pod| (Arc::clone(pod), Reason::Ended)));
    }
    condemned
}

struct PodGc {
    resource: ResourceType,
    ended_max: usize,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    requests: Requests,
    clock: Arc<dyn Clock>,
    /// Since when nodes that pods are bound to are missing.
    missing: Mutex<HashMap<String, Timestamp, RandomState>>,
}

#[async_trait]
impl Reconciler for PodGc {
    async fn reconcile(&self, _: &ObjectKey) -> Result<Action, ReconcileError> {
        let pods = self.pods.list();
        let gone = self.gone_nodes(&pods).await?;
        let is_gone = |node: &str| gone.iter().any(|known| known == node);
        let is_out_of_service = |node: &str| {
            let node = self.nodes.get("", node);
            let unready = |node: &Node| {
                let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
                !conditions.into_iter().any(|known| known.type_ == "Ready" && known.status == "True")
            };
            let tainted = |node: &Node| {
                let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
                taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE)
            };
            node.is_some_and(|node| unready(&node) && tainted(&node))
        };
        let condemned = {
            let facts = NodeFacts { is_gone: &is_gone, is_out_of_service: &is_out_of_service };
            condemned(&pods, &facts, self.ended_max)
        };
        for (pod, reason) in condemned {
            if let Err(error) = self.delete(&pod, reason).await {
                tracing::warn!(%error, pod = pod_state::name(&pod), "a pod can't be cleaned up");
            }
        }
        Ok(Action::Done)
    }
}

impl PodGc {
    /// The nodes that pods are bound to and that have been missing for long enough. That they are, the server is asked.
    async fn gone_nodes(&self, pods: &[Arc<Pod>]) -> Result<Vec<String>, ReconcileError> {
        let now = self.clock.now();
        let grace = SignedDuration::try_from(MISSING_NODE_GRACE).unwrap_or(SignedDuration::MAX);
        let candidates: Vec<String> = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            let is_missing = |node: &str| !node.is_empty() && self.nodes.lister().get("", node).is_none();
            missing.retain(|node, _| is_missing(node));
            for pod in pods.iter().filter(|pod| is_missing(pod_state::node_name(pod))) {
                missing.entry(pod_state::node_name(pod).to_owned()).or_insert(now);
            }
            let old = missing.iter().filter(|(_, since)| now.duration_since(**since) >= grace);
            old.map(|(node, _)| node.clone()).collect()
        };
        let mut gone = Vec::with_capacity(candidates.len());
        for node in candidates {
            match self.requests.get::<Value>(&format!("/api/v1/nodes/{node}")).await {
                Ok(_) => {}
                Err(error) if request::is_not_found(&error) => gone.push(node),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(gone)
    }

    async fn delete(&self, pod: &Pod, reason: Reason) -> Result<(), ReconcileError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let known = self.pods.lister().get(namespace, pod_state::name(pod));
        let Some(stored) = known else { return Ok(()) };
        let why = match reason {
            Reason::Orphaned => Some(("DeletionByPodGC", "PodGC: node no longer exists")),
            Reason::OutOfService => Some((
                "DeletionByPodGC",
                "PodGC: deletion because of node.kubernetes.io/out-of-service taint",
            )),
            Reason::Unscheduled | Reason::Ended => None,
        };
        if !pod_state::is_terminal(pod) {
            let now = self.clock.now();
            match why {
                Some(why) => mark_disrupted(&self.requests, &stored, pod, why, Some("Failed"), now).await?,
                None => fail(&self.requests, &stored).await?,
            }
        }
        let path = self.resource.path(namespace, pod_state::name(pod));
        let uid = Some(pod_state::uid(pod).to_owned());
        let how = DeleteHow { uid, grace_seconds: Some(0), ..DeleteHow::default() };
        match self.requests.delete(&path, &how).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Says in a pod's status why it is disrupted, and with `phase` what has become of it, before it is deleted.
pub(crate) async fn mark_disrupted(
    requests: &Requests,
    stored: &Stored,
    pod: &Pod,
    (reason, message): (&str, &str),
    phase: Option<&str>,
    now: Timestamp,
) -> Result<(), ReconcileError> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions: Vec<Value> =
        conditions.into_iter().flatten().map(serde_json::to_value).collect::<Result<_, _>>()?;
    conditions.retain(|condition| condition["type"] != "DisruptionTarget");
    conditions
        .push(json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
        "lastTransitionTime": format_time(now)}));
    let mut status = json!({"conditions": conditions});
    if let Some(phase) = phase {
        status["phase"] = phase.into();
    }
    patch_status(requests, stored, &status).await
}

async fn fail(requests: &Requests, stored: &Stored) -> Result<(), ReconcileError> {
    patch_status(requests, stored, &json!({"phase": "Failed"})).await
}

async fn patch_status(requests: &Requests, stored: &Stored, status: &Value) -> Result<(), ReconcileError> {
    let header = stored.header();
    let path = format!("/api/v1/namespaces/{}/pods/{}/status", header.namespace, header.name);
    let patch = json!({"metadata": {"uid": &*header.uid}, "status": status});
    match requests.patch::<Value>(&path, PatchKind::Merge, &patch).await {
        Err(error) if !request::is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_go_for_a_reason() {
        let pod = |name: &str, node: &str, phase: &str, deleted: bool, created: i64| -> Arc<Pod> {
            let created = Timestamp::from_second(created).unwrap().to_string();
            let deleted = deleted.then_some("2030-01-01T00:00:00Z");
            let metadata = json!({"name": name, "creationTimestamp": created, "deletionTimestamp": deleted});
            let pod = json!({"metadata": metadata, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let pods = [
            pod("runs", "alive", "Running", false, 1),
            pod("orphan", "gone", "Running", false, 2),
            pod("never-bound", "", "Pending", true, 3),
            pod("waits", "", "Pending", false, 4),
            pod("stuck", "broken", "Running", true, 5),
            pod("old", "alive", "Succeeded", false, 6),
            pod("new", "alive", "Failed", false, 7),
        ];
        let facts =
            NodeFacts { is_gone: &|node| node == "gone", is_out_of_service: &|node| node == "broken" };
        let seen: Vec<_> = condemned(&pods, &facts, 1)
            .into_iter()
            .map(|(pod, why)| (pod.metadata.name.clone().unwrap(), why))
            .collect();
        let expected = [
            ("orphan", Reason::Orphaned),
            ("never-bound", Reason::Unscheduled),
            ("stuck", Reason::OutOfService),
            ("old", Reason::Ended),
        ];
        assert_eq!(seen, expected.map(|(name, why)| (name.to_owned(), why)));
    }
}
