//! Listeners: which are valid, which conflict, and with which certificates they are served.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kcore::selector::LabelSelector;

use super::{
    super::types::{GROUP, Gateway, Listener, ListenerSet, RouteGroupKind, RouteNamespaces},
    Input, Key, condition, grant, key,
};
use crate::{
    http_proxy::{Certificate, HostName, RouteTable},
    policy::read_selector,
};

/// What is wrong: a reason, and words.
pub(super) type Fault = (&'static str, String);

/// Which namespaces routes may be in.
pub(super) enum Allowed {
    Same,
    All,
    Selected(LabelSelector),
    None,
}

impl Allowed {
    /// Whether objects of a namespace are meant by one of another.
    pub(super) fn allows(&self, input: &Input<'_>, own_namespace: &str, namespace: &str) -> bool {
        match self {
            Self::Same => namespace == own_namespace,
            Self::All => true,
            Self::Selected(selector) => {
                let labels = (input.labels)(namespace);
                selector.matches_with(|key| labels.get(key).map(String::as_str))
            }
            Self::None => false,
        }
    }
}

/// A listener, and what is known of it.
pub(super) struct Bound {
    pub(super) name: String,
    pub(super) port: i32,
    /// The host in lower case; empty for every host.
    pub(super) hostname: String,
    pub(super) kinds: Vec<&'static str>,
    pub(super) attached: i32,
    allowed: Allowed,
    /// Why it is not accepted.
    accepted: Result<(), Fault>,
    /// Why what it refers to is not used.
    resolved: Result<(), Fault>,
    conflict: Option<&'static str>,
}

pub(super) fn group_kind(kind: &str) -> RouteGroupKind {
    RouteGroupKind { group: Some(GROUP.to_owned()), kind: kind.to_owned() }
}

impl Bound {
    /// Whether the proxy goes by it.
    pub(super) fn programmed(&self) -> bool {
        let kinds_only = matches!(&self.resolved, Err((reason, _)) if *reason == "InvalidRouteKinds");
        self.accepted.is_ok()
            && self.conflict.is_none()
            && (self.resolved.is_ok() || kinds_only && !self.kinds.is_empty())
    }

    /// Whether routes of this kind in this namespace may be attached.
    pub(super) fn allows(&self, input: &Input<'_>, own_namespace: &str, kind: &str, namespace: &str) -> bool {
        self.kinds.contains(&kind) && self.allowed.allows(input, own_namespace, namespace)
    }

    pub(super) fn conditions(&self, meta: &ObjectMeta) -> Vec<Condition> {
        let told = |kind: &str, result: &Result<(), Fault>, good: &str| match result {
            Ok(()) => condition(meta, kind, true, good, ""),
            Err((reason, message)) => condition(meta, kind, false, reason, message.as_str()),
        };
        let accepted = match self.conflict {
            Some(reason) => condition(meta, "Accepted", false, reason, "another listener wants the same"),
            None => told("Accepted", &self.accepted, "Accepted"),
        };
        let conflicted = match self.conflict {
            Some(reason) => condition(meta, "Conflicted", true, reason, "another listener wants the same"),
            None => condition(meta, "Conflicted", false, "NoConflicts", ""),
        };
        let programmed = match self.programmed() {
            true => condition(meta, "Programmed", true, "Programmed", ""),
            false => condition(meta, "Programmed", false, "Invalid", "the listener is not valid"),
        };
        vec![accepted, told("ResolvedRefs", &self.resolved, "ResolvedRefs"), conflicted, programmed]
    }
}

/// What routes name as their parent: an object with listeners, by kind, namespace and name.
pub(super) type Parent = (&'static str, Key);

/// The kinds of parents.
pub(super) const GATEWAY: &str = "Gateway";
pub(super) const LISTENER_SET: &str = "ListenerSet";

/// Who has ports, by their numbers: the protocol, and the hosts.
type Ports = BTreeMap<i32, (String, BTreeSet<String>)>;

fn take(ports: &mut Ports, listener: &Listener) {
    let (_, hosts) =
        ports.entry(listener.port).or_insert_with(|| (listener.protocol.clone(), BTreeSet::new()));
    hosts.insert(hostname(listener));
}

/// Whether another protocol, or the same host, is at the listener's port already: the reason of that conflict.
fn clash(ports: &Ports, listener: &Listener) -> Option<&'static str> {
    let (protocol, hosts) = ports.get(&listener.port)?;
    if *protocol != listener.protocol {
        return Some("ProtocolConflict");
    }
    hosts.contains(&hostname(listener)).then_some("HostnameConflict")
}

/// Looks at all listeners, those of each Gateway before those of its sets, and gives those that are served their ports.
pub(super) fn bind(
    input: &Input<'_>,
    gateways: &[(&Gateway, Vec<&ListenerSet>)],
    table: &mut RouteTable,
) -> BTreeMap<Parent, Vec<Bound>> {
    let mut taken = Ports::new();
    let mut all = BTreeMap::new();
    for (gateway, sets) in gateways {
        let is_served = gateway.spec.addresses.is_empty();
        let own = ((GATEWAY, key(&gateway.metadata)), &gateway.spec.listeners);
        let more = sets.iter().map(|set| ((LISTENER_SET, key(&set.metadata)), &set.spec.listeners));
        // What older Gateways serve, and what this one has taken, by its own listeners or by an older set.
        let (older, mut merged) = (taken.clone(), Ports::new());
        for (parent, listeners) in std::iter::once(own).chain(more) {
            let mut bound = Vec::with_capacity(listeners.len());
            for listener in listeners {
                let (mut one, certificate) = look_at(input, &parent, listener);
                one.conflict = conflict(listener, listeners).or_else(|| clash(&merged, listener));
                if one.accepted.is_ok() && one.conflict.is_none() && clash(&older, listener).is_some() {
                    let message = "an older gateway has this host or port".to_owned();
                    one.accepted = Err(("PortUnavailable", message));
                }
                if one.programmed() && is_served {
                    serve(table, listener, &one, certificate);
                }
                bound.push(one);
            }
            for (listener, one) in listeners.iter().zip(&bound) {
                if one.conflict.is_none() {
                    take(&mut merged, listener);
                }
                if one.programmed() {
                    take(&mut taken, listener);
                }
            }
            all.insert(parent, bound);
        }
    }
    all
}

/// Gives a listener its place in the table.
fn serve(table: &mut RouteTable, listener: &Listener, bound: &Bound, certificate: Option<Certificate>) {
    let port = u16::try_from(bound.port).unwrap_or_default();
    let routes = table.ports.entry(port).or_default();
    let host = HostName::gateway(&bound.hostname);
    if listener.protocol == "TLS" {
        routes.passthrough.entry(host.clone());
    } else {
        routes.listeners.entry(host.clone());
    }
    if let Some(certificate) = certificate {
        routes.tls.get_or_insert_default().insert(host, certificate);
    }
}

fn hostname(listener: &Listener) -> String {
    listener.hostname.as_deref().unwrap_or_default().to_ascii_lowercase()
}

/// Whether another listener of the same object wants the same.
fn conflict(listener: &Listener, all: &[Listener]) -> Option<&'static str> {
    let others = || all.iter().filter(|other| other.name != listener.name && other.port == listener.port);
    if others().any(|other| other.protocol != listener.protocol) {
        return Some("ProtocolConflict");
    }
    others().any(|other| hostname(other) == hostname(listener)).then_some("HostnameConflict")
}

