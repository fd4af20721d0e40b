//! From Services and EndpointSlices to what a proxy has to do: a pure function.
//!
//! The rules are those of upstream's kube-proxy (`pkg/proxy/topology.go`, `endpointslicecache.go`): ready endpoints, else
//! those that end but still serve; traffic policies; hints of nodes and zones.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Service, ServicePort, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::redirect::Transport;

/// The label by which a Service asks that no proxy of the cluster serves it, but another one.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The time-out of session affinity when the Service names none (upstream's default: three hours).
pub const AFFINITY_DEFAULT: Duration = Duration::from_secs(10_800);

/// Where a proxy is. Without a node it stands for all of them: every endpoint is local, and hints are not followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The node's name.
    pub node: Option<String>,
    /// The node's zone.
    pub zone: Option<String>,
}

/// What connections a frontend takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Frontend {
    /// Those to this address: a cluster IP, an external IP or a load balancer's.
    Address(IpAddr),
    /// Those to any of the node's own addresses.
    Node,
}

/// One port of a Service at one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `namespace/name:port`, for people.
    pub service: Arc<str>,
    /// What connections it takes.
    pub frontend: Frontend,
    /// The port that they come to.
    pub port: u16,
    /// What they are carried by.
    pub transport: Transport,
    /// Where they go: one of these, sorted. When there are none, connections are refused.
    pub endpoints: Arc<[SocketAddr]>,
    /// For how long a client stays with an endpoint, if it does.
    pub affinity: Option<Duration>,
    /// The ranges that clients must come from; empty means any.
    pub sources: Arc<[String]>,
    /// Whether it is for traffic from outside of the cluster: by an external IP, a load balancer's, or a node port.
    pub external: bool,
    /// Whether only endpoints of this node are asked (the traffic policy `Local`), so that clients keep their addresses.
    pub local: bool,
}

/// What a proxy has to do: the rules of each Service, by `namespace/name`. Rules that did not change are the same `Arc` as
/// before, so that comparing two tables costs next to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The rules by Service.
    pub services: BTreeMap<Arc<str>, Arc<[Rule]>>,
}

impl Table {
    /// The table of these Services and slices, all computed anew; for tests and small tables.
    #[must_use]
    pub fn of<'a>(
        services: impl IntoIterator<Item = &'a Service>,
        slices: &[Arc<EndpointSlice>],
        place: &Place,
    ) -> Self {
        let mut table = Self::default();
        for service in services {
            let meta = &service.metadata;
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            let name = meta.name.as_deref().unwrap_or_default();
            let own: Vec<_> = slices
                .iter()
                .filter(|slice| {
                    slice.metadata.namespace == meta.namespace && slice_service(slice) == Some(name)
                })
                .cloned()
                .collect();
            table.services.insert(format!("{namespace}/{name}").into(), rules(service, &own, place).into());
        }
        table
    }

    /// All rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.services.values().flat_map(|rules| rules.iter())
    }
}

/// The Service that a slice belongs to, by its label.
#[must_use]
pub fn slice_service(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name").map(String::as_str)
}

/// An endpoint with what is asked of it.
struct Candidate<'a> {
    address: SocketAddr,
    ready: bool,
    /// It ends, but still serves.
    ending: bool,
    endpoint: &'a Endpoint,
}

impl Candidate<'_> {
    fn is_local(&self, place: &Place) -> bool {
        place.node.is_none() || self.endpoint.node_name == place.node
    }

    fn node_hints(&self) -> impl Iterator<Item = &str> {
        self.endpoint
            .hints
            .iter()
            .flat_map(|hints| hints.for_nodes.iter().flatten())
            .map(|node| node.name.as_str())
    }

    fn zone_hints(&self) -> impl Iterator<Item = &str> {
        self.endpoint
            .hints
            .iter()
            .flat_map(|hints| hints.for_zones.iter().flatten())
            .map(|zone| zone.name.as_str())
    }
}

/// The rules of one Service; `slices` are its own.
#[must_use]
pub fn rules(service: &Service, slices: &[Arc<EndpointSlice>], place: &Place) -> Vec<Rule> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let labels = service.metadata.labels.as_ref();
    let headless = matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    if headless
        || spec.type_.as_deref() == Some("ExternalName")
        || labels.is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL))
    {
        return Vec::new();
    }
    let mut rules = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(transport) = Transport::parse(port.protocol.as_deref().unwrap_or("TCP")) else { continue };
        add_port(&mut rules, service, spec, port, transport, slices, place);
    }
    rules
}

