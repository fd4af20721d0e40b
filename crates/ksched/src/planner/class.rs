//! What is kept for a class of equal pods.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;
use fixedbitset::FixedBitSet;
use k8s_openapi::api::core::v1::{PodSpec, Volume};

use crate::{
    cycle::{mix, pod_hash},
    plugin::{CycleState, FilterPlugin, PreFilterVerdict, PreScoreVerdict, ScorePlugin, Verdict},
    pod::PodInfo,
    profile::Profile,
    snapshot::{NodeIndex, Snapshot, catalog::ReadKinds},
    track::{FilterTracker, PodChange, ScoreTracker, Surroundings, Topology, Track},
};

/// Stands in the totals for nodes that are not feasible.
const NOT_FEASIBLE: i64 = i64::MIN;

pub(super) struct Class {
    pub(super) epoch: u64,
    pub(super) position: u64,
    /// The kinds of objects that its answers depend on.
    pub(super) reads: ReadKinds,
    profile: usize,
    /// The pod that the class was made for.
    pod: Arc<PodInfo>,
    /// `None` when a plug-in has to be asked anew for each pod.
    kept: Option<Kept>,
}

struct Kept {
    cycle: CycleState,
    filters: Vec<Arc<dyn FilterPlugin>>,
    /// Scores that need no normalization, with weights.
    scores: Vec<(Arc<dyn ScorePlugin>, i64)>,
    relative: Vec<Relative>,
    filter_trackers: Vec<Box<dyn FilterTracker>>,
    score_trackers: Vec<(Box<dyn ScoreTracker>, i64)>,
    /// Per node, the weighted sum of `scores`; [`NOT_FEASIBLE`] when a filter rejects it.
    totals: Vec<i64>,
    /// Nodes whose entries must be renewed.
    stale: FixedBitSet,
}

/// A score that is normalized over the feasible nodes.
struct Relative {
    plugin: Arc<dyn ScorePlugin>,
    weight: i64,
    raw: Vec<i64>,
    /// How many raw scores are not zero. When none is, all nodes are equal.
    scored: usize,
}

/// Whether plug-ins see no difference between two pods that wait.
fn equal(a: &PodInfo, b: &PodInfo) -> bool {
    let owner = |pod: &PodInfo| {
        let mut owners = pod.object.metadata.owner_references.iter().flatten();
        owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone())
    };
    let (of_a, of_b) = (a.object.spec.as_ref(), b.object.spec.as_ref());
    let claims = |spec: Option<&PodSpec>| spec.and_then(|spec| spec.resource_claims.clone());
    let name = |spec: Option<&PodSpec>| spec.and_then(|spec| spec.node_name.clone());
    a.requests == b.requests
        && a.labels == b.labels
        && a.namespace == b.namespace
        && a.score_milli_cpu == b.score_milli_cpu
        && a.score_memory == b.score_memory
        && a.containers == b.containers
        && a.images == b.images
        && a.features == b.features
        && a.host_ports == b.host_ports
        && a.tolerations == b.tolerations
        && a.required_affinity == b.required_affinity
        && a.preferred_affinity == b.preferred_affinity
        && a.pod_affinity == b.pod_affinity
        && a.spread == b.spread
        && a.deleting == b.deleting
        && owner(a) == owner(b)
        && name(of_a) == name(of_b)
        && claims(of_a) == claims(of_b)
        && volumes(of_a).eq(volumes(of_b))
}

/// The volumes that may bind a pod to nodes. The others are made on any node, and one of them, which every pod gets for
/// its account's token, has another name in each pod.
fn volumes(spec: Option<&PodSpec>) -> impl Iterator<Item = &Volume> {
    let volumes = spec.and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    volumes.filter(|volume| {
        volume.projected.is_none()
            && volume.config_map.is_none()
            && volume.secret.is_none()
            && volume.empty_dir.is_none()
            && volume.downward_api.is_none()
    })
}

impl Class {
    pub(super) fn new(
        profile: &Profile,
        number: usize,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        topologies: &mut HashMap<Arc<str>, Arc<Topology>, RandomState>,
    ) -> Self {
        let (kept, reads) = snapshot.catalog().reads_of(|| {
            keep(profile, pod, &mut Surroundings::new(snapshot, topologies)).map(|mut kept| {
                kept.renew(pod, snapshot);
                kept
            })
        });
        Self { epoch: 0, position: 0, reads, profile: number, pod: Arc::clone(pod), kept }
    }

    pub(super) fn has(&self, profile: usize, pod: &PodInfo) -> bool {
        self.profile == profile && equal(&self.pod, pod)
    }