fn look_at(input: &Input<'_>, parent: &Parent, listener: &Listener) -> (Bound, Option<Certificate>) {
    let mut certificate = None;
    let (mut accepted, mut resolved) = (Ok(()), Ok(()));
    match listener.protocol.as_str() {
        "HTTP" => {}
        "TLS" => {
            let mode = listener.tls.as_ref().and_then(|tls| tls.mode.as_deref()).unwrap_or("Terminate");
            if mode != "Passthrough" {
                accepted =
                    Err(("UnsupportedValue", format!("the TLS mode {mode:?} is not supported for TLS")));
            }
        }
        "HTTPS" => match find_certificate(input, parent, listener) {
            Ok(found) => certificate = Some(found),
            Err(fault @ ("UnsupportedValue", _)) => accepted = Err(fault),
            Err(fault) => resolved = Err(fault),
        },
        other => accepted = Err(("UnsupportedProtocol", format!("the protocol {other:?} is not supported"))),
    }
    if accepted.is_ok() && !u16::try_from(listener.port).is_ok_and(|port| input.ports.contains(&port)) {
        accepted = Err(("PortUnavailable", format!("the port {} is not served", listener.port)));
    }
    let mut kinds = match listener.protocol.as_str() {
        "HTTP" | "HTTPS" => vec!["HTTPRoute", "GRPCRoute"],
        "TLS" => vec!["TLSRoute"],
        _ => Vec::new(),
    };
    let wanted = listener.allowed_routes.as_ref().map(|allowed| allowed.kinds.as_slice()).unwrap_or_default();
    if !wanted.is_empty() {
        let own = |wanted: &&RouteGroupKind| wanted.group.as_deref().is_none_or(|group| group == GROUP);
        let is_known = |one: &RouteGroupKind| own(&one) && kinds.contains(&one.kind.as_str());
        if let Some(unknown) = wanted.iter().find(|one| !is_known(one)) {
            resolved = Err((
                "InvalidRouteKinds",
                format!("routes of the kind {:?} are not supported", unknown.kind),
            ));
        }
        kinds.retain(|kind| wanted.iter().filter(own).any(|wanted| wanted.kind == *kind));
    }
    let namespaces = listener.allowed_routes.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    let bound = Bound {
        name: listener.name.clone(),
        port: listener.port,
        hostname: hostname(listener),
        kinds,
        attached: 0,
        allowed: allowed(namespaces, "Same"),
        accepted,
        resolved,
        conflict: None,
    };
    (bound, certificate)
}

