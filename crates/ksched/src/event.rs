//! What happens in the cluster, as far as it can help a pod that waits.

use std::{
    any::{Any, TypeId},
    fmt,
    sync::Arc,
};

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
    /// A node left.
    NodeRemoved(Arc<NodeInfo>),
    /// A pod without a node came (upstream's `EventUnscheduledPodAdd`). Only hints that
    /// [want it](crate::plugin::QueueingHint::wants_new_pod) are asked about it.
    PodAdded(Arc<PodInfo>),
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
    /// An object of another kind, in which a plug-in has said its
    /// [interest](crate::plugin::QueueingHint::interests), came, changed or went.
    Object(ObjectEvent),
    /// Something else, of which a plug-in wants to know; the name says what.
    Other(Arc<str>),
}

impl ClusterEvent {
    /// Upstream's word for it (`ClusterEvent.Label`). Objects of all other kinds have one.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NodeAdded(_) => "NodeAdd",
            Self::NodeUpdated { .. } => "NodeUpdate",
            Self::NodeRemoved(_) => "NodeDelete",
            Self::PodAdded(_) => "UnschedulablePodAdd",
            Self::PodAssigned(_) => "AssignedPodAdd",
            Self::PodUpdated { .. } => "AssignedPodUpdate",
            Self::PodGone(_) => "AssignedPodDelete",
            Self::TargetUpdated { .. } => "UnschedulablePodUpdate",
            Self::Object(_) => "Object",
            Self::Other(_) => "Other",
        }
    }
}

/// What happened to an object of a kind besides pods and nodes.
#[derive(Clone)]
pub struct ObjectEvent {
    kind: TypeId,
    old: Option<Arc<dyn Any + Send + Sync>>,
    new: Option<Arc<dyn Any + Send + Sync>>,
}

impl fmt::Debug for ObjectEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match (&self.old, &self.new) {
            (None, _) => "added",
            (Some(_), Some(_)) => "updated",
            (Some(_), None) => "removed",
        };
        f.debug_struct("ObjectEvent").field("action", &action).finish_non_exhaustive()
    }
}

impl ObjectEvent {
    /// `old` is how it was, `new` how it is; without one of them the object came or went.
    #[must_use]
    pub fn new<K: Send + Sync + 'static>(old: Option<Arc<K>>, new: Option<Arc<K>>) -> Self {
        Self { kind: TypeId::of::<K>(), old: old.map(|old| old as Arc<_>), new: new.map(|new| new as Arc<_>) }
    }

    /// How it was and how it is, when the event is about this kind.
    ///
    /// ```
    /// use k8s_openapi::api::core::v1::{Namespace, Service};
    /// use ksched::event::ObjectEvent;
    /// let event = ObjectEvent::new(None, Some(std::sync::Arc::new(Namespace::default())));
    /// assert!(matches!(event.of::<Namespace>(), Some((None, Some(_)))));
    /// assert!(event.of::<Service>().is_none());
    /// ```
    #[must_use]
    pub fn of<K: Send + Sync + 'static>(&self) -> Option<(Option<&K>, Option<&K>)> {
        (self.kind == TypeId::of::<K>()).then(|| {
            let old = self.old.as_deref().and_then(|side| side.downcast_ref());
            (old, self.new.as_deref().and_then(|side| side.downcast_ref()))
        })
    }
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
