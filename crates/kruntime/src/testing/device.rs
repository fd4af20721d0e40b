//! A device plug-in for tests.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::{
    devices::{
        DIR, SOCKET, VERSION,
        proto::{
            AllocateResponse, CdiDevice, ContainerAllocated, Device, DeviceSpec, Empty, Ids,
            ListAndWatchResponse, ListOfIds, NumaNode, Options, PreferredAllocationRequest, RegisterRequest,
            TopologyInfo,
        },
    },
    grpc::{
        SocketClient,
        serve::{Answers, answer, decode, serve},
    },
    plugins::MESSAGE_BYTES_MAX,
};

const CALL_TIME_MAX: Duration = Duration::from_secs(30);

/// What a [`DevicePlugin`] is like.
#[derive(Clone, Debug)]
pub struct DevicePluginOptions {
    /// The resource that its devices count for.
    pub resource: String,
    /// The version that it says it speaks.
    pub version: String,
    /// Whether it wants to know of containers before they start.
    pub pre_start: bool,
    /// The devices that it would rather give; none: it isn't asked.
    pub preferred: Vec<String>,
    /// The host's device that a container gets for each of its devices, at `/dev/` and the device's id; none: it gets an environment alone.
    pub node: Option<PathBuf>,
    /// The NUMA nodes that devices are near to, by their ids; none: it says nothing of them.
    pub nodes: BTreeMap<String, Vec<i64>>,
    /// Names of the Container Device Interface that a container gets.
    pub cdi: Vec<String>,
}

impl DevicePluginOptions {
    /// One without any wishes.
    #[must_use]
    pub fn new(resource: impl Into<String>) -> Self {
        Self {
            resource: resource.into(),
            version: VERSION.to_owned(),
            pre_start: false,
            preferred: Vec::new(),
            node: None,
            nodes: BTreeMap::new(),
            cdi: Vec::new(),
        }
    }
}

/// A plug-in that runs until it is dropped. A container finds the ids of its devices in `DEVICES`.
#[derive(Debug)]
pub struct DevicePlugin {
    shared: Arc<Shared>,
    dir: PathBuf,
    socket: String,
    _server: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    options: DevicePluginOptions,
    devices: watch::Sender<Vec<(String, bool)>>,
    calls: watch::Sender<Vec<(String, Value)>>,
}

impl Drop for DevicePlugin {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.dir.join(&self.socket));
    }
}

