//! The extension points that say where a pod can run, and what could be done when that is nowhere.

use std::sync::Arc;

use crate::{
    plugin::{
        cycle_state::CycleState,
        verdict::{PostFilterVerdict, PreFilterVerdict, Rejection, Verdict},
    },
    pod::PodInfo,
    snapshot::{NodeIndex, NodeView, Snapshot},
    track::{FilterTracker, Surroundings, Track},
    trial::Attempt,
};

/// Says once per pod what needs no look at each node, and takes notes for the filter.
pub trait PreFilter: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Asked first in each decision.
    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict;

    /// Brings the notes up to date as if `added` were on the node too. Asked during preemption and for nominated pods,
    /// only after `pre_filter` passed; by default there is nothing to bring up to date.
    fn add_pod(&self, _cycle: &mut CycleState, _pod: &PodInfo, _added: &PodInfo, _node: NodeView<'_>) {}

    /// Whether other pods make no difference to what it says and notes, as long as that is
    /// [`Skip`](PreFilterVerdict::Skip) or [`Pass`](PreFilterVerdict::Pass). Then a [`Planner`](crate::Planner) asks
    /// once for equal pods, and again when a node or an object of another kind changes. `false` by default.
    fn ignores_other_pods(&self) -> bool {
        false
    }

    /// The opposite of [`add_pod`](Self::add_pod).
    fn remove_pod(&self, _cycle: &mut CycleState, _pod: &PodInfo, _removed: &PodInfo, _node: NodeView<'_>) {}
}

/// Says whether a pod can run on a node.
///
/// A filter must give the same answer to the same question, and its answer about one node must not depend on the order
/// of nodes. `testing::check_filter` (feature `testing`) checks it.
pub trait FilterPlugin: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Asked for each node that the filters before this one have let pass.
    fn filter(&self, cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict;

    /// How its verdicts are kept up to date for pods that are equal; by default it is asked anew for each.
    /// `testing::check_filter` checks that it makes no difference.
    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        Track::Anew
    }

    /// Keeps in `nodes` those that pass and tells `reject` about the others. This default is right for all; it is there
    /// so that a filter is called through its pointer once per pod, and in its own loop once per node.
    fn filter_all(
        &self,
        cycle: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &mut Vec<NodeIndex>,
        reject: &mut dyn FnMut(NodeIndex, Rejection),
    ) {
        nodes.retain(|&index| match self.filter(cycle, pod, snapshot.node(index)) {
            Verdict::Pass => true,
            Verdict::Reject(rejection) => {
                reject(index, rejection);
                false
            }
        });
    }
}

/// Is asked what could be done when no node is left. Asked in turn until one can do something.
pub trait PostFilter: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// `attempt` says why each node was rejected, and has a copy of the cluster to try on what would help.
    fn post_filter(&self, attempt: &Attempt<'_>) -> PostFilterVerdict;
}
