//! Conversion between the versions of a resource and the form it is stored in.
//!
//! A resource is stored in its first version. `core/v1` and `events.k8s.io/v1` events are one thing under two names
//! (KEP-383) and are stored as the former. Autoscalers and the claims and devices of dynamic resources have fields in other
//! places in their older versions. All other versions have the same fields and differ in `apiVersion` alone.

mod devices;
mod scaler;

use kcore::{
    Status, Stored,
    selector::{FieldSelector, FieldTerm},
};
use serde_json::{Value, json};

use crate::{
    custom::{self, Conversion},
    error::ApiResult,
    objects::Objects,
    registry::{Resource, ResourceDef, Version, selectable_value},
    schema::{
        Catalog, Type,
        check::{self, TypeError},
    },
};

/// The table that holds a resource's objects.
pub(crate) fn table_name(def: &ResourceDef) -> String {
    if is_new_event(def) { "events".to_owned() } else { def.table_name() }
}

fn is_new_event(def: &ResourceDef) -> bool {
    def.group == "events.k8s.io" && def.plural == "events"
}

fn is_old_scaler(resource: &Resource) -> bool {
    resource.def.group == "autoscaling" && resource.version().name == "v1"
}

fn is_old_device(resource: &Resource) -> bool {
    resource.def.group == "resource.k8s.io" && resource.version().name == "v1beta1"
}

/// Whether all objects of this resource are stored as this version serves them.
pub(crate) fn is_identity(resource: &Resource) -> bool {
    resource.is_storage_version() && !is_new_event(&resource.def) && resource.def.definition().is_none()
}

/// Whether this object is stored as the resource's version serves it. Custom objects stay in the version that was the
/// storage version when they were written.
pub(crate) fn is_as_served(resource: &Resource, object: &Stored) -> bool {
    if resource.def.definition().is_none() {
        return is_identity(resource);
    }
    // The encoding puts `apiVersion` first.
    let rest = object.raw().strip_prefix(b"{\"apiVersion\":\"");
    let rest = rest.and_then(|rest| rest.strip_prefix(resource.def.group.as_bytes()));
    let rest = rest.and_then(|rest| rest.strip_prefix(b"/"));
    rest.and_then(|rest| rest.strip_prefix(resource.version().name.as_bytes()))
        .is_some_and(|rest| rest.starts_with(b"\""))
}

/// A stored object in the version of the request.
pub(crate) async fn served(objects: &Objects, resource: &Resource, object: &Stored) -> ApiResult<Value> {
    let mut value = object.value().map_err(Status::internal)?;
    if resource.def.definition().is_some() {
        return custom_in(objects, resource, value, resource.version()).await;
    }
    from_hub(resource, &mut value);
    Ok(value)
}

/// A stored object in the form that it is changed and checked in: the storage version for built-in kinds, the version of
/// the request for those with structural schemas.
pub(crate) async fn hub(objects: &Objects, resource: &Resource, object: &Stored) -> ApiResult<Value> {
    let value = object.value().map_err(Status::internal)?;
    if resource.def.definition().is_none() {
        return Ok(value);
    }
    custom_in(objects, resource, value, resource.version()).await
}

/// The form that is stored, of the one that was checked.
pub(crate) async fn to_store(objects: &Objects, resource: &Resource, object: Value) -> ApiResult<Value> {
    if resource.def.definition().is_none() {
        return Ok(object);
    }
    custom_in(objects, resource, object, &resource.def.versions[0]).await
}

/// A custom object in the version of a resource.
pub(crate) async fn in_version(objects: &Objects, resource: &Resource, object: Value) -> ApiResult<Value> {
    custom_in(objects, resource, object, resource.version()).await
}

/// Brings an object, in the form that it is checked in, into canonical form with all defaults; the paths of the fields that
/// there are not, which go.
///
/// # Errors
/// For fields of a wrong type.
pub(crate) fn canonical(
    objects: &Objects,
    resource: &Resource,
    object: &mut Value,
) -> Result<Vec<String>, TypeError> {
    let def = &resource.def;
    let unknown = match &resource.version().structure {
        Some(structure) => {
            structure.schema.prune(object);
            Vec::new()
        }
        None => {
            let catalog = objects.registry().catalog();
            check::check(catalog, &hub_schema(catalog, def), object)?
        }
    };
    def.strategy.default(object);
    Ok(unknown)
}

