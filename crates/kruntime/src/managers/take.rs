//! Which processors are taken of those that are free, near to each other or spread over nodes (the static policy of the CPU manager). Pure.

use super::{
    CpuSet, Machine,
    hint::combinations,
    machine::Part::{self, Cache, Core, Node, Socket},
};

/// Takes so many of the free processors: whole sockets and NUMA nodes first, then whole cores, then threads of cores that are taken in part.
/// With `by_cache`, processors that share a last-level cache before whole cores.
///
/// # Errors
/// Upstream's words when there are too few.
pub(super) fn packed(
    machine: &Machine,
    free: &CpuSet,
    count: usize,
    by_cache: bool,
) -> Result<CpuSet, String> {
    let mut taking = Taking::new(machine, free, count)?;
    let [first, second] = if taking.nodes_first { [Node, Socket] } else { [Socket, Node] };
    taking.take_full(first);
    taking.take_full(second);
    if by_cache {
        taking.take_caches();
    }
    taking.take_full(Core);
    taking.take_rest();
    Ok(taking.taken)
}

/// Takes so many of the free processors, as many of each of as few NUMA nodes as will do, in groups of `group` (KEP-2902).
///
/// # Errors
/// Upstream's words when there are too few.
pub(super) fn distributed(
    machine: &Machine,
    free: &CpuSet,
    count: usize,
    group: usize,
) -> Result<CpuSet, String> {
    if !count.is_multiple_of(group) {
        return packed(machine, free, count, false);
    }
    let mut taking = Taking::new(machine, free, count)?;
    if count == 0 {
        return Ok(taking.taken);
    }
    let nodes = taking.sorted(Node);
    let groups = machine.cpus.len().div_ceil(group);
    let groups_per_node = groups.div_ceil(machine.parts(Node, &machine.all()).len().max(1));
    let wanted = count.div_ceil(group);
    let (fewest, most) = (wanted.div_ceil(groups_per_node.max(1)), wanted.min(nodes.len()));
    for size in fewest..=most {
        let Some(spread) = best_spread(&taking, &nodes, size, count, group) else { continue };
        for node in &spread.nodes {
            let there = machine.within(Node, *node, &taking.free);
            taking.take(&packed(machine, &there, spread.each, false)?);
        }
        let mut left = count - spread.each * spread.nodes.len();
        while left > 0 {
            for node in &spread.rest {
                let there = machine.within(Node, *node, &taking.free);
                if left > 0 && there.len() >= group {
                    taking.take(&packed(machine, &there, group, false)?);
                    left -= group;
                }
            }
        }
        return Ok(taking.taken);
    }
    packed(machine, free, count, false)
}

/// So many of each of these nodes, and what is left of some of them.
struct Spread {
    nodes: Vec<u32>,
    each: usize,
    rest: Vec<u32>,
    balance: f64,
}

/// The nodes after which the machine is most even, of all choices of `size` nodes that can give what is wanted.
fn best_spread(
    taking: &Taking<'_>,
    nodes: &[u32],
    size: usize,
    count: usize,
    group: usize,
) -> Option<Spread> {
    let free: Vec<(u32, usize)> =
        nodes.iter().map(|node| (*node, taking.machine.within(Node, *node, &taking.free).len())).collect();
    let mut best: Option<Spread> = None;
    combinations(&free, size, &mut |chosen| {
        let each = count / chosen.len() / group * group;
        let in_groups: usize = chosen.iter().map(|(_, free)| free / group * group).sum();
        if in_groups < count || chosen.iter().any(|(_, free)| *free < each) {
            return true;
        }
        let is_chosen = |node: u32| chosen.iter().any(|(known, _)| *known == node);
        let after: Vec<(u32, usize)> = free
            .iter()
            .map(|(node, free)| (*node, if is_chosen(*node) { free - each } else { *free }))
            .collect();
        let left = count - each * chosen.len();
        let (balance, rest) = best_rest(&after, &is_chosen, left, group);
        if best.as_ref().is_none_or(|best| balance < best.balance) {
            best =
                Some(Spread { nodes: chosen.iter().map(|(node, _)| *node).collect(), each, rest, balance });
        }
        // Nothing is more even than even.
        best.as_ref().is_none_or(|best| best.balance > 0.0)
    });
    best.filter(|best| best.balance < f64::MAX)
}

