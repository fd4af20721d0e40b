//! The protobuf form of the OpenAPI documents (`openapi.v2.Document` and `openapi.v3.Document`, as gnostic-models' `.proto` files
//! number them), which kubectl asks for when it learns what a server can do with a kind.
//!
//! It is made from the JSON document by tables: a field of JSON has a number and a way of being written. What the tables don't
//! name is left out, as the format has no place for it.

mod v2;
mod v3;

use serde_json::{Map, Value};

use super::Spec;

/// How deep a document may be nested; what lies deeper is left out.
const DEPTH_MAX: usize = 128;

/// The number, shifted, and the form in which bytes of a known length stand.
const LENGTH: u32 = 2;

/// How a field is written.
#[derive(Clone, Copy)]
enum Form {
    Text,
    /// A list of texts.
    Texts,
    Flag,
    Int,
    Double,
    /// A value of any kind, as YAML, which JSON is.
    Any,
    /// A list of them.
    Anys,
    Message(Table),
    /// A message that is within another one's first field.
    Wrapped(Table),
    /// A list of messages.
    Messages(Table),
    /// A message whose first field is a list of names with their messages.
    Named(Table),
    /// A list of parameters, each of a message of its own.
    Parameters,
    /// `type`, which is one text or a list of them.
    TypeItem,
    /// `items`, which is one schema or a list of them.
    Items,
    /// `additionalProperties`: a schema or a truth value.
    Additional,
    /// Each path a message of the table; the numbers of paths and of extensions.
    Paths(Table, [u32; 2]),
    Responses,
    /// A list of names, each with a list of texts.
    Requirements,
    SecurityDefinitions,
    /// A message of the table, or a reference to one: since version 3.
    OrReference(Table),
    /// A list of those.
    OrReferences(Table),
    /// A message whose first field is a list of names with those.
    NamedOrReferences(Table),
    /// The same by status, of which `default` has a field of its own.
    ResponsesOrReferences(Table),
    /// `items`: a list of one schema or reference.
    ItemsOrReference(Table),
    /// `additionalProperties`: a schema, a reference, or a truth value.
    AdditionalOrReference(Table),
    /// `default`: a number, a truth value or a text; others leave an empty message.
    Scalar,
}

/// The fields of a message. Messages refer to themselves, so a table is named by its address.
type Table = &'static &'static [Field];

