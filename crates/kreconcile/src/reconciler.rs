//! The one thing that a controller's author writes.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::key::ObjectKey;

/// Brings the world to the state that one object asks for.
///
/// A [`Controller`](crate::Controller) calls it with the key of an object for which something may have changed, and
/// again after failures. The contract:
///
/// - *Level-triggered*: it is told which object, not what happened. It reads the state, and must be right for any number
///   of missed or repeated calls, and when the object is gone.
/// - *Idempotent*: a second call with nothing changed in between must change nothing.
/// - *Stale reads*: what an informer says may be some moments old. Writes carry a resource version or a uid so that they
///   fail rather than undo somebody's work; what must not be done twice is guarded by
///   [`Expectations`](crate::Expectations).
/// - *One at a time*: calls for one key never overlap. Calls for different keys do, up to the controller's number of
///   workers.
/// - *Cancellation*: the future may be dropped at any await when the controller stops for longer than its grace period;
///   the next start must be able to go on from there.
///
/// An error, or a panic, makes the controller call again after an exponential back-off; [`ReconcileError::Terminal`] is
/// reported and not tried again before the next change.
///
/// ```
/// use async_trait::async_trait;
/// use kreconcile::{Action, ObjectKey, ReconcileError, Reconciler};
///
/// struct Greeter;
///
/// #[async_trait]
/// impl Reconciler for Greeter {
///     async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
///         println!("hello {key}");
///         Ok(Action::Done)
///     }
/// }
/// ```
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    /// Works on one object.
    ///
    /// # Errors
    /// Whatever kept it from reaching the state that the object asks for. See the trait for what an error leads to.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError>;
}

const _: Option<&dyn Reconciler> = None;

#[async_trait]
impl<R: Reconciler + ?Sized> Reconciler for Arc<R> {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        (**self).reconcile(key).await
    }
}

/// What a reconciler wants next. Whatever it says, the object is reconciled when something changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Nothing before the next change.
    #[default]
    Done,
    /// Once more after this time: for what no watch tells, such as a deadline.
    After(Duration),
    /// Once more after a back-off, as after an error, but without one being reported.
    Retry,
}

impl Action {
    /// The earlier one of two wishes.
    ///
    /// ```
    /// use kreconcile::Action;
    /// use std::time::Duration;
    /// let (soon, late) = (Action::After(Duration::from_secs(1)), Action::After(Duration::from_secs(9)));
    /// assert_eq!(Action::Done.or_sooner(late).or_sooner(soon), soon);
    /// ```
    #[must_use]
    pub fn or_sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Retry, _) | (_, Self::Retry) => Self::Retry,
            (Self::After(one), Self::After(two)) => Self::After(one.min(two)),
            (Self::Done, wish) | (wish, Self::Done) => wish,
        }
    }
}

/// Why an object could not be reconciled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReconcileError {
    /// A request failed.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// An object can't be encoded or decoded.
    #[error("object can't be encoded or decoded: {0}")]
    Encoding(#[from] serde_json::Error),
    /// Something else failed.
    #[error("{0}")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Something is wrong that trying again can't mend; the object itself must change.
    #[error("{0}")]
    Terminal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ReconcileError {
    /// Wraps any error; it is tried again.
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(error.into())
    }

    /// Wraps any error; it is not tried again before the object changes.
    pub fn terminal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Terminal(error.into())
    }

    /// Whether the server said that the object has changed since it was read: usual with caches, and not worth a
    /// warning.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(error) if crate::request::is_conflict(error))
    }
}

/// Makes a [`Reconciler`] of a closure.
///
/// ```
/// use kreconcile::{Action, reconcile_fn};
/// let reconciler = reconcile_fn(|key| async move {
///     println!("hello {key}");
///     Ok(Action::Done)
/// });
/// ```
pub fn reconcile_fn<F, R>(function: F) -> ReconcileFn<F>
where
    F: Fn(ObjectKey) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Action, ReconcileError>> + Send,
{
    ReconcileFn(function)
}

/// A closure as a [`Reconciler`]; made by [`reconcile_fn`].
#[derive(Clone, Copy)]
pub struct ReconcileFn<F>(F);

impl<F> fmt::Debug for ReconcileFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReconcileFn")
    }
}

#[async_trait]
impl<F, R> Reconciler for ReconcileFn<F>
where
    F: Fn(ObjectKey) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Action, ReconcileError>> + Send,
{
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        (self.0)(key.clone()).await
    }
}
