//! What happens in the cluster, as far as it can help a pod that waits.

use std::sync::Arc;

use crate::{node::NodeInfo, pod::PodInfo};

/// Something happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClusterEvent {
    /// A node joined.
    NodeAdded(Arc<NodeInfo>),
    /// A node changed in something that scheduling looks at.
    NodeUpdated {
        /// How it was.
        old: Arc<NodeInfo>,
        /// How it is.
        new: Arc<NodeInfo>,
    },
    /// A pod came onto a node.
    PodAssigned(Arc<PodInfo>),
    /// A pod on a node changed.
    PodUpdated {
        /// How it was.
        old: Arc<PodInfo>,
        /// How it is.
        new: Arc<PodInfo>,
    },
    /// A pod on a node ended or was deleted.
    PodGone(Arc<PodInfo>),
    /// The pod that waits has itself changed.
    TargetUpdated {
        /// How it was.
        old: Arc<PodInfo>,
        /// How it is.
        new: Arc<PodInfo>,
    },
    /// Something else, of which a plug-in wants to know; the name says what.
    Other(Arc<str>),
}

/// Whether an event may help a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Hint {
    /// It may: try the pod again.
    Queue,
    /// It does not.
    Skip,
}

impl Hint {
    /// `Queue` when so.
    pub(crate) fn queue_if(helps: bool) -> Self {
        if helps { Self::Queue } else { Self::Skip }
    }
}
