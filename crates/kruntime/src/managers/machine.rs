use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use super::CpuSet;

/// A processor: a thread of a core, where cores have several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// The core, by the lowest of its threads.
    pub core: u32,
    /// The socket.
    pub socket: u32,
    /// The NUMA node.
    pub node: u32,
    /// The last-level cache that it shares with others; the socket where that is not known.
    pub cache: u32,
}

/// Memory with the processors that are near to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Its memory in bytes, huge pages included.
    pub memory_bytes: u64,
    /// How many bytes there are in huge pages, by the size of the pages in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
    /// How far it is to each node, in the order of their numbers, as the firmware says it: 10 to itself.
    pub distances: Vec<u64>,
}

/// What a machine is made of, as far as the managers care.
///
/// [`read`](Self::read) finds it out; a test, or who knows better, fills it in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The processors that are on line, by their numbers.
    pub cpus: BTreeMap<u32, Cpu>,
    /// The NUMA nodes, by their numbers; there is at least one, and none has a number above 63.
    pub nodes: BTreeMap<u32, NumaNode>,
}

/// What a processor is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Node,
    Socket,
    Cache,
    Core,
}

impl Cpu {
    pub(super) fn of(&self, part: Part) -> u32 {
        match part {
            Part::Node => self.node,
            Part::Socket => self.socket,
            Part::Cache => self.cache,
            Part::Core => self.core,
        }
    }
}

impl Machine {
    /// Reads `sys` and `proc` below `root`, which is `/` but in tests. A kernel that knows no NUMA nodes has one, with everything.
    ///
    /// # Errors
    /// When no processor can be found, or a node has a number above 63.
    pub fn read(root: &Path) -> io::Result<Self> {
        let devices = root.join("sys/devices/system");
        let text = |path: &str| fs::read_to_string(devices.join(path)).map(|text| text.trim().to_owned());
        let list = |path: &str| text(path)?.parse::<CpuSet>().map_err(io::Error::other);
        let number = |path: &str| text(path).ok().and_then(|text| text.parse::<u32>().ok());
        let online = list("cpu/online")?;
        let mut near: BTreeMap<u32, u32> = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        for entry in fs::read_dir(devices.join("node")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix("node")?.parse::<u32>().ok());
            let Some(id) = id else { continue };
            if id > 63 {
                return Err(io::Error::other(format!("there is a NUMA node {id}, and 63 is the last one")));
            }
            near.extend(list(&format!("node/node{id}/cpulist"))?.iter().map(|cpu| (cpu, id)));
            let distances = text(&format!("node/node{id}/distance")).unwrap_or_default();
            nodes.insert(
                id,
                NumaNode {
                    memory_bytes: total(&text(&format!("node/node{id}/meminfo"))?),
                    huge_pages: huge_pages(&devices.join(format!("node/node{id}/hugepages"))),
                    distances: distances.split_whitespace().filter_map(|text| text.parse().ok()).collect(),
                },
            );
        }
        if nodes.is_empty() {
            let memory_bytes = total(&fs::read_to_string(root.join("proc/meminfo"))?);
            let huge_pages = huge_pages(&root.join("sys/kernel/mm/hugepages"));
            nodes.insert(0, NumaNode { memory_bytes, huge_pages, distances: vec![10] });
        }
        let mut cpus = BTreeMap::new();
        for cpu in online.iter() {
            let at = |file: &str| format!("cpu/cpu{cpu}/{file}");
            let threads = list(&at("topology/thread_siblings_list")).unwrap_or_default();
            let socket = number(&at("topology/physical_package_id")).unwrap_or(0);
            let core = threads.intersection(&online).iter().next().unwrap_or(cpu);
            let cache = number(&at("cache/index3/id")).unwrap_or(socket);
            cpus.insert(cpu, Cpu { core, socket, node: near.get(&cpu).copied().unwrap_or(0), cache });
        }
        if cpus.is_empty() {
            return Err(io::Error::other("could not detect number of cpus"));
        }
        Ok(Self { cpus, nodes })
    }

    /// All processors.
    #[must_use]
    pub fn all(&self) -> CpuSet {
        self.cpus.keys().copied().collect()
    }

    /// The different parts that these processors are of.
    pub(super) fn parts(&self, part: Part, cpus: &CpuSet) -> BTreeSet<u32> {
        cpus.iter().filter_map(|cpu| Some(self.cpus.get(&cpu)?.of(part))).collect()
    }

    /// Those of `cpus` that are of this part.
    pub(super) fn within(&self, part: Part, id: u32, cpus: &CpuSet) -> CpuSet {
        cpus.iter().filter(|cpu| self.cpus.get(cpu).is_some_and(|known| known.of(part) == id)).collect()
    }

    /// How many processors each such part has, if they are all alike.
    pub(super) fn cpus_per(&self, part: Part) -> usize {
        self.cpus.len() / self.parts(part, &self.all()).len().max(1)
    }
}