/// A field of JSON, its number and its form.
type Field = (&'static str, u32, Form);

/// The field under which everything that begins with `x-` goes.
const EXTENSIONS: &str = "x-";

/// The protobuf form of a document that is given as JSON; nothing if that is no JSON object.
pub(super) fn document(spec: Spec, json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let table: Table = match spec {
        Spec::V2 => &v2::DOCUMENT,
        Spec::V3 => &v3::DOCUMENT,
    };
    if let Ok(Value::Object(map)) = serde_json::from_slice(json) {
        fields(&mut out, table, &map, 0);
    }
    out
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(out, u64::from(number << 3 | LENGTH));
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// Writes a field that is a message, of which `write` gives the contents.
fn nested(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut content = Vec::new();
    write(&mut content);
    bytes(out, number, &content);
}

fn any(out: &mut Vec<u8>, number: u32, value: &Value) {
    nested(out, number, |out| bytes(out, 2, value.to_string().as_bytes()));
}

/// A name and its message, as an entry of field `number`.
fn entry(out: &mut Vec<u8>, number: u32, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    nested(out, number, |out| {
        bytes(out, 1, name.as_bytes());
        nested(out, 2, write);
    });
}

fn fields(out: &mut Vec<u8>, table: Table, map: &Map<String, Value>, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    for (name, number, form) in *table {
        if *name == EXTENSIONS {
            let extensions = map.iter().filter(|(key, _)| key.starts_with(EXTENSIONS));
            extensions.for_each(|(key, value)| extension(out, *number, key, value));
        } else if let Some(value) = map.get(*name) {
            field(out, *number, *form, value, depth + 1);
        }
    }
}

/// Writes a field that is a message of a table; a value that is no object is left out.
fn message(out: &mut Vec<u8>, number: u32, table: Table, value: &Value, depth: usize) {
    if let Some(map) = value.as_object() {
        nested(out, number, |out| fields(out, table, map, depth));
    }
}

fn texts(out: &mut Vec<u8>, number: u32, value: &Value) {
    let list = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    list.for_each(|text| bytes(out, number, text.as_bytes()));
}

fn field(out: &mut Vec<u8>, number: u32, form: Form, value: &Value, depth: usize) {
    let list = || value.as_array().into_iter().flatten();
    let map = || value.as_object().into_iter().flatten();
    match form {
        // What is empty or zero is not written (proto3).
        Form::Text => match value.as_str() {
            Some(text) if !text.is_empty() => bytes(out, number, text.as_bytes()),
            _ => {}
        },
        Form::Texts => texts(out, number, value),
        Form::Flag if value == true => out_scalar(out, number, 1),
        Form::Flag => {}
        Form::Int => match value.as_i64() {
            Some(value) if value != 0 => out_scalar(out, number, value as u64),
            _ => {}
        },
        Form::Double => match value.as_f64() {
            Some(value) if value != 0.0 => {
                varint(out, u64::from(number << 3 | 1));
                out.extend_from_slice(&value.to_le_bytes());
            }
            _ => {}
        },
        Form::Any => any(out, number, value),
        Form::Anys => list().for_each(|value| any(out, number, value)),
        Form::Message(table) => message(out, number, table, value, depth),
        Form::Wrapped(table) => nested(out, number, |out| message(out, 1, table, value, depth)),
        Form::Messages(table) => list().for_each(|value| message(out, number, table, value, depth)),
        Form::Named(table) => nested(out, number, |out| {
            for (name, value) in map() {
                if let Some(map) = value.as_object() {
                    entry(out, 1, name, |out| fields(out, table, map, depth));
                }
            }
        }),
        Form::Parameters => list().for_each(|value| parameter(out, number, value, depth)),
        Form::TypeItem => nested(out, number, |out| match value.as_str() {
            Some(text) => bytes(out, 1, text.as_bytes()),
            None => texts(out, 1, value),
        }),
        Form::Items => nested(out, number, |out| match value {
            Value::Array(list) => list.iter().for_each(|value| message(out, 1, &v2::SCHEMA, value, depth)),
            value => message(out, 1, &v2::SCHEMA, value, depth),
        }),
        Form::Additional => nested(out, number, |out| match value {
            // One of two: it is written even if it is false.
            Value::Bool(flag) => out_scalar(out, 2, u64::from(*flag)),
            value => message(out, 1, &v2::SCHEMA, value, depth),
        }),
        Form::Paths(table, numbers) => nested(out, number, |out| paths(out, table, numbers, value, depth)),
        Form::Responses => nested(out, number, |out| responses(out, value, depth)),
        Form::Requirements => list().for_each(|value| {
            nested(out, number, |out| {
                for (name, value) in value.as_object().into_iter().flatten() {
                    entry(out, 1, name, |out| texts(out, 1, value));
                }
            });
        }),
        Form::OrReference(table) => or_reference(out, number, table, value, depth),
        Form::OrReferences(table) => list().for_each(|value| or_reference(out, number, table, value, depth)),
        Form::NamedOrReferences(table) => nested(out, number, |out| {
            map().for_each(|(name, value)| named_or_reference(out, 1, name, table, value, depth));
        }),
        Form::ResponsesOrReferences(table) => nested(out, number, |out| {
            if let Some(value) = value.get("default") {
                or_reference(out, 1, table, value, depth);
            }
            for (name, value) in map() {
                match name.as_str() {
                    "default" => {}
                    name if name.starts_with(EXTENSIONS) => extension(out, 3, name, value),
                    name => named_or_reference(out, 2, name, table, value, depth),
                }
            }
        }),
        Form::ItemsOrReference(table) => nested(out, number, |out| or_reference(out, 1, table, value, depth)),
        Form::AdditionalOrReference(table) => nested(out, number, |out| match value {
            Value::Bool(flag) => out_scalar(out, 2, u64::from(*flag)),
            value => or_reference(out, 1, table, value, depth),
        }),
        Form::Scalar => nested(out, number, |out| scalar(out, value)),
        Form::SecurityDefinitions => nested(out, number, |out| {
            for (name, value) in map() {
                let (number, table) = match value["type"].as_str() {
                    Some("basic") => (1, &v2::BASIC),
                    Some("apiKey") => (2, &v2::API_KEY),
                    _ => continue,
                };
                entry(out, 1, name, |out| message(out, number, table, value, depth));
            }
        }),
    }
}

fn out_scalar(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(number << 3));
    varint(out, value);
}

/// One of three, written even if it is zero.
fn scalar(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Number(number) => {
            varint(out, 1 << 3 | 1);
            out.extend_from_slice(&number.as_f64().unwrap_or_default().to_le_bytes());
        }
        Value::Bool(flag) => out_scalar(out, 2, u64::from(*flag)),
        Value::String(text) => bytes(out, 3, text.as_bytes()),
        _ => {}
    }
}

