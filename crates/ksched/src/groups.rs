//! Groups of pods that are scheduled together (KEP-4671), and how far each is.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ahash::RandomState;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use crate::pod::PodInfo;

/// How the pods of a group are scheduled (`schedulingPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupPolicy {
    /// Each on its own.
    Basic,
    /// All or none: so many must have a place before any is bound.
    Gang(usize),
}

impl GroupPolicy {
    /// Reads the policy of a group.
    #[must_use]
    pub fn of(group: &PodGroup) -> Self {
        let gang = group.spec.scheduling_policy.gang.as_ref();
        gang.map_or(Self::Basic, |gang| Self::Gang(usize::try_from(gang.min_count).unwrap_or_default()))
    }
}

/// How far a group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// What its `PodGroup` says; `None` while there is none.
    pub policy: Option<GroupPolicy>,
    /// How many pods of it are known.
    pub pods: usize,
    /// How many of these have a place: they are bound, or are to be.
    pub placed: usize,
}

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
struct Group {
    policy: Option<GroupPolicy>,
    waiting: BTreeSet<Arc<str>>,
    placed: BTreeSet<Arc<str>>,
}

impl Group {
    fn is_nothing(&self) -> bool {
        self.policy.is_none() && self.waiting.is_empty() && self.placed.is_empty()
    }
}

#[derive(Debug, Default)]
struct Known {
    groups: HashMap<Key, Group, RandomState>,
    /// The group of each pod that has one, by the pod's uid.
    members: HashMap<Arc<str>, Key, RandomState>,
}

/// The groups that a scheduler knows; a handle. It is touched only for pods with `spec.schedulingGroup`.
///
/// ```
/// use ksched::{build::pod, groups::{GroupPolicy, Groups}};
///
/// let groups = Groups::default();
/// groups.set_policy("default", "train", Some(GroupPolicy::Gang(2)));
/// groups.waits(&pod("a").group("train").info().into());
/// groups.placed(&pod("b").group("train").info().into());
/// let state = groups.state("default", "train");
/// assert_eq!((state.pods, state.placed), (2, 1));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Groups {
    known: Arc<Mutex<Known>>,
}

impl Groups {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far a group is.
    #[must_use]
    pub fn state(&self, namespace: &str, name: &str) -> GroupState {
        let known = self.known();
        let Some(group) = known.groups.get(&(namespace.into(), name.into())) else {
            return GroupState::default();
        };
        let (placed, waiting) = (group.placed.len(), group.waiting.len());
        GroupState { policy: group.policy, pods: placed + waiting, placed }
    }

    /// How far a pod's group is; `None` when it is of no group.
    #[must_use]
    pub fn of(&self, pod: &PodInfo) -> Option<GroupState> {
        pod.group.as_ref().map(|group| self.state(&pod.namespace, group))
    }

    /// Takes over what a `PodGroup` says, or that it is gone.
    pub fn set_policy(&self, namespace: &str, name: &str, policy: Option<GroupPolicy>) {
        let (mut known, key) = (self.known(), (namespace.into(), name.into()));
        if policy.is_some() {
            known.groups.entry(key).or_default().policy = policy;
        } else if let Some(group) = known.groups.get_mut(&key) {
            group.policy = None;
            if group.is_nothing() {
                known.groups.remove(&key);
            }
        }
    }

    /// A pod is there, and has no place.
    pub fn waits(&self, pod: &Arc<PodInfo>) {
        self.put(pod, false);
    }

    /// A pod has a place.
    pub fn placed(&self, pod: &Arc<PodInfo>) {
        self.put(pod, true);
    }

    fn put(&self, pod: &Arc<PodInfo>, has_place: bool) {
        let Some(group) = &pod.group else { return };
        let (mut known, key) = (self.known(), (Arc::clone(&pod.namespace), Arc::clone(group)));
        known.members.insert(Arc::clone(&pod.uid), key.clone());
        let group = known.groups.entry(key).or_default();
        let (into, from) = if has_place {
            (&mut group.placed, &mut group.waiting)
        } else {
            (&mut group.waiting, &mut group.placed)
        };
        from.remove(&pod.uid);
        into.insert(Arc::clone(&pod.uid));
    }

    /// A pod has ended, or was deleted.
    pub fn gone(&self, uid: &str) {
        let mut known = self.known();
        let Some(key) = known.members.remove(uid) else { return };
        if let Some(group) = known.groups.get_mut(&key) {
            group.waiting.remove(uid);
            group.placed.remove(uid);
            if group.is_nothing() {
                known.groups.remove(&key);
            }
        }
    }

    /// The uids of the pods of a pod's group that have no place.
    pub(crate) fn waiting(&self, pod: &PodInfo) -> Vec<Arc<str>> {
        let Some(group) = &pod.group else { return Vec::new() };
        let known = self.known();
        let group = known.groups.get(&(Arc::clone(&pod.namespace), Arc::clone(group)));
        group.map(|group| group.waiting.iter().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::pod;

    #[test]
    fn pods_are_counted_once_wherever_they_are() {
        let groups = Groups::default();
        let member = |name: &str| Arc::new(pod(name).group("train").info());
        let (a, b) = (member("a"), member("b"));
        for _ in 0..2 {
            groups.waits(&a);
            groups.waits(&b);
        }
        groups.placed(&a);
        let state = |groups: &Groups| {
            let state = groups.state("default", "train");
            (state.policy, state.pods, state.placed)
        };
        assert_eq!(state(&groups), (None, 2, 1));
        assert_eq!(groups.waiting(&a), [Arc::clone(&b.uid)]);
        groups.waits(&a);
        groups.set_policy("default", "train", Some(GroupPolicy::Gang(2)));
        assert_eq!(state(&groups), (Some(GroupPolicy::Gang(2)), 2, 0));
        groups.waits(&Arc::new(pod("alone").info()));
        for uid in [&a.uid, &b.uid, &b.uid] {
            groups.gone(uid);
        }
        assert_eq!(state(&groups), (Some(GroupPolicy::Gang(2)), 0, 0));
        groups.set_policy("default", "train", None);
        let known = groups.known();
        assert!(known.groups.is_empty() && known.members.is_empty(), "{known:?}");
    }
}
