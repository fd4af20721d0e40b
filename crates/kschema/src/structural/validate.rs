//! Validation: whether a value is what its schema says, in the words of kube-openapi's validator.
//!
//! On an update, what was there before and has not changed is not held against the object (KEP-4008).

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{
    Additional, JsonType, Limits, Structural,
    number::{GoFloat, is_integral, number_faults},
    prune::Place,
};
use crate::{error::FieldError, quote::Quoted, types::ListKind};

/// How many faults of one object are told.
pub const FAULTS_MAX: usize = 200;

impl Structural {
    /// Checks `object`; `old` is what it replaces, if anything. Objects must have been pruned and defaulted before.
    ///
    /// Rules in the expression language ([`rules`](Self::rules)), list keys ([`validate_lists`](Self::validate_lists)) and the
    /// metadata of objects within it ([`validate_metadata`](Self::validate_metadata)) are checked apart.
    ///
    /// ```
    /// use kschema::structural::Structural;
    /// use serde_json::json;
    ///
    /// let schema = Structural::compile(&json!({"type": "object", "properties": {"replicas": {"type": "integer", "minimum": 1}}}))?;
    /// let mut errors = Vec::new();
    /// schema.validate(&json!({"replicas": 0}), None, &mut errors);
    /// let words = "replicas: Invalid value: 0: replicas in body should be greater than or equal to 1";
    /// assert_eq!(errors[0].to_string(), words);
    /// # Ok::<(), kschema::structural::CompileError>(())
    /// ```
    pub fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        let outcome = value(self, object, old, &Place::Root);
        errors.extend(outcome.faults.into_iter().map(Fault::into_error));
    }
}

/// What a check of a value found.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) faults: Vec<Fault>,
    /// How many checks there were, by which the best of several alternatives is told.
    checks: usize,
}

/// One fault. Faults with the same words are told once.
#[derive(Debug)]
pub(super) struct Fault {
    /// The words, which name the place again.
    message: String,
    error: FieldError,
}

impl Fault {
    fn into_error(self) -> FieldError {
        self.error
    }

    fn new(message: String, error: FieldError) -> Self {
        Self { message, error }
    }

    /// A value that is shown as it is.
    fn invalid(at: &Place<'_>, value: &Value, message: String) -> Self {
        let error = FieldError::invalid(field(at), Shown(value), &message);
        Self { message, error }
    }

    /// A fault that is no fault of one field in upstream's eyes.
    pub(super) fn placeless(message: String) -> Self {
        let error = FieldError::invalid("<nil>", "\"\"", &message);
        Self { message, error }
    }

    fn wrong_type(at: &Place<'_>, wanted: &str, found: &str) -> Self {
        let message = format!("{at} in body must be of type {wanted}: {found}", found = Quoted(found));
        let error = FieldError::type_invalid(field(at), Quoted(found), &message);
        Self { message, error }
    }

    pub(super) fn number(at: &Place<'_>, value: &Value, words: &str) -> Self {
        Self::invalid(at, value, format!("{at} in body {words}"))
    }
}

/// The place in an error. Go's validators name the root so.
fn field(at: &Place<'_>) -> String {
    let text = at.to_string();
    if text.is_empty() { "<nil>".to_owned() } else { text }
}

/// A value as errors show it.
struct Shown<'a>(&'a Value);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Value::Number(number) if number.is_f64() => GoFloat(number.as_f64().unwrap_or_default()).fmt(f),
            Value::String(text) => Quoted(text).fmt(f),
            other => other.fmt(f),
        }
    }
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.faults.is_empty()
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        }
    }

    fn merge(&mut self, other: Self) {
        self.checks += other.checks;
        if other.faults.is_empty() {
            return;
        }
        let known: HashSet<&str> = self.faults.iter().map(|fault| fault.message.as_str()).collect();
        let fresh: Vec<Fault> =
            other.faults.into_iter().filter(|fault| !known.contains(fault.message.as_str())).collect();
        drop(known);
        for fault in fresh {
            self.fault(fault);
        }
    }
}

