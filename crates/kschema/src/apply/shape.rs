//! How apply sees a type: as something that may be a scalar, a list or a map, each with its way of being merged.
//!
//! This is what structured-merge-diff calls an atom, read straight from the [`Type`]s that everything else works from.

use serde_json::Value;

use super::path::PathElement;
use crate::{
    structural::{Additional, JsonType, Structural},
    types::{Catalog, Field, ListKind, Object, Type},
};

/// The type of a place in an object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape<'a> {
    /// A type of the catalog, with the field it is the type of, if it is that.
    Type(&'a Type, Option<&'a Field>),
    /// A part of a structural schema, and whether something above it keeps unknown fields.
    Structural(&'a Structural, bool),
    /// The metadata of an object.
    Metadata,
    /// Text.
    Text,
    /// No schema: maps are merged by key, lists are one value, everything below likewise.
    Deduced,
    /// No schema, and one value whatever it is.
    Opaque,
}

/// What a scalar must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    Text,
    Number,
    Bool,
    Any,
}

/// The kinds of values that a place takes, as a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kinds(u8);

const SCALAR: u8 = 1;
const LIST: u8 = 2;
const MAP: u8 = 4;

/// How a list is merged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListShape<'a> {
    pub(crate) merge: ListMerge<'a>,
    pub(crate) item: Shape<'a>,
}

/// What makes two entries of a list the same.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ListMerge<'a> {
    /// The list is one value.
    Atomic,
    /// Entries are scalars; equal ones are the same.
    Set,
    /// Entries are objects; those with the same values in these fields are the same.
    Keys(Keys<'a>),
}

/// The names of a list's key fields.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keys<'a> {
    One(&'a str),
    Several(&'a [Box<str>]),
}

impl<'a> Keys<'a> {
    pub(crate) fn iter(self) -> impl Iterator<Item = &'a str> {
        let (one, several) = match self {
            Self::One(key) => (Some(key), [].as_slice()),
            Self::Several(keys) => (None, keys),
        };
        one.into_iter().chain(several.iter().map(|key| &**key))
    }
}

/// How an object or map is merged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapShape<'a> {
    pub(crate) atomic: bool,
    fields: Fields<'a>,
    /// The type of keys that are no fields; `None`: there may be none.
    other: Option<Shape<'a>>,
}

/// Where the named fields of a map are described.
#[derive(Clone, Copy, Debug)]
enum Fields<'a> {
    None,
    Object(&'a Object),
    Structural(&'a Structural, bool),
}

impl<'a> MapShape<'a> {
    /// The shape of a named field.
    pub(crate) fn find(&self, name: &str) -> Option<Shape<'a>> {
        match self.fields {
            Fields::None => None,
            Fields::Object(object) => {
                let field = object.field(name)?;
                Some(Shape::of(&field.ty, Some(field)))
            }
            Fields::Structural(schema, preserves) => match name {
                "metadata" if schema.is_object => Some(Shape::Metadata),
                "apiVersion" | "kind" if schema.is_object => Some(Shape::Text),
                _ => schema.properties.get(name).map(|property| Shape::Structural(property, preserves)),
            },
        }
    }

    /// The shape of what stands under a key; `None`: the schema doesn't know it.
    pub(crate) fn child(&self, name: &str) -> Option<Shape<'a>> {
        self.find(name).or(self.other)
    }

    /// The fields that are there even if nobody has given them, with their values.
    pub(crate) fn always(&self) -> &'a [(Box<str>, Value)] {
        match self.fields {
            Fields::Object(object) => &object.always,
            _ => &[],
        }
    }

    pub(crate) fn always_value(&self, name: &str) -> Option<&'a Value> {
        self.always().iter().find(|(field, _)| &**field == name).map(|(_, value)| value)
    }

    /// Whether keys that are no fields have no declared type of their own.
    pub(crate) fn is_deduced(&self) -> bool {
        let is_bare = match self.fields {
            Fields::None => true,
            Fields::Object(_) => false,
            Fields::Structural(schema, _) => schema.properties.is_empty() && !schema.is_object,
        };
        is_bare && matches!(self.other, Some(Shape::Deduced))
    }

    /// The value that a key field has when it is not given.
    fn default_of(&self, name: &str) -> Option<Value> {
        let object = match self.fields {
            Fields::None => return None,
            Fields::Object(object) => object,
            Fields::Structural(schema, _) => return schema.properties.get(name)?.default.clone(),
        };
        if let Some((_, default)) = object.defaults.iter().find(|(field, _)| &**field == name) {
            return Some(default.clone());
        }
        // Upstream's generated definitions give required fields their type's zero value.
        let field = object.field(name)?;
        if !field.required && &*object.name != "io.k8s.api.core.v1.LocalObjectReference" {
            return None;
        }
        match field.ty {
            Type::String => Some(Value::from("")),
            Type::Int32 | Type::Int64 | Type::Double => Some(Value::from(0)),
            Type::Bool => Some(Value::from(false)),
            _ => None,
        }
    }
}

