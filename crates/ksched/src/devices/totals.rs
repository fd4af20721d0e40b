//! How many devices of a class there are on a node, for scores.

use k8s_openapi::api::resource::v1::DeviceClass;

use crate::{
    devices::{
        Allocated, Inventory, Selectors,
        selector::{self, Selector},
    },
    node::NodeInfo,
};

/// How many devices of a class a node can reach, and how many of them claims have. Which other devices go with them does not count,
/// nor whether a pool is complete (upstream's `calculateDRAResourceTotals`).
///
/// # Errors
/// When a selector of the class fails.
pub fn totals(
    class: &DeviceClass,
    inventory: &Inventory,
    allocated: &Allocated,
    selectors: &Selectors,
    node: &NodeInfo,
) -> Result<(i64, i64), String> {
    let expressions = class.spec.iter().flat_map(|spec| spec.selectors.iter().flatten());
    let expressions = expressions.filter_map(|selector| selector.cel.as_ref());
    let name = class.metadata.name.as_deref().unwrap_or_default();
    let labelled = expressions.enumerate().map(|(number, cel)| {
        Selector::new(format!("class {name}: selector #{number}"), &cel.expression, selectors)
    });
    let wanted: Vec<Selector> = labelled.collect();
    let (mut there, mut taken) = (0, 0);
    for slice in inventory.slices_for(node) {
        let by_device = slice.is_per_device();
        if !by_device && !slice.reach.includes(node) {
            continue;
        }
        for device in slice.devices.iter().filter(|device| !by_device || device.reach.includes(node)) {
            if selector::matches(&wanted, device)? {
                there += 1;
                taken += i64::from(allocated.is_used(&device.id));
            }
        }
    }
    Ok((there, taken))
}
