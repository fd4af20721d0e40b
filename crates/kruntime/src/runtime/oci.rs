//! Containers by an OCI runtime: runc, crun or another with their command line, from images, with namespaces, control groups,
//! capabilities and seccomp. Linux, as root.
//!
//! [`OciRuntime::open`] is where to start. A pod is a set of namespaces that are kept by files, so an empty pod has no process;
//! each container has a holder, which keeps its exit code and its output while nobody reads them. So a runtime that is
//! opened over the directory of one that was killed finds the containers as they are, and those that ended as they ended.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use kcore::Clock;
use knet::{IpAllocator, PodNetwork};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::{
    ChangeStream, ContainerConfig, ContainerDisk, ContainerReading, ContainerRuntime, ExecRequest,
    ImagePresence, LogOptions, LogStream, ObservedPod, PodUid, Resources, RuntimeError, RuntimeInfo,
    SandboxConfig, Session, changes::Changes, check_handler, output::attach, process::launch::Launcher,
};
use crate::{
    images::{CollectPolicy, ContentStore, Credentials, Digest, Image, ImageError, Reference, Registry},
    logs,
    managers::CpuSet,
};

mod bundle;
mod capabilities;
mod cdi;
mod cgroups;
mod console;
mod container;
mod engine;
mod exec;
mod holder;
mod image_volumes;
mod network;
mod pause;
mod rootfs;
mod sandbox;
mod seccomp;
mod spec;
mod users;

#[cfg(feature = "cri")]
pub(super) use spec::{MASKED, READ_ONLY};

use cgroups::Cgroups;
use container::Container;
use engine::Engine;
use sandbox::Pod;

/// How long a terminal may take to come after the container was made.
const TERMINAL_MAX: Duration = Duration::from_secs(10);
/// How often images are looked at (upstream's `ImageGCPeriod`).
const COLLECT_EVERY: Duration = Duration::from_secs(300);

/// What an [`OciRuntime`] is made of.
#[derive(Clone, Debug)]
pub struct OciOptions {
    /// A directory of the runtime's own: pods, their logs, their containers' files. Made if it isn't there. Two runtimes must not
    /// share it.
    pub dir: PathBuf,
    /// The OCI runtime: a path, or a name to be found. `runc` by default.
    pub program: PathBuf,
    /// Other OCI runtimes, by the handler that a RuntimeClass names them with. None by default.
    pub handlers: BTreeMap<String, PathBuf>,
    /// Where images are.
    pub images: ContentStore,
    /// Where they come from. Without one, only images that were loaded can be run.
    pub registry: Option<Registry>,
    /// The node's own credentials for registries; a pod's pull secrets go before them.
    pub credentials: Credentials,
    /// Which images are thrown away, every five minutes; `None` keeps all. Upstream's policy by default.
    pub collect: Option<CollectPolicy>,
    /// What connects pods: CNI plug-ins, the built-in bridge, or something of one's own. The runtime makes a network namespace for
    /// each pod that doesn't use the node's network, with its loopback device up, and asks for the rest once, before the first
    /// container. Without a network they have loopback addresses that mean them to probes and port-forwarding only.
    pub network: Option<Arc<dyn PodNetwork>>,
    /// Where pods get their addresses when nothing connects them: a range of 127.0.0.0/8.
    pub addresses: Arc<dyn IpAllocator>,
    /// Where seccomp profiles of the type `Localhost` are (upstream's `<root>/seccomp`).
    pub seccomp_dir: Option<PathBuf>,
    /// Where files of the Container Device Interface are; those of a later directory go before those of an earlier one. `/etc/cdi` and `/var/run/cdi` by
    /// default.
    pub cdi_dirs: Vec<PathBuf>,
    /// The control group that those of the pods are in: an absolute path. `/kplane` by default.
    pub cgroup_parent: String,
    /// Whether pods outlive the runtime when it is dropped, for a node agent that is started again. When the process is killed they
    /// do in any case. No by default.
    pub outlive: bool,
    /// Whether roots are mounted as overlays where the kernel allows it; otherwise layers are unpacked for each container.
    pub overlay: bool,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl OciOptions {
    /// The defaults: runc, no registry, no network.
    #[must_use]
    pub fn new(
        dir: impl Into<PathBuf>,
        images: ContentStore,
        addresses: Arc<dyn IpAllocator>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            dir: dir.into(),
            program: PathBuf::from("runc"),
            handlers: BTreeMap::new(),
            images,
            registry: None,
            credentials: Credentials::default(),
            collect: Some(CollectPolicy::default()),
            network: None,
            addresses,
            seccomp_dir: None,
            cdi_dirs: cdi::DIRS.map(PathBuf::from).into(),
            cgroup_parent: "/kplane".to_owned(),
            outlive: false,
            overlay: true,
            clock,
        }
    }
}

