//! Pods get the number that their priority class stands for.

use std::borrow::Cow;

use async_trait::async_trait;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation, Phase, matching::Asked};
use crate::{error::ApiResult, objects::stored};

const GROUP: &str = "scheduling.k8s.io";

/// Upstream's `Priority`: pods and groups of pods get the number of their class, and there is one default class.
#[derive(Clone, Copy, Debug)]
pub struct Priority;

#[async_trait]
impl Admission for Priority {
    fn name(&self) -> &str {
        "Priority"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        let kind = &request.resource.def;
        matches!(request.operation, Operation::Create | Operation::Update)
            && (kind.group == GROUP || phase == Phase::Admit && super::is_kind(kind, "", "pods"))
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let def = &request.resource.def;
        if !request.subresource.is_empty() || !object["spec"].is_object() {
            return Ok(());
        }
        match (&*def.group, &*def.plural, request.operation) {
            ("", "pods", Operation::Create) => admit_pod(request, object),
            ("", "pods", Operation::Update) => {
                keep(request, object);
                Ok(())
            }
            (GROUP, "podgroups" | "compositepodgroups", Operation::Create) => admit_group(request, object),
            _ => Ok(()),
        }
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let def = &request.resource.def;
        let is_written = matches!(request.operation, Operation::Create | Operation::Update);
        if !is_written
            || def.group != GROUP
            || def.plural != "priorityclasses"
            || object["globalDefault"] != true
        {
            return Ok(());
        }
        let asked = Asked::new(request, object);
        match default_class(request) {
            Some(Class { name, .. }) if request.operation == Operation::Create || name != asked.name() => {
                let why =
                    format!("PriorityClass {name} is already marked as default. Only one default can exist");
                Err(asked.forbidden(&why).into())
            }
            _ => Ok(()),
        }
    }
}

fn admit_pod(request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
    let Class { name, value, preemption } = class_for(request, object)?;
    let refuse = |why: &str| Err(Asked::new(request, object).forbidden(why).into());
    let spec = &object["spec"];
    // As most pods are that come back from a template that was read from the API.
    if spec["priority"] == value
        && spec["preemptionPolicy"] == *preemption
        && spec["priorityClassName"].as_str().unwrap_or_default() == name
    {
        return Ok(());
    }
    if let Some(asked) = spec["priority"].as_i64().filter(|asked| *asked != value) {
        return refuse(&format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        ));
    }
    if let Some(asked) = spec["preemptionPolicy"].as_str().filter(|asked| *asked != preemption) {
        return refuse(&format!(
            "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {preemption} from the given PriorityClass name"
        ));
    }
    let spec = &mut object["spec"];
    if !name.is_empty() {
        spec["priorityClassName"] = json!(name);
    }
    spec["priority"] = json!(value);
    spec["preemptionPolicy"] = json!(preemption);
    Ok(())
}

/// A group's pods are preempted together, by the group's own priority (KEP-5710).
fn admit_group(request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
    let Class { name, value, .. } = class_for(request, object)?;
    if let Some(asked) = object["spec"]["priority"].as_i64().filter(|asked| *asked != value) {
        let why = format!(
            "priority set in the pod group ({asked}) must match the priority computed ({value}) based on the priority class set in the spec"
        );
        return Err(Asked::new(request, object).forbidden(&why).into());
    }
    let spec = &mut object["spec"];
    if !name.is_empty() {
        spec["priorityClassName"] = json!(name);
    }
    spec["priority"] = json!(value);
    Ok(())
}

/// A client that leaves out what it does not know of changes nothing by that.
fn keep(request: &AdmissionRequest<'_>, object: &mut Value) {
    for key in ["priority", "preemptionPolicy"] {
        let had = request.old.map(|old| &old["spec"][key]).filter(|had| !had.is_null());
        if let Some(had) = had
            && object["spec"][key].is_null()
        {
            object["spec"][key] = had.clone();
        }
    }
}

fn class_for(request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<Class> {
    match object["spec"]["priorityClassName"].as_str().unwrap_or_default() {
        "" => {
            let none = Class {
                name: Cow::Borrowed(""),
                value: 0,
                preemption: Cow::Borrowed("PreemptLowerPriority"),
            };
            Ok(default_class(request).unwrap_or(none))
        }
        name => {
            let class = request.objects.find(GROUP, "v1", "priorityclasses", "", name);
            let class = class.and_then(|class| class.typed::<PriorityClass>().ok());
            let why = || format!("no PriorityClass with name {name} was found");
            Ok(class_of(&*class.ok_or_else(|| Asked::new(request, object).forbidden(&why()))?))
        }
    }
}

/// What pods have of their class.
struct Class {
    name: Cow<'static, str>,
    value: i64,
    preemption: Cow<'static, str>,
}

fn class_of(class: &PriorityClass) -> Class {
    let preemption =
        class.preemption_policy.clone().map_or(Cow::Borrowed("PreemptLowerPriority"), Cow::Owned);
    let name = Cow::Owned(class.metadata.name.clone().unwrap_or_default());
    Class { name, value: class.value.map_or(0, i64::from), preemption }
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
        .min_by_key(|class| class.value)
}
