//! The devices that there are, kept for many pods; and how many of them stand for an extended resource on a node (KEP-5004).

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::resource::v1::{DeviceClass, ResourceSlice};
use smallvec::SmallVec;

use crate::{
    devices::{Allocated, Inventory, Selectors, totals},
    node::NodeInfo,
    plugins::dynamic_resources::{extended, in_flight},
    snapshot::catalog::{Catalog, Version},
};

/// What is the same for many pods.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    pub(super) selectors: Selectors,
    inventory: Mutex<(Version, Arc<Inventory>)>,
}

impl Offered {
    /// The devices, read again only when a slice has changed.
    pub(super) fn inventory(&self, catalog: &Catalog) -> Arc<Inventory> {
        let version = catalog.version::<ResourceSlice>();
        let mut kept = self.inventory.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 != version {
            *kept = (version, Arc::new(Inventory::of(catalog)));
        }
        Arc::clone(&kept.1)
    }

    /// For counting the devices that stand for these resources; `None` when there are none.
    pub(crate) fn left<'a>(
        &'a self,
        resources: impl Iterator<Item = &'a Arc<str>>,
        catalog: &Catalog,
    ) -> Option<Left<'a>> {
        let asked = resources.filter(|name| extended::may_be(name));
        let classes = asked.filter_map(|name| Some((&**name, Arc::clone(extended::class(catalog, name)?))));
        let classes: SmallVec<[_; 2]> = classes.collect();
        (!classes.is_empty()).then(|| Left {
            offered: self,
            inventory: self.inventory(catalog),
            allocated: in_flight::allocated(catalog),
            classes,
        })
    }
}

/// What is left of devices that stand for extended resources.
#[derive(Debug)]
pub(crate) struct Left<'a> {
    offered: &'a Offered,
    inventory: Arc<Inventory>,
    allocated: Allocated,
    classes: SmallVec<[(&'a str, Arc<DeviceClass>); 2]>,
}

impl Left<'_> {
    /// How many devices there are for a resource on a node, and how many of them are taken. None when that can't be told.
    pub(crate) fn of(&self, resource: &str, node: &NodeInfo) -> (i64, i64) {
        let Some((_, class)) = self.classes.iter().find(|(name, _)| *name == resource) else { return (0, 0) };
        let Offered { selectors, .. } = self.offered;
        let found = totals(class, &self.inventory, &self.allocated, selectors, node);
        found.unwrap_or_else(|error| {
            tracing::debug!(error, resource, node = %node.name, "the devices of a node can't be counted");
            (0, 0)
        })
    }
}
