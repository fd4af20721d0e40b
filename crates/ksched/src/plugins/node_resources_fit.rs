//! A node must have room for what a pod asks for.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::DeviceClass;
use smallvec::SmallVec;

use super::dynamic_resources::{
    extended,
    offered::{Left, Offered},
};

use crate::{
    event::{ClusterEvent, Hint},
    node::NodeInfo,
    plugin::{
        CycleState, FilterPlugin, Finality, MAX_NODE_SCORE, QueueingHint, Rejection, ScorePlugin, Verdict,
    },
    pod::PodInfo,
    resources,
    snapshot::{
        NodeIndex, NodeView, Snapshot,
        catalog::{Catalog, Interest},
        columns::{Columns, ResourceColumn},
    },
    track::{FilterTracker, ScoreTracker, Surroundings, Track},
};

const NAME: &str = "NodeResourcesFit";

/// Which nodes are better among those with room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScoringStrategy {
    /// Those with the most room: spreads pods. The default.
    LeastAllocated,
    /// Those with the least room: packs pods.
    MostAllocated,
    /// As a function of how full they would be says: points of utilization (0 to 100, ascending) and score (0 to 10), with
    /// straight lines between them and level before the first and after the last. Resources that score 0 don't count.
    RequestedToCapacityRatio(Arc<[(i64, i64)]>),
}

/// What scores of shapes are multiplied with to be within 0 and [`MAX_NODE_SCORE`] (upstream's
/// `MaxNodeScore / MaxCustomPriorityScore`).
const SHAPE_SCALE: i64 = MAX_NODE_SCORE / 10;

/// The value at a point of a line through the points of a shape.
fn on_shape(shape: &[(i64, i64)], utilization: i64) -> i64 {
    let Some(after) = shape.iter().position(|(at, _)| utilization <= *at) else {
        return shape.last().map_or(0, |(_, score)| score * SHAPE_SCALE);
    };
    let (end, high) = (shape[after].0, shape[after].1 * SHAPE_SCALE);
    match after.checked_sub(1).map(|before| shape[before]) {
        Some((begin, low)) if begin < end => {
            let low = low * SHAPE_SCALE;
            low + (high - low) * (utilization - begin) / (end - begin)
        }
        _ => high,
    }
}

/// Rejects nodes without room, and scores by how full they are. What a node does not have at all and devices stand for is left
/// to [`DynamicResources`](super::DynamicResources) (KEP-5004).
///
/// By default CPU and memory count alike in the score; containers without requests count in it as 100m CPU and 200 MiB.
#[derive(Clone, Debug)]
pub struct NodeResourcesFit {
    strategy: ScoringStrategy,
    weights: Vec<(Arc<str>, i64)>,
    ignored: Vec<String>,
    ignored_groups: Vec<String>,
    devices: Arc<Offered>,
}

/// A resource that counts in the score, on all nodes, and what a pod asks for.
struct Wanted<'a> {
    name: &'a str,
    /// What there is and what is asked for already; `None` when no node has the resource itself.
    column: Option<(&'a [i64], &'a [i64])>,
    amount: i64,
    weight: i64,
}

impl Default for NodeResourcesFit {
    fn default() -> Self {
        Self::new(ScoringStrategy::LeastAllocated, [("cpu", 1), ("memory", 1)])
    }
}

impl NodeResourcesFit {
    /// With a strategy and the resources that count in the score, with their weights.
    #[must_use]
    pub fn new<N: Into<Arc<str>>>(
        strategy: ScoringStrategy,
        weights: impl IntoIterator<Item = (N, i64)>,
    ) -> Self {
        let weights = weights.into_iter().map(|(name, weight)| (name.into(), weight)).collect();
        let (ignored, ignored_groups) = (Vec::new(), Vec::new());
        Self { strategy, weights, ignored, ignored_groups, devices: Arc::default() }
    }

    /// Lets nodes pass whatever they have of these extended resources, and of those whose names start with one of these
    /// groups and a slash (upstream's `ignoredResources` and `ignoredResourceGroups`): others look after them.
    #[must_use]
    pub fn ignoring(mut self, resources: Vec<String>, groups: Vec<String>) -> Self {
        (self.ignored, self.ignored_groups) = (resources, groups);
        self
    }

    fn ignores(&self, resource: &str) -> bool {
        let group = resource.split_once('/').map(|(group, _)| group);
        self.ignored.iter().any(|ignored| ignored == resource)
            || self.ignored_groups.iter().any(|ignored| Some(ignored.as_str()) == group)
    }

