//! Kubernetes' protobuf: the envelope (`k8s\0` and a `runtime.Unknown`) and the messages of the built-in kinds.
//!
//! [`decode`] reads an object, [`encode`] writes one; [`list_frame`] and [`watch_frame`] put together what has been written.
//!
//! The field numbers come from `protobuf.txt`, written by `cargo run -p xtask -- gen-protobuf`. A line is a definition of the
//! schema, then `number:property` for each field; `*` marks a scalar that is a pointer in Go, so that its zero value counts;
//! `number:=name` is a message whose fields stand inline in JSON, and a line that begins with `=` is such a message.
//! What a type is follows from the schema: this table only names fields.

mod decode;
mod encode;

use std::sync::OnceLock;

use ahash::HashMap;

pub use self::{
    decode::decode,
    encode::{ListFrame, encode, encode_message, envelope, list_frame, put_item, watch_frame},
};
use crate::types::{Catalog, DefinitionId, Field, Object};

const TABLE: &str = include_str!("protobuf.txt");
/// The bytes that every object in protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";
/// How deep messages may be nested.
const DEPTH_MAX: usize = 64;

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtobufError {
    /// The envelope is missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// A message ends within a field, or a field has an impossible form.
    #[error("proto: unexpected EOF or illegal wire type")]
    Malformed,
    /// The kind has no messages here.
    #[error("no protobuf message is known for {0}")]
    Unknown(String),
    /// An object is not of its type.
    #[error("cannot be written as protobuf: {0}")]
    Value(String),
}

type Result<T> = std::result::Result<T, ProtobufError>;

/// The fields of one message.
#[derive(Debug)]
struct Message(Vec<(u32, Target)>);

#[derive(Debug)]
enum Target {
    Property { name: &'static str, pointer: bool },
    Inline(&'static str),
}

/// The messages by name; each is parsed when it is first met.
#[derive(Debug)]
pub struct Messages {
    by_name: HashMap<&'static str, (&'static str, OnceLock<Message>)>,
    kinds: OnceLock<Kinds>,
}

/// The definitions of kinds by group, version and kind.
type Kinds = HashMap<(&'static str, &'static str, &'static str), DefinitionId>;

impl Default for Messages {
    fn default() -> Self {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        let by_name =
            lines.filter_map(|line| Some((line.split('\t').next()?, (line, OnceLock::new())))).collect();
        Self { by_name, kinds: OnceLock::new() }
    }
}

impl Messages {
    fn kind(&self, catalog: &Catalog, group: &str, version: &str, kind: &str) -> Option<DefinitionId> {
        let kinds = self.kinds.get_or_init(|| {
            crate::builtin::kinds(catalog)
                .map(|(group, version, kind, id)| ((group, version, kind), id))
                .collect()
        });
        kinds.get(&(group, version, kind)).copied()
    }

    fn find(&self, name: &str) -> Option<&Message> {
        let (line, cell) = self.by_name.get(name)?;
        Some(cell.get_or_init(|| {
            let fields = line.split('\t').skip(1).filter_map(|field| {
                let (number, target) = field.split_once(':')?;
                let target = if target.starts_with('=') {
                    Target::Inline(target)
                } else {
                    Target::Property { name: target.trim_end_matches('*'), pointer: target.ends_with('*') }
                };
                Some((number.parse().ok()?, target))
            });
            Message(fields.collect())
        }))
    }
}

impl Message {
    fn target(&self, number: u32) -> Option<&Target> {
        self.0.binary_search_by_key(&number, |(candidate, _)| *candidate).ok().map(|index| &self.0[index].1)
    }
}

/// What a field is in protobuf of which the schema says that it is anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Free {
    /// JSON in field 1: raw extensions, managed fields, defaults of schemas.
    Json,
    /// A struct without fields, of which only the presence counts.
    Empty,
    /// `true`, `false` or a schema.
    SchemaOrBool,
    /// A schema or a list of them.
    SchemaOrArray,
    /// A schema or a list of names.
    SchemaOrNames,
}

impl Free {
    fn of(schema: &Object, field: &Field) -> Self {
        let is_schema = schema.short_name() == "JSONSchemaProps";
        match &*field.name {
            "items" if is_schema => Self::SchemaOrArray,
            "additionalProperties" | "additionalItems" if is_schema => Self::SchemaOrBool,
            "dependencies" if is_schema => Self::SchemaOrNames,
            _ if is_schema || field.atomic || &*field.name == "fieldsV1" => Self::Json,
            _ => Self::Empty,
        }
    }
}

/// The definition of schemas within CustomResourceDefinitions.
const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