/// The runtime whose containers are made by an OCI runtime.
///
/// ```no_run
/// use std::sync::Arc;
/// use kruntime::{images::ContentStore, runtime::oci::{OciOptions, OciRuntime}};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let clock = Arc::new(kcore::SystemClock);
/// let images = ContentStore::open("/var/lib/kplane/images", clock.clone())?;
/// let addresses: knet::AddressRange = "127.64.0.0/16".parse()?;
/// let options = OciOptions::new("/var/lib/kplane/pods", images, Arc::new(addresses), clock);
/// let runtime = OciRuntime::open(options).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct OciRuntime {
    shared: Arc<Shared>,
    _collector: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: OciOptions,
    engine: Engine,
    /// Those of handlers.
    engines: BTreeMap<String, Engine>,
    cgroups: Cgroups,
    launcher: Launcher,
    overlay: bool,
    own_capabilities: u64,
    pods: Mutex<HashMap<PodUid, Arc<Pod>>>,
    /// Sandboxes are made and removed one after the other.
    changing: tokio::sync::Mutex<()>,
    changes: Arc<Changes>,
}

/// A name that is fit for a path, whatever is in it.
fn file_name(text: &str) -> String {
    let name: String = text.chars().map(|c| if c == '/' || c == '\0' { '_' } else { c }).collect();
    if name.is_empty() || name.starts_with('.') { format!("_{name}") } else { name }
}

impl OciRuntime {
    /// Opens the runtime, with the pods that an earlier one has left in its directory.
    ///
    /// # Errors
    /// When this is not root, when there is no OCI runtime, or when the directory can't be used.
    pub async fn open(options: OciOptions) -> io::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "containers by an OCI runtime need root",
            ));
        }
        let pods = options.dir.join("pods");
        std::fs::create_dir_all(&pods)?;
        // Of several runtimes on a machine each has groups of its own, and again the same when it is opened again.
        let own = Digest::of(options.dir.canonicalize()?.as_os_str().as_encoded_bytes());
        let parent = format!("{}/{}", options.cgroup_parent.trim_end_matches('/'), &own.hex()[..8]);
        let engine_of = |(name, program): (&String, &PathBuf)| {
            let root = options.dir.join(format!("engine-{}", file_name(name)));
            Ok((name.clone(), Engine::find(program, root)?))
        };
        let engines = options.handlers.iter().map(engine_of).collect::<io::Result<_>>()?;
        let shared = Arc::new(Shared {
            engines,
            engine: Engine::find(&options.program, options.dir.join("engine"))?,
            cgroups: Cgroups::new(parent),
            launcher: Launcher::new()?,
            overlay: options.overlay && rootfs::can_overlay(&options.dir)?,
            own_capabilities: capabilities::own(),
            pods: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            changes: Arc::default(),
            options,
        });
        sandbox::restore(&shared, &pods).await?;
        sandbox::collect_addresses(&shared).await;
        let collector = shared.options.collect.map(|policy| {
            let shared = Arc::downgrade(&shared);
            AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(COLLECT_EVERY).await;
                    let Some(shared) = shared.upgrade() else { return };
                    if let Err(error) = shared.collect(&policy).await {
                        tracing::warn!(%error, "images can't be thrown away");
                    }
                }
            }))
        });
        Ok(Self { shared, _collector: collector })
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> &ContentStore {
        &self.shared.options.images
    }

    /// Throws images away now, as `policy` has it; never those of containers that are there. Gives the images that went.
    ///
    /// # Errors
    /// As [`ContentStore::collect`].
    pub async fn collect_images(&self, policy: &CollectPolicy) -> Result<Vec<Image>, ImageError> {
        self.shared.collect(policy).await
    }
}

impl Drop for OciRuntime {
    fn drop(&mut self) {
        let pods: Vec<_> = self.shared.pods().drain().collect();
        for (uid, pod) in pods {
            for container in pod.containers().iter() {
                if self.shared.options.outlive { container.leave() } else { container.end_now(&self.shared) }
            }
            if !self.shared.options.outlive {
                pod.remove_files(&self.shared);
                self.shared.cgroups.remove_pod(&file_name(uid.as_str()));
            }
        }
        if !self.shared.options.outlive {
            self.shared.cgroups.remove_all();
        }
    }
}

impl Shared {
    fn pods(&self) -> MutexGuard<'_, HashMap<PodUid, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The OCI runtime for a handler; the default's, for one that is not configured any more.
    fn engine(&self, handler: &str) -> &Engine {
        self.engines.get(handler).unwrap_or(&self.engine)
    }

    fn pod(&self, uid: &PodUid) -> Result<Arc<Pod>, RuntimeError> {
        self.pods().get(uid).cloned().ok_or_else(|| RuntimeError::PodNotFound(uid.clone()))
    }

