//! What plug-ins say.

use std::{borrow::Cow, sync::Arc, time::Duration};

use smallvec::{SmallVec, smallvec};

use crate::{candidate::Candidate, plugin::bind::Repair, pod::PodInfo};

/// How final a rejection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finality {
    /// It would be otherwise if other pods were gone.
    Unschedulable,
    /// No removal of pods helps: the node or the pod must change.
    Unresolvable,
    /// It is being worked on outside of the scheduler; the pod is tried again without a back-off.
    Pending,
}

/// Why a node, or every node, is no place for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// How final it is.
    pub finality: Finality,
    /// The reasons as people read them, in the wording that is counted up over all nodes.
    pub reasons: SmallVec<[Cow<'static, str>; 1]>,
}

impl Rejection {
    /// Rejects for a reason that other pods' going would remove.
    #[must_use]
    pub fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { finality: Finality::Unschedulable, reasons: smallvec![reason.into()] }
    }

    /// Rejects for a reason that no removal of pods changes.
    #[must_use]
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { finality: Finality::Unresolvable, reasons: smallvec![reason.into()] }
    }

    /// Rejects until something outside of the scheduler has happened.
    #[must_use]
    pub fn pending(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { finality: Finality::Pending, reasons: smallvec![reason.into()] }
    }

    /// All reasons in one line.
    #[must_use]
    pub fn message(&self) -> String {
        self.reasons.join(", ")
    }
}

/// Yes or no.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Nothing is against it.
    Pass,
    /// It can't be, and why.
    Reject(Rejection),
}

impl Verdict {
    /// [`Finality::Unschedulable`] for this reason.
    pub fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Reject(Rejection::unschedulable(reason))
    }

    /// [`Finality::Unresolvable`] for this reason.
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Reject(Rejection::unresolvable(reason))
    }
}

/// What a [`PreFilter`](crate::plugin::PreFilter) says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum PreFilterVerdict {
    /// Look at all nodes.
    Pass,
    /// Look at these nodes only, by name; the others are no places for the pod.
    Only(Vec<Arc<str>>),
    /// The plug-in of this name has nothing to say about this pod: its filter is not asked.
    Skip,
    /// No node will do.
    Reject(Rejection),
}

/// What a [`PreScore`](crate::plugin::PreScore) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum PreScoreVerdict {
    /// Go on.
    Pass,
    /// The scores of the plug-in of this name would make no difference: they are not asked for.
    Skip,
}

/// What a [`PostFilter`](crate::plugin::PostFilter) could do.
#[derive(Clone, Debug)]
#[must_use]
pub enum PostFilterVerdict {
    /// Room can be made: the pod gets this node's name as its nominated node, the scheduler deletes the victims, and
    /// the pod is tried again when they are gone.
    Nominate {
        /// The node.
        node: Arc<str>,
        /// The pods that have to go.
        victims: Vec<Arc<PodInfo>>,
    },
    /// Room can be made on any of these nodes. [Extenders](crate::extender) may have a say; of what they leave, the
    /// node is nominated whose pods' going harms least (upstream's `pickOneNodeForPreemption`).
    Candidates(Vec<Candidate>),
    /// No room, and why; but this is to be done, which may help the next time. The plug-ins after this one are asked,
    /// too.
    Repair(Arc<dyn Repair>, Rejection),
    /// Nothing, and why.
    Reject(Rejection),
    /// Nothing, and why; and nothing that is being done already helps, so that the pod loses its nominated node.
    Hopeless(Rejection),
}

/// What a [`Permit`](crate::plugin::Permit) says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum PermitVerdict {
    /// Bind.
    Allow,
    /// Don't bind.
    Reject(Rejection),
    /// Wait until the pod is allowed or rejected through [`WaitingPods`](crate::WaitingPods), and reject it after
    /// this time.
    Wait(Duration),
}
