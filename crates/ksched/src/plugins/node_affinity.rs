//! What a pod asks of its node's labels.

use std::sync::Arc;

use k8s_openapi::api::core::v1;

use crate::{
    affinity::{self, RequiredAffinity, Term},
    event::{ClusterEvent, Hint},
    node::NodeInfo,
    plugin::{
        CycleState, FilterPlugin, PreFilter, PreFilterVerdict, PreScore, PreScoreVerdict, QueueingHint,
        Rejection, ScorePlugin, Verdict, normalize_by_max,
    },
    pod::PodInfo,
    snapshot::{NodeIndex, NodeView, Snapshot},
    track::{FilterTracker, ScoreTracker, Surroundings, Track},
};

const NAME: &str = "NodeAffinity";
const REASON: &str = "node(s) didn't match Pod's node affinity/selector";
const REASON_ADDED: &str = "node(s) didn't match scheduler-enforced node affinity";
const REASON_CONFLICT: &str = "pod affinity terms conflict";

/// `spec.nodeSelector` and node affinity: required terms reject nodes, the weights of preferred terms that match add up
/// to the score. What is [added](Self::with_added) counts for all pods, beside their own.
#[derive(Clone, Debug, Default)]
pub struct NodeAffinity {
    required: Option<RequiredAffinity>,
    preferred: Vec<(i64, Term)>,
}

impl NodeAffinity {
    /// With an affinity that all pods have (upstream's `addedAffinity`).
    #[must_use]
    pub fn with_added(added: &v1::NodeAffinity) -> Self {
        let affinity = v1::Affinity { node_affinity: Some(added.clone()), ..v1::Affinity::default() };
        let spec = v1::PodSpec { affinity: Some(affinity), ..v1::PodSpec::default() };
        Self { required: RequiredAffinity::read(&spec), preferred: affinity::preferred(&spec) }
    }

    fn allows(&self, node: &NodeInfo) -> bool {
        self.required.as_ref().is_none_or(|required| required.matches(&node.name, &node.labels))
    }
}

impl PreFilter for NodeAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, _cycle: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilterVerdict {
        let Some(required) = &pod.required_affinity else {
            return if self.required.is_none() { PreFilterVerdict::Skip } else { PreFilterVerdict::Pass };
        };
        match required.names() {
            None => PreFilterVerdict::Pass,
            Some(names) if names.is_empty() => {
                PreFilterVerdict::Reject(Rejection::unresolvable(REASON_CONFLICT))
            }
            Some(names) => PreFilterVerdict::Only(names),
        }
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl FilterPlugin for NodeAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        if !self.allows(node.info()) {
            return Verdict::unresolvable(REASON_ADDED);
        }
        match &pod.required_affinity {
            Some(required) if !required.matches(node.name(), &node.info().labels) => {
                Verdict::unresolvable(REASON)
            }
            _ => Verdict::Pass,
        }
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        Track::Node
    }
}

impl PreScore for NodeAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_score(
        &self,
        _cycle: &mut CycleState,
        pod: &PodInfo,
        _snapshot: &Snapshot,
        _nodes: &[NodeIndex],
    ) -> PreScoreVerdict {
        let nothing = pod.preferred_affinity.is_empty() && self.preferred.is_empty();
        if nothing { PreScoreVerdict::Skip } else { PreScoreVerdict::Pass }
    }
}

impl ScorePlugin for NodeAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> i64 {
        let terms = pod.preferred_affinity.iter().chain(&self.preferred);
        terms
            .filter(|(_, term)| term.matches(node.name(), &node.info().labels))
            .map(|(weight, _)| weight)
            .sum()
    }

    fn normalize(&self, _cycle: &CycleState, _pod: &PodInfo, scores: &mut [i64]) {
        normalize_by_max(scores, false);
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        Track::Node
    }
}

impl QueueingHint for NodeAffinity {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        let matches = |node: &NodeInfo| {
            let own = pod.required_affinity.as_ref();
            self.allows(node) && own.is_none_or(|required| required.matches(&node.name, &node.labels))
        };
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(node) => matches(node),
            ClusterEvent::NodeUpdated { old, new } => matches(new) && !matches(old),
            ClusterEvent::TargetUpdated { old, new } => old.required_affinity != new.required_affinity,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::build::{node, pod};

    fn matches(required: &Value) -> bool {
        let pod = pod("p").edit(|pod| {
            let affinity =
                json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
            pod.spec.get_or_insert_default().affinity = serde_json::from_value(affinity).unwrap();
        });
        let mut snapshot = Snapshot::new();
        snapshot.set_node(node("n1").label("zone", "a").label("size", "10").info());
        NodeAffinity::default().filter(&CycleState::default(), &pod.info(), snapshot.node(0)) == Verdict::Pass
    }

    #[test]
    fn operators() {
        for (key, operator, values, expected) in [
            ("zone", "In", json!(["a", "b"]), true),
            ("zone", "In", json!(["b"]), false),
            ("none", "In", json!(["b"]), false),
            ("zone", "NotIn", json!(["a"]), false),
            ("none", "NotIn", json!(["a"]), true),
            ("zone", "Exists", json!([]), true),
            ("none", "Exists", json!([]), false),
            ("none", "DoesNotExist", json!([]), true),
            ("size", "Gt", json!(["9"]), true),
            ("size", "Gt", json!(["10"]), false),
            ("size", "Lt", json!(["11"]), true),
            ("zone", "Gt", json!(["1"]), false),
            ("size", "Gt", json!(["x"]), false),
            ("size", "Like", json!(["10"]), false),
        ] {
            let requirement = json!({"key": key, "operator": operator, "values": values});
            let required = json!({"nodeSelectorTerms": [{"matchExpressions": [requirement]}]});
            assert_eq!(matches(&required), expected, "{requirement}");
        }
    }

    #[test]
    fn terms() {
        let zone = |value: &str| json!({"key": "zone", "operator": "In", "values": [value]});
        let name = |value: &str| json!({"key": "metadata.name", "operator": "In", "values": [value]});
        for (terms, expected) in [
            (json!([]), false),
            (json!([{}]), false),
            (json!([{"matchExpressions": [zone("b")]}, {"matchExpressions": [zone("a")]}]), true),
            (json!([{"matchExpressions": [zone("a"), zone("b")]}]), false),
            (json!([{"matchFields": [name("n1")]}]), true),
            (json!([{"matchFields": [name("n2")]}]), false),
            (json!([{"matchFields": [name("n1")], "matchExpressions": [zone("b")]}]), false),
        ] {
            assert_eq!(matches(&json!({"nodeSelectorTerms": terms})), expected, "{terms}");
        }
    }
}
