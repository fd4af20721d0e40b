//! The table of the built-in kinds' schemas: `builtin.txt`, written by `cargo run -p xtask -- gen-schema`.
//!
//! A line is a definition: its name (`~` stands for `io.k8s.api.`, `^` for the meta/v1 package), marks (`ma`: atomic,
//! `gvk=group/version/kind`), then tab-separated fields `name[!]:type[;marks]`; `!` is required. Types: `s` string,
//! `y` bytes, `t` time, `u` micro time, `i` int32, `l` int64, `d` double, `b` bool, `q` quantity, `x` int-or-string,
//! `*` anything, `@name` a definition, `[` list of, `{` map of. Marks: `lm=keys`, `ls`, `la` list types; `ma` atomic map;
//! `pm` merge, `pr` retain keys, `px` replace, `pk=key` of strategic merge patch.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, OnceLock},
};

use serde_json::Value;

use crate::types::{Catalog, DefinitionId, Field, ListKind, Object, Slot, Type};

const TABLE: &str = include_str!("builtin.txt");
const DEFAULTS: &str = include_str!("defaults.txt");
const ALWAYS: &str = include_str!("always.txt");
const POINTERS: &str = include_str!("pointers.txt");
/// A reference to anything at all, which apply takes for one value.
const RAW_EXTENSION: &str = "@io.k8s.apimachinery.pkg.runtime.RawExtension";

/// The catalog of the built-in definitions. Its lines are indexed when it is first asked for, and each parsed when it is first
/// used. All of a process share one, as it holds nothing but the text of the program.
#[must_use]
pub fn catalog() -> Arc<Catalog> {
    static CATALOG: LazyLock<Arc<Catalog>> = LazyLock::new(indexed);
    Arc::clone(&CATALOG)
}

fn indexed() -> Arc<Catalog> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    let mut slots = Vec::with_capacity(1024);
    let mut by_name = HashMap::with_capacity_and_hasher(1024, ahash::RandomState::new());
    for (index, line) in lines.enumerate() {
        by_name.insert(name_of(line), DefinitionId(u32::try_from(index).unwrap_or(u32::MAX)));
        slots.push(Slot { line, object: OnceLock::new() });
    }
    Arc::new(Catalog { slots, by_name, messages: OnceLock::new() })
}

