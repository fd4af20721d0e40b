//! Containers by a server of the Container Runtime Interface, version 1: containerd, CRI-O or another, over its socket. Linux.
//!
//! [`CriRuntime::connect`] is where to start. Sandboxes, images, containers, statistics and streams are the server's; here are the
//! pods' files (hosts, logs, termination messages) and what was last heard of the containers. Everything carries labels, those
//! that `crictl` shows among them, so a runtime that connects again finds what it had.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use kcore::Clock;
use tokio::{net::TcpStream, sync::watch as channel};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use super::{
    ChangeStream, ContainerConfig, ContainerPhase, ContainerReading, ContainerRuntime, ExecRequest, Exit,
    ImagePresence, LogOptions, LogStream, ObservedPod, PodUid, Resources, RuntimeError, RuntimeInfo,
    SandboxConfig, Session, changes::Changes, output::remove_logs_before,
};
use crate::{
    images::{Credentials, Digest, Reference},
    logs,
    managers::CpuSet,
};

mod client;
mod convert;
mod images;
mod pods;
mod proto;
mod restore;
mod sandbox;
mod session;
mod stream;
mod watch;

use client::CriClient;
use convert::{CONTAINER_NAME, OwnFiles, Traits, owned};
use pods::{Known, Pod, by_pod, hosts_path, log_dir, log_name, make_files, message_path};
use proto as pb;

pub use watch::{LOOK_EVERY, LOOK_EVERY_WITH_EVENTS};

/// What a [`CriRuntime`] is made of.
#[derive(Clone, Debug)]
pub struct CriOptions {
    /// The server's socket.
    pub socket: PathBuf,
    /// A directory of the runtime's own, which the server can see too: pods' hosts files, logs, termination messages. Made if it
    /// isn't there. What a server has is this runtime's by the directory, so several runtimes may share a server, not a directory.
    pub dir: PathBuf,
    /// The node's own credentials for registries; a pod's pull secrets go before them. None by default.
    pub credentials: Credentials,
    /// Which of the server's handlers runs pods whose RuntimeClass names none. The server's default by default.
    pub handler: String,
    /// The control group that those of containers are in; a slice when the server uses systemd. `/kplane` by default.
    pub cgroup_parent: String,
    /// Where seccomp profiles of the type `Localhost` are. Nowhere by default.
    pub seccomp_dir: Option<PathBuf>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl CriOptions {
    /// The defaults, for the server behind this socket.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, dir: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        Self {
            socket: socket.into(),
            dir: dir.into(),
            credentials: Credentials::default(),
            handler: String::new(),
            cgroup_parent: "/kplane".to_owned(),
            seccomp_dir: None,
            clock,
        }
    }
}

/// The runtime whose containers are a server's.
///
/// Its pods outlive it, as they would outlive a kubelet; [`remove_all`](Self::remove_all) ends them. A program that is run in a
/// container ends when its session is dropped only if the server sees to that.
///
/// ```no_run
/// use std::sync::Arc;
/// use kruntime::runtime::cri::{CriOptions, CriRuntime};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let socket = "/run/containerd/containerd.sock";
/// let options = CriOptions::new(socket, "/var/lib/kplane/cri", Arc::new(kcore::SystemClock));
/// let runtime = CriRuntime::connect(options).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct CriRuntime {
    shared: Arc<Shared>,
    _watch: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    options: CriOptions,
    client: CriClient,
    /// Whose the pods are, in labels.
    owner: String,
    info: RuntimeInfo,
    pods: Mutex<HashMap<PodUid, Arc<Pod>>>,
    changes: Arc<Changes>,
}

/// A name that is fit for a path, whatever is in it.
fn file_name(text: &str) -> String {
    let name: String = text.chars().map(|c| if c == '/' || c == '\0' { '_' } else { c }).collect();
    if name.is_empty() || name.starts_with('.') { format!("_{name}") } else { name }
}

