//! Routes: where they are attached.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    super::{
        CONTROLLER,
        types::{GROUP, GRPCRoute, HTTPRoute, ParentReference, RouteParentStatus, TLSRoute},
    },
    Input, Key, condition, key,
    listener::{Bound, Fault, GATEWAY, LISTENER_SET, Parent},
    policy::Policies,
    rule::{Rules, grpc_rules, http_rules, tls_rules},
};
use crate::http_proxy::{HostName, RouteTable, Rule};

/// What all kinds of routes have.
pub(super) struct RouteView<'a> {
    pub(super) kind: &'static str,
    pub(super) meta: &'a ObjectMeta,
    parents: &'a [ParentReference],
    hostnames: &'a [String],
    /// The rules, or what of them is not supported.
    rules: Result<Vec<Arc<Rule>>, String>,
    /// What is wrong with the backends.
    resolved: Result<(), Fault>,
    /// The Services that it leads to, whose TLS ends here.
    pub(super) services: BTreeSet<Key>,
}

impl<'a> RouteView<'a> {
    pub(super) fn http(route: &'a HTTPRoute, input: &Input<'_>, policies: &Policies<'_>) -> Self {
        let (meta, spec) = (&route.metadata, &route.spec);
        Self::new(
            "HTTPRoute",
            meta,
            &spec.parent_refs,
            &spec.hostnames,
            http_rules(meta, &spec.rules, input, policies),
        )
    }

    pub(super) fn grpc(route: &'a GRPCRoute, input: &Input<'_>, policies: &Policies<'_>) -> Self {
        let (meta, spec) = (&route.metadata, &route.spec);
        Self::new(
            "GRPCRoute",
            meta,
            &spec.parent_refs,
            &spec.hostnames,
            grpc_rules(meta, &spec.rules, input, policies),
        )
    }

    pub(super) fn tls(route: &'a TLSRoute, input: &Input<'_>, policies: &Policies<'_>) -> Self {
        let (meta, spec) = (&route.metadata, &route.spec);
        Self::new(
            "TLSRoute",
            meta,
            &spec.parent_refs,
            &spec.hostnames,
            tls_rules(meta, &spec.rules, input, policies),
        )
    }

    fn new(
        kind: &'static str,
        meta: &'a ObjectMeta,
        parents: &'a [ParentReference],
        hostnames: &'a [String],
        rules: Result<Rules, String>,
    ) -> Self {
        let (rules, resolved, services) = match rules {
            Ok(rules) => (Ok(rules.rules), rules.fault.map_or(Ok(()), Err), rules.services),
            Err(unsupported) => (Err(unsupported), Ok(()), BTreeSet::new()),
        };
        Self { kind, meta, parents, hostnames, rules, resolved, services }
    }

    /// Attaches the route wherever it wants and may be. What it has come to at the Gateways of this controller.
    pub(super) fn attach(
        &self,
        input: &Input<'_>,
        bound: &mut BTreeMap<Parent, Vec<Bound>>,
        table: &mut RouteTable,
    ) -> Vec<RouteParentStatus> {
        let own = self.meta.namespace.as_deref().unwrap_or_default();
        let mut statuses = Vec::new();
        for parent in self.parents {
            if parent.group.as_deref().unwrap_or(GROUP) != GROUP {
                continue;
            }
            // It is attached to the listeners of the object that it names, not to those of a Gateway's sets.
            let kind = parent.kind.as_deref().unwrap_or(GATEWAY);
            let Some(kind) = [GATEWAY, LISTENER_SET].into_iter().find(|known| *known == kind) else {
                continue;
            };
            let namespace = parent.namespace.as_deref().unwrap_or(own);
            let Some(listeners) = bound.get_mut(&(kind, (namespace.to_owned(), parent.name.clone()))) else {
                continue;
            };
            let accepted = self.attach_to(input, (parent, namespace), listeners, table);
            let told = |kind: &str, result: &Result<(), Fault>, good: &str| match result {
                Ok(()) => condition(self.meta, kind, true, good, ""),
                Err((reason, message)) => condition(self.meta, kind, false, reason, message.as_str()),
            };
            statuses.push(RouteParentStatus {
                parent_ref: parent.clone(),
                controller_name: CONTROLLER.to_owned(),
                conditions: vec![
                    told("Accepted", &accepted, "Accepted"),
                    told("ResolvedRefs", &self.resolved, "ResolvedRefs"),
                ],
            });
        }
        statuses
    }

    fn attach_to(
        &self,
        input: &Input<'_>,
        (parent, own_namespace): (&ParentReference, &str),
        listeners: &mut [Bound],
        table: &mut RouteTable,
    ) -> Result<(), Fault> {
        let own = key(self.meta);
        let is_meant = |listener: &Bound| {
            parent.section_name.as_ref().is_none_or(|name| *name == listener.name)
                && parent.port.is_none_or(|port| port == listener.port)
        };
        let mut meant: Vec<_> = listeners.iter_mut().filter(|listener| is_meant(listener)).collect();
        if meant.is_empty() {
            return Err(("NoMatchingParent", "the parent has no such listener".to_owned()));
        }
        meant.retain(|listener| listener.allows(input, own_namespace, self.kind, &own.0));
        if meant.is_empty() {
            return Err(("NotAllowedByListeners", "no listener allows the route".to_owned()));
        }
        let hosts = |listener: &Bound| shared_hosts(&listener.hostname, self.hostnames);
        meant.retain(|listener| !hosts(listener).is_empty());
        if meant.is_empty() {
            let message = "no host of the route is one of a listener".to_owned();
            return Err(("NoMatchingListenerHostname", message));
        }
        let rules = self.rules.as_ref().map_err(|unsupported| ("UnsupportedValue", unsupported.clone()))?;
        for listener in meant {
            listener.attached += 1;
            let port = u16::try_from(listener.port).unwrap_or_default();
            let Some(routes) = table.ports.get_mut(&port).filter(|_| listener.programmed()) else { continue };
            for host in hosts(listener) {
                let listens = HostName::gateway(&listener.hostname);
                if self.kind == "TLSRoute" {
                    let known = routes.passthrough.entry(listens);
                    let host = HostName::gateway(&host);
                    // The oldest route counts.
                    if let Some(rule) = rules.first().filter(|_| known.get(&host).is_none()) {
                        known.insert(host, Arc::clone(rule));
                    }
                    continue;
                }
                for rule in rules {
                    let listens = listens.clone();
                    routes.add(listens, HostName::gateway(&host), Arc::clone(rule));
                }
            }
        }
        Ok(())
    }
}

/// The hosts that a listener and a route have in common; an empty name is every host.
fn shared_hosts(listener: &str, route: &[String]) -> Vec<String> {
    if route.is_empty() {
        return vec![listener.to_owned()];
    }
    route.iter().filter_map(|host| shared_host(listener, &host.to_ascii_lowercase())).collect()
}

/// What two names have in common: the more specific one, if the other covers it.
fn shared_host(one: &str, other: &str) -> Option<String> {
    let covers = |wide: &str, narrow: &str| {
        wide.is_empty()
            || wide == narrow
            || wide.strip_prefix('*').is_some_and(|suffix| {
                let narrow = narrow.strip_prefix('*').unwrap_or(narrow);
                narrow.len() > suffix.len() && narrow.ends_with(suffix)
            })
    };
    if covers(one, other) { Some(other.to_owned()) } else { covers(other, one).then(|| one.to_owned()) }
}
