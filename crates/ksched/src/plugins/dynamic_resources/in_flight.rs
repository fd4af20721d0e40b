//! Devices that are taken though no status says so yet (upstream's `inFlightAllocations`).

use std::{collections::HashSet, sync::Arc};

use ahash::RandomState;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

use crate::{
    devices::Allocated,
    plugins::dynamic_resources::{claims, extended},
    pod::PodInfo,
    snapshot::catalog::Catalog,
};

/// What will be written into a claim. It stands in the catalog under the claim's name, and not in the place of the claim: it
/// must outlive the write of the claim's finalizer, which comes before that of its status.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    claim: Arc<ResourceClaim>,
    allocation: AllocationResult,
    /// The pods that are on their way with it.
    holders: Vec<Arc<str>>,
    /// Their group.
    group: Option<Arc<str>>,
}

impl InFlight {
    /// What a pod may use of it: those of one gang go together, the others wait until it is written.
    pub(super) fn for_pod(&self, pod: &PodInfo) -> Option<&AllocationResult> {
        (pod.group.is_some() && pod.group == self.group).then_some(&self.allocation)
    }
}

/// What is in flight of a claim.
pub(super) fn of<'a>(catalog: &'a Catalog, claim: &ResourceClaim) -> Option<&'a InFlight> {
    let (namespace, name) = claims::key(claim);
    let found = catalog.get::<InFlight>(namespace, name)?;
    (found.claim.metadata.uid == claim.metadata.uid).then_some(found)
}

/// All devices that are taken. Costs time in the order of the number of claims.
pub(super) fn allocated(catalog: &Catalog) -> Allocated {
    let mut allocated = Allocated::default();
    // The pods whose extended resources have a claim by now, under another name than in flight.
    let mut extended: HashSet<&str, RandomState> = HashSet::default();
    for claim in catalog.list::<ResourceClaim>() {
        let written = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
        if let Some(allocation) = written {
            allocated.add(allocation);
            extended.extend(extended::owner(claim));
        }
    }
    for in_flight in catalog.list::<InFlight>() {
        if extended::is_in_memory(&in_flight.claim)
            && extended::owner(&in_flight.claim).is_some_and(|owner| extended.contains(owner))
        {
            continue;
        }
        // Once it is written, it must not count twice.
        let (namespace, name) = claims::key(&in_flight.claim);
        let claim = catalog.get::<ResourceClaim>(namespace, name);
        let status = claim.and_then(|claim| claim.status.as_ref());
        if status.is_none_or(|status| status.allocation.is_none()) {
            allocated.add(&in_flight.allocation);
        }
    }
    allocated
}

pub(super) fn add(
    catalog: &mut Catalog,
    claim: &Arc<ResourceClaim>,
    allocation: &AllocationResult,
    pod: &PodInfo,
) {
    let (namespace, name) = claims::key(claim);
    let mut holders = of(catalog, claim).map(|known| known.holders.clone()).unwrap_or_default();
    if !holders.contains(&pod.uid) {
        holders.push(Arc::clone(&pod.uid));
    }
    let in_flight = InFlight {
        claim: Arc::clone(claim),
        allocation: allocation.clone(),
        holders,
        group: pod.group.clone(),
    };
    catalog.put(namespace, name, Arc::new(in_flight));
}

/// A pod does not need it any more: it is written, or the pod goes elsewhere.
pub(super) fn remove(catalog: &mut Catalog, claim: &ResourceClaim, pod: &str) {
    let (namespace, name) = claims::key(claim);
    let Some(known) = of(catalog, claim) else { return };
    let mut left = known.clone();
    left.holders.retain(|holder| **holder != *pod);
    if left.holders.is_empty() {
        catalog.remove::<InFlight>(namespace, name);
    } else {
        catalog.put(namespace, name, Arc::new(left));
    }
}
