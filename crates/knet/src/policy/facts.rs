//! What the compiler needs to know of pods and policies, read from the API's objects.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::Pod,
        networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    },
    apimachinery::pkg::{apis::meta::v1 as meta, util::intstr::IntOrString},
};
use kcore::selector::LabelSelector;

use super::{Cidr, Ports, Protocol};

/// The name of a port of a pod, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// What there is to know of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node it is on.
    pub node: Option<String>,
    /// Its containers' ports that have names.
    pub ports: Vec<NamedPort>,
}

impl PodFacts {
    /// Reads a pod. `None` when policies have nothing to do with it: it is on the host's network, has no address yet, or has ended,
    /// so that its address may be another's.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || spec.host_network == Some(true) {
            return None;
        }
        let mut addresses: Vec<IpAddr> =
            status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        if addresses.is_empty() {
            addresses.extend(status.pod_ip.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()));
        }
        if addresses.is_empty() {
            return None;
        }
        // Init containers that go on beside the others can have ports, too.
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|one| one.ports.iter().flatten());
        let ports = ports.filter_map(|port| {
            Some(NamedPort {
                name: port.name.clone()?,
                protocol: protocol(port.protocol.as_deref())?,
                port: u16::try_from(port.container_port).ok()?,
            })
        });
        Some(Self {
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            addresses,
            node: spec.node_name.clone(),
            ports: ports.collect(),
        })
    }
}

/// A policy, as far as it can be read without knowing pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFacts {
    pub(super) selects: LabelSelector,
    /// The rules for what comes; `None` when the policy isn't about that.
    pub(super) ingress: Option<Vec<RuleFacts>>,
    pub(super) egress: Option<Vec<RuleFacts>>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RuleFacts {
    /// `None`: everybody.
    pub(super) peers: Option<Vec<Peer>>,
    /// `None`: everything.
    pub(super) ports: Option<Vec<PortFacts>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Pods { namespaces: Namespaces, pods: LabelSelector },
    Block { cidr: Cidr, except: Vec<Cidr> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Namespaces {
    /// The policy's own.
    Own,
    Selected(LabelSelector),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortFacts {
    Numbers(Ports),
    Named(Protocol, String),
}

impl PolicyFacts {
    /// Reads a policy. What the API server would not have let in selects, or allows, nothing.
    #[must_use]
    pub fn of(policy: &NetworkPolicy) -> Option<Self> {
        let spec = policy.spec.as_ref()?;
        let selects = match &spec.pod_selector {
            Some(selector) => read_selector(selector)?,
            None => LabelSelector::default(),
        };
        let egress_rules = spec.egress.as_deref().unwrap_or_default();
        let is_about = |direction: &str| match spec.policy_types.as_deref() {
            Some(types) if !types.is_empty() => types.iter().any(|one| one == direction),
            // Without types a policy is about what comes, and about what goes if it has rules for that.
            _ => direction == "Ingress" || !egress_rules.is_empty(),
        };
        let ingress = spec.ingress.iter().flatten();
        let ingress = ingress.map(|rule| rule_facts(rule.from.as_deref(), rule.ports.as_deref()));
        let egress = egress_rules.iter().map(|rule| rule_facts(rule.to.as_deref(), rule.ports.as_deref()));
        Some(Self {
            selects,
            ingress: is_about("Ingress").then(|| ingress.collect()),
            egress: is_about("Egress").then(|| egress.collect()),
        })
    }
}

fn rule_facts(peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>) -> RuleFacts {
    RuleFacts {
        peers: peers.filter(|list| !list.is_empty()).map(|list| list.iter().filter_map(peer).collect()),
        ports: ports.filter(|list| !list.is_empty()).map(|list| list.iter().filter_map(port).collect()),
    }
}

fn peer(peer: &NetworkPolicyPeer) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        let cidr = Cidr::parse(&block.cidr)?;
        let except = block.except.iter().flatten().map(|range| Cidr::parse(range));
        // An exception that can't be read must not let in what it was to keep out.
        return Some(Peer::Block { cidr, except: except.collect::<Option<_>>()? });
    }
    let pods = match &peer.pod_selector {
        Some(selector) => read_selector(selector)?,
        None => LabelSelector::default(),
    };
    let namespaces = match &peer.namespace_selector {
        Some(selector) => Namespaces::Selected(read_selector(selector)?),
        None if peer.pod_selector.is_some() => Namespaces::Own,
        None => return None,
    };
    Some(Peer::Pods { namespaces, pods })
}

fn port(port: &NetworkPolicyPort) -> Option<PortFacts> {
    let protocol = protocol(port.protocol.as_deref())?;
    Some(match &port.port {
        None => PortFacts::Numbers(Ports { protocol, first: 0, last: u16::MAX }),
        Some(IntOrString::String(name)) => PortFacts::Named(protocol, name.clone()),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = port.end_port.map_or(Some(first), |last| u16::try_from(last).ok())?;
            (first <= last).then_some(PortFacts::Numbers(Ports { protocol, first, last }))?
        }
    })
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    Some(match name {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(_) => return None,
    })
}

/// `None` when it can't be read.
pub(crate) fn read_selector(selector: &meta::LabelSelector) -> Option<LabelSelector> {
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let expressions = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|one| (one.key.as_str(), one.operator.as_str(), one.values.clone().unwrap_or_default()));
    LabelSelector::of_object(labels, expressions)
}
