//! Equality: across numeric types, and as schemas define it for lists and objects.

use super::{
    Value, json,
    list::{List, map_key},
    map::{JsonMap, Map, MapShape},
    order::{equal_double, equal_int_uint},
};
use crate::{decl::ListKind, error::EvalError};

/// Whether two values are equal; values of different types are not, numbers excepted.
pub(crate) fn equal<'a>(left: &Value<'a>, right: &Value<'a>) -> Result<bool, EvalError> {
    Ok(match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Int(left), Value::Int(right)) => left == right,
        (Value::Uint(left), Value::Uint(right)) => left == right,
        (Value::Double(left), Value::Double(right)) => left == right,
        (Value::Int(int), Value::Uint(uint)) | (Value::Uint(uint), Value::Int(int)) => {
            equal_int_uint(*int, *uint)
        }
        (Value::Double(_), Value::Int(_) | Value::Uint(_)) => equal_double(left, right),
        (Value::Int(_) | Value::Uint(_), Value::Double(_)) => equal_double(right, left),
        (Value::String(left), Value::String(right)) | (Value::Type(left), Value::Type(right)) => {
            left == right
        }
        (Value::Bytes(left), Value::Bytes(right)) => left == right,
        (Value::Timestamp(left), Value::Timestamp(right)) => left == right,
        (Value::Duration(left), Value::Duration(right)) => left == right,
        (Value::List(left), Value::List(right)) => return equal_lists(left, right),
        (Value::Map(left), Value::Map(right)) => return equal_maps(left, right),
        (Value::Optional(left), Value::Optional(right)) => match (left, right) {
            (Some(left), Some(right)) => return equal(left, right),
            (left, right) => left.is_none() == right.is_none(),
        },
        (Value::Object(left), Value::Object(right)) => {
            if left.name != right.name || left.fields.len() != right.fields.len() {
                return Ok(false);
            }
            for (name, value) in left.fields() {
                match right.field(name) {
                    Some(other) if equal(value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Native(left), Value::Native(right)) => left == right,
        (Value::Preserved(left), Value::Preserved(right)) => left == right,
        _ => false,
    })
}

fn equal_lists<'a>(left: &List<'a>, right: &List<'a>) -> Result<bool, EvalError> {
    if left.len() != right.len() {
        return Ok(false);
    }
    match left.kind {
        ListKind::Atomic => {
            for (left, right) in left.iter().zip(right.iter()) {
                if !equal(&left?, &right?)? {
                    return Ok(false);
                }
            }
        }
        ListKind::Set => {
            for value in right.iter() {
                if !left.contains(&value?)? {
                    return Ok(false);
                }
            }
        }
        ListKind::Map(keys) => {
            let mut elements = Vec::with_capacity(left.len());
            for value in left.iter() {
                let value = value?;
                elements.push((map_key(&value, keys)?, value));
            }
            for value in right.iter() {
                let value = value?;
                let key = map_key(&value, keys)?;
                // The last of several elements with the same key counts.
                match elements.iter().rev().find(|(found, _)| *found == key) {
                    Some((_, found)) if equal(found, &value)? => {}
                    _ => return Ok(false),
                }
            }
        }
    }
    Ok(true)
}

fn equal_maps<'a>(left: &Map<'a>, right: &Map<'a>) -> Result<bool, EvalError> {
    if left.len() != right.len() {
        return Ok(false);
    }
    if let (Map::Json(left), Map::Json(right)) = (left, right)
        && let (MapShape::Object(_), MapShape::Object(_)) = (left.shape, right.shape)
    {
        return equal_objects(left, right);
    }
    for (key, value) in left.entries()? {
        match right.find(&key)? {
            Some(other) if equal(&value, &other)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Declared fields are compared as declared; others as the JSON that they are, where both objects have them.
fn equal_objects<'a>(left: &JsonMap<'a>, right: &JsonMap<'a>) -> Result<bool, EvalError> {
    let MapShape::Object(object) = left.shape else {
        return Ok(false);
    };
    for (name, value) in left.fields {
        let other = right.fields.get(name);
        match object.json_field(name) {
            Some((_, field)) => {
                let present =
                    |value: &Option<&serde_json::Value>| value.is_some_and(|value| !value.is_null());
                match (present(&Some(value)), present(&other)) {
                    (false, false) => {}
                    (true, true) => {
                        let (value, other) = (json::read(value, &field.decl)?, other.unwrap_or(value));
                        if !equal(&value, &json::read(other, &field.decl)?)? {
                            return Ok(false);
                        }
                    }
                    _ => return Ok(false),
                }
            }
            None => {
                if other.is_some_and(|other| other != value) {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}
