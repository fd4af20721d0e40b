//! What webhooks and admission policies have in common: which requests they are about.

use kcel::{ExpressionError, PolicyEnv, Purpose};
use kschema::error::FieldError;
use serde_json::Value;

use crate::check::{Look, Path, Report, form, labels, texts};

type Errors = Vec<FieldError>;

const CONDITIONS_MAX: usize = 64;

/// What is done about an admission that fails.
pub(crate) const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
/// How versions of a resource match.
pub(crate) const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
/// When a webhook or mutation is called again.
pub(crate) const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
/// The operations that can change what is written.
const MUTATING: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];

/// The warning about names that are reserved.
pub(crate) fn name_warnings(object: &Value) -> Vec<String> {
    let reserved = object["metadata"].text("name").ends_with(".static.k8s.io");
    let warning = "metadata.name: names ending with \".static.k8s.io\" are reserved for static manifest-based configurations and cannot be managed via the API";
    reserved.then(|| warning.to_owned()).into_iter().collect()
}

fn wildcard_stands_alone(rule: &Value, key: &str, what: &str, path: &Path<'_>, errors: &mut Errors) {
    if rule.count(key) > 1 && texts(rule.list(key)).any(|text| text == "*") {
        let why = format!("if '*' is present, must not specify other {what}");
        errors.invalid(&path.field(key), rule.get_some(key), why);
    }
}

/// Checks a rule with operations.
pub(crate) fn rule(rule: &Value, path: &Path<'_>, errors: &mut Errors) {
    const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    let list = path.field("operations");
    if rule.count("operations") == 0 {
        errors.required(&list, "");
    }
    wildcard_stands_alone(rule, "operations", "operations", path, errors);
    for (index, operation) in texts(rule.list("operations")).enumerate() {
        if !OPERATIONS.contains(&operation) {
            errors.unsupported(&list.index(index), operation, &OPERATIONS);
        }
    }
    for (key, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        if rule.count(key) == 0 {
            errors.required(&path.field(key), "");
        }
        wildcard_stands_alone(rule, key, what, path, errors);
    }
    let list = path.field("apiVersions");
    for (index, _) in texts(rule.list("apiVersions")).enumerate().filter(|(_, text)| text.is_empty()) {
        errors.required(&list.index(index), "");
    }
    resources(rule, &path.field("resources"), errors);
    errors.optional_one_of(rule, path, "scope", &["*", "Cluster", "Namespaced"]);
}

fn resources(rule: &Value, list: &Path<'_>, errors: &mut Errors) {
    let found: Vec<&str> = texts(rule.list("resources")).collect();
    if found.is_empty() {
        errors.required(list, "");
    }
    let mut last_is_whole = false;
    for (index, resource) in found.iter().enumerate() {
        let item = list.index(index);
        if resource.is_empty() {
            errors.required(&item, "");
            continue;
        }
        let Some((name, sub)) = resource.split_once('/') else {
            last_is_whole = *resource != "*";
            continue;
        };
        for (part, other) in [(name, format!("{name}/*")), (sub, format!("*/{sub}"))] {
            if !part.is_empty() && found[..index].contains(&other.as_str()) {
                let why = format!("if '{other}' is present, must not specify {resource}");
                errors.invalid(&item, *resource, why);
            }
        }
    }
    let shown = rule.get_some("resources");
    if found.len() > 1 && found.contains(&"*/*") {
        errors.invalid(list, shown, "if '*/*' is present, must not specify other resources");
    }
    if found.contains(&"*") && last_is_whole {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(list, shown, why);
    }
}

/// Checks what a policy, or a binding of one, is about.
pub(crate) fn match_resources(found: &Value, mutates: bool, path: &Path<'_>, errors: &mut Errors) {
    if found.has("matchPolicy") {
        errors.optional_one_of(found, path, "matchPolicy", &MATCH_POLICIES);
    } else {
        errors.required(&path.field("matchPolicy"), "");
    }
    for key in ["namespaceSelector", "objectSelector"] {
        let selector = found.get_some(key);
        if selector.is_none() {
            errors.required(&path.field(key), "");
        }
        labels::selector(selector, &path.field(key), false, errors);
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        let list = path.field(key);
        for (index, one) in found.list(key).iter().enumerate() {
            let item = list.index(index);
            let field = item.field("resourceNames");
            let names: Vec<&str> = texts(one.list("resourceNames")).collect();
            for (index, name) in names.iter().enumerate() {
                errors.faults(&field.index(index), name, form::path_segment(name));
                if names[..index].contains(name) {
                    errors.duplicate(&field.index(index), *name);
                }
            }
            rule(one, &item, errors);
        }
    }
    if mutates {
        let field = path.field("resourceRules.operations");
        let rules = found.list("resourceRules").iter();
        for operation in rules.flat_map(|rule| texts(rule.list("operations"))) {
            if !MUTATING.contains(&operation) {
                errors.unsupported(&field, operation, &MUTATING);
            }
        }
    }
}

/// Reports what is wrong with an expression, which is shown as it was compiled.
pub(crate) fn refused<T>(
    compiled: Result<T, ExpressionError>,
    expression: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    match compiled {
        Ok(_) => {}
        Err(error) if error.is_internal() => errors.fault(FieldError::internal(path.to_string(), error)),
        Err(error) => errors.invalid(path, expression, error),
    }
}

/// Checks the conditions under which a webhook or policy is asked.
pub(crate) fn match_conditions(holder: &Value, env: &PolicyEnv, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("matchConditions");
    let conditions = holder.list("matchConditions");
    if conditions.len() > CONDITIONS_MAX {
        errors.too_many(&list, conditions.len(), CONDITIONS_MAX);
    }
    for (index, condition) in conditions.iter().enumerate() {
        let item = list.index(index);
        let (expression, field) = (condition.text("expression").trim(), item.field("expression"));
        if expression.is_empty() {
            errors.required(&field, "");
        } else {
            refused(env.compile(Purpose::Condition, expression), expression, &field, errors);
        }
        let name = condition.text("name");
        errors.name(&item.field("name"), name, form::qualified_name);
        if !name.is_empty() && conditions[..index].iter().any(|other| other.text("name") == name) {
            errors.duplicate(&item.field("name"), name);
        }
    }
}
