//! JSON of trees: written fast, and read in part.
//!
//! Every write encodes an object once, so what an encoder does for each key counts. Texts that need no escapes, which are
//! nearly all, are found eight bytes at a time and copied whole.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// The tree as JSON, without spaces, keys in order.
///
/// ```
/// let value = serde_json::json!({"b": [1, null, true], "a": "x\"y"});
/// assert_eq!(kcore::json::to_vec(&value), br#"{"a":"x\"y","b":[1,null,true]}"#);
/// ```
#[must_use]
pub fn to_vec(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write(&mut out, value);
    out
}

/// Appends the tree as JSON to `out`; what [`to_vec`] gives. A tree may be as deep as the stack allows: those that were
/// read are no deeper than their reader's limit.
pub fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
            (_, Some(number)) => out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
            // Writing into a `Vec` cannot fail.
            _ => drop(serde_json::to_writer(out, number)),
        },
        Value::String(text) => write_text(out, text),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(out, item);
            }
            out.push(b']');
        }
        Value::Object(map) => {
            out.push(b'{');
            for (index, (key, value)) in map.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_text(out, key);
                out.push(b':');
                write(out, value);
            }
            out.push(b'}');
        }
    }
}

/// Appends a text in quotes.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
        out.reserve(text.len() + 2);
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // Writing into a `Vec` cannot fail.
        drop(serde_json::to_writer(out, text));
    }
}

/// Whether a text needs no escapes: it has no quote, backslash or control character.
fn is_plain(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES * 128;
    // Some byte of the word is less than `bound`, which is at most 128 ("Bit Twiddling Hacks").
    let has_less = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word & HIGHS != 0;
    let has = |word: u64, byte: u8| has_less(word ^ (ONES * u64::from(byte)), 1);
    let (words, rest) = bytes.as_chunks::<8>();
    let strange = |word: u64| has_less(word, 0x20) || has(word, b'"') || has(word, b'\\');
    !words.iter().any(|word| strange(u64::from_le_bytes(*word)))
        && !rest.iter().any(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\')
}

/// Reads only these fields of an object, given as paths joined by dots; the rest of the text is passed over without
/// building anything of it.
///
/// ```
/// let json = br#"{"metadata":{"name":"a","uid":"7"},"spec":{"big":[1,2,3],"nodeName":"n"}}"#;
/// let part = kcore::json::part(json, &["metadata.name", "spec.nodeName", "status.phase"])?;
/// assert_eq!(part, serde_json::json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}}));
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// # Errors
/// When the text is no JSON object, or something on the way to a field is none.
pub fn part(json: &[u8], fields: &[&str]) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let part = Part(fields).deserialize(&mut reader)?;
    reader.end()?;
    Ok(part)
}

struct Part<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(found) = entries.next_key_seed(Key(self.0))? {
            match found {
                None => drop(entries.next_value::<IgnoredAny>()?),
                Some((key, below)) if below.is_empty() => {
                    map.insert(key.to_owned(), entries.next_value()?);
                }
                Some((key, below)) => {
                    map.insert(key.to_owned(), entries.next_value_seed(Part(&below))?);
                }
            }
        }
        Ok(Value::Object(map))
    }
}

/// Finds a key among the first steps of paths; gives what comes after it, nothing where a path ends there.
struct Key<'a>(&'a [&'a str]);

impl<'de, 'a> DeserializeSeed<'de> for Key<'a> {
    type Value = Option<(&'a str, Vec<&'a str>)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Key<'a> {
    type Value = Option<(&'a str, Vec<&'a str>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Self::Value, E> {
        let Some(first) = self.0.iter().find_map(|path| {
            let name = path.split('.').next().unwrap_or_default();
            (name == key).then_some(name)
        }) else {
            return Ok(None);
        };
        if self.0.contains(&key) {
            return Ok(Some((first, Vec::new())));
        }
        let below = self.0.iter().filter_map(|path| path.strip_prefix(key)?.strip_prefix('.'));
        let below: Vec<&str> = below.collect();
        if below.is_empty() { Err(E::custom("a path with an empty step")) } else { Ok(Some((first, below))) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
            prop::collection::vec(any::<char>(), 0..24)
                .prop_map(|letters| Value::from(letters.into_iter().collect::<String>())),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("\\PC{0,12}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_serde_json_writes(value in value()) {
            prop_assert_eq!(to_vec(&value), serde_json::to_vec(&value).unwrap());
        }
    }

    #[test]
    fn every_byte_that_needs_an_escape_is_seen_wherever_it_stands() {
        for code in 0..=255_u8 {
            for at in 0..20 {
                let mut text = "x".repeat(20);
                text.insert(at, char::from(code));
                let value = Value::from(text);
                assert_eq!(to_vec(&value), serde_json::to_vec(&value).unwrap(), "{code} at {at}");
            }
        }
    }

    #[test]
    fn only_what_is_asked_for_is_read() {
        let json = serde_json::to_vec(&json!({
            "metadata": {"name": "a", "labels": {"x.y": "z"}, "list": [1]}, "spec": {"deep": {"er": {"field": 1, "other": 2}}},
            "kind": "K",
        }));
        let json = json.unwrap();
        for (fields, expected) in [
            (&["kind"][..], json!({"kind": "K"})),
            (&[], json!({})),
            (&["metadata.labels", "metadata.none"], json!({"metadata": {"labels": {"x.y": "z"}}})),
            (&["spec.deep.er.field"], json!({"spec": {"deep": {"er": {"field": 1}}}})),
            (&["spec", "spec.deep"], json!({"spec": {"deep": {"er": {"field": 1, "other": 2}}}})),
        ] {
            assert_eq!(part(&json, fields).unwrap(), expected, "{fields:?}");
        }
        for (json, fields) in [(&b"[]"[..], &["a"][..]), (b"{\"a\":null}", &["a.b"]), (b"{\"a\":1", &["a"])] {
            assert!(part(json, fields).is_err(), "{fields:?}");
        }
    }
}
