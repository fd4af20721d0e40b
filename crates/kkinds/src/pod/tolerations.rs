//! Tolerations of taints.

use kschema::{error::FieldError, quote::Quoted};
use serde_json::Value;

use super::options::Options;
use crate::check::{Look, Path, Report, form, labels, same};

/// The effects of taints.
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Checks the effect of a taint, or of a toleration that has one.
pub(crate) fn validate_effect(effect: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    errors.one_of(path, effect, &EFFECTS);
}

/// Checks a list of tolerations.
pub(crate) fn validate(
    tolerations: &[Value],
    options: Options,
    list: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = list.index(index);
        let (key, operator) = (toleration.text("key"), toleration.text("operator"));
        let (value, effect) = (toleration.text("value"), toleration.text("effect"));
        let operator_at = path.field("operator");
        if !key.is_empty() {
            labels::name(key, &path.field("key"), errors);
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&operator_at, operator, why);
        }
        if toleration.has("tolerationSeconds") && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.field("effect"), effect, why);
        }
        match operator {
            "Equal" | "" => {
                let faults = form::label_value(value);
                if !faults.is_empty() {
                    errors.invalid(&operator_at, value, faults.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                errors.invalid(&operator_at, value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            "Lt" | "Gt" if options.comparisons => number(value, &path.field("value"), errors),
            "Lt" | "Gt" => errors.unsupported(&operator_at, operator, &["Equal", "Exists", "Lt", "Gt"]),
            _ => errors.unsupported(&operator_at, operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            validate_effect(effect, &path.field("effect"), errors);
        }
    }
}

fn number(value: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    errors.faults(path, value, form::decimal_integer(value));
    if value.parse::<i64>().is_err() {
        let digits = value.strip_prefix(['-', '+']).unwrap_or(value);
        let out_of_range = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let why = if out_of_range { "value out of range" } else { "invalid syntax" };
        errors.invalid(
            path,
            value,
            format_args!("strconv.ParseInt: parsing {value}: {why}", value = Quoted(value)),
        );
    }
}

/// Checks that tolerations were only added, but for how long something is tolerated.
pub(crate) fn validate_only_added(
    new: &[Value],
    old: &[Value],
    options: Options,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let without_seconds = |toleration: &Value| {
        let mut copy = toleration.clone();
        if let Some(map) = copy.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        copy
    };
    if new != old {
        let new: Vec<Value> = new.iter().map(without_seconds).collect();
        let kept = |old: &Value| new.iter().any(|new| same(new, old));
        if !old.iter().map(without_seconds).all(|old| kept(&old)) {
            errors.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
            return;
        }
    }
    validate(new, options, path, errors);
}