/// Writes one of two: the message in its first field, or a reference in its second.
fn or_reference(out: &mut Vec<u8>, number: u32, table: Table, value: &Value, depth: usize) {
    nested(out, number, |out| match value.get("$ref") {
        Some(_) => message(out, 2, &v3::REFERENCE, value, depth),
        None => message(out, 1, table, value, depth),
    });
}

fn named_or_reference(out: &mut Vec<u8>, number: u32, name: &str, table: Table, value: &Value, depth: usize) {
    nested(out, number, |out| {
        bytes(out, 1, name.as_bytes());
        or_reference(out, 2, table, value, depth);
    });
}

fn extension(out: &mut Vec<u8>, number: u32, name: &str, value: &Value) {
    entry(out, number, name, |out| bytes(out, 2, value.to_string().as_bytes()));
}

fn paths(out: &mut Vec<u8>, table: Table, [path, extra]: [u32; 2], value: &Value, depth: usize) {
    for (name, value) in value.as_object().into_iter().flatten() {
        if name.starts_with(EXTENSIONS) {
            extension(out, extra, name, value);
        } else if let Some(map) = value.as_object() {
            entry(out, path, name, |out| fields(out, table, map, depth));
        }
    }
}

fn responses(out: &mut Vec<u8>, value: &Value, depth: usize) {
    for (name, value) in value.as_object().into_iter().flatten() {
        if name.starts_with(EXTENSIONS) {
            extension(out, 2, name, value);
            continue;
        }
        let (number, table) =
            if value.get("$ref").is_some() { (2, &v2::REFERENCE) } else { (1, &v2::RESPONSE) };
        entry(out, 1, name, |out| message(out, number, table, value, depth));
    }
}

