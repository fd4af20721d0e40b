//! Devices of a node that programs tell of (device plug-ins, `v1beta1`): how many there are, and which container has which.
//!
//! A plug-in makes itself known at `kubelet.sock` in `device-plugins` below the node's directory, or as other plug-ins do (type
//! `DevicePlugin`). What is given is kept in a file, so that it stays given when the agent is started anew.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Container, Pod};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::{
    agent::{Inner, Node, StatusAsk},
    grpc::{SocketClient, serve, words},
    managers::{containers, hint::Mask},
    plugins::{MESSAGE_BYTES_MAX, PluginHandler, proto::PluginInfo},
    runtime::{ContainerConfig, Device, Mount, Propagation, RuntimeError},
};

mod choose;
mod place;
pub(crate) mod proto;
mod tell;

use choose::{Asked, Choice, Ids, choose, settle};
use proto::{
    AllocateResponse, ContainerAllocated, ContainerPreferred, Empty, ListAndWatchResponse, ListOfIds,
    Options, PreferredAllocationRequest, RegisterRequest,
};

/// The directory below a node's `state_dir` that device plug-ins know, with the node's own socket.
pub(crate) const DIR: &str = "device-plugins";
/// The node's socket.
pub(crate) const SOCKET: &str = "kubelet.sock";
const CHECKPOINT: &str = "allocations.json";
/// The only version there is.
pub(crate) const VERSION: &str = "v1beta1";
/// How long a plug-in may take to answer (upstream's for `PreStartContainer`).
const CALL_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a plug-in may be away until its devices are no longer counted (upstream's `endpointStopGracePeriod`).
const AWAY_TIME_MAX: Duration = Duration::from_secs(5 * 60);
/// How many devices a plug-in may have.
const DEVICES_MAX: usize = 100_000;
const SERVICE: &str = "/v1beta1.DevicePlugin";

/// A node's devices.
pub(crate) struct Devices {
    dir: PathBuf,
    status: Arc<StatusAsk>,
    plugins: Mutex<BTreeMap<String, Plugin>>,
    given: Mutex<Given>,
    server: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devices").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// The plug-in of a resource.
struct Plugin {
    client: SocketClient,
    endpoint: PathBuf,
    options: Options,
    devices: BTreeMap<String, Known>,
    /// Since when it is away.
    away: Option<Instant>,
    _watch: AbortOnDropHandle<()>,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    is_healthy: bool,
    /// The NUMA nodes that it is near to; none when the plug-in does not say.
    nodes: Vec<u32>,
}

/// What came free within a pod while it is given devices, by resource.
#[derive(Debug, Default)]
pub(crate) struct Reusable(BTreeMap<String, Ids>);

/// What was given, by pod, container and resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Given(BTreeMap<String, BTreeMap<String, BTreeMap<String, Allocation>>>);

/// What a container has of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Allocation {
    ids: Ids,
    /// What the plug-in said to that: an encoded `ContainerAllocateResponse`, in base64.
    response: String,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Devices {
    /// For a node with this directory, with what was given before.
    pub(crate) fn new(root: &Path, status: Arc<StatusAsk>) -> Self {
        let dir = root.join(DIR);
        let read = fs::read(dir.join(CHECKPOINT)).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        let given = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(dir = %dir.display(), %error, "it is not known any more which pods have which devices");
            }
            Given::default()
        });
        Self { dir, status, plugins: Mutex::default(), given: Mutex::new(given), server: Mutex::default() }
    }

    /// Opens the node's socket. Sockets of before are removed: plug-ins take that as a word to make themselves known again, as upstream.
    pub(crate) fn open(self: &Arc<Self>) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        for entry in fs::read_dir(&self.dir)?.flatten() {
            if entry.file_name() != CHECKPOINT && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_file(entry.path())?;
            }
        }
        let devices = Arc::downgrade(self);
        let handler = move |method: String, bytes: Bytes| {
            let devices = Weak::clone(&devices);
            async move { serve::answer(registered(&devices, &method, bytes).await) }.boxed()
        };
        *locked(&self.server) = Some(serve::serve(&self.dir.join(SOCKET), Arc::new(handler))?);
        Ok(())
    }

    /// Takes a plug-in, in place of an earlier one of the resource, and follows its devices from now on.
    fn take(self: &Arc<Self>, resource: &str, endpoint: &Path, options: Options) {
        let client = SocketClient::new(endpoint, MESSAGE_BYTES_MAX);
        let watch = follow(Arc::downgrade(self), resource.to_owned(), endpoint.to_owned(), client.clone());
        let plugin = Plugin {
            client,
            endpoint: endpoint.to_owned(),
            options,
            devices: BTreeMap::new(),
            away: None,
            _watch: AbortOnDropHandle::new(tokio::spawn(watch)),
        };
        tracing::info!(resource, endpoint = %endpoint.display(), "a device plug-in is registered");
        locked(&self.plugins).insert(resource.to_owned(), plugin);
        self.status.ask();
    }

    /// What a plug-in says of its devices; `None`: it is away. Nothing from one that was replaced counts.
    fn told(&self, resource: &str, endpoint: &Path, devices: Option<Vec<proto::Device>>) {
        let mut plugins = locked(&self.plugins);
        let Some(plugin) = plugins.get_mut(resource).filter(|known| known.endpoint == endpoint) else {
            return;
        };
        match devices {
            Some(devices) => {
                plugin.away = None;
                let devices = devices.into_iter().take(DEVICES_MAX);
                plugin.devices = devices.map(known).collect();
            }
            None => {
                plugin.away = Some(Instant::now());
                plugin.devices.values_mut().for_each(|device| device.is_healthy = false);
            }
        }
        drop(plugins);
        self.status.ask();
    }

    /// How many devices of each resource there are, and how many of them are healthy.
    pub(crate) fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        let plugins = locked(&self.plugins);
        let count = |(resource, plugin): (&String, &Plugin)| {
            let is_gone = plugin.away.is_some_and(|since| since.elapsed() >= AWAY_TIME_MAX);
            let all = if is_gone { 0 } else { plugin.devices.len() };
            (resource.clone(), (all, plugin.devices.values().filter(|device| device.is_healthy).count()))
        };
        plugins.iter().map(count).collect()
    }

    fn healthy(&self, resource: &str) -> Option<Ids> {
        let plugins = locked(&self.plugins);
        let devices = &plugins.get(resource)?.devices;
        Some(devices.iter().filter(|(_, device)| device.is_healthy).map(|(id, _)| id.clone()).collect())
    }

    /// Whether plug-ins tell of a resource, or did.
    fn knows(&self, resource: &str) -> bool {
        let given = locked(&self.given);
        let was_given =
            given.0.values().flat_map(BTreeMap::values).any(|container| container.contains_key(resource));
        was_given || locked(&self.plugins).contains_key(resource)
    }

    /// Whether a pod wants devices of plug-ins.
    pub(crate) fn is_wanted(&self, pod: &Pod) -> bool {
        containers(pod).any(|container| wanted(container).any(|(resource, _)| self.knows(resource)))
    }

    /// What pods have that are not `active` any more is free.
    pub(crate) fn forget(&self, active: impl Fn(&str) -> bool) {
        let known: Vec<String> = locked(&self.given).0.keys().cloned().collect();
        let gone: Vec<String> = known.into_iter().filter(|uid| !active(uid)).collect();
        locked(&self.given).0.retain(|uid, _| !gone.contains(uid));
    }

    /// Gives a container all devices that it wants, near to `mask` first. One pod at a time; `reusable`: what came free within it.
    ///
    /// # Errors
    /// Upstream's words; what the pod was given stays until it is released.
    pub(crate) async fn give(
        &self,
        uid: &str,
        container: &Container,
        ends: bool,
        mask: Option<Mask>,
        reusable: &mut Reusable,
    ) -> Result<(), String> {
        for (resource, count) in wanted(container).filter(|(resource, _)| self.knows(resource)) {
            let free = reusable.0.entry(resource.to_owned()).or_default();
            let has = self.give_one(uid, &container.name, resource, count, (free, mask)).await?;
            if ends {
                free.extend(has);
            } else {
                free.retain(|id| !has.contains(id));
            }
        }
        Ok(())
    }

    async fn give_one(
        &self,
        uid: &str,
        container: &str,
        resource: &str,
        wanted: usize,
        (reusable, mask): (&Ids, Option<Mask>),
    ) -> Result<Ids, String> {
        let given = locked(&self.given).clone();
        let has = given.of(uid, container).and_then(|all| all.get(resource)).map(|one| one.ids.clone());
        let healthy = self.healthy(resource);
        let in_use = given.in_use(resource);
        let (near, far) = self.by_place(resource, mask);
        let asked = Asked {
            pod: uid,
            container,
            resource,
            wanted,
            has: has.as_ref(),
            reusable,
            healthy: healthy.as_ref(),
            in_use: &in_use,
            near: &near,
        };
        let plugin =
            locked(&self.plugins).get(resource).map(|plugin| (plugin.client.clone(), plugin.options));
        let ids = match choose(&asked)? {
            Choice::Has => return Ok(has.unwrap_or_default()),
            Choice::These(ids) => ids,
            Choice::Of { sure, available, more } => {
                let prefers =
                    plugin.as_ref().filter(|(_, options)| options.get_preferred_allocation_available);
                let preferred = match prefers {
                    Some((client, _)) => preferred(client, &sure, &available, wanted).await?,
                    None => Ids::new(),
                };
                settle(&sure, &available, more, &preferred, &far)
            }
        };
        let (client, _) = plugin.ok_or_else(|| format!("unknown Device Plugin {resource}"))?;
        let request = ListOfIds { containers: vec![proto::Ids { ids: ids.iter().cloned().collect() }] };
        let answer: Result<AllocateResponse, _> =
            client.call(CALL_TIME_MAX, &format!("{SERVICE}/Allocate"), request).await;
        let answer = answer.map_err(|status| words(&status))?;
        let first = answer.containers.into_iter().next();
        let first = first.ok_or("no containers return in allocation response")?;
        let allocation = Allocation { ids: ids.clone(), response: BASE64.encode(first.encode_to_vec()) };
        let kept = {
            let mut given = locked(&self.given);
            let pod = given.0.entry(uid.to_owned()).or_default();
            pod.entry(container.to_owned()).or_default().insert(resource.to_owned(), allocation);
            given.clone()
        };
        self.keep(&kept)
            .map_err(|error| format!("failed to write checkpoint file {CHECKPOINT:?}: {error}"))?;
        Ok(ids)
    }

    /// What a pod had is free.
    pub(crate) fn release(&self, uid: &str) {
        let kept = {
            let mut given = locked(&self.given);
            if given.0.remove(uid).is_none() {
                return;
            }
            given.clone()
        };
        if let Err(error) = self.keep(&kept) {
            tracing::warn!(pod = uid, %error, "that a pod's devices are free is not kept");
        }
    }

    fn keep(&self, given: &Given) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let new = tempfile::NamedTempFile::new_in(&self.dir)?;
        fs::write(new.path(), serde_json::to_vec(given)?)?;
        new.persist(self.dir.join(CHECKPOINT)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Puts what a container has into what it is started with, after telling plug-ins that want to know.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when a plug-in does not want the container to start, or is not there to say so.
    pub(crate) async fn apply(
        &self,
        uid: &str,
        container: &str,
        config: &mut ContainerConfig,
    ) -> Result<(), RuntimeError> {
        let has = locked(&self.given).of(uid, container).cloned().unwrap_or_default();
        for (resource, allocation) in has {
            let plugin =
                locked(&self.plugins).get(&resource).map(|plugin| (plugin.client.clone(), plugin.options));
            let (client, options) = plugin.ok_or_else(|| {
                RuntimeError::Config(format!(
                    "endpoint not found in cache for a registered resource: {resource}"
                ))
            })?;
            if options.pre_start_required {
                let request = proto::Ids { ids: allocation.ids.iter().cloned().collect() };
                let told: Result<Empty, _> =
                    client.call(CALL_TIME_MAX, &format!("{SERVICE}/PreStartContainer"), request).await;
                told.map_err(|status| RuntimeError::Config(words(&status)))?;
            }
            let bytes = BASE64.decode(&allocation.response).unwrap_or_default();
            let response = ContainerAllocated::decode(&bytes[..])
                .map_err(|error| RuntimeError::Config(format!("the devices of {resource}: {error}")))?;
            add(response, config);
        }
        Ok(())
    }
}

