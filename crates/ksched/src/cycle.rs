//! The decision about one pod.

use std::{borrow::Cow, sync::Arc};

use crate::{
    candidate::{self, Candidate},
    decision::{Decision, Diagnosis, Nomination, ScoreColumn},
    plugin::{
        CycleState, Finality, PostFilterVerdict, PreFilterVerdict, PreScoreVerdict, Rejection, Repair,
        Verdict,
    },
    pod::PodInfo,
    profile::Profile,
    snapshot::{self, NodeIndex, Snapshot},
    trial::{Attempt, Nominated, Nominations},
};

/// Decides which node a pod should go to. Looks at all nodes, changes nothing, and gives the same answer to the same
/// question: of several nodes with the best score, the profile's seed and the pod's uid choose, whatever the order of
/// nodes.
///
/// Whether the pod may be scheduled yet ([`PreEnqueue`](crate::plugin::PreEnqueue)) is not asked.
///
/// ```
/// use ksched::{Profile, Snapshot, build::{node, pod}, decide};
///
/// let mut snapshot = Snapshot::new();
/// snapshot.set_node(node("small").resource("cpu", "1").info());
/// snapshot.set_node(node("reserved").resource("cpu", "8").taint("for", "db", "NoSchedule").info());
///
/// let decision = decide(&Profile::default(), &snapshot, &pod("p").request("cpu", "2").info());
/// assert_eq!(decision.node(), None);
/// assert!(decision.failure().unwrap().starts_with(
///     "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s)."
/// ));
/// ```
#[must_use]
pub fn decide(profile: &Profile, snapshot: &Snapshot, pod: &PodInfo) -> Decision {
    decide_among(profile, snapshot, pod, &[])
}

/// As [`decide`], while room is being made for other pods: those whose priority is not lower than this one's count as if
/// they were on the nodes that they are nominated for. A pod that is itself nominated for a node, here or in its status,
/// is tried there first.
#[must_use]
pub fn decide_among(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominated: &[Nominated],
) -> Decision {
    let mut decision = begin(snapshot);
    if snapshot.is_empty() {
        return decision;
    }
    let nominations = Nominations::new(nominated, pod, snapshot);
    let skipped = filter(profile, snapshot, pod, &nominations, &mut decision);
    if decision.feasible.is_empty() {
        let (help, repairs) = help(profile, snapshot, pod, &decision, &nominations, &skipped);
        decision.repairs = repairs;
        give_up(snapshot, help, &mut decision);
        return decision;
    }
    score(profile, snapshot, pod, &mut decision);
    decision.chosen = select(profile.seed, snapshot, pod, &decision);
    decision
}

/// Nothing is decided yet.
pub(crate) fn begin(snapshot: &Snapshot) -> Decision {
    Decision {
        names: Arc::clone(snapshot.names()),
        chosen: None,
        nomination: Nomination::Keep,
        victims: Vec::new(),
        repairs: Vec::new(),
        diagnosis: Diagnosis { nodes: snapshot.len(), ..Diagnosis::default() },
        feasible: Vec::new(),
        scores: Vec::new(),
        totals: Vec::new(),
        cycle: CycleState::default(),
    }
}

/// What can be done for a pod that found no node.
pub(crate) enum Help {
    /// Room can be made on this node.
    Nominate(Arc<str>, Vec<Arc<PodInfo>>),
    /// Room can be made on one of these.
    Candidates(Vec<Candidate>),
    /// Nothing, with what was said; and what becomes of the room that is being made.
    Nothing(String, Nomination),
}

/// What is to be done in any case.
pub(crate) type Repairs = Vec<Arc<dyn Repair>>;

/// Asks what can be done.
pub(crate) fn help(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    decision: &Decision,
    nominations: &Nominations,
    skipped: &[Arc<str>],
) -> (Help, Repairs) {
    let Decision { cycle, diagnosis, .. } = decision;
    post_filter(&Attempt { profile, cycle, pod, snapshot, diagnosis, nominations, skipped })
}

