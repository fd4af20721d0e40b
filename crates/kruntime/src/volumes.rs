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
use kreconcile::EventType;

use crate::{
    agent::NodeConfig,
    downward::Facts,
    env,
    runtime::{Mount, PodUid, Propagation, RuntimeError},
    sources::Sources,
};

mod atomic;
mod claim;
#[cfg(all(feature = "plugins", target_os = "linux"))]
pub(crate) mod csi;
mod empty_dir;
mod files;
mod host_path;
pub(crate) mod image;
mod mounted;
mod ownership;

pub use claim::Claim;
pub use empty_dir::EmptyDir;
pub use files::Files;
pub use host_path::HostPath;
#[cfg(all(feature = "testing", feature = "plugins", target_os = "linux"))]
pub(crate) use mounted::is_mounted;

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
    /// The pod's directory, which that one is in.
    pub pod_dir: PathBuf,
    /// The time.
    pub now: Timestamp,
}

/// A volume that was made.
#[derive(Clone, Debug)]
pub struct MadeVolume {
    /// Where it is on the node.
    pub path: PathBuf,
    /// Whether containers may only read it, whatever their mounts say.
    pub read_only: bool,
    /// Whether its files are the pod's group's already, or are not to be; else the agent gives them to it (`fsGroup`) if they are below the
    /// pod's directory.
    pub has_owner: bool,
    /// What is to be told about it, as events of the pod.
    pub notes: Vec<VolumeNote>,
}

impl From<PathBuf> for MadeVolume {
    /// One that may be written to.
    fn from(path: PathBuf) -> Self {
        Self { path, read_only: false, has_owner: false, notes: Vec::new() }
    }
}

/// An event about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeNote {
    /// Whether it is a warning.
    pub kind: EventType,
    /// Its reason.
    pub reason: &'static str,
    /// Its message.
    pub message: String,
}

/// How full a volume is; zeros where that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStats {
    /// The volume's name in the pod.
    pub name: String,
    /// The claim that it belongs to.
    pub claim: Option<String>,
    /// When that was.
    pub at: Timestamp,
    /// The bytes that are used.
    pub used_bytes: u64,
    /// The bytes that there are.
    pub capacity_bytes: u64,
    /// The bytes that are free.
    pub available_bytes: u64,
    /// The inodes that are used.
    pub inodes_used: u64,
    /// The inodes that there are.
    pub inodes: u64,
    /// The inodes that are free.
    pub inodes_free: u64,
}

