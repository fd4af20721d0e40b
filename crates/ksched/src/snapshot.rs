//! The state of the cluster that decisions are made on.

pub mod catalog;
pub mod columns;

use std::{collections::HashMap, fmt, sync::Arc};

use ahash::RandomState;

use crate::{
    node::NodeInfo,
    pod::{HostPort, PodInfo},
    snapshot::{catalog::Catalog, columns::Columns},
};

type Map<K, V> = HashMap<K, V, RandomState>;

/// A node's number within one state of a [`Snapshot`]. It changes when nodes are removed.
pub type NodeIndex = usize;

/// All nodes with what runs on them, in columns, kept up to date step by step.
///
/// A clone shares everything with the original until one of the two is changed, so that "what if" costs nothing until
/// it is asked: clone, [`place`](Self::place) or [`remove_pod`](Self::remove_pod), and
/// [`decide`](crate::cycle::decide) again.
///
/// ```
/// use ksched::{Snapshot, build::{node, pod}};
///
/// let mut snapshot = Snapshot::new();
/// snapshot.set_node(node("a").resource("cpu", "2").info());
/// let mut what_if = snapshot.clone();
/// what_if.place(&pod("p").request("cpu", "500m").info().into(), "a");
/// assert_eq!(what_if.columns().cpu.requested, [500]);
/// assert_eq!(snapshot.columns().cpu.requested, [0]);
/// ```
#[derive(Clone, Default)]
pub struct Snapshot {
    names: Arc<Vec<Arc<str>>>,
    /// Mixed hashes of the names, for choices that don't depend on the order of nodes.
    name_hashes: Arc<Vec<u64>>,
    /// Each shared by itself, so that a copy to try things on is cheap.
    nodes: Arc<Vec<Arc<Slot>>>,
    index: Arc<Map<Arc<str>, NodeIndex>>,
    columns: Arc<Columns>,
    /// On which node each pod is, by uid.
    pods: Arc<Map<Arc<str>, Placed>>,
    /// Pods on nodes that are not known (yet), by the node's name.
    waiting: Arc<Map<Arc<str>, Vec<Arc<PodInfo>>>>,
    /// How many nodes have an image.
    images: Arc<Map<Arc<str>, i64>>,
    catalog: Catalog,
    /// The placed pods that say something about other pods, by uid.
    with_affinity: Arc<Map<Arc<str>, Arc<PodInfo>>>,
}

#[derive(Clone)]
struct Slot {
    info: Arc<NodeInfo>,
    pods: Vec<Arc<PodInfo>>,
    ports: Vec<HostPort>,
}

#[derive(Clone)]
struct Placed {
    node: Arc<str>,
    pod: Arc<PodInfo>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("nodes", &self.len())
            .field("pods", &self.pods.len())
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// A cluster without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The numbers of all nodes.
    #[must_use]
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// The objects of other kinds.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The objects of other kinds, to be changed.
    pub fn catalog_mut(&mut self) -> &mut Catalog {
        &mut self.catalog
    }