/// Drops what is empty and not written (Go's `omitempty`), from an object that has been checked.
pub(crate) fn omit_empty(objects: &Objects, resource: &Resource, object: &mut Value) {
    let catalog = objects.registry().catalog();
    if resource.def.definition().is_none() {
        kschema::omit::omit_empty(catalog, &hub_schema(catalog, &resource.def), object);
    } else if let (Some(metadata), Some(id)) = (object.get_mut("metadata"), catalog.find("^ObjectMeta")) {
        kschema::omit::omit_empty(catalog, &Type::Named(id), metadata);
    }
}

/// A custom object in another version.
async fn custom_in(
    objects: &Objects,
    resource: &Resource,
    mut object: Value,
    to: &Version,
) -> ApiResult<Value> {
    let wanted = api_version(&resource.def, &to.name);
    if object["apiVersion"] == *wanted {
        return Ok(object);
    }
    let definition = resource.def.definition();
    if let Some(Conversion::Webhook(webhook)) = definition.map(|definition| &definition.conversion) {
        object = custom::convert(objects, resource, webhook, object, &wanted).await?;
    }
    object["apiVersion"] = json!(wanted);
    if let Some(structure) = &to.structure {
        structure.schema.prune(&mut object);
        structure.schema.default_in(&mut object);
    }
    Ok(object)
}

/// An object of one version in another, where that needs nobody else.
pub(crate) fn between(
    _objects: &Objects,
    from: &Resource,
    to: &Resource,
    object: &Value,
) -> Result<Value, String> {
    let mut object = object.clone();
    match from.def.definition().map(|definition| &definition.conversion) {
        None => {
            to_hub(from, &mut object);
            from_hub(to, &mut object);
        }
        Some(Conversion::None) => object["apiVersion"] = json!(to.api_version()),
        Some(Conversion::Webhook(_)) => {
            return Err(format!("{} is converted by a webhook", from.def.qualified()));
        }
    }
    Ok(object)
}

/// Turns an object of the resource's version into the form that it is checked in (see [`hub`]).
pub(crate) fn to_hub(resource: &Resource, object: &mut Value) {
    if is_identity(resource) || resource.def.definition().is_some() {
        return;
    }
    if is_new_event(&resource.def) {
        rename(object, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core)));
        object["apiVersion"] = json!("v1");
        return;
    }
    if is_old_scaler(resource) {
        scaler::to_hub(object);
    } else if is_old_device(resource) {
        devices::to_hub(&resource.def.plural, object);
    }
    object["apiVersion"] = json!(api_version(&resource.def, resource.def.storage_version()));
}

/// Turns an object in the form that it is checked in into one of the resource's version.
pub(crate) fn from_hub(resource: &Resource, object: &mut Value) {
    if is_identity(resource) || resource.def.definition().is_some() {
        return;
    }
    if is_new_event(&resource.def) {
        rename(object, EVENT_FIELDS.iter().copied());
    } else if is_old_scaler(resource) {
        scaler::from_hub(object);
    } else if is_old_device(resource) {
        devices::from_hub(&resource.def.plural, object);
    }
    object["apiVersion"] = json!(resource.api_version());
}

/// The schema of the form that a resource's objects are checked in.
pub(crate) fn hub_schema(catalog: &Catalog, def: &ResourceDef) -> Type {
    let event = if is_new_event(def) { catalog.find("~core.v1.Event").map(Type::Named) } else { None };
    event.unwrap_or_else(|| def.versions[0].schema.clone())
}

fn api_version(def: &ResourceDef, version: &str) -> String {
    if def.group.is_empty() { version.to_owned() } else { format!("{}/{version}", def.group) }
}

/// The fields of an event in core/v1 and in events.k8s.io/v1.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename<'a>(object: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for (from, to) in names {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

/// The fields of an event that selectors may name in core/v1 and in events.k8s.io/v1, where they differ (upstream's
/// `AddFieldLabelConversionsForEvent`).
const EVENT_LABELS: [(&str, &str); 8] = [
    ("involvedObject.apiVersion", "regarding.apiVersion"),
    ("involvedObject.fieldPath", "regarding.fieldPath"),
    ("involvedObject.kind", "regarding.kind"),
    ("involvedObject.name", "regarding.name"),
    ("involvedObject.namespace", "regarding.namespace"),
    ("involvedObject.resourceVersion", "regarding.resourceVersion"),
    ("involvedObject.uid", "regarding.uid"),
    ("reportingComponent", "reportingController"),
];

