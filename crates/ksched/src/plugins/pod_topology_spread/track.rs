//! The same rules with counts that are kept from pod to pod.

use std::sync::Arc;

use crate::{
    plugins::pod_topology_spread::{HOSTNAME, NOT_SCORED, has_all_labels, normalize},
    pod::PodInfo,
    snapshot::NodeIndex,
    spread::SpreadConstraint,
    track::{FilterTracker, PodChange, ScoreTracker, Surroundings, Topology},
};

/// A constraint with its counts.
struct Counted {
    constraint: SpreadConstraint,
    topology: Arc<Topology>,
    /// Whether a node's pods count.
    included: Vec<bool>,
    /// How many pods each value has, of those that count.
    counts: Vec<i64>,
}

impl Counted {
    fn new(
        constraint: SpreadConstraint,
        pod: &PodInfo,
        eligible: &[bool],
        around: &mut Surroundings<'_>,
    ) -> Self {
        let topology = around.topology(&constraint.topology_key);
        let nodes = around.snapshot.nodes().zip(eligible);
        let included: Vec<bool> =
            nodes.map(|(node, eligible)| *eligible && constraint.includes(pod, node.info())).collect();
        let mut counts = vec![0; topology.count];
        for node in around.snapshot.nodes().filter(|node| included[node.index()]) {
            if let Some(value) = topology.value(node.index()) {
                counts[value] += constraint.count(node.pods(), &pod.namespace);
            }
        }
        Self { constraint, topology, included, counts }
    }

    /// Whether another pod counts.
    fn selects(&self, pod: &PodInfo, other: &PodInfo) -> bool {
        let selector = self.constraint.selector.as_ref().filter(|selector| !selector.is_empty());
        !other.deleting
            && other.namespace == pod.namespace
            && selector.is_some_and(|selector| selector.matches(&other.labels))
    }

    fn pod_changed(&mut self, pod: &PodInfo, change: PodChange<'_>) {
        if self.included[change.node]
            && let Some(value) = self.topology.value(change.node)
            && self.selects(pod, change.pod)
        {
            self.counts[value] += change.sign();
        }
    }
}

fn eligible(constraints: &[SpreadConstraint], around: &Surroundings<'_>) -> Vec<bool> {
    around.snapshot.nodes().map(|node| has_all_labels(node.info(), constraints)).collect()
}

/// The hard constraints.
pub(super) struct Hard {
    pod: Arc<PodInfo>,
    constraints: Vec<HardCounted>,
}

struct HardCounted {
    counted: Counted,
    /// The values that a node has whose pods count; the smallest number is that of one of them.
    present: Vec<usize>,
    itself: i64,
}

impl Hard {
    pub(super) fn new(
        constraints: Vec<SpreadConstraint>,
        pod: &Arc<PodInfo>,
        around: &mut Surroundings<'_>,
    ) -> Self {
        let eligible = eligible(&constraints, around);
        let constraints = constraints.into_iter().map(|constraint| {
            let itself = i64::from(constraint.selects(&pod.labels));
            let counted = Counted::new(constraint, pod, &eligible, around);
            let nodes = (0..eligible.len()).filter(|&node| counted.included[node]);
            let mut present: Vec<usize> = nodes.filter_map(|node| counted.topology.value(node)).collect();
            present.sort_unstable();
            present.dedup();
            HardCounted { counted, present, itself }
        });
        Self { constraints: constraints.collect(), pod: Arc::clone(pod) }
    }
}

impl FilterTracker for Hard {
    fn pod_changed(&mut self, change: PodChange<'_>) -> bool {
        for constraint in &mut self.constraints {
            constraint.counted.pod_changed(&self.pod, change);
        }
        true
    }

    fn node_changed(&mut self, _: NodeIndex) -> bool {
        true
    }

    fn is_silent(&self) -> bool {
        self.constraints.is_empty()
    }

    fn retain(&mut self, nodes: &mut Vec<NodeIndex>) {
        for HardCounted { counted, present, itself } in &self.constraints {
            let Counted { constraint, topology, counts, .. } = counted;
            let too_few = usize::try_from(constraint.min_domains).is_ok_and(|min| present.len() < min);
            let least = present.iter().map(|value| counts[*value]).min().filter(|_| !too_few);
            let most = i64::from(constraint.max_skew) + least.unwrap_or_default() - itself;
            nodes.retain(|&node| topology.value(node).is_some_and(|value| counts[value] <= most));
        }
    }
}

