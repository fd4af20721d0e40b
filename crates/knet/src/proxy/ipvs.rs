//! The proxy in the kernel by IPVS, its balancer of connections, as upstream's kube-proxy has it in its mode of the same name.
//!
//! Each address and port of a Service is a virtual server, its endpoints are real servers, and one of eleven [`Scheduler`]s chooses among
//! them. For the kernel to take the connections, the addresses are given to a device that leads nowhere, `kube-ipvs0`; node ports are
//! virtual servers at the node's own addresses. Virtual servers are changed by generic netlink, the device by rtnetlink, and a change of
//! one Service costs that Service alone.
//!
//! IPVS itself only rewrites destinations. Whose source is rewritten, who may come, and what is refused is said by a table of nftables
//! with sets of addresses and ports, where upstream has the same sets as ipsets and rules of iptables that ask them.
//!
//! What differs from other proxies is upstream's, too:
//! - An endpoint that goes gets no new connections, and is taken out when it has no more of them; this is looked at each minute. What
//!   clients stay with by session affinity ends at once.
//! - Each virtual server has one list of endpoints. So where a Service has only local endpoints for traffic from outside, pods of the node
//!   that ask its external addresses get those, too. When there are none, they get those of the cluster; who comes from outside is
//!   dropped then.
//! - When a Service is deleted, its connections end.
//! - All virtual servers of the network namespace are the proxy's, but those in [`IpvsConfig::exclude`].
//!
//! The settings of the kernel that IPVS needs for this (connection tracking, forwarding, what becomes of connections to servers that are
//! gone) are set with the first table, and stay. Behind load balancers that announce addresses by ARP set
//! [`IpvsConfig::strict_arp`]: otherwise each node answers for the addresses of `kube-ipvs0`.

mod device;
mod filter;
mod kernel;
mod scheduler;
mod servers;
mod state;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

pub use self::scheduler::{Scheduler, UnknownScheduler};
use self::{
    kernel::Kernel,
    servers::Key,
    state::{Change, State},
};
use super::{RuleError, ServiceProxy, SyncError, conntrack};
use crate::{
    nft::{self, Transactions},
    policy::Cidr,
    program,
    redirect::Transport,
    rules::Table,
};

/// How often endpoints that have gone are looked at (upstream's `rsCheckDeleteInterval`).
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How many errors of one call are told.
const ERRORS_MAX: usize = 100;

/// What can be set, with its defaults. In brackets are the flags of upstream's proxy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct IpvsConfig {
    /// How an endpoint is chosen (`--ipvs-scheduler`). Default: round robin.
    pub scheduler: Scheduler,
    /// The virtual servers of others: those whose address is in these ranges are left alone (`--ipvs-exclude-cidrs`). Default: none.
    pub exclude: Vec<String>,
    /// Whether the node answers ARP for an address only on the device that has it (`--ipvs-strict-arp`): sets `arp_ignore` to 1 and
    /// `arp_announce` to 2. Default: no.
    pub strict_arp: bool,
    /// After how long without a packet a TCP connection is forgotten (`--ipvs-tcp-timeout`). Default: the kernel's, 15 minutes.
    pub tcp_timeout: Option<Duration>,
    /// The same after an end of it was closed (`--ipvs-tcpfin-timeout`). Default: the kernel's, two minutes.
    pub tcp_fin_timeout: Option<Duration>,
    /// The same for UDP (`--ipvs-udp-timeout`). Default: the kernel's, five minutes.
    pub udp_timeout: Option<Duration>,
    /// The device that has the Services' addresses. Default: `kube-ipvs0`, as upstream's.
    pub device: String,
    /// The name of the table of nftables, in both families. Default: `kplane-ipvs`.
    pub table: String,
    /// The bit of a packet's mark that says that its source is to be rewritten. Default: `0x4000`, as upstream's.
    pub masquerade_mark: u32,
    /// The ranges that pods have their addresses from: traffic to cluster IPs that comes from elsewhere gets the node's address as
    /// source (`--cluster-cidr`). Default: none, and such traffic keeps its source unless it is the node's own.
    pub pod_ranges: Vec<String>,
    /// The ranges of the node's addresses that serve node ports (`--nodeport-addresses`). Default: none, which means all but the
    /// loopback ones. A range of a single address needs not be that of a device.
    pub node_port_addresses: Vec<String>,
    /// Whether endpoints may have loopback addresses, as pods that are processes have: what goes there keeps its source, since the kernel finds
    /// no other address for it, and answers come back here in any case. Default: no, as with upstream.
    pub loopback_endpoints: bool,
    /// The program that changes the rules. Default: `nft`.
    pub nft: PathBuf,
    /// The program that ends UDP flows. Default: `conntrack`.
    pub conntrack: PathBuf,
    /// The program that loads IPVS where it isn't yet. Default: `modprobe`.
    pub modprobe: PathBuf,
}

