//! The numbers of all nodes, one array per kind of number.
//!
//! A rule that looks at one number of every node reads memory from front to back, which is what makes looking at every
//! node cheap.

use std::sync::Arc;

use fixedbitset::FixedBitSet;

use crate::{node::NodeInfo, pod::PodInfo, resources::Resources};

/// One resource on all nodes, by node index.
#[derive(Clone, Debug, Default)]
pub struct ResourceColumn {
    /// What pods may take.
    pub allocatable: Vec<i64>,
    /// What pods have taken.
    pub requested: Vec<i64>,
}

/// All columns. Every array has one entry per node; the index is the node's in its
/// [`Snapshot`](crate::snapshot::Snapshot).
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// CPU in thousandths.
    pub cpu: ResourceColumn,
    /// Memory in bytes.
    pub memory: ResourceColumn,
    /// Local ephemeral storage in bytes.
    pub ephemeral_storage: ResourceColumn,
    /// Extended resources, by name. Few, so they are searched one by one.
    pub scalars: Vec<(Arc<str>, ResourceColumn)>,
    /// Requested CPU as it counts in scores.
    pub score_milli_cpu: Vec<i64>,
    /// Requested memory as it counts in scores.
    pub score_memory: Vec<i64>,
    /// How many pods there are.
    pub pods: Vec<i64>,
    /// How many pods there may be.
    pub pods_max: Vec<i64>,
    /// The nodes that are cordoned.
    pub unschedulable: FixedBitSet,
    /// The nodes with a taint of effect `NoSchedule` or `NoExecute`.
    pub hard_tainted: FixedBitSet,
    /// The nodes with a taint of effect `PreferNoSchedule`.
    pub soft_tainted: FixedBitSet,
}

impl Columns {
    /// The column of an extended resource; `None` when no node knows it.
    #[must_use]
    pub fn scalar(&self, name: &str) -> Option<&ResourceColumn> {
        self.scalars.iter().find(|(known, _)| **known == *name).map(|(_, column)| column)
    }

    /// The column of a resource, by its Kubernetes name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&ResourceColumn> {
        match name {
            "cpu" => Some(&self.cpu),
            "memory" => Some(&self.memory),
            "ephemeral-storage" => Some(&self.ephemeral_storage),
            name => self.scalar(name),
        }
    }

    fn each_array(&mut self, mut action: impl FnMut(&mut Vec<i64>)) {
        let basic = [&mut self.cpu, &mut self.memory, &mut self.ephemeral_storage];
        for column in basic.into_iter().chain(self.scalars.iter_mut().map(|(_, column)| column)) {
            action(&mut column.allocatable);
            action(&mut column.requested);
        }
        for array in [&mut self.score_milli_cpu, &mut self.score_memory, &mut self.pods, &mut self.pods_max] {
            action(array);
        }
    }

    /// Adds an empty row at the end.
    pub(super) fn push(&mut self) {
        self.each_array(|array| array.push(0));
        let length = self.pods.len();
        for set in [&mut self.unschedulable, &mut self.hard_tainted, &mut self.soft_tainted] {
            set.grow(length);
        }
    }

    /// Removes a row; the last one takes its place.
    pub(super) fn swap_remove(&mut self, row: usize) {
        let last = self.pods.len() - 1;
        self.each_array(|array| {
            array.swap_remove(row);
        });
        for set in [&mut self.unschedulable, &mut self.hard_tainted, &mut self.soft_tainted] {
            let moved = set.contains(last);
            set.set(row, moved);
            set.set(last, false);
        }
    }

    /// Writes what the node itself says; what pods take stays as it is.
    pub(super) fn set_node(&mut self, row: usize, node: &NodeInfo) {
        let Resources { milli_cpu, memory, ephemeral_storage, scalars } = &node.allocatable;
        self.cpu.allocatable[row] = *milli_cpu;
        self.memory.allocatable[row] = *memory;
        self.ephemeral_storage.allocatable[row] = *ephemeral_storage;
        for name in scalars.keys() {
            self.ensure_scalar(name);
        }
        for (name, column) in &mut self.scalars {
            column.allocatable[row] = scalars.get(name).copied().unwrap_or_default();
        }
        self.pods_max[row] = node.pods_max;
        self.unschedulable.set(row, node.unschedulable);
        let has = |effects: &[&str]| node.taints.iter().any(|taint| effects.contains(&taint.effect.as_str()));
        self.hard_tainted.set(row, has(&["NoSchedule", "NoExecute"]));
        self.soft_tainted.set(row, has(&["PreferNoSchedule"]));
    }

    /// Adds (`sign` 1) or takes away (-1) what a pod takes.
    pub(super) fn count_pod(&mut self, row: usize, pod: &PodInfo, sign: i64) {
        self.cpu.requested[row] += sign * pod.requests.milli_cpu;
        self.memory.requested[row] += sign * pod.requests.memory;
        self.ephemeral_storage.requested[row] += sign * pod.requests.ephemeral_storage;
        for (name, amount) in &pod.requests.scalars {
            let column = self.ensure_scalar(name);
            self.scalars[column].1.requested[row] += sign * amount;
        }
        self.score_milli_cpu[row] += sign * pod.score_milli_cpu;
        self.score_memory[row] += sign * pod.score_memory;
        self.pods[row] += sign;
    }

    fn ensure_scalar(&mut self, name: &Arc<str>) -> usize {
        if let Some(column) = self.scalars.iter().position(|(known, _)| known == name) {
            return column;
        }
        let empty = vec![0; self.pods.len()];
        self.scalars
            .push((Arc::clone(name), ResourceColumn { allocatable: empty.clone(), requested: empty }));
        self.scalars.len() - 1
    }
}