/// Which namespaces are meant; `default` when it is not said.
pub(super) fn allowed(namespaces: Option<&RouteNamespaces>, default: &str) -> Allowed {
    let from = namespaces.and_then(|namespaces| namespaces.from.as_deref()).unwrap_or(default);
    match from {
        "Same" => Allowed::Same,
        "All" => Allowed::All,
        "Selector" => {
            let selector = namespaces.and_then(|namespaces| namespaces.selector.as_ref());
            selector.and_then(read_selector).map_or(Allowed::None, Allowed::Selected)
        }
        _ => Allowed::None,
    }
}

fn find_certificate(input: &Input<'_>, parent: &Parent, listener: &Listener) -> Result<Certificate, Fault> {
    let tls = listener.tls.clone().unwrap_or_default();
    if let Some(mode) = tls.mode.as_deref().filter(|mode| *mode != "Terminate") {
        return Err(("UnsupportedValue", format!("the TLS mode {mode:?} is not supported")));
    }
    // What a Gateway may refer to its sets may not, and the other way round.
    let (parent_kind, (own, _)) = parent;
    let mut fault = ("InvalidCertificateRef", "no certificate is named".to_owned());
    for reference in &tls.certificate_refs {
        let group = reference.group.as_deref().unwrap_or_default();
        let kind = reference.kind.as_deref().unwrap_or("Secret");
        let namespace = reference.namespace.as_deref().unwrap_or(own.as_str());
        if (group, kind) != ("", "Secret") {
            fault.1 = format!("certificates of the kind {kind:?} are not supported");
        } else if !grant::permits(input, (parent_kind, own), ("", "Secret", namespace, &reference.name)) {
            let message = format!("no ReferenceGrant allows the secret {namespace}/{}", reference.name);
            fault = ("RefNotPermitted", message);
        } else {
            match input.objects.certificate(namespace, &reference.name) {
                Ok(certificate) => return Ok(certificate),
                Err(error) => fault.1 = error.to_string(),
            }
        }
    }
    Err(fault)
}
