//! Whose memory is of which NUMA nodes (the memory manager's policy `Static`, KEP-1769). Pure: what is given is the caller's to keep.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Machine,
    checkpoint::{dump_list, dump_map},
    hint::{Hint, Hints, Mask, hints},
};

/// Memory of one kind on one node, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Table {
    total: u64,
    system_reserved: u64,
    allocatable: u64,
    reserved: u64,
    free: u64,
}

/// A NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeState {
    /// How many blocks are on it.
    number_of_assignments: u64,
    memory_map: BTreeMap<String, Table>,
    /// The nodes whose memory is given together with its own.
    cells: Vec<u32>,
}

/// Memory that a container was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Block {
    pub(super) numa_affinity: Vec<u32>,
    /// `memory`, or huge pages of a size.
    #[serde(rename = "type")]
    pub(super) resource: String,
    pub(super) size: u64,
}

impl NodeState {
    /// As Go writes it for a checksum.
    pub(super) fn dump(&self) -> String {
        let tables = dump_map(&self.memory_map, |table| {
            format!(
                "<*>{{TotalMemSize:(uint64){} SystemReserved:(uint64){} Allocatable:(uint64){} Reserved:(uint64){} Free:(uint64){}}}",
                table.total, table.system_reserved, table.allocatable, table.reserved, table.free
            )
        });
        let cells = dump_list(self.cells.iter().map(u32::to_string));
        format!(
            "<*>{{NumberOfAssignments:(int){} MemoryMap:(map[v1.ResourceName]*state.MemoryTable){tables} Cells:([]int){cells}}}",
            self.number_of_assignments
        )
    }
}

impl Block {
    /// As Go writes it for a checksum.
    pub(super) fn dump(&self) -> String {
        let nodes = dump_list(self.numa_affinity.iter().map(u32::to_string));
        format!(
            "{{NUMAAffinity:([]int){nodes} Type:(v1.ResourceName){} Size:(uint64){}}}",
            self.resource, self.size
        )
    }
}

/// What is given of the memory, as upstream's `memory_manager_state` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MemoryState {
    pub(super) nodes: BTreeMap<u32, NodeState>,
    pub(super) given: BTreeMap<String, BTreeMap<String, Vec<Block>>>,
}

/// How much is asked for of each kind.
pub(super) type Wanted = BTreeMap<String, u64>;

/// What came free within a pod when init containers ended, by nodes and kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Reusable(BTreeMap<(Vec<u32>, String), u64>);

impl Reusable {
    fn of(&self, mask: Mask, resource: &str) -> u64 {
        self.0.get(&(mask.nodes().collect(), resource.to_owned())).copied().unwrap_or(0)
    }

    /// Takes note of what a container has: an init container that ends leaves it to others, anybody else takes it.
    pub(super) fn note(&mut self, blocks: &[Block], ends: bool) {
        for block in blocks {
            let key = (block.numa_affinity.clone(), block.resource.clone());
            if ends {
                let known = self.0.entry(key).or_default();
                *known = block.size.max(*known);
            } else if let Some(known) = self.0.get_mut(&key) {
                *known = known.saturating_sub(block.size);
            }
        }
    }
}

/// The resource of huge pages of so many bytes, such as `hugepages-2Mi`.
fn huge_page_resource(bytes: u64) -> String {
    let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let step = if bytes == 0 { 0 } else { (bytes.trailing_zeros() / 10).min(6) };
    format!("hugepages-{}{}", bytes >> (10 * step), suffixes[step as usize])
}

/// A machine of which nothing is taken. `reserved`: by node and kind, in bytes.
pub(super) fn fresh(
    machine: &Machine,
    reserved: &BTreeMap<u32, BTreeMap<String, u64>>,
) -> BTreeMap<u32, NodeState> {
    let reserved = |node: u32, resource: &str| {
        reserved.get(&node).and_then(|list| list.get(resource)).copied().unwrap_or(0)
    };
    let state = |(id, node): (&u32, &super::NumaNode)| {
        let table = |resource: &str, total: u64, elsewhere: u64| {
            let system_reserved = reserved(*id, resource);
            let allocatable = total.saturating_sub(system_reserved).saturating_sub(elsewhere);
            Table { total, system_reserved, allocatable, reserved: 0, free: allocatable }
        };
        let huge = node.huge_pages.iter().map(|(size, bytes)| {
            let name = huge_page_resource(*size);
            let own = table(&name, *bytes, 0);
            (name, own)
        });
        let mut memory_map: BTreeMap<String, Table> = huge.collect();
        let in_huge_pages = node.huge_pages.values().sum();
        memory_map.insert("memory".to_owned(), table("memory", node.memory_bytes, in_huge_pages));
        (*id, NodeState { number_of_assignments: 0, memory_map, cells: vec![*id] })
    };
    machine.nodes.iter().map(state).collect()
}

