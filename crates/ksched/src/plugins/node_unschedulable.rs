//! Cordoned nodes take pods only that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use std::sync::Arc;

use crate::{
    event::{ClusterEvent, Hint},
    plugin::{CycleState, FilterPlugin, QueueingHint, Verdict},
    pod::PodInfo,
    snapshot::NodeView,
    track::{FilterTracker, Surroundings, Track},
};

const NAME: &str = "NodeUnschedulable";
const REASON: &str = "node(s) were unschedulable";

/// Rejects nodes with `spec.unschedulable`, unless the pod tolerates `node.kubernetes.io/unschedulable:NoSchedule`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeUnschedulable;

fn tolerates_cordon(pod: &PodInfo) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    pod.tolerates(&taint)
}

impl FilterPlugin for NodeUnschedulable {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        if !node.snapshot().columns().unschedulable.contains(node.index()) || tolerates_cordon(pod) {
            return Verdict::Pass;
        }
        Verdict::unresolvable(REASON)
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        Track::Node
    }
}

impl QueueingHint for NodeUnschedulable {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(node) => !node.unschedulable,
            ClusterEvent::NodeUpdated { old, new } => old.unschedulable && !new.unschedulable,
            ClusterEvent::TargetUpdated { new, .. } => {
                tolerates_cordon(new) && new.tolerations.len() != pod.tolerations.len()
            }
            _ => false,
        })
    }
}
