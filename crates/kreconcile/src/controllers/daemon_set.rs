//! DaemonSets: a pod on each node that can have one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, Pod, PodSpec, Taint, Toleration},
};
use kcore::{Clock, Stored};
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::{
        Context,
        claim::{self, Owner},
        doubts::Doubts,
        pod_state,
        pod_writes::{PodWriter, pod_from_template},
        replica_set::{BURST_REPLICAS_MAX, PODS_BY_OWNER, pods_by_owner},
        revisions::{Draft, History, Revisions},
        taint_eviction::tolerates,
    },
    events::{EventRecorder, EventType, Regarding},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    node_selector::RequiredAffinity,
    reconciler::{Action, ReconcileError, Reconciler},
    request::Requests,
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

mod decide;
#[cfg(test)]
mod tests;

use decide::{Decision, Place, View};

/// How long a node waits after its pod has failed for the first time (upstream's `failedPodsBackoff`).
pub const FAILED_DAEMON_BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest that a node waits after its pod has failed. After twice as long without a failure it starts again at
/// [`FAILED_DAEMON_BACKOFF_MIN`].
pub const FAILED_DAEMON_BACKOFF_MAX: Duration = Duration::from_secs(15 * 60);

/// Taints that daemons tolerate without saying so, with their effects (`AddOrUpdateDaemonPodTolerations`).
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// The one that daemons in the host's network tolerate, too.
const TOLERATED_BY_HOST_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The controller `daemonset-controller`: has one pod on each node whose labels and taints allow it, replaces pods by the
/// set's strategy (one after the other, or with a surge), and keeps revisions and the status.
///
/// The pods are bound by the scheduler, through a node affinity for their node's name.
pub fn daemon_set(context: &Context) -> Controller {
    const NAME: &str = "daemonset-controller";
    let sets = context.informers().of::<DaemonSet>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let nodes = context.informers().of::<Node>(Selection::all());
    pods.add_index(pods_by_owner());
    let requests = context.requests(NAME);
    let revisions = Revisions::new(context, requests.clone());
    let history = revisions.informer.clone();
    let reconciler = DaemonSets {
        resource: ResourceType::of::<DaemonSet>(),
        pod_resource: ResourceType::of::<Pod>(),
        pods_written: Expectations::new(pods.lister().clone()),
        doubts: Doubts::default(),
        sets_written: Expectations::new(sets.lister().clone()),
        revisions_written: Expectations::new(revisions.informer.lister().clone()),
        requests,
        recorder: context.recorder(NAME),
        clock: Arc::clone(context.clock()),
        sets: sets.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        revisions,
        failures: Mutex::default(),
    };
    let for_nodes = {
        let sets = sets.clone();
        MapTo::Keys(Arc::new(move |_, keys| {
            keys.extend(sets.lister().list().iter().map(|set| ObjectKey::of(set.header())));
        }))
    };
    let places_change = Predicate::when(|change| {
        let seen = |node: Option<&Arc<Stored>>| node.map(|node| (node.header().labels.clone(), taints(node)));
        seen(change.old.as_ref()) != seen(change.new.as_ref())
    });
    Controller::new(NAME, reconciler)
        .reads(&history)
        .on(Trigger::new(&sets, MapTo::Itself))
        .on(Trigger::new(&pods, claim::owners(&sets, |set| pod_state::label_selector(&set.spec.selector))))
        .on(Trigger::new(&nodes, for_nodes).when(places_change))
}

fn taints(node: &Stored) -> Vec<Taint> {
    let node = node.typed::<Node>().ok();
    node.and_then(|node| node.spec.as_ref()?.taints.clone()).unwrap_or_default()
}

/// Set, observed generation and node.
type Failing = (Box<str>, i64, Box<str>);

struct DaemonSets {
    resource: ResourceType,
    pod_resource: ResourceType,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Revisions,
    pods_written: Expectations,
    /// Sets of whose pods a write failed in a way that leaves open whether it was done.
    doubts: Doubts,
    sets_written: Expectations,
    revisions_written: Expectations,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
    /// The wait after the last failure, and when that was. What is older than any wait is dropped, so there are never more
    /// than nodes with daemons that fail.
    failures: Mutex<HashMap<Failing, (Duration, Timestamp)>>,
}

