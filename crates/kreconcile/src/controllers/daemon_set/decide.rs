//! Which nodes get and lose a pod of a DaemonSet, given what is there: no I/O. Upstream's `podsShouldBeOnNode` and
//! `rollingUpdate`.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetStatus},
    core::v1::Pod,
};

use crate::controllers::{percent::scaled, pod_state, replica_set::to_i32};

/// The label with the hash of the revision that a pod was made from.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";
/// The label with the generation of the template, from before there were revisions.
pub(super) const GENERATION_LABEL: &str = "pod-template-generation";
/// The annotation that the generation of the template is in.
const GENERATION: &str = "deprecated.daemonset.template.generation";

/// A node, and whether the set's pods may be on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: String,
    /// A pod belongs there.
    pub(super) should_run: bool,
    /// A pod that is there may stay.
    pub(super) may_stay: bool,
}

/// What is known about a set.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) places: &'a [Place],
    pub(super) pods: &'a [Arc<Pod>],
    /// The hash of the newest revision.
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Decision {
    /// The nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that ended, with their nodes: they are deleted when their node's back-off is over, and it is told.
    pub(super) ended: Vec<(Arc<Pod>, String)>,
}

impl Decision {
    pub(super) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty() && self.ended.is_empty()
    }
}

/// The generation of the template, if the set still carries it.
pub(super) fn template_generation(set: &DaemonSet) -> Option<i64> {
    set.metadata.annotations.as_ref()?.get(GENERATION)?.parse().ok()
}

/// The node that a pod is on, or is made for.
pub(super) fn target_node(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut fields = fields.filter(|field| field.key == "metadata.name" && field.operator == "In");
    match fields.next()?.values.as_deref()? {
        [node] => Some(node),
        _ => None,
    }
}

/// Pods that have a node come first, then the older ones.
fn order(one: &Pod, two: &Pod) -> Ordering {
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let unbound = |pod: &Pod| pod_state::node_name(pod).is_empty();
    unbound(one)
        .cmp(&unbound(two))
        .then_with(|| created(one).cmp(&created(two)))
        .then_with(|| pod_state::name(one).cmp(pod_state::name(two)))
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_rolling(set: &DaemonSet) -> bool {
    let strategy = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    strategy != Some("OnDelete")
}

/// The pod of the newest revision on a node, and the one of another.
type NewAndOld<'p> = (Option<&'p Arc<Pod>>, Option<&'p Arc<Pod>>);

impl<'a> View<'a> {
    /// The pods by node, in order. Those that have ended and are going do not count.
    fn by_node(&self) -> BTreeMap<&'a str, Vec<&'a Arc<Pod>>> {
        let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
        for pod in self.pods.iter().filter(|pod| !(pod_state::is_terminal(pod) && is_going(pod))) {
            if let Some(node) = target_node(pod) {
                by_node.entry(node).or_default().push(pod);
            }
        }
        for pods in by_node.values_mut() {
            pods.sort_by(|one, two| order(one, two));
        }
        by_node
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let min_ready = self.set.spec.min_ready_seconds.unwrap_or_default();
        pod_state::available_in(pod, min_ready, self.now).is_some_and(|wait| wait.is_zero())
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let label = |key| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        let generation = template_generation(self.set).map(|generation| generation.to_string());
        label(HASH_LABEL).is_some_and(|hash| hash == self.hash)
            || generation.is_some_and(|generation| label(GENERATION_LABEL) == Some(&generation))
    }

    /// `maxSurge` and `maxUnavailable` as numbers; not both zero when there is a node.
    fn limits(&self) -> (usize, usize) {
        let rolling =
            self.set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let nodes = to_i32(self.places.iter().filter(|place| place.should_run).count());
        let count = |value: i32| usize::try_from(value).unwrap_or_default();
        let surge = count(scaled(rolling.and_then(|rolling| rolling.max_surge.as_ref()), nodes, true));
        let unavailable =
            count(scaled(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), nodes, true));
        (surge, if nodes > 0 && surge == 0 { unavailable.max(1) } else { unavailable })
    }

    fn allows_surge(&self) -> bool {
        let rolling =
            self.set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        is_rolling(self.set) && scaled(rolling.and_then(|rolling| rolling.max_surge.as_ref()), 1, true) > 0
    }

    /// The one pod of the newest revision on a node, and the one of another; `None` when there are too many.
    fn new_and_old<'p>(&self, pods: &[&'p Arc<Pod>]) -> Option<NewAndOld<'p>> {
        let (mut new, mut old) = (None, None);
        for pod in pods.iter().filter(|pod| !is_going(pod)) {
            let place = if self.is_updated(pod) { &mut new } else { &mut old };
            if place.replace(*pod).is_some() {
                return None;
            }
        }
        Some((new, old))
    }
}

