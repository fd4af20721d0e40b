//! Conditions of devices that must hold before a pod is bound (KEP-5007).

use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, DeviceRequestAllocationResult, ResourceClaim, ResourceClaimStatus,
};

/// What the devices of a claim say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    NotYet,
    /// They will not be; why.
    Failed(String),
}

/// The devices of a claim.
pub(super) fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.and_then(|devices| devices.results.as_ref()).into_iter().flatten()
}

fn device_status<'a>(
    status: Option<&'a ResourceClaimStatus>,
    of: &DeviceRequestAllocationResult,
) -> Option<&'a AllocatedDeviceStatus> {
    let mut all = status?.devices.iter().flatten();
    all.find(|known| known.device == of.device && known.driver == of.driver && known.pool == of.pool)
}

/// Whether a device has conditions that must hold.
pub(super) fn waits(result: &DeviceRequestAllocationResult) -> bool {
    result.binding_conditions.as_ref().is_some_and(|all| !all.is_empty())
}

/// Whether the claim waits for any conditions.
pub(super) fn has_any(claim: &ResourceClaim) -> bool {
    results(claim).any(waits)
}

/// Whether an allocated claim is ready (upstream's `isClaimReadyForBinding`).
pub(super) fn readiness(claim: &ResourceClaim) -> Readiness {
    for result in results(claim) {
        let wanted = result.binding_conditions.as_deref().unwrap_or_default();
        if wanted.is_empty() {
            continue;
        }
        let Some(status) = device_status(claim.status.as_ref(), result) else { return Readiness::NotYet };
        let is_true = |name: &String| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.find(|condition| condition.type_ == *name && condition.status == "True")
        };
        let failed = result.binding_failure_conditions.iter().flatten().find_map(is_true);
        if let Some(failed) = failed {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let (reason, message) = (&failed.reason, &failed.message);
            return Readiness::Failed(format!(
                "device binding failed: claim={name}, reason={reason}, message={message:?}"
            ));
        }
        if !wanted.iter().all(|name| is_true(name).is_some()) {
            return Readiness::NotYet;
        }
    }
    Readiness::Ready
}
