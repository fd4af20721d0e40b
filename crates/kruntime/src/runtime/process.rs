//! Containers as processes of the user who runs the cluster: no root, no images, no daemon.
//!
//! Each pod has an address of the loopback network. Its processes are told so by nobody: where the kernel allows it,
//! their `bind` of 0.0.0.0 and of localhost, and their `connect` to localhost, are moved there (seccomp user
//! notification), and volumes, `/etc/resolv.conf` and the host name are put in place by namespaces, with or without
//! root. Where it doesn't, [`RuntimeInfo::limitations`] says so, and pods run without.
//!
//! Processes see the machine's other processes and its network, and may do what the user may: this runtime keeps pods
//! from being in each other's way, not from doing harm.

use std::{
    collections::HashMap,
    ffi::CString,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use kcore::Clock;
use knet::{IpAllocator, Redirects, Transport};

use super::{
    ChangeStream, ContainerConfig, ContainerPhase, ContainerReading, ContainerRuntime, ExecRequest,
    LogOptions, LogStream, ObservedContainer, ObservedPod, PodUid, RuntimeError, RuntimeInfo, SandboxConfig,
    Session, changes::Changes, output::attach,
};
use crate::{
    images::ImageStore,
    logs::{self, FILE_BYTES_MAX},
};

mod allowed;
mod confine;
mod container;
pub(super) mod launch;
mod mounts;
mod session;
mod setup;
mod supervise;
pub(super) mod tree;
mod usage;

use allowed::{Allowed, Mounting};
use container::Container;
use launch::{Launcher, write_text};

/// What a [`ProcessRuntime`] is made of.
#[derive(Clone, Debug)]
pub struct ProcessOptions {
    /// A directory of the runtime's own: logs, host files, termination messages. Made if it isn't there.
    pub dir: PathBuf,
    /// Where pods get their addresses: a range of 127.0.0.0/8 that nobody else on the machine uses.
    pub addresses: Arc<dyn IpAllocator>,
    /// What images stand for.
    pub images: Arc<dyn ImageStore>,
    /// Addresses that are served elsewhere; shared with the service proxy.
    pub redirects: Redirects,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whether `bind` and `connect` are moved to the pod's address, where the kernel allows it.
    pub rewrite: bool,
    /// Whether volumes are mounted, where the kernel allows it.
    pub mount: bool,
    /// Handlers of RuntimeClasses whose pods are taken, too; all run the same way. None by default.
    pub handlers: Vec<String>,
}

impl ProcessOptions {
    /// Options that know no image and redirect nothing.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, addresses: Arc<dyn IpAllocator>, clock: Arc<dyn Clock>) -> Self {
        Self {
            dir: dir.into(),
            addresses,
            images: Arc::new(std::collections::BTreeMap::new()),
            redirects: Redirects::default(),
            clock,
            rewrite: true,
            mount: true,
            handlers: Vec::new(),
        }
    }
}

/// The runtime whose containers are processes. Dropping it kills them all.
#[derive(Debug)]
pub struct ProcessRuntime {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: ProcessOptions,
    allowed: Allowed,
    launcher: Launcher,
    pods: Mutex<HashMap<PodUid, Arc<Pod>>>,
    changes: Arc<Changes>,
}

/// A pod's sandbox.
#[derive(Debug)]
struct Pod {
    config: SandboxConfig,
    address: Ipv4Addr,
    /// Whether the address is the pod's own, to be given back.
    own_address: bool,
    dir: PathBuf,
    containers: Mutex<Vec<Arc<Container>>>,
    /// What runs by `exec`.
    programs: Mutex<Vec<std::sync::Weak<tree::Program>>>,
}

impl Pod {
    fn containers(&self) -> MutexGuard<'_, Vec<Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Option<Arc<Container>> {
        self.containers().iter().find(|container| *container.name == *name).cloned()
    }

    fn running(&self, name: &str) -> Result<Arc<Container>, RuntimeError> {
        self.find(name)
            .filter(|container| container.is_running())
            .ok_or_else(|| RuntimeError::NotRunning(name.to_owned()))
    }

    fn kill_all(&self) {
        self.containers().iter().for_each(|container| container.kill());
        let programs = std::mem::take(&mut *self.programs.lock().unwrap_or_else(PoisonError::into_inner));
        programs.iter().filter_map(std::sync::Weak::upgrade).for_each(|program| program.kill());
    }
}

