//! What runs containers: the [`ContainerRuntime`] trait and the words it speaks.
//!
//! The cut is that of the Container Runtime Interface (CRI): a pod is a sandbox with an address, containers are started
//! in it, and everything is named by the pod's uid and the container's name. So the trait carries processes, simulated
//! pods, OCI bundles and a CRI server alike.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Probe;
use knet::network::PortMapping;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

pub mod changes;
#[cfg(all(feature = "cri", target_os = "linux"))]
pub mod cri;
mod device;
mod mount;
#[cfg(all(feature = "oci", target_os = "linux"))]
pub mod oci;
#[cfg(target_os = "linux")]
mod output;
pub(crate) mod ports;
#[cfg(target_os = "linux")]
pub mod process;
mod security;
pub mod simulated;

pub use device::{Device, Devices};
pub use mount::{ImageMount, Mount, Propagation};
pub use security::{AppArmor, Resources, Seccomp, Security};

/// A pod's uid: the name of its sandbox. A pod that is deleted and made again under the same name has another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// The uid as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PodUid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a runtime is and what it needs from the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// `name://version`, shown as `status.nodeInfo.containerRuntimeVersion`.
    pub version: String,
    /// Whether containers see files and environment. When not, the agent spares itself to read ConfigMaps, Secrets and
    /// Services and to write volumes.
    pub materialises: bool,
    /// What this machine does not allow, in words for people; logged when the agent starts.
    pub limitations: Vec<String>,
    /// The names by which a RuntimeClass may choose how its pods are run, beside the empty name of the default; shown in
    /// `status.runtimeHandlers`. A server that knows its handlers itself may leave them out.
    pub handlers: Vec<String>,
}

/// A pod without its containers.
#[derive(Clone, Debug, Default)]
pub struct SandboxConfig {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
    /// The node the pod is bound to.
    pub node: Arc<str>,
    /// The host name that the pod's processes see.
    pub hostname: String,
    /// `hostname.subdomain.namespace.svc.domain` when the pod has a subdomain.
    pub fqdn: Option<String>,
    /// How the pod is run: the handler of its RuntimeClass (KEP-585). Empty for the runtime's default.
    pub runtime_handler: String,
    /// What the sandbox takes beside its containers (KEP-688); already within what the node has given away.
    pub overhead: Resources,
    /// Whether the pod uses the node's network as it is.
    pub host_network: bool,
    /// Whether the pod sees the node's processes.
    pub host_pid: bool,
    /// Whether the pod shares the node's shared memory and message queues.
    pub host_ipc: bool,
    /// Whether the pod's containers see each other's processes (`shareProcessNamespace`).
    pub share_processes: bool,
    /// Whether nothing is kept from one of the pod's containers (`privileged`).
    pub privileged: bool,
    /// Settings of the kernel that are the pod's own.
    pub sysctls: BTreeMap<String, String>,
    /// Lines for the pod's hosts file: an address and its names.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// The node's ports that lead to the pod's (`hostPort`).
    pub ports: Vec<PortMapping>,
    /// The contents of `/etc/resolv.conf`; `None` leaves the machine's.
    pub resolv_conf: Option<String>,
    /// The pod's annotations; the simulated runtime reads its script from them.
    pub annotations: Arc<BTreeMap<String, String>>,
}

/// One container, with everything resolved: no reference to another object is left in it.
#[derive(Clone, Debug, Default)]
pub struct ContainerConfig {
    /// The container's name in the pod.
    pub name: Arc<str>,
    /// How many times it was started before: 0 the first time. Becomes `restartCount`.
    pub attempt: u32,
    /// The image's name.
    pub image: String,
    /// The entry point; empty means the image's.
    pub command: Vec<String>,
    /// The arguments; empty together with an empty `command` means the image's.
    pub args: Vec<String>,
    /// The environment in the order of definition; a later value of the same name wins.
    pub env: Vec<(String, String)>,
    /// The working directory; `None` means the image's.
    pub working_dir: Option<PathBuf>,
    /// The volumes.
    pub mounts: Vec<Mount>,
    /// The images among the volumes. They are there ([`ContainerRuntime::image`]); a runtime that can't mount them refuses the container.
    pub images: Vec<ImageMount>,
    /// Whether standard input stays open for attach.
    pub stdin: bool,
    /// Whether the container has a terminal.
    pub tty: bool,
    /// The user to run as.
    pub run_as_user: Option<u32>,
    /// The group to run as.
    pub run_as_group: Option<u32>,
    /// Whether the container must not run as user 0.
    pub run_as_non_root: bool,
    /// Where the container may leave a message about its end, and whether the end of its log will do instead
    /// (`FallbackToLogsOnError`).
    pub termination_message_path: Option<PathBuf>,
    /// See `termination_message_path`.
    pub termination_message_from_log: bool,
    /// The signal that asks the container to end, such as `SIGTERM`; `None` means the image's, else that one.
    pub stop_signal: Option<String>,
    /// What it may use.
    pub resources: Resources,
    /// What it may do.
    pub security: Security,
    /// The devices that it was given.
    pub devices: Devices,
}

