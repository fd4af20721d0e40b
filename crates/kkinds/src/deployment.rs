//! Deployments and replica sets.

use kschema::{
    error::FieldError,
    fields::{child, keep, set_default},
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::{
    check::{Internal, Look, Path, Report},
    pod::template,
    workload::{
        at_most_all, collisions, counts, default_template, name_warning, parts, replicated, share,
        validate_share,
    },
};

type Errors = Vec<FieldError>;

/// The strategy of `deployments`.
#[derive(Debug)]
pub(crate) struct Deployments;

/// The strategy of `replicasets`.
#[derive(Debug)]
pub(crate) struct ReplicaSets;

fn rollout(strategy: &Value, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("rollingUpdate");
    let rolling = strategy.get_some("rollingUpdate");
    match (strategy.text("type"), rolling) {
        ("Recreate", None) => {}
        ("Recreate", Some(_)) => {
            errors.forbidden(&field, "may not be specified when strategy `type` is 'Recreate'");
        }
        ("RollingUpdate", None) => errors.required(&field, "this should be defaulted and never be nil"),
        ("RollingUpdate", Some(rolling)) => {
            validate_share(rolling, &field, "maxUnavailable", errors);
            validate_share(rolling, &field, "maxSurge", errors);
            if share(rolling, "maxUnavailable") == 0 && share(rolling, "maxSurge") == 0 {
                let shown = rolling.get_some("maxUnavailable");
                errors.invalid(&field.field("maxUnavailable"), shown, "may not be 0 when `maxSurge` is 0");
            }
            at_most_all(rolling, &field, "maxUnavailable", errors);
        }
        _ => {
            let kinds = ["Recreate", "RollingUpdate"];
            errors.unsupported_choice(path, Internal("~apps.v1.DeploymentStrategy", Some(strategy)), &kinds);
        }
    }
}

fn deployment(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    errors.not_negative(spec, &path, "replicas");
    replicated(spec, old.map(|old| &old["spec"]), &path, errors);
    rollout(&spec["strategy"], &path.field("strategy"), errors);
    counts(spec, &path, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], errors);
    if let Some(deadline) = spec.some_int("progressDeadlineSeconds")
        && deadline <= spec.int("minReadySeconds")
    {
        let field = path.field("progressDeadlineSeconds");
        errors.invalid(&field, deadline, "must be greater than minReadySeconds");
    }
}

/// What a deployment or replica set makes callers aware of.
fn warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if old.is_none() {
        name_warning(object, "Pod names and hostnames", &mut out);
    }
    let was = old.map(|old| &old["spec"]["template"]);
    template::warnings(&object["spec"]["template"], was, &Path::root("spec.template"), &mut out);
    out
}

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        default_template(object);
        if let Some(strategy) = object.pointer_mut("/spec/strategy")
            && strategy["type"] == "RollingUpdate"
        {
            let rolling = child(strategy, "rollingUpdate");
            set_default(rolling, "maxUnavailable", "25%");
            set_default(rolling, "maxSurge", "25%");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        keep(child(object, "metadata"), &old["metadata"], "labels");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        deployment(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        deployment(object, Some(old), errors);
        errors.immutable_of(&object["spec"], &old["spec"], &Path::root("spec"), "selector", "^LabelSelector");
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        const COUNTS: [&str; 8] = [
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ];
        let (status, path) = (&object["status"], Path::root("status"));
        counts(status, &path, &COUNTS, errors);
        let of_all = ["updatedReplicas", "readyReplicas", "availableReplicas"];
        parts(status, &path, &of_all, "readyReplicas", errors);
        collisions(object, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        warnings(object, old)
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["spec", "metadata.labels"],
            _ => &[],
        }
    }
}

fn replica_set(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    counts(spec, &path, &["replicas", "minReadySeconds"], errors);
    replicated(spec, old.map(|old| &old["spec"]), &path, errors);
}

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        default_template(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn prepare_status(&self, object: &mut Value, _old: &Value) {
        set_default(child(object, "status"), "replicas", 0);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        replica_set(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        replica_set(object, Some(old), errors);
        errors.immutable_of(&object["spec"], &old["spec"], &Path::root("spec"), "selector", "^LabelSelector");
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        const COUNTS: [&str; 6] = [
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ];
        let (status, path) = (&object["status"], Path::root("status"));
        counts(status, &path, &COUNTS, errors);
        parts(status, &path, &COUNTS[1..4], "readyReplicas", errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        warnings(object, old)
    }
}
