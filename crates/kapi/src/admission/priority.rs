//! Pods get the number that their priority class stands for.

use async_trait::async_trait;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kcore::Status;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation};
use crate::{error::ApiResult, objects::stored};

/// Upstream's `Priority`.
#[derive(Clone, Copy, Debug)]
pub struct Priority;

#[async_trait]
impl Admission for Priority {
    fn name(&self) -> &str {
        "Priority"
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let def = &request.resource.def;
        let is_new_pod =
            def.plural == "pods" && def.group.is_empty() && request.operation == Operation::Create;
        if !is_new_pod || !request.subresource.is_empty() || !object["spec"].is_object() {
            return Ok(());
        }
        let given =
            object["spec"].get("priorityClassName").and_then(Value::as_str).unwrap_or_default().to_owned();
        let class =
            if given.is_empty() { default_class(request) } else { Some(find_class(request, &given)?) };
        let spec = &mut object["spec"];
        let (name, value, preemption) =
            class.unwrap_or_else(|| (String::new(), 0, "PreemptLowerPriority".to_owned()));
        if let Some(asked) = spec.get("priority").and_then(Value::as_i64).filter(|asked| *asked != value) {
            let why = format!(
                "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            );
            return Err(Status::forbidden("", "pods", request.name, &why).into());
        }
        if !name.is_empty() {
            spec["priorityClassName"] = json!(name);
        }
        spec["priority"] = json!(value);
        if spec.get("preemptionPolicy").is_none() {
            spec["preemptionPolicy"] = json!(preemption);
        }
        Ok(())
    }
}

type Class = (String, i64, String);

fn class_of(class: &PriorityClass) -> Class {
    let preemption = class.preemption_policy.as_deref().unwrap_or("PreemptLowerPriority").to_owned();
    (class.metadata.name.clone().unwrap_or_default(), class.value.map_or(0, i64::from), preemption)
}

fn find_class(request: &AdmissionRequest<'_>, name: &str) -> ApiResult<Class> {
    let class = request.objects.find("scheduling.k8s.io", "v1", "priorityclasses", "", name);
    let class = class.and_then(|class| class.typed::<PriorityClass>().ok()).ok_or_else(|| {
        Status::forbidden("", "pods", request.name, &format!("no PriorityClass with name {name} was found"))
    })?;
    Ok(class_of(&class))
}

/// The class that is marked as the default; of several the one with the lowest value. Every pod without a class asks, so
/// classes are decoded once.
fn default_class(request: &AdmissionRequest<'_>) -> Option<Class> {
    let resource = request.objects.registry().find("scheduling.k8s.io", "v1", "priorityclasses")?;
    let snapshot = request.objects.snapshot();
    let classes = snapshot.range(resource.table, kstore::Range::all());
    let classes = classes.filter_map(|entry| stored(&resource.def, &entry).typed::<PriorityClass>().ok());
    classes
        .filter(|class| class.global_default == Some(true))
        .map(|class| class_of(&class))
        .min_by_key(|class| class.1)
}
