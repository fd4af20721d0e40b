//! The loop around a reconciler.

use std::{
    any::Any,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    informer::Informer,
    key::ObjectKey,
    manager::{RunError, Runnable},
    metrics::{Durations, QueueCounts},
    queue::WorkQueue,
    reconciler::{Action, ReconcileError, Reconciler},
    trigger::Trigger,
};

/// How many objects a controller works on at once, by default.
pub const WORKERS_DEFAULT: usize = 5;
/// How long a controller that is told to stop waits for reconciles under way, before it drops them.
pub const STOP_GRACE_MAX: Duration = Duration::from_secs(10);
/// How long a trigger that panicked waits before it starts again with everything that is there.
pub const TRIGGER_RESTART_WAIT: Duration = Duration::from_secs(1);

/// Calls a [`Reconciler`] for every object that its triggers name: once per change or burst of changes, again after
/// failures, never twice at the same time for one object.
///
/// It waits until all its informers have their first list, so a reconciler never sees half a cache. A panic in a reconcile
/// is caught, reported and tried again like an error. Run it with [`run`](Self::run), or give it to a
/// [`Manager`](crate::Manager).
///
/// ```no_run
/// # async fn example(client: kube::Client) {
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kreconcile::{Action, Controller, Informers, MapTo, Selection, Trigger, reconcile_fn};
/// use tokio_util::sync::CancellationToken;
///
/// let informers = Informers::new(client);
/// let maps = informers.of::<ConfigMap>(Selection::all().labels("greet=yes"));
/// let controller = Controller::new("greeter", reconcile_fn(|key| async move {
///     println!("hello {key}");
///     Ok(Action::Done)
/// }))
/// .on(Trigger::new(&maps, MapTo::Itself));
/// controller.run(CancellationToken::new()).await;
/// # }
/// ```
#[derive(Clone)]
pub struct Controller {
    name: Arc<str>,
    reconciler: Arc<dyn Reconciler>,
    triggers: Vec<Trigger>,
    reads: Vec<Informer<()>>,
    workers: usize,
    stats: Arc<ControllerStats>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("name", &self.name)
            .field("triggers", &self.triggers)
            .field("workers", &self.workers)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// What a controller has done since it was made. Counters only grow.
#[derive(Debug, Default)]
pub struct ControllerStats {
    /// Reconciles that were started.
    pub reconciles: AtomicU64,
    /// Reconciles that failed, panics among them.
    pub failures: AtomicU64,
    /// Reconciles that panicked.
    pub panics: AtomicU64,
    /// Keys that could be taken when last looked at.
    pub waiting: AtomicU64,
    pub(crate) work: Durations,
    pub(crate) queue: Arc<QueueCounts>,
}

impl Controller {
    /// A controller that has no trigger yet.
    pub fn new(name: impl Into<Arc<str>>, reconciler: impl Reconciler) -> Self {
        Self {
            name: name.into(),
            reconciler: Arc::new(reconciler),
            triggers: Vec::new(),
            reads: Vec::new(),
            workers: WORKERS_DEFAULT,
            stats: Arc::default(),
        }
    }

    /// Adds a trigger. Any number may be there.
    #[must_use]
    pub fn on(mut self, trigger: Trigger) -> Self {
        self.triggers.push(trigger);
        self
    }

    /// Names an informer that the reconciler reads without being triggered by it: the controller waits for its first
    /// list, too.
    #[must_use]
    pub fn reads<K>(mut self, informer: &Informer<K>) -> Self {
        self.reads.push(informer.untyped());
        self
    }

    /// How many objects are worked on at once; at least one. Default: [`WORKERS_DEFAULT`].
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// The name that the controller was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> &Arc<ControllerStats> {
        &self.stats
    }

    /// The reconciler, to call it without the loop.
    #[must_use]
    pub fn reconciler(&self) -> &Arc<dyn Reconciler> {
        &self.reconciler
    }

    /// Works until `stop` is cancelled, or until an informer that it needs has stopped. Reconciles that are then under
    /// way get [`STOP_GRACE_MAX`] to finish.
    ///
    /// # Cancel safety
    /// When the future is dropped, everything that it started is dropped too.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(true) = stop.run_until_cancelled(self.synced()).await else { return };
        let queue = Arc::new(WorkQueue::counting(Arc::clone(&self.stats.queue)));
        let mut feeders = JoinSet::new();
        for trigger in self.triggers.iter().cloned() {
            feeders.spawn(feed(trigger, Arc::clone(&queue), Arc::clone(&self.name)));
        }
        let mut running = JoinSet::new();
        stop.run_until_cancelled(self.dispatch(&queue, &mut running)).await;
        drop(feeders);
        queue.shut_down();
        let drained =
            tokio::time::timeout(STOP_GRACE_MAX, async { while running.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!(controller = %self.name, left = running.len(), "reconciles were dropped at the stop");
        }
    }

