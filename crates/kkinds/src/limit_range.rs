//! Limit ranges.

use std::collections::BTreeSet;

use kcore::Quantity;
use kschema::{
    error::FieldError,
    fields::{child, items_mut},
    strategy::Strategy,
};
use serde_json::Value;

use crate::{
    check::{Look, Path, Report, form, quantity},
    pod::defaults::round_up_list,
};

type Errors = Vec<FieldError>;

/// The strategy of `limitranges`.
#[derive(Debug)]
pub(crate) struct LimitRanges;

const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

/// What a container's item does not say follows from what it says.
fn fill(item: &mut Value) {
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        let amounts: Vec<_> = item.map(from).map(|(name, value)| (name.to_owned(), value.clone())).collect();
        for (name, value) in amounts {
            let list = child(item, to);
            if !list.has(&name) {
                list[name] = value;
            }
        }
    }
}

impl Strategy for LimitRanges {
    fn default(&self, object: &mut Value) {
        for item in object.get_mut("spec").into_iter().flat_map(|spec| items_mut(spec, "limits")) {
            for list in LISTS {
                round_up_list(item, list);
            }
            if item.text("type") == "Container" {
                fill(item);
            }
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (list, mut kinds) = (Path::root("spec.limits"), BTreeSet::new());
        for (index, item) in object["spec"].list("limits").iter().enumerate() {
            let (path, kind) = (list.index(index), item.text("type"));
            let field = path.field("type");
            let faults = form::qualified_name(kind);
            if faults.is_empty()
                && !kind.contains('/')
                && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind)
            {
                errors.invalid(&field, kind, "must be a standard limit type or fully qualified");
            }
            errors.faults(&field, kind, faults);
            if !kinds.insert(kind) {
                errors.duplicate(&field, kind);
            }
            limits(item, kind, &path, errors);
        }
    }

    fn validate_change(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        self.validate(object, errors);
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

fn limits(item: &Value, kind: &str, path: &Path<'_>, errors: &mut Errors) {
    let rule = if ["Pod", "Container"].contains(&kind) {
        quantity::container_resource_name
    } else {
        quantity::resource_name
    };
    let mut names = BTreeSet::new();
    let mut check = |key: &'static str, errors: &mut Errors| {
        let field = path.field(key);
        for (name, _) in item.map(key) {
            rule(name, &field.key(name), errors);
            names.insert(name);
        }
    };
    check("max", errors);
    check("min", errors);
    for key in ["default", "defaultRequest"] {
        if kind != "Pod" {
            check(key, errors);
        } else if item.count(key) > 0 {
            errors.forbidden(&path.field(key), "may not be specified when `type` is 'Pod'");
        }
    }
    let storage = |key: &str| item.get(key).is_some_and(|list| list.has("storage"));
    if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&path.field("limits"), why);
    }
    check("maxLimitRequestRatio", errors);
    for name in names {
        amounts(item, kind, name, path, errors);
    }
}

fn amounts(item: &Value, kind: &str, name: &str, path: &Path<'_>, errors: &mut Errors) {
    let of = |key: &str| item.get(key).and_then(|list| list.get_some(name)).map(quantity::amount);
    let (min, max) = (of("min"), of("max"));
    let (default, request) = if kind == "Pod" { (None, None) } else { (of("default"), of("defaultRequest")) };
    // One amount that must not be larger than another: where it is reported, and which of the two is shown.
    let mut order = |small: (Option<Quantity>, &str),
                     large: (Option<Quantity>, &str),
                     at: &str,
                     shown: Option<Quantity>| {
        if let (Some(low), Some(high), Some(shown)) = (small.0, large.0, shown)
            && low > high
        {
            let why = format!("{} value {low} is greater than {} value {high}", small.1, large.1);
            errors.invalid(&path.field(at).key(name), shown.to_string(), why);
        }
    };
    order((min, "min"), (max, "max"), "min", min);
    order((min, "min"), (request, "default request"), "defaultRequest", request);
    order((request, "default request"), (max, "max"), "defaultRequest", request);
    order((request, "default request"), (default, "default limit"), "defaultRequest", request);
    order((min, "min"), (default, "default"), "default", min);
    order((default, "default"), (max, "max"), "default", max);
    if let Some(ratio) = of("maxLimitRequestRatio") {
        ratio_fits(ratio, min, max, &path.field("maxLimitRequestRatio").key(name), errors);
    }
    if let (Some(default), Some(request)) = (default, request)
        && default != request
        && !quantity::may_overcommit(name)
    {
        let why = format!("default value {default} must equal to defaultRequest value {request} in {name}");
        errors.invalid(&path.field("defaultRequest").key(name), request.to_string(), why);
    }
}

fn ratio_fits(
    ratio: Quantity,
    min: Option<Quantity>,
    max: Option<Quantity>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    /// Above this, thousandths do not fit into 64 bits.
    const MILLI_VALUE_MAX: i64 = i64::MAX / 1000;
    let one = Quantity::parse("1").unwrap_or_default();
    if ratio < one {
        errors.invalid(path, ratio.to_string(), format_args!("ratio {ratio} is less than 1"));
    }
    let (Some(min), Some(max)) = (min, max) else {
        return;
    };
    let small = [ratio, min, max].iter().all(|quantity| quantity.value() < MILLI_VALUE_MAX);
    let (wanted, low, high) = if small {
        (ratio.milli() as f64 / 1000.0, min.milli(), max.milli())
    } else {
        (ratio.value() as f64, min.value(), max.value())
    };
    let limit = high as f64 / low as f64;
    if wanted > limit {
        errors.invalid(
            path,
            ratio.to_string(),
            format_args!("ratio {ratio} is greater than max/min = {limit:.6}"),
        );
    }
}