fn add_port(
    rules: &mut Vec<Rule>,
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    transport: Transport,
    slices: &[Arc<EndpointSlice>],
    place: &Place,
) {
    let meta = &service.metadata;
    let mut name = format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    );
    if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
        name.push(':');
        name.push_str(port_name);
    }
    let name: Arc<str> = name.into();
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| config.timeout_seconds).and_then(|s| u64::try_from(s).ok());
        seconds.map_or(AFFINITY_DEFAULT, Duration::from_secs)
    });
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let ranges: Arc<[String]> = spec.load_balancer_source_ranges.clone().unwrap_or_default().into();
    let none: Arc<[String]> = Arc::from([]);
    let Ok(port_number) = u16::try_from(port.port) else { return };
    let mut add = |frontend: Frontend, number: u16, external: bool, sources: &Arc<[String]>| {
        let local = if external { external_local } else { internal_local };
        let v6 = match frontend {
            Frontend::Address(address) => Some(address.is_ipv6()),
            Frontend::Node => None,
        };
        rules.push(Rule {
            service: Arc::clone(&name),
            frontend,
            port: number,
            transport,
            endpoints: endpoints(port, transport, slices, place, local, v6).into(),
            affinity,
            sources: Arc::clone(sources),
            external,
            local,
        });
    };
    for address in cluster_ips(spec) {
        add(Frontend::Address(address), port_number, false, &none);
    }
    for address in spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()) {
        add(Frontend::Address(address), port_number, true, &none);
    }
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    for ingress in balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten()) {
        if ingress.ip_mode.as_deref() != Some("Proxy")
            && let Some(address) = ingress.ip.as_deref().and_then(|ip| ip.parse().ok())
        {
            add(Frontend::Address(address), port_number, true, &ranges);
        }
    }
    if let Some(node_port) = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
    {
        add(Frontend::Node, node_port, true, &none);
    }
}

/// The Service's cluster IPs; none for a headless one.
pub(crate) fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.iter().flatten();
    let mut ips: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(spec.cluster_ip.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()));
    }
    ips
}

/// The endpoints that get a port's TCP traffic from anywhere, sorted.
#[cfg(feature = "ingress")]
pub(crate) fn port_endpoints(port: &ServicePort, slices: &[Arc<EndpointSlice>]) -> Vec<SocketAddr> {
    endpoints(port, Transport::Tcp, slices, &Place::default(), false, None)
}

/// The endpoints that get a port's traffic, sorted.
fn endpoints(
    port: &ServicePort,
    transport: Transport,
    slices: &[Arc<EndpointSlice>],
    place: &Place,
    local: bool,
    v6: Option<bool>,
) -> Vec<SocketAddr> {
    let all = candidates(port, transport, slices, v6);
    let pick = |want: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<SocketAddr> {
        let found: BTreeSet<_> = all.iter().filter(|c| want(c)).map(|c| c.address).collect();
        found.into_iter().collect()
    };
    if local {
        let ready = pick(&|c| c.ready && c.is_local(place));
        return if ready.is_empty() { pick(&|c| c.ending && c.is_local(place)) } else { ready };
    }
    let hinted = hints(&all, place);
    let ready = pick(&|c| {
        c.ready
            && match hinted {
                Hinted::Node => c.node_hints().any(|node| Some(node) == place.node.as_deref()),
                Hinted::Zone => c.zone_hints().any(|zone| Some(zone) == place.zone.as_deref()),
                Hinted::No => true,
            }
    });
    if ready.is_empty() { pick(&|c| c.ending) } else { ready }
}

fn candidates<'a>(
    port: &ServicePort,
    transport: Transport,
    slices: &'a [Arc<EndpointSlice>],
    v6: Option<bool>,
) -> Vec<Candidate<'a>> {
    let mut all = Vec::new();
    for slice in slices {
        if v6.is_some_and(|v6| v6 != (slice.address_type == "IPv6")) {
            continue;
        }
        let matching = slice.ports.iter().flatten().find(|of_slice| {
            let protocol = of_slice.protocol.as_deref().unwrap_or("TCP");
            Transport::parse(protocol) == Some(transport)
                && of_slice.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
        });
        let Some(number) = matching.and_then(|port| port.port).and_then(|port| u16::try_from(port).ok())
        else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
            let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            // Only the first address counts (EndpointSlice API).
            if let Some(ip) = endpoint.addresses.first().and_then(|address| address.parse().ok()) {
                all.push(Candidate {
                    address: SocketAddr::new(ip, number),
                    ready,
                    ending: serving && terminating,
                    endpoint,
                });
            }
        }
    }
    all
}

enum Hinted {
    Node,
    Zone,
    No,
}

