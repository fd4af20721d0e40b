//! Writing Kubernetes' protobuf: byte for byte what upstream writes for the same object.
//!
//! Upstream's encoders write every field that is no pointer in Go, with its zero value if nothing was given. What is a pointer
//! follows from two tables: `protobuf.txt` marks scalars, `always.txt` has the structs that are none.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{DEPTH_MAX, Free, MAGIC, Messages, ProtobufError, Result, SCHEMA_PROPS, Target};
use crate::types::{Catalog, DefinitionId, Field, Object, Type};

const META_GROUP: &str = "meta.k8s.io";

/// An object in its envelope.
///
/// ```
/// use kschema::{builtin, protobuf};
/// use serde_json::json;
///
/// let catalog = builtin::catalog();
/// let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}});
/// let bytes = protobuf::encode(&catalog, &object)?;
/// assert!(bytes.starts_with(b"k8s\0"));
/// assert_eq!(protobuf::decode(&catalog, &bytes)?["data"], json!({"x": "1"}));
/// # Ok::<(), protobuf::ProtobufError>(())
/// ```
///
/// # Errors
/// [`ProtobufError::Unknown`] for kinds that have no message (custom kinds, Table): they are answered as JSON, or with a 406.
/// [`ProtobufError::Value`] for objects that are not of their type.
pub fn encode(catalog: &Catalog, object: &Value) -> Result<Vec<u8>> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let message = encode_message(catalog, object)?;
    Ok(envelope(api_version, kind, &message))
}

/// An object without the envelope: what stands in a list of its kind. The bytes do not depend on who asks, so that they can be
/// kept with the object.
///
/// # Errors
/// As [`encode`].
pub fn encode_message(catalog: &Catalog, object: &Value) -> Result<Vec<u8>> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let (group, version) = kcore::kind::split_api_version(text("apiVersion"));
    let kind = text("kind");
    let writer = Writer { catalog, messages: catalog.messages() };
    let mut out = Vec::with_capacity(512);
    if group == META_GROUP && kind.starts_with("PartialObjectMetadata") {
        writer.partial(object, kind.ends_with("List"), &mut out)?;
        return Ok(out);
    }
    let missing = || ProtobufError::Unknown(format!("{kind} in {group}/{version}"));
    let id = catalog.messages().kind(catalog, group, version, kind).ok_or_else(missing)?;
    let schema = catalog.object(id);
    let name = writer.name(id);
    writer.messages.find(name).ok_or_else(missing)?;
    let map = object.as_object().ok_or_else(|| ProtobufError::Value(kind.to_owned()))?;
    writer.message(schema, name, map, &mut out, 0)?;
    Ok(out)
}

/// What stands around the items of a list in its envelope, for a list that is sent in pieces: the head, the items, each written by
/// [`put_item`], and the tail.
#[derive(Clone, Debug)]
pub struct ListFrame {
    /// What comes before the items.
    pub head: Vec<u8>,
    /// What comes after them.
    pub tail: Vec<u8>,
}

/// The frame of a list of items that [`encode_message`] has made, whose lengths must be known, as the envelope tells the sum.
/// `metadata` is the list's own.
///
/// # Errors
/// [`ProtobufError::Value`] for metadata that is not a list's.
pub fn list_frame(
    catalog: &Catalog,
    api_version: &str,
    kind: &str,
    metadata: &Value,
    lengths: impl IntoIterator<Item = usize>,
) -> Result<ListFrame> {
    let writer = Writer { catalog, messages: catalog.messages() };
    let mut message = Vec::with_capacity(256);
    let list_meta = catalog.find("^ListMeta").ok_or_else(|| ProtobufError::Unknown("ListMeta".to_owned()))?;
    let nothing = Map::new();
    let metadata = metadata.as_object().unwrap_or(&nothing);
    nested(&mut message, 1, |out| {
        writer.message(catalog.object(list_meta), writer.name(list_meta), metadata, out, 1)
    })?;
    // Before each item stand its field number, in one byte, and its length.
    let items: usize = lengths.into_iter().map(|length| 1 + varint_length(length as u64) + length).sum();
    let mut head = Vec::with_capacity(message.len() + api_version.len() + kind.len() + 24);
    put_envelope_head(&mut head, api_version, kind);
    put_key(&mut head, 2, 2);
    put_varint(&mut head, (message.len() + items) as u64);
    head.extend_from_slice(&message);
    let mut tail = Vec::with_capacity(4);
    put_envelope_tail(&mut tail);
    Ok(ListFrame { head, tail })
}

