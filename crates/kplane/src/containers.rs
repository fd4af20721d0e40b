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
    network::bridge::{BridgeNetwork, BridgeOptions, Overlay},
    policy::Cidr,
    proxy::nftables::{NftablesConfig, NftablesProxy},
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

use crate::network::CLUSTER_DOMAIN;

/// Where pods get their addresses with an OCI runtime.
pub const POD_RANGE: &str = "10.244.0.0/16";
/// The bridge between pods with an OCI runtime.
pub const BRIDGE: &str = "kplane0";
/// Addresses that a runtime wants to have and doesn't use while there is a network.
const UNUSED_RANGE: &str = "127.64.0.0/16";

/// Real containers for all nodes of a cluster: for [`ClusterBuilder::containers`](crate::ClusterBuilder::containers). Linux, as root.
///
/// With an OCI runtime pods are connected by a bridge of this machine, with a CRI server by whatever it is set up with. In both
/// cases Services are made by nftables, and the cluster's DNS and API are reached at the node's address.
#[derive(Clone, Debug)]
pub struct Containers {
    engine: Engine,
    dir: PathBuf,
    pod_range: String,
    bridge: String,
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
        Self {
            engine,
            dir,
            pod_range: POD_RANGE.to_owned(),
            bridge: BRIDGE.to_owned(),
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

    /// Where pods get their addresses with an OCI runtime: [`POD_RANGE`] by default. A CRI server has its own network, and the cluster
    /// does not start with this.
    #[must_use]
    pub fn pod_range(mut self, range: impl Into<String>) -> Self {
        if matches!(self.engine, Engine::Cri { .. }) {
            self.servers_own = Some("which addresses pods get");
        }
        self.pod_range = range.into();
        self
    }

    /// The name of the bridge between pods with an OCI runtime: [`BRIDGE`] by default. Of several clusters on a machine each needs one
    /// of its own, and a range.
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
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let range = Cidr::parse(&self.pod_range).ok_or_else(|| wrong("the range of pods is none"))?;
        let IpAddr::V4(first) = range.network else { return Err(wrong("the range of pods is not of IPv4")) };
        let mut address = own_address();
        let mut network = None;
        if self.connected {
            address = Ipv4Addr::from(first.to_bits().saturating_add(1)).into();
            let mut bridge = BridgeOptions::new(vec![range]);
            bridge.state_dir = self.dir.join("network");
            bridge.bridge.clone_from(&self.bridge);
            bridge.table = format!("{}-pods", self.bridge);
            bridge.overlay = Overlay::None;
            let made = Arc::new(BridgeNetwork::new(bridge).map_err(io::Error::other)?);
            // The bridge has the address that the API and DNS are served on, so it is there before the first pod.
            made.ready().await.map_err(io::Error::other)?;
            network = Some(made);
        }
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
        options.network = network.clone().map(|network| network as _);
        options.outlive = self.outlive;
        let runtime = Arc::new(OciRuntime::open(options).await?);
        let proxy = Arc::new(proxy(&self.bridge, vec![self.pod_range]));
        let parts = Parts::Oci { network };
        Ok(Opened { runtime, parts, proxy, address, dir: self.dir })
    }

    async fn open_cri(self, socket: PathBuf, clock: &Arc<dyn Clock>) -> io::Result<Opened> {
        if let Some(what) = self.servers_own {
            let why = format!("a CRI server decides itself {what}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let options = CriOptions::new(socket, self.dir.join("cri"), Arc::clone(clock));
        let server = Arc::new(CriRuntime::connect(options).await?);
        let runtime = Arc::clone(&server) as Arc<dyn ContainerRuntime>;
        let proxy = Arc::new(proxy(&self.bridge, Vec::new()));
        Ok(Opened { runtime, parts: Parts::Cri { server }, proxy, address: own_address(), dir: self.dir })
    }
}

fn proxy(name: &str, pod_ranges: Vec<String>) -> NftablesProxy {
    let mut config = NftablesConfig::default();
    config.table = format!("{name}-services");
    config.pod_ranges = pod_ranges;
    NftablesProxy::new(config)
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
    pub(crate) proxy: Arc<NftablesProxy>,
    /// The node's address, which pods reach.
    pub(crate) address: IpAddr,
    dir: PathBuf,
}

#[derive(Debug)]
enum Parts {
    Oci { network: Option<Arc<BridgeNetwork>> },
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

    /// Takes away what outlives the process: pods of a server, devices and rules.
    pub(crate) async fn end(&self) {
        let pods = self.runtime.pods();
        for pod in pods {
            if let Err(error) = self.runtime.remove_pod(&pod).await {
                tracing::warn!(%pod, %error, "a pod is left");
            }
        }
        if let Err(error) = self.proxy.remove().await {
            tracing::warn!(%error, "the rules of services are left");
        }
        match &self.parts {
            Parts::Oci { network: None } => {}
            Parts::Oci { network: Some(network) } => {
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
            (cri().without_network(), "a CRI server decides itself how pods are connected"),
            (cri().image("layout"), "a CRI server decides itself which images there are"),
        ] {
            assert_eq!(containers.open(&clock).await.unwrap_err().to_string(), expected);
        }
    }
}
