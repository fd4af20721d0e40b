//! What a Deployment's status says.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};

use super::rollout::{Set, replicas_of};
use crate::controllers::pod_state::stored_time;

pub(super) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";

pub(super) const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const SET_UPDATED: &str = "ReplicaSetUpdated";
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub(super) const PAUSED: &str = "DeploymentPaused";
pub(super) const RESUMED: &str = "DeploymentResumed";

pub(super) fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_.as_deref() == Some(kind))
}

pub(super) fn new_condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_update_time: Some(stored_time(now)),
        last_transition_time: Some(stored_time(now)),
    }
}

/// Sets a condition, unless one with the same status and reason is there. The transition time stays while the status
/// does.
pub(super) fn set_condition(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    let conditions = status.conditions.get_or_insert_default();
    if let Some(at) = conditions.iter().position(|condition| condition.type_ == new.type_) {
        let known = &conditions[at];
        if known.status == new.status && known.reason == new.reason {
            return;
        }
        if known.status == new.status {
            new.last_transition_time.clone_from(&known.last_transition_time);
        }
        conditions.remove(at);
    }
    conditions.push(new);
}

pub(super) fn remove_condition(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_.as_deref() != Some(kind));
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// The progress deadline, unless there is none.
pub(super) fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(seconds.into()))
}

/// Whether every replica is of the newest template and available.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas_of(deployment);
    let is = |count: Option<i32>| count.unwrap_or_default() == wanted;
    is(status.updated_replicas)
        && is(status.replicas)
        && is(status.available_replicas)
        && status.observed_generation.unwrap_or_default()
            >= deployment.metadata.generation.unwrap_or_default()
}

/// The counts and the condition Available, on top of the conditions that are there.
pub(super) fn counts(
    deployment: &Deployment,
    base: &DeploymentStatus,
    sets: &[Set],
    new: Option<usize>,
    max_unavailable: i32,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |count: &dyn Fn(&Set) -> i32| sets.iter().map(count).sum::<i32>();
    let available = sum(&|set| set.status().available_replicas.unwrap_or_default());
    let asked = sum(&|set| set.replicas);
    let terminating = sets.iter().try_fold(0, |sum, set| {
        let status = set.status();
        match status.terminating_replicas {
            None if status.observed_generation.unwrap_or_default() == 0 => Some(sum),
            count => Some(sum + count?),
        }
    });
    let nonzero = |count: i32| (count != 0).then_some(count);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation.filter(|generation| *generation != 0),
        replicas: nonzero(sum(&|set| set.status().replicas)),
        updated_replicas: nonzero(new.map_or(0, |new| sets[new].status().replicas)),
        ready_replicas: nonzero(sum(&|set| set.status().ready_replicas.unwrap_or_default())),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((asked - available).max(0)),
        terminating_replicas: terminating,
        collision_count: base.collision_count,
        conditions: base.conditions.clone(),
    };
    let condition = if available >= replicas_of(deployment) - max_unavailable {
        let message = "Deployment has minimum availability.";
        new_condition(AVAILABLE, "True", "MinimumReplicasAvailable", message, now)
    } else {
        let message = "Deployment does not have minimum availability.";
        new_condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message, now)
    };
    set_condition(&mut status, condition);
    status
}

/// Adds the conditions of a rollout: Progressing and ReplicaFailure. `old` is the status as it was before this look.
pub(super) fn add_progress(
    deployment: &Deployment,
    old: &DeploymentStatus,
    status: &mut DeploymentStatus,
    sets: &[Set],
    new: Option<usize>,
    now: Timestamp,
) {
    match deadline(deployment) {
        None => remove_condition(status, PROGRESSING),
        Some(deadline) => {
            let reason = condition(old, PROGRESSING).and_then(|known| known.reason.as_deref());
            let was_complete =
                status.replicas == status.updated_replicas && reason == Some(NEW_SET_AVAILABLE);
            if !was_complete {
                progress(deployment, old, status, new.map(|new| &*sets[new].name), deadline, now);
            }
        }
    }
    let failures = |set: &Set| {
        let conditions = set.status().conditions.iter().flatten();
        let failing = conditions.into_iter().find(|known| known.type_.as_deref() == Some(REPLICA_FAILURE));
        failing.cloned()
    };
    let of_new = new.and_then(|new| failures(&sets[new]));
    match of_new.or_else(|| sets.iter().find_map(failures)) {
        None => remove_condition(status, REPLICA_FAILURE),
        Some(failure) => set_condition(
            status,
            DeploymentCondition {
                type_: failure.type_,
                status: failure.status,
                reason: failure.reason,
                message: failure.message,
                last_update_time: failure.last_transition_time.clone(),
                last_transition_time: failure.last_transition_time,
            },
        ),
    }
}

fn progress(
    deployment: &Deployment,
    old: &DeploymentStatus,
    status: &mut DeploymentStatus,
    new: Option<&str>,
    deadline: SignedDuration,
    now: Timestamp,
) {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let what = match new {
        Some(set) => format!("ReplicaSet \"{set}\""),
        None => format!("Deployment \"{name}\""),
    };
    if is_complete(deployment, status) {
        let message = format!("{what} has successfully progressed.");
        set_condition(status, new_condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message, now));
    } else if has_progressed(deployment, status) {
        let message = format!("{what} is progressing.");
        let mut condition_now = new_condition(PROGRESSING, "True", SET_UPDATED, message, now);
        if let Some(known) = condition(old, PROGRESSING) {
            if known.status.as_deref() == Some("True") {
                condition_now.last_transition_time.clone_from(&known.last_transition_time);
            }
            remove_condition(status, PROGRESSING);
        }
        set_condition(status, condition_now);
    } else if has_timed_out(status, deadline, now) {
        let message = format!("{what} has timed out progressing.");
        set_condition(status, new_condition(PROGRESSING, "False", TIMED_OUT, message, now));
    }
}

/// More new replicas, fewer old ones, or more that are ready or available.
fn has_progressed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let none = DeploymentStatus::default();
    let old = deployment.status.as_ref().unwrap_or(&none);
    let count = |count: Option<i32>| count.unwrap_or_default();
    let outdated = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(status.updated_replicas) > count(old.updated_replicas)
        || outdated(status) < outdated(old)
        || count(status.ready_replicas) > count(old.ready_replicas)
        || count(status.available_replicas) > count(old.available_replicas)
}

fn has_timed_out(status: &DeploymentStatus, deadline: SignedDuration, now: Timestamp) -> bool {
    let Some(known) = condition(status, PROGRESSING) else { return false };
    match known.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => known
            .last_update_time
            .as_ref()
            .and_then(|from| from.0.checked_add(deadline).ok())
            .is_some_and(|at| at < now),
    }
}
