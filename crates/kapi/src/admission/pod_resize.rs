//! Pods are resized within what their node has (KEP-1287).

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PodSpec;
use kcore::{Quantity, Status, status::StatusCause};
use kkinds::quota;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Admission, AdmissionRequest, Operation, Phase, matching::Asked};
use crate::error::ApiResult;

/// Upstream's `PodResizeValidator`: a pod on a node asks for no more than the node can give, and stands on Linux.
#[derive(Clone, Copy, Debug)]
pub struct PodResize;

#[async_trait]
impl Admission for PodResize {
    fn name(&self) -> &str {
        "PodResizeValidator"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Validate
            && request.operation == Operation::Update
            && super::is_kind(&request.resource.def, "", "pods")
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let def = &request.resource.def;
        let is_resize = request.operation == Operation::Update && request.subresource == "resize";
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        if !is_resize || def.plural != "pods" || !def.group.is_empty() || node.is_empty() {
            return Ok(());
        }
        if request.old.is_some_and(|old| old["spec"] == object["spec"]) {
            return Ok(());
        }
        let refuse = |why: &str| Asked::new(request, object).forbidden(why);
        let Some(found) = request.objects.find("", "v1", "nodes", "", node) else {
            return Err(refuse(&format!("node {node:?} not found")).into());
        };
        let system = found.header().labels.get("kubernetes.io/os");
        if let Some(system) = system.filter(|system| *system != "linux") {
            let why = format!("pod resize is only supported on linux nodes, node {node:?} is {system:?}");
            return Err(because(refuse(&why), "UnsupportedPlatform").into());
        }
        let spec = PodSpec::deserialize(&object["spec"]).map_err(Status::internal)?;
        let node = found.value().map_err(Status::internal)?;
        match lacking(&spec, &node["status"]["allocatable"]) {
            None => Ok(()),
            Some(what) => {
                let why = format!("node didn't have enough allocatable resources: {what}");
                Err(because(refuse(&why), "NodeCapacity").into())
            }
        }
    }
}

fn because(mut status: Status, reason: &str) -> Status {
    let cause = StatusCause { reason: reason.to_owned(), message: String::new(), field: String::new() };
    status.details.get_or_insert_default().causes.push(cause);
    status
}

/// An amount in the units that upstream tells it in.
type InUnits = fn(&Quantity) -> i64;

/// What a pod asks for beyond what there is, in upstream's words.
fn lacking(spec: &PodSpec, allocatable: &Value) -> Option<String> {
    let asked = quota::pod_requests(spec);
    let (asked, has) = (
        |name: &str| asked.get(name).copied().unwrap_or_default(),
        |name: &str| Quantity::parse(allocatable[name].as_str().unwrap_or("0")).unwrap_or_default(),
    );
    let units: [(&str, InUnits); 2] = [("cpu", Quantity::milli), ("memory", Quantity::value)];
    let lacking = units.iter().filter(|(name, _)| asked(name) > has(name)).map(|(name, number)| {
        format!("{name}, requested: {}, allocatable: {}", number(&asked(name)), number(&has(name)))
    });
    let lacking: Vec<String> = lacking.collect();
    (!lacking.is_empty()).then(|| lacking.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Upstream's `podresize` admission tests.
    #[test]
    fn no_pod_asks_for_more_than_its_node_has() {
        let has = json!({"cpu": "2", "memory": "1Gi"});
        for (containers, expected) in [
            (json!([{"cpu": "1", "memory": "512Mi"}, {"cpu": "1", "memory": "512Mi"}]), None),
            (json!([{"cpu": "1500m"}, {"cpu": "501m"}]), Some("cpu, requested: 2001, allocatable: 2000")),
            (json!([{"memory": "1025Mi"}]), Some("memory, requested: 1074790400, allocatable: 1073741824")),
            (
                json!([{"cpu": "3", "memory": "2Gi"}]),
                Some(
                    "cpu, requested: 3000, allocatable: 2000; memory, requested: 2147483648, allocatable: 1073741824",
                ),
            ),
            (json!([{"example.com/device": "7"}]), None),
        ] {
            let one = |requests: &Value| json!({"name": "c", "resources": {"requests": requests}});
            let all: Vec<Value> = containers.as_array().unwrap().iter().map(one).collect();
            let spec = PodSpec::deserialize(&json!({"containers": all})).unwrap();
            assert_eq!(lacking(&spec, &has).as_deref(), expected, "{containers}");
        }
    }
}
