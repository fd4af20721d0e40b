//! Nodes that fall silent: what becomes of them and of their pods.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ahash::RandomState;
use async_trait::async_trait;
use jiff::SignedDuration;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, NodeCondition, Pod, Taint},
};
use kcore::{Clock, Stored, clock::format_time};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    cache::Index,
    controller::Controller,
    controllers::{Context, Settings, pod_state},
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Requests},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

mod health;
mod zones;

use health::{Grace, Ready, Record};
use zones::Zones;
pub use zones::{
    EVICTION_BURST_MAX, EVICTIONS_PER_SECOND_DISRUPTED_MAX, EVICTIONS_PER_SECOND_MAX, LARGE_CLUSTER_NODES,
    UNHEALTHY_ZONE_SHARE,
};

/// The namespace of the nodes' heartbeats.
const LEASES: &str = "kube-node-lease";

/// Pods by the node that they are bound to; nothing for those that are not.
pub(crate) const PODS_BY_NODE: &str = "pods-by-node";

/// The index [`PODS_BY_NODE`].
pub(crate) fn pods_by_node() -> Index {
    Index::new(PODS_BY_NODE, |object, emit| {
        let known = object.header().field("spec.nodeName");
        if let Some(node) = known {
            if !node.is_empty() {
                emit(node);
            }
        } else if let Ok(pod) = object.typed::<Pod>()
            && !pod_state::node_name(&pod).is_empty()
        {
            emit(pod_state::node_name(&pod));
        }
    })
}

/// The controller `node-lifecycle-controller`: sets the conditions of silent nodes to Unknown, tells their pods that they
/// are not ready, and taints nodes by their conditions. What such taints do to pods is the matter of
/// [`taint_eviction`](super::taint_eviction).
///
/// A node counts as alive when its Lease is renewed or its status is. Taints with the effect NoExecute are given out per
/// zone, at [`EVICTIONS_PER_SECOND_MAX`], slower or not at all when much of a zone fails at once.
pub fn node_lifecycle(context: &Context) -> Controller {
    const NAME: &str = "node-lifecycle-controller";
    let nodes = context.informers().of::<Node>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let leases = context.informers().of::<Lease>(Selection::all().namespace(LEASES));
    pods.add_index(pods_by_node());
    let reconciler = Nodes {
        resource: ResourceType::of::<Node>(),
        pod_resource: ResourceType::of::<Pod>(),
        requests: context.requests(NAME),
        recorder: context.recorder("node-controller"),
        clock: Arc::clone(context.clock()),
        settings: context.settings.clone(),
        memory: Mutex::default(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        leases: leases.clone(),
    };
    Controller::new(NAME, reconciler)
        .workers(8)
        .reads(&pods)
        .reads(&leases)
        .on(Trigger::new(&nodes, MapTo::Itself))
}

struct Nodes {
    resource: ResourceType,
    pod_resource: ResourceType,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    leases: Informer<Lease>,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
    settings: Settings,
    memory: Mutex<Memory>,
}

/// What is known of nodes beyond what the server says.
#[derive(Default)]
struct Memory {
    records: HashMap<String, (Record, Ready), RandomState>,
    zones: Zones,
}

#[async_trait]
impl Reconciler for Nodes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.nodes.lister().get("", &key.name) else {
            let mut memory = self.memory();
            memory.records.remove(&*key.name);
            memory.zones.remove(&key.name);
            return Ok(Action::Done);
        };
        let mut node = (*stored.typed::<Node>()?).clone();
        let now = self.clock.now();
        if !self.memory().records.contains_key(&*key.name) {
            let about = Regarding::of(&stored, &self.resource);
            let message = format!("Node {name} event: Registered Node {name} in Controller", name = key.name);
            self.recorder.record(&about, EventType::Normal, "RegisteredNode", message);
        }
        let record = self.note(&key.name, &node, now);
        let grace = Grace {
            monitor: SignedDuration::try_from(self.settings.node_monitor_grace)
                .unwrap_or(SignedDuration::MAX),
            startup: SignedDuration::try_from(self.settings.node_startup_grace)
                .unwrap_or(SignedDuration::MAX),
        };
        if let Some(conditions) = health::silence(&node, &record, grace, now) {
            self.write_conditions(&stored, &conditions).await?;
            node.status.get_or_insert_default().conditions = Some(conditions);
            self.tell(&stored, &node).await?;
            // The taints follow when the new revision is seen, so that nobody else's are lost.
            return Ok(Action::After(self.settings.node_monitor_period));
        }
        self.tell(&stored, &node).await?;
        let may_evict = self.may_evict(&key.name, &node);
        let (taints, _) = health::taints(&node, may_evict, now);
        if let Some(taints) = taints {
            self.write_taints(&stored, &taints).await?;
        }
        Ok(Action::After(self.settings.node_monitor_period))
    }
}

