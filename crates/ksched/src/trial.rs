//! Trying a pod on a node as it would be without some pods, or with some more.

use std::{fmt, sync::Arc};

use crate::{
    decision::Diagnosis,
    plugin::{CycleState, Rejection, Verdict},
    pod::PodInfo,
    profile::Profile,
    snapshot::{NodeIndex, NodeView, Snapshot},
};

/// A pod for which room is being made, and the node where.
pub type Nominated = (Arc<PodInfo>, Arc<str>);

/// The pods whose places count although they don't have them yet, for one pod's decision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nominations {
    /// The node where room is being made for this pod itself.
    pub(crate) own: Option<Arc<str>>,
    /// Those that come before this pod (upstream's `addGeneralNominatedPods`).
    pub(crate) others: Vec<(NodeIndex, Arc<PodInfo>)>,
}

impl Nominations {
    pub(crate) fn new(nominated: &[Nominated], pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let own = nominated.iter().find(|(other, _)| other.uid == pod.uid).map(|(_, node)| Arc::clone(node));
        let others = nominated.iter().filter(|(other, _)| {
            other.uid != pod.uid && other.priority >= pod.priority && snapshot.pod(&other.uid).is_none()
        });
        Self {
            own: own.or_else(|| pod.nominated_node.clone()),
            others: others
                .filter_map(|(other, node)| Some((snapshot.find(node)?, Arc::clone(other))))
                .collect(),
        }
    }
}

/// A pod that found no node, and all that is known about it; what a [`PostFilter`](crate::plugin::PostFilter) is told.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    pub(crate) profile: &'a Profile,
    pub(crate) cycle: &'a CycleState,
    pub(crate) pod: &'a PodInfo,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) diagnosis: &'a Diagnosis,
    pub(crate) nominations: &'a Nominations,
    /// The plug-ins whose filters have nothing to say about this pod.
    pub(crate) skipped: &'a [Arc<str>],
}

impl fmt::Debug for Attempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("pod", &self.pod.name).finish_non_exhaustive()
    }
}

impl<'a> Attempt<'a> {
    /// What the plug-ins noted.
    #[must_use]
    pub fn cycle(&self) -> &'a CycleState {
        self.cycle
    }

    /// The pod.
    #[must_use]
    pub fn pod(&self) -> &'a PodInfo {
        self.pod
    }

    /// The cluster.
    #[must_use]
    pub fn snapshot(&self) -> &'a Snapshot {
        self.snapshot
    }

    /// Why each node was rejected.
    #[must_use]
    pub fn diagnosis(&self) -> &'a Diagnosis {
        self.diagnosis
    }

    /// The node where room is already being made for the pod.
    #[must_use]
    pub fn nominated_node(&self) -> Option<&'a Arc<str>> {
        self.nominations.own.as_ref()
    }

    /// The profile's seed mixed with the pod: for choices that are the same in every run, and differ between pods.
    #[must_use]
    pub fn seed(&self) -> u64 {
        crate::cycle::pod_hash(self.profile.seed, self.pod)
    }

    /// A copy of the cluster to try changes on; cheap until something is changed, and then of the order of the number of
    /// nodes, once.
    #[must_use]
    pub fn trial(&self) -> Trial<'a> {
        Trial {
            attempt: *self,
            snapshot: self.snapshot.clone(),
            cycle: self.cycle.clone(),
            changes: Vec::new(),
        }
    }
}

/// Asks whether a pod would fit on a node if pods there went or came. See [`Attempt::trial`].
pub struct Trial<'a> {
    attempt: Attempt<'a>,
    snapshot: Snapshot,
    cycle: CycleState,
    /// What was done, to be undone: the node, the pod, and whether it came.
    changes: Vec<(NodeIndex, Arc<PodInfo>, bool)>,
}

impl fmt::Debug for Trial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial").field("pod", &self.attempt.pod.name).finish_non_exhaustive()
    }
}

impl Trial<'_> {
    /// The node as it would be.
    #[must_use]
    pub fn node(&self, node: NodeIndex) -> NodeView<'_> {
        self.snapshot.node(node)
    }

    /// Takes a pod off a node.
    pub fn remove(&mut self, node: NodeIndex, pod: &Arc<PodInfo>) {
        self.lift(node, pod);
        self.changes.push((node, Arc::clone(pod), false));
    }

    /// Puts a pod on a node.
    pub fn add(&mut self, node: NodeIndex, pod: &Arc<PodInfo>) {
        self.put(node, pod);
        self.changes.push((node, Arc::clone(pod), true));
    }

    /// Takes all changes back.
    pub fn reset(&mut self) {
        while let Some((node, pod, came)) = self.changes.pop() {
            if came {
                self.snapshot.lift(node, &pod);
            } else {
                self.snapshot.put_back(node, &pod);
            }
        }
        self.cycle = self.attempt.cycle.clone();
    }

    /// What the filters say of the node. If room is being made there for pods that come before this one, they must let
    /// it pass with these and without (upstream's `RunFilterPluginsWithNominatedPods`).
    pub fn verdict(&mut self, node: NodeIndex) -> Verdict {
        self.rejection(node).map_or(Verdict::Pass, |(_, rejection)| Verdict::Reject(rejection))
    }

    /// As [`verdict`](Self::verdict), with the plug-in.
    pub(crate) fn rejection(&mut self, node: NodeIndex) -> Option<(Arc<str>, Rejection)> {
        let attempt = self.attempt;
        let others = attempt.nominations.others.iter().filter(|(on, _)| *on == node);
        let others: Vec<&Arc<PodInfo>> = others.map(|(_, pod)| pod).collect();
        if !others.is_empty() {
            let kept = self.cycle.clone();
            others.iter().for_each(|other| self.put(node, other));
            let rejection = self.filters(node);
            others.iter().for_each(|other| self.snapshot.lift(node, other));
            self.cycle = kept;
            if rejection.is_some() {
                return rejection;
            }
        }
        self.filters(node)
    }

    fn filters(&self, node: NodeIndex) -> Option<(Arc<str>, Rejection)> {
        let Attempt { profile, pod, skipped, .. } = self.attempt;
        let mut asked = profile.points.filter.iter().filter(|entry| !skipped.contains(&entry.name));
        asked.find_map(|entry| match entry.plugin.filter(&self.cycle, pod, self.snapshot.node(node)) {
            Verdict::Pass => None,
            Verdict::Reject(rejection) => Some((Arc::clone(&entry.name), rejection)),
        })
    }

    fn put(&mut self, node: NodeIndex, added: &Arc<PodInfo>) {
        self.snapshot.put_back(node, added);
        let Attempt { profile, pod, skipped, .. } = self.attempt;
        for entry in profile.points.pre_filter.iter().filter(|entry| !skipped.contains(&entry.name)) {
            entry.plugin.add_pod(&mut self.cycle, pod, added, self.snapshot.node(node));
        }
    }

    fn lift(&mut self, node: NodeIndex, removed: &Arc<PodInfo>) {
        self.snapshot.lift(node, removed);
        let Attempt { profile, pod, skipped, .. } = self.attempt;
        for entry in profile.points.pre_filter.iter().filter(|entry| !skipped.contains(&entry.name)) {
            entry.plugin.remove_pod(&mut self.cycle, pod, removed, self.snapshot.node(node));
        }
    }
}
