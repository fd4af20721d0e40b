//! Objects are created only in namespaces that are there and stay there.

use async_trait::async_trait;
use kcore::{Status, status::StatusCause};
use serde_json::Value;

use super::{Admission, AdmissionRequest, Operation, Phase};
use crate::error::ApiResult;

/// Upstream's `NamespaceLifecycle`: no creation in a missing or ending namespace, no deletion of the three namespaces that
/// every cluster has.
#[derive(Clone, Copy, Debug)]
pub struct NamespaceLifecycle;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

#[async_trait]
impl Admission for NamespaceLifecycle {
    fn name(&self) -> &str {
        "NamespaceLifecycle"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        let kind = &request.resource.def;
        match phase {
            Phase::Admit => request.operation == Operation::Create && kind.namespaced,
            Phase::Validate => {
                request.operation == Operation::Delete && super::is_kind(kind, "", "namespaces")
            }
        }
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, _object: &mut Value) -> ApiResult<()> {
        check_namespace(request)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, _object: &Value) -> ApiResult<()> {
        let def = &request.resource.def;
        let ends_immortal = request.operation == Operation::Delete
            && def.group.is_empty()
            && def.plural == "namespaces"
            && IMMORTAL.contains(&request.name);
        if ends_immortal {
            return Err(Status::forbidden(
                "",
                "namespaces",
                request.name,
                "this namespace may not be deleted",
            )
            .into());
        }
        Ok(())
    }
}

fn check_namespace(request: &AdmissionRequest<'_>) -> ApiResult<()> {
    if request.operation != Operation::Create
        || !request.resource.def.namespaced
        || request.namespace.is_empty()
    {
        return Ok(());
    }
    // Reviews are answered and not kept, so their namespace need not be there.
    if request.resource.def.group == "authorization.k8s.io" {
        return Ok(());
    }
    let Some(namespace) = request.objects.find("", "v1", "namespaces", "", request.namespace) else {
        return Err(Status::not_found("", "namespaces", request.namespace).into());
    };
    if namespace.header().deletion.is_none() {
        return Ok(());
    }
    let def = &request.resource.def;
    let why = format!(
        "unable to create new content in namespace {} because it is being terminated",
        request.namespace
    );
    let mut status = Status::forbidden(&def.group, &def.plural, request.name, &why);
    if let Some(details) = &mut status.details {
        details.causes.push(StatusCause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {} is being terminated", request.namespace),
            field: "metadata.namespace".to_owned(),
        });
    }
    Err(status.into())
}
