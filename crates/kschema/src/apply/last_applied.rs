//! From client-side to server-side apply: the annotation in which `kubectl apply` keeps what it applied last.

use serde_json::Value;

use super::{compare::compare, manager::FieldManager, set::Set, shape::Shape, typed};

/// The only manager for whom the annotation counts; whoever does not want that applies under another name.
pub(crate) const MANAGER: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How long all annotations of an object may be together, keys and values.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

fn last_applied(object: &Value) -> Option<&str> {
    object["metadata"]["annotations"][ANNOTATION].as_str().filter(|text| !text.is_empty())
}

/// Whether an object has the annotation.
pub(super) fn is_there(object: &Value) -> bool {
    last_applied(object).is_some()
}

/// The fields of the annotation that are still as they were applied. `None` when there is no annotation, or one that makes no
/// sense for this kind.
pub(crate) fn owned_fields(manager: &FieldManager<'_>, live: &Value) -> Option<Set> {
    let applied: Value = serde_json::from_str(last_applied(live)?).ok()?;
    if applied["apiVersion"] != manager.api_version {
        return None;
    }
    let shape = Shape::of(manager.versions.schema(manager.api_version)?, None);
    for object in [&applied, live] {
        typed::validate(manager.catalog, shape, object, false).ok()?;
    }
    let set = typed::to_set(manager.catalog, shape, &applied);
    let comparison = compare(manager.catalog, shape, &applied, live).ok()?;
    Some(set.difference(&comparison.modified).difference(&comparison.added).difference(&comparison.removed))
}

/// Brings the annotation up to date, if the object has one.
pub(crate) fn renew(object: &mut Value, patch: &Value) {
    if last_applied(object).is_none() {
        return;
    }
    let mut applied = patch.clone();
    if let Some(annotations) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else {
        return;
    };
    annotations
        .insert(ANNOTATION.to_owned(), Value::String(format!("{}\n", escape_html(&applied.to_string()))));
    let bytes: usize =
        annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > ANNOTATIONS_BYTES_MAX {
        annotations.remove(ANNOTATION);
    }
}

/// Go's encoder escapes what could end a script in a page.
fn escape_html(json: &str) -> String {
    if !json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return json.to_owned();
    }
    json.chars().fold(String::with_capacity(json.len() + 16), |mut out, c| {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
        out
    })
}
