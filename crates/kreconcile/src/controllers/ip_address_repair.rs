//! An IPAddress object for each address of a service (KEP-1880; upstream's API servers do it, in `repairip.go`).

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::Service,
    networking::v1::{IPAddress, ServiceCIDR},
};
use kcore::Stored;
use serde_json::{Value, json};

use crate::{
    cache::Index,
    controller::Controller,
    controllers::{
        Context,
        service_cidr::{MANAGED_BY, MANAGER, contains},
    },
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const BY_ADDRESS: &str = "services-by-cluster-ip";

/// The controller `ipallocator-repair-controller`: sees to it that each address of a service has an IPAddress that refers to the
/// service, and no other one that says it is a service's.
///
/// Upstream's API servers take an address by making this object. Where a service is written together with its claim on the
/// address, as by this project's API server, the object follows the service; then it is no news worth an event.
pub fn ip_address_repair(context: &Context) -> Controller {
    const NAME: &str = "ipallocator-repair-controller";
    let services = context.informers().of::<Service>(Selection::all());
    let addresses = context.informers().of::<IPAddress>(Selection::all());
    let networks = context.informers().of::<ServiceCIDR>(Selection::all());
    services.add_index(Index::new(BY_ADDRESS, |service, emit| {
        for address in addresses_of(service) {
            emit(&address);
        }
    }));
    let reconciler = IpAddresses {
        resource: ResourceType::of::<Service>(),
        requests: context.requests(NAME),
        recorder: context.recorder(NAME),
        services: services.clone(),
        addresses: addresses.clone(),
        networks: networks.clone(),
    };
    let of_service = MapTo::each(|service, keys| {
        keys.extend(addresses_of(service).into_iter().map(ObjectKey::cluster));
    });
    let moved = Predicate::when(|change| {
        let seen = |side: &Option<Arc<Stored>>| side.as_deref().map(addresses_of);
        change.is_recreated() || seen(&change.old) != seen(&change.new)
    });
    let all = services.clone();
    let in_network = MapTo::each(move |network, keys| {
        let used = all.lister().list();
        let used = used.iter().flat_map(|service| addresses_of(service));
        let within = |text: &String| text.parse().is_ok_and(|address| contains(network, address));
        keys.extend(used.filter(within).map(ObjectKey::cluster));
    });
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&services, of_service).when(moved))
        .on(Trigger::new(&addresses, MapTo::Itself))
        .on(Trigger::new(&networks, in_network).when(Predicate::GenerationChanged))
}

