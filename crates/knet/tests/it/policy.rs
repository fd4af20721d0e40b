//! Policies in the kernel: who reaches whom, with real connections between namespaces. The expected results are those of the API's
//! documentation (`networking.k8s.io/v1`) and of the concept page on network policies.

use std::{net::SocketAddr, time::Duration};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use knet::policy::{
    Compiler, NamedPort, PodFacts, PolicyEnforcer, PolicyFacts, Protocol,
    nftables::{Denied, Existing, NftablesPolicies, NftablesPolicyConfig},
};
use serde_json::{Value, json};

use crate::lab::{connect, connect_within, echoes, echoes_udp, inside, pod, run, serve, serve_udp};

/// How long a test waits for what must not come.
const SILENCE: Duration = Duration::from_millis(400);

/// A pod by namespace and name, with its address and labels. The network namespace has its name.
const PODS: &[(&str, &str, &str, &str, &str)] = &[
    ("shop", "web", "10.1.0.1", "fd00::1", "web"),
    ("shop", "cart", "10.1.0.2", "fd00::2", "cart"),
    ("bank", "till", "10.1.0.3", "fd00::3", "till"),
];
/// Not a pod, but as far away.
const OUTSIDE: (&str, &str) = ("outside", "198.51.100.7");
/// Where all serve TCP; 80 is web's port `http`, and 53 serves UDP, too.
const PORTS: [u16; 4] = [80, 81, 90, 53];

fn facts(address: &str, address6: &str, app: &str) -> PodFacts {
    let named = (app == "web").then(|| NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 });
    PodFacts {
        labels: [("app".to_owned(), app.to_owned())].into(),
        addresses: vec![address.parse().unwrap(), address6.parse().unwrap()],
        node: Some("node".into()),
        ports: named.into_iter().collect(),
    }
}

fn compiler() -> Compiler {
    let mut compiler = Compiler::new(Some("node".into()));
    for (namespace, name, address, address6, app) in PODS {
        let labels = [("team".to_owned(), (*namespace).to_owned())].into();
        compiler.set_namespace((*namespace).into(), Some(labels));
        compiler.set_pod(((*namespace).into(), (*name).into()), Some(facts(address, address6, app)));
    }
    compiler
}

fn set(compiler: &mut Compiler, name: &str, spec: Option<&Value>) {
    let policy = spec.and_then(|spec| {
        let policy = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        PolicyFacts::of(&serde_json::from_value::<NetworkPolicy>(policy).unwrap())
    });
    compiler.set_policy(("shop".into(), name.into()), policy);
}

async fn enforce(enforcer: &NftablesPolicies, compiler: &mut Compiler) {
    enforcer.enforce(compiler.table(), compiler.change()).await.unwrap();
    compiler.settle();
}

fn enforcer(denied: Denied, existing: Existing) -> NftablesPolicies {
    let mut config = NftablesPolicyConfig::default();
    (config.denied, config.existing) = (denied, existing);
    NftablesPolicies::new(config)
}

fn lay_out() {
    for (_, name, address, address6, _) in PODS {
        pod(name, &[address, address6]);
    }
    pod(OUTSIDE.0, &[OUTSIDE.1]);
    let hosts = PODS.iter().flat_map(|one| [(one.1, one.2), (one.1, one.3)]).chain([OUTSIDE]);
    for (name, address) in hosts {
        for port in PORTS {
            serve(name, SocketAddr::new(address.parse().unwrap(), port));
        }
        serve_udp(name, SocketAddr::new(address.parse().unwrap(), 53));
    }
}

fn address_of(name: &str) -> &'static str {
    let found = PODS.iter().find(|one| one.1 == name).map(|one| one.2);
    found.unwrap_or(OUTSIDE.1)
}

