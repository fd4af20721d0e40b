//! Rules in the words of upstream's declarative validation (`k8s.io/apimachinery/pkg/api/validate`), for kinds that have no
//! others.

use kschema::{error::FieldError, quote::json_text};
use serde_json::Value;

use crate::check::{Form, Internal, Look, Path, Report, Shown, same_at};

type Errors = Vec<FieldError>;

/// What a wrong list entry is shown as: its fields in the order of the served type.
pub(crate) struct Ordered<'v>(pub(crate) &'static [&'static str], pub(crate) &'v Value);

impl Shown for Ordered<'_> {
    fn shown(&self) -> String {
        let fields = self.0.iter().filter_map(|key| {
            let value = self.1.get_some(key)?;
            Some(format!("{}:{}", json_text(key), Internal("", Some(value)).compact()))
        });
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

/// Exactly one of the members must be set (`+k8s:unionMember`). What is set as before is not looked at again.
pub(crate) fn union(
    object: &Value,
    old: Option<&Value>,
    path: &Path<'_>,
    members: &[&str],
    errors: &mut Errors,
) {
    let set = |object: &Value, key: &str| match object.get_some(key) {
        Some(Value::Array(list)) => !list.is_empty(),
        found => found.is_some(),
    };
    if old.is_some_and(|old| members.iter().all(|key| set(object, key) == set(old, key))) {
        return;
    }
    let quoted = |keys: &mut dyn Iterator<Item = &&str>| {
        keys.map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
    };
    let all = quoted(&mut members.iter());
    let given: Vec<&str> = members.iter().copied().filter(|key| set(object, key)).collect();
    match given.len() {
        0 => errors.invalid(path, "", format_args!("must specify one of: {all}")),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", given.join(", "));
            errors.invalid(path, shown, format_args!("must specify exactly one of: {all}"));
        }
    }
}

/// The field may not change; whether it has (`+k8s:immutable`).
pub(crate) fn immutable(
    object: &Value,
    old: Option<&Value>,
    path: &Path<'_>,
    key: &str,
    errors: &mut Errors,
) -> bool {
    let changed = old.is_some_and(|old| !same_at(object, old, key));
    if changed {
        errors.invalid(&path.field(key), None, "field is immutable");
    }
    changed
}

/// A text that must be given, in this form.
pub(crate) fn required_name(object: &Value, path: &Path<'_>, key: &str, form: Form, errors: &mut Errors) {
    errors.name(&path.field(key), object.text(key), form);
}

/// A text that may be missing, but not be empty, in this form.
pub(crate) fn optional_name(object: &Value, path: &Path<'_>, key: &str, form: Form, errors: &mut Errors) {
    if let Some(text) = object.some_text(key) {
        errors.faults(&path.field(key), text, form(text));
    }
}

/// A number that may be missing, from `low` to `high`.
pub(crate) fn range(object: &Value, path: &Path<'_>, key: &str, low: i64, high: i64, errors: &mut Errors) {
    let field = path.field(key);
    match object.some_int(key) {
        Some(value) if value > high => {
            errors.invalid(&field, value, format_args!("must be less than or equal to {high}"));
        }
        Some(value) if value < low => {
            errors.invalid(&field, value, format_args!("must be greater than or equal to {low}"));
        }
        _ => {}
    }
}

/// Checks that there are not too many entries; whether to go on with them.
pub(crate) fn at_most(found: &[Value], limit: usize, list: &Path<'_>, errors: &mut Errors) -> bool {
    if found.len() > limit {
        errors.too_many(list, found.len(), limit);
    }
    found.len() <= limit
}

/// Entries that have the name of an earlier one; `shown`: the fields of an entry in their order.
pub(crate) fn unique(found: &[Value], shown: &'static [&'static str], list: &Path<'_>, errors: &mut Errors) {
    for (index, entry) in found.iter().enumerate() {
        if found[..index].iter().any(|other| other.text("name") == entry.text("name")) {
            errors.duplicate(&list.index(index), Ordered(shown, entry));
        }
    }
}
