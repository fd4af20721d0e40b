//! Pods get the devices that their resource claims ask for (KEP-4381).

mod bind;
mod claims;
mod conditions;
pub(crate) mod extended;
mod in_flight;
mod notes;
pub(crate) mod offered;
mod repair;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};

use self::{bind::Booked, notes::Notes, offered::Offered};
use crate::{
    booking::Booking,
    devices::{STEPS_LIMIT_MAX, STEPS_MAX},
    event::{ClusterEvent, Hint, ObjectEvent},
    groups::Groups,
    plugin::{
        BindError, Binding, CycleState, FilterPlugin, PostFilter, PostFilterVerdict, PreBind, PreEnqueue,
        PreFilter, PreFilterVerdict, PreScore, PreScoreVerdict, QueueingHint, Rejection, Reserve,
        ScorePlugin, Verdict, normalize_by_max,
    },
    pod::PodInfo,
    snapshot::{
        NodeIndex, NodeView, Snapshot,
        catalog::{Catalog, Interest},
    },
    track::{FilterTracker, ScoreTracker, Surroundings, Track},
    trial::Attempt,
};

const NAME: &str = "DynamicResources";
/// How long devices may take to be ready for a pod (upstream's `DynamicResourcesBindingTimeoutDefault`).
pub const BINDING_TIMEOUT: Duration = Duration::from_secs(600);
/// How long the search for devices on one node may take by default (upstream's `filterTimeout`).
pub const FILTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds devices for the claims of pods, by [`devices`](crate::devices): a node will do when all claims that have none yet
/// can have theirs there, and those that have can be used from there.
///
/// Once the pod has its node its devices are taken, for other pods at once; before the pod is bound they are written into
/// the status of the claims, and the claims are reserved for it. If devices say so in `bindingConditions` (KEP-5007), the pod
/// waits until their driver has set these conditions. When no node is left because a claim that only this pod uses was
/// allocated elsewhere, the claim is deallocated.
///
/// Pods without claims are none of its business and cost it nothing.
///
/// Extended resources that a device class stands for (KEP-5004) are devices on nodes that don't have them otherwise: a claim is
/// made for them when the pod is bound, and the pod's status tells which container gets what of it. Where such a resource counts in
/// the scores of [`NodeResourcesFit`](super::NodeResourcesFit) and [`BalancedAllocation`](super::BalancedAllocation), its devices do.
///
/// What upstream's does besides: claims of a whole `PodGroup`.
#[derive(Clone, Debug)]
pub struct DynamicResources {
    binding_timeout: Duration,
    kept: Arc<Kept>,
}

/// What is the same for many pods.
#[derive(Debug)]
struct Kept {
    offered: Offered,
    /// How many steps a search for devices on one node may take.
    steps_max: u64,
}

impl Default for DynamicResources {
    fn default() -> Self {
        Self::new(BINDING_TIMEOUT)
    }
}

impl DynamicResources {
    /// With another time than [`BINDING_TIMEOUT`] for devices to be ready.
    #[must_use]
    pub fn new(binding_timeout: Duration) -> Self {
        Self { binding_timeout, kept: Kept::new(STEPS_MAX) }
    }

    /// With another time than [`FILTER_TIMEOUT`] for the search on one node (upstream's `filterTimeout`). So that the answer does not
    /// depend on the machine, it is steps that are counted: [`STEPS_MAX`] of them for [`FILTER_TIMEOUT`], and in proportion for
    /// other times. Zero, which is without a limit upstream, allows [`STEPS_LIMIT_MAX`].
    #[must_use]
    pub fn with_filter_timeout(self, timeout: Duration) -> Self {
        let steps = u128::from(STEPS_MAX) * timeout.as_nanos() / FILTER_TIMEOUT.as_nanos();
        let steps =
            if timeout.is_zero() { STEPS_LIMIT_MAX } else { u64::try_from(steps).unwrap_or(STEPS_LIMIT_MAX) };
        Self { kept: Kept::new(steps.clamp(1, STEPS_LIMIT_MAX)), ..self }
    }
}

