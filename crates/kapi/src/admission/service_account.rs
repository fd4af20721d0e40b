//! Pods run as a service account.

use async_trait::async_trait;
use kcore::Status;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation};
use crate::error::ApiResult;

/// Upstream's `ServiceAccount`: a pod without an account gets `default`, the account must be there.
///
/// The volume with a token of the account is not put into pods (see `docs/compatibility.md`); those that want one project it.
#[derive(Clone, Copy, Debug)]
pub struct ServiceAccount;

#[async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &str {
        "ServiceAccount"
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        if !is_new_pod(request) || !object["spec"].is_object() {
            return Ok(());
        }
        // A mirror of a node's own pod has no account.
        if object.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some() {
            return Ok(());
        }
        let spec = &mut object["spec"];
        if spec.get("serviceAccountName").and_then(Value::as_str).is_none_or(str::is_empty) {
            spec["serviceAccountName"] = json!("default");
            spec["serviceAccount"] = json!("default");
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        if !is_new_pod(request) {
            return Ok(());
        }
        let Some(name) = object["spec"]["serviceAccountName"].as_str() else {
            return Ok(());
        };
        if request.objects.find("", "v1", "serviceaccounts", request.namespace, name).is_some() {
            return Ok(());
        }
        let namespace = request.namespace;
        let why =
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        let pod = object["metadata"]["name"].as_str().unwrap_or_default();
        Err(Status::forbidden("", "pods", pod, &why).into())
    }
}

fn is_new_pod(request: &AdmissionRequest<'_>) -> bool {
    let def = &request.resource.def;
    let plain = request.subresource.is_empty() && request.operation == Operation::Create;
    plain && def.plural == "pods" && def.group.is_empty()
}
