//! The node agent: brings the pods that are bound to its nodes to life, and says what became of them.
//!
//! One agent serves one node or thousands: with more than one it reads all bound pods through one watch and finds the
//! node by `spec.nodeName`, and all pods share a few workers. A pod has no task of its own; what takes time (a start with a
//! hook, a stop with a grace, a probe) runs beside the workers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kcore::Clock;
use kreconcile::{Change, EventRecorder, Informer, Informers, RunError, Runnable, Selection, WorkQueue};
use kube::Client;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    eviction::Pressure,
    machine::PodMachine,
    node,
    runtime::{ContainerRuntime, PodUid},
    sources::Sources,
    stats::{self, NodeStats, PodStats, Readings},
    volumes::Volumes,
};

mod act;
mod allocate;
mod config;
mod images;
mod orphans;
mod pod;
mod pressure;
mod resize;
mod security;
mod shutdown;
mod statics;
mod storage;
mod write;

pub use config::NodeConfig;
pub(crate) use pod::PodEntry;
pub use shutdown::{ShutdownPeriod, shutdown_periods};
use statics::Statics;
pub(crate) use write::WriteError;

/// How many pods are worked on at the same time.
pub const WORKERS: usize = 32;

/// A node as the agent keeps it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) scheme: String,
    /// The runtime's name and version.
    pub(crate) version: String,
    /// Since when the agent has it.
    pub(crate) since: jiff::Timestamp,
    pub(crate) materialises: bool,
    /// The handlers of RuntimeClasses that the runtime knows.
    pub(crate) handlers: Vec<String>,
    pub(crate) volumes: Option<Volumes>,
    /// Ends the node's heartbeats and its pods' work, as when the machine dies.
    pub(crate) stop: CancellationToken,
    /// What it is short of, and since when.
    pressures: Mutex<BTreeMap<Pressure, jiff::Timestamp>>,
    /// Since when it is no longer short of what it once was.
    relieved: Mutex<BTreeMap<Pressure, jiff::Timestamp>>,
    /// Since when it is shutting down.
    shutting_down: Mutex<Option<jiff::Timestamp>>,
    status: Arc<StatusAsk>,
    /// One pod at a time is given devices, processors and memory.
    allocating: tokio::sync::Mutex<()>,
    /// The volumes of its CSI drivers; `None` when it takes no plug-ins.
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    pub(crate) csi: Option<Arc<crate::volumes::csi::Csi>>,
    /// The devices that plug-ins tell of; `None` when it takes none.
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    pub(crate) devices: Option<Arc<crate::devices::Devices>>,
    /// The claims of pods that drivers prepare; `None` when it takes no plug-ins.
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    pub(crate) claims: Option<Arc<crate::dra::Claims>>,
}

/// Asks for a node's status to be written.
#[derive(Debug)]
pub(crate) struct StatusAsk {
    /// It has changed and is to be written.
    changed: AtomicBool,
    wake: Arc<tokio::sync::Notify>,
}

