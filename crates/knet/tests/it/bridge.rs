//! The built-in network: two and three hosts as network namespaces on one link, with pods on each.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use knet::{
    network::{
        NetworkError, PodAttachment, PodNetwork, PortMapping,
        bridge::{BridgeNetwork, BridgeOptions, Overlay, Peer},
    },
    policy::{Cidr, Protocol},
};

use crate::lab::{attempt, connect, connect_within, inside, run, serve, within};

/// How long a test waits for what must not come.
const SILENCE: Duration = Duration::from_millis(400);
/// Not one of the hosts, on their link.
pub(crate) const OUTSIDE: &str = "192.0.2.254";
pub(crate) const PORT: u16 = 80;

fn cidr(text: &str) -> Cidr {
    Cidr::parse(text).unwrap()
}

/// Runs what changes a host's network on a thread that is there.
pub(crate) fn on<T: Send>(host: &str, work: impl Future<Output = T> + Send) -> T {
    within(host, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work)
    })
}

pub(crate) struct Host {
    pub(crate) name: String,
    network: BridgeNetwork,
    peer: Peer,
}

impl Host {
    /// A host on the link, whose pods have their addresses from `10.244.<number>.0/24`.
    pub(crate) fn new(number: u8, overlay: Overlay, dir: &Path) -> Self {
        let name = format!("h{number}");
        let address: IpAddr = [192, 0, 2, number].into();
        run(&format!(
            "ip netns add {name} && ip -n {name} link set lo up \
             && ip link add l-{name} type veth peer name eth0 netns {name} && ip link set l-{name} master lan up \
             && ip -n {name} addr add {address}/24 dev eth0 && ip -n {name} link set eth0 up"
        ));
        let ranges = vec![cidr(&format!("10.244.{number}.0/24")), cidr(&format!("fd00:0:0:{number}::/64"))];
        let mut options = BridgeOptions::new(ranges.clone());
        options.cluster_ranges = vec![cidr("10.244.0.0/16"), cidr("fd00::/32")];
        options.overlay = overlay;
        options.state_dir = dir.join(&name);
        let peer = Peer { name: name.clone(), address, ranges: vec![ranges[0]] };
        Self { name, network: BridgeNetwork::new(options).unwrap(), peer }
    }

    /// A pod that serves, with its address.
    pub(crate) fn pod(&self, name: &str, ports: Vec<PortMapping>) -> (PodAttachment, IpAddr) {
        if !Path::new(&format!("/run/netns/{name}")).exists() {
            run(&format!("ip netns add {name}"));
        }
        let pod = attachment(name, ports);
        let attached = on(&self.name, self.network.attach(&pod)).unwrap();
        assert_eq!(attached.addresses.len(), 2, "one of each family");
        (pod, attached.addresses[0])
    }
}

fn attachment(name: &str, ports: Vec<PortMapping>) -> PodAttachment {
    PodAttachment {
        id: format!("sandbox-{name}"),
        namespace: "shop".into(),
        name: name.into(),
        uid: "1".into(),
        netns: Some(format!("/run/netns/{name}").into()),
        ports,
    }
}

/// Tells each host of all others.
pub(crate) fn acquaint(hosts: &[Host]) {
    for host in hosts {
        let others = hosts.iter().filter(|other| other.name != host.name);
        let others: Vec<Peer> = others.map(|other| other.peer.clone()).collect();
        on(&host.name, host.network.connect(host.peer.address, &others)).unwrap();
    }
}

