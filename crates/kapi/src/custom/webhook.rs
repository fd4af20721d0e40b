//! Conversion by a webhook: `ConversionReview` (KEP-598).

use kcore::Status;
use serde_json::{Value, json};

use crate::{
    error::{ApiError, ApiResult},
    objects::Objects,
    outbound::{self, CALL_MAX, Target},
    registry::Resource,
};

/// An object in another version, as the webhook of its definition makes it. `webhook` is what the definition says of it.
pub(crate) async fn convert(
    objects: &Objects,
    resource: &Resource,
    webhook: &Value,
    object: Value,
    wanted: &str,
) -> ApiResult<Value> {
    let from = object["apiVersion"].as_str().unwrap_or_default();
    let kind = format!("{from}, Kind={}", resource.def.kind);
    let fail = |why: &str| -> ApiError {
        Status::internal(format!("conversion webhook for {kind} failed: {why}")).into()
    };
    let versions =
        webhook["conversionReviewVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let version = versions.into_iter().find(|version| ["v1", "v1beta1"].contains(version));
    let version = version.ok_or_else(|| fail("no supported conversion review versions"))?;
    let target = Target::of_webhook(&webhook["clientConfig"]).map_err(|why| fail(&why))?;
    let uid = uuid::Uuid::new_v4().to_string();
    let review = json!({
        "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": [object]},
    });
    let address = target.service().and_then(|(namespace, name)| objects.cluster_ip(namespace, name));
    let answer = outbound::post(objects.outbound(), &target, address.as_deref(), &review, CALL_MAX).await;
    let mut answer = answer.map_err(|why| fail(&why))?;
    let converted = converted(&mut answer, version, &uid).map_err(|why| fail(&why))?;
    let returned = |why: String| -> ApiError {
        Status::internal(format!("conversion webhook for {kind} returned invalid object: {why}")).into()
    };
    restored(&object, converted, wanted).map_err(returned)
}

/// The one object of an answer.
fn converted(answer: &mut Value, version: &str, uid: &str) -> Result<Value, String> {
    if version == "v1"
        && (answer["kind"] != "ConversionReview" || answer["apiVersion"] != "apiextensions.k8s.io/v1")
    {
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let found = format!("{}, Kind={}", text("apiVersion"), text("kind"));
        return Err(format!(
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {found}"
        ));
    }
    let response = &mut answer["response"];
    if response.is_null() {
        return Err("no response provided".to_owned());
    }
    if version == "v1" && response["uid"] != *uid {
        let found = response["uid"].as_str().unwrap_or_default();
        return Err(format!("expected response.uid={uid:?}, got {found:?}"));
    }
    let result = &response["result"];
    if result["status"] != "Success" {
        let status = result["status"].as_str().unwrap_or_default();
        let message = result["message"].as_str().filter(|message| !message.is_empty());
        return Err(message
            .map_or_else(|| format!("response.result.status was '{status}', not 'Success'"), str::to_owned));
    }
    match response["convertedObjects"].as_array_mut() {
        Some(list) if list.len() == 1 => Ok(list.remove(0)),
        list => Err(format!("returned {} objects, expected 1", list.map_or(0, |list| list.len()))),
    }
}

/// The converted object with the metadata of the original: a webhook may change labels and annotations alone.
fn restored(original: &Value, mut converted: Value, wanted: &str) -> Result<Value, String> {
    if converted["apiVersion"] != *wanted {
        let found = converted["apiVersion"].as_str().unwrap_or_default();
        return Err(format!("invalid groupVersion (expected {wanted}, received {found})"));
    }
    let text = |object: &Value, path: &str| {
        object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    for (name, path) in [
        ("kind", "/kind"),
        ("name", "/metadata/name"),
        ("namespace", "/metadata/namespace"),
        ("UID", "/metadata/uid"),
    ] {
        let (before, after) = (text(original, path), text(&converted, path));
        if before != after {
            return Err(format!("must have the same {name}: {before} != {after}"));
        }
    }
    let mut meta = original["metadata"].clone();
    for key in ["labels", "annotations"] {
        kschema::fields::keep(&mut meta, &converted["metadata"], key);
    }
    converted["metadata"] = meta;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked_before_they_are_believed() {
        let object = json!({"apiVersion": "e.com/v2", "kind": "A", "metadata": {"name": "a", "uid": "u"}});
        let answer = |response: Value| json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response});
        let good = json!({"uid": "1", "result": {"status": "Success"}, "convertedObjects": [object]});
        assert_eq!(converted(&mut answer(good.clone()), "v1", "1"), Ok(object));
        for (response, why) in [
            (Value::Null, "no response provided"),
            (json!({"uid": "2"}), "expected response.uid=\"1\", got \"2\""),
            (json!({"uid": "1", "result": {"status": "Failed", "message": "no way"}}), "no way"),
            (
                json!({"uid": "1", "result": {"status": "Failed"}}),
                "response.result.status was 'Failed', not 'Success'",
            ),
            (
                json!({"uid": "1", "result": {"status": "Success"}, "convertedObjects": []}),
                "returned 0 objects, expected 1",
            ),
        ] {
            assert_eq!(converted(&mut answer(response), "v1", "1"), Err(why.to_owned()));
        }
        assert!(
            converted(&mut json!({"response": good}), "v1", "1")
                .unwrap_err()
                .starts_with("expected webhook response of")
        );
    }

    #[test]
    fn metadata_comes_from_the_original() {
        let original = json!({"apiVersion": "e.com/v1", "kind": "A", "metadata": {"name": "a", "uid": "u", "labels": {"x": "1"}, "finalizers": ["f/x"]}});
        let mut changed = json!({"apiVersion": "e.com/v2", "kind": "A", "metadata": {"name": "a", "uid": "u", "labels": {"y": "2"}, "finalizers": []}, "new": 1});
        let done = restored(&original, changed.clone(), "e.com/v2").unwrap();
        assert_eq!(
            done["metadata"],
            json!({"name": "a", "uid": "u", "labels": {"y": "2"}, "finalizers": ["f/x"]})
        );
        changed["metadata"]["name"] = json!("b");
        assert_eq!(
            restored(&original, changed.clone(), "e.com/v2").unwrap_err(),
            "must have the same name: a != b"
        );
        assert!(restored(&original, changed, "e.com/v3").is_err());
    }
}