/// What became of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerPhase {
    /// It runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// It ended, or could not be started.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// When it was started.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Its exit code; 128 plus the signal's number when a signal ended it; 128 when it could not be started.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `StartError` or `OOMKilled`.
    pub reason: &'static str,
    /// What the container left as its termination message, or why it could not be started.
    pub message: Option<String>,
}

/// A container as the runtime sees it: its last start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedContainer {
    /// The container's name in the pod.
    pub name: Arc<str>,
    /// The runtime's id of this start, without scheme.
    pub id: String,
    /// The [`ContainerConfig::attempt`] that it was started with.
    pub attempt: u32,
    /// The image that it was started from, by its digest; `None` where images are only names.
    pub image_id: Option<String>,
    /// Its state.
    pub phase: ContainerPhase,
}

/// A pod as the runtime sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPod {
    /// The pod's addresses once its sandbox is ready; `None` when there is no sandbox.
    pub addresses: Option<Vec<IpAddr>>,
    /// The last start of each container that was ever started, in the order of their first starts.
    pub containers: Vec<ObservedContainer>,
}

/// What a running container has used so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerReading {
    /// The container's name in the pod.
    pub name: Arc<str>,
    /// All processor time since its start.
    pub cpu: Duration,
    /// The memory that it holds now, in bytes.
    pub memory_bytes: u64,
}

/// What a container has on the node's disks beside its volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerDisk {
    /// The container's name in the pod.
    pub name: Arc<str>,
    /// What it wrote over its image, in bytes.
    pub root_bytes: u64,
    /// Its logs, in bytes.
    pub log_bytes: u64,
}

/// Why a runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// There is no such pod.
    #[error("pod {0} is not known to the runtime")]
    PodNotFound(PodUid),
    /// There is no such container, or it doesn't run.
    #[error("container {0:?} is not running")]
    NotRunning(String),
    /// The image can't be had. The container waits with `ErrImagePull`.
    #[error("{0}")]
    Image(String),
    /// The image isn't there, and may not be fetched. The container waits with `ErrImageNeverPull`.
    #[error("Container image {0:?} is not present with pull policy of Never")]
    ImageNever(String),
    /// That is no image's name. The container waits with `InvalidImageName`.
    #[error("Failed to apply default image tag {image:?}: {why}")]
    ImageName {
        /// The name.
        image: String,
        /// What is wrong with it.
        why: String,
    },
    /// The configuration asks for what the runtime can't give. The container waits with `CreateContainerConfigError`.
    #[error("{0}")]
    Config(String),
    /// The container could not be made. It waits with `CreateContainerError`.
    #[error("{0}")]
    Create(String),
    /// The runtime doesn't do this at all.
    #[error("the runtime does not support {0}")]
    Unsupported(&'static str),
    /// The pod can't be connected, or disconnected.
    #[error(transparent)]
    Network(#[from] knet::network::NetworkError),
    /// A volume can't be had, or given back.
    #[error("{step} for volume {volume:?} : {why}")]
    Volume {
        /// What failed, in upstream's words, such as `MountVolume.SetUp failed`.
        step: &'static str,
        /// The volume's name.
        volume: String,
        /// Why.
        why: String,
    },
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was tried.
        context: &'static str,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
}

/// Whether one of `handlers`, or the default, is asked for.
///
/// # Errors
/// In containerd's words, when it is none of them.
pub(crate) fn check_handler<'a>(
    asked: &str,
    handlers: impl IntoIterator<Item = &'a String>,
) -> Result<(), RuntimeError> {
    if asked.is_empty() || handlers.into_iter().any(|handler| handler == asked) {
        return Ok(());
    }
    Err(RuntimeError::Config(format!("no runtime for {asked:?} is configured")))
}

impl RuntimeError {
    /// Wraps an error of the operating system; for `map_err`.
    pub fn io(context: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { context, source }
    }

    /// The reason that a container waits with after this error.
    #[must_use]
    pub fn waiting_reason(&self) -> &'static str {
        match self {
            Self::Image(_) => "ErrImagePull",
            Self::ImageNever(_) => "ErrImageNeverPull",
            Self::ImageName { .. } => "InvalidImageName",
            Self::Config(_) | Self::Volume { .. } => "CreateContainerConfigError",
            _ => "CreateContainerError",
        }
    }
}

