//! Structural schemas.
use crate::{Type, error::FieldError};
use serde_json::Value;
/// A compiled structural schema.
#[derive(Debug)]
pub struct Structural;
#[allow(missing_docs, clippy::missing_errors_doc, clippy::unused_self)]
impl Structural {
    pub fn compile(_schema: &Value) -> Result<Self, Vec<FieldError>> {
        Ok(Self)
    }
    pub fn prune(&self, _value: &mut Value) -> Vec<String> {
        Vec::new()
    }
    pub fn default(&self, _value: &mut Value) {}
    pub fn validate(&self, _value: &Value, _old: Option<&Value>, _errors: &mut Vec<FieldError>) {}
    pub fn as_type(&self) -> Type {
        Type::Any
    }
}
