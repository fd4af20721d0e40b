//! Pods that want to be near other pods, or far from them.

mod track;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ahash::RandomState;
use k8s_openapi::api::core::v1::Namespace;
use kcore::Labels;

use crate::{
    event::{ClusterEvent, Hint},
    node::NodeInfo,
    plugin::{
        CycleState, FilterPlugin, MAX_NODE_SCORE, PreFilter, PreFilterVerdict, PreScore, PreScoreVerdict,
        QueueingHint, ScorePlugin, Verdict,
    },
    pod::PodInfo,
    pod_affinity::PodTerm,
    snapshot::{NodeIndex, NodeView, Snapshot, catalog::Interest},
    track::{FilterTracker, ScoreTracker, Surroundings, Track},
};

const NAME: &str = "InterPodAffinity";
const NOT_NEAR: &str = "node(s) didn't match pod affinity rules";
const NOT_FAR: &str = "node(s) didn't match pod anti-affinity rules";
const NOT_WANTED: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// Affinity and anti-affinity between pods, required and preferred, of the pod and of those that are there.
///
/// What counts is one number per topology key and value, made by one pass over the pods that can matter: only those with
/// rules of their own when the pod has none.
#[derive(Clone, Copy, Debug)]
pub struct InterPodAffinity {
    /// What another pod's required affinity to this one counts in the score: 0 to 100, 1 by default.
    pub hard_pod_affinity_weight: i64,
    /// Leaves the preferences of other pods out of the score when the pod has none itself; `false` by default.
    pub ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodAffinity {
    fn default() -> Self {
        Self { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

/// A number per topology key and value; a value whose number came to zero is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts(BTreeMap<Arc<str>, HashMap<Box<str>, i64, RandomState>>);

impl Counts {
    fn add(&mut self, node: &NodeInfo, key: &Arc<str>, more: i64) {
        let Some(value) = node.labels.get(key) else { return };
        if !self.0.contains_key(key) {
            self.0.insert(Arc::clone(key), HashMap::default());
        }
        let Some(values) = self.0.get_mut(key) else { return };
        let count = match values.get_mut(value) {
            Some(count) => count,
            None => values.entry(value.into()).or_default(),
        };
        *count += more;
        if *count == 0 {
            values.remove(value);
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }

    fn get(&self, node: &NodeInfo, key: &str) -> i64 {
        let count = self.0.get(key).zip(node.labels.get(key));
        count.and_then(|(values, value)| values.get(value).copied()).unwrap_or_default()
    }
}

/// What a pod requires of others, ready to be matched.
#[derive(Clone)]
struct Terms {
    near: Vec<PodTerm>,
    far: Vec<PodTerm>,
    matches_itself: bool,
    namespace_labels: Option<Labels>,
}

/// What another pod counts for.
#[derive(Clone, Copy)]
enum Counted {
    /// All terms of affinity mean it.
    Near,
    /// A term of anti-affinity means it.
    Far,
    /// A term of its own anti-affinity means the pod.
    Existing,
}

impl Terms {
    fn read(pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let resolve = |terms: &[PodTerm]| terms.iter().map(|term| resolved(term, snapshot)).collect();
        let near: Vec<_> = resolve(&pod.pod_affinity.required);
        Self {
            matches_itself: means_all(&near, pod),
            near,
            far: resolve(&pod.pod_affinity.required_anti),
            namespace_labels: namespace_labels(pod, snapshot),
        }
    }

    /// Whether all pods count, and not only those that say something about others.
    fn has_rules(&self) -> bool {
        !self.near.is_empty() || !self.far.is_empty()
    }

    /// Tells for which topology keys another pod counts.
    fn each(&self, pod: &PodInfo, other: &PodInfo, mut tell: impl FnMut(Counted, &Arc<str>)) {
        for term in &other.pod_affinity.required_anti {
            if term.matches(pod, self.namespace_labels.as_ref()) {
                tell(Counted::Existing, &term.topology_key);
            }
        }
        if means_all(&self.near, other) {
            self.near.iter().for_each(|term| tell(Counted::Near, &term.topology_key));
        }
        for term in self.far.iter().filter(|term| term.matches(other, None)) {
            tell(Counted::Far, &term.topology_key);
        }
    }
}

/// What the filter needs.
#[derive(Clone)]
struct Required {
    terms: Terms,
    near_counts: Counts,
    far_counts: Counts,
    existing_counts: Counts,
}

/// What a pod would like of others, ready to be matched.
struct Preferences {
    own: Vec<(i64, PodTerm)>,
    hard_weight: i64,
    namespace_labels: Option<Labels>,
}

impl Preferences {
    fn read(pod: &PodInfo, hard_weight: i64, snapshot: &Snapshot) -> Self {
        let own = pod.pod_affinity.preferred.iter();
        let own = own.map(|(weight, term)| (*weight, resolved(term, snapshot))).collect();
        Self { own, hard_weight, namespace_labels: namespace_labels(pod, snapshot) }
    }

    /// Tells for which topology keys another pod counts, and how much.
    fn each(&self, pod: &PodInfo, other: &PodInfo, mut tell: impl FnMut(i64, &Arc<str>)) {
        let hard = other.pod_affinity.required.iter().map(|term| (self.hard_weight, term));
        let soft = other.pod_affinity.preferred.iter().map(|(weight, term)| (*weight, term));
        let theirs = hard.filter(|(weight, _)| *weight > 0).chain(soft);
        let theirs = theirs.filter(|(_, term)| term.matches(pod, self.namespace_labels.as_ref()));
        let own = self.own.iter().filter(|(_, term)| term.matches(other, None));
        for (weight, term) in theirs.chain(own.map(|(weight, term)| (*weight, term))) {
            tell(weight, &term.topology_key);
        }
    }
}

/// What the score needs.
struct Preferred(Counts);

fn means_all(terms: &[PodTerm], pod: &PodInfo) -> bool {
    !terms.is_empty() && terms.iter().all(|term| term.matches(pod, None))
}

/// Names the namespaces that a term's selector means, so that nobody has to look up labels of namespaces for each pod; an
/// empty selector stays, for it means namespaces that are not known too.
fn resolved(term: &PodTerm, snapshot: &Snapshot) -> PodTerm {
    let mut term = term.clone();
    let Some(selector) = term.namespace_selector.take_if(|selector| !selector.is_empty()) else {
        return term;
    };
    for namespace in snapshot.catalog().list::<Namespace>() {
        let labels = namespace.metadata.labels.as_ref();
        if selector.matches_with(|key| labels?.get(key).map(String::as_str)) {
            term.namespaces.push(namespace.metadata.name.as_deref().unwrap_or_default().into());
        }
    }
    term
}

fn namespace_labels(pod: &PodInfo, snapshot: &Snapshot) -> Option<Labels> {
    let namespace = snapshot.catalog().get::<Namespace>("", &pod.namespace)?;
    let labels = namespace.metadata.labels.iter().flatten();
    Some(labels.map(|(key, value)| (key.as_str(), value.as_str())).collect())
}

impl Required {
    fn count(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, sign: i64) {
        let Self { terms, near_counts, far_counts, existing_counts } = self;
        terms.each(pod, other, |counted, key| {
            let counts = match counted {
                Counted::Near => &mut *near_counts,
                Counted::Far => &mut *far_counts,
                Counted::Existing => &mut *existing_counts,
            };
            counts.add(node, key, sign);
        });
    }

    fn is_near(&self, node: &NodeInfo) -> bool {
        let Terms { near, matches_itself, .. } = &self.terms;
        if near.iter().any(|term| node.labels.get(&term.topology_key).is_none()) {
            return false;
        }
        let first_of_its_kind = || self.near_counts.0.is_empty() && *matches_itself;
        near.iter().all(|term| self.near_counts.get(node, &term.topology_key) > 0) || first_of_its_kind()
    }
}

impl PreFilter for InterPodAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict {
        let mut required = Required {
            terms: Terms::read(pod, snapshot),
            near_counts: Counts::default(),
            far_counts: Counts::default(),
            existing_counts: Counts::default(),
        };
        let has_rules = required.terms.has_rules();
        if has_rules {
            for node in snapshot.nodes() {
                for other in node.pods() {
                    required.count(pod, other, node.info(), 1);
                }
            }
        } else {
            for (other, node) in snapshot.pods_with_affinity() {
                required.count(pod, other, node.info(), 1);
            }
        }
        if !has_rules && required.existing_counts.0.is_empty() {
            return PreFilterVerdict::Skip;
        }
        cycle.put(required);
        PreFilterVerdict::Pass
    }

    fn add_pod(&self, cycle: &mut CycleState, pod: &PodInfo, added: &PodInfo, node: NodeView<'_>) {
        if let Some(required) = cycle.edit::<Required>() {
            required.count(pod, added, node.info(), 1);
        }
    }

    fn remove_pod(&self, cycle: &mut CycleState, pod: &PodInfo, removed: &PodInfo, node: NodeView<'_>) {
        if let Some(required) = cycle.edit::<Required>() {
            required.count(pod, removed, node.info(), -1);
        }
    }
}

impl FilterPlugin for InterPodAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, cycle: &CycleState, _pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let Some(required) = cycle.get::<Required>() else { return Verdict::Pass };
        let node = node.info();
        if !required.is_near(node) {
            return Verdict::unresolvable(NOT_NEAR);
        }
        if required.terms.far.iter().any(|term| required.far_counts.get(node, &term.topology_key) > 0) {
            return Verdict::unschedulable(NOT_FAR);
        }
        if required.existing_counts.0.keys().any(|key| required.existing_counts.get(node, key) > 0) {
            return Verdict::unschedulable(NOT_WANTED);
        }
        Verdict::Pass
    }

    fn track(&self, pod: &Arc<PodInfo>, around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        Track::Follow(Box::new(track::Required::new(pod, around)))
    }
}

impl PreScore for InterPodAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_score(
        &self,
        cycle: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        _nodes: &[NodeIndex],
    ) -> PreScoreVerdict {
        let has_preferences = !pod.pod_affinity.preferred.is_empty();
        if self.ignore_preferred_terms_of_existing_pods && !has_preferences {
            return PreScoreVerdict::Skip;
        }
        let preferences = Preferences::read(pod, self.hard_pod_affinity_weight, snapshot);
        let (mut counts, mut touched) = (Counts::default(), false);
        let mut count = |other: &PodInfo, node: &NodeInfo| {
            preferences.each(pod, other, |weight, key| {
                touched |= node.labels.get(key).is_some();
                counts.add(node, key, weight);
            });
        };
        if has_preferences {
            for node in snapshot.nodes() {
                node.pods().iter().for_each(|other| count(other, node.info()));
            }
        } else {
            snapshot.pods_with_affinity().for_each(|(other, node)| count(other, node.info()));
        }
        if !touched {
            return PreScoreVerdict::Skip;
        }
        cycle.put(Preferred(counts));
        PreScoreVerdict::Pass
    }
}

impl ScorePlugin for InterPodAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, cycle: &CycleState, _pod: &PodInfo, node: NodeView<'_>) -> i64 {
        let Some(Preferred(counts)) = cycle.get::<Preferred>() else { return 0 };
        counts.0.keys().map(|key| counts.get(node.info(), key)).sum()
    }

    fn normalize(&self, _cycle: &CycleState, _pod: &PodInfo, scores: &mut [i64]) {
        normalize(scores);
    }

    fn track(&self, pod: &Arc<PodInfo>, around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        if self.ignore_preferred_terms_of_existing_pods && pod.pod_affinity.preferred.is_empty() {
            // Its preparation says that there is nothing to score.
            return Track::Node;
        }
        Track::Follow(Box::new(track::Preferred::new(pod, self.hard_pod_affinity_weight, around)))
    }
}

