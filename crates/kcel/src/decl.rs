//! Declarations of the data that expressions see: its type, how its JSON is to be read, and how large it can be.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    escape::{escape, is_word},
    limits::REQUEST_BYTES_MAX,
    types::{Fields, ObjectType, Type},
};

/// A declaration of data, made from a schema by whoever knows schemas.
///
/// Upstream's counterpart is `DeclType` with the schema it came from (`apiserver/pkg/cel/types.go`,
/// `common/schemas.go`): the sizes that follow from a missing `maxLength` and the like are upstream's too.
///
/// ```
/// use kcel::Decl;
/// let spec = Decl::object("object")
///     .field("replicas", Decl::int(), true)
///     .field("names", Decl::list(Decl::string().max_length(10)).max_items(5), false);
/// let root = Decl::object("object").field("spec", spec, true).named("selfType");
/// assert_eq!(root.cel_type().to_string(), "selfType");
/// ```
#[derive(Clone, Debug)]
pub struct Decl {
    pub(crate) shape: Shape,
    /// The largest size, as [`Self::elements_max`] describes it.
    elements: u64,
    /// The smallest size as JSON, in bytes.
    bytes_min: u64,
    pub(crate) nullable: bool,
}

/// How JSON is read.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// By what it is.
    Dyn,
    IntOrString,
    Bool,
    Int,
    Double,
    String,
    Base64,
    Duration,
    Date,
    DateTime,
    List(Arc<Decl>, ListKind),
    /// With the largest size of a key.
    Map(Arc<Decl>, u64),
    Object(Arc<ObjectDecl>),
    /// What may be absent, which is `null` in JSON.
    Optional(Arc<Decl>),
    /// Not from JSON: a value of a library's type.
    Native(Type),
    /// Data of an unknown form, which can only be compared.
    Preserved,
}

/// What makes two lists equal and what their sum is (`x-kubernetes-list-type`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    /// The order matters.
    #[default]
    Atomic,
    /// The order does not matter; a sum is the union.
    Set,
    /// As a set whose elements are found by these fields (`x-kubernetes-list-map-keys`); a sum replaces and appends.
    Map(Vec<String>),
}

/// A type of objects with declared fields.
#[derive(Clone, Debug)]
pub(crate) struct ObjectDecl {
    name: Arc<str>,
    /// By the names that expressions use.
    fields: BTreeMap<String, FieldDecl>,
    /// From the names in JSON to those in expressions.
    by_json: BTreeMap<String, String>,
}

/// A field of an object.
#[derive(Clone, Debug)]
pub(crate) struct FieldDecl {
    pub(crate) json: String,
    pub(crate) decl: Decl,
}

impl ObjectDecl {
    /// By the name that expressions use; a field named after a word of the grammar also by the word itself.
    pub(crate) fn field(&self, name: &str) -> Option<&FieldDecl> {
        match self.fields.get(name) {
            None if is_word(name) => self.fields.get(&*escape(name)?),
            found => found,
        }
    }

    /// By the name in JSON: the name in expressions and the field.
    pub(crate) fn json_field(&self, json: &str) -> Option<(&str, &FieldDecl)> {
        let (name, field) = self.fields.get_key_value(self.by_json.get(json)?)?;
        Some((name, field))
    }
}

impl Decl {
    const fn simple(shape: Shape, bytes_min: u64) -> Self {
        Self { shape, elements: 0, bytes_min, nullable: false }
    }

    const fn sized(shape: Shape, bytes_min: u64, elements: u64) -> Self {
        Self { shape, elements, bytes_min, nullable: false }
    }

    /// JSON of any form, read by what it is. Its size is unknown to estimates.
    #[must_use]
    pub const fn dynamic() -> Self {
        Self::simple(Shape::Dyn, 1)
    }

    /// `x-kubernetes-int-or-string`: dyn to the checker.
    #[must_use]
    pub fn int_or_string() -> Self {
        Self::sized(Shape::IntOrString, 1, REQUEST_BYTES_MAX - 2)
    }

    /// `type: boolean`.
    #[must_use]
    pub const fn bool() -> Self {
        Self::simple(Shape::Bool, 4)
    }

    /// `type: integer`.
    #[must_use]
    pub const fn int() -> Self {
        Self::simple(Shape::Int, 1)
    }

    /// `type: number`.
    #[must_use]
    pub const fn double() -> Self {
        Self::simple(Shape::Double, 1)
    }

