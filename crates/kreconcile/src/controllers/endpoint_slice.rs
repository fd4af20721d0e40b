//! EndpointSlices: which pods a Service leads to, in slices of a hundred.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kcore::{Clock, Stored};
use serde_json::{Value, json};

use crate::{
    cache::Index,
    controller::Controller,
    controllers::{
        Context,
        backends::{self, Backend, Port},
        claim::controller_reference,
    },
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

mod pack;

use pack::{Slice, pack};

/// How many endpoints a slice has at most (`--max-endpoints-per-slice`).
pub const ENDPOINTS_PER_SLICE_MAX: usize = 100;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The controller `endpointslice-controller`: keeps the EndpointSlices of every Service that has a selector: one family of
/// slices per IP version and set of ports, at most [`ENDPOINTS_PER_SLICE_MAX`] endpoints in each, with the conditions
/// ready, serving and terminating, node and zone.
pub fn endpoint_slice(context: &Context) -> Controller {
    const NAME: &str = "endpointslice-controller";
    let services = context.informers().of::<Service>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let slices = context.informers().of::<EndpointSlice>(Selection::all());
    let nodes = context.informers().of::<Node>(Selection::all());
    slices.add_index(by_service());
    let reconciler = EndpointSlices {
        resource: ResourceType::of::<Service>(),
        slice_resource: ResourceType::of::<EndpointSlice>(),
        written: Expectations::new(slices.lister().clone()),
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
        services: services.clone(),
        pods: pods.clone(),
        slices: slices.clone(),
        nodes: nodes.clone(),
    };
    Controller::new(NAME, reconciler)
        .reads(&nodes)
        .on(Trigger::new(&services, MapTo::Itself))
        .on(Trigger::new(&pods, backends::services_of_pod(&services)))
        .on(Trigger::new(
            &slices,
            MapTo::each(|slice, keys| {
                if let Some(service) = service_of(slice) {
                    keys.push(ObjectKey::new(&*slice.header().namespace, service));
                }
            }),
        ))
}

const BY_SERVICE: &str = "slices-by-service";

/// The Service that a slice of this controller is for.
fn service_of(slice: &Stored) -> Option<&str> {
    let labels = &slice.header().labels;
    (labels.get(MANAGED_BY) == Some(MANAGER)).then(|| labels.get(SERVICE_NAME))?
}

fn by_service() -> Index {
    Index::new(BY_SERVICE, |slice, emit| {
        if let Some(service) = service_of(slice) {
            emit(&format!("{}/{service}", slice.header().namespace));
        }
    })
}

struct EndpointSlices {
    resource: ResourceType,
    slice_resource: ResourceType,
    services: Informer<Service>,
    pods: Informer<Pod>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    /// Slices that were written and are not shown yet.
    written: Expectations,
    requests: Requests,
    clock: Arc<dyn Clock>,
}

/// What tells one family of slices from another: the address type and the ports.
type Family = (&'static str, Vec<Port>);

#[async_trait]
impl Reconciler for EndpointSlices {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.services.lister().get(&key.namespace, &key.name) else {
            // The slices go with their owner.
            self.written.forget(key);
            return Ok(Action::Done);
        };
        if !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let service = stored.typed::<Service>()?;
        let selector = backends::selector(&service);
        let (Some(selector), None) = (selector, &stored.header().deletion) else { return Ok(Action::Done) };
        let pods = self.pods.select(&key.namespace, &selector);
        let mut families: BTreeMap<Family, Vec<Value>> = BTreeMap::new();
        for address_type in address_types(&service) {
            for backend in backends::backends(&service, &pods, address_type == "IPv6") {
                let endpoint = self.endpoint(&backend);
                families.entry((address_type, backend.ports)).or_default().push(endpoint);
            }
            // Even a Service that leads nowhere has a slice, which says so.
            if !families.keys().any(|(known, _)| *known == address_type) {
                families.insert((address_type, Vec::new()), Vec::new());
            }
        }
        let owned = self.slices.lister().by_index(BY_SERVICE, &format!("{}/{}", key.namespace, key.name));
        self.bring_to(key, &stored, &service, &owned, families).await?;
        Ok(Action::Done)
    }
}

fn address_types(service: &Service) -> Vec<&'static str> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let name = |family: &String| if family == "IPv6" { "IPv6" } else { "IPv4" };
    if families.is_empty() { vec!["IPv4"] } else { families.iter().map(name).collect() }
}

/// Brings what the server gave into the form that this controller writes, so that the two can be compared.
fn family_of(slice: &EndpointSlice) -> Option<Family> {
    let address_type = match &*slice.address_type {
        "IPv4" => "IPv4",
        "IPv6" => "IPv6",
        _ => return None,
    };
    let port = |port: &k8s_openapi::api::discovery::v1::EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: port.app_protocol.clone(),
    };
    Some((address_type, slice.ports.iter().flatten().map(port).collect()))
}

impl EndpointSlices {
    fn endpoint(&self, backend: &Backend) -> Value {
        let mut endpoint = json!({
            "addresses": [backend.address],
            "conditions": {
                "ready": backend.ready,
                "serving": backend.serving,
                "terminating": backend.terminating,
            },
            "targetRef": backend.target(),
        });
        if !backend.node.is_empty() {
            endpoint["nodeName"] = backend.node.as_str().into();
            let node = self.nodes.lister().get("", &backend.node);
            if let Some(zone) = node.as_ref().and_then(|node| node.header().labels.get(ZONE)) {
                endpoint["zone"] = zone.into();
            }
        }
        if let Some(hostname) = &backend.hostname {
            endpoint["hostname"] = hostname.as_str().into();
        }
        endpoint
    }