/// A service's addresses, each as the name of its object.
fn addresses_of(service: &Stored) -> Vec<String> {
    let Ok(typed) = service.typed::<Service>() else { return Vec::new() };
    let Some(spec) = &typed.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let each = spec.cluster_ips.iter().flatten().filter_map(|text| text.parse::<IpAddr>().ok());
    each.map(|address| address.to_string()).collect()
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// What is to be done about one address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// There is no object.
    Make,
    /// The object is not as it should be: it is made anew, and people are told if it refers to something else.
    Remake {
        tell: bool,
    },
    /// No service has the address: why, as the event's reason and message.
    Delete(&'static str, String),
    /// A service must not have the address: why, as the event's reason and message.
    Tell(&'static str, String),
}

/// Decides about an address; `users` are the services that have it, `is_known` tells whether a network hands it out.
fn decide(address: IpAddr, object: Option<&IPAddress>, users: &[Arc<Stored>], is_known: bool) -> Step {
    let family = family(address);
    let label = |key: &str| object?.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let ours = label(MANAGED_BY) == Some(MANAGER);
    let parent = object.map(|object| &object.spec.parent_ref);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let Some(first) = users.first() else {
        let (Some(parent), true) = (parent, ours) else { return Step::Nothing };
        let (group, namespace) = (text(&parent.group), text(&parent.namespace));
        let (resource, name) = (&*parent.resource, &*parent.name);
        let why = if group.is_empty() && resource == "services" {
            format!("IPAddress: {address} for Service {namespace}/{name} appears to have leaked: cleaning up")
        } else {
            format!(
                "IPAddress {address} appears to have been modified, not referencing a Service {resource} {namespace}/{name}: cleaning up"
            )
        };
        return Step::Delete("IPAddressNotAllocated", why);
    };
    if !is_known {
        let why = format!(
            "Cluster IP [{family}]: {address} is not within any configured Service CIDR; please recreate service"
        );
        return Step::Tell("ClusterIPOutOfRange", why);
    }
    let Some(parent) = parent else { return Step::Make };
    let refers = |service: &Stored| {
        let header = service.header();
        parent.group.as_deref().unwrap_or_default().is_empty()
            && parent.resource == "services"
            && parent.namespace.as_deref() == Some(&*header.namespace)
            && *parent.name == *header.name
    };
    if !users.iter().any(|service| refers(service)) {
        return Step::Remake { tell: true };
    }
    if label(FAMILY) != Some(family) || !ours {
        return Step::Remake { tell: false };
    }
    match users.len() {
        0 | 1 => Step::Nothing,
        _ => Step::Tell(
            "ClusterIPAlreadyAllocated",
            format!(
                "Cluster IP [{family}]:{address} was assigned to multiple services; please recreate service {}",
                first.header().name
            ),
        ),
    }
}

struct IpAddresses {
    resource: ResourceType,
    services: Informer<Service>,
    addresses: Informer<IPAddress>,
    networks: Informer<ServiceCIDR>,
    requests: Requests,
    recorder: EventRecorder,
}

#[async_trait]
impl Reconciler for IpAddresses {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Ok(address) = key.name.parse::<IpAddr>() else { return Ok(Action::Done) };
        let stored = self.addresses.lister().get("", &key.name);
        let object = stored.as_ref().map(|stored| stored.typed::<IPAddress>()).transpose()?;
        let mut users = self.services.lister().by_index(BY_ADDRESS, &key.name);
        users.sort_by_key(|service| service.revision());
        let is_known = self.networks.lister().list().iter().any(|network| contains(network, address));
        match (decide(address, object.as_deref(), &users, is_known), users.first(), &stored) {
            (Step::Make, Some(service), _) => self.make(address, service).await?,
            (Step::Remake { tell }, Some(service), Some(stored)) => {
                if tell {
                    let message = format!(
                        "the ClusterIP [{}]: {address} for Service {} has a wrong reference; repairing",
                        family(address),
                        ObjectKey::from(&**service)
                    );
                    let about = Regarding::of(service, &self.resource);
                    self.recorder.record(&about, EventType::Warning, "ClusterIPNotAllocated", message);
                }
                self.delete(stored).await?;
                self.make(address, service).await?;
            }
            // The informer of services may not know of one that this address was made for.
            (Step::Delete(reason, why), _, Some(stored)) if !self.is_used(stored, address).await? => {
                let about = Regarding::of(stored, self.addresses.resource());
                self.recorder.record(&about, EventType::Warning, reason, why);
                self.delete(stored).await?;
            }
            (Step::Tell(reason, why), Some(service), _) => {
                let about = Regarding::of(service, &self.resource);
                self.recorder.record(&about, EventType::Warning, reason, why);
            }
            _ => {}
        }
        Ok(Action::Done)
    }
}

impl IpAddresses {
    async fn make(&self, address: IpAddr, service: &Stored) -> Result<(), ReconcileError> {
        let resource = self.addresses.resource();
        let header = service.header();
        let body = json!({
            "apiVersion": resource.api_version(), "kind": resource.kind,
            "metadata": {"name": address.to_string(), "labels": {FAMILY: family(address), MANAGED_BY: MANAGER}},
            "spec": {"parentRef": {"resource": "services", "namespace": &*header.namespace, "name": &*header.name}},
        });
        match self.requests.create::<Written>(&resource.path("", ""), body.to_string()).await {
            Err(error) if !request::is_already_exists(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn delete(&self, object: &Stored) -> Result<(), ReconcileError> {
        let path = self.addresses.resource().path("", &object.header().name);
        let how = DeleteHow { uid: Some(object.header().uid.to_string()), ..DeleteHow::default() };
        match self.requests.delete(&path, &how).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Asks the server itself whether the service that an address refers to has it.
    async fn is_used(&self, object: &Stored, address: IpAddr) -> Result<bool, ReconcileError> {
        let typed = object.typed::<IPAddress>()?;
        let parent = &typed.spec.parent_ref;
        if parent.resource != "services" || parent.name.is_empty() {
            return Ok(false);
        }
        let path = self.resource.path(parent.namespace.as_deref().unwrap_or_default(), &parent.name);
        match self.requests.get::<Value>(&path).await {
            Ok(service) => {
                let has = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
                Ok(has.filter_map(Value::as_str).any(|text| text.parse() == Ok(address)))
            }
            Err(error) if request::is_not_found(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of `TestRepairServiceIP` and `TestRepairIPAddress_syncIPAddress` of `repairip_test.go`.
    #[test]
    fn addresses_follow_services() {
        let service = |name: &str| {
            let metadata = json!({"namespace": "bar", "name": name, "resourceVersion": "1"});
            Arc::new(Stored::from_value(json!({"metadata": metadata})).unwrap())
        };
        let object = |parent: Value, labels: Value| {
            serde_json::from_value::<IPAddress>(
                json!({"metadata": {"name": "10.0.1.1", "labels": labels}, "spec": {"parentRef": parent}}),
            )
            .unwrap()
        };
        let right = json!({FAMILY: "IPv4", MANAGED_BY: MANAGER});
        let foo = json!({"resource": "services", "namespace": "bar", "name": "foo"});
        let cases = [
            (None, vec!["foo"], true, "Make"),
            (None, vec!["foo"], false, "ClusterIPOutOfRange"),
            (None, vec![], true, "Nothing"),
            (Some(object(foo.clone(), right.clone())), vec!["foo"], true, "Nothing"),
            (
                Some(object(foo.clone(), json!({FAMILY: "IPv6", MANAGED_BY: MANAGER}))),
                vec!["foo"],
                true,
                "Remake { tell: false }",
            ),
            (Some(object(foo.clone(), json!({FAMILY: "IPv4"}))), vec!["foo"], true, "Remake { tell: false }"),
            (Some(object(foo.clone(), right.clone())), vec!["other"], true, "Remake { tell: true }"),
            (
                Some(object(
                    json!({"group": "apps", "resource": "deployments", "namespace": "bar", "name": "foo"}),
                    right.clone(),
                )),
                vec!["foo"],
                true,
                "Remake { tell: true }",
            ),
            (
                Some(object(foo.clone(), right.clone())),
                vec!["foo", "second"],
                true,
                "ClusterIPAlreadyAllocated",
            ),
            (Some(object(foo.clone(), right.clone())), vec![], true, "IPAddressNotAllocated"),
            (Some(object(foo, json!({FAMILY: "IPv4"}))), vec![], true, "Nothing"),
        ];
        for (object, users, is_known, expected) in cases {
            let users: Vec<_> = users.into_iter().map(service).collect();
            let step = decide("10.0.1.1".parse().unwrap(), object.as_ref(), &users, is_known);
            assert!(format!("{step:?}").contains(expected), "{step:?} is not {expected}");
        }
    }
}
