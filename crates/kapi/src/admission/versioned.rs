//! Objects as webhooks and policies see them: in the version that they ask for, and for some subresources in another form.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{AdmissionRequest, Operation, matching::Asked};
use crate::{
    convert,
    error::{ApiError, ApiResult},
    registry::Resource,
    subresource,
};

/// Group, version and kind of what a request carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
}

impl Kind {
    /// That of the resource, unless the subresource has its own.
    pub(crate) fn of(asked: &Asked<'_>, resource: &Resource) -> Self {
        let own = |group: &str, version: &str, kind: &str| Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        };
        if asked.request.operation == Operation::Connect {
            return own(
                "",
                "v1",
                &crate::http::connect::options_kind(&resource.def.kind, asked.request.subresource),
            );
        }
        match asked.request.subresource {
            "scale" => own("autoscaling", "v1", "Scale"),
            "binding" => own("", "v1", "Binding"),
            "eviction" => own("policy", "v1", "Eviction"),
            "token" => own("authentication.k8s.io", "v1", "TokenRequest"),
            _ => own(&resource.def.group, &resource.version().name, &resource.def.kind),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }
}

/// Whether the subresource carries objects of the resource itself.
pub(crate) fn is_whole(request: &AdmissionRequest<'_>) -> bool {
    request.operation != Operation::Connect
        && !["scale", "binding", "eviction", "token"].contains(&request.subresource)
}

/// An object in the form that a rule has matched.
///
/// # Errors
/// When the object can't be had in that version.
pub(crate) async fn shown<'o>(
    asked: &Asked<'_>,
    object: &'o Value,
    resource: &Resource,
) -> ApiResult<Cow<'o, Value>> {
    if asked.request.operation == Operation::Connect {
        return Ok(Cow::Borrowed(object));
    }
    match asked.request.subresource {
        "scale" => return subresource::scale_of(asked.request.resource, object).map(Cow::Owned),
        "binding" => return Ok(Cow::Owned(binding(object))),
        "eviction" | "token" => return Ok(Cow::Borrowed(object)),
        _ => {}
    }
    if resource.def.definition().is_none() {
        if convert::is_identity(resource) {
            return Ok(Cow::Borrowed(object));
        }
        let mut shown = object.clone();
        convert::from_hub(resource, &mut shown);
        return Ok(Cow::Owned(shown));
    }
    if object["apiVersion"] == *resource.api_version() {
        return Ok(Cow::Borrowed(object));
    }
    convert::in_version(asked.request.objects, resource, object.clone()).await.map(Cow::Owned)
}

/// What [`shown`] gave, changed, in the form that the chain works on.
///
/// # Errors
/// When it can't be had in that form, or has fields that there are not (`strict`) or of other types.
pub(crate) async fn taken_back(
    asked: &Asked<'_>,
    mut changed: Value,
    resource: &Resource,
    strict: bool,
) -> ApiResult<Value> {
    let request = asked.request;
    if resource.def.definition().is_none() {
        convert::to_hub(resource, &mut changed);
    } else if changed["apiVersion"] != *request.resource.api_version() {
        changed = convert::in_version(request.objects, request.resource, changed).await?;
    }
    let unknown = convert::canonical(request.objects, request.resource, &mut changed)
        .map_err(kcore::Status::internal)?;
    if strict && !unknown.is_empty() {
        let fields: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
        let why = format!("strict decoding error: {}", fields.join(", "));
        return Err(ApiError::from(kcore::Status::internal(why)));
    }
    Ok(changed)
}

/// The `Binding` that put a pod where it is.
fn binding(pod: &Value) -> Value {
    let meta = &pod["metadata"];
    json!({
        "kind": "Binding", "apiVersion": "v1",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
        "target": {"kind": "Node", "name": pod["spec"]["nodeName"]},
    })
}

/// An object whose scale has been changed. Of the other objects that stand for a subresource nothing is taken back: what they
/// say is said in the request.
///
/// # Errors
/// When the scale is none.
pub(crate) fn scaled_back(asked: &Asked<'_>, object: &Value, changed: &Value) -> ApiResult<Value> {
    let mut object = object.clone();
    if asked.request.subresource == "scale" {
        let replicas = changed["spec"]["replicas"].as_i64().unwrap_or(0);
        subresource::set_replicas(asked.request.resource, &mut object, replicas);
    }
    Ok(object)
}
