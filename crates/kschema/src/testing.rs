//! Objects made up from their schema, for tests of what must hold for every kind (feature `testing`).

use serde_json::{Map, Value, json};

use crate::{Catalog, Type, types::DefinitionId};

/// How deep an object that is made up goes.
const DEPTH_MAX: usize = 6;

/// An object of a kind, given as group, version and name, in which everything is set and nothing is zero. The same seed gives
/// the same object.
///
/// ```
/// use kschema::{builtin, testing::object_of};
///
/// let catalog = builtin::catalog();
/// let (group, version, kind, id) = builtin::kinds(&catalog).find(|kind| kind.2 == "ConfigMap").unwrap();
/// let object = object_of(&catalog, (group, version, kind), id, 1);
/// assert_eq!(object["kind"], "ConfigMap");
/// assert!(object["data"]["k"].is_string());
/// ```
#[must_use]
pub fn object_of(
    catalog: &Catalog,
    (group, version, kind): (&str, &str, &str),
    id: DefinitionId,
    seed: u64,
) -> Value {
    let mut seed = seed;
    let mut object = value_of(catalog, &Type::Named(id), &mut seed, DEPTH_MAX);
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    object
}

/// A value of a type in which nothing is zero, and only as much as fits into the depth.
fn value_of(catalog: &Catalog, ty: &Type, seed: &mut u64, depth: usize) -> Value {
    let mut next = |limit: u64| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) % limit
    };
    match ty {
        Type::String => json!(["a", "b/c", "ä\""][usize::try_from(next(3)).unwrap()]),
        Type::Bytes => json!("AQID"),
        Type::Time => json!("2026-01-02T03:04:05Z"),
        Type::MicroTime => json!("2026-01-02T03:04:05.000006Z"),
        Type::Int32 => json!(if next(2) == 0 { -1 } else { 70_000 }),
        Type::Int64 => json!(if next(2) == 0 { i64::MIN } else { 5_000_000_000 }),
        Type::Double => json!(0.5),
        Type::Bool => json!(true),
        Type::IntOrString => {
            if next(2) == 0 {
                json!(8080)
            } else {
                json!("http")
            }
        }
        Type::Quantity => json!("1500m"),
        Type::Any | Type::Structural(_) => json!({}),
        Type::List(item) => json!([value_of(catalog, item, seed, depth)]),
        Type::Map(item) => json!({"k": value_of(catalog, item, seed, depth)}),
        Type::Named(_) | Type::Object(_) => {
            let mut map = Map::new();
            for field in catalog.resolve(ty).into_iter().flat_map(|object| &object.fields) {
                *seed = seed.wrapping_add(1);
                let is_deep =
                    matches!(field.ty, Type::Named(_) | Type::Object(_) | Type::List(_) | Type::Map(_));
                if depth > 0 || !is_deep {
                    map.insert(
                        field.name.to_string(),
                        value_of(catalog, &field.ty, seed, depth.saturating_sub(1)),
                    );
                }
            }
            Value::Object(map)
        }
    }
}