/// Puts so much on these nodes, on the first ones first.
fn put(nodes: &mut BTreeMap<u32, NodeState>, affinity: &[u32], resource: &str, size: u64) {
    let mut left = size;
    for id in affinity {
        let Some(node) = nodes.get_mut(id) else { continue };
        node.number_of_assignments += 1;
        node.cells = affinity.to_vec();
        let Some(table) = node.memory_map.get_mut(resource) else { continue };
        let here = left.min(table.free);
        table.reserved += here;
        table.free -= here;
        left -= here;
    }
}

impl MemoryState {
    /// Takes over what is known from before, or begins. `fresh`: the machine when nothing is taken.
    ///
    /// # Errors
    /// Upstream's words when that was of another machine or another configuration.
    pub(super) fn open(&mut self, fresh: BTreeMap<u32, NodeState>) -> Result<(), String> {
        if self.nodes.is_empty() {
            if !self.given.is_empty() {
                return Err("[memorymanager] machine state can not be empty when it has memory assignments"
                    .to_owned());
            }
            self.nodes = fresh;
            return Ok(());
        }
        let mut expected = fresh;
        for (pod, containers) in &self.given {
            for (container, blocks) in containers {
                for block in blocks {
                    let missing = |what| {
                        format!(
                            "[memorymanager] (pod: {pod}, container: {container}) the memory assignment uses {what}"
                        )
                    };
                    for id in &block.numa_affinity {
                        let node = expected.get(id).ok_or_else(|| missing("the NUMA that does not exist"))?;
                        if !node.memory_map.contains_key(&block.resource) {
                            return Err(missing("memory resource that does not exist"));
                        }
                    }
                    put(&mut expected, &block.numa_affinity, &block.resource, block.size);
                }
            }
        }
        if !self.is_like(&expected) {
            return Err(
                "[memorymanager] the expected machine state is different from the real one".to_owned()
            );
        }
        Ok(())
    }

    /// Whether the nodes are as they should be. Where memory of several nodes is given together, only the sums must be the same: what is freed
    /// is freed on the first nodes first, which need not be where it was taken.
    fn is_like(&self, expected: &BTreeMap<u32, NodeState>) -> bool {
        let is_same = |(id, node): (&u32, &NodeState)| {
            let Some(other) = expected.get(id) else { return false };
            node.number_of_assignments == other.number_of_assignments
                && node.cells == other.cells
                && node.memory_map.len() == other.memory_map.len()
                && node.memory_map.iter().all(|(resource, table)| {
                    let sums = |nodes: &BTreeMap<u32, NodeState>| {
                        let tables =
                            node.cells.iter().filter_map(|id| nodes.get(id)?.memory_map.get(resource));
                        tables.fold((0_u64, 0_u64), |sum, table| {
                            (sum.0.saturating_add(table.free), sum.1.saturating_add(table.reserved))
                        })
                    };
                    other.memory_map.get(resource).is_some_and(|known| {
                        (table.total, table.system_reserved, table.allocatable)
                            == (known.total, known.system_reserved, known.allocatable)
                    }) && sums(&self.nodes) == sums(expected)
                })
        };
        self.nodes.len() == expected.len() && self.nodes.iter().all(is_same)
    }

    fn table(&self, node: u32, resource: &str) -> Table {
        self.nodes.get(&node).and_then(|node| node.memory_map.get(resource)).copied().unwrap_or_default()
    }

    fn sum(&self, mask: Mask, resource: &str, of: impl Fn(Table) -> u64) -> u64 {
        mask.nodes().map(|node| of(self.table(node, resource))).fold(0, u64::saturating_add)
    }