/// What to run inside a container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whether the caller will send standard input.
    pub stdin: bool,
    /// Whether the program gets a terminal; then there is no separate standard error.
    pub tty: bool,
}

/// A stream of bytes to read.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
/// A stream of bytes to write.
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;
/// Changes a terminal's size, given its columns and rows.
pub type Resize = Arc<dyn Fn(u16, u16) + Send + Sync>;
/// Resolves to a program's exit code, 128 plus the signal's number for a signal.
pub type ExitCode = futures::future::BoxFuture<'static, Result<i32, RuntimeError>>;

/// A program that runs in a container, or a container that was attached to.
///
/// Dropping an exec session ends its program; dropping an attachment leaves the container as it is.
pub struct Session {
    /// Standard input, when it was asked for.
    pub stdin: Option<Writer>,
    /// Standard output; the terminal's output when there is one.
    pub stdout: Option<Reader>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<Reader>,
    /// Changes the terminal's size; `None` without a terminal.
    pub resize: Option<Resize>,
    /// Ends when the program has ended.
    pub exit: ExitCode,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("tty", &self.resize.is_some()).finish_non_exhaustive()
    }
}

/// Which part of a log is wanted, as `PodLogOptions` says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Which start of the container; `None` means the last.
    pub attempt: Option<u32>,
    /// Go on until the container ends.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only lines written at or after this time.
    pub since: Option<Timestamp>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Only lines of this stream, `Stdout` or `Stderr`; `None` means both.
    pub stream: Option<String>,
}

/// A log as it goes to the reader. Ends when the log ends, or with the container when it is followed.
pub type LogStream = BoxStream<'static, std::io::Result<Bytes>>;

/// The pods that changed, one uid for each change. It may skip repeated uids, never the last.
pub type ChangeStream = BoxStream<'static, PodUid>;

