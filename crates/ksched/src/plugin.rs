//! The extension points: what a plug-in can have a say in, in the order in which it is asked.
//!
//! | asked | trait | about |
//! |---|---|---|
//! | when a pod appears or changes | [`PreEnqueue`] | may the pod be scheduled at all yet |
//! | to order the queue | [`QueueSort`] | which pod is next |
//! | once per pod | [`PreFilter`] | what can be said without looking at each node |
//! | once per pod and node | [`FilterPlugin`] | can the pod run there |
//! | when no node is left | [`PostFilter`] | what could be done about it |
//! | once per pod | [`PreScore`] | preparation for scores |
//! | once per pod and node that is left | [`ScorePlugin`] | how good is the node |
//! | once a node is chosen | [`Reserve`] | book what is outside of the snapshot |
//! | then | [`Permit`] | bind now, wait for something, or don't |
//! | then, while other pods go on | [`PreBind`], [`Bind`], [`PostBind`] | tell the API server |
//!
//! Everything up to [`Permit`] decides and never waits: it is synchronous and is called by one task, one pod at a time.
//! The rest is asynchronous and runs for many pods at the same time.
//!
//! A plug-in is an object that implements one or more of these traits, under one name; it is put into a
//! [`Profile`](crate::Profile).

use std::{
    any::{Any, TypeId},
    borrow::Cow,
    cmp::Ordering,
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use kcore::Clock;
use smallvec::{SmallVec, smallvec};

use crate::{
    booking::Booking,
    candidate::Candidate,
    event::{ClusterEvent, Hint},
    extender::ExtenderError,
    groups::Groups,
    observer::Observer,
    pod::PodInfo,
    queue::QueuedPod,
    snapshot::{
        NodeIndex, NodeView, Snapshot,
        catalog::{Catalog, Interest},
    },
    track::{FilterTracker, ScoreTracker, Surroundings, Track},
    trial::Attempt,
    waiting::WaitingPods,
};

/// The best score of a node (upstream's `MaxNodeScore`); the worst is 0.
pub const MAX_NODE_SCORE: i64 = 100;

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

/// What a [`PreFilter`] says.
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

/// What a [`PreScore`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum PreScoreVerdict {
    /// Go on.
    Pass,
    /// The scores of the plug-in of this name would make no difference: they are not asked for.
    Skip,
}

/// What a [`PostFilter`] could do.
#[derive(Clone, Debug)]
#[must_use]
pub enum PostFilterVerdict {
    /// Room can be made: the pod gets this node's name as its nominated node, the scheduler deletes the victims, and the
    /// pod is tried again when they are gone.
    Nominate {
        /// The node.
        node: Arc<str>,
        /// The pods that have to go.
        victims: Vec<Arc<PodInfo>>,
    },
    /// Room can be made on any of these nodes. [Extenders](crate::extender) may have a say; of what they leave, the node is
    /// nominated whose pods' going harms least (upstream's `pickOneNodeForPreemption`).
    Candidates(Vec<Candidate>),
    /// No room, and why; but this is to be done, which may help the next time. The plug-ins after this one are asked, too.
    Repair(Arc<dyn Repair>, Rejection),
    /// Nothing, and why.
    Reject(Rejection),
    /// Nothing, and why; and nothing that is being done already helps, so that the pod loses its nominated node.
    Hopeless(Rejection),
}

/// Something that is done beside the decisions on other pods, so that a pod may find a node the next time: see
/// [`PostFilterVerdict::Repair`]. What it changes must be something that a [`QueueingHint`] waits for.
#[async_trait]
pub trait Repair: fmt::Debug + Send + Sync + 'static {
    /// Does it, once. It is dropped when the scheduler stops.
    ///
    /// # Errors
    /// When it could not be done; then the pod is tried again after its back-off.
    async fn repair(&self, client: &kube::Client) -> Result<(), BindError>;
}