/// Which of the chosen nodes give what is left over: as many as can be, and the machine as even as can be.
fn best_rest(
    after: &[(u32, usize)],
    is_chosen: &impl Fn(u32) -> bool,
    left: usize,
    group: usize,
) -> (f64, Vec<u32>) {
    if left == 0 {
        return (deviation(after), Vec::new());
    }
    let can: Vec<u32> = after
        .iter()
        .filter(|(node, free)| is_chosen(*node) && *free >= group)
        .map(|(node, _)| *node)
        .collect();
    let (mut balance, mut rest) = (f64::MAX, Vec::new());
    for size in (1..=can.len()).rev() {
        combinations(&can, size, &mut |subset| {
            let mut after = after.to_vec();
            let mut left = left;
            let is_in = |node: u32| subset.contains(&node);
            let room: usize =
                after.iter().filter(|(node, _)| is_in(*node)).map(|(_, free)| free / group * group).sum();
            if room < left {
                return true;
            }
            while left > 0 {
                for node in subset {
                    let found = after.iter_mut().find(|(known, free)| known == node && *free >= group);
                    if let (true, Some((_, free))) = (left > 0, found) {
                        *free -= group;
                        left -= group;
                    }
                }
            }
            let found = deviation(&after);
            if found < balance {
                (balance, rest) = (found, subset.to_vec());
            }
            true
        });
    }
    (balance, rest)
}

/// The standard deviation, in thousandths as upstream rounds it, so that equal ones are equal.
#[expect(clippy::cast_precision_loss, reason = "there are not that many processors")]
fn deviation(free: &[(u32, usize)]) -> f64 {
    let rounded = |number: f64| (number * 1000.0).round() / 1000.0;
    let count = free.len() as f64;
    let mean = rounded(free.iter().map(|(_, free)| *free as f64).sum::<f64>() / count);
    let sum: f64 = free.iter().map(|(_, free)| (*free as f64 - mean).powi(2)).sum();
    rounded((sum / count).sqrt())
}

struct Taking<'a> {
    machine: &'a Machine,
    free: CpuSet,
    needed: usize,
    taken: CpuSet,
    /// Whether a NUMA node is within a socket, or is one.
    nodes_first: bool,
}

impl<'a> Taking<'a> {
    fn new(machine: &'a Machine, free: &CpuSet, count: usize) -> Result<Self, String> {
        let available = free.len();
        let free = free.intersection(&machine.all());
        if count > free.len() {
            return Err(format!(
                "not enough cpus available to satisfy request: requested={count}, available={available}"
            ));
        }
        let parts = |part| machine.parts(part, &machine.all()).len();
        let nodes_first = parts(Socket) >= parts(Node);
        Ok(Self { machine, free, needed: count, taken: CpuSet::default(), nodes_first })
    }

    fn take(&mut self, cpus: &CpuSet) {
        self.taken = self.taken.union(cpus);
        self.free = self.free.difference(cpus);
        self.needed -= cpus.len().min(self.needed);
    }

    /// Those that have the least free come first.
    fn by_free(&self, part: Part, within: &CpuSet) -> Vec<u32> {
        let mut ids: Vec<u32> = self.machine.parts(part, within).into_iter().collect();
        ids.sort_by_cached_key(|id| (self.machine.within(part, *id, &self.free).len(), *id));
        ids
    }

    /// The parts with free processors, those of a larger part together.
    fn sorted(&self, part: Part) -> Vec<u32> {
        let outer = match (part, self.nodes_first) {
            (Node, true) | (Socket, false) => return self.by_free(part, &self.free),
            (Node | Core, false) => {
                if part == Node {
                    Socket
                } else {
                    Node
                }
            }
            (Socket | Cache, _) => Node,
            (Core, true) => Socket,
        };
        let within = |id: u32| self.by_free(part, &self.machine.within(outer, id, &self.free));
        self.sorted(outer).into_iter().flat_map(within).collect()
    }

    /// How many there must be for the part to be whole. Sockets and cores are taken to be alike, as upstream does.
    fn whole(&self, part: Part, id: u32) -> usize {
        match part {
            Socket | Core => self.machine.cpus_per(part),
            Node | Cache => self.machine.within(part, id, &self.machine.all()).len(),
        }
    }

    fn take_full(&mut self, part: Part) {
        for id in self.sorted(part) {
            let free = self.machine.within(part, id, &self.free);
            if free.len() == self.whole(part, id) && self.needed >= free.len() {
                self.take(&free);
            }
        }
    }

