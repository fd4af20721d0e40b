//! Taints keep pods away that don't tolerate them.

use std::sync::Arc;

use crate::{
    event::{ClusterEvent, Hint},
    node::NodeInfo,
    plugin::{CycleState, FilterPlugin, QueueingHint, ScorePlugin, Verdict, normalize_by_max},
    pod::{self, PodInfo},
    snapshot::NodeView,
    track::{FilterTracker, ScoreTracker, Surroundings, Track},
};

const NAME: &str = "TaintToleration";
const REASON: &str = "node(s) had untolerated taint(s)";

/// Rejects nodes with a taint of effect `NoSchedule` or `NoExecute` that the pod does not tolerate, and likes those best
/// that have the fewest such taints of effect `PreferNoSchedule`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaintToleration;

fn is_untolerated(pod: &PodInfo, node: &NodeInfo) -> bool {
    let mut hard =
        node.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    hard.any(|taint| !pod.tolerates(taint))
}

impl FilterPlugin for TaintToleration {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let tainted = node.snapshot().columns().hard_tainted.contains(node.index());
        if tainted && is_untolerated(pod, node.info()) {
            Verdict::unresolvable(REASON)
        } else {
            Verdict::Pass
        }
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        Track::Node
    }
}

impl ScorePlugin for TaintToleration {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> i64 {
        if !node.snapshot().columns().soft_tainted.contains(node.index()) {
            return 0;
        }
        let soft = node.info().taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        let is_for_soft =
            |effect: &Option<String>| matches!(effect.as_deref(), None | Some("" | "PreferNoSchedule"));
        let intolerable = soft.filter(|taint| {
            let mut tolerations = pod.tolerations.iter().filter(|toleration| is_for_soft(&toleration.effect));
            !tolerations.any(|toleration| pod::tolerates(toleration, taint))
        });
        i64::try_from(intolerable.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, _cycle: &CycleState, _pod: &PodInfo, scores: &mut [i64]) {
        normalize_by_max(scores, true);
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        Track::Node
    }
}

impl QueueingHint for TaintToleration {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(node) => !is_untolerated(pod, node),
            ClusterEvent::NodeUpdated { old, new } => is_untolerated(pod, old) && !is_untolerated(pod, new),
            ClusterEvent::TargetUpdated { old, new } => old.tolerations != new.tolerations,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::{node, pod},
        snapshot::Snapshot,
    };

    #[test]
    fn taints_and_tolerations() {
        // (taint, toleration, passes, intolerable soft taints)
        for (taint, toleration, passes, soft) in [
            (("k", "v", "NoSchedule"), None, false, 0),
            (("k", "v", "NoExecute"), None, false, 0),
            (("k", "v", "PreferNoSchedule"), None, true, 1),
            (("k", "v", "NoSchedule"), Some(("k", "Equal", "v", "")), true, 0),
            (("k", "v", "NoSchedule"), Some(("k", "", "v", "NoSchedule")), true, 0),
            (("k", "v", "NoSchedule"), Some(("k", "Equal", "w", "")), false, 0),
            (("k", "v", "NoSchedule"), Some(("k", "Exists", "", "NoExecute")), false, 0),
            (("k", "v", "NoExecute"), Some(("", "Exists", "", "")), true, 0),
            (("k", "v", "PreferNoSchedule"), Some(("k", "Exists", "", "NoSchedule")), true, 1),
            (("k", "v", "PreferNoSchedule"), Some(("k", "Exists", "", "PreferNoSchedule")), true, 0),
            (("k", "", "NoSchedule"), Some(("k", "Equal", "", "")), true, 0),
            (("k", "5", "NoSchedule"), Some(("k", "Gt", "3", "")), true, 0),
            (("k", "5", "NoSchedule"), Some(("k", "Lt", "3", "")), false, 0),
        ] {
            let mut snapshot = Snapshot::new();
            snapshot.set_node(node("n").taint(taint.0, taint.1, taint.2).info());
            let mut builder = pod("p");
            if let Some((key, operator, value, effect)) = toleration {
                builder = builder.toleration(key, operator, value, effect);
            }
            let (pod, cycle) = (builder.info(), CycleState::default());
            let verdict = TaintToleration.filter(&cycle, &pod, snapshot.node(0));
            assert_eq!(verdict == Verdict::Pass, passes, "{taint:?} {toleration:?}");
            assert_eq!(
                TaintToleration.score(&cycle, &pod, snapshot.node(0)),
                soft,
                "{taint:?} {toleration:?}"
            );
        }
    }
}
