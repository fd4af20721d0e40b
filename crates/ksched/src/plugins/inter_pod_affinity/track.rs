//! The same rules with counts that are kept from pod to pod.

use std::sync::Arc;

use crate::{
    plugins::inter_pod_affinity::{Counted, Preferences, Terms, normalize},
    pod::PodInfo,
    snapshot::{NodeIndex, Snapshot},
    track::{FilterTracker, PodChange, ScoreTracker, Surroundings, Topology},
};

/// A number per topology key and value.
#[derive(Default)]
struct Counts(Vec<KeyCounts>);

struct KeyCounts {
    key: Arc<str>,
    topology: Arc<Topology>,
    counts: Vec<i64>,
    /// How many counts are not zero.
    counted: usize,
}

impl Counts {
    /// Makes room for a key.
    fn know(&mut self, key: &Arc<str>, around: &mut Surroundings<'_>) {
        if self.0.iter().all(|known| known.key != *key) {
            let topology = around.topology(key);
            let counts = vec![0; topology.count];
            self.0.push(KeyCounts { key: Arc::clone(key), topology, counts, counted: 0 });
        }
    }

    /// `false` when the key is not known.
    fn add(&mut self, node: NodeIndex, key: &str, more: i64) -> bool {
        let Some(known) = self.0.iter_mut().find(|known| *known.key == *key) else { return false };
        if let Some(value) = known.topology.value(node) {
            let count = &mut known.counts[value];
            known.counted -= usize::from(*count != 0);
            *count += more;
            known.counted += usize::from(*count != 0);
        }
        true
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|known| known.counted == 0)
    }
}

impl KeyCounts {
    fn get(&self, node: NodeIndex) -> i64 {
        self.topology.value(node).map_or(0, |value| self.counts[value])
    }
}

/// Tells each placed pod that can matter: all, or those with rules of their own.
fn each_pod(snapshot: &Snapshot, all: bool, mut tell: impl FnMut(&PodInfo, NodeIndex)) {
    if all {
        for node in snapshot.nodes() {
            node.pods().iter().for_each(|other| tell(other, node.index()));
        }
    } else {
        snapshot.pods_with_affinity().for_each(|(other, node)| tell(other, node.index()));
    }
}

/// What must be.
pub(super) struct Required {
    pod: Arc<PodInfo>,
    terms: Terms,
    near_counts: Counts,
    far_counts: Counts,
    existing_counts: Counts,
}

impl Required {
    pub(super) fn new(pod: &Arc<PodInfo>, around: &mut Surroundings<'_>) -> Self {
        let snapshot = around.snapshot;
        let mut tracker = Self {
            terms: Terms::read(pod, snapshot),
            near_counts: Counts::default(),
            far_counts: Counts::default(),
            existing_counts: Counts::default(),
            pod: Arc::clone(pod),
        };
        for term in &tracker.terms.near {
            tracker.near_counts.know(&term.topology_key, around);
        }
        for term in &tracker.terms.far {
            tracker.far_counts.know(&term.topology_key, around);
        }
        // Pods with the same rules as this one come next.
        let known = snapshot.pods_with_affinity().map(|(other, _)| other).chain([pod]);
        for term in known.flat_map(|other| &other.pod_affinity.required_anti) {
            tracker.existing_counts.know(&term.topology_key, around);
        }
        each_pod(snapshot, tracker.terms.has_rules(), |other, node| {
            tracker.count(other, node, 1);
        });
        tracker
    }

    /// `false` when a key is not known.
    fn count(&mut self, other: &PodInfo, node: NodeIndex, sign: i64) -> bool {
        let Self { pod, terms, near_counts, far_counts, existing_counts } = self;
        let mut known = true;
        terms.each(pod, other, |counted, key| {
            let counts = match counted {
                Counted::Near => &mut *near_counts,
                Counted::Far => &mut *far_counts,
                Counted::Existing => &mut *existing_counts,
            };
            known &= counts.add(node, key, sign);
        });
        known
    }
}

impl FilterTracker for Required {
    fn pod_changed(&mut self, change: PodChange<'_>) -> bool {
        self.count(change.pod, change.node, change.sign())
    }

    fn node_changed(&mut self, _: NodeIndex) -> bool {
        true
    }

    fn is_silent(&self) -> bool {
        self.terms.near.is_empty() && self.far_counts.is_empty() && self.existing_counts.is_empty()
    }

    fn retain(&mut self, nodes: &mut Vec<NodeIndex>) {
        let near = &self.near_counts.0;
        // Without any pod that it could be near, one that means itself may begin anywhere.
        let begins = self.near_counts.is_empty() && self.terms.matches_itself;
        nodes.retain(|&node| near.iter().all(|key| key.topology.value(node).is_some()));
        if !begins {
            nodes.retain(|&node| near.iter().all(|key| key.get(node) > 0));
        }
        for key in self.far_counts.0.iter().chain(&self.existing_counts.0).filter(|key| key.counted > 0) {
            nodes.retain(|&node| key.get(node) <= 0);
        }
    }
}

/// What would be better.
pub(super) struct Preferred {
    pod: Arc<PodInfo>,
    preferences: Preferences,
    counts: Counts,
}

impl Preferred {
    pub(super) fn new(pod: &Arc<PodInfo>, hard_weight: i64, around: &mut Surroundings<'_>) -> Self {
        let snapshot = around.snapshot;
        let preferences = Preferences::read(pod, hard_weight, snapshot);
        let mut counts = Counts::default();
        let known = snapshot.pods_with_affinity().map(|(other, _)| other).chain([pod]);
        let keys = known.flat_map(|other| {
            let preferred = other.pod_affinity.preferred.iter().map(|(_, term)| term);
            other.pod_affinity.required.iter().chain(preferred).map(|term| &term.topology_key)
        });
        keys.for_each(|key| counts.know(key, around));
        let mut tracker = Self { pod: Arc::clone(pod), preferences, counts };
        each_pod(snapshot, !pod.pod_affinity.preferred.is_empty(), |other, node| {
            tracker.count(other, node, 1);
        });
        tracker
    }

    /// `false` when a key is not known.
    fn count(&mut self, other: &PodInfo, node: NodeIndex, sign: i64) -> bool {
        let Self { pod, preferences, counts } = self;
        let mut known = true;
        preferences.each(pod, other, |weight, key| known &= counts.add(node, key, sign * weight));
        known
    }
}

impl ScoreTracker for Preferred {
    fn pod_changed(&mut self, change: PodChange<'_>) -> bool {
        self.count(change.pod, change.node, change.sign())
    }

    fn node_changed(&mut self, _: NodeIndex) -> bool {
        true
    }

    fn is_silent(&self) -> bool {
        self.counts.is_empty()
    }

    fn scores(&mut self, nodes: &[NodeIndex]) -> Vec<i64> {
        let keys: Vec<_> = self.counts.0.iter().filter(|key| key.counted > 0).collect();
        let mut scores: Vec<i64> =
            nodes.iter().map(|&node| keys.iter().map(|key| key.get(node)).sum()).collect();
        normalize(&mut scores);
        scores
    }
}