/// The group, version and kind of every definition that has them, with its number.
pub fn kinds(
    catalog: &Catalog,
) -> impl Iterator<Item = (&'static str, &'static str, &'static str, DefinitionId)> + '_ {
    catalog.slots.iter().enumerate().flat_map(|(index, slot)| {
        let head = slot.line.split('\t').next().unwrap_or_default();
        head.split(' ').filter_map(move |mark| {
            let mut parts = mark.strip_prefix("gvk=")?.splitn(3, '/');
            let id = DefinitionId(u32::try_from(index).unwrap_or(u32::MAX));
            Some((parts.next()?, parts.next()?, parts.next()?, id))
        })
    })
}

pub(crate) fn name_of(line: &'static str) -> &'static str {
    line.split(['\t', ' ']).next().unwrap_or_default()
}

/// `~core.v1.Pod` written out.
pub fn full_name(short: &str) -> String {
    if let Some(rest) = short.strip_prefix('~') {
        return format!("io.k8s.api.{rest}");
    }
    short
        .strip_prefix('^')
        .map_or_else(|| short.to_owned(), |rest| format!("io.k8s.apimachinery.pkg.apis.meta.v1.{rest}"))
}

/// A full name in the table's short form.
pub fn short_name(full: &str) -> String {
    if let Some(rest) = full.strip_prefix("io.k8s.api.") {
        return format!("~{rest}");
    }
    full.strip_prefix("io.k8s.apimachinery.pkg.apis.meta.v1.")
        .map_or_else(|| full.to_owned(), |rest| format!("^{rest}"))
}

pub(crate) fn parse_object(catalog: &Catalog, line: &'static str) -> Object {
    let mut parts = line.split('\t');
    let head = parts.next().unwrap_or_default();
    let mut fields: Vec<Field> = parts.filter_map(|text| parse_field(catalog, text)).collect();
    let atomic = head.split(' ').any(|mark| mark == "ma");
    let name = name_of(line);
    let always = always_of(name);
    let pointers = said_of(&POINTERS_BY_NAME, name);
    for field in &mut fields {
        let kept = always.iter().any(|(always, _)| *always == field.name) || pointers.contains(&&*field.name);
        field.omits_empty = !kept && has_empty(&field.ty);
    }
    Object {
        name: full_name(name).into(),
        prefixes: fields.iter().map(|field| crate::types::prefix_of(&field.name)).collect(),
        fields,
        atomic,
        defaults: defaults_of(name),
        always,
    }
}

/// What the lines of a table say of each definition.
type ByName = HashMap<&'static str, Vec<&'static str>, ahash::RandomState>;

static ALWAYS_BY_NAME: LazyLock<ByName> = LazyLock::new(|| by_name(ALWAYS));
static DEFAULTS_BY_NAME: LazyLock<ByName> = LazyLock::new(|| by_name(DEFAULTS));
static POINTERS_BY_NAME: LazyLock<ByName> = LazyLock::new(|| by_name(POINTERS));

fn by_name(table: &'static str) -> ByName {
    let mut all = ByName::default();
    for (name, rest) in table.lines().filter_map(|line| line.split_once(' ')) {
        all.entry(name).or_default().push(rest);
    }
    all
}

fn said_of(table: &'static ByName, name: &str) -> &'static [&'static str] {
    table.get(name).map_or(&[], Vec::as_slice)
}

/// Whether Go has an empty value for the type that it leaves out: lists, maps and scalars, but no structs.
fn has_empty(ty: &Type) -> bool {
    match ty {
        Type::String
        | Type::Bytes
        | Type::Int32
        | Type::Int64
        | Type::Double
        | Type::Bool
        | Type::List(_)
        | Type::Map(_) => true,
        Type::Any
        | Type::Structural(_)
        | Type::Time
        | Type::MicroTime
        | Type::Quantity
        | Type::IntOrString
        | Type::Named(_)
        | Type::Object(_) => false,
    }
}

/// The fields of a definition that are always there: `always.txt` has lines of a definition and `field=json` after it.
fn always_of(name: &str) -> Vec<(Box<str>, Value)> {
    let fields = said_of(&ALWAYS_BY_NAME, name).iter().flat_map(|line| line.split(' '));
    fields
        .filter_map(|field| field.split_once('='))
        .filter_map(|(field, json)| Some((field.into(), serde_json::from_str(json).ok()?)))
        .collect()
}

/// The defaults of a definition: `defaults.txt` has lines of a definition, a field and the value in JSON.
fn defaults_of(name: &str) -> Vec<(Box<str>, Value)> {
    let lines = said_of(&DEFAULTS_BY_NAME, name).iter().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(field, json)| Some((field.into(), serde_json::from_str(json).ok()?))).collect()
}

fn parse_field(catalog: &Catalog, text: &'static str) -> Option<Field> {
    let mut marks = text.split(';');
    let (name, ty) = marks.next()?.split_once(':')?;
    let required = name.ends_with('!');
    let mut field = Field {
        name: name.trim_end_matches('!').into(),
        ty: parse_type(catalog, ty),
        required,
        omits_empty: false,
        list: ListKind::Unset,
        atomic: ty == RAW_EXTENSION,
        patch_merge: false,
        patch_replace: false,
        retain_keys: false,
        merge_key: None,
    };
    for mark in marks {
        match mark.split_once('=').unwrap_or((mark, "")) {
            ("lm", keys) => field.list = ListKind::Map(keys.split(',').map(Into::into).collect()),
            ("ls", _) => field.list = ListKind::Set,
            ("la", _) => field.list = ListKind::Atomic,
            ("ma", _) => field.atomic = true,
            ("pm", _) => field.patch_merge = true,
            ("px", _) => field.patch_replace = true,
            ("pr", _) => field.retain_keys = true,
            ("pk", key) => field.merge_key = Some(key.into()),
            _ => {}
        }
    }
    Some(field)
}

fn parse_type(catalog: &Catalog, text: &'static str) -> Type {
    match text.as_bytes().first() {
        Some(b's') => Type::String,
        Some(b'y') => Type::Bytes,
        Some(b't') => Type::Time,
        Some(b'u') => Type::MicroTime,
        Some(b'i') => Type::Int32,
        Some(b'l') => Type::Int64,
        Some(b'd') => Type::Double,
        Some(b'b') => Type::Bool,
        Some(b'q') => Type::Quantity,
        Some(b'x') => Type::IntOrString,
        Some(b'[') => Type::List(Box::new(parse_type(catalog, &text[1..]))),
        Some(b'{') => Type::Map(Box::new(parse_type(catalog, &text[1..]))),
        Some(b'@') => named(catalog, &text[1..]),
        _ => Type::Any,
    }
}

/// A reference: to the definition, or to the plain type that it is another name for (`^Time =t`).
fn named(catalog: &Catalog, short: &str) -> Type {
    let Some(id) = catalog.find(short) else {
        return Type::Any;
    };
    let line = catalog.slots[id.0 as usize].line;
    match line.split_once(" =") {
        Some((_, ty)) if !line.contains('\t') => parse_type(catalog, ty),
        _ => Type::Named(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_parses_and_refers_to_definitions_that_exist() {
        let catalog = catalog();
        assert!(catalog.slots.len() > 800);
        for slot in &catalog.slots {
            let object = parse_object(&catalog, slot.line);
            assert!(object.fields.is_sorted_by(|a, b| a.name < b.name), "{}", object.name);
            for reference in slot.line.split(['[', '{', ':']).filter_map(|part| part.strip_prefix('@')) {
                let name = reference.split([';', '\t']).next().unwrap_or_default();
                assert!(catalog.find(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn every_default_names_a_field_and_reads_as_json() {
        let catalog = catalog();
        for line in DEFAULTS.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.splitn(3, ' ');
            let (name, field) = (words.next().unwrap(), words.next().unwrap());
            let object = catalog.object(catalog.find(name).unwrap());
            assert!(object.field(field).is_some(), "{line}");
            assert!(serde_json::from_str::<Value>(words.next().unwrap()).is_ok(), "{line}");
        }
    }

    #[test]
    fn every_field_that_is_always_there_is_a_field() {
        let catalog = catalog();
        for line in ALWAYS.lines().filter(|line| !line.starts_with('#')) {
            let (name, fields) = line.split_once(' ').unwrap();
            let object = catalog.object(catalog.find(name).unwrap());
            assert_eq!(object.always.len(), fields.split(' ').count(), "{line}");
            assert!(object.always.iter().all(|(field, _)| object.field(field).is_some()), "{line}");
        }
    }

    #[test]
    fn merge_keys_and_list_types_are_read() {
        let catalog = catalog();
        let spec = catalog.object(catalog.find("~core.v1.ServiceSpec").unwrap());
        let ports = spec.field("ports").unwrap();
        assert_eq!(ports.merge_key.as_deref(), Some("port"));
        assert_eq!(ports.list, ListKind::Map(vec!["port".into(), "protocol".into()]));
        assert!(ports.patch_merge && spec.field("selector").unwrap().atomic);
        assert!(matches!(spec.field("ports").unwrap().ty, Type::List(_)));
    }
}
