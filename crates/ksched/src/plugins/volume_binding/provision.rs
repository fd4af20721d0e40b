//! Whether a volume can be made for a claim (upstream's `checkVolumeProvisions` and `hasEnoughCapacity`).

use k8s_openapi::api::{
    core::v1::PersistentVolumeClaim,
    storage::v1::{CSIDriver, CSIStorageCapacity, StorageClass},
};
use kcore::{Labels, Quantity, selector::LabelSelector};

use crate::{plugins::volume_binding::claims::size, pod_affinity::read_selector, snapshot::catalog::Catalog};

/// The provisioner of classes whose volumes are made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Why there can't be a volume on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Impossible {
    /// The class makes none, or none there.
    Here,
    /// No pool that the node reaches has enough room.
    NoSpace,
}

/// Where volumes of a class can be made.
pub(super) struct Provisioning {
    /// Whether the class makes volumes.
    makes: bool,
    /// Any of these, each of which asks for values of labels; none is everywhere.
    topologies: Vec<Vec<(String, Vec<String>)>>,
    /// The nodes that reach a pool with room for the claim; `None` when the driver does not tell.
    pools: Option<Vec<LabelSelector>>,
}

impl Provisioning {
    pub(super) fn of(claim: &PersistentVolumeClaim, class: &StorageClass, catalog: &Catalog) -> Self {
        let makes = !class.provisioner.is_empty() && class.provisioner != NO_PROVISIONER;
        let topologies = class.allowed_topologies.iter().flatten().map(|term| {
            let all = term.match_label_expressions.iter().flatten();
            all.map(|wanted| (wanted.key.clone(), wanted.values.clone())).collect()
        });
        let topologies = topologies.collect();
        Self { makes, topologies, pools: if makes { pools(claim, class, catalog) } else { None } }
    }

    /// Whether one can be made that is used from a node with these labels.
    pub(super) fn on(&self, labels: &Labels) -> Result<(), Impossible> {
        // A term without requirements matches nothing (upstream's `MatchTopologySelectorTerms`).
        let within = |term: &Vec<(String, Vec<String>)>| {
            let is_met = |(key, values): &(String, Vec<String>)| {
                labels.get(key).is_some_and(|value| values.iter().any(|known| known == value))
            };
            !term.is_empty() && term.iter().all(is_met)
        };
        if !self.makes || !(self.topologies.is_empty() || self.topologies.iter().any(within)) {
            return Err(Impossible::Here);
        }
        let reaches = |pools: &Vec<LabelSelector>| pools.iter().any(|pool| pool.matches(labels));
        if self.pools.as_ref().is_none_or(reaches) { Ok(()) } else { Err(Impossible::NoSpace) }
    }
}

/// The largest volume that can be made of a pool, in bytes.
pub(super) fn largest_volume(pool: &CSIStorageCapacity) -> Option<i64> {
    let limit = pool.maximum_volume_size.as_ref().or(pool.capacity.as_ref())?;
    Quantity::parse(&limit.0).ok().map(|limit| limit.value())
}

fn pools(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    catalog: &Catalog,
) -> Option<Vec<LabelSelector>> {
    let resources = claim.spec.as_ref()?.resources.as_ref()?;
    resources.requests.as_ref()?.get("storage")?;
    let driver = catalog.get::<CSIDriver>("", &class.provisioner)?;
    if driver.spec.storage_capacity != Some(true) {
        return None;
    }
    let size = size(claim).value();
    let all = catalog.list::<CSIStorageCapacity>().filter(|pool| {
        Some(&pool.storage_class_name) == class.metadata.name.as_ref()
            && largest_volume(pool).is_some_and(|limit| limit >= size)
    });
    Some(all.filter_map(|pool| read_selector(pool.node_topology.as_ref())).collect())
}
