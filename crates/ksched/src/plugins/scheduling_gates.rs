//! Pods with `spec.schedulingGates` wait until the last gate is removed (KEP-3521).

use crate::{
    event::{ClusterEvent, Hint},
    groups::Groups,
    plugin::{PreEnqueue, QueueingHint, Verdict},
    pod::PodInfo,
};

const NAME: &str = "SchedulingGates";

/// Holds pods back as long as they have gates.
#[derive(Clone, Copy, Debug, Default)]
pub struct SchedulingGates;

impl PreEnqueue for SchedulingGates {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_enqueue(&self, pod: &PodInfo, _: &Groups) -> Verdict {
        if pod.gates.is_empty() {
            return Verdict::Pass;
        }
        Verdict::unresolvable(format!("waiting for scheduling gates: [{}]", pod.gates.join(" ")))
    }
}

impl QueueingHint for SchedulingGates {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, _pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(matches!(event, ClusterEvent::TargetUpdated { new, .. } if new.gates.is_empty()))
    }
}
