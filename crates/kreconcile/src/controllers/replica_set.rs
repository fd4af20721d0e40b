//! ReplicaSets: as many pods as are asked for.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::Pod,
    },
};
use kcore::{Clock, Stored, selector::LabelSelector};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    cache::Index,
    controller::Controller,
    controllers::{
        Context,
        claim::{self, Owner},
        doubts::Doubts,
        pod_state,
        pod_writes::{PodWriter, error_message, pod_from_template},
    },
    events::{EventRecorder, Regarding},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::Requests,
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

/// How many pods are made or deleted before the informer is waited for (upstream's `BurstReplicas`).
pub const BURST_REPLICAS_MAX: usize = 500;

/// Pods by the uid of their controller, and those without one by namespace.
pub(crate) const PODS_BY_OWNER: &str = "pods-by-owner";

/// The value in [`PODS_BY_OWNER`] of pods without a controller.
pub(crate) fn orphans_of(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

/// The index [`PODS_BY_OWNER`].
pub(crate) fn pods_by_owner() -> Index {
    Index::new(PODS_BY_OWNER, |object, emit| match object.header().controller() {
        Some(owner) => emit(&owner.uid),
        None => emit(&orphans_of(&object.header().namespace)),
    })
}

/// The controller `replicaset-controller`: makes and deletes pods until there are as many as each ReplicaSet asks for,
/// adopts and releases them by selector, and keeps the status.
///
/// Pods are deleted in upstream's order (`ActivePodsWithRanks`, with `controller.kubernetes.io/pod-deletion-cost`).
pub fn replica_set(context: &Context) -> Controller {
    replicating::<ReplicaSet>(context, "replicaset-controller", "replicaset-controller")
}

/// A kind that asks for a number of pods. What is decided, is decided for it as for a ReplicaSet.
pub(crate) trait Replicating:
    kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Send + Sync + 'static
{
    /// The type of its status.
    type Status: PartialEq + Serialize + Send + Sync;

    /// What it says as a ReplicaSet. Of the template only the labels are read.
    fn as_set(self: &Arc<Self>) -> Arc<ReplicaSet>;

    /// Which pods are its own; `None` when the selector can't be read.
    fn selector(&self) -> Option<LabelSelector>;

    /// The status that it has.
    fn status(&self) -> Option<&Self::Status>;

    /// A ReplicaSet's status as one of this kind.
    fn status_of(status: ReplicaSetStatus) -> Self::Status;
}

impl Replicating for ReplicaSet {
    type Status = ReplicaSetStatus;

    fn as_set(self: &Arc<Self>) -> Arc<ReplicaSet> {
        Arc::clone(self)
    }

    fn selector(&self) -> Option<LabelSelector> {
        pod_state::label_selector(&self.spec.selector)
    }

    fn status(&self) -> Option<&Self::Status> {
        self.status.as_ref()
    }

    fn status_of(status: ReplicaSetStatus) -> Self::Status {
        status
    }
}

/// The controller of a kind that asks for a number of pods; `component` is the source of its events.
pub(crate) fn replicating<K: Replicating>(
    context: &Context,
    name: &'static str,
    component: &'static str,
) -> Controller {
    let sets = context.informers().of::<K>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    sets.add_index(Index::controller());
    pods.add_index(pods_by_owner());
    let reconciler = ReplicaSets {
        resource: ResourceType::of::<K>(),
        pod_resource: ResourceType::of::<Pod>(),
        made: Expectations::new(pods.lister().clone()),
        written: Expectations::new(sets.lister().clone()),
        doubts: Doubts::default(),
        requests: context.requests(name),
        recorder: context.recorder(component),
        clock: Arc::clone(context.clock()),
        sets: sets.clone(),
        pods: pods.clone(),
    };
    Controller::new(name, reconciler)
        .on(Trigger::new(&sets, MapTo::Itself))
        .on(Trigger::new(&pods, claim::owners(&sets, K::selector)))
}

struct ReplicaSets<K> {
    resource: ResourceType,
    pod_resource: ResourceType,
    sets: Informer<K>,
    pods: Informer<Pod>,
    /// Pods that were made or deleted and are not shown yet.
    made: Expectations,
    /// Statuses that were written and are not shown yet.
    written: Expectations,
    /// Sets of whose pods a write failed in a way that leaves open whether it was done.
    doubts: Doubts,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl<K: Replicating> Reconciler for ReplicaSets<K> {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.sets.lister().get(&key.namespace, &key.name) else {
            self.made.forget(key);
            self.written.forget(key);
            self.doubts.forget(key);
            return Ok(Action::Done);
        };
        if !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let typed = stored.typed::<K>()?;
        let set = typed.as_set();
        let spec = &set.spec;
        let Some(selector) = typed.selector() else { return Ok(Action::Done) };
        let owner = Owner { resource: &self.resource, header: stored.header(), selector: &selector };
        let seen = (self.pods.lister(), &self.made);
        self.doubts.settle(key, &owner, &self.pod_resource, &self.requests, seen).await?;
        let may_act = self.made.met(key);
        let owned = self.owned_pods(&owner).await?;
        let (mut active, mut terminating) = split(&owned)?;
        // The informer may show a pod that was told to go for a while yet.
        let mut leave_out_gone = |active: &mut Vec<Arc<Pod>>| {
            let before = active.len();
            active.retain(|pod| !self.made.is_going(key, pod_state::uid(pod)));
            terminating += before - active.len();
        };
        leave_out_gone(&mut active);
        let now = self.clock.now();
        let step = plan(spec.replicas.unwrap_or(1), &active, |pod| self.rank(&stored, pod), now);
        let alive = stored.header().deletion.is_none();
        let failure = if may_act && alive { self.act(key, &stored, &step).await.err() } else { None };
        leave_out_gone(&mut active);
        let min_ready = spec.min_ready_seconds.unwrap_or_default();
        let status = K::status_of(status_of(&set, &active, terminating, failure.as_ref(), now));
        let path = self.resource.path(&key.namespace, &key.name);
        let written = self.requests.write_status(&path, stored.revision(), typed.status(), &status).await?;
        self.written.wrote(key, written);
        if let Some(error) = failure {
            return Err(error.into());
        }
        let next = active.iter().filter_map(|pod| pod_state::available_in(pod, min_ready, now));
        let next = next.filter(|wait| !wait.is_zero()).min().map_or(Action::Done, Action::After);
        Ok(if may_act { next } else { next.or_sooner(Action::After(EXPECTATION_RECHECK)) })
    }
}

impl<K: Replicating> ReplicaSets<K> {
    async fn owned_pods(&self, owner: &Owner<'_>) -> Result<Vec<Arc<Stored>>, ReconcileError> {
        let candidates = claim::candidates(self.pods.lister(), PODS_BY_OWNER, owner);
        claim::claim_all(&self.requests, owner, &self.pod_resource, candidates).await
    }

    /// How many ready pods of the same owner as this set's are on the pod's node.
    fn rank(&self, set: &Stored, pod: &Pod) -> usize {
        let node = pod_state::node_name(pod);
        if node.is_empty() {
            return 0;
        }
        let relatives = match set.header().controller() {
            Some(owner) => self.sets.lister().by_index(Index::CONTROLLER, &owner.uid),
            None => Vec::new(),
        };
        let uids = relatives.iter().map(|set| &*set.header().uid);
        let uids = uids.chain(relatives.is_empty().then_some(&*set.header().uid));
        let pods = uids.flat_map(|uid| self.pods.by_index(PODS_BY_OWNER, uid));
        let counts = |pod: &Arc<Pod>| {
            pod_state::node_name(pod) == node && pod_state::is_active(pod) && pod_state::is_ready(pod)
        };
        pods.filter(counts).count()
    }

    async fn act(&self, key: &ObjectKey, set: &Stored, step: &Step) -> Result<(), kube::Error> {
        let writer = PodWriter {
            requests: self.requests.clone(),
            recorder: self.recorder.clone(),
            about: Arc::new(Regarding::of(set, &self.resource)),
        };
        match step {
            Step::Nothing => Ok(()),
            Step::Create(count) => {
                let object = set.value().map_err(kube::Error::SerdeError)?;
                let pod = pod_from_template(&object["spec"]["template"], &self.resource, set.header());
                let body = Bytes::from(serde_json::to_vec(&pod).map_err(kube::Error::SerdeError)?);
                let bodies = vec![body; *count];
                writer.create_slowly(bodies, (key, &self.made, &self.doubts)).await.1
            }
            Step::Delete(pods) => writer.delete_expected(pods.clone(), (key, &self.made, &self.doubts)).await,
        }
    }
}

/// The active pods, and how many are on their way out.
fn split(owned: &[Arc<Stored>]) -> Result<(Vec<Arc<Pod>>, usize), serde_json::Error> {
    let (mut active, mut terminating) = (Vec::with_capacity(owned.len()), 0);
    for pod in owned {
        let pod = pod.typed::<Pod>()?;
        if pod_state::is_active(&pod) {
            active.push(pod);
        } else if pod_state::is_terminating(&pod) {
            terminating += 1;
        }
    }
    Ok((active, terminating))
}

/// What to do about the number of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Create(usize),
    /// Names and uids.
    Delete(Vec<(String, String)>),
}

