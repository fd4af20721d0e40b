//! A node's agent in a process of its own, as `kplane node` runs it: for a kplane cluster elsewhere, or any Kubernetes API server.
//!
//! It registers the node, brings its pods to life and answers the API server's requests for logs, exec, attach, port-forward and
//! statistics over TLS. Callers show a client certificate of [`NodeOptions::client_ca_pem`] or a bearer token that the API server
//! knows (TokenReview), and may do what the API server says (SubjectAccessReview); see [`kruntime::serve::access`].
//!
//! Everything that must outlive the process is in [`NodeOptions::dir`]. Real containers go on while no agent is there, and the next one
//! takes them over; processes end with their agent, and their pods' containers are started again.

mod identity;
mod join;
mod pairs;
mod renewal;
mod server;

use std::{collections::BTreeMap, io, net::IpAddr, net::SocketAddr, path::PathBuf, sync::Arc};

use k8s_openapi::{api::core::v1::Taint, apimachinery::pkg::api::resource::Quantity};
use kcore::{Clock, SystemClock};
use kreconcile::{Informers, Manager, Running, Start};
use kruntime::{
    ContainerRuntime, NodeAgent, NodeConfig,
    managers::{Machine, ManagerOptions, ManagersError, ResourceManagers},
    serve::access::Reviews,
};
use kube::Config;
use tokio::{net::TcpListener, sync::watch};

use self::identity::{Identity, Serving};
use crate::{
    ca::{CaError, ClientCertificates, Credentials, from_pem},
    defaults,
    network::{CLUSTER_DOMAIN, LocalNetwork},
    serve::Tasks,
};

pub use self::{
    identity::is_joined,
    join::{JOIN_WAIT_MAX, JoinError, join},
};

/// Where nodes are reached unless they say otherwise, as kubelets are.
pub const PORT: u16 = kapi::node::KUBELET_PORT;

/// What runs a node's containers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NodeRuntime {
    /// Nothing really runs.
    Simulated,
    /// Containers are processes of this user.
    Processes,
    /// Images, by an OCI runtime or a CRI server.
    #[cfg(all(feature = "containers", target_os = "linux"))]
    Containers(Box<crate::containers::Containers>),
    /// Something of one's own.
    Other(Arc<dyn ContainerRuntime>),
}

/// The certificate that a node shows to its callers.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum NodeCertificate {
    /// One that the node makes for itself and keeps in its directory: nobody can check it, and API servers by default don't.
    #[default]
    SelfMade,
    /// This one.
    Given(Credentials),
    /// One that the node asks the cluster for (`serverTLSBootstrap`; the signer `kubernetes.io/kubelet-serving`, whose requests
    /// somebody has to approve); a self-made one until it is there. It is kept, and renewed between 70 and 90 % of its life.
    Requested,
}

/// What a node is.
///
/// | field | default | upstream's name |
/// |---|---|---|
/// | `listen` | port 10250 at all addresses | `--address`, `--port` |
/// | `address` | the address that the machine has towards others | `--node-ip` |
/// | `client_ca_pem` | none: no certificate is believed | `--client-ca-file` |
/// | `certificate` | self-made | `--tls-cert-file`, `--rotate-server-certificates` |
/// | `rotate_certificates` | yes | `--rotate-certificates` (no by default, yes by kubeadm) |
/// | `reserved` | nothing | `--system-reserved`, `--kube-reserved` |
/// | `managers` | none | `--cpu-manager-policy`, `--memory-manager-policy`, `--topology-manager-policy` and their like |
/// | `evicts` | with real containers | `--eviction-hard` |
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The node's name.
    pub name: String,
    /// Where its API is served; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The address that others are told. `None`: found out; the one that is listened at, if that is one.
    pub address: Option<IpAddr>,
    /// What runs its containers.
    pub runtime: NodeRuntime,
    /// Where its state is kept: volumes, certificates, and what the runtime keeps. One for each node. With real containers, CSI drivers register
    /// by sockets in `volumes/plugins_registry` there.
    pub dir: PathBuf,
    /// A file or directory of pods that the node runs by itself. None by default.
    pub static_pods: Option<PathBuf>,
    /// Whose client certificates are believed. `None`: nobody's, so that the API server can't ask for anything unless it shows a
    /// token. The authority of a kubeconfig is not taken by itself, since it may sign certificates for others than clients.
    pub client_ca_pem: Option<String>,
    /// The certificate that the node shows.
    pub certificate: NodeCertificate,
    /// Whether the node renews the client certificate that it is known by, if that is one of its own (`system:node:NAME`): it asks for
    /// another one between 70 and 90 % of its life, keeps it in `dir` as `pki/kubelet-client-current.pem`, and uses it from the next
    /// request on. Of that one and the certificate it is started with, the one that was issued last counts. Yes by default.
    pub rotate_certificates: bool,
    /// The cluster's DNS servers. None by default.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain: `cluster.local` by default.
    pub cluster_domain: String,
    /// Labels beyond the well-known ones. What nodes may give themselves is limited by NodeRestriction.
    pub labels: BTreeMap<String, String>,
    /// The taints to register with.
    pub taints: Vec<Taint>,
    /// Whether pods are evicted when the machine is short of something. `None`: with real containers.
    pub evicts: Option<bool>,
    /// What is kept for the system of what the machine has. Nothing by default.
    pub reserved: BTreeMap<String, Quantity>,
    /// Who has processors alone, and whose memory is near to them, on this machine; see [`kruntime::managers`]. What is given is kept in `dir`.
    /// Nobody by default. Processes can't be bound to anything.
    pub managers: Option<ManagerOptions>,
}