/// What the server said no with.
fn refused(status: Status) -> RuntimeError {
    RuntimeError::Create(status.message().to_owned())
}

/// Takes an answer that something isn't there for one that it is gone.
fn gone<T: Default>(answer: Result<T, Status>) -> Result<T, RuntimeError> {
    match answer {
        Err(status) if status.code() == Code::NotFound => Ok(T::default()),
        other => other.map_err(refused),
    }
}

impl CriRuntime {
    /// Connects to a server, and finds the pods that an earlier runtime with the same directory had.
    ///
    /// # Errors
    /// When the server doesn't answer or the directory can't be used.
    pub async fn connect(options: CriOptions) -> io::Result<Self> {
        let pods = options.dir.join("pods");
        std::fs::create_dir_all(&pods)?;
        let canonical = options.dir.canonicalize()?;
        let owner = Digest::of(canonical.as_os_str().as_encoded_bytes()).hex()[..16].to_owned();
        let options = CriOptions { dir: canonical, ..options };
        let client = CriClient::new(&options.socket);
        let info = describe(&client).await.map_err(|status| {
            io::Error::other(format!("{}: {}", options.socket.display(), status.message()))
        })?;
        let shared = Arc::new(Shared {
            options,
            client,
            owner,
            info,
            pods: Mutex::default(),
            changes: Arc::default(),
        });
        restore::restore(&shared).await.map_err(io::Error::other)?;
        let watch = AbortOnDropHandle::new(tokio::spawn(watch::run(Arc::downgrade(&shared))));
        Ok(Self { shared, _watch: watch })
    }

    /// Removes all pods, for a runtime that doesn't come back.
    ///
    /// # Errors
    /// The first that there was; the other pods are removed.
    pub async fn remove_all(&self) -> Result<(), RuntimeError> {
        let mut first = Ok(());
        for pod in self.pods() {
            let removed = self.remove_pod(&pod).await;
            first = first.and(removed);
        }
        first
    }

    /// Removes an image from the server. One that isn't there is no error.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn remove_image(&self, image: &str) -> Result<(), RuntimeError> {
        let request = pb::RemoveImageRequest { image: Some(spec(image)) };
        gone(self.shared.client.call::<_, pb::Empty>("ImageService/RemoveImage", request).await).map(drop)
    }

    /// The names of the server's images, and their sizes in bytes.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn images(&self) -> Result<Vec<(Vec<String>, u64)>, RuntimeError> {
        let request = pb::ListImagesRequest::default();
        let listed: pb::ListImagesResponse =
            self.shared.client.call("ImageService/ListImages", request).await.map_err(refused)?;
        let named = |image: pb::Image| ([image.repo_tags, image.repo_digests].concat(), image.size);
        Ok(listed.images.into_iter().map(named).collect())
    }

    /// How many bytes images take up, by the mount point of their file system.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn image_bytes(&self) -> Result<BTreeMap<String, u64>, RuntimeError> {
        let answer: pb::ImageFsInfoResponse =
            self.shared.client.call("ImageService/ImageFsInfo", pb::Empty {}).await.map_err(refused)?;
        let used = |usage: pb::FilesystemUsage| {
            let mountpoint = usage.fs_id.map(|id| id.mountpoint).unwrap_or_default();
            (mountpoint, usage.used_bytes.map_or(0, |used| used.value))
        };
        Ok(answer.image_filesystems.into_iter().map(used).collect())
    }
}

fn spec(image: &str) -> pb::ImageSpec {
    pb::ImageSpec { image: image.to_owned(), ..pb::ImageSpec::default() }
}

