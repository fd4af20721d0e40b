//! Real containers for a cluster's nodes: what runs them, and the network between them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::PathBuf,
    sync::Arc,
};

use kcore::Clock;
use knet::{
    AddressRange, PodNetwork, Redirects,
    dns::{DnsServer, InformerZone, system_resolvers},
    network::{
        bridge::{BridgeNetwork, BridgeOptions, Overlay},
        cni::{CniNetwork, CniOptions},
    },
    policy::Cidr,
};
use kreconcile::Informers;
use kruntime::{
    ContainerRuntime,
    images::{ContentStore, Registry},
    runtime::{
        cri::{CriOptions, CriRuntime},
        oci::{OciOptions, OciRuntime},
    },
};

use crate::{network::CLUSTER_DOMAIN, services::Ground};

/// Where pods get their addresses with an OCI runtime.
pub const POD_RANGE: &str = "10.244.0.0/16";
/// The bridge between pods with an OCI runtime.
pub const BRIDGE: &str = "kplane0";
/// Addresses that a runtime wants to have and doesn't use while there is a network.
const UNUSED_RANGE: &str = "127.64.0.0/16";

/// Real containers for all nodes of a cluster: for [`ClusterBuilder::containers`](crate::ClusterBuilder::containers). Linux, as root.
///
/// With an OCI runtime pods are connected by a bridge of this machine or by CNI plug-ins, with a CRI server by whatever it is set up with.
/// Services are made by nftables unless [`service_proxy`](crate::ClusterBuilder::service_proxy) says otherwise, and the cluster's DNS and
/// API are reached at the node's address.
#[derive(Clone, Debug)]
pub struct Containers {
    engine: Engine,
    dir: PathBuf,
    pod_range: Option<String>,
    bridge: String,
    cni: Option<CniOptions>,
    images: Vec<PathBuf>,
    /// Whether the bridge connects pods of an OCI runtime.
    connected: bool,
    /// Whether pods of an OCI runtime go on when the process ends in order.
    outlive: bool,
    /// What was set that a CRI server decides itself.
    servers_own: Option<&'static str>,
}

#[derive(Clone, Debug)]
enum Engine {
    Oci { program: PathBuf },
    Cri { socket: PathBuf },
}

impl Containers {
    /// Containers by runc, with all that is kept of them and of images in this directory.
    #[must_use]
    pub fn oci(dir: impl Into<PathBuf>) -> Self {
        Self::new(Engine::Oci { program: "runc".into() }, dir.into())
    }

    /// Containers by a CRI server behind a socket, such as `/run/containerd/containerd.sock`; pods' files are in this directory.
    #[must_use]
    pub fn cri(socket: impl Into<PathBuf>, dir: impl Into<PathBuf>) -> Self {
        Self::new(Engine::Cri { socket: socket.into() }, dir.into())
    }

    fn new(engine: Engine, dir: PathBuf) -> Self {
        // Programs that are started for containers may be in another directory.
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        Self {
            engine,
            dir,
            pod_range: None,
            bridge: BRIDGE.to_owned(),
            cni: None,
            images: Vec::new(),
            connected: true,
            outlive: false,
            servers_own: None,
        }
    }