impl Default for IpvsConfig {
    fn default() -> Self {
        Self {
            scheduler: Scheduler::default(),
            exclude: Vec::new(),
            strict_arp: false,
            tcp_timeout: None,
            tcp_fin_timeout: None,
            udp_timeout: None,
            device: "kube-ipvs0".to_owned(),
            table: "kplane-ipvs".to_owned(),
            masquerade_mark: 0x4000,
            pod_ranges: Vec::new(),
            node_port_addresses: Vec::new(),
            loopback_endpoints: false,
            nft: "nft".into(),
            conntrack: "conntrack".into(),
            modprobe: "modprobe".into(),
        }
    }
}

impl IpvsConfig {
    /// What is no range would be passed over, and so the servers of others taken away.
    fn check_ranges(&self) -> io::Result<()> {
        super::check_ranges(self.exclude.iter().chain(&self.pod_ranges).chain(&self.node_port_addresses))
    }

    /// Whether an address is one of those that are left alone.
    fn is_excluded(&self, address: IpAddr) -> bool {
        self.exclude.iter().filter_map(|range| Cidr::parse(range)).any(|range| range.contains(address))
    }
}

/// The IPVS proxy. What it has made stays when it is dropped, so that a restart interrupts nobody; [`remove`](Self::remove) takes it away.
/// One proxy in a network namespace.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use knet::{proxy::{ServiceProxy, ipvs::{IpvsConfig, IpvsProxy, Scheduler}}, rules::Table};
/// let mut config = IpvsConfig::default();
/// config.scheduler = Scheduler::LeastConnection;
/// let proxy = IpvsProxy::new(config);
/// proxy.check().await?;
/// proxy.sync(&Table::default()).await?;
/// proxy.remove().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct IpvsProxy {
    shared: Arc<Shared>,
    /// Looks at endpoints that have gone, from the first table on.
    sweeper: std::sync::OnceLock<AbortOnDropHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    config: IpvsConfig,
    transactions: Transactions,
    /// What the kernel has, and the way there.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kernel: Kernel,
    /// `None` when what the kernel has is not known.
    state: Option<State>,
}

impl IpvsProxy {
    /// A proxy with these settings.
    #[must_use]
    pub fn new(config: IpvsConfig) -> Self {
        Self { shared: Arc::new(Shared { config, ..Shared::default() }), ..Self::default() }
    }

    /// Takes away all that it has made: rules, the device, and virtual servers, also those of a proxy before it. Where there is no such
    /// device nobody has been, and virtual servers are left alone. The kernel's settings stay as they are.
    ///
    /// # Errors
    /// When the kernel or `nft` refuses.
    pub async fn remove(&self) -> io::Result<()> {
        let Shared { config, transactions, inner } = &*self.shared;
        let mut inner = inner.lock().await;
        inner.state = None;
        transactions.run(&config.nft, &filter::removal(config)).await?;
        inner.kernel.remove(config)
    }

    /// Whether it can work here. Nothing of what it does to find out stays.
    ///
    /// # Errors
    /// When a range of the settings is none, the kernel has no IPVS or not this scheduler, `nft` is not there, or the right to change the network is lacking.
    pub async fn check(&self) -> io::Result<()> {
        let Shared { config, inner, .. } = &*self.shared;
        config.check_ranges()?;
        nft::check(&config.nft).await?;
        let mut inner = inner.lock().await;
        if inner.kernel.open().is_err() {
            // When it fails, the kernel says again what it lacks.
            let _ = program::run(&config.modprobe, ["ip_vs"], "").await;
            inner.kernel.open()?;
        }
        inner.kernel.probe(config)
    }

