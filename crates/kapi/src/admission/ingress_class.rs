//! Ingresses get the class that is marked as the default.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation, Phase, storage::default_class};
use crate::error::ApiResult;

/// Upstream's `DefaultIngressClass`.
#[derive(Clone, Copy, Debug)]
pub struct DefaultIngressClass;

#[async_trait]
impl Admission for DefaultIngressClass {
    fn name(&self) -> &str {
        "DefaultIngressClass"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        request.operation == Operation::Create
            && phase == Phase::Admit
            && super::is_kind(&request.resource.def, "networking.k8s.io", "ingresses")
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let def = &request.resource.def;
        let is_new = request.operation == Operation::Create && request.subresource.is_empty();
        if !is_new
            || (def.group.as_str(), def.plural.as_str()) != ("networking.k8s.io", "ingresses")
            || !object["spec"].is_object()
            || object["spec"].get("ingressClassName").is_some_and(|class| !class.is_null())
            || object["metadata"]["annotations"].get("kubernetes.io/ingress.class").is_some()
        {
            return Ok(());
        }
        let marks = ["ingressclass.kubernetes.io/is-default-class"];
        if let Some(class) = default_class(request, ("networking.k8s.io", "ingressclasses"), &marks) {
            object["spec"]["ingressClassName"] = json!(class);
        }
        Ok(())
    }
}