    /// `type: string`.
    #[must_use]
    pub fn string() -> Self {
        Self::sized(Shape::String, 2, REQUEST_BYTES_MAX - 2)
    }

    /// `type: string, format: byte`.
    #[must_use]
    pub fn bytes() -> Self {
        Self::sized(Shape::Base64, 2, REQUEST_BYTES_MAX - 2)
    }

    /// `type: string, format: duration`.
    #[must_use]
    pub fn duration() -> Self {
        Self::sized(Shape::Duration, 3, 32)
    }

    /// `type: string, format: date`.
    #[must_use]
    pub fn date() -> Self {
        Self::sized(Shape::Date, 12, 12)
    }

    /// `type: string, format: date-time`.
    #[must_use]
    pub fn date_time() -> Self {
        Self::sized(Shape::DateTime, 21, 32)
    }

    /// `type: array`.
    #[must_use]
    pub fn list(items: Self) -> Self {
        let elements = (REQUEST_BYTES_MAX - 2) / (items.bytes_min + 1);
        let shape = Shape::List(Arc::new(items), ListKind::Atomic);
        Self { shape, elements, bytes_min: 2, nullable: false }
    }

    /// `type: object` with `additionalProperties`.
    #[must_use]
    pub fn map(values: Self) -> Self {
        let elements = (REQUEST_BYTES_MAX - 2) / (values.bytes_min + 6);
        Self { shape: Shape::Map(Arc::new(values), 0), elements, bytes_min: 2, nullable: false }
    }

    /// `type: object` with fields, none yet. Objects called `object` are named after their place by [`Self::named`].
    #[must_use]
    pub fn object(name: &str) -> Self {
        let object = ObjectDecl { name: Arc::from(name), fields: BTreeMap::new(), by_json: BTreeMap::new() };
        Self { shape: Shape::Object(Arc::new(object)), elements: 0, bytes_min: 2, nullable: false }
    }

    /// Data whose form no schema gives; a field of it can be compared as part of its object, but not named.
    #[must_use]
    pub const fn preserved() -> Self {
        Self::simple(Shape::Preserved, 1)
    }

    /// A quantity, which is bound as [`Value::quantity`](crate::Value::quantity).
    #[must_use]
    pub fn quantity() -> Self {
        Self::simple(Shape::Native(Type::hidden("kubernetes.Quantity")), 8)
    }

    /// A variable of a type that is not read from JSON.
    #[must_use]
    pub const fn native(of: Type) -> Self {
        Self::simple(Shape::Native(of), 1)
    }

    /// The same, but it may be absent: an optional in CEL, `null` in JSON.
    #[must_use]
    pub fn into_optional(self) -> Self {
        let (elements, bytes_min) = (self.elements, self.bytes_min);
        Self { shape: Shape::Optional(Arc::new(self)), elements, bytes_min, nullable: true }
    }

    /// Adds a field to an object, by its name in JSON; one whose name can't be escaped is left out, as upstream does.
    /// `required` says that the field is always there and has no default, which the smallest size of the object
    /// depends on.
    #[must_use]
    pub fn field(mut self, json: &str, decl: Self, required: bool) -> Self {
        if let Shape::Object(object) = &mut self.shape {
            if required {
                self.bytes_min += json.len() as u64 + decl.bytes_min + 4;
            }
            if let Some(name) = escape(json) {
                let object = Arc::make_mut(object);
                object.by_json.insert(json.to_owned(), name.clone().into_owned());
                object.fields.insert(name.into_owned(), FieldDecl { json: json.to_owned(), decl });
            }
        }
        self
    }

    /// `maxLength`: characters of a string (each up to four bytes), or bytes.
    #[must_use]
    pub fn max_length(mut self, length: u64) -> Self {
        match self.shape {
            Shape::String | Shape::IntOrString => self.elements = length.saturating_mul(4),
            Shape::Base64 => self.elements = length,
            _ => {}
        }
        self
    }

    /// The largest size where no keyword gives it: the length of the longest value of an `enum` of strings, a limit
    /// that is known otherwise.
    #[must_use]
    pub fn with_elements_max(mut self, elements: u64) -> Self {
        self.elements = elements;
        self
    }

    /// The longest key of a map, where a limit is known; schemas know none.
    #[must_use]
    pub fn max_key_length(mut self, length: u64) -> Self {
        if let Shape::Map(_, keys) = &mut self.shape {
            *keys = length;
        }
        self
    }

