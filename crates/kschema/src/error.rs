//! The server's one error type: a `Status` on its way to the client, and the field errors that make a 422.

use std::fmt;

use kcore::{
    Status,
    status::{StatusCause, StatusDetails},
};

use crate::quote::Quoted;

/// A [`Status`] that ends a request. Boxed, because it travels through every `Result` of the request path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError(pub Box<Status>);

/// What a step of the request path returns.
pub type ApiResult<T> = Result<T, ApiError>;

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        Self(Box::new(status))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ApiError {}

/// One fault in one field, with the words of `k8s.io/apimachinery/pkg/util/validation/field`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    reason: &'static str,
    field: String,
    detail: String,
}

impl FieldError {
    /// The field must be given.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let detail =
            if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self { reason: "FieldValueRequired", field: field.into(), detail }
    }

    /// The field's value is wrong; `value` is shown as JSON.
    pub fn invalid(field: impl Into<String>, value: impl fmt::Display, detail: impl fmt::Display) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            detail: format!("Invalid value: {value}: {detail}"),
        }
    }

    /// The field as a whole is wrong; its value is not shown.
    pub fn invalid_whole(field: impl Into<String>, detail: impl fmt::Display) -> Self {
        let detail = format!("Invalid value: {detail}");
        Self { reason: "FieldValueInvalid", field: field.into(), detail }
    }

    /// The field's text value is wrong.
    pub fn invalid_text(field: impl Into<String>, value: &str, detail: impl fmt::Display) -> Self {
        Self::invalid(field, Quoted(value), detail)
    }

    /// The field's value is none of those supported.
    pub fn not_supported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        Self::not_supported_value(field, Quoted(value), supported)
    }

    /// The field's value, shown as JSON, is none of those supported.
    pub fn not_supported_value(
        field: impl Into<String>,
        value: impl fmt::Display,
        supported: &[&str],
    ) -> Self {
        let list = supported.iter().map(|word| Quoted(word).to_string()).collect::<Vec<_>>().join(", ");
        let detail = format!("Unsupported value: {value}: supported values: {list}");
        Self { reason: "FieldValueNotSupported", field: field.into(), detail }
    }

    /// The text stands in another entry already.
    pub fn duplicate(field: impl Into<String>, value: &str) -> Self {
        Self::duplicate_value(field, Quoted(value))
    }

    /// The value, shown as JSON, stands in another entry already.
    pub fn duplicate_value(field: impl Into<String>, value: impl fmt::Display) -> Self {
        let detail = format!("Duplicate value: {value}");
        Self { reason: "FieldValueDuplicate", field: field.into(), detail }
    }

    /// [`duplicate_value`](Self::duplicate_value), with more to say.
    pub fn duplicate_because(
        field: impl Into<String>,
        value: impl fmt::Display,
        detail: impl fmt::Display,
    ) -> Self {
        let detail = format!("Duplicate value: {value}: {detail}");
        Self { reason: "FieldValueDuplicate", field: field.into(), detail }
    }

    /// The value is of a wrong type; `value` is shown as JSON.
    pub fn type_invalid(
        field: impl Into<String>,
        value: impl fmt::Display,
        detail: impl fmt::Display,
    ) -> Self {
        let detail = format!("Invalid value: {value}: {detail}");
        Self { reason: "FieldValueTypeInvalid", field: field.into(), detail }
    }

    /// The field may not be set (now).
    pub fn forbidden(field: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), detail: format!("Forbidden: {detail}") }
    }

    /// The field names something that is not there.
    pub fn not_found(field: impl Into<String>, value: &str) -> Self {
        Self {
            reason: "FieldValueNotFound",
            field: field.into(),
            detail: format!("Not found: {}", Quoted(value)),
        }
    }

    /// [`not_found`](Self::not_found), with more to say.
    pub fn not_found_because(field: impl Into<String>, value: &str, detail: impl fmt::Display) -> Self {
        let detail = format!("Not found: {}: {detail}", Quoted(value));
        Self { reason: "FieldValueNotFound", field: field.into(), detail }
    }

    /// The value has more bytes than allowed.
    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        let unit = if limit == 1 { "byte" } else { "bytes" };
        let detail = format!("Too long: may not be more than {limit} {unit}");
        Self { reason: "FieldValueTooLong", field: field.into(), detail }
    }

    /// The value has more characters than allowed.
    pub fn too_long_characters(field: impl Into<String>, limit: usize) -> Self {
        let unit = if limit == 1 { "character" } else { "characters" };
        let detail = format!("Too long: may not be more than {limit} {unit}");
        Self { reason: "FieldValueTooLong", field: field.into(), detail }
    }

    /// The value has fewer characters than it must have.
    pub fn too_short(field: impl Into<String>, limit: usize) -> Self {
        let unit = if limit == 1 { "character" } else { "characters" };
        let detail = format!("Too short: must be at least {limit} {unit}");
        Self { reason: "FieldValueTooShort", field: field.into(), detail }
    }

    /// The list has more entries than allowed.
    pub fn too_many(field: impl Into<String>, count: usize, limit: usize) -> Self {
        let unit = if limit == 1 { "item" } else { "items" };
        let detail = format!("Too many: {count}: must have at most {limit} {unit}");
        Self { reason: "FieldValueTooMany", field: field.into(), detail }
    }

    /// The list has fewer entries than it must have.
    pub fn too_few(field: impl Into<String>, count: usize, limit: usize) -> Self {
        let unit = if limit == 1 { "item" } else { "items" };
        let detail = format!("Too few: {count}: must have at least {limit} {unit}");
        Self { reason: "FieldValueTooFew", field: field.into(), detail }
    }

    /// The field could not be checked.
    pub fn internal(field: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self { reason: "InternalError", field: field.into(), detail: format!("Internal error: {detail}") }
    }

    /// Which kind of fault it is: the `reason` of the cause in the answer.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The field's path.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The same fault in an object that itself stands at `parent`.
    pub(crate) fn under(mut self, parent: &str) -> Self {
        let is_root = self.field.is_empty() || self.field == "<nil>";
        self.field = if is_root { parent.to_owned() } else { format!("{parent}.{}", self.field) };
        self
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.detail)
    }
}

/// 422: the object was read, but what it says is not allowed. `errors` is not empty. A fault that was found twice is named
/// once in the message (`field.ErrorList.ToAggregate`).
#[must_use]
pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> ApiError {
    let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let faults = match texts.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let mut status = Status::failure(422, "Invalid", format!("{qualified} {name:?} is invalid: {faults}"));
    let causes = errors.iter().map(|error| StatusCause {
        reason: error.reason.to_owned(),
        message: error.detail.clone(),
        field: error.field.clone(),
    });
    status.details = Some(StatusDetails {
        name: name.to_owned(),
        group: group.to_owned(),
        kind: kind.to_owned(),
        causes: causes.collect(),
        ..StatusDetails::default()
    });
    status.into()
}