impl Kinds {
    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// What a value makes of the kinds: its own, if it is among them. Null, and what does not fit, leave them as they are.
    pub(crate) fn narrow(self, value: Option<&Value>) -> Self {
        let bit = match value {
            None | Some(Value::Null) => return self,
            Some(Value::Array(_)) => LIST,
            Some(Value::Object(_)) => MAP,
            Some(_) => SCALAR,
        };
        if self.has(bit) { Self(bit) } else { self }
    }

    /// The kind that counts when there are several.
    pub(crate) fn first(self) -> Kind {
        if self.has(MAP) {
            Kind::Map
        } else if self.has(SCALAR) {
            Kind::Scalar
        } else {
            Kind::List
        }
    }
}

/// One of [`Kinds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Map,
    Scalar,
    List,
}

impl<'a> Shape<'a> {
    /// The shape of a type, which may be that of a field.
    pub(crate) fn of(ty: &'a Type, field: Option<&'a Field>) -> Self {
        match ty {
            Type::Structural(schema) => Self::Structural(schema, false),
            ty => Self::Type(ty, field),
        }
    }

    /// Whether the place is not there at all with this value, as nobody writes it.
    pub(crate) fn omits(self, value: &Value) -> bool {
        matches!(self, Self::Type(_, Some(field)) if field.omits(value))
    }

    pub(crate) fn kinds(self) -> Kinds {
        Kinds(match self {
            Self::Deduced | Self::Opaque | Self::Type(Type::Any, _) => SCALAR | LIST | MAP,
            Self::Structural(schema, _) => match schema.kind {
                JsonType::Any => SCALAR | LIST | MAP,
                JsonType::Object => MAP,
                JsonType::Array => LIST,
                _ => SCALAR,
            },
            Self::Metadata => MAP,
            Self::Text => SCALAR,
            Self::Type(Type::List(_), _) => LIST,
            Self::Type(Type::Map(_) | Type::Named(_) | Type::Object(_), _) => MAP,
            Self::Type(..) => SCALAR,
        })
    }

    pub(crate) fn kind(self, value: Option<&Value>) -> Kind {
        self.kinds().narrow(value).first()
    }

    pub(crate) fn scalar(self) -> Scalar {
        match self {
            Self::Type(Type::String | Type::Bytes, _) | Self::Text => Scalar::Text,
            Self::Structural(schema, _) => match schema.kind {
                JsonType::Integer | JsonType::Number => Scalar::Number,
                JsonType::Boolean => Scalar::Bool,
                JsonType::String => match schema.limits.as_ref().map_or("", |limits| &limits.format) {
                    "" | "byte" => Scalar::Text,
                    _ => Scalar::Any,
                },
                _ => Scalar::Any,
            },
            Self::Type(Type::Int32 | Type::Int64 | Type::Double, _) => Scalar::Number,
            Self::Type(Type::Bool, _) => Scalar::Bool,
            _ => Scalar::Any,
        }
    }

