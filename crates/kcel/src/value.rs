//! The values that expressions are evaluated to, and over.

mod equal;
mod json;
mod list;
mod map;
mod moment;
mod order;

use std::{ops::Deref, sync::Arc};

pub(crate) use self::{
    equal::equal,
    json::read,
    list::Items,
    map::Key,
    moment::{duration_text, go_duration, parse_date, parse_date_time},
    order::{compare, double_text, int_of_double, uint_of_double},
};
pub use self::{
    list::List,
    map::{Entries, JsonMap, Map},
    moment::Moment,
};
use crate::{
    decl::Decl,
    error::EvalError,
    native::{Kind, Native, semver::Semver},
};

/// A value, which may borrow from the data that an expression is evaluated over.
///
/// Values come from [`Bindings`](crate::Bindings) and from evaluations; [`Value::to_json`] turns a result into JSON.
///
/// ```
/// use kcel::{Bindings, Env};
/// let env = Env::builder().build();
/// let program = env.compile("[1, 2].map(x, {'n': x * 2})")?;
/// let outcome = program.eval(&Bindings::new(), 1000);
/// assert_eq!(outcome.result?.to_json()?, serde_json::json!([{"n": 2}, {"n": 4}]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A signed number.
    Int(i64),
    /// An unsigned number.
    Uint(u64),
    /// A floating-point number.
    Double(f64),
    /// Text.
    String(Text<'a>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A moment.
    Timestamp(Moment),
    /// A length of time, in nanoseconds.
    Duration(i64),
    /// A type, by its name.
    Type(Text<'a>),
    /// A list.
    List(List<'a>),
    /// A map, or an object read from JSON.
    Map(Map<'a>),
    /// A value that may be absent.
    Optional(Option<Arc<Value<'a>>>),
    /// An object that an expression made.
    Object(Arc<Object<'a>>),
    /// A value of a library's type.
    Native(Native),
    /// Data of an unknown form, which can only be compared.
    Preserved(&'a serde_json::Value),
}

/// Text that is borrowed or shared.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    /// From the data or the expression.
    Borrowed(&'a str),
    /// Made by an evaluation.
    Shared(Arc<str>),
}

/// An object that an expression made: `Object{..}` or `JSONPatch{..}`.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    pub(crate) name: Text<'a>,
    pub(crate) fields: Vec<(Text<'a>, Value<'a>)>,
}

impl<'a> Object<'a> {
    /// The type's name: `JSONPatch`, `Object`, `Object.spec`, ...
    #[must_use]
    pub fn type_name(&self) -> &str {
        &self.name
    }

    /// The fields that were given, in the order in which they were written.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.fields.iter().map(|(name, value)| (&**name, value))
    }

    /// A field that was given.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Value<'a>> {
        self.fields.iter().find(|(found, _)| &**found == name).map(|(_, value)| value)
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self::Shared(Arc::from(text))
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self::Borrowed(text)
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Value<'_> {
    fn from(value: f64) -> Self {
        Self::Double(value)
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::String(text.into())
    }
}

impl<'a> From<Vec<Value<'a>>> for Value<'a> {
    fn from(values: Vec<Value<'a>>) -> Self {
        Self::List(List::of(values))
    }
}

impl<'a> Value<'a> {
    /// JSON of any form, read by what it is: numbers without a fraction are ints.
    #[must_use]
    pub fn json(value: &'a serde_json::Value) -> Self {
        json::dynamic(value)
    }

    /// JSON read by a declaration.
    ///
    /// # Errors
    /// When the JSON has another form than was declared.
    pub fn declared(value: &'a serde_json::Value, decl: &'a Decl) -> Result<Self, EvalError> {
        json::read(value, decl)
    }

    /// An optional value, as `optionalOldSelf` needs it.
    #[must_use]
    pub fn optional(value: Option<Self>) -> Self {
        Self::Optional(value.map(Arc::new))
    }

    /// A map with text as keys.
    #[must_use]
    pub fn map(entries: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        Self::Map(Map::Values(Arc::new(entries_of(entries))))
    }

    /// A map with text as keys that has `default` for every other key, as the attributes of devices have.
    #[must_use]
    pub fn map_with_default(entries: impl IntoIterator<Item = (&'a str, Self)>, default: Self) -> Self {
        let mut entries = entries_of(entries);
        entries.set_default(default);
        Self::Map(Map::Values(Arc::new(entries)))
    }

    /// A quantity.
    #[must_use]
    pub const fn quantity(of: kcore::Quantity) -> Self {
        Self::Native(Native(Kind::Quantity(of)))
    }

    /// A semantic version.
    ///
    /// # Errors
    /// When the text is none.
    pub fn semver(text: &str) -> Result<Self, EvalError> {
        let version = Semver::parse(text).map_err(EvalError::new)?;
        Ok(Self::Native(Native(Kind::Semver(Arc::new(version)))))
    }

    /// The bool, if it is one.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The text, if it is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The name of its type, as `type(x)` gives it.
    #[must_use]
    pub fn type_name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Type(_) => "type",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Object(object) => &object.name,
            Self::Native(native) => native.type_name(),
            Self::Preserved(_) => "unknown",
        }
    }

    /// The size that costs are reckoned with; 1 for what has none.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::String(text) => chars(text) as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.len() as u64,
            Self::Map(map) => map.len() as u64,
            Self::Native(native) => native.size(),
            _ => 1,
        }
    }

    /// Whether it is what a field has that was not set (`optional.ofNonZeroValue`).
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(value) => !value,
            Self::Int(value) => *value == 0,
            Self::Uint(value) => *value == 0,
            Self::Double(value) => *value == 0.0,
            Self::String(text) => text.is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Duration(nanos) => *nanos == 0,
            Self::Timestamp(moment) => moment.is_zero(),
            Self::List(list) => list.is_empty(),
            Self::Map(map) => map.is_empty(),
            Self::Object(object) => object.fields.is_empty(),
            Self::Type(_) | Self::Optional(_) | Self::Native(_) | Self::Preserved(_) => false,
        }
    }

    /// How it is written in messages such as `no such key: x`.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Uint(value) => value.to_string(),
            Self::Double(value) => double_text(*value),
            Self::String(text) => (**text).to_owned(),
            Self::Duration(nanos) => duration_text(*nanos),
            Self::Timestamp(moment) => moment.to_string(),
            other => other.type_name().to_owned(),
        }
    }
}

fn entries_of<'a>(of: impl IntoIterator<Item = (&'a str, Value<'a>)>) -> Entries<'a> {
    let mut entries = Entries::default();
    for (key, value) in of {
        entries.insert(Key::Text(key.to_owned()), Value::from(key), value);
    }
    entries
}

/// The largest text that a function makes, in bytes: what it costs is known only when it is there.
const TEXT_BYTES_MAX: usize = 64 << 20;

/// Refuses to make text of more than [`TEXT_BYTES_MAX`] bytes.
pub(crate) fn check_text(bytes: usize) -> Result<(), EvalError> {
    if bytes > TEXT_BYTES_MAX {
        return Err(EvalError::new(format!("text of {bytes} bytes exceeds the limit of {TEXT_BYTES_MAX}")));
    }
    Ok(())
}

/// The number of characters; quick for ASCII.
pub(crate) fn chars(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}
