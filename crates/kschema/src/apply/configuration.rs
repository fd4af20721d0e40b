//! Merging what somebody makes of an object without owning it, as mutating admission policies do.

use serde_json::Value;

use super::{
    merge::merge,
    path::{At, PathElement},
    shape::{Kind, Shape},
    typed::{Faults, validate},
};
use crate::types::{Catalog, Type};

/// Why a configuration can't be merged, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// It does not fit the schema.
    #[error("failed to convert patch object to typed object: {0}")]
    Patch(String),
    /// It speaks of what can only be replaced as a whole.
    #[error("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {0}")]
    Atomic(String),
    /// The object does not fit the schema.
    #[error("failed to convert original object to typed object: {0}")]
    Original(String),
    /// The two don't go together.
    #[error("failed to merge patch: {0}")]
    Merge(String),
}

/// `live` with `patch` merged into it as server-side apply merges, with no word of who owns what
/// (`admission/plugin/policy/mutating/patch/smd.go`). Both are of the same version and kind, which `schema` describes.
///
/// ```
/// use kschema::{Type, apply::merge_configuration, builtin};
/// use serde_json::json;
///
/// let catalog = builtin::catalog();
/// let schema = Type::Named(catalog.find("~core.v1.ConfigMap").unwrap());
/// let live = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}});
/// let patch = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"b": "2"}});
/// let merged = merge_configuration(&catalog, &schema, &live, &patch)?;
/// assert_eq!(merged["data"], json!({"a": "1", "b": "2"}));
/// # Ok::<(), kschema::apply::ConfigurationError>(())
/// ```
///
/// # Errors
/// See [`ConfigurationError`].
pub fn merge_configuration(
    catalog: &Catalog,
    schema: &Type,
    live: &Value,
    patch: &Value,
) -> Result<Value, ConfigurationError> {
    let shape = Shape::of(schema, None);
    let text = |faults: Faults| faults.to_string();
    validate(catalog, shape, patch, false).map_err(text).map_err(ConfigurationError::Patch)?;
    let mut atomics = Vec::new();
    find_atomics(catalog, shape, patch, &At::ROOT, &mut atomics);
    if !atomics.is_empty() {
        return Err(ConfigurationError::Atomic(atomics.join(", ")));
    }
    validate(catalog, shape, live, true).map_err(text).map_err(ConfigurationError::Original)?;
    merge(catalog, shape, live, patch).map_err(text).map_err(ConfigurationError::Merge)
}

/// The places in a patch that can only be replaced as a whole. As deep as the patch, which an expression made.
fn find_atomics(catalog: &Catalog, shape: Shape<'_>, value: &Value, at: &At<'_>, found: &mut Vec<String>) {
    match (shape.kind(Some(value)), value) {
        (Kind::Map, Value::Object(map)) => {
            let shape = shape.map(catalog);
            if shape.atomic {
                found.push(at.to_string());
            }
            for (key, value) in map {
                if let Some(field) = shape.find(key) {
                    find_atomics(catalog, field, value, &at.field(key), found);
                }
            }
        }
        (Kind::List, Value::Array(items)) => {
            let shape = shape.list();
            if shape.is_atomic() {
                found.push(at.to_string());
            }
            for (index, item) in items.iter().enumerate() {
                let element = PathElement::Index(i64::try_from(index).unwrap_or(i64::MAX));
                find_atomics(catalog, shape.item, item, &at.element(&element), found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builtin;

    /// Expected results: `admission/plugin/policy/mutating/patch/smd_test.go`.
    #[test]
    fn configurations_are_merged_as_upstream_does() {
        let catalog = builtin::catalog();
        let schema = Type::Named(catalog.find("~apps.v1.Deployment").unwrap());
        let spec = |spec: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec});
        let pod = |pod: Value| spec(json!({"template": {"spec": pod}}));
        for (live, patch, expected) in [
            (spec(json!({"replicas": 1})), spec(json!({"replicas": 2})), Ok(spec(json!({"replicas": 2})))),
            (
                pod(json!({"containers": [{"name": "a", "image": "x"}]})),
                pod(json!({"containers": [{"name": "b"}, {"name": "a", "tty": true}]})),
                Ok(pod(json!({"containers": [{"name": "b"}, {"name": "a", "image": "x", "tty": true}]}))),
            ),
            (
                pod(json!({})),
                spec(json!({"selector": {"matchLabels": {"a": "b"}}})),
                Err(
                    "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector",
                ),
            ),
            (
                pod(json!({})),
                pod(json!({"containers": [{"name": "a", "args": ["x"]}]})),
                Err(
                    "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.template.spec.containers[0].args",
                ),
            ),
            (
                pod(json!({})),
                spec(json!({"unknown": 1})),
                Err(
                    "failed to convert patch object to typed object: .spec.unknown: field not declared in schema",
                ),
            ),
        ] {
            let found =
                merge_configuration(&catalog, &schema, &live, &patch).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{patch}");
        }
    }
}