    /// Whole caches, and of those that are left the first that has all that is still wanted.
    fn take_caches(&mut self) {
        for cache in self.sorted(Cache) {
            if self.needed >= self.machine.cpus_per(Cache) {
                self.take_full(Cache);
            }
            if self.needed == 0 {
                return;
            }
            let threads = self.machine.cpus_per(Core).max(1);
            let free = self.machine.within(Cache, cache, &self.free);
            let cores = self.machine.parts(Core, &free).into_iter().take(self.needed.div_ceil(threads));
            let cores: Vec<u32> = cores.collect();
            let of_cores = |cpu: &u32| cores.iter().any(|core| self.machine.cpus[cpu].core == *core);
            let mut found: Vec<u32> = self.free.iter().filter(of_cores).collect();
            if !self.needed.is_multiple_of(2) && threads > 1 && found.len() > self.needed {
                found.pop();
            }
            if found.len() == self.needed {
                self.take(&found.into_iter().collect());
                return;
            }
        }
    }

    fn take_rest(&mut self) {
        for core in self.sorted(Core) {
            let free = self.machine.within(Core, core, &self.free);
            self.take(&free.iter().take(self.needed).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::machine::tests::{listed, machine},
        *,
    };

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    /// Upstream's `topoSingleSocketHT`.
    fn single() -> Machine {
        machine(1, 1, 4, 2)
    }

    /// Upstream's `topoDualSocketHT`: even processors are of the first socket.
    fn dual() -> Machine {
        listed(2, &[(0, 0, 0, "0,2,4,6,8,10"), (1, 1, 0, "1,3,5,7,9,11")])
    }

    /// Upstream's `topoDualSocketMultiNumaPerSocketHT`.
    fn multi() -> Machine {
        machine(4, 2, 10, 2)
    }

    /// The cases of upstream's `commonTakeByTopologyTestCases`, which both ways have in common.
    fn common() -> Vec<(Machine, &'static str, usize, Result<&'static str, &'static str>)> {
        let few = Err("not enough cpus available to satisfy request: requested=5, available=4");
        vec![
            (single(), "0,2,4,6", 5, few),
            (single(), "0-7", 0, Ok("")),
            (single(), "0-7", 1, Ok("0")),
            (single(), "1,3,5-7", 1, Ok("6")),
            (single(), "0-7", 2, Ok("0,4")),
            (single(), "0-7", 8, Ok("0-7")),
            (single(), "0-3,6", 2, Ok("2,6")),
            (dual(), "0-11", 6, Ok("0,2,4,6,8,10")),
            (multi(), "0-79", 40, Ok("0-19,40-59")),
            (multi(), "0-79", 20, Ok("0-9,40-49")),
            (multi(), "10-39,50-79", 20, Ok("10-19,50-59")),
            (multi(), "0-79", 60, Ok("0-29,40-69")),
            (multi(), "1-39,41-79", 60, Ok("10-39,50-79")),
        ]
    }

    #[test]
    fn processors_are_packed() {
        // Upstream's `TestTakeByTopologyNUMAPacked`.
        let mut cases = common();
        cases.extend([
            (dual(), "1-5,7-11", 1, Ok("2")),
            (dual(), "0-11", 8, Ok("0-2,4,6-8,10")),
            (multi(), "0-79", 64, Ok("0-31,40-71")),
        ]);
        for (machine, free, count, expected) in cases {
            let found = packed(&machine, &set(free), count, false);
            assert_eq!(found, expected.map(set).map_err(str::to_owned), "{count} of {free}");
        }
    }

    #[test]
    fn processors_with_one_cache_are_packed() {
        let caches = |sockets: [(u32, u32); 4]| {
            let lists = ["0-3", "4-7", "8-11", "12-15"];
            let all = (0..4).zip(lists).zip(sockets).map(|((cache, list), (s, n))| (s, n, cache, list));
            listed(1, &all.collect::<Vec<_>>())
        };
        let one = || caches([(0, 0); 4]);
        let two = || caches([(0, 0), (0, 0), (1, 0), (1, 0)]);
        let nodes = || caches([(0, 0), (0, 0), (0, 1), (0, 1)]);
        let threads = || listed(2, &[(0, 0, 0, "0-3,8-11"), (0, 0, 1, "4-7,12-15")]);
        let cases = [
            (one(), "1-15", 10, "1-2,4-11"),
            (dual(), "1-5,7-11", 1, "1"),
            (two(), "0-15", 4, "0-3"),
            (two(), "2-15", 6, "2-7"),
            (two(), "8-15", 4, "8-11"),
            (nodes(), "3,4-8,12", 2, "4-5"),
            (threads(), "2-3,10-11,4-7,12-15", 6, "4-6,12-14"),
            (threads(), "1-7,9-15", 10, "1,4-7,9,12-15"),
        ];
        for (machine, free, count, expected) in cases {
            assert_eq!(packed(&machine, &set(free), count, true), Ok(set(expected)), "{count} of {free}");
        }
    }

    #[test]
    fn processors_are_spread_evenly() {
        // Upstream's `TestTakeByTopologyNUMADistributed`, with the size of groups.
        for (machine, free, count, expected) in common() {
            let found = distributed(&machine, &set(free), count, 1);
            assert_eq!(found, expected.map(set).map_err(str::to_owned), "{count} of {free}");
        }
        let large = machine(8, 4, 16, 2);
        let live = "0,128,30,31,158,159,43-47,171-175,62,63,190,191,75-79,203-207,94,96,222,223,101-111,229-239,126,127,254,255";
        let cases = [
            (dual(), "0-11", 8, 1, "0-3,6-9"),
            (multi(), "0-79", 64, 1, "0-7,10-17,20-27,30-37,40-47,50-57,60-67,70-77"),
            (multi(), "0-79", 48, 1, "0-7,10-17,20-27,40-47,50-57,60-67"),
            (multi(), "1-29,32-39,41-69,72-79", 48, 1, "1-8,10-17,20-27,41-48,50-57,60-67"),
            (multi(), "2-29,31-39,42-69,71-79", 48, 1, "10-17,20-27,31-38,50-57,60-67,71-78"),
            (
                multi(),
                "0-2,10-12,20-22,30-32,40-41,50-51,60-61,70-71",
                16,
                1,
                "0-1,10-11,20-21,30-31,40-41,50-51,60-61,70-71",
            ),
            (dual(), "1-5,7-11", 1, 1, "1"),
            (dual(), "1-5,7-11", 1, 2, "2"),
            (multi(), "0-79", 26, 1, "0-6,10-16,40-45,50-55"),
            (multi(), "0-79", 26, 2, "0-6,10-15,40-46,50-55"),
            (multi(), "0-79", 62, 1, "0-7,10-17,20-27,30-37,40-47,50-57,60-66,70-76"),
            (multi(), "0-79", 62, 2, "0-7,10-17,20-27,30-36,40-47,50-57,60-67,70-76"),
            (
                multi(),
                "0-8,10-18,20-39,40-48,50-58,60-79",
                62,
                1,
                "0-7,10-17,20-27,30-37,40-46,50-56,60-67,70-77",
            ),
            (
                multi(),
                "0-8,10-18,20-39,40-48,50-58,60-79",
                62,
                2,
                "0-7,10-16,20-27,30-37,40-47,50-56,60-67,70-77",
            ),
            (
                multi(),
                "0-3,10-13,20-23,30-36,40-43,50-53,60-63,70-76",
                34,
                1,
                "0-3,10-13,20-23,30-34,40-43,50-53,60-63,70-74",
            ),
            (large, live, 28, 1, "43-47,75-79,96,101-105,171-174,203-206,229-232"),
        ];
        for (machine, free, count, group, expected) in cases {
            let found = distributed(&machine, &set(free), count, group);
            assert_eq!(found, Ok(set(expected)), "{count} of {free}");
        }
    }

    proptest! {
        /// Whoever wants as many as there are or fewer gets as many, and of the free ones.
        #[test]
        fn what_is_taken_was_free(
            shape in (1_u32..5, 1_u32..3, 1_u32..5, 1_u32..3),
            free in proptest::collection::btree_set(0_u32..40, 0..40),
            count in 0_usize..40,
            group in 1_usize..3,
        ) {
            let machine = machine(shape.0, shape.1, shape.2, shape.3);
            let free = free.into_iter().collect::<CpuSet>().intersection(&machine.all());
            for found in [
                packed(&machine, &free, count, false),
                packed(&machine, &free, count, true),
                distributed(&machine, &free, count, group),
            ] {
                prop_assert_eq!(found.is_ok(), count <= free.len());
                if let Ok(found) = found {
                    prop_assert_eq!(found.len(), count);
                    prop_assert!(found.is_subset(&free));
                }
            }
        }
    }
}
