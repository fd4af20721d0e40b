//! What happens to `managedFields` in each kind of write.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kcore::Status;
use serde_json::{Map, Value, json};

use super::{
    Versions, last_applied,
    managed::{self, Managed, Manager, Operation},
    owned::Owned,
    path::PathElement,
    set::Set,
    typed,
    updater::{Refusal, Updater, Versioned},
};
use crate::{
    error::{ApiError, ApiResult},
    types::Catalog,
};

/// How many managers that update, rather than apply, are told apart; the oldest are put together as `ancient-changes`.
pub const UPDATE_MANAGERS_MAX: usize = 10;

/// Keeps track of who owns which fields of the objects of one kind, at one endpoint.
///
/// Made for a request. All objects given to it are in `api_version`, which is the version of the request.
#[derive(Clone, Copy)]
pub struct FieldManager<'a> {
    /// The definitions that types refer to.
    pub catalog: &'a Catalog,
    /// The kind's versions.
    pub versions: &'a dyn Versions,
    /// The version of the request, such as `apps/v1`.
    pub api_version: &'a str,
    /// The kind.
    pub kind: &'a str,
    /// The subresource, or nothing.
    pub subresource: &'a str,
}

impl<'a> FieldManager<'a> {
    /// Brings `new`'s `managedFields` up to date when `manager` creates or updates an object, or patches it other than by
    /// apply. `live` is the present state, `{}` or null for a create.
    ///
    /// Never fails: what upstream calls an error leaves the object without `managedFields`. What `new` brings itself counts
    /// unless it makes no sense (`[]` and `[{}]` start from nothing); at a subresource it does not count. An object that has
    /// come to be without `managedFields` stays without until somebody applies it.
    pub fn on_update(&self, live: &Value, new: &mut Value, manager: &str, now: Timestamp) {
        let brought = managed::take(new).filter(|_| self.subresource.is_empty());
        let live_list = managed::of(live);
        let is_live = brought.as_ref().is_none_or(|list| managed::is_same_list(list, live_list));
        // What is a text stays one.
        let brought = brought.filter(|_| !is_live || !managed::is_sealed(live_list));
        if is_live && managed::same_but_managed_fields(live, new) {
            let metadata = new.get_mut("metadata").and_then(Value::as_object_mut);
            if let Some(metadata) = metadata.filter(|_| !live_list.is_null()) {
                let list = brought.unwrap_or_else(|| live_list.clone());
                metadata.insert("managedFields".to_owned(), list);
            }
            return;
        }
        let managed = if is_live {
            Managed::adopt(brought.unwrap_or_else(|| live_list.clone()))
        } else {
            read_brought(live_list, brought.as_ref())
        };
        let mut managed = managed.unwrap_or_default();
        let is_create = live["metadata"]["uid"].as_str().unwrap_or_default().is_empty();
        if managed.fields.is_empty() && !is_create {
            return;
        }
        if self.update(live, new, &mut managed, manager, now).is_ok() {
            managed.store(new);
        }
    }

