//! Starts what acts, watches over it, and stops it in order.

use std::{
    collections::BTreeMap,
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use crate::{
    backoff::Backoff,
    controller::{ControllerStats, panic_text},
    informer::Informers,
    leader::LeaderElector,
    metrics,
};

/// How long a group of runnables gets to end before it is dropped.
pub const GROUP_STOP_MAX: Duration = Duration::from_secs(30);
/// The first wait before a runnable that failed is started again.
pub const RESTART_MIN: Duration = Duration::from_secs(1);
/// The longest wait before a runnable that failed is started again.
pub const RESTART_MAX: Duration = Duration::from_secs(60);

/// Something that runs until it is told to stop: a [`Controller`](crate::Controller), a server, a loop.
///
/// The manager calls [`run`](Self::run) once at a time. It calls it again after a failure, and, for what runs only while
/// leading, each time the lease is won. Ending without an error before the stop means that all is done.
#[async_trait]
pub trait Runnable: Send + Sync + 'static {
    /// What it is called in logs and in [`Health`]; unique within a manager.
    fn name(&self) -> &str;

    /// Runs until `stop` is cancelled. The future may be dropped when it takes longer than [`GROUP_STOP_MAX`] after that.
    ///
    /// # Errors
    /// Whatever ended it early; it is started again after a back-off.
    async fn run(&self, stop: CancellationToken) -> Result<(), RunError>;

    /// The counters of the controllers that it runs, by their names, the same all the time. Default: it runs none.
    fn stats(&self) -> Vec<(Arc<str>, Arc<ControllerStats>)> {
        Vec::new()
    }
}

const _: Option<&dyn Runnable> = None;

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<R: Runnable + ?Sized> Runnable for Arc<R> {
    fn name(&self) -> &str {
        (**self).name()
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        (**self).run(stop).await
    }

    fn stats(&self) -> Vec<(Arc<str>, Arc<ControllerStats>)> {
        (**self).stats()
    }
}

/// Why a runnable ended early.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RunError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// When a runnable runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// While this manager holds the lease, or always if there is no leader election: what acts on the cluster.
    Leading,
    /// Always: what only reads or serves.
    Always,
}

/// How a runnable is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It has not been started, for the lease is held by another.
    Waiting,
    /// It runs.
    Running,
    /// It failed for this reason and will be started again.
    Failing(Arc<str>),
    /// It has ended.
    Ended,
}

type States = Arc<Mutex<BTreeMap<String, Health>>>;

/// Puts controllers, informers and leader election together.
///
/// ```no_run
/// # async fn example(client: kube::Client, controller: kreconcile::Controller) {
/// use kreconcile::{Informers, Manager, Start};
/// let running = Manager::new().informers(&Informers::new(client)).add(Start::Leading, controller).start();
/// // ...
/// running.stop().await;
/// # }
/// ```
#[derive(Default)]
pub struct Manager {
    runnables: Vec<(Start, Arc<dyn Runnable>)>,
    informers: Vec<Informers>,
    elector: Option<LeaderElector>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.runnables.iter().map(|(start, runnable)| (start, runnable.name())).collect();
        f.debug_struct("Manager").field("runnables", &names).finish_non_exhaustive()
    }
}

impl Manager {
    /// A manager of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds something to run.
    #[must_use]
    pub fn add(mut self, start: Start, runnable: impl Runnable) -> Self {
        self.runnables.push((start, Arc::new(runnable)));
        self
    }

    /// Has these informers stopped after everything else.
    #[must_use]
    pub fn informers(mut self, informers: &Informers) -> Self {
        self.informers.push(informers.clone());
        self
    }

    /// Runs what is added with [`Start::Leading`] only while this elector holds its lease. Without an elector it runs
    /// always.
    #[must_use]
    pub fn leader_election(mut self, elector: LeaderElector) -> Self {
        self.elector = Some(elector);
        self
    }

    /// Starts everything. Dropping what is returned ends everything at once; [`Running::stop`] does it in order.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(self) -> Running {
        let states: States = Arc::default();
        let stop = CancellationToken::new();
        {
            let mut states = states.lock().unwrap_or_else(PoisonError::into_inner);
            states.extend(
                self.runnables.iter().map(|(_, runnable)| (runnable.name().to_owned(), Health::Waiting)),
            );
        }
        let stats = self.runnables.iter().flat_map(|(_, runnable)| runnable.stats()).collect();
        let task = tokio::spawn(self.supervise(Arc::clone(&states), stop.clone()));
        Running {
            stats,
            states,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
            task: AbortOnDropHandle::new(task),
        }
    }

    async fn supervise(self, states: States, stop: CancellationToken) {
        let group = |wanted: Start| -> Vec<Arc<dyn Runnable>> {
            let of_group = self.runnables.iter().filter(|(start, _)| *start == wanted);
            of_group.map(|(_, runnable)| Arc::clone(runnable)).collect()
        };
        let always_stop = CancellationToken::new();
        let always = AbortOnDropHandle::new(spawn_group(group(Start::Always), &states, &always_stop));
        let leading = group(Start::Leading);
        match &self.elector {
            None => run_group(leading, Arc::clone(&states), stop.clone()).await,
            Some(elector) => {
                let lead = |leadership: crate::leader::Leadership| {
                    run_group(leading.clone(), Arc::clone(&states), leadership.lost)
                };
                elector.run(stop.clone(), lead).await;
            }
        }
        // Without anything that leads the group ends at once.
        stop.cancelled().await;
        always_stop.cancel();
        let _ = always.await;
        for informers in &self.informers {
            informers.stop().await;
        }
    }
}

