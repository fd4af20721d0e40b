//! The scheduler that runs: it watches pods and nodes, decides, and binds.

mod binding;
mod commit;
mod core;
mod gang;
mod preemption;
mod report;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kcore::{Clock, SystemClock};
use kreconcile::{EventRecorder, Informer, Informers, RunError, Runnable, Selection, Subscription};
use kube::{Client, api::ListParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    extender::{Extender, in_order},
    metrics::Metrics,
    profile::{BuildError, Profile},
    queue::{BACKOFF_MAX, BACKOFF_MIN},
    scheduler::core::Core,
    snapshot::catalog::Interest,
    waiting::WaitingPods,
};

/// How many pods are decided on before other tasks get a turn.
pub const BATCH_PODS_MAX: usize = 32;
/// How many bindings and status writes are under way at once; while there are so many, no pod is taken from the queue.
pub const REQUESTS_MAX: usize = 256;
/// How often it is asked, while a kind's first list has not come, whether the server has the kind.
pub const SERVED_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A scheduler for the pods of one or more profiles.
///
/// It is a [`Runnable`] for a [`kreconcile::Manager`]. One task decides on one pod after the other, on a snapshot that
/// it keeps up to date from two informers; a chosen place counts at once, while the binding is under way, and is given
/// back when the binding fails. Everything that it starts ends with it.
///
/// ```no_run
/// use ksched::{Profile, Scheduler};
/// use kreconcile::{Manager, Start};
///
/// # async fn example(client: kube::Client) -> Result<(), ksched::BuildError> {
/// let packing = Profile::builder().scheduler_name("no-images").without("ImageLocality").build()?;
/// let scheduler = Scheduler::builder(client).profile(Profile::default()).profile(packing).build()?;
/// let running = Manager::new().add(Start::Leading, scheduler).start();
/// // ...
/// running.stop().await;
/// # Ok(())
/// # }
/// ```
pub struct Scheduler {
    client: Client,
    informers: Option<Informers>,
    clock: Arc<dyn Clock>,
    profiles: Arc<[Profile]>,
    extenders: Arc<[Arc<dyn Extender>]>,
    backoff: (Duration, Duration),
    waiting: WaitingPods,
    metrics: Metrics,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("profiles", &self.profiles).finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Begins a scheduler that acts through `client`.
    pub fn builder(client: Client) -> SchedulerBuilder {
        SchedulerBuilder {
            client,
            informers: None,
            clock: Arc::new(SystemClock),
            profiles: Vec::new(),
            extenders: Vec::new(),
            backoff: (BACKOFF_MIN, BACKOFF_MAX),
            metrics: Metrics::default(),
        }
    }

    /// What it counts, as a handle.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// The pods that [`Permit`](crate::plugin::Permit) plug-ins let wait, as a handle.
    #[must_use]
    pub fn waiting_pods(&self) -> WaitingPods {
        self.waiting.clone()
    }
}

/// Makes a [`Scheduler`].
#[must_use]
pub struct SchedulerBuilder {
    client: Client,
    informers: Option<Informers>,
    clock: Arc<dyn Clock>,
    profiles: Vec<Profile>,
    extenders: Vec<Arc<dyn Extender>>,
    backoff: (Duration, Duration),
    metrics: Metrics,
}

impl fmt::Debug for SchedulerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerBuilder").field("profiles", &self.profiles).finish_non_exhaustive()
    }
}

impl SchedulerBuilder {
    /// The clock for timestamps; the machine's by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Reads pods and nodes through these informers; by default it has its own, from its client.
    pub fn informers(mut self, informers: &Informers) -> Self {
        self.informers = Some(informers.clone());
        self
    }

    /// The back-off of a pod that found no place: the first one and the longest one. 1 and 10 seconds by default.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff = (first, longest);
        self
    }

    /// Counts here; by default it has counters of its own.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Adds a profile. Without any there is the default one.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profiles.push(profile);
        self
    }

    /// Adds a program that has a say in decisions, for all profiles. Extenders that can be ignored are asked last.
    pub fn extender(mut self, extender: Arc<dyn Extender>) -> Self {
        self.extenders.push(extender);
        self
    }

    /// Makes the scheduler.
    ///
    /// # Errors
    /// When two profiles are for the same `schedulerName`.
    pub fn build(mut self) -> Result<Scheduler, BuildError> {
        if self.profiles.is_empty() {
            self.profiles.push(Profile::default());
        }
        for (at, profile) in self.profiles.iter().enumerate() {
            if self.profiles[..at].iter().any(|other| other.scheduler_name == profile.scheduler_name) {
                return Err(BuildError::SameName(Arc::clone(&profile.scheduler_name)));
            }
        }
        Ok(Scheduler {
            client: self.client,
            informers: self.informers,
            clock: self.clock,
            profiles: self.profiles.into(),
            extenders: in_order(self.extenders),
            backoff: self.backoff,
            waiting: WaitingPods::default(),
            metrics: self.metrics,
        })
    }
}

