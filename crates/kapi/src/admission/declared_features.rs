//! What a running pod is changed to, its node can do (KEP-5328).

use async_trait::async_trait;
use kcore::Quantity;
use serde_json::Value;

use super::{Admission, AdmissionRequest, Operation, Phase, matching::Asked};
use crate::error::ApiResult;

/// Upstream's `NodeDeclaredFeatureValidator`: a change that only some nodes can carry out is refused where the pod's node does
/// not say in `status.declaredFeatures` that it can.
#[derive(Clone, Copy, Debug)]
pub struct DeclaredFeatures;

#[async_trait]
impl Admission for DeclaredFeatures {
    fn name(&self) -> &str {
        "NodeDeclaredFeatureValidator"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Validate
            && request.operation == Operation::Update
            && super::is_kind(&request.resource.def, "", "pods")
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let def = &request.resource.def;
        let is_update =
            request.operation == Operation::Update && matches!(request.subresource, "" | "resize");
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        let Some(old) = request.old.filter(|_| is_update && !node.is_empty()) else { return Ok(()) };
        if def.plural != "pods" || !def.group.is_empty() || old["spec"] == object["spec"] {
            return Ok(());
        }
        let needed = needed(&old["spec"], &object["spec"]);
        if needed.is_empty() {
            return Ok(());
        }
        let refuse = |why: &str| Err(Asked::new(request, object).forbidden(why).into());
        let found = request.objects.find("", "v1", "nodes", "", node).and_then(|node| node.value().ok());
        let Some(found) = found else { return refuse(&format!("node {node:?} not found")) };
        let declared = found["status"]["declaredFeatures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let missing: Vec<&str> =
            needed.into_iter().filter(|feature| !declared.iter().any(|one| one == feature)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        refuse(&format!(
            "pod update requires features {} which are not available on node {node:?}",
            missing.join(", ")
        ))
    }
}

/// The features that a change needs, in the order of their names.
fn needed(old: &Value, new: &Value) -> Vec<&'static str> {
    let mut needed = Vec::new();
    if !same_resources(&old["resources"], &new["resources"]) {
        needed.push("InPlacePodLevelResourcesVerticalScaling");
    }
    let list = |spec: &'_ Value| spec["initContainers"].as_array().cloned().unwrap_or_default();
    let is_changed = |(old, new): (&Value, &Value)| {
        old["restartPolicy"] != "Always" && !same_resources(&old["resources"], &new["resources"])
    };
    if list(old).iter().zip(&list(new)).any(is_changed) {
        needed.push("InPlacePodVerticalScalingInitContainers");
    }
    needed
}

/// Whether two sets of resources ask for the same, however it is written.
fn same_resources(old: &Value, new: &Value) -> bool {
    let amounts = |of: &Value, key: &str| -> Vec<(String, Quantity)> {
        let amounts = of[key].as_object().into_iter().flatten();
        let parse = |value: &Value| Quantity::parse(value.as_str().unwrap_or_default()).unwrap_or_default();
        let mut all: Vec<_> = amounts.map(|(name, value)| (name.clone(), parse(value))).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    };
    ["requests", "limits"].iter().all(|key| amounts(old, key) == amounts(new, key))
        && claims(old) == claims(new)
}

fn claims(of: &Value) -> &[Value] {
    of["claims"].as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Upstream's tables for `nonSidecarInitContainerResize` and `podLevelResourcesResize`.
    #[test]
    fn some_changes_need_what_not_every_node_has() {
        const INIT: &str = "InPlacePodVerticalScalingInitContainers";
        const POD: &str = "InPlacePodLevelResourcesVerticalScaling";
        let cpu = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let init = |resources: Value| json!({"initContainers": [{"name": "i", "resources": resources}]});
        let sidecar = |resources: Value| json!({"initContainers": [{"name": "s", "restartPolicy": "Always", "resources": resources}]});
        let cases: [(Value, Value, &[&str]); 8] = [
            (init(cpu("100m")), init(cpu("100m")), &[]),
            (init(cpu("100m")), init(cpu("0.1")), &[]),
            (init(cpu("100m")), init(cpu("200m")), &[INIT]),
            (sidecar(cpu("100m")), sidecar(cpu("200m")), &[]),
            (json!({}), json!({"resources": cpu("1")}), &[POD]),
            (json!({"resources": cpu("1")}), json!({"resources": cpu("1000m")}), &[]),
            (json!({"resources": cpu("1")}), json!({"resources": cpu("2")}), &[POD]),
            (
                json!({"resources": cpu("1"), "initContainers": [{"name": "i", "resources": cpu("1")}]}),
                json!({"resources": cpu("2"), "initContainers": [{"name": "i", "resources": cpu("2")}]}),
                &[POD, INIT],
            ),
        ];
        for (old, new, expected) in cases {
            assert_eq!(needed(&old, &new), expected, "{old} {new}");
        }
    }
}
