//! Pods run as a service account.

pub(crate) mod references;
mod token;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::core::v1 as core;
use kcore::{Status, Stored};
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation, Phase};
use crate::error::ApiResult;

const DEFAULT: &str = "default";
/// The annotation of an account whose pods may use only the secrets that the account names.
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// How often a pod's create looks for the account `default`, which a controller makes in every new namespace.
const LOOKS_MAX: u32 = 100;
/// How long it waits between two looks. Upstream looks ten times with 100 to 200 ms between.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Upstream's `ServiceAccount`: a pod without an account gets `default`, the account must be there, and what the account
/// brings goes into the pod: a volume with a token of the account (unless the pod or the account has
/// `automountServiceAccountToken: false`), and its `imagePullSecrets` where the pod has none. An account with the annotation
/// `kubernetes.io/enforce-mountable-secrets: "true"` limits the secrets that its pods may use.
///
/// A pod that is made right after its namespace waits up to a second for the account `default`.
#[derive(Clone, Copy, Debug)]
pub struct ServiceAccount;

#[async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &str {
        "ServiceAccount"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        let is_asked = match phase {
            Phase::Admit => request.operation == Operation::Create,
            Phase::Validate => matches!(request.operation, Operation::Create | Operation::Update),
        };
        is_asked && super::is_kind(&request.resource.def, "", "pods")
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        // A mirror of a node's own pod is as the node says.
        if !is_pod(request, Operation::Create, "") || !object["spec"].is_object() || is_mirror(object) {
            return Ok(());
        }
        let spec = &mut object["spec"];
        if spec.get("serviceAccountName").and_then(Value::as_str).is_none_or(str::is_empty) {
            spec["serviceAccountName"] = json!(DEFAULT);
            spec["serviceAccount"] = json!(DEFAULT);
        }
        let waited = match spec["serviceAccountName"] == DEFAULT {
            true => await_default(request).await,
            false => None,
        };
        let account = match waited.and_then(|account| account.typed().ok()) {
            Some(account) => account,
            None => account_of(request, object)?,
        };
        let spec = &mut object["spec"];
        let mounts = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
        if mounts.or(account.automount_service_account_token).unwrap_or(true) {
            token::mount(spec);
        }
        let pulls = account.image_pull_secrets.as_deref().unwrap_or_default();
        if !pulls.is_empty() && is_empty(spec.get("imagePullSecrets")) {
            spec["imagePullSecrets"] = pulls.iter().map(|secret| json!({"name": secret.name})).collect();
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        if is_pod(request, Operation::Update, "ephemeralcontainers") {
            let account = account_of(request, object)?;
            if enforces(&account) {
                let refused = |why: String| Status::forbidden("", "pods", request.name, &why);
                references::of_ephemeral_containers(&account, &object["spec"]).map_err(refused)?;
            }
            return Ok(());
        }
        if !is_pod(request, Operation::Create, "") {
            return Ok(());
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let refused = |why: String| Status::forbidden("", "pods", name, &why);
        if is_mirror(object) {
            return Ok(references::of_mirror(&object["spec"]).map_err(|why| refused(why.to_owned()))?);
        }
        let account = account_of(request, object)?;
        if enforces(&account) {
            references::of_pod(&account, &object["spec"]).map_err(refused)?;
        }
        Ok(())
    }
}

/// Whether the request is of this kind, for pods or this subresource of them.
fn is_pod(request: &AdmissionRequest<'_>, operation: Operation, subresource: &str) -> bool {
    let def = &request.resource.def;
    let asked = request.subresource == subresource && request.operation == operation;
    asked && def.plural == "pods" && def.group.is_empty()
}

fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR).is_some()
}

fn is_empty(list: Option<&Value>) -> bool {
    list.and_then(Value::as_array).is_none_or(Vec::is_empty)
}

/// Waits until the account `default` is there, or for as long as a pod waits for it.
async fn await_default(request: &AdmissionRequest<'_>) -> Option<Arc<Stored>> {
    for _ in 1..LOOKS_MAX {
        let found = request.objects.find("", "v1", "serviceaccounts", request.namespace, DEFAULT);
        if found.is_some() {
            return found;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    None
}

/// The account that a pod names.
fn account_of(request: &AdmissionRequest<'_>, pod: &Value) -> ApiResult<Arc<core::ServiceAccount>> {
    let namespace = request.namespace;
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let refused = |why: String| Status::forbidden("", "pods", pod_name, &why);
    let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Err(refused(format!("no service account specified for pod {namespace}/{pod_name}")).into());
    }
    let found = request.objects.find("", "v1", "serviceaccounts", namespace, name);
    let account = found.and_then(|account| account.typed::<core::ServiceAccount>().ok());
    let why =
        || format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
    account.ok_or_else(|| refused(why()).into())
}

fn enforces(account: &core::ServiceAccount) -> bool {
    let annotations = account.metadata.annotations.as_ref();
    let value = annotations.and_then(|annotations| annotations.get(ENFORCE_MOUNTABLE));
    // What Go's `strconv.ParseBool` takes for true.
    value.is_some_and(|value| ["1", "t", "T", "TRUE", "true", "True"].contains(&value.as_str()))
}