    fn updater(&self) -> Updater<'a> {
        Updater { catalog: self.catalog, versions: self.versions }
    }

    fn versioned(&self, value: &'a Value) -> Result<Versioned<'a>, Refusal> {
        let shape = self.updater().shape(self.api_version).ok_or_else(|| {
            Refusal::Other(format!("no corresponding type for {}", gvk_text(self.api_version, self.kind)))
        })?;
        Ok(Versioned { value: Cow::Borrowed(value), api_version: Cow::Borrowed(self.api_version), shape })
    }

    fn versioned_here<'v>(&self, value: &'v Value) -> Result<Versioned<'v>, Refusal>
    where
        'a: 'v,
    {
        FieldManager::<'v> { ..*self }.versioned(value)
    }

    /// One update by `name`, which then owns what it changed.
    fn update(
        &self,
        live: &Value,
        new: &Value,
        managed: &mut Managed,
        name: &str,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let nothing = json!({});
        let live = if live.is_object() { live } else { &nothing };
        let manager = Manager::new(name, Operation::Update, self.api_version, self.subresource);
        if managed.fields.is_empty() {
            // Nobody can lose anything: what is new is written down as it is found.
            let mut fields =
                self.updater().new_fields(&self.versioned_here(live)?, &self.versioned_here(new)?)?;
            strip_stored(&mut fields);
            if !fields.is_empty() {
                managed.touch(&manager, now);
                managed.fields.insert(manager, Owned::stored(Value::Object(fields), self.api_version));
            }
            return Ok(());
        }
        let set = strip(self.changed_fields(live, new, managed, &manager)?);
        if !set.is_empty() {
            managed.touch(&manager, now);
            match managed.fields.get_mut(&manager) {
                Some(before) => before.add(&set),
                None => {
                    managed.fields.insert(manager, Owned::new(set, self.api_version));
                }
            }
        }
        cap(managed);
        Ok(())
    }

    fn changed_fields(
        &self,
        live: &Value,
        new: &Value,
        managed: &mut Managed,
        heir: &Manager,
    ) -> Result<Set, Refusal> {
        // Borrowed for this call only.
        let here = FieldManager::<'_> { ..*self };
        let (live, new) = (here.versioned(live)?, here.versioned(new)?);
        here.updater().update(&live, &new, &mut managed.fields, heir)
    }

    /// Applies `patch` as `manager`: the new object, or `None` when nothing changes, not even who owns what. `live` is the
    /// present state, `{}` or null for a create. `force` takes fields from those who own them.
    ///
    /// Defaults are not filled in. Values may come in another form than they are stored in (`0.5` for `500m`): when the object
    /// has been brought into its canonical form, [`keep_times`](super::keep_times) tells whether anything has changed.
    ///
    /// # Errors
    /// 409 with a cause per field that somebody else owns; 400 for a patch of another kind or with `managedFields`; what
    /// upstream answers with 500 for a patch that does not fit the type.
    pub fn on_apply(
        &self,
        live: &Value,
        patch: &Value,
        manager: &str,
        force: bool,
        now: Timestamp,
    ) -> ApiResult<Option<Value>> {
        let text = |key: &str| patch[key].as_str().unwrap_or_default();
        if (text("apiVersion"), text("kind")) != (self.api_version, self.kind) {
            let found = gvk_text(text("apiVersion"), text("kind"));
            return Err(Status::bad_request(format!("invalid object type: {found}")).into());
        }
        if !managed::of(patch).is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil").into());
        }
        let managed = Managed::adopt(managed::of(live).clone())
            .map_err(|error| internal(format!("failed to decode managed fields: {error}")))?;
        let mut applied = self.apply(live, patch, managed.clone(), manager, force, now);
        if manager == last_applied::MANAGER
            && let Err(Refusal::Conflicts(conflicts)) = &applied
            && let Some(allowed) = last_applied::owned_fields(self, live)
        {
            // What kubectl applied on the client's side before is kubectl's own.
            let rest = conflicts.without(&allowed);
            applied = if conflicts.to_set().difference(&allowed).is_empty() {
                self.apply(live, patch, managed, manager, true, now)
            } else {
                Err(Refusal::Conflicts(rest))
            };
        }
        let mut object = applied.map_err(|refusal| match refusal {
            Refusal::Conflicts(conflicts) => ApiError::from(conflicts.to_status()),
            Refusal::Other(message) => internal(message),
        })?;
        if manager == last_applied::MANAGER {
            last_applied::renew(&mut object, patch);
        }
        Ok((object != *live).then_some(object))
    }

    fn apply(
        &self,
        live: &Value,
        patch: &Value,
        mut managed: Managed,
        name: &str,
        force: bool,
        now: Timestamp,
    ) -> Result<Value, Refusal> {
        let nothing = json!({});
        let live = if live.is_object() { live } else { &nothing };
        if managed.fields.is_empty() && live.as_object().is_some_and(|map| !map.is_empty()) {
            self.update(&nothing, live, &mut managed, "before-first-apply", now).map_err(|refusal| {
                match refusal {
                    Refusal::Other(why) => {
                        Refusal::Other(format!("failed to create manager for existing fields: {why}"))
                    }
                    conflicts => conflicts,
                }
            })?;
        }
        let acting = Manager::new(name, Operation::Apply, self.api_version, self.subresource);
        let applied = self.merge(live, patch, &mut managed, &acting, force)?;
        let left = managed.fields.get_mut(&acting).is_some_and(|owned| {
            owned.replace(strip(owned.set().clone()));
            !owned.is_empty()
        });
        if !left {
            managed.fields.remove(&acting);
        }
        if applied.is_some() {
            managed.touch(&acting, now);
        }
        let mut object = applied.unwrap_or_else(|| live.clone());
        managed.store(&mut object);
        Ok(object)
    }

    fn merge(
        &self,
        live: &Value,
        patch: &Value,
        managed: &mut Managed,
        acting: &Manager,
        force: bool,
    ) -> Result<Option<Value>, Refusal> {
        let here = FieldManager::<'_> { ..*self };
        let (live, patch) = (here.versioned(live)?, here.versioned(patch)?);
        typed::validate(self.catalog, patch.shape, &patch.value, false).map_err(|faults| {
            Refusal::Other(format!(
                "failed to create typed patch object ({}): {faults}",
                self.name_of(&patch.value)
            ))
        })?;
        typed::validate(self.catalog, live.shape, &live.value, true).map_err(|faults| {
            Refusal::Other(format!(
                "failed to create typed live object ({}): {faults}",
                self.name_of(&live.value)
            ))
        })?;
        here.updater().apply(&live, &patch, &mut managed.fields, acting, force)
    }

    /// `namespace/name; group/version, Kind=kind`
    fn name_of(&self, object: &Value) -> String {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        format!("{}/{}; {}", text("namespace"), text("name"), gvk_text(self.api_version, self.kind))
    }
}

