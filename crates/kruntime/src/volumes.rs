//! Volumes: directories of the node that a pod's containers see.

use std::{
    collections::HashMap,
    fmt::Debug,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::{
    agent::NodeConfig,
    downward::Facts,
    env,
    runtime::{Mount, PodUid, Propagation, RuntimeError},
    sources::Sources,
};

mod atomic;
mod claim;
mod empty_dir;
mod files;
mod host_path;
mod ownership;

pub use claim::Claim;
pub use empty_dir::EmptyDir;
pub use files::Files;
pub use host_path::HostPath;

/// How often volumes that follow other objects are made anew, at most. Half of the agent's look at each pod, so that
/// each look finds them due.
const FRESH_FOR: SignedDuration = SignedDuration::from_secs(30);

/// What a plug-in gets to make a volume.
#[derive(Debug)]
pub struct VolumeRequest<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// The pod and its node, for the downward API.
    pub facts: Facts<'a>,
    /// The other objects.
    pub sources: &'a Sources,
    /// A directory for this volume alone; it may not exist yet. It is removed with the pod.
    pub dir: PathBuf,
    /// The time.
    pub now: Timestamp,
}

/// Makes the volumes of one or more kinds.
///
/// The agent asks the plug-ins in order and uses the first that claims the volume. It calls
/// [`set_up`](Self::set_up) before the pod's sandbox is made, and again from time to time while the pod runs, so that a
/// volume can follow what it is made from; never twice at once for one pod.
#[async_trait]
pub trait VolumePlugin: Debug + Send + Sync + 'static {
    /// Whether this plug-in makes `volume`.
    fn claims(&self, volume: &Volume) -> bool;

    /// Makes the volume, or brings it up to date, and says where it is.
    ///
    /// # Errors
    /// The pod waits, and the agent tries again.
    async fn set_up(&self, request: &VolumeRequest<'_>) -> Result<PathBuf, RuntimeError>;
}

const _: Option<&dyn VolumePlugin> = None;

/// The volumes of a node's pods.
#[derive(Debug)]
pub struct Volumes {
    dir: PathBuf,
    plugins: Vec<Arc<dyn VolumePlugin>>,
    paths: Mutex<HashMap<PodUid, Made, ahash::RandomState>>,
}

#[derive(Debug)]
struct Made {
    at: Timestamp,
    paths: HashMap<String, PathBuf>,
}