/// Whether hints are followed: only when every ready endpoint has some, and at least one of them is for us.
fn hints(all: &[Candidate<'_>], place: &Place) -> Hinted {
    let ready = || all.iter().filter(|candidate| candidate.ready);
    if ready().next().is_none() {
        return Hinted::No;
    }
    if let Some(node) = place.node.as_deref()
        && ready().all(|c| c.node_hints().next().is_some())
        && ready().any(|c| c.node_hints().any(|hint| hint == node))
    {
        return Hinted::Node;
    }
    if let Some(zone) = place.zone.as_deref()
        && ready().all(|c| c.zone_hints().next().is_some())
        && ready().any(|c| c.zone_hints().any(|hint| hint == zone))
    {
        return Hinted::Zone;
    }
    Hinted::No
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    fn slice(endpoints: Value) -> Arc<EndpointSlice> {
        let slice = json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}],
        });
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    fn check(spec: Value, endpoints: Value, place: &Place, expected: &[&str]) {
        let table = Table::of([&service(spec)], &[slice(endpoints)], place);
        let found: Vec<_> = table
            .rules()
            .map(|rule| {
                format!("{:?} {} {:?} -> {:?}", rule.frontend, rule.port, rule.transport, rule.endpoints)
            })
            .collect();
        assert_eq!(found, expected);
    }

    fn endpoint(ip: &str, node: &str, conditions: Value) -> Value {
        json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
    }

    #[test]
    fn services_become_rules() {
        let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
        let two =
            json!([endpoint("10.0.0.2", "b", json!({})), endpoint("10.0.0.1", "a", json!({"ready": true}))]);
        let cluster = json!({"clusterIP": "10.96.0.7", "ports": ports});
        let both = "[10.0.0.1:8080, 10.0.0.2:8080]";
        check(
            cluster,
            two.clone(),
            &Place::default(),
            &[&format!("Address(10.96.0.7) 80 Tcp -> {both}"), &format!("Node 30080 Tcp -> {both}")],
        );
        let local = json!({"clusterIP": "10.96.0.7", "ports": ports, "externalTrafficPolicy": "Local"});
        let place = Place { node: Some("a".into()), zone: None };
        check(
            local,
            two.clone(),
            &place,
            &[&format!("Address(10.96.0.7) 80 Tcp -> {both}"), "Node 30080 Tcp -> [10.0.0.1:8080]"],
        );
        check(json!({"clusterIP": "None", "ports": ports}), two.clone(), &place, &[]);
        check(json!({"type": "ExternalName", "externalName": "x", "ports": ports}), two, &place, &[]);
    }

    /// One number may be there for each protocol, and each has endpoints of its own.
    #[test]
    fn protocols_are_told_apart() {
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [
            {"name": "a", "port": 53, "protocol": "UDP"}, {"name": "a", "port": 53, "protocol": "SCTP"}, {"name": "a", "port": 53}]});
        let slice = json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [
                {"name": "a", "port": 1}, {"name": "a", "port": 2, "protocol": "UDP"}, {"name": "a", "port": 3, "protocol": "SCTP"}]});
        let slice = Arc::new(serde_json::from_value(slice).unwrap());
        let table = Table::of([&service(spec)], &[slice], &Place::default());
        let found: Vec<_> = table.rules().map(|rule| (rule.transport, rule.endpoints[0].port())).collect();
        assert_eq!(found, [(Transport::Udp, 2), (Transport::Sctp, 3), (Transport::Tcp, 1)]);
    }

    #[test]
    fn endpoints_that_end_serve_when_no_other_does() {
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]});
        let ending = json!({"ready": false, "serving": true, "terminating": true});
        let dead = json!({"ready": false, "serving": false, "terminating": true});
        let only = json!([endpoint("10.0.0.1", "a", ending.clone()), endpoint("10.0.0.2", "a", dead)]);
        check(spec.clone(), only, &Place::default(), &["Address(10.96.0.7) 80 Tcp -> [10.0.0.1:8080]"]);
        let mixed =
            json!([endpoint("10.0.0.1", "a", ending), endpoint("10.0.0.3", "b", json!({"ready": true}))]);
        check(spec, mixed, &Place::default(), &["Address(10.96.0.7) 80 Tcp -> [10.0.0.3:8080]"]);
    }

    #[test]
    fn hints_hold_when_all_have_them_and_one_is_for_us() {
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]});
        let hinted =
            |ip: &str, zone: &str| json!({"addresses": [ip], "hints": {"forZones": [{"name": zone}]}});
        let both = json!([hinted("10.0.0.1", "x"), hinted("10.0.0.2", "y")]);
        let at = |zone: &str| Place { node: Some("n".into()), zone: Some(zone.into()) };
        check(spec.clone(), both.clone(), &at("y"), &["Address(10.96.0.7) 80 Tcp -> [10.0.0.2:8080]"]);
        check(spec.clone(), both, &at("z"), &["Address(10.96.0.7) 80 Tcp -> [10.0.0.1:8080, 10.0.0.2:8080]"]);
        let one = json!([hinted("10.0.0.1", "x"), {"addresses": ["10.0.0.2"]}]);
        check(spec, one, &at("x"), &["Address(10.96.0.7) 80 Tcp -> [10.0.0.1:8080, 10.0.0.2:8080]"]);
    }
}
