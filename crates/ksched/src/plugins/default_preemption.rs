//! Making room for a pod by removing pods of lower priority.

mod budgets;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::{
    candidate::{Candidate, importance},
    cycle::mix,
    event::{ClusterEvent, Hint},
    plugin::{Finality, PostFilter, PostFilterVerdict, QueueingHint, Rejection, Verdict},
    plugins::default_preemption::budgets::Budgets,
    pod::PodInfo,
    snapshot::{NodeIndex, catalog::Interest},
    trial::{Attempt, Trial},
};

const NAME: &str = "DefaultPreemption";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// Finds the node where the removal of pods of lower priority helps most and harms least
/// (<https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>).
///
/// On each node that was rejected only because of what runs there, all pods of lower priority are taken away, and then
/// put back as long as the pod still fits: first those whose going would violate a PodDisruptionBudget, in each group the
/// most important first. Of the nodes, that one is chosen which violates the fewest budgets; then the one whose most
/// important victim is the least so; with the smallest sum of priorities; with the fewest victims; whose most important
/// victims started last.
///
/// As upstream, it stops looking when it knows so many candidates, one of which violates no budget: a tenth of the nodes
/// in question, and at least 100. [`DefaultPreemption::candidates`] changes that.
#[derive(Clone, Copy, Debug)]
pub struct DefaultPreemption {
    percentage: usize,
    absolute: usize,
}

impl Default for DefaultPreemption {
    fn default() -> Self {
        Self::candidates(10, 100)
    }
}

impl DefaultPreemption {
    /// Looks for candidates until it has found this percentage of the nodes in question, but at least so many in numbers
    /// (upstream's `minCandidateNodesPercentage` and `minCandidateNodesAbsolute`).
    #[must_use]
    pub fn candidates(percentage: usize, absolute: usize) -> Self {
        Self { percentage, absolute }
    }

    /// The candidates that were found; or, for each node that was looked at, why it is none.
    fn find(
        &self,
        attempt: &Attempt<'_>,
        nodes: &[NodeIndex],
    ) -> Result<Vec<Candidate>, Vec<(NodeIndex, Rejection)>> {
        let wanted = (nodes.len() * self.percentage / 100).max(self.absolute).min(nodes.len());
        let budgets = Budgets::new(attempt.snapshot().catalog());
        let mut trial = attempt.trial();
        let (mut harmless, mut violating, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for &node in nodes {
            match victims(&mut trial, attempt.pod(), node, &budgets) {
                Ok(candidate) if candidate.violations == 0 => harmless.push(candidate),
                Ok(candidate) => violating.push(candidate),
                Err(rejection) => refused.push((node, rejection)),
            }
            trial.reset();
            if !harmless.is_empty() && harmless.len() + violating.len() >= wanted {
                break;
            }
        }
        harmless.append(&mut violating);
        if harmless.is_empty() { Err(refused) } else { Ok(harmless) }
    }
}

impl PostFilter for DefaultPreemption {
    fn name(&self) -> &str {
        NAME
    }

    fn post_filter(&self, attempt: &Attempt<'_>) -> PostFilterVerdict {
        if let Some(reason) = not_eligible(attempt) {
            return PostFilterVerdict::Reject(Rejection::unschedulable(reason));
        }
        let rejected = attempt.diagnosis().finalities();
        let nodes = rejected.filter(|(_, finality)| *finality == Finality::Unschedulable);
        let mut nodes: Vec<NodeIndex> = nodes.map(|(node, _)| node).collect();
        // Where the search begins must differ from pod to pod, and not depend on the order of nodes.
        let seed = attempt.seed();
        nodes.sort_by_cached_key(|&node| mix(seed ^ attempt.snapshot().name_hash(node)));
        match self.find(attempt, &nodes) {
            Ok(candidates) => PostFilterVerdict::Candidates(candidates),
            Err(refused) => {
                let text = hopeless(attempt.diagnosis().nodes, &refused);
                PostFilterVerdict::Hopeless(Rejection::unschedulable(text))
            }
        }
    }
}

impl QueueingHint for DefaultPreemption {
    fn name(&self) -> &str {
        NAME
    }