impl Volumes {
    /// Volumes below `dir`, with the plug-ins for emptyDir, hostPath, configMap, secret, downwardAPI, projected, and
    /// claims whose volumes are of this machine.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self::with_plugins(dir, Vec::new())
    }

    /// As [`new`](Self::new), with `plugins` asked before the built-in ones.
    #[must_use]
    pub fn with_plugins(dir: PathBuf, mut plugins: Vec<Arc<dyn VolumePlugin>>) -> Self {
        // Whoever mounts the volumes may be in another directory.
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        plugins.extend([
            Arc::new(EmptyDir) as Arc<dyn VolumePlugin>,
            Arc::new(HostPath),
            Arc::new(Claim),
            Arc::new(Files::default()),
        ]);
        Self { dir, plugins, paths: Mutex::default() }
    }

    fn pod_dir(&self, uid: &PodUid) -> PathBuf {
        self.dir.join("pods").join(uid.as_str())
    }

    /// Where the volume of this name is if it is a directory of the pod's own.
    pub(crate) fn own_dir(&self, uid: &PodUid, name: &str) -> PathBuf {
        self.pod_dir(uid).join("volumes").join(name)
    }

    /// Whether any of the pod's volumes follows another object.
    #[must_use]
    pub fn is_live(&self, pod: &Pod) -> bool {
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
        volumes.into_iter().flatten().any(files::is_files)
    }

    /// Whether it is time to make the pod's volumes anew.
    #[must_use]
    pub fn needs_refresh(&self, uid: &PodUid, now: Timestamp) -> bool {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.get(uid).is_none_or(|made| now.duration_since(made.at) >= FRESH_FOR)
    }

    /// Makes all volumes of a pod, or brings them up to date.
    ///
    /// # Errors
    /// Of the first volume that can't be made; those before it stay.
    pub async fn refresh(
        &self,
        pod: &Pod,
        node: &NodeConfig,
        sources: &Sources,
        now: Timestamp,
    ) -> Result<(), RuntimeError> {
        let uid = PodUid::from(pod.metadata.uid.as_deref().unwrap_or_default());
        let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
        let group = group.and_then(|group| u32::try_from(group).ok());
        let is_first = !self.paths.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&uid);
        let mut paths = HashMap::new();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let plugin = self.plugins.iter().find(|plugin| plugin.claims(volume)).ok_or_else(|| {
                RuntimeError::Config(format!(
                    "volume {:?} is of a kind that this node does not have",
                    volume.name
                ))
            })?;
            let request = VolumeRequest {
                volume,
                facts: Facts { pod, pod_ips: &[], host_ips: &node.addresses, allocatable: &node.capacity },
                sources,
                dir: self.own_dir(&uid, &volume.name),
                now,
            };
            let path = plugin.set_up(&request).await?;
            let is_files = files::is_files(volume);
            // What is not the pod's own, as a hostPath, keeps its owner. Files come anew, directories only once.
            if let Some(group) =
                group.filter(|_| path.starts_with(self.pod_dir(&uid)) && (is_files || is_first))
            {
                ownership::give_to_group(&path, group, is_files)
                    .map_err(RuntimeError::io("giving a volume to the pod's group"))?;
            }
            paths.insert(volume.name.clone(), path);
        }
        let made = Made { at: now, paths };
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, made);
        Ok(())
    }

    /// What `container` sees of the pod's volumes.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when a mount names no volume, or a sub-path leads out of it.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        env: &[(String, String)],
    ) -> Result<Vec<Mount>, RuntimeError> {
        let uid = PodUid::from(pod.metadata.uid.as_deref().unwrap_or_default());
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let made = paths.get(&uid).map(|made| &made.paths);
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let mut source = made
                .and_then(|made| made.get(&mount.name))
                .cloned()
                .ok_or_else(|| RuntimeError::Config(format!("volume {:?} is not there", mount.name)))?;
            let expression = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty());
            let sub_path = expression.map(|text| env::expand(text, env)).or_else(|| mount.sub_path.clone());
            if let Some(sub_path) = sub_path.filter(|path| !path.is_empty()) {
                source = sub_path_of(&source, &sub_path)?;
            }
            mounts.push(Mount {
                source,
                target: PathBuf::from(&mount.mount_path),
                read_only: mount.read_only.unwrap_or(false),
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::HostToContainer,
                    Some("Bidirectional") => Propagation::Bidirectional,
                    _ => Propagation::None,
                },
            });
        }
        Ok(mounts)
    }

    /// Removes all that was made for a pod. What is left, because it is in use or not ours, is logged.
    pub async fn tear_down(&self, uid: &PodUid) {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        let dir = self.pod_dir(uid);
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), %error, "a pod's volumes are left");
            }
            _ => {}
        }
    }
}

/// Whether a relative path stays below where it begins.
pub(crate) fn stays_below(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// `sub_path` in `volume`, made as a directory when it isn't there. A symbolic link in the volume must not lead out of it.
fn sub_path_of(volume: &Path, sub_path: &str) -> Result<PathBuf, RuntimeError> {
    let wrong = |why: &str| RuntimeError::Config(format!("subPath {sub_path:?} {why}"));
    if !stays_below(Path::new(sub_path)) {
        return Err(wrong("leads out of the volume"));
    }
    let path = volume.join(sub_path);
    let root = volume.canonicalize().map_err(RuntimeError::io("resolving a volume"))?;
    // The part that exists is checked before anything is made below it.
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(volume);
    let resolved = existing.canonicalize().map_err(RuntimeError::io("resolving a subPath"))?;
    if !resolved.starts_with(&root) {
        return Err(wrong("leads out of the volume"));
    }
    if !path.exists() {
        std::fs::create_dir_all(&path).map_err(RuntimeError::io("making a subPath"))?;
    }
    path.canonicalize().map_err(RuntimeError::io("resolving a subPath"))
}