impl NodeOptions {
    /// A node of this name with all defaults, whose containers are processes.
    #[must_use]
    pub fn new(name: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            listen: SocketAddr::from(([0, 0, 0, 0], PORT)),
            address: None,
            runtime: NodeRuntime::Processes,
            dir: dir.into(),
            static_pods: None,
            client_ca_pem: None,
            certificate: NodeCertificate::default(),
            rotate_certificates: true,
            cluster_dns: Vec::new(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            evicts: None,
            reserved: BTreeMap::new(),
            managers: None,
        }
    }
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The way to the API server makes no sense.
    #[error("the API server can't be reached like this")]
    Client(#[source] kube::Error),
    /// The node's directory can't be used.
    #[error("{} can't be used", path.display())]
    Dir {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime can't be used.
    #[error("the runtime can't be used")]
    Runtime(#[source] io::Error),
    /// The address can't be listened on.
    #[error("{address} can't be listened on")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate can't be made or used.
    #[error(transparent)]
    Certificate(#[from] CaError),
    /// The managers of processors and memory can't do what they are asked for.
    #[error(transparent)]
    Managers(#[from] ManagersError),
    /// It can't be found out what the machine is made of.
    #[error("it can't be found out what the machine is made of")]
    Machine(#[source] io::Error),
    /// A text holds no certificate or key.
    #[error("the serving certificate or the authority for clients holds no certificate or key in PEM")]
    Pem,
}

/// A node's agent that runs. Dropping it ends it; [`stop`](Self::stop) does so in order.
pub struct Node {
    address: SocketAddr,
    notes: Vec<String>,
    running: Option<Running>,
    tasks: Tasks,
    /// The addresses and directories of processes; dropped last.
    _local: Option<LocalNetwork>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.stop.cancel();
    }
}

/// A runtime, and what belongs to it.
struct Opened {
    runtime: Arc<dyn ContainerRuntime>,
    local: Option<LocalNetwork>,
    address: IpAddr,
    is_real: bool,
}

async fn open(options: &NodeOptions, clock: &Arc<dyn Clock>) -> io::Result<Opened> {
    let plain = |runtime, address| Opened { runtime, local: None, address, is_real: false };
    let loopback = IpAddr::from([127, 0, 0, 1]);
    match &options.runtime {
        NodeRuntime::Simulated => Ok(plain(defaults::runtime(clock), loopback)),
        NodeRuntime::Other(runtime) => Ok(plain(Arc::clone(runtime), loopback)),
        NodeRuntime::Processes => {
            let local = LocalNetwork::claim()?;
            let runtime = Arc::new(local.runtime(clock)?);
            Ok(Opened { runtime, address: local.node_address(1), local: Some(local), is_real: false })
        }
        #[cfg(all(feature = "containers", target_os = "linux"))]
        NodeRuntime::Containers(containers) => {
            let opened = containers.as_ref().clone().outliving().open(clock).await?;
            let address = crate::containers::own_address();
            Ok(Opened { runtime: opened.runtime, local: None, address, is_real: true })
        }
    }
}

/// What the machine has, as upstream's kubelet reports it; what can't be found out stays as it is.
#[cfg(target_os = "linux")]
async fn measure(config: &mut NodeConfig, dir: &std::path::Path) {
    use kruntime::{
        eviction::Signal,
        signals::{MachineSignals, NodeSignals as _},
    };
    let figures = MachineSignals::new(dir).figures().await;
    let mut set = |name: &str, amount: u64| {
        config.capacity.insert(name.to_owned(), Quantity(amount.to_string()));
    };
    if let Ok(cpus) = std::thread::available_parallelism() {
        set("cpu", u64::try_from(cpus.get()).unwrap_or(1));
    }
    for (name, signal) in [("memory", Signal::Memory), ("ephemeral-storage", Signal::NodeFs)] {
        if let Some(figure) = figures.get(&signal) {
            set(name, figure.capacity);
        }
    }
}

impl Node {
    /// Starts the agent of a node of the cluster that `config` leads to. The API server need not be there yet.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn start(config: Config, options: NodeOptions) -> Result<Self, NodeError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let in_dir = |name: &str| {
            let path = options.dir.join(name);
            let made = std::fs::create_dir_all(&path);
            made.map(|()| path.clone()).map_err(|source| NodeError::Dir { path, source })
        };
        let (volumes, certificates) = (in_dir("volumes")?, in_dir("pki")?);
        let rotates = options.rotate_certificates;
        let identity = Identity::open(config, &certificates, &options.name, clock.now(), rotates);
        let Identity { client, renewal } = identity.map_err(NodeError::Client)?;
        let opened = open(&options, &clock).await.map_err(NodeError::Runtime)?;
        let listened = Some(options.listen.ip()).filter(|ip| !ip.is_unspecified());
        let told = options.address.or(listened).unwrap_or(opened.address);
        let failed = |source| NodeError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;

        let mut node = NodeConfig::new(&*options.name, Arc::clone(&opened.runtime));
        #[cfg(target_os = "linux")]
        if !matches!(options.runtime, NodeRuntime::Simulated) {
            measure(&mut node, &options.dir).await;
            if options.evicts.unwrap_or(opened.is_real) {
                let signals = kruntime::signals::MachineSignals::new(&options.dir);
                node.eviction = Some(kruntime::eviction::EvictionOptions::new(Arc::new(signals)));
            }
        }
        node.reserved = options.reserved.clone();
        if let Some(managers) = options.managers.clone() {
            let machine = Machine::read("/".as_ref()).map_err(NodeError::Machine)?;
            let dir = Some(options.dir.clone());
            node.managers =
                Some(Arc::new(ResourceManagers::open(machine, managers, &node.reservation(), dir)?));
        }
        node.addresses = vec![told];
        node.kubelet_port = address.port().into();
        node.state_dir = Some(volumes);
        node.static_pods = options.static_pods.clone();
        // A runtime of the embedder's own may have other users.
        node.owns_runtime = !matches!(options.runtime, NodeRuntime::Other(_));
        // What a plug-in mounts is seen by real containers alone.
        node.plugins = cfg!(all(feature = "containers", target_os = "linux")) && opened.is_real;
        node.cluster_dns = options.cluster_dns.clone();
        node.cluster_domain = options.cluster_domain.clone();
        node.labels = options.labels.clone();
        node.taints = options.taints.clone();
        let notes = opened.runtime.info().limitations;

        let serving = matches!(options.certificate, NodeCertificate::Requested)
            .then(|| Serving::new(client.clone(), &options.name, told, &certificates));
        let issued = serving.as_ref().and_then(|serving| serving.current(clock.now()));
        let shown = match (&options.certificate, &issued) {
            (NodeCertificate::Given(credentials), _) | (_, Some((_, credentials))) => credentials.clone(),
            _ => join::self_made(&certificates, &options.name, told)
                .map_err(|source| NodeError::Dir { path: certificates, source })?,
        };
        let authority = options.client_ca_pem.clone();
        let make = move |shown: &Credentials| -> Result<rustls::ServerConfig, NodeError> {
            let config = from_pem(shown, &[], authority.as_deref(), ClientCertificates::Optional)?;
            let mut config = config.ok_or(NodeError::Pem)?;
            // Connections are turned into others, which HTTP/2 can't.
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(config)
        };
        let (config, configs) = watch::channel(Arc::new(make(&shown)?));
        let tasks = Tasks::default();
        if let Some(serving) = serving {
            let show = move |issued: &Credentials| {
                config.send_replace(Arc::new(make(issued)?));
                Ok(())
            };
            tasks.spawn(serving.run(Arc::clone(&clock), issued.map(|(leaf, _)| leaf), show));
        }
        if let Some(renewal) = renewal {
            tasks.spawn(renewal.run(Arc::clone(&clock)));
        }

        let reviews = Arc::new(Reviews::new(client.clone()));
        let informers = Informers::new(client);
        let agent = NodeAgent::new(&informers, clock, [node]);
        let manager = Manager::new().add(Start::Always, agent.clone()).informers(&informers);
        let running = Some(manager.start());
        tasks.spawn(server::listen(agent, options.name.into(), listener, configs, reviews, tasks.clone()));
        Ok(Self { address, notes, running, tasks, _local: opened.local })
    }

    /// Where the node's API is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the node can't do on this machine, for people.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Ends the agent. Pods of real containers go on, and the Node stays, as when a kubelet is stopped.
    pub async fn stop(mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
        self.tasks.stop.cancel();
        self.tasks.tracker.close();
        self.tasks.tracker.wait().await;
    }
}