    async fn synced(&self) -> bool {
        for trigger in &self.triggers {
            if !trigger.synced().await {
                return false;
            }
        }
        for informer in &self.reads {
            if !informer.synced().await {
                return false;
            }
        }
        true
    }

    async fn dispatch(&self, queue: &Arc<WorkQueue>, running: &mut JoinSet<()>) {
        let permits = Arc::new(Semaphore::new(self.workers));
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let Some(key) = queue.take().await else { return };
            while running.try_join_next().is_some() {}
            self.stats.waiting.store(queue.len() as u64, Ordering::Relaxed);
            let work = Work {
                key,
                queue: Arc::clone(queue),
                reconciler: Arc::clone(&self.reconciler),
                stats: Arc::clone(&self.stats),
                name: Arc::clone(&self.name),
                _permit: permit,
            };
            running.spawn(work.run());
        }
    }
}

/// A panic in somebody's mapping function must not leave the controller deaf.
async fn feed(trigger: Trigger, queue: Arc<WorkQueue>, controller: Arc<str>) {
    while let Err(panic) = AssertUnwindSafe(trigger.feed(&queue)).catch_unwind().await {
        let why = panic_text(&*panic);
        tracing::error!(%controller, why, "a trigger panicked, starting it again");
        tokio::time::sleep(TRIGGER_RESTART_WAIT).await;
    }
}

struct Work {
    key: ObjectKey,
    queue: Arc<WorkQueue>,
    reconciler: Arc<dyn Reconciler>,
    stats: Arc<ControllerStats>,
    name: Arc<str>,
    _permit: OwnedSemaphorePermit,
}

impl Work {
    async fn run(self) {
        let span = tracing::debug_span!("reconcile", controller = %self.name, key = %self.key);
        self.stats.reconciles.fetch_add(1, Ordering::Relaxed);
        let began = tokio::time::Instant::now();
        let result = AssertUnwindSafe(self.reconciler.reconcile(&self.key))
            .catch_unwind()
            .instrument(span.clone())
            .await;
        let _entered = span.enter();
        self.stats.work.note(began.elapsed());
        match result {
            Ok(result) => self.finish(result),
            Err(panic) => {
                self.stats.panics.fetch_add(1, Ordering::Relaxed);
                self.stats.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(why = panic_text(&*panic), "reconcile panicked, trying again");
                self.queue.add_rate_limited(self.key.clone());
            }
        }
        self.queue.done(&self.key);
    }

    fn finish(&self, result: Result<Action, ReconcileError>) {
        match result {
            Ok(Action::Done) => self.queue.forget(&self.key),
            Ok(Action::After(delay)) => {
                self.queue.forget(&self.key);
                self.queue.add_after(self.key.clone(), delay);
            }
            Ok(Action::Retry) => {
                self.queue.add_rate_limited(self.key.clone());
            }
            Err(error) => {
                self.stats.failures.fetch_add(1, Ordering::Relaxed);
                if let ReconcileError::Terminal(_) = error {
                    self.queue.forget(&self.key);
                    tracing::error!(%error, "reconcile failed for good");
                    return;
                }
                let wait = self.queue.add_rate_limited(self.key.clone());
                if error.is_conflict() {
                    tracing::debug!(%error, ?wait, "reconcile met a conflict, trying again");
                } else {
                    tracing::warn!(%error, ?wait, "reconcile failed, trying again");
                }
            }
        }
    }
}

/// What a panic said, if it said it in words.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[async_trait]
impl Runnable for Controller {
    fn name(&self) -> &str {
        &self.name
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        Controller::run(self, stop).await;
        Ok(())
    }