impl Given {
    fn of(&self, uid: &str, container: &str) -> Option<&BTreeMap<String, Allocation>> {
        self.0.get(uid)?.get(container)
    }

    fn in_use(&self, resource: &str) -> Ids {
        let containers = self.0.values().flat_map(BTreeMap::values);
        containers.filter_map(|container| container.get(resource)).flat_map(|one| one.ids.clone()).collect()
    }
}

fn known(device: proto::Device) -> (String, Known) {
    let nodes = device.topology.into_iter().flat_map(|topology| topology.nodes);
    let nodes = nodes.filter_map(|node| u32::try_from(node.id).ok()).collect();
    (device.id, Known { is_healthy: device.health == "Healthy", nodes })
}

/// The extended resources that a container wants, and how much.
fn wanted(container: &Container) -> impl Iterator<Item = (&str, usize)> {
    let limits = container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
    limits.filter(|(name, _)| is_extended(name)).filter_map(|(name, quantity)| {
        let count = kcore::Quantity::parse(&quantity.0).ok()?.value();
        Some((name.as_str(), usize::try_from(count).ok()?))
    })
}

/// Whether a resource is neither Kubernetes' own nor of a quota (upstream's `IsExtendedResourceName`).
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, rest)| {
        let is_own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
        !domain.is_empty()
            && !rest.is_empty()
            && !rest.contains('/')
            && !is_own
            && !name.starts_with("requests.")
    })
}