impl Kept {
    fn new(steps_max: u64) -> Arc<Self> {
        Arc::new(Self { offered: Offered::default(), steps_max })
    }
}

/// Whether a pod has claims, or asks for what devices stand for.
fn concerns(pod: &PodInfo, catalog: &Catalog) -> bool {
    claims::has_any(pod) || extended::concerns(pod, catalog)
}

impl PreEnqueue for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_enqueue(&self, pod: &PodInfo, _: &Groups) -> Verdict {
        let names: Result<Vec<_>, _> = claims::names(pod).collect();
        names.map_or_else(Verdict::unresolvable, |_| Verdict::Pass)
    }
}

impl PreFilter for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict {
        if !concerns(pod, snapshot.catalog()) {
            return PreFilterVerdict::Skip;
        }
        match Notes::read(&self.kept, pod, snapshot.catalog()) {
            Ok(notes) if notes.is_empty() => PreFilterVerdict::Skip,
            Ok(notes) => {
                cycle.put(notes);
                PreFilterVerdict::Pass
            }
            Err(reason) => PreFilterVerdict::Reject(Rejection::unresolvable(reason)),
        }
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl FilterPlugin for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let verdict = cycle.get::<Notes>().map_or(Ok(()), |notes| notes.on(&self.kept, pod, node));
        verdict.map_or_else(Verdict::unresolvable, |()| Verdict::Pass)
    }

    fn track(&self, pod: &Arc<PodInfo>, around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        if concerns(pod, around.snapshot.catalog()) { Track::Anew } else { Track::Node }
    }
}

impl PostFilter for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn post_filter(&self, attempt: &Attempt<'_>) -> PostFilterVerdict {
        let Some(notes) = attempt.cycle().get::<Notes>() else {
            return PostFilterVerdict::Reject(Rejection::unschedulable("no new claims to deallocate"));
        };
        match notes.to_deallocate(attempt.pod(), attempt.seed()) {
            Some(claim) => PostFilterVerdict::Repair(
                Arc::new(repair::Deallocate::new(claim)),
                Rejection::unschedulable("deallocation of ResourceClaim completed"),
            ),
            None if let Some(stale) = notes.stale() => PostFilterVerdict::Repair(
                Arc::new(repair::Discard::new(Arc::clone(stale))),
                Rejection::unschedulable("deletion of ResourceClaim completed"),
            ),
            None => PostFilterVerdict::Reject(Rejection::unschedulable("still not schedulable")),
        }
    }
}

impl PreScore for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_score(
        &self,
        cycle: &mut CycleState,
        _: &PodInfo,
        _: &Snapshot,
        _: &[NodeIndex],
    ) -> PreScoreVerdict {
        // Without alternatives all nodes are equals.
        let matters = cycle.get::<Notes>().is_some_and(Notes::has_alternatives);
        if matters { PreScoreVerdict::Pass } else { PreScoreVerdict::Skip }
    }
}

impl ScorePlugin for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, cycle: &CycleState, _: &PodInfo, node: NodeView<'_>) -> i64 {
        cycle.get::<Notes>().map_or(0, |notes| notes.score(node.name()))
    }

    fn track(&self, pod: &Arc<PodInfo>, around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        if concerns(pod, around.snapshot.catalog()) { Track::Anew } else { Track::Node }
    }

    fn normalize(&self, _: &CycleState, _: &PodInfo, scores: &mut [i64]) {
        normalize_by_max(scores, false);
    }
}