#[async_trait]
impl Reconciler for DaemonSets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.sets.lister().get(&key.namespace, &key.name) else {
            self.pods_written.forget(key);
            self.doubts.forget(key);
            self.sets_written.forget(key);
            self.revisions_written.forget(key);
            return Ok(Action::Done);
        };
        if !self.sets_written.met(key) || !self.revisions_written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let set = stored.typed::<DaemonSet>()?;
        let Some(selector) = pod_state::label_selector(&set.spec.selector) else { return Ok(Action::Done) };
        if selector.is_empty() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            let about = Regarding::of(&stored, &self.resource);
            self.recorder.record(&about, EventType::Warning, "SelectingAll", message);
            return Ok(Action::Done);
        }
        if stored.header().deletion.is_some() {
            return Ok(Action::Done);
        }
        let owner = Owner { resource: &self.resource, header: stored.header(), selector: &selector };
        let history = self.history(key, &owner, &stored, &set).await?;
        let seen = (self.pods.lister(), &self.pods_written);
        self.doubts.settle(key, &owner, &self.pod_resource, &self.requests, seen).await?;
        let pods = self.owned_pods(&owner).await?;
        let places = self.places(&set);
        let latest = history.latest.metadata.labels.as_ref();
        let hash = latest.and_then(|labels| labels.get(decide::HASH_LABEL)).cloned().unwrap_or_default();
        let view = View { set: &set, places: &places, pods: &pods, hash: &hash, now: self.clock.now() };
        let may_act = self.pods_written.met(key);
        let (wait, result) = if may_act {
            self.act(key, &stored, &view).await
        } else {
            (Action::After(EXPECTATION_RECHECK), Ok(()))
        };
        let status = decide::status(&view, history.collisions, may_act);
        let path = self.resource.path(&key.namespace, &key.name);
        let written =
            self.requests.write_status(&path, stored.revision(), set.status.as_ref(), &status).await?;
        self.sets_written.wrote(key, written);
        result?;
        if may_act {
            self.clean_up(&set, &history, &pods, &hash).await?;
        }
        let min_ready = set.spec.min_ready_seconds.unwrap_or_default();
        let waits = pods.iter().filter_map(|pod| pod_state::available_in(pod, min_ready, view.now));
        let next = waits.filter(|wait| !wait.is_zero()).min().map_or(Action::Done, Action::After);
        Ok(next.or_sooner(wait))
    }
}

impl DaemonSets {
    async fn history(
        &self,
        key: &ObjectKey,
        owner: &Owner<'_>,
        stored: &Stored,
        set: &DaemonSet,
    ) -> Result<History, ReconcileError> {
        let none = BTreeMap::new();
        let template = set.spec.template.metadata.as_ref();
        let draft = Draft {
            data: Draft::template(&stored.value()?["spec"]["template"]),
            hash_label: decide::HASH_LABEL,
            labels: template.and_then(|metadata| metadata.labels.as_ref()).unwrap_or(&none),
            annotations: set.metadata.annotations.as_ref().unwrap_or(&none),
        };
        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or_default();
        let history = self.revisions.bring_up_to_date(owner, &draft, collisions).await?;
        if let Some(revision) = history.written {
            self.revisions_written.wrote(key, revision);
        }
        Ok(history)
    }

    async fn owned_pods(&self, owner: &Owner<'_>) -> Result<Vec<Arc<Pod>>, ReconcileError> {
        let candidates = claim::candidates(self.pods.lister(), PODS_BY_OWNER, owner);
        let owned = claim::claim_all(&self.requests, owner, &self.pod_resource, candidates).await?;
        Ok(owned.iter().map(|pod| pod.typed::<Pod>()).collect::<Result<_, _>>()?)
    }

    /// All nodes, by name, and what they are to the set's pods.
    fn places(&self, set: &DaemonSet) -> Vec<Place> {
        let spec = set.spec.template.spec.clone().unwrap_or_default();
        let affinity = RequiredAffinity::read(&spec);
        let tolerations = tolerations(&spec);
        let mut nodes = self.nodes.lister().list();
        nodes.sort_by(|one, two| one.header().name.cmp(&two.header().name));
        let place = |node: &Arc<Stored>| {
            let header = node.header();
            let fits = spec.node_name.as_ref().is_none_or(|name| name.is_empty() || **name == *header.name)
                && affinity.as_ref().is_none_or(|affinity| affinity.matches(&header.name, &header.labels));
            let (should_run, may_stay) =
                if fits { tolerated(&taints(node), &tolerations) } else { (false, false) };
            Place { node: header.name.to_string(), should_run, may_stay }
        };
        nodes.iter().map(place).collect()
    }

    /// Makes and deletes pods; gives when to look again because of a back-off.
    async fn act(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        view: &View<'_>,
    ) -> (Action, Result<(), ReconcileError>) {
        let mut decision = decide::manage(view);
        if decision.is_empty() {
            decision = decide::roll(view);
        }
        let wait = self.end(stored, view, &mut decision);
        decision.create.truncate(BURST_REPLICAS_MAX);
        decision.delete.truncate(BURST_REPLICAS_MAX);
        let writer = PodWriter {
            requests: self.requests.clone(),
            recorder: self.recorder.clone(),
            about: Arc::new(Regarding::of(stored, &self.resource)),
        };
        let bodies = match self.bodies(stored, view, &decision.create) {
            Ok(bodies) => bodies,
            Err(error) => return (wait, Err(error.into())),
        };
        let tracked = (key, &self.pods_written, &self.doubts);
        let (_, made) = writer.create_slowly(bodies, tracked).await;
        let name_and_uid = |pod: &Arc<Pod>| (pod_state::name(pod).to_owned(), pod_state::uid(pod).to_owned());
        let pods = decision.delete.iter().map(name_and_uid).collect();
        let deleted = writer.delete_expected(pods, tracked).await;
        (wait, made.and(deleted).map_err(ReconcileError::from))
    }

