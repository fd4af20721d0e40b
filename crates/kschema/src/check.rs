//! One walk over an object that does what decoding into Go types does upstream: wrong types are refused, nulls, scalars that say
//! nothing (`omitempty`) and unknown fields are dropped (the last are named), quantities and times take their canonical form, and
//! plain defaults are filled in.

use std::fmt::{self, Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kcore::Quantity;
use serde_json::{Map, Value};

use crate::types::{Catalog, Object, Type};

/// How many unknown or duplicate fields are named before the server stops counting.
pub const FIELD_ERRORS_MAX: usize = 100;

/// Checks `value` against `ty` in place; returns the paths of the unknown fields that were dropped.
///
/// # Errors
/// The first value of a wrong type, worded as Go's JSON decoder does.
pub fn check(catalog: &Catalog, ty: &Type, value: &mut Value) -> Result<Vec<String>, TypeError> {
    let mut walk = Walk { catalog, path: String::new(), unknown: Vec::new() };
    walk.value(ty, value, None)?;
    Ok(walk.unknown)
}

/// A value of a wrong type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(String);

struct Walk<'a> {
    catalog: &'a Catalog,
    path: String,
    unknown: Vec<String>,
}

impl Walk<'_> {
    fn value(&mut self, ty: &Type, value: &mut Value, holder: Option<&Object>) -> Result<(), TypeError> {
        let fits = match (ty, &mut *value) {
            (Type::Any | Type::Structural(_), _)
            | (Type::String, Value::String(_))
            | (Type::Bool, Value::Bool(_))
            | (Type::Double, Value::Number(_))
            | (Type::IntOrString, Value::String(_)) => true,
            (Type::Int32 | Type::IntOrString, Value::Number(n)) => {
                n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            (Type::Int64, Value::Number(number)) => number.as_i64().is_some(),
            (Type::Bytes, Value::String(text)) => return check_base64(text),
            (Type::Time | Type::MicroTime, Value::String(text)) => return check_time(ty, text),
            (Type::Quantity, Value::String(_) | Value::Number(_)) => return check_quantity(value),
            (Type::List(item), Value::Array(list)) => return self.list(item, list, holder),
            (Type::Map(item), Value::Object(map)) => return self.map(item, map, holder),
            (Type::Named(_) | Type::Object(_), Value::Object(map)) => {
                let Some(object) = self.catalog.resolve(ty).cloned() else {
                    return Ok(());
                };
                return self.object(&object, map);
            }
            _ => false,
        };
        if fits { Ok(()) } else { Err(self.mismatch(ty, value, holder)) }
    }

    fn object(&mut self, object: &Object, map: &mut Map<String, Value>) -> Result<(), TypeError> {
        let mut dropped = Vec::new();
        for (key, value) in map.iter_mut() {
            let Some(field) = object.field(key) else {
                if self.unknown.len() < FIELD_ERRORS_MAX {
                    self.unknown.push(join(&self.path, key));
                }
                dropped.push(key.clone());
                continue;
            };
            if value.is_null() {
                dropped.push(key.clone());
                continue;
            }
            let length = self.push(key);
            self.value(&field.ty, value, Some(object))?;
            self.path.truncate(length);
            if field.omits_empty && !matches!(field.ty, Type::Bytes) && is_zero(value) {
                dropped.push(key.clone());
            }
        }
        for key in dropped {
            map.remove(&key);
        }
        for (field, default) in &object.defaults {
            if !map.contains_key(&**field) {
                map.insert(field.to_string(), default.clone());
            }
        }
        Ok(())
    }

    fn list(&mut self, item: &Type, list: &mut [Value], holder: Option<&Object>) -> Result<(), TypeError> {
        for (index, value) in list.iter_mut().enumerate() {
            let length = self.path.len();
            let _ = write!(self.path, "[{index}]");
            if value.is_null() {
                *value = zero(item);
            }
            self.value(item, value, holder)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    fn map(
        &mut self,
        item: &Type,
        map: &mut Map<String, Value>,
        holder: Option<&Object>,
    ) -> Result<(), TypeError> {
        for (key, value) in map.iter_mut() {
            let length = self.push(key);
            if value.is_null() {
                *value = zero(item);
            }
            self.value(item, value, holder)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    /// Appends a key to the path; returns the length to go back to.
    fn push(&mut self, key: &str) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        length
    }

    fn mismatch(&self, ty: &Type, value: &Value, holder: Option<&Object>) -> TypeError {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if matches!(ty, Type::Int32 | Type::Int64 | Type::IntOrString) => {
                format!("number {number}")
            }
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        // Go names the fields on the way without the indexes.
        let path: String = strip_indexes(&self.path);
        let field = holder.map_or(path.clone(), |holder| format!("{}.{path}", holder.short_name()));
        let expected = GoType(self.catalog, ty);
        if self.path.is_empty() {
            return TypeError(format!("json: cannot unmarshal {found} into Go value of type {expected}"));
        }
        TypeError(format!("json: cannot unmarshal {found} into Go struct field {field} of type {expected}"))
    }
}

/// Whether a scalar is one that Go doesn't tell from an absent one.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn strip_indexes(path: &str) -> String {
    let mut inside = false;
    path.chars()
        .filter(|c| {
            inside = (inside || *c == '[') && *c != ']';
            !inside && *c != ']'
        })
        .collect()
}

/// What a null in a list or map becomes: Go's zero value.
fn zero(ty: &Type) -> Value {
    match ty {
        Type::Any | Type::Structural(_) => Value::Null,
        Type::String | Type::Bytes => Value::String(String::new()),
        Type::Time | Type::MicroTime => Value::Null,
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => Value::from(0),
        Type::Quantity => Value::from("0"),
        Type::Bool => Value::Bool(false),
        Type::Named(_) | Type::Object(_) | Type::Map(_) => Value::Object(Map::new()),
        Type::List(_) => Value::Array(Vec::new()),
    }
}

fn check_base64(text: &str) -> Result<(), TypeError> {
    match STANDARD.decode(text) {
        Ok(_) => Ok(()),
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
            Err(TypeError(format!("illegal base64 data at input byte {at}")))
        }
        Err(_) => Err(TypeError(format!("illegal base64 data at input byte {}", text.len() / 4 * 4))),
    }
}

fn check_time(ty: &Type, text: &mut String) -> Result<(), TypeError> {
    // What the server writes itself needs no rewriting, and is most of what comes back.
    let time: Timestamp = text.parse().map_err(|_| {
        let layout = if matches!(ty, Type::Time) {
            "2006-01-02T15:04:05Z07:00"
        } else {
            "2006-01-02T15:04:05.000000Z07:00"
        };
        TypeError(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))
    })?;
    let canonical = match ty {
        Type::Time => kcore::clock::format_time(time),
        _ => kcore::clock::format_micro_time(time),
    };
    if *text != canonical {
        *text = canonical;
    }
    Ok(())
}

