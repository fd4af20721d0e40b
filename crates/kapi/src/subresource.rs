//! Subresources that are not a view of the same object, and reviews, which are answered and not kept.

mod eviction;
mod review;
mod token;

use std::sync::Arc;

use http::StatusCode;
use kcore::Status;
use kschema::apply::{ConvertError, FieldManager, Versions, scale};
use serde_json::{Value, json};

use crate::{
    authn::UserInfo,
    custom::{self, ScalePaths},
    error::{ApiResult, FieldError, invalid},
    ownership,
    registry::Resource,
    schema::{
        Type,
        fields::{child, keep},
    },
    server::Inner,
    write::Call,
};

/// Answers a POST to a subresource or to a resource that is only created.
pub(crate) async fn create(
    server: &Arc<Inner>,
    user: &Arc<UserInfo>,
    call: &Call<'_>,
    object: Value,
) -> ApiResult<(StatusCode, Value)> {
    match (call.resource.def.plural.as_str(), call.subresource) {
        ("pods", "binding") | ("bindings", "") => bind(call, &object).await,
        ("pods", "eviction") => eviction::evict(call, &object).await,
        (plural, "") => review::answer(server, user, plural, object).await,
        ("serviceaccounts", "token") => token::request(server, call, object).await,
        _ => {
            let def = &call.resource.def;
            let why = "the server does not allow this method on the requested resource";
            Err(Status::failure(405, "MethodNotAllowed", why)
                .about(&def.group, &def.plural, call.name)
                .into())
        }
    }
}