/// Makes the volumes of one or more kinds.
///
/// The agent asks the plug-ins in order and uses the first that claims the volume. It calls
/// [`set_up`](Self::set_up) before the pod's sandbox is made, and again from time to time while the pod runs, so that a
/// volume can follow what it is made from; never twice at once for one pod. An agent that comes back calls it anew for volumes that are there.
#[async_trait]
pub trait VolumePlugin: Debug + Send + Sync + 'static {
    /// Whether this plug-in makes `volume`.
    fn claims(&self, volume: &Volume) -> bool;

    /// Makes the volume, or brings it up to date, and says where it is.
    ///
    /// # Errors
    /// The pod waits, and the agent tries again.
    async fn set_up(&self, request: &VolumeRequest<'_>) -> Result<MadeVolume, RuntimeError>;

    /// Whether the volume follows something else, so that it is to be brought up to date about once a minute. No by default.
    fn is_live(&self, _volume: &Volume) -> bool {
        false
    }

    /// Undoes what is outside of the pod's directory, and mounts below it; then the directory is removed. Called for each pod whose
    /// containers have ended, also one of an earlier agent, whatever volumes it has, and again after an error. By default there is nothing
    /// to undo.
    ///
    /// # Errors
    /// The pod stays, and the agent tries again.
    async fn tear_down(&self, _pod: &PodUid, _pod_dir: &Path) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// How full the pod's volumes of this plug-in are, as far as it knows. By default nothing is known.
    async fn stats(&self, _pod: &PodUid, _now: Timestamp) -> Vec<VolumeStats> {
        Vec::new()
    }
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
    /// By the volumes' names: where they are, and whether they may only be read.
    paths: HashMap<String, (PathBuf, bool)>,
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
    pub fn with_plugins(dir: PathBuf, plugins: Vec<Arc<dyn VolumePlugin>>) -> Self {
        Self::with_claims(dir, plugins, Claim::default())
    }

    fn with_claims(dir: PathBuf, mut plugins: Vec<Arc<dyn VolumePlugin>>, claim: Claim) -> Self {
        // Whoever mounts the volumes may be in another directory.
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        plugins.extend([
            Arc::new(EmptyDir) as Arc<dyn VolumePlugin>,
            Arc::new(HostPath),
            Arc::new(claim),
            Arc::new(Files::default()),
        ]);
        Self { dir, plugins, paths: Mutex::default() }
    }

    /// As [`new`](Self::new), with the volumes of CSI drivers.
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    pub(crate) fn with_csi(dir: PathBuf, csi: &Arc<csi::Csi>) -> Self {
        Self::with_claims(dir, vec![Arc::new(Arc::clone(csi))], Claim::with_csi(csi))
    }

    fn pod_dir(&self, uid: &PodUid) -> PathBuf {
        self.dir.join("pods").join(uid.as_str())
    }

    /// Where the volume of this name is if it is a directory of the pod's own.
    pub(crate) fn own_dir(&self, uid: &PodUid, name: &str) -> PathBuf {
        self.pod_dir(uid).join("volumes").join(name)
    }

    /// The plug-in that makes `volume`.
    fn plugin(&self, volume: &Volume) -> Option<&Arc<dyn VolumePlugin>> {
        self.plugins.iter().find(|plugin| plugin.claims(volume))
    }

    /// Whether any of the pod's volumes follows something else.
    #[must_use]
    pub fn is_live(&self, pod: &Pod) -> bool {
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
        let is_live = |volume: &Volume| self.plugin(volume).is_some_and(|plugin| plugin.is_live(volume));
        volumes.into_iter().flatten().any(is_live)
    }

    /// Whether the pod's volumes were made since the agent began.
    #[must_use]
    pub fn are_made(&self, uid: &PodUid) -> bool {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).contains_key(uid)
    }

    /// The pods that have a directory, from whatever time.
    #[must_use]
    pub fn pods(&self) -> Vec<PodUid> {
        let entries = std::fs::read_dir(self.dir.join("pods")).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(PodUid::from(entry.file_name().to_str()?))).collect()
    }

    /// How full the pod's volumes are, as far as that is known.
    pub async fn stats(&self, uid: &PodUid, now: Timestamp) -> Vec<VolumeStats> {
        let mut all = Vec::new();
        for plugin in &self.plugins {
            all.extend(plugin.stats(uid, now).await);
        }
        all
    }

    /// Whether it is time to make the pod's volumes anew.
    #[must_use]
    pub fn needs_refresh(&self, uid: &PodUid, now: Timestamp) -> bool {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.get(uid).is_none_or(|made| now.duration_since(made.at) >= FRESH_FOR)
    }

    /// Makes all volumes of a pod, or brings them up to date. Gives what is to be told about them.
    ///
    /// # Errors
    /// [`RuntimeError::Volume`] of the first volume that can't be made; those before it stay.
    pub async fn refresh(
        &self,
        pod: &Pod,
        node: &NodeConfig,
        sources: &Sources,
        now: Timestamp,
    ) -> Result<Vec<VolumeNote>, RuntimeError> {
        let uid = PodUid::from(pod.metadata.uid.as_deref().unwrap_or_default());
        let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
        let group = group.and_then(|group| u32::try_from(group).ok());
        let is_first = !self.are_made(&uid);
        let (mut paths, mut notes) = (HashMap::new(), Vec::new());
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        // Images are for the runtime to mount.
        for volume in volumes.filter(|volume| volume.image.is_none()) {
            let failed = |error: RuntimeError| match error {
                known @ RuntimeError::Volume { .. } => known,
                other => RuntimeError::Volume {
                    step: "MountVolume.SetUp failed",
                    volume: volume.name.clone(),
                    why: other.to_string(),
                },
            };
            let unknown =
                || RuntimeError::Config("the volume is of a kind that this node does not have".to_owned());
            let plugin = self.plugin(volume).ok_or_else(|| failed(unknown()))?;
            let request = VolumeRequest {
                volume,
                facts: Facts { pod, pod_ips: &[], host_ips: &node.addresses, allocatable: &node.capacity },
                sources,
                dir: self.own_dir(&uid, &volume.name),
                pod_dir: self.pod_dir(&uid),
                now,
            };
            let made = plugin.set_up(&request).await.map_err(failed)?;
            let MadeVolume { path, read_only, has_owner, notes: told } = made;
            notes.extend(told);
            let is_files = files::is_files(volume);
            // What is not the pod's own, as a hostPath, keeps its owner. Files come anew, directories only once.
            if let Some(group) =
                group.filter(|_| !has_owner && path.starts_with(self.pod_dir(&uid)) && (is_files || is_first))
            {
                ownership::give_to_group(&path, group, is_files)
                    .map_err(RuntimeError::io("giving a volume to the pod's group"))
                    .map_err(failed)?;
            }
            paths.insert(volume.name.clone(), (path, read_only));
        }
        let made = Made { at: now, paths };
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, made);
        Ok(notes)
    }

    /// What `container` sees of the pod's volumes, but for images.
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
        let images = image::mounted_by(pod, container);
        let is_image = |name: &str| images.iter().any(|(image, _)| *image == name);
        for mount in container.volume_mounts.iter().flatten().filter(|mount| !is_image(&mount.name)) {
            let (mut source, read_only) = made
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
                read_only: read_only || mount.read_only.unwrap_or(false),
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::HostToContainer,
                    Some("Bidirectional") => Propagation::Bidirectional,
                    _ => Propagation::None,
                },
            });
        }
        Ok(mounts)
    }

    /// Gives back and removes all that was made for a pod. Files that can't be removed are left, and that is logged.
    ///
    /// # Errors
    /// [`RuntimeError::Volume`] when a volume can't be given back, or something is still mounted: then nothing is removed, as it might be
    /// somebody's data. To be tried again.
    pub async fn tear_down(&self, uid: &PodUid) -> Result<(), RuntimeError> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        let dir = self.pod_dir(uid);
        if !dir.exists() {
            return Ok(());
        }
        for plugin in &self.plugins {
            plugin.tear_down(uid, &dir).await?;
        }
        if let Some(point) = mounted::first_below(&dir) {
            return Err(RuntimeError::Volume {
                step: "UnmountVolume.TearDown failed",
                volume: uid.to_string(),
                why: format!("{} is still mounted", point.display()),
            });
        }
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), %error, "a pod's volumes are left");
            }
            _ => {}
        }
        Ok(())
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