    /// Whether a node gives to others alone, or together with other nodes than these.
    fn is_taken_otherwise(&self, mask: Mask) -> bool {
        mask.nodes().filter_map(|id| self.nodes.get(&id)).any(|node| {
            node.number_of_assignments > 0
                && (node.cells.len() == 1 || Mask::of(node.cells.iter().copied()) != mask)
        })
    }

    /// Where all that is wanted could be: the same for each kind.
    fn places(&self, wanted: &Wanted, reusable: &Reusable) -> Vec<Hint> {
        let nodes: Vec<u32> = self.nodes.keys().copied().collect();
        let mut fewest = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let mut can = Vec::new();
        for mask in Mask::all(&nodes) {
            let is_enough = |of: &dyn Fn(&str) -> u64| wanted.iter().all(|(name, size)| of(name) >= *size);
            if !is_enough(&|name| self.sum(mask, name, |table| table.allocatable)) {
                continue;
            }
            fewest = fewest.min(mask.count());
            let is_taken = if mask.count() == 1 {
                mask.nodes().filter_map(|id| self.nodes.get(&id)).any(|node| node.cells.len() > 1)
            } else {
                self.is_taken_otherwise(mask)
            };
            let free =
                |name: &str| self.sum(mask, name, |table| table.free).saturating_add(reusable.of(mask, name));
            if !is_taken && is_enough(&free) {
                can.push(mask);
            }
        }
        hints(can, fewest)
    }

    /// Where it could be, by kind. `has`: what is given already to who asks.
    pub(super) fn hints(&self, wanted: &Wanted, has: Option<&[Block]>, reusable: &Reusable) -> Vec<Hints> {
        let Some(blocks) = has else {
            let places = self.places(wanted, reusable);
            // Upstream gives no hints at all when there is no place, and the policy is asked by what others say.
            let places = Some(places).filter(|places| !places.is_empty());
            return wanted.keys().map(|_| places.clone()).collect();
        };
        let is_same = |block: &Block| wanted.get(&block.resource) == Some(&block.size);
        if blocks.len() != wanted.len() || !blocks.iter().all(is_same) {
            return Vec::new();
        }
        let known = |block: &Block| {
            let mask = Some(Mask::of(block.numa_affinity.iter().copied()));
            Some(vec![Hint { mask, is_preferred: true }])
        };
        blocks.iter().map(known).collect()
    }

    /// Gives a container what it wants, at the place that was chosen, or at a larger one around that.
    ///
    /// # Errors
    /// Upstream's words when there is no such place.
    pub(super) fn give(
        &mut self,
        pod: &str,
        container: &str,
        wanted: &Wanted,
        chosen: Hint,
        reusable: &Reusable,
    ) -> Result<Vec<Block>, String> {
        if let Some(blocks) = self.of(pod, container) {
            return Ok(blocks.to_vec());
        }
        let said = |what: &str| Err(format!("[memorymanager] {what}"));
        let mut best = chosen;
        if best.mask.is_none() {
            let found = best_of(&self.places(wanted, reusable));
            let Some(found) = found else {
                return said(
                    "failed to get the default NUMA affinity, no NUMA nodes with enough memory is available",
                );
            };
            if best.is_preferred && !found.is_preferred {
                return said("failed to find the default preferred hint");
            }
            best = found;
        }
        let mask = best.mask.unwrap_or_default();
        if wanted.iter().any(|(name, size)| self.sum(mask, name, |table| table.free) < *size) {
            let mut around = self.places(wanted, reusable);
            around.retain(|hint| hint.mask.is_some_and(|other| mask.is_subset(other)));
            let Some(found) = best_of(&around) else {
                return said("failed to find NUMA nodes to extend the current topology hint");
            };
            if best.is_preferred && !found.is_preferred {
                return said("failed to find the extended preferred hint");
            }
            best = found;
        }
        let mask = best.mask.unwrap_or_default();
        if mask.count() > 1 && self.is_taken_otherwise(mask) {
            return said("preferred hint violates NUMA node allocation");
        }
        let affinity: Vec<u32> = mask.nodes().collect();
        let mut blocks = Vec::new();
        for (resource, size) in wanted {
            let more = size.saturating_sub(reusable.of(mask, resource));
            put(&mut self.nodes, &affinity, resource, more);
            let numa_affinity = affinity.clone();
            blocks.push(Block { numa_affinity, resource: resource.clone(), size: *size });
        }
        self.given.entry(pod.to_owned()).or_default().insert(container.to_owned(), blocks.clone());
        Ok(blocks)
    }

