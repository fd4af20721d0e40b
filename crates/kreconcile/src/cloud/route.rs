//! Routes between the pods of different nodes (`cloud-provider/controllers/route`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, NodeAddress};
use kcore::{Clock, clock::format_time};
use serde_json::{Value, json};

use super::{Route, Routes};
use crate::{
    address_range::AddressRange,
    controller::Controller,
    controllers::Context,
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

/// How many routes are made or deleted at a time.
pub const CONCURRENT_ROUTES_MAX: usize = 200;
/// How often all routes are looked at (`--route-reconciliation-period`).
pub const ROUTES_PERIOD: Duration = Duration::from_secs(10);

/// The controller `node-route-controller`: sees to a route for each range of pod addresses that a node has, deletes those that lead
/// nowhere, and says in each node's condition `NetworkUnavailable` whether its routes are there. Routes outside of
/// `cluster_ranges` are somebody else's.
pub fn node_route(context: &Context, routes: Arc<dyn Routes>, cluster_ranges: &[String]) -> Controller {
    const NAME: &str = "node-route-controller";
    let nodes = context.informers().of::<Node>(Selection::all());
    let reconciler = NodeRoutes {
        resource: ResourceType::of::<Node>(),
        nodes: nodes.clone(),
        requests: context.requests(NAME),
        recorder: context.recorder("route_controller"),
        clock: Arc::clone(context.clock()),
        ranges: cluster_ranges.iter().filter_map(|text| AddressRange::parse(text)).collect(),
        routes,
    };
    let matters = Predicate::when(|change| {
        let seen = |side: &Option<Arc<kcore::Stored>>| {
            let node = side.as_ref()?.typed::<Node>().ok()?;
            let addresses = node.status.as_ref().and_then(|status| status.addresses.clone());
            Some((node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()), addresses))
        };
        seen(&change.old) != seen(&change.new)
    });
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&nodes, MapTo::one(ObjectKey::cluster("routes"))).when(matters))
}

/// What is to be done about all routes.
#[derive(Debug, Default, PartialEq)]
struct Plan<'a> {
    delete: Vec<&'a Route>,
    /// The nodes' indexes, with the range that lacks a route.
    create: Vec<(usize, &'a str)>,
}

fn ranges_of(node: &Node) -> &[String] {
    node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default()
}

fn addresses_of(node: &Node) -> Vec<NodeAddress> {
    node.status.as_ref().and_then(|status| status.addresses.clone()).unwrap_or_default()
}