/// What a [`Permit`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum PermitVerdict {
    /// Bind.
    Allow,
    /// Don't bind.
    Reject(Rejection),
    /// Wait until the pod is allowed or rejected through [`WaitingPods`], and reject it after this time.
    Wait(Duration),
}

/// Why a pod could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The API server refused, or can't be reached.
    #[error("{0}")]
    Api(#[source] Box<kube::Error>),
    /// A plug-in could not do its part.
    #[error("running PreBind plugin {plugin:?}: {source}")]
    Plugin {
        /// Its name.
        plugin: Arc<str>,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An [extender](crate::extender) could not bind it.
    #[error("{0}")]
    Extender(#[source] ExtenderError),
    /// No [`Bind`] plug-in took it on.
    #[error("no plugin could bind the pod")]
    NotHandled,
}

/// Whether a [`Bind`] took the pod on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum BindOutcome {
    /// It is bound.
    Bound,
    /// Ask the next one.
    Skip,
}

/// What the asynchronous extension points are told.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    /// The way to the API server.
    pub client: &'a kube::Client,
    /// What the plug-ins noted while deciding.
    pub cycle: &'a CycleState,
    /// Sees what the scheduler sees of the cluster.
    pub observer: &'a Observer,
    /// Says what time it is.
    pub clock: &'a dyn Clock,
    /// The pod.
    pub pod: &'a PodInfo,
    /// The node that it goes to.
    pub node: &'a str,
}

impl fmt::Debug for Binding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding")
            .field("pod", &self.pod.name)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// Notes that plug-ins keep for the time of one decision, one per type. A clone shares the notes until one is
/// [edited](Self::edit), so that preemption can try each node with notes of its own.
#[derive(Clone, Default)]
pub struct CycleState {
    /// Few, so they are searched one by one.
    notes: SmallVec<[(TypeId, Arc<dyn Any + Send + Sync>); 4]>,
}

impl fmt::Debug for CycleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CycleState").field("notes", &self.notes.len()).finish()
    }
}

impl CycleState {
    /// Keeps a note in the place of the one of the same type.
    pub fn put<T: Send + Sync + 'static>(&mut self, note: T) {
        let (key, note) = (TypeId::of::<T>(), Arc::new(note));
        match self.notes.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = note,
            None => self.notes.push((key, note)),
        }
    }

    /// The note of a type.
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let note = self.notes.iter().find(|(known, _)| *known == TypeId::of::<T>());
        note.and_then(|(_, note)| note.downcast_ref())
    }

    /// The note of a type, to be changed; copied first when a clone shares it.
    pub fn edit<T: Clone + Send + Sync + 'static>(&mut self) -> Option<&mut T> {
        let (_, note) = self.notes.iter_mut().find(|(known, _)| *known == TypeId::of::<T>())?;
        if Arc::get_mut(note).is_none() {
            let copy = note.downcast_ref::<T>()?.clone();
            *note = Arc::new(copy);
        }
        Arc::get_mut(note)?.downcast_mut()
    }
}

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
    /// [`Skip`](PreFilterVerdict::Skip) or [`Pass`](PreFilterVerdict::Pass). Then a [`Planner`](crate::Planner) asks once
    /// for equal pods, and again when a node or an object of another kind changes. `false` by default.
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

/// Takes notes for the score, once per pod.
pub trait PreScore: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// `nodes` are those that all filters let pass.
    fn pre_score(
        &self,
        cycle: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
    ) -> PreScoreVerdict;
}

