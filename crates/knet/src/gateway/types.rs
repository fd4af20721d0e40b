//! The kinds of the Gateway API, with the fields that are done or refused.
//!
//! [`definitions`] gives what a cluster has to know of them. It may have upstream's instead: what those have besides is not looked at.

mod listener_set;
mod policy;
mod route;

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector},
};
use kube::{CustomResource, CustomResourceExt as _};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The API group.
pub const GROUP: &str = "gateway.networking.k8s.io";

pub use self::{listener_set::*, policy::*, route::*};

/// The definitions of all kinds. As they are not upstream's, they say by the annotation `api-approved.kubernetes.io`, which kinds of such a
/// group need (KEP-1111), that nobody has approved them.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        GatewayClass::crd(),
        Gateway::crd(),
        ListenerSet::crd(),
        HTTPRoute::crd(),
        GRPCRoute::crd(),
        TLSRoute::crd(),
        ReferenceGrant::crd(),
        BackendTLSPolicy::crd(),
    ];
    for definition in &mut all {
        let approved = "unapproved, the fields that kplane knows".to_owned();
        let annotations = definition.metadata.annotations.get_or_insert_default();
        annotations.insert("api-approved.kubernetes.io".to_owned(), approved);
    }
    all
}

/// Anything: the schema of a field that is only looked for.
fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A kind of Gateways, and who serves them.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "GatewayClass",
    plural = "gatewayclasses",
    shortname = "gc",
    status = "GatewayClassStatus"
)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Who serves them.
    pub controller_name: String,
    /// Refused: there are no parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub parameters_ref: Option<Value>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What became of a GatewayClass.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassStatus {
    /// `Accepted`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What is there, sorted by name.
    #[serde(default)]
    pub supported_features: Vec<SupportedFeature>,
}

/// Something of the API that is there.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct SupportedFeature {
    /// Its name, such as `HTTPRoute`.
    pub name: String,
}

/// Where requests come in.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "Gateway",
    shortname = "gtw",
    namespaced,
    status = "GatewayStatus"
)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// The class.
    pub gateway_class_name: String,
    /// What is listened for.
    pub listeners: Vec<Listener>,
    /// Refused: addresses can't be chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<GatewayAddress>,
    /// Which ListenerSets add listeners; by default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_listeners: Option<AllowedListeners>,
}

/// What is listened for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name in the Gateway.
    pub name: String,
    /// The host; none is every host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The port.
    pub port: i32,
    /// `HTTP`, `HTTPS` or `TLS`; others are refused.
    pub protocol: String,
    /// For `HTTPS` and `TLS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Which routes may be attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
}

/// TLS of a listener.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTls {
    /// `Terminate`, the default, for `HTTPS`; `Passthrough` for `TLS`; others are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Secrets of the type `kubernetes.io/tls`; the first that can be used counts.
    #[serde(default)]
    pub certificate_refs: Vec<ObjectReference>,
}

/// Which routes may be attached to a listener.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct AllowedRoutes {
    /// From where; by default from the Gateway's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<RouteNamespaces>,
    /// Of which kinds; by default all that fit the protocol.
    #[serde(default)]
    pub kinds: Vec<RouteGroupKind>,
}

/// Which namespaces routes or ListenerSets may be in.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct RouteNamespaces {
    /// `Same`, `All`, `Selector`, or for ListenerSets `None`. By default `Same` for routes, and `None` for ListenerSets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// For `Selector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// A kind of routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct RouteGroupKind {
    /// The group; by default that of the Gateway API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The kind.
    pub kind: String,
}

/// An object that is referred to; a Secret, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct ObjectReference {
    /// The group; by default the core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The name.
    pub name: String,
    /// The namespace; by default that of who refers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// What became of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Where it is reached.
    #[serde(default)]
    pub addresses: Vec<GatewayAddress>,
    /// `Accepted` and `Programmed`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What became of the listeners.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
    /// How many ListenerSets are accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached_listener_sets: Option<i32>,
}

/// An address of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct GatewayAddress {
    /// `IPAddress`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The address.
    #[serde(default)]
    pub value: String,
}

/// What became of a listener, of a Gateway or of a ListenerSet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// The kinds of routes that it takes.
    #[serde(default)]
    pub supported_kinds: Vec<RouteGroupKind>,
    /// How many routes are attached.
    pub attached_routes: i32,
    /// `Accepted`, `ResolvedRefs`, `Conflicted` and `Programmed`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// What objects of other namespaces may refer to in this one.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1beta1",
    kind = "ReferenceGrant",
    shortname = "refgrant",
    namespaced
)]
pub struct ReferenceGrantSpec {
    /// Who may refer: any of these.
    pub from: Vec<ReferenceGrantFrom>,
    /// To what: any of these.
    pub to: Vec<ReferenceGrantTo>,
}

/// Who may refer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct ReferenceGrantFrom {
    /// The group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The namespace.
    pub namespace: String,
}

/// What may be referred to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct ReferenceGrantTo {
    /// The group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The name; by default every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
