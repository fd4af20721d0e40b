//! The conformance suite for [`Reconciler`]: its promises, one check each.
//!
//! A check drives the reconciler by itself, without a controller and without time, and compares what the test says the
//! state is. It panics when a promise is broken, with the promise in its message.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! use std::sync::{Arc, Mutex};
//! use kreconcile::{Action, ObjectKey, reconcile_fn, testing};
//!
//! let greeted = Arc::new(Mutex::new(Vec::new()));
//! let writes = Arc::clone(&greeted);
//! let greeter = reconcile_fn(move |key| {
//!     let writes = Arc::clone(&writes);
//!     async move {
//!         let mut writes = writes.lock().unwrap();
//!         if !writes.contains(&key) {
//!             writes.push(key);
//!         }
//!         Ok(Action::Done)
//!     }
//! });
//! let state = || async { greeted.lock().unwrap().clone() };
//! testing::settles_and_is_idempotent(&greeter, &ObjectKey::new("shop", "web"), state).await;
//! # });
//! ```

mod crashes;
mod faults;
#[cfg(feature = "controllers")]
mod signer;
#[cfg(feature = "controllers")]
mod sources;

pub use crashes::{WRITES_MAX, converges, survives_crashes};
pub use faults::{FaultSource, Faults};
#[cfg(feature = "controllers")]
pub use signer::check_certificate_signer;
#[cfg(feature = "controllers")]
pub use sources::{check_metrics_source, check_provisioner};

use std::{fmt::Debug, future::Future};

use crate::{
    key::ObjectKey,
    reconciler::{Action, Reconciler},
};

/// How many reconciles a reconciler gets to come to rest.
pub const ROUNDS_MAX: usize = 100;

/// Reconciles `key` until nothing is wanted and nothing changes, and gives the final state.
///
/// # Panics
/// When a reconcile fails, or when it does not come to rest within [`ROUNDS_MAX`] rounds.
pub async fn settle<S, F>(reconciler: &dyn Reconciler, key: &ObjectKey, state: impl Fn() -> F) -> S
where
    S: PartialEq + Debug,
    F: Future<Output = S>,
{
    let mut before = state().await;
    for _ in 0..ROUNDS_MAX {
        let action = match reconciler.reconcile(key).await {
            Ok(action) => action,
            Err(error) => panic!("{key} can't be reconciled: {error}"),
        };
        let after = state().await;
        if action != Action::Retry && before == after {
            return after;
        }
        before = after;
    }
    panic!("{key} does not come to rest in {ROUNDS_MAX} rounds: {before:?}");
}

/// The promise of idempotence: once at rest, one more reconcile changes nothing.
///
/// # Panics
/// When the promise is broken, and as [`settle`].
pub async fn settles_and_is_idempotent<S, F>(
    reconciler: &dyn Reconciler,
    key: &ObjectKey,
    state: impl Fn() -> F,
) where
    S: PartialEq + Debug,
    F: Future<Output = S>,
{
    let settled = settle(reconciler, key, &state).await;
    let again = reconciler.reconcile(key).await;
    assert!(again.is_ok(), "a reconcile at rest fails: {again:?}");
    assert_eq!(settled, state().await, "a reconcile at rest changes something");
}

/// The promise about objects that are gone: a key without an object is no error and changes nothing.
///
/// # Panics
/// When the promise is broken.
pub async fn takes_a_missing_object<S, F>(reconciler: &dyn Reconciler, state: impl Fn() -> F)
where
    S: PartialEq + Debug,
    F: Future<Output = S>,
{
    let before = state().await;
    let result = reconciler.reconcile(&ObjectKey::new("no-such-namespace", "no-such-object")).await;
    assert!(result.is_ok(), "an object that is gone is an error: {result:?}");
    assert_eq!(before, state().await, "an object that is gone leads to a change");
}

/// The promise about cancellation: a reconcile that is dropped at its first `await`, again and again, and then run to
/// its end, leads to the same state as one that was never disturbed.
///
/// `fresh` makes a reconciler over a state of its own, and a function that tells that state.
///
/// # Panics
/// When the promise is broken, and as [`settle`].
pub async fn survives_being_dropped<R, S, G, F>(key: &ObjectKey, fresh: impl Fn() -> (R, G))
where
    R: Reconciler,
    S: PartialEq + Debug,
    G: Fn() -> F,
    F: Future<Output = S>,
{
    let (undisturbed, state) = fresh();
    let expected = settle(&undisturbed, key, state).await;
    let (disturbed, state) = fresh();
    for polls in 1..=ROUNDS_MAX {
        let mut reconcile = disturbed.reconcile(key);
        for _ in 0..polls {
            if futures::poll!(reconcile.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let seen = settle(&disturbed, key, state).await;
    assert_eq!(expected, seen, "a reconcile that was dropped leaves another state behind");
}