/// Checks a value with its old one, which excuses faults in what has not changed.
fn value(schema: &Structural, new: &Value, old: Option<&Value>, at: &Place<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    if new.is_null() {
        check_type(schema, new, at, &mut outcome);
        check_enum(schema, new, at, &mut outcome);
    } else {
        if schema.kind != JsonType::Any || schema.int_or_string || format_of(schema).is_some() {
            check_type(schema, new, at, &mut outcome);
            outcome.checks += 1;
        }
        outcome.merge(alternatives(schema, new, at));
        outcome.checks += 1;
        match new {
            Value::String(text) => {
                check_text(schema, text, at, &mut outcome);
                outcome.checks += 1;
            }
            Value::Number(_) => {
                number_faults(schema, new, at, &mut outcome);
                outcome.checks += 2;
            }
            Value::Array(list) => {
                check_list(schema, list, old, at, &mut outcome);
                outcome.checks += 2;
            }
            _ => {}
        }
        check_enum(schema, new, at, &mut outcome);
        outcome.checks += 1;
        if let Value::Object(map) = new {
            check_map(schema, map, old, at, &mut outcome);
            outcome.checks += 1;
        }
        outcome.checks += 1;
    }
    if !outcome.is_good() && old.is_some_and(|old| is_unchanged(schema, new, old)) {
        outcome.faults.clear();
    }
    outcome
}

pub(super) fn limits(schema: &Structural) -> Option<&Limits> {
    schema.limits.as_deref()
}

/// The format, if it is one that counts for the type.
pub(super) fn format_of(schema: &Structural) -> Option<&str> {
    let limits = limits(schema)?;
    let format = &*limits.format;
    let counts = match schema.kind {
        _ if schema.int_or_string => limits.text_format.is_some(),
        JsonType::Any | JsonType::String => limits.text_format.is_some(),
        JsonType::Integer => matches!(format, "int32" | "int64"),
        JsonType::Number => matches!(format, "float" | "double"),
        _ => false,
    };
    counts.then_some(format)
}

