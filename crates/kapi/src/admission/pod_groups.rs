//! Groups of pods: they stay while their pods run, and are made of templates that are there (KEP-4671, KEP-5832).

use async_trait::async_trait;
use serde_json::Value;

use super::{Admission, AdmissionRequest, Operation, Phase, matching::Asked, storage::add_finalizer};
use crate::error::ApiResult;

const GROUP: &str = "scheduling.k8s.io";
/// Taken off again by the controller for it when no pod of the group is left that has not ended.
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

/// How deep templates may stand in each other; kinds of the API go to 64.
const DEPTH_MAX: usize = 64;

/// Whether it is a new group. With `composite` those count whose members are groups, too.
fn is_new_group(request: &AdmissionRequest<'_>, composite: bool) -> bool {
    let def = &request.resource.def;
    request.operation == Operation::Create
        && request.subresource.is_empty()
        && def.group == GROUP
        && (def.plural == "podgroups" || composite && def.plural == "compositepodgroups")
}

/// Upstream's `PodGroupProtection`: a group of pods stays until none of its pods runs.
#[derive(Clone, Copy, Debug)]
pub struct PodGroupProtection;

#[async_trait]
impl Admission for PodGroupProtection {
    fn name(&self) -> &str {
        "PodGroupProtection"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Admit && is_new_group(request, false)
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        if is_new_group(request, false) {
            add_finalizer(object, FINALIZER);
        }
        Ok(())
    }
}

/// Upstream's `PodGroupWorkloadExists`: a group that names the template it was made of names one that there is.
#[derive(Clone, Copy, Debug)]
pub struct PodGroupWorkload;

#[async_trait]
impl Admission for PodGroupWorkload {
    fn name(&self) -> &str {
        "PodGroupWorkloadExists"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Validate && is_new_group(request, true)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let made_of = &object["spec"]["workloadRef"];
        if !is_new_group(request, true) || !made_of.is_object() {
            return Ok(());
        }
        let kind = &request.resource.def.kind;
        let text = |key: &str| made_of[key].as_str().unwrap_or_default();
        let (workload, template) = (text("workloadName"), text("templateName"));
        let version = request.resource.def.storage_version();
        let found = request.objects.find(GROUP, version, "workloads", request.namespace, workload);
        let found = found.and_then(|found| found.value().ok());
        let why = match found {
            None => format!("{kind} rejected: Workload {workload:?} not found"),
            Some(found) if found["metadata"]["deletionTimestamp"].is_string() => {
                format!("{kind} rejected: Workload {workload:?} is being deleted")
            }
            Some(found) if has_template(&found["spec"], kind, template, 0) => return Ok(()),
            Some(_) => {
                format!("{kind} rejected: {kind}Template {template:?} not found in Workload {workload:?}")
            }
        };
        Err(Asked::new(request, object).forbidden(&why).into())
    }
}

/// Whether there is a template for the kind under the name, at any depth.
fn has_template(of: &Value, kind: &str, name: &str, depth: usize) -> bool {
    let list = |key: &str| of[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let composites = list("compositePodGroupTemplates");
    let own = if kind == "PodGroup" { list("podGroupTemplates") } else { composites };
    own.iter().any(|template| template["name"] == name)
        || depth < DEPTH_MAX
            && composites.iter().any(|composite| has_template(composite, kind, name, depth + 1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_are_found_at_any_depth() {
        let spec = json!({"compositePodGroupTemplates": [
            {"name": "outer", "podGroupTemplates": [{"name": "a"}],
             "compositePodGroupTemplates": [{"name": "inner", "podGroupTemplates": [{"name": "b"}]}]}]});
        for (kind, name, expected) in [
            ("PodGroup", "a", true),
            ("PodGroup", "b", true),
            ("PodGroup", "inner", false),
            ("CompositePodGroup", "inner", true),
            ("CompositePodGroup", "a", false),
        ] {
            assert_eq!(has_template(&spec, kind, name, 0), expected, "{kind} {name}");
        }
    }
}
