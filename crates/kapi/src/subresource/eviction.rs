//! Eviction: a pod is deleted if its disruption budget allows it (`registry/core/pod/storage.EvictionREST`; KEP-85, KEP-3017).

use http::StatusCode;
use kcore::{
    Status,
    status::{StatusCause, StatusDetails},
};
use serde_json::{Value, json};

use crate::{
    admission::Operation,
    error::{ApiError, ApiResult},
    request::{DeleteOptions, Query},
    schema::fields::child,
    write::Call,
};

/// How many evicted pods a budget may wait for before it allows no more.
pub(crate) const DISRUPTED_PODS_MAX: usize = 2000;

/// What a budget says about a pod.
enum Verdict {
    /// It may go, and counts.
    Counted,
    /// It is not healthy and the application is: it may go as long as it is still in this state.
    Unhealthy,
}

/// Deletes a pod if its disruption budget allows it.
pub(super) async fn evict(call: &Call<'_>, eviction: &Value) -> ApiResult<(StatusCode, Value)> {
    let mut options = DeleteOptions::parse(&Query::default(), eviction.get("deleteOptions"))?;
    options.dry_run |= call.dry_run;
    if eviction["metadata"]["name"].as_str().is_some_and(|name| name != call.name) {
        return Err(Status::bad_request("name in URL does not match name in Eviction object").into());
    }
    call.validate(Operation::Create, call.name, eviction, None, None).await?;
    let pod = call.objects.get(call.resource, call.namespace, call.name).ok_or_else(|| call.not_found())?;
    let value = pod.value().map_err(Status::internal)?;
    let phase = value["status"]["phase"].as_str().unwrap_or_default();
    let asked_revision = options.revision;
    let mut budget = String::new();
    if ["Succeeded", "Failed"].contains(&phase) || pod.header().deletion.is_some() {
        // It disrupts nothing any more.
    } else if phase == "Pending" {
        options.revision = asked_revision.or(Some(pod.revision()));
    } else if let Some((name, verdict)) = ask_budgets(call, &value, options.dry_run).await? {
        budget = name;
        if matches!(verdict, Verdict::Unhealthy) {
            options.revision = Some(pod.revision());
        }
    }
    match delete(call, &options).await {
        // The pod has become healthy meanwhile: the caller asks again.
        Err(error) if error.0.is("Conflict") && asked_revision.is_none() && !budget.is_empty() => {
            let why = format!("The disruption budget {budget} is still being processed by the server.");
            Err(too_many(&why, 10))
        }
        Err(error) => Err(error),
        Ok(()) => Ok((StatusCode::CREATED, super::success())),
    }
}

/// Marks the pod as disrupted and deletes it.
async fn delete(call: &Call<'_>, options: &DeleteOptions) -> ApiResult<()> {
    let mut options = options.clone();
    if !options.dry_run {
        let now = crate::write::timestamp(call.objects);
        let status = Call { subresource: "status", manager: None, dry_run: false, ..*call };
        let (uid, revision) = (options.uid.clone(), options.revision.map(|revision| revision.to_string()));
        let mark = |pod: &Value| -> ApiResult<Value> {
            let meta = &pod["metadata"];
            let conflict = |what: &str, wanted: &str, found: &Value, happened: &str| -> ApiError {
                let found = found.as_str().unwrap_or_default();
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {happened}"
                );
                Status::conflict("", "Pod", call.name, &why).into()
            };
            if let Some(uid) = uid.as_deref().filter(|uid| meta["uid"] != **uid) {
                return Err(conflict("UID", uid, &meta["uid"], "deleted and then recreated"));
            }
            if let Some(revision) =
                revision.as_deref().filter(|revision| meta["resourceVersion"] != **revision)
            {
                return Err(conflict("ResourceVersion", revision, &meta["resourceVersion"], "modified"));
            }
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastTransitionTime": now,
            });
            let mut marked = pod.clone();
            let status = child(&mut marked, "status");
            let list = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
            let others = list.into_iter().filter(|other| other["type"] != "DisruptionTarget");
            status["conditions"] = others.chain([condition]).collect();
            Ok(marked)
        };
        let written = status.update(&mark).await?.value(&status).await?;
        if options.revision.is_some() {
            options.revision =
                written["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
        }
    }
    let call = Call { subresource: "", dry_run: options.dry_run, ..*call };
    call.delete(&options).await.map(drop)
}

fn too_many(cause: &str, retry_after_seconds: u32) -> ApiError {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut status = Status::failure(429, "TooManyRequests", message);
    let cause = StatusCause {
        reason: "DisruptionBudget".to_owned(),
        message: cause.to_owned(),
        field: String::new(),
    };
    status.details =
        Some(StatusDetails { causes: vec![cause], retry_after_seconds, ..StatusDetails::default() });
    status.into()
}

