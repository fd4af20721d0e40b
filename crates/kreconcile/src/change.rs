//! What changed, and how readers of an informer learn of it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ahash::RandomState;
use indexmap::IndexMap;
use kcore::{Header, Stored};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::{cache::Entry, informer::decode, key::ObjectKey};

/// One object's step from what the reader knew to what is so now. At least one side is there.
///
/// Steps that come while the reader is busy are put together, so a change may stand for several; when an object was
/// deleted and made again in between, the two sides have different uids.
#[derive(Clone, Debug)]
pub struct Change {
    /// The state that the reader knew; `None` when the object is new to it.
    pub old: Option<Arc<Stored>>,
    /// The state now; `None` when the object is gone from the selection.
    pub new: Option<Arc<Stored>>,
}

impl Change {
    /// The header of the newest state that is known.
    #[must_use]
    pub fn header(&self) -> &Header {
        static NONE: std::sync::LazyLock<Header> = std::sync::LazyLock::new(Header::default);
        self.new.as_deref().or(self.old.as_deref()).map_or(&NONE, Stored::header)
    }

    /// Which object it is.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(self.header())
    }

    /// Both sides, the old one first; those that are there.
    pub fn sides(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.old.iter().chain(self.new.iter())
    }

    /// The state before, as its Rust type.
    #[must_use]
    pub fn old_as<K: DeserializeOwned + Send + Sync + 'static>(&self) -> Option<Arc<K>> {
        self.old.as_deref().and_then(decode)
    }

    /// The state now, as its Rust type.
    #[must_use]
    pub fn new_as<K: DeserializeOwned + Send + Sync + 'static>(&self) -> Option<Arc<K>> {
        self.new.as_deref().and_then(decode)
    }

    /// Whether the object was deleted and made anew between the two sides.
    #[must_use]
    pub fn is_recreated(&self) -> bool {
        matches!((&self.old, &self.new), (Some(old), Some(new)) if old.header().uid != new.header().uid)
    }
}

/// The changes of one informer, for one reader.
///
/// The reader first gets everything that the cache holds, as additions, and then what changes. It is never behind by
/// more than the difference between what it was told and what is: changes of one object that the reader has not
/// fetched yet are merged. So a slow reader neither blocks the informer, nor grows without limit, nor loses anything.
/// The order between different objects is not kept.
#[derive(Debug)]
pub struct Subscription {
    pub(crate) pending: Arc<Pending>,
}

impl Subscription {
    /// Waits for changes and takes all that there are; `None` when the informer has stopped and all were taken.
    ///
    /// # Cancel safety
    /// A call that is dropped takes nothing.
    pub async fn next(&mut self) -> Option<Vec<Change>> {
        loop {
            let notified = self.pending.notify.notified();
            let changes = self.pending.take();
            if !changes.is_empty() {
                return Some(changes);
            }
            if self.pending.closed.load(Ordering::Acquire) {
                return None;
            }
            notified.await;
        }
    }

    /// Takes the changes that there are without waiting.
    pub fn try_next(&mut self) -> Vec<Change> {
        self.pending.take()
    }
}

/// The difference between what a reader was told and what is.
#[derive(Default)]
pub(crate) struct Pending {
    changes: Mutex<IndexMap<Entry, Change, RandomState>>,
    notify: Notify,
    closed: AtomicBool,
}

impl Pending {
    pub(crate) fn push(&self, batch: &[Change]) {
        if batch.is_empty() {
            return;
        }
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        for change in batch {
            let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { continue };
            let key = Entry(Arc::clone(object));
            let Some(known) = changes.get_mut(&key) else {
                changes.insert(key, change.clone());
                continue;
            };
            known.new.clone_from(&change.new);
            if known.old.is_none() && known.new.is_none() {
                changes.swap_remove(&key);
            }
        }
        drop(changes);
        self.notify.notify_one();
    }

    fn take(&self) -> Vec<Change> {
        let changes = std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner));
        changes.into_values().collect()
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("closed", &self.closed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(revision: u64) -> Option<Arc<Stored>> {
        let metadata = json!({"name": "x", "resourceVersion": revision.to_string()});
        Some(Arc::new(Stored::from_value(json!({"metadata": metadata})).unwrap()))
    }

    /// Pushes steps between revisions (0: absent) and tells what a reader then gets.
    fn check(steps: &[(u64, u64)], expected: &[(u64, u64)]) {
        let mut subscription = Subscription { pending: Arc::new(Pending::default()) };
        let side = |revision| if revision == 0 { None } else { at(revision) };
        for &(old, new) in steps {
            subscription.pending.push(&[Change { old: side(old), new: side(new) }]);
        }
        let number = |side: &Option<Arc<Stored>>| side.as_ref().map_or(0, |object| object.revision());
        let seen: Vec<_> = subscription.try_next().iter().map(|c| (number(&c.old), number(&c.new))).collect();
        assert_eq!(seen, expected, "{steps:?}");
    }

    #[test]
    fn steps_that_wait_are_merged() {
        check(&[(0, 1)], &[(0, 1)]);
        check(&[(0, 1), (1, 2), (2, 3)], &[(0, 3)]);
        check(&[(0, 1), (1, 0)], &[]);
        check(&[(1, 2), (2, 0)], &[(1, 0)]);
        check(&[(1, 0), (0, 4)], &[(1, 4)]);
    }

    #[tokio::test]
    async fn a_closed_subscription_ends_after_the_last_change() {
        let mut subscription = Subscription { pending: Arc::new(Pending::default()) };
        subscription.pending.push(&[Change { old: None, new: at(1) }]);
        subscription.pending.close();
        assert_eq!(subscription.next().await.map(|changes| changes.len()), Some(1));
        assert!(subscription.next().await.is_none());
    }
}
