//! Who owns which field: `managedFields` of every kind of write, and what an apply makes of an object (KEP-555).

use std::{borrow::Cow, sync::Arc};

use kcore::Status;
use kschema::apply::{ConvertError, FieldManager, Set, Versions, scale::ReplicaPaths};
use serde_json::{Value, json};

use crate::{
    convert,
    error::ApiResult,
    meta,
    objects::Objects,
    registry::Resource,
    schema::Type,
    write::{Call, RETRIES_MAX, Written},
};

/// The longest name of a manager that is made of a user agent, in bytes.
const MANAGER_BYTES_MAX: usize = 128;

/// The name of who writes: what the request says, or what comes before the slash in its user agent.
pub(crate) fn manager(asked: &str, user_agent: &str) -> String {
    let name = if asked.is_empty() { user_agent.split('/').next().unwrap_or_default() } else { asked };
    let mut kept = String::new();
    for letter in name.chars().filter(|letter| !letter.is_control()) {
        if kept.len() + letter.len_utf8() > MANAGER_BYTES_MAX {
            break;
        }
        kept.push(letter);
    }
    if kept.is_empty() { "unknown".to_owned() } else { kept }
}

/// The versions of a resource, as ownership asks for them.
struct Kinds<'a> {
    objects: &'a Objects,
    resource: &'a Resource,
    /// What a write to this endpoint does not change.
    reset: Option<Set>,
}

impl Kinds<'_> {
    fn version(&self, api_version: &str) -> Option<usize> {
        let (group, version) = kcore::kind::split_api_version(api_version);
        let def = &self.resource.def;
        (group == def.group).then(|| def.versions.iter().position(|known| known.name == version))?
    }
}

impl Versions for Kinds<'_> {
    fn schema(&self, api_version: &str) -> Option<&Type> {
        self.version(api_version).map(|index| &self.resource.def.versions[index].schema)
    }

    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, ConvertError> {
        let index = self.version(api_version).ok_or(ConvertError::NoSuchVersion)?;
        let from = object["apiVersion"].as_str().and_then(|from| self.version(from));
        let from = from.ok_or(ConvertError::NoSuchVersion)?;
        let at =
            |version| Resource { def: Arc::clone(&self.resource.def), version, table: self.resource.table };
        convert::between(self.objects, &at(from), &at(index), object).map_err(ConvertError::Failed)
    }

    fn reset_fields(&self, _api_version: &str) -> Option<&Set> {
        self.reset.as_ref()
    }
}

/// The fields that a write to an endpoint of the resource leaves as they are.
fn reset_fields(resource: &Resource, subresource: &str) -> Option<Set> {
    if resource.def.definition().is_none() {
        let paths = resource.def.strategy.reset_fields(subresource).iter().map(|path| path.split('.'));
        let paths: Vec<Vec<&str>> = paths.map(Iterator::collect).collect();
        return Some(Set::of(paths.iter().map(Vec::as_slice)));
    }
    match subresource {
        "" if resource.has_subresource("status") => Some(Set::of([&["status"][..]])),
        "status" => Some(Set::of([&["metadata"][..], &["spec"][..]])),
        _ => None,
    }
}