/// Notes what is done.
pub(crate) fn give_up(snapshot: &Snapshot, help: Help, decision: &mut Decision) {
    match help {
        Help::Nominate(node, victims) => {
            (decision.nomination, decision.victims) = (Nomination::Node(node), victims);
        }
        Help::Candidates(candidates) => match candidate::pick(candidates) {
            Some(Candidate { node, victims, .. }) => {
                decision.nomination = Nomination::Node(Arc::clone(&snapshot.names()[node]));
                decision.victims = victims;
            }
            None => {
                decision.diagnosis.post_filter = "preemption: no candidate node for preemption".to_owned();
            }
        },
        Help::Nothing(message, nomination) => {
            (decision.diagnosis.post_filter, decision.nomination) = (message, nomination);
        }
    }
}

/// Fills `feasible` and the diagnosis; gives the plug-ins that have nothing to say about the pod.
pub(crate) fn filter(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominations: &Nominations,
    decision: &mut Decision,
) -> Vec<Arc<str>> {
    let Decision { diagnosis, cycle, .. } = decision;
    let mut skipped: Vec<Arc<str>> = Vec::new();
    let mut only: Option<Vec<NodeIndex>> = None;
    let mut narrowed_by: Vec<&Arc<str>> = Vec::new();
    for entry in &profile.points.pre_filter {
        match entry.plugin.pre_filter(cycle, pod, snapshot) {
            PreFilterVerdict::Pass => {}
            PreFilterVerdict::Skip => skipped.push(Arc::clone(&entry.name)),
            PreFilterVerdict::Only(names) => {
                let mut nodes: Vec<_> = names.iter().filter_map(|name| snapshot.find(name)).collect();
                nodes.sort_unstable();
                nodes.dedup();
                let nothing_in_common =
                    |known: &Vec<NodeIndex>| nodes.iter().all(|node| !known.contains(node));
                let contradicts = only.as_ref().is_some_and(nothing_in_common) && !nodes.is_empty();
                if let Some(known) = &only {
                    nodes.retain(|node| known.contains(node));
                }
                narrowed_by.push(&entry.name);
                diagnosis.plugins.push(Arc::clone(&entry.name));
                only = Some(nodes);
                if contradicts {
                    let names = plugin_list(&narrowed_by);
                    let reason = format!("node(s) didn't satisfy plugin(s) {names} simultaneously");
                    diagnosis.pre_filter = Some(Rejection::unresolvable(reason));
                    return skipped;
                }
            }
            PreFilterVerdict::Reject(rejection) => {
                diagnosis.plugins.push(Arc::clone(&entry.name));
                diagnosis.pre_filter = Some(rejection);
                return skipped;
            }
        }
    }
    let mut nodes: Vec<NodeIndex> = match only {
        None => (0..snapshot.len()).collect(),
        Some(nodes) => {
            let left_out = (0..snapshot.len()).filter(|node| nodes.binary_search(node).is_err()).collect();
            let reason = format!("node(s) didn't satisfy plugin(s) {}", plugin_list(&narrowed_by));
            diagnosis.left_out = Some((left_out, Rejection::unresolvable(reason)));
            nodes
        }
    };
    if let Some(node) = nominations.own.as_ref().and_then(|node| snapshot.find(node))
        && nodes.binary_search(&node).is_ok()
    {
        // Room was made for the pod there: no other node is looked at if it fits now (upstream's
        // `evaluateNominatedNode`).
        let unknown = Diagnosis::default();
        let (diagnosis, skipped_here) = (&unknown, &skipped);
        let attempt =
            Attempt { profile, cycle, pod, snapshot, diagnosis, nominations, skipped: skipped_here };
        if attempt.trial().verdict(node) == Verdict::Pass {
            decision.feasible = vec![node];
            return skipped;
        }
    }
    for entry in &profile.points.filter {
        if nodes.is_empty() {
            break;
        }
        if skipped.contains(&entry.name) {
            continue;
        }
        let before = diagnosis.rejected.len();
        let rejected = &mut diagnosis.rejected;
        entry.plugin.filter_all(cycle, pod, snapshot, &mut nodes, &mut |node, rejection| {
            rejected.push((node, Arc::clone(&entry.name), rejection));
        });
        if diagnosis.rejected.len() > before && !diagnosis.plugins.contains(&entry.name) {
            diagnosis.plugins.push(Arc::clone(&entry.name));
        }
    }
    if nominations.others.iter().any(|(node, _)| nodes.binary_search(node).is_ok()) {
        leave_room(profile, snapshot, pod, nominations, &skipped, &mut nodes, decision);
    }
    decision.feasible = nodes;
    skipped
}

