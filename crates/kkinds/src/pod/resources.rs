//! What containers and pods ask for.

use kschema::error::FieldError;
use serde_json::Value;

use super::{claims, containers::all_containers, options::Options, spec::Scope};
use crate::check::{Look, Path, Report, quantity};

type Errors = Vec<FieldError>;
type NameRule = fn(&str, &Path<'_>, &mut Errors);

/// Checks `resources` and `resizePolicy` of a container.
pub(crate) fn validate_container(container: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut Errors) {
    if let Some(resources) = container.get_some("resources") {
        let path = path.field("resources");
        requirements(resources, quantity::container_resource_name, scope.options, &path, errors);
        claims::validate_use(resources.list("claims"), scope.spec, &path.field("claims"), errors);
    }
    if container.has("resizePolicy") {
        resize_policy(container, scope, &path.field("resizePolicy"), errors);
    }
}

fn resize_policy(container: &Value, scope: &Scope<'_>, list: &Path<'_>, errors: &mut Errors) {
    let mut seen = std::collections::BTreeSet::new();
    let never = scope.spec.text("restartPolicy") == "Never";
    for (index, policy) in container.list("resizePolicy").iter().enumerate() {
        let (resource, restart) = (policy.text("resourceName"), policy.text("restartPolicy"));
        if !seen.insert(resource) {
            errors.duplicate(&list.index(index), resource);
        }
        errors.one_of(list, resource, &["cpu", "memory"]);
        errors.one_of(list, restart, &["NotRequired", "RestartContainer"]);
        if never && restart != "NotRequired" {
            errors.invalid(list, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

/// Checks limits and requests (`validateResourceRequirements`).
fn requirements(
    resources: &Value,
    name_rule: NameRule,
    options: Options,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let (limits, requests) = (path.field("limits"), path.field("requests"));
    let (mut huge, mut basic) = (false, false);
    let one = |name: &str, value: &Value, field: &Path<'_>, errors: &mut Errors| {
        name_rule(name, field, errors);
        quantity::value(name, value, field, errors);
    };
    let mut count = |name: &str, value: &Value, field: &Path<'_>, errors: &mut Errors| {
        basic |= matches!(name, "cpu" | "memory");
        if quantity::is_huge_pages(name) {
            huge = true;
            let amount = quantity::amount(value);
            if !options.lax_huge_pages && !quantity::is_whole_pages(name, &amount) {
                let why = format!("{amount} is not positive integer multiple of {name}");
                errors.invalid(field, value, why);
            }
        }
    };
    for (name, value) in resources.map("limits") {
        one(name, value, &limits.key(name), errors);
        count(name, value, &limits.key(name), errors);
    }
    for (name, value) in resources.map("requests") {
        one(name, value, &requests.key(name), errors);
        let amount = quantity::amount(value);
        match resources.get("limits").and_then(|limits| limits.get_some(name)) {
            Some(limit) => {
                let limit = quantity::amount(limit);
                if amount != limit && !quantity::may_overcommit(name) {
                    errors.invalid(
                        &requests,
                        value,
                        format_args!("must be equal to {name} limit of {limit}"),
                    );
                } else if amount > limit {
                    let why = format!("must be less than or equal to {name} limit of {limit}");
                    errors.invalid(&requests, value, why);
                }
            }
            None if !quantity::may_overcommit(name) => {
                errors.required(&limits, "Limit must be set for non overcommitable resources");
            }
            None => {}
        }
        count(name, value, &requests.key(name), errors);
    }
    if huge && !basic {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}

/// Checks `overhead` (KEP-688): a list of limits.
pub(crate) fn validate_overhead(overhead: &Value, options: Options, path: &Path<'_>, errors: &mut Errors) {
    let resources = serde_json::json!({"limits": overhead});
    requirements(&resources, quantity::container_resource_name, options, path, errors);
}

/// Checks what the pod as a whole asks for (KEP-2837).
pub(crate) fn validate_pod(scope: &Scope<'_>, path: &Path<'_>, errors: &mut Errors) {
    let Some(resources) = scope.spec.get_some("resources") else {
        return;
    };
    let path = path.field("resources");
    if scope.os() == Some("windows") {
        errors.forbidden(&path, "may not be set for a windows pod");
        return;
    }
    if resources.has("claims") {
        errors.forbidden(&path.field("claims"), "claims may not be set for Resources at pod-level");
    }
    requirements(resources, quantity::pod_resource_name, scope.options, &path, errors);
    claims::validate_use(resources.list("claims"), scope.spec, &path.field("claims"), errors);
    consistency(scope.spec, resources, &path, errors);
}

/// The containers can't ask for more than the pod does.
fn consistency(spec: &Value, resources: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (requests, limits) =
        (quantity::amounts(resources, "requests"), quantity::amounts(resources, "limits"));
    for (name, sum) in quantity::of_containers(spec, "requests") {
        if let Some(whole) = requests.get(name).filter(|whole| sum > **whole) {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&path.field("requests").key(name), whole.to_string(), why);
        }
    }
    for (name, sum) in quantity::of_containers(spec, "limits") {
        if let Some(whole) = limits.get(name).filter(|whole| quantity::is_huge_pages(name) && sum > **whole) {
            let why = format!("must be greater than or equal to aggregate container limits of {sum}");
            errors.invalid(&path.field("limits").key(name), whole.to_string(), why);
        }
    }
    let list = path.field("containers");
    for (index, container) in spec.list("containers").iter().enumerate() {
        for (name, limit) in
            container.get("resources").map(|all| quantity::amounts(all, "limits")).unwrap_or_default()
        {
            if let Some(whole) = limits.get(name).filter(|whole| limit > **whole) {
                let why = format!("must be less than or equal to pod limits of {whole}");
                let item = list.index(index);
                errors.invalid(&item.key(name).field("limits"), limit.to_string(), why);
            }
        }
    }
}

/// Whether an old specification asked for a part of a huge page, which was allowed once.
pub(crate) fn uses_broken_huge_pages(spec: &Value) -> bool {
    let broken = |holder: Option<&Value>, key: &str| {
        holder.is_some_and(|holder| {
            holder.map(key).any(|(name, value)| {
                quantity::is_huge_pages(name) && !quantity::is_whole_pages(name, &quantity::amount(value))
            })
        })
    };
    broken(Some(spec), "overhead")
        || all_containers(spec).any(|(_, _, container)| {
            ["limits", "requests"].iter().any(|kind| broken(container.get("resources"), kind))
        })
}
