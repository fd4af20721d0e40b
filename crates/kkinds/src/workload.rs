//! Deployments, replica sets, stateful sets, daemon sets and replication controllers.

use serde_json::{Value, json};

use kschema::{
    error::FieldError,
    fields::{child, immutable, not_negative, one_of, set_default},
    strategy::Strategy,
};

use crate::{check::Path, pod::template};

/// The strategy of `deployments`.
#[derive(Debug)]
pub(crate) struct Deployments;
/// The strategy of `replicasets`.
#[derive(Debug)]
pub(crate) struct ReplicaSets;
/// The strategy of `statefulsets`.
#[derive(Debug)]
pub(crate) struct StatefulSets;
/// The strategy of `daemonsets`.
#[derive(Debug)]
pub(crate) struct DaemonSets;
/// Defaults of the template.
pub(crate) fn default_template(object: &mut Value, path: &[&str]) {
    let template = path.iter().try_fold(object, |value, key| value.get_mut(key));
    if let Some(found) = template {
        crate::pod::template::default(found);
    }
}

/// Selector and template: both are there, the selector selects something, and it selects the template.
pub(crate) fn validate_template(object: &Value, errors: &mut Vec<FieldError>) {
    let (selector, template) = (&object["spec"]["selector"], &object["spec"]["template"]);
    let empty = |key: &str| {
        selector[key].as_object().is_none_or(serde_json::Map::is_empty)
            && selector[key].as_array().is_none_or(Vec::is_empty)
    };
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else if empty("matchLabels") && empty("matchExpressions") {
        errors.push(FieldError::invalid("spec.selector", "{}", "empty selector is invalid for deployment"));
    } else if !crate::check::labels::selects(selector, &template["metadata"]["labels"]) {
        let labels = &template["metadata"]["labels"];
        let shown = if labels.is_null() { json!({}) } else { labels.clone() };
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            shown,
            "`selector` does not match template `labels`",
        ));
    }
    validate_always(template, errors);
}

/// The template's pods are restarted always: nothing else can be kept running.
fn validate_always(found: &Value, errors: &mut Vec<FieldError>) {
    let policy = found["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    if policy != "Always" {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if found["spec"].get("activeDeadlineSeconds").is_some() {
        errors
            .push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", "must not be specified"));
    }
    template::validate(found, None, &Path::root("spec.template"), errors);
}

/// Warns of a name that is no label, as it becomes part of the names of pods.
pub(crate) fn name_warning(object: &Value, what: &str, out: &mut Vec<String>) {
    let faults = crate::check::form::dns_label(object["metadata"]["name"].as_str().unwrap_or_default());
    if !faults.is_empty() {
        out.push(format!("metadata.name: this is used in {what}, which can result in surprising behavior; a DNS label is recommended: [{}]", faults.join(" ")));
    }
}

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        default_template(object, &["spec", "template"]);
        if let Some(strategy) = object.pointer_mut("/spec/strategy")
            && strategy["type"] == "RollingUpdate"
        {
            let rolling = child(strategy, "rollingUpdate");
            set_default(rolling, "maxUnavailable", "25%");
            set_default(rolling, "maxSurge", "25%");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        for path in [
            "spec.replicas",
            "spec.minReadySeconds",
            "spec.revisionHistoryLimit",
            "spec.progressDeadlineSeconds",
        ] {
            not_negative(object, path, errors);
        }
        one_of(object, "spec.strategy.type", &["Recreate", "RollingUpdate"], errors);
        let strategy = &object["spec"]["strategy"];
        let rolling = &strategy["rollingUpdate"];
        if strategy["type"] == "Recreate" && !rolling.is_null() {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", why));
        }
        let zero = |value: &Value| *value == 0 || *value == "0%";
        if rolling.is_object() && zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
            let why = "may not be 0 when `maxSurge` is 0";
            errors.push(FieldError::invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                &rolling["maxUnavailable"],
                why,
            ));
        }
        for key in ["maxUnavailable", "maxSurge"] {
            validate_share(&rolling[key], &format!("spec.strategy.rollingUpdate.{key}"), errors);
        }
        let spec = &object["spec"];
        if let (Some(ready), Some(deadline)) =
            (spec["minReadySeconds"].as_i64(), spec["progressDeadlineSeconds"].as_i64())
            && deadline <= ready
        {
            errors.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
        validate_template(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(object, old, "spec.selector", errors);
    }
}

/// A number that is not negative, or a percentage.
fn validate_share(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Number(number) if number.as_i64().is_some_and(|number| number < 0) => {
            errors.push(FieldError::invalid(path, number, "must be greater than or equal to 0"));
        }
        Value::String(text) if text.strip_suffix('%').is_none_or(|digits| digits.parse::<u32>().is_err()) => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.push(FieldError::invalid_text(path, text, why));
        }
        _ => {}
    }
}

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        default_template(object, &["spec", "template"]);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        not_negative(object, "spec.replicas", errors);
        not_negative(object, "spec.minReadySeconds", errors);
        validate_template(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(object, old, "spec.selector", errors);
    }
}

impl Strategy for StatefulSets {
    fn default(&self, object: &mut Value) {
        default_template(object, &["spec", "template"]);
        if let Some(strategy) = object.pointer_mut("/spec/updateStrategy")
            && strategy["type"] == "RollingUpdate"
        {
            set_default(child(strategy, "rollingUpdate"), "partition", 0);
        }
        if let Some(spec) = object.get_mut("spec") {
            for claim in kschema::fields::items_mut(spec, "volumeClaimTemplates") {
                set_default(claim, "apiVersion", "v1");
                set_default(claim, "kind", "PersistentVolumeClaim");
                claim["status"] = json!({"phase": "Pending"});
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0, "availableReplicas": 0});
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        not_negative(object, "spec.replicas", errors);
        one_of(object, "spec.podManagementPolicy", &["OrderedReady", "Parallel"], errors);
        one_of(object, "spec.updateStrategy.type", &["OnDelete", "RollingUpdate"], errors);
        validate_template(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        const FREE: [&str; 8] = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
            "revisionHistoryLimit",
            "selector",
        ];
        let fixed = |object: &Value| {
            let mut spec = object["spec"].clone();
            if let Some(map) = spec.as_object_mut() {
                map.retain(|key, _| !FREE.contains(&key.as_str()) || key == "selector");
            }
            spec
        };
        if fixed(object) != fixed(old) {
            errors.push(FieldError::forbidden("spec", "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"));
        }
    }
}

impl Strategy for DaemonSets {
    fn default(&self, object: &mut Value) {
        default_template(object, &["spec", "template"]);
        if let Some(strategy) = object.pointer_mut("/spec/updateStrategy")
            && strategy["type"] == "RollingUpdate"
        {
            let rolling = child(strategy, "rollingUpdate");
            set_default(rolling, "maxUnavailable", 1);
            set_default(rolling, "maxSurge", 0);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0});
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        one_of(object, "spec.updateStrategy.type", &["OnDelete", "RollingUpdate"], errors);
        validate_template(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(object, old, "spec.selector", errors);
    }
}