    /// Looks at the endpoints that have gone and takes those out that have no more connections; says how many are left. This is done by
    /// itself each minute.
    ///
    /// # Errors
    /// When the kernel doesn't say.
    pub async fn sweep(&self) -> io::Result<usize> {
        self.shared.sweep().await
    }
}

impl Shared {
    async fn sweep(&self) -> io::Result<usize> {
        let mut inner = self.inner.lock().await;
        let Inner { kernel, state } = &mut *inner;
        let Some(state) = state else { return Ok(0) };
        kernel.sweep(&mut state.leaving, None)?;
        Ok(state.leaving.len())
    }

    async fn sync(&self, table: &Table) -> Result<(), Vec<RuleError>> {
        let config = &self.config;
        let mut inner = self.inner.lock().await;
        let Inner { kernel, state } = &mut *inner;
        // Taken: when this call fails or is dropped, the next one begins anew.
        let known = state.take();
        let whole = |source| vec![error_of_all(source)];
        config.check_ranges().map_err(whole)?;
        if kernel.open().is_err() {
            let _ = program::run(&config.modprobe, ["ip_vs"], "").await;
            kernel.open().map_err(whole)?;
        }
        let change = match known {
            Some(known) => {
                let nodes = kernel.nodes(config).map_err(whole)?;
                known.change(config, &nodes, table)
            }
            None => {
                kernel.prepare(config).map_err(whole)?;
                let nodes = kernel.nodes(config).map_err(whole)?;
                let there = kernel.there(config).map_err(whole)?;
                State::fresh(config, &nodes, table, there)
            }
        };
        let Change { state: mut next, script, requests, bound, unbound, ended, mut refused } = change;
        // First who may come, and from where; then whom he meets; the addresses lead here last, and are left first.
        if !script.is_empty() {
            self.transactions.run(&config.nft, &script).await.map_err(whole)?;
        }
        kernel.unbind(&unbound).map_err(whole)?;
        let failed = kernel.apply(config, &requests).map_err(whole)?;
        kernel.bind(&bound).map_err(whole)?;
        let changed: Vec<Key> = requests.iter().map(|request| request.key()).collect();
        kernel.sweep(&mut next.leaving, Some(&changed)).map_err(whole)?;
        conntrack::end(&config.conntrack, &ended).await;
        let is_known = failed.is_empty();
        refused.extend(failed.into_iter().take(ERRORS_MAX).map(|(key, source)| RuleError {
            service: next.owner(key),
            address: SocketAddr::new(key.address, key.port),
            transport: key.transport,
            source,
        }));
        // What was refused is not there: the next call asks what is.
        if is_known {
            *state = Some(next);
        }
        if refused.is_empty() { Ok(()) } else { Err(refused) }
    }
}

/// An error that keeps everything from being served.
fn error_of_all(source: io::Error) -> RuleError {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    RuleError { service: "all".to_owned(), address, transport: Transport::Tcp, source }
}

#[async_trait]
impl ServiceProxy for IpvsProxy {
    async fn sync(&self, table: &Table) -> Result<(), SyncError> {
        let shared = Arc::clone(&self.shared);
        self.sweeper.get_or_init(|| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(SWEEP_EVERY).await;
                    if let Err(error) = shared.sweep().await {
                        tracing::warn!(%error, "endpoints that have gone are not taken out of IPVS yet");
                    }
                }
            }))
        });
        self.shared.sync(table).await.map_err(SyncError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ranges_that_are_none_are_refused_before_anything_is_done() {
        let config = IpvsConfig { exclude: vec!["10.0.0.0/33".to_owned()], ..IpvsConfig::default() };
        let proxy = IpvsProxy::new(config);
        for refused in [
            proxy.check().await.err().map(|error| error.to_string()),
            proxy.shared.sync(&Table::default()).await.err().map(|errors| errors[0].source.to_string()),
        ] {
            assert!(refused.is_some_and(|why| why.starts_with("\"10.0.0.0/33\" is no range")));
        }
    }
}
