//! The decision about one pod.

use std::{borrow::Cow, sync::Arc};

use crate::{
    candidate::{self, Candidate},
    decision::{Decision, Diagnosis, Nomination, ScoreColumn},
    metrics::{Meter, meter},
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
    decide_measured(profile, snapshot, pod, nominated, &Meter::none(&profile.scheduler_name))
}

/// As [`decide_among`]; how long what took goes to the meter.
pub(crate) fn decide_measured(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominated: &[Nominated],
    meter: &Meter,
) -> Decision {
    let mut decision = begin(snapshot);
    if snapshot.is_empty() {
        return decision;
    }
    let nominations = Nominations::new(nominated, pod, snapshot);
    let skipped = filter(profile, snapshot, pod, &nominations, &mut decision, meter);
    if decision.feasible.is_empty() {
        let (help, repairs) = help(profile, snapshot, pod, &decision, &nominations, &skipped, meter);
        decision.repairs = repairs;
        give_up(snapshot, help, &mut decision);
        return decision;
    }
    score(profile, snapshot, pod, &mut decision, meter);
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
    meter: &Meter,
) -> (Help, Repairs) {
    let Decision { cycle, diagnosis, .. } = decision;
    let begin = meter.begin();
    let attempt = Attempt { profile, cycle, pod, snapshot, diagnosis, nominations, skipped };
    let (help, repairs, status) = post_filter(&attempt, meter);
    meter.point("PostFilter", status, begin);
    (help, repairs)
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

/// The nodes that come into question, and the plug-ins that have nothing to say about the pod.
struct Narrowed {
    nodes: Vec<NodeIndex>,
    skipped: Vec<Arc<str>>,
}

/// Asks what can be said without looking at each node. The status says how it ended.
fn pre_filter(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    decision: &mut Decision,
    meter: &Meter,
) -> (Narrowed, &'static str) {
    let Decision { diagnosis, cycle, .. } = decision;
    let mut skipped: Vec<Arc<str>> = Vec::new();
    let mut only: Option<Vec<NodeIndex>> = None;
    let mut narrowed_by: Vec<&Arc<str>> = Vec::new();
    let mut status = meter::SUCCESS;
    for entry in &profile.points.pre_filter {
        let begin = meter.begin_plugin();
        let verdict = entry.plugin.pre_filter(cycle, pod, snapshot);
        meter.plugin(&entry.name, "PreFilter", pre_filter_status(&verdict), begin);
        match verdict {
            PreFilterVerdict::Pass => meter.evaluated(&entry.name, "PreFilter", 1),
            PreFilterVerdict::Skip => skipped.push(Arc::clone(&entry.name)),
            PreFilterVerdict::Only(names) => {
                meter.evaluated(&entry.name, "PreFilter", 1);
                narrowed_by.push(&entry.name);
                diagnosis.plugins.push(Arc::clone(&entry.name));
                if !narrow(snapshot, &names, &mut only) {
                    let names = plugin_list(&narrowed_by);
                    let reason = format!("node(s) didn't satisfy plugin(s) {names} simultaneously");
                    diagnosis.pre_filter = Some(Rejection::unresolvable(reason));
                    let status = meter::finality_status(Finality::Unresolvable);
                    return (Narrowed { nodes: Vec::new(), skipped }, status);
                }
            }
            PreFilterVerdict::Reject(rejection) => {
                meter.evaluated(&entry.name, "PreFilter", 1);
                diagnosis.plugins.push(Arc::clone(&entry.name));
                status = meter::finality_status(rejection.finality);
                // The others take their notes all the same if removing pods may help: who tries that needs them.
                let ends = rejection.finality != Finality::Unschedulable;
                diagnosis.pre_filter = Some(rejection);
                if ends {
                    return (Narrowed { nodes: Vec::new(), skipped }, status);
                }
            }
        }
    }
    let nodes = match only {
        _ if diagnosis.pre_filter.is_some() => Vec::new(),
        None => (0..snapshot.len()).collect(),
        Some(nodes) => {
            let left_out = (0..snapshot.len()).filter(|node| nodes.binary_search(node).is_err()).collect();
            let reason = format!("node(s) didn't satisfy plugin(s) {}", plugin_list(&narrowed_by));
            diagnosis.left_out = Some((left_out, Rejection::unresolvable(reason)));
            nodes
        }
    };
    (Narrowed { nodes, skipped }, status)
}

fn pre_filter_status(verdict: &PreFilterVerdict) -> &'static str {
    match verdict {
        PreFilterVerdict::Pass | PreFilterVerdict::Only(_) => meter::SUCCESS,
        PreFilterVerdict::Skip => meter::SKIP,
        PreFilterVerdict::Reject(rejection) => meter::finality_status(rejection.finality),
    }
}

