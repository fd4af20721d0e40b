//! Each Service's `healthCheckNodePort`: load balancers ask there which nodes have endpoints of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kreconcile::{Informer, Informers, RunError, Runnable, Selection};
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    ProxyHealth,
    http::{self, Reply},
};
use crate::agent::{BY_SERVICE, index_slices};

/// How long after a failure a port is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Serves the health check ports of Services. Dropping it ends them.
///
/// ```no_run
/// # async fn example(health: std::sync::Arc<knet::health::ProxyHealth>) {
/// let ports = knet::health::ServiceHealth::new(vec![[0, 0, 0, 0].into()], health);
/// // Two endpoints of shop/web are on this node, and load balancers ask at port 30123.
/// let refused = ports.sync(&[(("shop".into(), "web".into()), (30123, 2))].into()).await;
/// assert!(refused.is_empty());
/// # }
/// ```
#[derive(Debug)]
pub struct ServiceHealth {
    addresses: Vec<IpAddr>,
    proxy: Arc<ProxyHealth>,
    open: Mutex<BTreeMap<(String, String), Open>>,
}

/// The port of a Service.
#[derive(Debug)]
struct Open {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    _stop: DropGuard,
}

/// For each Service, by namespace and name, its health check port and how many of its endpoints are ready on this node.
pub type LocalEndpoints = BTreeMap<(String, String), (u16, usize)>;

impl ServiceHealth {
    /// A server at these addresses of the node; `proxy` says whether traffic that comes would be served.
    #[must_use]
    pub fn new(addresses: Vec<IpAddr>, proxy: Arc<ProxyHealth>) -> Self {
        Self { addresses, proxy, open: Mutex::default() }
    }

    /// Makes the ports and what they say equal to `wanted`; gives the Services whose port can't be listened on, with the reason.
    pub async fn sync(&self, wanted: &LocalEndpoints) -> Vec<((String, String), io::Error)> {
        let mut open = self.open.lock().await;
        open.retain(|name, open| wanted.get(name).is_some_and(|(port, _)| *port == open.port));
        let mut refused = Vec::new();
        for (name, (port, endpoints)) in wanted {
            if let Some(open) = open.get(name) {
                open.endpoints.store(*endpoints, Ordering::Relaxed);
                continue;
            }
            match self.listen(name, *port, *endpoints).await {
                Ok(opened) => {
                    open.insert(name.clone(), opened);
                }
                Err(error) => refused.push((name.clone(), error)),
            }
        }
        refused
    }

    async fn listen(&self, name: &(String, String), port: u16, endpoints: usize) -> io::Result<Open> {
        let (stop, endpoints) = (CancellationToken::new(), Arc::new(AtomicUsize::new(endpoints)));
        // What is open already is closed when another address fails.
        let guard = stop.clone().drop_guard();
        for address in &self.addresses {
            let (name, proxy, endpoints) = (name.clone(), Arc::clone(&self.proxy), Arc::clone(&endpoints));
            let answer = move |_: &str| reply(&name, endpoints.load(Ordering::Relaxed), proxy.is_healthy());
            http::serve(SocketAddr::new(*address, port), Arc::new(answer), stop.clone()).await?;
        }
        Ok(Open { port, endpoints, _stop: guard })
    }
}

fn reply((namespace, name): &(String, String), endpoints: usize, healthy: bool) -> Reply {
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    Reply::json(endpoints > 0 && healthy, body).weight(endpoints)
}

/// Follows Services and EndpointSlices and keeps the health check ports of nodes up to date.
#[derive(Debug)]
pub struct ServiceHealthAgent {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Vec<NodePorts>,
}

/// The ports at one address, and the nodes that it is the address of.
#[derive(Debug)]
struct NodePorts {
    health: ServiceHealth,
    nodes: BTreeSet<String>,
}

