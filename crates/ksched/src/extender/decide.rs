//! A decision in which extenders have a say.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    candidate::Candidate,
    cycle::{Help, begin, filter, give_up, help, score, select},
    decision::{Decision, ScoreColumn},
    extender::{EXTENDER_NAME, EXTENDER_SCORE_MAX, Extender, ExtenderError, Filtered},
    metrics::Meter,
    plugin::{MAX_NODE_SCORE, Rejection},
    pod::PodInfo,
    profile::Profile,
    snapshot::Snapshot,
    trial::{Nominated, Nominations},
};

/// As [`decide_among`](crate::decide_among), with these extenders, which are asked in turn; those that are not interested in the pod
/// are not asked.
///
/// # Errors
/// When an extender fails that can't be ignored.
pub async fn decide_extended(
    profile: &Profile,
    extenders: &[Arc<dyn Extender>],
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominated: &[Nominated],
) -> Result<Decision, ExtenderError> {
    let meter = Meter::none(&profile.scheduler_name);
    decide_extended_measured(profile, extenders, snapshot, pod, nominated, &meter).await
}

/// As [`decide_extended`]; how long what took goes to the meter.
///
/// # Errors
/// When an extender fails that can't be ignored.
pub(crate) async fn decide_extended_measured(
    profile: &Profile,
    extenders: &[Arc<dyn Extender>],
    snapshot: &Snapshot,
    pod: &PodInfo,
    nominated: &[Nominated],
    meter: &Meter,
) -> Result<Decision, ExtenderError> {
    let extenders: Vec<_> = extenders.iter().filter(|extender| extender.is_interested(pod)).collect();
    let mut decision = begin(snapshot);
    if snapshot.is_empty() {
        return Ok(decision);
    }
    let mut nominations = Nominations::new(nominated, pod, snapshot);
    let mut skipped = filter(profile, snapshot, pod, &nominations, &mut decision, meter);
    ask_filters(&extenders, snapshot, pod, &mut decision).await?;
    if decision.feasible.is_empty() && nominations.own.is_some() {
        // Room was made on a node that will not do any more: the others are looked at.
        decision = begin(snapshot);
        nominations.own = None;
        skipped = filter(profile, snapshot, pod, &nominations, &mut decision, meter);
        ask_filters(&extenders, snapshot, pod, &mut decision).await?;
    }
    if decision.feasible.is_empty() {
        let (help, repairs) = help(profile, snapshot, pod, &decision, &nominations, &skipped, meter);
        decision.repairs = repairs;
        let help = match help {
            Help::Candidates(candidates) => match ask_preemption(&extenders, snapshot, pod, candidates).await
            {
                Ok(candidates) => Help::Candidates(candidates),
                Err(error) => Help::Nothing(error.message, crate::decision::Nomination::Keep),
            },
            other => other,
        };
        give_up(snapshot, help, &mut decision);
        return Ok(decision);
    }
    score(profile, snapshot, pod, &mut decision, meter);
    ask_scores(&extenders, snapshot, pod, &mut decision).await;
    decision.chosen = select(profile.seed, snapshot, pod, &decision);
    Ok(decision)
}

/// `None` when the answer is an error that is ignored.
fn answered<T>(
    extender: &dyn Extender,
    answer: Result<T, ExtenderError>,
) -> Result<Option<T>, ExtenderError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if extender.is_ignorable() => {
            tracing::info!(%error, extender = extender.name(), "an extender failed and is ignored");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn ask_filters(
    extenders: &[&Arc<dyn Extender>],
    snapshot: &Snapshot,
    pod: &PodInfo,
    decision: &mut Decision,
) -> Result<(), ExtenderError> {
    for extender in extenders {
        if decision.feasible.is_empty() {
            break;
        }
        let answer = extender.filter(pod, snapshot, &decision.feasible).await;
        let Some(Some(Filtered { nodes, failed, unresolvable })) = answered(&***extender, answer)? else {
            continue;
        };
        let asked: BTreeSet<_> = decision.feasible.iter().copied().collect();
        let mut left: Vec<_> = nodes.into_iter().filter(|node| asked.contains(node)).collect();
        left.sort_unstable();
        left.dedup();
        let name: Arc<str> = extender.name().into();
        let (mut said, diagnosis) = (BTreeSet::new(), &mut decision.diagnosis);
        let unresolvable = unresolvable.into_iter().map(|(node, why)| (node, Rejection::unresolvable(why)));
        let failed = failed.into_iter().map(|(node, why)| (node, Rejection::unschedulable(why)));
        for (node, rejection) in unresolvable.chain(failed) {
            if asked.contains(&node) && said.insert(node) {
                diagnosis.rejected.push((node, Arc::clone(&name), rejection));
            }
        }
        if left.len() < asked.len() && diagnosis.plugins.iter().all(|known| **known != *EXTENDER_NAME) {
            diagnosis.plugins.push(EXTENDER_NAME.into());
        }
        decision.feasible = left;
    }
    Ok(())
}

async fn ask_scores(
    extenders: &[&Arc<dyn Extender>],
    snapshot: &Snapshot,
    pod: &PodInfo,
    decision: &mut Decision,
) {
    let questions = extenders.iter().map(|extender| extender.prioritize(pod, snapshot, &decision.feasible));
    let answers = futures::future::join_all(questions).await;
    for (extender, answer) in extenders.iter().zip(answers) {
        let scores = match answer {
            Ok(Some(scores)) => scores,
            Ok(None) => continue,
            Err(error) => {
                tracing::info!(%error, extender = extender.name(), "an extender gives no scores");
                continue;
            }
        };
        let weight = extender.weight();
        let mut raw = vec![0; decision.feasible.len()];
        for (node, score) in scores {
            if let Ok(at) = decision.feasible.binary_search(&node) {
                raw[at] = score.clamp(0, EXTENDER_SCORE_MAX);
            }
        }
        let normalized: Vec<i64> =
            raw.iter().map(|score| score * (MAX_NODE_SCORE / EXTENDER_SCORE_MAX)).collect();
        for (total, score) in decision.totals.iter_mut().zip(&normalized) {
            *total = total.saturating_add(score.saturating_mul(weight));
        }
        decision.scores.push(ScoreColumn { plugin: extender.name().into(), weight, raw, normalized });
    }
}

async fn ask_preemption(
    extenders: &[&Arc<dyn Extender>],
    snapshot: &Snapshot,
    pod: &PodInfo,
    mut candidates: Vec<Candidate>,
) -> Result<Vec<Candidate>, ExtenderError> {
    for extender in extenders {
        if candidates.is_empty() {
            break;
        }
        let answer = extender.preempt(pod, snapshot, &candidates).await;
        let Some(Some(mut left)) = answered(&***extender, answer)? else { continue };
        if let Some(nobody) = left.iter().find(|candidate| candidate.victims.is_empty())
            && !extender.is_ignorable()
        {
            let node = &snapshot.names()[nobody.node];
            return Err(ExtenderError::new(format!("expected at least one victim pod on node {node:?}")));
        }
        left.retain(|candidate| !candidate.victims.is_empty());
        candidates = left;
    }
    Ok(candidates)
}
