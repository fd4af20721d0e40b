//! How pods are spread over nodes and zones (KEP-895), and the label keys that selectors are completed with (KEP-3243,
//! KEP-3633).

use std::collections::BTreeSet;

use kschema::error::FieldError;
use serde_json::Value;

use super::options::Options;
use crate::check::{Look, Path, Report, labels, texts};

type Errors = Vec<FieldError>;

const BOTH: &str = "exists in both matchLabelKeys and labelSelector";
const NO_SELECTOR: &str = "must not be specified when labelSelector is not set";

/// Checks `topologySpreadConstraints`.
pub(crate) fn validate(spec: &Value, options: Options, list: &Path<'_>, errors: &mut Errors) {
    let constraints = spec.list("topologySpreadConstraints");
    // Of constraints that are equal, each but the last is reported.
    let mut later = BTreeSet::new();
    let repeated: Vec<bool> = constraints
        .iter()
        .rev()
        .map(|one| !later.insert((one.text("topologyKey"), one.text("whenUnsatisfiable"))))
        .collect();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = list.index(index);
        let (key, action) = (constraint.text("topologyKey"), constraint.text("whenUnsatisfiable"));
        positive(constraint.int("maxSkew"), &path.field("maxSkew"), errors);
        if key.is_empty() {
            errors.required(&path.field("topologyKey"), "can not be empty");
        }
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action) {
            errors.unsupported(
                &path.field("whenUnsatisfiable"),
                action,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
        }
        if repeated[constraints.len() - 1 - index] {
            let shown = format!("{{{key}, {action}}}");
            errors.duplicate(&path.field("{topologyKey, whenUnsatisfiable}"), shown);
        }
        if let Some(domains) = constraint.some_int("minDomains") {
            let field = path.field("minDomains");
            positive(domains, &field, errors);
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(&field, domains, why);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            errors.optional_one_of(constraint, &path, policy, &["Honor", "Ignore"]);
        }
        if options.lax_spread_keys {
            legacy_label_keys(constraint, &path.field("matchLabelKeys"), errors);
        } else {
            label_keys(constraint, &path, errors);
        }
        if !options.lax_spread {
            let selector = constraint.get_some("labelSelector");
            labels::selector(selector, &path.field("labelSelector"), false, errors);
        }
    }
}

fn positive(value: i64, path: &Path<'_>, errors: &mut Errors) {
    if value <= 0 {
        errors.invalid(path, value, "must be greater than zero");
    }
}

/// Checks `matchLabelKeys` and `mismatchLabelKeys` (`ValidateMatchLabelKeysAndMismatchLabelKeys`).
pub(crate) fn label_keys(holder: &Value, path: &Path<'_>, errors: &mut Errors) {
    let selector = holder.get_some("labelSelector");
    let (matched, mismatched) = (holder.list("matchLabelKeys"), holder.list("mismatchLabelKeys"));
    if matched.is_empty() && mismatched.is_empty() {
        return;
    }
    for (key, keys) in [("matchLabelKeys", matched), ("mismatchLabelKeys", mismatched)] {
        let list = path.field(key);
        if !keys.is_empty() && selector.is_none() {
            errors.forbidden(&list, NO_SELECTOR);
            continue;
        }
        for (index, name) in texts(keys).enumerate() {
            labels::name(name, &list.index(index), errors);
        }
    }
    if let Some(selector) = selector {
        // A key of the selector may come from completing it, once; a second time it was the caller's.
        let mut seen: BTreeSet<&str> = selector.map("matchLabels").map(|(key, _)| key).collect();
        for expression in selector.list("matchExpressions") {
            let key = expression.text("key");
            if let Some(index) = texts(matched).collect::<Vec<_>>().iter().rposition(|name| *name == key)
                && seen.contains(key)
            {
                errors.invalid(&path.index(index), key, BOTH);
            }
            seen.insert(key);
        }
    }
    let list = path.field("matchLabelKeys");
    for (index, key) in texts(matched).enumerate() {
        if texts(mismatched).any(|other| other == key) {
            errors.invalid(&list.index(index), key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}

/// Checks `matchLabelKeys` as it was before selectors were completed (`ValidateMatchLabelKeysInTopologySpread`).
fn legacy_label_keys(constraint: &Value, path: &Path<'_>, errors: &mut Errors) {
    let keys = constraint.list("matchLabelKeys");
    if keys.is_empty() {
        return;
    }
    let selector = constraint.get_some("labelSelector");
    if selector.is_none() {
        errors.forbidden(path, NO_SELECTOR);
    }
    let selected: BTreeSet<&str> = selector
        .into_iter()
        .flat_map(|selector| {
            let expressions = selector.list("matchExpressions").iter().map(|one| one.text("key"));
            selector.map("matchLabels").map(|(key, _)| key).chain(expressions)
        })
        .collect();
    for (index, key) in texts(keys).enumerate() {
        labels::name(key, &path.index(index), errors);
        if selected.contains(key) {
            errors.invalid(&path.index(index), key, BOTH);
        }
    }
}

/// Whether selectors of an old specification are faulty.
pub(crate) fn selectors_are_faulty(spec: &Value) -> bool {
    let mut constraints = spec.list("topologySpreadConstraints").iter();
    constraints.any(|one| labels::is_faulty(one.get_some("labelSelector")))
}

/// Whether label keys of an old specification are faulty.
pub(crate) fn keys_are_faulty(spec: &Value) -> bool {
    let mut errors = Vec::new();
    for constraint in spec.list("topologySpreadConstraints") {
        label_keys(constraint, &Path::root(""), &mut errors);
    }
    !errors.is_empty()
}
