//! What plug-ins book once a pod has its node.

use std::{fmt, sync::Arc};

use crate::{
    plugin::CycleState,
    pod::PodInfo,
    snapshot::{NodeView, Snapshot, catalog::Catalog},
};

/// A pod that has a node, and the cluster as it is with the pod there; what [`Reserve`](crate::plugin::Reserve) and
/// [`Permit`](crate::plugin::Permit) are told.
///
/// What a plug-in is about to write, it [assumes](Catalog::assume) in the catalog, so that decisions about other pods
/// already count on it.
pub struct Booking<'a> {
    /// What the plug-ins noted while deciding, and note now for [`PreBind`](crate::plugin::PreBind).
    pub cycle: &'a mut CycleState,
    /// The pod.
    pub pod: &'a Arc<PodInfo>,
    /// The node that it goes to.
    pub node: &'a Arc<str>,
    snapshot: &'a mut Snapshot,
}

impl fmt::Debug for Booking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Booking")
            .field("pod", &self.pod.name)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl<'a> Booking<'a> {
    /// Of this pod on this node.
    pub fn new(
        cycle: &'a mut CycleState,
        pod: &'a Arc<PodInfo>,
        node: &'a Arc<str>,
        snapshot: &'a mut Snapshot,
    ) -> Self {
        Self { cycle, pod, node, snapshot }
    }

    /// The cluster.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        self.snapshot
    }

    /// The node, unless it has left the cluster.
    #[must_use]
    pub fn node_view(&self) -> Option<NodeView<'_>> {
        self.snapshot.find(self.node).map(|index| self.snapshot.node(index))
    }

    /// The other objects, to assume what will be written and to take it back.
    pub fn catalog_mut(&mut self) -> &mut Catalog {
        self.snapshot.catalog_mut()
    }
}
