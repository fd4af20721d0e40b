//! What the state of a pod means to those who own it.

use std::{cmp::Ordering, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
};
use kcore::selector;

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether all containers have ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it runs or will run.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether it is told to go and has not ended.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when it has been ready, if it is and says so.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// How long until a ready pod has been ready for `min_ready_seconds`; zero when it has, `None` when it is not ready.
pub(crate) fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Duration::ZERO);
    }
    let since = ready_since(pod)?;
    let at = since.checked_add(jiff::SignedDuration::from_secs(min_ready_seconds.into())).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

pub(crate) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The annotation that makes a pod cheaper or dearer to delete.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

fn deletion_cost(pod: &Pod) -> i32 {
    // Only what Go's ParseInt takes without a leading plus counts, as upstream validates it.
    annotation(pod, DELETION_COST)
        .filter(|text| !text.starts_with('+') && (!text.starts_with('0') || text.len() == 1))
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

fn phase_order(pod: &Pod) -> u8 {
    match phase(pod) {
        "Unknown" => 1,
        "Running" => 2,
        _ => 0,
    }
}

/// The most restarts of a container, and of a sidecar.
fn restarts(pod: &Pod) -> (i32, i32) {
    let Some(status) = &pod.status else { return (0, 0) };
    let statuses = status.container_statuses.iter().flatten();
    let containers = statuses.map(|status| status.restart_count).max().unwrap_or_default();
    let is_sidecar = |name: &str| {
        let spec = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        spec.into_iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
    };
    let inits = status.init_container_statuses.iter().flatten();
    let sidecars = inits.filter(|status| is_sidecar(&status.name)).map(|status| status.restart_count).max();
    (containers, sidecars.unwrap_or_default())
}

/// Compares ages on a logarithmic scale, the younger one first; equal ranks go by uid, which is as good as random.
/// A time that is missing counts as the youngest.
fn younger_first(
    one: (Option<Timestamp>, &str),
    two: (Option<Timestamp>, &str),
    now: Timestamp,
) -> Option<Ordering> {
    if one.0 == two.0 {
        return None;
    }
    let (Some(first), Some(second)) = (one.0, two.0) else {
        return Some(one.0.is_some().cmp(&two.0.is_some()));
    };
    let rank = |at: Timestamp| {
        let age = now.duration_since(at).as_nanos();
        if age > 0 { i64::from(age.ilog2()) } else { -1 }
    };
    Some(rank(first).cmp(&rank(second)).then_with(|| one.1.cmp(two.1)))
}

/// Which of two pods is deleted first, by upstream's `ActivePodsWithRanks`. A rank is the number of ready pods of the
/// same set on the pod's node.
pub(crate) fn deletion_order(one: (&Pod, usize), two: (&Pod, usize), now: Timestamp) -> Ordering {
    let ((a, rank_a), (b, rank_b)) = (one, two);
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let unassigned = |pod: &Pod| node_name(pod).is_empty();
    let by_readiness = || {
        if is_ready(a) && is_ready(b) {
            younger_first((ready_since(a), uid(a)), (ready_since(b), uid(b)), now).unwrap_or(Ordering::Equal)
        } else {
            Ordering::Equal
        }
    };
    unassigned(b)
        .cmp(&unassigned(a))
        .then_with(|| phase_order(a).cmp(&phase_order(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(by_readiness)
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| {
            younger_first((created(a), uid(a)), (created(b), uid(b)), now).unwrap_or(Ordering::Equal)
        })
}

/// A `metav1.LabelSelector` as one that matches. One with an operator that does not exist matches nothing.
pub(crate) fn label_selector(selector: &LabelSelector) -> Option<selector::LabelSelector> {
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let expressions = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|one| (one.key.as_str(), one.operator.as_str(), one.values.clone().unwrap_or_default()));
    selector::LabelSelector::of_object(labels, expressions)
}

/// A time as it is stored: whole seconds.
pub(crate) fn stored_time(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
