//! What of the devices is taken.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use ahash::RandomState;
use k8s_openapi::api::resource::v1::AllocationResult;
use kcore::Quantity;

use crate::devices::capacity::amounts;

/// Names a device: driver, pool and device, joined by slashes. Of the three only the pool may have slashes of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// The device of this driver, pool and name.
    #[must_use]
    pub fn new(driver: &str, pool: &str, device: &str) -> Self {
        let mut text = String::with_capacity(driver.len() + pool.len() + device.len() + 2);
        for part in [driver, "/", pool, "/", device] {
            text.push_str(part);
        }
        Self(text.into())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is taken of a device that many share.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    /// By capacity; `None` when no share says what it takes.
    pub(super) capacity: Option<BTreeMap<String, Quantity>>,
}

/// The devices that claims have. Those with admin access don't count (KEP-5018).
#[derive(Clone, Debug, Default)]
pub struct Allocated {
    dedicated: HashSet<DeviceId, RandomState>,
    shared: HashMap<DeviceId, Shares, RandomState>,
}

impl Allocated {
    /// Counts what a claim was given.
    pub fn add(&mut self, allocation: &AllocationResult) {
        for result in allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten()) {
            if result.admin_access == Some(true) {
                continue;
            }
            let id = DeviceId::new(&result.driver, &result.pool, &result.device);
            if result.share_id.is_none() {
                self.dedicated.insert(id);
                continue;
            }
            let shares = self.shared.entry(id).or_default();
            if let Some(consumed) = &result.consumed_capacity {
                let capacity = shares.capacity.get_or_insert_default();
                for (name, amount) in amounts(Some(consumed)) {
                    *capacity.entry(name).or_default() += amount;
                }
            }
        }
    }

    /// Whether a claim has the whole device.
    #[must_use]
    pub fn is_taken(&self, device: &DeviceId) -> bool {
        self.dedicated.contains(device)
    }

    /// Whether a claim has the device or a part of it.
    #[must_use]
    pub fn is_used(&self, device: &DeviceId) -> bool {
        self.dedicated.contains(device) || self.shared.contains_key(device)
    }

    pub(super) fn shared_capacity(&self, device: &DeviceId) -> Option<&BTreeMap<String, Quantity>> {
        self.shared.get(device)?.capacity.as_ref()
    }
}