/// A parameter: a reference, one in the body, or one of four kinds elsewhere.
fn parameter(out: &mut Vec<u8>, number: u32, value: &Value, depth: usize) {
    nested(out, number, |out| {
        if value.get("$ref").is_some() {
            return message(out, 2, &v2::REFERENCE, value, depth);
        }
        nested(out, 1, |out| {
            let (number, table) = match value["in"].as_str() {
                Some("body") => return message(out, 1, &v2::BODY_PARAMETER, value, depth),
                Some("header") => (1, &v2::PATH_PARAMETER),
                Some("formData") => (2, &v2::QUERY_PARAMETER),
                Some("query") => (3, &v2::QUERY_PARAMETER),
                _ => (4, &v2::PATH_PARAMETER),
            };
            nested(out, 2, |out| message(out, number, table, value, depth));
        });
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The expected bytes were read off gnostic-models' `OpenAPIv2.proto` and protobuf's encoding guide: a tag is the field's
    /// number times eight and the wire type (2: length and bytes, 0: varint, 1: eight bytes).
    #[test]
    fn fields_have_the_numbers_of_the_description() {
        let additional = |value: Value| json!({"definitions": {"A": {"additionalProperties": value}}});
        let cases: &[(Value, &[u8])] = &[
            (json!({}), b""),
            (json!({"swagger": "2.0", "unknown": 1}), b"\x0a\x032.0"),
            (json!({"info": {"title": "a", "version": ""}}), b"\x12\x03\x0a\x01a"),
            (json!({"definitions": {"A": {"type": "object"}}}), b"\x4a\x12\x0a\x10\x0a\x01A\x12\x0b\xb2\x01\x08\x0a\x06object"),
            (additional(json!(false)), b"\x4a\x0c\x0a\x0a\x0a\x01A\x12\x05\xaa\x01\x02\x10\x00"),
            (additional(json!({"minimum": 1})), b"\x4a\x15\x0a\x13\x0a\x01A\x12\x0e\xaa\x01\x0b\x0a\x09\x49\0\0\0\0\0\0\xf0\x3f"),
            (
                json!({"paths": {"/a": {"parameters": [{"in": "path", "name": "n", "required": true}]}}}),
                b"\x42\x1b\x12\x19\x0a\x02/a\x12\x13\x4a\x11\x0a\x0f\x12\x0d\x22\x0b\x08\x01\x12\x04path\x22\x01n",
            ),
            (json!({"x-a": [1]}), b"\x82\x01\x0c\x0a\x03x-a\x12\x05\x12\x03[1]"),
        ];
        for (json, expected) in cases {
            assert_eq!(&document(Spec::V2, json.to_string().as_bytes()), expected, "{json}");
        }
    }

    /// The bytes that gnostic-models 0.7's `openapi_v3.ParseDocument` and a deterministic `proto.Marshal` make of these documents.
    #[test]
    fn fields_of_the_third_version_have_their_numbers() {
        let cases: &[(&str, &[u8])] = &[
            (
                r##"{"openapi":"3.0.0","info":{"title":"a","version":"b"},"paths":{}}"##,
                b"\x0a\x053.0.0\x12\x06\x0a\x01a2\x01b\x22\0",
            ),
            (
                r##"{"openapi":"3.0.0","info":{"title":"a","version":"b"},"paths":{},"components":{"schemas":{"A":{"type":"object","default":{},"properties":{"b":{"allOf":[{"$ref":"#/c"}],"default":0},"d":{"type":"array","items":{"type":"string","default":""}}},"additionalProperties":false}}}}"##,
                b"\x0a\x053.0.0\x12\x06\x0a\x01a2\x01b\x22\0*d\x0ab\x0a`\x0a\x01A\x12[\x0aY\xca\x01\x06object\xfa\x01E\x0a\x1d\x0a\x01b\x12\x18\x0a\x16\xd2\x01\x07\x12\x05\x0a\x03#/c\x8a\x02\x09\x09\0\0\0\0\0\0\0\0\x0a$\x0a\x01d\x12\x1f\x0a\x1d\xca\x01\x05array\xf2\x01\x12\x0a\x10\x0a\x0e\xca\x01\x06string\x8a\x02\x02\x1a\0\x82\x02\x02\x10\0\x8a\x02\0",
            ),
            (
                r##"{"openapi":"3.0.0","info":{"title":"a","version":"b"},"paths":{"/a":{"parameters":[{"name":"n","in":"path","required":true,"schema":{"type":"string"}}],"get":{"operationId":"o","requestBody":{"content":{"*/*":{"schema":{"$ref":"#/c"}}}},"responses":{"200":{"description":"OK","content":{"j":{"schema":{"type":"integer","default":true,"minimum":1.5}}}},"default":{"description":"no"}}}}}}"##,
                b"\x0a\x053.0.0\x12\x06\x0a\x01a2\x01b\x22\x7f\x0a}\x0a\x02/a\x12w\x22Y*\x01o:\x16\x0a\x14\x12\x12\x0a\x10\x0a\x03*/*\x12\x09\x0a\x07\x12\x05\x0a\x03#/cB<\x0a\x06\x0a\x04\x0a\x02no\x122\x0a\x03200\x12+\x0a)\x0a\x02OK\x1a#\x0a!\x0a\x01j\x12\x1c\x0a\x1a\x0a\x18i\0\0\0\0\0\0\xf8?\xca\x01\x07integer\x8a\x02\x02\x10\x01j\x1a\x0a\x18\x0a\x01n\x12\x04path \x01R\x0b\x0a\x09\xca\x01\x06string",
            ),
            (
                r##"{"openapi":"3.0.0","info":{"title":"a","version":"b"},"paths":{},"components":{"securitySchemes":{"T":{"type":"apiKey","name":"authorization","in":"header"}}},"security":[{"T":[]}]}"##,
                b"\x0a\x053.0.0\x12\x06\x0a\x01a2\x01b\x22\0**:(\x0a&\x0a\x01T\x12!\x0a\x1f\x0a\x06apiKey\x1a\x0dauthorization\x22\x06header2\x07\x0a\x05\x0a\x01T\x12\0",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(&document(Spec::V3, json.as_bytes()), expected, "{json}");
        }
    }
}
