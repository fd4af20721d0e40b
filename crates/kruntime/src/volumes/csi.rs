use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ahash::RandomState;
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;
use tokio::sync::{OwnedMutexGuard, watch};

use super::{MadeVolume, VolumePlugin, VolumeRequest, VolumeStats};
use crate::{
    agent::{Inner, Node, StatusAsk},
    plugins::{PluginHandler, proto::PluginInfo},
    runtime::{PodUid, RuntimeError},
    sources::Token,
};

mod driver;
mod grow;
mod mount;
mod node;
mod notes;
pub(crate) mod proto;
mod rules;
mod stats;
mod unmount;

use driver::{Driver, highest_version};
pub(crate) use rules::Spec;

/// How long it may take to tell the API that a volume is in use, before that is an error.
const REPORT_TIME_MAX: Duration = Duration::from_secs(30);

/// Volumes of CSI drivers that have registered with the node: those of claims, and `csi` volumes that stand in a pod.
///
/// A volume is waited for until it is attached, if its driver wants that, made ready for the node (staged), then for each pod
/// (published), with upstream's order, paths and notes on disk; and back when the last pod is gone. What the node has mounted
/// stays when its agent is started anew, and is undone by the next one.
pub(crate) struct Csi {
    node: Arc<str>,
    /// The node's directory.
    root: PathBuf,
    drivers: Mutex<BTreeMap<String, Driver>>,
    /// One call at a time for each volume, as CSI wants it.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>, RandomState>>,
    /// What this agent has made, by pod and the name of the volume in it.
    made: Mutex<HashMap<PodUid, BTreeMap<String, Published>, RandomState>>,
    /// The volumes that nobody may detach.
    in_use: Mutex<BTreeSet<String>>,
    /// Those that the API was told of.
    reported: watch::Sender<BTreeSet<String>>,
    status: Arc<StatusAsk>,
    tokens: Mutex<Tokens>,
}

impl std::fmt::Debug for Csi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Csi").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Tokens for drivers, by pod, driver and audience, with the time of their issue.
type Tokens = HashMap<(PodUid, String, String), (Timestamp, Token), RandomState>;

/// A volume that a pod has.
#[derive(Clone, Debug)]
struct Published {
    driver: String,
    handle: String,
    target: PathBuf,
    /// The claim that it belongs to.
    claim: Option<String>,
    stats: Option<(Timestamp, VolumeStats)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Csi {
    /// For a node with this directory. Volumes that are there from before are in use.
    pub(crate) fn new(node: Arc<str>, root: PathBuf, status: Arc<StatusAsk>) -> Self {
        let known = notes::all(&root).into_iter().map(|(_, note)| note).filter(notes::Note::is_persistent);
        let in_use = known.map(|note| rules::unique_name(&note.driver_name, &note.volume_handle)).collect();
        Self {
            node,
            root,
            drivers: Mutex::default(),
            turns: Mutex::default(),
            made: Mutex::default(),
            in_use: Mutex::new(in_use),
            reported: watch::Sender::default(),
            status,
            tokens: Mutex::default(),
        }
    }

    /// The volumes for the node's `status.volumesInUse`.
    pub(crate) fn in_use(&self) -> BTreeSet<String> {
        locked(&self.in_use).clone()
    }

    /// The API has been told of these.
    pub(crate) fn set_reported(&self, names: BTreeSet<String>) {
        self.reported.send_replace(names);
    }

    /// Waits until the API knows that the volume is in use, so that it is not detached under way.
    async fn report_in_use(&self, name: &str) -> Result<(), String> {
        locked(&self.in_use).insert(name.to_owned());
        let mut reported = self.reported.subscribe();
        if reported.borrow().contains(name) {
            return Ok(());
        }
        self.status.ask();
        let told =
            tokio::time::timeout(REPORT_TIME_MAX, reported.wait_for(|names| names.contains(name))).await;
        if matches!(told, Ok(Ok(_))) {
            return Ok(());
        }
        Err("Volume has not been added to the list of VolumesInUse in the node's volume status".to_owned())
    }

    fn no_longer_in_use(&self, name: &str) {
        if locked(&self.in_use).remove(name) {
            self.status.ask();
        }
    }

    fn driver(&self, name: &str) -> Result<Driver, String> {
        let found = locked(&self.drivers).get(name).cloned();
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    /// Waits for the right to call the driver about a volume.
    async fn turn(&self, driver: &str, handle: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = locked(&self.turns);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(rules::unique_name(driver, handle)).or_default())
        };
        turn.lock_owned().await
    }
}