    /// The resources that count for this pod.
    fn resolve<'a>(&'a self, pod: &PodInfo, columns: &'a Columns) -> SmallVec<[Wanted<'a>; 4]> {
        let wanted = |(name, weight): &'a (Arc<str>, i64)| {
            let column = columns.resource(name);
            let (requested, amount) = match &**name {
                "cpu" => (Some(&columns.score_milli_cpu), pod.score_milli_cpu),
                "memory" => (Some(&columns.score_memory), pod.score_memory),
                name => (column.map(|column| &column.requested), pod.requests.get(name)),
            };
            let column =
                column.zip(requested).map(|(column, requested)| (&*column.allocatable, &**requested));
            let counts = amount != 0 || !resources::is_scalar(name);
            counts.then_some(Wanted { name, column, amount, weight: *weight })
        };
        self.weights.iter().filter_map(wanted).collect()
    }

    /// What is left of the devices that stand for the resources that count.
    fn left(&self, pod: &PodInfo, catalog: &Catalog) -> Option<Left<'_>> {
        let names = self.weights.iter().map(|(name, _)| name);
        self.devices.left(names.filter(|name| pod.requests.get(name) != 0), catalog)
    }

    fn score_row(&self, wanted: &[Wanted<'_>], left: Option<&Left<'_>>, node: NodeView<'_>) -> i64 {
        let by_shape = matches!(self.strategy, ScoringStrategy::RequestedToCapacityRatio(_));
        let (mut sum, mut weights, row) = (0, 0, node.index());
        for Wanted { name, column, amount, weight } in wanted {
            let (mut allocatable, mut requested) =
                column.map_or((0, 0), |(allocatable, requested)| (allocatable[row], requested[row]));
            if let (0, Some(left)) = (allocatable, left) {
                (allocatable, requested) = left.of(name, node.info());
            }
            if allocatable != 0 {
                let score = self.score_of(requested + amount, allocatable);
                if score > 0 || !by_shape {
                    sum += score * weight;
                    weights += weight;
                }
            }
        }
        match weights {
            0 => 0,
            // Upstream rounds here and cuts off elsewhere. Sums are not negative.
            _ if by_shape => (2 * sum + weights) / (2 * weights),
            _ => sum / weights,
        }
    }

    fn score_of(&self, requested: i64, allocatable: i64) -> i64 {
        match &self.strategy {
            ScoringStrategy::LeastAllocated if requested > allocatable => 0,
            ScoringStrategy::LeastAllocated => {
                (allocatable - requested).saturating_mul(MAX_NODE_SCORE) / allocatable
            }
            ScoringStrategy::MostAllocated => {
                requested.min(allocatable).saturating_mul(MAX_NODE_SCORE) / allocatable
            }
            ScoringStrategy::RequestedToCapacityRatio(shape) if requested > allocatable => {
                on_shape(shape, 100)
            }
            ScoringStrategy::RequestedToCapacityRatio(shape) => {
                on_shape(shape, requested.saturating_mul(100) / allocatable)
            }
        }
    }
}

impl FilterPlugin for NodeResourcesFit {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let (columns, row) = (node.snapshot().columns(), node.index());
        let requests = &pod.requests;
        let lacks = |column: &ResourceColumn, wanted: i64| {
            wanted > 0 && wanted > column.allocatable[row] - column.requested[row]
        };
        let full = columns.pods[row] + 1 > columns.pods_max[row];
        if !full
            && !lacks(&columns.cpu, requests.milli_cpu)
            && !lacks(&columns.memory, requests.memory)
            && !lacks(&columns.ephemeral_storage, requests.ephemeral_storage)
            && requests.scalars.is_empty()
        {
            return Verdict::Pass;
        }
        let mut rejection = Rejection { finality: Finality::Unschedulable, reasons: SmallVec::new() };
        if full {
            rejection.reasons.push("Too many pods".into());
        }
        let basic = [
            (&columns.cpu, requests.milli_cpu, "Insufficient cpu"),
            (&columns.memory, requests.memory, "Insufficient memory"),
            (&columns.ephemeral_storage, requests.ephemeral_storage, "Insufficient ephemeral-storage"),
        ];
        for (column, wanted, reason) in basic {
            if lacks(column, wanted) {
                rejection.reasons.push(reason.into());
                if wanted > column.allocatable[row] {
                    rejection.finality = Finality::Unresolvable;
                }
            }
        }
        for (name, &wanted) in requests.scalars.iter().filter(|(_, wanted)| **wanted != 0) {
            if self.ignores(name) {
                continue;
            }
            let column = columns.scalar(name);
            let allocatable = column.map_or(0, |column| column.allocatable[row]);
            let requested = column.map_or(0, |column| column.requested[row]);
            let by_devices =
                || allocatable <= 0 && extended::class(node.snapshot().catalog(), name).is_some();
            if wanted > allocatable - requested && !by_devices() {
                rejection.reasons.push(format!("Insufficient {name}").into());
                if wanted > allocatable {
                    rejection.finality = Finality::Unresolvable;
                }
            }
        }
        if rejection.reasons.is_empty() { Verdict::Pass } else { Verdict::Reject(rejection) }
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        Track::Node
    }
}

