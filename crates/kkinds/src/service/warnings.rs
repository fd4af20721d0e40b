//! What is unusual about a service that is valid (`pkg/api/service/warnings.go`).

use serde_json::Value;

use super::kind;
use crate::check::{Look, Path, address, texts};

const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const MODE: &str = "service.kubernetes.io/topology-mode";

/// The warnings about a service.
pub(crate) fn of(object: &Value) -> Vec<String> {
    let (mut out, spec, path) = (Vec::new(), &object["spec"], Path::root("spec"));
    if object["metadata"]["annotations"].has(HINTS) {
        out.push(format!("annotation {HINTS} is deprecated, please use {MODE} instead"));
    }
    let one = spec.text("clusterIP");
    let addresses = |key: &str, out: &mut Vec<String>| {
        let list = path.field(key);
        for (index, text) in texts(spec.list(key)).enumerate() {
            address::warnings(&list.index(index), text, out);
        }
    };
    if !one.is_empty() && one != "None" {
        addresses("clusterIPs", &mut out);
    }
    let external = spec.count("externalIPs") > 0;
    let headless = kind(object) == "ClusterIP" && one == "None";
    if headless {
        if !spec.text("loadBalancerIP").is_empty() {
            out.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if external {
            out.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if spec.text("sessionAffinity") != "None" {
            out.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    addresses("externalIPs", &mut out);
    let named = kind(object) == "ExternalName";
    if external && !headless && !named {
        out.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned(),
        );
    }
    if !spec.text("loadBalancerIP").is_empty() {
        address::warnings(&path.field("loadBalancerIP"), spec.text("loadBalancerIP"), &mut out);
    }
    let list = path.field("loadBalancerSourceRanges");
    for (index, text) in texts(spec.list("loadBalancerSourceRanges")).enumerate() {
        address::network_warnings(&list.index(index), text, &mut out);
    }
    if named && external {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !named && !spec.text("externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.text("trafficDistribution") == "PreferClose" {
        out.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
    out
}

/// The warnings about a service's status.
pub(crate) fn of_status(object: &Value) -> Vec<String> {
    let (mut out, list) = (Vec::new(), Path::root("status.loadBalancer.ingress"));
    for (index, ingress) in object["status"]["loadBalancer"].list("ingress").iter().enumerate() {
        if !ingress.text("ip").is_empty() {
            address::warnings(&list.index(index), ingress.text("ip"), &mut out);
        }
    }
    out
}
