//! New nodes take no pods before they are ready.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation, Phase};
use crate::error::ApiResult;

/// Upstream's `TaintNodesByCondition`: a new node is tainted as not ready, until the node life cycle controller sees that
/// it is.
#[derive(Clone, Copy, Debug)]
pub struct TaintNewNodes;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

#[async_trait]
impl Admission for TaintNewNodes {
    fn name(&self) -> &str {
        "TaintNodesByCondition"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Admit
            && request.operation == Operation::Create
            && super::is_kind(&request.resource.def, "", "nodes")
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let def = &request.resource.def;
        if request.operation != Operation::Create || def.plural != "nodes" || !def.group.is_empty() {
            return Ok(());
        }
        let spec = crate::schema::fields::child(object, "spec");
        let taints = spec.get("taints").and_then(Value::as_array).cloned().unwrap_or_default();
        if taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule") {
            return Ok(());
        }
        let mut taints = taints;
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        spec["taints"] = Value::Array(taints);
        Ok(())
    }
}