impl ScorePlugin for NodeResourcesFit {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> i64 {
        let left = self.left(pod, node.snapshot().catalog());
        self.score_row(&self.resolve(pod, node.snapshot().columns()), left.as_ref(), node)
    }

    fn score_all(
        &self,
        _cycle: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
        scores: &mut Vec<i64>,
    ) {
        // The columns are looked up by name once, not once per node.
        let (wanted, left) = (self.resolve(pod, snapshot.columns()), self.left(pod, snapshot.catalog()));
        scores.extend(nodes.iter().map(|&row| self.score_row(&wanted, left.as_ref(), snapshot.node(row))));
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        Track::Node
    }

    fn is_normalized(&self) -> bool {
        true
    }
}

fn fits_empty(pod: &PodInfo, node: &NodeInfo) -> bool {
    let (wanted, there) = (&pod.requests, &node.allocatable);
    node.pods_max > 0
        && wanted.milli_cpu <= there.milli_cpu
        && wanted.memory <= there.memory
        && wanted.ephemeral_storage <= there.ephemeral_storage
        && wanted.scalars.iter().all(|(name, wanted)| {
            let has = there.get(name);
            // Devices may stand for what the node does not have.
            *wanted <= has || has <= 0 && extended::may_be(name)
        })
}

impl QueueingHint for NodeResourcesFit {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        let wanted = &pod.requests;
        let names = || {
            let basic = ["cpu", "memory", "ephemeral-storage"].into_iter();
            basic.chain(wanted.scalars.keys().map(|name| &**name)).filter(|name| wanted.get(name) > 0)
        };
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(node) => fits_empty(pod, node),
            ClusterEvent::NodeUpdated { old, new } => {
                let more = || names().any(|name| new.allocatable.get(name) > old.allocatable.get(name));
                fits_empty(pod, new) && (new.pods_max > old.pods_max || more())
            }
            ClusterEvent::PodGone(_) => true,
            ClusterEvent::PodUpdated { old, new } => {
                names().any(|name| new.requests.get(name) < old.requests.get(name))
            }
            ClusterEvent::TargetUpdated { old, new } => old.requests != new.requests,
            ClusterEvent::Object(event) => event
                .of::<DeviceClass>()
                .and_then(|(_, new)| new)
                .is_some_and(|class| wanted.scalars.keys().any(|asked| extended::is_of(class, asked))),
            _ => false,
        })
    }

    fn interests(&self) -> Vec<Interest> {
        vec![Interest::of::<DeviceClass>()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{node, pod};

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::new();
        let node =
            node("n").resource("cpu", "4").resource("memory", "10000").resource("example.com/gpu", "2");
        snapshot.set_node(node.resource("pods", "2").info());
        let other =
            pod("other").request("cpu", "3").request("memory", "5000").request("example.com/gpu", "1");
        snapshot.place(&Arc::new(other.info()), "n");
        snapshot
    }

    #[test]
    fn what_is_missing_is_named() {
        let unschedulable = Finality::Unschedulable;
        let cases: [(&[(&str, &str)], _, &str); 9] = [
            (&[], unschedulable, ""),
            (&[("cpu", "1"), ("memory", "5000")], unschedulable, ""),
            (&[("cpu", "1001m")], unschedulable, "Insufficient cpu"),
            (&[("cpu", "5")], Finality::Unresolvable, "Insufficient cpu"),
            (&[("cpu", "2"), ("memory", "5001")], unschedulable, "Insufficient cpu, Insufficient memory"),
            (&[("ephemeral-storage", "1")], Finality::Unresolvable, "Insufficient ephemeral-storage"),
            (&[("example.com/gpu", "2")], unschedulable, "Insufficient example.com/gpu"),
            (&[("example.com/none", "1")], Finality::Unresolvable, "Insufficient example.com/none"),
            (&[("example.com/none", "0")], unschedulable, ""),
        ];
        let snapshot = snapshot();
        for (requests, finality, expected) in cases {
            let builder = requests.iter().fold(pod("p"), |pod, (name, amount)| pod.request(name, amount));
            let fit = NodeResourcesFit::default();
            let (message, found) = match fit.filter(&CycleState::default(), &builder.info(), snapshot.node(0))
            {
                Verdict::Pass => (String::new(), unschedulable),
                Verdict::Reject(rejection) => (rejection.message(), rejection.finality),
            };
            assert_eq!((message.as_str(), found), (expected, finality), "{requests:?}");
        }
    }

    #[test]
    fn a_full_node_takes_no_more_pods() {
        let mut snapshot = snapshot();
        snapshot.place(&Arc::new(pod("second").info()), "n");
        let verdict =
            NodeResourcesFit::default().filter(&CycleState::default(), &pod("p").info(), snapshot.node(0));
        assert_eq!(verdict, Verdict::unschedulable("Too many pods"));
    }

    /// The figures of upstream's documented example: (4000 - 3000 - 0) of 4000 and (10000 - 5000 - 0) of 10000.
    #[test]
    fn scores() {
        let most = NodeResourcesFit::new(ScoringStrategy::MostAllocated, [("cpu", 1), ("memory", 1)]);
        let weighted = NodeResourcesFit::new(ScoringStrategy::LeastAllocated, [("cpu", 3), ("memory", 1)]);
        for (fit, cpu, memory, expected) in [
            (NodeResourcesFit::default(), "500m", "1000", (12 + 40) / 2),
            (most, "500m", "1000", (87 + 60) / 2),
            (weighted, "500m", "1000", (12 * 3 + 40) / 4),
            (NodeResourcesFit::default(), "1", "6000", 0),
        ] {
            let pod = pod("p").request("cpu", cpu).request("memory", memory).info();
            let score = fit.score(&CycleState::default(), &pod, snapshot().node(0));
            assert_eq!(score, expected, "{fit:?} {cpu} {memory}");
        }
    }

    /// The shape of upstream's page "Resource Bin Packing" and its reverse, and a shape's level ends.
    #[test]
    fn shapes() {
        let check = |shape: &[(i64, i64)], utilization: i64, expected: i64| {
            assert_eq!(on_shape(shape, utilization), expected, "{shape:?} at {utilization}");
        };
        for (utilization, expected) in [(0, 0), (1, 1), (50, 50), (100, 100)] {
            check(&[(0, 0), (100, 10)], utilization, expected);
            check(&[(0, 10), (100, 0)], utilization, 100 - expected);
        }
        for (utilization, expected) in [(10, 20), (20, 20), (30, 60), (40, 100), (70, 100)] {
            check(&[(20, 2), (40, 10)], utilization, expected);
        }
        check(&[], 50, 0);
    }

    #[test]
    fn a_resource_that_scores_nothing_does_not_count() {
        let shape = ScoringStrategy::RequestedToCapacityRatio([(0, 0), (100, 10)].into());
        // CPU is 3500 of 4000: 87. Memory is 6001 of 10000: 60. The device is 1 of 2: 50.
        let all = [("cpu", 1), ("memory", 1), ("example.com/gpu", 3)];
        for (gpu, expected) in [(None, 74), (Some("1"), (87 + 60 + 3 * 100 + 2) / 5)] {
            let mut pod = pod("p").request("cpu", "500m").request("memory", "1001");
            if let Some(amount) = gpu {
                pod = pod.request("example.com/gpu", amount);
            }
            let fit = NodeResourcesFit::new(shape.clone(), all);
            assert_eq!(
                fit.score(&CycleState::default(), &pod.info(), snapshot().node(0)),
                expected,
                "{gpu:?}"
            );
        }
        let falling = ScoringStrategy::RequestedToCapacityRatio([(0, 10), (87, 0)].into());
        let fit = NodeResourcesFit::new(falling, [("cpu", 1), ("memory", 1)]);
        let pod = pod("p").request("cpu", "500m").request("memory", "1001").info();
        // At 60 of 87 a line from 100 to 0 is at 100 - 68; CPU scores 0 and is left out.
        assert_eq!(fit.score(&CycleState::default(), &pod, snapshot().node(0)), 32);
    }
}
