//! The devices that drivers offer.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ahash::RandomState;
use k8s_openapi::api::{
    core::v1::NodeSelector,
    resource::v1::{Counter, CounterSet, Device, ResourceSlice, ResourceSliceSpec},
};
use kcore::Quantity;

use crate::{
    affinity::Term,
    devices::{allocated::DeviceId, capacity::Capacity},
    node::NodeInfo,
    snapshot::catalog::Catalog,
};

/// From where a device can be used.
#[derive(Clone, Debug)]
pub(super) enum Reach {
    /// In a way that is not known.
    Nowhere,
    Node(String),
    AllNodes,
    Matching(Vec<Term>),
    /// Each device of the slice says it.
    PerDevice,
}

impl Reach {
    fn read(node: Option<&str>, all: Option<bool>, selector: Option<&NodeSelector>) -> Self {
        match (node, selector) {
            (Some(node), _) if !node.is_empty() => Self::Node(node.to_owned()),
            _ if all == Some(true) => Self::AllNodes,
            (_, Some(selector)) => {
                Self::Matching(selector.node_selector_terms.iter().map(Term::read).collect())
            }
            _ => Self::Nowhere,
        }
    }

    pub(super) fn includes(&self, node: &NodeInfo) -> bool {
        match self {
            Self::Nowhere | Self::PerDevice => false,
            Self::Node(name) => *name == *node.name,
            Self::AllNodes => true,
            Self::Matching(terms) => terms.iter().any(|term| term.matches(&node.name, &node.labels)),
        }
    }
}

/// Amounts of counters, by set and name.
pub(super) type Counters = BTreeMap<String, BTreeMap<String, Quantity>>;

fn counters(map: &BTreeMap<String, Counter>) -> BTreeMap<String, Quantity> {
    let read = |counter: &Counter| Quantity::parse(&counter.value.0).unwrap_or_default();
    map.iter().map(|(name, counter)| (name.clone(), read(counter))).collect()
}

/// A device, prepared for many looks at it.
#[derive(Clone, Debug)]
pub(super) struct DeviceInfo {
    pub(super) id: DeviceId,
    pub(super) driver: Arc<str>,
    pub(super) object: Device,
    /// `allowMultipleAllocations`.
    pub(super) is_shared: bool,
    /// Counts only in slices whose devices say it each for itself.
    pub(super) reach: Reach,
    pub(super) capacity: BTreeMap<String, Capacity>,
    pub(super) consumes: Counters,
}

/// A slice of a pool.
#[derive(Clone, Debug)]
pub(super) struct SliceInfo {
    pub(super) object: Arc<ResourceSlice>,
    pub(super) reach: Reach,
    pub(super) devices: Vec<DeviceInfo>,
    pub(super) counter_sets: Vec<(String, BTreeMap<String, Quantity>)>,
}

impl SliceInfo {
    fn read(object: &Arc<ResourceSlice>) -> Self {
        let spec = &object.spec;
        let driver: Arc<str> = spec.driver.as_str().into();
        let own = Reach::read(spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref());
        let reach = match own {
            Reach::Nowhere if spec.per_device_node_selection == Some(true) => Reach::PerDevice,
            own => own,
        };
        let sets = spec.shared_counters.iter().flatten();
        let devices = spec.devices.iter().flatten();
        Self {
            reach,
            devices: devices.map(|device| DeviceInfo::read(spec, &driver, device)).collect(),
            counter_sets: sets.map(|set: &CounterSet| (set.name.clone(), counters(&set.counters))).collect(),
            object: Arc::clone(object),
        }
    }

    pub(super) fn spec(&self) -> &ResourceSliceSpec {
        &self.object.spec
    }

    pub(super) fn has_counters(&self) -> bool {
        !self.counter_sets.is_empty()
    }

    /// Whether the pool matters to a node because of this slice. Counters matter everywhere.
    pub(super) fn concerns(&self, node: &NodeInfo) -> bool {
        self.has_counters()
            || match &self.reach {
                Reach::PerDevice => self.devices.iter().any(|device| device.reach.includes(node)),
                reach => reach.includes(node),
            }
    }

    pub(super) fn is_per_device(&self) -> bool {
        self.spec().per_device_node_selection == Some(true)
    }
}

impl DeviceInfo {
    fn read(spec: &ResourceSliceSpec, driver: &Arc<str>, device: &Device) -> Self {
        let capacity = device.capacity.iter().flatten();
        let mut consumes = Counters::new();
        for consumed in device.consumes_counters.iter().flatten() {
            let set = consumes.entry(consumed.counter_set.clone()).or_default();
            for (name, amount) in counters(&consumed.counters) {
                *set.entry(name).or_default() += amount;
            }
        }
        Self {
            id: DeviceId::new(driver, &spec.pool.name, &device.name),
            driver: Arc::clone(driver),
            is_shared: device.allow_multiple_allocations == Some(true),
            reach: Reach::read(device.node_name.as_deref(), device.all_nodes, device.node_selector.as_ref()),
            capacity: capacity.map(|(name, capacity)| (name.clone(), Capacity::read(capacity))).collect(),
            consumes,
            object: device.clone(),
        }
    }
}

/// Driver and name.
pub(super) type PoolId = (Arc<str>, Arc<str>);

/// All devices that drivers offer, by where they can be used. Made once for many pods, as reading the slices is the greater
/// part of the work: of the order of the number of devices.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    slices: Vec<SliceInfo>,
    pools: HashMap<PoolId, Vec<usize>, RandomState>,
    on_node: HashMap<String, Vec<usize>, RandomState>,
    /// Those that may matter to any node.
    elsewhere: Vec<usize>,
}

impl Inventory {
    /// Reads the slices of a catalog.
    #[must_use]
    pub fn of(catalog: &Catalog) -> Self {
        let mut inventory = Self::default();
        for slice in catalog.list::<ResourceSlice>() {
            let index = inventory.slices.len();
            let slice = SliceInfo::read(slice);
            let spec = slice.spec();
            let id = (spec.driver.as_str().into(), spec.pool.name.as_str().into());
            inventory.pools.entry(id).or_default().push(index);
            match spec.node_name.as_deref() {
                Some(node) if !node.is_empty() && !slice.has_counters() => {
                    inventory.on_node.entry(node.to_owned()).or_default().push(index);
                }
                _ => inventory.elsewhere.push(index),
            }
            inventory.slices.push(slice);
        }
        inventory
    }

    /// How many devices there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slices.iter().map(|slice| slice.devices.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The slices that matter to a node.
    pub(super) fn slices_for(&self, node: &NodeInfo) -> impl Iterator<Item = &SliceInfo> {
        let own = self.on_node.get(&*node.name).map_or(&[][..], Vec::as_slice);
        let indexes = own.iter().chain(&self.elsewhere);
        indexes.map(|index| &self.slices[*index]).filter(|slice| slice.concerns(node))
    }

    /// All slices of a pool, whatever node and generation they are for.
    pub(super) fn pool(&self, id: &PoolId) -> impl Iterator<Item = &SliceInfo> {
        let indexes = self.pools.get(id).map_or(&[][..], Vec::as_slice);
        indexes.iter().map(|index| &self.slices[*index])
    }
}