/// What a plug-in says goes with its devices. What the container itself says of its environment counts more, and of two devices at a place
/// the first.
fn add(response: ContainerAllocated, config: &mut ContainerConfig) {
    config.env.splice(0..0, response.envs);
    for mount in response.mounts {
        let mount = Mount {
            source: mount.host_path.into(),
            target: mount.container_path.into(),
            read_only: mount.read_only,
            propagation: Propagation::None,
        };
        if !config.mounts.iter().any(|known| known.target == mount.target) {
            config.mounts.push(mount);
        }
    }
    let devices = &mut config.devices;
    for device in response.devices {
        let device = Device {
            host_path: device.host_path.into(),
            container_path: device.container_path.into(),
            permissions: device.permissions,
        };
        if !devices.nodes.iter().any(|known| known.container_path == device.container_path) {
            devices.nodes.push(device);
        }
    }
    for (key, value) in response.annotations {
        devices.annotations.entry(key).or_insert(value);
    }
    for device in response.cdi_devices {
        if !devices.cdi.contains(&device.name) {
            devices.cdi.push(device.name);
        }
    }
}

async fn preferred(client: &SocketClient, sure: &Ids, available: &Ids, size: usize) -> Result<Ids, String> {
    let container = ContainerPreferred {
        available: available.union(sure).cloned().collect(),
        must_include: sure.iter().cloned().collect(),
        size: i32::try_from(size).unwrap_or(i32::MAX),
    };
    let request = PreferredAllocationRequest { containers: vec![container] };
    let answer: Result<ListOfIds, _> =
        client.call(CALL_TIME_MAX, &format!("{SERVICE}/GetPreferredAllocation"), request).await;
    let answer = answer.map_err(|status| {
        format!("device plugin GetPreferredAllocation rpc failed with err: {}", words(&status))
    })?;
    Ok(answer.containers.into_iter().next().map(|first| first.ids.into_iter().collect()).unwrap_or_default())
}

