//! Writing down what is wrong: one line for each rule, and no cost unless it is broken.

use std::borrow::Cow;

use kschema::{error::FieldError, quote::Quoted};
use serde_json::Value;

use super::{internal::Internal, look::Look, path::Path};

/// What is wrong with a text; empty (and free) if nothing is.
pub(crate) type Faults = Vec<Cow<'static, str>>;

/// Says what is wrong with a text.
pub(crate) type Form = fn(&str) -> Faults;

/// A wrong value, as the message shows it.
pub(crate) trait Shown {
    /// The value in JSON, texts in quotes.
    fn shown(&self) -> String;
}

impl Shown for str {
    fn shown(&self) -> String {
        Quoted(self).to_string()
    }
}

impl Shown for &str {
    fn shown(&self) -> String {
        Quoted(self).to_string()
    }
}

impl Shown for String {
    fn shown(&self) -> String {
        Quoted(self).to_string()
    }
}

impl Shown for i64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for &Value {
    fn shown(&self) -> String {
        self.as_str().map_or_else(|| Internal("", Some(self)).compact(), |text| Quoted(text).to_string())
    }
}

impl Shown for Internal<'_> {
    fn shown(&self) -> String {
        self.compact()
    }
}

impl Shown for Option<&Value> {
    fn shown(&self) -> String {
        self.map_or_else(|| "null".to_owned(), |value| value.shown())
    }
}

/// The list of faults, with a method for each kind.
pub(crate) trait Report {
    /// Adds a fault.
    fn fault(&mut self, error: FieldError);

    /// The field must be given.
    fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.fault(FieldError::required(path.to_string(), detail));
    }

    /// The field's value is wrong.
    fn invalid(&mut self, path: &Path<'_>, value: impl Shown, detail: impl std::fmt::Display) {
        self.fault(FieldError::invalid(path.to_string(), value.shown(), detail));
    }

    /// The field as a whole is wrong; its value is not shown.
    fn invalid_whole(&mut self, path: &Path<'_>, detail: &str) {
        self.fault(FieldError::invalid_whole(path.to_string(), detail));
    }

    /// A choice by name that is none of those supported; the message shows all of it.
    fn unsupported_choice(&mut self, path: &Path<'_>, value: impl Shown, supported: &[&str]) {
        self.fault(FieldError::not_supported_value(path.to_string(), value.shown(), supported));
    }

    /// The field's value is none of those supported, which are named in this order.
    fn unsupported(&mut self, path: &Path<'_>, value: &str, supported: &[&str]) {
        self.fault(FieldError::not_supported(path.to_string(), value, supported));
    }

    /// The field may not be set (now).
    fn forbidden(&mut self, path: &Path<'_>, detail: impl std::fmt::Display) {
        self.fault(FieldError::forbidden(path.to_string(), detail));
    }

    /// The value stands in another entry already.
    fn duplicate(&mut self, path: &Path<'_>, value: impl Shown) {
        self.fault(FieldError::duplicate_value(path.to_string(), value.shown()));
    }

    /// The field names something that is not there.
    fn not_found(&mut self, path: &Path<'_>, value: &str) {
        self.fault(FieldError::not_found(path.to_string(), value));
    }

    /// The value has more bytes than it may have.
    fn too_long(&mut self, path: &Path<'_>, limit: usize) {
        self.fault(FieldError::too_long(path.to_string(), limit));
    }

    /// The list has more entries than it may have.
    fn too_many(&mut self, path: &Path<'_>, count: usize, limit: usize) {
        self.fault(FieldError::too_many(path.to_string(), count, limit));
    }

    /// Everything that is wrong with a text.
    fn faults(&mut self, path: &Path<'_>, value: &str, faults: Faults) {
        for fault in faults {
            self.invalid(path, value, fault);
        }
    }

    /// A text that must be there and have this form.
    fn name(&mut self, path: &Path<'_>, value: &str, form: Form) {
        if value.is_empty() {
            self.required(path, "");
        } else {
            self.faults(path, value, form(value));
        }
    }

    /// A text that must have this form unless it is empty.
    fn optional_name(&mut self, path: &Path<'_>, value: &str, form: Form) {
        if !value.is_empty() {
            self.faults(path, value, form(value));
        }
    }

    /// A text of the object at `path` that must not be empty.
    fn needs(&mut self, object: &Value, path: &Path<'_>, key: &str) {
        if object.text(key).is_empty() {
            self.required(&path.field(key), "");
        }
    }

    /// A text that must be there and one of those supported.
    fn one_of(&mut self, path: &Path<'_>, value: &str, supported: &[&str]) {
        if value.is_empty() {
            self.required(path, "");
        } else if !supported.contains(&value) {
            self.unsupported(path, value, supported);
        }
    }

    /// A field of the object at `path` that, if given, is one of those supported.
    fn optional_one_of(&mut self, object: &Value, path: &Path<'_>, key: &str, supported: &[&str]) {
        if let Some(value) = object.some_text(key).filter(|value| !supported.contains(value)) {
            self.unsupported(&path.field(key), value, supported);
        }
    }

    /// A number of the object at `path` that may not be negative.
    fn not_negative(&mut self, object: &Value, path: &Path<'_>, key: &str) {
        let value = object.int(key);
        if value < 0 {
            self.invalid(&path.field(key), value, "must be greater than or equal to 0");
        }
    }

    /// A number of the object at `path` that must be in the range, if it is given.
    fn in_range(&mut self, object: &Value, path: &Path<'_>, key: &str, low: i64, high: i64) {
        if let Some(value) = object.some_int(key).filter(|value| !(low..=high).contains(value)) {
            self.invalid(
                &path.field(key),
                value,
                format_args!("must be between {low} and {high}, inclusive"),
            );
        }
    }

    /// A port number.
    fn port(&mut self, path: &Path<'_>, value: i64) {
        if !(1..=65_535).contains(&value) {
            self.invalid(path, value, "must be between 1 and 65535, inclusive");
        }
    }

    /// [`immutable`](Self::immutable), of a field that is shown in this internal type.
    fn immutable_of(&mut self, object: &Value, old: &Value, path: &Path<'_>, key: &str, of: &'static str) {
        if !super::look::same_at(object, old, key) {
            self.invalid(&path.field(key), Internal(of, object.get(key)), "field is immutable");
        }
    }

    /// A field of the object at `path` that may not change.
    fn immutable(&mut self, object: &Value, old: &Value, path: &Path<'_>, key: &str) {
        if !super::look::same_at(object, old, key) {
            let shown = super::look::shown_at(object, old, key);
            self.invalid(&path.field(key), &*shown, "field is immutable");
        }
    }
}

impl Report for Vec<FieldError> {
    fn fault(&mut self, error: FieldError) {
        self.push(error);
    }
}
