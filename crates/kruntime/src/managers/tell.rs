//! What containers have alone of processors and memory, for others on the node.

use super::{ResourceManagers, memory::Block};
use crate::pod_resources::proto::{ContainerMemory, TopologyInfo};

fn memory(block: &Block) -> ContainerMemory {
    ContainerMemory {
        memory_type: block.resource.clone(),
        size: block.size,
        topology: Some(TopologyInfo::of(block.numa_affinity.iter().copied())),
    }
}

impl ResourceManagers {
    /// The processors that a container has alone.
    pub(crate) fn tell_cpus(&self, uid: &str, container: &str) -> Vec<i64> {
        let given = self.given();
        given.cpu.of(uid, container).into_iter().flat_map(|cpus| cpus.iter()).map(i64::from).collect()
    }

    /// The processors that containers can have alone, whether they do or not; none without the static policy.
    pub(crate) fn tell_allocatable_cpus(&self) -> Vec<i64> {
        let Some(policy) = &self.cpu else { return Vec::new() };
        self.machine.all().difference(&policy.reserved).iter().map(i64::from).collect()
    }

    /// The memory that a container was given.
    pub(crate) fn tell_memory(&self, uid: &str, container: &str) -> Vec<ContainerMemory> {
        self.given().memory.of(uid, container).unwrap_or_default().iter().map(memory).collect()
    }

    /// The memory that containers can be given, whether they are or not; none without the static policy.
    pub(crate) fn tell_allocatable_memory(&self) -> Vec<ContainerMemory> {
        self.given().memory.allocatable().iter().map(memory).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;
    use crate::managers::{
        CpuManagerPolicy, CpuOptions, ManagerOptions, MemoryManagerPolicy, machine::tests::listed,
    };

    const GI: u64 = 1 << 30;

    #[test]
    fn others_are_told_what_is_given_and_what_can_be() {
        let reserved: BTreeMap<String, Quantity> = [("cpu", "1"), ("memory", "1Gi")]
            .map(|(name, text)| (name.to_owned(), Quantity(text.to_owned())))
            .into();
        let machine = || listed(1, &[(0, 0, 0, "0-1"), (1, 1, 0, "2-3")]);
        let options = ManagerOptions {
            cpu: CpuManagerPolicy::Static(CpuOptions::default()),
            memory: MemoryManagerPolicy::Static {
                reserved: [(0, [("memory".to_owned(), GI)].into())].into(),
            },
            ..ManagerOptions::default()
        };
        let managers = ResourceManagers::open(machine(), options, &reserved, None).unwrap();
        {
            let mut given = managers.given();
            given.cpu.given.insert("p".to_owned(), [("c".to_owned(), "2-3".parse().unwrap())].into());
            let block = Block { numa_affinity: vec![0, 1], resource: "memory".to_owned(), size: 12 * GI };
            given.memory.given.insert("p".to_owned(), [("c".to_owned(), vec![block])].into());
        }
        let memory = |size: u64, nodes: &[u32]| ContainerMemory {
            memory_type: "memory".to_owned(),
            size,
            topology: Some(TopologyInfo::of(nodes.iter().copied())),
        };
        assert_eq!(managers.tell_allocatable_cpus(), [1, 2, 3]);
        assert_eq!(managers.tell_allocatable_memory(), [memory(9 * GI, &[0]), memory(10 * GI, &[1])]);
        assert_eq!(managers.tell_cpus("p", "c"), [2, 3]);
        assert_eq!(managers.tell_memory("p", "c"), [memory(12 * GI, &[0, 1])]);
        assert!(managers.tell_cpus("p", "other").is_empty() && managers.tell_memory("q", "c").is_empty());

        let without = ResourceManagers::open(machine(), ManagerOptions::default(), &reserved, None).unwrap();
        assert!(without.tell_allocatable_cpus().is_empty() && without.tell_allocatable_memory().is_empty());
    }
}
