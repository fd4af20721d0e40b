//! Priority classes.

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::Value;

use crate::check::{Look, Path, Report};

type Errors = Vec<FieldError>;

/// The strategy of `priorityclasses`.
#[derive(Debug)]
pub(crate) struct PriorityClasses;

/// The highest priority that is not the system's.
const USER_MAX: i64 = 1_000_000_000;
/// The classes that are there from the start.
const SYSTEM: [(&str, i64); 2] =
    [("system-node-critical", 2 * USER_MAX + 1000), ("system-cluster-critical", 2 * USER_MAX)];

/// What is wrong with a class that has a name of the system's.
fn system_fault(name: &str, value: i64, global: bool) -> Option<String> {
    let Some((_, expected)) = SYSTEM.iter().find(|(known, _)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if value != *expected {
        return Some(format!("value of {name} PriorityClass must be {expected}"));
    }
    global.then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

impl Strategy for PriorityClasses {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let (name, value) = (object["metadata"].text("name"), object.int("value"));
        if name.starts_with("system-") {
            if let Some(why) = system_fault(name, value, object.flag("globalDefault")) {
                let path = Path::root("metadata.name");
                errors.forbidden(&path, format_args!("priority class names with 'system-' prefix are reserved for system use only. error: {why}"));
            }
        } else if value > USER_MAX {
            let why = format!("maximum allowed value of a user defined priority is {USER_MAX}");
            errors.forbidden(&Path::root("value"), why);
        }
        if let Some(policy) = object.some_text("preemptionPolicy") {
            errors.one_of(&Path::root("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object.int("value") != old.int("value") {
            errors.forbidden(&Path::root("value"), "may not be changed in an update.");
        }
        errors.immutable(object, old, &Path::root(""), "preemptionPolicy");
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