/// What a `meminfo` says of `MemTotal`, in bytes.
fn total(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.split_once("MemTotal:"));
    let kilobytes = line.and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0).saturating_mul(1024)
}

fn huge_pages(dir: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let kilobytes: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count: u64 = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        let size = kilobytes.checked_mul(1024)?;
        Some((size, size.saturating_mul(count)))
    };
    entries.filter_map(read).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine of so many nodes, whose sockets have `per_socket` of them, with `cores` each of `threads` threads. The first threads of
    /// all cores are numbered before the second ones, as firmware does.
    pub(crate) fn machine(nodes: u32, per_socket: u32, cores: u32, threads: u32) -> Machine {
        let all = nodes * cores;
        let cpu = |cpu: u32| {
            let core = cpu % all;
            let node = core / cores;
            Cpu { core, socket: node / per_socket, node, cache: node }
        };
        let node = |_| NumaNode { memory_bytes: 10 << 30, ..NumaNode::default() };
        Machine {
            cpus: (0..all * threads).map(|id| (id, cpu(id))).collect(),
            nodes: (0..nodes).map(|id| (id, node(id))).collect(),
        }
    }

    /// A machine whose processors are given as lists: of the socket, the node and the cache.
    pub(crate) fn listed(threads: u32, lists: &[(u32, u32, u32, &str)]) -> Machine {
        let mut found = Machine::default();
        for (socket, node, cache, list) in lists {
            let list: Vec<u32> = list.parse::<CpuSet>().unwrap().iter().collect();
            let cores = list.len() / threads as usize;
            for (index, id) in list.iter().enumerate() {
                let core = list[index % cores];
                found.cpus.insert(*id, Cpu { core, socket: *socket, node: *node, cache: *cache });
            }
            found.nodes.insert(*node, NumaNode { memory_bytes: 10 << 30, ..NumaNode::default() });
        }
        found
    }

    #[test]
    fn a_machine_is_read_from_files_as_the_kernels() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let system = "sys/devices/system";
        put(&format!("{system}/cpu/online"), "0-3\n");
        for cpu in 0..5 {
            let (core, node) = (cpu % 2, cpu % 2);
            let at = |file: &str| format!("{system}/cpu/cpu{cpu}/{file}");
            put(&at("topology/thread_siblings_list"), &format!("{core},{}\n", core + 2));
            put(&at("topology/physical_package_id"), &format!("{node}\n"));
            if cpu < 2 {
                put(&at("cache/index3/id"), "7\n");
            }
        }
        for (node, cpus) in [(0, "0,2,4"), (1, "1,3")] {
            let at = |file: &str| format!("{system}/node/node{node}/{file}");
            put(&at("cpulist"), cpus);
            put(&at("distance"), "10 21\n");
            put(&at("meminfo"), &format!("Node {node} MemTotal:       2048 kB\nNode {node} MemFree: 1 kB\n"));
            put(&at("hugepages/hugepages-2048kB/nr_hugepages"), "3\n");
        }
        put(&format!("{system}/node/possible"), "0-1\n");
        let found = Machine::read(dir.path()).unwrap();
        let node = NumaNode {
            memory_bytes: 2 << 20,
            huge_pages: [(2 << 20, 6 << 20)].into(),
            distances: vec![10, 21],
        };
        assert_eq!(found.nodes, [(0, node.clone()), (1, node)].into());
        // Processor 4 is off, and the cache of the last two is not known.
        let cpu = |core, node, cache| Cpu { core, socket: node, node, cache };
        let cpus = [(0, cpu(0, 0, 7)), (1, cpu(1, 1, 7)), (2, cpu(0, 0, 0)), (3, cpu(1, 1, 1))];
        assert_eq!(found.cpus, cpus.into());

        // A kernel without NUMA nodes.
        fs::remove_dir_all(dir.path().join(format!("{system}/node"))).unwrap();
        put("proc/meminfo", "MemTotal:        1024 kB\n");
        let found = Machine::read(dir.path()).unwrap();
        assert_eq!(found.nodes[&0].memory_bytes, 1 << 20);
        assert!(found.cpus.values().all(|cpu| cpu.node == 0));
        assert!(Machine::read(&dir.path().join("nowhere")).is_err());
    }
}
