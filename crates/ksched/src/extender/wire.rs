//! The JSON that extenders speak (`k8s.io/kube-scheduler/extender/v1`). Upstream's fields have no names for JSON, so they begin
//! with a capital; as Go reads them in any case, both forms are taken.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde::{Deserialize, Deserializer, Serialize};

/// Go writes empty lists and maps as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ExtenderArgs<'a> {
    pub(super) pod: &'a Pod,
    pub(super) nodes: Option<NodeList<'a>>,
    pub(super) node_names: Option<Vec<&'a str>>,
}

#[derive(Serialize)]
pub(super) struct NodeList<'a> {
    pub(super) metadata: NoMetadata,
    pub(super) items: Vec<&'a Node>,
}

#[derive(Serialize)]
pub(super) struct NoMetadata {}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct FilterResult {
    #[serde(default, alias = "nodes")]
    pub(super) nodes: Option<NamedList>,
    #[serde(default, alias = "nodeNames", alias = "nodenames")]
    pub(super) node_names: Option<Vec<String>>,
    #[serde(default, alias = "failedNodes", deserialize_with = "or_default")]
    pub(super) failed_nodes: BTreeMap<String, String>,
    #[serde(default, alias = "failedAndUnresolvableNodes", deserialize_with = "or_default")]
    pub(super) failed_and_unresolvable_nodes: BTreeMap<String, String>,
    #[serde(default, alias = "error", deserialize_with = "or_default")]
    pub(super) error: String,
}

#[derive(Deserialize)]
pub(super) struct NamedList {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) items: Vec<Named>,
}

#[derive(Deserialize)]
pub(super) struct Named {
    pub(super) metadata: Metadata,
}

#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostPriority {
    #[serde(alias = "host")]
    pub(super) host: String,
    #[serde(default, alias = "score")]
    pub(super) score: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PreemptionArgs<'a> {
    pub(super) pod: &'a Pod,
    pub(super) node_name_to_victims: Option<BTreeMap<&'a str, Victims<'a>>>,
    pub(super) node_name_to_meta_victims: Option<BTreeMap<&'a str, MetaVictims>>,
}

#[derive(Serialize)]
pub(super) struct Victims<'a> {
    #[serde(rename = "Pods")]
    pub(super) pods: Vec<&'a Pod>,
    #[serde(rename = "NumPDBViolations")]
    pub(super) violations: usize,
}

#[derive(Serialize, Deserialize)]
pub(super) struct MetaVictims {
    #[serde(rename = "Pods", alias = "pods", default, deserialize_with = "or_default")]
    pub(super) pods: Vec<MetaPod>,
    #[serde(rename = "NumPDBViolations", alias = "numPDBViolations", default)]
    pub(super) violations: usize,
}

#[derive(Serialize, Deserialize)]
pub(super) struct MetaPod {
    #[serde(rename = "UID", alias = "uid")]
    pub(super) uid: String,
}

#[derive(Deserialize)]
pub(super) struct PreemptionResult {
    #[serde(
        rename = "NodeNameToMetaVictims",
        alias = "nodeNameToMetaVictims",
        default,
        deserialize_with = "or_default"
    )]
    pub(super) victims: BTreeMap<String, Option<MetaVictims>>,
}

#[derive(Serialize)]
pub(super) struct BindingArgs<'a> {
    #[serde(rename = "PodName")]
    pub(super) name: &'a str,
    #[serde(rename = "PodNamespace")]
    pub(super) namespace: &'a str,
    #[serde(rename = "PodUID")]
    pub(super) uid: &'a str,
    #[serde(rename = "Node")]
    pub(super) node: &'a str,
}

#[derive(Deserialize)]
pub(super) struct BindingResult {
    #[serde(rename = "Error", alias = "error", default, deserialize_with = "or_default")]
    pub(super) error: String,
}
