//! The subresources `ephemeralcontainers` and `resize` (KEP-277, KEP-1287).

use kschema::quote::Quoted;
use kschema::{
    error::FieldError,
    fields::{child, keep},
};
use serde_json::{Map, Value};

use super::{
    annotations::{self, MIRROR},
    options::Options,
    qos,
};
use crate::check::{Look, Path, Report, diff, same, same_at};

type Errors = Vec<FieldError>;

/// Makes everything what it was but the ephemeral containers.
pub(crate) fn prepare_ephemeral(object: &mut Value, old: &Value) {
    let containers = object.get("spec").and_then(|spec| spec.get("ephemeralContainers")).cloned();
    keep_all_but_ownership(object, old);
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    match containers {
        Some(containers) => spec.insert("ephemeralContainers".to_owned(), containers),
        None => spec.remove("ephemeralContainers"),
    };
}

/// Makes everything what it was but what containers and the pod ask for. A list of containers that is not the old one stays,
/// so that validation refuses it.
pub(crate) fn prepare_resize(object: &mut Value, old: &Value) {
    let lists = ["containers", "initContainers"];
    let counts = |object: &Value| lists.map(|list| object["spec"].count(list));
    if counts(object) != counts(old) {
        return;
    }
    let merged = lists.map(|list| merge(object["spec"].list(list), old["spec"].list(list)));
    let resources = object["spec"].get("resources").cloned();
    keep_all_but_ownership(object, old);
    let spec = child(object, "spec");
    match resources {
        Some(resources) => spec["resources"] = resources,
        None => keep(spec, &Value::Null, "resources"),
    }
    for (list, containers) in lists.into_iter().zip(merged) {
        if !containers.is_empty() {
            spec[list] = Value::Array(containers);
        }
    }
}

fn merge(new: &[Value], old: &[Value]) -> Vec<Value> {
    if new.iter().zip(old).any(|(new, old)| new.text("name") != old.text("name")) {
        return new.to_vec();
    }
    let one = |(new, old): (&Value, &Value)| {
        let mut merged = old.clone();
        keep(&mut merged, new, "resources");
        keep(&mut merged, new, "resizePolicy");
        merged
    };
    new.iter().zip(old).map(one).collect()
}

/// The old object, with the new one's revision and field ownership.
fn keep_all_but_ownership(object: &mut Value, old: &Value) {
    let mut meta = old["metadata"].clone();
    for key in ["managedFields", "resourceVersion"] {
        keep(&mut meta, &object["metadata"], key);
    }
    *object = old.clone();
    object["metadata"] = meta;
}

fn is_mirror(old: &Value) -> bool {
    old["metadata"].get("annotations").is_some_and(|annotations| annotations.has(MIRROR))
}

/// Checks a change of the ephemeral containers, after the pod has been checked as a whole.
pub(crate) fn validate_ephemeral(object: &Value, old: &Value, options: Options, errors: &mut Errors) {
    let meta = Path::root("metadata");
    annotations::validate_update(object, old, options, &meta.field("annotations"), errors);
    if is_mirror(old) {
        errors.clear();
        errors.forbidden(&Path::root(""), "static pods do not support ephemeral containers");
        return;
    }
    let path = Path::root("spec.ephemeralContainers");
    for was in old["spec"].list("ephemeralContainers") {
        let name = was.text("name");
        match object["spec"].list("ephemeralContainers").iter().rfind(|one| one.text("name") == name) {
            None => errors.forbidden(
                &path,
                format_args!("existing ephemeral containers {} may not be removed\n", Quoted(name)),
            ),
            Some(one) if !same(one, was) => {
                errors.forbidden(
                    &path,
                    format_args!(
                        "existing ephemeral containers {} may not be changed\n{}",
                        Quoted(name),
                        diff::between("~core.v1.EphemeralContainer", Some(was), Some(one))
                    ),
                );
            }
            Some(_) => {}
        }
    }
}

