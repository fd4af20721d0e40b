//! A CSI driver for tests: it registers with a node, notes every call, and its volumes are directories.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::{
    grpc::serve::{Answers, answer, decode, serve},
    plugins::{
        REGISTRY_DIR,
        proto::{PluginInfo, RegistrationStatus, RegistrationStatusResponse},
    },
    volumes::csi::proto::{
        BYTES, Empty, INODES, NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesResponse,
        NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
        NodeServiceCapability, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
        Rpc, Topology, VolumeCapability, VolumeUsage,
    },
};

/// What a [`CsiDriver`] is like.
#[derive(Clone, Debug)]
pub struct CsiDriverOptions {
    /// Its name.
    pub name: String,
    /// The versions of CSI that it says it speaks.
    pub versions: Vec<String>,
    /// What it calls the node.
    pub node_id: String,
    /// Where the node is, as it sees it.
    pub topology: BTreeMap<String, String>,
    /// How many volumes the node takes; 0 for any number.
    pub volumes_max: i64,
    /// What its node service can do, by the numbers of CSI's `NodeServiceCapability.RPC.Type`: 1 staging, 2 statistics, 3 growth, 5 one pod
    /// and several of a node apart, 6 groups.
    pub capabilities: Vec<i32>,
    /// Whether it mounts for real, which takes root; else it copies a volume's files.
    pub mounts: bool,
    /// A directory with a directory for each volume, by its handle; made when it is missing.
    pub data: PathBuf,
}

impl CsiDriverOptions {
    /// A driver that can do all of it but groups, by copying.
    #[must_use]
    pub fn new(name: impl Into<String>, data: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            versions: vec!["1.0.0".to_owned()],
            node_id: "id-of-node".to_owned(),
            topology: BTreeMap::new(),
            volumes_max: 0,
            capabilities: vec![1, 2, 3, 5],
            mounts: false,
            data: data.into(),
        }
    }
}

/// A call that a driver got: the method, without its service, and the request's fields, under the names that CSI has for them in
/// JSON. A method of the registration is among them.
pub type CsiCall = (String, Value);

/// A driver that runs until it is dropped.
#[derive(Debug)]
pub struct CsiDriver {
    shared: Arc<Shared>,
    sockets: [PathBuf; 2],
    _servers: [AbortOnDropHandle<()>; 2],
}

#[derive(Debug)]
struct Shared {
    options: CsiDriverOptions,
    endpoint: String,
    failures: Mutex<HashMap<String, (Code, String)>>,
    calls: watch::Sender<Vec<CsiCall>>,
}

