//! The simple paths of definitions.
use serde_json::Value;
/// A path.
#[derive(Debug)]
pub struct JsonPath(Vec<String>);
#[allow(missing_docs, clippy::missing_errors_doc)]
impl JsonPath {
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(text.split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect()))
    }
    pub fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(value, |v, k| v.get(k))
    }
}
