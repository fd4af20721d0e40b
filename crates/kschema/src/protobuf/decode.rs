//! Reading protobuf.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{DEPTH_MAX, Free, MAGIC, Messages, ProtobufError, Result, SCHEMA_PROPS, Target};
use crate::types::{Catalog, Field, Object, Type};

/// One field of a message as it stands in the bytes.
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(ProtobufError::Malformed)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ProtobufError::Malformed)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(count).ok_or(ProtobufError::Malformed)?;
    *bytes = rest;
    Ok(head)
}

fn field<'a>(bytes: &mut &'a [u8]) -> Result<(u32, Wire<'a>)> {
    let key = varint(bytes)?;
    let number = u32::try_from(key >> 3).map_err(|_| ProtobufError::Malformed)?;
    let wire = match key & 7 {
        0 => Wire::Varint(varint(bytes)?),
        1 => Wire::Fixed64(
            take(bytes, 8)?.try_into().map(u64::from_le_bytes).map_err(|_| ProtobufError::Malformed)?,
        ),
        2 => {
            let length = usize::try_from(varint(bytes)?).map_err(|_| ProtobufError::Malformed)?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => Wire::Fixed32(
            take(bytes, 4)?.try_into().map(u32::from_le_bytes).map_err(|_| ProtobufError::Malformed)?,
        ),
        _ => return Err(ProtobufError::Malformed),
    };
    Ok((number, wire))
}

/// All fields of a message of strings, numbers and bytes.
fn fields(mut bytes: &[u8]) -> Result<Vec<(u32, Wire<'_>)>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        all.push(field(&mut bytes)?);
    }
    Ok(all)
}

fn bytes_of<'a>(all: &[(u32, Wire<'a>)], number: u32) -> &'a [u8] {
    all.iter()
        .rev()
        .find_map(
            |(n, wire)| if let Wire::Bytes(bytes) = wire { (*n == number).then_some(*bytes) } else { None },
        )
        .unwrap_or_default()
}

fn number_of(all: &[(u32, Wire<'_>)], number: u32) -> i64 {
    all.iter()
        .rev()
        .find_map(|(n, wire)| {
            if let Wire::Varint(value) = wire { (*n == number).then_some(value.cast_signed()) } else { None }
        })
        .unwrap_or_default()
}

fn text(bytes: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(bytes).into_owned())
}

/// Reads an object in its envelope.
///
/// # Errors
/// When the bytes have no envelope, break off, or hold a kind without a message here.
pub fn decode(catalog: &Catalog, bytes: &[u8]) -> Result<Value> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let unknown = fields(body)?;
    let meta = fields(bytes_of(&unknown, 1))?;
    let (api_version, kind) = (text(bytes_of(&meta, 1)), text(bytes_of(&meta, 2)));
    let (group, version) = kcore::kind::split_api_version(api_version.as_str().unwrap_or_default());
    let kind_name = kind.as_str().unwrap_or_default();
    let missing = || ProtobufError::Unknown(format!("{kind_name} in {group}/{version}"));
    let id = catalog.messages().kind(catalog, group, version, kind_name).ok_or_else(missing)?;
    let reader = Reader { catalog, messages: catalog.messages() };
    let mut object = Map::new();
    let schema = catalog.object(id);
    let name = crate::builtin::short_name(&schema.name);
    if reader.messages.find(&name).is_none() {
        return Err(missing());
    }
    reader.message(schema, &name, bytes_of(&unknown, 2), &mut object, 0)?;
    object.insert("apiVersion".to_owned(), api_version.clone());
    object.insert("kind".to_owned(), kind.clone());
    Ok(Value::Object(object))
}

struct Reader<'a> {
    catalog: &'a Catalog,
    messages: &'a Messages,
}

