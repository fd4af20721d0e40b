//! The downward API: what a pod may know about itself.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::runtime::RuntimeError;

/// Where the values come from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its addresses.
    pub pod_ips: &'a [IpAddr],
    /// Its node's addresses.
    pub host_ips: &'a [IpAddr],
    /// What the node has, the limit of containers without one.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

fn joined(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// `key="value"` lines, as in files of labels and annotations.
fn map_text(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
}

/// `key` of `prefix['key']`.
fn subscript<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")
}

/// The value of a `fieldRef`.
///
/// # Errors
/// [`RuntimeError::Config`] when `path` names no field that is offered.
pub fn field(facts: &Facts<'_>, path: &str) -> Result<String, RuntimeError> {
    let meta = &facts.pod.metadata;
    let spec = facts.pod.spec.as_ref();
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(meta.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(meta.annotations.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(map_text(meta.labels.as_ref())),
        "metadata.annotations" => Some(map_text(meta.annotations.as_ref())),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.podIP" => facts.pod_ips.first().map(ToString::to_string),
        "status.podIPs" => Some(joined(facts.pod_ips)),
        "status.hostIP" => facts.host_ips.first().map(ToString::to_string),
        "status.hostIPs" => Some(joined(facts.host_ips)),
        _ => return Err(RuntimeError::Config(format!("unsupported fieldPath: {path}"))),
    };
    Ok(value.unwrap_or_default())
}

/// The value of a `resourceFieldRef`: a whole number of divisors, rounded up.
///
/// # Errors
/// [`RuntimeError::Config`] when the container or the resource isn't known.
pub fn resource(
    facts: &Facts<'_>,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
) -> Result<String, RuntimeError> {
    let spec = facts.pod.spec.as_ref();
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let container = match named {
        Some(name) => spec.and_then(|spec| {
            spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
        }),
        None => container,
    };
    let container = container
        .ok_or_else(|| RuntimeError::Config(format!("container {:?} not found", selector.container_name)))?;
    let (kind, name) = selector.resource.split_once('.').unwrap_or(("", &selector.resource));
    let resources = container.resources.as_ref();
    let list = match kind {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(RuntimeError::Config(format!("unsupported resource: {}", selector.resource))),
    };
    let amount = list
        .and_then(|list| list.get(name))
        .or_else(|| facts.allocatable.get(name).filter(|_| kind == "limits"))
        .map_or(0, |quantity| milli(&quantity.0));
    let divisor = selector.divisor.as_ref().map_or(0, |quantity| milli(&quantity.0));
    let divisor = if divisor == 0 { 1000 } else { divisor };
    Ok(amount.div_euclid(divisor).saturating_add(i128::from(amount.rem_euclid(divisor) > 0)).to_string())
}

fn milli(text: &str) -> i128 {
    kcore::Quantity::parse(text).map_or(0, |quantity| match quantity.milli() {
        i64::MAX => i128::from(quantity.value()) * 1000,
        milli => i128::from(milli),
    })
}