pub(crate) fn lay_out() {
    run(&format!("ip link add lan type bridge && ip link set lan up && ip addr add {OUTSIDE}/24 dev lan"));
    // The link's own bridge is a switch, which knows nothing of what it carries.
    attempt("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
}

/// Every pod reaches every other, and is seen there with its own address.
fn check_without_nat(pods: &[(&str, IpAddr)]) {
    for ((from, source), (to, target)) in pods.iter().flat_map(|a| pods.iter().map(move |b| (a, b))) {
        if from != to {
            let (seen, _) = connect(from, SocketAddr::new(*target, PORT))
                .unwrap_or_else(|error| panic!("{from} -> {to}: {error}"));
            assert_eq!(seen, source.to_string(), "{from} -> {to}");
        }
    }
}

fn hosts_are_one_network(overlay: Overlay, mtu: &str) {
    lay_out();
    let dir = tempfile::tempdir().unwrap();
    let mut hosts: Vec<Host> = (1..=2).map(|number| Host::new(number, overlay, dir.path())).collect();
    let (_, a) = hosts[0].pod("a", Vec::new());
    let (_, b) = hosts[0].pod("b", Vec::new());
    let (_, c) = hosts[1].pod("c", Vec::new());
    for (name, address) in [("a", a), ("b", b), ("c", c)] {
        serve(name, SocketAddr::new(address, PORT));
    }
    acquaint(&hosts);
    check_without_nat(&[("a", a), ("b", b), ("c", c)]);
    assert!(run("ip -n a link show eth0").contains(mtu));

    // Another host comes.
    hosts.push(Host::new(3, overlay, dir.path()));
    let (_, d) = hosts[2].pod("d", Vec::new());
    serve("d", SocketAddr::new(d, PORT));
    acquaint(&hosts);
    let pods = [("a", a), ("b", b), ("c", c), ("d", d)];
    check_without_nat(&pods);

    // A partition: the others go on.
    run("ip link set l-h3 down");
    assert!(connect_within("a", SocketAddr::new(d, PORT), SILENCE).is_err());
    check_without_nat(&pods[..3]);
    run("ip link set l-h3 up");
    check_without_nat(&pods);

    // It comes back with another address.
    run("ip -n h3 addr flush dev eth0 && ip -n h3 addr add 192.0.2.33/24 dev eth0");
    hosts[2].peer.address = "192.0.2.33".parse().unwrap();
    acquaint(&hosts);
    check_without_nat(&pods);

    // And goes.
    let last = hosts.pop().unwrap();
    acquaint(&hosts);
    assert!(connect_within("a", SocketAddr::new(d, PORT), SILENCE).is_err());
    assert!(!run("ip -n h1 route").contains("10.244.3."));
    on("h3", last.network.remove()).unwrap();
    assert_eq!(run("ip netns exec h3 nft list ruleset"), "");
    let left = run("ip -n h3 -o link") + &run("ip -n h3 route");
    assert!(!left.contains("kp") && !left.contains("10.244"), "{left}");
}

#[test]
fn hosts_are_one_network_by_vxlan() {
    if inside("bridge::hosts_are_one_network_by_vxlan", "", &["sysctl"]) {
        hosts_are_one_network(Overlay::Vxlan { vni: 1, port: 4789 }, "mtu 1450");
    }
}

#[test]
fn hosts_are_one_network_by_routes() {
    if inside("bridge::hosts_are_one_network_by_routes", "", &["sysctl"]) {
        hosts_are_one_network(Overlay::None, "mtu 1500");
    }
}

#[test]
fn pods_reach_the_world_and_the_world_host_ports() {
    if !inside("bridge::pods_reach_the_world_and_the_world_host_ports", "", &["sysctl"]) {
        return;
    }
    lay_out();
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(1, Overlay::None, dir.path());
    let mapping =
        |host_port| PortMapping { host_address: None, host_port, pod_port: PORT, protocol: Protocol::Tcp };
    let (web, address) = host.pod("web", vec![mapping(8080)]);
    let (other, _) = host.pod("other", Vec::new());
    serve("web", SocketAddr::new(address, PORT));
    let outside = SocketAddr::new(OUTSIDE.parse().unwrap(), 90);
    serve("", outside);
    assert_eq!(connect("web", outside).unwrap().0, "192.0.2.1", "outside a pod has its node's address");
    let port: SocketAddr = "192.0.2.1:8080".parse().unwrap();
    assert_eq!(connect("", port).unwrap().0, OUTSIDE, "a client keeps its address");
    for from in ["other", "web", "h1"] {
        assert!(connect(from, port).is_ok(), "{from}");
    }
    let clash = attachment("clash", vec![mapping(8080)]);
    let error = on("h1", host.network.attach(&clash)).unwrap_err();
    assert_eq!(error.to_string(), "host port 0.0.0.0:8080 is in use by shop/web");

    // Another life of the process knows the pods, and takes back what is of none.
    let mut options = BridgeOptions::new(host.peer.ranges.clone());
    options.ranges.push(cidr("fd00:0:0:1::/64"));
    options.overlay = Overlay::None;
    options.state_dir = dir.path().join("h1");
    let next = BridgeNetwork::new(options).unwrap();
    on("h1", next.ready()).unwrap();
    assert_eq!(on("h1", next.attach(&web)).unwrap().addresses[0], address, "the same pod, the same address");
    assert!(connect("", port).is_ok(), "nothing was interrupted");
    on("h1", next.collect(std::slice::from_ref(&web.id))).unwrap();
    assert!(attempt("ip -n other link show eth0").stdout.is_empty(), "a pod that is none has no device");
    on("h1", next.detach(&other)).unwrap();
    on("h1", next.detach(&web)).unwrap();
    on("h1", next.detach(&web)).unwrap();
    let refused = connect("", port).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // A namespace that isn't there: nothing is left of the attempt.
    let gone = on("h1", next.attach(&attachment("gone", Vec::new())));
    assert!(matches!(gone, Err(NetworkError::Io(..))));
    assert_eq!(std::fs::read_dir(dir.path().join("h1/leases")).unwrap().count(), 0);
}