    async fn collect(&self, policy: &CollectPolicy) -> Result<Vec<Image>, ImageError> {
        let in_use: BTreeSet<Digest> = self
            .pods()
            .values()
            .flat_map(|pod| {
                let all = pod.containers();
                let used = all.iter().flat_map(|c| c.saved.volumes.iter().chain([&c.saved.image]));
                used.cloned().collect::<Vec<_>>()
            })
            .collect();
        self.options.images.collect(policy, &in_use).await
    }
}

#[async_trait]
impl ContainerRuntime for OciRuntime {
    fn info(&self) -> RuntimeInfo {
        let mut limitations = Vec::new();
        if !self.shared.overlay {
            limitations.push("roots are not overlays: each container has a copy of its image".to_owned());
        }
        if self.shared.options.network.is_none() {
            limitations.push("pods are connected to nothing: there is no network for them".to_owned());
        }
        let handlers = self.shared.engines.keys().cloned().collect();
        RuntimeInfo { version: self.shared.engine.version.clone(), materialises: true, limitations, handlers }
    }

    async fn run_pod(&self, uid: &PodUid, config: &SandboxConfig) -> Result<Vec<IpAddr>, RuntimeError> {
        check_handler(&config.runtime_handler, self.shared.engines.keys())?;
        let _one = self.shared.changing.lock().await;
        if let Ok(pod) = self.shared.pod(uid) {
            return Ok(pod.addresses.clone());
        }
        let pod = sandbox::make(&self.shared, uid, config).await?;
        let addresses = pod.addresses.clone();
        self.shared.pods().insert(uid.clone(), Arc::new(pod));
        Ok(addresses)
    }

    async fn start(&self, uid: &PodUid, config: &ContainerConfig) -> Result<(), RuntimeError> {
        let pod = self.shared.pod(uid)?;
        let previous = pod.find(&config.name);
        let container = container::start(&self.shared, uid, &pod, config, previous).await?;
        {
            let mut containers = pod.containers();
            match containers.iter_mut().find(|known| known.name == config.name) {
                Some(known) => *known = Arc::clone(&container),
                None => containers.push(Arc::clone(&container)),
            }
        }
        // A pod that was removed in the meantime has no place for it.
        if self.shared.pod(uid).is_err() {
            container.kill();
            container.cleaned().await;
            pod.remove_files(&self.shared);
            return Err(RuntimeError::PodNotFound(uid.clone()));
        }
        Ok(())
    }

    async fn stop(&self, uid: &PodUid, name: &str, grace: Duration) -> Result<(), RuntimeError> {
        let Some(container) = self.shared.pod(uid).ok().and_then(|pod| pod.find(name)) else { return Ok(()) };
        container.stop(grace).await;
        Ok(())
    }

    async fn remove_pod(&self, uid: &PodUid) -> Result<(), RuntimeError> {
        let Ok(pod) = self.shared.pod(uid) else { return Ok(()) };
        let containers: Vec<_> = pod.containers().clone();
        containers.iter().for_each(|container| container.kill());
        for container in &containers {
            container.cleaned().await;
        }
        let _one = self.shared.changing.lock().await;
        sandbox::remove(&self.shared, uid, &pod).await?;
        self.shared.pods().remove(uid);
        Ok(())
    }

    fn observe(&self, uid: &PodUid) -> ObservedPod {
        let Ok(pod) = self.shared.pod(uid) else { return ObservedPod::default() };
        let containers = pod.containers().iter().map(|container| container.observe()).collect();
        ObservedPod { addresses: Some(pod.addresses.clone()), containers }
    }

    fn pods(&self) -> Vec<PodUid> {
        self.shared.pods().keys().cloned().collect()
    }

    fn changes(&self) -> ChangeStream {
        self.shared.changes.subscribe()
    }

    async fn exec(&self, uid: &PodUid, name: &str, request: ExecRequest) -> Result<Session, RuntimeError> {
        let container = self.shared.pod(uid)?.running(name)?;
        exec::exec(&self.shared, &container, request).await
    }

    async fn attach(&self, uid: &PodUid, name: &str) -> Result<Session, RuntimeError> {
        Ok(attach(&self.shared.pod(uid)?.running(name)?.streams))
    }

    async fn logs(&self, uid: &PodUid, name: &str, options: LogOptions) -> Result<LogStream, RuntimeError> {
        let missing = || RuntimeError::NotRunning(name.to_owned());
        let container = self.shared.pod(uid)?.find(name).ok_or_else(missing)?;
        let attempt = options.attempt.unwrap_or(container.saved.attempt);
        let path = container.log_path(attempt);
        let progress = if attempt == container.saved.attempt {
            container.progress()
        } else {
            let finished = logs::Progress { finished: true, ..logs::Progress::default() };
            tokio::sync::watch::channel(finished).1
        };
        logs::read(path, &options, progress).await.map_err(RuntimeError::io("opening the container's log"))
    }