fn check_quantity(value: &mut Value) -> Result<(), TypeError> {
    let parsed = match &*value {
        Value::String(text) => Quantity::parse(text.trim()),
        other => Quantity::parse(&other.to_string()),
    };
    let canonical = parsed.map_err(|error| TypeError(error.to_string()))?.to_string();
    if value.as_str() != Some(canonical.as_str()) {
        *value = Value::String(canonical);
    }
    Ok(())
}

/// A type as Go writes it.
struct GoType<'a>(&'a Catalog, &'a Type);

impl fmt::Display for GoType<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Type::Any | Type::Structural(_) => f.write_str("interface {}"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("[]uint8"),
            Type::Time => f.write_str("v1.Time"),
            Type::MicroTime => f.write_str("v1.MicroTime"),
            Type::Int32 => f.write_str("int32"),
            Type::Int64 => f.write_str("int64"),
            Type::Double => f.write_str("float64"),
            Type::Bool => f.write_str("bool"),
            Type::IntOrString => f.write_str("intstr.IntOrString"),
            Type::Quantity => f.write_str("resource.Quantity"),
            Type::List(item) => write!(f, "[]{}", GoType(self.0, item)),
            Type::Map(item) => write!(f, "map[string]{}", GoType(self.0, item)),
            Type::Named(_) | Type::Object(_) => {
                let Some(object) = self.0.resolve(self.1) else {
                    return f.write_str("object");
                };
                let mut parts = object.name.rsplit('.');
                let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                write!(f, "{package}.{name}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builtin;

    fn run(name: &str, mut value: Value) -> Result<(Value, Vec<String>), String> {
        let catalog = builtin::catalog();
        let ty = Type::Named(catalog.find(name).unwrap());
        check(&catalog, &ty, &mut value).map(|unknown| (value, unknown)).map_err(|error| error.to_string())
    }

    #[test]
    fn unknown_fields_and_nulls_are_dropped_and_forms_made_canonical() {
        let node = json!({"spec": {"foo": 1, "externalID": null, "taints": [{"key": "a", "effect": "NoSchedule", "bar": {}}]},
            "status": {"capacity": {"cpu": 0.5, "memory": "1.5Gi"}},
            "metadata": {"creationTimestamp": "2026-01-02T03:04:05.678+01:00"}});
        let (value, unknown) = run("~core.v1.Node", node).unwrap();
        assert_eq!(unknown, ["spec.foo", "spec.taints[0].bar"]);
        let expected = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]},
            "status": {"capacity": {"cpu": "500m", "memory": "1536Mi"}},
            "metadata": {"creationTimestamp": "2026-01-02T02:04:05Z"}});
        assert_eq!(value, expected);
    }

    #[test]
    fn plain_defaults_are_filled_in() {
        let (value, _) = run("~core.v1.Service", json!({"spec": {"ports": [{"port": 80}]}})).unwrap();
        let ports = json!([{"port": 80, "protocol": "TCP"}]);
        assert_eq!(value, json!({"spec": {"ports": ports, "sessionAffinity": "None", "type": "ClusterIP"}}));
    }

    #[test]
    fn wrong_types_are_refused_in_gos_words() {
        for (spec, message) in [
            (
                json!({"replicas": "3"}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"replicas": 3_000_000_000_u32}),
                "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"template": {"spec": {"containers": {}}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                json!([]),
                "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec",
            ),
        ] {
            assert_eq!(run("~apps.v1.Deployment", json!({"spec": spec})).unwrap_err(), message);
        }
        assert!(
            run("~core.v1.Secret", json!({"data": {"a": "***"}})).unwrap_err().contains("illegal base64")
        );
    }
}
