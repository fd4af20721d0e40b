//! Daemon sets.

use kschema::{
    error::FieldError,
    fields::{child, set_default},
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::{
    check::{Internal, Look, Path, Report, labels, same_at},
    pod::template,
    workload::{at_most_all, collisions, counts, default_template, runs_always, share, validate_share},
};

type Errors = Vec<FieldError>;

/// The strategy of `daemonsets`.
#[derive(Debug)]
pub(crate) struct DaemonSets;

/// The annotation that says how often the template has changed.
const GENERATION: &str = "deprecated.daemonset.template.generation";

/// The counters that a status always has.
const COUNTERS: [&str; 4] =
    ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];

fn generation(object: &Value) -> i64 {
    let note = object["metadata"].get("annotations").and_then(|notes| notes.some_text(GENERATION));
    note.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn set_generation(object: &mut Value, generation: i64) {
    child(child(object, "metadata"), "annotations")[GENERATION] = generation.to_string().into();
}

fn rollout(strategy: &Value, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("rollingUpdate");
    match (strategy.text("type"), strategy.get_some("rollingUpdate")) {
        ("OnDelete", _) => {}
        ("RollingUpdate", None) => errors.required(&field, ""),
        ("RollingUpdate", Some(rolling)) => {
            for check in [validate_share, at_most_all] {
                check(rolling, &field, "maxUnavailable", errors);
                check(rolling, &field, "maxSurge", errors);
            }
            match (share(rolling, "maxUnavailable") != 0, share(rolling, "maxSurge") != 0) {
                (true, true) => {
                    let why = "may not be set when maxUnavailable is non-zero";
                    errors.invalid(&field.field("maxSurge"), rolling.get_some("maxSurge"), why);
                }
                (false, false) => {
                    errors.required(&field.field("maxUnavailable"), "cannot be 0 when maxSurge is 0");
                }
                _ => {}
            }
        }
        _ => {
            let kinds = ["RollingUpdate", "OnDelete"];
            errors.unsupported_choice(
                path,
                Internal("~apps.v1.DaemonSetUpdateStrategy", Some(strategy)),
                &kinds,
            );
        }
    }
}

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let selector = spec.get_some("selector");
    let field = path.field("selector");
    let lax = old.is_some_and(|old| labels::is_faulty(old["spec"].get_some("selector")));
    labels::selector(selector, &field, lax, errors);
    crate::workload::selects_template(spec, &path, errors);
    if let Some(empty) = selector.filter(|selector| labels::is_empty(selector)) {
        errors.invalid(&field, empty, "empty selector is invalid for daemonset");
    }
    let was = old.map(|old| &old["spec"]["template"]);
    template::validate(&spec["template"], was, &path.field("template"), errors);
    runs_always(spec, &path, "DaemonSet", errors);
    errors.not_negative(spec, &path, "minReadySeconds");
    rollout(&spec["updateStrategy"], &path.field("updateStrategy"), errors);
    errors.not_negative(spec, &path, "revisionHistoryLimit");
}

impl Strategy for DaemonSets {
    fn default(&self, object: &mut Value) {
        default_template(object);
        if let Some(strategy) = object.pointer_mut("/spec/updateStrategy")
            && strategy["type"] == "RollingUpdate"
        {
            let rolling = child(strategy, "rollingUpdate");
            set_default(rolling, "maxUnavailable", 1);
            set_default(rolling, "maxSurge", 0);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
        self.prepare_status(object, &Value::Null);
        set_generation(object, generation(object).max(1));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let changed = !same_at(&object["spec"], &old["spec"], "template");
        set_generation(object, generation(old) + i64::from(changed));
    }

    fn prepare_status(&self, object: &mut Value, _old: &Value) {
        let status = child(object, "status");
        COUNTERS.iter().for_each(|key| set_default(status, key, 0));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable_of(&object["spec"], &old["spec"], &Path::root("spec"), "selector", "^LabelSelector");
        validate(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        const MORE: [&str; 5] = [
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ];
        let (status, path) = (&object["status"], Path::root("status"));
        counts(status, &path, &COUNTERS, errors);
        counts(status, &path, &MORE, errors);
        collisions(object, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        let was = old.map(|old| &old["spec"]["template"]);
        template::warnings(&object["spec"]["template"], was, &Path::root("spec.template"), &mut out);
        out
    }
}
