//! Reading of an object only what a table shows of it: most of a list's cost is what nobody looks at.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What is read of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// Everything.
    All,
    /// Everything but this field.
    Without(&'static str),
    /// Everything, and of this field what the mask says.
    Of(&'static str, Box<Mask>),
    /// These fields alone. Lists are passed through.
    Only(Vec<(&'static str, Mask)>),
}

impl Mask {
    /// All but who owns which field, which no column shows.
    pub(super) fn usual() -> Self {
        Self::Of("metadata", Box::new(Self::Without("managedFields")))
    }

    /// What is at these dotted paths, with all that lies below them.
    pub(super) fn paths(paths: &[&'static str]) -> Self {
        let mut mask = Self::Only(Vec::new());
        paths.iter().for_each(|path| mask.add(path));
        mask
    }

    fn add(&mut self, path: &'static str) {
        let Self::Only(fields) = self else { return };
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        let index = fields.iter().position(|(field, _)| *field == name).unwrap_or_else(|| {
            fields.push((name, Self::Only(Vec::new())));
            fields.len() - 1
        });
        if rest.is_empty() {
            fields[index].1 = Self::All;
        } else {
            fields[index].1.add(rest);
        }
    }

    /// What is read of a field; `None`: nothing.
    fn below(&self, key: &str) -> Option<&Self> {
        match self {
            Self::All => Some(&Self::All),
            Self::Without(name) => (key != *name).then_some(&Self::All),
            Self::Of(name, mask) => Some(if key == *name { mask } else { &Self::All }),
            Self::Only(fields) => fields.iter().find(|(name, _)| *name == key).map(|(_, mask)| mask),
        }
    }

    /// Reads an object.
    ///
    /// # Errors
    /// When the bytes are no JSON.
    pub(super) fn read(&self, json: &[u8]) -> Result<Value, serde_json::Error> {
        Tree(self).deserialize(&mut serde_json::Deserializer::from_slice(json))
    }
}

/// Makes the tree of what is read.
struct Tree<'m>(&'m Mask);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Tree(self.0))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key(self.0))? {
            match key {
                Some((key, mask)) => {
                    map.insert(key, entries.next_value_seed(Tree(mask))?);
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(map))
    }
}

/// A key that is to be read, with what is read below it.
struct Key<'m>(&'m Mask);

impl<'de, 'm> DeserializeSeed<'de> for Key<'m> {
    type Value = Option<(String, &'m Mask)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'m> Visitor<'_> for Key<'m> {
    type Value = Option<(String, &'m Mask)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.below(key).map(|mask| (key.to_owned(), mask)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_the_mask_names_is_read() {
        let object = json!({
            "kind": "X", "metadata": {"name": "a", "managedFields": [{"time": 1}], "labels": {"x": "1"}},
            "spec": {"list": [{"name": "a", "more": 1}, {"name": "b"}], "managedFields": 1.5, "on": true, "none": null},
        });
        let bytes = object.to_string();
        let mut usual = object.clone();
        usual["metadata"].as_object_mut().unwrap().remove("managedFields");
        for (mask, expected) in [
            (Mask::All, object),
            (Mask::usual(), usual),
            (
                Mask::paths(&["metadata.name", "spec.list.name", "spec.on"]),
                json!({"metadata": {"name": "a"}, "spec": {"list": [{"name": "a"}, {"name": "b"}], "on": true}}),
            ),
            (Mask::paths(&["metadata.labels", "none"]), json!({"metadata": {"labels": {"x": "1"}}})),
        ] {
            assert_eq!(mask.read(bytes.as_bytes()).unwrap(), expected, "{mask:?}");
        }
        assert!(Mask::All.read(b"{").is_err());
    }
}
