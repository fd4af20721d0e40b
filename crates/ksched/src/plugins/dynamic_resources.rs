//! Pods with resource claims (KEP-4381).

use crate::{
    plugin::{CycleState, PostFilter, PostFilterVerdict, PreFilter, PreFilterVerdict, Rejection},
    pod::PodInfo,
    snapshot::Snapshot,
    trial::Attempt,
};

const NAME: &str = "DynamicResources";

/// Keeps pods with `spec.resourceClaims` from nodes: devices are not allocated by this scheduler, and without them such
/// a pod could not start. Says of all pods that no claim can be given back to help them.
#[derive(Clone, Copy, Debug, Default)]
pub struct DynamicResources;

impl PreFilter for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, _cycle: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilterVerdict {
        let claims = pod.object.spec.as_ref().and_then(|spec| spec.resource_claims.as_ref());
        if claims.is_none_or(Vec::is_empty) {
            return PreFilterVerdict::Skip;
        }
        PreFilterVerdict::Reject(Rejection::unresolvable(
            "resource claims can't be allocated by this scheduler",
        ))
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl PostFilter for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn post_filter(&self, _attempt: &Attempt<'_>) -> PostFilterVerdict {
        PostFilterVerdict::Reject(Rejection::unschedulable("no new claims to deallocate"))
    }
}
