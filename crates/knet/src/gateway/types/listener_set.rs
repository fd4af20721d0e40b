//! Listeners that come besides those of a Gateway (GEP-1713).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Listener, ListenerStatus, RouteNamespaces};

/// Listeners that a Gateway has besides its own, if it allows them.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "ListenerSet",
    plural = "listenersets",
    shortname = "lset",
    namespaced,
    status = "ListenerSetStatus"
)]
#[serde(rename_all = "camelCase")]
pub struct ListenerSetSpec {
    /// The Gateway.
    pub parent_ref: ParentGatewayReference,
    /// What is listened for.
    pub listeners: Vec<Listener>,
}

/// A Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ParentGatewayReference {
    /// The group; by default that of the Gateway API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The kind; by default `Gateway`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The name.
    pub name: String,
    /// The namespace; by default that of the set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Which sets of listeners a Gateway has.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct AllowedListeners {
    /// From where; by default from nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<RouteNamespaces>,
}

/// What became of a set of listeners.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct ListenerSetStatus {
    /// `Accepted` and `Programmed`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What became of the listeners.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
}