/// Puts a pod on a node (`registry/core/pod/storage.BindingREST`).
async fn bind(call: &Call<'_>, binding: &Value) -> ApiResult<(StatusCode, Value)> {
    let name = if call.name.is_empty() {
        binding["metadata"]["name"].as_str().unwrap_or_default()
    } else {
        call.name
    };
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    let mut errors = Vec::new();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if !["", "Node"].contains(&kind) {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        return Err(invalid("", "Binding", name, &errors));
    }
    let registry = call.objects.registry();
    let pods = registry.find("", "v1", "pods").ok_or_else(Status::no_such_path)?;
    let pod_call = Call { resource: &pods, subresource: "binding", name, manager: None, ..*call };
    let wanted = binding["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let now = crate::write::timestamp(call.objects);
    pod_call
        .update(&|pod| {
            let conflict = |why: &str| -> crate::error::ApiError { Status::conflict("", "pods/binding", name, why).into() };
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            if !wanted.is_empty() && wanted != uid {
                return Err(conflict(&format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}")));
            }
            if pod["metadata"]["deletionTimestamp"].is_string() {
                return Err(conflict(&format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            if let Some(host) = pod["spec"]["nodeName"].as_str().filter(|host| !host.is_empty()) {
                return Err(conflict(&format!("pod {name} is already assigned to node {host:?}")));
            }
            if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
                return Err(conflict(&format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            let mut bound = pod.clone();
            bound["spec"]["nodeName"] = json!(node);
            for list in ["annotations", "labels"] {
                for (key, value) in binding["metadata"][list].as_object().into_iter().flatten() {
                    child(child(&mut bound, "metadata"), list)[key] = value.clone();
                }
            }
            let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
            let status = child(&mut bound, "status");
            let conditions = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
            let others = conditions.into_iter().filter(|condition| condition["type"] != "PodScheduled");
            status["conditions"] = others.chain([condition]).collect();
            Ok(bound)
        })
        .await?;
    Ok((StatusCode::CREATED, success()))
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// The scale of a workload (`autoscaling/v1` `Scale`).
pub(crate) fn scale_of(resource: &Resource, object: &Value) -> ApiResult<Value> {
    if let Some(scale) = resource.version().structure.as_ref().and_then(|structure| structure.scale.as_ref())
    {
        return Ok(custom_scale(scale, object));
    }
    let meta = &object["metadata"];
    let selector = &object["spec"]["selector"];
    let labels =
        if resource.def.plural == "replicationcontrollers" { selector } else { &selector["matchLabels"] };
    let mut parts: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    let count = |value: &Value| value.as_i64().unwrap_or(0);
    Ok(scale(
        meta,
        count(&object["spec"]["replicas"]),
        count(&object["status"]["replicas"]),
        &parts.join(","),
    ))
}

fn scale(meta: &Value, wanted: i64, current: i64, selector: &str) -> Value {
    let mut scale_meta = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        keep(&mut scale_meta, meta, key);
    }
    let spec = if wanted == 0 { json!({}) } else { json!({"replicas": wanted}) };
    let mut status = json!({"replicas": current});
    if !selector.is_empty() {
        status["selector"] = json!(selector);
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": scale_meta, "spec": spec, "status": status})
}

/// The scale of a custom object, from where its definition says.
fn custom_scale(paths: &ScalePaths, object: &Value) -> Value {
    let count = |path: &str| custom::at(object, path).and_then(Value::as_i64).unwrap_or(0);
    let selector =
        paths.selector.as_deref().and_then(|path| custom::at(object, path)).and_then(Value::as_str);
    scale(
        &object["metadata"],
        count(&paths.spec_replicas),
        count(&paths.status_replicas),
        selector.unwrap_or_default(),
    )
}

/// Sets the number that a scale is about.
pub(crate) fn set_replicas(resource: &Resource, object: &mut Value, replicas: i64) {
    let paths = resource.version().structure.as_ref().and_then(|structure| structure.scale.as_ref());
    let path = paths.map_or("spec.replicas", |paths| &paths.spec_replicas);
    let place = path.split('.').fold(object, |value, key| child(value, key));
    *place = json!(replicas);
}

/// The scale of an object, with those who own the number of replicas.
fn owned_scale(resource: &Resource, object: &Value) -> ApiResult<Value> {
    let mut shown = scale_of(resource, object)?;
    let owners = scale::to_scale(&object["metadata"]["managedFields"], &ownership::replica_paths(resource));
    if let Ok(Some(owners)) = owners {
        shown["metadata"]["managedFields"] = owners;
    }
    Ok(shown)
}

/// The schema of scales, for ownership.
struct Scales(Type);

impl Versions for Scales {
    fn schema(&self, api_version: &str) -> Option<&Type> {
        (api_version == "autoscaling/v1").then_some(&self.0)
    }

    fn convert(&self, _object: &Value, _api_version: &str) -> Result<Value, ConvertError> {
        Err(ConvertError::NoSuchVersion)
    }
}

/// What is done with a scale: a plain change, or an apply.
enum Change<'a> {
    Plain(&'a (dyn Fn(&Value) -> ApiResult<Value> + Sync)),
    Apply { patch: &'a Value, manager: &'a str, force: bool },
}

/// Changes the number of replicas; answers with the new scale.
pub(crate) async fn update_scale(
    call: &Call<'_>,
    change: &(dyn Fn(&Value) -> ApiResult<Value> + Sync),
) -> ApiResult<Value> {
    write_scale(call, &Change::Plain(change)).await
}

/// Applies a scale.
pub(crate) async fn apply_scale(
    call: &Call<'_>,
    patch: &Value,
    manager: &str,
    force: bool,
) -> ApiResult<Value> {
    write_scale(call, &Change::Apply { patch, manager, force }).await
}

async fn write_scale(call: &Call<'_>, change: &Change<'_>) -> ApiResult<Value> {
    let resource = call.resource;
    let untracked = Call { manager: None, ..*call };
    let written = untracked.update(&|object| scaled(call, object, change)).await?;
    scale_of(resource, &written.value(call).await?)
}

/// The object after its scale has been changed.
fn scaled(call: &Call<'_>, object: &Value, change: &Change<'_>) -> ApiResult<Value> {
    let resource = call.resource;
    let catalog = call.objects.registry().catalog();
    let scales = Scales(catalog.find("~autoscaling.v1.Scale").map_or(Type::Any, Type::Named));
    let manager = FieldManager {
        catalog,
        versions: &scales,
        api_version: "autoscaling/v1",
        kind: "Scale",
        subresource: "scale",
    };
    let now = call.objects.clock().now();
    let before = owned_scale(resource, object)?;
    let after = match change {
        Change::Plain(change) => {
            let mut after = change(&before)?;
            if let Some(name) = call.manager {
                manager.on_update(&before, &mut after, name, now);
            }
            after
        }
        Change::Apply { patch, manager: name, force } => {
            manager.on_apply(&before, patch, name, *force, now)?.unwrap_or_else(|| before.clone())
        }
    };
    let replicas = match &after["spec"]["replicas"] {
        Value::Null => 0,
        value => value.as_i64().ok_or_else(|| {
            Status::bad_request("Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal into Go struct field ScaleSpec.spec.replicas of type int32")
        })?,
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(invalid("autoscaling", "Scale", name, &[error]));
    }
    let mut scaled = object.clone();
    set_replicas(resource, &mut scaled, replicas);
    match after["metadata"].get("resourceVersion") {
        Some(version) => scaled["metadata"]["resourceVersion"] = version.clone(),
        None => crate::meta::drop_revision(&mut scaled),
    }
    let owners = scale::to_parent(
        &object["metadata"]["managedFields"],
        &after["metadata"]["managedFields"],
        &resource.api_version(),
        &ownership::replica_paths(resource),
    );
    if let Ok(Some(owners)) = owners {
        scaled["metadata"]["managedFields"] = owners;
    }
    Ok(scaled)
}

/// A namespace with the finalizers of its specification replaced (`namespaces/finalize`).
pub(crate) fn finalized(old: &Value, given: &Value) -> Value {
    let mut namespace = old.clone();
    keep(child(&mut namespace, "spec"), &given["spec"], "finalizers");
    match given["metadata"].get("resourceVersion") {
        Some(version) => namespace["metadata"]["resourceVersion"] = version.clone(),
        None => crate::meta::drop_revision(&mut namespace),
    }
    namespace
}
