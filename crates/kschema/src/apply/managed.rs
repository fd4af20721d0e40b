//! `metadata.managedFields`: reading, writing and ordering its entries.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kcore::clock::format_time;
use serde_json::{Map, Value, json};

use super::set::Set;

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

/// What one manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) set: Set,
    /// The version that the set's paths are of.
    pub(crate) api_version: String,
}

/// The entries of `managedFields`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// The `managedFields` of an object; null if there are none.
pub(crate) fn of(object: &Value) -> &Value {
    &object["metadata"]["managedFields"]
}

/// Takes the `managedFields` out of an object.
pub(crate) fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

impl Managed {
    /// # Errors
    /// For the first entry that makes no sense.
    pub(crate) fn decode(list: &Value) -> Result<Self, ManagedFieldsError> {
        let mut managed = Self::default();
        for (index, entry) in list.as_array().into_iter().flatten().enumerate() {
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
                "" => {
                    return Err(ManagedFieldsError(format!(
                        "missing fieldsType in managed fields entry {index}"
                    )));
                }
                other => {
                    return Err(ManagedFieldsError(format!(
                        "invalid fieldsType {other:?} in managed fields entry {index}"
                    )));
                }
            }
            let set = Set::from_fields_v1(&entry["fieldsV1"])
                .map_err(|error| ManagedFieldsError(format!("error decoding set: {error}")))?;
            let manager = Manager {
                name: text("manager").to_owned(),
                operation,
                api_version: if operation == Operation::Apply {
                    String::new()
                } else {
                    api_version.to_owned()
                },
                subresource: text("subresource").to_owned(),
            };
            if let Some(time) = entry["time"].as_str() {
                managed.times.insert(manager.clone(), time.to_owned());
            }
            managed.fields.insert(manager, Owned { set, api_version: api_version.to_owned() });
        }
        Ok(managed)
    }

    /// The list as it is stored: by operation, time, manager, version, subresource. `None` when nobody owns anything.
    pub(crate) fn encode(&self) -> Option<Value> {
        let mut entries: Vec<(&Manager, &Owned, Option<&String>)> =
            self.fields.iter().map(|(manager, owned)| (manager, owned, self.times.get(manager))).collect();
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
    pub(crate) fn store(&self, object: &mut Value) {
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

fn encode_entry(manager: &Manager, owned: &Owned, time: Option<&String>) -> Value {
    let mut entry = Map::new();
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            entry.insert(key.to_owned(), value.into());
        }
    };
    put("manager", &manager.name);
    put("operation", manager.operation.as_str());
    put("apiVersion", &owned.api_version);
    put("time", time.map_or("", String::as_str));
    put("fieldsType", "FieldsV1");
    put("subresource", &manager.subresource);
    entry.insert("fieldsV1".to_owned(), owned.set.to_fields_v1());
    Value::Object(entry)
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
    let same_but_time = |a: &Value, b: &Value| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => a.iter().filter(|e| e.0 != "time").eq(b.iter().filter(|e| e.0 != "time")),
        _ => false,
    };
    if !old_list.iter().zip(new_list).all(|(a, b)| same_but_time(a, b)) || !same_but_managed_fields(old, new)
    {
        return;
    }
    let old_list = of(old).clone();
    new["metadata"]["managedFields"] = old_list;
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