/// Says how good a node is for a pod.
///
/// After [`normalize`](Self::normalize), scores must lie within 0 and [`MAX_NODE_SCORE`]; they are multiplied by the
/// plug-in's weight and added up. `testing::check_score` (feature `testing`) checks it.
///
/// ```
/// use std::sync::Arc;
/// use ksched::{Profile, Snapshot, build::{node, pod}, decide, plugin::{CycleState, ScorePlugin}, PodInfo, NodeView};
///
/// /// Likes nodes that say they run on green energy.
/// struct Green;
///
/// impl ScorePlugin for Green {
///     fn name(&self) -> &str {
///         "Green"
///     }
///
///     fn score(&self, _: &CycleState, _: &PodInfo, node: NodeView<'_>) -> i64 {
///         if node.info().labels.get("energy") == Some("green") { 100 } else { 0 }
///     }
/// }
///
/// let profile = Profile::builder().score(Arc::new(Green), 10).build()?;
/// let mut snapshot = Snapshot::new();
/// snapshot.set_node(node("coal").resource("cpu", "8").info());
/// snapshot.set_node(node("wind").resource("cpu", "4").label("energy", "green").info());
///
/// let decision = decide(&profile, &snapshot, &pod("p").request("cpu", "1").info());
/// assert_eq!(decision.node(), Some("wind"));
/// assert_eq!(decision.scores("wind").find(|score| score.plugin == "Green").map(|score| score.weighted), Some(1000));
/// # Ok::<(), ksched::BuildError>(())
/// ```
pub trait ScorePlugin: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// The raw score of one node.
    fn score(&self, cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> i64;

    /// How its scores are kept up to date for pods that are equal; by default it is asked anew for each. With
    /// [`Track::Node`], what the [`PreScore`] of the same name says must depend on the pod alone.
    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        Track::Anew
    }

    /// Whether [`normalize`](Self::normalize) changes nothing. `false` by default.
    fn is_normalized(&self) -> bool {
        false
    }

    /// Brings the raw scores of all nodes into the range. By default they stay as they are; see
    /// [`normalize_by_max`]. Nodes with equal raw scores must stay equal.
    fn normalize(&self, _cycle: &CycleState, _pod: &PodInfo, _scores: &mut [i64]) {}

    /// Appends the raw score of each node. This default is right for all; see [`FilterPlugin::filter_all`].
    fn score_all(
        &self,
        cycle: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
        scores: &mut Vec<i64>,
    ) {
        scores.extend(nodes.iter().map(|&index| self.score(cycle, pod, snapshot.node(index))));
    }
}

/// Books what is outside of the snapshot once a node was chosen, and gives it back when the pod does not get there.
pub trait Reserve: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Whether it has anything to book for this pod. A pod that concerns no [`Reserve`], [`Permit`] or [`PreBind`] gets
    /// its place from what a [`Planner`](crate::Planner) keeps; the others are decided on from scratch, so that the
    /// plug-in finds its notes. Asked for every pod, so it must be cheap. `true` by default.
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

    /// `waiting` holds the pods that wait, so that this one's arrival can let them go; `groups` tells how many pods of its
    /// group have a place, this one included.
    fn permit(&self, booking: &mut Booking<'_>, waiting: &WaitingPods, groups: &Groups) -> PermitVerdict;
}

/// Does what must be done before a pod is bound, such as attaching a volume. Pods are bound at the same time; one pod's
/// plug-ins are called in turn. The future is dropped when the scheduler stops.
#[async_trait]
pub trait PreBind: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Whether it has anything to do for this pod (KEP-5229 asks the same); see [`Reserve::concerns`]. `true` by default.
    fn concerns(&self, _pod: &PodInfo, _catalog: &Catalog) -> bool {
        true
    }

    /// A failure gives the pod's place back, and the pod is tried again after a back-off.
    ///
    /// # Errors
    /// When the pod must not be bound now.
    async fn pre_bind(&self, binding: Binding<'_>) -> Result<(), BindError>;
}

/// Binds a pod to its node.
#[async_trait]
pub trait Bind: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Asked in turn until one takes the pod on.
    ///
    /// # Errors
    /// When it did not work; the pod's place is given back, and it is tried again after a back-off.
    async fn bind(&self, binding: Binding<'_>) -> Result<BindOutcome, BindError>;
}