    pub(crate) fn list(self) -> ListShape<'a> {
        match self {
            Self::Type(Type::List(item), field) => {
                ListShape { merge: field.map_or(ListMerge::Atomic, list_merge), item: Self::Type(item, None) }
            }
            Self::Structural(schema, preserves) => ListShape {
                merge: match &schema.list {
                    ListKind::Unset | ListKind::Atomic => ListMerge::Atomic,
                    ListKind::Set => ListMerge::Set,
                    ListKind::Map(keys) => ListMerge::Keys(Keys::Several(keys)),
                },
                item: schema.items.as_ref().map_or(Self::Opaque, |item| {
                    Self::Structural(item, preserves || schema.preserve_unknown)
                }),
            },
            _ => ListShape { merge: ListMerge::Atomic, item: Self::Opaque },
        }
    }

    pub(crate) fn map(self, catalog: &'a Catalog) -> MapShape<'a> {
        let marked = |field: Option<&Field>| field.is_some_and(|field| field.atomic);
        match self {
            Self::Type(Type::Any, field) if marked(field) => Self::Opaque.map(catalog),
            Self::Structural(schema, preserves) => {
                structural_map(schema, preserves || schema.preserve_unknown)
            }
            Self::Metadata => {
                let object = catalog.find("^ObjectMeta").map(|id| &**catalog.object(id));
                MapShape { atomic: false, fields: object.map_or(Fields::None, Fields::Object), other: None }
            }
            Self::Type(Type::Map(item), field) => {
                MapShape { atomic: marked(field), fields: Fields::None, other: Some(Self::Type(item, None)) }
            }
            Self::Type(ty @ (Type::Named(_) | Type::Object(_)), field) => match catalog.resolve(ty) {
                Some(object) if !object.fields.is_empty() => MapShape {
                    atomic: marked(field) || object.atomic,
                    fields: Fields::Object(object),
                    other: None,
                },
                _ => MapShape { atomic: marked(field), fields: Fields::None, other: Some(Self::Deduced) },
            },
            Self::Opaque => MapShape { atomic: true, fields: Fields::None, other: Some(Self::Opaque) },
            _ => MapShape { atomic: false, fields: Fields::None, other: Some(Self::Deduced) },
        }
    }
}

fn structural_map(schema: &Structural, preserves: bool) -> MapShape<'_> {
    let other = match &schema.additional {
        Additional::Schema(schema) => Some(Shape::Structural(schema, preserves)),
        Additional::Allowed(true) => Some(Shape::Deduced),
        Additional::Allowed(false) => None,
        Additional::Unset => (preserves || schema.properties.is_empty()).then_some(Shape::Deduced),
    };
    MapShape { atomic: schema.atomic, fields: Fields::Structural(schema, preserves), other }
}

/// Upstream takes the strategic merge marks where a list says nothing of its own.
fn list_merge(field: &Field) -> ListMerge<'_> {
    match &field.list {
        ListKind::Atomic => ListMerge::Atomic,
        ListKind::Set => ListMerge::Set,
        ListKind::Map(keys) => ListMerge::Keys(Keys::Several(keys)),
        ListKind::Unset => match (field.patch_merge, &field.merge_key) {
            (true, Some(key)) => ListMerge::Keys(Keys::One(key)),
            (true, None) => ListMerge::Set,
            (false, _) => ListMerge::Atomic,
        },
    }
}

impl ListShape<'_> {
    pub(crate) fn is_atomic(&self) -> bool {
        matches!(self.merge, ListMerge::Atomic)
    }

    /// The path element of an entry.
    ///
    /// # Errors
    /// In upstream's words, when the entry has none.
    pub(crate) fn element(&self, catalog: &Catalog, entry: &Value) -> Result<PathElement, String> {
        match self.merge {
            ListMerge::Atomic => Err("invalid indexing of non-associative list".to_owned()),
            ListMerge::Set => match entry {
                Value::Object(_) => {
                    Err("associative list without keys has an element that's a map type".to_owned())
                }
                Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                Value::Null => {
                    Err("associative list without keys has an element that's an explicit null".to_owned())
                }
                scalar => Ok(PathElement::Value(scalar.clone())),
            },
            ListMerge::Keys(keys) => self.key_of(catalog, keys, entry),
        }
    }

    fn key_of(&self, catalog: &Catalog, keys: Keys<'_>, entry: &Value) -> Result<PathElement, String> {
        let map = match entry {
            Value::Object(map) => map,
            Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
            _ => return Err("associative list with keys may not have non-map elements".to_owned()),
        };
        let mut fields = Vec::with_capacity(2);
        for key in keys.iter() {
            let value = map.get(key).cloned().or_else(|| self.item.map(catalog).default_of(key));
            fields.extend(value.map(|value| (key.into(), value)));
        }
        if fields.is_empty() {
            let names: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                names.join(" ")
            ));
        }
        Ok(PathElement::key(fields))
    }
}
