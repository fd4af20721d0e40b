//! What making room by removing pods of lower priority would do.

use std::fmt::Write;

use crate::{
    decision::Diagnosis,
    plugin::{CycleState, Finality, PostFilter, PostFilterVerdict, Rejection},
    pod::PodInfo,
    snapshot::Snapshot,
};

/// Says, in upstream's words, why no pod of lower priority is removed. It never removes one: where upstream would look
/// for victims, the nodes are counted under a reason of their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultPreemption;

impl PostFilter for DefaultPreemption {
    fn name(&self) -> &str {
        "DefaultPreemption"
    }

    fn post_filter(
        &self,
        _cycle: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        diagnosis: &Diagnosis,
    ) -> PostFilterVerdict {
        let policy = pod.object.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref());
        if policy == Some("Never") {
            let reason = "preemption: not eligible due to preemptionPolicy=Never.";
            return PostFilterVerdict::Reject(Rejection::unschedulable(reason));
        }
        let (mut no_victims, mut with_victims) = (0, 0);
        for (node, finality) in diagnosis.finalities() {
            if finality == Finality::Unschedulable {
                let is_lower = snapshot.node(node).pods().iter().any(|other| other.priority < pod.priority);
                *(if is_lower { &mut with_victims } else { &mut no_victims }) += 1;
            }
        }
        let counts = [
            (no_victims, "No preemption victims found for incoming pod"),
            (diagnosis.nodes - no_victims - with_victims, "Preemption is not helpful for scheduling"),
            (with_victims, "Preemption is not done by this scheduler"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let mut reasons: Vec<_> = counts.map(|(count, reason)| format!("{count} {reason}")).collect();
        reasons.sort_unstable();
        let mut text = format!("preemption: 0/{} nodes are available:", diagnosis.nodes);
        let _ = write!(text, " {}.", reasons.join(", "));
        PostFilterVerdict::Reject(Rejection::unschedulable(text))
    }
}
