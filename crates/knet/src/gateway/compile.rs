//! From the objects of the Gateway API to a table of routes and to statuses: a pure function.
//!
//! Conditions and reasons are those of the API's specification (`GatewayConditionType`, `ListenerConditionType`,
//! `RouteConditionType`); what is attached where follows "Attaching Routes to Gateways" and the fields' descriptions.

mod grant;
mod listener;
mod policy;
mod route;
mod rule;
mod set;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kreconcile::conditions;

use self::{
    listener::{Bound, GATEWAY, Parent, bind},
    policy::Policies,
    route::RouteView,
};
use super::{
    CONTROLLER,
    types::{
        BackendTLSPolicy, GRPCRoute, Gateway, GatewayAddress, GatewayClass, GatewayStatus, HTTPRoute,
        ListenerSet, ListenerSetStatus, ListenerStatus, PolicyAncestorStatus, ReferenceGrant,
        RouteParentStatus, TLSRoute,
    },
};
use crate::{
    backends::Objects,
    http_proxy::{Authorities, RouteTable},
};

/// Namespace and name.
pub type Key = (String, String);

/// All that counts.
pub struct Input<'a> {
    /// The classes.
    pub classes: &'a [Arc<GatewayClass>],
    /// The Gateways.
    pub gateways: &'a [Arc<Gateway>],
    /// The listeners that Gateways have besides.
    pub listener_sets: &'a [Arc<ListenerSet>],
    /// The routes of HTTP.
    pub http_routes: &'a [Arc<HTTPRoute>],
    /// The routes of gRPC.
    pub grpc_routes: &'a [Arc<GRPCRoute>],
    /// The routes of TLS.
    pub tls_routes: &'a [Arc<TLSRoute>],
    /// What may be referred to from elsewhere.
    pub grants: &'a [Arc<ReferenceGrant>],
    /// How Services are spoken to by TLS.
    pub policies: &'a [Arc<BackendTLSPolicy>],
    /// A ConfigMap, by namespace and name.
    pub config_map: &'a dyn Fn(&str, &str) -> Option<Arc<ConfigMap>>,
    /// Those whom the machine believes, or why there are none.
    pub system_authorities: &'a dyn Fn() -> Result<Authorities, String>,
    /// The labels of a namespace.
    pub labels: &'a dyn Fn(&str) -> BTreeMap<String, String>,
    /// The ports that are served.
    pub ports: &'a BTreeSet<u16>,
    /// Where they are served.
    pub addresses: &'a [IpAddr],
    /// What routes and listeners refer to.
    pub objects: &'a dyn Objects,
}

/// What becomes of the objects. Conditions have no times; whoever writes them knows those.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// What the proxy does.
    pub table: RouteTable,
    /// The conditions of this controller's classes.
    pub classes: BTreeMap<String, Vec<Condition>>,
    /// The statuses of their Gateways.
    pub gateways: BTreeMap<Key, GatewayStatus>,
    /// Those of the ListenerSets that name these Gateways.
    pub listener_sets: BTreeMap<Key, ListenerSetStatus>,
    /// Those of HTTPRoutes at these Gateways.
    pub http_routes: BTreeMap<Key, Vec<RouteParentStatus>>,
    /// Those of GRPCRoutes.
    pub grpc_routes: BTreeMap<Key, Vec<RouteParentStatus>>,
    /// Those of TLSRoutes.
    pub tls_routes: BTreeMap<Key, Vec<RouteParentStatus>>,
    /// Those of BackendTLSPolicies at the Gateways that have routes to their Services.
    pub policies: BTreeMap<Key, Vec<PolicyAncestorStatus>>,
}

/// A condition about this generation of the object.
fn condition(
    meta: &ObjectMeta,
    kind: &str,
    holds: bool,
    reason: &str,
    message: impl Into<String>,
) -> Condition {
    Condition { observed_generation: meta.generation, ..conditions::condition(kind, holds, reason, message) }
}

