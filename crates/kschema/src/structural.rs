//! Structural schemas (KEP-1693): what custom resources are described with.
//!
//! [`validate_schema`] says whether the `openAPIV3Schema` of a version of a CustomResourceDefinition is one, and
//! [`Structural::compile`] makes it usable. What comes in is brought into form by [`default_in`](Structural::default_in),
//! [`coerce_metadata`](Structural::coerce_metadata) and [`prune`](Structural::prune), in this order, and checked by
//! [`validate`](Structural::validate), [`validate_metadata`](Structural::validate_metadata) and
//! [`validate_lists`](Structural::validate_lists). As a [`Type::Structural`](crate::Type::Structural) it is what apply works from.

mod columns;
mod compile;
mod default;
mod field_path;
mod formats;
mod keywords;
mod lists;
mod metadata;
mod nested;
mod number;
mod pattern;
mod prune;
mod rules;
mod validate;
mod visit;

use std::collections::BTreeMap;

use serde_json::Value;

pub(crate) use self::number::GoFloat;
pub use self::{
    columns::{SELECTABLE_FIELDS_MAX, validate_columns, validate_scale, validate_selectable_fields},
    compile::{CompileError, DEPTH_MAX},
    pattern::Pattern,
    rules::{SchemaRules, validate_schema},
    validate::FAULTS_MAX,
    visit::Part,
};
use crate::types::ListKind;

/// A schema, or a part of one, ready to be used.
#[derive(Clone, Debug, Default)]
pub struct Structural {
    /// The type that values must have.
    pub kind: JsonType,
    /// Whether it stands at the root, or describes a whole object within one (`x-kubernetes-embedded-resource`): then it has
    /// `apiVersion`, `kind` and `metadata`, whatever it says.
    pub is_object: bool,
    /// Whether null is a value.
    pub nullable: bool,
    /// What is filled in for a missing value.
    pub default: Option<Value>,
    /// The fields.
    pub properties: BTreeMap<Box<str>, Structural>,
    /// What other fields there may be.
    pub additional: Additional,
    /// What entries of a list are.
    pub items: Option<Box<Structural>>,
    /// `x-kubernetes-preserve-unknown-fields`: fields that are not described are kept.
    pub preserve_unknown: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type` and `x-kubernetes-list-map-keys`.
    pub list: ListKind,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
    /// `x-kubernetes-validations`.
    pub rules: Vec<Rule>,
    /// What values must fulfil beside their type; `None` is nothing.
    pub limits: Option<Box<Limits>>,
}

/// The `type` of a schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JsonType {
    /// Not said.
    #[default]
    Any,
    /// `object`
    Object,
    /// `array`
    Array,
    /// `string`
    String,
    /// `integer`
    Integer,
    /// `number`
    Number,
    /// `boolean`
    Boolean,
}

/// `additionalProperties`.
#[derive(Clone, Debug, Default)]
pub enum Additional {
    /// Not said.
    #[default]
    Unset,
    /// `true` or `false`.
    Allowed(bool),
    /// A schema for them.
    Schema(Box<Structural>),
}

/// A rule of `x-kubernetes-validations`, as it is written. Evaluating it is the expression language's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The CEL expression.
    pub rule: String,
    /// What is said when it is false.
    pub message: String,
    /// A CEL expression that makes the message.
    pub message_expression: String,
    /// The reason of the error, such as `FieldValueInvalid`.
    pub reason: Option<String>,
    /// The field that is named instead of the place of the rule, such as `.spec.x`.
    pub field_path: String,
    /// Whether a rule about `oldSelf` is asked even if there is no old value.
    pub optional_old_self: Option<bool>,
}

/// Value validation: the keywords of JSON Schema that say nothing of the structure.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// `format`; empty if not said.
    pub format: Box<str>,
    /// What text of that format is, if it is one that is known.
    pub(crate) text_format: Option<formats::Format>,
    /// `maximum`
    pub maximum: Option<f64>,
    /// `exclusiveMaximum`
    pub exclusive_maximum: bool,
    /// `minimum`
    pub minimum: Option<f64>,
    /// `exclusiveMinimum`
    pub exclusive_minimum: bool,
    /// `multipleOf`
    pub multiple_of: Option<f64>,
    /// `maxLength`, in characters.
    pub max_length: Option<i64>,
    /// `minLength`, in characters.
    pub min_length: Option<i64>,
    /// `pattern`
    pub pattern: Option<Pattern>,
    /// `maxItems`
    pub max_items: Option<i64>,
    /// `minItems`
    pub min_items: Option<i64>,
    /// `uniqueItems`
    pub unique_items: bool,
    /// `maxProperties`
    pub max_properties: Option<i64>,
    /// `minProperties`
    pub min_properties: Option<i64>,
    /// `enum`; empty if not said.
    pub enumeration: Vec<Value>,
    /// `required`
    pub required: Vec<Box<str>>,
    /// `allOf`; these schemas, and those below, only restrict.
    pub all_of: Vec<Structural>,
    /// `anyOf`
    pub any_of: Vec<Structural>,
    /// `oneOf`
    pub one_of: Vec<Structural>,
    /// `not`
    pub not: Option<Box<Structural>>,
}