/// Each line is a connection and whether it is made: `cart -> web:80 yes`. No name in front means the node.
fn check(title: &str, lines: &str) {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (connection, expected) = line.rsplit_once(' ').unwrap();
        let (from, to) = connection.split_once("->").unwrap();
        let (to, port) = to.trim().split_once(':').unwrap();
        let (port, udp) = port.strip_suffix("/udp").map_or((port, false), |port| (port, true));
        let (name, six) = to.strip_suffix('6').map_or((to, false), |name| (name, true));
        let address = match six {
            true => PODS.iter().find(|one| one.1 == name).unwrap().3,
            false => address_of(name),
        };
        let target = SocketAddr::new(address.parse().unwrap(), port.parse().unwrap());
        let made =
            if udp { echoes_udp(from.trim(), target, SILENCE) } else { connect(from.trim(), target).is_ok() };
        assert_eq!(made, expected == "yes", "{title}: {line}\n{}", run("nft list ruleset"));
    }
}

/// The blocks of the kernel's listing, in one order and without what counts.
fn listed() -> Vec<String> {
    let text = run("nft list table inet kplane-policy");
    let counted = |line: &str| match line.split_once("counter packets") {
        Some((before, after)) => format!("{before}counter {}", after.rsplit(' ').next().unwrap_or_default()),
        None => line.to_owned(),
    };
    let mut blocks: Vec<String> =
        text.split("\n\t}\n").map(|block| block.trim().lines().map(counted).collect()).collect();
    blocks.sort();
    blocks
}

#[tokio::test]
async fn policies_allow_and_deny() {
    if !inside("policy::policies_allow_and_deny", "", &["sysctl"]) {
        return;
    }
    lay_out();
    let web = json!({"matchLabels": {"app": "web"}});
    let cart = json!({"podSelector": {"matchLabels": {"app": "cart"}}});
    let bank = json!({"namespaceSelector": {"matchLabels": {"team": "bank"}}});
    let cases = [
        ("no policy", vec![], "cart -> web:80 yes\ntill -> web:80 yes\noutside -> web:80 yes"),
        (
            "default deny of what comes",
            vec![json!({"podSelector": {}})],
            "cart -> web:80 no\noutside -> web:80 no\n-> web:80 yes\nweb -> web:80 yes\nweb -> till:80 yes\ncart -> web6:80 no",
        ),
        (
            "default deny of what goes",
            vec![json!({"podSelector": {}, "policyTypes": ["Egress"]})],
            "web -> till:80 no\nweb -> outside:80 no\ntill -> web:80 yes\nweb -> till6:80 no",
        ),
        (
            "a pod by label",
            vec![json!({"podSelector": web, "ingress": [{"from": [cart]}]})],
            "cart -> web:80 yes\ncart -> web6:80 yes\ntill -> web:80 no\ncart -> web:53/udp yes\ntill -> web:53/udp no\ntill -> cart:80 yes",
        ),
        (
            "a namespace by label",
            vec![json!({"podSelector": web, "ingress": [{"from": [bank]}]})],
            "cart -> web:80 no\ntill -> web:80 yes",
        ),
        (
            "policies add up",
            vec![
                json!({"podSelector": web, "ingress": [{"from": [bank], "ports": [{"port": 80}]}]}),
                json!({"podSelector": {}, "ingress": [{"from": [cart], "ports": [{"port": 81}]}]}),
            ],
            "till -> web:80 yes\ntill -> web:81 no\ncart -> web:80 no\ncart -> web:81 yes\ntill -> cart:80 no",
        ),
        (
            "a named port, a range, and a protocol",
            vec![json!({"podSelector": web, "ingress": [{"ports": [
                {"port": "http"}, {"port": 85, "endPort": 95}, {"port": 53, "protocol": "UDP"}]}]})],
            "till -> web:80 yes\ntill -> web:81 no\ntill -> web:90 yes\ntill -> web:53/udp yes\ntill -> web:53 no",
        ),
        (
            "a block with an exception",
            vec![json!({"podSelector": web, "ingress": [
                {"from": [{"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.0.2/32"]}}]}]})],
            "till -> web:80 yes\ncart -> web:80 no\noutside -> web:80 no\ntill -> web6:80 no",
        ),
        (
            "everywhere but to the pods",
            vec![json!({"podSelector": web, "policyTypes": ["Egress"], "egress": [
                {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}]})],
            "web -> outside:80 yes\nweb -> till:80 no\nweb -> till6:80 no\ntill -> web:80 yes",
        ),
        (
            "to a named port: only those have it that name it",
            vec![
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]}),
            ],
            "cart -> web:80 yes\ncart -> web:81 no\ncart -> till:80 no\ncart -> outside:80 no",
        ),
        (
            "both ends have a say",
            vec![
                json!({"podSelector": web, "ingress": [{"from": [cart]}]}),
                json!({"podSelector": {"matchLabels": {"app": "cart"}}, "policyTypes": ["Egress"],
                    "egress": [{"ports": [{"port": 81}]}]}),
            ],
            "cart -> web:80 no\ncart -> web:81 yes\ntill -> web:81 no",
        ),
    ];
    let (mut compiler, enforcer) = (compiler(), enforcer(Denied::Rejected, Existing::Kept));
    enforce(&enforcer, &mut compiler).await;
    for (title, policies, lines) in cases {
        for (index, name) in ["one", "two"].into_iter().enumerate() {
            set(&mut compiler, name, policies.get(index));
        }
        enforce(&enforcer, &mut compiler).await;
        check(title, lines);
        // What the kernel has after a history is what one who begins now makes.
        let after = listed();
        let fresh = self::enforcer(Denied::Rejected, Existing::Kept);
        fresh.enforce(compiler.table(), compiler.change()).await.unwrap();
        assert_eq!(after, listed(), "{title}");
    }
    enforcer.remove().await.unwrap();
    assert_eq!(run("nft list ruleset"), "");
}

