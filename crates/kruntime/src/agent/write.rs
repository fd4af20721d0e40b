//! What the agent writes to the API about pods.

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::client::Body;
use serde_json::{Map, Value, json};

use super::Inner;
use crate::machine::RESIZE;

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("the API server answered {0}")]
    Refused(StatusCode),
    #[error(transparent)]
    Client(#[from] kube::Error),
    #[error("the request could not be made")]
    Request(#[from] http::Error),
    #[error("the status could not be encoded")]
    Encode(#[from] serde_json::Error),
}

impl WriteError {
    /// Whether the object is not there any more, or another one is in its place.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Refused(StatusCode::NOT_FOUND | StatusCode::CONFLICT))
    }
}

/// The strategic merge patch from `old` to `new`, field by field; of conditions only those that changed, since others
/// write conditions too. `None` when nothing changes.
fn difference(old: &Value, new: Value) -> Option<Map<String, Value>> {
    let (empty, mut patch) = (Map::new(), Map::new());
    let old = old.as_object().unwrap_or(&empty);
    if let Value::Object(new) = new {
        patch = new;
    }
    for key in OWNED.into_iter().filter(|key| old.contains_key(*key)) {
        patch.entry(key).or_insert(Value::Null);
    }
    patch.retain(|key, value| {
        let before = old.get(key);
        if before == Some(value) {
            return false;
        }
        if let ("conditions", Value::Array(conditions), Some(Value::Array(before))) =
            (key.as_str(), &mut *value, before)
        {
            let is_there = |type_: &str| conditions.iter().any(|condition| condition["type"] == type_);
            let gone = RESIZE.into_iter().filter(|type_| !is_there(type_));
            let gone: Vec<_> =
                gone.filter(|type_| before.iter().any(|known| known["type"] == *type_)).collect();
            conditions.retain(|condition| !before.contains(condition));
            conditions.iter_mut().for_each(clear_texts);
            conditions.extend(gone.iter().map(|type_| json!({"$patch": "delete", "type": type_})));
        }
        // Addresses are merged by themselves: those of an earlier sandbox would stay, and two of a family are refused.
        if let ("podIPs" | "hostIPs", Value::Array(addresses), Some(Value::Array(_))) =
            (key.as_str(), &mut *value, before)
            && !addresses.is_empty()
        {
            addresses.insert(0, json!({"$patch": "replace"}));
        }
        value.as_array().is_none_or(|list| !list.is_empty())
    });
    (!patch.is_empty()).then_some(patch)
}

/// The fields that the agent takes away when it has nothing to say in them. All others belong to somebody else.
const OWNED: [&str; 4] = ["reason", "message", "initContainerStatuses", "ephemeralContainerStatuses"];

/// Of a condition that replaces another of its type, reason and message go when they aren't there any more.
fn clear_texts(condition: &mut Value) {
    if let Some(map) = condition.as_object_mut() {
        for key in ["reason", "message"] {
            map.entry(key).or_insert(Value::Null);
        }
    }
}

impl Inner {
    pub(super) async fn patch_status(
        &self,
        pod: &Pod,
        old: Option<&PodStatus>,
        new: &PodStatus,
    ) -> Result<(), WriteError> {
        let old = serde_json::to_value(old)?;
        let Some(patch) = difference(&old, serde_json::to_value(new)?) else { return Ok(()) };
        let body = json!({"metadata": {"uid": pod.metadata.uid}, "status": patch});
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(format!("{}/status", path(pod)))
            .header("content-type", "application/strategic-merge-patch+json")
            .body(Body::from(serde_json::to_vec(&body)?))?;
        self.send(request).await
    }

    /// Deletes a pod that has ended. Says whether it is gone.
    pub(super) async fn delete(&self, pod: &Pod) -> bool {
        let options = json!({
            "kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0,
            "preconditions": {"uid": pod.metadata.uid},
        });
        let request = Request::builder()
            .method(Method::DELETE)
            .uri(path(pod))
            .header("content-type", "application/json")
            .body(Body::from(options.to_string().into_bytes()));
        let Ok(request) = request else { return false };
        match self.send(request).await {
            Ok(()) => true,
            Err(error) => error.is_gone(),
        }
    }

    /// Sends a request whose answer is of no interest; it isn't decoded.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<(), WriteError> {
        let response = self.client.send(request).await?;
        let status = response.status();
        // The body is read to its end, so that a connection can be used again.
        let _ = response.into_body().collect().await;
        if status.is_success() { Ok(()) } else { Err(WriteError::Refused(status)) }
    }
}

fn path(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    format!("/api/v1/namespaces/{namespace}/pods/{}", meta.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written() {
        let old = json!({
            "phase": "Pending", "podIP": "10.0.0.1", "nominatedNodeName": "n", "reason": "x",
            "conditions": [{"type": "Ready", "status": "False", "reason": "R"}, {"type": "A", "status": "True"}],
        });
        let new = json!({
            "phase": "Running", "podIP": "10.0.0.1",
            "conditions": [{"type": "A", "status": "True"}, {"type": "Ready", "status": "True"}],
        });
        let patch = difference(&old, new.clone()).map(Value::Object).unwrap();
        let ready = json!({"type": "Ready", "status": "True", "reason": null, "message": null});
        assert_eq!(patch, json!({"phase": "Running", "conditions": [ready], "reason": null}));
        assert_eq!(difference(&new.clone(), new), None);
        // A pod whose sandbox was made anew has other addresses, and none of the old ones.
        let (old, new) = (json!({"podIPs": [{"ip": "10.0.0.1"}]}), json!({"podIPs": [{"ip": "10.0.0.2"}]}));
        let patch = difference(&old, new.clone()).map(Value::Object).unwrap();
        assert_eq!(patch, json!({"podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}]}));
        assert_eq!(difference(&json!({}), new.clone()).map(Value::Object), Some(new));
        // A condition that is there only while it is true is taken away, others' are left.
        let old = json!({"conditions": [{"type": "PodResizePending", "status": "True"}, {"type": "A", "status": "True"}]});
        let patch = difference(&old, json!({"conditions": [{"type": "B", "status": "True"}]})).unwrap();
        let b = json!({"type": "B", "status": "True", "reason": null, "message": null});
        let gone = json!({"$patch": "delete", "type": "PodResizePending"});
        assert_eq!(patch["conditions"], json!([b, gone]));
    }
}
