//! The network of a cluster whose pods are processes: a block of loopback addresses that no other cluster has.

use std::{io, net::Ipv4Addr, sync::Arc};

use kapi::ServiceAddresses;
use kcore::Clock;
use knet::{
    AddressRange, IpAllocator, Redirects,
    dns::{DnsServer, InformerZone, system_resolvers},
    loopback::LoopbackBlock,
    proxy::userspace::UserspaceProxy,
};
use kreconcile::{Informers, cloud::LocalCloud};
use kruntime::runtime::process::{ProcessOptions, ProcessRuntime};

use crate::services::Ground;

/// The prefix of the range of cluster IPs within a block.
const SERVICES_PREFIX: u8 = 20;
/// Where the nodes' addresses begin in a block, and how many there are before they repeat.
const NODES_OFFSET: u32 = 4096;
const NODE_ADDRESSES: usize = 2048;
/// The prefix of the range of these addresses.
const NODES_PREFIX: u8 = 21;
/// Where the addresses of load balancers begin in a block, and how many there are.
const BALANCERS_OFFSET: u32 = 6144;
const BALANCERS: u32 = 2048;
/// Where in a block the DNS server is.
const DNS_OFFSET: u32 = 10;
/// The domain of services and pods.
pub(crate) const CLUSTER_DOMAIN: &str = "cluster.local";

/// What the pods, services and names of one cluster of processes share. It lives as long as the cluster.
#[derive(Debug)]
pub(crate) struct LocalNetwork {
    block: LoopbackBlock,
    pub(crate) redirects: Redirects,
    pods: Arc<dyn IpAllocator>,
    dir: tempfile::TempDir,
}

impl LocalNetwork {
    /// Claims a block of addresses and makes a directory.
    pub(crate) fn claim() -> io::Result<Self> {
        let block = LoopbackBlock::claim()?;
        let [_, pods] = block.pods();
        let pods: AddressRange = pods.parse().map_err(io::Error::other)?;
        let dir = tempfile::Builder::new().prefix("kplane-").tempdir()?;
        Ok(Self { block, redirects: Redirects::default(), pods: Arc::new(pods), dir })
    }

    /// The cluster IPs are loopback addresses too, so that they can be served without root.
    pub(crate) fn service_addresses(&self) -> ServiceAddresses {
        let first = match self.block.nth(0) {
            std::net::IpAddr::V4(address) => address,
            std::net::IpAddr::V6(_) => Ipv4Addr::LOCALHOST,
        };
        ServiceAddresses {
            network: first,
            prefix: SERVICES_PREFIX,
            loopback: true,
            ..ServiceAddresses::default()
        }
    }

    /// The address of a node: from the range between those of the services and of the pods.
    pub(crate) fn node_address(&self, number: usize) -> std::net::IpAddr {
        let offset = u32::try_from(number % NODE_ADDRESSES).unwrap_or(0);
        self.block.nth(NODES_OFFSET + offset)
    }

    /// What kernel rules for this cluster are made for. The nodes' addresses are loopback ones, which serve node ports only if told.
    pub(crate) fn ground(&self) -> Ground {
        let name = format!("kplane-{}", self.block.nth(0)).replace('.', "-");
        let nodes = format!("{}/{NODES_PREFIX}", self.block.nth(NODES_OFFSET));
        Ground { name, pod_ranges: Vec::new(), node_port_addresses: vec![nodes], is_loopback: true }
    }

    /// The provider of load balancers: from the range between those of the nodes and of the pods.
    pub(crate) fn cloud(&self) -> LocalCloud {
        LocalCloud::new((0..BALANCERS).map(|number| self.block.nth(BALANCERS_OFFSET + number)))
    }

    /// The runtime whose containers are processes.
    pub(crate) fn runtime(&self, clock: &Arc<dyn Clock>) -> io::Result<ProcessRuntime> {
        let mut options =
            ProcessOptions::new(self.dir.path().join("runtime"), Arc::clone(&self.pods), Arc::clone(clock));
        options.redirects = self.redirects.clone();
        ProcessRuntime::new(options)
    }

    /// The proxy that brings connections to the services.
    pub(crate) fn proxy(&self, node_addresses: Vec<std::net::IpAddr>) -> UserspaceProxy {
        UserspaceProxy::new(self.redirects.clone()).node_addresses(node_addresses)
    }

    /// Where the cluster's DNS server listens: the tenth address of the services' range, as clusters have it.
    pub(crate) fn dns_address(&self) -> std::net::IpAddr {
        self.block.nth(DNS_OFFSET)
    }

    /// Starts the cluster's DNS server.
    pub(crate) async fn dns(&self, informers: &Informers) -> io::Result<DnsServer> {
        let zone = Arc::new(InformerZone::new(informers));
        let address = (self.dns_address(), 53).into();
        DnsServer::start(address, CLUSTER_DOMAIN, zone, system_resolvers(), &self.redirects).await
    }

    /// Where the agents make volumes.
    pub(crate) fn state_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("volumes")
    }
}
