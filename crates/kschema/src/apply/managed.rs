//! `metadata.managedFields`: reading, writing and ordering its entries.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kcore::clock::format_time;
use serde_json::{Map, Value, json};

use super::{owned::Owned, set::Set};
use crate::error::FieldError;

/// Who owns fields: what tells one entry of `managedFields` from another.
///
/// The order is the one in which conflicts name managers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    pub(crate) name: String,
    pub(crate) operation: Operation,
    /// Empty for appliers, who own fields whatever version they speak of them in.
    pub(crate) api_version: String,
    pub(crate) subresource: String,
}

/// How fields came to be owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

impl Manager {
    pub(crate) fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        Self {
            name: if name.is_empty() { "unknown".to_owned() } else { name.to_owned() },
            operation,
            api_version: if operation == Operation::Apply { String::new() } else { api_version.to_owned() },
            subresource: subresource.to_owned(),
        }
    }
}

/// The entries of `managedFields`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Managed {
    pub(crate) fields: BTreeMap<Manager, Owned>,
    /// RFC 3339 with seconds; kept as text, as they are only compared and written back.
    pub(crate) times: BTreeMap<Manager, String>,
}

/// Why `managedFields` cannot be read, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ManagedFieldsError(String);

/// Checks `managedFields` as a client sent them, or as an admission step left them.
///
/// # Errors
/// When the server would not be able to read them.
pub fn validate(object: &Value) -> Result<(), ManagedFieldsError> {
    Managed::decode(of(object)).map(drop)
}

/// How long the name of a manager may be, in bytes.
pub const MANAGER_BYTES_MAX: usize = 128;
/// How long the name of a subresource may be, in bytes.
const SUBRESOURCE_BYTES_MAX: usize = 256;

/// Checks the `managedFields` that an object of a request brings, as a part of its metadata.
pub fn validate_entries(object: &Value, errors: &mut Vec<FieldError>) {
    for (index, entry) in of(object).as_array().into_iter().flatten().enumerate() {
        let at = |key: &str| format!("metadata.managedFields[{index}].{key}");
        let text = |key: &str| entry[key].as_str().unwrap_or_default();
        if !["Apply", "Update"].contains(&text("operation")) {
            let why = "must be `Apply` or `Update`";
            errors.push(FieldError::invalid_text(at("operation"), text("operation"), why));
        }
        if !["", "FieldsV1"].contains(&text("fieldsType")) {
            errors.push(FieldError::invalid_text(at("fieldsType"), text("fieldsType"), "must be `FieldsV1`"));
        }
        validate_manager(text("manager"), &at("manager"), errors);
        if text("subresource").len() > SUBRESOURCE_BYTES_MAX {
            errors.push(FieldError::too_long(at("subresource"), SUBRESOURCE_BYTES_MAX));
        }
    }
}

/// Checks the name of a manager, as requests give it in the option `fieldManager` (the `path`).
pub fn validate_manager(name: &str, path: &str, errors: &mut Vec<FieldError>) {
    if name.len() > MANAGER_BYTES_MAX {
        errors.push(FieldError::too_long(path, MANAGER_BYTES_MAX));
    }
    for (at, c) in name.char_indices() {
        // Of white space, Go prints the blank alone.
        if c.is_control() || c.is_whitespace() && c != ' ' {
            let why = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
            errors.push(FieldError::invalid_text(path, name, why));
        }
    }
}

/// The `managedFields` of an object; null if there are none.
pub(crate) fn of(object: &Value) -> &Value {
    &object["metadata"]["managedFields"]
}

/// Takes the `managedFields` out of an object.
pub(crate) fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

impl Managed {
    /// Reads entries that somebody else wrote.
    ///
    /// # Errors
    /// For the first entry that makes no sense.
    pub(crate) fn decode(list: &Value) -> Result<Self, ManagedFieldsError> {
        let mut managed = Self::default();
        for (index, entry) in list.as_array().into_iter().flatten().enumerate() {
            let (manager, api_version) = read_entry(index, entry)?;
            let set = Set::from_fields_v1(&entry["fieldsV1"])
                .map_err(|error| ManagedFieldsError(format!("error decoding set: {error}")))?;
            managed.insert(entry, manager, Owned::new(set, api_version));
        }
        Ok(managed)
    }

    /// Takes over entries that this server has written: their sets are read when they are needed.
    ///
    /// # Errors
    /// For the first entry that makes no sense.
    pub(crate) fn adopt(list: Value) -> Result<Self, ManagedFieldsError> {
        let mut managed = Self::default();
        let Value::Array(list) = list else { return Ok(managed) };
        for (index, mut entry) in list.into_iter().enumerate() {
            let fields = entry.get_mut("fieldsV1").map_or_else(|| json!({}), Value::take);
            let (manager, api_version) = read_entry(index, &entry)?;
            managed.insert(&entry, manager, Owned::stored(fields, api_version));
        }
        Ok(managed)
    }

    fn insert(&mut self, entry: &Value, manager: Manager, owned: Owned) {
        if let Some(time) = entry["time"].as_str() {
            self.times.insert(manager.clone(), time.to_owned());
        }
        self.fields.insert(manager, owned);
    }

