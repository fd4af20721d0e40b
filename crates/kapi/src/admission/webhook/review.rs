//! `AdmissionReview`: what a webhook is asked, and what it answers (KEP-492).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kcore::Status;
use serde_json::{Value, json};

use super::{Refusal, Shown, Webhook};
use crate::{
    admission::{matching::Asked, policy::request_of},
    outbound,
    registry::Resource,
};

/// What a webhook that lets a request pass has answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// How the object is to be changed: the operations of a JSON patch.
    pub(super) patch: Option<Vec<u8>>,
    pub(super) patch_type: String,
}

impl Webhook {
    /// Asks the webhook.
    pub(super) async fn call(
        &self,
        asked: &Asked<'_>,
        resource: &Resource,
        shown: &Shown<'_>,
        mutates: bool,
    ) -> Result<Answer, Refusal> {
        let request = asked.request;
        if request.dry_run && !self.is_harmless {
            let why = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(Refusal::Request(Status::bad_request(why).into()));
        }
        let version = self.version.as_ref().ok_or_else(|| {
            let why = "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            Refusal::Call(why.to_owned())
        })?;
        let target =
            self.target.as_ref().map_err(|why| Refusal::Call(format!("could not get REST client: {why}")))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let mut asks = request_of(asked, resource);
        asks["uid"] = json!(uid);
        asks["object"] = json!(shown.object.as_deref());
        asks["oldObject"] = json!(shown.old.as_deref());
        let api_version = format!("admission.k8s.io/{version}");
        let review = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": asks});
        let mut target = target.clone();
        let mark = if target.path.contains('?') { '&' } else { '?' };
        target.path = format!("{}{mark}timeout={}s", target.path, self.timeout.as_secs());
        let objects = request.objects;
        let address = target.service().and_then(|(namespace, name)| objects.cluster_ip(namespace, name));
        let answer =
            outbound::post(objects.outbound(), &target, address.as_deref(), &review, self.timeout).await;
        let answer = answer.map_err(|why| {
            Refusal::Call(format!("failed to call webhook: Post {:?}: {why}", target.url()))
        })?;
        verify(&answer, version, &uid, mutates)
            .map_err(|why| Refusal::Call(format!("received invalid webhook response: {why}")))?;
        self.read(asked, &answer["response"])
    }

    fn read(&self, asked: &Asked<'_>, response: &Value) -> Result<Answer, Refusal> {
        for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            asked.request.annotate(format!("{}/{key}", self.name), value);
        }
        for warning in response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            asked.request.warn(warning);
        }
        if response["allowed"] != true {
            return Err(Refusal::Request(denied(&self.name, &response["status"]).into()));
        }
        let patch = response["patch"].as_str().filter(|patch| !patch.is_empty());
        let patch = patch.map(|patch| STANDARD.decode(patch)).transpose().map_err(|error| {
            Refusal::Call(format!("failed to call webhook: illegal base64 data in patch: {error}"))
        })?;
        let patch_type = response["patchType"].as_str().unwrap_or("JSONPatch").to_owned();
        Ok(Answer { patch, patch_type })
    }
}

/// Checks that an answer is one, and one to this question (`VerifyAdmissionResponse`).
fn verify(answer: &Value, version: &str, uid: &str, mutates: bool) -> Result<(), String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    if version != "v1" {
        return Ok(());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    let found = format!("{}, Kind={}", text(&answer["apiVersion"]), text(&answer["kind"]));
    let expected = "admission.k8s.io/v1, Kind=AdmissionReview";
    if found != expected {
        return Err(format!("expected webhook response of {expected}, got {found}"));
    }
    let has_patch = !text(&response["patch"]).is_empty();
    let has_type = response["patchType"].is_string();
    let why = match (mutates, has_patch, has_type) {
        (true, true, false) => "webhook returned response.patch but not response.patchType",
        (true, false, true) => "webhook returned response.patchType but not response.patch",
        (true, true, true) if response["patchType"] == "" => {
            "webhook returned invalid response.patchType of \"\""
        }
        (false, true, _) => "validating webhook may not return response.patch",
        (false, _, true) => "validating webhook may not return response.patchType",
        _ => return Ok(()),
    };
    Err(why.to_owned())
}

/// What a request is answered with that a webhook refuses (`webhook/errors.ToStatusErr`).
fn denied(name: &str, result: &Value) -> Status {
    let mut status: Status = serde_json::from_value(result.clone()).unwrap_or_default();
    let code = result["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(0);
    status.code = code.max(400);
    if status.status.is_empty() || status.status == "Success" {
        "Failure".clone_into(&mut status.status);
    }
    let denied = format!("admission webhook {name:?} denied the request");
    status.message = if !status.message.is_empty() {
        format!("{denied}: {}", status.message)
    } else if !status.reason.is_empty() {
        format!("{denied}: {}", status.reason)
    } else {
        format!("{denied} without explanation")
    };
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected results: `webhook/request/admissionreview_test.go`.
    #[test]
    fn answers_are_checked_before_they_are_believed() {
        let answer = |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        for (answer, mutates, expected) in [
            (answer(json!({"uid": "1", "allowed": true})), true, None),
            (answer(json!({"uid": "1", "patch": "YQ==", "patchType": "JSONPatch"})), true, None),
            (json!({}), true, Some("webhook response was absent")),
            (answer(json!({"uid": "2"})), true, Some("expected response.uid=\"1\", got \"2\"")),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "response": {"uid": "1"}}),
                true,
                Some(
                    "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got v1, Kind=Pod",
                ),
            ),
            (
                answer(json!({"uid": "1", "patch": "YQ=="})),
                true,
                Some("webhook returned response.patch but not response.patchType"),
            ),
            (
                answer(json!({"uid": "1", "patchType": "JSONPatch"})),
                true,
                Some("webhook returned response.patchType but not response.patch"),
            ),
            (
                answer(json!({"uid": "1", "patch": "YQ==", "patchType": ""})),
                true,
                Some("webhook returned invalid response.patchType of \"\""),
            ),
            (
                answer(json!({"uid": "1", "patch": "YQ=="})),
                false,
                Some("validating webhook may not return response.patch"),
            ),
            (
                answer(json!({"uid": "1", "patchType": "JSONPatch"})),
                false,
                Some("validating webhook may not return response.patchType"),
            ),
        ] {
            assert_eq!(verify(&answer, "v1", "1", mutates).err().as_deref(), expected, "{answer}");
        }
    }

    /// Expected results: `webhook/errors/statuserror_test.go`.
    #[test]
    fn refusals_say_who_refuses() {
        for (result, code, message) in [
            (Value::Null, 400, "admission webhook \"a.b.c\" denied the request without explanation"),
            (
                json!({"message": "You shall not pass"}),
                400,
                "admission webhook \"a.b.c\" denied the request: You shall not pass",
            ),
            (
                json!({"reason": "Forbidden"}),
                400,
                "admission webhook \"a.b.c\" denied the request: Forbidden",
            ),
            (
                json!({"message": "no", "reason": "Forbidden", "code": 403}),
                403,
                "admission webhook \"a.b.c\" denied the request: no",
            ),
            (
                json!({"message": "no", "code": 200, "status": "Success"}),
                400,
                "admission webhook \"a.b.c\" denied the request: no",
            ),
        ] {
            let status = denied("a.b.c", &result);
            assert_eq!(
                (status.code, &*status.message, &*status.status),
                (code, message, "Failure"),
                "{result}"
            );
        }
    }
}
