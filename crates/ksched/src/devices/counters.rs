//! The counters that the devices of a pool share (KEP-4815).

use std::collections::BTreeMap;

use kcore::Quantity;

use crate::devices::{
    allocated::Allocated,
    inventory::{Counters, DeviceInfo, SliceInfo},
};

/// What is left of the counters of a pool.
#[derive(Clone, Debug)]
pub(super) struct CounterState {
    left: Counters,
}

impl CounterState {
    /// After what devices take that are allocated.
    pub(super) fn new(
        sets: &BTreeMap<&str, &BTreeMap<String, Quantity>>,
        slices: &[&SliceInfo],
        others: &[&SliceInfo],
        allocated: &Allocated,
    ) -> Self {
        let left = sets.iter().map(|(name, set)| ((*name).to_owned(), (*set).clone())).collect();
        let mut state = Self { left };
        for device in slices.iter().chain(others).flat_map(|slice| &slice.devices) {
            if !device.consumes.is_empty() && allocated.is_used(&device.id) {
                state.change(device, false);
            }
        }
        state
    }

    /// Takes what a device needs, if it is there. A counter that is overdrawn stops all devices that need counters.
    pub(super) fn take(&mut self, device: &DeviceInfo) -> bool {
        self.change(device, false);
        let ok = self.left.values().flat_map(BTreeMap::values).all(|left| !left.is_negative());
        if !ok {
            self.give_back(device);
        }
        ok
    }

    pub(super) fn give_back(&mut self, device: &DeviceInfo) {
        self.change(device, true);
    }

    fn change(&mut self, device: &DeviceInfo, give: bool) {
        for (set, consumed) in &device.consumes {
            let Some(set) = self.left.get_mut(set) else { continue };
            for (name, amount) in consumed {
                if let Some(left) = set.get_mut(name) {
                    *left = if give { *left + *amount } else { *left - *amount };
                }
            }
        }
    }
}