    /// The node's index.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<NodeIndex> {
        self.index.get(name).copied()
    }

    /// A node.
    ///
    /// # Panics
    /// When there is no such index; indexes that plug-ins are given are there.
    #[must_use]
    pub fn node(&self, index: NodeIndex) -> NodeView<'_> {
        NodeView { snapshot: self, slot: &self.nodes[index], index }
    }

    /// All nodes in the order of their indexes.
    pub fn nodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        (0..self.len()).map(|index| self.node(index))
    }

    /// The names of the nodes by index, shared.
    #[must_use]
    pub fn names(&self) -> &Arc<Vec<Arc<str>>> {
        &self.names
    }

    /// How many pods there are.
    pub(crate) fn pods_len(&self) -> usize {
        self.pods.len()
    }

    pub(crate) fn name_hash(&self, index: NodeIndex) -> u64 {
        self.name_hashes[index]
    }

    /// How many nodes have an image; `name` with its tag.
    #[must_use]
    pub fn nodes_with_image(&self, name: &str) -> i64 {
        self.images.get(name).copied().unwrap_or_default()
    }

    /// The node that a pod is on or assumed on, by the pod's uid.
    #[must_use]
    pub fn node_of(&self, uid: &str) -> Option<&Arc<str>> {
        self.pods.get(uid).map(|placed| &placed.node)
    }

    /// The pod as it was placed, by its uid.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|placed| &placed.pod)
    }

    /// The pods that say something about other pods, with their nodes; in no particular order.
    pub fn pods_with_affinity(&self) -> impl Iterator<Item = (&Arc<PodInfo>, NodeView<'_>)> {
        self.with_affinity.values().filter_map(|pod| {
            let index = self.find(&self.pods.get(&pod.uid)?.node)?;
            Some((pod, self.node(index)))
        })
    }

    /// Adds a node, or puts it in the place of the one with the same name; its pods stay.
    pub fn set_node(&mut self, node: impl Into<Arc<NodeInfo>>) {
        let node: Arc<NodeInfo> = node.into();
        if let Some(index) = self.find(&node.name) {
            let known = Arc::clone(&self.nodes[index].info);
            if known.images != node.images {
                self.count_images(&known, -1);
                self.count_images(&node, 1);
            }
            if !known.same_for_scheduling(&node) {
                Arc::make_mut(&mut self.columns).set_node(index, &node);
            }
            self.slot_mut(index).info = node;
            return;
        }
        let index = self.len();
        self.count_images(&node, 1);
        let columns = Arc::make_mut(&mut self.columns);
        columns.push();
        columns.set_node(index, &node);
        Arc::make_mut(&mut self.index).insert(Arc::clone(&node.name), index);
        Arc::make_mut(&mut self.names).push(Arc::clone(&node.name));
        Arc::make_mut(&mut self.name_hashes).push(hash(node.name.as_bytes()));
        let pods = if self.waiting.contains_key(&node.name) {
            Arc::make_mut(&mut self.waiting).remove(&node.name).unwrap_or_default()
        } else {
            Vec::new()
        };
        let slot = Slot { info: node, pods: Vec::new(), ports: Vec::new() };
        Arc::make_mut(&mut self.nodes).push(Arc::new(slot));
        for pod in pods {
            self.count_pod(index, &pod);
        }
    }

    /// Removes a node. Its pods are remembered until they are removed, and count again when the node comes back.
    pub fn remove_node(&mut self, name: &str) {
        let Some(index) = self.find(name) else { return };
        let slot = Arc::make_mut(&mut self.nodes).swap_remove(index);
        self.count_images(&slot.info, -1);
        Arc::make_mut(&mut self.columns).swap_remove(index);
        Arc::make_mut(&mut self.names).swap_remove(index);
        Arc::make_mut(&mut self.name_hashes).swap_remove(index);
        let indexes = Arc::make_mut(&mut self.index);
        indexes.remove(name);
        if let Some(moved) = self.nodes.get(index) {
            indexes.insert(Arc::clone(&moved.info.name), index);
        }
        if !slot.pods.is_empty() {
            let slot = Arc::unwrap_or_clone(slot);
            Arc::make_mut(&mut self.waiting).insert(Arc::clone(&slot.info.name), slot.pods);
        }
    }

    /// Puts a pod on a node, or in the place of the pod with the same uid. Pods on unknown nodes are remembered.
    pub fn place(&mut self, pod: &Arc<PodInfo>, node: &str) {
        if let Some(placed) = self.pods.get(&pod.uid) {
            if *placed.node == *node && Arc::ptr_eq(&placed.pod, pod) {
                return;
            }
            self.remove_pod(&pod.uid);
        }
        let name = match self.find(node) {
            Some(index) => {
                self.count_pod(index, pod);
                Arc::clone(&self.names[index])
            }
            None => {
                let name: Arc<str> = node.into();
                let waiting = Arc::make_mut(&mut self.waiting);
                waiting.entry(Arc::clone(&name)).or_default().push(Arc::clone(pod));
                name
            }
        };
        if !pod.pod_affinity.is_empty() {
            Arc::make_mut(&mut self.with_affinity).insert(Arc::clone(&pod.uid), Arc::clone(pod));
        }
        let placed = Placed { node: name, pod: Arc::clone(pod) };
        Arc::make_mut(&mut self.pods).insert(Arc::clone(&pod.uid), placed);
    }

    /// Takes a pod away, by its uid; tells whether it was there.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        if !self.pods.contains_key(uid) {
            return false;
        }
        let Some(Placed { node, pod }) = Arc::make_mut(&mut self.pods).remove(uid) else { return false };
        if !pod.pod_affinity.is_empty() {
            Arc::make_mut(&mut self.with_affinity).remove(uid);
        }
        let Some(index) = self.find(&node) else {
            let waiting = Arc::make_mut(&mut self.waiting);
            if let Some(pods) = waiting.get_mut(&node) {
                pods.retain(|pod| *pod.uid != *uid);
                if pods.is_empty() {
                    waiting.remove(&node);
                }
            }
            return true;
        };
        self.lift(index, &pod);
        true
    }

    /// Takes a pod off its node only: for trials, which look at one node.
    pub(crate) fn lift(&mut self, index: NodeIndex, pod: &PodInfo) {
        let slot = self.slot_mut(index);
        let Some(at) = slot.pods.iter().position(|known| known.uid == pod.uid) else { return };
        let pod = slot.pods.swap_remove(at);
        for port in &pod.host_ports {
            if let Some(at) = slot.ports.iter().position(|known| known == port) {
                slot.ports.swap_remove(at);
            }
        }
        Arc::make_mut(&mut self.columns).count_pod(index, &pod, -1);
    }

    /// The opposite of [`lift`](Self::lift).
    pub(crate) fn put_back(&mut self, index: NodeIndex, pod: &Arc<PodInfo>) {
        self.count_pod(index, pod);
    }

    fn slot_mut(&mut self, index: NodeIndex) -> &mut Slot {
        Arc::make_mut(&mut Arc::make_mut(&mut self.nodes)[index])
    }

    fn count_pod(&mut self, index: NodeIndex, pod: &Arc<PodInfo>) {
        let slot = self.slot_mut(index);
        slot.ports.extend_from_slice(&pod.host_ports);
        slot.pods.push(Arc::clone(pod));
        Arc::make_mut(&mut self.columns).count_pod(index, pod, 1);
    }

    fn count_images(&mut self, node: &NodeInfo, sign: i64) {
        if node.images.is_empty() {
            return;
        }
        let images = Arc::make_mut(&mut self.images);
        for name in node.images.keys() {
            let count = images.entry(Arc::clone(name)).or_default();
            *count += sign;
            if *count == 0 {
                images.remove(name);
            }
        }
    }
}

