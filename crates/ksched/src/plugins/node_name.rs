//! A pod that names its node goes there or nowhere.

use std::sync::Arc;

use crate::{
    event::{ClusterEvent, Hint},
    plugin::{CycleState, FilterPlugin, QueueingHint, Verdict},
    pod::PodInfo,
    snapshot::NodeView,
    track::{FilterTracker, Surroundings, Track},
};

const NAME: &str = "NodeName";
const REASON: &str = "node(s) didn't match the requested node name";

/// Lets only the node named by `spec.nodeName` pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeName;

impl FilterPlugin for NodeName {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        match pod.node_name.as_deref() {
            Some(name) if name != node.name() => Verdict::unresolvable(REASON),
            _ => Verdict::Pass,
        }
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        Track::Node
    }
}

impl QueueingHint for NodeName {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        let wanted = pod.node_name.as_deref();
        Hint::queue_if(
            matches!(event, ClusterEvent::NodeAdded(node) if wanted.is_none_or(|name| name == &*node.name)),
        )
    }
}
