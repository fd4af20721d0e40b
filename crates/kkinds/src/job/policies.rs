//! When a job has failed, when it has succeeded, and when its pods are replaced.

use kschema::{error::FieldError, quote::Quoted};
use serde_json::Value;

use super::{indexes, is_indexed};
use crate::check::{Internal, Look, Path, Report, condition, form};

type Errors = Vec<FieldError>;

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const PATTERNS_MAX: usize = 20;
const INDEXES_BYTES_MAX: usize = 64 * 1024;

/// Checks the policies of the job at `path`.
pub(super) fn validate(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(policy) = spec.get_some("podFailurePolicy") {
        let field = path.field("podFailurePolicy");
        failure(policy, spec, &field.field("rules"), errors);
    }
    if let Some(policy) = spec.get_some("successPolicy") {
        let field = path.field("successPolicy");
        if is_indexed(spec) {
            success(policy, spec, &field.field("rules"), errors);
        } else {
            errors.invalid(
                &field,
                Internal("~batch.v1.SuccessPolicy", Some(policy)),
                "requires indexed completion mode",
            );
        }
    }
    let supported: &[&str] =
        if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    errors.optional_one_of(spec, path, "podReplacementPolicy", supported);
}

fn needs_one(value: &str, path: &Path<'_>, supported: &[&str], errors: &mut Errors) {
    if value.is_empty() {
        let quoted: Vec<String> = supported.iter().map(|value| Quoted(value).to_string()).collect();
        errors.required(path, &format!("valid values: [{}]", quoted.join(" ")));
    } else if !supported.contains(&value) {
        errors.unsupported(path, value, supported);
    }
}

fn failure(policy: &Value, spec: &Value, list: &Path<'_>, errors: &mut Errors) {
    let rules = policy.list("rules");
    if rules.len() > RULES_MAX {
        errors.too_many(list, rules.len(), RULES_MAX);
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = list.index(index);
        let action = rule.text("action");
        let field = path.field("action");
        if action == "FailIndex" {
            if !spec.has("backoffLimitPerIndex") {
                errors.invalid(&field, action, "requires the backoffLimitPerIndex to be set");
            }
        } else {
            needs_one(action, &field, &["Count", "FailIndex", "FailJob", "Ignore"], errors);
        }
        let codes = rule.get_some("onExitCodes");
        if let Some(codes) = codes {
            exit_codes(codes, spec, &path.field("onExitCodes"), errors);
        }
        let patterns = rule.list("onPodConditions");
        let field = path.field("onPodConditions");
        if patterns.len() > PATTERNS_MAX {
            errors.too_many(&field, patterns.len(), PATTERNS_MAX);
        }
        for (index, pattern) in patterns.iter().enumerate() {
            let path = field.index(index);
            let kind = pattern.text("type");
            errors.faults(&path.field("type"), kind, form::qualified_name(kind));
            needs_one(pattern.text("status"), &path.field("status"), &condition::STATES, errors);
        }
        match (codes.is_some(), patterns.is_empty()) {
            (true, false) => {
                errors
                    .invalid_whole(&path, "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (false, true) => {
                errors.invalid_whole(&path, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
    }
}

fn exit_codes(codes: &Value, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let operator = codes.text("operator");
    needs_one(operator, &path.field("operator"), &["In", "NotIn"], errors);
    let pod = &spec["template"]["spec"];
    if let Some(name) = codes.some_text("containerName") {
        let mut containers = pod.list("containers").iter().chain(pod.list("initContainers"));
        if !containers.any(|container| container.text("name") == name) {
            let why = "must be one of the container or initContainer names in the pod template";
            errors.invalid(&path.field("containerName"), name, why);
        }
    }
    let values: Vec<i64> = codes.list("values").iter().filter_map(Value::as_i64).collect();
    let list = path.field("values");
    if values.is_empty() {
        errors.invalid(&list, codes.get_some("values"), "at least one value is required");
    } else if values.len() > EXIT_CODES_MAX {
        errors.too_many(&list, values.len(), EXIT_CODES_MAX);
    }
    for (index, value) in values.iter().enumerate() {
        let field = list.index(index);
        if operator == "In" && *value == 0 {
            errors.invalid(&field, *value, "must not be 0 for the In operator");
        }
        if values[..index].contains(value) {
            errors.duplicate(&field, *value);
        }
    }
    if !values.is_sorted() {
        errors.invalid(&list, codes.get_some("values"), "must be ordered");
    }
}

fn success(policy: &Value, spec: &Value, list: &Path<'_>, errors: &mut Errors) {
    let rules = policy.list("rules");
    if rules.is_empty() {
        errors.required(list, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > RULES_MAX {
        errors.too_many(list, rules.len(), RULES_MAX);
    }
    // Upstream crashes here on jobs without completions; that they are missing has been reported.
    let completions = spec.int("completions");
    for (index, rule) in rules.iter().enumerate() {
        let path = list.index(index);
        let (count, indexes) = (rule.some_int("succeededCount"), rule.some_text("succeededIndexes"));
        if count.is_none() && indexes.is_none() {
            errors.required(&path, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = 0;
        if let Some(text) = indexes {
            let field = path.field("succeededIndexes");
            if text.len() > INDEXES_BYTES_MAX {
                errors.too_long(&field, INDEXES_BYTES_MAX);
            }
            match indexes::count(text, completions) {
                Ok(count) => total = count,
                Err(why) => {
                    errors.invalid(&field, text, format_args!("error parsing succeededIndexes: {why}"));
                }
            }
        }
        let Some(count) = count else {
            continue;
        };
        errors.not_negative(rule, &path, "succeededCount");
        let field = path.field("succeededCount");
        let at_most =
            |limit: i64, what: &str| format!("must be less than or equal to {limit} (the number of {what})");
        if count > completions {
            errors.invalid(&field, count, at_most(completions, "specified completions"));
        }
        if indexes.is_some() && count > total {
            errors.invalid(&field, count, at_most(total, "indexes in the specified succeededIndexes field"));
        }
    }
}
