//! What a reconciler has done and its informer has not shown yet.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ahash::RandomState;
use tokio::time::Instant;

use crate::{informer::Lister, key::ObjectKey};

/// After this long an expectation counts as met: what was expected was lost (client-go's `ExpectationsTimeout`).
pub const EXPECTATION_AGE_MAX: Duration = Duration::from_secs(300);
/// When to look again at an expectation that is not met. The change itself is the usual reason to look.
pub const EXPECTATION_RECHECK: Duration = Duration::from_secs(1);

/// Keeps a reconciler from doing twice what its informer has not shown yet: making five pods, reading a cache that knows
/// of three, and making two more.
///
/// Writes are remembered by the revision they were given, deletions by the object's uid. They count as seen when the
/// informer has reached that revision, and no longer shows that object or shows it as being deleted. So nothing
/// hangs when an object is gone again before it was seen. Revisions of one kind can be compared (KEP-5504).
///
/// ```no_run
/// # fn example(pods: &kreconcile::Informer<k8s_openapi::api::core::v1::Pod>, key: &kreconcile::ObjectKey) {
/// use kreconcile::Expectations;
/// let expectations = Expectations::new(pods.lister().clone());
/// if expectations.met(key) {
///     let revision = 42; // of the pod that was made
///     expectations.wrote(key, revision);
/// }
/// # }
/// ```
pub struct Expectations {
    lister: Lister,
    by_key: Mutex<HashMap<ObjectKey, Expected, RandomState>>,
}

struct Expected {
    revision: u64,
    gone: Vec<(ObjectKey, Box<str>)>,
    since: Instant,
}

impl fmt::Debug for Expectations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expectations").field("keys", &self.by_key().len()).finish_non_exhaustive()
    }
}

impl Expectations {
    /// Expectations of what `lister` will show.
    #[must_use]
    pub fn new(lister: Lister) -> Self {
        Self { lister, by_key: Mutex::default() }
    }

    fn by_key(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, Expected, RandomState>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, key: &ObjectKey, change: impl FnOnce(&mut Expected)) {
        let now = Instant::now();
        let mut by_key = self.by_key();
        let fresh = || Expected { revision: 0, gone: Vec::new(), since: now };
        let expected = by_key.entry(key.clone()).or_insert_with(fresh);
        expected.since = now;
        change(expected);
    }

    /// While reconciling `key` an object was written, which gave this revision. 0 means that it is not known, and is
    /// left out.
    pub fn wrote(&self, key: &ObjectKey, revision: u64) {
        if revision > 0 {
            self.with(key, |expected| expected.revision = expected.revision.max(revision));
        }
    }

    /// While reconciling `key` this object was told to go.
    pub fn deleted(&self, key: &ObjectKey, object: ObjectKey, uid: &str) {
        self.with(key, |expected| expected.gone.push((object, uid.into())));
    }

    /// Whether this object was told to go while reconciling `key`. It does not count any more, although the informer may still show it.
    #[must_use]
    pub fn is_going(&self, key: &ObjectKey, uid: &str) -> bool {
        self.by_key().get(key).is_some_and(|expected| expected.gone.iter().any(|(_, known)| **known == *uid))
    }

    /// An object that was told to go stays: the request was refused.
    pub fn kept(&self, key: &ObjectKey, uid: &str) {
        if let Some(expected) = self.by_key().get_mut(key) {
            expected.gone.retain(|(_, known)| **known != *uid);
        }
    }

    /// Whether the informer shows everything that was done for `key`.
    #[must_use]
    pub fn met(&self, key: &ObjectKey) -> bool {
        let mut by_key = self.by_key();
        let Some(expected) = by_key.get_mut(key) else { return true };
        expected.gone.retain(|(object, uid)| {
            let shown = self.lister.get(&object.namespace, &object.name);
            shown.is_some_and(|shown| shown.header().uid == *uid && shown.header().deletion.is_none())
        });
        let seen = self.lister.revision() >= expected.revision && expected.gone.is_empty();
        let met = seen || expected.since.elapsed() >= EXPECTATION_AGE_MAX;
        if met {
            by_key.remove(key);
        }
        met
    }

    /// Forgets what is expected for `key`, as when its object is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.by_key().remove(key);
    }
}
