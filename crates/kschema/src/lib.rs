//! What a Kubernetes object may be: types, defaults, checks, patches and encodings, without any I/O.
//!
//! [`types`] describes kinds, [`builtin`] has the table of Kubernetes' own. [`check`] is the one walk that decoding, pruning and
//! defaulting are; [`patch`] makes a new object of an old one; [`strategy`] is what a kind's author writes for what no schema
//! can say. `kapi` serves what is described here; a client can use it alone, to check or patch objects without a server.

// What kinds are.
pub mod builtin;
pub mod structural;
pub mod types;

// What is done with objects.
pub mod apply;
pub mod check;
pub mod fields;
pub mod json;
pub mod jsonpath;
pub mod omit;
pub mod patch;
pub mod protobuf;
pub use kcore::quote;
pub mod strategy;

pub mod error;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use self::types::{Catalog, DefinitionId, Field, ListKind, Object, Type};
