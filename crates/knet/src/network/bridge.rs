//! The built-in network: a bridge on each node, and routes between them, directly or through VXLAN.
//!
//! Each pod has a pair of devices, one end in its namespace and the other on the node's bridge, whose address is the pods' gateway.
//! Pods reach each other without NAT: those of one node over the bridge, those of others by routes, which [`BridgeNetwork::connect`]
//! makes equal to what it is told, or an agent of this module, [`NodeRoutes`], tells it from the cluster's nodes. Traffic that leaves
//! the pods' ranges gets the node's address. Addresses are kept in files, one for each pod, so that another life of the process knows
//! them, and host ports are rules of nftables that are made anew from those files.
//!
//! It needs the right to change the network, and the program `nft`.

mod devices;
mod leases;
mod peers;
mod ports;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use tokio::sync::Mutex;

pub use self::peers::{NodeRoutes, Peer};
use self::{
    devices::Devices,
    leases::{Lease, Leases},
};
use super::{Attached, NetworkError, PodAttachment, PodNetwork};
use crate::{policy::Cidr, program};

/// The bytes that VXLAN takes of each packet over IPv4.
const VXLAN_BYTES: u32 = 50;

/// How packets get to other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overlay {
    /// As they are: nodes are on one link, or the routers between them know the ranges.
    None,
    /// Within UDP packets.
    Vxlan {
        /// The network's number.
        vni: u32,
        /// The port that nodes listen on; upstream's neighbours use 4789 and 8472.
        port: u16,
    },
}

/// What can be set, with its defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BridgeOptions {
    /// The node's ranges, one of each family at most: pods have their addresses from there. The first address is the bridge's.
    pub ranges: Vec<Cidr>,
    /// All nodes' ranges: what goes there keeps its source. Default: the node's own.
    pub cluster_ranges: Vec<Cidr>,
    /// Where addresses are kept. Default: `/var/lib/kplane/network`.
    pub state_dir: PathBuf,
    /// The bridge's name. Default: `kplane0`.
    pub bridge: String,
    /// How packets get to other nodes. Default: VXLAN with number 1 and port 4789.
    pub overlay: Overlay,
    /// The largest packet of the nodes' network, in bytes; pods have what the overlay leaves of it. Default: 1500.
    pub mtu: u32,
    /// Whether what leaves the cluster's ranges gets the node's address. Default: yes.
    pub masquerade: bool,
    /// The name of the table, in both families. Default: `kplane-pods`.
    pub table: String,
    /// The bit of a packet's mark that says that it came to a host port. Default: `0x2000`.
    pub mark: u32,
    /// The program that changes rules. Default: `nft`.
    pub nft: PathBuf,
}

impl BridgeOptions {
    /// The defaults, for a node with these ranges.
    #[must_use]
    pub fn new(ranges: Vec<Cidr>) -> Self {
        Self {
            ranges,
            cluster_ranges: Vec::new(),
            state_dir: "/var/lib/kplane/network".into(),
            bridge: "kplane0".to_owned(),
            overlay: Overlay::Vxlan { vni: 1, port: 4789 },
            mtu: 1500,
            masquerade: true,
            table: "kplane-pods".to_owned(),
            mark: 0x2000,
            nft: "nft".into(),
        }
    }

    fn pod_mtu(&self) -> u32 {
        match self.overlay {
            Overlay::None => self.mtu,
            Overlay::Vxlan { .. } => self.mtu.saturating_sub(VXLAN_BYTES),
        }
    }
}

/// The built-in network of one node.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use knet::{network::bridge::{BridgeNetwork, BridgeOptions, Peer}, policy::Cidr};
/// let range = Cidr::parse("10.244.1.0/24").ok_or("a range")?;
/// let network = BridgeNetwork::new(BridgeOptions::new(vec![range]))?;
/// let other = Peer {
///     name: "b".into(), address: "192.0.2.2".parse()?, ranges: vec![Cidr::parse("10.244.2.0/24").ok_or("a range")?],
/// };
/// network.connect("192.0.2.1".parse()?, &[other]).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct BridgeNetwork {
    options: BridgeOptions,
    /// Held while addresses or rules change.
    leases: Mutex<Leases>,
    peers: Mutex<()>,
}

pub(super) fn told(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |error| NetworkError::Io(what, error)
}

impl BridgeNetwork {
    /// A network with these settings; reads which addresses are in use.
    ///
    /// # Errors
    /// When ranges are missing, too small or two of one family, or the files can't be read.
    pub fn new(options: BridgeOptions) -> Result<Self, NetworkError> {
        let families = options.ranges.iter().filter(|range| range.network.is_ipv4()).count();
        if options.ranges.is_empty() || families > 1 || options.ranges.len() - families > 1 {
            return Err(NetworkError::Invalid("a node has one range of each family at most".to_owned()));
        }
        let leases = Leases::open(options.state_dir.join("leases"), &options.ranges)?;
        Ok(Self { options, leases: Mutex::new(leases), peers: Mutex::default() })
    }

