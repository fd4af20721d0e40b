//! Conditions of a status (`metav1.Condition`).

use kschema::error::FieldError;
use serde_json::Value;

use super::{labels, look::Look, path::Path, report::Report};

const REASON_BYTES_MAX: usize = 1024;
const MESSAGE_BYTES_MAX: usize = 32 * 1024;

/// The states that conditions have.
pub(crate) const STATES: [&str; 3] = ["False", "True", "Unknown"];

/// Whether the list of conditions says that this one is true.
pub(crate) fn is_true(conditions: &[Value], kind: &str) -> bool {
    conditions.iter().any(|condition| condition.text("type") == kind && condition.text("status") == "True")
}

/// Checks a list of conditions.
pub(crate) fn validate(conditions: &[Value], list: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (index, condition) in conditions.iter().enumerate() {
        let path = list.index(index);
        let kind = condition.text("type");
        if conditions[..index].iter().any(|other| other.text("type") == kind) {
            errors.duplicate(&path.field("type"), kind);
        }
        labels::name(kind, &path.field("type"), errors);
        if !STATES.contains(&condition.text("status")) {
            errors.unsupported(&path.field("status"), condition.text("status"), &STATES);
        }
        if condition.int("observedGeneration") < 0 {
            let shown = condition.int("observedGeneration");
            errors.invalid(&path.field("observedGeneration"), shown, "must be greater than or equal to zero");
        }
        errors.needs(condition, &path, "lastTransitionTime");
        reason(condition.text("reason"), &path.field("reason"), errors);
        if condition.text("message").len() > MESSAGE_BYTES_MAX {
            errors.too_long(&path.field("message"), MESSAGE_BYTES_MAX);
        }
    }
}

fn reason(reason: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if reason.is_empty() {
        errors.required(path, "");
        return;
    }
    let bytes = reason.as_bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(|byte| is_word(*byte))
        && bytes.iter().all(|byte| is_word(*byte) || matches!(byte, b',' | b':'));
    if !good {
        errors.invalid(path, reason, "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')");
    }
    if reason.len() > REASON_BYTES_MAX {
        errors.too_long(path, REASON_BYTES_MAX);
    }
}