impl StatusAsk {
    pub(crate) fn ask(&self) {
        self.changed.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

impl Node {
    pub(crate) fn pressures(&self) -> MutexGuard<'_, BTreeMap<Pressure, jiff::Timestamp>> {
        self.pressures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_relieved(&self, pressure: Pressure, now: jiff::Timestamp) {
        self.relieved.lock().unwrap_or_else(PoisonError::into_inner).insert(pressure, now);
    }

    /// Whether it is short of that, and since when that is so.
    pub(crate) fn pressure(&self, pressure: Pressure) -> (bool, jiff::Timestamp) {
        if let Some(since) = self.pressures().get(&pressure) {
            return (true, *since);
        }
        let relieved = self.relieved.lock().unwrap_or_else(PoisonError::into_inner);
        (false, relieved.get(&pressure).copied().unwrap_or(self.since))
    }

    /// Since when it is shutting down; `None` while it is not.
    pub(crate) fn shutting_down(&self) -> Option<jiff::Timestamp> {
        *self.shutting_down.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_shutting_down(&self, now: jiff::Timestamp) {
        self.shutting_down.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(now);
        self.ask_for_status();
    }

    fn ask_for_status(&self) {
        self.status.ask();
    }

    /// Whether plug-ins may register with it.
    pub(crate) fn takes_plugins(&self) -> bool {
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        return self.csi.is_some();
        #[cfg(not(all(feature = "plugins", target_os = "linux")))]
        false
    }

    /// How many devices of each resource plug-ins tell of, and how many of them are healthy.
    pub(crate) fn device_counts(&self) -> BTreeMap<String, (usize, usize)> {
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        return self.devices.as_ref().map(|devices| devices.counts()).unwrap_or_default();
        #[cfg(not(all(feature = "plugins", target_os = "linux")))]
        BTreeMap::new()
    }

    /// The volumes that it uses and nobody may detach, for its status.
    pub(crate) fn volumes_in_use(&self) -> Option<BTreeSet<String>> {
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        return self.csi.as_ref().map(|csi| csi.in_use());
        #[cfg(not(all(feature = "plugins", target_os = "linux")))]
        None
    }

    /// The API knows of these.
    #[cfg_attr(
        not(all(feature = "plugins", target_os = "linux")),
        expect(unused_variables, reason = "there are none")
    )]
    pub(crate) fn told_in_use(&self, names: Option<BTreeSet<String>>) {
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        if let (Some(csi), Some(names)) = (&self.csi, names) {
            csi.set_reported(names);
        }
    }

    /// Whether the status is to be written; asked for again only after the next change.
    pub(crate) fn take_status_changed(&self) -> bool {
        self.status.changed.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn is_status_changed(&self) -> bool {
        self.status.changed.load(Ordering::Acquire)
    }
}

/// The agent. Cheap to clone; all clones are one.
///
/// ```no_run
/// use std::sync::Arc;
/// use kreconcile::Informers;
/// use kruntime::{agent::{NodeAgent, NodeConfig}, runtime::simulated::SimulatedRuntime};
///
/// # async fn example(client: kube::Client) {
/// let clock = Arc::new(kcore::TokioClock::new());
/// let runtime = Arc::new(SimulatedRuntime::new(clock.clone()));
/// let informers = Informers::new(client);
/// let nodes = (0..1000).map(|n| NodeConfig::new(format!("node-{n}"), runtime.clone()));
/// let agent = NodeAgent::new(&informers, clock, nodes);
/// let manager = kreconcile::Manager::new().add(kreconcile::Start::Always, agent.clone());
/// let running = manager.start();
/// # running.stop().await;
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct NodeAgent {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) client: Client,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) sources: Sources,
    pub(crate) recorder: EventRecorder,
    pub(crate) queue: WorkQueue<PodUid>,
    nodes: Mutex<HashMap<Arc<str>, Arc<Node>>>,
    entries: Mutex<HashMap<PodUid, Arc<PodEntry>, ahash::RandomState>>,
    pub(crate) stats: Readings,
    pub(crate) statics: Statics,
    resizing: resize::Waiting,
    pub(crate) node_changed: Arc<tokio::sync::Notify>,
    /// What containers share of processors has changed, on some node.
    shared_changed: tokio::sync::Notify,
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    pub(crate) plugins: crate::plugins::Nodes,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("pods", &self.entries().len()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl NodeAgent {
    /// An agent for `nodes`. With exactly one it watches that node's pods only, and no other can be added.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(
        informers: &Informers,
        clock: Arc<dyn Clock>,
        nodes: impl IntoIterator<Item = NodeConfig>,
    ) -> Self {
        let nodes: Vec<NodeConfig> = nodes.into_iter().collect();
        let selection = match &nodes[..] {
            [only] => Selection::all().fields(format!("spec.nodeName={}", only.name)),
            _ => Selection::all().fields("spec.nodeName!="),
        };
        let materialises = nodes.iter().any(|node| node.runtime.info().materialises);
        let services = materialises.then(|| informers.of::<Service>(Selection::all()));
        let client = informers.client().clone();
        let inner = Inner {
            recorder: EventRecorder::new(client.clone(), Arc::clone(&clock), "kubelet"),
            sources: Sources::new(client.clone(), services),
            client,
            clock,
            pods: informers.of(selection),
            queue: WorkQueue::new(),
            nodes: Mutex::default(),
            entries: Mutex::default(),
            stats: Readings::default(),
            statics: Statics::default(),
            resizing: Mutex::default(),
            node_changed: Arc::default(),
            shared_changed: tokio::sync::Notify::new(),
            #[cfg(all(feature = "plugins", target_os = "linux"))]
            plugins: crate::plugins::Nodes::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let agent = Self { inner: Arc::new(inner) };
        nodes.into_iter().for_each(|node| agent.add_node(node));
        agent
    }

    /// Adds a node, or replaces one that was stopped. It is registered when the agent runs.
    pub fn add_node(&self, config: NodeConfig) {
        let info = config.runtime.info();
        for limitation in &info.limitations {
            tracing::warn!(node = %config.name, "{limitation}");
        }
        let status = Arc::new(StatusAsk {
            changed: AtomicBool::new(false),
            wake: Arc::clone(&self.inner.node_changed),
        });
        let dir = config.state_dir.clone().filter(|_| info.materialises);
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        let csi = dir.as_ref().filter(|_| config.plugins).map(|dir| {
            let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
            Arc::new(crate::volumes::csi::Csi::new(Arc::clone(&config.name), dir, Arc::clone(&status)))
        });
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        let devices = dir.as_ref().filter(|_| config.plugins);
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        let claims = devices.map(|dir| Arc::new(crate::dra::Claims::new(Arc::clone(&config.name), dir)));
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        let devices = devices.map(|dir| Arc::new(crate::devices::Devices::new(dir, Arc::clone(&status))));
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        let volumes = dir.map(|dir| match &csi {
            Some(csi) => Volumes::with_csi(dir, csi),
            None => Volumes::new(dir),
        });
        #[cfg(not(all(feature = "plugins", target_os = "linux")))]
        let volumes = dir.map(Volumes::new);
        let node = Node {
            scheme: info.version.split("://").next().unwrap_or_default().to_owned(),
            version: info.version,
            since: self.inner.clock.now(),
            materialises: info.materialises,
            handlers: info.handlers,
            volumes,
            stop: self.inner.stop.child_token(),
            pressures: Mutex::default(),
            relieved: Mutex::default(),
            shutting_down: Mutex::default(),
            status,
            allocating: tokio::sync::Mutex::default(),
            #[cfg(all(feature = "plugins", target_os = "linux"))]
            csi,
            #[cfg(all(feature = "plugins", target_os = "linux"))]
            devices,
            #[cfg(all(feature = "plugins", target_os = "linux"))]
            claims,
            config,
        };
        if node.config.plugins && !node.takes_plugins() {
            tracing::warn!(node = %node.config.name, "the node takes no plug-ins: that needs the feature and a directory");
        }
        let node = Arc::new(node);
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        if node.takes_plugins() {
            self.inner.plugins.add(&node);
        }
        self.inner.nodes().insert(Arc::clone(&node.config.name), node);
        self.inner.node_changed.notify_one();
        self.inner.shared_changed.notify_one();
    }

    /// Lets a node go silent, as if its machine had lost power: no heartbeat, no status, and its containers are gone.
    /// The Node object stays. Says whether there was such a node.
    pub async fn stop_node(&self, name: &str) -> bool {
        let Some(node) = self.inner.nodes().remove(name) else { return false };
        node.stop.cancel();
        let lost: Vec<_> = {
            let mut entries = self.inner.entries();
            let here = entries.iter().filter(|(_, entry)| entry.node.config.name == node.config.name);
            let uids: Vec<PodUid> = here.map(|(uid, _)| uid.clone()).collect();
            uids.iter().filter_map(|uid| entries.remove(uid)).collect()
        };
        for entry in lost {
            entry.abandon();
            self.inner.statics.ended(&entry.uid);
            if let Err(error) = node.config.runtime.remove_pod(&entry.uid).await {
                tracing::warn!(node = name, pod = %entry.uid, %error, "a pod of a stopped node is left");
            }
        }
        true
    }

    /// What these pods use, in their order; `None` for one that is not here, doesn't run, or has not run for long enough. The
    /// first question starts the readings: see [`stats`].
    pub async fn pod_stats(&self, pods: &[PodUid]) -> Vec<Option<PodStats>> {
        self.inner.pod_stats(pods).await
    }

    /// What the pods of each of these nodes use together; `None` for a node that is not here.
    pub async fn node_stats(&self, nodes: &[impl AsRef<str> + Sync]) -> Vec<Option<NodeStats>> {
        self.inner.node_stats(nodes).await
    }

    /// The names of the nodes, in no order.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<str>> {
        self.inner.nodes().keys().cloned().collect()
    }
}

impl Inner {
    pub(crate) fn nodes(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn entries(&self) -> MutexGuard<'_, HashMap<PodUid, Arc<PodEntry>, ahash::RandomState>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn entry(&self, uid: &PodUid) -> Option<Arc<PodEntry>> {
        self.entries().get(uid).cloned()
    }

