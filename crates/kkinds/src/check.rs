//! The small vocabulary that rules are written in.
//!
//! [`path::Path`] says where a field stands, [`look::Look`] reads fields, [`report::Report`] writes faults down. [`form`] has what
//! texts must look like, [`domain`] names with a domain, [`labels`] labels and selectors, [`address`] IP addresses, [`quantity`] amounts of resources, [`condition`] the
//! conditions of a status, [`internal`] values as messages show them, [`diff`] what is different between two.

pub(crate) mod address;
pub(crate) mod condition;
pub(crate) mod diff;
pub(crate) mod domain;
pub(crate) mod form;
pub(crate) mod internal;
pub(crate) mod labels;
pub(crate) mod look;
pub(crate) mod path;
pub(crate) mod quantity;
pub(crate) mod report;

pub(crate) use self::{
    internal::Internal,
    look::{Look, same, same_at, texts},
    path::Path,
    report::{Faults, Form, Report, Shown},
};

pub use self::labels::selects;