fn is_accepted(condition: &Condition) -> bool {
    condition.type_ == "Accepted" && condition.status == "True"
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The order in which objects are taken that ask for the same: the oldest first, then by name.
fn age(meta: &ObjectMeta) -> impl Ord + use<> {
    (meta.creation_timestamp.as_ref().map(|time| time.0), key(meta))
}

/// What becomes of the objects of this controller's classes.
#[must_use]
pub fn compile(input: &Input<'_>) -> Compiled {
    let mut compiled = Compiled::default();
    let mut usable = BTreeSet::new();
    for class in input.classes.iter().filter(|class| class.spec.controller_name == CONTROLLER) {
        let meta = &class.metadata;
        let name = meta.name.clone().unwrap_or_default();
        let accepted = match &class.spec.parameters_ref {
            None => condition(meta, "Accepted", true, "Accepted", "the class is served"),
            Some(_) => condition(meta, "Accepted", false, "InvalidParameters", "there are no parameters"),
        };
        if class.spec.parameters_ref.is_none() {
            usable.insert(name.clone());
        }
        compiled.classes.insert(name, vec![accepted]);
    }
    let mut gateways: Vec<&Gateway> = input.gateways.iter().map(AsRef::as_ref).collect();
    gateways.retain(|gateway| usable.contains(&gateway.spec.gateway_class_name));
    gateways.sort_by_key(|gateway| age(&gateway.metadata));
    let sets = set::attached(input, &gateways);
    let with_sets: Vec<(&Gateway, Vec<&ListenerSet>)> = gateways
        .iter()
        .map(|gateway| (*gateway, sets.iter().filter_map(|set| set.allowed_by(gateway)).collect()))
        .collect();
    let mut bound = bind(input, &with_sets, &mut compiled.table);
    for set in &sets {
        // Routes at a set that is not allowed are told that there is nothing to be attached to.
        bound.entry(set.parent()).or_default();
    }
    let policies = Policies::of(input);
    let http = input.http_routes.iter().map(|route| RouteView::http(route, input, &policies));
    let grpc = input.grpc_routes.iter().map(|route| RouteView::grpc(route, input, &policies));
    let tls = input.tls_routes.iter().map(|route| RouteView::tls(route, input, &policies));
    let mut routes: Vec<_> = http.chain(grpc).chain(tls).collect();
    routes.sort_by_key(|route| age(route.meta));
    let mut used: BTreeMap<Key, BTreeSet<Key>> = BTreeMap::new();
    for route in &routes {
        let parents = route.attach(input, &mut bound, &mut compiled.table);
        for parent in parents.iter().filter(|parent| parent.conditions.iter().any(is_accepted)) {
            let own = route.meta.namespace.as_ref();
            let namespace = parent.parent_ref.namespace.as_ref().or(own).cloned().unwrap_or_default();
            let named = (namespace, parent.parent_ref.name.clone());
            let is_gateway = parent.parent_ref.kind.as_deref().unwrap_or(GATEWAY) == GATEWAY;
            let set = sets.iter().find(|set| !is_gateway && set.parent().1 == named);
            let gateway = set.map_or(named, |set| set.gateway.clone());
            for service in &route.services {
                used.entry(service.clone()).or_default().insert(gateway.clone());
            }
        }
        if !parents.is_empty() {
            let all = match route.kind {
                "HTTPRoute" => &mut compiled.http_routes,
                "GRPCRoute" => &mut compiled.grpc_routes,
                _ => &mut compiled.tls_routes,
            };
            all.insert(key(route.meta), parents);
        }
    }
    compiled.policies = policies.statuses(&used);
    for gateway in gateways {
        let own = key(&gateway.metadata);
        let mut status = gateway_status(input, gateway, listeners(&bound, &(GATEWAY, own.clone())));
        let mut accepted = 0;
        for set in sets.iter().filter(|set| set.gateway == own) {
            let parent = set.parent();
            let (set_status, is_accepted) = set.status(&status, listeners(&bound, &parent));
            accepted += i32::from(is_accepted);
            compiled.listener_sets.insert(parent.1, set_status);
        }
        status.attached_listener_sets = Some(accepted);
        compiled.gateways.insert(own, status);
    }
    compiled
}

fn listeners<'a>(bound: &'a BTreeMap<Parent, Vec<Bound>>, parent: &Parent) -> &'a [Bound] {
    bound.get(parent).map(Vec::as_slice).unwrap_or_default()
}

fn listener_statuses(meta: &ObjectMeta, listeners: &[Bound]) -> Vec<ListenerStatus> {
    let statuses = listeners.iter().map(|listener| ListenerStatus {
        name: listener.name.clone(),
        supported_kinds: listener.kinds.iter().map(|kind| listener::group_kind(kind)).collect(),
        attached_routes: listener.attached,
        conditions: listener.conditions(meta),
    });
    statuses.collect()
}

fn gateway_status(input: &Input<'_>, gateway: &Gateway, listeners: &[Bound]) -> GatewayStatus {
    let meta = &gateway.metadata;
    let chosen = !gateway.spec.addresses.is_empty();
    let good = listeners.iter().filter(|listener| listener.programmed()).count();
    let accepted = match good {
        _ if chosen => condition(meta, "Accepted", false, "UnsupportedAddress", "addresses can't be chosen"),
        // Without listeners of its own it waits for those of sets.
        0 if !listeners.is_empty() => {
            condition(meta, "Accepted", false, "ListenersNotValid", "no listener is valid")
        }
        _ if good < listeners.len() => {
            condition(meta, "Accepted", true, "ListenersNotValid", "some listeners are not valid")
        }
        _ => condition(meta, "Accepted", true, "Accepted", "the gateway is served"),
    };
    let programmed = if accepted.status != "True" {
        condition(meta, "Programmed", false, "Invalid", "the gateway is not accepted")
    } else if input.addresses.is_empty() {
        condition(meta, "Programmed", false, "AddressNotAssigned", "the proxy has no address")
    } else {
        condition(meta, "Programmed", true, "Programmed", "the proxy goes by it")
    };
    let addresses = input.addresses.iter().filter(|_| accepted.status == "True");
    let addresses = addresses
        .map(|address| GatewayAddress { kind: Some("IPAddress".to_owned()), value: address.to_string() })
        .collect();
    let listeners = listener_statuses(meta, listeners);
    GatewayStatus {
        addresses,
        conditions: vec![accepted, programmed],
        listeners,
        attached_listener_sets: None,
    }
}

#[cfg(test)]
mod tests;