    /// Has pods that ended deleted, unless their node failed too recently, and tells about it.
    fn end(&self, stored: &Stored, view: &View<'_>, decision: &mut Decision) -> Action {
        let about = Regarding::of(stored, &self.resource);
        let mut wait = Action::Done;
        for (pod, node) in std::mem::take(&mut decision.ended) {
            let (namespace, name) = (&*about.namespace, pod_state::name(&pod));
            if pod_state::phase(&pod) == "Succeeded" {
                let message = format!(
                    "Found succeeded daemon pod {namespace}/{name} on node {node}, will try to delete it"
                );
                self.recorder.record(&about, EventType::Normal, "SucceededDaemonPod", message);
            } else {
                let generation = view.set.status.as_ref().and_then(|status| status.observed_generation);
                let failing =
                    (stored.header().uid.clone(), generation.unwrap_or_default(), node.as_str().into());
                if let Some(left) = self.back_off(failing, view.now) {
                    wait = wait.or_sooner(Action::After(left));
                    continue;
                }
                let message =
                    format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
                self.recorder.record(&about, EventType::Warning, "FailedDaemonPod", message);
            }
            decision.delete.push(pod);
        }
        wait
    }

    /// How long a node has to wait still; nothing when its pod may be replaced, after which the next wait is twice as long.
    fn back_off(&self, failing: Failing, now: Timestamp) -> Option<Duration> {
        let since = |then: Timestamp| Duration::try_from(now.duration_since(then)).unwrap_or(Duration::ZERO);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (_, last)| since(*last) <= 2 * FAILED_DAEMON_BACKOFF_MAX);
        let next = match failures.get(&failing) {
            Some((wait, last)) if since(*last) < *wait => return Some(*wait - since(*last)),
            Some((wait, _)) => (*wait * 2).min(FAILED_DAEMON_BACKOFF_MAX),
            None => FAILED_DAEMON_BACKOFF_MIN,
        };
        failures.insert(failing, (next, now));
        None
    }

    /// The pods for these nodes: the template with the hash, the tolerations and an affinity for the node.
    fn bodies(
        &self,
        stored: &Stored,
        view: &View<'_>,
        nodes: &[String],
    ) -> Result<Vec<Bytes>, serde_json::Error> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let object = stored.value()?;
        let mut pod = pod_from_template(&object["spec"]["template"], &self.resource, stored.header());
        pod["metadata"]["labels"][decide::HASH_LABEL] = Value::from(view.hash);
        if let Some(generation) = decide::template_generation(view.set) {
            pod["metadata"]["labels"][decide::GENERATION_LABEL] = Value::from(generation.to_string());
        }
        let spec = view.set.spec.template.spec.clone().unwrap_or_default();
        pod["spec"]["tolerations"] = serde_json::to_value(tolerations(&spec))?;
        let mut body = |node: &String| {
            let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
            // Whatever terms the template has, the node matches one of them.
            pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] =
                json!([{"matchFields": [field]}]);
            serde_json::to_vec(&pod).map(Bytes::from)
        };
        nodes.iter().map(&mut body).collect()
    }

    /// Deletes the oldest revisions beyond the limit that no pod is of.
    async fn clean_up(
        &self,
        set: &DaemonSet,
        history: &History,
        pods: &[Arc<Pod>],
        newest: &str,
    ) -> Result<(), kube::Error> {
        let hash_of = |labels: Option<&BTreeMap<String, String>>| {
            labels.and_then(|labels| labels.get(decide::HASH_LABEL)).cloned().unwrap_or_default()
        };
        let mut old: Vec<_> = history.known.iter().collect();
        old.retain(|revision| hash_of(revision.metadata.labels.as_ref()) != newest);
        let limit = usize::try_from(set.spec.revision_history_limit.unwrap_or(10)).unwrap_or_default();
        let surplus = old.len().saturating_sub(limit);
        let used: Vec<_> = pods.iter().map(|pod| hash_of(pod.metadata.labels.as_ref())).collect();
        old.retain(|revision| !used.contains(&hash_of(revision.metadata.labels.as_ref())));
        self.revisions.delete_oldest(&old, surplus).await
    }
}

/// What the set's pods tolerate: what the template says, and what daemons do anyway.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let added = TOLERATED.into_iter().chain(host_network.then_some(TOLERATED_BY_HOST_NETWORK));
    for (key, effect) in added {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        let same = |known: &&mut Toleration| {
            (&known.key, &known.operator, &known.effect)
                == (&toleration.key, &toleration.operator, &toleration.effect)
                && known.value.as_deref().unwrap_or_default().is_empty()
        };
        match all.iter_mut().find(same) {
            Some(known) => *known = toleration,
            None => all.push(toleration),
        }
    }
    all
}

/// Whether pods belong on a node with these taints, and whether they may stay there.
fn tolerated(taints: &[Taint], tolerations: &[Toleration]) -> (bool, bool) {
    let untolerated = |taint: &&Taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint));
    let bad: Vec<&str> = taints.iter().filter(untolerated).map(|taint| &*taint.effect).collect();
    let may_stay = !bad.contains(&"NoExecute");
    (may_stay && !bad.contains(&"NoSchedule"), may_stay)
}
