//! For whom a node may have tokens made (KEP-4412, upstream's gate `ServiceAccountNodeAudienceRestriction`): for those that
//! the pod's volumes speak of, and those that its role names.

use async_trait::async_trait;
use serde_json::Value;

use super::{Write, items};
use crate::{
    admission::{Admission, AdmissionRequest, Operation, Phase, is_kind},
    authz::{Chain, node::node_of},
    error::ApiResult,
    request::RequestInfo,
};

/// The part of [`NodeRestriction`](super::NodeRestriction) that asks the authorizers. It comes after the part that sees to it that the
/// token is bound to a pod of the node.
#[derive(Debug)]
pub(crate) struct TokenAudience(pub(crate) Chain);

#[async_trait]
impl Admission for TokenAudience {
    fn name(&self) -> &str {
        "NodeRestriction"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Admit
            && request.operation == Operation::Create
            && is_kind(&request.resource.def, "", "serviceaccounts")
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let is_token = request.operation == Operation::Create && request.subresource == "token";
        match node_of(request.user).filter(|_| is_token) {
            Some(node) => self.check(&Write { node, request, name: request.name }, object).await,
            None => Ok(()),
        }
    }
}

impl TokenAudience {
    async fn check(&self, write: &Write<'_>, token: &Value) -> ApiResult<()> {
        let audience = match items(token, "/spec/audiences") {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return write.forbid("node may only request 0 or 1 audiences"),
        };
        let pod = write
            .pod(token.pointer("/spec/boundObjectRef/name").and_then(Value::as_str).unwrap_or_default())?;
        let request = write.request;
        match references(request, &pod, audience) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(why) => return write.forbid(&format!("error validating audience {audience:?}: {why}")),
        }
        let asks = RequestInfo {
            is_resource: true,
            verb: "request-serviceaccounts-token-audience".to_owned(),
            version: "v1".to_owned(),
            namespace: request.namespace.to_owned(),
            resource: audience.to_owned(),
            name: request.name.to_owned(),
            ..RequestInfo::default()
        };
        if self.0.allows(request.user, &asks).await {
            return Ok(());
        }
        write.forbid(&format!(
            "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            request.user.name
        ))
    }
}

/// Whether a volume of the pod has a token for this audience, or the driver of one wants one. The error says which objects could not
/// be looked at.
fn references(request: &AdmissionRequest<'_>, pod: &Value, audience: &str) -> Result<bool, String> {
    let is_for = |token: &Value| token["audience"].as_str().unwrap_or_default() == audience;
    let mut errors = Vec::new();
    for volume in items(pod, "/spec/volumes") {
        let mut sources =
            items(volume, "/projected/sources").iter().map(|source| &source["serviceAccountToken"]);
        if sources.any(|token| token.is_object() && is_for(token)) {
            return Ok(true);
        }
        let found = driver(request, pod, volume).and_then(|driver| {
            let Some(name) = driver else { return Ok(false) };
            let driver = find(request, "storage.k8s.io", "csidrivers", "", &name)?;
            Ok(items(&driver, "/spec/tokenRequests").iter().any(is_for))
        });
        match found {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(why) => errors.push(why),
        }
    }
    if errors.is_empty() { Ok(false) } else { Err(crate::authz::aggregate(&errors)) }
}

/// The CSI driver of a volume: its own, or that of the claim that it has.
fn driver(request: &AdmissionRequest<'_>, pod: &Value, volume: &Value) -> Result<Option<String>, String> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let claim = if volume["ephemeral"]["volumeClaimTemplate"].is_object() {
        let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(format!("{}-{}", name(&pod["metadata"]["name"]), name(&volume["name"])))
    } else {
        text(&volume["persistentVolumeClaim"]["claimName"])
    };
    let Some(claim) = claim else { return Ok(text(&volume["csi"]["driver"])) };
    let claim = find(request, "", "persistentvolumeclaims", request.namespace, &claim)?;
    let name = claim["spec"]["volumeName"].as_str().unwrap_or_default();
    let volume = find(request, "", "persistentvolumes", "", name)?;
    Ok(text(&volume["spec"]["csi"]["driver"]))
}

fn find(
    request: &AdmissionRequest<'_>,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<Value, String> {
    let found = request.objects.find(group, "v1", plural, namespace, name);
    let singular = plural.trim_end_matches('s');
    let kind = if group.is_empty() { singular.to_owned() } else { format!("{singular}.{group}") };
    let found = found.and_then(|found| found.value().ok());
    found.ok_or_else(|| format!("{kind} {name:?} not found"))
}
