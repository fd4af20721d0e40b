//! Which pods stand behind a Service, and how they are reached: what EndpointSlices and Endpoints have in common.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kcore::{Stored, selector::LabelSelector};
use serde_json::{Value, json};

use crate::{change::Change, controllers::pod_state, informer::Informer, key::ObjectKey, trigger::MapTo};

/// The label that says a Service is headless.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// A pod that a Service leads to.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) address: String,
    pub(crate) ports: Vec<Port>,
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    pub(crate) node: String,
    pub(crate) hostname: Option<String>,
    pub(crate) pod: (String, String, String),
}

impl Backend {
    /// The reference to the pod.
    pub(crate) fn target(&self) -> Value {
        let (namespace, name, uid) = &self.pod;
        json!({"kind": "Pod", "namespace": namespace, "name": name, "uid": uid})
    }
}

/// A port of a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) port: i32,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
}

impl Port {
    pub(crate) fn value(&self) -> Value {
        let mut value = json!({"name": self.name, "port": self.port, "protocol": self.protocol});
        if let Some(protocol) = &self.app_protocol {
            value["appProtocol"] = protocol.as_str().into();
        }
        value
    }
}

/// Whether an address is of IP version 6.
pub(crate) fn is_v6(address: &str) -> bool {
    address.contains(':')
}

/// The selector of a Service that has backends by selector.
pub(crate) fn selector(service: &Service) -> Option<LabelSelector> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
    let labels = k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector {
        match_labels: Some(labels.clone()),
        match_expressions: None,
    };
    pod_state::label_selector(&labels)
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or_default()
}

/// The pods of a Service that have an address of this IP version and have not ended.
pub(crate) fn backends(service: &Service, pods: &[Arc<Pod>], v6: bool) -> Vec<Backend> {
    let all = pods.iter().filter(|pod| !pod_state::is_terminal(pod));
    let mut backends: Vec<Backend> = all.filter_map(|pod| backend(service, pod, v6)).collect();
    backends.sort_by(|one, two| (&one.address, &one.pod).cmp(&(&two.address, &two.pod)));
    backends
}

fn backend(service: &Service, pod: &Pod, v6: bool) -> Option<Backend> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let address = all.chain(status.pod_ip.as_deref()).find(|ip| !ip.is_empty() && is_v6(ip) == v6)?;
    let spec = pod.spec.as_ref()?;
    let subdomain = spec.subdomain.as_deref().unwrap_or_default();
    let hostname = spec.hostname.clone().filter(|hostname| !hostname.is_empty());
    let named = service.metadata.name.as_deref() == Some(subdomain);
    let serving = pod_state::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    Some(Backend {
        address: address.to_owned(),
        ports: ports.filter_map(|port| resolve(port, pod)).collect(),
        ready: publishes_not_ready(service) || (serving && !terminating),
        serving,
        terminating,
        node: pod_state::node_name(pod).to_owned(),
        hostname: hostname.filter(|_| named),
        pod: (
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod_state::name(pod).to_owned(),
            pod_state::uid(pod).to_owned(),
        ),
    })
}

/// The port of a pod that a Service's port leads to; `None` when the pod has no port of that name.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let ports =
                spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let of_name = |known: &&k8s_openapi::api::core::v1::ContainerPort| {
                known.name.as_ref() == Some(name) && known.protocol.as_deref().unwrap_or("TCP") == protocol
            };
            ports.into_iter().find(of_name)?.container_port
        }
    };
    let name = port.name.clone().unwrap_or_default();
    Some(Port { name, port: number, protocol, app_protocol: port.app_protocol.clone() })
}

/// Maps a pod's change to the Services whose selector matches it, before or after.
pub(crate) fn services_of_pod(services: &Informer<Service>) -> MapTo {
    let services = services.clone();
    MapTo::Keys(Arc::new(move |change, keys| {
        if !matters(change) {
            return;
        }
        let namespace = &change.header().namespace;
        for service in services.in_namespace(namespace) {
            let Some(selector) = selector(&service) else { continue };
            if change.sides().any(|side| selector.matches(&side.header().labels)) {
                let name = service.metadata.name.clone().unwrap_or_default();
                keys.push(ObjectKey::new(&**namespace, name));
            }
        }
    }))
}

/// Whether a change of a pod can change what a Service leads to.
fn matters(change: &Change) -> bool {
    let relevant = |side: &Stored| {
        let pod = side.typed::<Pod>().ok()?;
        let status = pod.status.as_ref();
        let ips = status.map(|status| (status.pod_ip.clone(), status.pod_ips.clone()));
        let state = (pod_state::is_ready(&pod), pod_state::is_terminal(&pod));
        Some((state, pod_state::node_name(&pod).to_owned(), ips))
    };
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => {
            let (was, is) = (old.header(), new.header());
            was.labels != is.labels
                || was.deletion != is.deletion
                || was.uid != is.uid
                || relevant(old) != relevant(new)
        }
        (Some(side), None) | (None, Some(side)) => {
            relevant(side).is_none_or(|(_, _, ips)| ips.is_some_and(|(ip, _)| ip.is_some()))
        }
        (None, None) => false,
    }
}

/// The Service's labels as those of what is made for it.
pub(crate) fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}