    /// The largest packet that pods send, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.options.pod_mtu()
    }

    /// Makes the ways to other nodes equal to `peers`: nodes that are left out are not reached any more. `address` is the node's own.
    ///
    /// # Errors
    /// When a route can't be made; it is to be repeated.
    pub async fn connect(&self, address: IpAddr, peers: &[Peer]) -> Result<(), NetworkError> {
        let _turn = self.peers.lock().await;
        peers::connect(&self.options, address, peers).await.map_err(told("the ways to other nodes"))
    }

    /// Takes the devices, rules and routes of the node away; pods are not connected any more, but keep their addresses.
    ///
    /// # Errors
    /// When something is left.
    pub async fn remove(&self) -> Result<(), NetworkError> {
        let leases = self.leases.lock().await;
        let devices = Devices::here().map_err(told("netlink"))?;
        for lease in leases.all() {
            devices.delete(&host_device(&lease.id)).await.map_err(told("a pod's device"))?;
        }
        for device in [peers::VXLAN, &self.options.bridge] {
            devices.delete(device).await.map_err(told(device))?;
        }
        peers::forget(&devices).await.map_err(told("the ways to other nodes"))?;
        self.run_nft(&ports::removal(&self.options)).await
    }

    /// The bridge with its addresses, made if it is missing.
    async fn bridge(&self, devices: &Devices) -> io::Result<u32> {
        let name = &self.options.bridge;
        let index = devices.ensure_bridge(name, self.options.pod_mtu()).await?;
        for range in &self.options.ranges {
            if let Some(gateway) = leases::gateway(range) {
                devices.address(index, gateway, range.prefix).await?;
            }
        }
        let has = |v4: bool| self.options.ranges.iter().any(|range| range.network.is_ipv4() == v4);
        if has(true) {
            set("/proc/sys/net/ipv4/ip_forward", "1")?;
        }
        if has(false) {
            set("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        }
        Ok(index)
    }

    async fn plug(&self, lease: &Lease, netns: &Path) -> io::Result<()> {
        let devices = Devices::here()?;
        let bridge = self.bridge(&devices).await?;
        let (host, inner) = (host_device(&lease.id), inner_device(&lease.id));
        devices.delete(&host).await?;
        devices.pair(&host, &inner, self.options.pod_mtu(), netns).await?;
        devices.plug(&host, bridge).await?;
        let routes: Vec<(IpAddr, IpAddr)> = lease
            .addresses
            .iter()
            .filter_map(|address| {
                let range = self.options.ranges.iter().find(|range| range.contains(*address))?;
                Some((*address, leases::gateway(range)?))
            })
            .collect();
        devices::within(netns, move |devices| {
            Box::pin(async move { devices.set_up_pod(&inner, "eth0", &routes).await })
        })
        .await
    }

    async fn write_rules(&self, leases: &Leases) -> Result<(), NetworkError> {
        self.run_nft(&ports::rules(&self.options, leases.all())).await
    }

    async fn run_nft(&self, script: &str) -> Result<(), NetworkError> {
        let ran = program::run(&self.options.nft, ["-f", "-"], script).await;
        ran.map(drop).map_err(told("the rules of host ports"))
    }

    async fn unplug(&self, leases: &mut Leases, id: &str) -> Result<(), NetworkError> {
        let devices = Devices::here().map_err(told("netlink"))?;
        devices.delete(&host_device(id)).await.map_err(told("a pod's device"))?;
        let had_ports = leases.get(id).is_some_and(|lease| !lease.ports.is_empty());
        // The address is free only when nothing leads there any more.
        if had_ports {
            leases.close_ports(id)?;
            self.write_rules(leases).await?;
        }
        leases.release(id)
    }
}

fn set(path: &str, value: &str) -> io::Result<()> {
    // Reading first spares a write, which may not be allowed where reading is.
    if std::fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(path, value)
}

/// The device of a pod on the host: names are 15 bytes at most.
fn host_device(id: &str) -> String {
    format!("kp{}", leases::hash(id))
}

/// The other end's name until it is in the pod's namespace.
fn inner_device(id: &str) -> String {
    format!("kq{}", leases::hash(id))
}

#[async_trait]
impl PodNetwork for BridgeNetwork {
    async fn attach(&self, pod: &PodAttachment) -> Result<Attached, NetworkError> {
        let Some(netns) = &pod.netns else {
            return Err(NetworkError::Invalid(format!("{} has no network namespace", pod.id)));
        };
        let lease = {
            let mut leases = self.leases.lock().await;
            if let Some(lease) = leases.get(&pod.id).filter(|lease| lease.plugged && lease.netns == *netns) {
                return Ok(Attached { addresses: lease.addresses.clone() });
            }
            leases.take(pod, netns)?
        };
        if let Err(error) = self.plug(&lease, netns).await {
            let undone = self.unplug(&mut *self.leases.lock().await, &pod.id).await;
            if let Err(undo) = undone {
                tracing::warn!(%undo, pod = pod.name, "an attachment that failed is not undone");
            }
            return Err(NetworkError::Io(format!("pod {}/{}", pod.namespace, pod.name), error));
        }
        let mut leases = self.leases.lock().await;
        self.write_rules(&leases).await?;
        leases.plugged(&pod.id)?;
        Ok(Attached { addresses: lease.addresses })
    }

    async fn detach(&self, pod: &PodAttachment) -> Result<(), NetworkError> {
        let mut leases = self.leases.lock().await;
        self.unplug(&mut leases, &pod.id).await
    }

    async fn collect(&self, alive: &[String]) -> Result<(), NetworkError> {
        let mut leases = self.leases.lock().await;
        let dead = leases.all().filter(|lease| !alive.contains(&lease.id)).map(|lease| lease.id.clone());
        let dead: Vec<String> = dead.collect();
        for id in dead {
            self.unplug(&mut leases, &id).await?;
        }
        self.write_rules(&leases).await
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        let bridge = async { self.bridge(&Devices::here()?).await };
        bridge.await.map(drop).map_err(|error| NetworkError::NotReady(error.to_string()))
    }
}
