//! A running cluster.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{discovery::v1::EndpointSlice, rbac::v1::ClusterRoleBinding};
use kapi::{ApiServer, audit::FLUSH_MAX, authn::UserInfo};
use kcore::Clock;
use kreconcile::{Health, Informers, Running, Selection};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    client::Body as ClientBody,
};
use serde::de::DeserializeOwned;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    ca::{Ca, CaError, RENEWAL},
    certificates::Named,
    gateway::OpenedGateway,
    ingress::{IngressAddresses, OpenedIngress},
    kubeconfig,
    network::LocalNetwork,
    serve::{self, Serving, Tasks},
    services::Services,
};

/// How long a shutdown lets connections end by themselves before it ends them.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long a shutdown waits for connections and tasks to end by themselves.
pub const SHUTDOWN_MAX: Duration = Duration::from_secs(30);
/// Whoever has this role is given a new client certificate of its own name when it is a node.
const SELF_NODE_CLIENT: &str = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient";

/// A cluster inside this process. Made by [`ClusterBuilder::start`](crate::ClusterBuilder::start).
///
/// Dropping it ends everything that it started; [`shutdown`](Self::shutdown) does so in order and says what failed.
pub struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) client: Client,
    pub(crate) informers: Informers,
    pub(crate) scheduler_metrics: ksched::Metrics,
    pub(crate) ca: Arc<Ca>,
    /// What callers see that ask for other names.
    pub(crate) certificates: Arc<[Named]>,
    pub(crate) tasks: Tasks,
    pub(crate) running: Option<Running>,
    pub(crate) nodes: Option<Arc<kruntime::NodeAgent>>,
    pub(crate) _dns: Option<(knet::dns::DnsServer, Informers)>,
    pub(crate) services: Services,
    pub(crate) ingress: Option<OpenedIngress>,
    pub(crate) gateway: Option<OpenedGateway>,
    pub(crate) node_addresses: Vec<IpAddr>,
    pub(crate) serving: std::sync::Mutex<Option<Serving>>,
    pub(crate) notes: Vec<String>,
    pub(crate) startup: Vec<(&'static str, Duration)>,
    #[cfg(all(feature = "containers", target_os = "linux"))]
    pub(crate) containers: Option<crate::containers::Opened>,
    /// The addresses and directories of the pods; dropped last.
    pub(crate) _local: Option<LocalNetwork>,
}

/// Why serving failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address can't be listened on.
    #[error("{address} can't be listened on")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] CaError),
    /// The API is not served yet.
    #[error("the API is not served yet")]
    NotServed,
    /// The service `default/kubernetes` could not be told, or nodes not be allowed to renew their certificates.
    #[error("what belongs to a served API could not be written")]
    Publish(#[from] kube::Error),
}

/// Where a listener is reached from this machine: one on all addresses by the loopback address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = if address.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

fn url(address: SocketAddr) -> String {
    format!("https://{}", reachable(address))
}

/// A condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("{what} did not come to be as wanted within {timeout:?}; last seen: {last}")]
pub struct WaitError {
    what: String,
    timeout: Duration,
    last: String,
}

impl Cluster {
    /// Starts a builder.
    pub fn builder() -> crate::ClusterBuilder {
        crate::ClusterBuilder::new()
    }

    /// A client straight into the server, without a socket, as an administrator (`system:masters`). It can do everything but
    /// upgrade a connection: for exec, attach and port forwarding use [`client_http`](Self::client_http).
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client straight into the server as this user.
    #[must_use]
    pub fn client_as(&self, user: UserInfo) -> Client {
        Client::new(self.server.as_user(user), "default")
    }

    /// A client that speaks HTTP/1.1 over connections within the process, as an administrator. Slower than
    /// [`client`](Self::client), but able to upgrade.
    #[must_use]
    pub fn client_http(&self) -> Client {
        let (server, tasks) = (self.server.as_user(crate::identities::admin()), self.tasks.clone());
        let service = tower::service_fn(move |request: Request<ClientBody>| {
            let (server, tasks) = (server.clone(), tasks.clone());
            async move { request_over_duplex(server, &tasks, request).await }
        });
        Client::new(service, "default")
    }

    /// The API server, as a `tower::Service`; for embedding it into an HTTP server of your own.
    #[must_use]
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// The cluster's clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The nodes' agents; `None` for a cluster without nodes.
    #[must_use]
    pub fn nodes(&self) -> Option<&Arc<kruntime::NodeAgent>> {
        self.nodes.as_ref()
    }

