//! Jobs and cron jobs.

use serde_json::{Value, json};

use kschema::{
    error::FieldError,
    fields::{child, immutable, not_negative, one_of, set_default},
    strategy::Strategy,
};

use crate::{check::Path, pod::template, workload};

/// The strategy of `jobs`.
#[derive(Debug)]
pub(crate) struct Jobs;
/// The strategy of `cronjobs`.
#[derive(Debug)]
pub(crate) struct CronJobs;

fn default_job(spec: &mut Value) {
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        set_default(spec, "completions", 1);
    }
    set_default(spec, "parallelism", 1);
    let limit = if spec.get("backoffLimitPerIndex").is_some() { i32::MAX } else { 6 };
    set_default(spec, "backoffLimit", limit);
    let replacement = if spec.get("podFailurePolicy").is_some() { "Failed" } else { "TerminatingOrFailed" };
    set_default(spec, "podReplacementPolicy", replacement);
    workload::default_template(spec, &["template"]);
}

fn validate_job(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for key in
        ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"]
    {
        kschema::fields::not_negative_at(spec, key, path, errors);
    }
    kschema::fields::one_of_at(spec, "completionMode", path, &["Indexed", "NonIndexed"], errors);
    if spec["completionMode"] == "Indexed" && spec.get("completions").is_none() {
        let why = "when completion mode is Indexed";
        errors.push(FieldError::required(format!("{path}.completions"), why));
    }
    let policy = spec["template"]["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    if !["OnFailure", "Never"].contains(&policy) {
        let field = format!("{path}.template.spec.restartPolicy");
        let why = "valid values: \"OnFailure\", \"Never\"";
        errors.push(if policy == "Always" {
            FieldError::required(field, why)
        } else {
            FieldError::not_supported(field, policy, &["OnFailure", "Never"])
        });
    }
    template::validate(&spec["template"], None, &Path::root(&format!("{path}.template")), errors);
}

impl Strategy for Jobs {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_job(spec);
    }

    /// A job selects its pods by its own uid, unless the caller manages the selector.
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
        let meta = &object["metadata"];
        let (uid, name) = (meta["uid"].clone(), meta["name"].clone());
        let spec = child(object, "spec");
        if spec.get("manualSelector") == Some(&Value::Bool(true)) {
            return;
        }
        let labels = child(child(child(spec, "template"), "metadata"), "labels");
        labels["batch.kubernetes.io/job-name"] = name.clone();
        labels["batch.kubernetes.io/controller-uid"] = uid.clone();
        labels["job-name"] = name;
        labels["controller-uid"] = uid.clone();
        let selector = child(spec, "selector");
        child(selector, "matchLabels")["batch.kubernetes.io/controller-uid"] = uid;
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        validate_job(&object["spec"], "spec", errors);
        if object["spec"]["selector"].is_null() {
            errors.push(FieldError::required("spec.selector", ""));
        } else if !crate::check::labels::selects(
            &object["spec"]["selector"],
            &object["spec"]["template"]["metadata"]["labels"],
        ) {
            let labels = &object["spec"]["template"]["metadata"]["labels"];
            errors.push(FieldError::invalid(
                "spec.template.metadata.labels",
                labels,
                "`selector` does not match template `labels`",
            ));
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        for path in
            ["spec.selector", "spec.completionMode", "spec.podFailurePolicy", "spec.backoffLimitPerIndex"]
        {
            immutable(object, old, path, errors);
        }
        if object["spec"]["completionMode"] != "Indexed" {
            immutable(object, old, "spec.completions", errors);
        }
        // A job that is suspended and has not started may still change where its pods go.
        let startable = old["spec"]["suspend"] == true && old["status"]["startTime"].is_null();
        if !startable {
            immutable(object, old, "spec.template", errors);
        }
    }
}

impl Strategy for CronJobs {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.pointer_mut("/spec/jobTemplate/spec") {
            default_job(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        if object["spec"]["schedule"].as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required("spec.schedule", ""));
        }
        one_of(object, "spec.concurrencyPolicy", &["Allow", "Forbid", "Replace"], errors);
        for path in
            ["spec.startingDeadlineSeconds", "spec.successfulJobsHistoryLimit", "spec.failedJobsHistoryLimit"]
        {
            not_negative(object, path, errors);
        }
        validate_job(&object["spec"]["jobTemplate"]["spec"], "spec.jobTemplate.spec", errors);
    }
}
