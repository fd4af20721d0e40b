//! The parts of a cluster's network that can be chosen.

use std::{net::SocketAddr, sync::Arc};

use knet::{ServiceProxy, policy::nftables::Existing};

use super::ClusterBuilder;
use crate::{ingress::IngressAddresses, nodes::KubeletAuthority, services::ProxyMode};

impl ClusterBuilder {
    /// Whose signature the serving certificates of nodes elsewhere must have (`--kubelet-certificate-authority`). Default:
    /// [`KubeletAuthority::Cluster`], so that nodes ask for a certificate
    /// ([`NodeCertificate::Requested`](crate::node::NodeCertificate)), which somebody approves, or are given one that
    /// [`Cluster::ca_pem`](crate::Cluster::ca_pem) has signed. Upstream looks at none by default.
    pub fn kubelet_authority(mut self, authority: KubeletAuthority) -> Self {
        self.kubelet_authority = authority;
        self
    }

    /// Brings connections to services this way. [`service_proxy`](Self::service_proxy) is for those that are built in.
    pub fn proxy(mut self, proxy: Arc<dyn ServiceProxy>) -> Self {
        self.services.proxy = Some(proxy);
        self
    }

    /// Brings connections to services by this built-in proxy. Default: userspace in a cluster of processes, nftables with real
    /// containers, none otherwise. The cluster does not start when it can't work here. A proxy in the kernel that is chosen here first takes
    /// away what one of the other kind has left in this network namespace, upstream's included; what it makes itself goes with
    /// [`Cluster::shutdown`](crate::Cluster::shutdown).
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use kplane::{Cluster, ProxyMode};
    /// // As root.
    /// let cluster = Cluster::builder().processes()?.service_proxy(ProxyMode::Nftables).start().await?;
    /// # cluster.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub fn service_proxy(mut self, mode: ProxyMode) -> Self {
        self.services.mode = Some(mode);
        self
    }

    /// Serves the service proxy's health at this address (upstream's is port 10256): `/healthz`, `/livez`, `/proxyMode`. Port 0 picks a
    /// free one; [`Cluster::proxy_health`](crate::Cluster::proxy_health) says which. Default: nowhere. The health check ports of Services
    /// (`healthCheckNodePort`) are served at the nodes' addresses in any case.
    pub fn proxy_health(mut self, address: SocketAddr) -> Self {
        self.services.health = Some(address);
        self
    }

    /// Enforces NetworkPolicies by nftables, as root; connections that a policy begins to forbid are kept or cut. It is for clusters whose
    /// pods have a network of their own: real containers, or a runtime of the embedder's whose pods' packets this machine forwards. The
    /// cluster does not start where that can't be. Default: policies are objects that nobody enforces.
    pub fn network_policies(mut self, existing: Existing) -> Self {
        self.services.policies = Some(existing);
        self
    }

    /// Serves Ingresses there (port 0 picks a free one), and makes an IngressClass [`kplane`](crate::defaults::INGRESS_CLASS) that is the
    /// default. Requests go straight to the pods, so those have to be reachable from this process: as processes or real
    /// containers. [`Cluster::ingress`](crate::Cluster::ingress) says where they are served.
    pub fn ingress(mut self, addresses: IngressAddresses) -> Self {
        self.ingress = Some(addresses);
        self
    }

    /// Serves Gateways: each port that their listeners may have, at this address (port 0 picks a free one). Makes the kinds of the Gateway
    /// API, unless they are there, and a GatewayClass [`kplane`](crate::defaults::GATEWAY_CLASS). Requests go straight to the pods, as with
    /// [`ingress`](Self::ingress). [`Cluster::gateway`](crate::Cluster::gateway) says where the ports are served.
    pub fn gateway(mut self, ports: impl IntoIterator<Item = (u16, SocketAddr)>) -> Self {
        self.gateway = Some(ports.into_iter().collect());
        self
    }
}