fn plan(replicas: i32, active: &[Arc<Pod>], rank: impl Fn(&Pod) -> usize, now: Timestamp) -> Step {
    let wanted = usize::try_from(replicas).unwrap_or_default();
    if active.len() < wanted {
        return Step::Create((wanted - active.len()).min(BURST_REPLICAS_MAX));
    }
    let surplus = (active.len() - wanted).min(BURST_REPLICAS_MAX);
    if surplus == 0 {
        return Step::Nothing;
    }
    let mut pods: Vec<&Pod> = active.iter().map(|pod| &**pod).collect();
    if surplus < pods.len() {
        let mut by_node = HashMap::new();
        let mut ranked: Vec<(&Pod, usize)> = Vec::with_capacity(pods.len());
        for pod in pods {
            let node = pod_state::node_name(pod).to_owned();
            ranked.push((pod, *by_node.entry(node).or_insert_with(|| rank(pod))));
        }
        ranked.sort_by(|one, two| pod_state::deletion_order(*one, *two, now));
        pods = ranked.into_iter().map(|(pod, _)| pod).collect();
    }
    let chosen = pods.into_iter().take(surplus);
    Step::Delete(
        chosen.map(|pod| (pod_state::name(pod).to_owned(), pod_state::uid(pod).to_owned())).collect(),
    )
}