fn same(one: &[NodeAddress], other: &[NodeAddress]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

fn plan<'a>(nodes: &'a [Arc<Node>], routes: &'a [Route], cluster: &[AddressRange]) -> Plan<'a> {
    let mut plan = Plan::default();
    let mut kept: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut by_node: BTreeMap<&str, Vec<&Route>> = BTreeMap::new();
    for route in routes.iter().filter(|route| !route.node.is_empty()) {
        by_node.entry(&route.node).or_default().push(route);
    }
    for (index, node) in nodes.iter().enumerate() {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let addresses = addresses_of(node);
        for range in ranges_of(node) {
            let mut existing = by_node.get(name).into_iter().flatten();
            let route = existing.find(|route| route.destination == *range);
            let is_right =
                route.is_some_and(|route| route.addresses.as_ref().is_none_or(|has| same(has, &addresses)));
            if is_right {
                kept.insert((name, range));
            } else {
                plan.create.push((index, range));
            }
        }
    }
    let ours = |route: &&Route| {
        AddressRange::parse(&route.destination)
            .is_some_and(|range| cluster.iter().any(|all| all.touches(&range)))
    };
    let superfluous = |route: &&Route| {
        route.blackhole || !kept.contains(&(route.node.as_str(), route.destination.as_str()))
    };
    plan.delete = routes.iter().filter(ours).filter(superfluous).collect();
    plan
}

struct NodeRoutes {
    resource: ResourceType,
    nodes: Informer<Node>,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
    ranges: Vec<AddressRange>,
    routes: Arc<dyn Routes>,
}

#[async_trait]
impl Reconciler for NodeRoutes {
    async fn reconcile(&self, _key: &ObjectKey) -> Result<Action, ReconcileError> {
        let nodes = self.nodes.list();
        let routes = self.routes.list().await;
        let routes =
            routes.map_err(|error| ReconcileError::other(format!("error listing routes: {error}")))?;
        let plan = plan(&nodes, &routes, &self.ranges);
        // A route that is made anew is deleted first.
        let deleted: Vec<_> = plan.delete.iter().map(|route| self.delete(route)).collect();
        stream::iter(deleted).buffer_unordered(CONCURRENT_ROUTES_MAX).collect::<()>().await;
        let made: Vec<_> =
            plan.create.iter().map(|&(index, range)| self.create(index, &nodes[index], range)).collect();
        let failed: Vec<Option<usize>> =
            stream::iter(made).buffer_unordered(CONCURRENT_ROUTES_MAX).collect().await;
        let failed: BTreeSet<usize> = failed.into_iter().flatten().collect();
        for (index, node) in nodes.iter().enumerate() {
            let created = !ranges_of(node).is_empty() && !failed.contains(&index);
            // Nobody looks after a node that has no range and no route.
            let name = node.metadata.name.as_deref().unwrap_or_default();
            if !ranges_of(node).is_empty() || routes.iter().any(|route| route.node == name) {
                self.tell(node, created).await?;
            }
        }
        Ok(Action::After(ROUTES_PERIOD))
    }
}

impl NodeRoutes {
    async fn delete(&self, route: &Route) {
        if let Err(error) = self.routes.delete(route).await {
            tracing::warn!(route = %route.name, destination = %route.destination, %error, "a route is left");
        }
    }

    /// Makes a route; the node's index if that fails.
    async fn create(&self, index: usize, node: &Node, range: &str) -> Option<usize> {
        let name = node.metadata.name.clone().unwrap_or_default();
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let route = Route {
            node: name.clone(),
            addresses: Some(addresses_of(node)),
            destination: range.to_owned(),
            ..Route::default()
        };
        let began = self.clock.now();
        let error = self.routes.create(&uid, &route).await.err()?;
        let took = self.clock.now().duration_since(began);
        let message = format!("Could not create route {uid} {range} for node {name} after {took:#}: {error}");
        let about = Regarding {
            api_version: self.resource.api_version(),
            kind: self.resource.kind.clone(),
            namespace: String::new(),
            name,
            uid,
            resource_version: String::new(),
            field_path: String::new(),
        };
        self.recorder.record(&about, EventType::Warning, "FailedToCreateRoute", message);
        Some(index)
    }

    /// Says whether a node's routes are there.
    async fn tell(&self, node: &Node, created: bool) -> Result<(), ReconcileError> {
        let (status, reason, message) = if created {
            ("False", "RouteCreated", "RouteController created a route")
        } else {
            ("True", "NoRouteCreated", "RouteController failed to create a route")
        };
        let known = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let old = known.iter().find(|condition| condition.type_ == "NetworkUnavailable");
        if old.is_some_and(|old| old.status == status && old.reason.as_deref() == Some(reason)) {
            return Ok(());
        }
        let now = format_time(self.clock.now());
        let mut conditions: Vec<Value> = known
            .iter()
            .filter(|condition| condition.type_ != "NetworkUnavailable")
            .map(|condition| json!(condition))
            .collect();
        conditions.push(
            json!({"type": "NetworkUnavailable", "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now}),
        );
        let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "status": {"conditions": conditions}});
        let path = self.resource.path("", node.metadata.name.as_deref().unwrap_or_default());
        match self.requests.patch::<Written>(&format!("{path}/status"), PatchKind::Merge, &patch).await {
            // The node has changed or gone: it is looked at again before long.
            Err(error) if request::is_conflict(&error) || request::is_not_found(&error) => Ok(()),
            result => result.map(drop).map_err(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ranges: &[&str], address: &str) -> Arc<Node> {
        let node = json!({"metadata": {"name": name}, "spec": {"podCIDRs": ranges},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn route(node: &str, destination: &str, address: Option<&str>) -> Route {
        let list = |text: &str| vec![NodeAddress { type_: "InternalIP".into(), address: text.into() }];
        Route {
            name: format!("{node}-{destination}"),
            node: node.into(),
            addresses: address.map(list),
            destination: destination.into(),
            blackhole: node.is_empty(),
        }
    }

    /// Cases of upstream's `TestReconcile` and `TestIsResponsibleForRoute`.
    #[test]
    fn what_is_to_be_done_about_routes() {
        let (one, two) =
            (node("n1", &["10.120.0.0/24"], "10.0.0.1"), node("n2", &["10.120.1.0/24"], "10.0.0.2"));
        let bare = node("n2", &[], "10.0.0.2");
        let dual = node("n1", &["10.120.0.0/24", "a00:100::/64"], "10.0.0.1");
        let first = route("n1", "10.120.0.0/24", None);
        // Nodes, routes; ranges that get a route, routes that go.
        type Case<'a> = (&'a [&'a Arc<Node>], Vec<Route>, &'a [&'a str], &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            (&[&one, &two], vec![first.clone(), route("n2", "10.120.1.0/24", None)], &[], &[]),
            (&[&one, &two], vec![first.clone()], &["10.120.1.0/24"], &[]),
            (
                &[&one, &bare],
                vec![first.clone(), route("n2", "10.120.1.0/24", None)],
                &[],
                &["n2-10.120.1.0/24"],
            ),
            (
                &[&one],
                vec![first.clone(), route("gone", "10.120.1.0/24", None)],
                &[],
                &["gone-10.120.1.0/24"],
            ),
            (&[&one], vec![first.clone(), route("gone", "10.99.1.0/24", None)], &[], &[]),
            (&[&one], vec![first.clone(), route("gone", "nonsense", None)], &[], &[]),
            (&[&one], vec![first.clone(), route("", "10.120.9.0/24", None)], &[], &["-10.120.9.0/24"]),
            (&[&dual], vec![first.clone()], &["a00:100::/64"], &[]),
            (&[&one], vec![route("n1", "10.120.0.0/24", Some("10.0.0.1"))], &[], &[]),
            (
                &[&one],
                vec![route("n1", "10.120.0.0/24", Some("10.0.0.9"))],
                &["10.120.0.0/24"],
                &["n1-10.120.0.0/24"],
            ),
        ];
        let cluster: Vec<AddressRange> =
            ["10.120.0.0/16", "a00:100::/48"].iter().filter_map(|text| AddressRange::parse(text)).collect();
        for (nodes, routes, created, deleted) in cases {
            let nodes: Vec<Arc<Node>> = nodes.iter().map(|node| Arc::clone(node)).collect();
            let plan = plan(&nodes, routes, &cluster);
            let seen: Vec<&str> = plan.create.iter().map(|(_, range)| *range).collect();
            let gone: Vec<&str> = plan.delete.iter().map(|route| &*route.name).collect();
            assert_eq!((&seen[..], &gone[..]), (*created, *deleted), "{routes:?}");
        }
    }
}
