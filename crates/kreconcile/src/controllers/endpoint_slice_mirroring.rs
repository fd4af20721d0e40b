//! EndpointSlices of Endpoints that somebody writes by hand (KEP-1713).

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{Endpoints, Service},
    discovery::v1::EndpointSlice,
};
use kcore::Stored;
use serde_json::{Value, json};

use crate::{
    cache::Index,
    controller::Controller,
    controllers::{Context, claim::controller_reference},
    events::{EventRecorder, EventType, Regarding},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

mod mirror;

use mirror::{Family, Wanted, family_of, mirror, sorted};

/// How many addresses of one subset are mirrored (`--mirroring-max-endpoints-per-subset`).
pub const MIRRORED_ADDRESSES_MAX: usize = 1000;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are not about the addresses.
const NOT_MIRRORED: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

/// The controller `endpointslice-mirroring-controller`: gives the Endpoints of a Service without a selector
/// EndpointSlices of the same addresses: one for each IP version and set of ports. Endpoints with the label
/// `endpointslice.kubernetes.io/skip-mirror` and those that were used for electing leaders are left alone.
pub fn endpoint_slice_mirroring(context: &Context) -> Controller {
    const NAME: &str = "endpointslice-mirroring-controller";
    let endpoints = context.informers().of::<Endpoints>(Selection::all());
    let services = context.informers().of::<Service>(Selection::all());
    let slices = context.informers().of::<EndpointSlice>(Selection::all());
    slices.add_index(by_endpoints());
    let reconciler = Mirroring {
        resource: ResourceType::of::<Endpoints>(),
        written: Expectations::new(slices.lister().clone()),
        requests: context.requests(NAME),
        recorder: context.recorder("endpoint-slice-mirroring-controller"),
        endpoints: endpoints.clone(),
        services: services.clone(),
        slices: slices.clone(),
    };
    let has_selector = |service: Option<Arc<Service>>| {
        service.and_then(|service| Some(service.spec.as_ref()?.selector.is_some()))
    };
    let selected_otherwise =
        Predicate::when(move |change| has_selector(change.old_as()) != has_selector(change.new_as()));
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&endpoints, MapTo::Itself))
        .on(Trigger::new(&services, MapTo::Itself).when(selected_otherwise))
        .on(Trigger::new(
            &slices,
            MapTo::each(|slice, keys| {
                if let Some(name) = endpoints_of(slice) {
                    keys.push(ObjectKey::new(&*slice.header().namespace, name));
                }
            }),
        ))
}

const BY_ENDPOINTS: &str = "mirrored-slices-by-endpoints";

/// The Endpoints that a slice of this controller is for.
fn endpoints_of(slice: &Stored) -> Option<&str> {
    let labels = &slice.header().labels;
    (labels.get(MANAGED_BY) == Some(MANAGER)).then(|| labels.get(SERVICE_NAME))?
}

fn by_endpoints() -> Index {
    Index::new(BY_ENDPOINTS, |slice, emit| {
        if let Some(name) = endpoints_of(slice) {
            emit(&format!("{}/{name}", slice.header().namespace));
        }
    })
}

struct Mirroring {
    resource: ResourceType,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    /// Slices that were written and are not shown yet.
    written: Expectations,
    requests: Requests,
    recorder: EventRecorder,
}

#[async_trait]
impl Reconciler for Mirroring {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        if !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let owned = self.slices.lister().by_index(BY_ENDPOINTS, &format!("{}/{}", key.namespace, key.name));
        let Some(stored) = self.mirrored(key) else {
            for slice in &owned {
                self.delete(key, slice).await?;
            }
            if owned.is_empty() {
                self.written.forget(key);
            }
            return Ok(Action::Done);
        };
        let endpoints = stored.typed::<Endpoints>()?;
        let mirrored = mirror(&endpoints, MIRRORED_ADDRESSES_MAX);
        let about = Regarding::of(&stored, &self.resource);
        if mirrored.invalid > 0 {
            let message =
                format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", mirrored.invalid);
            self.recorder.record(&about, EventType::Warning, "InvalidIPAddress", message);
        }
        if mirrored.skipped > mirrored.invalid {
            let message = format!(
                "A max of {MIRRORED_ADDRESSES_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                mirrored.skipped
            );
            self.recorder.record(&about, EventType::Warning, "TooManyAddressesToMirror", message);
        }
        self.bring_to(key, &stored, &endpoints, &owned, mirrored.slices).await?;
        Ok(Action::Done)
    }
}