/// The entries that an update starts from whose object brings entries of its own.
fn read_brought(live: &Value, brought: Option<&Value>) -> Result<Managed, managed::ManagedFieldsError> {
    match brought {
        Some(Value::Array(list)) if list.is_empty() || *list == [json!({})] => Ok(Managed::default()),
        Some(list @ Value::Array(_)) => match Managed::decode(list) {
            Ok(managed) if !managed.fields.is_empty() => Ok(managed),
            _ => Managed::adopt(live.clone()),
        },
        _ => Managed::adopt(live.clone()),
    }
}

/// A kind as Go prints it: `apps/v1, Kind=Deployment`, `/v1, Kind=Pod`.
fn gvk_text(api_version: &str, kind: &str) -> String {
    let slash = if api_version.contains('/') { "" } else { "/" };
    format!("{slash}{api_version}, Kind={kind}")
}

/// What upstream answers to faults that it gives no status of their own.
fn internal(message: String) -> ApiError {
    Status::failure(500, "", message).into()
}

/// The fields of every object that nobody owns, as they are stored.
pub(super) const UNOWNED: [&str; 3] = ["f:apiVersion", "f:kind", "f:metadata"];
/// The fields of every object's metadata that nobody owns, as they are stored.
pub(super) const UNOWNED_METADATA: [&str; 9] = [
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:selfLink",
    "f:uid",
    "f:clusterName",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
];

/// Whether a field is one of these.
pub(super) fn is_one_of(name: &str, stored: &[&str]) -> bool {
    stored.iter().any(|text| text.strip_prefix("f:") == Some(name))
}

/// The set without the fields that nobody owns.
fn strip(mut set: Set) -> Set {
    let is = |element: &PathElement, names: &[&str]| match element {
        PathElement::Field(name) => is_one_of(name, names),
        _ => false,
    };
    set.members.retain(|member| !is(member, &UNOWNED));
    set.children.retain_mut(|(element, child)| {
        if is(element, &["f:metadata"]) {
            Arc::make_mut(child).members.retain(|member| !is(member, &UNOWNED_METADATA));
            return !child.is_empty();
        }
        true
    });
    set
}

/// [`strip`] of fields that are written down already.
fn strip_stored(fields: &mut Map<String, Value>) {
    let forget = |fields: &mut Map<String, Value>, text: &str| {
        let Some(below) = fields.get_mut(text).and_then(Value::as_object_mut) else { return };
        below.remove(".");
        if below.is_empty() {
            fields.remove(text);
        }
    };
    if let Some(metadata) = fields.get_mut("f:metadata").and_then(Value::as_object_mut) {
        UNOWNED_METADATA.iter().for_each(|name| forget(metadata, name));
    }
    UNOWNED.iter().for_each(|name| forget(fields, name));
}

/// Puts the oldest updates together when there are too many managers.
fn cap(managed: &mut Managed) {
    let updaters = |managed: &Managed| {
        let names = managed.fields.keys().filter(|manager| manager.operation == Operation::Update);
        names.cloned().collect::<Vec<_>>()
    };
    let mut oldest = updaters(managed);
    let mut count = oldest.len();
    if count <= UPDATE_MANAGERS_MAX {
        return;
    }
    oldest.sort_by(|a, b| (managed.times.get(a), a).cmp(&(managed.times.get(b), b)));
    let mut first_of: BTreeMap<String, Manager> = BTreeMap::new();
    for manager in oldest {
        if count <= UPDATE_MANAGERS_MAX {
            break;
        }
        let Some(version) = managed.fields.get(&manager).map(|owned| owned.api_version.clone()) else {
            continue;
        };
        let bucket = Manager::new("ancient-changes", Operation::Update, &version, "");
        let Some(first) = first_of.get(&version) else {
            first_of.insert(version, manager);
            continue;
        };
        if !managed.fields.contains_key(&bucket)
            && let Some(owned) = managed.fields.remove(first)
        {
            managed.fields.insert(bucket.clone(), owned);
        }
        if let Some(owned) = managed.fields.remove(&manager)
            && let Some(all) = managed.fields.get_mut(&bucket)
        {
            all.add(owned.set());
        }
        count -= 1;
        // That of the update being put in, as it is the later one.
        if let Some(time) = managed.times.get(&manager).cloned() {
            managed.times.insert(bucket, time);
        }
    }
}
