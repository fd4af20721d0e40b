//! The extension points once a node is chosen: what else the pod needs is booked, and somebody may say no.

use crate::{
    booking::Booking,
    groups::Groups,
    plugin::verdict::{PermitVerdict, Verdict},
    pod::PodInfo,
    snapshot::catalog::Catalog,
    waiting::WaitingPods,
};

/// Books what is outside of the snapshot once a node was chosen, and gives it back when the pod does not get there.
pub trait Reserve: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Whether it has anything to book for this pod. A pod that concerns no [`Reserve`], [`Permit`] or
    /// [`PreBind`](crate::plugin::PreBind) gets its place from what a [`Planner`](crate::Planner) keeps; the others
    /// are decided on from scratch, so that the plug-in finds its notes. Asked for every pod, so it must be cheap.
    /// `true` by default.
    fn concerns(&self, _pod: &PodInfo, _catalog: &Catalog) -> bool {
        true
    }

    /// Asked in the order of the profile; a rejection ends the attempt.
    fn reserve(&self, booking: &mut Booking<'_>) -> Verdict;

    /// Asked in the opposite order, of every plug-in, when anything later fails; also of those
    /// whose `reserve` was not asked, so it must be fine to call it for nothing, and twice.
    fn unreserve(&self, _booking: &mut Booking<'_>) {}

    /// Asked once the pod is bound: what was booked is written, and need not be remembered any more.
    fn settle(&self, _booking: &mut Booking<'_>) {}
}

/// Has the last word before a pod is bound; can have it wait for others.
pub trait Permit: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Whether it has a say about this pod; see [`Reserve::concerns`]. `true` by default.
    fn concerns(&self, _pod: &PodInfo, _catalog: &Catalog) -> bool {
        true
    }

    /// `waiting` holds the pods that wait, so that this one's arrival can let them go; `groups` tells how many pods
    /// of its group have a place, this one included.
    fn permit(&self, booking: &mut Booking<'_>, waiting: &WaitingPods, groups: &Groups) -> PermitVerdict;
}
