//! Annotations of pods that mean something: those that fields have replaced, and a few others.

use kschema::{error::FieldError, quote::Quoted};
use serde_json::Value;

use super::{containers::all_containers, options::Options, tolerations};
use crate::{
    check::{Look, Path, Report},
    volume_source::descending_path,
};

type Errors = Vec<FieldError>;

/// Marks the copy of a static pod that a kubelet makes.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// The AppArmor profile of a container, whose name follows.
pub(crate) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
/// The seccomp profile of a pod, and of a container, whose name follows.
pub(crate) const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
pub(crate) const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Checks the annotations of a pod or template (`ValidatePodSpecificAnnotations`). `path`: that of the annotations.
pub(crate) fn validate(meta: &Value, spec: &Value, options: Options, path: &Path<'_>, errors: &mut Errors) {
    let Some(annotations) =
        meta.get_some("annotations").filter(|map| map.as_object().is_some_and(|map| !map.is_empty()))
    else {
        return;
    };
    if let Some(value) = annotations.some_text(MIRROR)
        && spec.text("nodeName").is_empty()
    {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errors.invalid(&path.key(MIRROR), value, why);
    }
    let text = annotations.text(TOLERATIONS);
    if !text.is_empty() {
        match serde_json::from_str::<Vec<Value>>(text) {
            Ok(list) => tolerations::validate(&list, options, &path.field(TOLERATIONS), errors),
            Err(error) => errors.invalid(path, TOLERATIONS, error),
        }
    }
    if !options.lax_deletion_cost && deletion_cost_is_faulty(meta) {
        let why = "must be a 32bit integer";
        errors.invalid(&path.key(DELETION_COST), annotations.text(DELETION_COST), why);
    }
    if let Some(profile) = annotations.some_text(SECCOMP_POD) {
        seccomp(profile, &path.field(SECCOMP_POD), errors);
    }
    for (key, value) in annotations.as_object().into_iter().flatten() {
        if key.starts_with(SECCOMP_CONTAINER) {
            seccomp(value.as_str().unwrap_or_default(), &path.field(key), errors);
        }
    }
    for (key, value) in annotations.as_object().into_iter().flatten() {
        let Some(container) = key.strip_prefix(APP_ARMOR) else {
            continue;
        };
        let profile = value.as_str().unwrap_or_default();
        if !all_containers(spec).any(|(_, _, one)| one.text("name") == container) {
            errors.invalid(&path.key(key), container, "container not found");
        }
        let known =
            matches!(profile, "" | "runtime/default" | "unconfined") || profile.starts_with("localhost/");
        if !known {
            errors.invalid(
                &path.key(key),
                profile,
                format_args!("invalid AppArmor profile name: {profile}", profile = Quoted(profile)),
            );
        }
    }
}

/// Whether the annotation for the cost of a deletion is no number.
pub(crate) fn deletion_cost_is_faulty(meta: &Value) -> bool {
    let Some(value) = meta.get("annotations").and_then(|map| map.some_text(DELETION_COST)) else {
        return false;
    };
    let first = value == "0" || value.starts_with('-') || value.starts_with(|c| matches!(c, '1'..='9'));
    !first || value.parse::<i32>().is_err()
}

fn seccomp(profile: &str, path: &Path<'_>, errors: &mut Errors) {
    match profile.strip_prefix("localhost/") {
        _ if matches!(profile, "runtime/default" | "docker/default" | "unconfined") => {}
        Some(local) => descending_path(local, path, errors),
        None => errors.invalid(path, profile, "must be a valid seccomp profile"),
    }
}