    async fn bring_to(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        service: &Service,
        owned: &[Arc<Stored>],
        families: BTreeMap<Family, Vec<Value>>,
    ) -> Result<(), ReconcileError> {
        let mut known: BTreeMap<Family, Vec<Slice>> = BTreeMap::new();
        for slice in owned.iter().filter(|slice| slice.header().deletion.is_none()) {
            let typed = slice.typed::<EndpointSlice>()?;
            let Some(family) = family_of(&typed) else { continue };
            let endpoints = serde_json::to_value(&typed.endpoints)?;
            let endpoints = endpoints.as_array().cloned().unwrap_or_default();
            let slice = Slice { name: slice.header().name.to_string(), endpoints };
            known.entry(family).or_default().push(slice);
        }
        let labels = slice_labels(service);
        for (family, wanted) in families {
            let slices = known.remove(&family).unwrap_or_default();
            let is_sign = slices.len() == 1 && slices[0].endpoints.is_empty();
            if wanted.is_empty() && is_sign && self.wrongly_labelled(owned, &slices, &labels).is_empty() {
                continue;
            }
            let unlabelled = self.wrongly_labelled(owned, &slices, &labels);
            let names: Vec<String> = slices.iter().map(|slice| slice.name.clone()).collect();
            let mut packing = pack(slices, wanted, ENDPOINTS_PER_SLICE_MAX);
            if packing.create.is_empty() && packing.delete.len() == names.len() {
                // The last one stays, as the sign that there is nothing.
                match packing.delete.pop() {
                    Some(name) => packing.update.push(Slice { name, endpoints: Vec::new() }),
                    None => packing.create.push(Vec::new()),
                }
            }
            for endpoints in packing.create {
                self.create(key, stored, &labels, &family, endpoints).await?;
            }
            let relabel = unlabelled.into_iter().filter(|name| !packing.delete.contains(name));
            let mut patches: BTreeMap<String, Value> = relabel.map(|name| (name, json!({}))).collect();
            for slice in packing.update {
                patches.insert(slice.name, json!({"endpoints": list_or_null(slice.endpoints)}));
            }
            for (name, patch) in patches {
                self.update(key, owned, &name, &labels, patch).await?;
            }
            for name in packing.delete {
                self.delete(key, owned, &name).await?;
            }
        }
        for slice in known.into_values().flatten() {
            self.delete(key, owned, &slice.name).await?;
        }
        Ok(())
    }

    fn wrongly_labelled(
        &self,
        owned: &[Arc<Stored>],
        slices: &[Slice],
        labels: &BTreeMap<String, String>,
    ) -> Vec<String> {
        let wrong = |slice: &&Slice| {
            let stored = owned.iter().find(|known| *known.header().name == *slice.name);
            stored.is_some_and(|stored| {
                let known: BTreeMap<_, _> = stored.header().labels.iter().collect();
                let wanted: BTreeMap<_, _> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                known != wanted
            })
        };
        slices.iter().filter(wrong).map(|slice| slice.name.clone()).collect()
    }

    async fn create(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        labels: &BTreeMap<String, String>,
        family: &Family,
        endpoints: Vec<Value>,
    ) -> Result<(), ReconcileError> {
        let ports: Vec<Value> = family.1.iter().map(Port::value).collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "generateName": format!("{}-", key.name),
                "namespace": &*key.namespace,
                "labels": labels,
                "annotations": {TRIGGER_TIME: kcore::clock::format_time(self.clock.now())},
                "ownerReferences": [controller_reference(&self.resource, stored.header())],
            },
            "addressType": family.0,
            "endpoints": list_or_null(endpoints),
            "ports": ports,
        });
        let path = self.slice_resource.path(&key.namespace, "");
        match self.requests.create::<Written>(&path, serde_json::to_vec(&slice)?).await {
            Ok(written) => self.written.wrote(key, written.revision()),
            Err(error) if request::is_namespace_terminating(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn update(
        &self,
        key: &ObjectKey,
        owned: &[Arc<Stored>],
        name: &str,
        labels: &BTreeMap<String, String>,
        mut patch: Value,
    ) -> Result<(), ReconcileError> {
        let Some(known) = owned.iter().find(|known| *known.header().name == *name) else { return Ok(()) };
        let mut labels = serde_json::to_value(labels)?;
        for (key, _) in known.header().labels.iter() {
            if labels[key].is_null() {
                labels[key] = Value::Null;
            }
        }
        patch["metadata"] = json!({
            "resourceVersion": known.revision().to_string(),
            "labels": labels,
            "annotations": {TRIGGER_TIME: kcore::clock::format_time(self.clock.now())},
        });
        let path = self.slice_resource.path(&key.namespace, name);
        let written: Written = self.requests.patch(&path, PatchKind::Merge, &patch).await?;
        self.written.wrote(key, written.revision());
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, owned: &[Arc<Stored>], name: &str) -> Result<(), ReconcileError> {
        let Some(known) = owned.iter().find(|known| *known.header().name == *name) else { return Ok(()) };
        let uid = known.header().uid.to_string();
        let how = DeleteHow { uid: Some(uid.clone()), ..DeleteHow::default() };
        match self.requests.delete(&self.slice_resource.path(&key.namespace, name), &how).await {
            Ok(_) => self.written.deleted(key, ObjectKey::of(known.header()), &uid),
            Err(error) if request::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = backends::labels(service);
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}
/// A slice without endpoints has `null`, as the Go type of upstream has no list then.
fn list_or_null(endpoints: Vec<Value>) -> Option<Vec<Value>> {
    (!endpoints.is_empty()).then_some(endpoints)
}