    /// What a container uses again of init containers before it is no longer theirs, so that the sum is what the pod has.
    pub(super) fn took_over(&mut self, pod: &str, blocks: &[Block], earlier: &[&str]) {
        let Some(containers) = self.given.get_mut(pod) else { return };
        for block in blocks {
            let mut left = block.size;
            for name in earlier {
                let theirs = containers.get_mut(*name).into_iter().flatten();
                let same = theirs.filter(|other| {
                    other.resource == block.resource && other.numa_affinity == block.numa_affinity
                });
                for other in same {
                    let taken = left.min(other.size);
                    other.size -= taken;
                    left -= taken;
                }
            }
        }
    }

    /// What can be given, whether it is or not, as blocks of one node each.
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    pub(super) fn allocatable(&self) -> Vec<Block> {
        let tables = self.nodes.iter().flat_map(|(id, node)| {
            node.memory_map.iter().map(move |(resource, table)| (*id, resource, table.allocatable))
        });
        let block = |(id, resource, size): (u32, &String, u64)| Block {
            numa_affinity: vec![id],
            resource: resource.clone(),
            size,
        };
        tables.filter(|(.., size)| *size > 0).map(block).collect()
    }

    pub(super) fn of(&self, pod: &str, container: &str) -> Option<&[Block]> {
        self.given.get(pod)?.get(container).map(Vec::as_slice)
    }

    /// The nodes that a container's memory is of; none when it has none of its own.
    pub(super) fn affinity(&self, pod: &str, container: &str) -> BTreeSet<u32> {
        let blocks = self.of(pod, container).unwrap_or_default();
        blocks.iter().flat_map(|block| block.numa_affinity.iter().copied()).collect()
    }

    /// What a container has is free. Says whether it had anything.
    pub(super) fn release(&mut self, pod: &str, container: &str) -> bool {
        let Some(containers) = self.given.get_mut(pod) else { return false };
        let Some(blocks) = containers.remove(container) else { return false };
        if containers.is_empty() {
            self.given.remove(pod);
        }
        for block in blocks {
            let mut left = block.size;
            for id in &block.numa_affinity {
                let Some(node) = self.nodes.get_mut(id) else { continue };
                node.number_of_assignments = node.number_of_assignments.saturating_sub(1);
                if node.number_of_assignments == 0 {
                    node.cells = vec![*id];
                }
                let Some(table) = node.memory_map.get_mut(&block.resource) else { continue };
                let here = left.min(table.reserved);
                table.reserved -= here;
                table.free += here;
                left -= here;
            }
        }
        true
    }
}