    /// The OCI runtime's program, a path or a name: `runc` by default. A CRI server has its own, and the cluster does not start with
    /// this.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        match &mut self.engine {
            Engine::Oci { program: old } => *old = program.into(),
            Engine::Cri { .. } => self.servers_own = Some("which OCI runtime is used"),
        }
        self
    }

    /// Where pods get their addresses with an OCI runtime: [`POD_RANGE`] by default. With [`cni`](Self::cni) the plug-ins decide that, and
    /// what is said here is whose traffic keeps its source on the way to Services: everybody's by default. A CRI server has its own
    /// network, and the cluster does not start with this.
    #[must_use]
    pub fn pod_range(mut self, range: impl Into<String>) -> Self {
        if matches!(self.engine, Engine::Cri { .. }) {
            self.servers_own = Some("which addresses pods get");
        }
        self.pod_range = Some(range.into());
        self
    }

    /// Connects pods by the plug-ins of the Container Network Interface instead of the built-in bridge, with an OCI runtime. The
    /// configuration has to be there when the cluster starts. The API and DNS are reached at the machine's own address. A CRI server has
    /// its own network, and the cluster does not start with this.
    #[must_use]
    pub fn cni(mut self, options: CniOptions) -> Self {
        if matches!(self.engine, Engine::Cri { .. }) {
            self.servers_own = Some("how pods are connected");
        }
        self.cni = Some(options);
        self
    }

    /// The name of the bridge between pods with an OCI runtime: [`BRIDGE`] by default. Tables of the kernel are named after it, too. Of
    /// several clusters on a machine each needs one of its own, and a range.
    #[must_use]
    pub fn bridge(mut self, name: impl Into<String>) -> Self {
        self.bridge = name.into();
        self
    }

    /// Connects the pods of an OCI runtime to nothing: each has a loopback device only, and is reached by probes, exec and port-forward.
    /// A CRI server has its own network, and the cluster does not start with this.
    #[must_use]
    pub fn without_network(mut self) -> Self {
        if matches!(self.engine, Engine::Cri { .. }) {
            self.servers_own = Some("how pods are connected");
        }
        self.connected = false;
        self
    }

    /// Lets the pods of an OCI runtime go on when the process ends in order, as a node agent's do.
    pub(crate) fn outliving(mut self) -> Self {
        self.outlive = true;
        self
    }

    /// Loads an image from an OCI layout or an archive before the first node starts, with an OCI runtime. A CRI server's images are
    /// loaded by its own tools, and the cluster does not start with this.
    #[must_use]
    pub fn image(mut self, path: impl Into<PathBuf>) -> Self {
        if matches!(self.engine, Engine::Cri { .. }) {
            self.servers_own = Some("which images there are");
        }
        self.images.push(path.into());
        self
    }

    /// Makes what has been chosen.
    pub(crate) async fn open(self, clock: &Arc<dyn Clock>) -> io::Result<Opened> {
        match self.engine.clone() {
            Engine::Oci { program } => self.open_oci(program, clock).await,
            Engine::Cri { socket } => self.open_cri(socket, clock).await,
        }
    }

    async fn open_oci(self, program: PathBuf, clock: &Arc<dyn Clock>) -> io::Result<Opened> {
        let (network, parts, address, pod_ranges) = match self.cni.clone() {
            _ if !self.connected => (None, Parts::Unconnected, own_address(), self.pod_range.clone()),
            Some(options) => {
                let network = Arc::new(CniNetwork::new(options));
                network.ready().await.map_err(io::Error::other)?;
                (Some(network as Arc<dyn PodNetwork>), Parts::Plugins, own_address(), self.pod_range.clone())
            }
            None => {
                let (bridge, range, address) = self.open_bridge().await?;
                (Some(Arc::clone(&bridge) as _), Parts::Bridge { network: bridge }, address, Some(range))
            }
        };
        let images =
            ContentStore::open(self.dir.join("images"), Arc::clone(clock)).map_err(io::Error::other)?;
        for path in &self.images {
            images.load(path, None).await.map_err(io::Error::other)?;
        }
        let unused: AddressRange = UNUSED_RANGE.parse().map_err(io::Error::other)?;
        let mut options =
            OciOptions::new(self.dir.join("containers"), images, Arc::new(unused), Arc::clone(clock));
        options.program = program;
        options.registry = Some(Registry::new(trusting_roots()?));
        options.network = network;
        options.outlive = self.outlive;
        let runtime = Arc::new(OciRuntime::open(options).await?);
        let ground =
            Ground { name: self.bridge, pod_ranges: pod_ranges.into_iter().collect(), ..Ground::default() };
        Ok(Opened { runtime, parts, ground, address, dir: self.dir })
    }

    /// The built-in network, the range of its pods, and its address.
    async fn open_bridge(&self) -> io::Result<(Arc<BridgeNetwork>, String, IpAddr)> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let text = self.pod_range.clone().unwrap_or_else(|| POD_RANGE.to_owned());
        let range = Cidr::parse(&text).ok_or_else(|| wrong("the range of pods is none"))?;
        let IpAddr::V4(first) = range.network else { return Err(wrong("the range of pods is not of IPv4")) };
        let gateway = Ipv4Addr::from(first.to_bits().saturating_add(1));
        let mut options = BridgeOptions::new(vec![range]);
        options.state_dir = self.dir.join("network");
        options.bridge.clone_from(&self.bridge);
        options.table = format!("{}-pods", self.bridge);
        options.overlay = Overlay::None;
        let network = Arc::new(BridgeNetwork::new(options).map_err(io::Error::other)?);
        // The bridge has the address that the API and DNS are served on, so it is there before the first pod.
        network.ready().await.map_err(io::Error::other)?;
        Ok((network, text, gateway.into()))
    }

    async fn open_cri(self, socket: PathBuf, clock: &Arc<dyn Clock>) -> io::Result<Opened> {
        if let Some(what) = self.servers_own {
            let why = format!("a CRI server decides itself {what}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let options = CriOptions::new(socket, self.dir.join("cri"), Arc::clone(clock));
        let server = Arc::new(CriRuntime::connect(options).await?);
        let runtime = Arc::clone(&server) as Arc<dyn ContainerRuntime>;
        let ground = Ground { name: self.bridge, ..Ground::default() };
        Ok(Opened { runtime, parts: Parts::Cri { server }, ground, address: own_address(), dir: self.dir })
    }
}

/// The address that this machine has towards others; the loopback address when it has none.
pub(crate) fn own_address() -> IpAddr {
    let ask = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // Nothing is sent: connecting chooses the way, and with it the address (RFC 5737 keeps this one free).
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    ask().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Whether the kernel shows the network layer what goes from pod to pod over one bridge. The bridge of this crate's own network has
/// each pod on a link of its own, so that there the question does not arise.
fn bridged_packets_are_seen() -> bool {
    let read = std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables");
    read.is_ok_and(|value| value.trim() == "1")
}

/// TLS that trusts whom the machine trusts. Without any such file only registries that speak plainly are reached.
fn trusting_roots() -> io::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// What a cluster has of its containers while it runs.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) runtime: Arc<dyn ContainerRuntime>,
    parts: Parts,
    pub(crate) ground: Ground,
    /// The node's address, which pods reach.
    pub(crate) address: IpAddr,
    dir: PathBuf,
}

#[derive(Debug)]
enum Parts {
    Bridge { network: Arc<BridgeNetwork> },
    Plugins,
    Unconnected,
    Cri { server: Arc<CriRuntime> },
}

impl Opened {
    /// Where the agents make volumes.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("volumes")
    }

    /// Starts the cluster's DNS server at the node's address.
    pub(crate) async fn dns(&self, informers: &Informers) -> io::Result<DnsServer> {
        let zone = Arc::new(InformerZone::new(informers));
        let address = (self.address, 53).into();
        DnsServer::start(address, CLUSTER_DOMAIN, zone, system_resolvers(), &Redirects::default()).await
    }

    /// What network policies can't do with this network, for people.
    pub(crate) fn policy_limitation(&self) -> Option<String> {
        let seen = matches!(self.parts, Parts::Bridge { .. }) || bridged_packets_are_seen();
        (!seen).then(|| {
            "network policies don't see what goes over one bridge: net.bridge.bridge-nf-call-iptables is not 1"
                .to_owned()
        })
    }

    /// Takes away what outlives the process: pods of a server, devices and rules.
    pub(crate) async fn end(&self) {
        let pods = self.runtime.pods();
        for pod in pods {
            if let Err(error) = self.runtime.remove_pod(&pod).await {
                tracing::warn!(%pod, %error, "a pod is left");
            }
        }
        match &self.parts {
            Parts::Plugins | Parts::Unconnected => {}
            Parts::Bridge { network } => {
                if let Err(error) = network.remove().await {
                    tracing::warn!(%error, "the pods' network is left");
                }
            }
            Parts::Cri { server } => tracing::debug!(server = server.info().version, "the server goes on"),
        }
    }
}

#[cfg(test)]
mod tests {
    use kcore::SystemClock;

    use super::*;

    #[tokio::test]
    async fn what_a_server_decides_itself_is_not_taken_in_silence() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let cri = || Containers::cri("/nowhere/socket", "/nowhere/state");
        for (containers, expected) in [
            (cri().program("crun"), "a CRI server decides itself which OCI runtime is used"),
            (cri().pod_range("10.0.0.0/16"), "a CRI server decides itself which addresses pods get"),
            (cri().cni(CniOptions::default()), "a CRI server decides itself how pods are connected"),
            (cri().without_network(), "a CRI server decides itself how pods are connected"),
            (cri().image("layout"), "a CRI server decides itself which images there are"),
        ] {
            assert_eq!(containers.open(&clock).await.unwrap_err().to_string(), expected);
        }
    }
}
