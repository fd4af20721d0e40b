//! What brings connections to the Services of a cluster, who may make them, and what is told of it.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use kcore::Clock;
use knet::{
    PolicyAgent, ProxyAgent, ServiceProxy,
    health::{HealthServer, ProxyHealth, ServiceHealth, ServiceHealthAgent},
    policy::nftables::{Existing, NftablesPolicies, NftablesPolicyConfig},
    proxy::{
        iptables::{IptablesConfig, IptablesProxy},
        ipvs::{IpvsConfig, IpvsProxy, Scheduler},
        nftables::{NftablesConfig, NftablesProxy},
    },
    rules::Place,
};
use kreconcile::Informers;

use crate::{builder::StartError, network::LocalNetwork};

/// Which of the built-in proxies brings connections to Services: upstream's `--proxy-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyMode {
    /// None: somebody else does it, or nobody.
    Disabled,
    /// Sockets of this process, without root: only where Services have loopback addresses, as with
    /// [`processes`](crate::ClusterBuilder::processes).
    Userspace,
    /// Maps in the kernel, by the program `nft`, as root.
    Nftables,
    /// Rules in the kernel, by the program `iptables-restore`, as root. The names of its chains are upstream's, so there can be one such
    /// proxy in a network namespace.
    Iptables,
    /// Virtual servers in the kernel, as root, which choose endpoints this way; and the program `nft` for what they can't do. One such
    /// proxy in a network namespace.
    Ipvs(Scheduler),
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "disabled",
            Self::Userspace => "userspace",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs(_) => "ipvs",
        })
    }
}

/// What kernel rules are made for: names that no other cluster has, and what is known of addresses.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    /// The names of tables begin with it.
    pub(crate) name: String,
    pub(crate) pod_ranges: Vec<String>,
    pub(crate) node_port_addresses: Vec<String>,
    /// Whether pods have loopback addresses.
    pub(crate) is_loopback: bool,
}

impl Default for Ground {
    fn default() -> Self {
        Self {
            name: "kplane".to_owned(),
            pod_ranges: Vec::new(),
            node_port_addresses: Vec::new(),
            is_loopback: false,
        }
    }
}

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct ServiceOptions {
    pub(crate) proxy: Option<Arc<dyn ServiceProxy>>,
    pub(crate) mode: Option<ProxyMode>,
    pub(crate) health: Option<SocketAddr>,
    pub(crate) policies: Option<Existing>,
}

/// Rules that outlive the process unless they are removed.
#[derive(Debug)]
enum Kernel {
    Nftables(Arc<NftablesProxy>),
    Iptables(Arc<IptablesProxy>),
    Ipvs(Arc<IpvsProxy>),
    Policies(Arc<NftablesPolicies>),
}

impl Kernel {
    async fn remove(&self) -> io::Result<()> {
        match self {
            Self::Nftables(proxy) => proxy.remove().await,
            Self::Iptables(proxy) => proxy.remove().await,
            Self::Ipvs(proxy) => proxy.remove().await,
            Self::Policies(policies) => policies.remove().await,
        }
    }
}

/// A node, as the proxy of its machine sees it.
#[derive(Clone, Debug)]
pub(crate) struct ServedNode {
    pub(crate) name: String,
    pub(crate) address: Option<IpAddr>,
}

/// What brings connections to Services while the cluster runs.
#[derive(Debug, Default)]
pub(crate) struct Services {
    kernel: Vec<Kernel>,
    proxy: Option<(Arc<dyn ServiceProxy>, String)>,
    health: Option<HealthServer>,
}

impl Services {
    /// Chooses the proxy and makes sure that it can work.
    ///
    /// # Errors
    /// When it can't.
    pub(crate) async fn open(
        options: &ServiceOptions,
        ground: &Ground,
        local: Option<&LocalNetwork>,
        nodes: &[ServedNode],
        default: ProxyMode,
    ) -> Result<Self, StartError> {
        let mut services = Self::default();
        if let Some(proxy) = &options.proxy {
            services.proxy = Some((Arc::clone(proxy), "custom".to_owned()));
            return Ok(services);
        }
        let mode = options.mode.unwrap_or(default);
        let failed = |source: io::Error| StartError::Proxy { mode, source };
        match mode {
            ProxyMode::Disabled => {}
            ProxyMode::Userspace => {
                let local = local.ok_or_else(|| {
                    failed(io::Error::other(
                        "it listens on the addresses of Services itself, so these have to be loopback addresses, \
                         as they are in a cluster of processes",
                    ))
                })?;
                let addresses = nodes.iter().filter_map(|node| node.address).collect();
                services.proxy = Some((Arc::new(local.proxy(addresses)), mode.to_string()));
            }
            ProxyMode::Nftables => {
                let proxy = Arc::new(nftables(ground));
                proxy.check().await.map_err(failed)?;
                if options.mode.is_some() {
                    left_behind("iptables", iptables(ground).remove().await);
                    left_behind("ipvs", ipvs(ground, Scheduler::default()).remove().await);
                }
                services.kernel.push(Kernel::Nftables(Arc::clone(&proxy)));
                services.proxy = Some((proxy, mode.to_string()));
            }
            ProxyMode::Iptables => {
                let proxy = Arc::new(iptables(ground));
                proxy.check().await.map_err(failed)?;
                left_behind("nftables", nftables(ground).remove().await);
                left_behind("ipvs", ipvs(ground, Scheduler::default()).remove().await);
                services.kernel.push(Kernel::Iptables(Arc::clone(&proxy)));
                services.proxy = Some((proxy, mode.to_string()));
            }
            ProxyMode::Ipvs(scheduler) => {
                let addresses = nodes.iter().filter_map(|node| node.address);
                let proxy = Arc::new(ipvs(&of_single(ground, addresses), scheduler));
                proxy.check().await.map_err(failed)?;
                left_behind("nftables", nftables(ground).remove().await);
                left_behind("iptables", iptables(ground).remove().await);
                services.kernel.push(Kernel::Ipvs(Arc::clone(&proxy)));
                services.proxy = Some((proxy, mode.to_string()));
            }
        }
        Ok(services)
    }