/// Hears of a plug-in's devices until it is gone.
async fn follow(devices: Weak<Devices>, resource: String, endpoint: PathBuf, client: SocketClient) {
    let tell = |list| {
        if let Some(devices) = devices.upgrade() {
            devices.told(&resource, &endpoint, list);
        }
    };
    match client.stream::<_, ListAndWatchResponse>(&format!("{SERVICE}/ListAndWatch"), Empty {}).await {
        Ok(mut answers) => loop {
            match answers.message().await {
                Ok(Some(answer)) => tell(Some(answer.devices)),
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(resource, error = words(&status), "a device plug-in is away");
                    break;
                }
            }
        },
        Err(status) => {
            tracing::warn!(resource, error = words(&status), "a device plug-in tells of no devices")
        }
    }
    tell(None);
    // After that time the node's status tells of none.
    tokio::time::sleep(AWAY_TIME_MAX).await;
    if let Some(devices) = devices.upgrade() {
        devices.status.ask();
    }
}

/// A call at the node's socket.
async fn registered(devices: &Weak<Devices>, method: &str, bytes: Bytes) -> Result<Empty, Status> {
    let Some(devices) = devices.upgrade() else { return Err(Status::unavailable("the node is gone")) };
    if method != "/v1beta1.Registration/Register" {
        return Err(Status::unimplemented("unknown method"));
    }
    let request: RegisterRequest = serve::decode(bytes)?;
    if request.version != VERSION {
        return Err(Status::unknown(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
            request.version
        )));
    }
    if !is_extended(&request.resource_name) {
        return Err(Status::unknown(format!("the ResourceName {:?} is invalid", request.resource_name)));
    }
    let name = Path::new(&request.endpoint);
    if name.file_name() != Some(name.as_os_str()) {
        return Err(Status::unknown(format!("the endpoint {:?} is no name of a socket", request.endpoint)));
    }
    devices.take(&request.resource_name, &devices.dir.join(name), request.options.unwrap_or_default());
    Ok(Empty {})
}