    /// The addresses of the nodes in their order: where node ports are reached. Empty for a cluster without nodes.
    #[must_use]
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.node_addresses
    }

    /// Where Ingresses are served, if they are.
    #[must_use]
    pub fn ingress(&self) -> Option<IngressAddresses> {
        self.ingress.as_ref().map(|ingress| ingress.addresses)
    }

    /// The ports that Gateways may have, and where each is served; empty unless they are.
    #[must_use]
    pub fn gateway(&self) -> BTreeMap<u16, SocketAddr> {
        self.gateway.as_ref().map(|gateway| gateway.ports.clone()).unwrap_or_default()
    }

    /// Where the service proxy's health is served, if it is.
    #[must_use]
    pub fn proxy_health(&self) -> Option<SocketAddr> {
        self.services.health_address()
    }

    /// What was started, and how long each took.
    #[must_use]
    pub fn startup(&self) -> &[(&'static str, Duration)] {
        &self.startup
    }

    /// What the cluster can't do on this machine, for people.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The certificate of the cluster's authority, in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.ca.certificate_pem()
    }

    /// Serves the API over TLS at `address`; port 0 picks a free one. Callers show a client certificate of the cluster's
    /// authority, or are anonymous. Nodes that join may renew their client certificates, by a ClusterRoleBinding
    /// `kplane:node-autoapprove-certificate-rotation`.
    ///
    /// # Errors
    /// When the address can't be listened on or a certificate can't be made.
    pub async fn serve(&self, address: SocketAddr) -> Result<Serving, ServeError> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| ServeError::Listen { address, source })?;
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let reachable = reachable(address).ip();
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let inside = self.reached_by_pods().filter(|_| !address.ip().is_unspecified()).unwrap_or(reachable);
        let (ca, others) = (Arc::clone(&self.ca), Arc::clone(&self.certificates));
        let make = move || ca.server_config(&names, &[loopback, reachable, inside], &others);
        let (config, configs) = watch::channel(Arc::new(make()?));
        self.tasks.spawn(async move { serve::renew(&config, RENEWAL, make).await });
        let (server, tasks) = (self.server.clone(), self.tasks.clone());
        self.tasks.spawn(serve::listen(server, listener, configs.clone(), tasks));
        if inside != reachable {
            // Where pods have a network of their own they don't reach the loopback address.
            let address = SocketAddr::new(inside, address.port());
            let listener =
                TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
            let (server, tasks) = (self.server.clone(), self.tasks.clone());
            self.tasks.spawn(serve::listen(server, listener, configs, tasks));
        }
        let user = self.ca.client("kubernetes-admin", &["system:masters"])?;
        let kubeconfig = kubeconfig::render(&url(address), self.ca.certificate_pem(), &user);
        self.publish(SocketAddr::new(inside, address.port())).await?;
        self.let_nodes_renew().await?;
        let serving = Serving { address, kubeconfig };
        *self.serving.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(serving.clone());
        Ok(serving)
    }

    /// The node's address that pods with a network of their own reach.
    fn reached_by_pods(&self) -> Option<IpAddr> {
        #[cfg(all(feature = "containers", target_os = "linux"))]
        {
            self.containers.as_ref().map(|opened| opened.address)
        }
        #[cfg(not(all(feature = "containers", target_os = "linux")))]
        None
    }

    /// Makes `address` the endpoint of the service `default/kubernetes`, so that pods reach the API by that name.
    async fn publish(&self, address: SocketAddr) -> Result<(), ServeError> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), "default");
        let patch = serde_json::json!({
            "endpoints": [{"addresses": [address.ip()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
        });
        slices.patch("kubernetes", &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Lets nodes elsewhere renew the client certificates that are theirs, as kubeadm does (its
    /// `kubeadm:node-autoapprove-certificate-rotation`). A binding of that name that is there stays as it is.
    async fn let_nodes_renew(&self) -> Result<(), ServeError> {
        let (name, role) = ("kplane:node-autoapprove-certificate-rotation", SELF_NODE_CLIENT);
        let group = "rbac.authorization.k8s.io";
        let binding = serde_json::json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": group, "kind": "Group", "name": "system:nodes"}],
        });
        let binding: ClusterRoleBinding = serde_json::from_value(binding).map_err(kube::Error::SerdeError)?;
        match Api::all(self.client.clone()).create(&PostParams::default(), &binding).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            made => made.map(drop).map_err(Into::into),
        }
    }

    /// The kubeconfig of an administrator for the address that was served last; `None` before [`serve`](Self::serve).
    #[must_use]
    pub fn kubeconfig(&self) -> Option<String> {
        let serving = self.serving.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        serving.as_ref().map(|serving| serving.kubeconfig.clone())
    }

    /// A kubeconfig by which a node of this name joins from another process or machine ([`Node`](crate::Node), `kplane node`), for the
    /// address that was served last. It holds a key.
    ///
    /// # Errors
    /// [`ServeError::NotServed`] before [`serve`](Self::serve), or when a certificate can't be made.
    pub fn node_kubeconfig(&self, name: &str) -> Result<String, ServeError> {
        let serving = self.serving.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let address = serving.as_ref().ok_or(ServeError::NotServed)?.address;
        let user = self.ca.client(&format!("system:node:{name}"), &["system:nodes"])?;
        Ok(kubeconfig::render(&url(address), self.ca.certificate_pem(), &user))
    }

    /// Waits until an object is as wanted; the condition gets `None` while the object is not there. It is asked after each
    /// change, so nothing polls. For a cluster-scoped kind the namespace is empty.
    ///
    /// # Errors
    /// When that takes longer than `timeout`.
    pub async fn wait_until<K>(
        &self,
        namespace: &str,
        name: &str,
        timeout: Duration,
        condition: impl Fn(Option<&K>) -> bool + Send,
    ) -> Result<Option<Arc<K>>, WaitError>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
    {
        let selection = Selection::all().fields(format!("metadata.name={name}"));
        let selection = if namespace.is_empty() { selection } else { selection.namespace(namespace) };
        let informer = self.informers.of::<K>(selection);
        let mut changes = informer.subscribe();
        let wait = async {
            informer.synced().await;
            loop {
                let found = informer.get(namespace, name);
                if condition(found.as_deref()) {
                    return found;
                }
                if changes.next().await.is_none() {
                    return found;
                }
            }
        };
        let result = tokio::time::timeout(timeout, wait).await;
        result.map_err(|_| WaitError {
            what: format!("{} {namespace}/{name}", K::kind(&())),
            timeout,
            last: format!("{:?}", informer.get(namespace, name)),
        })
    }

    /// What the scheduler counts, under kube-scheduler's names; [`text`](ksched::Metrics::text) is what Prometheus reads. Empty
    /// without a scheduler.
    #[must_use]
    pub fn scheduler_metrics(&self) -> &ksched::Metrics {
        &self.scheduler_metrics
    }

    /// What the controllers count, as Prometheus reads it; see [`Running::metrics`].
    #[must_use]
    pub fn controller_metrics(&self) -> String {
        self.running.as_ref().map(Running::metrics).unwrap_or_default()
    }

    /// How each controller, the scheduler and the nodes' agent are, by their names.
    #[must_use]
    pub fn health(&self) -> BTreeMap<String, Health> {
        self.running.as_ref().map(Running::health).unwrap_or_default()
    }

    /// What the proxies of Ingresses and Gateways count, as Prometheus reads it; see
    /// [`HttpProxy::metrics`](knet::http_proxy::HttpProxy::metrics). Empty where neither is served.
    #[must_use]
    pub fn http_metrics(&self) -> String {
        let ingress = self.ingress.iter().map(|ingress| ingress.proxy.metrics("ingress"));
        ingress.chain(self.gateway.iter().map(|gateway| gateway.proxy.metrics("gateway"))).collect()
    }

    /// Ends everything in order: controllers, scheduler and nodes first, then connections.
    ///
    /// # Errors
    /// The names of what did not end in time and was cut off.
    pub async fn shutdown(mut self) -> Result<(), ShutdownError> {
        let mut late = Vec::new();
        // First those who come from outside, while there are pods to answer them.
        if let Some(ingress) = &self.ingress {
            ingress.proxy.shutdown(DRAIN_MAX).await;
        }
        if let Some(gateway) = &self.gateway {
            gateway.proxy.shutdown(DRAIN_MAX).await;
        }
        if let Some(running) = self.running.take()
            && tokio::time::timeout(SHUTDOWN_MAX, running.stop()).await.is_err()
        {
            late.push("controllers, scheduler and nodes");
        }
        self.informers.stop().await;
        self.services.end().await;
        #[cfg(all(feature = "containers", target_os = "linux"))]
        if let Some(opened) = &self.containers {
            opened.end().await;
        }
        // Clients see the end of their watches and answers, not a broken connection.
        self.server.drain();
        self.tasks.connections.close();
        let _ = tokio::time::timeout(DRAIN_MAX, self.tasks.connections.wait()).await;
        if tokio::time::timeout(FLUSH_MAX, self.server.flush_audit()).await.is_err() {
            late.push("the audit's sink");
        }
        self.tasks.stop.cancel();
        self.tasks.tracker.close();
        if tokio::time::timeout(SHUTDOWN_MAX, self.tasks.tracker.wait()).await.is_err() {
            late.push("connections");
        }
        if late.is_empty() { Ok(()) } else { Err(ShutdownError(late.join(", "))) }
    }
}

/// Something did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("did not end within {SHUTDOWN_MAX:?}: {0}")]
pub struct ShutdownError(String);

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.stop.cancel();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
}

/// One request over a connection of its own, as a client without a pool does it.
async fn request_over_duplex(
    server: kapi::AsUser,
    tasks: &Tasks,
    mut request: Request<ClientBody>,
) -> Result<Response<Incoming>, hyper::Error> {
    let stream = serve::connect(server, tasks);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tasks.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a client connection within the process ended");
        }
    });
    request.headers_mut().entry(http::header::HOST).or_insert(http::HeaderValue::from_static("kubernetes"));
    sender.send_request(request).await
}