    /// `maxItems` of a list.
    #[must_use]
    pub fn max_items(mut self, items: u64) -> Self {
        self.elements = items;
        self
    }

    /// `maxProperties` of a map.
    #[must_use]
    pub fn max_properties(mut self, properties: u64) -> Self {
        self.elements = properties;
        self
    }

    /// `nullable: true`.
    #[must_use]
    pub fn nullable(mut self, nullable: bool) -> Self {
        self.nullable = nullable;
        self
    }

    /// `x-kubernetes-list-type` of a list.
    #[must_use]
    pub fn list_kind(mut self, of: ListKind) -> Self {
        if let Shape::List(_, kind) = &mut self.shape {
            *kind = of;
        }
        self
    }

    /// The largest size of a value: characters, bytes, elements or entries; what estimates reckon with.
    #[must_use]
    pub const fn elements_max(&self) -> u64 {
        self.elements
    }

    /// The smallest size of a value as JSON, in bytes.
    #[must_use]
    pub const fn bytes_min(&self) -> u64 {
        self.bytes_min
    }

    /// How often a value can occur at most in a request where no limit is given: upstream's `maxCardinality`.
    #[must_use]
    pub const fn cardinality_max(&self) -> u64 {
        REQUEST_BYTES_MAX / (self.bytes_min + 1)
    }

    /// The same with every object that is called `object` named after its place below `name`. Variables that are to be
    /// compared with each other (`self` and `oldSelf`) share one declaration that has been named once.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        let shape = match &self.shape {
            Shape::Object(object) => {
                let name = if &*object.name == "object" { name } else { &object.name };
                let fields = object.fields.iter().map(|(field, declared)| {
                    let decl = declared.decl.named(&format!("{name}.{field}"));
                    (field.clone(), FieldDecl { json: declared.json.clone(), decl })
                });
                let fields = fields.collect();
                Shape::Object(Arc::new(ObjectDecl {
                    name: Arc::from(name),
                    fields,
                    by_json: object.by_json.clone(),
                }))
            }
            Shape::List(items, kind) => {
                Shape::List(Arc::new(items.named(&format!("{name}.@idx"))), kind.clone())
            }
            Shape::Map(values, keys) => Shape::Map(Arc::new(values.named(&format!("{name}.@elem"))), *keys),
            Shape::Optional(inner) => Shape::Optional(Arc::new(inner.named(name))),
            other => other.clone(),
        };
        Self { shape, ..*self }
    }

    /// The type that the checker sees.
    #[must_use]
    pub fn cel_type(&self) -> Type {
        match &self.shape {
            Shape::Dyn | Shape::IntOrString | Shape::Preserved => Type::Dyn,
            Shape::Bool => Type::Bool,
            Shape::Int => Type::Int,
            Shape::Double => Type::Double,
            Shape::String => Type::String,
            Shape::Base64 => Type::Bytes,
            Shape::Duration => Type::Duration,
            Shape::Date | Shape::DateTime => Type::Timestamp,
            Shape::List(items, _) => Type::list(items.cel_type()),
            Shape::Map(values, _) => Type::map(Type::String, values.cel_type()),
            Shape::Object(object) => Type::Object(ObjectType {
                name: object.name.clone(),
                fields: Fields::Declared(object.clone()),
            }),
            Shape::Optional(inner) => Type::optional(inner.cel_type()),
            Shape::Native(of) => of.clone(),
        }
    }

    /// The largest size of what is at a path of field names, items, keys and values, if something is declared there.
    pub(crate) fn size_at(&self, path: &[PathStep]) -> Option<u64> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self.elements);
        };
        match (first, &self.shape) {
            (_, Shape::Optional(inner)) => inner.size_at(path),
            (PathStep::Items | PathStep::Values, Shape::List(items, _)) => items.size_at(rest),
            (PathStep::Items | PathStep::Values, Shape::Map(values, _)) => values.size_at(rest),
            (PathStep::Keys, Shape::Map(_, keys)) => rest.is_empty().then_some(*keys),
            // Upstream knows the size of a map's entry that is selected by name only for attributes of devices.
            (PathStep::Field(_), Shape::Map(values, _)) if matches!(values.shape, Shape::Dyn) => {
                values.size_at(rest)
            }
            (PathStep::Field(name), Shape::Object(object)) => object.field(name)?.decl.size_at(rest),
            _ => None,
        }
    }
}

/// A step of a path through declared data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathStep {
    Field(String),
    Items,
    Indices,
    Keys,
    Values,
}