    /// The list as it is stored: by operation, time, manager, version, subresource. `None` when nobody owns anything.
    pub(crate) fn encode(mut self) -> Option<Value> {
        let mut entries: Vec<(Manager, Owned, Option<String>)> = self
            .fields
            .into_iter()
            .map(|(manager, owned)| {
                let time = self.times.remove(&manager);
                (manager, owned, time)
            })
            .collect();
        entries.sort_by(|(a, a_owned, a_time), (b, b_owned, b_time)| {
            (a.operation, a_time, &a.name, &a_owned.api_version, &a.subresource).cmp(&(
                b.operation,
                b_time,
                &b.name,
                &b_owned.api_version,
                &b.subresource,
            ))
        });
        let list: Vec<Value> =
            entries.into_iter().map(|(manager, owned, time)| encode_entry(manager, owned, time)).collect();
        (!list.is_empty()).then_some(Value::Array(list))
    }

    /// Writes the entries into the object's metadata.
    pub(crate) fn store(self, object: &mut Value) {
        let Some(list) = self.encode() else {
            take(object);
            return;
        };
        if let Some(map) = object.as_object_mut() {
            let metadata = map.entry("metadata").or_insert_with(|| json!({}));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("managedFields".to_owned(), list);
            }
        }
    }

    pub(crate) fn touch(&mut self, manager: &Manager, now: Timestamp) {
        self.times.insert(manager.clone(), format_time(now));
    }
}

fn encode_entry(manager: Manager, owned: Owned, time: Option<String>) -> Value {
    let mut entry = Map::new();
    let mut put = |key: &str, value: String| {
        if !value.is_empty() {
            entry.insert(key.to_owned(), Value::String(value));
        }
    };
    put("manager", manager.name);
    put("operation", manager.operation.as_str().to_owned());
    put("apiVersion", owned.api_version.clone());
    put("time", time.unwrap_or_default());
    put("fieldsType", "FieldsV1".to_owned());
    put("subresource", manager.subresource);
    entry.insert("fieldsV1".to_owned(), owned.into_fields_v1());
    Value::Object(entry)
}

/// All of an entry but its set: the manager, and the version of the set's paths.
fn read_entry(index: usize, entry: &Value) -> Result<(Manager, &str), ManagedFieldsError> {
    let text = |key: &str| entry[key].as_str().unwrap_or_default();
    let operation = match text("operation") {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return Err(ManagedFieldsError("operation must be `Apply` or `Update`".to_owned())),
    };
    let api_version = text("apiVersion");
    if api_version.is_empty() {
        return Err(ManagedFieldsError("apiVersion must not be empty".to_owned()));
    }
    match text("fieldsType") {
        "FieldsV1" => {}
        "" => return Err(ManagedFieldsError(format!("missing fieldsType in managed fields entry {index}"))),
        other => {
            let message = format!("invalid fieldsType {other:?} in managed fields entry {index}");
            return Err(ManagedFieldsError(message));
        }
    }
    let manager = Manager {
        name: text("manager").to_owned(),
        operation,
        api_version: if operation == Operation::Apply { String::new() } else { api_version.to_owned() },
        subresource: text("subresource").to_owned(),
    };
    Ok((manager, api_version))
}

/// Puts back the times of `old`'s entries if nothing but times tells `new` from `old`, so that a write that changes nothing
/// remains one. To be called when everything else has been done to `new`.
///
/// The rule is that of upstream's `IgnoreManagedFieldsTimestampsTransformer`.
pub fn keep_times(old: &Value, new: &mut Value) {
    let (Some(old_list), Some(new_list)) = (of(old).as_array(), of(new).as_array()) else { return };
    if old_list == new_list || old_list.len() != new_list.len() {
        return;
    }
    if !old_list.iter().zip(new_list).all(|(a, b)| is_same_entry(a, b, "time"))
        || !same_but_managed_fields(old, new)
    {
        return;
    }
    let old_list = of(old).clone();
    new["metadata"]["managedFields"] = old_list;
}

/// Whether two lists of entries are the same, whichever of them has its sets as texts.
pub(crate) fn is_same_list(a: &Value, b: &Value) -> bool {
    match (a.as_array(), b.as_array()) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same_entry(a, b, "")),
        _ => a == b,
    }
}

/// Whether the sets of a list are texts.
pub(crate) fn is_sealed(list: &Value) -> bool {
    list.as_array().into_iter().flatten().any(|entry| entry["fieldsV1"].is_string())
}

fn is_same_entry(a: &Value, b: &Value, but: &str) -> bool {
    let is_same = |a: &Value, b: &Value| match (a, b) {
        (Value::String(text), tree @ Value::Object(_)) | (tree @ Value::Object(_), Value::String(text)) => {
            kcore::json::to_vec(tree) == text.as_bytes()
        }
        _ => a == b,
    };
    match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            let (mut a, mut b) =
                (a.iter().filter(|entry| entry.0 != but), b.iter().filter(|entry| entry.0 != but));
            loop {
                match (a.next(), b.next()) {
                    (None, None) => return true,
                    (Some((a_key, a)), Some((b_key, b))) if a_key == b_key && is_same(a, b) => {}
                    _ => return false,
                }
            }
        }
        _ => but.is_empty() && a == b,
    }
}

/// Whether two objects are the same when nobody looks at who owns what.
pub(crate) fn same_but_managed_fields(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let same_metadata = |a: &Value, b: &Value| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            a.iter().filter(|e| e.0 != "managedFields").eq(b.iter().filter(|e| e.0 != "managedFields"))
        }
        _ => a == b,
    };
    a.len() == b.len()
        && a.iter().zip(b).all(|((a_key, a), (b_key, b))| {
            a_key == b_key && if a_key == "metadata" { same_metadata(a, b) } else { a == b }
        })
}