/// Which pods are missing and which are too many, whatever their revision. A set that has all of its pods is then
/// [rolled](roll).
pub(super) fn manage(view: &View<'_>) -> Decision {
    let by_node = view.by_node();
    let mut decision = Decision::default();
    for place in view.places {
        let pods = by_node.get(&*place.node).map(Vec::as_slice).unwrap_or_default();
        match (place.should_run, place.may_stay) {
            (true, _) if pods.is_empty() => decision.create.push(place.node.clone()),
            (_, true) => on_node(view, place, pods, &mut decision),
            _ => decision.delete.extend(pods.iter().filter(|pod| !is_going(pod)).map(|pod| Arc::clone(pod))),
        }
    }
    // Pods that wait for a node that has gone never start.
    let known: BTreeSet<&str> = view.places.iter().map(|place| &*place.node).collect();
    let lost = by_node.iter().filter(|(node, _)| !known.contains(**node)).flat_map(|(_, pods)| pods);
    let waiting = lost.filter(|pod| pod_state::node_name(pod).is_empty());
    decision.delete.extend(waiting.map(|pod| Arc::clone(pod)));
    decision
}

/// A node whose pods may stay: the ended ones go, and of the others all but one; with surge, but one of each revision.
fn on_node(view: &View<'_>, place: &Place, pods: &[&Arc<Pod>], decision: &mut Decision) {
    let (ended, running): (Vec<_>, Vec<_>) =
        pods.iter().filter(|pod| !is_going(pod)).partition(|pod| pod_state::is_terminal(pod));
    decision.ended.extend(ended.into_iter().map(|pod| (Arc::clone(pod), place.node.clone())));
    if !view.allows_surge() {
        decision.delete.extend(running.into_iter().skip(1).map(Arc::clone));
        return;
    }
    if running.is_empty() && place.should_run {
        decision.create.push(place.node.clone());
    }
    if running.len() <= 1 {
        return;
    }
    let (mut new, mut old) = (None, None);
    for pod in running {
        // Upstream goes by the hash alone here.
        let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL));
        let kept = if label.is_some_and(|hash| hash == view.hash) { &mut new } else { &mut old };
        match kept {
            None => *kept = Some(pod),
            Some(_) => decision.delete.push(Arc::clone(pod)),
        }
    }
    if let (Some(new), Some(old)) = (new, old)
        && (!pod_state::is_ready(old) || view.is_available(new))
    {
        decision.delete.push(Arc::clone(old));
    }
}

/// Which pods of another revision are replaced now.
pub(super) fn roll(view: &View<'_>) -> Decision {
    if !is_rolling(view.set) {
        return Decision::default();
    }
    let (surge, unavailable) = view.limits();
    if surge == 0 { roll_by_deleting(view, unavailable) } else { roll_by_surging(view, surge) }
}

/// The nodes that have or should have pods, with them.
fn nodes_of<'a>(view: &View<'a>) -> BTreeMap<&'a str, Vec<&'a Arc<Pod>>> {
    let mut by_node = view.by_node();
    for place in view.places.iter().filter(|place| place.should_run) {
        by_node.entry(&place.node).or_default();
    }
    by_node
}

