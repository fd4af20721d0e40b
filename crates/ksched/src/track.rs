//! Rules that follow the cluster from pod to pod, instead of looking at all of it for each.
//!
//! A [`Planner`](crate::Planner) keeps, for each class of equal pods, what the plug-ins say about every node, and brings
//! it up to date when something changes. A plug-in says by [`Track`] how that is done for it; without saying anything it
//! is asked anew for every pod, which is always right.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;

use crate::{
    pod::PodInfo,
    snapshot::{NodeIndex, Snapshot},
};

/// How what a plug-in says about nodes is kept up to date for pods that are equal.
pub enum Track<T: ?Sized> {
    /// Not at all: it is asked anew for each pod.
    Anew,
    /// What it says about a node depends on the pod, on that node and on the pods there, and on the objects of other kinds that
    /// it looks at for it: it is asked when these change. How many nodes have one of the pod's images counts as its node's.
    Node,
    /// This follows what happens to pods.
    Follow(Box<T>),
}

impl<T: ?Sized> std::fmt::Debug for Track<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anew => "Anew",
            Self::Node => "Node",
            Self::Follow(_) => "Follow",
        })
    }
}

/// A pod came onto a node or left it. One that has changed leaves as it was and comes as it is.
#[derive(Clone, Copy, Debug)]
pub struct PodChange<'a> {
    /// The pod.
    pub pod: &'a PodInfo,
    /// Its node.
    pub node: NodeIndex,
    /// Whether it came.
    pub came: bool,
}

impl PodChange<'_> {
    /// 1 or -1.
    #[must_use]
    pub fn sign(&self) -> i64 {
        if self.came { 1 } else { -1 }
    }
}

/// A filter for one class of pods. The labels and taints of nodes stay as they are during its life.
pub trait FilterTracker: Send {
    /// Takes a change over. `false` when it can't: then it is made anew.
    fn pod_changed(&mut self, change: PodChange<'_>) -> bool;

    /// What a node offers has changed: its capacity or its images, but neither its labels nor its taints nor whether it takes
    /// pods. `false`, the default, when that matters: then it is made anew, as it is after any other change of a node.
    fn node_changed(&mut self, _node: NodeIndex) -> bool {
        false
    }

    /// Whether every node passes now.
    fn is_silent(&self) -> bool;

    /// Keeps the nodes that pass.
    fn retain(&mut self, nodes: &mut Vec<NodeIndex>);
}

/// A score for one class of pods. The labels and taints of nodes stay as they are during its life.
pub trait ScoreTracker: Send {
    /// Takes a change over. `false` when it can't: then it is made anew.
    fn pod_changed(&mut self, change: PodChange<'_>) -> bool;

    /// What a node offers has changed: its capacity or its images, but neither its labels nor its taints nor whether it takes
    /// pods. `false`, the default, when that matters: then it is made anew, as it is after any other change of a node.
    fn node_changed(&mut self, _node: NodeIndex) -> bool {
        false
    }

    /// Whether all nodes have the same score now, whichever are feasible.
    fn is_silent(&self) -> bool;

    /// The normalized scores of the nodes, which are all that are feasible.
    fn scores(&mut self, nodes: &[NodeIndex]) -> Vec<i64>;
}

const _: Option<&dyn FilterTracker> = None;
const _: Option<&dyn ScoreTracker> = None;

/// The values of one label, as numbers, on all nodes.
#[derive(Debug)]
pub struct Topology {
    /// The number of each node's value; [`Topology::NONE`] for nodes without the label.
    pub values: Vec<u32>,
    /// How many values there are.
    pub count: usize,
}

impl Topology {
    /// Stands for nodes without the label.
    pub const NONE: u32 = u32::MAX;

    /// The number of a node's value.
    #[must_use]
    pub fn value(&self, node: NodeIndex) -> Option<usize> {
        let value = self.values[node];
        (value != Self::NONE).then_some(value as usize)
    }
}

/// The cluster, as a tracker sees it when it is made.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Nodes and pods.
    pub snapshot: &'a Snapshot,
    topologies: &'a mut HashMap<Arc<str>, Arc<Topology>, RandomState>,
}

impl<'a> Surroundings<'a> {
    pub(crate) fn new(
        snapshot: &'a Snapshot,
        topologies: &'a mut HashMap<Arc<str>, Arc<Topology>, RandomState>,
    ) -> Self {
        Self { snapshot, topologies }
    }

    /// The values of a label. They are found once, and shared.
    pub fn topology(&mut self, key: &Arc<str>) -> Arc<Topology> {
        if let Some(known) = self.topologies.get(key) {
            return Arc::clone(known);
        }
        let mut numbers: HashMap<&str, u32, RandomState> = HashMap::default();
        let values = self.snapshot.nodes().map(|node| match node.info().labels.get(key) {
            None => Topology::NONE,
            Some(value) => {
                let next = u32::try_from(numbers.len()).unwrap_or(Topology::NONE);
                *numbers.entry(value).or_insert(next)
            }
        });
        let values = values.collect();
        let topology = Arc::new(Topology { values, count: numbers.len() });
        self.topologies.insert(Arc::clone(key), Arc::clone(&topology));
        topology
    }
}