    async fn usage(&self, pods: &[PodUid]) -> Vec<(PodUid, Vec<ContainerReading>)> {
        let known: Vec<_> = {
            let all = self.shared.pods();
            pods.iter().filter_map(|uid| Some((uid.clone(), Arc::clone(all.get(uid)?)))).collect()
        };
        let cgroups = self.shared.cgroups.clone();
        let read = move |pod: &Pod| -> Vec<ContainerReading> {
            let containers = pod.containers();
            let running = containers.iter().filter(|container| container.is_running());
            running
                .filter_map(|container| {
                    let (cpu, memory_bytes) = cgroups.usage(&container.saved.cgroup)?;
                    Some(ContainerReading { name: Arc::clone(&container.name), cpu, memory_bytes })
                })
                .collect()
        };
        let all = move || known.into_iter().map(|(uid, pod)| (uid, read(&pod))).collect();
        tokio::task::spawn_blocking(all).await.unwrap_or_default()
    }

    async fn disk(&self, pods: &[PodUid]) -> Vec<(PodUid, Vec<ContainerDisk>)> {
        let known: Vec<_> = {
            let all = self.shared.pods();
            pods.iter().filter_map(|uid| Some((uid.clone(), Arc::clone(all.get(uid)?)))).collect()
        };
        let read = |pod: &Pod| pod.containers().iter().map(|container| container.disk()).collect();
        let all = move || known.into_iter().map(|(uid, pod)| (uid, read(&pod))).collect();
        tokio::task::spawn_blocking(all).await.unwrap_or_default()
    }

    async fn set_cpus(&self, uid: &PodUid, name: &str, cpus: &CpuSet) -> Result<(), RuntimeError> {
        let container = self.shared.pod(uid)?.running(name)?;
        container.update(self.shared.engine(&container.saved.handler), &spec::bound(cpus)).await
    }

    async fn resize(&self, uid: &PodUid, name: &str, resources: &Resources) -> Result<(), RuntimeError> {
        let container = self.shared.pod(uid)?.running(name)?;
        container.resize(self.shared.engine(&container.saved.handler), resources).await
    }

    async fn reclaim(&self) -> bool {
        // All that no container uses, however young.
        let all =
            CollectPolicy { high_percent: 0, low_percent: 0, age_min: Duration::ZERO, unused_max: None };
        match self.shared.collect(&all).await {
            Ok(gone) => !gone.is_empty(),
            Err(error) => {
                tracing::warn!(%error, "images can't be thrown away");
                false
            }
        }
    }

    async fn image(&self, image: &str) -> ImagePresence {
        let found = image.parse::<Reference>().ok().and_then(|name| self.shared.options.images.find(&name));
        if found.is_some() { ImagePresence::Present } else { ImagePresence::Absent }
    }

    async fn pull(&self, image: &str, secrets: &[Vec<u8>]) -> Result<u64, RuntimeError> {
        let name: Reference = image
            .parse()
            .map_err(|error| RuntimeError::ImageName { image: image.to_owned(), why: format!("{error}") })?;
        let mut credentials = Credentials::default();
        for secret in secrets {
            // One that can't be read is no reason not to try the others.
            if let Ok(own) = Credentials::parse(secret) {
                credentials.extend(own);
            }
        }
        credentials.extend(self.shared.options.credentials.clone());
        let failed = |error: ImageError| RuntimeError::Image(error.to_string());
        let Some(registry) = &self.shared.options.registry else {
            // An image that was loaded is the newest that can be had.
            return self.shared.options.images.find(&name).map(|image| image.size).ok_or_else(|| {
                failed(ImageError::Registry(format!(
                    "failed to pull and unpack image \"{name}\": failed to resolve reference \"{name}\": {name}: not found"
                )))
            });
        };
        registry
            .pull(&self.shared.options.images, &name, &credentials)
            .await
            .map(|image| image.size)
            .map_err(failed)
    }

    async fn connect(&self, uid: &PodUid, address: SocketAddr, local: bool) -> io::Result<TcpStream> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("pod {uid} is not there"));
        let pod = self.shared.pod(uid).map_err(|_| missing())?;
        // From outside, the network that connects the pod is what is asked about.
        if pod.config.host_network || (!local && self.shared.options.network.is_some()) {
            let host = if local { IpAddr::from(Ipv4Addr::LOCALHOST) } else { address.ip() };
            return TcpStream::connect(SocketAddr::new(host, address.port())).await;
        }
        let host = if local { IpAddr::from(Ipv4Addr::LOCALHOST) } else { address.ip() };
        network::connect_inside(pod.dir.join("ns/net"), SocketAddr::new(host, address.port())).await
    }
}