    /// The agents of the proxy and of its health check ports; none without a proxy.
    ///
    /// # Errors
    /// When the proxy's health can't be served where it was asked for.
    pub(crate) async fn agents(
        &mut self,
        options: &ServiceOptions,
        informers: &Informers,
        clock: &Arc<dyn Clock>,
        nodes: &[ServedNode],
    ) -> Result<Option<(ProxyAgent, ServiceHealthAgent)>, StartError> {
        let Some((proxy, mode)) = &self.proxy else {
            return match options.health {
                Some(_) => Err(StartError::ProxyHealth(io::Error::other("there is no service proxy"))),
                None => Ok(None),
            };
        };
        let health = Arc::new(ProxyHealth::new(Arc::clone(clock)));
        if let Some(address) = options.health {
            let server = HealthServer::start(address, Arc::clone(&health), mode.clone()).await;
            self.health = Some(server.map_err(StartError::ProxyHealth)?);
        }
        let mut by_address: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for node in nodes {
            if let Some(address) = node.address {
                by_address.entry(address).or_default().push(node.name.clone());
            }
        }
        let mut ports = ServiceHealthAgent::new(informers);
        for (address, names) in by_address {
            ports = ports.nodes(ServiceHealth::new(vec![address], Arc::clone(&health)), names);
        }
        let agent = ProxyAgent::new(informers, Arc::clone(proxy), Place::default()).health(health);
        Ok(Some((agent, ports)))
    }

    /// The agent that enforces NetworkPolicies.
    ///
    /// # Errors
    /// When they can't be enforced here.
    pub(crate) async fn policies(
        &mut self,
        existing: Existing,
        ground: &Ground,
        informers: &Informers,
    ) -> Result<PolicyAgent, StartError> {
        let mut config = NftablesPolicyConfig::default();
        config.table = format!("{}-policy", ground.name);
        config.existing = existing;
        let policies = Arc::new(NftablesPolicies::new(config));
        policies.check().await.map_err(StartError::Policies)?;
        self.kernel.push(Kernel::Policies(Arc::clone(&policies)));
        Ok(PolicyAgent::new(informers, policies, None))
    }

    /// Where the proxy's health is served.
    pub(crate) fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref().map(HealthServer::address)
    }

    /// Takes away what outlives the process.
    pub(crate) async fn end(&self) {
        for kernel in &self.kernel {
            if let Err(error) = kernel.remove().await {
                tracing::warn!(%error, ?kernel, "rules are left in the kernel");
            }
        }
    }
}

/// What another mode has left goes when this one is asked for, as with upstream's proxy. Where its program is missing there is nothing.
fn left_behind(mode: &str, removed: io::Result<()>) {
    if let Err(error) = removed {
        tracing::debug!(%error, mode, "the rules of another mode are not removed");
    }
}

fn nftables(ground: &Ground) -> NftablesProxy {
    let mut config = NftablesConfig::default();
    config.table = format!("{}-services", ground.name);
    config.pod_ranges.clone_from(&ground.pod_ranges);
    config.node_port_addresses.clone_from(&ground.node_port_addresses);
    config.loopback_endpoints = ground.is_loopback;
    NftablesProxy::new(config)
}

fn iptables(ground: &Ground) -> IptablesProxy {
    let mut config = IptablesConfig::default();
    config.pod_ranges.clone_from(&ground.pod_ranges);
    config.node_port_addresses.clone_from(&ground.node_port_addresses);
    config.loopback_endpoints = ground.is_loopback;
    IptablesProxy::new(config)
}

/// The same ground with the nodes' own addresses in place of their range, where that is of loopback addresses: these are the machine's without
/// being any device's, and a virtual server has one address.
fn of_single(ground: &Ground, addresses: impl Iterator<Item = IpAddr>) -> Ground {
    let mut ground = ground.clone();
    if ground.is_loopback {
        let single = |address: IpAddr| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
        ground.node_port_addresses = addresses.map(single).collect();
    }
    ground
}

fn ipvs(ground: &Ground, scheduler: Scheduler) -> IpvsProxy {
    let mut config = IpvsConfig::default();
    config.scheduler = scheduler;
    config.table = format!("{}-ipvs", ground.name);
    config.pod_ranges.clone_from(&ground.pod_ranges);
    config.node_port_addresses.clone_from(&ground.node_port_addresses);
    config.loopback_endpoints = ground.is_loopback;
    IpvsProxy::new(config)
}
