//! Ownership at the scale subresource: its one field, `spec.replicas`, is another field of the scaled object.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    managed::{Managed, ManagedFieldsError},
    owned::Owned,
    path::PathElement,
    set::Set,
};

const SCALE_VERSION: &str = "autoscaling/v1";

/// Where the number of replicas stands in each version of the scaled kind. A version without a path is one that is served
/// but cannot be scaled; entries of other versions are dropped.
pub type ReplicaPaths = BTreeMap<String, Option<Vec<PathElement>>>;

fn replicas() -> Vec<PathElement> {
    vec![PathElement::field("spec"), PathElement::field("replicas")]
}

fn path_set(path: &[PathElement]) -> Set {
    let mut set = Set::default();
    set.insert(path.iter().cloned());
    set
}

/// The `managedFields` that a Scale shows for the object it scales: who owns the number of replicas. `None`: nobody.
///
/// # Errors
/// When the object's `managedFields` cannot be read.
pub fn to_scale(parent: &Value, paths: &ReplicaPaths) -> Result<Option<Value>, ManagedFieldsError> {
    let managed = Managed::decode(parent)?;
    let mut shown = Managed::default();
    for (manager, owned) in managed.fields {
        let Some(Some(path)) = paths.get(&owned.api_version) else { continue };
        if owned.set().has(path) {
            let owned = Owned::new(path_set(&replicas()), SCALE_VERSION);
            if let Some(time) = managed.times.get(&manager) {
                shown.times.insert(manager.clone(), time.clone());
            }
            shown.fields.insert(manager, owned);
        }
    }
    Ok(shown.encode())
}

/// The object's `managedFields` after a Scale has been written whose own are `scale`. `api_version` is the version in which
/// the object is scaled. `None`: nobody owns anything.
///
/// # Errors
/// When either list cannot be read.
pub fn to_parent(
    parent: &Value,
    scale: &Value,
    api_version: &str,
    paths: &ReplicaPaths,
) -> Result<Option<Value>, ManagedFieldsError> {
    let parent = Managed::decode(parent)?;
    let mut scale = Managed::decode(scale)?;
    let mut out = Managed::default();
    for (manager, mut owned) in parent.fields {
        let Some(path) = paths.get(&owned.api_version) else { continue };
        if let Some(path) = path.as_ref().filter(|path| owned.set().has(path))
            && scale.fields.remove(&manager).is_none()
        {
            // Somebody else took the replicas at the scale.
            owned.subtract(&path_set(path));
            if owned.is_empty() {
                continue;
            }
        }
        if let Some(time) = parent.times.get(&manager) {
            out.times.insert(manager.clone(), time.clone());
        }
        out.fields.insert(manager, owned);
    }
    let path = paths.get(api_version).and_then(Option::as_ref);
    for (manager, owned) in scale.fields {
        let Some(path) = path.filter(|_| owned.set().has(&replicas())) else { continue };
        // The time is the object's own, if that manager has one there: upstream does the same.
        if let Some(time) = parent.times.get(&manager) {
            out.times.insert(manager.clone(), time.clone());
        }
        out.fields.insert(manager, Owned::new(path_set(path), api_version));
    }
    Ok(out.encode())
}