impl Reserve for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn concerns(&self, pod: &PodInfo, catalog: &Catalog) -> bool {
        concerns(pod, catalog)
    }

    fn reserve(&self, booking: &mut Booking<'_>) -> Verdict {
        match self.book(booking) {
            Ok(booked) => {
                booking.cycle.put(booked);
                Verdict::Pass
            }
            Err(reason) => Verdict::unresolvable(reason),
        }
    }

    fn unreserve(&self, booking: &mut Booking<'_>) {
        self.settle(booking);
    }

    fn settle(&self, booking: &mut Booking<'_>) {
        let Some(booked) = booking.cycle.get::<Booked>().cloned() else { return };
        let uid = Arc::clone(&booking.pod.uid);
        for claim in booked.claims() {
            in_flight::remove(booking.catalog_mut(), claim, &uid);
        }
    }
}

impl DynamicResources {
    /// Takes the devices. Others of the same gang may have taken some since the decision, so what was found then is looked
    /// for again when anything has changed.
    fn book(&self, booking: &mut Booking<'_>) -> Result<Booked, String> {
        let catalog = booking.snapshot().catalog();
        let known = booking.cycle.get::<Notes>();
        let fresh = match known.filter(|notes| notes.is_current(catalog)) {
            Some(_) => None,
            None => Some(Notes::read(&self.kept, booking.pod, catalog)?),
        };
        let Some(notes) = fresh.as_ref().or(known) else { return Ok(Booked::default()) };
        if fresh.is_some() {
            let node = booking.node_view().ok_or_else(|| format!("node {:?} not found", booking.node))?;
            notes.on(&self.kept, booking.pod, node)?;
        }
        let booked = notes.booked(booking.node)?;
        let pod = Arc::clone(booking.pod);
        for (claim, allocation) in booked.allocations() {
            in_flight::add(booking.catalog_mut(), claim, allocation, &pod);
        }
        Ok(booked)
    }
}

#[async_trait]
impl PreBind for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn concerns(&self, pod: &PodInfo, catalog: &Catalog) -> bool {
        Reserve::concerns(self, pod, catalog)
    }

    async fn pre_bind(&self, binding: Binding<'_>) -> Result<(), BindError> {
        let Some(booked) = binding.cycle.get::<Booked>() else { return Ok(()) };
        let bound = bind::bind(binding, booked, self.binding_timeout).await;
        bound.map_err(|error| BindError::Plugin { plugin: NAME.into(), source: error.into() })
    }
}

/// Whether what happened to an object may help (upstream's `isSchedulableAfterClaimChange` and its like).
fn helps(pod: &PodInfo, event: &ObjectEvent) -> bool {
    if let Some((old, Some(new))) = event.of::<ResourceClaim>() {
        let allocated =
            |claim: &ResourceClaim| claim.status.as_ref().is_some_and(|status| status.allocation.is_some());
        let freed = old.is_some_and(|old| allocated(old) && !allocated(new));
        freed || claims::uses(pod, new) && old.is_none_or(|old| old.status != new.status)
    } else if let Some((Some(old), None)) = event.of::<ResourceClaim>() {
        let had_devices = old.status.as_ref().is_some_and(|status| status.allocation.is_some());
        had_devices || extended::owner(old) == Some(&*pod.uid)
    } else if let Some((_, new)) = event.of::<DeviceClass>() {
        new.is_some()
    } else if let Some((_, new)) = event.of::<ResourceSlice>() {
        new.is_some()
    } else {
        false
    }
}

impl QueueingHint for DynamicResources {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeUpdated { old, new } => {
                old.labels != new.labels || old.allocatable != new.allocatable
            }
            ClusterEvent::TargetUpdated { new, .. } => claims::names(new).all(|name| name.is_ok()),
            // Its devices were taken, but perhaps never written.
            ClusterEvent::PodGone(gone) => claims::has_any(gone) || extended::may_concern(gone),
            ClusterEvent::Object(event) => helps(pod, event),
            _ => false,
        })
    }

    fn interests(&self) -> Vec<Interest> {
        vec![Interest::of::<ResourceClaim>(), Interest::of::<DeviceClass>(), Interest::of::<ResourceSlice>()]
    }
}
