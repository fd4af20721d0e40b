//! What the fields of a kind are: the structure that decoding, pruning, patching and the OpenAPI documents work from.
//!
//! Built-in kinds come from a table of facts ([`builtin`]), others bring their own [`Object`]s. Types are resolved through
//! a [`Catalog`], which parses a definition when it is first needed.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use serde_json::Value;

use crate::{builtin, protobuf, structural::Structural};

/// The type of a value.
#[derive(Clone, Debug)]
pub enum Type {
    /// Anything; kept as it is.
    Any,
    /// Text.
    String,
    /// Base64 text.
    Bytes,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A floating-point number.
    Double,
    /// `true` or `false`.
    Bool,
    /// An integer or text.
    IntOrString,
    /// A Kubernetes quantity.
    Quantity,
    /// A definition of the catalog.
    Named(DefinitionId),
    /// An object with these fields.
    Object(Arc<Object>),
    /// A list of values of one type.
    List(Box<Type>),
    /// A map from text to values of one type.
    Map(Box<Type>),
    /// What a structural schema describes.
    Structural(Arc<Structural>),
}

/// The number of a definition in its [`Catalog`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DefinitionId(pub(crate) u32);

/// The fields of an object.
#[derive(Debug)]
pub struct Object {
    /// The definition's full name, such as `io.k8s.api.core.v1.Pod`.
    pub name: Box<str>,
    /// The fields in the order of their names.
    pub fields: Vec<Field>,
    /// Whether server-side apply treats it as one value.
    pub atomic: bool,
    /// Values for fields that are not given.
    pub defaults: Vec<(Box<str>, serde_json::Value)>,
    /// Fields that upstream's encoding shows even when nothing is said of them, with what it shows: `{}` for structs, null for
    /// lists. For apply they are there on both sides of a change, and so belong to nobody.
    pub always: Vec<(Box<str>, serde_json::Value)>,
    /// The first bytes of each field's name, which mostly tell names apart without looking at them.
    pub(crate) prefixes: Box<[u64]>,
}

/// The first eight bytes of a name as a number of the same order; shorter names are filled up with zeros.
pub(crate) fn prefix_of(name: &str) -> u64 {
    let mut bytes = [0; 8];
    let length = name.len().min(8);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    u64::from_be_bytes(bytes)
}

impl Object {
    /// The field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        let prefix = prefix_of(name);
        let first = self.prefixes.partition_point(|other| *other < prefix);
        let candidates = self.fields.get(first..)?.iter().zip(self.prefixes.get(first..)?);
        candidates
            .take_while(|(_, other)| **other == prefix)
            .map(|(field, _)| field)
            .find(|field| *field.name == *name)
    }

    /// The name's last part: the Go type's name.
    #[must_use]
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// One field of an object.
#[derive(Debug)]
pub struct Field {
    /// The name in JSON.
    pub name: Box<str>,
    /// The type.
    pub ty: Type,
    /// Whether the definition lists it as required.
    pub required: bool,
    /// Whether an empty value of it, or a zero, is not written: Go's `omitempty` on a field that is no pointer. Fields of built-in
    /// definitions alone have it. See [`omit`](crate::omit).
    pub omits_empty: bool,
    /// How server-side apply merges it, if it is a list.
    pub list: ListKind,
    /// Whether server-side apply treats it as one value, if it is a map or struct.
    pub atomic: bool,
    /// Whether strategic merge patch merges it, if it is a list.
    pub patch_merge: bool,
    /// Whether strategic merge patch replaces it as a whole, if it is a struct.
    pub patch_replace: bool,
    /// Whether strategic merge patch keeps only the keys it is told of.
    pub retain_keys: bool,
    /// The key by which strategic merge patch matches the list's entries.
    pub merge_key: Option<Box<str>>,
}

impl Field {
    /// Whether Go's encoder leaves the field out with this value.
    #[must_use]
    pub fn omits(&self, value: &Value) -> bool {
        self.omits_empty
            && match value {
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                // What was decoded as a list of bytes.
                Value::String(text) => text.is_empty(),
                Value::Null | Value::Bool(_) | Value::Number(_) => false,
            }
    }
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    /// Not said, which means atomic.
    #[default]
    Unset,
    /// One value.
    Atomic,
    /// A set of scalars.
    Set,
    /// A map by these keys.
    Map(Vec<Box<str>>),
}

/// The definitions that types refer to by number.
#[derive(Debug)]
pub struct Catalog {
    pub(crate) slots: Vec<Slot>,
    pub(crate) by_name: HashMap<&'static str, DefinitionId, ahash::RandomState>,
    pub(crate) messages: OnceLock<protobuf::Messages>,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) line: &'static str,
    pub(crate) object: OnceLock<Arc<Object>>,
}

impl Catalog {
    /// The definition behind a number.
    #[must_use]
    pub fn object(&self, id: DefinitionId) -> &Arc<Object> {
        let slot = &self.slots[id.0 as usize];
        slot.object.get_or_init(|| Arc::new(builtin::parse_object(self, slot.line)))
    }

    /// The short name of a definition, as [`find`](Self::find) takes it.
    #[must_use]
    pub fn short_name(&self, id: DefinitionId) -> &'static str {
        builtin::name_of(self.slots[id.0 as usize].line)
    }

    /// The object that `ty` is, if it is one.
    #[must_use]
    pub fn resolve<'a>(&'a self, ty: &'a Type) -> Option<&'a Arc<Object>> {
        match ty {
            Type::Named(id) => Some(self.object(*id)),
            Type::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The protobuf messages of the definitions.
    pub(crate) fn messages(&self) -> &protobuf::Messages {
        self.messages.get_or_init(protobuf::Messages::default)
    }

    /// The definition of this name, in the table's short form (`~core.v1.Pod`, `^ObjectMeta`).
    #[must_use]
    pub fn find(&self, short: &str) -> Option<DefinitionId> {
        self.by_name.get(short).copied()
    }
}