    pub(super) fn pod_changed(&mut self, change: PodChange<'_>) -> bool {
        let Some(kept) = &mut self.kept else { return true };
        kept.stale.insert(change.node);
        kept.filter_trackers.iter_mut().all(|tracker| tracker.pod_changed(change))
            && kept.score_trackers.iter_mut().all(|(tracker, _)| tracker.pod_changed(change))
    }

    /// Takes over that a node offers something else, and how many nodes have these images.
    pub(super) fn node_changed(&mut self, node: NodeIndex, images: &[Arc<str>]) -> bool {
        let Some(kept) = &mut self.kept else { return true };
        if self.pod.images.iter().any(|image| images.contains(image)) {
            return false;
        }
        kept.stale.insert(node);
        kept.filter_trackers.iter_mut().all(|tracker| tracker.node_changed(node))
            && kept.score_trackers.iter_mut().all(|(tracker, _)| tracker.node_changed(node))
    }

    pub(super) fn renew(&mut self, snapshot: &Snapshot) {
        let Self { kept: Some(kept), pod, reads, .. } = self else { return };
        if !kept.stale.is_clear() {
            let ((), more) = snapshot.catalog().reads_of(|| kept.renew(pod, snapshot));
            reads.add(&more);
        }
    }

    /// The best node; `None` when there is none, or when it takes more than what is kept to tell. On `contested` nodes room is
    /// being made for others: whether the pod fits there beside them is not known here, and does not matter as long as
    /// another node is chosen and no score depends on which nodes are feasible.
    pub(super) fn choose(
        &mut self,
        snapshot: &Snapshot,
        seed: u64,
        pod: &PodInfo,
        contested: &[NodeIndex],
    ) -> Option<NodeIndex> {
        let Self { kept, pod: like, .. } = self;
        let kept = kept.as_mut()?;
        if !contested.is_empty() && !kept.scores_stand_alone() {
            return None;
        }
        let hash = pod_hash(seed, pod);
        let key = |node: NodeIndex| mix(hash ^ snapshot.name_hash(node));
        if kept.is_silent() {
            let best = kept.totals.iter().copied().max().filter(|best| *best != NOT_FEASIBLE)?;
            let equals = kept.totals.iter().enumerate().filter(|(_, total)| **total == best);
            let chosen = equals.map(|(node, _)| node).min_by_key(|&node| key(node));
            return chosen.filter(|chosen| !contested.contains(chosen));
        }
        let (nodes, totals) = kept.totals(like);
        let best = totals.iter().copied().max()?;
        let equals = nodes.iter().zip(&totals).filter(|(_, total)| **total == best);
        let chosen = equals.map(|(node, _)| *node).min_by_key(|&node| key(node));
        chosen.filter(|chosen| !contested.contains(chosen))
    }
}

/// Asks the plug-ins how they are to be followed. `None` when one is not.
fn keep(profile: &Profile, pod: &Arc<PodInfo>, around: &mut Surroundings<'_>) -> Option<Kept> {
    let points = &profile.points;
    let count = around.snapshot.len();
    let mut kept = Kept {
        cycle: CycleState::default(),
        filters: Vec::new(),
        scores: Vec::new(),
        relative: Vec::new(),
        filter_trackers: Vec::new(),
        score_trackers: Vec::new(),
        totals: vec![NOT_FEASIBLE; count],
        stale: FixedBitSet::with_capacity(count),
    };
    kept.stale.insert_range(..);
    let mut silent: Vec<&str> = Vec::new();
    let mut followed: Vec<&str> = Vec::new();
    let tracked: Vec<_> = points.filter.iter().map(|entry| entry.plugin.track(pod, around)).collect();
    for (entry, track) in points.filter.iter().zip(&tracked) {
        if matches!(track, Track::Follow(_)) {
            followed.push(&entry.name);
        }
    }
    for entry in points.pre_filter.iter().filter(|entry| !followed.contains(&&*entry.name)) {
        if !entry.plugin.ignores_other_pods() {
            return None;
        }
        match entry.plugin.pre_filter(&mut kept.cycle, pod, around.snapshot) {
            PreFilterVerdict::Pass => {}
            PreFilterVerdict::Skip => silent.push(&entry.name),
            PreFilterVerdict::Only(_) | PreFilterVerdict::Reject(_) => return None,
        }
    }
    for (entry, track) in points.filter.iter().zip(tracked) {
        match track {
            _ if silent.contains(&&*entry.name) => {}
            Track::Anew => return None,
            Track::Node => kept.filters.push(Arc::clone(&entry.plugin)),
            Track::Follow(tracker) => kept.filter_trackers.push(tracker),
        }
    }
    keep_scores(profile, pod, around, &mut kept)?;
    Some(kept)
}