    /// What made room necessary says when there is room.
    fn hint(&self, _pod: &PodInfo, _event: &ClusterEvent) -> Hint {
        Hint::Skip
    }

    fn interests(&self) -> Vec<Interest> {
        vec![Interest::of::<PodDisruptionBudget>()]
    }
}

/// Why the pod may not remove others now (upstream's `PodEligibleToPreemptOthers`).
fn not_eligible(attempt: &Attempt<'_>) -> Option<&'static str> {
    let pod = attempt.pod();
    let policy = pod.object.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref());
    if policy == Some("Never") {
        return Some("preemption: not eligible due to preemptionPolicy=Never.");
    }
    let snapshot = attempt.snapshot();
    let node = attempt.nominated_node().and_then(|node| snapshot.find(node))?;
    let mut finalities = attempt.diagnosis().finalities();
    if finalities.any(|(rejected, finality)| rejected == node && finality == Finality::Unresolvable) {
        return None;
    }
    let on_their_way =
        snapshot.node(node).pods().iter().any(|other| other.priority < pod.priority && is_preempted(other));
    on_their_way.then_some("preemption: not eligible due to a terminating pod on the nominated node.")
}

/// Whether the pod goes because a scheduler removed it for another one.
fn is_preempted(pod: &PodInfo) -> bool {
    let status = pod.object.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let target = conditions.find(|condition| condition.type_ == "DisruptionTarget");
    let by_scheduler = |reason: &Option<String>| reason.as_deref() == Some("PreemptionByScheduler");
    pod.deleting && target.is_some_and(|target| target.status == "True" && by_scheduler(&target.reason))
}

/// The fewest and least important pods that have to leave a node for this one (upstream's `SelectVictimsOnNode`).
fn victims(
    trial: &mut Trial<'_>,
    pod: &PodInfo,
    node: NodeIndex,
    budgets: &Budgets<'_>,
) -> Result<Candidate, Rejection> {
    let lower = trial.node(node).pods().iter().filter(|other| other.priority < pod.priority);
    let mut lower: Vec<Arc<PodInfo>> = lower.cloned().collect();
    if lower.is_empty() {
        return Err(Rejection::unresolvable(NO_VICTIMS));
    }
    lower.iter().for_each(|other| trial.remove(node, other));
    if let Verdict::Reject(rejection) = trial.verdict(node) {
        return Err(rejection);
    }
    lower.sort_by(|a, b| importance(a).cmp(&importance(b)));
    let (violating, harmless) = budgets.split(lower);
    let (mut victims, mut violations) = (Vec::new(), 0);
    for (others, violates) in [(violating, 1), (harmless, 0)] {
        for other in others {
            trial.add(node, &other);
            if trial.verdict(node) != Verdict::Pass {
                trial.remove(node, &other);
                violations += violates;
                victims.push(other);
            }
        }
    }
    victims.sort_by(|a, b| importance(a).cmp(&importance(b)));
    if victims.is_empty() {
        // What kept the pod away is not there any more: another scheduler's filter that changes its mind.
        return Err(Rejection::unschedulable("expected at least one victim pod on the node"));
    }
    Ok(Candidate { node, victims, violations })
}

/// The text when nothing helps (upstream's `FitError` of the preemption).
fn hopeless(nodes: usize, refused: &[(NodeIndex, Rejection)]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in refused.iter().flat_map(|(_, rejection)| &rejection.reasons) {
        *counts.entry(reason).or_default() += 1;
    }
    if nodes > refused.len() {
        *counts.entry(NOT_HELPFUL).or_default() += nodes - refused.len();
    }
    let mut reasons: Vec<_> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort_unstable();
    let mut text = format!("preemption: 0/{nodes} nodes are available:");
    // Writing into a string can't fail.
    let _ = write!(text, " {}.", reasons.join(", "));
    text
}