/// Checks that annotations and the fields that replaced them agree, for new pods and templates. `path`: of the specification.
pub(crate) fn validate_agreement(meta: &Value, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(annotations) = meta.get_some("annotations") else {
        return;
    };
    let of = |holder: &'_ Value, key: &str| -> Option<Value> {
        holder.get("securityContext").and_then(|context| context.get_some(key)).cloned()
    };
    let check = |annotation: Option<&str>,
                 profile: Option<Value>,
                 kind: Kind,
                 path: &Path<'_>,
                 errors: &mut Errors| {
        if let (Some(annotation), Some(profile)) = (annotation, profile) {
            agree(annotation, &profile, kind, path, errors);
        }
    };
    let at = path.field("securityContext.seccompProfile");
    check(annotations.some_text(SECCOMP_POD), of(spec, "seccompProfile"), Kind::Seccomp, &at, errors);
    for (list, index, container) in all_containers(spec) {
        let key = format!("{SECCOMP_CONTAINER}{}", container.text("name"));
        let list = path.field(list);
        let item = list.index(index);
        let at = item.field("securityContext.seccompProfile");
        check(annotations.some_text(&key), of(container, "seccompProfile"), Kind::Seccomp, &at, errors);
    }
    if spec.get("os").is_some_and(|os| os.text("name") == "windows") {
        return;
    }
    for (list, index, container) in all_containers(spec) {
        let key = format!("{APP_ARMOR}{}", container.text("name"));
        let list = path.field(list);
        let item = list.index(index);
        let at = item.field("securityContext.appArmorProfile");
        let profile = of(container, "appArmorProfile").or_else(|| of(spec, "appArmorProfile"));
        check(annotations.some_text(&key), profile, Kind::AppArmor, &at, errors);
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Seccomp,
    AppArmor,
}

fn agree(annotation: &str, profile: &Value, kind: Kind, path: &Path<'_>, errors: &mut Errors) {
    let word = match kind {
        Kind::Seccomp => "seccomp",
        Kind::AppArmor => "apparmor",
    };
    let same_type = match (profile.text("type"), kind) {
        ("Unconfined", _) => annotation == "unconfined",
        ("RuntimeDefault", Kind::Seccomp) => matches!(annotation, "runtime/default" | "docker/default"),
        ("RuntimeDefault", Kind::AppArmor) => annotation == "runtime/default",
        ("Localhost", _) => annotation.starts_with("localhost/"),
        _ => true,
    };
    if !same_type {
        let why = format!("{word} type in annotation and field must match");
        errors.forbidden(&path.field("type"), why);
    } else if profile.text("type") == "Localhost"
        && annotation.strip_prefix("localhost/") != profile.some_text("localhostProfile")
    {
        let why = format!("{word} profile in annotation and field must match");
        errors.forbidden(&path.field("localhostProfile"), why);
    }
}

/// Checks what an update does to the annotations (`ValidatePodSpecificAnnotationUpdates`).
pub(crate) fn validate_update(
    object: &Value,
    old: &Value,
    options: Options,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let (new, was) = (&object["metadata"]["annotations"], &old["metadata"]["annotations"]);
    let what = |key: &str| match key {
        MIRROR => Some("mirror pod annotation"),
        _ if key.starts_with(APP_ARMOR) => Some("AppArmor annotations"),
        _ => None,
    };
    let changed =
        was.as_object().into_iter().flatten().filter(|(key, value)| new.get(key.as_str()) != Some(value));
    for (key, _) in changed {
        if let Some(what) = what(key) {
            errors.forbidden(&path.key(key), format_args!("may not remove or update {what}"));
        }
    }
    for (key, _) in new.as_object().into_iter().flatten().filter(|(key, _)| was.get(key.as_str()).is_none()) {
        if let Some(what) = what(key) {
            errors.forbidden(&path.key(key), format_args!("may not add {what}"));
        }
    }
    validate(&object["metadata"], &object["spec"], options, path, errors);
}

/// The AppArmor profile that an annotation stands for, as a field's value.
pub(crate) fn app_armor_field(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(serde_json::json!({"type": "Unconfined"})),
        "runtime/default" => Some(serde_json::json!({"type": "RuntimeDefault"})),
        _ => {
            let local = annotation.strip_prefix("localhost/").filter(|local| !local.is_empty())?;
            Some(serde_json::json!({"type": "Localhost", "localhostProfile": local}))
        }
    }
}