impl DevicePlugin {
    /// Starts a plug-in for the node with this `state_dir`, with these devices, each healthy or not. It is not registered yet.
    ///
    /// # Errors
    /// When its socket can't be made.
    pub fn start(
        state_dir: &Path,
        options: DevicePluginOptions,
        devices: impl IntoIterator<Item = (&'static str, bool)>,
    ) -> io::Result<Self> {
        let dir = state_dir.join(DIR);
        let socket = format!("{}.sock", options.resource.replace('/', "_"));
        let devices = devices.into_iter().map(|(id, is_healthy)| (id.to_owned(), is_healthy)).collect();
        let shared = Arc::new(Shared {
            options,
            devices: watch::Sender::new(devices),
            calls: watch::Sender::default(),
        });
        let answering = Arc::clone(&shared);
        let handler = move |method: String, bytes: Bytes| {
            let shared = Arc::clone(&answering);
            async move { shared.answer(&method, bytes) }.boxed()
        };
        let server = serve(&dir.join(&socket), Arc::new(handler))?;
        Ok(Self { shared, dir, socket, _server: server })
    }

    /// Registers at the node's socket.
    ///
    /// # Errors
    /// What the node said to that.
    pub async fn register(&self) -> Result<(), String> {
        let options = &self.shared.options;
        let client = SocketClient::new(&self.dir.join(SOCKET), MESSAGE_BYTES_MAX);
        let request = RegisterRequest {
            version: options.version.clone(),
            endpoint: self.socket.clone(),
            resource_name: options.resource.clone(),
            options: Some(self.shared.wishes()),
        };
        let told: Result<Empty, Status> =
            client.call(CALL_TIME_MAX, "/v1beta1.Registration/Register", request).await;
        told.map(drop).map_err(|status| status.message().to_owned())
    }

    /// Has other devices from now on.
    pub fn set(&self, devices: impl IntoIterator<Item = (&'static str, bool)>) {
        let devices = devices.into_iter().map(|(id, is_healthy)| (id.to_owned(), is_healthy)).collect();
        self.shared.devices.send_replace(devices);
    }

    /// The requests of this method so far, as JSON.
    #[must_use]
    pub fn requests(&self, method: &str) -> Vec<Value> {
        let calls = self.shared.calls.borrow();
        calls.iter().filter(|(name, _)| name == method).map(|(_, request)| request.clone()).collect()
    }
}

impl Shared {
    fn wishes(&self) -> Options {
        Options {
            pre_start_required: self.options.pre_start,
            get_preferred_allocation_available: !self.options.preferred.is_empty(),
        }
    }

    fn note(&self, method: &str, request: Value) {
        self.calls.send_modify(|calls| calls.push((method.to_owned(), request)));
    }

    fn answer(self: &Arc<Self>, path: &str, bytes: Bytes) -> Answers {
        let method = path.rsplit('/').next().unwrap_or_default();
        match method {
            "GetDevicePluginOptions" => answer(Ok(self.wishes())),
            "ListAndWatch" => {
                let devices = self.devices.subscribe();
                let shared = Arc::clone(self);
                futures::stream::unfold((devices, true, shared), |(mut devices, is_first, shared)| async move {
                    if !is_first {
                        devices.changed().await.ok()?;
                    }
                    let health = |is_healthy| if is_healthy { "Healthy" } else { "Unhealthy" };
                    let list = devices.borrow_and_update().clone().into_iter();
                    let list = list.map(|(id, is_healthy)| {
                        let topology = shared.options.nodes.get(&id).map(|nodes| TopologyInfo {
                            nodes: nodes.iter().map(|id| NumaNode { id: *id }).collect(),
                        });
                        Device { id, health: health(is_healthy).to_owned(), topology }
                    });
                    let message = ListAndWatchResponse { devices: list.collect() };
                    Some((Ok(message.encode_to_vec()), (devices, false, shared)))
                })
                .boxed()
            }
            "GetPreferredAllocation" => answer(decode(bytes).map(|asked: PreferredAllocationRequest| {
                for one in &asked.containers {
                    self.note(
                        method,
                        json!({"available": one.available, "mustInclude": one.must_include, "size": one.size}),
                    );
                }
                ListOfIds { containers: vec![Ids { ids: self.options.preferred.clone() }] }
            })),
            "Allocate" => answer(decode(bytes).map(|asked: ListOfIds| {
                let given = asked.containers.into_iter().map(|one| {
                    self.note(method, json!(one.ids));
                    self.given(&one.ids)
                });
                AllocateResponse { containers: given.collect() }
            })),
            "PreStartContainer" => answer(decode(bytes).map(|asked: Ids| {
                self.note(method, json!(asked.ids));
                Empty {}
            })),
            _ => answer(Err::<Empty, _>(Status::unimplemented("no such method"))),
        }
    }

    fn given(&self, ids: &[String]) -> ContainerAllocated {
        let devices = self.options.node.iter().flat_map(|node| {
            ids.iter().map(move |id| DeviceSpec {
                container_path: format!("/dev/{id}"),
                host_path: node.to_string_lossy().into_owned(),
                permissions: "rw".to_owned(),
            })
        });
        ContainerAllocated {
            envs: [("DEVICES".to_owned(), ids.join(" "))].into(),
            devices: devices.collect(),
            cdi_devices: self.options.cdi.iter().map(|name| CdiDevice { name: name.clone() }).collect(),
            ..ContainerAllocated::default()
        }
    }
}
