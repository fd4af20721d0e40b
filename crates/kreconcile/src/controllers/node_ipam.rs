//! A part of the cluster's pod addresses for each node (upstream's `RangeAllocator`).

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use kcore::Stored;
use serde_json::json;

use crate::{
    address_range::AddressRange,
    controller::Controller,
    controllers::Context,
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

mod ranges;

pub use ranges::NODE_RANGES_MAX;
use ranges::Ranges;

/// The controller `node-ipam-controller`: gives each node a part of each of the cluster's ranges, as its `spec.podCIDRs`, and
/// hands a part out again when its node has been deleted.
///
/// What nodes have already counts as taken before the first one gets anything, so that it goes on after a restart where it was.
/// Parts are handed out one after another, going round; what shares an address with
/// [`Settings::service_ranges`](super::Settings::service_ranges) is left out.
pub fn node_ipam(context: &Context) -> Controller {
    const NAME: &str = "node-ipam-controller";
    let nodes = context.informers().of::<Node>(Selection::all());
    let settings = &context.settings;
    let cluster = settings.cluster_ranges.iter().filter_map(|text| AddressRange::parse(text));
    let masked = |range: AddressRange| {
        (range, if range.is_v6() { settings.node_prefix_ipv6 } else { settings.node_prefix_ipv4 })
    };
    let services = settings.service_ranges.iter().filter_map(|text| AddressRange::parse(text));
    let ranges = Ranges::new(&cluster.map(masked).collect::<Vec<_>>(), &services.collect::<Vec<_>>());
    let reconciler = NodeRanges {
        resource: ResourceType::of::<Node>(),
        nodes: nodes.clone(),
        requests: context.requests(NAME),
        recorder: context.recorder("cidrAllocator"),
        ranges: Mutex::new(ranges),
    };
    let matters = Predicate::when(|change| {
        let had = change.old.as_deref().map(ranges_of);
        had.is_none() || change.is_recreated() || had != change.new.as_deref().map(ranges_of)
    });
    Controller::new(NAME, reconciler).on(Trigger::new(&nodes, MapTo::Itself).when(matters))
}

fn ranges_of(node: &Stored) -> Vec<String> {
    let typed = node.typed::<Node>().ok();
    typed.and_then(|node| node.spec.as_ref()?.pod_cidrs.clone()).unwrap_or_default()
}

struct NodeRanges {
    resource: ResourceType,
    nodes: Informer<Node>,
    requests: Requests,
    recorder: EventRecorder,
    ranges: Mutex<Ranges>,
}

impl NodeRanges {
    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a node is to get; `None` when it has what it needs.
    fn decide(&self, node: &Stored) -> Result<Option<Vec<AddressRange>>, ReconcileError> {
        let header = node.header();
        let mut ranges = self.ranges();
        if !std::mem::replace(&mut ranges.knows_nodes, true) {
            for other in self.nodes.lister().list() {
                let has = ranges_of(&other);
                // What is wrong with another node is told when its turn comes.
                let _ =
                    (!has.is_empty()).then(|| ranges.occupy(&other.header().name, &other.header().uid, &has));
            }
        }
        let has = ranges_of(node);
        if !has.is_empty() {
            let occupied = ranges.occupy(&header.name, &header.uid, &has);
            return occupied.map(|()| None).map_err(ReconcileError::terminal);
        }
        if ranges.is_empty() {
            return Ok(None);
        }
        let mut assigned = ranges.assign(&header.name, &header.uid);
        if assigned.is_err() {
            ranges.release_all_but(|name| self.nodes.lister().get("", name).is_some());
            assigned = ranges.assign(&header.name, &header.uid);
        }
        drop(ranges);
        assigned.map(Some).map_err(|index| {
            self.tell(node, "CIDRNotAvailable");
            ReconcileError::other(format!(
                "failed to allocate cidr from cluster cidr at idx:{index}: CIDR allocation failed; there are no remaining CIDRs left to allocate in the accepted range"
            ))
        })
    }

    fn tell(&self, node: &Stored, what: &'static str) {
        let about = Regarding::of(node, &self.resource);
        let message = format!("Node {} status is now: {what}", node.header().name);
        self.recorder.record(&about, EventType::Normal, what, message);
    }
}

#[async_trait]
impl Reconciler for NodeRanges {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(node) = self.nodes.lister().get("", &key.name) else {
            self.ranges().release(&key.name);
            return Ok(Action::Done);
        };
        if node.header().deletion.is_some() {
            return Ok(Action::Done);
        }
        let Some(assigned) = self.decide(&node)? else { return Ok(Action::Done) };
        let texts: Vec<String> = assigned.iter().map(ToString::to_string).collect();
        // A node's ranges can be set once, so that no revision is needed: who comes second is refused.
        let patch = json!({
            "metadata": {"uid": &*node.header().uid},
            "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
        });
        let path = self.resource.path("", &key.name);
        match self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
            Ok(_) => Ok(Action::Done),
            Err(error) if request::is_not_found(&error) => Ok(Action::Done),
            Err(error) => {
                self.tell(&node, "CIDRAssignmentFailed");
                Err(error.into())
            }
        }
    }
}
