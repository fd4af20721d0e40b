//! From JSON to values, by a declaration or by what it is, and back.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    Items, List, Map, Moment, Value, duration_text,
    map::{JsonMap, MapShape},
    moment::{parse_date, parse_date_time, parse_schema_duration},
};
use crate::{
    decl::{Decl, ListKind, Shape},
    error::EvalError,
};

/// JSON of any form.
pub(super) fn dynamic(value: &serde_json::Value) -> Value<'_> {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int),
            (None, Some(uint)) => Value::Double(uint as f64),
            (None, None) => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => {
            Value::List(List { items: Items::Json(items, None), kind: &ListKind::Atomic })
        }
        serde_json::Value::Object(fields) => Value::Map(Map::Json(JsonMap { fields, shape: MapShape::Dyn })),
    }
}

fn unexpected<T>(expected: &str, value: &serde_json::Value) -> Result<T, EvalError> {
    let found = match value {
        serde_json::Value::Null => "<nil>",
        serde_json::Value::Bool(_) => "bool",
        serde_json::Value::Number(number) if number.is_i64() => "int64",
        serde_json::Value::Number(_) => "float64",
        serde_json::Value::String(_) => "string",
        serde_json::Value::Array(_) => "[]interface {}",
        serde_json::Value::Object(_) => "map[string]interface {}",
    };
    Err(EvalError::new(format!("invalid data, expected {expected}, got {found}")))
}

/// JSON as declared.
pub(crate) fn read<'a>(value: &'a serde_json::Value, decl: &'a Decl) -> Result<Value<'a>, EvalError> {
    if let Shape::Optional(inner) = &decl.shape {
        let value = if value.is_null() { None } else { Some(read(value, inner)?) };
        return Ok(Value::optional(value));
    }
    if value.is_null() && !matches!(decl.shape, Shape::Dyn | Shape::Preserved) {
        return if decl.nullable {
            Ok(Value::Null)
        } else {
            Err(EvalError::new("invalid data, got null for schema with nullable=false"))
        };
    }
    match &decl.shape {
        Shape::Dyn => Ok(dynamic(value)),
        Shape::Preserved => Ok(Value::Preserved(value)),
        Shape::IntOrString => match value {
            serde_json::Value::String(text) => Ok(Value::from(text.as_str())),
            serde_json::Value::Number(number) if number.is_i64() => Ok(dynamic(value)),
            _ => Err(EvalError::new(
                "invalid data, expected XIntOrString value to be either a string or integer",
            )),
        },
        Shape::Bool => {
            value.as_bool().map_or_else(|| unexpected("bool", value), |value| Ok(Value::Bool(value)))
        }
        Shape::Int => value.as_i64().map_or_else(|| unexpected("int", value), |value| Ok(Value::Int(value))),
        Shape::Double => {
            value.as_f64().map_or_else(|| unexpected("float", value), |value| Ok(Value::Double(value)))
        }
        Shape::String | Shape::Base64 | Shape::Duration | Shape::Date | Shape::DateTime => {
            let Some(text) = value.as_str() else {
                return unexpected("string", value);
            };
            read_text(text, &decl.shape)
        }
        Shape::List(items, kind) => match value {
            serde_json::Value::Array(values) => {
                Ok(Value::List(List { items: Items::Json(values, Some(items)), kind }))
            }
            _ => {
                Err(EvalError::new("invalid data, expected an array for the provided schema with type=array"))
            }
        },
        Shape::Map(values, _) => read_object(value, MapShape::Values(values)),
        Shape::Object(object) => read_object(value, MapShape::Object(object)),
        Shape::Native(of) => Err(EvalError::new(format!("a value of type '{of}' can't be read from JSON"))),
        // Read above.
        Shape::Optional(inner) => read(value, inner),
    }
}

fn read_object<'a>(value: &'a serde_json::Value, shape: MapShape<'a>) -> Result<Value<'a>, EvalError> {
    match value {
        serde_json::Value::Object(fields) => Ok(Value::Map(Map::Json(JsonMap { fields, shape }))),
        _ => Err(EvalError::new("invalid data, expected a map for the provided schema with type=object")),
    }
}

fn read_text<'a>(text: &'a str, shape: &Shape) -> Result<Value<'a>, EvalError> {
    match shape {
        Shape::Duration => parse_schema_duration(text).map(Value::Duration).ok_or_else(|| {
            EvalError::new(format!("Invalid duration {text}: unable to parse {text} as duration"))
        }),
        Shape::Date => parse_date(text)
            .map(Value::Timestamp)
            .ok_or_else(|| EvalError::new(format!("Invalid date formatted string {text}: cannot parse"))),
        Shape::DateTime => parse_date_time(text).map(Value::Timestamp).ok_or_else(|| {
            EvalError::new(format!("Invalid date-time formatted string {text}: cannot parse"))
        }),
        Shape::Base64 => STANDARD
            .decode(text)
            .map(|bytes| Value::Bytes(Arc::from(bytes)))
            .map_err(|error| EvalError::new(format!("Invalid byte formatted string {text}: {error}"))),
        _ => Ok(Value::from(text)),
    }
}

impl Value<'_> {
    /// The value as JSON: bytes as base64, moments and lengths of time as their text, an absent optional as null.
    ///
    /// # Errors
    /// When a map has keys that are no text, a number is not finite, or a value of a library's type has no JSON.
    pub fn to_json(&self) -> Result<serde_json::Value, EvalError> {
        use serde_json::Value as Json;
        Ok(match self {
            Self::Null | Self::Optional(None) => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::from(*value),
            Self::Uint(value) => Json::from(*value),
            Self::Double(value) => serde_json::Number::from_f64(*value)
                .map(Json::Number)
                .ok_or_else(|| EvalError::new("a number that is not finite has no JSON"))?,
            Self::String(text) => Json::String((**text).to_owned()),
            Self::Bytes(bytes) => Json::String(STANDARD.encode(bytes)),
            Self::Timestamp(moment) => Json::String(Moment::to_string(moment)),
            Self::Duration(nanos) => Json::String(duration_text(*nanos)),
            Self::List(list) => match &list.items {
                Items::Json(items, _) => Json::Array(items.to_vec()),
                Items::Sum(_) => {
                    Json::Array(list.iter().map(|value| value?.to_json()).collect::<Result<_, _>>()?)
                }
                Items::Values(values) => {
                    Json::Array(values.iter().map(Self::to_json).collect::<Result<_, _>>()?)
                }
            },
            Self::Map(Map::Json(map)) => Json::Object(map.fields.clone()),
            Self::Map(map) => {
                let mut fields = serde_json::Map::new();
                for (key, value) in map.entries()? {
                    let Self::String(key) = key else {
                        return Err(EvalError::new("a map whose keys are no text has no JSON"));
                    };
                    fields.insert((*key).to_owned(), value.to_json()?);
                }
                Json::Object(fields)
            }
            Self::Optional(Some(value)) => value.to_json()?,
            Self::Object(object) => {
                let mut fields = serde_json::Map::new();
                for (name, value) in object.fields() {
                    let name = crate::escape::unescape(name).unwrap_or(name.into());
                    fields.insert(name.into_owned(), value.to_json()?);
                }
                Json::Object(fields)
            }
            Self::Native(native) => Json::String(native.text()?),
            Self::Type(name) => return Err(EvalError::new(format!("the type '{}' has no JSON", &**name))),
            Self::Preserved(value) => (*value).clone(),
        })
    }
}
