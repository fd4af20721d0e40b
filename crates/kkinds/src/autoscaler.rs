//! Horizontal pod autoscalers, as `autoscaling/v2` has them.

use kcore::Quantity;
use kschema::{
    error::FieldError,
    fields::{child, set_default},
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::{
    check::{Look, Path, Report, form, quantity},
    workload::counts,
};

type Errors = Vec<FieldError>;

/// The strategy of `horizontalpodautoscalers`.
#[derive(Debug)]
pub(crate) struct HorizontalPodAutoscalers;

const PERIOD_SECONDS_MAX: i64 = 1800;
const WINDOW_SECONDS_MAX: i64 = 3600;

/// The kinds of metrics and the fields that describe them.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

/// What is checked about the version of an object that is named.
#[derive(Clone, Copy)]
struct Versions {
    /// The core group, which has no name, will do.
    core: bool,
    /// Anything will do.
    any: bool,
}

fn version_fault(version: &str, versions: Versions) -> Option<String> {
    if versions.any {
        return None;
    }
    match version.matches('/').count() {
        0 | 1 if version.contains('/') && !version.starts_with('/') => None,
        0 | 1 => (!versions.core).then(|| "apiVersion must specify API group".to_owned()),
        _ => Some(format!("unexpected GroupVersion string: {version}")),
    }
}

fn reference(target: &Value, versions: Versions, path: &Path<'_>, errors: &mut Errors) {
    for key in ["kind", "name"] {
        errors.name(&path.field(key), target.text(key), form::path_segment);
    }
    if let Some(why) = version_fault(target.text("apiVersion"), versions) {
        errors.invalid(&path.field("apiVersion"), target.text("apiVersion"), why);
    }
}

fn target(target: &Value, path: &Path<'_>, errors: &mut Errors) {
    let kind = target.text("type");
    if kind.is_empty() {
        errors.required(&path.field("type"), "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind) {
        errors.invalid(&path.field("type"), kind, "must be either Utilization, Value, or AverageValue");
    }
    for key in ["value", "averageValue"] {
        if let Some(amount) = target.get_some(key)
            && quantity::amount(amount) <= Quantity::default()
        {
            errors.invalid(&path.field(key), amount, "must be positive");
        }
    }
    if let Some(share) = target.some_int("averageUtilization").filter(|share| *share < 1) {
        errors.invalid(&path.field("averageUtilization"), share, "must be greater than 0");
    }
}

fn identifier(metric: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (name, field) = (metric.text("name"), path.field("name"));
    if name.is_empty() {
        errors.required(&field, "must specify a metric name");
    } else {
        errors.faults(&field, name, form::path_segment(name));
    }
}

/// A metric of resources has either a part or a number as its target.
fn utilization(found: &Value, path: &Path<'_>, errors: &mut Errors) {
    match (found.has("averageUtilization"), found.has("averageValue")) {
        (false, false) => {
            let why = "must set either a target raw value or a target utilization";
            errors.required(&path.field("averageUtilization"), why);
        }
        (true, true) => {
            let why = "may not set both a target raw value and a target utilization";
            errors.forbidden(&path.field("averageValue"), why);
        }
        _ => {}
    }
}

fn source(key: &str, source: &Value, versions: Versions, path: &Path<'_>, errors: &mut Errors) {
    let (found, field) = (&source["target"], path.field("target"));
    match key {
        "object" => reference(&source["describedObject"], versions, &path.field("describedObject"), errors),
        "containerResource" | "resource" => {
            let (name, field) = (source.text("name"), path.field("name"));
            if name.is_empty() {
                errors.required(&field, "must specify a resource name");
            } else if key == "containerResource" {
                quantity::container_resource_name(name, &field, errors);
            }
        }
        _ => {}
    }
    if key == "containerResource" {
        let (name, field) = (source.text("container"), path.field("container"));
        if name.is_empty() {
            errors.required(&field, "must specify a container");
        } else {
            errors.faults(&field, name, form::dns_label(name));
        }
    }
    if matches!(key, "object" | "external" | "pods") {
        identifier(&source["metric"], &path.field("metric"), errors);
    }
    target(found, &field, errors);
    let (value, average) = (found.has("value"), found.has("averageValue"));
    match key {
        "object" if !value && !average => {
            errors.required(&field.field("averageValue"), "must set either a target value or averageValue");
        }
        "external" if !value && !average => {
            let why = "must set either a target value for metric or a per-pod target";
            errors.required(&field.field("averageValue"), why);
        }
        "external" if value && average => {
            let why = "may not set both a target value for metric and a per-pod target";
            errors.forbidden(&field.field("value"), why);
        }
        "pods" if !average => {
            errors.required(&field.field("averageValue"), "must specify a positive target averageValue");
        }
        "resource" | "containerResource" => utilization(found, &field, errors),
        _ => {}
    }
}

fn metric(metric: &Value, versions: Versions, path: &Path<'_>, errors: &mut Errors) {
    /// The order in which only the first is looked at.
    const ORDER: [&str; 5] = ["object", "external", "pods", "resource", "containerResource"];
    let kind = metric.text("type");
    let kinds = SOURCES.map(|(kind, _)| kind);
    if kind.is_empty() {
        errors.required(&path.field("type"), "must specify a metric source type");
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind).map(|(_, key)| *key);
    if expected.is_none() {
        errors.unsupported(&path.field("type"), kind, &kinds);
    }
    let present: Vec<&str> = ORDER.into_iter().filter(|key| metric.has(key)).collect();
    if let Some(first) = present.first() {
        source(first, &metric[first], versions, &path.field(first), errors);
    }
    if let Some(expected) = expected.filter(|expected| !metric.has(expected)) {
        errors.required(&path.field(expected), "must populate information for the given metric source");
    }
    if present.len() != 1 {
        for key in present.iter().filter(|key| Some(**key) != expected) {
            errors.forbidden(&path.field(key), "must populate the given metric source only");
        }
    }
}

fn policy(policy: &Value, path: &Path<'_>, errors: &mut Errors) {
    if !["Pods", "Percent"].contains(&policy.text("type")) {
        errors.unsupported(&path.field("type"), policy.text("type"), &["Percent", "Pods"]);
    }
    for key in ["value", "periodSeconds"] {
        if policy.int(key) <= 0 {
            errors.invalid(&path.field(key), policy.int(key), "must be greater than zero");
        }
    }
    let period = policy.int("periodSeconds");
    if period > PERIOD_SECONDS_MAX {
        let why = format!("must be less than or equal to {PERIOD_SECONDS_MAX}");
        errors.invalid(&path.field("periodSeconds"), period, why);
    }
}

fn scaling(rules: &Value, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("stabilizationWindowSeconds");
    match rules.some_int("stabilizationWindowSeconds") {
        Some(window) if window < 0 => {
            errors.invalid(&field, window, "must be greater than or equal to zero");
        }
        Some(window) if window > WINDOW_SECONDS_MAX => {
            let why = format!("must be less than or equal to {WINDOW_SECONDS_MAX}");
            errors.invalid(&field, window, why);
        }
        _ => {}
    }
    errors.optional_one_of(rules, path, "selectPolicy", &["Disabled", "Max", "Min"]);
    let list = path.field("policies");
    if rules.count("policies") == 0 {
        errors.required(&list, "must specify at least one Policy");
    }
    for (index, one) in rules.list("policies").iter().enumerate() {
        policy(one, &list.index(index), errors);
    }
    if let Some(tolerance) = rules.get_some("tolerance") {
        quantity::value("tolerance", tolerance, &path.field("tolerance"), errors);
    }
}

fn object_metrics(spec: &Value) -> impl Iterator<Item = &Value> {
    let objects = spec.list("metrics").iter().filter(|metric| metric.text("type") == "Object");
    objects.filter_map(|metric| metric.get_some("object"))
}

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let old = old.map(|old| &old["spec"]);
    let (low, high) = (spec.some_int("minReplicas"), spec.int("maxReplicas"));
    // Scaling to nothing needs a feature that is off (KEP-2021): it stays where it is.
    let lowest = i64::from(old.is_none_or(|old| old.some_int("minReplicas") != Some(0)));
    if let Some(low) = low.filter(|low| *low < lowest) {
        let why = format!("must be greater than or equal to {lowest}");
        errors.invalid(&path.field("minReplicas"), low, why);
    }
    let field = path.field("maxReplicas");
    if high == 0 {
        errors.required(&field, "must be set and greater than 0");
    } else if high < 0 {
        errors.invalid(&field, high, "must be greater than or equal to 1");
    }
    if low.is_some_and(|low| high < low) {
        errors.invalid(&field, high, "must be greater than or equal to `minReplicas`");
    }
    let scaled = &spec["scaleTargetRef"];
    let kept = old.is_some_and(|old| {
        let was = &old["scaleTargetRef"];
        ["apiVersion", "kind"].iter().all(|key| was.text(key) == scaled.text(key))
    });
    let versions = Versions { core: scaled.text("kind") == "ReplicationController", any: kept };
    reference(scaled, versions, &path.field("scaleTargetRef"), errors);
    let strict = Versions { core: true, any: false };
    let faulty = |found: &Value| version_fault(found["describedObject"].text("apiVersion"), strict).is_some();
    let versions = Versions { any: old.is_some_and(|old| object_metrics(old).any(faulty)), ..strict };
    let list = path.field("metrics");
    let metrics = spec.list("metrics");
    for (index, one) in metrics.iter().enumerate() {
        metric(one, versions, &list.index(index), errors);
    }
    if low == Some(0) && !metrics.iter().any(|one| ["Object", "External"].contains(&one.text("type"))) {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(&list, why);
    }
    if let Some(behavior) = spec.get_some("behavior") {
        let field = path.field("behavior");
        for key in ["scaleUp", "scaleDown"] {
            if let Some(rules) = behavior.get_some(key) {
                scaling(rules, &field.field(key), errors);
            }
        }
    }
}

/// The annotations that conversions from and to `autoscaling/v1` use (`pkg/apis/autoscaling/annotations.go`).
const CARRIED: [&str; 6] = [
    "autoscaling.alpha.kubernetes.io/metrics",
    "autoscaling.alpha.kubernetes.io/current-metrics",
    "autoscaling.alpha.kubernetes.io/conditions",
    "autoscaling.alpha.kubernetes.io/behavior",
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];

fn default_scaling(behavior: &mut Value) {
    let up = json!([
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    let rules = child(behavior, "scaleUp");
    set_default(rules, "stabilizationWindowSeconds", 0);
    for (key, policies) in [("scaleUp", up), ("scaleDown", down)] {
        let rules = child(behavior, key);
        set_default(rules, "selectPolicy", "Max");
        set_default(rules, "policies", policies);
    }
}

impl Strategy for HorizontalPodAutoscalers {
    fn default(&self, object: &mut Value) {
        // In these `autoscaling/v1` carries what it has no fields for; here there are fields.
        if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
        {
            annotations.retain(|name, _| !CARRIED.contains(&name.as_str()));
        }
        let spec = child(object, "spec");
        if spec.count("metrics") == 0 {
            spec["metrics"] = json!([{
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
            }]);
        }
        if let Some(behavior) = spec.get_mut("behavior").filter(|behavior| behavior.is_object()) {
            default_scaling(behavior);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
        self.prepare_status(object, &Value::Null);
    }

    fn prepare_status(&self, object: &mut Value, _old: &Value) {
        set_default(child(object, "status"), "desiredReplicas", 0);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let path = Path::root("status");
        counts(&object["status"], &path, &["currentReplicas", "desiredReplicas"], errors);
    }
}