#[async_trait]
impl VolumePlugin for Arc<Csi> {
    fn claims(&self, volume: &Volume) -> bool {
        volume.csi.is_some()
    }

    fn is_live(&self, _: &Volume) -> bool {
        true
    }

    async fn set_up(&self, request: &VolumeRequest<'_>) -> Result<MadeVolume, RuntimeError> {
        let Some(source) = &request.volume.csi else {
            return Err(RuntimeError::Config("no csi".to_owned()));
        };
        let spec = Spec::inline(&request.volume.name, source, request.facts.pod);
        self.mount(request, &spec, None).await
    }

    async fn tear_down(&self, pod: &PodUid, dir: &Path) -> Result<(), RuntimeError> {
        self.unmount_pod(pod, dir).await
    }

    async fn stats(&self, pod: &PodUid, now: Timestamp) -> Vec<VolumeStats> {
        self.stats_of(pod, now).await
    }
}

#[async_trait]
impl PluginHandler for Csi {
    fn kind(&self) -> &'static str {
        "CSIPlugin"
    }

    fn validate(&self, plugin: &PluginInfo) -> Result<(), String> {
        let PluginInfo { name, endpoint, .. } = plugin;
        self.validated("ValidatePlugin", plugin)
            .map(drop)
            .map_err(|why| format!("validation failed for CSI Driver {name} at endpoint {endpoint}: {why}"))
    }

    async fn register(&self, inner: &Inner, node: &Node, plugin: &PluginInfo) -> Result<(), String> {
        let version = self.validated("RegisterPlugin", plugin)?;
        let driver = Driver::new(&plugin.endpoint, version);
        let info = driver.info().await.map_err(|error| error.to_string())?;
        locked(&self.drivers).insert(plugin.name.clone(), driver);
        let told = node::install(&inner.client, &node.config.name, &plugin.name, &info).await;
        if told.is_err() {
            locked(&self.drivers).remove(&plugin.name);
        }
        told
    }

    async fn deregister(&self, inner: &Inner, node: &Node, plugin: &PluginInfo) {
        // Another one may have come in its place.
        {
            let mut drivers = locked(&self.drivers);
            if drivers.get(&plugin.name).is_none_or(|known| known.endpoint != plugin.endpoint) {
                return;
            }
            drivers.remove(&plugin.name);
        }
        if let Err(error) = node::uninstall(&inner.client, &node.config.name, &plugin.name).await {
            tracing::warn!(node = %node.config.name, driver = plugin.name, error, "Error uninstalling CSI driver");
        }
    }
}

impl Csi {
    fn validated(&self, caller: &str, plugin: &PluginInfo) -> Result<driver::Version, String> {
        let (name, versions) = (&plugin.name, &plugin.supported_versions);
        let failed =
            |why: String| format!("kubernetes.io/csi: {caller} for CSI driver {name:?} failed. {why}");
        if versions.is_empty() {
            return Err(failed("Plugin returned an empty list for supported versions".to_owned()));
        }
        let version = highest_version(versions).map_err(|error| {
            failed(format!("None of the versions specified {versions:?} are supported. err={error}"))
        })?;
        if let Some(known) = locked(&self.drivers).get(name)
            && known.version >= version
        {
            let [major, minor, patch] = known.version;
            return Err(failed(format!(
                "Another driver with the same name is already registered with a higher supported version: \
                 \"{major}.{minor}.{patch}\""
            )));
        }
        Ok(version)
    }
}

/// Makes sure that the node has a CSINode of its own, as the scheduler expects of every node with a kubelet.
pub(crate) async fn ensure_csi_node(inner: &Inner, node: &Node) -> Result<(), String> {
    node::ensure(&inner.client, &node.config.name).await.map(drop)
}

/// An error of a step in upstream's words.
fn failed(step: &'static str, name: &str, why: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::Volume { step, volume: name.to_owned(), why: why.to_string() }
}