/// Turns a selector in the names of the resource's version into one in those of the stored form.
///
/// # Errors
/// With what the client is told when the resource has no such field.
pub(crate) fn rename_selected(def: &ResourceDef, fields: &mut FieldSelector) -> Result<(), String> {
    if !is_new_event(def) || fields.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for FieldTerm { path, equal, value } in fields.terms() {
        let path = match EVENT_LABELS.iter().find(|(_, new)| new == path) {
            Some((core, _)) => core,
            None if ["reason", "type", "metadata.name", "metadata.namespace"].contains(&&**path) => &**path,
            None => return Err(format!("field label not supported: {path}")),
        };
        text.push_str(path);
        text.push_str(if *equal { "=" } else { "!=" });
        for c in value.chars() {
            if matches!(c, '\\' | ',' | '=') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push(',');
    }
    *fields = FieldSelector::parse(&text).map_err(|error| error.to_string())?;
    Ok(())
}

/// The value of a selectable field in a stored object.
pub(crate) fn field(def: &ResourceDef, object: &Value, path: &str) -> String {
    match (def.plural.as_str(), path) {
        ("events", "source") => {
            let source = selectable_value(object, "source.component");
            if source.is_empty() { selectable_value(object, "reportingComponent") } else { source }
        }
        ("pods", "status.podIPs") => {
            let addresses = object["status"]["podIPs"].as_array().into_iter().flatten();
            addresses.filter_map(|entry| entry["ip"].as_str()).collect::<Vec<_>>().join(",")
        }
        ("nodes", "spec.unschedulable") | ("pods", "spec.hostNetwork") => {
            let value = selectable_value(object, path);
            if value.is_empty() { "false".to_owned() } else { value }
        }
        ("jobs", "status.successful") => {
            let value = selectable_value(object, "status.succeeded");
            if value.is_empty() { "0".to_owned() } else { value }
        }
        ("replicasets" | "replicationcontrollers", "status.replicas") => {
            let value = selectable_value(object, path);
            if value.is_empty() { "0".to_owned() } else { value }
        }
        _ => selectable_value(object, path),
    }
}

#[cfg(test)]
mod tests {
    use kschema::{builtin, testing::object_of};
    use proptest::prelude::*;

    use super::*;

    /// Kinds whose conversion does not give back everything, nor does upstream's: annotations that can't be read are dropped
    /// with an autoscaler, and a pod's certificate request has deprecated fields that the stored version doesn't know.
    const ONE_WAY: [&str; 2] = ["HorizontalPodAutoscaler", "PodCertificateRequest"];

    fn join(group: &str, version: &str) -> String {
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

        #[test]
        fn every_version_survives_the_way_through_the_stored_one(seed in any::<u64>()) {
            let server = crate::ApiServer::builder().build().unwrap();
            let registry = server.0.objects.registry();
            let catalog = builtin::catalog();
            let mut count = 0;
            for (group, version, kind, id) in builtin::kinds(&catalog) {
                let Some(resource) = registry.find_kind(&join(group, version), kind) else { continue };
                if is_identity(&resource) || ONE_WAY.contains(&kind) {
                    continue;
                }
                let object = object_of(&catalog, (group, version, kind), id, seed);
                let mut converted = object.clone();
                to_hub(&resource, &mut converted);
                let mut pruned = converted.clone();
                let stored = converted["apiVersion"].as_str().and_then(|stored| registry.find_kind(stored, kind)).unwrap();
                let schema = &stored.version().schema;
                let unknown = kschema::check::check(&catalog, schema, &mut pruned).unwrap();
                prop_assert_eq!(unknown, Vec::<String>::new(), "{} {}: the stored version has no place for", kind, version);
                from_hub(&resource, &mut converted);
                prop_assert_eq!(converted, object, "{} {}", kind, version);
                count += 1;
            }
            prop_assert!(count > 15, "only {} kinds have several versions", count);
        }
    }
}
