//! The pools that a node can take devices from (upstream's `GatherPools`).

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    devices::inventory::{Inventory, PoolId, SliceInfo},
    node::NodeInfo,
};

/// A pool as seen from a node.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    pub(super) id: PoolId,
    pub(super) state: PoolState<'a>,
}

#[derive(Debug)]
pub(super) enum PoolState<'a> {
    /// Slices are missing: it is being changed. Nothing is taken from it, and "all" can't be told.
    Incomplete,
    /// It contradicts itself.
    Invalid,
    Complete {
        /// The slices with devices for the node, by name.
        slices: Vec<&'a SliceInfo>,
        /// Others, whose devices take of the same counters.
        others: Vec<&'a SliceInfo>,
        counter_sets: BTreeMap<&'a str, &'a BTreeMap<String, kcore::Quantity>>,
    },
}

impl Pool<'_> {
    /// `driver/pool`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.id.0, self.id.1)
    }

    /// Pools with devices that may fail to come up are taken from last (KEP-5007).
    fn has_binding_conditions(&self) -> bool {
        let PoolState::Complete { slices, .. } = &self.state else { return false };
        let mut devices = slices.iter().flat_map(|slice| &slice.devices);
        devices.any(|device| device.object.binding_conditions.is_some())
    }
}

/// The pools that matter to a node, in the order in which devices are taken from them.
pub(super) fn pools<'a>(inventory: &'a Inventory, node: &NodeInfo) -> Vec<Pool<'a>> {
    let mut found: BTreeMap<PoolId, Vec<&SliceInfo>> = BTreeMap::new();
    for slice in inventory.slices_for(node) {
        let spec = slice.spec();
        let id = (spec.driver.as_str().into(), spec.pool.name.as_str().into());
        let slices = found.entry(id).or_default();
        let known = slices.first().map_or(spec.pool.generation, |first| first.spec().pool.generation);
        if spec.pool.generation > known {
            slices.clear();
        }
        if spec.pool.generation >= known {
            slices.push(slice);
        }
    }
    let mut pools: Vec<_> =
        found.into_iter().filter_map(|(id, slices)| pool(inventory, id, slices)).collect();
    // Stable, so that each half stays in the order of drivers and pools.
    pools.sort_by_key(Pool::has_binding_conditions);
    pools
}

/// `None` when the slices are left from a generation that is being replaced.
fn pool<'a>(inventory: &'a Inventory, id: PoolId, mut slices: Vec<&'a SliceInfo>) -> Option<Pool<'a>> {
    let first = slices.first()?.spec();
    let (generation, count) = (first.pool.generation, first.pool.resource_slice_count);
    let is_complete = |found: usize| i64::try_from(found).is_ok_and(|found| found == count);
    let mut others = Vec::new();
    if !is_complete(slices.len()) {
        // Those that don't concern the node count, too.
        let newest = inventory.pool(&id).map(|slice| slice.spec().pool.generation).max();
        if newest.is_some_and(|newest| newest > generation) {
            return None;
        }
        let all: Vec<_> =
            inventory.pool(&id).filter(|slice| slice.spec().pool.generation == generation).collect();
        if !is_complete(all.len()) {
            return Some(Pool { id, state: PoolState::Incomplete });
        }
        others = all;
        others.retain(|other| !slices.iter().any(|slice| std::ptr::eq(*slice, *other)));
    }
    slices.sort_by(|a, b| a.object.metadata.name.cmp(&b.object.metadata.name));
    let state = build(slices, others).unwrap_or(PoolState::Invalid);
    Some(Pool { id, state })
}

/// `None` when the slices contradict themselves.
fn build<'a>(all: Vec<&'a SliceInfo>, others: Vec<&'a SliceInfo>) -> Option<PoolState<'a>> {
    let (with_counters, slices): (Vec<_>, Vec<_>) = all.into_iter().partition(|slice| slice.has_counters());
    let mut names = BTreeSet::new();
    let mut devices = slices.iter().flat_map(|slice| &slice.devices);
    if !devices.all(|device| names.insert(&device.object.name)) {
        return None;
    }
    let mut counter_sets = BTreeMap::new();
    for (name, set) in with_counters.iter().flat_map(|slice| &slice.counter_sets) {
        if counter_sets.insert(name.as_str(), set).is_some() {
            return None;
        }
    }
    let consumers = slices.iter().chain(&with_counters).chain(&others).flat_map(|slice| &slice.devices);
    for (name, consumed) in consumers.flat_map(|device| &device.consumes) {
        let set = counter_sets.get(name.as_str())?;
        if !consumed.keys().all(|counter| set.contains_key(counter)) {
            return None;
        }
    }
    Some(PoolState::Complete { slices, others, counter_sets })
}