fn roll_by_deleting(view: &View<'_>, max_unavailable: usize) -> Decision {
    let (mut unavailable, mut now, mut candidates) = (0, Vec::new(), Vec::new());
    for pods in nodes_of(view).values() {
        match view.new_and_old(pods) {
            None | Some((None, None) | (Some(_), Some(_))) => unavailable += 1,
            Some((Some(new), None)) => unavailable += usize::from(!view.is_available(new)),
            Some((None, Some(old))) if !view.is_available(old) => {
                now.push(Arc::clone(old));
                unavailable += 1;
            }
            Some((None, Some(old))) => candidates.push(Arc::clone(old)),
        }
    }
    candidates.truncate(max_unavailable.saturating_sub(unavailable));
    now.extend(candidates);
    Decision { delete: now, ..Decision::default() }
}

fn roll_by_surging(view: &View<'_>, max_surge: usize) -> Decision {
    let places: BTreeMap<&str, &Place> = view.places.iter().map(|place| (&*place.node, place)).collect();
    let should_run = |node: &str| places.get(node).is_some_and(|place| place.should_run);
    let (mut surge, mut available) = (0, 0);
    let (mut delete, mut unwanted, mut now, mut candidates) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (node, pods) in nodes_of(view) {
        let Some((new, old)) = view.new_and_old(&pods) else {
            surge += 1;
            continue;
        };
        available += usize::from(old.or(new).is_some_and(|pod| view.is_available(pod)));
        match (new, old) {
            (_, None) => {}
            (None, Some(old)) if !view.is_available(old) && !should_run(node) => delete.push(Arc::clone(old)),
            (None, Some(old)) if !view.is_available(old) => now.push(node.to_owned()),
            (None, Some(old)) if !should_run(node) => unwanted.push(Arc::clone(old)),
            (None, Some(_)) => candidates.push(node.to_owned()),
            (Some(new), Some(_)) if !view.is_available(new) => surge += 1,
            (Some(_), Some(old)) => delete.push(Arc::clone(old)),
        }
    }
    let wanted = view.places.iter().filter(|place| place.should_run).count();
    delete.extend(unwanted.into_iter().take(available.saturating_sub(wanted)));
    candidates.truncate(max_surge.saturating_sub(surge));
    now.extend(candidates);
    Decision { create: now, delete, ended: Vec::new() }
}

/// The status that follows from the pods that were seen. The generation counts as observed unless the last look's work
/// is not seen yet.
pub(super) fn status(view: &View<'_>, collisions: i32, observed: bool) -> DaemonSetStatus {
    let by_node = view.by_node();
    let old = view.set.status.as_ref();
    let (mut desired, mut current, mut misplaced, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
    for place in view.places {
        let first = by_node.get(&*place.node).and_then(|pods| pods.first());
        desired += i32::from(place.should_run);
        match first {
            Some(_) if !place.should_run => misplaced += 1,
            Some(pod) => {
                current += 1;
                ready += i32::from(pod_state::is_ready(pod));
                available += i32::from(view.is_available(pod));
                updated += i32::from(view.is_updated(pod));
            }
            None => {}
        }
    }
    let nonzero = |count: i32| (count != 0).then_some(count);
    let before = old.and_then(|status| status.observed_generation);
    DaemonSetStatus {
        current_number_scheduled: current,
        number_misscheduled: misplaced,
        desired_number_scheduled: desired,
        number_ready: ready,
        observed_generation: if observed { view.set.metadata.generation } else { before },
        updated_number_scheduled: nonzero(updated),
        number_available: nonzero(available),
        number_unavailable: nonzero(desired - available),
        collision_count: nonzero(collisions),
        conditions: old.and_then(|status| status.conditions.clone()),
    }
}
