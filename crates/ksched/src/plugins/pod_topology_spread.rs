//! Pods of one kind are spread evenly over zones, nodes or whatever nodes are labelled with.

mod defaults;
mod track;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ahash::RandomState;
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, StatefulSet},
    core::v1::{ReplicationController, Service},
};

use crate::{
    event::{ClusterEvent, Hint},
    node::NodeInfo,
    plugin::{
        CycleState, FilterPlugin, MAX_NODE_SCORE, PreFilter, PreFilterVerdict, PreScore, PreScoreVerdict,
        QueueingHint, ScorePlugin, Verdict,
    },
    pod::PodInfo,
    snapshot::{NodeIndex, NodeView, Snapshot, catalog::Interest},
    spread::SpreadConstraint,
    track::{FilterTracker, ScoreTracker, Surroundings, Track},
};

const NAME: &str = "PodTopologySpread";
const SKEWED: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Stands for nodes that are not scored because a topology label is missing (upstream's `invalidScore`).
const NOT_SCORED: i64 = -1;

/// The spread constraints of pods: the hard ones filter, the soft ones score.
///
/// Pods without constraints of their own get defaults when a Service or their controller selects them: by default upstream's
/// system defaults, which only score (3 per host, 5 per zone); see [`with_defaults`](Self::with_defaults).
#[derive(Clone, Debug)]
pub struct PodTopologySpread {
    /// Their selectors come from what selects the pod.
    defaults: Vec<SpreadConstraint>,
    system_defaulted: bool,
}

impl Default for PodTopologySpread {
    fn default() -> Self {
        let soft = |key: &str, max_skew| SpreadConstraint {
            max_skew,
            topology_key: key.into(),
            hard: false,
            selector: None,
            min_domains: 1,
            honors_affinity: true,
            honors_taints: false,
        };
        Self { defaults: vec![soft(HOSTNAME, 3), soft(ZONE, 5)], system_defaulted: true }
    }
}

impl PodTopologySpread {
    /// With these constraints for pods without any (upstream's `defaultingType: List`); their selectors don't count.
    #[must_use]
    pub fn with_defaults(defaults: Vec<SpreadConstraint>) -> Self {
        Self { defaults, system_defaulted: false }
    }

    /// Whether only nodes count that have all labels. The system's defaults also spread over hosts that say nothing of
    /// their zone.
    fn requires_all(&self, pod: &PodInfo) -> bool {
        !pod.spread.is_empty() || !self.system_defaulted
    }

    fn constraints(&self, pod: &PodInfo, snapshot: &Snapshot, hard: bool) -> Vec<SpreadConstraint> {
        if !pod.spread.is_empty() {
            return pod.spread.iter().filter(|constraint| constraint.hard == hard).cloned().collect();
        }
        let mut constraints: Vec<_> =
            self.defaults.iter().filter(|constraint| constraint.hard == hard).cloned().collect();
        if constraints.is_empty() {
            return constraints;
        }
        let Some(selector) = defaults::selector(pod, snapshot.catalog()) else { return Vec::new() };
        for constraint in &mut constraints {
            constraint.selector = Some(selector.clone());
        }
        constraints
    }
}

fn has_all_labels(node: &NodeInfo, constraints: &[SpreadConstraint]) -> bool {
    constraints.iter().all(|constraint| node.labels.get(&constraint.topology_key).is_some())
}

/// How many pods each value of a topology label has.
#[derive(Clone, Default)]
struct Domains {
    counts: HashMap<Box<str>, i64, RandomState>,
    /// How many values have a count, for the smallest.
    histogram: BTreeMap<i64, usize>,
}

impl Domains {
    fn add(&mut self, value: &str, more: i64) {
        match self.counts.get_mut(value) {
            Some(count) => {
                if more == 0 {
                    return;
                }
                if let Some(values) = self.histogram.get_mut(count) {
                    *values -= 1;
                    if *values == 0 {
                        self.histogram.remove(count);
                    }
                }
                *count += more;
                *self.histogram.entry(*count).or_default() += 1;
            }
            None => {
                self.counts.insert(value.into(), more);
                *self.histogram.entry(more).or_default() += 1;
            }
        }
    }

    fn least(&self, min_domains: i32) -> i64 {
        let too_few = usize::try_from(min_domains).is_ok_and(|min| self.counts.len() < min);
        if too_few { 0 } else { self.histogram.keys().next().copied().unwrap_or_default() }
    }
}

/// What the filter needs.
#[derive(Clone)]
struct Hard {
    constraints: Arc<[SpreadConstraint]>,
    domains: Vec<Domains>,
}

impl Hard {
    fn count(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, sign: i64) {
        if other.namespace != pod.namespace || !has_all_labels(node, &self.constraints) {
            return;
        }
        for (constraint, domains) in self.constraints.iter().zip(&mut self.domains) {
            if constraint.selects(&other.labels)
                && constraint.includes(pod, node)
                && let Some(value) = node.labels.get(&constraint.topology_key)
            {
                domains.add(value, sign);
            }
        }
    }
}

impl PreFilter for PodTopologySpread {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict {
        let constraints = self.constraints(pod, snapshot, true);
        if constraints.is_empty() {
            return PreFilterVerdict::Skip;
        }
        let mut domains = vec![Domains::default(); constraints.len()];
        for node in snapshot.nodes() {
            if !has_all_labels(node.info(), &constraints) {
                continue;
            }
            for (constraint, domains) in constraints.iter().zip(&mut domains) {
                if constraint.includes(pod, node.info())
                    && let Some(value) = node.info().labels.get(&constraint.topology_key)
                {
                    domains.add(value, constraint.count(node.pods(), &pod.namespace));
                }
            }
        }
        cycle.put(Hard { constraints: constraints.into(), domains });
        PreFilterVerdict::Pass
    }

    fn add_pod(&self, cycle: &mut CycleState, pod: &PodInfo, added: &PodInfo, node: NodeView<'_>) {
        if let Some(hard) = cycle.edit::<Hard>() {
            hard.count(pod, added, node.info(), 1);
        }
    }

    fn remove_pod(&self, cycle: &mut CycleState, pod: &PodInfo, removed: &PodInfo, node: NodeView<'_>) {
        if let Some(hard) = cycle.edit::<Hard>() {
            hard.count(pod, removed, node.info(), -1);
        }
    }
}

impl FilterPlugin for PodTopologySpread {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let Some(hard) = cycle.get::<Hard>() else { return Verdict::Pass };
        for (constraint, domains) in hard.constraints.iter().zip(&hard.domains) {
            let Some(value) = node.info().labels.get(&constraint.topology_key) else {
                return Verdict::unresolvable(NO_LABEL);
            };
            let there = domains.counts.get(value).copied().unwrap_or_default();
            let itself = i64::from(constraint.selects(&pod.labels));
            if there + itself - domains.least(constraint.min_domains) > i64::from(constraint.max_skew) {
                return Verdict::unschedulable(SKEWED);
            }
        }
        Verdict::Pass
    }

    fn track(&self, pod: &Arc<PodInfo>, around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        let constraints = self.constraints(pod, around.snapshot, true);
        Track::Follow(Box::new(track::Hard::new(constraints, pod, around)))
    }
}