/// The handler for plug-ins that register as others do.
#[derive(Debug)]
pub(crate) struct Handler(pub(crate) Arc<Devices>);

#[async_trait]
impl PluginHandler for Handler {
    fn kind(&self) -> &'static str {
        "DevicePlugin"
    }

    fn validate(&self, plugin: &PluginInfo) -> Result<(), String> {
        if !plugin.supported_versions.iter().any(|version| version == VERSION) {
            let versions = &plugin.supported_versions;
            return Err(format!(
                "manager version, {VERSION}, is not among plugin supported versions {versions:?}"
            ));
        }
        if !is_extended(&plugin.name) {
            return Err(format!(
                "invalid name of device plugin socket: the ResourceName {:?} is invalid",
                plugin.name
            ));
        }
        Ok(())
    }

    async fn register(&self, _: &Inner, _: &Node, plugin: &PluginInfo) -> Result<(), String> {
        let endpoint = Path::new(&plugin.endpoint);
        let client = SocketClient::new(endpoint, MESSAGE_BYTES_MAX);
        let options: Result<Options, _> =
            client.call(CALL_TIME_MAX, &format!("{SERVICE}/GetDevicePluginOptions"), Empty {}).await;
        let options = options.map_err(|status| words(&status))?;
        self.0.take(&plugin.name, endpoint, options);
        Ok(())
    }

    async fn deregister(&self, _: &Inner, _: &Node, plugin: &PluginInfo) {
        self.0.told(&plugin.name, Path::new(&plugin.endpoint), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_extended_resources_have_plugins() {
        // Upstream's `TestIsExtendedResourceName`.
        let cases = [
            ("vendor.com/gpu", true),
            ("cpu", false),
            ("kubernetes.io/x", false),
            ("attachable.kubernetes.io/x", false),
            ("requests.vendor.com/gpu", false),
            ("vendor.com/", false),
            ("/gpu", false),
            ("a/b/c", false),
        ];
        for (name, expected) in cases {
            assert_eq!(is_extended(name), expected, "{name}");
        }
    }

    #[test]
    fn what_comes_with_a_device_gives_way_to_the_containers_own() {
        let mut config =
            ContainerConfig { env: vec![("A".into(), "own".into())], ..ContainerConfig::default() };
        let device = |path: &str, host: &str| proto::DeviceSpec {
            container_path: path.into(),
            host_path: host.into(),
            permissions: "rw".into(),
        };
        let response = ContainerAllocated {
            envs: [("A".to_owned(), "given".to_owned())].into(),
            mounts: vec![proto::Mount {
                container_path: "/m".into(),
                host_path: "/h".into(),
                read_only: true,
            }],
            devices: vec![device("/dev/a", "/dev/one"), device("/dev/a", "/dev/two")],
            annotations: [("k".to_owned(), "v".to_owned())].into(),
            cdi_devices: vec![proto::CdiDevice { name: "v.com/c=d".into() }],
        };
        add(response.clone(), &mut config);
        add(response, &mut config);
        assert_eq!(config.env.last().unwrap().1, "own");
        assert!(config.mounts.len() == 1 && config.mounts[0].read_only);
        assert_eq!(config.devices.nodes.len(), 1);
        assert_eq!(config.devices.nodes[0].host_path, Path::new("/dev/one"));
        assert_eq!((config.devices.cdi.len(), config.devices.annotations.len()), (1, 1));
        assert!(config.devices.without_cdi().is_err());
    }
}
