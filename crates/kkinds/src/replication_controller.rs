//! Replication controllers.

use kschema::{
    error::FieldError,
    fields::{child, set_default},
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::{
    check::{Look, Path, Report, same_at},
    pod::template,
    workload::name_warning,
};

type Errors = Vec<FieldError>;

/// The strategy of `replicationcontrollers`.
#[derive(Debug)]
pub(crate) struct ReplicationControllers;

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    errors.not_negative(spec, &path, "minReadySeconds");
    if spec.count("selector") == 0 {
        errors.required(&path.field("selector"), "");
    }
    if spec.has("replicas") {
        errors.not_negative(spec, &path, "replicas");
    } else {
        errors.required(&path.field("replicas"), "");
    }
    let field = path.field("template");
    let Some(found) = spec.get_some("template") else {
        errors.required(&field, "");
        return;
    };
    let labels = found["metadata"].get_some("labels");
    if !spec.map("selector").all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value)) {
        errors.invalid(
            &field.field("metadata.labels"),
            labels,
            "`selector` does not match template `labels`",
        );
    }
    template::validate(found, old.map(|old| &old["spec"]["template"]), &field, errors);
    let policy = found["spec"].text("restartPolicy");
    if policy != "Always" {
        errors.unsupported(&field.field("spec.restartPolicy"), policy, &["Always"]);
    }
    if found["spec"].has("activeDeadlineSeconds") {
        let why = "activeDeadlineSeconds in ReplicationController is not Supported";
        errors.forbidden(&field.field("spec.activeDeadlineSeconds"), why);
    }
}

impl Strategy for ReplicationControllers {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else {
            return;
        };
        if let Some(found) = spec.get_mut("template") {
            template::default(found);
        }
        let labels = spec.pointer("/template/metadata/labels").filter(|labels| labels.is_object()).cloned();
        let Some(labels) = labels else {
            return;
        };
        if spec.count("selector") == 0 {
            spec["selector"] = labels.clone();
        }
        let meta = child(object, "metadata");
        if meta.count("labels") == 0 {
            meta["labels"] = labels;
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn prepare_status(&self, object: &mut Value, _old: &Value) {
        set_default(child(object, "status"), "replicas", 0);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let (status, path) = (&object["status"], Path::root("status"));
        for key in
            ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"]
        {
            errors.not_negative(status, &path, key);
        }
        let all = status.int("replicas");
        for key in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
            if status.int(key) > all {
                errors.invalid(&path.field(key), status.int(key), "cannot be greater than status.replicas");
            }
        }
        if status.int("availableReplicas") > status.int("readyReplicas") {
            let shown = status.int("availableReplicas");
            errors.invalid(&path.field("availableReplicas"), shown, "cannot be greater than readyReplicas");
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() {
            name_warning(object, "Pod names and hostnames", &mut out);
        }
        if !old.is_some_and(|old| same_at(object, old, "spec")) {
            template::warnings(&object["spec"]["template"], None, &Path::root("spec.template"), &mut out);
        }
        out
    }
}