fn zone_of(node: &Node) -> String {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str).unwrap_or_default();
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

impl Nodes {
    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, name: &str, node: &Node, now: jiff::Timestamp) -> Record {
        let lease = self.leases.get(LEASES, name);
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0));
        let mut memory = self.memory();
        let known = memory.records.get(name);
        let record = Record::note(known.map(|(record, _)| record), node, renewed, now);
        let ready = known.map_or_else(|| health::ready(node), |(_, ready)| *ready);
        memory.records.insert(name.to_owned(), (record.clone(), ready));
        record
    }

    /// Tells people and pods when a node is no longer ready.
    async fn tell(&self, stored: &Stored, node: &Node) -> Result<(), ReconcileError> {
        let name = &*stored.header().name;
        let ready = health::ready(node);
        let was = self.memory().records.get(name).map_or(ready, |(_, was)| *was);
        if was == Ready::Yes && ready != Ready::Yes {
            let about = Regarding::of(stored, &self.resource);
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder.record(&about, EventType::Normal, "NodeNotReady", message);
            for pod in self.pods.lister().by_index(PODS_BY_NODE, name) {
                self.mark_not_ready(&pod).await?;
            }
        }
        if let Some((_, known)) = self.memory().records.get_mut(name) {
            *known = ready;
        }
        Ok(())
    }

    async fn mark_not_ready(&self, stored: &Stored) -> Result<(), ReconcileError> {
        let pod = stored.typed::<Pod>()?;
        if !pod_state::is_ready(&pod) {
            return Ok(());
        }
        let mut conditions =
            pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
            condition.status = "False".to_owned();
            condition.last_transition_time = Some(pod_state::stored_time(self.clock.now()));
        }
        let header = stored.header();
        let patch = json!({
            "metadata": {"resourceVersion": stored.revision().to_string()},
            "status": {"conditions": conditions},
        });
        let path = self.pod_resource.path(&header.namespace, &header.name) + "/status";
        match self.requests.patch::<Value>(&path, PatchKind::Merge, &patch).await {
            Ok(_) => {
                let about = Regarding::of(stored, &self.pod_resource);
                self.recorder.record(&about, EventType::Warning, "NodeNotReady", "Node is not ready");
                Ok(())
            }
            Err(error) if request::is_not_found(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn write_conditions(
        &self,
        stored: &Stored,
        conditions: &[NodeCondition],
    ) -> Result<(), ReconcileError> {
        let patch = json!({
            "metadata": {"resourceVersion": stored.revision().to_string()},
            "status": {"conditions": conditions},
        });
        let path = self.resource.path("", &stored.header().name) + "/status";
        self.requests.patch::<Value>(&path, PatchKind::Merge, &patch).await?;
        Ok(())
    }

    /// Whether the node may be given a taint that makes its pods go. Asked only when it needs one.
    fn may_evict(&self, name: &str, node: &Node) -> bool {
        let (ready, zone) = (health::ready(node), zone_of(node));
        let mut memory = self.memory();
        // A node that has never reported is neither ready nor lost.
        if health::condition(node, "Ready").is_some() {
            memory.zones.set(name, &zone, ready == Ready::Yes);
        }
        if ready == Ready::Yes {
            return false;
        }
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        let mut evicting = taints.into_iter().filter(|taint| taint.effect == "NoExecute");
        // One taint in the place of the other evicts nobody anew.
        let swaps = evicting.any(|taint| matches!(&*taint.key, health::NOT_READY | health::UNREACHABLE));
        swaps || memory.zones.may_evict(&zone, Instant::now())
    }

    async fn write_taints(&self, stored: &Stored, taints: &[Taint]) -> Result<(), ReconcileError> {
        let taints: Vec<Value> = taints.iter().map(taint_value).collect();
        let taints = if taints.is_empty() { Value::Null } else { taints.into() };
        let patch = json!({
            "metadata": {"resourceVersion": stored.revision().to_string()},
            "spec": {"taints": taints},
        });
        let path = self.resource.path("", &stored.header().name);
        self.requests.patch::<Value>(&path, PatchKind::Merge, &patch).await?;
        Ok(())
    }
}

fn taint_value(taint: &Taint) -> Value {
    let mut value = json!({"key": taint.key, "effect": taint.effect});
    if let Some(text) = &taint.value {
        value["value"] = text.as_str().into();
    }
    if let Some(time) = &taint.time_added {
        value["timeAdded"] = format_time(time.0).into();
    }
    value
}
