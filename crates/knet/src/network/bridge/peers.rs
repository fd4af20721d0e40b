//! The ways to other nodes.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use kreconcile::{Informer, Informers, RunError, Runnable, Selection};
use rtnetlink::{
    LinkUnspec, LinkVxlan, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
        neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourState},
        route::{RouteAttribute, RouteMessage, RouteProtocol},
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    BridgeNetwork, BridgeOptions, Overlay,
    devices::{Devices, from_netlink},
};
use crate::policy::Cidr;

/// The name of the VXLAN device.
pub(super) const VXLAN: &str = "kplane.vxlan";
/// What marks routes as made here; the kernel leaves these numbers to its users.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(75);
/// How long after a failure the ways are made again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its address on the nodes' network.
    pub address: IpAddr,
    /// Its pods' ranges.
    pub ranges: Vec<Cidr>,
}

/// The hardware address of a node's end of the overlay: it follows from the node's first range, so that nobody has to be told.
fn hardware_address(ranges: &[Cidr]) -> [u8; 6] {
    let last: [u8; 4] = match ranges.first().map(|range| range.network) {
        Some(IpAddr::V4(v4)) => v4.octets(),
        Some(IpAddr::V6(v6)) => {
            // The middle tells nodes apart: their ranges are commonly /64.
            let bits = v6.octets();
            [bits[4], bits[5], bits[6], bits[7]]
        }
        None => [0; 4],
    };
    // The two lowest bits of the first byte say: of local meaning, and one node's.
    [0x0a, 0x58, last[0], last[1], last[2], last[3]]
}

pub(super) async fn connect(options: &BridgeOptions, own: IpAddr, peers: &[Peer]) -> io::Result<()> {
    let devices = Devices::here()?;
    let mut wanted = Vec::new();
    match options.overlay {
        Overlay::None => {
            for peer in peers {
                wanted.extend(peer.ranges.iter().filter_map(|range| route(range, peer.address, None)));
            }
        }
        Overlay::Vxlan { vni, port } => {
            let device = ensure_vxlan(&devices, options, own, vni, port).await?;
            point(&devices, device, peers).await?;
            for peer in peers {
                wanted
                    .extend(peer.ranges.iter().filter_map(|range| route(range, range.network, Some(device))));
            }
        }
    }
    let kept: BTreeSet<_> = wanted.iter().filter_map(target).collect();
    for route in wanted {
        devices.route(route).await?;
    }
    for stale in own_routes(&devices).await? {
        if target(&stale).is_some_and(|target| !kept.contains(&target)) {
            devices.handle.route().del(stale).execute().await.map_err(from_netlink)?;
        }
    }
    Ok(())
}

/// Deletes all routes that were made here.
pub(super) async fn forget(devices: &Devices) -> io::Result<()> {
    for stale in own_routes(devices).await? {
        devices.handle.route().del(stale).execute().await.map_err(from_netlink)?;
    }
    Ok(())
}

async fn own_routes(devices: &Devices) -> io::Result<Vec<RouteMessage>> {
    let mut own = Vec::new();
    let all =
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    for of_family in all {
        let mut routes = devices.handle.route().get(of_family).execute();
        while let Some(route) = routes.try_next().await.map_err(from_netlink)? {
            if route.header.protocol == PROTOCOL {
                own.push(route);
            }
        }
    }
    Ok(own)
}

/// What a route leads to, as text that is the same for what was wanted and what is there.
fn target(route: &RouteMessage) -> Option<String> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(to) => Some(format!("{to:?}/{}", route.header.destination_prefix_length)),
        _ => None,
    })
}

/// The route to a range. Through the overlay the gateway is on no link of the node's own, and that is said.
fn route(range: &Cidr, gateway: IpAddr, device: Option<u32>) -> Option<RouteMessage> {
    Some(match (range.network, gateway) {
        (IpAddr::V4(network), IpAddr::V4(gateway)) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(network, range.prefix)
                .gateway(gateway)
                .protocol(PROTOCOL);
            device.map_or(route.clone(), |device| route.output_interface(device).onlink()).build()
        }
        (IpAddr::V6(network), IpAddr::V6(gateway)) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(network, range.prefix)
                .gateway(gateway)
                .protocol(PROTOCOL);
            device.map_or(route.clone(), |device| route.output_interface(device).onlink()).build()
        }
        // A range of one family has no way over a gateway of the other.
        _ => return None,
    })
}

