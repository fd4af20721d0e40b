//! The Gateway API of a cluster: where it is served, and what it is told by.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use kapi::ApiServer;
use kcore::Clock;
use knet::{
    Redirects,
    gateway::{
        CONTROLLER, GatewayAgent,
        types::{GatewayClass, GatewayClassSpec, definitions},
    },
    http_proxy::{Certificate, HttpProxy, ProxyOptions},
};
use kreconcile::Informers;
use kube::{Api, Client, api::PostParams};
use tokio::net::TcpListener;

use crate::{builder::StartError, ca::Ca, defaults, identities, network::CLUSTER_DOMAIN};

/// How often, and with what pause, the class is made again while the server does not serve its kind yet.
const CLASS_ATTEMPTS_MAX: u32 = 100;
const CLASS_RETRY: Duration = Duration::from_millis(50);
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// The parts of a data plane that listens.
pub(crate) struct OpenedGateway {
    pub(crate) proxy: HttpProxy,
    /// The ports of Gateways, and where they are served.
    pub(crate) ports: BTreeMap<u16, SocketAddr>,
    pub(crate) informers: Informers,
}

impl OpenedGateway {
    /// Listens where each port is wanted; port 0 picks a free one.
    pub(crate) async fn open(
        wanted: &BTreeMap<u16, SocketAddr>,
        server: &ApiServer,
        ca: &Ca,
        redirects: Redirects,
    ) -> Result<Self, StartError> {
        let failed = StartError::Gateway;
        let name = format!("gateway.{CLUSTER_DOMAIN}");
        let addresses: Vec<IpAddr> = wanted.values().map(SocketAddr::ip).collect();
        let made = ca.server(&[&name], &addresses)?;
        let default = Certificate::from_pem(made.certificate_pem.as_bytes(), made.key_pem.as_bytes());
        let default_certificate = Some(default.map_err(io::Error::other).map_err(failed)?);
        let proxy =
            HttpProxy::new(ProxyOptions { redirects, default_certificate, ..ProxyOptions::default() });
        let mut ports = BTreeMap::new();
        for (port, address) in wanted {
            let listener = TcpListener::bind(address).await.map_err(|error| {
                failed(io::Error::new(error.kind(), format!("port {port} at {address}: {error}")))
            })?;
            ports.insert(*port, proxy.serve(*port, listener).map_err(failed)?);
        }
        let informers = Informers::new(identities::client(server, identities::GATEWAY));
        Ok(Self { proxy, ports, informers })
    }

    /// What keeps the proxy up to date.
    pub(crate) fn agent(&self, clock: &Arc<dyn Clock>) -> GatewayAgent {
        // An address that stands for all is none that anybody could ask at.
        let mut addresses: Vec<IpAddr> =
            self.ports.values().map(SocketAddr::ip).filter(|address| !address.is_unspecified()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let ports = self.ports.keys().copied();
        GatewayAgent::new(&self.informers, self.proxy.clone(), Arc::clone(clock), ports).addresses(addresses)
    }
}

/// Makes the kinds of the Gateway API, but those that are there already, and a class that this cluster serves.
pub(crate) async fn make_kinds(client: &Client) -> Result<(), kube::Error> {
    let create = PostParams::default();
    for definition in definitions() {
        match Api::all(client.clone()).create(&create, &definition).await {
            Err(kube::Error::Api(status)) if status.code == CONFLICT => {}
            other => drop(other?),
        }
    }
    let spec = GatewayClassSpec { controller_name: CONTROLLER.to_owned(), ..GatewayClassSpec::default() };
    let class = GatewayClass::new(defaults::GATEWAY_CLASS, spec);
    let mut attempt = 1;
    loop {
        match Api::all(client.clone()).create(&create, &class).await {
            Err(kube::Error::Api(status)) if status.code == CONFLICT => return Ok(()),
            // A kind is served a moment after its definition was made.
            Err(kube::Error::Api(status)) if status.code == NOT_FOUND && attempt < CLASS_ATTEMPTS_MAX => {}
            other => return other.map(drop),
        }
        attempt += 1;
        tokio::time::sleep(CLASS_RETRY).await;
    }
}
