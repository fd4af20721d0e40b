//! A pod's claims must be bound, or be such that they can be bound on its node; then they are.

mod assume;
mod bind;
mod claims;
mod matching;
mod provision;

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass},
};

use self::{assume::Assumed, claims::Claims};
use crate::{
    booking::Booking,
    event::{ClusterEvent, Hint, ObjectEvent},
    plugin::{
        BindError, Binding, CycleState, FilterPlugin, PreBind, PreFilter, PreFilterVerdict, QueueingHint,
        Rejection, Reserve, Verdict,
    },
    pod::PodInfo,
    snapshot::{
        NodeView, Snapshot,
        catalog::{Catalog, Interest},
    },
    volumes,
};

const NAME: &str = "VolumeBinding";
/// How long the volumes of a pod may take to be bound (upstream's `bindTimeoutSeconds`).
pub const BIND_TIMEOUT: Duration = Duration::from_secs(600);

/// Rejects pods whose claims are missing, lost, being deleted or not bound though they should be, and nodes that the
/// volumes of bound claims can't be used from.
///
/// For claims of classes that bind on first use (`WaitForFirstConsumer`), the node must reach a volume that fits and is
/// free, or one must be possible to provision there: the class's `allowedTopologies` must match, and a driver that tells
/// its capacity must have enough of it (KEP-1472). Once the pod has its node the choice is assumed; before the pod is
/// bound it is written (a volume's `claimRef`, a claim's annotation `volume.kubernetes.io/selected-node`), and the pod
/// waits until the volume controller has bound all of them.
///
/// Volumes of drivers that have moved out of the tree are compared with nodes by the labels that they were made with.
#[derive(Clone, Copy, Debug)]
pub struct VolumeBinding {
    bind_timeout: Duration,
}

impl Default for VolumeBinding {
    fn default() -> Self {
        Self::new(BIND_TIMEOUT)
    }
}

impl VolumeBinding {
    /// With another time than [`BIND_TIMEOUT`] for volumes to be bound.
    #[must_use]
    pub fn new(bind_timeout: Duration) -> Self {
        Self { bind_timeout }
    }
}

impl PreFilter for VolumeBinding {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict {
        match Claims::read(pod, snapshot.catalog()) {
            Ok(claims) if claims.is_empty() => PreFilterVerdict::Skip,
            Ok(claims) => {
                cycle.put(claims);
                PreFilterVerdict::Pass
            }
            Err(text) => PreFilterVerdict::Reject(Rejection::unresolvable(text)),
        }
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl FilterPlugin for VolumeBinding {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, cycle: &CycleState, _pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        match cycle.get::<Claims>().map(|claims| claims.on(node.info())) {
            Some(Err(rejection)) => Verdict::Reject(rejection),
            Some(Ok(_)) | None => Verdict::Pass,
        }
    }
}

impl Reserve for VolumeBinding {
    fn name(&self) -> &str {
        NAME
    }

    fn concerns(&self, pod: &PodInfo, catalog: &Catalog) -> bool {
        volumes::claims(pod).any(|wanted| {
            volumes::claim(catalog, pod, &wanted.name).map_or(true, |claim| !volumes::is_bound(claim))
        })
    }

    fn reserve(&self, booking: &mut Booking<'_>) -> Verdict {
        let Some(claims) = booking.cycle.get::<Claims>() else { return Verdict::Pass };
        let Some(node) = booking.node_view() else { return Verdict::Pass };
        let choice = match claims.on(node.info()) {
            Ok(choice) => choice,
            Err(rejection) => return Verdict::Reject(rejection),
        };
        let node = std::sync::Arc::clone(booking.node);
        match assume::assume(booking.catalog_mut(), &choice, &node) {
            Ok(assumed) => {
                booking.cycle.put(assumed);
                Verdict::Pass
            }
            Err(error) => Verdict::unschedulable(error.to_string()),
        }
    }

    fn unreserve(&self, booking: &mut Booking<'_>) {
        let Some(assumed) = booking.cycle.get::<Assumed>().cloned() else { return };
        assumed.restore(booking.catalog_mut());
    }
}

#[async_trait]
impl PreBind for VolumeBinding {
    fn name(&self) -> &str {
        NAME
    }

    fn concerns(&self, pod: &PodInfo, catalog: &Catalog) -> bool {
        Reserve::concerns(self, pod, catalog)
    }

    async fn pre_bind(&self, binding: Binding<'_>) -> Result<(), BindError> {
        let Some(assumed) = binding.cycle.get::<Assumed>() else { return Ok(()) };
        let bound = bind::bind(binding, assumed, self.bind_timeout).await;
        bound.map_err(|error| BindError::Plugin { plugin: NAME.into(), source: error.into() })
    }
}

/// Whether what happened to an object besides pods and nodes may help.
fn helps(pod: &PodInfo, event: &ObjectEvent) -> bool {
    if let Some((_, Some(claim))) = event.of::<PersistentVolumeClaim>() {
        volumes::uses(pod, claim)
    } else if let Some((_, Some(_))) = event.of::<PersistentVolume>() {
        true
    } else if let Some((old, Some(new))) = event.of::<StorageClass>() {
        old.is_none_or(|old| old.allowed_topologies != new.allowed_topologies)
    } else if let Some((old, Some(new))) = event.of::<CSINode>() {
        let migrated = |node: &CSINode| {
            let annotations = node.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(MIGRATED_PLUGINS)).cloned()
        };
        old.is_none_or(|old| migrated(old) != migrated(new))
    } else if let Some((Some(old), Some(new))) = event.of::<CSIDriver>() {
        let counts = |driver: &CSIDriver| driver.spec.storage_capacity == Some(true);
        let name = new.metadata.name.as_deref();
        let mut inline = volumes::volumes(pod).iter().filter_map(|volume| volume.csi.as_ref());
        counts(old) && !counts(new) && inline.any(|source| Some(&*source.driver) == name)
    } else if let Some((old, Some(new))) = event.of::<CSIStorageCapacity>() {
        let limit = |pool: Option<&CSIStorageCapacity>| pool.and_then(provision::largest_volume);
        old.is_none() || limit(Some(new)) > limit(old)
    } else {
        false
    }
}

/// The annotation of a `CSINode` that names the drivers which have moved out of the tree there.
const MIGRATED_PLUGINS: &str = "storage.alpha.kubernetes.io/migrated-plugins";

impl QueueingHint for VolumeBinding {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeUpdated { old, new } => old.labels != new.labels,
            ClusterEvent::Object(event) => helps(pod, event),
            _ => false,
        })
    }

    fn interests(&self) -> Vec<Interest> {
        vec![
            Interest::of::<PersistentVolumeClaim>(),
            Interest::of::<PersistentVolume>(),
            Interest::of::<StorageClass>(),
            Interest::of::<CSINode>(),
            Interest::of::<CSIDriver>(),
            Interest::of::<CSIStorageCapacity>(),
        ]
    }
}

#[cfg(test)]
mod tests;