fn keep_scores(
    profile: &Profile,
    pod: &Arc<PodInfo>,
    around: &mut Surroundings<'_>,
    kept: &mut Kept,
) -> Option<()> {
    let points = &profile.points;
    for entry in &points.score {
        match entry.plugin.track(pod, around) {
            Track::Anew => return None,
            Track::Follow(tracker) => kept.score_trackers.push((tracker, entry.weight)),
            Track::Node => {
                // What it prepares depends on the pod alone, as what it says of a node does on that node.
                let prepare = points.pre_score.iter().find(|prepare| prepare.name == entry.name);
                let verdict = prepare
                    .map(|prepare| prepare.plugin.pre_score(&mut kept.cycle, pod, around.snapshot, &[]));
                if verdict == Some(PreScoreVerdict::Skip) {
                    continue;
                }
                let (plugin, weight) = (Arc::clone(&entry.plugin), entry.weight);
                if plugin.is_normalized() {
                    kept.scores.push((plugin, weight));
                } else {
                    let raw = vec![0; around.snapshot.len()];
                    kept.relative.push(Relative { plugin, weight, raw, scored: 0 });
                }
            }
        }
    }
    Some(())
}

impl Kept {
    fn is_silent(&self) -> bool {
        self.scores_stand_alone() && self.filter_trackers.iter().all(|tracker| tracker.is_silent())
    }

    /// Whether no node's score depends on which other nodes are feasible.
    fn scores_stand_alone(&self) -> bool {
        self.relative.iter().all(|relative| relative.scored == 0)
            && self.score_trackers.iter().all(|(tracker, _)| tracker.is_silent())
    }

    /// Asks the plug-ins about the nodes that have changed.
    fn renew(&mut self, pod: &PodInfo, snapshot: &Snapshot) {
        let Self { cycle, filters, scores, relative, totals, stale, .. } = self;
        for index in stale.ones() {
            let node = snapshot.node(index);
            let passes = filters.iter().all(|filter| filter.filter(cycle, pod, node) == Verdict::Pass);
            totals[index] = if passes {
                scores.iter().map(|(plugin, weight)| plugin.score(cycle, pod, node) * weight).sum()
            } else {
                NOT_FEASIBLE
            };
            for relative in &mut *relative {
                let score = if passes { relative.plugin.score(cycle, pod, node) } else { 0 };
                let before = std::mem::replace(&mut relative.raw[index], score);
                relative.scored += usize::from(score != 0);
                relative.scored -= usize::from(before != 0);
            }
        }
        stale.clear();
    }

    /// The feasible nodes and their totals.
    fn totals(&mut self, pod: &PodInfo) -> (Vec<NodeIndex>, Vec<i64>) {
        let feasible = self.totals.iter().enumerate().filter(|(_, total)| **total != NOT_FEASIBLE);
        let mut nodes: Vec<NodeIndex> = feasible.map(|(node, _)| node).collect();
        for tracker in self.filter_trackers.iter_mut().filter(|tracker| !tracker.is_silent()) {
            tracker.retain(&mut nodes);
        }
        let mut totals: Vec<i64> = nodes.iter().map(|&node| self.totals[node]).collect();
        let mut add = |scores: &[i64], weight: i64| {
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += score * weight;
            }
        };
        for relative in self.relative.iter().filter(|relative| relative.scored > 0) {
            let mut scores: Vec<i64> = nodes.iter().map(|&node| relative.raw[node]).collect();
            relative.plugin.normalize(&self.cycle, pod, &mut scores);
            add(&scores, relative.weight);
        }
        for (tracker, weight) in self.score_trackers.iter_mut().filter(|(tracker, _)| !tracker.is_silent()) {
            add(&tracker.scores(&nodes), *weight);
        }
        (nodes, totals)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::build::pod;

    #[test]
    fn what_every_pod_has_of_its_own_makes_no_difference() {
        let with = |name: &str, volume: Value| {
            let volume = serde_json::from_value(volume).unwrap();
            pod(name).edit(|pod| pod.spec.get_or_insert_default().volumes = Some(vec![volume])).info()
        };
        let token =
            |name: &str| with(name, json!({"name": format!("kube-api-access-{name}"), "projected": {}}));
        let claim =
            |name: &str| with(name, json!({"name": "v", "persistentVolumeClaim": {"claimName": name}}));
        let cases = [
            (pod("a").info(), pod("b").info(), true),
            (token("a"), token("b"), true),
            (token("a"), pod("b").info(), true),
            (claim("a"), claim("b"), false),
            (pod("a").request("cpu", "1").info(), pod("b").info(), false),
            (pod("a").node_selector("k", "v").info(), pod("b").info(), false),
        ];
        for (a, b, expected) in cases {
            assert_eq!(equal(&a, &b), expected, "{a:?} {b:?}");
        }
    }
}
