//! What the kinds share that keep pods running.

use kschema::error::FieldError;
use serde_json::Value;

use crate::{
    check::{Internal, Look, Path, Report, form, labels},
    pod::template,
};

type Errors = Vec<FieldError>;

/// Fills in `spec.template`.
pub(crate) fn default_template(object: &mut Value) {
    if let Some(found) = object.pointer_mut("/spec/template") {
        template::default(found);
    }
}

/// Warns of a name that is no label, as it becomes part of the names of pods.
pub(crate) fn name_warning(object: &Value, what: &str, out: &mut Vec<String>) {
    let faults = form::dns_label(object["metadata"].text("name"));
    if !faults.is_empty() {
        out.push(format!("metadata.name: this is used in {what}, which can result in surprising behavior; a DNS label is recommended: [{}]", faults.join(" ")));
    }
}

/// Checks that there is a selector and that it selects something. `kind`: as the message names it.
pub(crate) fn selector(spec: &Value, path: &Path<'_>, kind: &str, errors: &mut Errors) {
    let field = path.field("selector");
    let Some(found) = spec.get_some("selector") else {
        errors.required(&field, "");
        return;
    };
    labels::selector(Some(found), &field, false, errors);
    if labels::is_empty(found) {
        errors.invalid(
            &field,
            Internal("^LabelSelector", Some(found)),
            format_args!("empty selector is invalid for {kind}"),
        );
    }
}

/// Checks that the selector selects the template. A selector that is missing selects nothing, and one that is empty all.
pub(crate) fn selects_template(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let found = spec["template"]["metadata"].get_some("labels");
    let none = Value::Object(serde_json::Map::new());
    let selected =
        spec.get_some("selector").is_some_and(|selector| labels::selects(selector, found.unwrap_or(&none)));
    if !selected {
        let field = path.field("template.metadata.labels");
        errors.invalid(&field, found, "`selector` does not match template `labels`");
    }
}

/// Checks that the template's pods are restarted always: nothing else can be kept running.
pub(crate) fn runs_always(spec: &Value, path: &Path<'_>, kind: &str, errors: &mut Errors) {
    let (pod, path) = (&spec["template"]["spec"], path.field("template.spec"));
    if pod.text("restartPolicy") != "Always" {
        errors.unsupported(&path.field("restartPolicy"), pod.text("restartPolicy"), &["Always"]);
    }
    if pod.has("activeDeadlineSeconds") {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&path.field("activeDeadlineSeconds"), why);
    }
}

/// Selector and template of replica sets and of deployments, whose messages are the same.
pub(crate) fn replicated(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    selector(spec, path, "deployment", errors);
    if spec.get_some("selector").is_none_or(|selector| !labels::is_empty(selector)) {
        selects_template(spec, path, errors);
    }
    let field = path.field("template");
    template::validate(&spec["template"], old.map(|old| &old["template"]), &field, errors);
    runs_always(spec, path, "ReplicaSet", errors);
}

/// The number, or the number of percents, in a field.
pub(crate) fn share(object: &Value, key: &str) -> i64 {
    percents(object.text(key)).unwrap_or_else(|| object.int(key))
}

fn percents(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%').filter(|digits| !digits.is_empty())?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().unwrap_or(i64::MAX))
}

/// Checks a field that holds a number that is not negative, or a percentage.
pub(crate) fn validate_share(object: &Value, path: &Path<'_>, key: &str, errors: &mut Errors) {
    match object.some_text(key) {
        Some(text) => errors.faults(&path.field(key), text, form::percent(text)),
        None => errors.not_negative(object, path, key),
    }
}

/// Checks that a percentage is a part of the whole.
pub(crate) fn at_most_all(object: &Value, path: &Path<'_>, key: &str, errors: &mut Errors) {
    if percents(object.text(key)).is_some_and(|percents| percents > 100) {
        errors.invalid(&path.field(key), object.text(key), "must not be greater than 100%");
    }
}

/// Checks numbers that may not be negative.
pub(crate) fn counts(object: &Value, path: &Path<'_>, keys: &[&str], errors: &mut Errors) {
    for key in keys {
        errors.not_negative(object, path, key);
    }
}

/// Checks that no part of the replicas is more than all, and that what is available is ready.
pub(crate) fn parts(status: &Value, path: &Path<'_>, keys: &[&str], ready: &str, errors: &mut Errors) {
    for key in keys {
        if status.int(key) > status.int("replicas") {
            errors.invalid(&path.field(key), status.int(key), "cannot be greater than status.replicas");
        }
    }
    if status.int("availableReplicas") > status.int("readyReplicas") {
        let why = format!("cannot be greater than {ready}");
        errors.invalid(&path.field("availableReplicas"), status.int("availableReplicas"), why);
    }
}

/// Checks that the collisions that have been counted are not forgotten.
pub(crate) fn collisions(object: &Value, old: &Value, errors: &mut Errors) {
    let (status, path) = (&object["status"], Path::root("status"));
    if let Some(was) = old["status"].some_int("collisionCount")
        && status.some_int("collisionCount").is_none_or(|count| count < was)
    {
        let shown = status.int("collisionCount");
        errors.invalid(&path.field("collisionCount"), shown, "cannot be decremented");
    }
}
