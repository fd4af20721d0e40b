//! Pods that need what not every node can do (KEP-5328).

use std::sync::Arc;

use k8s_openapi::api::core::v1::PodSpec;

use crate::{
    event::{ClusterEvent, Hint},
    plugin::{CycleState, FilterPlugin, PreFilter, PreFilterVerdict, QueueingHint, Verdict},
    pod::PodInfo,
    snapshot::{NodeView, Snapshot},
    track::{FilterTracker, Surroundings, Track},
};

const NAME: &str = "NodeDeclaredFeatures";
const REASON: &str = "node(s) didn't match Pod's required features";

/// What nodes may say in `status.declaredFeatures` that they can, as far as pods can ask for it by their specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u8);

impl Features {
    /// A container's end starts all of them again (KEP-5532).
    const RESTART_ALL: Self = Self(1);
    /// A user namespace in the host's network (KEP-5607).
    const HOST_NETWORK: Self = Self(2);

    /// What a pod needs.
    #[must_use]
    pub(crate) fn needed(spec: &PodSpec) -> Self {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let mut rules = containers.flat_map(|container| container.restart_policy_rules.iter().flatten());
        let restarts = rules.any(|rule| rule.action == "RestartAllContainers");
        let own_users = spec.host_network == Some(true) && spec.host_users == Some(false);
        let when = |needed: bool, feature: Self| if needed { feature.0 } else { 0 };
        Self(when(restarts, Self::RESTART_ALL) | when(own_users, Self::HOST_NETWORK))
    }

    /// What a node declares.
    #[must_use]
    pub(crate) fn declared(names: &[String]) -> Self {
        let known = names.iter().map(|name| match &**name {
            "RestartAllContainersOnContainerExits" => Self::RESTART_ALL.0,
            "UserNamespacesHostNetworkSupport" => Self::HOST_NETWORK.0,
            _ => 0,
        });
        Self(known.fold(0, |all, one| all | one))
    }

    fn are_in(self, declared: Self) -> bool {
        self.0 & !declared.0 == 0
    }
}

/// Rejects nodes that do not declare all that a pod needs: to start all containers again at the end of one, and user
/// namespaces in the host's network.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeDeclaredFeatures;

impl PreFilter for NodeDeclaredFeatures {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, _cycle: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilterVerdict {
        if pod.features == Features::default() { PreFilterVerdict::Skip } else { PreFilterVerdict::Pass }
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl FilterPlugin for NodeDeclaredFeatures {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        if pod.features.are_in(node.info().features) { Verdict::Pass } else { Verdict::unresolvable(REASON) }
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        Track::Node
    }
}

impl QueueingHint for NodeDeclaredFeatures {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(node) => pod.features.are_in(node.features),
            ClusterEvent::NodeUpdated { old, new } => {
                old.features != new.features && pod.features.are_in(new.features)
            }
            ClusterEvent::TargetUpdated { old, new } => old.features != new.features,
            _ => false,
        })
    }
}
