//! From JSON to protobuf and back, by the shape of a message, with the words of protobuf's JSON mapping.

use base64::{DecodeError, Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use serde_json::{Map, Value};

use super::shapes::{Field, Kind, Shape};

/// How deep messages may be in each other. (Transactions are, each of which needs an operation of its limit.)
const DEPTH_MAX: usize = 100;

/// A message as protobuf. Names may be written as in protobuf or as in JSON; those that are not known are passed over.
pub(super) fn to_wire(shape: Shape, value: &Value) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    write_message(shape, value, &mut out, DEPTH_MAX)?;
    Ok(out)
}

fn write_message(shape: Shape, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    let depth = depth.checked_sub(1).ok_or("the request is too deep")?;
    let fields =
        value.as_object().ok_or_else(|| format!("a message is an object, not {}", kind_of(value)))?;
    for (name, value) in fields {
        let Some(field) = shape.iter().find(|field| field.name == name || is_camel(field.name, name)) else {
            continue;
        };
        match value {
            Value::Null => {}
            Value::Array(values) if field.many => {
                for value in values {
                    write_field(field, value, out, depth)?;
                }
            }
            value if field.many => return Err(format!("{name} is a list, not {}", kind_of(value))),
            value => write_field(field, value, out, depth)?,
        }
    }
    Ok(())
}

/// Whether `name` is `field` as JSON writes it: `rangeEnd` for `range_end`.
fn is_camel(field: &str, name: &str) -> bool {
    let mut parts = field.split('_');
    let mut rest = parts.next().and_then(|first| name.strip_prefix(first));
    for part in parts {
        let mut letters = part.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        rest = rest.and_then(|rest| rest.strip_prefix(first?)?.strip_prefix(letters.as_str()));
    }
    rest == Some("")
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn write_field(field: &Field, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    let wrong = || format!("{} can't be a {}", field.name, kind_of(value));
    let (wire_type, number) = match field.kind {
        Kind::Bool => (WireType::Varint, u64::from(value.as_bool().ok_or_else(wrong)?)),
        Kind::Int => (WireType::Varint, integer(value).ok_or_else(wrong)?.cast_unsigned()),
        Kind::Uint => (WireType::Varint, natural(value).ok_or_else(wrong)?),
        Kind::Uint32 => {
            let number = natural(value).and_then(|number| u32::try_from(number).ok());
            (WireType::Varint, u64::from(number.ok_or_else(wrong)?))
        }
        Kind::Enum(names) => {
            let known = |name: &str| names.iter().position(|known| *known == name).map(|at| at as i64);
            let number = match value {
                Value::String(name) => {
                    known(name).ok_or_else(|| format!("unknown value {name:?} for {}", field.name))?
                }
                value => integer(value).ok_or_else(wrong)?,
            };
            (WireType::Varint, number.cast_unsigned())
        }
        Kind::Text | Kind::Bytes | Kind::Message(_) => (WireType::LengthDelimited, 0),
    };
    encode_key(field.tag, wire_type, out);
    let content = match field.kind {
        Kind::Text => value.as_str().ok_or_else(wrong)?.as_bytes().to_vec(),
        Kind::Bytes => from_base64(value.as_str().ok_or_else(wrong)?)?,
        Kind::Message(shape) => {
            let mut message = Vec::new();
            write_message(shape, value, &mut message, depth)?;
            message
        }
        _ => {
            encode_varint(number, out);
            return Ok(());
        }
    };
    encode_varint(content.len() as u64, out);
    out.extend(content);
    Ok(())
}

/// Numbers may be in quotes.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

fn natural(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The words are those of Go's decoder, which clients see.
fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) => at,
            _ => text.len() / 4 * 4,
        };
        format!("illegal base64 data at input byte {at}")
    })
}

/// A message as JSON. What is not known is passed over, what is as it is by default is not there.
pub(super) fn from_wire(shape: Shape, message: Bytes) -> Result<Value, prost::DecodeError> {
    read_message(shape, message, DEPTH_MAX)
}