fn check_type(schema: &Structural, value: &Value, at: &Place<'_>, outcome: &mut Outcome) {
    let wanted: &[&str] = match schema.kind {
        _ if schema.int_or_string => &["integer", "string"],
        JsonType::Any => &[],
        JsonType::Object => &["object"],
        JsonType::Array => &["array"],
        JsonType::String => &["string"],
        JsonType::Integer => &["integer"],
        JsonType::Number => &["number"],
        JsonType::Boolean => &["boolean"],
    };
    let (found, found_format) = match value {
        Value::Null => {
            if !wanted.is_empty() && !schema.nullable {
                outcome.fault(Fault::wrong_type(at, &wanted.join(","), "null"));
            } else {
                outcome.checks += 1;
            }
            return;
        }
        Value::Bool(_) => ("boolean", ""),
        Value::Number(number) if number.as_i64().is_some() => ("integer", "int64"),
        Value::Number(_) => ("number", "float64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    };
    let takes = |name: &str| wanted.contains(&name);
    let fits = takes(found)
        || found == "number" && takes("integer") && value.as_f64().is_some_and(is_integral)
        || found == "integer" && takes("number");
    let format = format_of(schema);
    let is_text = matches!(value, Value::String(_) | Value::Array(_));
    match format {
        Some(format) if !is_text && !fits && found_format != format => {
            outcome.fault(Fault::wrong_type(at, format, found_format));
        }
        // Upstream leaves text, and lists, to the format where there is one.
        Some(_) if is_text && !takes("number") && !takes("integer") => outcome.checks += 1,
        _ if fits || wanted.is_empty() && format.is_none() => outcome.checks += 1,
        _ => outcome.fault(Fault::wrong_type(at, &wanted.join(","), found)),
    }
}

/// `anyOf`, `oneOf`, `allOf` and `not`. What stands in them is held against an object even if it has not changed; the place as
/// a whole is excused.
fn alternatives(schema: &Structural, new: &Value, at: &Place<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    if let Some(limits) = limits(schema) {
        any_of(limits, new, at, &mut outcome);
        one_of(limits, new, at, &mut outcome);
        all_of(limits, new, at, &mut outcome);
        if let Some(not) = &limits.not
            && value(not, new, None, at).is_good()
        {
            outcome.fault(Fault::placeless(format!(
                "{} must not validate the schema (not)",
                Quoted(&at.to_string())
            )));
        }
    }
    outcome.checks += 1;
    outcome
}

fn any_of(limits: &Limits, new: &Value, at: &Place<'_>, outcome: &mut Outcome) {
    if limits.any_of.is_empty() {
        return;
    }
    let mut best: Option<Outcome> = None;
    for schema in &limits.any_of {
        let result = value(schema, new, None, at);
        if result.is_good() {
            outcome.merge(result);
            return;
        }
        if best.as_ref().is_none_or(|best| result.checks > best.checks) {
            best = Some(result);
        }
    }
    let path = at.to_string();
    outcome.fault(Fault::placeless(format!(
        "{path} must validate at least one schema (anyOf)",
        path = Quoted(&path)
    )));
    outcome.merge(best.unwrap_or_default());
}

fn one_of(limits: &Limits, new: &Value, at: &Place<'_>, outcome: &mut Outcome) {
    if limits.one_of.is_empty() {
        return;
    }
    let (mut best, mut first, mut good) = (None::<Outcome>, None, 0);
    for schema in &limits.one_of {
        let result = value(schema, new, None, at);
        if result.is_good() {
            good += 1;
            best = None;
            first.get_or_insert(result);
        } else if good == 0 && best.as_ref().is_none_or(|best| result.checks > best.checks) {
            best = Some(result);
        }
    }
    if good == 1 {
        outcome.merge(first.unwrap_or_default());
        return;
    }
    let found =
        if good == 0 { "Found none valid".to_owned() } else { format!("Found {good} valid alternatives") };
    let path = at.to_string();
    outcome.fault(Fault::placeless(format!(
        "{path} must validate one and only one schema (oneOf). {found}",
        path = Quoted(&path)
    )));
    outcome.merge(best.unwrap_or_default());
}

fn all_of(limits: &Limits, new: &Value, at: &Place<'_>, outcome: &mut Outcome) {
    let mut good = 0;
    for schema in &limits.all_of {
        let result = value(schema, new, None, at);
        good += usize::from(result.is_good());
        outcome.merge(result);
    }
    if good != limits.all_of.len() {
        let none = if good == 0 { ". None validated" } else { "" };
        let path = at.to_string();
        outcome.fault(Fault::placeless(format!(
            "{path} must validate all the schemas (allOf){none}",
            path = Quoted(&path)
        )));
    }
}

fn check_text(schema: &Structural, text: &str, at: &Place<'_>, outcome: &mut Outcome) {
    let Some(limits) = limits(schema) else { return };
    let length = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let string = Value::String(text.to_owned());
    if let Some(limit) = limits.max_length.filter(|limit| length() > *limit) {
        let message = format!("{at} in body should be at most {limit} chars long");
        let error = FieldError::too_long(field(at), usize::try_from(limit).unwrap_or_default());
        outcome.fault(Fault::new(message, error));
    } else if let Some(limit) = limits.min_length.filter(|limit| length() < *limit) {
        let message = format!("{at} in body should be at least {limit} chars long");
        outcome.fault(Fault::invalid(at, &string, message));
    } else if let Some(pattern) = limits.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
        let message = format!("{at} in body should match '{}'", pattern.as_str());
        outcome.fault(Fault::invalid(at, &string, message));
    }
    let Some(format) = limits.text_format.filter(|_| format_of(schema).is_some()) else { return };
    outcome.checks += 1;
    if !format.fits(text) {
        let message = format!("{at} in body must be of type {}: {text}", limits.format, text = Quoted(text));
        let error = FieldError::type_invalid(field(at), Quoted(text), &message);
        outcome.fault(Fault::new(message, error));
    }
}

fn check_enum(schema: &Structural, new: &Value, at: &Place<'_>, outcome: &mut Outcome) {
    let Some(limits) = limits(schema).filter(|limits| !limits.enumeration.is_empty()) else { return };
    let same = |allowed: &Value| !allowed.is_null() && crate::apply::equal_values(allowed, new);
    if limits.enumeration.iter().any(same) {
        return;
    }
    let words: Vec<String> = limits
        .enumeration
        .iter()
        .map(|allowed| allowed.as_str().map_or_else(|| allowed.to_string(), str::to_owned))
        .collect();
    let message = format!("{at} in body should be one of [{}]", words.join(" "));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    outcome.fault(Fault::new(message, FieldError::not_supported_value(field(at), Shown(new), &words)));
}

fn check_list(
    schema: &Structural,
    list: &[Value],
    old: Option<&Value>,
    at: &Place<'_>,
    outcome: &mut Outcome,
) {
    if let Some(items) = &schema.items {
        for (index, item) in list.iter().enumerate() {
            let old = old.and_then(|old| old_entry(schema, item, old));
            outcome.merge(value(items, item, old, &Place::Index(at, index)));
        }
    }
    let Some(limits) = limits(schema) else { return };
    let size = i64::try_from(list.len()).unwrap_or(i64::MAX);
    if let Some(limit) = limits.min_items.filter(|limit| size < *limit) {
        outcome.fault(Fault::invalid(
            at,
            &size.into(),
            format!("{at} in body should have at least {limit} items"),
        ));
    }
    if let Some(limit) = limits.max_items.filter(|limit| size > *limit) {
        outcome.fault(too_many(at, list.len(), limit, "items"));
    }
    let is_repeated = |index: usize| list[..index].contains(&list[index]);
    if limits.unique_items && (1..list.len()).any(is_repeated) {
        let message = format!("{at} in body shouldn't contain duplicates");
        outcome.fault(Fault::new(message.clone(), FieldError::invalid(field(at), "\"\"", message)));
    }
}

fn too_many(at: &Place<'_>, count: usize, limit: i64, what: &str) -> Fault {
    let message = format!("{at} in body should have at most {limit} {what}");
    Fault::new(message, FieldError::too_many(field(at), count, usize::try_from(limit).unwrap_or_default()))
}

fn check_map(
    schema: &Structural,
    map: &Map<String, Value>,
    old: Option<&Value>,
    at: &Place<'_>,
    outcome: &mut Outcome,
) {
    let limits = limits(schema);
    let size = i64::try_from(map.len()).unwrap_or(i64::MAX);
    if let Some(limit) = limits.and_then(|limits| limits.min_properties).filter(|limit| size < *limit) {
        outcome.fault(Fault::invalid(
            at,
            &size.into(),
            format!("{at} in body should have at least {limit} properties"),
        ));
    }
    if let Some(limit) = limits.and_then(|limits| limits.max_properties).filter(|limit| size > *limit) {
        outcome.fault(too_many(at, map.len(), limit, "properties"));
    }
    for (key, new) in map {
        let child = match (schema.properties.get(key.as_str()), &schema.additional) {
            (Some(property), _) => property,
            (None, Additional::Schema(other)) => other,
            (None, Additional::Allowed(false)) => {
                let text = Value::String(key.clone());
                outcome.fault(Fault::invalid(
                    at,
                    &text,
                    format!("{at}.{key} in body is a forbidden property"),
                ));
                continue;
            }
            (None, _) => continue,
        };
        // Old and new are converted to one version, so that a change of it would not be seen.
        let is_type = at.is_root() && matches!(key.as_str(), "apiVersion" | "kind");
        let old = old.filter(|_| !is_type).and_then(|old| old.get(key));
        outcome.merge(value(child, new, old, &Place::Key(at, key)));
    }
    for name in limits.into_iter().flat_map(|limits| &limits.required) {
        if !map.contains_key(&**name) {
            let place = Place::Key(at, name).to_string();
            let message = format!("{place} in body is required");
            outcome.fault(Fault::new(message, FieldError::required(place, "")));
        }
    }
}

/// The entry of the old list that is this one: only lists that are maps tell.
fn old_entry<'o>(schema: &Structural, entry: &Value, old: &'o Value) -> Option<&'o Value> {
    let ListKind::Map(keys) = &schema.list else { return None };
    let same_key = |old: &&Value| keys.iter().all(|key| old.get(&**key) == entry.get(&**key));
    entry.as_object()?;
    old.as_array()?.iter().find(same_key)
}

/// Whether the new value is the old one, as far as the schema describes it.
fn is_unchanged(schema: &Structural, new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            new.len() == old.len()
                && new.iter().all(|(key, new)| match (old.get(key), schema.child(key)) {
                    (Some(old), Some(child)) => is_unchanged(child, new, old),
                    _ => false,
                })
        }
        (Value::Array(new_list), Value::Array(old_list)) => {
            new_list.len() == old_list.len()
                && match (&schema.list, &schema.items) {
                    (ListKind::Map(_), Some(items)) => new_list.iter().all(|new| {
                        old_entry(schema, new, old).is_some_and(|old| is_unchanged(items, new, old))
                    }),
                    _ => new_list == old_list,
                }
        }
        (new, old) => new == old,
    }
}
