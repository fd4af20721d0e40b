//! Endpoints: the older form of what EndpointSlices say, for those who still read it.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use kcore::Stored;
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::{
        Context,
        backends::{self, Backend, Port},
    },
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

/// How many addresses an Endpoints object has at most (upstream's `maxCapacity`).
pub const ADDRESSES_MAX: usize = 1000;

const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// The controller `endpoints-controller`: keeps the Endpoints object of every Service that has a selector.
pub fn endpoints(context: &Context) -> Controller {
    const NAME: &str = "endpoints-controller";
    let services = context.informers().of::<Service>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let objects = context.informers().of::<Endpoints>(Selection::all());
    let reconciler = EndpointsKeeper {
        resource: ResourceType::of::<Endpoints>(),
        written: Expectations::new(objects.lister().clone()),
        requests: context.requests(NAME),
        services: services.clone(),
        pods: pods.clone(),
        objects: objects.clone(),
    };
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&services, MapTo::Itself))
        .on(Trigger::new(&objects, MapTo::Itself))
        .on(Trigger::new(&pods, backends::services_of_pod(&services)))
}

struct EndpointsKeeper {
    resource: ResourceType,
    services: Informer<Service>,
    pods: Informer<Pod>,
    objects: Informer<Endpoints>,
    written: Expectations,
    requests: Requests,
}

#[async_trait]
impl Reconciler for EndpointsKeeper {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        if !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let known = self.objects.lister().get(&key.namespace, &key.name);
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            return self.delete(key, known.as_deref()).await;
        };
        let Some(selector) = backends::selector(&service) else { return Ok(Action::Done) };
        let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
        let v6 = families.first().is_some_and(|family| family == "IPv6");
        let mut found = backends::backends(&service, &self.pods.select(&key.namespace, &selector), v6);
        let publishes = backends::publishes_not_ready(&service);
        found.retain(|backend| publishes || !backend.terminating);
        let (subsets, cut) = subsets(&service, &found);
        self.write(key, &service, known, &subsets, cut).await
    }
}

/// The addresses by their ports, the ready ones apart from the others; and whether there were too many.
fn subsets(service: &Service, found: &[Backend]) -> (Vec<Value>, bool) {
    // Those that are ready are kept rather than those that are not.
    let mut ordered: Vec<&Backend> = found.iter().collect();
    ordered.sort_by_key(|backend| !backend.ready);
    let cut = ordered.len() > ADDRESSES_MAX;
    ordered.truncate(ADDRESSES_MAX);
    ordered.sort_by(|one, two| (&one.address, &one.pod.2).cmp(&(&two.address, &two.pod.2)));
    let portless = service.spec.as_ref().is_none_or(|spec| spec.ports.iter().flatten().next().is_none());
    let mut by_ports: BTreeMap<&[Port], (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for backend in ordered {
        if backend.ports.is_empty() && !(portless && backends::is_headless(service)) {
            continue;
        }
        let mut address = json!({"ip": backend.address, "targetRef": backend.target()});
        if !backend.node.is_empty() {
            address["nodeName"] = backend.node.as_str().into();
        }
        if let Some(hostname) = &backend.hostname {
            address["hostname"] = hostname.as_str().into();
        }
        let (ready, not_ready) = by_ports.entry(&backend.ports).or_default();
        if backend.ready { ready.push(address) } else { not_ready.push(address) }
    }
    let subset = |(ports, (ready, not_ready)): (&[Port], (Vec<Value>, Vec<Value>))| {
        let mut subset = json!({});
        let ports: Vec<Value> = ports.iter().map(port_value).collect();
        for (key, list) in [("addresses", ready), ("notReadyAddresses", not_ready), ("ports", ports)] {
            if !list.is_empty() {
                subset[key] = list.into();
            }
        }
        subset
    };
    (by_ports.into_iter().map(subset).collect(), cut)
}

fn port_value(port: &Port) -> Value {
    let mut value = port.value();
    if port.name.is_empty()
        && let Some(value) = value.as_object_mut()
    {
        value.remove("name");
    }
    value
}

impl EndpointsKeeper {
    async fn delete(&self, key: &ObjectKey, known: Option<&Stored>) -> Result<Action, ReconcileError> {
        self.written.forget(key);
        // What somebody else has made is theirs.
        let ours = known.filter(|known| known.header().labels.get(MANAGED_BY) == Some(MANAGER));
        if let Some(known) = ours {
            let how = DeleteHow { uid: Some(known.header().uid.to_string()), ..DeleteHow::default() };
            match self.requests.delete(&self.resource.path(&key.namespace, &key.name), &how).await {
                Err(error) if !request::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Action::Done)
    }

    async fn write(
        &self,
        key: &ObjectKey,
        service: &Service,
        known: Option<Arc<Stored>>,
        subsets: &[Value],
        cut: bool,
    ) -> Result<Action, ReconcileError> {
        let mut labels = backends::labels(service);
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
        let subsets = if subsets.is_empty() { Value::Null } else { subsets.into() };
        let capacity = if cut { json!("truncated") } else { Value::Null };
        let result = match known {
            None => {
                let mut object = json!({
                    "apiVersion": "v1",
                    "kind": "Endpoints",
                    "metadata": {"name": &*key.name, "namespace": &*key.namespace, "labels": labels},
                });
                if !subsets.is_null() {
                    object["subsets"] = subsets;
                }
                if cut {
                    object["metadata"]["annotations"][OVER_CAPACITY] = capacity;
                }
                let path = self.resource.path(&key.namespace, "");
                self.requests.create::<Written>(&path, serde_json::to_vec(&object)?).await
            }
            Some(known) => {
                let value = known.value()?;
                let new_labels = serde_json::to_value(&labels)?;
                let old = (&value["metadata"]["labels"], &value["metadata"]["annotations"][OVER_CAPACITY]);
                if value["subsets"] == subsets && old == (&new_labels, &capacity) {
                    return Ok(Action::Done);
                }
                let patch = json!({
                    "metadata": {
                        "resourceVersion": known.revision().to_string(),
                        "labels": request::merge_difference(old.0, &new_labels),
                        "annotations": {OVER_CAPACITY: capacity},
                    },
                    "subsets": subsets,
                });
                let path = self.resource.path(&key.namespace, &key.name);
                self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await
            }
        };
        match result {
            Ok(written) => self.written.wrote(key, written.revision()),
            Err(error) if request::is_namespace_terminating(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_grouped_by_ports_and_readiness() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}]},
        }))
        .unwrap();
        let pod = |name: &str, ip: &str, port: i32, ready: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": name, "namespace": "n", "uid": name},
                    "spec": {"nodeName": "node", "containers": [
                        {"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
                    "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                        "conditions": [{"type": "Ready", "status": ready}]},
                }))
                .unwrap(),
            )
        };
        let pods = [
            pod("b", "10.1.0.2", 8080, "True"),
            pod("a", "10.1.0.1", 8080, "False"),
            pod("c", "10.1.0.3", 9090, "True"),
            pod("v6", "fd00::1", 9090, "True"),
        ];
        let (subsets, cut) = subsets(&service, &backends::backends(&service, &pods, false));
        let addresses = |index: usize, key: &str| subsets[index][key][0]["ip"].clone();
        assert_eq!(subsets.len(), 2);
        assert_eq!(subsets[0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
        assert_eq!(addresses(0, "addresses"), "10.1.0.2");
        assert_eq!(addresses(0, "notReadyAddresses"), "10.1.0.1");
        assert_eq!(addresses(1, "addresses"), "10.1.0.3");
        assert!(!cut);
    }
}