/// The VXLAN device, made anew when the node has another address.
async fn ensure_vxlan(
    devices: &Devices,
    options: &BridgeOptions,
    own: IpAddr,
    vni: u32,
    port: u16,
) -> io::Result<u32> {
    let known = devices.find(VXLAN).await?;
    if known.as_ref().is_none_or(|link| !is_same(link, own, vni, port)) {
        devices.delete(VXLAN).await?;
        let device = LinkVxlan::new(VXLAN, vni).port(port).learning(false);
        let device = match own {
            IpAddr::V4(own) => device.local(own),
            IpAddr::V6(own) => device.local6(own),
        };
        let device = device.address(hardware_address(&options.ranges).to_vec()).mtu(options.pod_mtu());
        devices.handle.link().add(device.build()).execute().await.map_err(from_netlink)?;
    }
    let index = devices.index(VXLAN).await?;
    // The node's own packets to other nodes' pods have this address, which is one of the range and no pod's.
    for range in &options.ranges {
        let prefix = if range.network.is_ipv4() { 32 } else { 128 };
        devices.address(index, range.network, prefix).await?;
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    devices.handle.link().set(up).execute().await.map_err(from_netlink)?;
    Ok(index)
}

fn is_same(link: &LinkMessage, own: IpAddr, vni: u32, port: u16) -> bool {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let data = infos.flatten().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    let has = |wanted: InfoVxlan| data.is_some_and(|data| data.contains(&wanted));
    let local = match own {
        IpAddr::V4(own) => InfoVxlan::Local(own),
        IpAddr::V6(own) => InfoVxlan::Local6(own),
    };
    has(InfoVxlan::Id(vni)) && has(InfoVxlan::Port(port)) && has(local)
}

/// Says where each node's end of the overlay is, and forgets those that are gone.
async fn point(devices: &Devices, device: u32, peers: &[Peer]) -> io::Result<()> {
    let mut kept = BTreeSet::new();
    for peer in peers {
        let hardware = hardware_address(&peer.ranges);
        kept.insert(hardware.to_vec());
        let neighbours = devices.handle.neighbours();
        let entry = neighbours.add_bridge(device, &hardware).flags(NeighbourFlags::Own);
        let entry = entry.destination(peer.address).replace();
        entry.execute().await.map_err(from_netlink)?;
        for range in &peer.ranges {
            let neighbour = devices.handle.neighbours().add(device, range.network);
            let neighbour =
                neighbour.link_layer_address(&hardware).state(NeighbourState::Permanent).replace();
            neighbour.execute().await.map_err(from_netlink)?;
        }
    }
    let mut neighbours = devices.handle.neighbours().get().execute();
    while let Some(neighbour) = neighbours.try_next().await.map_err(from_netlink)? {
        let stale = neighbour.header.ifindex == device
            && neighbour.header.state == NeighbourState::Permanent
            && neighbour.attributes.iter().any(|attribute| {
                matches!(attribute, NeighbourAttribute::LinkLayerAddress(hardware) if !kept.contains(hardware.as_slice()))
            });
        if stale {
            devices.handle.neighbours().del(neighbour).execute().await.map_err(from_netlink)?;
        }
    }
    Ok(())
}

/// Tells a node's network of the cluster's other nodes: their ranges (`spec.podCIDRs`) and addresses (`InternalIP`).
///
/// ```no_run
/// # fn example(informers: &kreconcile::Informers, network: std::sync::Arc<knet::network::bridge::BridgeNetwork>) {
/// use kreconcile::{Manager, Start};
/// use knet::network::bridge::NodeRoutes;
/// let manager = Manager::new().add(Start::Always, NodeRoutes::new(informers, network, "node-1".to_owned()));
/// # }
/// ```
#[derive(Debug)]
pub struct NodeRoutes {
    nodes: Informer<Node>,
    network: Arc<BridgeNetwork>,
    node: String,
}

impl NodeRoutes {
    /// An agent for the network of `node`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(informers: &Informers, network: Arc<BridgeNetwork>, node: String) -> Self {
        Self { nodes: informers.of::<Node>(Selection::all()), network, node }
    }

    async fn follow(&self) {
        let mut changes = self.nodes.subscribe();
        self.nodes.synced().await;
        let mut told = None;
        let mut failed = false;
        loop {
            tokio::select! {
                batch = changes.next() => {
                    if batch.is_none() {
                        return;
                    }
                }
                () = tokio::time::sleep(RETRY_AFTER), if failed => {}
            }
            let mut peers: Vec<Peer> = self.nodes.list().iter().filter_map(|node| peer(node)).collect();
            peers.sort_by(|one, other| one.name.cmp(&other.name));
            let Some(at) = peers.iter().position(|peer| peer.name == self.node) else { continue };
            let own = peers.remove(at);
            let now = Some((own.address, peers));
            // Most changes of a node are its heartbeats.
            if now == told && !failed {
                continue;
            }
            told = now;
            let Some((own, peers)) = &told else { continue };
            failed = match self.network.connect(*own, peers).await {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(%error, "some nodes are not reached yet");
                    true
                }
            };
        }
    }
}

/// What others have to know of a node; `None` when it has no address or no ranges yet.
fn peer(node: &Node) -> Option<Peer> {
    let spec = node.spec.as_ref()?;
    let listed = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let mut ranges: Vec<Cidr> = Vec::new();
    for range in listed.filter_map(|range| Cidr::parse(range)) {
        if !ranges.contains(&range) {
            ranges.push(range);
        }
    }
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    let address =
        addresses.filter(|address| address.type_ == "InternalIP").find_map(|one| one.address.parse().ok());
    (!ranges.is_empty()).then_some(Peer { name: node.metadata.name.clone()?, address: address?, ranges })
}

#[async_trait]
impl Runnable for NodeRoutes {
    fn name(&self) -> &str {
        "node-routes"
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
        Ok(())
    }
}