    /// Whether there is a pod of this uid that has not ended.
    pub(crate) fn has_pod(&self, uid: &str) -> bool {
        let is_it = |pod: &Pod| pod.metadata.uid.as_deref() == Some(uid) && !is_over(pod);
        self.entries().contains_key(&PodUid::from(uid)) || self.pods.list().iter().any(|pod| is_it(pod))
    }

    /// The entry of a pod by name, the one that isn't gone first.
    pub(crate) fn entry_named(&self, node: &str, namespace: &str, name: &str) -> Option<Arc<PodEntry>> {
        let uid = match self.statics.named(namespace, name) {
            Some(uid) => uid,
            None => PodUid::from(self.pods.get(namespace, name)?.metadata.uid.as_deref()?),
        };
        self.entry(&uid).filter(|entry| *entry.node.config.name == *node)
    }

    /// Takes note of a change that the API reports.
    fn noted(&self, change: &Change) {
        if self.statics.noted(change) {
            return;
        }
        let new_uid = change.new.as_ref().map(|stored| PodUid::from(&*stored.header().uid));
        if let Some(old) = &change.old {
            let uid = PodUid::from(&*old.header().uid);
            if new_uid.as_ref() != Some(&uid)
                && let Some(entry) = self.entry(&uid)
            {
                entry.set_gone();
                self.queue.add(uid);
            }
        }
        let (Some(uid), Some(pod)) = (new_uid, change.new_as::<Pod>()) else { return };
        let known = self.entry(&uid);
        if let Some(entry) = known {
            if entry.set_pod(pod) {
                self.queue.add(uid);
            }
            return;
        }
        let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let Some(node) = self.nodes().get(node_name).cloned() else { return };
        if is_over(&pod) {
            return;
        }
        let entry = PodEntry::new(uid.clone(), node, pod, PodMachine::default());
        self.admit(&entry);
        self.entries().insert(uid.clone(), Arc::new(entry));
        self.queue.add(uid);
    }
}

/// Whether a pod has ended for good and nobody deletes it: an agent that starts anew leaves it alone.
pub(crate) fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")) && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(all(feature = "plugins", target_os = "linux"))]
async fn plugins(inner: &Inner) {
    crate::plugins::run(inner).await;
}

#[cfg(not(all(feature = "plugins", target_os = "linux")))]
async fn plugins(_: &Inner) {}

#[async_trait]
impl Runnable for NodeAgent {
    fn name(&self) -> &str {
        "node-agent"
    }

