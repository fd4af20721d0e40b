//! The types that the checker knows.

use std::{fmt, sync::Arc};

use crate::decl::ObjectDecl;

/// The type of an expression.
///
/// Displayed as in messages: `int`, `list(string)`, `map(string, dyn)`, `optional_type(int)`.
///
/// ```
/// use kcel::Type;
/// assert_eq!(Type::list(Type::String).to_string(), "list(string)");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Type {
    /// Anything; checked when it is evaluated.
    Dyn,
    /// The type of what has been reported as an error.
    Error,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// A signed number of 64 bits.
    Int,
    /// An unsigned number of 64 bits.
    Uint,
    /// A floating-point number of 64 bits.
    Double,
    /// Text.
    String,
    /// Bytes.
    Bytes,
    /// A moment between the years 1 and 9999.
    Timestamp,
    /// A length of time in nanoseconds.
    Duration,
    /// A list of one type of elements.
    List(Arc<Type>),
    /// A map from keys to values.
    Map(Arc<(Type, Type)>),
    /// A value that may be absent.
    Optional(Arc<Type>),
    /// A type of a library that has no fields: `net.IP`.
    Opaque(&'static str),
    /// An object with fields.
    Object(ObjectType),
    /// The type of a type.
    Type(Arc<Type>),
    /// A type that is yet to be found.
    Param(Param),
}

/// A type parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// As a function's declaration names it.
    Named(char),
    /// As one use of a function, or one empty literal, has it.
    Free(u32),
}

/// A type with fields; two are the same when their names are.
#[derive(Clone, Debug)]
pub struct ObjectType {
    pub(crate) name: Arc<str>,
    pub(crate) fields: Fields,
}

/// Where the fields of an object's type are declared.
#[derive(Clone, Debug)]
pub(crate) enum Fields {
    /// By a schema.
    Declared(Arc<ObjectDecl>),
    /// `JSONPatch`'s own.
    Patch,
    /// Any field of any type (`Object` of mutating policies).
    Any,
    /// None that an expression could name.
    Hidden,
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl ObjectType {
    /// The type's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of a field.
    pub(crate) fn field(&self, name: &str) -> Option<Type> {
        match &self.fields {
            Fields::Declared(object) => Some(object.field(name)?.decl.cel_type()),
            Fields::Patch => match name {
                "op" | "path" | "from" => Some(Type::String),
                "value" => Some(Type::Dyn),
                _ => None,
            },
            Fields::Any => Some(Type::Dyn),
            Fields::Hidden => None,
        }
    }
}

impl Type {
    /// A list of `element`s.
    #[must_use]
    pub fn list(element: Self) -> Self {
        Self::List(Arc::new(element))
    }

    /// A map from `key` to `value`.
    #[must_use]
    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    /// An optional `value`.
    #[must_use]
    pub fn optional(value: Self) -> Self {
        Self::Optional(Arc::new(value))
    }

    /// A type of a library, of which expressions see no fields.
    #[must_use]
    pub fn hidden(name: &str) -> Self {
        Self::Object(ObjectType { name: Arc::from(name), fields: Fields::Hidden })
    }

    pub(crate) const fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }

    pub(crate) const fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// Whether values of the type have a fixed size, which counts as 1.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Self::Bool | Self::Double | Self::Duration | Self::Int | Self::Timestamp | Self::Uint => true,
            Self::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }

    /// The type that an optional wraps, or the type itself, and whether it was wrapped.
    pub(crate) fn unwrapped(&self) -> (&Self, bool) {
        match self {
            Self::Optional(inner) => (inner, true),
            other => (other, false),
        }
    }

    /// The name that a value of the type gives as its type.
    pub(crate) fn runtime_name(&self) -> &str {
        match self {
            Self::Dyn => "dyn",
            Self::Error => "error",
            Self::Null => "null_type",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::Duration => "google.protobuf.Duration",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Opaque(name) => name,
            Self::Object(object) => &object.name,
            Self::Type(_) => "type",
            Self::Param(_) => "",
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error => f.write_str("!error!"),
            Self::Null => f.write_str("null"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(element) => write!(f, "list({element})"),
            Self::Map(entry) => write!(f, "map({}, {})", entry.0, entry.1),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Type(inner) => write!(f, "type({inner})"),
            Self::Param(Param::Named(letter)) => write!(f, "{letter}"),
            Self::Param(Param::Free(number)) => write!(f, "_var{number}"),
            other => f.write_str(other.runtime_name()),
        }
    }
}
