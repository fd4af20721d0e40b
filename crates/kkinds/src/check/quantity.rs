//! Amounts of resources, and what their names say (`pkg/apis/core/helper/helpers.go`).

use std::collections::BTreeMap;

use kcore::Quantity;
use kschema::error::FieldError;
use serde_json::Value;

use super::{form, look::Look, path::Path, report::Report};

/// The resources that quotas and limits may name without a domain.
const STANDARD: [&str; 20] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];

/// The resources that are counted.
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// A list of amounts by name.
pub(crate) type Amounts<'a> = BTreeMap<&'a str, Quantity>;

/// The quantity that a value holds; nothing if it is none.
pub(crate) fn amount(value: &Value) -> Quantity {
    value.as_str().and_then(|text| Quantity::parse(text).ok()).unwrap_or_default()
}

/// The amounts in a field.
pub(crate) fn amounts<'a>(object: &'a Value, key: &str) -> Amounts<'a> {
    object.map(key).map(|(name, value)| (name, amount(value))).collect()
}

/// Whether a quantity is not a whole number.
pub(crate) fn is_fraction(quantity: &Quantity) -> bool {
    quantity.milli() % 1000 != 0
}

/// `hugepages-2Mi` and the like.
pub(crate) fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether Kubernetes itself gives the resource its meaning.
pub(crate) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether the name is that of an extended resource, as device plug-ins have.
pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && form::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether more may be promised than there is.
pub(crate) fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_pages(name)
}

/// Whether a quota may name it without a domain.
pub(crate) fn is_standard_for_quota(name: &str) -> bool {
    (STANDARD.contains(&name) && name != "storage") || is_quota_huge_pages(name)
}

fn is_quota_huge_pages(name: &str) -> bool {
    is_huge_pages(name) || name.starts_with("requests.hugepages-")
}

fn is_counted(name: &str) -> bool {
    COUNTED.contains(&name) || (name.contains('/') && is_extended(name))
}

/// Checks an amount: not negative, and whole if the resource is counted.
pub(crate) fn value(name: &str, quantity: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let parsed = amount(quantity);
    if parsed < Quantity::default() {
        errors.invalid(path, quantity, "must be greater than or equal to 0");
    }
    if is_counted(name) && is_fraction(&parsed) {
        errors.invalid(path, quantity, "must be an integer");
    }
}

/// Checks that an amount is more than nothing.
pub(crate) fn positive(quantity: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) -> bool {
    let good = amount(quantity) > Quantity::default();
    if !good {
        errors.invalid(path, quantity, "must be greater than zero");
    }
    good
}

/// Checks the name of any resource.
pub(crate) fn resource_name(name: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let before = errors.len();
    errors.faults(path, name, form::qualified_name(name));
    if errors.len() == before
        && !name.contains('/')
        && !STANDARD.contains(&name)
        && !is_quota_huge_pages(name)
    {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
    }
}

/// Checks the name of a resource that a container may ask for.
pub(crate) fn container_resource_name(name: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if matches!(name, "cpu" | "memory" | "ephemeral-storage") {
        return;
    }
    resource_name(name, path, errors);
    if !name.contains('/') {
        if !is_huge_pages(name) {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

/// Checks the name of a resource that a pod as a whole may ask for.
pub(crate) fn pod_resource_name(name: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let before = errors.len();
    resource_name(name, path, errors);
    if errors.len() == before && !is_pod_level(name) {
        errors.unsupported(path, name, &["cpu", "hugepages-", "memory"]);
    }
}

/// Whether a pod as a whole may ask for the resource.
pub(crate) fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge_pages(name)
}

/// Checks the name of a resource that a quota may limit.
pub(crate) fn quota_resource_name(name: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    resource_name(name, path, errors);
    if !name.contains('/') && !is_standard_for_quota(name) {
        errors.invalid(path, name, "must be a standard resource for quota");
    }
}

/// Whether an amount of huge pages is a whole number of pages.
pub(crate) fn is_whole_pages(name: &str, quantity: &Quantity) -> bool {
    let size =
        name.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok()).unwrap_or_default();
    size > Quantity::default() && !is_fraction(&size) && quantity.value() % size.value() == 0
}

/// What the containers of a pod ask for together (`requests` or `limits`): all that run at once, or the largest step of
/// starting up (`component-helpers/resource`).
pub(crate) fn of_containers<'a>(spec: &'a Value, kind: &str) -> Amounts<'a> {
    let of =
        |container: &'a Value| container.get("resources").map(|all| amounts(all, kind)).unwrap_or_default();
    let mut sum = Amounts::new();
    for container in spec.list("containers") {
        add(&mut sum, &of(container));
    }
    let (mut sidecars, mut largest) = (Amounts::new(), Amounts::new());
    for container in spec.list("initContainers") {
        let mut step = of(container);
        if container.text("restartPolicy") == "Always" {
            add(&mut sum, &step);
            add(&mut sidecars, &step);
            step = sidecars.clone();
        } else {
            add(&mut step, &sidecars);
        }
        take_larger(&mut largest, step);
    }
    take_larger(&mut sum, largest);
    sum
}

fn add<'a>(sum: &mut Amounts<'a>, more: &Amounts<'a>) {
    for (name, quantity) in more {
        sum.entry(name).and_modify(|total| *total += *quantity).or_insert(*quantity);
    }
}

fn take_larger<'a>(largest: &mut Amounts<'a>, step: Amounts<'a>) {
    for (name, quantity) in step {
        let entry = largest.entry(name).or_insert(quantity);
        *entry = (*entry).max(quantity);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_ask_for_what_runs_at_once_or_for_the_largest_step() {
        let one = |cpu: &str, policy: Option<&str>| json!({"restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}});
        for (init, containers, sum) in [
            (vec![], vec![one("1", None), one("500m", None)], "1500m"),
            (vec![one("2", None)], vec![one("1", None)], "2"),
            (vec![one("1", Some("Always")), one("2", None)], vec![one("1", None)], "3"),
            (vec![one("2", None), one("1", Some("Always"))], vec![one("1", None)], "2"),
        ] {
            let spec = json!({"initContainers": init, "containers": containers});
            assert_eq!(of_containers(&spec, "requests")["cpu"].to_string(), sum);
        }
    }

    #[test]
    fn names_say_what_a_resource_is() {
        for (name, native, extended, overcommit) in [
            ("cpu", true, false, true),
            ("hugepages-2Mi", true, false, false),
            ("example.com/gpu", false, true, false),
            ("kubernetes.io/batch", true, false, true),
            ("requests.example.com/gpu", false, false, false),
        ] {
            assert_eq!(
                (is_native(name), is_extended(name), may_overcommit(name)),
                (native, extended, overcommit),
                "{name}"
            );
        }
    }
}