async fn describe(client: &CriClient) -> Result<RuntimeInfo, Status> {
    let version: pb::VersionResponse =
        client.call("RuntimeService/Version", pb::VersionRequest { version: "v1".to_owned() }).await?;
    let status: pb::StatusResponse =
        client.call("RuntimeService/Status", pb::StatusRequest::default()).await?;
    let conditions = status.status.map(|status| status.conditions).unwrap_or_default();
    let limitations = conditions
        .into_iter()
        .filter(|condition| !condition.status)
        .map(|condition| format!("{}: {}: {}", condition.kind, condition.reason, condition.message))
        .collect();
    let version = format!("{}://{}", version.runtime_name, version.runtime_version);
    // Which handlers there are is the server's to know: it refuses others itself.
    Ok(RuntimeInfo { version, materialises: true, limitations, handlers: Vec::new() })
}

impl Shared {
    fn pods(&self) -> MutexGuard<'_, HashMap<PodUid, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pod(&self, uid: &PodUid) -> Result<Arc<Pod>, RuntimeError> {
        self.pods().get(uid).cloned().ok_or_else(|| RuntimeError::PodNotFound(uid.clone()))
    }

    fn running(&self, uid: &PodUid, name: &str) -> Result<Arc<Known>, RuntimeError> {
        let missing = || RuntimeError::NotRunning(name.to_owned());
        let container = self.pod(uid)?.find(name).ok_or_else(missing)?;
        container.running()?;
        Ok(container)
    }

    fn dir(&self, uid: &PodUid) -> PathBuf {
        self.options.dir.join("pods").join(file_name(uid.as_str()))
    }

    async fn status(&self, id: &str) -> Result<pb::ContainerStatus, Status> {
        let request = pb::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer: pb::ContainerStatusResponse =
            self.client.call("RuntimeService/ContainerStatus", request).await?;
        answer.status.ok_or_else(|| Status::new(Code::NotFound, "no status"))
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = pb::ContainerId { container_id: id.to_owned() };
        gone(self.client.call::<_, pb::Empty>("RuntimeService/RemoveContainer", request).await).map(drop)
    }

    /// Makes a container; the id that it got.
    async fn create(&self, pod: &Pod, config: pb::ContainerConfig) -> Result<String, RuntimeError> {
        let names = config.metadata.clone().unwrap_or_default();
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: pod.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(pod.wire.clone()),
        };
        let method = "RuntimeService/CreateContainer";
        let first = match self.client.call::<_, pb::ContainerId>(method, request.clone()).await {
            Ok(made) => return Ok(made.container_id),
            Err(status) => status,
        };
        // One that was made and never started, because this process or the call ended, has the name still.
        let filter = pb::ContainerFilter {
            pod_sandbox_id: pod.sandbox.clone(),
            label_selector: [(CONTAINER_NAME.to_owned(), names.name.clone())].into(),
            ..pb::ContainerFilter::default()
        };
        let listed: pb::ListContainersResponse = self
            .client
            .call("RuntimeService/ListContainers", pb::ListContainersRequest { filter: Some(filter) })
            .await
            .map_err(refused)?;
        let same = listed.containers.iter().find(|found| found.metadata.as_ref() == Some(&names));
        let Some(same) = same.filter(|found| found.state() == pb::ContainerState::Created) else {
            return Err(refused(first));
        };
        self.remove_container(&same.id).await?;
        self.client
            .call(method, request)
            .await
            .map(|made: pb::ContainerId| made.container_id)
            .map_err(refused)
    }

    /// Starts a container that was made. One that can't be started has ended with 128.
    async fn begin(&self, id: &str) -> Result<(pb::ContainerStatus, ContainerPhase), RuntimeError> {
        let request = pb::ContainerId { container_id: id.to_owned() };
        let started = self.client.call::<_, pb::Empty>("RuntimeService/StartContainer", request).await;
        let now = self.options.clock.now();
        let status = self.status(id).await.map_err(refused)?;
        let phase = pods::phase(&status, now);
        let failed = |why: String| {
            ContainerPhase::Exited(Exit {
                started_at: now,
                finished_at: now,
                code: 128,
                signal: None,
                reason: "StartError",
                message: Some(why),
            })
        };
        let phase = match (started, phase) {
            (_, Some(phase @ ContainerPhase::Exited(_))) => phase,
            (Err(error), _) => failed(error.message().to_owned()),
            (Ok(_), Some(phase)) => phase,
            (Ok(_), None) => failed("the container was started and is not known to have been".to_owned()),
        };
        Ok((status, phase))
    }
}