/// Writes an item of a list, between a [`ListFrame`]'s head and tail.
pub fn put_item(out: &mut Vec<u8>, item: &[u8]) {
    put_bytes(out, 2, item);
}

/// A message in the envelope that tells what it is.
#[must_use]
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + api_version.len() + kind.len() + 24);
    put_envelope_head(&mut out, api_version, kind);
    put_bytes(&mut out, 2, message);
    put_envelope_tail(&mut out);
    out
}

fn put_envelope_head(out: &mut Vec<u8>, api_version: &str, kind: &str) {
    out.extend_from_slice(MAGIC);
    let mut kind_of = Vec::with_capacity(api_version.len() + kind.len() + 4);
    put_bytes(&mut kind_of, 1, api_version.as_bytes());
    put_bytes(&mut kind_of, 2, kind.as_bytes());
    put_bytes(out, 1, &kind_of);
}

fn put_envelope_tail(out: &mut Vec<u8>) {
    // Content encoding and content type, which upstream leaves empty.
    put_bytes(out, 3, b"");
    put_bytes(out, 4, b"");
}

/// One event of a watch as it stands in the stream: four bytes of length, then the event, which holds the object in its
/// envelope.
#[must_use]
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(object.len() + event.len() + 16);
    put_bytes(&mut message, 1, event.as_bytes());
    let mut raw = Vec::with_capacity(object.len() + 6);
    put_bytes(&mut raw, 1, object);
    put_bytes(&mut message, 2, &raw);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(message.len() + 4);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&message);
    out
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        #[allow(clippy::cast_possible_truncation, reason = "seven bits")]
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    #[allow(clippy::cast_possible_truncation, reason = "seven bits are left")]
    out.push(value as u8);
}

/// How many bytes [`put_varint`] writes.
fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_key(out: &mut Vec<u8>, number: u32, wire: u64) {
    put_varint(out, u64::from(number) << 3 | wire);
}