    fn stats(&self) -> Vec<(Arc<str>, Arc<ControllerStats>)> {
        vec![(Arc::clone(&self.name), Arc::clone(&self.stats))]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::StreamExt;
    use tokio::{sync::mpsc, time::Instant};

    use super::*;
    use crate::reconciler::reconcile_fn;

    fn keys(names: &'static [&'static str]) -> Trigger {
        let keys = futures::stream::iter(names.iter().map(|name| ObjectKey::cluster(*name)));
        Trigger::stream(keys.chain(futures::stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_panics_are_tried_again_and_counted() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let calls = Arc::new(AtomicU64::new(0));
        let reconciler = reconcile_fn(move |_| {
            let (sender, call) = (sender.clone(), calls.fetch_add(1, Ordering::Relaxed));
            async move {
                match call {
                    0 => Err(ReconcileError::other("first")),
                    1 => panic!("second"),
                    2 => Ok(Action::After(Duration::from_secs(60))),
                    _ => {
                        let _ = sender.send(Instant::now());
                        Ok(Action::Done)
                    }
                }
            }
        });
        let controller = Controller::new("test", reconciler).on(keys(&["x"]));
        let (stop, started) = (CancellationToken::new(), Instant::now());
        let run = tokio::spawn({
            let (controller, stop) = (controller.clone(), stop.clone());
            async move { controller.run(stop).await }
        });
        let last = receiver.recv().await.unwrap();
        assert_eq!((last - started).as_millis(), 60_015, "5 ms, 10 ms, then the 60 s that were asked for");
        stop.cancel();
        run.await.unwrap();
        let stats = controller.stats();
        assert_eq!(stats.reconciles.load(Ordering::Relaxed), 4);
        assert_eq!(stats.failures.load(Ordering::Relaxed), 2);
        assert_eq!(stats.panics.load(Ordering::Relaxed), 1);
    }

    /// Keeps what spans there were, and in which of them each event came.
    #[derive(Clone, Default)]
    struct Spans(Arc<Mutex<Told>>);

    #[derive(Default)]
    struct Told {
        spans: Vec<String>,
        entered: Vec<u64>,
        events: Vec<String>,
    }

    struct Words(String);

    impl tracing::field::Visit for Words {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
            self.0 += &format!(" {}={value:?}", field.name());
        }
    }

    impl tracing::Subscriber for Spans {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            let mut words = Words(span.metadata().name().to_owned());
            span.record(&mut words);
            let mut all = self.0.lock().unwrap();
            all.spans.push(words.0);
            tracing::span::Id::from_u64(all.spans.len() as u64)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut words = Words(String::new());
            event.record(&mut words);
            let mut all = self.0.lock().unwrap();
            let within = all.entered.last().map(|id| all.spans[usize::try_from(*id).unwrap() - 1].clone());
            all.events.push(format!("{}:{}", within.unwrap_or_default(), words.0));
        }
        fn enter(&self, span: &tracing::span::Id) {
            self.0.lock().unwrap().entered.push(span.into_u64());
        }
        fn exit(&self, _: &tracing::span::Id) {
            self.0.lock().unwrap().entered.pop();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_reconcile_has_a_span_that_says_which_and_of_what() {
        let spans = Spans::default();
        let _default = tracing::subscriber::set_default(spans.clone());
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let reconciler = reconcile_fn(move |_| {
            let sender = sender.clone();
            async move {
                tokio::task::yield_now().await;
                tracing::info!("at work");
                let _ = sender.send(());
                Ok(Action::Done)
            }
        });
        let controller = Controller::new("test", reconciler).on(keys(&["x"]));
        let stop = CancellationToken::new();
        let run = tokio::spawn({
            let (controller, stop) = (controller.clone(), stop.clone());
            async move { controller.run(stop).await }
        });
        receiver.recv().await.unwrap();
        stop.cancel();
        run.await.unwrap();
        let events = spans.0.lock().unwrap().events.clone();
        let expected = "reconcile controller=test key=x: message=at work";
        assert!(events.iter().any(|event| event == expected), "{events:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_workers_run_at_once_and_a_stop_waits_for_them() {
        let (running, most) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let peak = Arc::clone(&most);
        let reconciler = reconcile_fn(move |_| {
            let (running, peak, sender) = (Arc::clone(&running), Arc::clone(&peak), sender.clone());
            async move {
                let now = {
                    let mut running = running.lock().unwrap();
                    *running += 1;
                    *running
                };
                let mut most = peak.lock().unwrap_or_else(std::sync::PoisonError::into_inner).max(now);
                std::mem::swap(&mut most, &mut peak.lock().unwrap());
                tokio::time::sleep(Duration::from_secs(1)).await;
                *running.lock().unwrap() -= 1;
                let _ = sender.send(());
                Ok(Action::Done)
            }
        });
        let controller = Controller::new("test", reconciler).workers(2).on(keys(&["a", "b", "c", "d"]));
        let stop = CancellationToken::new();
        let run = tokio::spawn({
            let stop = stop.clone();
            async move { controller.run(stop).await }
        });
        for _ in 0..3 {
            receiver.recv().await.unwrap();
        }
        stop.cancel();
        run.await.unwrap();
        assert_eq!(*most.lock().unwrap(), 2);
        assert!(receiver.recv().await.is_some(), "the one under way has finished");
    }
}
