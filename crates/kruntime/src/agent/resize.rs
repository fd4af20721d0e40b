//! Whose pod gets what of its node when its spec has changed.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Inner, Node, PodEntry};
use crate::{demand, machine::Room, runtime::PodUid};

/// The pods that want what they were not given. Held while one of them is given something: what is free is given once.
pub(super) type Waiting = Mutex<HashSet<PodUid, ahash::RandomState>>;

impl Inner {
    /// Gives the pod what it wants, if its node has room.
    pub(super) fn consider_resize(&self, entry: &PodEntry) {
        // Nearly all looks at nearly all pods end here, without the lock that all share.
        let (wants, was_pending) = entry.wants_resize();
        if !wants && !was_pending {
            return;
        }
        let is_changed = {
            let mut waiting = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
            let (is_changed, is_pending) = entry.give(&self.room(entry));
            if is_pending {
                waiting.insert(entry.uid.clone());
            } else {
                waiting.remove(&entry.uid);
            }
            is_changed
        };
        if is_changed {
            self.retry_resizes(&entry.node);
        }
    }

    /// What the pod's node has, and what others have of it.
    fn room(&self, entry: &PodEntry) -> Room {
        let config = &entry.node.config;
        let allocatable = config.allocatable();
        let of_node = |name: &str| demand::amount(Some(&allocatable), name).unwrap_or(0);
        let others: Vec<Arc<PodEntry>> = {
            let entries = self.entries();
            let here = entries.values().filter(|other| other.node.config.name == entry.node.config.name);
            here.filter(|other| other.uid != entry.uid).cloned().collect()
        };
        let mut used = [0_i64; 2];
        for other in others {
            for (sum, own) in used.iter_mut().zip(other.allocated()) {
                *sum = sum.saturating_add(own);
            }
        }
        let bound = config.managers.as_ref().map(|managers| managers.bound()).unwrap_or_default();
        Room { capacity: [of_node("cpu"), of_node("memory")], used, bound }
    }

    /// Something of the node may have become free: pods that wait for more of it are looked at, the most important first.
    pub(super) fn retry_resizes(&self, node: &Node) {
        let waiting: Vec<PodUid> = {
            let mut waiting = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.is_empty() {
                return;
            }
            let entries = self.entries();
            waiting.retain(|uid| entries.contains_key(uid));
            waiting.iter().cloned().collect()
        };
        let here = waiting.into_iter().filter_map(|uid| self.entry(&uid));
        let mut here: Vec<_> = here.filter(|entry| entry.node.config.name == node.config.name).collect();
        here.sort_by_key(|entry| (std::cmp::Reverse(entry.priority()), entry.uid.clone()));
        here.iter().for_each(|entry| self.queue.add(entry.uid.clone()));
    }
}
