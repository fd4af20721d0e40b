//! Labels, annotations, and the selectors of labels (`k8s.io/apimachinery/pkg/apis/meta/v1/validation`).

use kschema::error::FieldError;
use serde_json::Value;

use super::{
    form,
    look::{Look, texts},
    path::Path,
    report::Report,
};

/// The largest sum of all annotations' keys and values, in bytes.
pub(crate) const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Checks a map of labels. Its entries are reported at the map's own path.
pub(crate) fn labels(object: &Value, path: &Path<'_>, key: &str, errors: &mut Vec<FieldError>) {
    for (name, value) in object.map(key) {
        errors.faults(&path.field(key), name, form::qualified_name(name));
        let value = value.as_str().unwrap_or_default();
        errors.faults(&path.field(key), value, form::label_value(value));
    }
}

/// Checks a map of annotations.
pub(crate) fn annotations(object: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut bytes = 0;
    for (name, value) in object.map("annotations") {
        bytes += name.len() + value.as_str().map_or(0, str::len);
        errors.faults(&path.field("annotations"), name, form::qualified_name_caseless(name));
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.too_long(&path.field("annotations"), ANNOTATIONS_BYTES_MAX);
    }
}

/// Checks a key that must have a domain.
pub(crate) fn domain_prefixed(key: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let faults = form::qualified_name(key);
    if faults.is_empty() && !key.contains('/') {
        errors.invalid(path, key, "must be a domain-prefixed key (such as \"acme.io/foo\")");
    }
    errors.faults(path, key, faults);
}

/// Checks the key of a label.
pub(crate) fn name(value: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    errors.faults(path, value, form::qualified_name(value));
}

/// Checks a `metav1.LabelSelector`, if there is one. `lax`: the old object's values were wrong already, so these may be too.
pub(crate) fn selector(selector: Option<&Value>, path: &Path<'_>, lax: bool, errors: &mut Vec<FieldError>) {
    let Some(selector) = selector else {
        return;
    };
    labels(selector, path, "matchLabels", errors);
    for (index, expression) in selector.list("matchExpressions").iter().enumerate() {
        let list = path.field("matchExpressions");
        requirement(expression, &list.index(index), lax, errors);
    }
}

fn requirement(expression: &Value, path: &Path<'_>, lax: bool, errors: &mut Vec<FieldError>) {
    let values = expression.list("values");
    let operator = expression.text("operator");
    operator_fits(operator, values, path, errors);
    if !["In", "NotIn", "Exists", "DoesNotExist"].contains(&operator) {
        errors.invalid(&path.field("operator"), operator, "not a valid selector operator");
    }
    name(expression.text("key"), &path.field("key"), errors);
    if !lax {
        let list = path.field("values");
        for (index, value) in texts(values).enumerate() {
            errors.faults(&list.index(index), value, form::label_value(value));
        }
    }
}

/// How many values the four common operators take.
pub(crate) fn operator_fits(operator: &str, values: &[Value], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(&path.field("values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.forbidden(&path.field("values"), why);
        }
        _ => {}
    }
}

/// Whether a selector has faults.
pub(crate) fn is_faulty(selector_value: Option<&Value>) -> bool {
    let mut errors = Vec::new();
    selector(selector_value, &Path::root(""), false, &mut errors);
    !errors.is_empty()
}

/// Whether a selector has nothing to select by.
pub(crate) fn is_empty(selector: &Value) -> bool {
    selector.count("matchLabels") == 0 && selector.count("matchExpressions") == 0
}

/// Whether a `metav1.LabelSelector` selects these labels.
///
/// ```
/// use serde_json::json;
/// let selector = json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["web"]}]});
/// assert!(kkinds::selects(&selector, &json!({"tier": "web"})));
/// ```
#[must_use]
pub fn selects(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.some_text(key);
    selector.map("matchLabels").all(|(key, value)| label(key) == value.as_str())
        && selector.list("matchExpressions").iter().all(|expression| {
            let value = label(expression.text("key"));
            let listed = || texts(expression.list("values")).any(|item| Some(item) == value);
            match expression.text("operator") {
                "In" => value.is_some() && listed(),
                "NotIn" => value.is_none() || !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
