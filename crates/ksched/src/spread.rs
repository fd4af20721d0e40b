//! Topology spread constraints, read once per pod.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use kcore::{Labels, selector::LabelSelector};

use crate::{
    node::NodeInfo,
    pod::PodInfo,
    pod_affinity::{equals, read_selector},
};

/// How evenly pods must be, or should be, spread over the values of a label of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpreadConstraint {
    /// By how much the number of pods may differ from the smallest one.
    pub max_skew: i32,
    /// The label of nodes.
    pub topology_key: Arc<str>,
    /// Whether a pod that would break it is not scheduled (`DoNotSchedule`).
    pub hard: bool,
    /// The pods that are counted; `None` counts none.
    pub selector: Option<LabelSelector>,
    /// With fewer values than this, the smallest number counts as 0 (KEP-3022); 1 by default.
    pub min_domains: i32,
    /// Whether only nodes count that the pod's node affinity and selector allow (KEP-3094); the default.
    pub honors_affinity: bool,
    /// Whether only nodes count whose taints the pod tolerates (KEP-3094); not by default.
    pub honors_taints: bool,
}

impl SpreadConstraint {
    /// Reads a constraint of a pod with these labels; those named in `matchLabelKeys` (KEP-3243) join the selector.
    #[must_use]
    pub fn read(constraint: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let mut selector = read_selector(constraint.label_selector.as_ref());
        if let Some(known) = &selector {
            let keys = constraint.match_label_keys.iter().flatten();
            let same = keys.filter_map(|key| Some(equals(key, labels.get(key)?)));
            selector = Some(LabelSelector::new(same.chain(known.requirements().iter().cloned())));
        }
        let honors = |policy: &Option<String>, default: &str| policy.as_deref().unwrap_or(default) == "Honor";
        Self {
            max_skew: constraint.max_skew,
            topology_key: constraint.topology_key.as_str().into(),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            selector,
            min_domains: constraint.min_domains.unwrap_or(1),
            honors_affinity: honors(&constraint.node_affinity_policy, "Honor"),
            honors_taints: honors(&constraint.node_taints_policy, "Ignore"),
        }
    }

    /// All constraints of a pod.
    #[must_use]
    pub fn of(pod: &Pod, labels: &Labels) -> Vec<Self> {
        let constraints = pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_ref());
        constraints.into_iter().flatten().map(|constraint| Self::read(constraint, labels)).collect()
    }

    /// Whether the selector means a pod with these labels; namespaces are not looked at.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }

    /// How many of these pods count: those of the namespace that the selector means and that are not being deleted. An
    /// empty selector counts none, as upstream.
    #[must_use]
    pub fn count(&self, pods: &[Arc<PodInfo>], namespace: &str) -> i64 {
        let Some(selector) = self.selector.as_ref().filter(|selector| !selector.is_empty()) else { return 0 };
        let counts = |pod: &&Arc<PodInfo>| {
            !pod.deleting && *pod.namespace == *namespace && selector.matches(&pod.labels)
        };
        i64::try_from(pods.iter().filter(counts).count()).unwrap_or(i64::MAX)
    }

    /// Whether a node counts for this pod.
    #[must_use]
    pub fn includes(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let affinity = pod.required_affinity.as_ref();
        if self.honors_affinity
            && affinity.is_some_and(|affinity| !affinity.matches(&node.name, &node.labels))
        {
            return false;
        }
        let mut hard =
            node.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
        !self.honors_taints || hard.all(|taint| pod.tolerates(taint))
    }
}
