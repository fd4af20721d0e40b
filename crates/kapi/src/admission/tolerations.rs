//! Pods stay five minutes on a node that is gone.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation};
use crate::error::ApiResult;

/// Upstream's `DefaultTolerationSeconds`: a pod that says nothing about nodes that are not ready or unreachable tolerates
/// both for five minutes.
#[derive(Clone, Copy, Debug)]
pub struct DefaultTolerations;

/// How long a pod stays on a node that is not ready or unreachable, in seconds.
pub(super) const TOLERATION_SECONDS: i64 = 300;

#[async_trait]
impl Admission for DefaultTolerations {
    fn name(&self) -> &str {
        "DefaultTolerationSeconds"
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let def = &request.resource.def;
        // Changes too, as upstream: an apply puts the list back as it was applied.
        let concerned = request.operation != Operation::Delete && request.subresource.is_empty();
        if !concerned || def.plural != "pods" || !def.group.is_empty() || !object["spec"].is_object() {
            return Ok(());
        }
        let given = object["spec"].get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut tolerations = given.clone();
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let tolerated = given.iter().any(|toleration| {
                let text = |name: &str| toleration[name].as_str().unwrap_or_default();
                (text("key") == key || text("key").is_empty()) && ["NoExecute", ""].contains(&text("effect"))
            });
            if !tolerated {
                tolerations.push(json!({
                    "effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": TOLERATION_SECONDS,
                }));
            }
        }
        if tolerations.len() != given.len() {
            object["spec"]["tolerations"] = Value::Array(tolerations);
        }
        Ok(())
    }
}
