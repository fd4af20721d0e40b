//! From a structural schema to what expressions may say about it (`SchemaDeclType` of `apiserver/pkg/cel/common`).

use kcel::{Decl, ListKind as CelList};
use kschema::{
    ListKind,
    structural::{Additional, JsonType, Limits, Structural},
};

/// What expressions see of values of a schema; `None` where its form is not known. `is_root`: it is a whole object, whose
/// name and kind are seen even if the schema is silent about them.
pub(super) fn of(schema: &Structural, is_root: bool) -> Option<Decl> {
    let none = Limits::default();
    let limits = schema.limits.as_deref().unwrap_or(&none);
    let positive = |limit: Option<i64>| limit.map(|limit| u64::try_from(limit).unwrap_or(0));
    if schema.int_or_string {
        let decl = Decl::int_or_string();
        return Some(match positive(limits.max_length) {
            Some(length) => decl.max_length(length),
            None => decl,
        });
    }
    let kind = if is_root { JsonType::Object } else { schema.kind };
    let decl = match kind {
        JsonType::Array => {
            let items = schema.items.as_ref()?;
            let decl = Decl::list(of(items, items.is_object)?).list_kind(match &schema.list {
                ListKind::Set => CelList::Set,
                ListKind::Map(keys) => CelList::Map(keys.iter().map(|key| key.to_string()).collect()),
                _ => CelList::default(),
            });
            match positive(limits.max_items) {
                Some(items) => decl.max_items(items),
                None => decl,
            }
        }
        JsonType::Object => object(schema, limits, is_root)?,
        JsonType::String => string(limits),
        JsonType::Boolean => Decl::bool(),
        JsonType::Number => Decl::double(),
        JsonType::Integer => Decl::int(),
        JsonType::Any => return None,
    };
    Some(decl.nullable(schema.nullable))
}

fn object(schema: &Structural, limits: &Limits, is_root: bool) -> Option<Decl> {
    if let (Additional::Schema(values), false) = (&schema.additional, is_root) {
        let decl = Decl::map(of(values, values.is_object)?);
        let most = limits.max_properties.map(|limit| u64::try_from(limit).unwrap_or(0));
        return Some(match most {
            Some(properties) => decl.max_properties(properties),
            None => decl,
        });
    }
    let mut decl = Decl::object("object");
    for (name, field) in &schema.properties {
        if is_root && ["apiVersion", "kind", "metadata"].contains(&&**name) {
            continue;
        }
        let required = limits.required.iter().any(|required| required == name) && field.default.is_none();
        if let Some(field) = of(field, field.is_object) {
            decl = decl.field(name, field, required);
        }
    }
    if is_root {
        let meta = Decl::object("object").field("name", Decl::string(), false).field(
            "generateName",
            Decl::string(),
            false,
        );
        decl = decl
            .field("apiVersion", Decl::string(), false)
            .field("kind", Decl::string(), false)
            .field("metadata", meta, false);
    }
    Some(decl)
}

fn string(limits: &Limits) -> Decl {
    let length = limits.max_length.map(|limit| u64::try_from(limit).unwrap_or(0));
    let with_length = |decl: Decl| match length {
        Some(length) => decl.max_length(length),
        None => decl,
    };
    match &*limits.format {
        "byte" => with_length(Decl::bytes()),
        "duration" => Decl::duration(),
        "date" => Decl::date(),
        "date-time" => Decl::date_time(),
        _ if length.is_none() && !limits.enumeration.is_empty() => {
            let longest = limits.enumeration.iter().filter_map(|value| value.as_str().map(str::len)).max();
            Decl::string().with_elements_max(longest.unwrap_or(0) as u64)
        }
        _ => with_length(Decl::string()),
    }
}