    /// Registers the nodes and works until `stop`. Containers go on running until their runtime is dropped.
    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        let inner = &self.inner;
        let ended = inner.stop.clone();
        let work = async {
            let mut runtimes: Vec<Arc<dyn ContainerRuntime>> = Vec::new();
            for node in inner.nodes().values() {
                if !runtimes.iter().any(|known| Arc::ptr_eq(known, &node.config.runtime)) {
                    runtimes.push(Arc::clone(&node.config.runtime));
                }
            }
            let mut changes = futures::stream::select_all(runtimes.iter().map(|runtime| runtime.changes()));
            let told = async {
                while let Some(uid) = changes.next().await {
                    inner.queue.add(uid);
                }
                std::future::pending::<()>().await;
            };
            let mut pods = inner.pods.subscribe();
            let noted = async {
                while let Some(batch) = pods.next().await {
                    batch.iter().for_each(|change| inner.noted(change));
                }
            };
            let workers = futures::future::join_all((0..WORKERS).map(|_| inner.work()));
            tokio::join!(
                told,
                noted,
                workers,
                node::run(inner),
                stats::run(inner),
                pressure::run(inner),
                statics::run(inner),
                orphans::run(inner),
                allocate::run(inner),
                plugins(inner)
            );
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = ended.cancelled() => {}
            () = work => {}
        }
        Ok(())
    }
}
