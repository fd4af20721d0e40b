//! Pods get what their runtime class adds: overhead, and where they may run (KEP-585, KEP-688).

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation, Phase, matching::Asked};
use crate::error::ApiResult;

/// Upstream's `RuntimeClass`.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeClass;

#[async_trait]
impl Admission for RuntimeClass {
    fn name(&self) -> &str {
        "RuntimeClass"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, _phase: Phase) -> bool {
        request.operation == Operation::Create && super::is_kind(&request.resource.def, "", "pods")
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let Some(class) = class(request, object)? else {
            return Ok(());
        };
        let overhead = &class["overhead"]["podFixed"];
        if overhead.is_object() {
            let own = &object["spec"]["overhead"];
            if own.as_object().is_some_and(|own| !own.is_empty()) && own != overhead {
                return refuse(request, object, MISMATCH);
            }
            object["spec"]["overhead"] = overhead.clone();
        }
        schedule(request, &class["scheduling"], object)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        if !is_new_pod(request, object) {
            return Ok(());
        }
        let class = class(request, object)?.unwrap_or_default();
        let (wanted, own) = (&class["overhead"]["podFixed"], &object["spec"]["overhead"]);
        if wanted.is_object() && wanted != own {
            return refuse(request, object, MISMATCH);
        }
        if !wanted.is_object() && !own.is_null() {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return refuse(request, object, why);
        }
        Ok(())
    }
}

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

fn is_new_pod(request: &AdmissionRequest<'_>, object: &Value) -> bool {
    let def = &request.resource.def;
    let is_pod = def.group.is_empty() && def.plural == "pods" && request.subresource.is_empty();
    is_pod && request.operation == Operation::Create && object["spec"].is_object()
}

fn refuse(request: &AdmissionRequest<'_>, object: &Value, why: &str) -> ApiResult<()> {
    Err(Asked::new(request, object).forbidden(why).into())
}

fn class(request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<Option<Value>> {
    if !is_new_pod(request, object) {
        return Ok(None);
    }
    let Some(name) = object["spec"]["runtimeClassName"].as_str() else {
        return Ok(None);
    };
    let found = request.objects.find("node.k8s.io", "v1", "runtimeclasses", "", name);
    let why = || format!("pod rejected: RuntimeClass {name:?} not found");
    let found = found.and_then(|class| class.value().ok());
    found.map(Some).ok_or_else(|| Asked::new(request, object).forbidden(&why()).into())
}

/// Merges where pods of the class may run into where this one may.
fn schedule(request: &AdmissionRequest<'_>, scheduling: &Value, object: &mut Value) -> ApiResult<()> {
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let own = &object["spec"]["nodeSelector"][key.as_str()];
        if !own.is_null() && own != value {
            let (wanted, own) = (value.as_str().unwrap_or_default(), own.as_str().unwrap_or_default());
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {own}"
            );
            return refuse(request, object, &why);
        }
        let spec = &mut object["spec"];
        kschema::fields::child(spec, "nodeSelector")[key.as_str()] = value.clone();
    }
    if let Some(more) = scheduling["tolerations"].as_array().filter(|more| !more.is_empty()) {
        let own = object["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        object["spec"]["tolerations"] = json!(merged(own.into_iter().chain(more.iter().cloned()).collect()));
    }
    Ok(())
}

/// The tolerations that are not part of others (`util/tolerations.MergeTolerations`).
fn merged(all: Vec<Value>) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for (index, one) in all.iter().enumerate() {
        let is_in_kept = kept.iter().any(|other| covers(other, one));
        let is_in_later = all[index + 1..].iter().any(|other| other != one && covers(other, one));
        if !is_in_kept && !is_in_later {
            kept.push(one.clone());
        }
    }
    kept
}

fn covers(wide: &Value, one: &Value) -> bool {
    let text = |of: &Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let operator = text(wide, "operator");
    if wide == one {
        return true;
    }
    let any_key = text(wide, "key").is_empty() && operator == "Exists";
    let any_effect = text(wide, "effect").is_empty();
    if (text(one, "key") != text(wide, "key") && !any_key)
        || (text(one, "effect") != text(wide, "effect") && !any_effect)
    {
        return false;
    }
    if let (true, Some(most)) = (text(wide, "effect") == "NoExecute", wide["tolerationSeconds"].as_i64())
        && one["tolerationSeconds"].as_i64().is_none_or(|seconds| seconds > most)
    {
        return false;
    }
    match operator.as_str() {
        "Exists" => true,
        "Equal" | "" => text(one, "operator") == "Equal" && one["value"] == wide["value"],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected results: `pkg/util/tolerations/tolerations_test.go`.
    #[test]
    fn tolerations_that_others_cover_are_left_out() {
        let all = json!({"operator": "Exists"});
        let key = json!({"key": "a", "operator": "Exists"});
        let value = json!({"key": "a", "operator": "Equal", "value": "v"});
        let short = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10});
        let long = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60});
        for (list, expected) in [
            (vec![&all, &key, &value], vec![&all]),
            (vec![&value, &key], vec![&key]),
            (vec![&key, &key], vec![&key]),
            (vec![&short, &long], vec![&long]),
        ] {
            let expected: Vec<Value> = expected.into_iter().cloned().collect();
            assert_eq!(merged(list.into_iter().cloned().collect()), expected);
        }
    }
}
