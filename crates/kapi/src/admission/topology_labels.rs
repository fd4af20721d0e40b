//! Pods get the labels of their node that say where it stands (KEP-4742).

use async_trait::async_trait;
use serde_json::Value;

use super::{Admission, AdmissionRequest, Operation, Phase};
use crate::{error::ApiResult, schema::fields::child};

/// Upstream's `PodTopologyLabels`: what is bound to a node, or made with one, gets its zone and its region as labels.
#[derive(Clone, Copy, Debug)]
pub struct PodTopologyLabels;

/// The labels that are copied.
const COPIED: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

#[async_trait]
impl Admission for PodTopologyLabels {
    fn name(&self) -> &str {
        "PodTopologyLabels"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Admit
            && request.operation != Operation::Connect
            && super::is_kind(&request.resource.def, "", "pods")
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let def = &request.resource.def;
        let is_placed = match request.subresource {
            "" => request.operation == Operation::Create,
            "binding" => true,
            _ => false,
        };
        if !is_placed || def.plural != "pods" || !def.group.is_empty() {
            return Ok(());
        }
        let name = object["spec"]["nodeName"].as_str().unwrap_or_default();
        let node = (!name.is_empty()).then(|| request.objects.find("", "v1", "nodes", "", name)).flatten();
        // A node that is not there is nothing to wait for.
        let Some(node) = node else {
            return Ok(());
        };
        for label in COPIED {
            if let Some(value) = node.header().labels.get(label) {
                child(child(object, "metadata"), "labels")[label] = Value::from(value);
            }
        }
        Ok(())
    }
}