#[async_trait]
impl ContainerRuntime for CriRuntime {
    fn info(&self) -> RuntimeInfo {
        self.shared.info.clone()
    }

    async fn run_pod(&self, uid: &PodUid, config: &SandboxConfig) -> Result<Vec<IpAddr>, RuntimeError> {
        sandbox::run(&self.shared, uid, config).await
    }

    async fn start(&self, uid: &PodUid, config: &ContainerConfig) -> Result<(), RuntimeError> {
        let shared = &self.shared;
        let pod = shared.pod(uid)?;
        let image = shared.find_image(&config.image).await.map_err(refused)?;
        let image = image.ok_or_else(|| RuntimeError::Image(format!("{}: not found", config.image)))?;
        let log = log_name(&config.name, config.attempt);
        let message = message_path(&pod.dir, &config.name, config.attempt);
        let path = log_dir(&pod.dir).join(&log);
        make_files(&path, &message).map_err(RuntimeError::io("making the container's files"))?;
        let hosts = Some(hosts_path(&pod.dir)).filter(|path| path.exists());
        let files = OwnFiles { hosts, message: message.clone(), log };
        let mut wire = convert::container(
            (&shared.owner, uid.as_str(), &pod.config),
            config,
            &image,
            &files,
            shared.options.seccomp_dir.as_deref(),
        )?;
        wire.mounts.extend(shared.image_mounts(config).await?);
        let id = shared.create(&pod, wire).await?;
        let (status, phase) = shared.begin(&id).await?;
        let known = Known {
            name: Arc::clone(&config.name),
            id,
            attempt: config.attempt,
            image_id: Some(status.image_ref).filter(|image| !image.is_empty()).or(Some(image.id)),
            traits: Traits::of(config),
            phase: Known::began(&phase),
            message,
            log: path,
        };
        known.settle(phase);
        if let Some(earlier) = pod.put(Arc::new(known)) {
            if let Err(error) = shared.remove_container(&earlier.id).await {
                tracing::warn!(container = earlier.id, %error, "an earlier start of a container is left");
            }
            if let Some(dir) = earlier.log.parent() {
                remove_logs_before(dir, earlier.attempt);
            }
            let _ = std::fs::remove_file(&earlier.message);
        }
        shared.changes.tell(uid);
        Ok(())
    }

    async fn resize(&self, uid: &PodUid, name: &str, resources: &Resources) -> Result<(), RuntimeError> {
        client::update(&self.shared, convert::update(&self.shared.running(uid, name)?.id, resources)).await
    }

    async fn set_cpus(&self, uid: &PodUid, name: &str, cpus: &CpuSet) -> Result<(), RuntimeError> {
        client::update(&self.shared, convert::bound(&self.shared.running(uid, name)?.id, cpus)).await
    }

    async fn stop(&self, uid: &PodUid, name: &str, grace: Duration) -> Result<(), RuntimeError> {
        let Ok(pod) = self.shared.pod(uid) else { return Ok(()) };
        let Some(container) = pod.find(name).filter(|container| container.is_running()) else {
            return Ok(());
        };
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
        let request = pb::StopContainerRequest { container_id: container.id.clone(), timeout };
        let limit = client::CALL_TIME_MAX.saturating_add(grace);
        let stop =
            self.shared.client.call_within::<_, pb::Empty>(limit, "RuntimeService/StopContainer", request);
        gone(stop.await)?;
        watch::refresh(&self.shared, &pod, &container).await;
        Ok(())
    }