impl ServiceHealthAgent {
    /// An agent for no node.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(informers: &Informers) -> Self {
        let slices = informers.of::<EndpointSlice>(Selection::all());
        index_slices(&slices);
        Self { services: informers.of::<Service>(Selection::all()), slices, nodes: Vec::new() }
    }

    /// Tells `health` how many endpoints these nodes have: usually one; several when they share their address.
    #[must_use]
    pub fn nodes(mut self, health: ServiceHealth, nodes: impl IntoIterator<Item = String>) -> Self {
        self.nodes.push(NodePorts { health, nodes: nodes.into_iter().collect() });
        self
    }

    /// What a Service's port has to say at each address; `None` when it has none.
    fn local(&self, key: &(String, String)) -> Option<(u16, Vec<usize>)> {
        let service = self.services.get(&key.0, &key.1)?;
        let port = check_port(&service)?;
        let slices = self.slices.by_index(BY_SERVICE, &format!("{}/{}", key.0, key.1));
        Some((port, self.nodes.iter().map(|ports| local_ready(&slices, &ports.nodes)).collect()))
    }

    /// Tells all; whether some port is refused.
    async fn tell(&self, wanted: &BTreeMap<(String, String), (u16, Vec<usize>)>) -> bool {
        let mut failed = false;
        for (index, ports) in self.nodes.iter().enumerate() {
            let own = wanted.iter().filter_map(|(name, (port, endpoints))| {
                Some((name.clone(), (*port, endpoints.get(index).copied()?)))
            });
            for ((namespace, name), error) in ports.health.sync(&own.collect()).await {
                tracing::warn!(namespace, name, %error, "a health check port is not served yet");
                failed = true;
            }
        }
        failed
    }

    async fn follow(&self) {
        let (mut services, mut slices) = (self.services.subscribe(), self.slices.subscribe());
        self.services.synced().await;
        self.slices.synced().await;
        let mut wanted = BTreeMap::new();
        let mut failed = false;
        loop {
            let mut dirty = BTreeSet::new();
            tokio::select! {
                batch = services.next() => {
                    let Some(batch) = batch else { return };
                    dirty.extend(batch.iter().map(|change| {
                        (change.header().namespace.to_string(), change.header().name.to_string())
                    }));
                }
                batch = slices.next() => {
                    let Some(batch) = batch else { return };
                    dirty.extend(batch.iter().flat_map(|change| change.sides()).filter_map(|side| {
                        let header = side.header();
                        let service = header.labels.get("kubernetes.io/service-name")?;
                        Some((header.namespace.to_string(), service.to_owned()))
                    }));
                }
                () = tokio::time::sleep(RETRY_AFTER), if failed => {}
            }
            let mut changed = failed;
            for key in dirty {
                let now = self.local(&key);
                changed |= wanted.get(&key) != now.as_ref();
                match now {
                    Some(state) => wanted.insert(key, state),
                    None => wanted.remove(&key),
                };
            }
            if changed {
                failed = self.tell(&wanted).await;
            }
        }
    }
}

/// The port of a Service that has one: a load balancer's, when only nodes with endpoints get traffic.
fn check_port(service: &Service) -> Option<u16> {
    let spec = service.spec.as_ref()?;
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok())?;
    (local && balancer && port > 0).then_some(port)
}

/// How many addresses of these nodes are ready.
fn local_ready(slices: &[Arc<EndpointSlice>], nodes: &BTreeSet<String>) -> usize {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        ready && endpoint.node_name.as_ref().is_some_and(|node| nodes.contains(node))
    });
    ready.filter_map(|endpoint| endpoint.addresses.first()).collect::<BTreeSet<_>>().len()
}

#[async_trait]
impl Runnable for ServiceHealthAgent {
    fn name(&self) -> &str {
        "service-health"
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_and_counts_are_those_of_upstream() {
        let service =
            |spec| serde_json::from_value::<Service>(json!({"metadata": {}, "spec": spec})).unwrap();
        let spec =
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001});
        assert_eq!(check_port(&service(spec)), Some(30001));
        for spec in [
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001}),
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "healthCheckNodePort": 30001}),
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}),
        ] {
            assert_eq!(check_port(&service(spec)), None);
        }
        let endpoint = |address: &str, node: &str, ready: bool| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": ready}});
        let slice = json!({"metadata": {}, "addressType": "IPv4", "endpoints": [
            endpoint("10.0.0.1", "a", true), endpoint("10.0.0.1", "a", true), endpoint("10.0.0.2", "a", false),
            endpoint("10.0.0.3", "b", true), endpoint("10.0.0.4", "a", true)]});
        let slice: Arc<EndpointSlice> = Arc::new(serde_json::from_value(slice).unwrap());
        let nodes = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(local_ready(std::slice::from_ref(&slice), &nodes(&["a"])), 2);
        assert_eq!(local_ready(&[slice], &nodes(&["a", "b", "c"])), 3);
    }
}
