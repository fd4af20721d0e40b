//! Discovery: what the server serves, in the old form (one document per group version) and the aggregated one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use kcore::Status;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{json_response, negotiate};
use crate::{
    aggregate,
    body::Body,
    error::ApiResult,
    objects::Objects,
    registry::{Registry, Resource, Verbs, version_priority},
    server::Inner,
};

/// Documents that are made once for a state of the registry.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    cached: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    /// The registry's revision that the documents were made from.
    revision: u64,
    documents: ahash::HashMap<String, Bytes>,
}

impl Documents {
    /// The document of this name, made by `make` if there is none of this revision of the registry. Nothing is locked while
    /// it is made, so callers that ask at the same time may each make it.
    pub(crate) fn bytes(&self, name: &str, revision: u64, make: impl FnOnce() -> Vec<u8>) -> Bytes {
        if let Some(bytes) = self.current(revision).and_then(|cached| cached.documents.get(name).cloned()) {
            return bytes;
        }
        let bytes = Bytes::from(make());
        if let Some(mut cached) = self.current(revision) {
            cached.documents.insert(name.to_owned(), bytes.clone());
        }
        bytes
    }

    /// What is kept of this revision; nothing if a newer one has been seen.
    fn current(&self, revision: u64) -> Option<MutexGuard<'_, Cached>> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if revision > cached.revision {
            *cached = Cached { revision, documents: ahash::HashMap::default() };
        }
        (cached.revision == revision).then_some(cached)
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

/// The root: the paths that are served.
pub(super) fn paths(objects: &Objects) -> Response<Body> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in objects.registry().groups().into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
            .map(str::to_owned),
    );
    paths.sort_unstable();
    json_response(StatusCode::OK, &json!({ "paths": paths }))
}

/// Answers `/api`, `/apis` and what is below, except resources.
pub(super) async fn serve(
    server: &Arc<Inner>,
    segments: &[&str],
    headers: &HeaderMap,
) -> ApiResult<Response<Body>> {
    let registry = server.objects.registry();
    let value = match segments {
        ["api" | "apis"] => {
            if let Some(version) = aggregated_version(headers) {
                return Ok(aggregated(server, segments[0] == "api", version, headers).await);
            }
            if segments[0] == "api" { core_versions() } else { group_list(&all_groups(server)) }
        }
        ["api", version] if registry.has_version("", version) => resource_list(registry, "", version),
        ["apis", group] => group_of(&all_groups(server), group).ok_or_else(Status::no_such_path)?,
        ["apis", group, version] if registry.has_version(group, version) => {
            resource_list(registry, group, version)
        }
        _ => return Err(Status::no_such_path().into()),
    };
    Ok(json_response(StatusCode::OK, &value))
}

fn core_versions() -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
    })
}

fn group_value(group: &str, versions: &[String]) -> Value {
    let all: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "versions": all, "preferredVersion": all.first()})
}

/// The groups that are served here or by another server.
fn all_groups(server: &Inner) -> Vec<(String, Vec<String>)> {
    let mut groups = server.objects.registry().groups();
    for remote in server.aggregation.all(&server.objects) {
        match groups.iter_mut().find(|(group, _)| *group == remote.group) {
            Some((_, versions)) if versions.contains(&remote.version) => {}
            Some((_, versions)) => {
                versions.push(remote.version.clone());
                versions.sort_by_key(|version| std::cmp::Reverse(version_priority(version)));
            }
            None => groups.push((remote.group.clone(), vec![remote.version.clone()])),
        }
    }
    groups
}