impl ProcessRuntime {
    /// Makes the runtime and finds out what the machine allows.
    ///
    /// # Errors
    /// When its directory can't be made.
    pub fn new(options: ProcessOptions) -> io::Result<Self> {
        std::fs::create_dir_all(options.dir.join("pods"))?;
        let base = options.dir.join("base");
        std::fs::create_dir_all(&base)?;
        let allowed = Allowed::find_out(&base, options.rewrite, options.mount);
        let shared = Shared {
            options,
            allowed,
            launcher: Launcher::new()?,
            pods: Mutex::default(),
            changes: Arc::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether the pods' `bind` and `connect` are moved to their own addresses.
    #[must_use]
    pub fn rewrites(&self) -> bool {
        self.shared.allowed.rewrite
    }

    /// Whether volumes are mounted where the pods want them.
    #[must_use]
    pub fn mounts(&self) -> bool {
        self.shared.allowed.mounting != Mounting::None
    }
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        for (_, pod) in self.shared.pods().drain() {
            pod.kill_all();
            pod.containers().iter().for_each(|container| container.end());
        }
    }
}

impl Shared {
    fn pods(&self) -> MutexGuard<'_, HashMap<PodUid, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pod(&self, uid: &PodUid) -> Result<Arc<Pod>, RuntimeError> {
        self.pods().get(uid).cloned().ok_or_else(|| RuntimeError::PodNotFound(uid.clone()))
    }

    fn base(&self) -> PathBuf {
        self.options.dir.join("base")
    }

    /// The sandbox's files: the hosts file, the resolver's configuration and the host name.
    fn prepare(&self, config: &SandboxConfig, dir: &Path, address: Ipv4Addr) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let mut hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}");
        if let Some(fqdn) = &config.fqdn {
            hosts.push_str(&format!("\t{fqdn}"));
        }
        hosts.push_str(&format!("\t{}\n", config.hostname));
        for (ip, names) in &config.host_aliases {
            hosts.push_str(&format!("{ip}\t{}\n", names.join("\t")));
        }
        write_text(&dir.join("hosts"), &hosts)?;
        write_text(&dir.join("hostname"), &format!("{}\n", config.hostname))?;
        match &config.resolv_conf {
            Some(text) => write_text(&dir.join("resolv.conf"), text),
            None => Ok(()),
        }
    }

    /// A node port or a probe may ask for any address; only those of pods are known here.
    fn dial(&self, address: SocketAddr) -> SocketAddr {
        self.options.redirects.resolve(Transport::Tcp, address)
    }
}

/// A name that is fit for a path, whatever is in it.
fn file_name(text: &str) -> String {
    text.chars().map(|c| if c == '/' || c == '\0' { '_' } else { c }).collect()
}

pub(super) fn c_string(path: &Path) -> Result<CString, RuntimeError> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| RuntimeError::Config(format!("{} has a zero byte in it", path.display())))
}

#[async_trait]
impl ContainerRuntime for ProcessRuntime {
    fn info(&self) -> RuntimeInfo {
        RuntimeInfo {
            version: concat!("process://", env!("CARGO_PKG_VERSION")).to_owned(),
            materialises: true,
            limitations: self.shared.allowed.limitations.clone(),
            handlers: self.shared.options.handlers.clone(),
        }
    }

    async fn run_pod(&self, uid: &PodUid, config: &SandboxConfig) -> Result<Vec<IpAddr>, RuntimeError> {
        super::check_handler(&config.runtime_handler, &self.shared.options.handlers)?;
        if let Ok(pod) = self.shared.pod(uid) {
            return Ok(vec![pod.address.into()]);
        }
        let own_address = !config.host_network;
        let address = if own_address {
            match self.shared.options.addresses.allocate(None) {
                Ok(IpAddr::V4(address)) => address,
                Ok(IpAddr::V6(_)) => return Err(RuntimeError::Config("pods need IPv4 addresses".to_owned())),
                Err(error) => return Err(RuntimeError::Create(format!("no address for the pod: {error}"))),
            }
        } else {
            Ipv4Addr::LOCALHOST
        };
        let name = format!("{}_{}_{uid}", file_name(&config.namespace), file_name(&config.name));
        let dir = self.shared.options.dir.join("pods").join(name);
        if let Err(error) = self.shared.prepare(config, &dir, address) {
            if own_address {
                self.shared.options.addresses.release(address.into());
            }
            return Err(RuntimeError::Io { context: "making the pod's directory", source: error });
        }
        let pod = Pod {
            config: config.clone(),
            address,
            own_address,
            dir,
            containers: Mutex::default(),
            programs: Mutex::default(),
        };
        self.shared.pods().insert(uid.clone(), Arc::new(pod));
        Ok(vec![address.into()])
    }

    async fn start(&self, uid: &PodUid, config: &ContainerConfig) -> Result<(), RuntimeError> {
        let pod = self.shared.pod(uid)?;
        let previous = pod.find(&config.name);
        let container = container::start(&self.shared, uid, &pod, config, previous.as_deref()).await?;
        let mut containers = pod.containers();
        match containers.iter_mut().find(|known| known.name == config.name) {
            Some(known) => *known = container,
            None => containers.push(container),
        }
        drop(containers);
        // A pod that was removed in the meantime has no place for it.
        if self.shared.pod(uid).is_err() {
            pod.kill_all();
            return Err(RuntimeError::PodNotFound(uid.clone()));
        }
        Ok(())
    }