/// Checks a change of what a pod asks for, after the pod has been checked as a whole (`ValidatePodResize`).
pub(crate) fn validate_resize(object: &Value, old: &Value, errors: &mut Errors) {
    let refuse = |errors: &mut Errors, why: &str| {
        errors.clear();
        errors.forbidden(&Path::root(""), why);
    };
    let (spec, was) = (&object["spec"], &old["spec"]);
    if is_mirror(old) {
        return refuse(errors, "static pods cannot be resized");
    }
    if was.get("os").is_some_and(|os| os.text("name") == "windows") {
        return refuse(errors, "windows pods cannot be resized");
    }
    let path = Path::root("spec");
    let class = old["status"].some_text("qosClass").unwrap_or_else(|| qos::class(was));
    if class != qos::class(spec) {
        let shown = object["status"].text("qosClass");
        errors.invalid(&path, shown, "Pod QOS Class may not change as a result of resizing");
    }
    let statuses = old["status"].list("containerStatuses");
    let running = statuses.iter().find(|status| status["state"].has("running"));
    if running.is_some_and(|status| !status.has("resources")) {
        errors.forbidden(&path, "Pod running on node without support for resize");
    }
    let mut munged = spec.clone();
    let is_set = |spec: &Value| {
        spec.get("resources").is_some_and(|all| all.count("requests") + all.count("limits") > 0)
    };
    if is_set(was) || is_set(spec) {
        pod_level(spec, was, &mut munged, &path, errors);
    }
    if old["status"].count("nodeAllocatableResourceClaimStatuses") > 0 {
        errors.forbidden(&path, "pods with node allocatable resource claims cannot be resized");
    }
    let before = errors.len();
    for list in ["containers", "initContainers"] {
        same_order(spec, was, list, &path, errors);
    }
    if errors.len() > before {
        return;
    }
    for list in ["initContainers", "containers"] {
        let path = path.field(list);
        for (index, (new, was)) in spec.list(list).iter().zip(was.list(list)).enumerate() {
            let item = path.index(index);
            nothing_removed(
                &new["resources"],
                &was["resources"],
                "resource",
                &item.field("resources"),
                errors,
            );
        }
    }
    containers(&mut munged, was, &path, errors);
    if errors.is_empty() && !same(&munged, was) {
        errors.forbidden(&path, "only cpu and memory resources are mutable");
    }
}

fn same_order(spec: &Value, was: &Value, list: &str, path: &Path<'_>, errors: &mut Errors) {
    let path = path.field(list);
    if spec.count(list) != was.count(list) {
        errors.forbidden(&path, format_args!("{list} may not be added or removed on resize"));
        return;
    }
    for (index, (new, was)) in spec.list(list).iter().zip(was.list(list)).enumerate() {
        if new.text("name") != was.text("name") {
            let why = format!("{list} may not be renamed or reordered on resize");
            errors.forbidden(&path.index(index).field("name"), why);
        }
    }
}

fn nothing_removed(new: &Value, was: &Value, what: &str, path: &Path<'_>, errors: &mut Errors) {
    for kind in ["requests", "limits"] {
        let kept = was.map(kind).all(|(name, _)| new.get(kind).is_some_and(|list| list.has(name)));
        if !kept {
            errors.forbidden(&path.field(kind), format_args!("{what} {kind} cannot be removed"));
        }
    }
}

fn pod_level(spec: &Value, was: &Value, munged: &mut Value, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("resources");
    if was.has("resources") && !spec.has("resources") {
        errors.forbidden(&field, "pod-level resources cannot be removed");
        return;
    }
    nothing_removed(&spec["resources"], &was["resources"], "pod-level resource", &field, errors);
    restore(munged, was);
    if !same_at(munged, was, "resources") {
        errors.forbidden(path, "only cpu and memory resources are mutable at pod-level");
        return;
    }
    keep(munged, was, "resources");
}

/// Makes CPU and memory in `resources` what they were.
fn restore(holder: &mut Value, was: &Value) {
    let old = &was["resources"];
    let Some(resources) = holder.get_mut("resources").filter(|resources| resources.is_object()) else {
        return;
    };
    for kind in ["limits", "requests"] {
        if !resources.has(kind) && !old.has(kind) {
            continue;
        }
        let none = Value::Object(Map::new());
        let list = child(resources, kind);
        for name in ["cpu", "memory"] {
            keep(list, old.get_some(kind).unwrap_or(&none), name);
        }
    }
}

fn containers(munged: &mut Value, was: &Value, path: &Path<'_>, errors: &mut Errors) {
    for list in ["containers", "initContainers"] {
        let init = list == "initContainers";
        let field = path.field(list);
        let entries = munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (index, (new, was)) in entries.zip(was.list(list)).enumerate() {
            let changed = !same(new, was);
            // What is left of `resources` are limits and requests: claims can't be added either.
            let mut without_claims = new.clone();
            if let Some(resources) = without_claims.get_mut("resources").and_then(Value::as_object_mut) {
                resources.remove("claims");
            }
            *new = without_claims;
            restore(new, was);
            if !same(new, was) {
                if init {
                    let why = "only cpu and memory resources for init or sidecar containers are mutable";
                    errors.forbidden(&field.index(index), why);
                } else {
                    errors.forbidden(path, "only cpu and memory resources are mutable");
                }
            }
            let restarts =
                new.list("resizePolicy").iter().filter(|p| p.text("restartPolicy") == "RestartContainer");
            if init && changed && new.text("restartPolicy") != "Always" {
                for _ in restarts {
                    let why = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                    errors.forbidden(&field.index(index), why);
                }
            }
        }
    }
}
