//! Pod disruption budgets.

use kschema::{
    error::FieldError,
    fields::{child, set_default},
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::{
    check::{Internal, Look, Path, Report, condition, labels},
    workload::{at_most_all, counts, validate_share},
};

type Errors = Vec<FieldError>;

/// The strategy of `poddisruptionbudgets`.
#[derive(Debug)]
pub(crate) struct PodDisruptionBudgets;

/// The numbers that a status always has.
const COUNTS: [&str; 4] = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];

fn validate(spec: &Value, lax: bool, errors: &mut Errors) {
    let path = Path::root("spec");
    let keys = ["minAvailable", "maxUnavailable"];
    if keys.iter().all(|key| spec.has(key)) {
        errors.invalid(
            &path,
            Internal("~policy.v1.PodDisruptionBudgetSpec", Some(spec)),
            "minAvailable and maxUnavailable cannot be both set",
        );
    }
    for key in keys.into_iter().filter(|key| spec.has(key)) {
        validate_share(spec, &path, key, errors);
        at_most_all(spec, &path, key, errors);
    }
    labels::selector(spec.get_some("selector"), &path.field("selector"), lax, errors);
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    errors.optional_one_of(spec, &path, "unhealthyPodEvictionPolicy", &policies);
}

impl Strategy for PodDisruptionBudgets {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
        self.prepare_status(object, &Value::Null);
    }

    fn prepare_status(&self, object: &mut Value, _old: &Value) {
        let status = child(object, "status");
        COUNTS.iter().for_each(|key| set_default(status, key, 0));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(&object["spec"], false, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(&object["spec"], labels::is_faulty(old["spec"].get_some("selector")), errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let (status, path) = (&object["status"], Path::root("status"));
        condition::validate(status.list("conditions"), &path.field("conditions"), errors);
        counts(status, &path, &COUNTS, errors);
    }
}