/// Runs containers on a node.
///
/// One runtime may serve several nodes of one process: it knows pods by their uid only. The agent calls it from many
/// pods at once, and for one container never twice at once but for [`stop`](Self::stop). After a change that the agent
/// did not ask for (a container ended by itself) the runtime names the pod on [`changes`](Self::changes); the agent then
/// asks [`observe`](Self::observe), so that a lost notification costs time but never truth.
///
/// # Cancel safety
/// The agent runs each call to its end, except when the agent itself is dropped. A runtime that is dropped ends all
/// that it started, unless it was told that its containers outlive it.
///
/// `kruntime::testing::check_runtime` (feature `testing`) tests every promise made here.
#[async_trait]
pub trait ContainerRuntime: fmt::Debug + Send + Sync + 'static {
    /// What the runtime is. Called once by each agent.
    fn info(&self) -> RuntimeInfo;

    /// Makes the pod's sandbox and gives its addresses. May be repeated: a pod that has a sandbox keeps it.
    ///
    /// # Errors
    /// The agent tries again with back-off. A handler that the runtime doesn't have is [`RuntimeError::Config`].
    async fn run_pod(&self, pod: &PodUid, config: &SandboxConfig) -> Result<Vec<IpAddr>, RuntimeError>;

    /// Makes and starts a container in a pod that has a sandbox. An earlier start of the container has ended; it is
    /// replaced in what [`observe`](Self::observe) shows, its log stays until the start after this one.
    ///
    /// A program that can't be started is not an error: the container is then observed as exited with code 128, reason
    /// `StartError` and a message, and is restarted as the pod's policy says.
    ///
    /// # Errors
    /// The container was not made; it waits with [`RuntimeError::waiting_reason`], and the agent tries again with
    /// back-off.
    async fn start(&self, pod: &PodUid, config: &ContainerConfig) -> Result<(), RuntimeError>;

    /// Asks the container to end, makes it end after `grace`, and returns when it has ended. A container that doesn't run is
    /// no error. A second call with a shorter grace while the first waits shortens the wait.
    ///
    /// # Errors
    /// Only when it can't be ended.
    async fn stop(&self, pod: &PodUid, container: &str, grace: Duration) -> Result<(), RuntimeError>;

    /// Ends what still runs in the pod at once, and removes the sandbox, its address and its logs. A pod that isn't
    /// there is no error.
    ///
    /// # Errors
    /// The agent tries again.
    async fn remove_pod(&self, pod: &PodUid) -> Result<(), RuntimeError>;

    /// The pod as it is now. Cheap: the agent asks after each change. A pod that isn't there is empty.
    fn observe(&self, pod: &PodUid) -> ObservedPod;

    /// Every pod that the runtime has, for an agent that comes back and for cleaning up.
    fn pods(&self) -> Vec<PodUid>;

    /// The changes from now on. Each call gives a stream of its own.
    fn changes(&self) -> ChangeStream;

    /// Runs a program in a container.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`], or the program can't be started.
    async fn exec(
        &self,
        pod: &PodUid,
        container: &str,
        request: ExecRequest,
    ) -> Result<Session, RuntimeError>;

    /// Joins a running container's output from now on, and its input if it was configured with `stdin`.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`].
    async fn attach(&self, pod: &PodUid, container: &str) -> Result<Session, RuntimeError>;

    /// Reads a container's log.
    ///
    /// # Errors
    /// When the container was never started, or its log is gone.
    async fn logs(
        &self,
        pod: &PodUid,
        container: &str,
        options: LogOptions,
    ) -> Result<LogStream, RuntimeError>;

    /// Answers a probe in place of the agent: `None`, the default, lets the agent make the request itself. For runtimes
    /// whose pods can't be reached.
    async fn probe(&self, _pod: &PodUid, _container: &str, _kind: ProbeKind, _probe: &Probe) -> Option<bool> {
        None
    }

    /// What the running containers of these pods have used, in any order; pods and containers that are not known, or don't run,
    /// are left out. Asked at most every [`RESOLUTION`](crate::stats::RESOLUTION), for all pods at once, and beside that when the
    /// node is short of memory. By default nothing
    /// is known.
    async fn usage(&self, _pods: &[PodUid]) -> Vec<(PodUid, Vec<ContainerReading>)> {
        Vec::new()
    }

    /// What the containers of these pods have on disks, in any order; what is not known is left out. Asked every ten seconds for pods
    /// with limits, and for all when the node is short of disk. By default nothing is known.
    async fn disk(&self, _pods: &[PodUid]) -> Vec<(PodUid, Vec<ContainerDisk>)> {
        Vec::new()
    }

    /// Gives a container that runs other shares of the node, without a restart (KEP-1287); its `oom_score_adj` stays. By default the runtime
    /// refuses, and the pod says so in its condition `PodResizeInProgress`.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`], or what the kernel refuses, such as less memory than the container holds. The agent tries again.
    async fn resize(
        &self,
        _pod: &PodUid,
        _container: &str,
        _resources: &Resources,
    ) -> Result<(), RuntimeError> {
        Err(RuntimeError::Unsupported("resizing containers in place"))
    }

    /// Says which processors a container that runs may use from now on; everything else stays. Asked for on nodes with
    /// [managers](crate::managers), more than once for the same. By default the runtime refuses, and the agent tries again.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`], or processors that the machine does not have.
    async fn set_cpus(
        &self,
        _pod: &PodUid,
        _container: &str,
        _cpus: &crate::managers::CpuSet,
    ) -> Result<(), RuntimeError> {
        Err(RuntimeError::Unsupported("binding containers to processors"))
    }

    /// Frees what it can of the disks without ending anything: images that nobody uses. Asked when the node is short of disk space or
    /// inodes. Says whether anything may have become free; by default there is nothing to free.
    async fn reclaim(&self) -> bool {
        false
    }

    /// Whether an image is there. By default images are only names, and nobody has to fetch them.
    async fn image(&self, _image: &str) -> ImagePresence {
        ImagePresence::Unneeded
    }

    /// Fetches an image, whether it is there or not. `secrets` are the contents of the pod's pull secrets, in Docker's form. Gives
    /// the image's size in bytes. Never called when [`image`](Self::image) says that it is not needed.
    ///
    /// # Errors
    /// [`RuntimeError::Image`] or [`RuntimeError::ImageName`]; the agent tries again with back-off.
    async fn pull(&self, _image: &str, _secrets: &[Vec<u8>]) -> Result<u64, RuntimeError> {
        Err(RuntimeError::Unsupported("pulling images"))
    }

    /// Connects to a port of a pod: for probes and hooks to its address, and, when `local` is set, for port-forwarding as if from
    /// inside of it. By default that is the same, and a connection from this process to
    /// [`dial_address`](Self::dial_address).
    ///
    /// # Errors
    /// When nobody listens there.
    async fn connect(&self, _pod: &PodUid, address: SocketAddr, _local: bool) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.dial_address(address)).await
    }

    /// Where a connection to a pod's address really goes: the same address, unless the runtime had to listen elsewhere.
    fn dial_address(&self, address: SocketAddr) -> SocketAddr {
        address
    }
}

/// Whether a runtime has an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePresence {
    /// Images are only names to it.
    Unneeded,
    /// It has it.
    Present,
    /// It would have to be fetched.
    Absent,
}

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Until it succeeds, the other two don't run.
    Startup,
    /// The container is restarted when it fails.
    Liveness,
    /// The pod gets no traffic while it fails.
    Readiness,
}

const _: Option<&dyn ContainerRuntime> = None;