fn normalize(scores: &mut [i64]) {
    let least = scores.iter().copied().min().unwrap_or_default();
    let most = scores.iter().copied().max().unwrap_or_default();
    for score in scores {
        // Upstream divides as floating point numbers first, so rounding must be the same.
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "as upstream")]
        let stretched =
            (MAX_NODE_SCORE as f64 * ((*score - least) as f64 / (most - least).max(1) as f64)) as i64;
        *score = stretched;
    }
}

impl QueueingHint for InterPodAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        let (near, far) = (&pod.pod_affinity.required, &pod.pod_affinity.required_anti);
        Hint::queue_if(match event {
            ClusterEvent::PodAssigned(new) => means_all(near, new),
            ClusterEvent::PodUpdated { old, new } => {
                old.labels != new.labels
                    && (!means_all(near, old) && means_all(near, new)
                        || means_all(far, old) && !means_all(far, new))
            }
            ClusterEvent::PodGone(old) => {
                means_all(far, old) || means_all(&old.pod_affinity.required_anti, pod)
            }
            ClusterEvent::TargetUpdated { old, new } => old.labels != new.labels,
            ClusterEvent::NodeAdded(node) => {
                !far.is_empty() || near.iter().any(|term| node.labels.get(&term.topology_key).is_some())
            }
            ClusterEvent::NodeUpdated { old, new } => {
                let moved = |term: &PodTerm| {
                    let key = &term.topology_key;
                    (old.labels.get(key), new.labels.get(key))
                };
                near.iter().map(moved).any(|(old, new)| new.is_some() && old != new)
                    || far.iter().map(moved).any(|(old, new)| old.is_some() && old != new)
            }
            _ => false,
        })
    }

    fn interests(&self) -> Vec<Interest> {
        vec![Interest::of::<Namespace>()]
    }
}