/// What the score needs.
struct Soft {
    constraints: Vec<SpreadConstraint>,
    /// Per constraint, the counts of the values that feasible nodes have; not kept for hosts.
    counts: Vec<HashMap<Box<str>, i64, RandomState>>,
    /// Per constraint, so that labels with few values count as much as those with many.
    weights: Vec<f64>,
    requires_all: bool,
}

impl PreScore for PodTopologySpread {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_score(
        &self,
        cycle: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
    ) -> PreScoreVerdict {
        let constraints = self.constraints(pod, snapshot, false);
        if constraints.is_empty() {
            return PreScoreVerdict::Skip;
        }
        let requires_all = self.requires_all(pod);
        let mut counts: Vec<HashMap<Box<str>, i64, RandomState>> =
            vec![HashMap::default(); constraints.len()];
        let mut scored = 0;
        for &index in nodes {
            let node = snapshot.node(index).info();
            if requires_all && !has_all_labels(node, &constraints) {
                continue;
            }
            scored += 1;
            for (constraint, counts) in constraints.iter().zip(&mut counts) {
                let value = node.labels.get(&constraint.topology_key).unwrap_or_default();
                if *constraint.topology_key != *HOSTNAME && !counts.contains_key(value) {
                    counts.insert(value.into(), 0);
                }
            }
        }
        let sizes = constraints.iter().zip(&counts).map(|(constraint, counts)| {
            if *constraint.topology_key == *HOSTNAME { scored } else { counts.len() }
        });
        #[expect(clippy::cast_precision_loss, reason = "far fewer nodes than 2^52")]
        let weights = sizes.map(|size| ((size + 2) as f64).ln()).collect();
        for node in snapshot.nodes() {
            if requires_all && !has_all_labels(node.info(), &constraints) {
                continue;
            }
            for (constraint, counts) in constraints.iter().zip(&mut counts) {
                let value = node.info().labels.get(&constraint.topology_key).unwrap_or_default();
                if let Some(count) = counts.get_mut(value)
                    && constraint.includes(pod, node.info())
                {
                    *count += constraint.count(node.pods(), &pod.namespace);
                }
            }
        }
        cycle.put(Soft { constraints, counts, weights, requires_all });
        PreScoreVerdict::Pass
    }
}