impl Mirroring {
    /// The Endpoints, if they are to be mirrored.
    fn mirrored(&self, key: &ObjectKey) -> Option<Arc<Stored>> {
        let stored = self.endpoints.lister().get(&key.namespace, &key.name)?;
        let endpoints = stored.typed::<Endpoints>().ok()?;
        let elects = endpoints.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(LEADER));
        let skips = stored.header().labels.get(SKIP) == Some("true");
        let service = self.services.get(&key.namespace, &key.name)?;
        let selects = service.spec.as_ref().is_some_and(|spec| spec.selector.is_some());
        (!elects && !skips && !selects).then_some(stored)
    }

    async fn bring_to(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        endpoints: &Endpoints,
        owned: &[Arc<Stored>],
        wanted: BTreeMap<Family, Wanted>,
    ) -> Result<(), ReconcileError> {
        let mut known: BTreeMap<Family, Vec<&Arc<Stored>>> = BTreeMap::new();
        for slice in owned.iter().filter(|slice| slice.header().deletion.is_none()) {
            known.entry(family_of(&*slice.typed::<EndpointSlice>()?)).or_default().push(slice);
        }
        let metadata = slice_metadata(stored, endpoints, &self.resource);
        let mut bodies = Vec::new();
        for (family, wanted) in wanted {
            let mut there = known.remove(&family).unwrap_or_default();
            let first = (!there.is_empty()).then(|| there.remove(0));
            if !there.is_empty() {
                // One slice is enough; the others go below.
                known.insert(family, there);
            }
            let body = slice_body(&metadata, &wanted);
            match first {
                Some(slice) if is_same(&*slice.typed::<EndpointSlice>()?, &wanted, &metadata) => {}
                first => bodies.push((wanted.address_type, first, body)),
            }
        }
        let mut spare: Vec<(&'static str, &Arc<Stored>)> = known
            .into_iter()
            .flat_map(|(family, all)| all.into_iter().map(move |one| (family.0, one)))
            .collect();
        if stored.header().deletion.is_some() {
            bodies.retain(|(_, first, _)| first.is_some());
        }
        for (address_type, first, body) in bodies {
            // What would be deleted is used again. The address type of a slice can't be changed.
            let at = spare.iter().position(|(known, _)| *known == address_type);
            let slice = first.or_else(|| at.map(|at| spare.remove(at).1));
            self.write(key, slice, body).await?;
        }
        for (_, slice) in spare {
            self.delete(key, slice).await?;
        }
        Ok(())
    }

    /// Makes a slice, or puts this in place of one that is there.
    async fn write(
        &self,
        key: &ObjectKey,
        slice: Option<&Arc<Stored>>,
        mut body: Value,
    ) -> Result<(), ReconcileError> {
        let resource = self.slices.resource();
        let written = match slice {
            Some(known) => {
                let name = &known.header().name;
                body["metadata"]["name"] = (&**name).into();
                body["metadata"]["uid"] = (&*known.header().uid).into();
                body["metadata"]["resourceVersion"] = known.revision().to_string().into();
                self.requests.replace::<Written>(&resource.path(&key.namespace, name), &body).await
            }
            None => {
                body["metadata"]["generateName"] = format!("{}-", key.name).into();
                self.requests.create::<Written>(&resource.path(&key.namespace, ""), body.to_string()).await
            }
        };
        match written {
            Ok(written) => self.written.wrote(key, written.revision()),
            Err(error) if request::is_namespace_terminating(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, slice: &Stored) -> Result<(), ReconcileError> {
        let header = slice.header();
        let how = DeleteHow { uid: Some(header.uid.to_string()), ..DeleteHow::default() };
        match self.requests.delete(&self.slices.resource().path(&key.namespace, &header.name), &how).await {
            Ok(_) => self.written.deleted(key, ObjectKey::of(header), &header.uid),
            Err(error) if request::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// The metadata of all slices of these Endpoints, but for the name.
fn slice_metadata(stored: &Stored, endpoints: &Endpoints, resource: &ResourceType) -> Value {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), stored.header().name.to_string());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_MIRRORED.contains(&&**key));
    json!({
        "namespace": &*stored.header().namespace,
        "labels": labels,
        "annotations": annotations,
        "ownerReferences": [controller_reference(resource, stored.header())],
    })
}

fn slice_body(metadata: &Value, wanted: &Wanted) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": wanted.address_type,
        "endpoints": wanted.endpoints,
        "ports": wanted.ports,
    })
}

/// Whether a slice says all that it should.
fn is_same(slice: &EndpointSlice, wanted: &Wanted, metadata: &Value) -> bool {
    let map = |map: &Option<BTreeMap<String, String>>| json!(map.clone().unwrap_or_default());
    let owner = slice.metadata.owner_references.iter().flatten().next();
    sorted(slice.endpoints.clone().unwrap_or_default()) == wanted.endpoints
        && map(&slice.metadata.labels) == metadata["labels"]
        && map(&slice.metadata.annotations) == metadata["annotations"]
        && owner.is_some_and(|owner| metadata["ownerReferences"][0]["uid"] == *owner.uid)
}
