//! Pods stay five minutes on a node that is gone.

use std::sync::LazyLock;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation, Phase};
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

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Admit
            && request.operation != Operation::Connect
            && super::is_kind(&request.resource.def, "", "pods")
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let def = &request.resource.def;
        // Changes too, as upstream: an apply puts the list back as it was applied.
        let concerned = request.operation != Operation::Delete && request.subresource.is_empty();
        if !concerned || def.plural != "pods" || !def.group.is_empty() || !object["spec"].is_object() {
            return Ok(());
        }
        let given = object["spec"].get("tolerations").and_then(Value::as_array);
        let missing: Vec<Value> = ADDED
            .iter()
            .filter(|added| !given.is_some_and(|given| given.iter().any(|one| tolerates(one, &added["key"]))))
            .cloned()
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        match object["spec"].get_mut("tolerations").and_then(Value::as_array_mut) {
            Some(given) => given.extend(missing),
            None => object["spec"]["tolerations"] = Value::Array(missing),
        }
        Ok(())
    }
}

/// What is added, made once.
static ADDED: LazyLock<[Value; 2]> = LazyLock::new(|| {
    ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(|key| {
        json!({"effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": TOLERATION_SECONDS})
    })
});

/// Whether a toleration covers nodes with this taint.
fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let text = |name: &str| toleration.get(name).and_then(Value::as_str).unwrap_or_default();
    let key = text("key");
    (key.is_empty() || Some(key) == taint.as_str()) && ["NoExecute", ""].contains(&text("effect"))
}