impl ScorePlugin for PodTopologySpread {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> i64 {
        let Some(soft) = cycle.get::<Soft>() else { return 0 };
        let labels = &node.info().labels;
        if soft.requires_all && !has_all_labels(node.info(), &soft.constraints) {
            return NOT_SCORED;
        }
        let mut score = 0.0;
        for (number, constraint) in soft.constraints.iter().enumerate() {
            let Some(value) = labels.get(&constraint.topology_key) else { continue };
            let count = if *constraint.topology_key == *HOSTNAME {
                constraint.count(node.pods(), &pod.namespace)
            } else {
                soft.counts[number].get(value).copied().unwrap_or_default()
            };
            #[expect(clippy::cast_precision_loss, reason = "far fewer pods than 2^52")]
            let counted = count as f64 * soft.weights[number];
            score += counted + f64::from(constraint.max_skew - 1);
        }
        #[expect(clippy::cast_possible_truncation, reason = "saturates")]
        let score = score.round() as i64;
        score
    }

    fn normalize(&self, cycle: &CycleState, _pod: &PodInfo, scores: &mut [i64]) {
        if cycle.get::<Soft>().is_none() {
            return;
        }
        normalize(scores);
    }

    fn track(&self, pod: &Arc<PodInfo>, around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        let constraints = self.constraints(pod, around.snapshot, false);
        Track::Follow(Box::new(track::Soft::new(constraints, self.requires_all(pod), pod, around)))
    }
}

fn normalize(scores: &mut [i64]) {
    let counted = || scores.iter().copied().filter(|score| *score != NOT_SCORED);
    let (least, most) = (counted().min().unwrap_or_default(), counted().max().unwrap_or_default());
    for score in scores {
        *score = match *score {
            NOT_SCORED => 0,
            _ if most == 0 => MAX_NODE_SCORE,
            score => MAX_NODE_SCORE * (most + least - score) / most,
        };
    }
}

impl QueueingHint for PodTopologySpread {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        let hard: Vec<_> = pod.spread.iter().filter(|constraint| constraint.hard).collect();
        if hard.is_empty() {
            // Rejected for a default constraint, whose selector other objects make.
            return Hint::queue_if(!matches!(event, ClusterEvent::Other(_)));
        }
        let is_near = |other: &PodInfo| other.namespace == pod.namespace;
        let selected = |other: &PodInfo| hard.iter().any(|constraint| constraint.selects(&other.labels));
        let label = |node: &NodeInfo, constraint: &SpreadConstraint| {
            node.labels.get(&constraint.topology_key).map(str::to_owned)
        };
        let has_all = |node: &NodeInfo| hard.iter().all(|constraint| label(node, constraint).is_some());
        let changed = |old: &PodInfo, new: &PodInfo| {
            hard.iter().any(|constraint| constraint.selects(&old.labels) != constraint.selects(&new.labels))
        };
        Hint::queue_if(match event {
            ClusterEvent::PodAssigned(other) | ClusterEvent::PodGone(other) => {
                is_near(other) && selected(other)
            }
            ClusterEvent::PodUpdated { old, new } => is_near(new) && changed(old, new),
            ClusterEvent::TargetUpdated { old, new } => {
                let tolerates_more = old.tolerations != new.tolerations
                    && hard.iter().any(|constraint| constraint.honors_taints);
                tolerates_more || changed(old, new) || old.spread != new.spread
            }
            ClusterEvent::NodeAdded(node) | ClusterEvent::NodeRemoved(node) => has_all(node),
            ClusterEvent::NodeUpdated { old, new } => {
                has_all(old) != has_all(new)
                    || has_all(new)
                        && (old.taints != new.taints
                            || hard.iter().any(|constraint| label(old, constraint) != label(new, constraint)))
            }
            _ => false,
        })
    }

    fn interests(&self) -> Vec<Interest> {
        if self.defaults.is_empty() {
            return Vec::new();
        }
        vec![
            Interest::of::<Service>(),
            Interest::of::<ReplicationController>(),
            Interest::of::<ReplicaSet>(),
            Interest::of::<StatefulSet>(),
        ]
    }
}
