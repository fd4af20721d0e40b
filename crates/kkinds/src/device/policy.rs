//! How much of a device's capacity one request may take (KEP-5075).

use kschema::error::FieldError;
use serde_json::Value;

use super::fits;
use crate::check::{Look, Path, Report, quantity::amount};

type Errors = Vec<FieldError>;

const VALUES_MAX: usize = 10;

/// Checks the policy of a capacity of which there is as much as `all`.
pub(super) fn validate(policy: &Value, all: &Value, path: &Path<'_>, errors: &mut Errors) {
    let range = policy.get_some("validRange");
    let has_values = policy.count("validValues") > 0;
    if has_values && range.is_some() {
        let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        errors.forbidden(path, why);
        return;
    }
    let key = match (has_values, range) {
        (true, _) => "validValues",
        (false, Some(_)) => "validRange",
        (false, None) => return,
    };
    let Some(default) = policy.get_some("default") else {
        errors.required(&path.field("default"), &format!("required when {key} is defined"));
        return;
    };
    match range {
        Some(range) => validate_range(range, default, all, &path.field(key), errors),
        None => validate_values(policy.list(key), default, all, &path.field(key), errors),
    }
}

fn validate_values(values: &[Value], default: &Value, all: &Value, list: &Path<'_>, errors: &mut Errors) {
    for (index, pair) in values.windows(2).enumerate() {
        if amount(&pair[0]) > amount(&pair[1]) {
            errors.invalid(&list.index(index + 1), &pair[1], "values must be sorted in ascending order");
        }
    }
    let mut found = false;
    if fits(values.len(), VALUES_MAX, list, errors) {
        for (index, value) in values.iter().enumerate() {
            if amount(value) > amount(all) {
                let why =
                    format!("option is larger than capacity value: {}", all.as_str().unwrap_or_default());
                errors.invalid(&list.index(index), value, why);
            }
            found |= amount(value) == amount(default);
        }
        for (index, value) in values.iter().enumerate() {
            if values[..index].iter().any(|other| amount(other).value() == amount(value).value()) {
                errors.duplicate(&list.index(index), amount(value).value().to_string());
            }
        }
    }
    if !found {
        errors.invalid(list, default, "default value is not valid according to the requestPolicy");
    }
}

fn validate_range(range: &Value, default: &Value, all: &Value, path: &Path<'_>, errors: &mut Errors) {
    let shown = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let (field, whole) = (path.field("min"), shown(all));
    let Some(least) = range.get_some("min") else {
        errors.required(&field, "required when validRange is defined");
        return;
    };
    if amount(least) > amount(all) {
        errors.invalid(&field, least, format_args!("min is larger than capacity value: {whole}"));
    }
    if amount(default) < amount(least) {
        errors.invalid(&field, default, format_args!("default is less than min: {}", shown(least)));
    }
    let (most, field) = (range.get_some("max"), path.field("max"));
    if let Some(most) = most {
        if amount(least) > amount(most) {
            errors.invalid(&field, least, format_args!("min is larger than max: {}", shown(most)));
        }
        if amount(most) > amount(all) {
            errors.invalid(&field, most, format_args!("max is larger than capacity value: {whole}"));
        }
        if amount(default) > amount(most) {
            errors.invalid(&field, default, format_args!("default is more than max: {}", shown(most)));
        }
    }
    let Some(step) = range.get_some("step") else {
        return;
    };
    let (field, size, from) = (path.field("step"), amount(step).value(), amount(least).value());
    if from.saturating_add(size) > amount(all).value() {
        let sum = from.saturating_add(size);
        errors.invalid(&field, step, format_args!("one step {sum} is larger than capacity value: {whole}"));
    }
    for value in [Some(default), most].into_iter().flatten() {
        let above = amount(value).value().saturating_sub(from);
        if size == 0 || above % size != 0 {
            let why =
                format!("value is not a multiple of a given step ({}) from ({})", shown(step), shown(least));
            errors.invalid(&field, value, why);
        }
    }
}
