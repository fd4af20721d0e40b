//! The extension points around the queue: which pods enter it, which is next, and what wakes those that wait.

use std::cmp::Ordering;

use crate::{
    event::{ClusterEvent, Hint},
    groups::Groups,
    plugin::verdict::Verdict,
    pod::PodInfo,
    queue::QueuedPod,
    snapshot::catalog::Interest,
};

/// Orders the queue. A profile has one; schedulers use that of their first profile, as upstream asks of all profiles to
/// have the same.
pub trait QueueSort: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// `Less` when `a` goes first. Pods that are equal go in the order in which they came.
    fn compare(&self, a: &QueuedPod, b: &QueuedPod) -> Ordering;
}

/// Holds pods back before they enter the queue. Asked whenever the pod changes, and when an event wakes it.
pub trait PreEnqueue: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Whether the pod may enter the queue. `groups` tells how many pods of its group there are.
    fn pre_enqueue(&self, pod: &PodInfo, groups: &Groups) -> Verdict;
}

/// Says which events may help a pod that the plug-in of the same name has rejected (KEP-4247). Without one, every event
/// does.
pub trait QueueingHint: Send + Sync + 'static {
    /// The name of the plug-in whose rejections it judges.
    fn name(&self) -> &str;

    /// Asked for each event and each pod that the plug-in rejected; must be cheap.
    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint;

    /// Whether pods that the plug-in rejected may be helped by this one that comes and has no node yet, as one of a
    /// gang helps the others; then it is asked about [`ClusterEvent::PodAdded`]. `false` by default, so that a
    /// thousand pods that come do not each have a look at a thousand that wait.
    fn wants_new_pod(&self, _pod: &PodInfo) -> bool {
        false
    }

    /// The kinds, besides pods and nodes, that the plug-in finds in [`Snapshot::catalog`](crate::Snapshot::catalog)
    /// and of which it wants events. The scheduler watches the kinds that the plug-ins of its profiles ask for, and
    /// no others; asked once, at start.
    fn interests(&self) -> Vec<Interest> {
        Vec::new()
    }
}