/// Rejects the nodes where the pod does not fit beside those for which room is being made.
fn leave_room(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominations: &Nominations,
    skipped: &[Arc<str>],
    nodes: &mut Vec<NodeIndex>,
    decision: &mut Decision,
) {
    let Decision { diagnosis, cycle, .. } = decision;
    let unknown = Diagnosis::default();
    let attempt = Attempt { profile, cycle, pod, snapshot, diagnosis: &unknown, nominations, skipped };
    let mut trial = attempt.trial();
    nodes.retain(|&node| {
        if nominations.others.iter().all(|(taken, _)| *taken != node) {
            return true;
        }
        let Some((plugin, rejection)) = trial.rejection(node) else { return true };
        diagnosis.rejected.push((node, Arc::clone(&plugin), rejection));
        if !diagnosis.plugins.contains(&plugin) {
            diagnosis.plugins.push(plugin);
        }
        false
    });
}

/// `[A B]`, sorted, as Go prints a list.
fn plugin_list(names: &[&Arc<str>]) -> String {
    let mut names: Vec<&str> = names.iter().map(|name| &***name).collect();
    names.sort_unstable();
    format!("[{}]", names.join(" "))
}

/// What was said about helping the pod.
fn post_filter(attempt: &Attempt<'_>) -> (Help, Repairs) {
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    let (mut nomination, mut repairs) = (Nomination::Keep, Vec::new());
    for entry in &attempt.profile.points.post_filter {
        let rejection = match entry.plugin.post_filter(attempt) {
            PostFilterVerdict::Nominate { node, victims } => {
                return (Help::Nominate(node, victims), repairs);
            }
            PostFilterVerdict::Candidates(candidates) => return (Help::Candidates(candidates), repairs),
            PostFilterVerdict::Repair(repair, rejection) => {
                repairs.push(repair);
                rejection
            }
            PostFilterVerdict::Hopeless(rejection) => {
                nomination = Nomination::Clear;
                rejection
            }
            PostFilterVerdict::Reject(rejection) => rejection,
        };
        let ends = rejection.finality == Finality::Unresolvable;
        if ends {
            reasons.clear();
        }
        reasons.extend(rejection.reasons);
        if ends {
            break;
        }
    }
    (Help::Nothing(reasons.join(", "), nomination), repairs)
}

/// Fills the scores and totals.
pub(crate) fn score(profile: &Profile, snapshot: &Snapshot, pod: &PodInfo, decision: &mut Decision) {
    let Decision { cycle, feasible, scores, totals, .. } = decision;
    let mut skipped: Vec<&str> = Vec::new();
    for entry in &profile.points.pre_score {
        if entry.plugin.pre_score(cycle, pod, snapshot, feasible) == PreScoreVerdict::Skip {
            skipped.push(&entry.name);
        }
    }
    totals.resize(feasible.len(), 0);
    for entry in &profile.points.score {
        if skipped.contains(&&*entry.name) {
            continue;
        }
        let mut normalized = Vec::with_capacity(feasible.len());
        entry.plugin.score_all(cycle, pod, snapshot, feasible, &mut normalized);
        let raw = normalized.clone();
        entry.plugin.normalize(cycle, pod, &mut normalized);
        for (total, score) in totals.iter_mut().zip(&normalized) {
            *total += score * entry.weight;
        }
        scores.push(ScoreColumn { plugin: Arc::clone(&entry.name), weight: entry.weight, raw, normalized });
    }
}

/// The best node; among equals the one whose hash together with the pod's comes first.
pub(crate) fn select(
    seed: u64,
    snapshot: &Snapshot,
    pod: &PodInfo,
    decision: &Decision,
) -> Option<NodeIndex> {
    let best = decision.totals.iter().copied().max()?;
    let pod_hash = pod_hash(seed, pod);
    let equals = decision.feasible.iter().zip(&decision.totals).filter(|(_, total)| **total == best);
    equals.map(|(index, _)| *index).min_by_key(|&index| mix(pod_hash ^ snapshot.name_hash(index)))
}