    async fn remove_pod(&self, uid: &PodUid) -> Result<(), RuntimeError> {
        let Ok(pod) = self.shared.pod(uid) else { return Ok(()) };
        sandbox::end(&self.shared, &pod.sandbox).await?;
        let dir = pod.dir.clone();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
        match removed.map_err(io::Error::other).and_then(|removed| removed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RuntimeError::Io { context: "removing the pod's files", source: error });
            }
            _ => {}
        }
        self.shared.pods().remove(uid);
        Ok(())
    }

    fn observe(&self, uid: &PodUid) -> ObservedPod {
        let Ok(pod) = self.shared.pod(uid) else { return ObservedPod::default() };
        let containers = pod.containers().iter().map(|container| container.observe()).collect();
        ObservedPod { addresses: pod.is_ready().then(|| pod.addresses.clone()), containers }
    }

    fn pods(&self) -> Vec<PodUid> {
        self.shared.pods().keys().cloned().collect()
    }

    fn changes(&self) -> ChangeStream {
        self.shared.changes.subscribe()
    }

    async fn exec(&self, uid: &PodUid, name: &str, request: ExecRequest) -> Result<Session, RuntimeError> {
        let container = self.shared.running(uid, name)?;
        let wanted = session::Wanted { stdin: request.stdin, tty: request.tty };
        let asked = pb::ExecRequest {
            container_id: container.id.clone(),
            cmd: request.command,
            tty: request.tty,
            stdin: request.stdin,
            stdout: true,
            stderr: !request.tty,
        };
        let answer: pb::StreamUrl =
            self.shared.client.call("RuntimeService/Exec", asked).await.map_err(refused)?;
        session::open(&answer.url, wanted).await
    }

    async fn attach(&self, uid: &PodUid, name: &str) -> Result<Session, RuntimeError> {
        let container = self.shared.running(uid, name)?;
        let Traits { tty, stdin, .. } = container.traits;
        let asked =
            pb::AttachRequest { container_id: container.id.clone(), stdin, tty, stdout: true, stderr: !tty };
        let answer: pb::StreamUrl =
            self.shared.client.call("RuntimeService/Attach", asked).await.map_err(refused)?;
        let session = session::open(&answer.url, session::Wanted { stdin, tty }).await?;
        // The server says that streams have ended, not how the container did.
        let (mut phase, streams) = (container.phase.subscribe(), session.exit);
        let exit = async move {
            let ended = phase.wait_for(|phase| matches!(phase, ContainerPhase::Exited(_))).await;
            drop(streams);
            Ok(match ended.as_deref() {
                Ok(ContainerPhase::Exited(exit)) => exit.code,
                _ => 255,
            })
        };
        Ok(Session { exit: Box::pin(exit), ..session })
    }

    async fn logs(&self, uid: &PodUid, name: &str, options: LogOptions) -> Result<LogStream, RuntimeError> {
        let missing = || RuntimeError::NotRunning(name.to_owned());
        let pod = self.shared.pod(uid)?;
        let container = pod.find(name).ok_or_else(missing)?;
        let attempt = options.attempt.unwrap_or(container.attempt);
        let (path, progress) = if attempt == container.attempt {
            (container.log.clone(), watch::progress(&container))
        } else {
            let finished = logs::Progress { finished: true, ..logs::Progress::default() };
            (log_dir(&pod.dir).join(log_name(name, attempt)), channel::channel(finished).1)
        };
        logs::read(path, &options, progress).await.map_err(RuntimeError::io("opening the container's log"))
    }

    async fn usage(&self, pods: &[PodUid]) -> Vec<(PodUid, Vec<ContainerReading>)> {
        let filter =
            pb::StatsFilter { label_selector: owned(&self.shared.owner), ..pb::StatsFilter::default() };
        let request = pb::ListContainerStatsRequest { filter: Some(filter) };
        let answer = self.shared.client.call("RuntimeService/ListContainerStats", request).await;
        let pb::ListContainerStatsResponse { stats } = answer.unwrap_or_default();
        let mut readings: HashMap<String, ContainerReading> = HashMap::new();
        for one in stats {
            let Some(attributes) = one.attributes else { continue };
            let (Some(cpu), Some(memory)) = (
                one.cpu.and_then(|cpu| cpu.usage_core_nano_seconds),
                one.memory.and_then(|memory| memory.working_set_bytes),
            ) else {
                continue;
            };
            let name = attributes.metadata.map(|names| names.name).unwrap_or_default();
            let reading = ContainerReading {
                name: name.into(),
                cpu: Duration::from_nanos(cpu.value),
                memory_bytes: memory.value,
            };
            readings.insert(attributes.id, reading);
        }
        let of_pod = |uid: &PodUid| {
            let pod = self.shared.pod(uid).ok()?;
            let running = pod.containers().clone().into_iter().filter(|container| container.is_running());
            Some((uid.clone(), running.filter_map(|c| readings.get(&c.id).cloned()).collect()))
        };
        pods.iter().filter_map(of_pod).collect()
    }

    async fn image(&self, image: &str) -> ImagePresence {
        match self.shared.find_image(image).await {
            Ok(Some(_)) => ImagePresence::Present,
            Ok(None) => ImagePresence::Absent,
            Err(error) => {
                tracing::warn!(%error, image, "the server doesn't say whether it has an image");
                ImagePresence::Absent
            }
        }
    }

    async fn pull(&self, image: &str, secrets: &[Vec<u8>]) -> Result<u64, RuntimeError> {
        let name: Reference = image
            .parse()
            .map_err(|error| RuntimeError::ImageName { image: image.to_owned(), why: format!("{error}") })?;
        let mut credentials = Credentials::default();
        // One that can't be read is no reason not to try the others.
        secrets
            .iter()
            .filter_map(|secret| Credentials::parse(secret).ok())
            .for_each(|own| credentials.extend(own));
        credentials.extend(self.shared.options.credentials.clone());
        let mut auths: Vec<Option<pb::AuthConfig>> = credentials
            .for_image(&name)
            .into_iter()
            .map(|credential| {
                Some(pb::AuthConfig {
                    username: credential.user.clone(),
                    password: credential.password.clone(),
                    identity_token: credential.identity_token.clone().unwrap_or_default(),
                    ..pb::AuthConfig::default()
                })
            })
            .collect();
        if auths.is_empty() {
            auths.push(None);
        }
        let mut failed = String::new();
        for auth in auths {
            let request = pb::PullImageRequest { image: Some(spec(image)), auth, sandbox_config: None };
            let pull = self.shared.client.call_within::<_, pb::PullImageResponse>(
                client::PULL_TIME_MAX,
                "ImageService/PullImage",
                request,
            );
            match pull.await {
                Ok(pulled) => {
                    let found = self.shared.find_image(&pulled.image_ref).await.map_err(refused)?;
                    return Ok(found.map_or(0, |image| image.size));
                }
                Err(status) => failed = status.message().to_owned(),
            }
        }
        Err(RuntimeError::Image(failed))
    }

    async fn connect(&self, uid: &PodUid, address: SocketAddr, local: bool) -> io::Result<TcpStream> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("pod {uid} is not there"));
        let pod = self.shared.pod(uid).map_err(|_| missing())?;
        if !local {
            return TcpStream::connect(address).await;
        }
        if pod.config.host_network {
            return TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await;
        }
        let asked =
            pb::PortForwardRequest { pod_sandbox_id: pod.sandbox.clone(), port: vec![address.port().into()] };
        let answer: pb::StreamUrl =
            self.shared.client.call("RuntimeService/PortForward", asked).await.map_err(io::Error::other)?;
        session::forward(&answer.url, address.port()).await
    }
}

fn ready(is_ready: bool) -> AtomicBool {
    AtomicBool::new(is_ready)
}