/// One node of a [`Snapshot`].
#[derive(Clone, Copy)]
pub struct NodeView<'a> {
    snapshot: &'a Snapshot,
    slot: &'a Slot,
    index: NodeIndex,
}

impl fmt::Debug for NodeView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeView").field(&self.name()).finish()
    }
}

impl<'a> NodeView<'a> {
    /// The node's index, which is its row in [`Snapshot::columns`].
    #[must_use]
    pub fn index(&self) -> NodeIndex {
        self.index
    }

    /// The snapshot that it belongs to.
    #[must_use]
    pub fn snapshot(&self) -> &'a Snapshot {
        self.snapshot
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        &self.slot.info.name
    }

    /// The node itself.
    #[must_use]
    pub fn info(&self) -> &'a Arc<NodeInfo> {
        &self.slot.info
    }

    /// The pods on it, those included that are assumed to be; in no particular order.
    #[must_use]
    pub fn pods(&self) -> &'a [Arc<PodInfo>] {
        &self.slot.pods
    }

    /// The host's ports that are taken.
    #[must_use]
    pub fn ports(&self) -> &'a [HostPort] {
        &self.slot.ports
    }
}

/// FNV-1a: the same on every machine and in every run, unlike the hashes of maps.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::build::{node, pod};

    #[derive(Clone, Debug)]
    enum Step {
        Node(u8, u8),
        RemoveNode(u8),
        Place(u8, u8, u8),
        RemovePod(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..4u8, 1..9u8).prop_map(|(n, cpu)| Step::Node(n, cpu)),
            (0..4u8).prop_map(Step::RemoveNode),
            (0..9u8, 0..4u8, 1..5u8).prop_map(|(p, n, cpu)| Step::Place(p, n, cpu)),
            (0..9u8).prop_map(Step::RemovePod),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        /// Step by step gives what counting everything anew gives, and a clone does not see later steps.
        #[test]
        fn the_columns_are_the_sum_of_the_pods(steps in steps()) {
            let mut snapshot = Snapshot::new();
            let mut nodes = std::collections::BTreeMap::new();
            let mut pods = std::collections::BTreeMap::new();
            for step in steps {
                let (before, view) = (snapshot.clone(), format!("{:?}", snapshot.columns()));
                match step {
                    Step::Node(n, cpu) => {
                        snapshot.set_node(node(&format!("n{n}")).resource("cpu", &cpu.to_string()).image(&format!("i{cpu}"), 1).info());
                        nodes.insert(n, i64::from(cpu) * 1000);
                    }
                    Step::RemoveNode(n) => { snapshot.remove_node(&format!("n{n}")); nodes.remove(&n); }
                    Step::Place(p, n, cpu) => {
                        let info = pod(&format!("p{p}")).request("cpu", &cpu.to_string()).host_port(80).info();
                        snapshot.place(&info.into(), &format!("n{n}"));
                        pods.insert(p, (n, i64::from(cpu) * 1000));
                    }
                    Step::RemovePod(p) => { snapshot.remove_pod(&format!("uid-p{p}")); pods.remove(&p); }
                }
                prop_assert_eq!(view, format!("{:?}", before.columns()));
            }
            prop_assert_eq!(snapshot.len(), nodes.len());
            for (n, cpu) in &nodes {
                let index = snapshot.find(&format!("n{n}")).unwrap();
                let on_it: Vec<_> = pods.values().filter(|(on, _)| on == n).collect();
                prop_assert_eq!(snapshot.columns().cpu.allocatable[index], *cpu);
                prop_assert_eq!(snapshot.columns().cpu.requested[index], on_it.iter().map(|(_, cpu)| cpu).sum::<i64>());
                prop_assert_eq!(snapshot.columns().pods[index], on_it.len() as i64);
                prop_assert_eq!(snapshot.node(index).ports().len(), on_it.len());
                let same_image = nodes.values().filter(|other| *other == cpu).count();
                prop_assert_eq!(snapshot.nodes_with_image(&format!("i{}:latest", cpu / 1000)), same_image as i64);
            }
        }
    }
}
