//! Resource quotas.

use std::collections::BTreeSet;

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::{Value, json};

use crate::{
    check::{Look, Path, Report, quantity, texts},
    pod::defaults::round_up_list,
};

type Errors = Vec<FieldError>;

/// The strategy of `resourcequotas`.
#[derive(Debug)]
pub(crate) struct ResourceQuotas;

/// Whether a quota may count this resource of the objects in this scope; nothing if there is no such scope.
fn covers(scope: &str, resource: &str) -> Option<bool> {
    let compute = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    Some(match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => resource == "pods" || compute.contains(&resource),
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => ["persistentvolumeclaims", "requests.storage"].contains(&resource),
        _ => return None,
    })
}

fn amounts(object: &Value, key: &str, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field(key);
    for (name, value) in object.map(key) {
        quantity::quota_resource_name(name, &field.key(name), errors);
        quantity::value(name, value, &field.key(name), errors);
    }
}

/// Checks one scope against what the quota counts. `name_at`: where an unknown scope is reported, with what is shown there.
fn scope_fits(
    scope: &str,
    spec: &Value,
    name_at: (&Path<'_>, &Value),
    at: (&Path<'_>, &Value),
    errors: &mut Errors,
) {
    if covers(scope, "").is_none() {
        errors.invalid(name_at.0, name_at.1, "unsupported scope");
    }
    for (resource, _) in spec.map("hard").filter(|(name, _)| quantity::is_standard_for_quota(name)) {
        if covers(scope, resource) == Some(false) {
            errors.invalid(at.0, at.1, "unsupported scope applied to resource");
        }
    }
}

fn scopes_differ(scopes: &BTreeSet<&str>, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    for pair in [["BestEffort", "NotBestEffort"], ["NotTerminating", "Terminating"]] {
        if pair.iter().all(|scope| scopes.contains(scope)) {
            errors.invalid(path, spec.get("scopes"), "conflicting scopes");
        }
    }
}

fn validate_spec(spec: &Value, errors: &mut Errors) {
    let path = Path::root("spec");
    amounts(spec, "hard", &path, errors);
    let field = path.field("scopes");
    let scopes: BTreeSet<&str> = texts(spec.list("scopes")).collect();
    for scope in texts(spec.list("scopes")) {
        let shown = &spec["scopes"];
        scope_fits(scope, spec, (&field, shown), (&field, shown), errors);
    }
    scopes_differ(&scopes, spec, &field, errors);
    if let Some(selector) = spec.get_some("scopeSelector") {
        let path = path.field("scopeSelector");
        let field = path.field("matchExpressions");
        let mut scopes = BTreeSet::new();
        for requirement in selector.list("matchExpressions") {
            scope_requirement(requirement, spec, &field, errors);
            scopes.insert(requirement.text("scopeName"));
        }
        scopes_differ(&scopes, spec, &field, errors);
    }
}

fn scope_requirement(requirement: &Value, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const EXISTS: &str = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
    let (scope, operator) = (requirement.text("scopeName"), requirement.text("operator"));
    let name_at = path.field("scopeName");
    scope_fits(scope, spec, (&name_at, &json!(scope)), (path, &spec["scopeSelector"]), errors);
    let valueless =
        ["BestEffort", "NotBestEffort", "Terminating", "NotTerminating", "CrossNamespacePodAffinity"];
    if valueless.contains(&scope) && operator != "Exists" {
        errors.invalid(&path.field("operator"), operator, EXISTS);
    }
    let values = path.field("values");
    match operator {
        "In" | "NotIn" if requirement.count("values") == 0 => {
            let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            errors.required(&values, why);
        }
        "Exists" | "DoesNotExist" if requirement.count("values") != 0 => {
            let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            errors.invalid(&values, requirement.get("values"), why);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => errors.invalid(&path.field("operator"), operator, "not a valid selector operator"),
    }
}

fn validate_status(object: &Value, errors: &mut Errors) {
    for key in ["hard", "used"] {
        amounts(&object["status"], key, &Path::root("status"), errors);
    }
}

impl Strategy for ResourceQuotas {
    fn default(&self, object: &mut Value) {
        for (part, list) in [("spec", "hard"), ("status", "hard"), ("status", "used")] {
            if let Some(part) = object.get_mut(part) {
                round_up_list(part, list);
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate_spec(&object["spec"], errors);
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        self.validate(object, errors);
        validate_status(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let scopes = |object: &'_ Value| -> BTreeSet<String> {
            texts(object["spec"].list("scopes")).map(str::to_owned).collect()
        };
        if scopes(object) != scopes(old) {
            errors.invalid(&Path::root("spec.scopes"), object["spec"].get("scopes"), "field is immutable");
        }
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        validate_status(object, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let hard = &object["spec"]["hard"];
        let mut out = Vec::new();
        for name in ["cpu", "memory", "storage", "ephemeral-storage"].iter().filter(|_| old.is_none()) {
            let request = format!("requests.{name}");
            let short = ["cpu", "memory"].contains(name) && !hard.has(&request);
            let request = if short { (*name).to_owned() } else { request };
            let limit = format!("limits.{name}");
            if let (Some(asked), Some(most)) = (hard.get_some(&request), hard.get_some(&limit)) {
                let (asked, most) = (quantity::amount(asked), quantity::amount(most));
                if asked > most {
                    out.push(format!(
                        "ResourceQuota {request} ({asked}) should be less than {limit} ({most})"
                    ));
                }
            }
        }
        out
    }
}