/// A preferred place, and a narrow one.
fn best_of(places: &[Hint]) -> Option<Hint> {
    places.iter().copied().reduce(|best, hint| {
        let (Some(mask), Some(other)) = (best.mask, hint.mask) else { return best };
        let is_better = match (best.is_preferred, hint.is_preferred) {
            (false, true) => true,
            (true, false) => false,
            _ => other.is_narrower(mask),
        };
        if is_better { hint } else { best }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{hint::ANYWHERE, machine::tests::machine},
        *,
    };

    const GI: u64 = 1 << 30;

    /// Nodes of 10Gi each, of which 1Gi is reserved.
    fn state(nodes: u32) -> MemoryState {
        let machine = machine(nodes, 1, 2, 1);
        let one: BTreeMap<String, u64> = [("memory".to_owned(), GI)].into();
        let reserved = (0..nodes).map(|node| (node, one.clone())).collect();
        let mut state = MemoryState::default();
        state.open(fresh(&machine, &reserved)).unwrap();
        state
    }

    fn wanted(gigabytes: u64) -> Wanted {
        [("memory".to_owned(), gigabytes * GI)].into()
    }

    fn at(nodes: &[u32], is_preferred: bool) -> Hint {
        Hint { mask: Some(Mask::of(nodes.iter().copied())), is_preferred }
    }

    fn places(state: &MemoryState, gigabytes: u64) -> Vec<Hint> {
        let hints = state.hints(&wanted(gigabytes), None, &Reusable::default());
        hints.into_iter().next().flatten().unwrap_or_default()
    }

    #[test]
    fn hints_keep_groups_of_nodes_apart() {
        // Upstream's `TestStaticPolicyGetTopologyHints` and its rule of single and cross NUMA allocations.
        let fresh = state(2);
        assert_eq!(places(&fresh, 4), [at(&[0], true), at(&[1], true), at(&[0, 1], false)]);
        assert_eq!(places(&fresh, 12), [at(&[0, 1], true)]);
        assert_eq!(places(&fresh, 19), []);
        let mut single = fresh.clone();
        single.give("p", "c", &wanted(4), at(&[0], true), &Reusable::default()).unwrap();
        // A node that gives alone does not give together with another.
        assert_eq!(places(&single, 6), [at(&[1], true)]);
        assert_eq!(places(&single, 4), [at(&[0], true), at(&[1], true)]);
        assert_eq!(places(&single, 12), []);
        let mut cross = fresh;
        cross.give("p", "c", &wanted(12), at(&[0, 1], true), &Reusable::default()).unwrap();
        assert_eq!(places(&cross, 2), [at(&[0, 1], false)]);
        // What it has is where it is.
        let has = cross.of("p", "c").unwrap().to_vec();
        let hints = cross.hints(&wanted(12), Some(&has), &Reusable::default());
        assert_eq!(hints, [Some(vec![at(&[0, 1], true)])]);
        assert!(cross.hints(&wanted(3), Some(&has), &Reusable::default()).is_empty());
    }

    #[test]
    fn memory_is_given_where_it_is_said_or_around_that() {
        // Upstream's `TestStaticPolicyAllocate`.
        let none = Reusable::default();
        let give = |state: &mut MemoryState, name: &str, gigabytes, hint| {
            let given = state.give("p", name, &wanted(gigabytes), hint, &none);
            given.map(|blocks| blocks[0].numa_affinity.clone())
        };
        let mut two = state(2);
        assert_eq!(give(&mut two, "a", 5, ANYWHERE), Ok(vec![0]));
        assert_eq!(give(&mut two, "a", 5, ANYWHERE), Ok(vec![0]));
        assert_eq!(two.table(0, "memory").free, 4 * GI);
        assert_eq!(give(&mut two, "b", 5, ANYWHERE), Ok(vec![1]));
        let said = "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
        assert_eq!(give(&mut two, "c", 5, ANYWHERE), Err(said.to_owned()));
        let said = "[memorymanager] failed to find NUMA nodes to extend the current topology hint";
        assert_eq!(give(&mut two, "c", 5, at(&[0], true)), Err(said.to_owned()));
        assert_eq!(give(&mut two, "d", 4, at(&[1], true)), Ok(vec![1]));

        // The place is a part of one that will do.
        let mut two = state(2);
        assert_eq!(give(&mut two, "a", 12, at(&[0], true)), Ok(vec![0, 1]));
        assert_eq!((two.table(0, "memory").free, two.table(1, "memory").free), (0, 6 * GI));
        let said = "[memorymanager] failed to find the extended preferred hint";
        assert_eq!(give(&mut two, "b", 1, at(&[0], true)), Err(said.to_owned()));
        let said = "[memorymanager] failed to find the default preferred hint";
        assert_eq!(give(&mut two, "b", 1, ANYWHERE), Err(said.to_owned()));
        assert_eq!(give(&mut two, "b", 1, Hint { is_preferred: false, ..ANYWHERE }), Ok(vec![0, 1]));
        let mut three = state(3);
        assert_eq!(give(&mut three, "a", 2, at(&[0], true)), Ok(vec![0]));
        let said = "[memorymanager] preferred hint violates NUMA node allocation";
        assert_eq!(give(&mut three, "b", 12, at(&[0, 1], true)), Err(said.to_owned()));
    }

    #[test]
    fn init_containers_leave_their_memory_to_those_after_them() {
        // Upstream's "should re-use init containers memory": 7Gi and 4Gi first, 4Gi and 3Gi after.
        let mut state = state(1);
        let mut reusable = Reusable::default();
        let mut earlier = Vec::new();
        for (name, gigabytes, ends) in [("i1", 7, true), ("i2", 4, true), ("c1", 4, false), ("c2", 3, false)]
        {
            let blocks = state.give("p", name, &wanted(gigabytes), at(&[0], true), &reusable).unwrap();
            reusable.note(&blocks, ends);
            state.took_over("p", &blocks, &earlier);
            if ends {
                earlier.push(name);
            }
        }
        assert_eq!(state.table(0, "memory").free, 2 * GI);
        let sizes: Vec<u64> =
            ["i1", "i2", "c1", "c2"].map(|name| state.of("p", name).unwrap()[0].size / GI).into();
        assert_eq!(sizes, [0, 0, 4, 3]);
        for name in ["i1", "i2"] {
            assert!(state.release("p", name) && !state.release("p", name));
        }
        assert_eq!(state.table(0, "memory").free, 2 * GI);
        assert!(state.release("p", "c1") && state.release("p", "c2"));
        assert_eq!(state, super::tests::state(1));
    }

    #[test]
    fn what_was_before_must_fit_the_machine() {
        let mut state = state(2);
        state.give("p", "c", &wanted(12), at(&[0, 1], true), &Reusable::default()).unwrap();
        let fresh = super::tests::state(2).nodes;
        state.clone().open(fresh.clone()).unwrap();
        let different = "[memorymanager] the expected machine state is different from the real one";
        let mut other = fresh.clone();
        other.get_mut(&1).unwrap().memory_map.get_mut("memory").unwrap().system_reserved += 1;
        assert_eq!(state.clone().open(other).unwrap_err(), different);
        let mut less = state.clone();
        less.given.clear();
        assert_eq!(less.open(fresh.clone()).unwrap_err(), different);
        let gone =
            "[memorymanager] (pod: p, container: c) the memory assignment uses the NUMA that does not exist";
        assert_eq!(state.clone().open(super::tests::state(1).nodes).unwrap_err(), gone);
        state.nodes.clear();
        let empty = "[memorymanager] machine state can not be empty when it has memory assignments";
        assert_eq!(state.open(fresh).unwrap_err(), empty);
    }

    #[test]
    fn huge_pages_are_not_memory() {
        let mut machine = machine(1, 1, 1, 1);
        machine.nodes.get_mut(&0).unwrap().huge_pages = [(1 << 30, 2 << 30), (2 << 20, 4 << 20)].into();
        let fresh = fresh(&machine, &BTreeMap::new());
        let tables = &fresh[&0].memory_map;
        assert_eq!(tables["hugepages-1Gi"].free, 2 << 30);
        assert_eq!(tables["hugepages-2Mi"].free, 4 << 20);
        assert_eq!(tables["memory"].free, (8 << 30) - (4 << 20));
    }

    proptest! {
        /// Nothing is given twice, all comes back, and an agent that comes back agrees at any time.
        #[test]
        fn memory_is_never_given_twice(
            nodes in 1_u32..4,
            steps in proptest::collection::vec((0_u8..6, 1_u64..14, any::<bool>()), 0..40),
        ) {
            let mut state = state(nodes);
            let fresh = state.nodes.clone();
            for (pod, gigabytes, gives) in steps {
                let pod = pod.to_string();
                if gives {
                    let _ = state.give(&pod, "c", &wanted(gigabytes), Hint { is_preferred: false, ..ANYWHERE }, &Reusable::default());
                } else {
                    state.release(&pod, "c");
                }
                let sum: u64 = state.given.values().flat_map(BTreeMap::values).flatten().map(|block| block.size).sum();
                let reserved: u64 = (0..nodes).map(|node| state.table(node, "memory").reserved).sum();
                prop_assert_eq!(sum, reserved);
                prop_assert!(state.clone().open(fresh.clone()).is_ok());
            }
            for pod in 0..6 {
                state.release(&pod.to_string(), "c");
            }
            prop_assert_eq!(state.nodes, fresh);
        }
    }
}
