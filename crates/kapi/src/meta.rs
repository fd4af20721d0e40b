//! `metadata`: what the server writes into it and what it must look like.

use kcore::{Clock, Status, clock::format_time, selector};
use rand::Rng as _;
use serde_json::{Value, json};

use crate::{
    error::{ApiResult, FieldError},
    registry::ResourceDef,
    schema::fields::{child, keep},
};

/// The largest sum of all annotations' keys and values, in bytes.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Where a generated name's prefix is cut, so that it fits into a label with its suffix.
const GENERATE_PREFIX_MAX: usize = 58;
/// The letters of generated names: no vowels and nothing that looks like another (`k8s.io/apimachinery/pkg/util/rand`).
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `metadata[key]` as text; empty if it is missing.
pub(crate) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

/// The object's namespace is that of the path.
pub(crate) fn prepare_namespace(def: &ResourceDef, namespace: &str, object: &mut Value) -> ApiResult<()> {
    if !object["metadata"].is_object() {
        child(object, "metadata");
    }
    let given = text(object, "namespace").to_owned();
    if !def.namespaced {
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("namespace");
        }
        return Ok(());
    }
    if given.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    } else if given != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )
        .into());
    }
    Ok(())
}

/// What the server writes into a new object.
pub(crate) fn prepare_create(def: &ResourceDef, object: &mut Value, clock: &dyn Clock) {
    let meta = child(object, "metadata");
    let prefix = meta.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
    if meta.get("name").and_then(Value::as_str).is_none_or(str::is_empty) && !prefix.is_empty() {
        let mut cut = prefix.len().min(GENERATE_PREFIX_MAX);
        while !prefix.is_char_boundary(cut) {
            cut -= 1;
        }
        meta["name"] = json!(format!("{}{}", &prefix[..cut], suffix()));
    }
    if let Some(map) = meta.as_object_mut() {
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
            map.remove(key);
        }
        if def.traits.generation {
            map.insert("generation".to_owned(), json!(1));
        } else {
            map.remove("generation");
        }
    }
    meta["uid"] = json!(uuid::Uuid::new_v4().to_string());
    meta["creationTimestamp"] = json!(format_time(clock.now()));
}

/// The random end of a generated name.
pub(crate) fn suffix() -> String {
    let mut random = rand::rng();
    (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

/// What is told of an object without a name that is written to the address of one (`checkName`).
pub(crate) fn nameless(name: &str) -> String {
    format!("the name of the object ({name} based on URL) was undeterminable: name must be provided")
}

/// What callers can't change is what it was.
pub(crate) fn keep_system_fields(
    def: &ResourceDef,
    name: &str,
    object: &mut Value,
    old: &Value,
) -> ApiResult<()> {
    let uid = text(object, "uid");
    if !uid.is_empty() && uid != text(old, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            text(old, "uid")
        );
        return Err(Status::conflict(&def.group, &def.plural, name, &why).into());
    }
    let given = text(object, "name");
    if given.is_empty() {
        return Err(Status::bad_request(nameless(name)).into());
    }
    if given != name {
        let why = format!("the name of the object ({given}) does not match the name on the URL ({name})");
        return Err(Status::bad_request(why).into());
    }
    let meta = child(object, "metadata");
    for key in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "generateName",
    ] {
        keep(meta, &old["metadata"], key);
    }
    Ok(())
}

/// Takes the resource version away: the store keeps it beside the object.
pub(crate) fn drop_revision(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
    }
}

/// Whether an object that is being deleted may go: it has no finalizers left and no grace.
pub(crate) fn is_finished(def: &ResourceDef, object: &Value) -> bool {
    let meta = &object["metadata"];
    let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let is_namespace = def.group.is_empty() && def.plural == "namespaces";
    meta["deletionTimestamp"].is_string()
        && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && none(&meta["finalizers"])
        && (!is_namespace || none(&object["spec"]["finalizers"]))
}

/// Checks a new or changed object's metadata (`ValidateObjectMeta`).
pub(crate) fn validate(def: &ResourceDef, object: &Value) -> Vec<FieldError> {
    let meta = &object["metadata"];
    let mut errors = Vec::new();
    let rule = def.strategy.name_rule();
    let prefix = text(object, "generateName");
    if !prefix.is_empty() {
        let faults = rule.faults(prefix, true).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid_text("metadata.generateName", prefix, fault)));
    }
    let name = text(object, "name");
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        let faults = rule.faults(name, false).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid_text("metadata.name", name, fault)));
    }
    for (key, value) in meta["labels"].as_object().into_iter().flatten() {
        if let Some(fault) = selector::key_fault(key) {
            errors.push(FieldError::invalid_text("metadata.labels", key, fault));
        }
        let value = value.as_str().unwrap_or_default();
        if let Some(fault) = selector::value_fault(value) {
            errors.push(FieldError::invalid_text("metadata.labels", value, fault));
        }
    }
    let mut bytes = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        if let Some(fault) = selector::key_fault(&key.to_lowercase()) {
            errors.push(FieldError::invalid_text("metadata.annotations", key, fault));
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX));
    }
    let mut controllers = 0;
    for (index, owner) in meta["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        controllers += usize::from(owner["controller"] == true);
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner[key].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::invalid_text(
                    format!("metadata.ownerReferences[{index}].{key}"),
                    "",
                    "must not be empty",
                ));
            }
        }
    }
    if controllers > 1 {
        let why = "Only one reference can have Controller set to true";
        errors.push(FieldError::invalid("metadata.ownerReferences", &meta["ownerReferences"], why));
    }
    errors.extend(validate_finalizers(def, meta));
    errors
}

/// Kinds that are not Kubernetes' own core ones may have finalizers without a path (`ValidateFinalizers` of the API machinery
/// against that of `pkg/apis/core`).
fn validate_finalizers(def: &ResourceDef, meta: &Value) -> Vec<FieldError> {
    let strict = def.definition().is_none()
        && !["apiextensions.k8s.io", "apiregistration.k8s.io"].contains(&def.group.as_str());
    let list: Vec<&str> =
        meta["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut errors = Vec::new();
    for finalizer in &list {
        if let Some(fault) = selector::key_fault(finalizer) {
            errors.push(FieldError::invalid_text("metadata.finalizers", finalizer, fault));
        } else if strict
            && !finalizer.contains('/')
            && !["orphan", "foregroundDeletion", "kubernetes"].contains(finalizer)
        {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid_text("metadata.finalizers", finalizer, why));
        }
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid("metadata.finalizers", &meta["finalizers"], why));
    }
    errors
}

/// Checks what a change does to the metadata.
pub(crate) fn validate_update(_def: &ResourceDef, object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old["metadata"]["deletionTimestamp"].is_string() {
        let list = |object: &Value| object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let before = list(old);
        let added: Vec<String> =
            list(object).iter().filter(|item| !before.contains(item)).map(ToString::to_string).collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", why));
        }
    }
    errors
}