/// A seed and a pod in one number.
pub(crate) fn pod_hash(seed: u64, pod: &PodInfo) -> u64 {
    seed ^ snapshot::hash(pod.uid.as_bytes()) ^ snapshot::hash(pod.name.as_bytes()).rotate_left(17)
}

/// SplitMix64's finish: neighbouring inputs give unrelated outputs.
pub(crate) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::build::{NodeBuilder, PodBuilder, node, pod};

    fn snapshot(nodes: Vec<NodeBuilder>) -> Snapshot {
        let mut snapshot = Snapshot::new();
        for node in nodes {
            snapshot.set_node(node.info());
        }
        snapshot
    }

    fn check_failure(nodes: Vec<NodeBuilder>, pod: PodBuilder, expected: &str) {
        let decision = decide(&Profile::default(), &snapshot(nodes), &pod.info());
        assert_eq!(decision.failure().as_deref(), Some(expected));
    }

    fn bound_to(name: &str) -> PodBuilder {
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}
        ]}}});
        pod("p").edit(|pod| {
            pod.spec.get_or_insert_default().affinity = serde_json::from_value(affinity).unwrap();
        })
    }

    #[test]
    fn failures_are_worded_as_upstreams() {
        check_failure(vec![], pod("p"), "no nodes available to schedule pods");
        let tainted = |name: &str| node(name).resource("cpu", "8").taint("dedicated", "db", "NoSchedule");
        check_failure(
            vec![tainted("a"), tainted("b"), node("c").resource("cpu", "1")],
            pod("p").request("cpu", "2"),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). no new claims to \
             deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
        );
        check_failure(
            vec![node("a").unschedulable(), node("b").label("zone", "x")],
            pod("p").node_selector("zone", "y"),
            "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were \
             unschedulable. no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not \
             helpful for scheduling.",
        );
        check_failure(
            vec![node("a").resource("pods", "0")],
            pod("p")
                .edit(|pod| pod.spec.get_or_insert_default().preemption_policy = Some("Never".to_owned())),
            "0/1 nodes are available: 1 Too many pods. no new claims to deallocate, preemption: not eligible due to \
             preemptionPolicy=Never.",
        );
        check_failure(
            vec![node("a").resource("cpu", "1"), node("b"), node("c")],
            bound_to("a").request("cpu", "2"),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]. no new \
             claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
        );
    }

    #[test]
    fn the_plugins_that_events_must_change_are_named() {
        let nodes = vec![node("a").resource("cpu", "1"), node("b").taint("k", "v", "NoExecute")];
        let decision = decide(&Profile::default(), &snapshot(nodes), &pod("p").request("cpu", "2").info());
        let plugins: Vec<_> = decision.diagnosis().plugins.iter().map(|name| &**name).collect();
        assert_eq!(plugins, ["TaintToleration", "NodeResourcesFit"]);
    }

    #[test]
    fn equals_are_chosen_by_pod_and_seed_and_not_by_order() {
        let names: Vec<_> = (0..20).map(|number| format!("n{number}")).collect();
        let forwards = snapshot(names.iter().map(|name| node(name)).collect());
        let backwards = snapshot(names.iter().rev().map(|name| node(name)).collect());
        let mut chosen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let profile = Profile::builder().seed(seed).build().unwrap();
            let pod = pod("p").info();
            let first = decide(&profile, &forwards, &pod).node().map(str::to_owned);
            assert_eq!(first.as_deref(), decide(&profile, &backwards, &pod).node());
            chosen.insert(first);
        }
        assert!(chosen.len() > 10, "{chosen:?}");
    }

    #[test]
    fn weights_multiply_normalized_scores() {
        let nodes = vec![node("a").taint("k", "", "PreferNoSchedule"), node("b")];
        let decision = decide(&Profile::default(), &snapshot(nodes), &pod("p").info());
        let taints: Vec<_> = ["a", "b"]
            .map(|node| {
                let score = decision.scores(node).find(|score| score.plugin == "TaintToleration").unwrap();
                (score.raw, score.normalized, score.weighted)
            })
            .into();
        assert_eq!(taints, [(1, 0, 0), (0, 100, 300)]);
        assert_eq!(decision.node(), Some("b"));
    }
}
