//! What a budget's status has to say: no I/O.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};

use crate::controllers::{
    disruption::DISRUPTED_POD_DEADLINE, percent::scaled, pod_state, pod_state::stored_time,
    replica_set::to_i32,
};

/// What the expected number of pods is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    /// The budget asks for nothing.
    Nothing,
    /// The pods that are there.
    Pods,
    /// What the pods' controllers ask for.
    Scale,
}

/// A number of pods that has to stay is compared with the pods that are there, anything else with what should be there.
pub(super) fn basis(budget: &PodDisruptionBudget) -> Basis {
    let Some(spec) = &budget.spec else { return Basis::Nothing };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(_), _) | (None, Some(IntOrString::String(_))) => Basis::Scale,
        (None, Some(IntOrString::Int(_))) => Basis::Pods,
        (None, None) => Basis::Nothing,
    }
}

/// How many pods have to be healthy when so many are expected (upstream's `getExpectedPodCount`).
pub(super) fn expected(budget: &PodDisruptionBudget, count: i32) -> i32 {
    let Some(spec) = &budget.spec else { return 0 };
    if spec.max_unavailable.is_some() {
        count.saturating_sub(scaled(spec.max_unavailable.as_ref(), count, true)).max(0)
    } else {
        scaled(spec.min_available.as_ref(), count, true)
    }
}

/// The pods that are about to be deleted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Disrupted {
    /// Those that still have time, and since when.
    pub(super) pods: BTreeMap<String, Time>,
    /// The names of those that should have been deleted by now.
    pub(super) late: Vec<String>,
    /// When to look again.
    pub(super) recheck: Option<Duration>,
}

/// Which of the pods in `disruptedPods` are still waited for (upstream's `buildDisruptedPodMap`).
pub(super) fn disrupted(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], now: Timestamp) -> Disrupted {
    let mut found = Disrupted::default();
    let Some(known) = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref()) else {
        return found;
    };
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let name = pod_state::name(pod);
        let Some(since) = known.get(name) else { continue };
        match time_left(since, now) {
            Some(left) => {
                // A moment later, so that the deadline has passed then.
                let wait = left + Duration::from_millis(1);
                found.recheck = Some(found.recheck.map_or(wait, |other| other.min(wait)));
                found.pods.insert(name.to_owned(), since.clone());
            }
            None => found.late.push(name.to_owned()),
        }
    }
    found
}

fn time_left(since: &Time, now: Timestamp) -> Option<Duration> {
    let deadline = SignedDuration::try_from(DISRUPTED_POD_DEADLINE).ok()?;
    let deadline = since.0.checked_add(deadline).ok()?;
    Duration::try_from(deadline.duration_since(now)).ok()
}

/// How many pods are ready and will stay.
pub(super) fn healthy(pods: &[Arc<Pod>], going: &BTreeMap<String, Time>, now: Timestamp) -> i32 {
    let goes = |pod: &Pod| {
        let left = going.get(pod_state::name(pod)).and_then(|since| time_left(since, now));
        pod.metadata.deletion_timestamp.is_some() || left.is_some_and(|left| !left.is_zero())
    };
    to_i32(pods.iter().filter(|pod| !goes(pod) && pod_state::is_ready(pod)).count())
}

/// The status that says it all. Nothing may be disrupted while no pod is expected: the first ones may be there before they
/// are seen.
pub(super) fn status_of(
    budget: &PodDisruptionBudget,
    current: i32,
    desired: i32,
    expected: i32,
    going: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let allowed = if expected > 0 { current.saturating_sub(desired).max(0) } else { 0 };
    let (status, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let old = budget.status.as_ref();
    let generation = budget.metadata.generation;
    let conditions = with_condition(old, generation, (status, reason, String::new()), now);
    PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: Some(current),
        desired_healthy: Some(desired),
        disrupted_pods: (!going.is_empty()).then_some(going),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: generation,
    }
}

/// The status when it can't be known what may be disrupted: nothing (upstream's `failSafe`).
pub(super) fn failed(budget: &PodDisruptionBudget, why: String, now: Timestamp) -> PodDisruptionBudgetStatus {
    let old = budget.status.clone().unwrap_or_default();
    let conditions = with_condition(Some(&old), old.observed_generation, ("False", "SyncFailed", why), now);
    let count = |number: Option<i32>| Some(number.unwrap_or_default());
    PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: count(old.current_healthy),
        desired_healthy: count(old.desired_healthy),
        expected_pods: count(old.expected_pods),
        disruptions_allowed: Some(0),
        ..old
    }
}

/// The conditions with DisruptionAllowed set (apimachinery's `SetStatusCondition`).
fn with_condition(
    status: Option<&PodDisruptionBudgetStatus>,
    observed_generation: Option<i64>,
    (value, reason, message): (&str, &str, String),
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    let known = conditions.iter_mut().find(|condition| condition.type_ == "DisruptionAllowed");
    let since = match &known {
        Some(condition) if condition.status == value => condition.last_transition_time.clone(),
        _ => stored_time(now),
    };
    let condition = Condition {
        last_transition_time: since,
        message,
        observed_generation: observed_generation.filter(|generation| *generation != 0),
        reason: reason.to_owned(),
        status: value.to_owned(),
        type_: "DisruptionAllowed".to_owned(),
    };
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
    conditions
}