/// Is told that a pod was bound.
#[async_trait]
pub trait PostBind: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// Asked once per pod, after it was bound.
    async fn post_bind(&self, binding: Binding<'_>);
}

/// Says which events may help a pod that the plug-in of the same name has rejected (KEP-4247). Without one, every event
/// does.
pub trait QueueingHint: Send + Sync + 'static {
    /// The name of the plug-in whose rejections it judges.
    fn name(&self) -> &str;

    /// Asked for each event and each pod that the plug-in rejected; must be cheap.
    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint;

    /// Whether pods that the plug-in rejected may be helped by this one that comes and has no node yet, as one of a gang
    /// helps the others; then it is asked about [`ClusterEvent::PodAdded`]. `false` by default, so that a thousand pods that
    /// come do not each have a look at a thousand that wait.
    fn wants_new_pod(&self, _pod: &PodInfo) -> bool {
        false
    }

    /// The kinds, besides pods and nodes, that the plug-in finds in [`Snapshot::catalog`] and of which it wants events.
    /// The scheduler watches the kinds that the plug-ins of its profiles ask for, and no others; asked once, at start.
    fn interests(&self) -> Vec<Interest> {
        Vec::new()
    }
}

const _: Option<&dyn QueueSort> = None;
const _: Option<&dyn PreEnqueue> = None;
const _: Option<&dyn PreFilter> = None;
const _: Option<&dyn FilterPlugin> = None;
const _: Option<&dyn PostFilter> = None;
const _: Option<&dyn PreScore> = None;
const _: Option<&dyn ScorePlugin> = None;
const _: Option<&dyn Reserve> = None;
const _: Option<&dyn Permit> = None;
const _: Option<&dyn PreBind> = None;
const _: Option<&dyn Bind> = None;
const _: Option<&dyn PostBind> = None;
const _: Option<&dyn QueueingHint> = None;

/// Stretches scores so that the best is [`MAX_NODE_SCORE`] (upstream's `DefaultNormalizeScore`); with `reverse` the
/// smallest raw score is the best. Raw scores must not be negative.
pub fn normalize_by_max(scores: &mut [i64], reverse: bool) {
    let most = scores.iter().copied().max().unwrap_or_default();
    for score in scores {
        let stretched = if most == 0 { 0 } else { MAX_NODE_SCORE * *score / most };
        *score = if reverse { MAX_NODE_SCORE - stretched } else { stretched };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_stretched() {
        for (mut scores, reverse, expected) in [
            (vec![1, 2, 3, 4], false, vec![25, 50, 75, 100]),
            (vec![1, 2, 3, 4], true, vec![75, 50, 25, 0]),
            (vec![0, 0], false, vec![0, 0]),
            (vec![0, 0], true, vec![100, 100]),
            (vec![1000, 10, 20], false, vec![100, 1, 2]),
        ] {
            normalize_by_max(&mut scores, reverse);
            assert_eq!(scores, expected);
        }
    }

    #[test]
    fn there_is_one_note_of_a_type() {
        let mut cycle = CycleState::default();
        cycle.put(1_u8);
        cycle.put(2_u8);
        cycle.put("text");
        assert_eq!(
            (cycle.get::<u8>(), cycle.get::<&str>(), cycle.get::<i8>()),
            (Some(&2), Some(&"text"), None)
        );
    }

    #[test]
    fn a_note_is_copied_before_it_is_edited() {
        let mut cycle = CycleState::default();
        cycle.put(vec![1]);
        let mut copy = cycle.clone();
        copy.edit::<Vec<i32>>().unwrap().push(2);
        assert_eq!(cycle.get::<Vec<i32>>(), Some(&vec![1]));
        assert_eq!(copy.get::<Vec<i32>>(), Some(&vec![1, 2]));
        assert!(copy.edit::<u8>().is_none());
    }
}