#[tokio::test]
async fn pods_come_and_go() {
    if !inside("policy::pods_come_and_go", "", &["sysctl"]) {
        return;
    }
    lay_out();
    let (mut compiler, enforcer) = (compiler(), enforcer(Denied::Rejected, Existing::Kept));
    let from_cart = json!({"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "cart"}}}]}]});
    set(&mut compiler, "one", Some(&from_cart));
    enforce(&enforcer, &mut compiler).await;
    check("at first", "cart -> web:80 yes\ntill -> web:80 no");
    compiler.set_pod(("bank".into(), "till".into()), Some(facts("10.1.0.3", "fd00::3", "cart")));
    enforce(&enforcer, &mut compiler).await;
    check("a peer by another label", "till -> web:80 yes");
    compiler.set_pod(("shop".into(), "cart".into()), None);
    enforce(&enforcer, &mut compiler).await;
    check("a peer that is gone", "cart -> web:80 no");
    compiler.set_namespace("bank".into(), None);
    enforce(&enforcer, &mut compiler).await;
    check("a namespace that is gone", "till -> web:80 no");
    // The pod's address passes on to another pod, and the news of the first one's end come late.
    compiler.set_pod(("shop".into(), "next".into()), Some(facts("10.1.0.1", "fd00::1", "other")));
    enforce(&enforcer, &mut compiler).await;
    compiler.set_pod(("shop".into(), "web".into()), None);
    enforce(&enforcer, &mut compiler).await;
    check("an address that passed on", "till -> web:80 yes");
}

#[tokio::test]
async fn connections_that_exist_are_kept_or_cut() {
    if !inside("policy::connections_that_exist_are_kept_or_cut", "", &["sysctl"]) {
        return;
    }
    lay_out();
    let target: SocketAddr = "10.1.0.1:80".parse().unwrap();
    for (existing, goes_on) in [(Existing::Kept, true), (Existing::Cut, false)] {
        let (mut compiler, enforcer) = (compiler(), enforcer(Denied::Dropped, existing));
        enforce(&enforcer, &mut compiler).await;
        let (_, mut stream) = connect("till", target).unwrap();
        assert!(echoes(&mut stream, Duration::from_secs(20)));
        set(&mut compiler, "deny", Some(&json!({"podSelector": {}})));
        enforce(&enforcer, &mut compiler).await;
        assert_eq!(echoes(&mut stream, SILENCE), goes_on, "{existing:?}");
        let refused = connect_within("till", target, SILENCE).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut, "what is dropped is not answered");
        // What the pod itself began has its answers.
        let (_, mut own) = connect("web", "10.1.0.3:80".parse().unwrap()).unwrap();
        assert!(echoes(&mut own, Duration::from_secs(20)), "{existing:?}");
        enforcer.remove().await.unwrap();
    }
}