impl Call<'_> {
    fn with_manager<T>(&self, act: impl FnOnce(&FieldManager<'_>) -> T) -> T {
        let kinds = Kinds {
            objects: self.objects,
            resource: self.resource,
            reset: reset_fields(self.resource, self.subresource),
        };
        act(&FieldManager {
            catalog: self.objects.registry().catalog(),
            versions: &kinds,
            api_version: &self.resource.api_version(),
            kind: &self.resource.def.kind,
            subresource: self.subresource,
        })
    }

    /// Brings `managedFields` of a new or changed object up to date. Both objects are in the form that they are checked in;
    /// `live` is null for a new one.
    pub(crate) fn track(&self, live: &Value, object: &mut Value) {
        let Some(name) = self.manager else {
            return;
        };
        let now = self.objects.clock().now();
        if convert::is_identity(self.resource) || self.resource.def.definition().is_some() {
            self.with_manager(|manager| manager.on_update(live, object, name, now));
            return;
        }
        // Ownership speaks of the fields of the version that was written.
        let live = if live.is_null() { Cow::Borrowed(live) } else { self.shown(live) };
        let mut changed = self.shown(object).into_owned();
        self.with_manager(|manager| manager.on_update(&live, &mut changed, name, now));
        kschema::fields::keep(&mut object["metadata"], &changed["metadata"], "managedFields");
    }

    /// Applies `patch`, in the version of the request, and writes what comes of it; whether the object was created.
    /// `decode` brings an object of that version into canonical form.
    pub(crate) async fn apply(
        &self,
        patch: &Value,
        name: &str,
        force: bool,
        decode: &(dyn Fn(&mut Value) -> ApiResult<()> + Sync),
    ) -> ApiResult<(Written, bool)> {
        let untracked = Call { manager: None, ..*self };
        for _ in 0..RETRIES_MAX {
            if self.objects.get(self.resource, self.namespace, self.name).is_some() {
                let written = untracked.apply_to(patch, name, force, decode).await?;
                return Ok((written, false));
            }
            if !self.subresource.is_empty() {
                return Err(self.not_found());
            }
            if let Some(uid) = patch["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty()) {
                let why = format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                );
                let def = &self.resource.def;
                return Err(Status::conflict(&def.group, &def.plural, self.name, &why).into());
            }
            let now = self.objects.clock().now();
            let made = self.with_manager(|manager| manager.on_apply(&json!({}), patch, name, force, now))?;
            let mut object = made.unwrap_or_else(|| patch.clone());
            decode(&mut object)?;
            let given = patch["metadata"]["name"].as_str().unwrap_or_default();
            if given.is_empty() {
                return Err(Status::bad_request(meta::nameless(self.name)).into());
            }
            if given != self.name {
                let why = format!(
                    "the name of the object ({given}) does not match the name on the URL ({})",
                    self.name
                );
                return Err(Status::bad_request(why).into());
            }
            convert::to_hub(self.resource, &mut object);
            match untracked.create(object).await {
                // Somebody else was faster: then it is a change of what they made.
                Err(error) if error.0.is("AlreadyExists") => {}
                written => return Ok((written?, true)),
            }
        }
        Err(self.conflict())
    }

    async fn apply_to(
        &self,
        patch: &Value,
        name: &str,
        force: bool,
        decode: &(dyn Fn(&mut Value) -> ApiResult<()> + Sync),
    ) -> ApiResult<Written> {
        let read = self.read().await?;
        if self.is_settled(&read.1, patch, name) {
            // What is there has passed all that would be asked of it now. Other people's steps may see it otherwise.
            let strategy = &self.resource.def.strategy;
            self.warn(|| match self.subresource {
                "" => strategy.warnings(&read.1, Some(&read.1)),
                other => strategy.subresource_warnings(other, &read.1, &read.1),
            });
            return Ok(Written::Stored(read.0));
        }
        let change = |old: &Value| -> ApiResult<Value> {
            let now = self.objects.clock().now();
            let live = self.shown(old);
            let applied = self.with_manager(|manager| manager.on_apply(&live, patch, name, force, now))?;
            let Some(mut object) = applied else {
                return Ok(old.clone());
            };
            decode(&mut object)?;
            convert::to_hub(self.resource, &mut object);
            Ok(object)
        };
        self.update_from(read, &change).await
    }

    /// An object in the version of the request.
    fn shown<'v>(&self, object: &'v Value) -> Cow<'v, Value> {
        if convert::is_identity(self.resource) || self.resource.def.definition().is_some() {
            return Cow::Borrowed(object);
        }
        let mut object = object.clone();
        convert::from_hub(self.resource, &mut object);
        Cow::Owned(object)
    }

    /// Whether an apply changes nothing, and nobody has to be asked.
    fn is_settled(&self, live: &Value, patch: &Value, name: &str) -> bool {
        let is_known = !self.foreign_admission && matches!(self.subresource, "" | "status");
        is_known && self.with_manager(|manager| manager.is_settled(&self.shown(live), patch, name))
    }
}

/// Where the number of replicas is in each version of a resource that can be scaled.
pub(crate) fn replica_paths(resource: &Resource) -> ReplicaPaths {
    let paths = resource.def.versions.iter().map(|version| {
        let path = match &version.structure {
            None => Some("spec.replicas"),
            Some(structure) => structure.scale.as_ref().map(|scale| scale.spec_replicas.as_str()),
        };
        let elements = path.map(|path| path.split('.').map(kschema::apply::PathElement::field).collect());
        let group = &resource.def.group;
        let api_version =
            if group.is_empty() { version.name.clone() } else { format!("{group}/{}", version.name) };
        (api_version, elements)
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_are_named_by_request_or_user_agent() {
        for (asked, agent, expected) in [
            ("me", "kubectl/v1.37", "me"),
            ("", "kubectl/v1.37 (linux/amd64)", "kubectl"),
            ("", "", "unknown"),
            ("", "a\u{7}b/1", "ab"),
        ] {
            assert_eq!(manager(asked, agent), expected, "{asked} {agent}");
        }
        assert_eq!(manager("", &"x".repeat(200)).len(), MANAGER_BYTES_MAX);
    }
}