impl Reader<'_> {
    fn message(
        &self,
        schema: &Object,
        name: &str,
        mut bytes: &[u8],
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(ProtobufError::Malformed);
        }
        let Some(message) = self.messages.find(name) else {
            return Ok(());
        };
        while !bytes.is_empty() {
            let (number, wire) = field(&mut bytes)?;
            match message.target(number) {
                None => {}
                Some(Target::Inline(inner)) => {
                    if let Wire::Bytes(inner_bytes) = wire {
                        self.message(schema, inner, inner_bytes, object, depth + 1)?;
                    }
                }
                Some(Target::Property { name, pointer }) => {
                    if let Some(field) = schema.field(name) {
                        self.property(field, Free::of(schema, field), *pointer, &wire, object, depth)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn property(
        &self,
        field: &Field,
        free: Free,
        pointer: bool,
        wire: &Wire<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<()> {
        let (ty, name) = (&field.ty, &*field.name);
        match ty {
            Type::List(item) => {
                let entry = object.entry(name.to_owned()).or_insert_with(|| json!([]));
                if let Value::Array(list) = entry {
                    self.list(item, free, wire, list, depth)?;
                }
            }
            Type::Map(item) => {
                let Wire::Bytes(bytes) = wire else {
                    return Err(ProtobufError::Malformed);
                };
                let mut key = String::new();
                let mut value = None;
                for (number, wire) in fields(bytes)? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => key = String::from_utf8_lossy(bytes).into_owned(),
                        (2, wire) => value = self.map_value(item, free, &wire, depth)?,
                        _ => {}
                    }
                }
                let entry = object.entry(name.to_owned()).or_insert_with(|| json!({}));
                if let Value::Object(map) = entry {
                    // A time that is none stays null; text that is empty may be left out.
                    let missing =
                        if matches!(**item, Type::Time | Type::MicroTime) { Value::Null } else { json!("") };
                    map.insert(key, value.unwrap_or(missing));
                }
            }
            _ => {
                let value = self.value(ty, free, wire, depth)?;
                // Go writes every scalar that is no pointer; its zero value means that it was not given.
                let given = value.filter(|value| {
                    let is_free = matches!(ty, Type::Any);
                    pointer
                        || is_free
                        || !(*value == json!("") || *value == json!(0) || *value == json!(false))
                });
                if let Some(value) = given {
                    object.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    fn list(
        &self,
        item: &Type,
        free: Free,
        wire: &Wire<'_>,
        list: &mut Vec<Value>,
        depth: usize,
    ) -> Result<()> {
        if let (Type::Int32 | Type::Int64 | Type::Bool, Wire::Bytes(packed)) = (item, wire) {
            let mut packed = *packed;
            while !packed.is_empty() {
                let number = varint(&mut packed)?.cast_signed();
                list.push(if matches!(item, Type::Bool) { json!(number != 0) } else { json!(number) });
            }
            return Ok(());
        }
        list.push(self.value(item, free, wire, depth)?.unwrap_or(Value::Null));
        Ok(())
    }

    /// The value of a map's entry. A list in a map is a message that holds the list.
    fn map_value(&self, item: &Type, free: Free, wire: &Wire<'_>, depth: usize) -> Result<Option<Value>> {
        let (Type::List(item), Wire::Bytes(bytes)) = (item, wire) else {
            return self.value(item, free, wire, depth);
        };
        let mut list = Vec::new();
        for (_, wire) in fields(bytes)?.into_iter().filter(|(number, _)| *number == 1) {
            self.list(item, free, &wire, &mut list, depth)?;
        }
        Ok(Some(Value::Array(list)))
    }

    /// What may be a schema or something else.
    fn schema_or(&self, free: Free, bytes: &[u8], depth: usize) -> Result<Option<Value>> {
        let all = fields(bytes)?;
        let schema = |bytes: &[u8]| {
            let mut object = Map::new();
            match self.catalog.find(SCHEMA_PROPS) {
                Some(id) => {
                    self.message(self.catalog.object(id), SCHEMA_PROPS, bytes, &mut object, depth + 1)?
                }
                None => return Err(ProtobufError::Unknown(SCHEMA_PROPS.to_owned())),
            }
            Ok(Value::Object(object))
        };
        let number = if free == Free::SchemaOrBool { 2 } else { 1 };
        let find = |number: u32| {
            all.iter().filter_map(move |(n, wire)| match wire {
                Wire::Bytes(bytes) if *n == number => Some(*bytes),
                _ => None,
            })
        };
        if let Some(bytes) = find(number).next_back() {
            return schema(bytes).map(Some);
        }
        Ok(Some(match free {
            Free::SchemaOrBool => json!(number_of(&all, 1) != 0),
            Free::SchemaOrArray => Value::Array(find(2).map(schema).collect::<Result<_>>()?),
            _ => Value::Array(find(2).map(text).collect()),
        }))
    }

    fn value(&self, ty: &Type, free: Free, wire: &Wire<'_>, depth: usize) -> Result<Option<Value>> {
        Ok(Some(match (ty, wire) {
            (Type::String, Wire::Bytes(bytes)) => text(bytes),
            (Type::Bytes, Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
            (Type::Int32 | Type::Int64, Wire::Varint(number)) => json!(number.cast_signed()),
            (Type::Bool, Wire::Varint(number)) => json!(*number != 0),
            (Type::Double, Wire::Fixed64(bits)) => json!(f64::from_bits(*bits)),
            (Type::Double, Wire::Fixed32(bits)) => json!(f32::from_bits(*bits)),
            (Type::Time | Type::MicroTime, Wire::Bytes(bytes)) => return time(ty, bytes),
            (Type::Quantity, Wire::Bytes(bytes)) => text(bytes_of(&fields(bytes)?, 1)),
            (Type::IntOrString, Wire::Bytes(bytes)) => {
                let all = fields(bytes)?;
                if number_of(&all, 1) == 0 { json!(number_of(&all, 2)) } else { text(bytes_of(&all, 3)) }
            }
            (Type::Any, Wire::Bytes(bytes)) if free == Free::Empty => {
                fields(bytes)?;
                json!({})
            }
            (Type::Any, Wire::Bytes(bytes)) if free != Free::Json => {
                return self.schema_or(free, bytes, depth);
            }
            (Type::Any, Wire::Bytes(bytes)) => {
                let raw = bytes_of(&fields(bytes)?, 1);
                if raw.is_empty() {
                    return Ok(None);
                }
                serde_json::from_slice(raw)
                    .map_err(|_| ProtobufError::Unknown("an embedded object that is not JSON".to_owned()))?
            }
            (Type::Named(_) | Type::Object(_), Wire::Bytes(bytes)) => {
                let Some(schema) = self.catalog.resolve(ty) else {
                    return Ok(None);
                };
                let mut object = Map::new();
                self.message(
                    schema,
                    &crate::builtin::short_name(&schema.name),
                    bytes,
                    &mut object,
                    depth + 1,
                )?;
                Value::Object(object)
            }
            _ => return Err(ProtobufError::Malformed),
        }))
    }
}

/// A time; the zero time, which Go writes as an empty message, is none.
fn time(ty: &Type, bytes: &[u8]) -> Result<Option<Value>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let all = fields(bytes)?;
    let nanos = i32::try_from(number_of(&all, 2)).unwrap_or(0);
    let Ok(time) = Timestamp::new(number_of(&all, 1), nanos) else {
        return Err(ProtobufError::Malformed);
    };
    Ok(Some(json!(match ty {
        Type::Time => kcore::clock::format_time(time),
        _ => kcore::clock::format_micro_time(time),
    })))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::builtin;

    fn put(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
        out.extend([number << 3 | 2, u8::try_from(bytes.len()).unwrap()]);
        out.extend(bytes);
    }

    /// A Service with one port, put together by hand from the published field numbers.
    fn service() -> Vec<u8> {
        let (mut meta, mut target, mut port, mut spec, mut object) = (vec![], vec![], vec![], vec![], vec![]);
        put(&mut meta, 1, b"web");
        target.extend([1 << 3, 1]);
        put(&mut target, 3, b"http");
        port.extend([3 << 3, 80]);
        put(&mut port, 4, &target);
        port.extend([5 << 3, 0]);
        let mut entry = vec![];
        put(&mut entry, 1, b"app");
        put(&mut entry, 2, b"x");
        put(&mut spec, 1, &port);
        put(&mut spec, 2, &entry);
        put(&mut spec, 3, b"");
        put(&mut object, 1, &meta);
        put(&mut object, 2, &spec);
        let (mut kind, mut unknown) = (vec![], vec![]);
        put(&mut kind, 1, b"v1");
        put(&mut kind, 2, b"Service");
        put(&mut unknown, 1, &kind);
        put(&mut unknown, 2, &object);
        [MAGIC, &unknown].concat()
    }

    #[test]
    fn an_object_is_read_as_its_json() {
        let catalog = builtin::catalog();
        let ports = json!([{"port": 80, "targetPort": "http"}]);
        let expected = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": ports, "selector": {"app": "x"}}});
        assert_eq!(decode(&catalog, &service()).unwrap(), expected);
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        let catalog = builtin::catalog();
        assert_eq!(decode(&catalog, b"{}").unwrap_err(), ProtobufError::Magic);
        let whole = service();
        for length in MAGIC.len()..whole.len() - 1 {
            let _ = decode(&catalog, &whole[..length]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let catalog = builtin::catalog();
            let mut service = service();
            let at = bytes.len() % service.len();
            service.splice(at.., bytes);
            let _ = decode(&catalog, &service);
        }
    }
}