/// Keeps the nodes with these names only; `false` when none of them was named before.
fn narrow(snapshot: &Snapshot, names: &[Arc<str>], only: &mut Option<Vec<NodeIndex>>) -> bool {
    let mut nodes: Vec<_> = names.iter().filter_map(|name| snapshot.find(name)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let nothing_in_common = |known: &Vec<NodeIndex>| nodes.iter().all(|node| !known.contains(node));
    let contradicts = only.as_ref().is_some_and(nothing_in_common) && !nodes.is_empty();
    if let Some(known) = &only {
        nodes.retain(|node| known.contains(node));
    }
    *only = Some(nodes);
    !contradicts
}

/// Fills `feasible` and the diagnosis; gives the plug-ins that have nothing to say about the pod.
pub(crate) fn filter(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominations: &Nominations,
    decision: &mut Decision,
    meter: &Meter,
) -> Vec<Arc<str>> {
    let begin = meter.begin();
    let (Narrowed { mut nodes, skipped }, status) = pre_filter(profile, snapshot, pod, decision, meter);
    meter.point("PreFilter", status, begin);
    if decision.diagnosis.pre_filter.is_some() {
        return skipped;
    }
    let begin = meter.begin();
    if let Some(node) = nominations.own.as_ref().and_then(|node| snapshot.find(node))
        && nodes.binary_search(&node).is_ok()
    {
        // Room was made for the pod there: no other node is looked at if it fits now (upstream's
        // `evaluateNominatedNode`).
        let unknown = Diagnosis::default();
        let (diagnosis, cycle) = (&unknown, &decision.cycle);
        let attempt = Attempt { profile, cycle, pod, snapshot, diagnosis, nominations, skipped: &skipped };
        if attempt.trial().verdict(node) == Verdict::Pass {
            meter.point("Filter", meter::SUCCESS, begin);
            decision.feasible = vec![node];
            return skipped;
        }
    }
    let enough = profile.feasible_enough(nodes.len());
    if enough < nodes.len() {
        nodes = search(profile, snapshot, pod, nominations, &skipped, (nodes, enough), decision, meter);
    } else {
        ask_all(profile, snapshot, pod, nominations, &skipped, &mut nodes, decision, meter);
    }
    meter.point("Filter", meter::SUCCESS, begin);
    decision.feasible = nodes;
    skipped
}

/// Looks at some nodes after others, beginning anywhere, until there is room on enough of them.
fn search(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominations: &Nominations,
    skipped: &[Arc<str>],
    (mut nodes, enough): (Vec<NodeIndex>, usize),
    decision: &mut Decision,
    meter: &Meter,
) -> Vec<NodeIndex> {
    let start = mix(pod_hash(profile.seed, pod)) % nodes.len().max(1) as u64;
    nodes.rotate_left(usize::try_from(start).unwrap_or_default());
    let mut found = Vec::with_capacity(enough);
    for some in nodes.chunks(enough) {
        let mut some = some.to_vec();
        some.sort_unstable();
        ask_all(profile, snapshot, pod, nominations, skipped, &mut some, decision, meter);
        found.extend(some);
        if found.len() >= enough {
            break;
        }
    }
    found.truncate(enough);
    found.sort_unstable();
    found
}

/// Keeps the nodes, which are ascending, that have room for the pod, also beside those for which room is being made.
fn ask_all(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominations: &Nominations,
    skipped: &[Arc<str>],
    nodes: &mut Vec<NodeIndex>,
    decision: &mut Decision,
    meter: &Meter,
) {
    ask_filters(profile, snapshot, pod, skipped, nodes, decision, meter);
    if nominations.others.iter().any(|(node, _)| nodes.binary_search(node).is_ok()) {
        leave_room(profile, snapshot, pod, nominations, skipped, nodes, decision);
    }
}

/// Keeps the nodes that all filters let pass.
fn ask_filters(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    skipped: &[Arc<str>],
    nodes: &mut Vec<NodeIndex>,
    decision: &mut Decision,
    meter: &Meter,
) {
    let Decision { diagnosis, cycle, .. } = decision;
    for entry in &profile.points.filter {
        if nodes.is_empty() {
            break;
        }
        if skipped.contains(&entry.name) {
            continue;
        }
        let before = diagnosis.rejected.len();
        let rejected = &mut diagnosis.rejected;
        meter.evaluated(&entry.name, "Filter", nodes.len());
        let begin = meter.begin_plugin();
        entry.plugin.filter_all(cycle, pod, snapshot, nodes, &mut |node, rejection| {
            rejected.push((node, Arc::clone(&entry.name), rejection));
        });
        let last = diagnosis.rejected[before..].last();
        let status = last.map_or(meter::SUCCESS, |(_, _, said)| meter::finality_status(said.finality));
        meter.plugin(&entry.name, "Filter", status, begin);
        if last.is_some() && !diagnosis.plugins.contains(&entry.name) {
            diagnosis.plugins.push(Arc::clone(&entry.name));
        }
    }
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

/// What was said about helping the pod, and how it ended.
fn post_filter(attempt: &Attempt<'_>, meter: &Meter) -> (Help, Repairs, &'static str) {
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    let (mut nomination, mut repairs) = (Nomination::Keep, Vec::new());
    let mut status = meter::UNSCHEDULABLE;
    for entry in &attempt.profile.points.post_filter {
        let begin = meter.begin_plugin();
        let verdict = entry.plugin.post_filter(attempt);
        meter.plugin(&entry.name, "PostFilter", post_filter_status(&verdict), begin);
        let rejection = match verdict {
            PostFilterVerdict::Nominate { node, victims } => {
                return (Help::Nominate(node, victims), repairs, meter::SUCCESS);
            }
            PostFilterVerdict::Candidates(candidates) => {
                return (Help::Candidates(candidates), repairs, meter::SUCCESS);
            }
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
            status = meter::finality_status(rejection.finality);
        }
        reasons.extend(rejection.reasons);
        if ends {
            break;
        }
    }
    (Help::Nothing(reasons.join(", "), nomination), repairs, status)
}

fn post_filter_status(verdict: &PostFilterVerdict) -> &'static str {
    match verdict {
        PostFilterVerdict::Nominate { .. } | PostFilterVerdict::Candidates(_) => meter::SUCCESS,
        PostFilterVerdict::Repair(_, rejection)
        | PostFilterVerdict::Hopeless(rejection)
        | PostFilterVerdict::Reject(rejection) => meter::finality_status(rejection.finality),
    }
}

/// Fills the scores and totals.
pub(crate) fn score(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    decision: &mut Decision,
    meter: &Meter,
) {
    let Decision { cycle, feasible, scores, totals, .. } = decision;
    let mut skipped: Vec<&str> = Vec::new();
    let begin = meter.begin();
    for entry in &profile.points.pre_score {
        let begin = meter.begin_plugin();
        let skips = entry.plugin.pre_score(cycle, pod, snapshot, feasible) == PreScoreVerdict::Skip;
        meter.plugin(&entry.name, "PreScore", if skips { meter::SKIP } else { meter::SUCCESS }, begin);
        if skips {
            skipped.push(&entry.name);
        } else {
            meter.evaluated(&entry.name, "PreScore", 1);
        }
    }
    meter.point("PreScore", meter::SUCCESS, begin);
    totals.resize(feasible.len(), 0);
    let begin = meter.begin();
    for entry in &profile.points.score {
        if skipped.contains(&&*entry.name) {
            continue;
        }
        let mut normalized = Vec::with_capacity(feasible.len());
        meter.evaluated(&entry.name, "Score", feasible.len());
        let begin = meter.begin_plugin();
        entry.plugin.score_all(cycle, pod, snapshot, feasible, &mut normalized);
        meter.plugin(&entry.name, "Score", meter::SUCCESS, begin);
        let raw = normalized.clone();
        let begin = meter.begin_plugin();
        entry.plugin.normalize(cycle, pod, &mut normalized);
        if !entry.plugin.is_normalized() {
            meter.plugin(&entry.name, "ScoreExtensionNormalize", meter::SUCCESS, begin);
        }
        for (total, score) in totals.iter_mut().zip(&normalized) {
            *total += score * entry.weight;
        }
        scores.push(ScoreColumn { plugin: Arc::clone(&entry.name), weight: entry.weight, raw, normalized });
    }
    meter.point("Score", meter::SUCCESS, begin);
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

    /// Upstream's `numFeasibleNodesToFind`, and that no node is left out when there is not enough room.
    #[test]
    fn a_share_of_the_nodes_is_enough_when_that_is_asked_for() {
        let names: Vec<_> = (0..1_000).map(|number| format!("n{number}")).collect();
        let all = snapshot(names.iter().map(|name| node(name).resource("cpu", "1")).collect());
        let mut full = all.clone();
        for name in &names[..950] {
            full.place(&Arc::new(pod(&format!("on-{name}")).request("cpu", "1").info()), name);
        }
        let cases: [(&Snapshot, u8, usize); 7] = [
            (&all, 0, 1_000),
            (&all, 100, 1_000),
            (&all, 1, 100),
            (&all, 30, 300),
            (&all, 99, 990),
            (&full, 0, 50),
            (&full, 10, 50),
        ];
        for (snapshot, percent, feasible) in cases {
            let profile = Profile::builder().percentage_of_nodes_to_score(percent).build().unwrap();
            let decide = |name: &str| decide(&profile, snapshot, &pod(name).request("cpu", "1").info());
            let (decision, other) = (decide("p"), decide("q"));
            assert_eq!(decision.feasible.len(), feasible, "{percent} %");
            assert!(decision.feasible.is_sorted() && decision.node().is_some());
            assert_eq!(
                decision.feasible == other.feasible,
                feasible == 1_000 || feasible == 50,
                "each pod begins elsewhere"
            );
        }
        let small = snapshot(names[..99].iter().map(|name| node(name)).collect());
        let profile = Profile::builder().percentage_of_nodes_to_score(5).build().unwrap();
        assert_eq!(decide(&profile, &small, &pod("p").info()).feasible.len(), 99);
        let nowhere = decide(&profile, &full, &pod("p").request("cpu", "2").info());
        assert!(nowhere.failure().unwrap().starts_with("0/1000 nodes are available: 1000 Insufficient cpu."));
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
