//! Nodes where room could be made for a pod, and the choice between them.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::jiff::Timestamp;

use crate::{pod::PodInfo, snapshot::NodeIndex};

/// A node, and what would have to go.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The node.
    pub node: NodeIndex,
    /// The pods that would have to go, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// For how many of them a PodDisruptionBudget would be violated.
    pub violations: usize,
}

/// When a pod started; one that has not started yet counts as starting now, which is later than all others.
fn start(pod: &PodInfo) -> Timestamp {
    let status = pod.object.status.as_ref();
    status.and_then(|status| status.start_time.as_ref()).map_or(Timestamp::MAX, |time| time.0)
}

/// Sorts the most important pod first: by priority, then the one that has run longer (upstream's `MoreImportantPod`). The
/// name decides between equals, so that the choice is the same in every run.
pub(crate) fn importance(pod: &PodInfo) -> (Reverse<i32>, Timestamp, &str, &str) {
    (Reverse(pod.priority), start(pod), &pod.namespace, &pod.name)
}

/// The candidate that harms least (upstream's `pickOneNodeForPreemption`); of several the first.
pub(crate) fn pick(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(harm)
}

/// What is compared, in the order in which it counts; less is better.
fn harm(candidate: &Candidate) -> (usize, Option<i32>, i64, usize, Reverse<Option<Timestamp>>) {
    let highest = candidate.victims.iter().map(|victim| victim.priority).max();
    // Shifted so that one pod of a negative priority is better than several.
    let shift = i64::from(i32::MAX) + 1;
    let sum = candidate.victims.iter().map(|victim| i64::from(victim.priority) + shift).sum();
    let most_important = candidate.victims.iter().filter(|victim| Some(victim.priority) == highest);
    let earliest = most_important.map(|victim| start(victim)).min();
    (candidate.violations, highest, sum, candidate.victims.len(), Reverse(earliest))
}