fn group_list(groups: &[(String, Vec<String>)]) -> Value {
    let groups: Vec<Value> = groups
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_value(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_of(groups: &[(String, Vec<String>)], name: &str) -> Option<Value> {
    let (group, versions) = groups.iter().find(|(group, _)| group == name && !group.is_empty())?;
    let mut value = group_value(group, versions);
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(value)
}

/// The kind of a subresource, its group version when that is another, and its verbs.
pub(super) fn subresource(
    resource: &Resource,
    name: &str,
) -> (String, Option<(&'static str, &'static str)>, &'static [&'static str]) {
    let own = || resource.def.kind.clone();
    match name {
        "scale" => ("Scale".to_owned(), Some(("autoscaling", "v1")), &["get", "patch", "update"]),
        "binding" => ("Binding".to_owned(), None, &["create"]),
        "eviction" => ("Eviction".to_owned(), Some(("policy", "v1")), &["create"]),
        "token" => ("TokenRequest".to_owned(), Some(("authentication.k8s.io", "v1")), &["create"]),
        "log" => (own(), None, &["get"]),
        "exec" => ("PodExecOptions".to_owned(), None, &["create", "get"]),
        "attach" => ("PodAttachOptions".to_owned(), None, &["create", "get"]),
        "portforward" => ("PodPortForwardOptions".to_owned(), None, &["create", "get"]),
        "proxy" => {
            let verbs = &["create", "delete", "get", "patch", "update"];
            (format!("{}ProxyOptions", resource.def.kind), None, verbs)
        }
        "finalize" => (own(), None, &["update"]),
        _ => (own(), None, &["get", "patch", "update"]),
    }
}

fn resource_list(registry: &Registry, group: &str, version: &str) -> Value {
    let mut resources = Vec::new();
    for resource in registry.resources(group, version) {
        let def = &resource.def;
        let mut entry = json!({
            "name": def.plural, "singularName": def.singular, "namespaced": def.namespaced, "kind": def.kind,
            "verbs": resource.verbs().names(),
        });
        if !def.short_names.is_empty() {
            entry["shortNames"] = json!(def.short_names);
        }
        if !def.categories.is_empty() {
            entry["categories"] = json!(def.categories);
        }
        if matches!(def.verbs, Verbs::All | Verbs::NoDeleteCollection) {
            entry["storageVersionHash"] = json!(storage_hash(&resource));
        }
        resources.push(entry);
        for name in resource.subresources() {
            let (kind, other, verbs) = subresource(&resource, name);
            let mut entry = json!({"name": format!("{}/{name}", def.plural), "singularName": "", "namespaced": def.namespaced, "kind": kind, "verbs": verbs});
            if let Some((group, version)) = other {
                entry["group"] = json!(group);
                entry["version"] = json!(version);
            }
            resources.push(entry);
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}

/// The first eight bytes of the SHA-256 of the storage version, in base64 (`discovery.StorageVersionHash`).
fn storage_hash(resource: &Resource) -> String {
    use base64::Engine as _;
    let def = &resource.def;
    let digest = Sha256::digest(format!("{}/{}/{}", def.group, def.storage_version(), def.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// The version of aggregated discovery that the caller prefers, if any (KEP-3352).
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    negotiate::ranges(headers).iter().find_map(|range| {
        let wanted = range.essence == "application/json"
            && range.parameter("g") == "apidiscovery.k8s.io"
            && range.parameter("as") == "APIGroupDiscoveryList";
        match range.parameter("v") {
            "v2" if wanted => Some(Some("v2")),
            "v2beta1" if wanted => Some(Some("v2beta1")),
            _ if range.essence == "application/json" && range.parameter("as").is_empty() => Some(None),
            _ => None,
        }
    })?
}

/// The aggregated document, or "not modified" if the caller has it already (KEP-3352, "ETag").
async fn aggregated(
    server: &Arc<Inner>,
    core: bool,
    version: &'static str,
    headers: &HeaderMap,
) -> Response<Body> {
    let registry = server.objects.registry();
    let revision = registry.revision();
    let make = || {
        let groups = registry.groups();
        let groups = groups.iter().filter(|(group, _)| group.is_empty() == core);
        let items: Vec<Value> =
            groups.map(|(group, versions)| aggregated_group(registry, group, versions)).collect();
        json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items})
    };
    let make = || serde_json::to_vec(&make()).unwrap_or_default();
    let name = format!("discovery/{version}/{core}");
    let mut bytes = server.documents.bytes(&name, revision, make);
    // Clients ask again and again: what has not changed is hashed once.
    let hash_of = |bytes: &[u8]| hex(&Sha256::digest(bytes));
    let mut hash = server.documents.bytes(&format!("{name}/hash"), revision, || hash_of(&bytes).into_bytes());
    let remotes = server.aggregation.all(&server.objects);
    if !core && !remotes.is_empty() {
        // What other servers say is asked anew each time: nobody tells when it changes.
        let mut document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        for remote in remotes {
            let list = remote.resources(server).await.ok();
            add_remote(&mut document["items"], &remote.group, aggregate::aggregated(&remote, list.as_ref()));
        }
        bytes = serde_json::to_vec(&document).unwrap_or_default().into();
        hash = hash_of(&bytes).into_bytes().into();
    }
    let mut response = super::openapi::tagged_json(headers, bytes, &String::from_utf8_lossy(&hash));
    let kind = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let (Ok(kind), StatusCode::OK) = (HeaderValue::from_str(&kind), response.status()) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

/// Adds a version of another server to the groups of a document.
fn add_remote(items: &mut Value, group: &str, version: Value) {
    let Some(items) = items.as_array_mut() else {
        return;
    };
    if let Some(item) = items.iter_mut().find(|item| item["metadata"]["name"] == *group)
        && let Some(versions) = item["versions"].as_array_mut()
    {
        versions.retain(|known| known["version"] != version["version"]);
        versions.push(version);
        let priority = |known: &Value| {
            std::cmp::Reverse(version_priority(known["version"].as_str().unwrap_or_default()))
        };
        versions.sort_by_key(priority);
        return;
    }
    items.push(json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": [version]}));
}

fn aggregated_group(registry: &Registry, group: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = registry
                .resources(group, version)
                .iter()
                .map(|resource| aggregated_resource(resource))
                .collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.is_empty() {
        json!({"creationTimestamp": null})
    } else {
        json!({"name": group, "creationTimestamp": null})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let def = &resource.def;
    let kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let own = &resource.version().name;
    let mut value = json!({
        "resource": def.plural, "responseKind": kind(&def.group, own, &def.kind),
        "scope": if def.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular, "verbs": resource.verbs().names(),
    });
    if !def.short_names.is_empty() {
        value["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        value["categories"] = json!(def.categories);
    }
    let subresources: Vec<Value> = def
        .subresources
        .iter()
        .map(|name| {
            let (sub_kind, other, verbs) = subresource(resource, name);
            let (group, version) = other.unwrap_or((&def.group, own));
            json!({"subresource": name, "responseKind": kind(group, version, &sub_kind), "verbs": verbs})
        })
        .collect();
    if !subresources.is_empty() {
        value["subresources"] = json!(subresources);
    }
    value
}
