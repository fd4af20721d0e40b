//! The protobuf form of the OpenAPI v2 document (`openapi.v2.Document`, as gnostic-models' `OpenAPIv2.proto` numbers it), which
//! kubectl asks for when it checks kinds that can't be patched, and older clients always.
//!
//! It is made from the JSON document by tables: a field of JSON has a number and a way of being written. What the tables don't
//! name is left out, as Swagger 2.0 has no place for it.

use serde_json::{Map, Value};

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
    Paths,
    Responses,
    /// A list of names, each with a list of texts.
    Requirements,
    SecurityDefinitions,
}

/// The fields of a message. Messages refer to themselves, so a table is named by its address.
type Table = &'static &'static [Field];

/// A field of JSON, its number and its form.
type Field = (&'static str, u32, Form);

/// The field under which everything that begins with `x-` goes.
const EXTENSIONS: &str = "x-";

static DOCUMENT: &[Field] = &[
    ("swagger", 1, Form::Text),
    ("info", 2, Form::Message(&INFO)),
    ("host", 3, Form::Text),
    ("basePath", 4, Form::Text),
    ("schemes", 5, Form::Texts),
    ("consumes", 6, Form::Texts),
    ("produces", 7, Form::Texts),
    ("paths", 8, Form::Paths),
    ("definitions", 9, Form::Named(&SCHEMA)),
    ("security", 12, Form::Requirements),
    ("securityDefinitions", 13, Form::SecurityDefinitions),
    ("tags", 14, Form::Messages(&TAG)),
    ("externalDocs", 15, Form::Message(&EXTERNAL_DOCS)),
    (EXTENSIONS, 16, Form::Any),
];

static INFO: &[Field] = &[
    ("title", 1, Form::Text),
    ("version", 2, Form::Text),
    ("description", 3, Form::Text),
    ("termsOfService", 4, Form::Text),
    ("contact", 5, Form::Message(&CONTACT)),
    ("license", 6, Form::Message(&LICENSE)),
    (EXTENSIONS, 7, Form::Any),
];

static CONTACT: &[Field] =
    &[("name", 1, Form::Text), ("url", 2, Form::Text), ("email", 3, Form::Text), (EXTENSIONS, 4, Form::Any)];

static LICENSE: &[Field] = &[("name", 1, Form::Text), ("url", 2, Form::Text), (EXTENSIONS, 3, Form::Any)];

static EXTERNAL_DOCS: &[Field] =
    &[("description", 1, Form::Text), ("url", 2, Form::Text), (EXTENSIONS, 3, Form::Any)];

static TAG: &[Field] = &[
    ("name", 1, Form::Text),
    ("description", 2, Form::Text),
    ("externalDocs", 3, Form::Message(&EXTERNAL_DOCS)),
    (EXTENSIONS, 4, Form::Any),
];

static PATH_ITEM: &[Field] = &[
    ("$ref", 1, Form::Text),
    ("get", 2, Form::Message(&OPERATION)),
    ("put", 3, Form::Message(&OPERATION)),
    ("post", 4, Form::Message(&OPERATION)),
    ("delete", 5, Form::Message(&OPERATION)),
    ("options", 6, Form::Message(&OPERATION)),
    ("head", 7, Form::Message(&OPERATION)),
    ("patch", 8, Form::Message(&OPERATION)),
    ("parameters", 9, Form::Parameters),
    (EXTENSIONS, 10, Form::Any),
];

static OPERATION: &[Field] = &[
    ("tags", 1, Form::Texts),
    ("summary", 2, Form::Text),
    ("description", 3, Form::Text),
    ("externalDocs", 4, Form::Message(&EXTERNAL_DOCS)),
    ("operationId", 5, Form::Text),
    ("produces", 6, Form::Texts),
    ("consumes", 7, Form::Texts),
    ("parameters", 8, Form::Parameters),
    ("responses", 9, Form::Responses),
    ("schemes", 10, Form::Texts),
    ("deprecated", 11, Form::Flag),
    ("security", 12, Form::Requirements),
    (EXTENSIONS, 13, Form::Any),
];

/// Headers and examples of answers, which nobody writes for Kubernetes' kinds, are left out.
static RESPONSE: &[Field] =
    &[("description", 1, Form::Text), ("schema", 2, Form::Wrapped(&SCHEMA)), (EXTENSIONS, 5, Form::Any)];

static REFERENCE: &[Field] = &[("$ref", 1, Form::Text), ("description", 2, Form::Text)];

static BODY_PARAMETER: &[Field] = &[
    ("description", 1, Form::Text),
    ("name", 2, Form::Text),
    ("in", 3, Form::Text),
    ("required", 4, Form::Flag),
    ("schema", 5, Form::Message(&SCHEMA)),
    (EXTENSIONS, 6, Form::Any),
];

/// Parameters in the query and in forms.
static QUERY_PARAMETER: &[Field] = &[
    ("required", 1, Form::Flag),
    ("in", 2, Form::Text),
    ("description", 3, Form::Text),
    ("name", 4, Form::Text),
    ("allowEmptyValue", 5, Form::Flag),
    ("type", 6, Form::Text),
    ("format", 7, Form::Text),
    ("items", 8, Form::Message(&ITEMS)),
    ("collectionFormat", 9, Form::Text),
    ("default", 10, Form::Any),
    ("maximum", 11, Form::Double),
    ("exclusiveMaximum", 12, Form::Flag),
    ("minimum", 13, Form::Double),
    ("exclusiveMinimum", 14, Form::Flag),
    ("maxLength", 15, Form::Int),
    ("minLength", 16, Form::Int),
    ("pattern", 17, Form::Text),
    ("maxItems", 18, Form::Int),
    ("minItems", 19, Form::Int),
    ("uniqueItems", 20, Form::Flag),
    ("enum", 21, Form::Anys),
    ("multipleOf", 22, Form::Double),
    (EXTENSIONS, 23, Form::Any),
];

/// Parameters in the path and in headers: as above, without `allowEmptyValue`.
static PATH_PARAMETER: &[Field] = &[
    ("required", 1, Form::Flag),
    ("in", 2, Form::Text),
    ("description", 3, Form::Text),
    ("name", 4, Form::Text),
    ("type", 5, Form::Text),
    ("format", 6, Form::Text),
    ("items", 7, Form::Message(&ITEMS)),
    ("collectionFormat", 8, Form::Text),
    ("default", 9, Form::Any),
    ("maximum", 10, Form::Double),
    ("exclusiveMaximum", 11, Form::Flag),
    ("minimum", 12, Form::Double),
    ("exclusiveMinimum", 13, Form::Flag),
    ("maxLength", 14, Form::Int),
    ("minLength", 15, Form::Int),
    ("pattern", 16, Form::Text),
    ("maxItems", 17, Form::Int),
    ("minItems", 18, Form::Int),
    ("uniqueItems", 19, Form::Flag),
    ("enum", 20, Form::Anys),
    ("multipleOf", 21, Form::Double),
    (EXTENSIONS, 22, Form::Any),
];

/// What a parameter is a list of.
static ITEMS: &[Field] = &[
    ("type", 1, Form::Text),
    ("format", 2, Form::Text),
    ("items", 3, Form::Message(&ITEMS)),
    ("collectionFormat", 4, Form::Text),
    ("default", 5, Form::Any),
    ("pattern", 12, Form::Text),
    ("enum", 16, Form::Anys),
    (EXTENSIONS, 18, Form::Any),
];

static SCHEMA: &[Field] = &[
    ("$ref", 1, Form::Text),
    ("format", 2, Form::Text),
    ("title", 3, Form::Text),
    ("description", 4, Form::Text),
    ("default", 5, Form::Any),
    ("multipleOf", 6, Form::Double),
    ("maximum", 7, Form::Double),
    ("exclusiveMaximum", 8, Form::Flag),
    ("minimum", 9, Form::Double),
    ("exclusiveMinimum", 10, Form::Flag),
    ("maxLength", 11, Form::Int),
    ("minLength", 12, Form::Int),
    ("pattern", 13, Form::Text),
    ("maxItems", 14, Form::Int),
    ("minItems", 15, Form::Int),
    ("uniqueItems", 16, Form::Flag),
    ("maxProperties", 17, Form::Int),
    ("minProperties", 18, Form::Int),
    ("required", 19, Form::Texts),
    ("enum", 20, Form::Anys),
    ("additionalProperties", 21, Form::Additional),
    ("type", 22, Form::TypeItem),
    ("items", 23, Form::Items),
    ("allOf", 24, Form::Messages(&SCHEMA)),
    ("properties", 25, Form::Named(&SCHEMA)),
    ("discriminator", 26, Form::Text),
    ("readOnly", 27, Form::Flag),
    ("externalDocs", 29, Form::Message(&EXTERNAL_DOCS)),
    ("example", 30, Form::Any),
    (EXTENSIONS, 31, Form::Any),
];

static API_KEY: &[Field] = &[
    ("type", 1, Form::Text),
    ("name", 2, Form::Text),
    ("in", 3, Form::Text),
    ("description", 4, Form::Text),
    (EXTENSIONS, 5, Form::Any),
];
static BASIC: &[Field] =
    &[("type", 1, Form::Text), ("description", 2, Form::Text), (EXTENSIONS, 3, Form::Any)];

/// The protobuf form of a document that is given as JSON; nothing if that is no JSON object.
pub(super) fn document(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    if let Ok(Value::Object(map)) = serde_json::from_slice(json) {
        fields(&mut out, &DOCUMENT, &map, 0);
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
            for (key, value) in map.iter().filter(|(key, _)| key.starts_with(EXTENSIONS)) {
                entry(out, *number, key, |out| bytes(out, 2, value.to_string().as_bytes()));
            }
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
            Value::Array(list) => list.iter().for_each(|value| message(out, 1, &SCHEMA, value, depth)),
            value => message(out, 1, &SCHEMA, value, depth),
        }),
        Form::Additional => nested(out, number, |out| match value {
            // One of two: it is written even if it is false.
            Value::Bool(flag) => out_scalar(out, 2, u64::from(*flag)),
            value => message(out, 1, &SCHEMA, value, depth),
        }),
        Form::Paths => nested(out, number, |out| paths(out, value, depth)),
        Form::Responses => nested(out, number, |out| responses(out, value, depth)),
        Form::Requirements => list().for_each(|value| {
            nested(out, number, |out| {
                for (name, value) in value.as_object().into_iter().flatten() {
                    entry(out, 1, name, |out| texts(out, 1, value));
                }
            });
        }),
        Form::SecurityDefinitions => nested(out, number, |out| {
            for (name, value) in map() {
                let (number, table) = match value["type"].as_str() {
                    Some("basic") => (1, &BASIC),
                    Some("apiKey") => (2, &API_KEY),
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

fn paths(out: &mut Vec<u8>, value: &Value, depth: usize) {
    for (name, value) in value.as_object().into_iter().flatten() {
        if name.starts_with(EXTENSIONS) {
            entry(out, 1, name, |out| bytes(out, 2, value.to_string().as_bytes()));
        } else if let Some(map) = value.as_object() {
            entry(out, 2, name, |out| fields(out, &PATH_ITEM, map, depth));
        }
    }
}

fn responses(out: &mut Vec<u8>, value: &Value, depth: usize) {
    for (name, value) in value.as_object().into_iter().flatten() {
        if name.starts_with(EXTENSIONS) {
            entry(out, 2, name, |out| bytes(out, 2, value.to_string().as_bytes()));
            continue;
        }
        let (number, table) = if value.get("$ref").is_some() { (2, &REFERENCE) } else { (1, &RESPONSE) };
        entry(out, 1, name, |out| message(out, number, table, value, depth));
    }
}

/// A parameter: a reference, one in the body, or one of four kinds elsewhere.
fn parameter(out: &mut Vec<u8>, number: u32, value: &Value, depth: usize) {
    nested(out, number, |out| {
        if value.get("$ref").is_some() {
            return message(out, 2, &REFERENCE, value, depth);
        }
        nested(out, 1, |out| {
            let (number, table) = match value["in"].as_str() {
                Some("body") => return message(out, 1, &BODY_PARAMETER, value, depth),
                Some("header") => (1, &PATH_PARAMETER),
                Some("formData") => (2, &QUERY_PARAMETER),
                Some("query") => (3, &QUERY_PARAMETER),
                _ => (4, &PATH_PARAMETER),
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
            assert_eq!(&document(json.to_string().as_bytes()), expected, "{json}");
        }
    }
}