fn put_number(out: &mut Vec<u8>, number: u32, value: i64) {
    put_key(out, number, 0);
    put_varint(out, value.cast_unsigned());
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_key(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Writes a nested message in place, and its length before it.
fn nested(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    put_key(out, number, 2);
    let start = out.len();
    // Most are shorter than 128 bytes; the others are moved.
    out.push(0);
    write(out)?;
    let length = out.len() - start - 1;
    if let Ok(short @ ..0x80) = u8::try_from(length) {
        out[start] = short;
        return Ok(());
    }
    let mut prefix = Vec::with_capacity(5);
    put_varint(&mut prefix, length as u64);
    out.splice(start..=start, prefix);
    Ok(())
}

struct Writer<'a> {
    catalog: &'a Catalog,
    messages: &'a Messages,
}

impl<'a> Writer<'a> {
    fn name(&self, id: DefinitionId) -> &'static str {
        self.catalog.short_name(id)
    }

    /// Metadata alone, or a list of it: made by the server for any kind, so that no definition stands for it.
    fn partial(&self, object: &Value, is_list: bool, out: &mut Vec<u8>) -> Result<()> {
        let short = if is_list { "^ListMeta" } else { "^ObjectMeta" };
        let id = self.catalog.find(short).ok_or_else(|| ProtobufError::Unknown(short.to_owned()))?;
        let nothing = Map::new();
        let metadata = object["metadata"].as_object().unwrap_or(&nothing);
        nested(out, 1, |out| self.message(self.catalog.object(id), self.name(id), metadata, out, 1))?;
        for item in object["items"].as_array().into_iter().flatten() {
            nested(out, 2, |out| self.partial(item, false, out))?;
        }
        Ok(())
    }

    fn message(
        &self,
        schema: &Object,
        name: &str,
        object: &Map<String, Value>,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(ProtobufError::Value(schema.name.to_string()));
        }
        let Some(message) = self.messages.find(name) else { return Ok(()) };
        for (number, target) in &message.0 {
            match target {
                Target::Inline(inner) => {
                    // A message without fields is what an older release had inline.
                    if self.messages.find(inner).is_some_and(|inner| !inner.0.is_empty()) {
                        nested(out, *number, |out| self.message(schema, inner, object, out, depth + 1))?;
                    }
                }
                Target::Property { name, pointer } => {
                    let Some(field) = schema.field(name) else { continue };
                    match object.get(*name).filter(|value| !value.is_null()) {
                        Some(value) => {
                            self.property(&field.ty, Free::of(schema, field), *number, value, out, depth)?;
                        }
                        None if !pointer => self.absent(schema, field, *number, out, depth)?,
                        None => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// A field of which nothing is said: what Go writes for its zero value.
    fn absent(
        &self,
        schema: &Object,
        field: &Field,
        number: u32,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        let is_value = || {
            schema.always.iter().any(|(name, _)| *name == field.name)
                // The one time that is a value, and is left out of JSON all the same.
                || &*field.name == "creationTimestamp"
        };
        // A pointer that is always shown, as null, is not there in protobuf.
        let is_null = || {
            let mut always = schema.always.iter();
            always.any(|(name, value)| *name == field.name && value.is_null())
        };
        match &field.ty {
            Type::String => put_bytes(out, number, b""),
            Type::Int32 | Type::Int64 | Type::Bool => put_number(out, number, 0),
            Type::Double => put_double(out, number, 0.0),
            Type::Time | Type::MicroTime if is_value() => put_bytes(out, number, b""),
            Type::Quantity if is_value() => nested(out, number, |out| {
                put_bytes(out, 1, b"0");
                Ok(())
            })?,
            Type::IntOrString if is_value() => nested(out, number, |out| {
                int_or_string(out, 0, 0, "");
                Ok(())
            })?,
            Type::Any if is_value() => put_bytes(out, number, b""),
            ty @ (Type::Named(_) | Type::Object(_)) if is_value() && !is_null() => {
                self.single(ty, Free::Json, number, &Value::Object(Map::new()), out, depth)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn property(
        &self,
        ty: &Type,
        free: Free,
        number: u32,
        value: &Value,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        match (ty, value) {
            (Type::List(item), Value::Array(list)) => {
                list.iter().try_for_each(|entry| self.single(item, free, number, entry, out, depth))
            }
            (Type::Map(item), Value::Object(map)) => {
                for (key, value) in map {
                    nested(out, number, |out| {
                        put_bytes(out, 1, key.as_bytes());
                        self.map_value(item, free, value, out, depth)
                    })?;
                }
                Ok(())
            }
            _ => self.single(ty, free, number, value, out, depth),
        }
    }

    /// The value of a map's entry. A list in a map is a message that holds the list.
    fn map_value(
        &self,
        item: &Type,
        free: Free,
        value: &Value,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        match (item, value) {
            (Type::List(item), Value::Array(list)) => nested(out, 2, |out| {
                list.iter().try_for_each(|entry| self.single(item, free, 1, entry, out, depth))
            }),
            _ => self.single(item, free, 2, value, out, depth),
        }
    }

    fn single(
        &self,
        ty: &Type,
        free: Free,
        number: u32,
        value: &Value,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        match (ty, value) {
            (Type::String, Value::String(text)) => put_bytes(out, number, text.as_bytes()),
            (Type::Bytes, Value::String(text)) => {
                let bytes = STANDARD.decode(text).map_err(|_| wrong(ty, value))?;
                put_bytes(out, number, &bytes);
            }
            (Type::Int32 | Type::Int64, Value::Number(n)) => {
                put_number(out, number, n.as_i64().ok_or_else(|| wrong(ty, value))?);
            }
            (Type::Bool, Value::Bool(flag)) => put_number(out, number, i64::from(*flag)),
            (Type::Double, Value::Number(n)) => put_double(out, number, n.as_f64().unwrap_or_default()),
            (Type::Time | Type::MicroTime, Value::String(text)) => {
                nested(out, number, |out| time(ty, text, out))?
            }
            (Type::Quantity, Value::String(text)) => nested(out, number, |out| {
                put_bytes(out, 1, text.as_bytes());
                Ok(())
            })?,
            (Type::Quantity, Value::Number(n)) => nested(out, number, |out| {
                put_bytes(out, 1, n.to_string().as_bytes());
                Ok(())
            })?,
            (Type::IntOrString, value) => nested(out, number, |out| {
                match value {
                    Value::String(text) => int_or_string(out, 1, 0, text),
                    _ => int_or_string(out, 0, value.as_i64().unwrap_or_default(), ""),
                }
                Ok(())
            })?,
            (Type::Time | Type::MicroTime, Value::Null) => put_bytes(out, number, b""),
            (Type::Any, value) => nested(out, number, |out| self.free(free, value, out, depth))?,
            (Type::Named(id), Value::Object(map)) => nested(out, number, |out| {
                self.message(self.catalog.object(*id), self.name(*id), map, out, depth + 1)
            })?,
            (Type::Object(schema), Value::Object(map)) => {
                let name = crate::builtin::short_name(&schema.name);
                nested(out, number, |out| self.message(schema, &name, map, out, depth + 1))?;
            }
            _ => return Err(wrong(ty, value)),
        }
        Ok(())
    }
}

impl Writer<'_> {
    fn free(&self, free: Free, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<()> {
        let schema = |number: u32, schema: &Value, out: &mut Vec<u8>| {
            let wrong = || ProtobufError::Value(format!("{schema} where there should be a schema"));
            let (id, map) = self.catalog.find(SCHEMA_PROPS).zip(schema.as_object()).ok_or_else(wrong)?;
            nested(out, number, |out| {
                self.message(self.catalog.object(id), SCHEMA_PROPS, map, out, depth + 1)
            })
        };
        match (free, value) {
            (Free::Json, value) => put_bytes(out, 1, value.to_string().as_bytes()),
            (Free::Empty, _) => {}
            (Free::SchemaOrBool, Value::Object(_)) => {
                put_number(out, 1, 1);
                schema(2, value, out)?;
            }
            (Free::SchemaOrBool, value) => put_number(out, 1, i64::from(*value == Value::Bool(true))),
            (Free::SchemaOrArray, Value::Array(list)) => {
                list.iter().try_for_each(|entry| schema(2, entry, out))?;
            }
            (Free::SchemaOrNames, Value::Array(list)) => {
                list.iter().filter_map(Value::as_str).for_each(|name| put_bytes(out, 2, name.as_bytes()));
            }
            (Free::SchemaOrArray | Free::SchemaOrNames, value) => schema(1, value, out)?,
        }
        Ok(())
    }
}

fn wrong(ty: &Type, value: &Value) -> ProtobufError {
    ProtobufError::Value(format!("{value} where there should be {ty:?}"))
}

fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_key(out, number, 1);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

fn int_or_string(out: &mut Vec<u8>, kind: i64, number: i64, text: &str) {
    put_number(out, 1, kind);
    put_number(out, 2, number);
    put_bytes(out, 3, text.as_bytes());
}

/// Seconds and nanoseconds; a plain time has none of the latter.
fn time(ty: &Type, text: &str, out: &mut Vec<u8>) -> Result<()> {
    let time: Timestamp = text.parse().map_err(|_| ProtobufError::Value(format!("the time {text:?}")))?;
    // Before the epoch, seconds are rounded down and nanoseconds count up from there.
    let nanos = time.as_nanosecond();
    let seconds = nanos.div_euclid(1_000_000_000);
    let micros = nanos.rem_euclid(1_000_000_000) / 1000;
    let rest = if matches!(ty, Type::MicroTime) { micros * 1000 } else { 0 };
    put_number(out, 1, i64::try_from(seconds).unwrap_or_default());
    put_number(out, 2, i64::try_from(rest).unwrap_or_default());
    Ok(())
}