fn spawn_group(group: Vec<Arc<dyn Runnable>>, states: &States, stop: &CancellationToken) -> JoinHandle<()> {
    tokio::spawn(run_group(group, Arc::clone(states), stop.clone()))
}

/// Runs a group until `stop`, and then waits for it to end.
async fn run_group(group: Vec<Arc<dyn Runnable>>, states: States, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    for runnable in group {
        tasks.spawn(keep_running(runnable, Arc::clone(&states), stop.clone()));
    }
    let ended = async { while tasks.join_next().await.is_some() {} };
    tokio::pin!(ended);
    tokio::select! {
        () = &mut ended => return,
        () = stop.cancelled() => {}
    }
    if tokio::time::timeout(GROUP_STOP_MAX, ended).await.is_err() {
        tracing::warn!("some runnables did not stop in time and were dropped");
    }
}

async fn keep_running(runnable: Arc<dyn Runnable>, states: States, stop: CancellationToken) {
    let set = |health| {
        states.lock().unwrap_or_else(PoisonError::into_inner).insert(runnable.name().to_owned(), health);
    };
    let mut backoff = Backoff::new(RESTART_MIN, RESTART_MAX);
    while !stop.is_cancelled() {
        set(Health::Running);
        let why = match AssertUnwindSafe(runnable.run(stop.clone())).catch_unwind().await {
            Ok(Ok(())) => break,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("panicked: {}", panic_text(&*panic)),
        };
        tracing::error!(name = runnable.name(), why, "a runnable failed, starting it again");
        set(Health::Failing(why.into()));
        stop.run_until_cancelled(tokio::time::sleep(backoff.next())).await;
    }
    set(Health::Ended);
}

/// A started [`Manager`].
#[derive(Debug)]
pub struct Running {
    stats: Vec<(Arc<str>, Arc<ControllerStats>)>,
    states: States,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
    task: AbortOnDropHandle<()>,
}

impl Running {
    /// How each runnable is, by name.
    #[must_use]
    pub fn health(&self) -> BTreeMap<String, Health> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether nothing is failing.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.health().values().all(|health| !matches!(health, Health::Failing(_)))
    }

    /// What the controllers count, as Prometheus reads it: `workqueue_depth`, `_adds_total`, `_retries_total`,
    /// `_queue_duration_seconds`, `_work_duration_seconds`, `_unfinished_work_seconds` and `_longest_running_processor_seconds` as
    /// client-go has them, `controller_runtime_reconcile_total`, `_reconcile_errors_total`,
    /// `_reconcile_panics_total` and `_active_workers` as controller-runtime. Counters begin with the manager, not with a term of the
    /// leader.
    #[must_use]
    pub fn metrics(&self) -> String {
        metrics::text(&self.stats)
    }

    /// Stops what leads, gives the lease back, stops the rest, and last the informers; waits until all have ended.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct FailsAtFirst {
        runs: AtomicU32,
        running: tokio::sync::Notify,
    }

    #[async_trait]
    impl Runnable for FailsAtFirst {
        fn name(&self) -> &str {
            "fails-at-first"
        }

        async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
            match self.runs.fetch_add(1, Ordering::Relaxed) {
                0 => Err(RunError("no luck".into())),
                1 => panic!("worse"),
                _ => {
                    self.running.notify_one();
                    stop.cancelled().await;
                    Ok(())
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_controllers_count_can_be_read() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let tries = Arc::new(AtomicU32::new(0));
        let reconciler = crate::reconcile_fn(move |key: crate::ObjectKey| {
            let (sender, failed) = (sender.clone(), tries.fetch_add(1, Ordering::Relaxed) == 0);
            async move {
                if failed {
                    return Err(crate::ReconcileError::other("no luck"));
                }
                let _ = sender.send(key);
                Ok(crate::Action::Done)
            }
        });
        let once = futures::stream::iter([crate::ObjectKey::cluster("x")]);
        let trigger = crate::Trigger::stream(futures::StreamExt::chain(once, futures::stream::pending()));
        let controller = crate::Controller::new("counted", reconciler).on(trigger);
        let stats = Arc::clone(controller.stats());
        let manager = Manager::new().add(Start::Leading, Arc::new(controller)).start();
        receiver.recv().await.unwrap();
        while stats.work.ended() < 2 {
            tokio::task::yield_now().await;
        }
        let text = manager.metrics();
        for line in [
            "workqueue_adds_total{name=\"counted\"} 2",
            "workqueue_retries_total{name=\"counted\"} 1",
            "workqueue_depth{name=\"counted\"} 0",
            "controller_runtime_reconcile_total{controller=\"counted\",result=\"error\"} 1",
            "controller_runtime_reconcile_total{controller=\"counted\",result=\"success\"} 1",
            "controller_runtime_active_workers{controller=\"counted\"} 0",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
        manager.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_started_again_and_stops_when_told() {
        let runnable =
            Arc::new(FailsAtFirst { runs: AtomicU32::new(0), running: tokio::sync::Notify::new() });
        let manager = Manager::new().add(Start::Always, Arc::clone(&runnable)).start();
        runnable.running.notified().await;
        assert_eq!(manager.health()["fails-at-first"], Health::Running);
        let states = Arc::clone(&manager.states);
        manager.stop().await;
        assert_eq!(states.lock().unwrap()["fails-at-first"], Health::Ended);
        assert_eq!(runnable.runs.load(Ordering::Relaxed), 3);
    }
}