/// Asks the budget that covers a pod; `None` if there is none.
async fn ask_budgets(call: &Call<'_>, pod: &Value, dry_run: bool) -> ApiResult<Option<(String, Verdict)>> {
    let registry = call.objects.registry();
    let Some(budgets) = registry.find("policy", "v1", "poddisruptionbudgets") else {
        return Ok(None);
    };
    let labels = &pod["metadata"]["labels"];
    let range = kstore::Range::prefix(bytes::Bytes::from(format!("{}/", call.namespace)));
    let snapshot = call.objects.snapshot();
    let all = snapshot
        .range(budgets.table, range)
        .filter_map(|entry| serde_json::from_slice::<Value>(entry.value()).ok());
    let covering: Vec<Value> =
        all.filter(|budget| kkinds::selects(&budget["spec"]["selector"], labels)).collect();
    let budget = match covering.as_slice() {
        [] => return Ok(None),
        [one] => one,
        _ => {
            let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::failure(500, "", why).into());
        }
    };
    let name = budget["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let status = |key: &str| budget["status"][key].as_i64().unwrap_or(0);
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready =
        conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
    let healthy = status("currentHealthy") >= status("desiredHealthy") && status("desiredHealthy") > 0;
    if !ready && (always || healthy) {
        return Ok(Some((name, Verdict::Unhealthy)));
    }
    let now = crate::write::timestamp(call.objects);
    let budget_call =
        Call { resource: &budgets, subresource: "status", name: &name, manager: None, dry_run, ..*call };
    budget_call.update(&|budget| counted(budget, call.name, &now)).await?;
    Ok(Some((name, Verdict::Counted)))
}

/// The budget after one more pod has been evicted (`checkAndDecrement`).
fn counted(budget: &Value, pod: &str, now: &str) -> ApiResult<Value> {
    let status = &budget["status"];
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    let name = budget["metadata"]["name"].as_str().unwrap_or_default();
    if number("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(too_many(&why, 10));
    }
    let forbid = |why: &str| ApiError::from(Status::forbidden("policy", "poddisruptionbudget", name, why));
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return Err(forbid("pdb disruptions allowed is negative"));
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > DISRUPTED_PODS_MAX) {
        return Err(forbid("DisruptedPods map too big - too many evictions not confirmed by PDB controller"));
    }
    if allowed == 0 {
        return Err(too_many(&refusal(budget, name), 0));
    }
    let mut changed = budget.clone();
    let status = child(&mut changed, "status");
    status["disruptionsAllowed"] = json!(allowed - 1);
    if allowed == 1
        && let Some(condition) = status["conditions"]
            .as_array_mut()
            .and_then(|list| list.iter_mut().find(|condition| condition["type"] == "DisruptionAllowed"))
    {
        condition["lastTransitionTime"] = json!(now);
        condition["status"] = json!("False");
        condition["reason"] = json!("InsufficientPods");
    }
    child(status, "disruptedPods")[pod] = json!(now);
    Ok(changed)
}

/// Why a budget allows no disruption.
fn refusal(budget: &Value, name: &str) -> String {
    let status = &budget["status"];
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let told = conditions.into_iter().find(|condition| {
        condition["type"] == "DisruptionAllowed"
            && condition["status"] == "False"
            && condition["message"].as_str().is_some_and(|message| !message.is_empty())
    });
    let text = |condition: &Value, key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    match told {
        Some(condition) if condition["reason"] == "SyncFailed" => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            text(condition, "message")
        ),
        _ if number("currentHealthy") <= number("desiredHealthy") => format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        ),
        Some(condition) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            text(condition, "reason"),
            text(condition, "message")
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_count_and_say_why_not() {
        let budget = |status: Value| json!({"metadata": {"name": "b", "generation": 1}, "status": status});
        let counted = |status: Value| {
            counted(&budget(status), "p", "now").map_err(|error| {
                let details = error.0.details.clone().unwrap_or_default();
                let cause = details.causes.first().map(|cause| cause.message.clone());
                (error.0.code, details.retry_after_seconds, cause.unwrap_or_else(|| error.0.message.clone()))
            })
        };
        let refused = |words: &str| Err((429, 0, format!("The disruption budget b {words}")));
        let condition = |reason: &str| json!([{"type": "DisruptionAllowed", "status": "False", "reason": reason, "message": "why"}]);
        for (status, expected) in [
            (
                json!({}),
                Err((429, 10, "The disruption budget b is still being processed by the server.".to_owned())),
            ),
            (
                json!({"observedGeneration": 1, "desiredHealthy": 2, "currentHealthy": 2}),
                refused("needs 2 healthy pods and has 2 currently"),
            ),
            (
                json!({"observedGeneration": 1, "conditions": condition("SyncFailed")}),
                refused("does not allow evicting pods currently because it failed sync: why"),
            ),
            (
                json!({"observedGeneration": 1, "currentHealthy": 2, "desiredHealthy": 1, "conditions": condition("Other")}),
                refused("does not allow evicting pods currently (Other): why"),
            ),
            (
                json!({"observedGeneration": 1, "currentHealthy": 2, "desiredHealthy": 1}),
                refused("does not allow evicting pods currently"),
            ),
            (
                json!({"observedGeneration": 1, "disruptionsAllowed": -1}),
                Err((
                    403,
                    0,
                    "poddisruptionbudget.policy \"b\" is forbidden: pdb disruptions allowed is negative"
                        .to_owned(),
                )),
            ),
        ] {
            assert_eq!(counted(status.clone()).map(drop), expected, "{status}");
        }
        let done = counted(json!({"observedGeneration": 1, "disruptionsAllowed": 1})).unwrap();
        assert_eq!(done["status"]["disruptionsAllowed"], 0);
        assert_eq!(done["status"]["disruptedPods"], json!({"p": "now"}));
    }
}