    /// A process is not held to any shares, neither at its start nor here.
    async fn resize(
        &self,
        uid: &PodUid,
        name: &str,
        _resources: &super::Resources,
    ) -> Result<(), RuntimeError> {
        self.shared.pod(uid)?.running(name).map(drop)
    }

    async fn stop(&self, uid: &PodUid, name: &str, grace: Duration) -> Result<(), RuntimeError> {
        let Some(container) = self.shared.pod(uid).ok().and_then(|pod| pod.find(name)) else { return Ok(()) };
        container.stop(grace).await;
        Ok(())
    }

    async fn remove_pod(&self, uid: &PodUid) -> Result<(), RuntimeError> {
        let Some(pod) = self.shared.pods().remove(uid) else { return Ok(()) };
        pod.kill_all();
        let containers: Vec<_> = pod.containers().drain(..).collect();
        for container in containers {
            container.ended().await;
        }
        if pod.own_address {
            self.shared.options.redirects.remove_host(pod.address.into());
            self.shared.options.addresses.release(pod.address.into());
        }
        match tokio::fs::remove_dir_all(&pod.dir).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RuntimeError::Io { context: "removing the pod's directory", source: error })
            }
            _ => Ok(()),
        }
    }

    fn observe(&self, uid: &PodUid) -> ObservedPod {
        let Ok(pod) = self.shared.pod(uid) else { return ObservedPod::default() };
        let containers = pod.containers();
        let containers = containers.iter().map(|container| container.observe()).collect();
        ObservedPod { addresses: Some(vec![pod.address.into()]), containers }
    }

    fn pods(&self) -> Vec<PodUid> {
        self.shared.pods().keys().cloned().collect()
    }

    fn changes(&self) -> ChangeStream {
        self.shared.changes.subscribe()
    }

    async fn usage(&self, pods: &[PodUid]) -> Vec<(PodUid, Vec<ContainerReading>)> {
        let programs = |pod: &Pod| -> Vec<(Arc<str>, libc::pid_t)> {
            let containers = pod.containers();
            let running = containers.iter().filter(|container| container.is_running());
            running.filter_map(|container| Some((Arc::clone(&container.name), container.pid()?))).collect()
        };
        let known: Vec<_> = {
            let all = self.shared.pods();
            pods.iter().filter_map(|uid| Some((uid.clone(), programs(all.get(uid)?)))).collect()
        };
        // The files of all processes of the machine: not on the event loop.
        tokio::task::spawn_blocking(move || {
            let processes = usage::Processes::read();
            let read = |(name, pid): (Arc<str>, libc::pid_t)| {
                let (cpu, memory_bytes) = processes.below(pid);
                ContainerReading { name, cpu, memory_bytes }
            };
            known.into_iter().map(|(uid, programs)| (uid, programs.into_iter().map(read).collect())).collect()
        })
        .await
        .unwrap_or_default()
    }

    async fn exec(&self, uid: &PodUid, name: &str, request: ExecRequest) -> Result<Session, RuntimeError> {
        let pod = self.shared.pod(uid)?;
        let container = pod.running(name)?;
        session::exec(&self.shared, &pod, &container, request).await
    }

    async fn attach(&self, uid: &PodUid, name: &str) -> Result<Session, RuntimeError> {
        Ok(attach(self.shared.pod(uid)?.running(name)?.streams()))
    }

    async fn logs(&self, uid: &PodUid, name: &str, options: LogOptions) -> Result<LogStream, RuntimeError> {
        let missing = || RuntimeError::NotRunning(name.to_owned());
        let container = self.shared.pod(uid)?.find(name).ok_or_else(missing)?;
        let attempt = options.attempt.unwrap_or(container.attempt);
        let path = container.log_path(attempt);
        let progress = if attempt == container.attempt {
            container.progress()
        } else {
            let finished = logs::Progress { finished: true, ..logs::Progress::default() };
            tokio::sync::watch::channel(finished).1
        };
        logs::read(path, &options, progress).await.map_err(RuntimeError::io("opening the container's log"))
    }

    fn dial_address(&self, address: SocketAddr) -> SocketAddr {
        self.shared.dial(address)
    }
}

impl Container {
    fn is_running(&self) -> bool {
        matches!(self.observe().phase, ContainerPhase::Running { .. })
    }

    fn observe(&self) -> ObservedContainer {
        ObservedContainer {
            image_id: None,
            name: Arc::clone(&self.name),
            id: self.id.clone(),
            attempt: self.attempt,
            phase: self.phase(),
        }
    }
}

/// Where the logs of a container's starts are.
fn log_path(dir: &Path, attempt: u32) -> PathBuf {
    dir.join(format!("{attempt}.log"))
}

const LOG_BYTES_MAX: u64 = FILE_BYTES_MAX;