/// The soft constraints.
pub(super) struct Soft {
    pod: Arc<PodInfo>,
    requires_all: bool,
    eligible: Vec<bool>,
    constraints: Vec<SoftCounted>,
    /// Which values were seen in which look at the feasible nodes.
    look: u32,
}

struct SoftCounted {
    counted: Counted,
    /// For hosts, the pods of each node.
    on_node: Option<Vec<i64>>,
    /// Per value, and last for nodes without one, the look in which it was seen.
    seen: Vec<u32>,
}

impl Soft {
    pub(super) fn new(
        constraints: Vec<SpreadConstraint>,
        requires_all: bool,
        pod: &Arc<PodInfo>,
        around: &mut Surroundings<'_>,
    ) -> Self {
        let mut eligible = eligible(&constraints, around);
        if !requires_all {
            eligible.fill(true);
        }
        let constraints = constraints.into_iter().map(|constraint| {
            let counted = Counted::new(constraint, pod, &eligible, around);
            let constraint = &counted.constraint;
            let on_node = (*constraint.topology_key == *HOSTNAME).then(|| {
                around.snapshot.nodes().map(|node| constraint.count(node.pods(), &pod.namespace)).collect()
            });
            SoftCounted { on_node, seen: vec![0; counted.topology.count + 1], counted }
        });
        let constraints = constraints.collect();
        Self { pod: Arc::clone(pod), requires_all, eligible, constraints, look: 0 }
    }

    /// Labels with few values count as much as those with many.
    #[expect(clippy::cast_precision_loss, reason = "far fewer nodes than 2^52")]
    fn weights(&mut self, nodes: &[NodeIndex]) -> Vec<f64> {
        self.look = self.look.wrapping_add(1);
        let (look, eligible) = (self.look, &self.eligible);
        let scored = || nodes.iter().copied().filter(|&node| eligible[node]);
        let sizes = self.constraints.iter_mut().map(|SoftCounted { counted, on_node, seen }| {
            if on_node.is_some() {
                return scored().count();
            }
            let last = seen.len() - 1;
            let first_seen = |node: NodeIndex| {
                let value = counted.topology.value(node).unwrap_or(last);
                std::mem::replace(&mut seen[value], look) != look
            };
            scored().map(first_seen).filter(|first| *first).count()
        });
        sizes.map(|size| ((size + 2) as f64).ln()).collect()
    }
}

impl ScoreTracker for Soft {
    fn pod_changed(&mut self, change: PodChange<'_>) -> bool {
        for SoftCounted { counted, on_node, .. } in &mut self.constraints {
            counted.pod_changed(&self.pod, change);
            if let Some(on_node) = on_node
                && counted.selects(&self.pod, change.pod)
            {
                on_node[change.node] += change.sign();
            }
        }
        true
    }

    fn node_changed(&mut self, _: NodeIndex) -> bool {
        true
    }

    fn is_silent(&self) -> bool {
        self.constraints.is_empty()
    }

    fn scores(&mut self, nodes: &[NodeIndex]) -> Vec<i64> {
        let weights = self.weights(nodes);
        let score = |&node: &NodeIndex| {
            if self.requires_all && !self.eligible[node] {
                return NOT_SCORED;
            }
            let mut score = 0.0;
            for (SoftCounted { counted, on_node, .. }, weight) in self.constraints.iter().zip(&weights) {
                let Some(value) = counted.topology.value(node) else { continue };
                let count = on_node.as_ref().map_or(counted.counts[value], |on_node| on_node[node]);
                #[expect(clippy::cast_precision_loss, reason = "far fewer pods than 2^52")]
                let weighted = count as f64 * weight;
                score += weighted + f64::from(counted.constraint.max_skew - 1);
            }
            #[expect(clippy::cast_possible_truncation, reason = "saturates")]
            let score = f64::round(score) as i64;
            score
        };
        let mut scores: Vec<i64> = nodes.iter().map(score).collect();
        normalize(&mut scores);
        scores
    }
}