/// The status that follows from the pods that were seen.
fn status_of(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&kube::Error>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = &set.spec;
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let template = spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let count = |holds: &dyn Fn(&Pod) -> bool| to_i32(active.iter().filter(|pod| holds(pod)).count());
    let labelled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        template
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let available =
        |pod: &Pod| pod_state::available_in(pod, min_ready, now).is_some_and(|wait| wait.is_zero());
    let old = set.status.as_ref();
    let mut conditions = old.and_then(|status| status.conditions.clone()).unwrap_or_default();
    let failing = conditions.iter().any(|condition| condition.type_.as_deref() == Some("ReplicaFailure"));
    match failure {
        Some(error) if !failing => {
            let wanted = spec.replicas.unwrap_or(1);
            let reason = if to_i32(active.len()) < wanted { "FailedCreate" } else { "FailedDelete" };
            conditions.push(ReplicaSetCondition {
                type_: Some("ReplicaFailure".to_owned()),
                status: Some("True".to_owned()),
                reason: Some(reason.to_owned()),
                message: Some(error_message(error)),
                last_transition_time: Some(pod_state::stored_time(now)),
            });
        }
        None => conditions.retain(|condition| condition.type_.as_deref() != Some("ReplicaFailure")),
        Some(_) => {}
    }
    let nonzero = |count: i32| (count != 0).then_some(count);
    ReplicaSetStatus {
        replicas: to_i32(active.len()),
        fully_labeled_replicas: nonzero(count(&labelled)),
        ready_replicas: nonzero(count(&pod_state::is_ready)),
        available_replicas: nonzero(count(&available)),
        terminating_replicas: Some(to_i32(terminating)),
        observed_generation: set.metadata.generation.filter(|generation| *generation != 0),
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

pub(crate) fn to_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, ready: Option<&str>, cost: Option<&str>) -> Arc<Pod> {
        let condition =
            ready.map(|at| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]));
        let annotations = cost.map(|cost| json!({"controller.kubernetes.io/pod-deletion-cost": cost}));
        let pod = json!({
            "metadata": {"name": name, "uid": name, "annotations": annotations,
                "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": condition},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn now() -> Timestamp {
        "2030-01-02T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn pods_that_are_worth_least_are_deleted_first() {
        let early = Some("2030-01-01T01:00:00Z");
        let late = Some("2030-01-01T23:59:00Z");
        let pods = [
            pod("old", "a", "Running", early, None),
            pod("young", "a", "Running", late, None),
            pod("cheap", "a", "Running", early, Some("-5")),
            pod("dear", "a", "Running", late, Some("5")),
            pod("not-ready", "a", "Running", None, None),
            pod("pending", "a", "Pending", None, None),
            pod("unassigned", "", "Pending", None, None),
            pod("crowded", "b", "Running", early, None),
        ];
        let rank = |pod: &Pod| if pod_state::node_name(pod) == "b" { 9 } else { 1 };
        let Step::Delete(chosen) = plan(1, &pods, rank, now()) else { panic!("seven are too many") };
        let names: Vec<&str> = chosen.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["unassigned", "pending", "not-ready", "cheap", "crowded", "young", "old"]);
    }

    #[test]
    fn the_number_of_pods_is_brought_to_what_is_asked_for() {
        let pods: Vec<_> = (0..3).map(|n| pod(&n.to_string(), "a", "Running", None, None)).collect();
        assert_eq!(plan(3, &pods, |_| 0, now()), Step::Nothing);
        assert_eq!(plan(5, &pods, |_| 0, now()), Step::Create(2));
        assert_eq!(plan(5000, &pods, |_| 0, now()), Step::Create(BURST_REPLICAS_MAX));
        assert!(matches!(plan(0, &pods, |_| 0, now()), Step::Delete(all) if all.len() == 3));
    }

    #[test]
    fn the_status_counts_what_is_ready_and_available() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"generation": 4},
            "spec": {"replicas": 3, "minReadySeconds": 300, "selector": {}, "template": {"metadata": {}}},
            "status": {"replicas": 0, "conditions": [{"type": "ReplicaFailure", "status": "True"}]},
        }))
        .unwrap();
        let pods = [
            pod("a", "n", "Running", Some("2030-01-01T00:00:00Z"), None),
            pod("b", "n", "Running", Some("2030-01-01T23:59:00Z"), None),
            pod("c", "n", "Pending", None, None),
        ];
        let status = serde_json::to_value(status_of(&set, &pods, 1, None, now())).unwrap();
        let expected = json!({"replicas": 3, "fullyLabeledReplicas": 3, "readyReplicas": 2, "availableReplicas": 1,
            "terminatingReplicas": 1, "observedGeneration": 4});
        assert_eq!(status, expected);
    }
}
