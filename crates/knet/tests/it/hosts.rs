//! Three hosts with the built-in network, and a proxy and policies on each: from pods, nodes and outside to Services whose pods are elsewhere.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use knet::{
    ServiceProxy as _, Transport,
    network::bridge::Overlay,
    policy::{
        Compiler, PodFacts, PolicyEnforcer as _, PolicyFacts,
        nftables::{NftablesPolicies, NftablesPolicyConfig},
    },
    proxy::nftables::{NftablesConfig, NftablesProxy},
    rules::{Frontend, Rule},
    testing::{rule, table},
};
use serde_json::json;

use crate::{
    bridge::{Host, OUTSIDE, PORT, acquaint, lay_out, on},
    lab::{connect, connect_within, inside, run, serve},
};

/// How long a test waits for what must not come.
const SILENCE: Duration = Duration::from_millis(400);
const SERVICE: &str = "10.96.0.9:80";
const NODE_PORT: u16 = 30080;

struct Node {
    host: Host,
    proxy: NftablesProxy,
    compiler: Compiler,
    policies: NftablesPolicies,
}

impl Node {
    fn new(host: Host) -> Self {
        let mut config = NftablesConfig::default();
        config.pod_ranges = vec!["10.244.0.0/16".to_owned()];
        let compiler = Compiler::new(Some(host.name.clone()));
        let policies = NftablesPolicies::new(NftablesPolicyConfig::default());
        Self { host, proxy: NftablesProxy::new(config), compiler, policies }
    }

    fn enforce(&mut self) {
        let Self { host, compiler, policies, .. } = self;
        on(&host.name, policies.enforce(compiler.table(), compiler.change())).unwrap();
        compiler.settle();
    }
}

/// The address that a server sees.
fn seen(from: &str, to: SocketAddr) -> Option<String> {
    connect_within(from, to, SILENCE).ok().map(|(seen, _)| seen)
}

#[test]
fn services_are_reached_from_everywhere_and_policies_hold_between_hosts() {
    let test = "hosts::services_are_reached_from_everywhere_and_policies_hold_between_hosts";
    if !inside(test, "", &["sysctl"]) {
        return;
    }
    lay_out();
    let dir = tempfile::tempdir().unwrap();
    let hosts: Vec<Host> =
        (1..=3).map(|number| Host::new(number, Overlay::Vxlan { vni: 1, port: 4789 }, dir.path())).collect();
    let pods: Vec<(&str, usize, IpAddr)> = [("a", 0), ("b", 0), ("c", 1), ("d", 2)]
        .into_iter()
        .map(|(name, host)| (name, host, hosts[host].pod(name, Vec::new()).1))
        .collect();
    let address = |name: &str| pods.iter().find(|pod| pod.0 == name).unwrap().2;
    for server in ["c", "d"] {
        serve(server, SocketAddr::new(address(server), PORT));
    }
    acquaint(&hosts);
    for host in &hosts {
        // A connection to a Service of the node itself begins with a route, like any other.
        run(&format!("ip -n {} route add default via {OUTSIDE}", host.name));
    }
    let mut nodes: Vec<Node> = hosts.into_iter().map(Node::new).collect();
    let endpoints = ["c", "d"].map(|server| SocketAddr::new(address(server), PORT));
    let service: SocketAddr = SERVICE.parse().unwrap();
    let cluster = rule(service, Transport::Tcp, &endpoints);
    let node_port = Rule { frontend: Frontend::Node, port: NODE_PORT, external: true, ..cluster.clone() };
    for node in &nodes {
        let rules = table(vec![cluster.clone(), node_port.clone()]);
        on(&node.host.name, node.proxy.sync(&rules)).unwrap();
    }

    // Pod to Service: by turns to either host, and without NAT of the client.
    for _ in 0..4 {
        for from in ["a", "b"] {
            assert_eq!(connect(from, service).unwrap().0, address(from).to_string());
        }
    }
    // A pod to a Service that it is an endpoint of itself, and to the other endpoint.
    for _ in 0..4 {
        assert!(connect("c", service).is_ok());
    }
    for host in ["h1", "h2", "h3"] {
        for _ in 0..2 {
            assert!(connect(host, service).is_ok(), "node {host} to the Service");
        }
        let at_node = nodes.iter().position(|node| node.host.name == host).unwrap() + 1;
        let at_node: SocketAddr = format!("192.0.2.{at_node}:{NODE_PORT}").parse().unwrap();
        for from in ["", "a"] {
            // Whether the pod is on that host or not, the answer comes back by it.
            for _ in 0..2 {
                assert!(connect(from, at_node).is_ok(), "{from:?} to {at_node}");
            }
        }
    }

    // Only `a` may ask, whichever host the server is on.
    for node in &mut nodes {
        node.compiler.set_namespace("shop".into(), Some([].into()));
        for (name, host, address) in &pods {
            let facts = PodFacts {
                labels: [("app".to_owned(), (*name).to_owned())].into(),
                addresses: vec![*address],
                node: Some(format!("h{}", host + 1)),
                ..PodFacts::default()
            };
            node.compiler.set_pod(("shop".into(), (*name).into()), Some(facts));
        }
        let policy = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": {
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["c", "d"]}]},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": PORT}]}]}});
        let facts = PolicyFacts::of(&serde_json::from_value(policy).unwrap());
        node.compiler.set_policy(("shop".into(), "p".into()), facts);
        node.enforce();
    }
    for to in [service, endpoints[0], endpoints[1]] {
        for _ in 0..2 {
            assert_eq!(connect("a", to).unwrap().0, address("a").to_string(), "{to}");
            assert_eq!(seen("b", to), None, "{to}");
        }
    }
    for node in &mut nodes {
        node.compiler.set_policy(("shop".into(), "p".into()), None);
        node.enforce();
    }
    assert_eq!(connect("b", service).unwrap().0, address("b").to_string());
}