impl Drop for CsiDriver {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl CsiDriver {
    /// Starts a driver for the node with this `state_dir`, and lets it register.
    ///
    /// # Errors
    /// When its sockets can't be made.
    pub fn start(state_dir: &Path, options: CsiDriverOptions) -> io::Result<Self> {
        let socket = state_dir.join("plugins").join(&options.name).join("csi.sock");
        let registration = state_dir.join(REGISTRY_DIR).join(format!("{}-reg.sock", options.name));
        let shared = Arc::new(Shared {
            endpoint: socket.to_string_lossy().into_owned(),
            options,
            failures: Mutex::default(),
            calls: watch::Sender::default(),
        });
        let serve_at = |path: &Path| {
            let shared = Arc::clone(&shared);
            serve(
                path,
                Arc::new(move |method, bytes| {
                    let shared = Arc::clone(&shared);
                    async move { shared.answer(&method, bytes) }.boxed()
                }),
            )
        };
        let servers = [serve_at(&socket)?, serve_at(&registration)?];
        Ok(Self { shared, sockets: [socket, registration], _servers: servers })
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<CsiCall> {
        self.shared.calls.borrow().clone()
    }

    /// The requests of this method so far.
    #[must_use]
    pub fn requests(&self, method: &str) -> Vec<Value> {
        let calls = self.calls().into_iter().filter(|(name, _)| name == method);
        calls.map(|(_, request)| request).collect()
    }

    /// Waits until `is` holds for the calls so far.
    pub async fn until(&self, is: impl Fn(&[CsiCall]) -> bool) {
        let mut calls = self.shared.calls.subscribe();
        // The sender is ours, so the wait does not fail.
        let _ = calls.wait_for(|calls| is(calls)).await;
    }

    /// Lets a method fail with this code (gRPC's number) and message from now on, or, with code 0, no more.
    pub fn fail(&self, method: &str, code: i32, message: &str) {
        let mut failures = self.shared.failures();
        if code == 0 {
            failures.remove(method);
        } else {
            failures.insert(method.to_owned(), (Code::from_i32(code), message.to_owned()));
        }
    }

    /// The directory of a volume, which is made if need be.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn volume(&self, handle: &str) -> io::Result<PathBuf> {
        self.shared.volume(handle)
    }
}

/// What a message looks like as JSON.
fn capability(capability: Option<VolumeCapability>) -> Value {
    let Some(capability) = capability else { return Value::Null };
    let mount = capability.mount.map(|mount| {
        json!({"fsType": mount.fs_type, "mountFlags": mount.mount_flags, "volumeMountGroup": mount.volume_mount_group})
    });
    json!({"mount": mount, "block": capability.block.is_some(), "accessMode": capability.access_mode.map(|mode| mode.mode)})
}

fn run(program: &str, arguments: &[&Path]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn internal(error: io::Error) -> Status {
    Status::internal(error.to_string())
}

impl Shared {
    fn failures(&self) -> MutexGuard<'_, HashMap<String, (Code, String)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn volume(&self, handle: &str) -> io::Result<PathBuf> {
        let dir = self.options.data.join(handle);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Makes what is in `from` visible at `to`.
    fn show(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::create_dir_all(to)?;
        if self.options.mounts {
            if crate::volumes::is_mounted(to) {
                return Ok(());
            }
            return run("mount", &[Path::new("--bind"), from, to]);
        }
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn hide(&self, place: &Path) -> io::Result<()> {
        if !place.exists() {
            return Ok(());
        }
        if !self.options.mounts {
            return std::fs::remove_dir_all(place);
        }
        if crate::volumes::is_mounted(place) {
            run("umount", &[place])?;
        }
        std::fs::remove_dir(place)
    }

    fn answer(&self, path: &str, bytes: Bytes) -> Answers {
        let method = path.rsplit('/').next().unwrap_or_default().to_owned();
        let noted = |request: Value| {
            self.calls.send_modify(|calls| calls.push((method.clone(), request)));
            match self.failures().get(&method) {
                Some((code, message)) => Err(Status::new(*code, message.clone())),
                None => Ok(()),
            }
        };
        let options = &self.options;
        match method.as_str() {
            "GetInfo" => answer(noted(Value::Null).map(|()| PluginInfo {
                kind: "CSIPlugin".to_owned(),
                name: options.name.clone(),
                endpoint: self.endpoint.clone(),
                supported_versions: options.versions.clone(),
            })),
            "NotifyRegistrationStatus" => answer(decode(bytes).and_then(|status: RegistrationStatus| {
                noted(json!({"pluginRegistered": status.plugin_registered, "error": status.error}))
                    .map(|()| RegistrationStatusResponse {})
            })),
            "NodeGetInfo" => answer(noted(Value::Null).map(|()| NodeGetInfoResponse {
                node_id: options.node_id.clone(),
                max_volumes_per_node: options.volumes_max,
                accessible_topology: Some(Topology { segments: options.topology.clone() }),
            })),
            "NodeGetCapabilities" => {
                let kinds = options.capabilities.iter();
                let all = kinds.map(|kind| NodeServiceCapability { rpc: Some(Rpc { kind: *kind }) });
                answer(Ok(NodeGetCapabilitiesResponse { capabilities: all.collect() }))
            }
            "NodeStageVolume" => answer(decode(bytes).and_then(|asked: NodeStageVolumeRequest| {
                noted(json!({
                    "volumeId": asked.volume_id, "publishContext": asked.publish_context,
                    "stagingTargetPath": asked.staging_target_path, "secrets": asked.secrets,
                    "volumeContext": asked.volume_context, "volumeCapability": capability(asked.volume_capability),
                }))?;
                let from = self.volume(&asked.volume_id).map_err(internal)?;
                if options.mounts {
                    self.show(&from, Path::new(&asked.staging_target_path)).map_err(internal)?;
                }
                Ok(Empty {})
            })),
            "NodeUnstageVolume" => answer(decode(bytes).and_then(|asked: NodeUnstageVolumeRequest| {
                noted(json!({"volumeId": asked.volume_id, "stagingTargetPath": asked.staging_target_path}))?;
                if options.mounts && crate::volumes::is_mounted(Path::new(&asked.staging_target_path)) {
                    run("umount", &[Path::new(&asked.staging_target_path)]).map_err(internal)?;
                }
                Ok(Empty {})
            })),
            "NodePublishVolume" => answer(decode(bytes).and_then(|asked: NodePublishVolumeRequest| {
                noted(json!({
                    "volumeId": asked.volume_id, "publishContext": asked.publish_context,
                    "stagingTargetPath": asked.staging_target_path, "targetPath": asked.target_path,
                    "readonly": asked.readonly, "secrets": asked.secrets, "volumeContext": asked.volume_context,
                    "volumeCapability": capability(asked.volume_capability),
                }))?;
                let own = self.volume(&asked.volume_id).map_err(internal)?;
                self.show(&own, Path::new(&asked.target_path)).map_err(internal)?;
                Ok(Empty {})
            })),
            "NodeUnpublishVolume" => answer(decode(bytes).and_then(|asked: NodeUnpublishVolumeRequest| {
                noted(json!({"volumeId": asked.volume_id, "targetPath": asked.target_path}))?;
                self.hide(Path::new(&asked.target_path)).map_err(internal)?;
                Ok(Empty {})
            })),
            "NodeGetVolumeStats" => answer(decode(bytes).and_then(|asked: NodeGetVolumeStatsRequest| {
                noted(json!({"volumeId": asked.volume_id, "volumePath": asked.volume_path}))?;
                let one = |unit, used, total| VolumeUsage { unit, used, total, available: total - used };
                Ok(NodeGetVolumeStatsResponse { usage: vec![one(BYTES, 4096, 1 << 30), one(INODES, 2, 100)] })
            })),
            "NodeExpandVolume" => answer(decode(bytes).and_then(|asked: NodeExpandVolumeRequest| {
                let capacity_bytes = asked.capacity_range.map_or(0, |range| range.required_bytes);
                noted(json!({
                    "volumeId": asked.volume_id, "volumePath": asked.volume_path, "requiredBytes": capacity_bytes,
                    "stagingTargetPath": asked.staging_target_path, "secrets": asked.secrets,
                    "volumeCapability": capability(asked.volume_capability),
                }))?;
                Ok(NodeExpandVolumeResponse { capacity_bytes })
            })),
            _ => answer(Err::<Empty, _>(Status::unimplemented("no such method"))),
        }
    }
}