/// What the plug-ins of all profiles ask for, each kind once.
pub(crate) fn interests(profiles: &[Profile]) -> Vec<Interest> {
    let mut interests = Vec::new();
    for entry in profiles.iter().flat_map(|profile| &profile.points.hints) {
        for interest in entry.plugin.interests() {
            if !interests.contains(&interest) {
                interests.push(interest);
            }
        }
    }
    interests
}

/// Waits for the first list of a kind, but not when the server says that it has no such kind: then there are no such
/// objects, and should the kind come later, the informer shows them.
async fn synced_or_not_served(client: &Client, informer: &Informer<()>) -> bool {
    let path = informer.resource().path("", "");
    let not_served = async {
        loop {
            // Most servers have listed by then, and are not asked.
            tokio::time::sleep(SERVED_CHECK_INTERVAL).await;
            let list = kube::core::Request::new(&*path).list(&ListParams::default().limit(1));
            let Ok(list) = list else { continue };
            match client.request_text(list).await {
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                _ => {}
            }
        }
    };
    tokio::select! {
        biased;
        synced = informer.synced() => synced,
        () = not_served => {
            tracing::info!(path, "the server does not serve this kind: going on without it");
            true
        }
    }
}

#[async_trait]
impl Runnable for Scheduler {
    fn name(&self) -> &str {
        "scheduler"
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        let informers = self.informers.clone().unwrap_or_else(|| Informers::new(self.client.clone()));
        let nodes = informers.of::<Node>(Selection::all());
        let pods = informers.of::<Pod>(Selection::all());
        let interests = interests(&self.profiles);
        let others = interests.iter();
        let others: Vec<Informer<()>> =
            others.map(|interest| informers.dynamic(interest.resource().clone(), Selection::all())).collect();
        let synced = async {
            let all = others.iter().map(|informer| synced_or_not_served(&self.client, informer));
            let all = futures::future::join_all(all).await;
            nodes.synced().await && pods.synced().await && all.into_iter().all(|synced| synced)
        };
        if stop.run_until_cancelled(synced).await != Some(true) {
            return Ok(());
        }
        let (mut node_changes, mut pod_changes) = (nodes.subscribe(), pods.subscribe());
        let recorder = EventRecorder::new(self.client.clone(), Arc::clone(&self.clock), "default-scheduler");
        let mut core = Core::new(self, recorder);
        let mut object_changes =
            stream::select_all(others.iter().zip(&interests).map(|(informer, interest)| {
                let start = (informer.subscribe(), interest);
                let next = |(mut changes, interest): (Subscription, _)| async move {
                    let next = changes.next().await?;
                    Some(((interest, next), (changes, interest)))
                };
                Box::pin(stream::unfold(start, next))
            }));
        while !stop.is_cancelled() {
            while let Some(Some((interest, changes))) = object_changes.next().now_or_never() {
                changes.iter().for_each(|change| core.object_changed(interest, change));
            }
            for change in node_changes.try_next() {
                core.node_changed(&change);
            }
            for change in pod_changes.try_next() {
                core.pod_changed(&change);
            }
            core.show();
            core.take_finished();
            // Extenders may take their time.
            let Some(decided) = stop.run_until_cancelled(core.schedule(BATCH_PODS_MAX)).await else { break };
            core.measure();
            if decided == BATCH_PODS_MAX {
                tokio::task::yield_now().await;
                continue;
            }
            let deadline = core.next_deadline();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changes = node_changes.next() => match changes {
                    Some(changes) => changes.iter().for_each(|change| core.node_changed(change)),
                    None => break,
                },
                changes = pod_changes.next() => match changes {
                    Some(changes) => changes.iter().for_each(|change| core.pod_changed(change)),
                    None => break,
                },
                Some((interest, changes)) = object_changes.next(), if !interests.is_empty() => {
                    changes.iter().for_each(|change| core.object_changed(interest, change));
                }
                () = core.finished() => {}
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
        Ok(())
    }
}