fn read_message(shape: Shape, mut message: Bytes, depth: usize) -> Result<Value, prost::DecodeError> {
    #[allow(deprecated, reason = "there is no other way to make one")]
    let invalid = || prost::DecodeError::new("a message of this shape was expected");
    let depth = depth.checked_sub(1).ok_or_else(invalid)?;
    let mut fields = Map::new();
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        let Some(field) = shape.iter().find(|field| field.tag == tag && field.kind.wire_type() == wire_type)
        else {
            skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
            continue;
        };
        let number = decode_varint(&mut message)?;
        let value = match field.kind {
            Kind::Bool => Value::Bool(number != 0),
            Kind::Int => Value::String(number.cast_signed().to_string()),
            Kind::Uint => Value::String(number.to_string()),
            Kind::Uint32 => Value::from(number),
            Kind::Enum(names) => match usize::try_from(number).ok().and_then(|number| names.get(number)) {
                Some(name) => Value::from(*name),
                None => Value::from(number.cast_signed()),
            },
            Kind::Text | Kind::Bytes | Kind::Message(_) => {
                let length = usize::try_from(number).ok().filter(|length| *length <= message.len());
                let content = message.split_to(length.ok_or_else(invalid)?);
                match field.kind {
                    Kind::Message(shape) => read_message(shape, content, depth)?,
                    Kind::Bytes => Value::String(STANDARD.encode(&content)),
                    _ => Value::String(String::from_utf8_lossy(&content).into_owned()),
                }
            }
        };
        if field.many {
            let many = fields.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            many.as_array_mut().into_iter().for_each(|many| many.push(value.clone()));
        } else {
            fields.insert(field.name.to_owned(), value);
        }
    }
    Ok(Value::Object(fields))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use serde_json::json;

    use super::{super::shapes, *};
    use crate::proto as pb;

    /// The JSON mapping of protobuf 3.
    #[test]
    fn json_is_read_as_the_message_it_means() {
        let range = pb::RangeRequest {
            key: "foo".into(),
            range_end: "fop".into(),
            limit: 7,
            sort_order: pb::SortOrder::Descend as i32,
            serializable: true,
            ..Default::default()
        };
        let nothing = pb::RangeRequest::default();
        let cases = [
            (json!({}), Ok(&nothing)),
            (json!({ "key": null, "unknown": { "deep": 1 } }), Ok(&nothing)),
            (
                json!({ "key": "Zm9v", "range_end": "Zm9w", "limit": "7", "sort_order": "DESCEND", "serializable": true }),
                Ok(&range),
            ),
            (
                json!({ "key": "Zm9v", "rangeEnd": "Zm9w", "limit": 7, "sortOrder": 2, "serializable": true }),
                Ok(&range),
            ),
            (json!({ "key": "eA" }), Err("illegal base64 data at input byte 0")),
            (json!({ "key": "Zm9v*A==" }), Err("illegal base64 data at input byte 4")),
            (json!({ "key": 5 }), Err("key can't be a number")),
            (json!({ "limit": "many" }), Err("limit can't be a string")),
            (json!({ "sort_order": "SIDEWAYS" }), Err("unknown value \"SIDEWAYS\" for sort_order")),
            (json!([]), Err("a message is an object, not array")),
        ];
        for (value, expected) in cases {
            let read = to_wire(shapes::RANGE, &value);
            let read = read.map(|wire| pb::RangeRequest::decode(&wire[..]).unwrap());
            assert_eq!(read.as_ref().map_err(String::as_str), expected, "{value}");
        }
        let deep =
            (0..2 * DEPTH_MAX).fold(json!({}), |inner, _| json!({ "success": [{ "request_txn": inner }] }));
        assert_eq!(to_wire(&shapes::TXN, &deep), Err("the request is too deep".to_owned()));
    }

    #[test]
    fn a_message_is_written_as_its_json() {
        let kv = pb::KeyValue { key: "foo".into(), mod_revision: 9, ..Default::default() };
        let event = pb::Event { r#type: pb::EventType::Delete as i32, kv: Some(kv), prev_kv: None };
        let header = pb::ResponseHeader { cluster_id: u64::MAX, revision: 9, ..Default::default() };
        let response = pb::WatchResponse {
            header: Some(header),
            watch_id: -1,
            events: vec![event.clone(), event],
            ..Default::default()
        };
        let written = from_wire(shapes::WATCHED, response.encode_to_vec().into()).unwrap();
        let event = json!({ "type": "DELETE", "kv": { "key": "Zm9v", "mod_revision": "9" } });
        let expected = json!({
            "header": { "cluster_id": "18446744073709551615", "revision": "9" },
            "watch_id": "-1",
            "events": [event, event],
        });
        assert_eq!(written, expected);
        for cut in 1..response.encoded_len() {
            // It ends somewhere, but never in a panic.
            let _ = from_wire(shapes::WATCHED, response.encode_to_vec()[..cut].to_vec().into());
        }
    }
}
