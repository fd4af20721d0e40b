//! Sets of listeners: to which Gateways they belong, and what became of them (GEP-1713).

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::types::{GROUP, Gateway, GatewayStatus, ListenerSet, ListenerSetStatus},
    Input, Key, age, condition, key,
    listener::{self, Bound, GATEWAY, LISTENER_SET, Parent},
    listener_statuses,
};

/// A set, and whether its Gateway allows it.
pub(super) struct Attached<'a> {
    set: &'a ListenerSet,
    pub(super) gateway: Key,
    is_allowed: bool,
}

/// The Gateway that a set names.
fn gateway_of(set: &ListenerSet) -> Option<Key> {
    let parent = &set.spec.parent_ref;
    let is_gateway = parent.group.as_deref().unwrap_or(GROUP) == GROUP
        && parent.kind.as_deref().unwrap_or(GATEWAY) == GATEWAY;
    let namespace =
        parent.namespace.as_ref().or(set.metadata.namespace.as_ref()).cloned().unwrap_or_default();
    is_gateway.then(|| (namespace, parent.name.clone()))
}

/// The sets that name one of these Gateways, the oldest first.
pub(super) fn attached<'a>(input: &Input<'a>, gateways: &[&Gateway]) -> Vec<Attached<'a>> {
    let gateways: BTreeMap<Key, &&Gateway> = gateways.iter().map(|one| (key(&one.metadata), one)).collect();
    let mut sets: Vec<&ListenerSet> = input.listener_sets.iter().map(Arc::as_ref).collect();
    sets.sort_by_key(|set| age(&set.metadata));
    let attached = sets.into_iter().filter_map(|set| {
        let gateway = gateway_of(set)?;
        let spec = &gateways.get(&gateway)?.spec;
        let namespaces = spec.allowed_listeners.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
        let own = set.metadata.namespace.as_deref().unwrap_or_default();
        let is_allowed = listener::allowed(namespaces, "None").allows(input, &gateway.0, own);
        Some(Attached { set, gateway, is_allowed })
    });
    attached.collect()
}

impl<'a> Attached<'a> {
    pub(super) fn parent(&self) -> Parent {
        (LISTENER_SET, key(&self.set.metadata))
    }

    /// The set, if it counts.
    pub(super) fn allowed_by(&self, gateway: &Gateway) -> Option<&'a ListenerSet> {
        (self.is_allowed && self.gateway == key(&gateway.metadata)).then_some(self.set)
    }

    /// What became of it and of its listeners; whether it is accepted.
    pub(super) fn status(&self, gateway: &GatewayStatus, listeners: &[Bound]) -> (ListenerSetStatus, bool) {
        let meta = &self.set.metadata;
        let good = listeners.iter().filter(|listener| listener.programmed()).count();
        let says =
            |kind: &str| gateway.conditions.iter().any(|one| one.type_ == kind && one.status == "True");
        let both = |reason: &str, message: &str| {
            ["Accepted", "Programmed"].map(|kind| condition(meta, kind, false, reason, message))
        };
        let conditions = if !self.is_allowed {
            both("NotAllowed", "the gateway does not allow the set")
        } else if !says("Accepted") {
            both("ParentNotAccepted", "the gateway is not accepted")
        } else if good == 0 {
            both("ListenersNotValid", "no listener is valid")
        } else {
            let (reason, message) = match good {
                _ if good < listeners.len() => ("ListenersNotValid", "some listeners are not valid"),
                _ => ("Accepted", "the set is served"),
            };
            let programmed = match says("Programmed") {
                true => condition(meta, "Programmed", true, "Programmed", "the proxy goes by it"),
                false => condition(
                    meta,
                    "Programmed",
                    false,
                    "ParentNotProgrammed",
                    "the gateway is not programmed",
                ),
            };
            [condition(meta, "Accepted", true, reason, message), programmed]
        };
        let is_accepted = super::is_accepted(&conditions[0]);
        let listeners = listener_statuses(meta, listeners);
        (ListenerSetStatus { conditions: conditions.to_vec(), listeners }, is_accepted)
    }
}
